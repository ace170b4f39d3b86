"""Whatever kills a run, the same command goes on as if nothing had been."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import tiny

from mlir_jax import checkpoint
from mlir_jax.training import progress, stopping

# Runs the tiny config in a process of its own and sends itself a signal at a
# given moment: "step N", "save N" (while it is being written) or "dev N".
SCRIPT = """
import os, signal, sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[4]))
import pathlib
sys.path.insert(0, {tests!r})
import tiny
from mlir_jax.evals import suite
from mlir_jax import checkpoint
from mlir_jax.training import progress, run

moment, at, name = (sys.argv[3].split() + ["", "", ""])[:3]
at = int(at or -1)

def die():
  os.kill(os.getpid(), getattr(signal, name))

taken = 0
advance = progress.Progress.advance
def counted(self):
  global taken
  advance(self)
  taken = self._bar.n
  if moment == "step" and taken == at:
    die()
progress.Progress.advance = counted

save = checkpoint.Checkpoints.save
def dying_save(self, step, *args, **kwargs):
  save(self, step, *args, **kwargs)
  if moment == "save" and step == at:
    die()
checkpoint.Checkpoints.save = dying_save

dev = suite.Suite.dev
def dying_dev(self, params):
  results = dev(self, params)
  if moment == "dev" and taken == at:
    die()
  return results
suite.Suite.dev = dying_dev

c = tiny.make_config(pathlib.Path(sys.argv[1]))
c.mesh.fsdp = True
run.train(c, sys.argv[2])
"""


def start(root, workdir, death="", devices=2):
  script = SCRIPT.format(tests=str(pathlib.Path(tiny.__file__).parent))
  done = subprocess.run(
    [sys.executable, "-c", script, root, workdir, death, str(devices)],
    capture_output=True,
    text=True,
    timeout=300,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    cwd=workdir.parent,
  )
  return done.returncode, done.stdout + done.stderr


def final_state(workdir):
  """All arrays of the last checkpoint by path, as they stand on disk."""
  import orbax.checkpoint as ocp

  checkpoints = checkpoint.Checkpoints(f"{workdir}/checkpoints")
  step = checkpoints.last_step()
  checkpoints.close()
  with ocp.PyTreeCheckpointer() as reader:
    tree = reader.restore(workdir / "checkpoints" / str(step) / "state")
  import jax

  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return step, {jax.tree_util.keystr(k): np.asarray(v) for k, v in leaves}


def metrics(workdir):
  """Lines of metrics.jsonl without what a clock put there."""
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
    "save 6 SIGKILL",
    "save 8 SIGKILL",
  ):
    code, output = start(root, workdir, death)
    assert code == -signal.SIGKILL, f"{death}: {output}"
    if death.startswith("save"):
      step = death.split()[1]
      saved.append((workdir / "checkpoints" / step).exists())
  assert not all(saved)  # Some save had begun and was not complete.
  code, output = start(root, workdir)
  assert code == 0, output
  assert_same_run(workdir, undisturbed)


@pytest.mark.slow
def test_sigterm_saves_exits_75_and_resumes_bitwise(
  root, undisturbed, tmp_path
):
  workdir = tmp_path / "run"
  code, output = start(root, workdir, "step 3 SIGTERM")
  assert code == stopping.EXIT_PREEMPTED, output
  assert final_state(workdir)[0] == 3
  code, output = start(root, workdir)
  assert code == 0, output
  assert "Going on from step 3" in output
  assert_same_run(workdir, undisturbed)
