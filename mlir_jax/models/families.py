"""The names of our parameters in the weights of each family."""

from typing import NamedTuple

from mlir_jax.models import architecture

# Kind of module to its tensors, our parameters, and the change between them.
_KINDS = {
  "tokens": (("weight", "", "padded"),),
  "table": (("weight", "", "same"),),
  "norm": (("weight", "/scale", "same"), ("bias", "/bias", "same")),
  "bare_norm": (("weight", "/scale", "same"),),
  "dense": (("weight", "/kernel", "transposed"), ("bias", "/bias", "same")),
  "bare_dense": (("weight", "/kernel", "transposed"),),
}


class Names(NamedTuple):
  """The names in a family's files.

  Attributes:
    prefix: Precedes the encoder's names in models with a head.
    renamed: Regular expressions of old names, and their replacements.
    dropped: Regular expressions of tensors that we do not use.
    layer: Precedes the names of a layer; {} is the layer's number.
    modules: The module in the file, our module, and its kind.
    layer_modules: The same for each layer.
    head: The same for the head for masked language modelling.
    token_bias: The tensors of the head's bias over tokens: the first is
      written and read, the others are copies of it.
    table_copies: Copies of the token table in the head.
  """

  prefix: str = ""
  renamed: tuple[tuple[str, str], ...] = ()
  dropped: tuple[str, ...] = ()
  layer: str = ""
  modules: tuple[tuple[str, str, str], ...] = ()
  layer_modules: tuple[tuple[str, str, str], ...] = ()
  head: tuple[tuple[str, str, str], ...] = ()
  token_bias: tuple[str, ...] = ()
  table_copies: tuple[str, ...] = ()


class Rule(NamedTuple):
  """The tensor of a parameter.

  Attributes:
    tensor: Its name in the file, without prefix.
    change: How our array differs: "same", "transposed", or "padded" by rows of
      zeros after those of the vocabulary.
  """

  tensor: str
  change: str


