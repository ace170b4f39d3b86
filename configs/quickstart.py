"""Trains a small encoder on the embedded CLDR names: minutes on a CPU.

Variants choose the losses: `:ir`, `:ir_semantic`, `:ir_language`, `:all` (the
default). `:shuffled` is the control: all losses, but each name is paired with a
wrong translation. `:smoke` takes one step.
"""

from mlir_jax import config

VARIANTS = ("ir", "ir_semantic", "ir_language", "all", "shuffled", "smoke")


def get_config(variant="all"):
  if variant not in VARIANTS:
    raise ValueError(f"quickstart:{variant}: the variants are {VARIANTS}.")
  c = config.default()
  c.data.collection = "cldr"
  c.data.shuffle_parallel = variant == "shuffled"
  c.tokenizer.vocab_size = 8000
  c.encoding.query.max_length = 12
  c.encoding.passage.max_length = 40
  c.encoding.sentence.max_length = 12

  c.model.hidden_size = 128
  c.model.num_layers = 2
  c.model.num_heads = 4
  c.model.intermediate_size = 256
  c.model.max_positions = 64

  c.batch.retrieval = 128
  c.batch.parallel = 96
  c.batch.monolingual = 64
  if variant == "ir":
    c.batch.parallel = c.batch.monolingual = 0
  elif variant == "ir_semantic":
    c.batch.monolingual = 0
  c.loss.semantic.weight = float(variant not in ("ir", "ir_language"))
  c.loss.language.weight = float(variant not in ("ir", "ir_semantic"))

  c.optim.learning_rate = 1e-3
  c.optim.warmup_steps = 40
  c.train.steps = 400
  c.train.checkpoint_every = 200
  c.eval.every = 100

  if variant == "smoke":
    c.model.hidden_size = 32
    c.model.intermediate_size = 64
    c.batch.retrieval = c.batch.parallel = c.batch.monolingual = 16
    c.optim.warmup_steps = 0
    c.train.steps = 1
    c.train.log_every = 1
  return c
