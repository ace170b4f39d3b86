"""How many floating-point operations a step takes, by formula.

A compiler counts the body of a loop once (jax#18672), so a rate is divided out
of these. A multiplication and an addition count as two; what is no matrix
product (layer norms, activations, softmax, the optimizer) is left out, as in
Kaplan et al. 2020 (arXiv 2001.08361, section 2.1) and in the model FLOPs
utilization (MFU) of Chowdhery et al. 2022 (PaLM, arXiv 2204.02311, appendix
B).
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from mlir_jax.models import architecture


@dataclasses.dataclass(frozen=True)
class Flops:
  """The operations of a training step, over all devices.

  Attributes:
    model: What a forward and a backward pass over the texts need. MFU counts
      these alone.
    padding: What the same passes compute beyond that: padding, and scores
      between texts that share a row.
    again: Forward passes that are computed a second time to save memory; with
      them it is the hardware's utilization (HFU).
    scores: Those of `model` in the losses' score matrices, float32 with
      precision=HIGHEST: a matrix unit of bfloat16 makes six passes for one.
  """

  model: int
  padding: int
  again: int
  scores: int

  @property
  def hardware(self) -> int:
    """All that are computed."""
    return self.model + self.padding + self.again

  def __str__(self) -> str:
    return (
      f"{self.model / 1e12:,.3g} TFLOP, {self.padding / 1e12:,.3g} on padding,"
      f" and {self.again / 1e12:,.3g} again to save memory,"
    )


class Texts(NamedTuple):
  """What is encoded; numbers of a step, or their means.

  Attributes:
    texts: Pooled vectors.
    tokens: Tokens.
    pairs: Pairs of tokens between which attention has a score.
  """

  texts: float
  tokens: float
  pairs: float


def encode(config: architecture.EncoderConfig, texts: Texts) -> int:
  """The operations of encoding texts, forward.

  Per layer, a token takes 8 d^2 for queries, keys, values and the attention's
  output, 4 d for its score with each token and the sum that they weigh, and
  4 d f for the feed-forward layers, of which a gate makes 6 d f. Layers with a
  sliding window compute all scores, too.
  """
  hidden, inner = config.hidden_size, config.intermediate_size
  matrices = 3 if config.architecture == "modernbert" else 2
  layer = 8 * hidden**2 + 2 * matrices * hidden * inner
  dense = config.num_layers * layer * texts.tokens
  projection = 2 * texts.texts * hidden * config.projection_size
  return round(dense + projection) + attend(config, texts)


def attend(config: architecture.EncoderConfig, texts: Texts) -> int:
  """Of `encode`, the products between tokens."""
  return round(config.num_layers * 4 * config.hidden_size * texts.pairs)


def predict(config: architecture.EncoderConfig, places: int) -> int:
  """The operations of scoring a vocabulary at some places, forward."""
  hidden = config.hidden_size
  return 2 * places * hidden * (hidden + config.padded_vocab_size)


def train_step(
  config: architecture.EncoderConfig,
  real: Sequence[Texts],
  computed: Sequence[Texts],
  matrices: Sequence[tuple[int, int]] = (),
  places: int = 0,
  forwards_again: int = 0,
  attends_again: int = 0,
) -> Flops:
  """The operations of one training step.

  A backward pass takes twice a forward pass: a product of the gradient with
  either factor.

  Args:
    config: The encoder's.
    real: The texts that are encoded, without padding.
    computed: The rows that they are packed into.
    matrices: (rows, columns) of the losses' score matrices.
    places: Where tokens are predicted; their scores are always made again in
      the backward pass.
    forwards_again: How often texts are encoded again in the backward pass: 1
      where a batch is encoded in chunks, and one more where layers are
      computed again within a chunk.
    attends_again: How often the attention's products alone are made again.
  """
  needed = sum(encode(config, texts) for texts in real)
  encoding = sum(encode(config, texts) for texts in computed)
  attending = sum(attend(config, texts) for texts in computed)
  scores = sum(
    2 * rows * columns * config.output_size for rows, columns in matrices
  )
  predicting = predict(config, places)
  return Flops(
    model=3 * (needed + scores + predicting),
    padding=3 * (encoding - needed),
    again=forwards_again * encoding + attends_again * attending + predicting,
    scores=3 * scores,
  )
