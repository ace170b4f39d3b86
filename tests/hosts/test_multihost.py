"""A process that is missing, different, stuck or dead is named."""

import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import tiny
from absl import flags

from mlir_jax import config, config_files, workdir
from mlir_jax.command_line import process_flags
from mlir_jax.hosts import cluster, multihost
from mlir_jax.retrieval import model, vector_folder
from mlir_jax.training import loop, progress, run, stopping, timetable

LIGHT = pathlib.Path(tiny.__file__).parent / "light_run.py"
# Seconds. A busy machine is slow, but each step of a test ends by then.
LIMIT = 240


def free_port():
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    return found.getsockname()[1]


@contextlib.contextmanager
def processes(command, numbers=(0, 1), count=2, devices=2):
  """Starts processes of one run; all end with the test."""
  port = free_port()
  started = {}
  try:
    for number in numbers:
      started[number] = subprocess.Popen(
        [
          sys.executable,
          *command,
          "--distributed",
          f"--coordinator=127.0.0.1:{port}",
          f"--processes={count}",
          f"--process={number}",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
      )
    yield started
  finally:
    for process in started.values():
      process.kill()
      process.wait()


def ends(process):
  """Waits for a process; returns its exit status, stdout and stderr."""
  output, errors = process.communicate(timeout=LIMIT)
  return process.returncode, output, errors


def light(moment, who, mishap, *flags, **settings):
  """Runs light_run.py; returns process to (status, stdout, stderr)."""
  command = [str(LIGHT), str(moment), str(who), mishap, *flags]
  with processes(command, **settings) as started:
    return {number: ends(process) for number, process in started.items()}


@pytest.mark.parametrize(
  "given, message",
  [
    (("here:1", 2, 2), "--process=2: of --processes=2 the numbers are 0 to 1"),
    (("here", 2, 0), "--coordinator=here: give HOST:PORT"),
    (("here:²", 2, 0), "give HOST:PORT"),
    (("here:65536", 2, 0), "give HOST:PORT"),
    ((None, 2, 0), "give --coordinator"),
  ],
)
def test_a_wrong_flag_is_named(given, message):
  with pytest.raises(ValueError, match=message):
    cluster.address(*given)


def test_flags_outside_the_config_must_be_the_same_too(monkeypatch):
  values = flags.FlagValues()
  flags.DEFINE_bool("distributed", False, "", flag_values=values)
  flags.DEFINE_bool("insecure_check_in", False, "", flag_values=values)
  for name in (
    *("coordinator", "processes", "process", "coordinator_bind_address"),
    *("workdir", "config.seed"),
  ):
    flags.DEFINE_string(name, None, "", flag_values=values)
  values(
    [
      *("", "--distributed", "--process=1", "--workdir=/a", "--config.seed=7"),
      *("--insecure_check_in", "--coordinator_bind_address=10.0.0.1"),
    ]
  )
  monkeypatch.setattr(flags, "FLAGS", values)
  compared, settings = {}, {}

  def join(*_, items, **others):
    compared.update(items)
    settings.update(others)

  monkeypatch.setattr(multihost, "join", join)
  process_flags.join(config.default())
  assert compared["--workdir"] == "/a"
  assert compared["config.seed"] == config.default().seed
  own = {"--process", "--coordinator_bind_address", "--config.seed"}
  assert not own & compared.keys()
  assert settings["insecure"] is True
  assert settings["bind"] == "10.0.0.1"


def test_between_saving_and_the_next_step_a_process_may_be_stuck(monkeypatch):
  phases = []
  monkeypatch.setattr(
    multihost, "report", lambda phase, step=-1: phases.append((phase, step))
  )
  nothing = types.SimpleNamespace(
    train=print, advance=lambda: None, keep=lambda: None, say=print
  )

  def batches():
    for step in range(3):
      if step == 2:
        assert phases[-2:] == [("saving", -1), (multihost.STEP, 1)]
      yield step, None

  with stopping.StopSignal() as stop:
    loop.train_loop(
      lambda state, _: (state, {"skipped_in_a_row": 0}),
      None,
      batches(),
      timetable.Timetable(
        3, log_every=3, eval_every=0, save_every=2, max_nonfinite_steps=1
      ),
      progress=nothing,
      save=lambda *_: None,
      evaluate_dev=lambda *_: None,
      stop=stop,
    )
  assert phases[-2:] == [("saving", -1), (multihost.STEP, 2)]


def test_the_cluster_is_not_asked_for_what_flags_say():
  # As in a shell of SLURM, whose task number is not the number in this run.
  slurm = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "here",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
  }
  code = f"""
import jax
from mlir_jax.hosts import multihost
multihost.join("127.0.0.1:{free_port()}", 1, 0, check_in_seconds=60,
               silent_seconds=60, items={{}})
print(jax.config.values["jax_cuda_visible_devices"])
multihost.leave()
"""
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    timeout=LIMIT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"} | slurm,
  )
  assert done.stdout == "all\n", done.stderr


