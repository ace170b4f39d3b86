"""The shape of a run's encoder, without its weights."""

import dataclasses
import pathlib

import ml_collections
from etils import epath

from mlir_jax.models import architecture, hf_config, pretrained
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
  elif locations.is_url(model.pretrained):
    folder = copies.copy_folder(model.pretrained, ("*.json",))
    shape = pretrained.load_config(pathlib.Path(folder), model.dtype)
  elif pathlib.Path(model.pretrained).is_dir():
    shape = pretrained.load_config(pathlib.Path(model.pretrained), model.dtype)
  elif model.pretrained in _BACKBONES:
    hf = _BACKBONES[model.pretrained]
    shape = hf_config.from_dict(hf, model.dtype)
  else:
    raise ValueError(
      f"The shape of {model.pretrained} is not known: give its config.json with"
      f" --encoder=FILE. The known ones are {', '.join(_BACKBONES)}."
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
