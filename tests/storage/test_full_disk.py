"""A full disk is reported in one line and leaves no half-written file."""

import errno
import os
import resource
import threading

import pytest
import test_contract_refusals
from absl import logging

from mlir_jax.storage import full_disk

trained = test_contract_refusals.trained


@pytest.mark.parametrize(
  "error",
  [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/data/run/x"),
    ValueError('Failed writing: "/data/run/x": No space left on device'),
    RuntimeError("I/O error: No space left on device (os error 28)"),
  ],
)
@pytest.mark.parametrize("wrapped", ["no", "as a cause", "as a context"])
def test_a_full_disk_is_found_and_reported_in_one_line(error, wrapped, capsys):
  said = []
  with full_disk.reported_once(said.append):
    try:
      raise error
    except Exception as cause:
      if wrapped == "as a cause":
        raise RuntimeError("the save failed") from cause
      if wrapped == "as a context":
        raise KeyError("state")  # noqa: B904
      raise
  (line,) = said
  assert "\n" not in line and line.endswith("start the same command again.")
  assert "o space left" in line or "quota exceeded" in line
  if "/data" in str(error):
    assert line.startswith("/data/run/x: ")
  assert capsys.readouterr().err == ""


def test_messages_of_background_threads_are_left_out(caplog, monkeypatch):
  full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  other = KeyError("another fault")
  shown = []
  monkeypatch.setattr(
    threading, "excepthook", lambda args: shown.append(args.exc_value)
  )

  def fail(error):
    raise error

  with full_disk.reported_once(pytest.fail):
    for error in (full, other):
      logging.error("save failed: %s", error)
      thread = threading.Thread(target=fail, args=[error])
      thread.start()
      thread.join()
  assert shown == [other]
  assert caplog.messages == [f"save failed: {other}"]
  before = threading.excepthook
  with pytest.raises(KeyError), full_disk.reported_once(pytest.fail):
    raise other
  assert threading.excepthook is before


@pytest.fixture
def no_silence(monkeypatch):
  """Keeps a main from silencing pytest at its end."""
  monkeypatch.setattr(full_disk.atexit, "register", lambda *_: None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
  "main, size",
  [("train", 3_000), ("train", 12_000), ("encode", 100), ("export", 9_000)],
)
def test_mains_end_with_one_line_and_leave_nothing(
  main, size, trained, tmp_path, capsys, monkeypatch, no_silence
):
  workdir = tmp_path / "run" if main == "train" else trained / "run"
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
  try:
    code, error = test_contract_refusals.call(
      main, workdir, trained, capsys, monkeypatch
    )
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert code == 2
  assert "Traceback" not in error
  assert error.count("file too large. Free some space") == 1
  assert error.count("oo large") == 1
  (last,) = error.splitlines()[-1:]
  assert str(workdir) in last
  assert main != "train" or not (workdir / "checkpoints/2").exists()
  assert not list((workdir / "out").glob("**/*"))
