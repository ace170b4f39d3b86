"""Writes a trained retriever as a folder that sentence-transformers loads."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers
from safetensors import numpy as safetensors_numpy

from mlir_jax import contract as contract_lib
from mlir_jax.hub import settings_files
from mlir_jax.models import (
  architecture,
  encoder,
  families,
  layout_files,
  sealed,
  weights,
)
from mlir_jax.storage import digests, locations


def check_free(path: str) -> pathlib.Path:
  """Returns the path of a new folder; ValueError if something is there."""
  if not path:
    raise ValueError("--output is empty: name the new folder.")
  folder = pathlib.Path(path).expanduser().resolve()
  if folder.is_mount():
    raise ValueError(
      f"--output={path} is a mount point, and no folder can be renamed to it:"
      " give a folder in it."
    )
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise ValueError(
      f"--output={path} exists and is not an empty folder: give another one."
    )
  locations.check_output(str(folder.parent), f"--output={path}")
  return folder


def towers(params: Mapping) -> dict[str, str]:
  """Returns subfolder to tower: "both" if they are tied, else one for each."""
  if "encoder" in params:
    return {"": "both"}
  return {"query": "query", "passage": "passage"}


def roles(contract: contract_lib.EncodingContract, tower: str) -> list[str]:
  """Returns the roles whose texts a tower encodes."""
  return [
    role
    for role in contract_lib.ROLES
    if tower in ("both", contract.role(role).tower)
  ]


def write(
  folder: pathlib.Path,
  params: Mapping,
  config: architecture.EncoderConfig,
  contract: contract_lib.EncodingContract,
  tokenizer: tokenizers.Tokenizer,
  *,
  tower: str,
  provenance: Mapping[str, Any],
  step: int,
) -> None:
  """Writes weights, settings and tokenizer: everything but the model card.

  Args:
    folder: The new folder; it may exist.
    params: Of all towers. If there is a head for masked language modelling, it
      is written with the tower that was trained with it.
    config: The encoder's.
    contract: From `settings_files.exported_contract`.
    tokenizer: The tokenizer.
    tower: "both", or the tower to write.
    provenance: Versions, commit, data fingerprints.
    step: Steps that the model was trained.
  """
  one = encoder.tower_params(params, "query" if tower == "both" else tower)
  # The head reads sentences.
  head = params.get(encoder.MASKED_LM)
  if "sentence" not in roles(contract, tower):
    head = None
  files = settings_files.make(
    contract,
    config,
    tower=tower,
    provenance=provenance,
    step=step,
    masked_lm=head is not None,
  )
  if config.architecture == "modernbert":
    files[layout_files.CONFIG] |= settings_files.ids_around_a_text(tokenizer)
  files |= settings_files.of_tokenizer(tokenizer, contract.sentence.max_length)
  ours = files.pop(sealed.FILE)
  for name, content in files.items():
    _write_json(folder / name, content)
  (folder / layout_files.TOKENIZER).write_text(
    tokenizer.to_str(pretty=True), encoding="utf-8"
  )
  tensors = weights.to_hf(one, config, head)
  prefix = "" if head is None else families.NAMES[config.family].prefix
  _save(folder / layout_files.WEIGHTS, tensors | _pooler(config, prefix))
  if projection := one.get(encoder.PROJECTION):
    (dense,) = folder.glob("*_Dense")
    _save(
      dense / layout_files.WEIGHTS,
      weights.projection_to_hf(projection, config),
    )
  ours["weights"] = {
    path.relative_to(folder).as_posix(): digests.of_file(path)
    for path in sorted(folder.rglob(layout_files.WEIGHTS))
  }
  _write_json(folder / sealed.FILE, sealed.seal(ours))


def _write_json(path: pathlib.Path, content: Any) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(
    json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
  )


def _pooler(
  config: architecture.EncoderConfig, prefix: str
) -> dict[str, np.ndarray]:
  """Returns a pooler of zeros, for the families that have one.

  This package does not use it. transformers' BERT and RoBERTa draw a missing
  pooler at random, with a warning. With zeros, pooler_output is 0, and nobody
  mistakes that for a text's vector.
  """
  if config.family not in ("bert", "roberta", "xlm-roberta"):
    return {}
  size = config.hidden_size
  return {
    f"{prefix}pooler.dense.weight": np.zeros((size, size), np.float32),
    f"{prefix}pooler.dense.bias": np.zeros(size, np.float32),
  }


def _save(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
  safetensors_numpy.save_file(
    {name: np.asarray(array, np.float32) for name, array in tensors.items()},
    path,
    metadata={"format": "pt"},  # transformers refuses a file without it.
  )
  # safetensors lets this user alone read the file. The folder has the usual
  # permissions.
  path.chmod(path.parent.stat().st_mode & 0o666)
