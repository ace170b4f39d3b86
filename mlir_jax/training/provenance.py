"""Where a checkpoint comes from: versions, commit, machine, data."""

import importlib.metadata
import pathlib
import platform
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

import jax

import mlir_jax

PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "numpy",
  "tokenizers",
  "transformers",
  "babel",
)


def describe(
  store_fingerprint: str, backbone: Mapping[str, str] | None = None
) -> dict[str, Any]:
  """Gathers the provenance of a run.

  Args:
    store_fingerprint: Of the token store that is trained on.
    backbone: The pretrained model's name, revision and commit.

  Returns:
    A tree that JSON can hold.
  """
  return {
    "mlir_jax": mlir_jax.__version__,
    "commit": _commit(),
    "python": platform.python_version(),
    "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    "backend": jax.default_backend(),
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "hosts": jax.process_count(),
    "token_store": store_fingerprint,
    "backbone": backbone,
  }


def _commit() -> str:
  """The checkout's commit, "-dirty" if changed; "" outside a checkout."""
  root = pathlib.Path(mlir_jax.__file__).parents[1]
  if not (root / ".git").exists() or not shutil.which("git"):
    return ""
  described = subprocess.run(
    ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="],
    cwd=root,
    capture_output=True,
    text=True,
    check=False,
  )
  return described.stdout.strip()
