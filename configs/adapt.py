"""Adapts a backbone to languages: masked language modelling on plain text.

The text is in the files mono/NAME.LANGUAGE.txt of --config.data.root=FOLDER;
nothing else is needed. Export the run: the export is then a backbone for
--config.model.pretrained. To adapt and train for retrieval in one run, set
batch.masked and loss.masked_lm.weight in another config. Variants: `:smoke` (a
tiny encoder from scratch, one step).
"""

from mlir_jax import config


def get_config(variant=""):
  if variant not in ("", "smoke"):
    raise ValueError(f"adapt:{variant}: the only variant is 'smoke'.")
  c = config.default()
  c.data.collection = "folder"
  c.model.pretrained = "FacebookAI/xlm-roberta-base"
  c.encoding.sentence.max_length = 128

  c.batch.retrieval = c.batch.parallel = c.batch.monolingual = 0
  c.loss.ir.weight = c.loss.semantic.weight = c.loss.language.weight = 0.0
  c.batch.masked = 256
  c.loss.masked_lm.weight = 1.0

  c.optim.learning_rate = 1e-4
  c.optim.warmup_steps = 500
  c.optim.decay = "linear"
  c.train.steps = 10_000
  c.train.checkpoint_every = 1000
  c.eval.every = 1000
  c.eval.at_start = False

  if variant == "smoke":
    c.model.pretrained = ""
    c.tokenizer.vocab_size = 500
    c.model.hidden_size = 32
    c.model.num_heads = 2
    c.model.intermediate_size = 32
    c.batch.masked = 16
    c.optim.warmup_steps = 0
    c.train.steps = 1
    c.train.log_every = 1
  return c
