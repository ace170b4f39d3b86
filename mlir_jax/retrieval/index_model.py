"""Loads the model that encodes queries for a folder of vectors."""

import os
import warnings

from mlir_jax import workdir
from mlir_jax.retrieval import fingerprints, prefixes, vector_folder
from mlir_jax.retrieval import model as model_lib


class OtherModelWarning(UserWarning):
  """A model has other parameters than the one that encoded the passages."""


def load(
  passages: vector_folder.VectorFolder,
  name: str | None = None,
  checkpoint: str | int | None = None,
  *,
  batch_size: int | None = None,
  revision: str = "",
  prompt: str | None = None,
  query_prefix: str | None = None,
  passage_prefix: str | None = None,
  sentence_prefix: str | None = None,
) -> model_lib.Model:
  """Loads a model, by default the one that a folder of vectors names.

  There is an `OtherModelWarning` if the folder was encoded by a model of other
  parameters.

  Args:
    passages: The folder.
    name: The model; None for the one that the folder names.
    checkpoint: Of a run; None for that of the folder, or the last one if `name`
      is given.
    batch_size: As in `model.load`.
    revision: As in `model.load`.
    prompt: As in `model.load`; None for that of the folder.
    query_prefix: As in `model.load`; None for that of the folder, like the
      other prefixes.
    passage_prefix: As in `model.load`.
    sentence_prefix: As in `model.load`.

  Raises:
    ValueError: if there is no such model, or it cannot be used.
  """
  manifest = passages.manifest
  if name is None:
    name = manifest.get("model_name")
    if not name:
      raise ValueError(
        f"--index={passages.path} does not name its model: give --model."
      )
    if os.path.isabs(name) and not os.path.exists(name):
      raise ValueError(
        f"The model of --index={passages.path}, {name}, is not there: give"
        " --model."
      )
    if checkpoint is None and os.path.isdir(f"{name}/{workdir.CHECKPOINTS}"):
      checkpoint = manifest.get("model_step")
  given: prefixes.Given = {
    "query": query_prefix,
    "passage": passage_prefix,
    "sentence": sentence_prefix,
  }
  open_roles = [role for role, prefix in given.items() if prefix is None]
  if passages.contract:
    # A model that needs a prefix is still named in a warning if it had none.
    given = {
      role: passages.contract.role(role).prefix or None
      if prefix is None
      else prefix
      for role, prefix in given.items()
    }
  model = model_lib.load(
    name,
    "last" if checkpoint is None else checkpoint,
    batch_size=batch_size,
    revision=revision,
    prompt=manifest.get("prompt", "") if prompt is None else prompt,
    query_prefix=given["query"],
    passage_prefix=given["passage"],
    sentence_prefix=given["sentence"],
  )
  if passages.contract:
    model = model.with_contract(
      model.contract.with_prefixes_of(passages.contract, open_roles)
    )
  known = passages.model.get("fingerprint")
  if known and fingerprints.of_model(model, passages.contract) != known:
    warnings.warn(
      f"{model} has other parameters than the model that encoded"
      f" {passages.path}. That is right only if it is the other tower of the"
      " same checkpoint.",
      OtherModelWarning,
      stacklevel=2,
    )
  return model
