"""The shape of an encoder, from Hugging Face's config.json and back to it."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from mlir_jax.storage import reading

# The token table's rows are padded to a multiple of this, so that any usual
# mesh divides them: a sharding constraint that cannot divide replicates
# without a word (jax#26946), and 250,002 pieces do not divide by 4.
_VOCAB_MULTIPLE = 256

ACTIVATIONS = (
  *("gelu", "gelu_python", "gelu_new", "gelu_pytorch_tanh"),
  *("relu", "silu", "swish"),
)
PROJECTION_ACTIVATIONS = ("identity", "tanh")
REMATS = ("none", "dots", "layer")
ATTENTIONS = ("xla", "cudnn")
FULL, SLIDING = "full_attention", "sliding_attention"
_NEEDS_VERSION_5 = "see layer_types: transformers 5 or later reads this model"

# What a config.json calls the tokens around a text.
FIRST_TOKEN_IDS: tuple[str, ...] = ("bos_token_id", "cls_token_id")
LAST_TOKEN_IDS: tuple[str, ...] = ("eos_token_id", "sep_token_id")

# float64 is there for tests of arithmetic.
_DTYPES = ("float32", "bfloat16", "float64")

# The least and the largest value of each number. No encoder comes near the
# largest: what says more is damaged, and is refused before memory is taken.
_RANGES = {
  "vocab_size": (1, 10**8),
  "hidden_size": (1, 10**6),
  "num_layers": (1, 10**4),
  "num_heads": (1, 10**5),
  "intermediate_size": (1, 10**7),
  "max_positions": (1, 10**8),
  "type_vocab_size": (0, 10**5),
  "pad_token_id": (0, 10**8),
  "projection_size": (0, 10**6),
  "attention_window": (0, 10**8),
  "hidden_dropout": (0, 1),
  "attention_dropout": (0, 1),
  "layer_norm_eps": (0, 1),
  "initializer_range": (0, 10**3),
  "full_rope_theta": (1e-3, 1e12),
  "sliding_rope_theta": (1e-3, 1e12),
}
_KINDS = {
  int: "a whole number",
  float: "a number",
  str: "a text",
  bool: "true or false",
}


class _Family(NamedTuple):
  """How the config.json of a family (a model_type) says what we hold.

  Attributes:
    names: Our field to its names there; the first is read, all are written.
    defaults: Our fields where config.json is silent, if not our own.
    fixed: What else config.json may say, and the one value that we compute.
    masked_lm: The architecture with the head for masked language modelling.
    base: The architecture without.
    architecture: Which module computes it: "bert" or "modernbert".
    counts_from_pad: Whether positions are counted from behind pad_token_id
      (fairseq's habit).
    head_activation: Of the head, if it isn't that of the layers.
  """

  names: Mapping[str, tuple[str, ...]]
  defaults: Mapping[str, Any]
  fixed: Mapping[str, Any]
  masked_lm: str
  base: str
  architecture: str = "bert"
  counts_from_pad: bool = False
  head_activation: str = ""


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

FAMILIES = {
  "bert": _Family(_BERT_NAMES, {}, _BERT_FIXED, "BertForMaskedLM", "BertModel"),
  "roberta": _Family(
    _BERT_NAMES,
    {"pad_token_id": 1},
    _BERT_FIXED,
    "RobertaForMaskedLM",
    "RobertaModel",
    counts_from_pad=True,
    head_activation="gelu",
  ),
  "xlm-roberta": _Family(
    _BERT_NAMES,
    {"pad_token_id": 1},
    _BERT_FIXED,
    "XLMRobertaForMaskedLM",
    "XLMRobertaModel",
    counts_from_pad=True,
    head_activation="gelu",
  ),
  "distilbert": _Family(
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
  "modernbert": _Family(
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
    architecture="modernbert",
    head_activation="gelu",
  ),
}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """The shape of an encoder. Defaults are those of Hugging Face's BERT.

  Attributes:
    vocab_size: Tokens of the tokenizer.
    hidden_size: Width of the hidden states.
    num_layers: Transformer layers.
    num_heads: Attention heads; they divide hidden_size.
    intermediate_size: Width of the feed-forward layers.
    max_positions: Rows of the position table, or, of a family without one
      (modernbert), the longest text in tokens.
    type_vocab_size: Rows of the token type table; only row 0 is used. 0 in
      families without one.
    layer_norm_eps: Added to the variance in layer norms.
    hidden_act: Of the feed-forward layers; "gelu" is the exact one.
    hidden_dropout: Rate on hidden states, in training.
    attention_dropout: Rate on attention weights, in training.
    pad_token_id: The tokenizer's. Padding is told by masks; in the roberta
      families positions are counted from this number on.
    initializer_range: Standard deviation of initial weights.
    dtype: Of activations: "float32" or "bfloat16". Parameters, layer norms,
      softmax and pooling are float32 in either.
    family: Hugging Face's model_type.
    projection_size: Width of vectors after a dense layer on the pooled ones;
      0 for no such layer.
    projection_bias: Whether that layer has a bias.
    projection_activation: What follows it, "identity" or "tanh".
    attention_window: Tokens that a sliding layer of modernbert sees, half on
      each side.
    layer_types: Of modernbert: "full_attention" or "sliding_attention" each.
    full_rope_theta: The base of its rotary angles, in full layers.
    sliding_rope_theta: The same in sliding layers.
    remat: What a layer keeps for the backward pass, see `blocks.layer`. It and
      the next decide how the same is computed, not what.
    attention: "xla", or "cudnn", fused on NVIDIA GPUs, for bfloat16 and
      without dropout on attention weights.
  """

  vocab_size: int
  hidden_size: int
  num_layers: int
  num_heads: int
  intermediate_size: int
  max_positions: int
  type_vocab_size: int = 2
  layer_norm_eps: float = 1e-12
  hidden_act: str = "gelu"
  hidden_dropout: float = 0.1
  attention_dropout: float = 0.1
  pad_token_id: int = 0
  initializer_range: float = 0.02
  dtype: str = "float32"
  family: str = "bert"
  projection_size: int = 0
  projection_bias: bool = True
  projection_activation: str = "identity"
  attention_window: int = 0
  layer_types: tuple[str, ...] = ()
  full_rope_theta: float = 160_000.0
  sliding_rope_theta: float = 10_000.0
  remat: str = "none"
  attention: str = "xla"

  def __post_init__(self):
    # A list where it was read from JSON; tuples can be hashed.
    if not isinstance(self.layer_types, list | tuple):
      raise ValueError(f"layer_types is {self.layer_types!r}, not a list.")
    object.__setattr__(self, "layer_types", tuple(self.layer_types))
    for name, known in (
      ("hidden_act", ACTIVATIONS),
      ("projection_activation", PROJECTION_ACTIVATIONS),
      ("dtype", _DTYPES),
      ("family", tuple(FAMILIES)),
      ("remat", REMATS),
      ("attention", ATTENTIONS),
    ):
      if getattr(self, name) not in known:
        raise ValueError(
          f"{name} is {getattr(self, name)!r}; use one of {known}."
        )
    for field in dataclasses.fields(self):
      if problem := _problem(field, getattr(self, field.name)):
        raise ValueError(f"{field.name} is {problem}.")
    if self.max_length < 1:
      raise ValueError(
        f"max_positions is {self.max_positions}; with this pad_token_id it must"
        f" be >= {1 + self.position_offset}."
      )
    if self.hidden_size % self.num_heads:
      raise ValueError(
        f"hidden_size is {self.hidden_size}, which num_heads,"
        f" {self.num_heads}, does not divide."
      )
    for name in ("hidden_dropout", "attention_dropout"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(
          f"{name} is {getattr(self, name)}; it must be in [0, 1)."
        )
    if self.architecture == "modernbert":
      if len(self.layer_types) != self.num_layers or not all(
        kind in (FULL, SLIDING) for kind in self.layer_types
      ):
        raise ValueError(
          f"layer_types is {self.layer_types}; it must say {FULL!r} or"
          f" {SLIDING!r} for each of {self.num_layers} layers."
        )
      if self.hidden_size // self.num_heads % 2:
        raise ValueError(
          f"hidden_size / num_heads is {self.hidden_size // self.num_heads};"
          " rotary positions need an even number."
        )

  @property
  def padded_vocab_size(self) -> int:
    """Rows of the token table: vocab_size, up to a multiple of 256."""
    return -(-self.vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE

  @property
  def wide_dtype(self) -> jnp.dtype:
    """Of layer norms, softmax and pooling: at least float32."""
    return jnp.promote_types(self.dtype, jnp.float32)

  @property
  def architecture(self) -> str:
    """Which module computes it: "bert" or "modernbert"."""
    return FAMILIES[self.family].architecture

  @property
  def head_act(self) -> str:
    """The activation in the head for masked language modelling."""
    return FAMILIES[self.family].head_activation or self.hidden_act

  @property
  def position_offset(self) -> int:
    """The position of a text's first token."""
    return self.pad_token_id + 1 if FAMILIES[self.family].counts_from_pad else 0

  @property
  def max_length(self) -> int:
    """The longest text, in tokens."""
    return self.max_positions - self.position_offset

  @property
  def output_size(self) -> int:
    """The width of vectors."""
    return self.projection_size or self.hidden_size

  @classmethod
  def from_hf(cls, hf: Mapping, dtype: str = "float32") -> "EncoderConfig":
    """Reads a Hugging Face config.

    Args:
      hf: What config.json holds.
      dtype: Of activations.

    Raises:
      ValueError: naming every field that is missing or not supported.
    """
    name = hf.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
      raise ValueError(
        f"model_type is {name!r}; encoders of {tuple(FAMILIES)} can be read."
      )
    family = FAMILIES[name]
    problems = [
      f"{key} is {hf[key]!r}; only {value!r} is supported"
      for key, value in family.fixed.items()
      if hf.get(key) not in (None, value)
    ]
    values = dict(family.defaults)
    for field in dataclasses.fields(cls):
      if keys := family.names.get(field.name):
        value = hf.get(keys[0])
        # Models without a padding token write null.
        if field.name == "pad_token_id" and value is None and keys[0] in hf:
          if family.counts_from_pad:
            problems.append(f"{keys[0]} is None: positions count from it")
        elif keys[0] in hf:
          values[field.name] = value
          if problem := _problem(field, value):
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
      return cls(**values, dtype=dtype, family=name)
    except ValueError as error:
      raise ValueError(_in_words_of(family, str(error))) from error

  def to_hf(self, masked_lm: bool = False) -> dict:
    """The Hugging Face config: what `from_hf` reads back.

    Args:
      masked_lm: Whether the head for masked language modelling goes along.
    """
    family = FAMILIES[self.family]
    hf = {
      "model_type": self.family,
      "architectures": [family.masked_lm if masked_lm else family.base],
    }
    for ours, names in family.names.items():
      hf |= dict.fromkeys(names, getattr(self, ours))
    # Readers differ in what they assume where a file is silent.
    hf |= {
      name: value
      for name, value in family.fixed.items()
      if name not in _ALL_FIXED
    }
    if self.architecture == "modernbert":
      hf |= _write_rotary(self)
      # transformers' own are ModernBERT's, beyond a small vocabulary.
      hf |= dict.fromkeys((*FIRST_TOKEN_IDS, *LAST_TOKEN_IDS))
      # Of random weights: text-embeddings-inference requires that it is there.
      hf["initializer_cutoff_factor"] = 2.0
    return hf


def read(path: str | os.PathLike, dtype: str = "float32") -> EncoderConfig:
  """Reads a config.json in the layout of Hugging Face.

  Args:
    path: The file.
    dtype: Of activations.

  Raises:
    ValueError: naming the file, and every field that is missing or not
      supported.
  """
  hf = reading.read_json(path)
  try:
    return EncoderConfig.from_hf(hf, dtype)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def _in_words_of(family: _Family, message: str) -> str:
  """A message with a family's names of our fields."""
  for ours, (theirs, *_) in family.names.items():
    message = re.sub(rf"\b{ours}\b", theirs, message)
  return message


def _problem(field: dataclasses.Field, value: Any) -> str:
  """What is wrong with the value of a field; "" if nothing is."""
  kind: Any = field.type
  if kind not in _KINDS:
    return ""
  kinds = (int, float) if kind is float else kind
  if not isinstance(value, kinds) or isinstance(value, bool) != (kind is bool):
    return f"{value!r}, not {_KINDS[kind]}"
  if field.name == "hidden_act" and value not in ACTIVATIONS:
    return f"{value!r}; use one of {ACTIVATIONS}"
  if field.name not in _RANGES:
    return ""
  least, largest = _RANGES[field.name]
  if least <= value <= largest:  # Not where it is NaN.
    return ""
  return f"{value}; it must be from {least:,} to {largest:,}"


def _read_rotary(
  hf: Mapping, values: Mapping[str, Any]
) -> tuple[dict, list[str]]:
  """What a modernbert's config.json says of layers and rotary angles.

  transformers 4 wrote one layer out of how many is a full one, and two
  thetas; version 5 writes each layer's type and the parameters of each type.

  Args:
    hf: What config.json holds.
    values: Our fields that were read from it, and found right.

  Returns:
    Our other fields, and what is wrong.
  """
  every = hf.get("global_attn_every_n_layers")
  if every is None or (every == _NEEDS_VERSION_5 and hf.get("layer_types")):
    every = 3  # Where layer_types are said, they alone count.
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
    problems.append(f"rope_scaling is {hf['rope_scaling']!r}; only none can be")

  # Where version 4 had no theta of its own for sliding layers, null, they took
  # the other.
  same = "local_rope_theta" in hf and hf["local_rope_theta"] is None

  least, largest = _RANGES["full_rope_theta"]

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
      or not least <= found <= largest
    ):
      problems.append(
        f"rope_theta of {kind} is {found!r}; it must be a number from {least}"
        f" to {largest:,}"
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


def _write_rotary(config: EncoderConfig) -> dict:
  """What `_read_rotary` reads back, in the words of versions 4 and 5.

  Each version ignores the words of the other, and takes ModernBERT's own
  values where it finds none.
  """
  every = full_layer_every(config.layer_types)
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
    # Version 4 divides by it, so it fails on a text. A number, or none, would
    # give other vectors in silence.
    "global_attn_every_n_layers": every or _NEEDS_VERSION_5,
  }


