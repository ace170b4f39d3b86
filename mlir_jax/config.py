"""Every setting of a run, in one place, and how a config is found by name."""

import difflib
import importlib.resources
import pathlib
import runpy
from collections.abc import Sequence

import ml_collections
from ml_collections.config_dict import placeholder

# The encoding of a model that says nothing of its own.
ENCODING = {
  "pooling": "mean",
  "normalize": True,
  "title_joiner": " ",
  "query.prefix": "",
  "query.max_length": 32,
  "passage.prefix": "",
  "passage.max_length": 128,
  "sentence.prefix": "",
  "sentence.max_length": 64,
}


def default() -> ml_collections.ConfigDict:
  """All fields with their defaults. A config file overrides some of them.

  Where Hu et al. (2023) could not be read (temperatures, weights, batch
  sizes, pooling, lengths) the value is our choice, and its comment says so.
  """
  c = ml_collections.ConfigDict()

  c.seed = 0  # Of parameters, dropout, and the order of the data.

  # --- Data: what is read, and in which proportions. ---
  c.data = data = ml_collections.ConfigDict()
  # "cldr" (embedded, nothing to download) or "folder" (files under
  # data.root in the layout that the README shows).
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
  data.reader = "tf_data"  # Or "in_process": the same batches, no tensorflow.
  data.prefetch = 2  # Batches prepared ahead.

  # --- Tokenizer, when not the pretrained model's own. ---
  c.tokenizer = tokenizer = ml_collections.ConfigDict()
  # A folder with tokenizer.json; "" takes the pretrained model's, or, from
  # scratch, trains a Unigram tokenizer on the collection.
  tokenizer.path = ""
  tokenizer.vocab_size = 8000  # Of a tokenizer trained on the spot.

  # --- Encoding contract: saved with every checkpoint. ---
  # Each is None until set: what the pretrained model's sentence-transformers
  # folder says of it, else ENCODING below, which is our choice.
  c.encoding = encoding = ml_collections.ConfigDict()
  encoding.pooling = placeholder(str)  # "mean", "cls" or "last".
  # Unit-length vectors; the losses need them.
  encoding.normalize = placeholder(bool)
  # Between a passage's title and its text.
  encoding.title_joiner = placeholder(str)
  for role in ("query", "passage", "sentence"):
    encoding[role] = ml_collections.ConfigDict()
    encoding[role].prefix = placeholder(str)  # E.g. "query: ".
    # Tokens, special tokens included.
    encoding[role].max_length = placeholder(int)

  # --- Model: a pretrained one, or a BERT of this shape from scratch. ---
  c.model = model = ml_collections.ConfigDict()
  # A local folder or hub name in the Hugging Face layout; "" for scratch.
  model.pretrained = ""
  model.revision = ""  # Of a hub name; "" for its main branch.
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
  #     + w_mlm masked_lm. ---
  c.loss = loss = ml_collections.ConfigDict()
  loss.ir = ml_collections.ConfigDict()
  loss.ir.weight = 1.0  # w_ir.
  loss.ir.temperature = 0.05  # Our choice.
  loss.ir.symmetric = False  # Adds passage -> query.
  loss.semantic = ml_collections.ConfigDict()
  loss.semantic.weight = 1.0  # w_sem; our choice.
  loss.semantic.temperature = 0.05  # Our choice.
  loss.language = ml_collections.ConfigDict()
  loss.language.weight = 1.0  # w_lang; our choice.
  loss.language.temperature = 0.2  # Our choice; not tied to the IR's.
  # The third points: the loss is the weighted mean of the kinds' means.
  loss.language.parallel = 1.0  # The other sentences of the parallel batch.
  loss.language.passages = 1.0  # The IR passages.
  loss.language.monolingual = 1.0  # The monolingual sentences.
  # Ablation: no gradient to the third points.
  loss.language.stop_gradient = False
  # Masked language modelling in the passage tower: it adapts a backbone to
  # languages, beside the other losses or before them. No part of Hu et al.
  loss.masked_lm = ml_collections.ConfigDict()
  loss.masked_lm.weight = 0.0  # w_mlm; batch.masked must be set, too.

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

  return c.lock()


def config_folders() -> list[pathlib.Path]:
  """Where shipped configs stand: in the wheel, or beside the package."""
  package = pathlib.Path(str(importlib.resources.files("mlir_jax")))
  folders = [package / "configs", package.parent / "configs"]
  return [folder for folder in folders if folder.is_dir()]


def shipped() -> dict[str, pathlib.Path]:
  """The shipped configs: bare name to path."""
  return {
    path.stem: path
    for folder in reversed(config_folders())
    for path in sorted(folder.glob("*.py"))
    if path.stem != "__init__"
  }


def load(name: str) -> ml_collections.ConfigDict:
  """Loads a config by name or path, as --config does.

  Args:
    name: As `resolve` takes it.

  Raises:
    ValueError: if there is no such config.
  """
  path, _, argument = resolve(name).partition(":")
  module = runpy.run_path(path)
  return module["get_config"](*[argument] if argument else [])


def resolve(name: str) -> str:
  """Turns a config's name or path into a path.

  Args:
    name: A shipped config's bare name ("quickstart") or a path to a config
      file; either may be followed by ":" and an argument for `get_config`.

  Returns:
    The path, with the argument.

  Raises:
    ValueError: if there is no such config; it lists the shipped ones.
  """
  stem, colon, argument = name.partition(":")
  if stem.endswith(".py") or "/" in stem:
    if not pathlib.Path(stem).is_file():
      raise ValueError(f"--config={name}: there is no file {stem}.")
    return name
  known = shipped()
  if stem not in known:
    close = difflib.get_close_matches(stem, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ValueError(
      f"--config={name}: no config of that name.{hint} Shipped:"
      f" {', '.join(sorted(known))}; or give a path to a .py file."
    )
  return f"{known[stem]}{colon}{argument}"


def resolve_arguments(argv: Sequence[str]) -> list[str]:
  """Replaces `--config=NAME` by `--config=PATH` in a command line."""
  resolved = []
  expects_value = False
  for argument in argv:
    if expects_value:
      argument, expects_value = resolve(argument), False
    elif argument in ("--config", "-config"):
      expects_value = True
    elif argument.startswith(("--config=", "-config=")):
      flag, _, name = argument.partition("=")
      argument = f"{flag}={resolve(name)}"
    resolved.append(argument)
  return resolved
