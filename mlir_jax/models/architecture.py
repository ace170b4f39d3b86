"""The shape of an encoder: how wide, how deep, and of which family."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

# The rows of the token table are padded to a multiple of this, so that any
# usual mesh divides them. A sharding constraint that cannot divide a dimension
# replicates it without a warning (jax#26946), and 4 does not divide 250,002.
_VOCAB_MULTIPLE = 256

ACTIVATIONS = (
  *("gelu", "gelu_python", "gelu_new", "gelu_pytorch_tanh"),
  *("relu", "silu", "swish"),
)
PROJECTION_ACTIVATIONS = ("identity", "tanh")
REMATS = ("none", "dots", "layer")
ATTENTIONS = ("xla", "cudnn")
# cuDNN's attention takes heads whose size is a multiple of the first number and
# at most the second. (JAX 0.10, jax.nn.dot_product_attention; newer GPUs take
# heads of up to 256, which no encoder here has.)
_CUDNN_HEADS = (8, 128)
FULL, SLIDING = "full_attention", "sliding_attention"

# float64 is for tests of arithmetic.
_DTYPES = ("float32", "bfloat16", "float64")

# The smallest and the largest value of each number. No encoder comes near the
# largest: a larger number is damage, and is refused before memory is taken.
RANGES = {
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


class Family(NamedTuple):
  """What distinguishes the encoders of a family (a model_type).

  Attributes:
    architecture: Which module computes it: "bert" or "modernbert".
    counts_from_pad: Whether the first position is pad_token_id + 1, as in
      fairseq.
    head_activation: Of the head for masked language modelling; "" for that of
      the layers.
  """

  architecture: str = "bert"
  counts_from_pad: bool = False
  head_activation: str = ""


FAMILIES = {
  "bert": Family(),
  "roberta": Family(counts_from_pad=True, head_activation="gelu"),
  "xlm-roberta": Family(counts_from_pad=True, head_activation="gelu"),
  "distilbert": Family(),
  "modernbert": Family(architecture="modernbert", head_activation="gelu"),
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
    max_positions: Rows of the position table. modernbert has no such table:
      there it is the longest text, in tokens.
    type_vocab_size: Rows of the token type table; only row 0 is used. 0 for
      families without such a table.
    layer_norm_eps: Added to the variance in layer norms.
    hidden_act: Of the feed-forward layers; "gelu" is the exact one.
    hidden_dropout: Rate on hidden states, in training.
    attention_dropout: Rate on attention weights, in training.
    pad_token_id: The tokenizer's. Masks decide what is padding, not this id;
      the roberta families count positions from it.
    initializer_range: Standard deviation of initial weights.
    dtype: Of activations: "float32" or "bfloat16". Parameters, layer norms,
      softmax and pooling are float32 in both.
    family: Hugging Face's model_type.
    projection_size: Width of the dense layer on the pooled vectors; 0 for no
      such layer.
    projection_bias: Whether that layer has a bias.
    projection_activation: The activation of that layer: "identity" or "tanh".
    attention_window: Tokens that a sliding layer of modernbert sees, half on
      each side.
    layer_types: "full_attention" or "sliding_attention" for each layer of
      modernbert.
    full_rope_theta: The base of modernbert's rotary angles, in full layers.
    sliding_rope_theta: The same in sliding layers.
    remat: What a layer keeps for the backward pass: all that it computes
      ("none"), only the results of its dense layers ("dots"), or only its input
      ("layer"). `remat`, `attention` and `scan_layers` change how a result is
      computed, and not the result.
    attention: "xla", or "cudnn", which is fused, on NVIDIA GPUs; see
      `cudnn_needs`.
    scan_layers: Whether training runs the layers as a scan, see `layers.stack`.
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
  scan_layers: bool = False

  def __post_init__(self):
    # JSON gives a list; only tuples can be hashed.
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
      if problem := problem_of(field, getattr(self, field.name)):
        raise ValueError(f"{field.name} is {problem}.")
    if self.max_length < 1:
      raise ValueError(
        f"max_positions is {self.max_positions}; with this pad_token_id it must"
        f" be at least {1 + self.position_offset}."
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
    if self.attention == "cudnn" and (
      needs := cudnn_needs(
        self.dtype, self.attention_dropout, self.hidden_size // self.num_heads
      )
    ):
      raise ValueError(
        f"attention='cudnn' needs {' and '.join(needs)}; or use 'xla'."
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
    """Rows of the token table: vocab_size, rounded up to a multiple of 256."""
    return -(-self.vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE

  @property
  def wide_dtype(self) -> jnp.dtype:
    """The type of layer norms, softmax and pooling: at least float32."""
    return jnp.promote_types(self.dtype, jnp.float32)

  @property
  def architecture(self) -> str:
    """Which module computes it: "bert" or "modernbert"."""
    return FAMILIES[self.family].architecture

  @property
  def layer_kinds(self) -> tuple[str, ...]:
    """The kind of each layer; those of one kind differ only in parameters."""
    if self.architecture == "modernbert":
      # The first layer has no norm before its attention.
      return ("first", *self.layer_types[1:])
    return ("",) * self.num_layers

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


def problem_of(field: dataclasses.Field, value: Any) -> str:
  """Says what is wrong with the value of a field; "" if nothing is."""
  kind: Any = field.type
  if kind not in _KINDS:
    return ""
  kinds = (int, float) if kind is float else kind
  if not isinstance(value, kinds) or isinstance(value, bool) != (kind is bool):
    return f"{value!r}, not {_KINDS[kind]}"
  if field.name == "hidden_act" and value not in ACTIVATIONS:
    return f"{value!r}; use one of {ACTIVATIONS}"
  if field.name not in RANGES:
    return ""
  smallest, largest = RANGES[field.name]
  if smallest <= value <= largest:  # False for NaN.
    return ""
  return f"{value}; it must be from {smallest:,} to {largest:,}"


def cudnn_needs(
  dtype: str, attention_dropout: float, head_size: int, group: str = ""
) -> list[str]:
  """Says what an encoder lacks for cuDNN's attention; [] if nothing.

  Args:
    dtype: Of activations.
    attention_dropout: Rate on attention weights. cuDNN does not drop weights by
      the seed of each text.
    head_size: hidden_size / num_heads.
    group: The group of these fields in a config, "model.", for the message.
  """
  needs = []
  if dtype != "bfloat16":
    needs.append(f"{group}dtype=bfloat16")
  if attention_dropout:
    needs.append(f"{group}attention_dropout=0.0")
  multiple, largest = _CUDNN_HEADS
  if head_size % multiple or head_size > largest:
    needs.append(
      f"a {group}hidden_size / {group}num_heads that is a multiple of"
      f" {multiple} and at most {largest}, and not {head_size}"
    )
  return needs


def check_lengths(config: EncoderConfig, max_lengths: Mapping[str, int]):
  """Checks that the encoder has a position for every token.

  Args:
    config: The encoder's.
    max_lengths: Role to maximum length, in tokens.

  Raises:
    ValueError: naming each role whose texts may have more tokens.
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
  """Reads the encoder in a checkpoint's description.

  Args:
    shape: From `shape_of`.
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
  """Returns the fields that decide the result, not how it is computed."""
  left_out = ("remat", "attention", "scan_layers")
  return {
    name: value
    for name, value in dataclasses.asdict(config).items()
    if name not in left_out
  }
