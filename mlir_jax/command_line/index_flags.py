"""The flags of programs that search an index, and what they load."""

from typing import TYPE_CHECKING

from absl import flags

from mlir_jax.command_line import shared_flags

if TYPE_CHECKING:  # They import JAX.
  from mlir_jax.retrieval import index, model, vector_folder

# --help shows a flag as one of the program that calls `define`.
flags.disclaim_key_flags()

_PRECISION = "precision"


def define() -> None:
  """Defines how the model is loaded, and what the devices hold."""
  flags.DEFINE_string(
    "checkpoint",
    None,
    'The checkpoint of a run: "last", "best" on dev, or a step. By default that'
    " of the index, or the last one with --model.",
  )
  shared_flags.define_revision()
  flags.DEFINE_string(
    "prompt",
    None,
    "The name of a prompt that the model was trained with. By default that of"
    " the index, or none: texts have the prefix of their role.",
  )
  shared_flags.define_prefixes()
  shared_flags.define_batch_size()
  flags.DEFINE_enum(
    _PRECISION,
    "float32",
    ("float32", "int8"),
    "What the devices hold of the passages: int8 takes a quarter of the memory."
    " The results are exact with both.",
  )


def is_precision_given() -> bool:
  """Whether --precision is given."""
  return bool(flags.FLAGS[_PRECISION].present)


def load_model(
  passages: "vector_folder.VectorFolder", name: str | None
) -> "model.Model":
  """Loads the model that encodes queries; see `index_model.load`."""
  from mlir_jax.retrieval import index_model

  values = flags.FLAGS
  return index_model.load(
    passages,
    name,
    values.checkpoint,
    batch_size=values.batch_size,
    revision=values.revision,
    prompt=values.prompt,
    **shared_flags.prefixes(),
  )


def load_index(
  passages: "vector_folder.VectorFolder",
  loaded: "model.Model | None",
  memory: int | None = None,
) -> "index.Index":
  """Loads the index; see `Index.load`."""
  from mlir_jax.retrieval import index

  return index.Index.load(
    passages,
    loaded,
    memory=memory,
    precision=str(flags.FLAGS[_PRECISION].value),
  )
