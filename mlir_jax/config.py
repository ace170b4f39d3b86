"""Every setting of a run, in one place, and how a config is found by name."""

import os
import re
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

from mlir_jax import contract, extensions

# How texts are encoded where neither the config nor the model says it.
ENCODING = contract.PartialContract(
  pooling="mean",
  normalize=True,
  title_joiner=" ",
  query=contract.PartialRole(prefix="", max_length=32),
  passage=contract.PartialRole(prefix="", max_length=128),
  sentence=contract.PartialRole(prefix="", max_length=64),
)

# What each number of `default` may be, in the notation of intervals: "[" and
# "]" include an end, "(" and ")" do not. All ends are finite, so NaN and
# infinity are in none. The step computes in float32: no range lets a number
# become 0 there or overflow. `ranges` adds those of the losses.
RANGES = {
  "seed": "[0, 4294967295]",  # JAX's keys take the low 32 bits.
  "data.language_temperature": "[0.001, 1e6]",
  "data.masking.rate": "(0, 1)",
  "data.prefetch": "[1, 1000]",
  "tokenizer.vocab_size": "[8, 1e7]",
  "encoding.query.max_length": "[4, 1e6]",  # Special tokens and two others.
  "encoding.passage.max_length": "[4, 1e6]",
  "encoding.sentence.max_length": "[4, 1e6]",
  "model.hidden_size": "[1, 1e5]",
  "model.num_layers": "[1, 1000]",
  "model.num_heads": "[1, 1000]",
  "model.intermediate_size": "[1, 1e6]",
  "model.max_positions": "[4, 1e6]",
  "model.projection_size": "[0, 1e5]",
  "model.dropout": "[0, 1)",
  "model.attention_dropout": "[0, 1)",
  "batch.retrieval": "[0, 1e7]",
  "batch.hard_negatives": "[0, 1000]",
  "batch.parallel": "[0, 1e7]",
  "batch.monolingual": "[0, 1e7]",
  "batch.masked": "[0, 1e7]",
  "batch.chunk": "[0, 1e7]",
  "batch.buckets": "[1, 1000]",
  "optim.learning_rate": "[0, 10]",
  "optim.warmup_steps": "[0, 2e9]",
  "optim.final_fraction": "[0, 1]",
  "optim.b1": "[0, 0.999999]",  # In float32 a larger one may be 1.
  "optim.b2": "[0, 0.999999]",
  "optim.eps": "[1e-16, 1]",  # See `optim.make_optimizer`.
  "optim.weight_decay": "[0, 10]",
  "optim.clip_norm": "0 or [1e-6, 1e6]",
  "mesh.data": "-1 or [1, 1e6]",
  "mesh.model": "[1, 1e6]",
  "train.steps": "[1, 2e9]",  # The step's number is an int32.
  "train.log_every": "[1, 2e9]",
  "train.checkpoint_every": "[1, 2e9]",
  "train.keep": "[1, 1e6]",
  "train.max_nonfinite_steps": "[1, 2e9]",
  "hosts.check_in_seconds": "[1, 1e6]",
  "hosts.silent_seconds": "[1, 1e6]",
  "eval.every": "[0, 2e9]",
  "eval.batch_size": "[1, 1e6]",
  "eval.dev_passages": "[0, 1e9]",
  "eval.top_k": "[100, 1e6]",  # MRR@100 and R@100 need as many.
}

# The words that a field may be.
CHOICES = {
  "data.collection": ("cldr", "folder"),
  "data.on_bad_record": ("error", "skip"),
  "data.masking.kind": ("word", "span"),
  "data.reader": ("auto", "tf_data", "in_process"),
  "encoding.pooling": ("mean", "cls", "last"),
  "model.towers": ("tied", "separate"),
  "model.dtype": ("float32", "bfloat16"),
  "model.remat": ("none", "dots", "layer"),
  "model.attention": ("xla", "cudnn"),
  "optim.decay": ("cosine", "linear", "constant"),
}

# Fields that may also name code of the user: see `extensions`.
TARGETS = ("data.collection",)

# Fields that are paths, or may be: "~" in them is the user's home.
PATHS = (
  "data.root",
  "data.tatoeba_root",
  "tokenizer.path",
  "model.pretrained",
  "train.compilation_cache",
  "hosts.local_dir",
)

_KINDS = {bool: "True or False", str: "a text"}


def _losses() -> types.ModuleType:
  """The losses; imported where they are used, for --help needs no jax."""
  from mlir_jax.losses import registry

  return registry


def ranges(extra: Any = types.MappingProxyType({})) -> dict:
  """What each number may be; the losses say it of their own fields.

  Args:
    extra: The part loss.extra of a config, for the fields of a user's losses.
  """
  losses = _losses().settings(extra).items()
  return RANGES | {n: each.interval for n, each in losses if each.interval}


