"""Programs that compute on the CPU keep freed memory; a library does not."""

import os
import pathlib
import platform
import subprocess
import sys

import pytest

import mlir_jax

PROGRAM = """
import resource, sys, threading
from absl import flags
import mlir_jax
from mlir_jax.command_line import program

def faults():
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def use():
  for size in (2**27, 2**25, 2**26 - 1):
    b"x" * size

def main():
  use()
  before = faults()
  use()
  thread = threading.Thread(target=use)
  thread.start()
  thread.join()
  print(faults() - before)

if "library" in sys.argv:
  main()
else:
  program.start(main, required=())
"""


def page_faults(tmp_path, *arguments, **variables) -> int:
  """Uses memory again that was freed; returns how often the system is asked."""
  file = tmp_path / "program.py"
  file.write_text(PROGRAM)
  kept = {
    name: value
    for name, value in os.environ.items()
    if name not in ("GLIBC_TUNABLES", "LD_PRELOAD")
    and not name.startswith("MALLOC_")
  }
  package = str(pathlib.Path(mlir_jax.__file__).parents[1])
  done = subprocess.run(
    [sys.executable, str(file), *arguments],
    capture_output=True,
    text=True,
    check=True,
    env=kept | {"PYTHONPATH": package, "JAX_PLATFORMS": "cpu"} | variables,
  )
  return int(done.stdout)


@pytest.mark.skipif(
  platform.libc_ver()[0] != "glibc", reason="glibc's allocator"
)
def test_a_program_on_a_cpu_keeps_freed_memory(tmp_path):
  assert page_faults(tmp_path) < 1000
  # The user's setting is kept, and so is the allocator elsewhere.
  for variables in (
    {"GLIBC_TUNABLES": "glibc.malloc.check=0"},
    {"MALLOC_ARENA_MAX": "4"},
    {"JAX_PLATFORMS": "tpu,cpu"},
  ):
    assert page_faults(tmp_path, **variables) > 10_000, variables
  assert page_faults(tmp_path, "library") > 10_000
