"""The centre of the study of translated sentences: a short training.

`python benchmarks/study.py` gives the data and the model, and changes single
fields; see docs/study.md. Variants: `:mlm` trains a small encoder from scratch
by masked language modelling, on plain text alone; `:smoke` takes a step of a
tiny encoder.
"""

from mlir_jax import config_files

_VARIANTS = ("", "mlm", "smoke")


def get_config(variant=""):
  if variant not in _VARIANTS:
    raise ValueError(f"study:{variant}: the variants are 'mlm' and 'smoke'.")
  c = config_files.load("e5_small:smoke" if variant == "smoke" else "e5_small")
  # No text of a test is cut but long paragraphs.
  c.encoding.query.max_length = 64

  c.batch.retrieval = c.batch.parallel = 16 if variant == "smoke" else 64
  c.batch.monolingual = 0
  c.loss.language.monolingual = 0.0

  # The last step is measured: no run chooses a checkpoint by a test.
  c.eval.every = 0
  c.eval.at_start = False
  c.train.keep = 1
  c.train.self_check = False  # Of each of a hundred runs.
  c.data.shards = 1
  if variant == "smoke":
    return c

  c.optim.warmup_steps = 8
  c.train.steps = 80
  c.train.log_every = 5
  c.train.checkpoint_every = 20
  if variant == "mlm":
    c.model.pretrained = ""
    c.model.hidden_size = 384  # The shape of e5-small, with 4 layers.
    c.model.num_layers = 4
    c.model.num_heads = 12
    c.model.intermediate_size = 1536
    c.model.max_positions = 130
    c.batch.retrieval = c.batch.parallel = 0
    c.loss.ir.weight = c.loss.semantic.weight = c.loss.language.weight = 0.0
    c.batch.masked = 64
    c.loss.masked_lm.weight = 1.0
    c.optim.learning_rate = 5e-4
    c.optim.warmup_steps = 100
    c.train.steps = 1500
    c.train.log_every = 50
    c.train.checkpoint_every = 150
  return c