def choices(extra: Any = types.MappingProxyType({})) -> dict:
  """The words that a field may be, those of losses, too; see `ranges`."""
  losses = _losses().settings(extra).items()
  return CHOICES | {n: each.choices for n, each in losses if each.choices}


def default() -> ml_collections.ConfigDict:
  """All fields with their defaults. A config file overrides some of them.

  Where Hu et al. (2023) could not be read (temperatures, weights, batch
  sizes, pooling, lengths) the value is our choice, and its comment says so.
  """
  c = ml_collections.ConfigDict()

  c.seed = 0  # Of parameters, dropout, and the order of the data.

  # --- Data: what is read, and in which proportions. ---
  c.data = data = ml_collections.ConfigDict()
  # "cldr" (embedded, nothing to download), "folder" (files under data.root in
  # the layout that docs/data.md shows) or your own, "my_project.data:load".
  data.collection = "cldr"
  data.root = ""  # The folder of the collection "folder".
  # A folder of line-aligned files in LASER's Tatoeba naming; "" for none.
  data.tatoeba_root = ""
  data.on_bad_record = "error"  # Or "skip": counted and shown.
  # Control experiment: pairs each parallel sentence with a wrong translation.
  data.shuffle_parallel = False
  # Languages are drawn with probability ~ size ** (1 / temperature): 1 is
  # proportional, larger is flatter. Our choice.
  data.language_temperature = 2.0
  # Masked language modelling (batch.masked): which tokens are predicted.
  data.masking = ml_collections.ConfigDict()
  data.masking.kind = "word"  # Whole words; or "span": several in a row.
  data.masking.rate = 0.15  # Share of a text's tokens (Devlin et al. 2019).
  # "tf_data"; "in_process": a thread makes the same batches, no tensorflow;
  # "auto": tf_data where tensorflow is installed.
  data.reader = "auto"
  data.prefetch = 2  # Batches prepared ahead.

  # --- Tokenizer, when not the pretrained model's own. ---
  c.tokenizer = tokenizer = ml_collections.ConfigDict()
  # A folder with tokenizer.json; "" takes the pretrained model's, or, from
  # scratch, trains a Unigram tokenizer on the collection.
  tokenizer.path = ""
  tokenizer.vocab_size = 8000  # Of a tokenizer trained on the spot.

  # --- Encoding contract: saved with every checkpoint. ---
  # A field that is None has the value in the pretrained model's folder, if it
  # is one of sentence-transformers, else that of ENCODING, which is our choice.
  c.encoding = encoding = ml_collections.ConfigDict()
  encoding.pooling = placeholder(str)  # "mean", "cls" or "last".
  # Unit-length vectors; the losses need them.
  encoding.normalize = placeholder(bool)
  # Between a passage's title and its text.
  encoding.title_joiner = placeholder(str)
  for role in contract.ROLES:
    encoding[role] = ml_collections.ConfigDict()
    encoding[role].prefix = placeholder(str)  # E.g. "query: ".
    # Tokens, special tokens included.
    encoding[role].max_length = placeholder(int)

  # --- Model: a pretrained one, or a BERT of this shape from scratch. ---
  c.model = model = ml_collections.ConfigDict()
  # A local folder or hub name in the Hugging Face layout, an export, or
  # another run's folder; "" for scratch.
  model.pretrained = ""
  # Of a hub name, "" for its main branch; or of a run: "last", "best" or a
  # step, "" for the best one, or the last one if none was evaluated.
  model.revision = ""
  model.towers = "tied"  # Or "separate": Hu et al. (2023), Figure 2.
  # These five shape a model from scratch; a pretrained one has its own.
  model.hidden_size = 128  # Width of hidden states and vectors.
  model.num_layers = 2  # Transformer layers.
  model.num_heads = 4  # Attention heads.
  model.intermediate_size = 512  # Width of the feed-forward layers.
  model.max_positions = 512  # The longest text, in tokens.
  # Width of the vectors by a dense layer after pooling; 0 for no such layer, or
  # the pretrained model's own.
  model.projection_size = 0
  model.dropout = 0.1  # Of hidden states and attention, in training.
  # Of attention alone, where it is another rate.
  model.attention_dropout = placeholder(float)
  model.dtype = "float32"  # Or "bfloat16": of activations, not parameters.
  # What a layer keeps for the backward pass: "none" of it is computed again;
  # "dots" keeps what the dense layers give; "layer" only what it reads.
  model.remat = "none"
  # "cudnn" is fused, on NVIDIA GPUs; it needs bfloat16, attention_dropout=0.
  model.attention = "xla"

  # --- Batch: global sizes, over all devices and hosts. Our choices. ---
  c.batch = batch = ml_collections.ConfigDict()
  batch.retrieval = 128  # Question-passage pairs.
  batch.hard_negatives = 0  # Per question, beside the in-batch ones.
  batch.parallel = 64  # Sentence pairs.
  batch.monolingual = 64  # Sentences, third points of the language loss.
  batch.masked = 0  # Monolingual sentences for masked language modelling.
  # Texts encoded at once, over all devices, in bounded memory and with exact
  # gradients; they are encoded twice. 0 for all at once.
  batch.chunk = 0
  # Lengths that texts are padded to, at most: short ones stay cheap, and each
  # is compiled.
  batch.buckets = 4

  # --- Losses: total = w_ir IR + w_sem semantic + w_lang language
  #     + w_mlm masked_lm. loss.NAME has the fields of the loss's class in
  #     mlir_jax/losses, where each has its comment and its range. A loss of
  #     your own: loss.extra.NAME = {"target": "my_project.losses:Margin",
  #     "weight": 0.1}, with the other fields of its class. ---
  c.loss = ml_collections.ConfigDict(_losses().defaults())

  # --- Optimizer: AdamW, linear warm-up, then decay. ---
  c.optim = optim = ml_collections.ConfigDict()
  optim.learning_rate = 1e-3  # At the end of the warm-up.
  optim.warmup_steps = 100  # From a learning rate of 0.
  optim.decay = "cosine"  # Or "linear", "constant": over train.steps.
  optim.final_fraction = 0.0  # Of the learning rate, at the last step.
  optim.b1 = 0.9  # Decay of the first moment.
  optim.b2 = 0.999  # Decay of the second moment.
  optim.eps = 1e-8  # Added to the denominator.
  optim.weight_decay = 0.01  # Not on biases and layer norms.
  optim.clip_norm = 1.0  # Of the global gradient norm; 0 for no clipping.

  # --- Mesh: ("data", "model"). ---
  c.mesh = mesh = ml_collections.ConfigDict()
  mesh.data = -1  # Devices along the batch; -1 for all that are left.
  # Devices along "model"; nothing is split over it yet: more repeat work.
  mesh.model = 1
  # Shard parameters and optimizer state over "data". In the step each device
  # holds the towers, and in chunks their gradients, whole for a while.
  mesh.fsdp = False

  # --- Training. ---
  c.train = train = ml_collections.ConfigDict()
  train.steps = 1000  # Of the whole run; the decay ends there.
  train.log_every = 10  # Steps between lines of metrics.jsonl.
  train.checkpoint_every = 500  # Steps; the last step is always saved.
  train.keep = 2  # Last checkpoints kept, beside the best by English dev.
  # Steps skipped in a row for non-finite numbers before the run stops.
  train.max_nonfinite_steps = 10
  # Before the first step: are a small model's gradients, in chunks over the
  # mesh, those without chunks and mesh?
  train.self_check = True
  # Where compiled programs are kept for the next start, in the workdir unless
  # absolute; "" for nowhere. JAX_COMPILATION_CACHE_DIR goes before it.
  train.compilation_cache = "compiled"

  # --- Several processes (--distributed). ---
  c.hosts = hosts = ml_collections.ConfigDict()
  # Seconds in which all must have come to a check-in.
  hosts.check_in_seconds = 600.0
  # Seconds after which a process that is not heard of is called lost.
  hosts.silent_seconds = 120.0
  # Where each has a copy of what must be on a disk of a --workdir on object
  # storage; "" for a folder in the user's cache.
  hosts.local_dir = ""

  # --- Evaluation. ---
  c.eval = evaluation = ml_collections.ConfigDict()
  evaluation.every = 500  # Steps between English dev evaluations; 0: none.
  evaluation.at_start = True  # The whole table before the first step, too.
  # English dev is searched in so many passages of its corpus while training:
  # the judged ones, all of them, and a fixed sample of the others. 0 for all.
  evaluation.dev_passages = 0
  evaluation.batch_size = 256  # Texts encoded at once.
  evaluation.top_k = 100  # Passages retrieved per query.
  # Your own evaluators: eval.extra.NAME = "my_project.evals:gap".
  evaluation.extra = ml_collections.ConfigDict()

  c.lock()
  c.loss.extra.unlock()
  c.eval.extra.unlock()
  return c


