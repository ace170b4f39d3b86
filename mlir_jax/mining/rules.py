"""Chooses a question's negatives among the passages that a search has found.

The settings mean what they mean in sentence-transformers' function
`mine_hard_negatives`. A passage that may be right is dropped first, then one
whose score is too near to that of the positive. Ranks count what is left.
"""

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from mlir_jax.mining import questions as questions_lib

SAMPLING = ("top", "random")
_SCORES = ("max_score", "min_score")

# Why a passage is no negative of a question, in the order of the tests.
IS_POSITIVE = "a positive of the question"
IS_TWIN = "the text of a positive, under another title"
IS_QUESTION = "the question itself"
HOLDS_ANSWER = "contains an answer"
IS_NEGATIVE = "a hard negative of the question already"


@dataclasses.dataclass(frozen=True)
class Rules:
  """The settings of the choice.

  Attributes:
    num_negatives: Negatives that are added to a question, at most.
    range_min: The best candidates that are skipped.
    range_max: The rank of the last candidate; None for 10 × num_negatives
      (num_negatives if no rule below drops candidates by their scores, and no
      answers are given) after range_min, and the largest number of positives.
    absolute_margin: A negative scores at least this much less than the
      question's worst positive; None for any score.
    relative_margin: The same as a share of that positive's score.
    max_score: The highest score of a negative, or None.
    min_score: The lowest score of a negative, or None.
    sampling_strategy: "top" takes the best candidates. "random" draws: the draw
      depends on the seed, the question and the passages only.
    seed: Of "random".
  """

  num_negatives: int = 3
  range_min: int = 0
  range_max: int | None = None
  absolute_margin: float | None = None
  relative_margin: float | None = None
  max_score: float | None = None
  min_score: float | None = None
  sampling_strategy: str = "top"
  seed: int = 0

  def __post_init__(self):
    """Refuses settings that cannot work.

    Raises:
      ValueError: naming the settings.
    """
    if self.num_negatives < 1:
      raise ValueError(
        f"num_negatives is {self.num_negatives}; give at least 1."
      )
    if self.range_min < 0:
      raise ValueError(f"range_min is {self.range_min}; give 0 or more.")
    if self.range_max is not None:
      if self.range_max <= self.range_min:
        raise ValueError(
          f"range_min is {self.range_min} and range_max is {self.range_max}:"
          " range_max must be larger."
        )
      if self.range_max - self.range_min < self.num_negatives:
        raise ValueError(
          f"range_min is {self.range_min} and range_max is {self.range_max}:"
          f" fewer ranks than num_negatives={self.num_negatives} are between"
          " them. Raise range_max, or lower one of the others."
        )
    for name in ("absolute_margin", "relative_margin", *_SCORES):
      self._check_finite(name)
    if self.relative_margin is not None and not 0 <= self.relative_margin < 1:
      raise ValueError(
        f"relative_margin is {self.relative_margin}, a share of the positive's"
        " score: give a number from 0 to below 1."
      )
    low, high = self.min_score, self.max_score
    if low is not None and high is not None and low >= high:
      raise ValueError(
        f"min_score is {low} and max_score is {high}: max_score must be larger."
      )
    if self.sampling_strategy not in SAMPLING:
      raise ValueError(
        f"sampling_strategy is {self.sampling_strategy!r}; use one of"
        f" {', '.join(SAMPLING)}."
      )

  def _check_finite(self, name: str) -> None:
    value = getattr(self, name)
    if value is not None and not math.isfinite(value):
      raise ValueError(f"{name} is {value}; give a finite number.")

  def last_rank(self, most_positives: int, answers: bool = False) -> int:
    """Returns range_max, or what takes its place.

    Args:
      most_positives: The largest number of positives of a question.
      answers: Whether questions have answers, by which passages are dropped.
    """
    if self.range_max is not None:
      return self.range_max
    drops = (self.absolute_margin, self.relative_margin, self.max_score)
    many = answers or any(value is not None for value in drops)
    wanted = self.num_negatives * (10 if many else 1)
    return self.range_min + wanted + most_positives


