"""XLM-R base as Hu et al. (2023) train it: all three losses, two towers.

It trains on English question-passage pairs and parallel sentences; passages are
third points of the language loss, too (arXiv 2210.06633, Figure 2). The paper's
temperatures, weights, batch sizes, lengths and optimizer could not be read:
they are our choice. The data is in --config.data.root=FOLDER, in the layout of
docs/data.md. For a TPU pod, see `python -m mlir_jax.plan`. Variants: `:smoke`
(a tiny encoder from scratch, one step).
"""

from mlir_jax import config


def get_config(variant=""):
  if variant not in ("", "smoke"):
    raise ValueError(f"xlmr_base:{variant}: the only variant is 'smoke'.")
  c = config.default()
  c.data.collection = "folder"

  c.model.pretrained = "FacebookAI/xlm-roberta-base"
  c.model.towers = "separate"  # Figure 2.
  c.model.dtype = "bfloat16"  # Our choice, for accelerators.
  # Our choices: a backbone that is not a retriever does not say its lengths.
  c.encoding.query.max_length = 32
  c.encoding.passage.max_length = 128
  c.encoding.sentence.max_length = 64

  # Our choices, for 16 devices or more. Larger is better; see the planner.
  c.batch.retrieval = 1024
  c.batch.parallel = 512
  # The third points of Figure 2 are parallel sentences and passages.
  c.batch.monolingual = 0
  c.loss.language.monolingual = 0.0
  c.loss.semantic.weight = 0.1  # Our choice, like the values below.
  c.loss.language.weight = 0.1

  c.optim.learning_rate = 2e-5
  c.optim.warmup_steps = 500
  c.optim.decay = "linear"
  c.train.steps = 10_000
  c.train.checkpoint_every = c.eval.every = 1000
  c.eval.at_start = False  # It would encode the corpus of every test.
  c.eval.dev_passages = 100_000  # Our choice: a sample of millions.

  if variant == "smoke":
    c.model.pretrained = ""
    c.model.dtype = "float32"
    c.tokenizer.vocab_size = 500
    c.model.hidden_size = 32
    c.model.num_heads = 2
    c.model.intermediate_size = 32
    c.batch.retrieval = c.batch.parallel = 16
    c.optim.warmup_steps = 0
    c.train.steps = 1
    c.train.log_every = 1
  return c