def group_of_extras(
  config: ml_collections.ConfigDict, group: str = "loss"
) -> ml_collections.ConfigDict:
  """The part of a config that names the user's losses, or evaluators."""
  extra = ml_collections.ConfigDict()
  if group in config and "extra" in config[group]:
    extra = config[group].extra
  if not isinstance(extra, ml_collections.ConfigDict):
    raise ValueError(f"{group}.extra is {extra!r}; it must be a group by name.")
  return extra


def complete(config: ml_collections.ConfigDict) -> None:
  """Gives a user's losses the fields that the config leaves out.

  It imports the modules that loss.extra names.

  Raises:
    ValueError: if a loss cannot be imported or is not one.
  """
  extra = group_of_extras(config)
  for name, given in list(extra.items()):
    loss = _losses().find(name, given)
    known = _losses().settings_of(loss)
    group = ml_collections.ConfigDict(
      {"target": given.target}
      | {field: each.default for field, each in known.items()}
    )
    for field, value in given.items():
      try:
        group[field] = value
      except TypeError:  # `check` refuses it.
        with group.ignore_type():
          group[field] = value
    with extra.unlocked():
      extra[name] = group


def fields(
  group: ml_collections.ConfigDict, prefix: str = ""
) -> Iterator[tuple[str, type, Any]]:
  """All fields of a config: name ("optim.b1"), type and value of each."""
  for key, value in group.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from fields(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", group.get_type(key), value


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses a config with a value that no run can use.

  What depends on several fields, or on files, is checked where these meet.

  Args:
    config: The run's config; what `default` returns, with other values.

  Raises:
    ValueError: if a field is missing or unknown, or if its value is of another
      type, out of its range, or not one of the choices; it names the field.
  """
  known = {name: (kind, value) for name, kind, value in fields(default())}
  found = {name: value for name, _, value in fields(config)}
  extra = group_of_extras(config)
  intervals, words = ranges(extra), choices(extra)
  for name, each in _losses().settings(extra).items():
    # What a user's loss leaves out has its default.
    if name in found or name in known:
      known[name] = each.kind, each.default
  for name in group_of_extras(config, "eval"):
    known[f"eval.extra.{name}"] = str, ""
  if missing := known.keys() - found.keys():
    raise ValueError(
      f"The config has no {', '.join(sorted(missing))}: start from"
      " mlir_jax.config.default()."
    )
  if unknown := found.keys() - known.keys():
    raise ValueError(
      f"The config has fields that do not exist: {', '.join(sorted(unknown))}."
    )
  for name, (kind, value) in known.items():
    if not (value is None and found[name] is None):
      _check_field(
        name, kind, found[name], intervals.get(name, ""), words.get(name, ())
      )


def _check_field(
  name: str, kind: type, value: Any, interval: str, words: Sequence[str]
) -> None:
  """Raises ValueError if a field may not have this value.

  Args:
    name: The field.
    kind: bool, int, float or str.
    value: Its value.
    interval: What a number may be; "" for any finite number.
    words: What a text may be; none for any text.
  """
  interval = interval or f"[-{sys.float_info.max}, {sys.float_info.max}]"
  allowed = (int, float) if kind is float else kind
  # To Python True is an integer, too.
  right = isinstance(value, allowed) and (
    kind is bool or not isinstance(value, bool)
  )
  if kind in (int, float):
    right = right and _is_inside(value, interval)
    expected = re.sub(r"[\[(]", r"in \g<0>", interval)
    expected += ", an integer" if kind is int else ""
  elif words:
    may_be_code = name in TARGETS
    right = right and (
      value in words or (may_be_code and extensions.is_target(value))
    )
    expected = f"one of {', '.join(words)}"
    expected += " or MODULE:FUNCTION" if may_be_code else ""
  else:
    expected = _KINDS[kind]
    if kind is str and isinstance(value, str):
      right = is_text(value)
      expected += " of Unicode without zero bytes"
  if not right:
    if isinstance(value, int) and value.bit_length() > 100:
      value = f"an integer of {value.bit_length()} bits"
    elif not isinstance(value, bool | int | float):
      value = repr(value)
    raise ValueError(f"{name} is {value}; it must be {expected}.")


def is_text(value: str) -> bool:
  """Whether a text can be stored: Unicode, and no zero byte.

  Bytes of a command line that are not UTF-8 become lone surrogates.
  """
  return "\0" not in value and not re.search("[\ud800-\udfff]", value)


def _is_inside(value: float, interval: str) -> bool:
  """Whether a number is in an interval, or one of several: "-1 or [1, 5)"."""
  for part in interval.split(" or "):
    if part[0] not in "[(":
      if value == float(part):
        return True
      continue
    least, most = map(float, part[1:-1].split(","))
    above = least <= value if part[0] == "[" else least < value
    below = value <= most if part[-1] == "]" else value < most
    if above and below:
      return True
  return False


def expand_paths(config: ml_collections.ConfigDict) -> None:
  """Replaces "~" at the beginning of the fields that are paths."""
  config.update_from_flattened_dict(
    {
      name: os.path.expanduser(value)
      for name, _, value in fields(config)
      if name in PATHS
    }
  )
