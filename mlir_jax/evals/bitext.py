"""How often a sentence's nearest neighbour is its translation, both ways."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from mlir_jax.data import records
from mlir_jax.retrieval import topk


class _Side(NamedTuple):
  """The sentences of one language."""

  language: str
  texts: Sequence[str]
  vectors: np.ndarray  # Float32 [n, D], of unit length.


def unit(embeddings: np.ndarray) -> np.ndarray:
  """Scales float32 [n, D] embeddings to unit length.

  Raises:
    ValueError: if an embedding is zero or not finite.
  """
  lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
  if not (np.isfinite(lengths) & (lengths > 0)).all():
    raise ValueError(
      "Some texts' embeddings are zero or not finite; the model's"
      " parameters are broken."
    )
  return (embeddings / lengths).astype(np.float32)


def evaluate(
  embed: Callable[..., np.ndarray],
  translation_tests: Sequence[records.TranslationTest],
  mesh: Mesh,
) -> Iterator[tuple[str, float]]:
  """Measures Tatoeba accuracy (Artetxe and Schwenk 2019), by plain cosine.

  "accuracy" takes the nearest sentence as right if its text equals the text of
  the translation: the same text in several lines cannot be distinguished.
  "strict" is LASER's count: the nearest sentence must be in the translation's
  line. Of equal cosines, the first line counts as nearest.

  Args:
    embed: `embed(role, texts)`, float32 [n, D] of n texts.
    translation_tests: Line-aligned sentences.
    mesh: Its axis "data" splits the sentences that are searched.

  Yields:
    Name and value, ("tatoeba/de-en/accuracy", 0.9): the share of the German
    sentences that find their English translation; ("tatoeba/de-en/strict",
    0.88). Then the other direction.
  """
  for test in translation_tests:
    source, target = (
      _Side(language, texts, unit(embed("sentence", texts)))
      for language, texts in (
        (test.source_language, test.sources),
        (test.target_language, test.targets),
      )
    )
    for queries, answers in ((source, target), (target, source)):
      name = f"tatoeba/{queries.language}-{answers.language}"
      _, nearest = topk.search(
        queries.vectors,
        topk.place(answers.vectors, mesh),
        1,
        mesh=mesh,
        num_valid=len(answers.texts),
        description=f"Searching {name}",
      )
      right = [
        answers.texts[row] == translation
        for row, translation in zip(nearest[:, 0], answers.texts, strict=True)
      ]
      yield f"{name}/accuracy", float(np.mean(right))
      is_line = nearest[:, 0] == np.arange(len(answers.texts))
      yield f"{name}/strict", float(np.mean(is_line))