def full_layer_every(layer_types: Sequence[str]) -> int | None:
  """The n of version 4: layers 0, n, 2n, ... are full, the others sliding.

  Args:
    layer_types: Of each layer.

  Returns:
    The smallest such n; None if the layers follow another pattern.
  """
  for every in range(1, len(layer_types) + 1):
    pattern = [SLIDING if i % every else FULL for i in range(len(layer_types))]
    if list(layer_types) == pattern:
      return every
  return None


def check_lengths(config: EncoderConfig, max_lengths: Mapping[str, int]):
  """Checks that the encoder has a position for every token.

  Args:
    config: The encoder's.
    max_lengths: Role to its maximum length in tokens.

  Raises:
    ValueError: naming each role whose texts can be longer.
  """
  long = {
    f"encoding.{role}.max_length": length
    for role, length in max_lengths.items()
    if length > config.max_length
  }
  if long:
    raise ValueError(
      f"The encoder takes up to {config.max_length} tokens, fewer than {long}:"
      " lower these."
    )


def of_checkpoint(shape: Mapping[str, Any], where: str) -> EncoderConfig:
  """The encoder that a checkpoint's description has the shape of.

  Args:
    shape: Field to value.
    where: The checkpoint, for the message.

  Raises:
    ValueError: naming the checkpoint and the field.
  """
  fields = dataclasses.fields(EncoderConfig)
  needed = {f.name for f in fields if f.default is dataclasses.MISSING}
  unknown = sorted(shape.keys() - {field.name for field in fields})
  lacking = sorted(needed - shape.keys())
  try:
    if unknown or lacking:
      raise ValueError(f"it has unknown {unknown} and lacks {lacking}.")
    return EncoderConfig(**shape)
  except (ValueError, TypeError) as error:
    raise ValueError(f"The encoder of {where}: {error}") from error


def shape_of(config: EncoderConfig) -> dict[str, Any]:
  """A config as a dict, without what decides only how it is computed."""
  left_out = ("remat", "attention")
  return {
    name: value
    for name, value in dataclasses.asdict(config).items()
    if name not in left_out
  }
