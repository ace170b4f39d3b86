"""Computes the floating-point operations of a step by formulas.

The compiler's count is not used, because it counts the body of a loop once
(jax#18672). A multiplication and an addition count as two. Only matrix products
count: layer norms, activations, softmax and the optimizer are omitted, as in
Kaplan et al. 2020 (arXiv 2001.08361, section 2.1) and in the model FLOPs
utilization (MFU) of Chowdhery et al. 2022 (PaLM, arXiv 2204.02311, appendix B).
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from mlir_jax.models import architecture


@dataclasses.dataclass(frozen=True)
class Flops:
  """The operations of a training step, over all devices.

  Attributes:
    model: The operations that a forward and a backward pass over the texts
      need. MFU counts only these.
    padding: The additional operations of these passes, for padding and for
      scores between texts that share a row.
    again: Forward passes that are computed a second time to save memory. The
      hardware FLOPs utilization (HFU) includes them.
    scores: The part of `model` in the losses' score matrices. These are float32
      with precision=HIGHEST, which takes six passes of a bfloat16 matrix unit.
  """

  model: int
  padding: int
  again: int
  scores: int

  @property
  def hardware(self) -> int:
    """All operations that are computed."""
    return self.model + self.padding + self.again

  def __str__(self) -> str:
    return (
      f"{self.model / 1e12:,.3g} TFLOP, {self.padding / 1e12:,.3g} on padding,"
      f" and {self.again / 1e12:,.3g} again to save memory,"
    )


class Texts(NamedTuple):
  """Counts of encoded texts, of one step or as a mean.

  Attributes:
    texts: The number of pooled vectors.
    tokens: The number of tokens.
    pairs: The number of token pairs for which attention computes a score.
  """

  texts: float
  tokens: float
  pairs: float


def encode(config: architecture.EncoderConfig, texts: Texts) -> int:
  """Returns the operations of the forward pass over texts.

  In each layer, a token takes 8 d^2 for queries, keys, values and the
  attention's output; 4 d with each token of its text for the score and the
  weighted sum; and 4 d f for the feed-forward layers, or 6 d f with a gate.
  Layers with a sliding window also compute all scores.
  """
  hidden, inner = config.hidden_size, config.intermediate_size
  matrices = 3 if config.architecture == "modernbert" else 2
  layer = 8 * hidden**2 + 2 * matrices * hidden * inner
  dense = config.num_layers * layer * texts.tokens
  projection = 2 * texts.texts * hidden * config.projection_size
  return round(dense + projection) + attend(config, texts)


def attend(config: architecture.EncoderConfig, texts: Texts) -> int:
  """Returns the part of `encode` for the products between tokens."""
  return round(config.num_layers * 4 * config.hidden_size * texts.pairs)


def predict(config: architecture.EncoderConfig, places: int) -> int:
  """Returns the operations of scoring the vocabulary at places, forward."""
  hidden = config.hidden_size
  return 2 * places * hidden * (hidden + config.padded_vocab_size)


def train_step(
  config: architecture.EncoderConfig,
  real: Sequence[Texts],
  computed: Sequence[Texts],
  matrices: Sequence[tuple[int, int, int]] = (),
  frozen: Sequence[tuple[int, int, int]] = (),
  places: int = 0,
  forwards_again: int = 0,
  attends_again: int = 0,
) -> Flops:
  """Returns the operations of one training step.

  A backward pass takes twice as many as a forward pass: for each product, the
  gradient is multiplied with both factors.

  Args:
    config: The encoder's.
    real: The texts that are encoded, without padding.
    computed: The rows that they are packed into.
    matrices: (rows, columns, width of the vectors) of the losses' score
      matrices.
    frozen: The same of the score matrices that have no gradient.
    places: The number of places where tokens are predicted. The backward pass
      always computes their scores again.
    forwards_again: How often the backward pass encodes texts again: once if a
      batch is encoded in chunks, and once more if layers are computed again.
    attends_again: How often the backward pass computes only attention's
      products again.
  """
  needed = sum(encode(config, texts) for texts in real)
  encoding = sum(encode(config, texts) for texts in computed)
  attending = sum(attend(config, texts) for texts in computed)
  scores = sum(2 * rows * columns * width for rows, columns, width in matrices)
  constant = sum(2 * rows * columns * width for rows, columns, width in frozen)
  predicting = predict(config, places)
  return Flops(
    model=3 * (needed + scores + predicting) + constant,
    padding=3 * (encoding - needed),
    again=forwards_again * encoding + attends_again * attending + predicting,
    scores=3 * scores + constant,
  )
