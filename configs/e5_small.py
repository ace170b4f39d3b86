"""Fine-tunes multilingual-e5-small on a folder of your own data.

The data is in --config.data.root=FOLDER; docs/data.md shows its layout. For a
small GPU or a CPU, cut the model and give its folder with
--config.model.pretrained=FOLDER. Variants: `:smoke` (a tiny encoder from
scratch, one step).
"""

from mlir_jax import config


def get_config(variant=""):
  if variant not in ("", "smoke"):
    raise ValueError(f"e5_small:{variant}: the only variant is 'smoke'.")
  c = config.default()
  c.data.collection = "folder"

  c.model.pretrained = "intfloat/multilingual-e5-small"
  c.encoding.query.prefix = "query: "
  c.encoding.passage.prefix = "passage: "
  c.encoding.sentence.prefix = "query: "  # As e5 needs for symmetric tasks.
  c.encoding.query.max_length = 32
  c.encoding.passage.max_length = 128
  c.encoding.sentence.max_length = 64

  c.batch.retrieval = 128
  c.batch.parallel = 64
  c.batch.monolingual = 64
  c.loss.ir.temperature = 0.02
  c.loss.semantic.weight = 0.1
  c.loss.language.weight = 0.1

  c.optim.learning_rate = 3e-5
  c.optim.warmup_steps = 100
  c.optim.decay = "linear"
  c.train.steps = 2000
  c.train.checkpoint_every = c.eval.every = 500

  if variant == "smoke":
    c.model.pretrained = ""
    c.tokenizer.vocab_size = 500
    c.model.hidden_size = 32
    c.model.num_heads = 2
    c.model.intermediate_size = 32
    c.batch.retrieval = c.batch.parallel = c.batch.monolingual = 16
    c.optim.warmup_steps = 0
    c.train.steps = 1
    c.train.log_every = 1
  return c
