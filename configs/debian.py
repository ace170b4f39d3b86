"""Fine-tunes multilingual-e5-small on a folder of real data, such as Debian's.

The collection is given with --config.data.root=FOLDER; see the README for its
layout. Variants: `:smoke` (a tiny encoder from scratch, a few steps).
"""

from mlir_jax import config


def get_config(variant=""):
  if variant not in ("", "smoke"):
    raise ValueError(f"debian:{variant}: the only variant is 'smoke'.")
  c = config.default()
  c.data.collection = "folder"
  # One topic of the Chinese test is empty; it is skipped, and shown.
  c.data.on_bad_record = "skip"

  c.model.pretrained = "intfloat/multilingual-e5-small"
  c.encoding.query.prefix = "query: "
  c.encoding.passage.prefix = "passage: "
  c.encoding.sentence.prefix = "query: "  # As e5 is used for sentences.
  c.encoding.query.max_length = 32
  c.encoding.passage.max_length = 128
  c.encoding.sentence.max_length = 32

  c.batch.retrieval = 64
  c.batch.parallel = 32
  c.batch.monolingual = 32
  c.loss.ir.temperature = 0.02
  c.loss.semantic.temperature = 0.05
  c.loss.semantic.weight = 0.1
  c.loss.language.weight = 0.1

  c.optim.learning_rate = 3e-5
  c.optim.warmup_steps = 20
  c.optim.decay = "linear"
  c.train.steps = 1000
  c.train.checkpoint_every = c.eval.every = 250

  if variant == "smoke":
    c.model.pretrained = ""
    c.tokenizer.vocab_size = 1000
    c.model.hidden_size = 32
    c.model.intermediate_size = 64
    c.batch.retrieval = c.batch.parallel = c.batch.monolingual = 16
    c.optim.warmup_steps = 1
    c.train.steps = 4
    c.train.log_every = 1
    c.train.checkpoint_every = c.eval.every = 2
  return c
