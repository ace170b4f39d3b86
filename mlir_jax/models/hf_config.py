"""Hugging Face's config.json: an encoder's shape, read and written."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mlir_jax.models import architecture
from mlir_jax.models.architecture import FULL, SLIDING
from mlir_jax.storage import reading

# The fields for the tokens before and after a text.
FIRST_TOKEN_IDS: tuple[str, ...] = ("bos_token_id", "cls_token_id")
LAST_TOKEN_IDS: tuple[str, ...] = ("eos_token_id", "sep_token_id")

_NEEDS_VERSION_5 = "see layer_types: transformers 5 or later reads this model"


class _Words(NamedTuple):
  """The words of a family (a model_type) in config.json.

  Attributes:
    names: Our field to its names: the first is read, all are written.
    defaults: The values of our fields where config.json has none; the other
      fields have the defaults of `EncoderConfig`.
    fixed: Other fields, each with the one value that we support.
    masked_lm: The architecture with the head for masked language modelling.
    base: The architecture without this head.
  """

  names: Mapping[str, tuple[str, ...]]
  defaults: Mapping[str, Any]
  fixed: Mapping[str, Any]
  masked_lm: str
  base: str


_COMMON_NAMES = {
  "vocab_size": ("vocab_size",),
  "hidden_size": ("hidden_size",),
  "num_layers": ("num_hidden_layers",),
  "num_heads": ("num_attention_heads",),
  "intermediate_size": ("intermediate_size",),
  "max_positions": ("max_position_embeddings",),
  "pad_token_id": ("pad_token_id",),
  "initializer_range": ("initializer_range",),
}
_BERT_NAMES = _COMMON_NAMES | {
  "type_vocab_size": ("type_vocab_size",),
  "layer_norm_eps": ("layer_norm_eps",),
  "hidden_act": ("hidden_act",),
  "hidden_dropout": ("hidden_dropout_prob",),
  "attention_dropout": ("attention_probs_dropout_prob",),
}
_ALL_FIXED = {
  "pruned_heads": {},
  "quantization_config": None,
  "auto_map": None,  # Code of its own.
}
_BERT_FIXED = _ALL_FIXED | {
  "position_embedding_type": "absolute",
  "is_decoder": False,
  "add_cross_attention": False,
}

WORDS = {
  "bert": _Words(_BERT_NAMES, {}, _BERT_FIXED, "BertForMaskedLM", "BertModel"),
  "roberta": _Words(
    _BERT_NAMES,
    {"pad_token_id": 1},
    _BERT_FIXED,
    "RobertaForMaskedLM",
    "RobertaModel",
  ),
  "xlm-roberta": _Words(
    _BERT_NAMES,
    {"pad_token_id": 1},
    _BERT_FIXED,
    "XLMRobertaForMaskedLM",
    "XLMRobertaModel",
  ),
  "distilbert": _Words(
    _COMMON_NAMES
    | {
      "hidden_size": ("dim",),
      "num_layers": ("n_layers",),
      "num_heads": ("n_heads",),
      "intermediate_size": ("hidden_dim",),
      "hidden_act": ("activation",),
      "hidden_dropout": ("dropout",),
      "attention_dropout": ("attention_dropout",),
    },
    {"type_vocab_size": 0},
    _ALL_FIXED,
    "DistilBertForMaskedLM",
    "DistilBertModel",
  ),
  "modernbert": _Words(
    _COMMON_NAMES
    | {
      "layer_norm_eps": ("norm_eps",),
      "hidden_act": ("hidden_activation",),
      "hidden_dropout": ("embedding_dropout", "mlp_dropout"),
      "attention_dropout": ("attention_dropout",),
      "attention_window": ("local_attention",),
    },
    {
      "type_vocab_size": 0,
      "layer_norm_eps": 1e-5,
      "pad_token_id": 50283,
      "hidden_dropout": 0.0,
      "attention_dropout": 0.0,
      "attention_window": 128,
    },
    _ALL_FIXED
    | {
      "norm_bias": False,
      "attention_bias": False,
      "mlp_bias": False,
      "classifier_bias": False,
      "decoder_bias": True,
      "classifier_activation": "gelu",
    },
    "ModernBertForMaskedLM",
    "ModernBertModel",
  ),
}


def read(
  path: str | os.PathLike, dtype: str = "float32"
) -> architecture.EncoderConfig:
  """Reads a config.json.

  Args:
    path: The file.
    dtype: Of activations.

  Raises:
    ValueError: naming the file, and every field that is missing or not
      supported.
  """
  hf = reading.read_json(path)
  try:
    return from_dict(hf, dtype)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def from_dict(
  hf: Mapping, dtype: str = "float32"
) -> architecture.EncoderConfig:
  """Reads an encoder's shape.

  Args:
    hf: The content of config.json.
    dtype: Of activations.

  Raises:
    ValueError: naming every field that is missing or not supported.
  """
  name = hf.get("model_type")
  if not isinstance(name, str) or name not in WORDS:
    raise ValueError(
      f"model_type is {name!r}; encoders of {tuple(WORDS)} can be read."
    )
  words, family = WORDS[name], architecture.FAMILIES[name]
  problems = [
    f"{key} is {hf[key]!r}; only {value!r} is supported"
    for key, value in words.fixed.items()
    if hf.get(key) not in (None, value)
  ]
  values = dict(words.defaults)
  for field in dataclasses.fields(architecture.EncoderConfig):
    if keys := words.names.get(field.name):
      value = hf.get(keys[0])
      # Models without a padding token have null here.
      if field.name == "pad_token_id" and value is None and keys[0] in hf:
        if family.counts_from_pad:
          problems.append(f"{keys[0]} is None: positions count from it")
      elif keys[0] in hf:
        values[field.name] = value
        if problem := architecture.problem_of(field, value):
          problems.append(f"{keys[0]} is {problem}")
      elif field.default is dataclasses.MISSING:
        problems.append(f"{keys[0]} is missing")
  said, rows = hf.get("pad_token_id"), values.get("vocab_size")
  if not problems and said is not None and said >= rows:
    problems.append(
      f"pad_token_id is {said}; it must be below vocab_size, {rows}"
    )
  if family.architecture == "modernbert" and not problems:
    rotary, faults = _read_rotary(hf, values)
    values |= rotary
    problems += faults
  if problems:
    raise ValueError(f"{'; '.join(problems)}.")
  try:
    return architecture.EncoderConfig(**values, dtype=dtype, family=name)
  except ValueError as error:
    raise ValueError(_in_words_of(name, str(error))) from error


def to_dict(
  config: architecture.EncoderConfig, masked_lm: bool = False
) -> dict[str, Any]:
  """Returns the content of config.json, for `from_dict`.

  Args:
    config: The encoder's shape.
    masked_lm: Whether the weights have the head for masked language modelling.
  """
  words = WORDS[config.family]
  hf = {
    "model_type": config.family,
    "architectures": [words.masked_lm if masked_lm else words.base],
  }
  for ours, names in words.names.items():
    hf |= dict.fromkeys(names, getattr(config, ours))
  # Readers differ in their defaults, so these are written, too.
  hf |= {
    name: value for name, value in words.fixed.items() if name not in _ALL_FIXED
  }
  if config.architecture == "modernbert":
    hf |= _write_rotary(config)
    # transformers' default ids are larger than a small vocabulary.
    hf |= dict.fromkeys((*FIRST_TOKEN_IDS, *LAST_TOKEN_IDS))
    # For random weights alone, but text-embeddings-inference requires it.
    hf["initializer_cutoff_factor"] = 2.0
  return hf


def _in_words_of(family: str, message: str) -> str:
  """Replaces our fields' names in a message by the family's names."""
  for ours, (theirs, *_) in WORDS[family].names.items():
    message = re.sub(rf"\b{ours}\b", theirs, message)
  return message


def _read_rotary(
  hf: Mapping, values: Mapping[str, Any]
) -> tuple[dict, list[str]]:
  """Reads a modernbert's layer types and rotary angles.

  transformers 4 writes a number n, for a full layer every n layers, and two
  thetas. Version 5 writes the type of each layer and the parameters of each
  type.

  Args:
    hf: The content of config.json.
    values: Our fields that were read from it without a problem.

  Returns:
    Our other fields, and a list of problems.
  """
  every = hf.get("global_attn_every_n_layers")
  if every is None or (every == _NEEDS_VERSION_5 and hf.get("layer_types")):
    every = 3  # Not used if there are layer_types.
  if type(every) is not int or every < 1:
    return {}, [f"global_attn_every_n_layers is {every!r}, not a number >= 1"]
  parameters = hf.get("rope_parameters")
  parameters = {} if parameters is None else parameters
  if not isinstance(parameters, dict) or not all(
    isinstance(parameters.get(kind), dict | None) for kind in (FULL, SLIDING)
  ):
    return {}, [
      f"rope_parameters is {parameters!r}, not an object for each layer type"
    ]
  layer_types = hf.get("layer_types")
  if layer_types is None:
    layer_types = [
      SLIDING if i % every else FULL for i in range(values["num_layers"])
    ]
  problems = []
  window = hf.get("sliding_window")
  if window and window != values["attention_window"] // 2:
    problems.append(
      f"sliding_window is {window}; only half of local_attention is supported"
    )
  if hf.get("rope_scaling"):
    problems.append(
      f"rope_scaling is {hf['rope_scaling']!r}; only null is supported"
    )

  # In version 4, null means that sliding layers have the theta of full layers.
  same = "local_rope_theta" in hf and hf["local_rope_theta"] is None

  smallest, largest = architecture.RANGES["full_rope_theta"]

  def theta(kind, old_name, default):
    values = parameters.get(kind) or {}
    if values.get("rope_type", "default") != "default":
      problems.append(
        f"rope_parameters.{kind}.rope_type is {values['rope_type']!r}; only"
        " 'default' is supported"
      )
    said = (values.get("rope_theta"), hf.get(old_name), default)
    found = next(value for value in said if value is not None)
    if (
      not isinstance(found, int | float)
      or isinstance(found, bool)
      or not smallest <= found <= largest
    ):
      problems.append(
        f"rope_theta of {kind} is {found!r}; it must be a number from"
        f" {smallest} to {largest:,}"
      )
      return default
    return float(found)

  full = theta(FULL, "global_rope_theta", 160_000.0)
  return {
    "layer_types": layer_types,
    "full_rope_theta": full,
    "sliding_rope_theta": theta(
      SLIDING, "local_rope_theta", full if same else 10_000.0
    ),
  }, problems


def _write_rotary(config: architecture.EncoderConfig) -> dict[str, Any]:
  """Returns the fields for `_read_rotary`, in the words of versions 4 and 5.

  Each version ignores the words of the other, and has ModernBERT's values as
  its defaults.
  """
  every = _full_layer_every(config.layer_types)
  return {
    "layer_types": list(config.layer_types),
    "rope_parameters": {
      kind: {"rope_type": "default", "rope_theta": theta}
      for kind, theta in (
        (FULL, config.full_rope_theta),
        (SLIDING, config.sliding_rope_theta),
      )
    },
    "global_rope_theta": config.full_rope_theta,
    "local_rope_theta": config.sliding_rope_theta,
    # Version 4 divides by it, so it fails on a text. With a number, or nothing,
    # it would compute other vectors without an error.
    "global_attn_every_n_layers": every or _NEEDS_VERSION_5,
  }


def _full_layer_every(layer_types: Sequence[str]) -> int | None:
  """Returns the n of version 4: the full layers are 0, n, 2n, ...

  Args:
    layer_types: Of each layer.

  Returns:
    The smallest such n; None if the layers have another pattern.
  """
  for every in range(1, len(layer_types) + 1):
    pattern = [SLIDING if i % every else FULL for i in range(len(layer_types))]
    if list(layer_types) == pattern:
      return every
  return None


def needs_transformers_5(config: architecture.EncoderConfig) -> bool:
  """Returns whether transformers 4 has no words for the encoder."""
  return (
    config.architecture == "modernbert"
    and _full_layer_every(config.layer_types) is None
  )