class Choice(NamedTuple):
  """The negatives of a question, best first.

  Attributes:
    rows: Rows of the corpus.
    scores: Their scores.
    dropped: Why other candidates were dropped: reason to number.
  """

  rows: list[int]
  scores: list[float]
  dropped: Counter[str]


def choose(
  question: questions_lib.Question,
  corpus: questions_lib.Corpus,
  rows: np.ndarray,
  scores: np.ndarray,
  positive_scores: np.ndarray,
  rules: Rules,
  last_rank: int,
) -> Choice:
  """Chooses the negatives of a question.

  Args:
    question: The question.
    corpus: The passages.
    rows: int [k], the rows that were found, best first; -1 for none.
    scores: float32 [k], their scores.
    positive_scores: float32 [P], the scores of the question's positives.
    rules: The settings.
    last_rank: From `Rules.last_rank`.
  """
  dropped: Counter[str] = Counter()
  tests = _score_tests(rules, float(positive_scores.min()))
  same = {key for row in question.positives for key in corpus.keys(row)}
  itself = questions_lib.key(question.text)
  kept = []
  for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
    if row < 0:
      break
    keys = corpus.keys(row)
    if row in question.positives:
      reason = IS_POSITIVE
    elif not same.isdisjoint(keys):
      reason = IS_TWIN
    elif itself in keys:
      reason = IS_QUESTION
    elif row in question.negatives:
      reason = IS_NEGATIVE
    elif corpus.holds(row, question.answers):
      reason = HOLDS_ANSWER
    else:
      reason = next(
        (
          reason
          for reason, low, high in tests
          if not low <= np.float32(score) <= high
        ),
        "",
      )
    if reason:
      dropped[reason] += 1
    else:
      kept.append((row, score))
  if skipped := len(kept[: rules.range_min]):
    dropped[f"before range_min={rules.range_min}"] = skipped
  if beyond := len(kept[last_rank:]):
    dropped[f"after range_max={last_rank}"] = beyond
  kept = kept[rules.range_min : last_rank]
  chosen = kept[: rules.num_negatives]
  if rules.sampling_strategy == "random":
    chosen = _draw(question, corpus, kept, rules)
  return Choice(
    [row for row, _ in chosen], [score for _, score in chosen], dropped
  )


def _score_tests(
  rules: Rules, worst: float
) -> list[tuple[str, np.floating, np.floating]]:
  """Returns reasons, each with the lowest and the highest allowed score."""
  low, high = np.float32(-np.inf), np.float32(np.inf)
  lowest = np.float32(worst)  # Scores are float32, so limits are, too.
  tests = []
  if rules.absolute_margin is not None:
    limit = lowest - np.float32(rules.absolute_margin)
    tests.append((f"absolute_margin={rules.absolute_margin:g}", low, limit))
  if rules.relative_margin is not None:
    # Of a score below 0, too, the limit is below the score.
    limit = lowest - abs(lowest) * np.float32(rules.relative_margin)
    tests.append((f"relative_margin={rules.relative_margin:g}", low, limit))
  if rules.max_score is not None:
    limit = np.float32(rules.max_score)
    tests.append((f"max_score={rules.max_score:g}", low, limit))
  if rules.min_score is not None:
    limit = np.float32(rules.min_score)
    tests.append((f"min_score={rules.min_score:g}", limit, high))
  return tests


def _draw(
  question: questions_lib.Question,
  corpus: questions_lib.Corpus,
  kept: Collection[tuple[int, float]],
  rules: Rules,
) -> list[tuple[int, float]]:
  """Draws candidates: each has a random number, and the lowest are taken.

  The number is a hash of seed, question and passage. So it does not depend on
  the other candidates, on the order of questions or on a library's version.
  """
  prefix = f"{rules.seed} {questions_lib.key(question.text)}"

  def number(item):
    content = f"{prefix} {corpus.keys(item[0])[0]}".encode()
    return hashlib.blake2b(content, digest_size=8).digest()

  drawn = sorted(kept, key=number)[: rules.num_negatives]
  return [item for item in kept if item in drawn]
