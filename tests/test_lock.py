"""Only one run uses a workdir, on a disk and on object storage."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time

import object_store
import pytest

from mlir_jax import lock

URL = "gs://bucket/run"

HOLDER = """
import sys, time
from mlir_jax import lock
with lock.hold(sys.argv[1]):
  print("held", flush=True)
  time.sleep(600)
"""


def test_a_second_run_is_refused_until_the_first_one_is_dead(tmp_path):
  folder = str(tmp_path / "run")
  holder = subprocess.Popen(
    [sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE
  )
  try:
    assert holder.stdout.readline() == b"held\n"
    named = rf"process {holder.pid} on .*another --workdir"
    with pytest.raises(ValueError, match=named) as refused, lock.hold(folder):
      pass
    assert "\n" not in str(refused.value)
  finally:
    holder.kill()
    holder.wait()
  with lock.hold(folder):
    found = json.loads((tmp_path / "run" / lock.FILE).read_text())
    assert found["pid"] == os.getpid()
    with pytest.raises(ValueError, match=str(os.getpid())), lock.hold(folder):
      pass
  with lock.hold(folder):  # The first holder has released it.
    pass


def test_a_warning_names_a_file_system_without_locks(
  tmp_path, monkeypatch, capsys
):
  def no_locks(*_):
    raise OSError(errno.ENOTSUP, "Operation not supported")

  monkeypatch.setattr(fcntl, "flock", no_locks)
  with lock.hold(str(tmp_path)):
    pass
  assert f"{tmp_path} has no locks" in capsys.readouterr().err


def test_an_error_of_the_disk_names_the_file(tmp_path, monkeypatch):
  def fails(*_):
    raise OSError(errno.EIO, "Input/output error")

  monkeypatch.setattr(fcntl, "flock", fails)
  with pytest.raises(OSError, match=lock.FILE), lock.hold(str(tmp_path)):
    pass


@pytest.mark.parametrize(
  "text",
  [
    b"\xff\x00",
    b"[" * 100_000,
    b"[1]",
    b'{"pid": ' + b"9" * 5000 + b"}",
    b'{"pid": 1, "host": "\\u001b[31m\\n", "since": ""}',
    b'{"pid": 1, "since": "", "host": "' + b"h" * 100_000 + b'"}',
  ],
)
def test_a_second_run_is_refused_in_a_line_whatever_the_holder_wrote(
  text, tmp_path
):
  with lock.hold(str(tmp_path)):
    (tmp_path / lock.FILE).write_bytes(text)
    with (
      pytest.raises(ValueError, match="Another run uses") as error,
      lock.hold(str(tmp_path)),
    ):
      pass
  assert str(error.value).isprintable() and len(str(error.value)) < 3000


def test_a_link_is_not_followed(tmp_path):
  other = tmp_path / "other"
  other.write_text("mine")
  (tmp_path / lock.FILE).symlink_to(other)
  with pytest.raises(OSError, match=lock.FILE), lock.hold(str(tmp_path)):
    pass
  assert other.read_text() == "mine"


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr(lock, "EXPIRES", 2.0)
  monkeypatch.setattr(lock, "RENEWED_EVERY", 0.2)
  monkeypatch.setattr(lock, "_MARGIN", 0.5)
  return object_store.serve(monkeypatch)


def test_a_lease_keeps_others_out_while_it_is_renewed(quick):
  with lock.hold(URL):
    named = rf"process {os.getpid()} on .*another --workdir"
    with pytest.raises(ValueError, match=named), lock.hold(URL):
      pass
  started = time.monotonic()
  with lock.hold(URL):
    pass
  assert time.monotonic() - started < lock.EXPIRES / 2  # It was released.


def test_the_lease_of_a_dead_run_expires(quick, capsys):
  quick.objects[f"{URL}/{lock.FILE}"] = b'{"pid": 1}'
  started = time.monotonic()
  with lock.hold(URL):
    assert time.monotonic() - started >= lock.EXPIRES
    assert b'"id"' in quick.objects[f"{URL}/{lock.FILE}"]
  assert "waiting up to 2 s" in capsys.readouterr().err


@pytest.mark.parametrize(
  "lose, reason",
  [
    (lambda store: store.serve_others(), "another run has taken it"),
    (lambda store: store.fail(), "could not be renewed"),
  ],
)
def test_a_run_whose_lease_is_lost_is_ended_in_time(
  quick, monkeypatch, lose, reason
):
  ended, said = threading.Event(), []

  def end(status, text):
    said.append((status, text))
    ended.set()

  def serve_others():
    quick.objects[f"{URL}/{lock.FILE}"] = b'{"id": "other"}'

  def fail():
    def hang(*_):
      time.sleep(60)

    monkeypatch.setattr(object_store._Handler, "do_POST", hang)

  quick.serve_others, quick.fail = serve_others, fail
  with lock.hold(URL, end):
    lose(quick)
    assert ended.wait(lock.EXPIRES)
  assert said[0][0] == 69
  assert reason in said[0][1]
