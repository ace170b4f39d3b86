"""How often a sentence's nearest neighbour is its translation, both ways."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jax.sharding import Mesh

from mlir_jax.data import records
from mlir_jax.retrieval import topk


def _unit(embeddings: np.ndarray) -> np.ndarray:
  """[n, D] float32 embeddings, scaled to unit length; ValueError if unable."""
  lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
  if not (np.isfinite(lengths) & (lengths > 0)).all():
    raise ValueError(
      "Some sentences' embeddings are zero or not finite; the model's"
      " parameters are broken."
    )
  return (embeddings / lengths).astype(np.float32)


def evaluate(
  embed: Callable[..., np.ndarray],
  translation_tests: Sequence[records.TranslationTest],
  mesh: Mesh,
) -> Iterator[tuple[str, float]]:
  """Tatoeba accuracy (Artetxe and Schwenk 2019), by plain cosine.

  The nearest sentence counts as right if its text is the translation's: a
  text that stands in several lines cannot be told apart.

  Args:
    embed: `embed(role, texts)`, float32 [n, D] of n texts.
    translation_tests: Line-aligned sentences.
    mesh: The mesh; the sentences searched are split over its axis "data".

  Yields:
    Name and value, ("tatoeba/de-en/accuracy", 0.9): given the German
    sentences, how many find their English translation; then the other way.
  """
  for test in translation_tests:
    source, target = (
      (language, texts, _unit(embed("sentence", texts)))
      for language, texts in (
        (test.source_language, test.sources),
        (test.target_language, test.targets),
      )
    )
    for given, sought in ((source, target), (target, source)):
      name = f"tatoeba/{given[0]}-{sought[0]}/accuracy"
      _, texts, vectors = sought
      _, nearest = topk.search(
        given[2],
        topk.place(vectors, mesh),
        1,
        mesh=mesh,
        num_valid=len(texts),
        description=f"Searching {name}",
      )
      right = [
        texts[row] == translation
        for row, translation in zip(nearest[:, 0], texts, strict=True)
      ]
      yield name, float(np.mean(right))