_BERT = Names(
  prefix="bert.",
  # BERT's original files have TensorFlow's names for layer norms.
  renamed=((r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
  dropped=(
    r"pooler\..+",
    r"cls\.seq_relationship\..+",
    r"embeddings\.position_ids",
  ),
  layer="encoder.layer.{}.",
  modules=(
    ("embeddings.word_embeddings", "embeddings/token", "tokens"),
    ("embeddings.position_embeddings", "embeddings/position", "table"),
    ("embeddings.token_type_embeddings", "embeddings/type", "table"),
    ("embeddings.LayerNorm", "embeddings/norm", "norm"),
  ),
  layer_modules=(
    ("attention.self.query", "attention/query", "dense"),
    ("attention.self.key", "attention/key", "dense"),
    ("attention.self.value", "attention/value", "dense"),
    ("attention.output.dense", "attention/output", "dense"),
    ("attention.output.LayerNorm", "attention_norm", "norm"),
    ("intermediate.dense", "intermediate", "dense"),
    ("output.dense", "output", "dense"),
    ("output.LayerNorm", "output_norm", "norm"),
  ),
  head=(
    ("cls.predictions.transform.dense", "dense", "dense"),
    ("cls.predictions.transform.LayerNorm", "norm", "norm"),
  ),
  token_bias=("cls.predictions.bias", "cls.predictions.decoder.bias"),
  table_copies=("cls.predictions.decoder.weight",),
)
_ROBERTA = _BERT._replace(
  prefix="roberta.",
  dropped=(r"pooler\..+", r"embeddings\.position_ids"),
  head=(
    ("lm_head.dense", "dense", "dense"),
    ("lm_head.layer_norm", "norm", "norm"),
  ),
  token_bias=("lm_head.bias", "lm_head.decoder.bias"),
  table_copies=("lm_head.decoder.weight",),
)

NAMES = {
  "bert": _BERT,
  "roberta": _ROBERTA,
  "xlm-roberta": _ROBERTA,
  "distilbert": Names(
    prefix="distilbert.",
    dropped=(r"embeddings\.position_ids",),
    layer="transformer.layer.{}.",
    modules=(
      ("embeddings.word_embeddings", "embeddings/token", "tokens"),
      ("embeddings.position_embeddings", "embeddings/position", "table"),
      ("embeddings.LayerNorm", "embeddings/norm", "norm"),
    ),
    layer_modules=(
      ("attention.q_lin", "attention/query", "dense"),
      ("attention.k_lin", "attention/key", "dense"),
      ("attention.v_lin", "attention/value", "dense"),
      ("attention.out_lin", "attention/output", "dense"),
      ("sa_layer_norm", "attention_norm", "norm"),
      ("ffn.lin1", "intermediate", "dense"),
      ("ffn.lin2", "output", "dense"),
      ("output_layer_norm", "output_norm", "norm"),
    ),
    head=(
      ("vocab_transform", "dense", "dense"),
      ("vocab_layer_norm", "norm", "norm"),
    ),
    token_bias=("vocab_projector.bias",),
    table_copies=("vocab_projector.weight",),
  ),
  "modernbert": Names(
    prefix="model.",
    layer="layers.{}.",
    modules=(
      ("embeddings.tok_embeddings", "embeddings/token", "tokens"),
      ("embeddings.norm", "embeddings/norm", "bare_norm"),
      ("final_norm", "norm", "bare_norm"),
    ),
    layer_modules=(
      ("attn_norm", "attention_norm", "bare_norm"),
      ("attn.Wqkv", "attention/qkv", "bare_dense"),
      ("attn.Wo", "attention/output", "bare_dense"),
      ("mlp_norm", "feed_forward_norm", "bare_norm"),
      ("mlp.Wi", "feed_forward/intermediate", "bare_dense"),
      ("mlp.Wo", "feed_forward/output", "bare_dense"),
    ),
    head=(
      ("head.dense", "dense", "bare_dense"),
      ("head.norm", "norm", "bare_norm"),
    ),
    token_bias=("decoder.bias",),
    table_copies=("decoder.weight",),
  ),
}

# The Dense module of sentence-transformers.
PROJECTION = Names()
PROJECTION_RULES = {
  "projection/kernel": Rule("linear.weight", "transposed"),
  "projection/bias": Rule("linear.bias", "same"),
}


def _rules(modules) -> dict[str, Rule]:
  return {
    ours + parameter: Rule(f"{theirs}.{tensor}", change)
    for theirs, ours, kind in modules
    for tensor, parameter, change in _KINDS[kind]
  }


def encoder_rules(config: architecture.EncoderConfig) -> dict[str, Rule]:
  """Returns the rule of each parameter of an encoder, by path in its tree."""
  names = NAMES[config.family]
  modules = [
    (theirs, ours, kind)
    for theirs, ours, kind in names.modules
    if ours != "embeddings/type" or config.type_vocab_size
  ]
  modules += [
    (names.layer.format(i) + theirs, f"layer_{i}/{ours}", kind)
    for i in range(config.num_layers)
    for theirs, ours, kind in names.layer_modules
    # ModernBERT's first layer has no norm: the embeddings' norm precedes it.
    if i or kind != "bare_norm" or ours != "attention_norm"
  ]
  return _rules(modules)


def head_rules(config: architecture.EncoderConfig) -> dict[str, Rule]:
  """Returns the rule of each parameter of the head, by path in its tree."""
  names = NAMES[config.family]
  return _rules(names.head) | {
    "token_bias": Rule(names.token_bias[0], "padded")
  }


def head_patterns(config: architecture.EncoderConfig) -> tuple[str, ...]:
  """Returns regular expressions of all tensors of the head and its copies."""
  names = NAMES[config.family]
  tensors = [rule.tensor for rule in head_rules(config).values()]
  return tuple(
    tensor.replace(".", r"\.")
    for tensor in (*tensors, *names.token_bias, *names.table_copies)
  )