@pytest.mark.slow
def test_one_process_alone_is_a_run_too():
  ((status, _, errors),) = light(
    *(15, 0, "SIGTERM"), numbers=(0,), count=1
  ).values()
  assert status == stopping.EXIT_PREEMPTED, errors
  assert "Saved" in errors


@pytest.mark.slow
@pytest.mark.parametrize("missing, there", [(1, (0, 2)), (0, (1, 2))])
def test_a_process_that_does_not_come_is_named(missing, there):
  ended = light("no", 0, "none", "--check_in_seconds=4", numbers=there, count=3)
  for status, _, errors in ended.values():
    assert status == multihost.EXIT_LOST, errors
    assert f"process {missing} of 3" in errors
    assert "hosts.check_in_seconds" in errors


@pytest.mark.slow
@pytest.mark.parametrize(
  "moment, mishap, message",
  [
    (
      "join",
      "config",
      r"config\.optim\.learning_rate: 0\.001 in process 0 \(\S+\), 0\.5 in"
      r" process 1 \(\S+\)",
    ),
    (
      "prepare",
      "store",
      r"token store: 'a store' in process 0 \(\S+\), 'a store of its own' in"
      r" process 1 \(\S+\)",
    ),
  ],
)
def test_a_process_that_is_different_is_named_with_the_field(
  moment, mishap, message
):
  for status, _, errors in light(moment, 1, mishap).values():
    assert status == 2, errors
    assert re.search(message, errors)
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize(
  "name, who, message",
  [
    ("SIGKILL", 0, "is gone: its connection closed"),
    ("SIGSTOP", 0, "was silent for 4 s"),
    ("SIGSTOP", 1, "was silent for 4 s"),
  ],
)
def test_a_killed_or_stopped_process_is_named_and_the_others_end(
  name, who, message
):
  with processes([str(LIGHT), "15", str(who), name]) as started:
    for line in started[who].stderr:
      if line.endswith(f"Now: {name}.\n"):
        break
    since = time.monotonic()
    status, _, errors = ends(started[1 - who])
    assert time.monotonic() - since < 40  # A hang takes over 1000 s.
  assert status == multihost.EXIT_LOST, errors
  assert re.search(rf"process {who} \(\S+\) {message}", errors)
  assert re.search(r"last known at step \d+", errors)


@pytest.mark.slow
def test_the_others_name_who_died_whatever_they_wait_for():
  # With three processes, a survivor may see the connection of another survivor
  # close before it hears which process died.
  ended = light(15, 2, "SIGKILL", numbers=(0, 1, 2), count=3, devices=1)
  for who in (0, 1):
    status, _, errors = ended[who]
    assert status == multihost.EXIT_LOST, errors
    assert re.search(r"process 2 \(\S+\) is gone", errors)


@pytest.mark.slow
def test_a_process_that_hangs_while_another_waits_is_named():
  for status, _, errors in light(15, 1, "hang").values():
    assert status == multihost.EXIT_LOST, errors
    assert re.search(r"process 1 \(\S+\) is stuck: .* step 14 ", errors)


@pytest.mark.slow
def test_a_slow_process_is_not_called_stuck():
  ended = light("prepare", 0, "slow")
  for status, _, errors in ended.values():
    assert status == 0, errors
    assert "Saved 60." in errors
  assert "Waiting for process 0" in ended[1][2]
  # Only process 0 prints. (Gloo writes its lines without Python.)
  assert "Steps are taken." in ended[0][1]
  assert "Steps are taken." not in ended[1][1]


@pytest.mark.slow
def test_a_process_that_refuses_ends_all_with_its_message():
  for status, _, errors in light("prepare", 0, "refuse").values():
    assert status == 2, errors
    assert "mesh.data x mesh.model is 3 x 1" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_fault_ends_all_with_its_message():
  for status, _, errors in light(3, 1, "fault").values():
    assert status == 1, errors
    assert "KeyError: 'a fault'" in errors


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["prepare", 15])
def test_a_stop_of_one_process_stops_all(moment):
  saved = set()
  for status, _, errors in light(moment, 1, "SIGTERM").values():
    assert status == stopping.EXIT_PREEMPTED, errors
    saved |= set(re.findall(r"Saved (\d+)", errors))
  assert len(saved) == (0 if moment == "prepare" else 1)
  assert all(15 < int(step) < 60 for step in saved)


