"""A trained retriever, read from a run's folder, ready to encode."""

import contextlib
import dataclasses
from typing import Any

import jax
from etils import epath

from mlir_jax import checkpoint, workdir
from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.mesh import sharding
from mlir_jax.models import encoder
from mlir_jax.retrieval import encoding


@dataclasses.dataclass(frozen=True)
class Model:
  """A retriever.

  Attributes:
    text_encoder: Encodes texts under the checkpoint's contract.
    params: The towers' parameters, on the text encoder's mesh.
    description: What stands beside the checkpoint's arrays.
    step: Steps it was trained.
  """

  text_encoder: encoding.TextEncoder
  params: Any
  description: checkpoint.Description
  step: int


def load(
  run_folder: str,
  which: str | int,
  mesh: jax.sharding.Mesh,
  batch_size: int | None = None,
) -> Model:
  """Loads a retriever from a run's folder, onto any mesh.

  Args:
    run_folder: The folder.
    which: "last", "best" by English dev, or the number of steps.
    mesh: Where the parameters are replicated.
    batch_size: Texts encoded at once; None for the run's own.

  Raises:
    ValueError: if there is no such checkpoint.
    ContractMismatchError: if the tokenizer is not the contract's.
  """
  folder = epath.Path(workdir.absolute(run_folder))
  if not (folder / workdir.CHECKPOINTS).exists():
    raise ValueError(
      f"{run_folder} holds no checkpoints; give the --workdir of a run."
    )
  with contextlib.closing(
    checkpoint.Checkpoints(str(folder / workdir.CHECKPOINTS), read_only=True)
  ) as checkpoints:
    step = checkpoints.find(which)
    description = checkpoints.describe(step)
    encoder_config = encoder.EncoderConfig(**description.encoder)
    shapes = encoder.abstract_params(
      encoder_config, description.config["model"]["towers"]
    )
    params = checkpoints.restore_params(
      step,
      checkpoint.abstract(
        shapes, jax.tree.map(lambda _: sharding.replicated(mesh), shapes)
      ),
    )
  tokenizer = tokenizer_lib.load(str((folder / workdir.TOKENIZER).parent))
  text_encoder = encoding.TextEncoder(
    description.contract,
    tokenizer,
    tokenizer_lib.pad_id(tokenizer),
    encoding.make_embed(encoder_config, description.contract),
    mesh,
    batch_size or description.config["eval"]["batch_size"],
  )
  return Model(text_encoder, params, description, step)
