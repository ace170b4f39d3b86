"""Hashes a model: two models with one hash give the same vectors."""

import hashlib
import json

import jax
import numpy as np

from mlir_jax.models import architecture
from mlir_jax.retrieval import model as model_lib


def of_model(model: model_lib.Model) -> str:
  """Returns SHA-256 of a model's contract, shape and parameters."""
  described = [
    model.contract.to_dict(),
    architecture.shape_of(model.encoder_config),
  ]
  digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
    values = np.ascontiguousarray(jax.device_get(leaf))
    digest.update(f"{jax.tree_util.keystr(path)} {values.dtype}\0".encode())
    digest.update(values.view(np.uint8).data)
  return digest.hexdigest()
