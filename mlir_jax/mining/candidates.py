"""Finds candidates for negatives with BM25, with a model, or with both.

Nothing here reads or writes a file: a model is a function that encodes texts.
So a training run can mine with its own parameters, too.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jax.sharding import Mesh

from mlir_jax.mining import questions as questions_lib
from mlir_jax.retrieval import bm25, topk

# Numbers of the vectors that are compared at once; it bounds memory.
_NUMBERS = 1 << 22


class Found(NamedTuple):
  """The candidates of some questions, best first.

  Attributes:
    rows: int32 [Q, k], rows of the corpus; -1 after the last candidate.
    scores: float32 [Q, k], their scores; -inf after the last candidate.
    positive_scores: float32 [sum of P], the scores of the questions' positives,
      question by question.
  """

  rows: np.ndarray
  scores: np.ndarray
  positive_scores: np.ndarray


class Finder(Protocol):
  """Finds the candidates of consecutive questions."""

  def __call__(self, first: int, last: int) -> Found:
    """Returns the candidates of the questions first to last - 1."""
    ...


def with_bm25(
  questions: Sequence[questions_lib.Question], index: bm25.Bm25, depth: int
) -> Finder:
  """Returns a finder by BM25, whose scores are BM25's.

  Args:
    questions: All questions.
    index: The passages.
    depth: Candidates of a question, at most.
  """

  def find(first: int, last: int) -> Found:
    rows = np.full((last - first, depth), -1, np.int32)
    scores = np.full(rows.shape, -np.inf, np.float32)
    positive_scores = []
    for i, question in enumerate(questions[first:last]):
      all_scores = index.scores(question.text)
      best = bm25.best(all_scores, depth)
      rows[i, : len(best)] = best
      scores[i, : len(best)] = all_scores[best]
      positive_scores.append(all_scores[question.positives])
    return Found(rows, scores, np.concatenate(positive_scores))

  return find


class Vectors(NamedTuple):
  """What a model makes of the questions and of the passages.

  Attributes:
    questions: float32 [Q, D].
    passages: float32 [N, D].
  """

  questions: np.ndarray
  passages: np.ndarray


def with_model(
  questions: Sequence[questions_lib.Question],
  vectors: Vectors,
  mesh: Mesh,
  depth: int,
) -> Finder:
  """Returns a finder by exact search with a model's vectors.

  Args:
    questions: All questions.
    vectors: Their vectors and those of the passages.
    mesh: The devices that search.
    depth: Candidates of a question, at most.
  """
  placed = topk.place(vectors.passages, mesh)
  k = min(depth, len(vectors.passages))

  def find(first: int, last: int) -> Found:
    scores, rows = topk.search(
      vectors.questions[first:last],
      placed,
      k,
      mesh=mesh,
      num_valid=len(vectors.passages),
    )
    return Found(
      rows, scores, _score_positives(questions, vectors, first, last)
    )

  return find


def judged(
  questions: Sequence[questions_lib.Question],
  finders: Sequence[Finder],
  vectors: Vectors,
) -> Finder:
  """Returns a finder whose candidates are ranked again by a model.

  Args:
    questions: All questions.
    finders: Their candidates are joined.
    vectors: Of the questions and the passages.
  """

  def find(first: int, last: int) -> Found:
    found = [finder(first, last).rows for finder in finders]
    rows = np.concatenate(found, axis=1)
    for i, joined in enumerate(rows):
      unique = np.unique(joined[joined >= 0])  # Sorted, so ties go to the left.
      rows[i] = -1
      rows[i, : len(unique)] = unique
    there = rows >= 0
    scores = np.full(rows.shape, -np.inf, np.float32)
    scores[there] = _score(vectors, first + there.nonzero()[0], rows[there])
    order = np.argsort(-scores, axis=1, kind="stable")
    return Found(
      np.take_along_axis(rows, order, axis=1),
      np.take_along_axis(scores, order, axis=1),
      _score_positives(questions, vectors, first, last),
    )

  return find


def _score_positives(
  questions: Sequence[questions_lib.Question],
  vectors: Vectors,
  first: int,
  last: int,
) -> np.ndarray:
  pairs = [
    (number, row)
    for number in range(first, last)
    for row in questions[number].positives
  ]
  numbers, rows = np.array(pairs, np.int64).reshape(-1, 2).T
  return _score(vectors, numbers, rows)


def _score(
  vectors: Vectors, numbers: np.ndarray, rows: np.ndarray
) -> np.ndarray:
  """Returns the inner product of each pair, float32 [n].

  Args:
    vectors: Of the questions and the passages.
    numbers: int [n], the questions.
    rows: int [n], the passages.
  """
  scores = np.empty(len(rows), np.float32)
  step = max(1, _NUMBERS // vectors.passages.shape[1])
  for start in range(0, len(rows), step):
    part = slice(start, start + step)
    scores[part] = np.einsum(
      "nd,nd->n",
      vectors.questions[numbers[part]],
      vectors.passages[rows[part]],
    )
  return scores


# Encodes texts of a role: embed(role, texts, titles=None), float32 [n, D].
Embed = Callable[..., np.ndarray]
