"""Eight CPU devices for every test, no network, and the shared data's path."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """The folder of real data beside the project; skips where it is missing."""
  if not (SHARED / "data").is_dir():
    pytest.skip("the real data (../shared/data) is not here")
  return SHARED
