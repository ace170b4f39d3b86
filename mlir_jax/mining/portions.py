"""Computes vectors and candidates in portions, which survive a kill."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mlir_jax import bars
from mlir_jax.data import records
from mlir_jax.mining import candidates, progress
from mlir_jax.mining import questions as questions_lib

# Texts or questions of a portion. Another size would change the vectors' last
# bits, because other texts would share a batch.
SIZE = 2048


def _portions(
  total: int, description: str, unit: str
) -> Iterator[tuple[int, int, int]]:
  """Yields the number, the start and the end of each portion, with a bar."""
  with bars.bar(None, description, unit=unit, total=total) as bar:
    for number, first in enumerate(range(0, total, SIZE)):
      last = min(first + SIZE, total)
      yield number, first, last
      bar.update(last - first)


def encode(
  kept: progress.Progress,
  embed: candidates.Embed,
  role: str,
  passages: Sequence[records.Passage],
) -> np.ndarray:
  """Returns the vectors of texts, float32 [n, D].

  Args:
    kept: Has the portions that are there already.
    embed: embed(role, texts, titles=None) -> float32 [n, D].
    role: "query" or "passage"; only passages have titles.
    passages: The texts, at least one.
  """

  def make(part: Sequence[records.Passage]) -> dict[str, np.ndarray]:
    texts = [each.text for each in part]
    titles = [each.title for each in part] if role == "passage" else None
    return {"vectors": embed(role, texts, titles)}

  parts = []
  for number, first, last in _portions(
    len(passages), f"Encoding as {role}", "text"
  ):
    part = passages[first:last]
    name = f"{role}-{number:06d}"
    parts.append(kept.arrays(name, lambda part=part: make(part))["vectors"])
  return np.concatenate(parts)


def find(
  kept: progress.Progress,
  questions: Sequence[questions_lib.Question],
  make_finder: Callable[[], candidates.Finder],
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
  """Yields the candidates of each question.

  Args:
    kept: Has the portions that are there already.
    questions: All questions.
    make_finder: Makes the finder. It is called if a portion is not there.

  Yields:
    The question's number; its candidates and their scores, best first, as in
    `candidates.Found`; and the scores of its positives.
  """
  finder: candidates.Finder | None = None

  def make(first: int, last: int) -> dict[str, np.ndarray]:
    nonlocal finder
    if finder is None:
      finder = make_finder()
    return finder(first, last)._asdict()

  for number, first, last in _portions(
    len(questions), "Finding candidates", "question"
  ):
    found = candidates.Found(
      **kept.arrays(
        f"candidates-{number:06d}",
        lambda first=first, last=last: make(first, last),
      )
    )
    start = 0
    for i, question in enumerate(questions[first:last]):
      end = start + len(question.positives)
      yield (
        first + i,
        found.rows[i],
        found.scores[i],
        found.positive_scores[start:end],
      )
      start = end
