"""Where a checkpoint comes from: versions, code, machine, data."""

import hashlib
import importlib.metadata
import pathlib
import platform
import shutil
import subprocess
import types
from collections.abc import Mapping, Sequence
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


def code() -> dict[str, str]:
  """Returns versions and hashes that all processes of a run must share.

  Returns:
    A description, for an error message, to a version, commit or SHA-256.
  """
  root = pathlib.Path(mlir_jax.__file__).parent
  source = hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    source.update(f"{path.relative_to(root)}\0".encode())
    source.update(path.read_bytes())
  return {
    "version of python": platform.python_version(),
    **{
      f"version of {name}": importlib.metadata.version(name)
      for name in PACKAGES
    },
    "commit of mlir_jax": _commit(),
    "SHA-256 of mlir_jax/**.py": source.hexdigest(),
  }


def gather(
  store_fingerprint: str,
  backbone: Mapping[str, str] | None = None,
  history: Sequence[Mapping[str, Any]] = (),
  user_code: Mapping[str, str] = types.MappingProxyType({}),
) -> dict[str, Any]:
  """Gathers the provenance of a run.

  Args:
    store_fingerprint: The fingerprint of the token store.
    backbone: The pretrained model's name, revision and commit.
    history: The checkpoints from which the run went on with other settings.
    user_code: Module of the user to the SHA-256 of its file.

  Returns:
    A tree for JSON.
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
    "history": list(history),
    "user_code": dict(user_code),
  }


def _commit() -> str:
  """Returns the clone's commit, "-dirty" if changed; "" without a clone."""
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