# A config file. If STOP in the environment is "PROCESS STEP", this process gets
# a SIGTERM after this step, and later steps are slow.
CONFIG = """
import os, pathlib, signal, sys, time
sys.path.insert(0, {tests!r})
import tiny
from mlir_jax.training import progress

advance = progress.Progress.advance

def slowly(self):
  advance(self)
  process, step = map(int, os.environ["STOP"].split())
  if self._bar.n == step and f"--process={{process}}" in sys.argv:
    os.kill(os.getpid(), signal.SIGTERM)
  if self._bar.n >= step:
    time.sleep(0.5)

if "STOP" in os.environ:
  progress.Progress.advance = slowly

def get_config():
  c = tiny.make_config(pathlib.Path({root!r}))
  c.batch.masked, c.loss.masked_lm.weight = 0, 0.0
  c.mesh.fsdp = True
  c.train.steps = 12
  c.train.checkpoint_every = 3
  c.train.self_check = False
  c.eval.every = 0
  c.hosts.silent_seconds = 60.0
  return c
"""


def metrics(folder):
  """Reads metrics.jsonl, without the numbers that depend on time."""
  return [
    {k: v for k, v in record.items() if not k.endswith("per_second")}
    for record in progress.read_metrics(str(folder))
  ]


@pytest.mark.slow
def test_two_processes_stop_go_back_go_on_and_agree_with_one(
  tmp_path, monkeypatch
):
  root = tiny.write_folder(tmp_path / "collection")
  path = tmp_path / "small.py"
  tests = str(pathlib.Path(tiny.__file__).parent)
  path.write_text(CONFIG.format(tests=tests, root=str(root)))
  together, alone = tmp_path / "together", tmp_path / "alone"
  command = [
    *("-m", "mlir_jax.train", f"--config={path}", f"--workdir={together}"),
    f"--config.train.compilation_cache={tmp_path / 'compiled'}",
  ]
  monkeypatch.setenv("STOP", "1 4")
  with processes(command) as started:
    for process in started.values():
      status, _, errors = ends(process)
      assert status == stopping.EXIT_PREEMPTED, errors
  saved = {int(path.name) for path in (together / "checkpoints").iterdir()}
  assert 3 in saved
  assert 4 <= max(saved) < 12
  monkeypatch.delenv("STOP")
  with processes([*command, "--from_step=3"]) as started:
    ended = {number: ends(process) for number, process in started.items()}
  for status, _, errors in ended.values():
    assert status == 0, errors
  assert "Going on from step 3" in ended[0][1]
  (record,) = workdir.read_history(str(together))
  assert record["removed"] == sorted(saved - {3})
  assert "English" in ended[0][1]  # One process writes the report.
  assert "English" not in ended[1][1]

  run.train(config_files.load(str(path)), str(alone))
  ours, theirs = metrics(together), metrics(alone)
  assert [line["step"] for line in ours] == list(range(1, 13))
  for mine, other in zip(ours, theirs, strict=True):
    for name in ("loss/ir", "loss/semantic", "loss/language"):
      assert mine[name] == pytest.approx(other[name], rel=1e-5), mine["step"]
  found, expected = (
    json.loads((folder / "results" / "step-12.json").read_text())
    for folder in (together, alone)
  )
  assert found == pytest.approx(expected, abs=1e-3)

  texts = (root / "parallel" / "made.en-de.de").read_text().splitlines()
  vectors = model.load(str(together)).encode(texts, role="sentence")
  for name in ("vectors.npy", "folder"):
    command = [
      *("-m", "mlir_jax.encode", f"--model={together}", "--role=sentence"),
      *("--format=lines", f"--output={tmp_path / name}"),
      str(root / "parallel" / "made.en-de.de"),
    ]
    with processes(command) as started:
      for process in started.values():
        status, _, errors = ends(process)
        assert status == 0, errors
  np.testing.assert_allclose(
    np.load(tmp_path / "vectors.npy"), vectors, atol=1e-6
  )
  found = vector_folder.read(tmp_path / "folder")
  np.testing.assert_allclose(found.blocks[0], vectors, atol=1e-6)
