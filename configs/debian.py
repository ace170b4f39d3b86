"""multilingual-e5-small on Debian's package descriptions: `e5_small`, shorter.

`mlir-jax download debian tatoeba` brings the data to the folder data, in the
current folder; --config.data.root and --config.data.tatoeba_root name others.
Variants: `:smoke`, a step.
"""

from mlir_jax import config_files


def get_config(variant=""):
  c = config_files.load(f"e5_small:{variant}" if variant else "e5_small")
  c.data.root = "data/debian"
  c.data.tatoeba_root = "data/tatoeba"
  if variant == "smoke":
    c.tokenizer.vocab_size = 8000
    return c

  c.encoding.sentence.max_length = 32  # Most descriptions are short.
  c.batch.retrieval = 64
  c.batch.parallel = 32
  c.batch.monolingual = 32
  c.optim.warmup_steps = 20
  c.train.steps = 1000
  c.train.checkpoint_every = c.eval.every = 250
  return c
