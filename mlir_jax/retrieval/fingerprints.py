"""Hashes a model: two models with one hash give the same vectors."""

import hashlib
import json

import jax
import numpy as np

from mlir_jax import bars
from mlir_jax import contract as contract_lib
from mlir_jax.models import architecture
from mlir_jax.retrieval import model as model_lib


def of_model(
  model: model_lib.Model,
  contract: contract_lib.EncodingContract | None = None,
) -> str:
  """Returns SHA-256 of a model's contract, shape and parameters.

  Args:
    model: The model.
    contract: Takes the place of the model's contract.
  """
  described = [
    (contract or model.contract).to_dict(),
    architecture.shape_of(model.encoder_config),
  ]
  digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
  leaves = jax.tree_util.tree_leaves_with_path(model.params)
  for path, leaf in bars.bar(
    leaves, "Hashing the model", unit="array", delay=5, leave=False
  ):
    values = np.ascontiguousarray(jax.device_get(leaf))
    digest.update(f"{jax.tree_util.keystr(path)} {values.dtype}\0".encode())
    digest.update(values.view(np.uint8).data)
  return digest.hexdigest()
