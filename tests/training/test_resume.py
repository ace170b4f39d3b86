"""After any kill, the same command goes on as if nothing had happened."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny

from mlir_jax.checkpoints import listing, manager
from mlir_jax.training import progress

# Trains the tiny config in its own process, and sends itself a signal at some
# moment: "step N", "save N" (while it is being written), "dev N", "saved N"
# (the checkpoint's folder exists), "prepare 0" or "table N". If the last
# argument is "light", a step costs nothing.
SCRIPT = """
import os, signal, sys, threading, time
import jax
jax.config.update("jax_num_cpu_devices", 2)
import pathlib
sys.path.insert(0, {tests!r})
import light_step
import tiny
from mlir_jax.data import preparation
from mlir_jax.evals import suite
from mlir_jax.checkpoints import listing, manager
from mlir_jax.training import build, progress, run

if sys.argv[4] == "light":
  build.jit_step = light_step.make

moment, at, name = (sys.argv[3].split() + ["", "", ""])[:3]
at = int(at or -1)

def die():
  print("Now:", time.time(), flush=True)
  os.kill(os.getpid(), getattr(signal, name))

class Callback:
  "Python drops an error that is raised here."
  def __del__(self):
    die()

taken = 0
advance = progress.Progress.advance
def counted(self):
  global taken
  advance(self)
  taken = self._bar.n
  if moment == "step" and taken == at:
    die()
progress.Progress.advance = counted

save = manager.Checkpoints.save
def dying_save(self, step, *args, **kwargs):
  save(self, step, *args, **kwargs)
  if moment == "save" and step == at:
    die()
manager.Checkpoints.save = dying_save

dev = suite.Suite.dev
def dying_dev(self, params):
  results = dev(self, params)
  if moment == "dev" and taken == at:
    die()
  return results
suite.Suite.dev = dying_dev

def slow_table(self, params, step, table=suite.Suite.table):
  if moment == "table" and step == at:
    Callback()
    time.sleep(60)
  return table(self, params, step)
suite.Suite.table = slow_table

def slow_load(*args, load=preparation.collections.load, **kwargs):
  if moment == "prepare":
    Callback()
    time.sleep(60)
  return load(*args, **kwargs)
preparation.collections.load = slow_load

def die_when_saved():
  while not os.path.isdir(f"{{sys.argv[2]}}/checkpoints/{{at}}"):
    time.sleep(0.01)
  die()
if moment == "saved":
  threading.Thread(target=die_when_saved, daemon=True).start()

c = tiny.make_config(pathlib.Path(sys.argv[1]))
c.mesh.fsdp = True
c.eval.at_start = moment == "table" and not at
run.train(c, sys.argv[2])
"""


def start(root, workdir, death="", step="whole"):
  script = SCRIPT.format(tests=str(pathlib.Path(tiny.__file__).parent))
  done = subprocess.run(
    [sys.executable, "-c", script, root, workdir, death, step],
    capture_output=True,
    text=True,
    timeout=600,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    cwd=workdir.parent,
  )
  return done.returncode, done.stdout + done.stderr


def final_state(workdir):
  """Returns the arrays of the last checkpoint on disk, by path."""
  import orbax.checkpoint as ocp

  checkpoints = manager.Checkpoints(f"{workdir}/checkpoints")
  step = checkpoints.last_step()
  checkpoints.close()
  with ocp.PyTreeCheckpointer() as reader:
    tree = reader.restore(workdir / "checkpoints" / str(step) / "state")
  import jax

  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return step, {jax.tree_util.keystr(k): np.asarray(v) for k, v in leaves}


def metrics(workdir):
  """Returns the lines of metrics.jsonl without values from a clock."""
  return [
    {k: v for k, v in record.items() if not k.endswith("per_second")}
    for record in progress.read_metrics(str(workdir))
  ]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return tiny.write_folder(tmp_path_factory.mktemp("collection"))


@pytest.fixture(scope="module")
def undisturbed(root, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("undisturbed") / "run"
  code, output = start(root, workdir)
  assert code == 0, output
  return workdir


def assert_same_run(workdir, undisturbed):
  step, state = final_state(workdir)
  expected_step, expected = final_state(undisturbed)
  assert step == expected_step == 8
  assert state.keys() == expected.keys()
  for name, leaf in expected.items():
    assert leaf.tobytes() == state[name].tobytes(), name
  assert metrics(workdir) == metrics(undisturbed)
  results = pathlib.Path("results/step-8.json")
  assert json.loads((workdir / results).read_text()) == json.loads(
    (undisturbed / results).read_text()
  )


@pytest.mark.slow
def test_killed_at_any_moment_it_resumes_bitwise(root, undisturbed, tmp_path):
  workdir = tmp_path / "run"
  saved = []
  for death in (
    "step 1 SIGKILL",  # Before any checkpoint.
    "save 2 SIGKILL",
    "dev 4 SIGKILL",
    "step 5 SIGKILL",
    "save 8 SIGKILL",
  ):
    code, output = start(root, workdir, death)
    assert code == -signal.SIGKILL, f"{death}: {output}"
    if death.startswith("save"):
      step = death.split()[1]
      saved.append((workdir / "checkpoints" / step).exists())
  assert not all(saved)  # At least one save was incomplete.
  code, output = start(root, workdir)
  assert code == 0, output
  assert_same_run(workdir, undisturbed)


@pytest.mark.slow
def test_signals_at_any_moment_end_a_run_and_it_resumes_bitwise(root, tmp_path):
  # Kills come to whole steps, above; what is promised of signals is of the run.
  undisturbed, workdir = tmp_path / "undisturbed", tmp_path / "run"
  code, output = start(root, undisturbed, step="light")
  assert code == 0, output
  for death, last in (
    ("prepare 0 SIGTERM", None),
    ("table 0 SIGINT", None),
    ("step 3 SIGTERM", 3),
    ("dev 4 SIGINT", 4),  # The next start repeats this evaluation.
    ("saved 8 SIGTERM", 8),
    ("table 8 SIGINT", 8),
  ):
    code, output = start(root, workdir, death, "light")
    ended = time.time()
    status = 75 if death.endswith("TERM") else 130
    assert code == status, f"{death}: {output}"
    (sent,) = re.findall(r"^Now: (.*)$", output, re.MULTILINE)
    assert ended - float(sent) < 30, f"{death}: {output}"
    found = listing.steps(workdir / "checkpoints")
    assert (found[-1] if found else None) == last, death
  code, output = start(root, workdir, step="light")
  assert code == 0, output
  assert "Going on from step 8" in output
  assert_same_run(workdir, undisturbed)
  found = []
  for folder in (workdir, undisturbed):
    checkpoints = manager.Checkpoints(f"{folder}/checkpoints")
    found.append(
      (listing.steps(checkpoints.directory), checkpoints.find("best"))
    )
    checkpoints.close()
  assert found[0] == found[1]
