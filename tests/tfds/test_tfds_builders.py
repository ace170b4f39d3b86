"""The builders pass TFDS's own tests, and hold what the released files hold."""

import os
import pathlib
import subprocess
import sys

import pytest
import stand_ins

HERE = pathlib.Path(__file__).parent


def run(script: str, *arguments, **environment) -> str:
  """Runs a script of this folder in a process of its own."""
  done = subprocess.run(
    [sys.executable, str(HERE / script), *map(str, arguments)],
    env=os.environ
    | {"PYTHONPATH": os.pathsep.join([*sys.path, str(HERE)])}
    | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  assert not done.returncode, done.stdout[-4000:]
  return done.stdout


@pytest.mark.slow
def test_the_builders_pass_the_tests_of_tfds(tmp_path):
  stand_ins.write_downloads(tmp_path)
  printed = run("builder_cases.py", STAND_INS=str(tmp_path))
  assert "OK" in printed and "mlir_jax_mr_tydi/sw/1.1.0: bad source" in printed


@pytest.mark.slow
def test_a_store_of_a_builder_is_that_of_the_released_files(tmp_path):
  """It also needs no tensorflow."""
  stand_ins.write_downloads(tmp_path / "tfds/downloads")
  stand_ins.write_released(tmp_path / "released")
  run("same_stores.py", tmp_path, TFDS_DATA_DIR=str(tmp_path / "tfds"))
