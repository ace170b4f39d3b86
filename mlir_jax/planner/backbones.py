"""The shape of a run's encoder, without its weights."""

import contextlib
import dataclasses
import pathlib

import ml_collections
from etils import epath

from mlir_jax import workdir
from mlir_jax.batches import batch as batch_lib
from mlir_jax.checkpoints import manager
from mlir_jax.hub import warm_start
from mlir_jax.models import architecture, hf_config, layout_files, pretrained
from mlir_jax.storage import copies, locations
from mlir_jax.training import initial_state

# The shapes of backbones that our configs name, from their config.json on the
# hub: a plan needs only these, and no network.
_BACKBONES = {
  "FacebookAI/xlm-roberta-base": {
    "model_type": "xlm-roberta",
    "vocab_size": 250_002,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
  },
  "FacebookAI/xlm-roberta-large": {
    "model_type": "xlm-roberta",
    "vocab_size": 250_002,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
  },
  "google-bert/bert-base-multilingual-cased": {
    "model_type": "bert",
    "vocab_size": 119_547,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
  },
  "intfloat/multilingual-e5-small": {
    "model_type": "bert",
    "vocab_size": 250_037,
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
  },
}


def encoder_config(
  config: ml_collections.ConfigDict, file: str = ""
) -> architecture.EncoderConfig:
  """Returns the shape of the run's encoder; it needs no weights or tokenizer.

  Args:
    config: The run's config.
    file: A config.json in the layout of Hugging Face; "" for the known shape of
      model.pretrained.

  Raises:
    ValueError: if the shape is not known.
  """
  model = config.model
  if file:
    shape = hf_config.read(epath.Path(file), model.dtype)
  elif not model.pretrained:
    shape = architecture.EncoderConfig(
      vocab_size=config.tokenizer.vocab_size,
      hidden_size=model.hidden_size,
      num_layers=model.num_layers,
      num_heads=model.num_heads,
      intermediate_size=model.intermediate_size,
      max_positions=model.max_positions,
      dtype=model.dtype,
    )
  else:
    shape = _find(
      model.pretrained, model.dtype, "give its config.json with --encoder=FILE"
    )
  rates = initial_state.dropout_rates(model)
  return dataclasses.replace(
    shape,
    hidden_dropout=rates["dropout"],
    attention_dropout=rates["attention_dropout"],
    projection_size=shape.projection_size or model.projection_size,
    remat=model.remat,
    attention=model.attention,
    scan_layers=model.scan_layers,
  )


def widths(config: ml_collections.ConfigDict) -> batch_lib.Widths:
  """Returns the widths of the vectors of the run's guide and teacher.

  Raises:
    ValueError: if the shape of one of them is not known.
  """

  def width(name: str, field: str) -> int:
    return _find(name, "float32", f"name a folder in {field}").output_size

  # A teacher that is the start encodes by the run's contract.
  guide, distillation = config.loss.ir.guide, config.loss.distillation
  teacher = distillation.teacher or config.model.pretrained
  return batch_lib.Widths(
    guide=width(guide, "loss.ir.guide") if guide else 0,
    teacher=(not distillation.teacher and config.encoding.truncate_dim)
    or width(teacher, "loss.distillation.teacher")
    if distillation.weight
    else 0,
  )


def _find(name: str, dtype: str, mend: str) -> architecture.EncoderConfig:
  """Returns the shape of a model: a run, a folder, or one of `_BACKBONES`.

  Args:
    name: The model.
    dtype: Of activations.
    mend: What to do if the shape is not known.

  Raises:
    ValueError: if the shape is not known.
  """
  if warm_start.is_run(name):
    run = epath.Path(locations.absolute(name))
    with contextlib.closing(
      manager.Checkpoints(str(run / workdir.CHECKPOINTS), read_only=True)
    ) as checkpoints:
      step = checkpoints.find("last")
      shape = checkpoints.read_description(step).encoder
    return architecture.of_checkpoint({**shape, "dtype": dtype}, name)
  if locations.is_url(name):
    folder = pathlib.Path(copies.copy_folder(name, ("*.json",)))
  else:
    folder = pathlib.Path(name)
  if folder.is_dir():
    # The towers of an export have one shape.
    tower = folder / "passage"
    is_tower = (tower / layout_files.MODULES).is_file()
    return pretrained.load_config(tower if is_tower else folder, dtype)
  if name in _BACKBONES:
    return hf_config.from_dict(_BACKBONES[name], dtype)
  raise ValueError(
    f"The shape of {name} is not known: {mend}. The known ones are"
    f" {', '.join(_BACKBONES)}."
  )
