"""Describes what was mined: scores before and after, and what was dropped."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from mlir_jax.mining import questions as questions_lib
from mlir_jax.mining import rules

_BINS = 20
_BAR = 24  # Characters.
_STATISTICS = {
  "mean": np.mean,
  "std": np.std,
  "min": np.min,
  "25 %": lambda scores: np.quantile(scores, 0.25),
  "median": np.median,
  "75 %": lambda scores: np.quantile(scores, 0.75),
  "max": np.max,
}


@dataclasses.dataclass
class Statistics:
  """Scores and counts of a mining run.

  Attributes:
    positives: The scores of the questions and their positives.
    found: The scores of all candidates but the question's own positives.
    chosen: The scores of the mined negatives.
    differences: Score of the question's worst positive less that of a negative.
    dropped: Why candidates were dropped: reason to number.
    negatives: The number of mined negatives of each question.
  """

  positives: list[np.ndarray] = dataclasses.field(default_factory=list)
  found: list[np.ndarray] = dataclasses.field(default_factory=list)
  chosen: list[np.ndarray] = dataclasses.field(default_factory=list)
  differences: list[np.ndarray] = dataclasses.field(default_factory=list)
  dropped: Counter[str] = dataclasses.field(default_factory=Counter)
  negatives: list[int] = dataclasses.field(default_factory=list)

  def add(
    self,
    question: questions_lib.Question,
    rows: np.ndarray,
    scores: np.ndarray,
    positive_scores: np.ndarray,
    choice: rules.Choice,
  ) -> None:
    """Adds a question; the arguments are those of `rules.choose`."""
    candidates = (rows >= 0) & ~np.isin(rows, question.positives)
    chosen = np.array(choice.scores, np.float32)
    self.positives.append(positive_scores)
    self.found.append(scores[candidates])
    self.chosen.append(chosen)
    self.differences.append(positive_scores.min() - chosen)
    self.dropped += choice.dropped
    self.negatives.append(len(choice.rows))

  def columns(self) -> dict[str, np.ndarray]:
    """Returns the scores by the names of the table's columns."""
    return {
      "positives": np.concatenate(self.positives),
      "candidates": np.concatenate(self.found),
      "negatives": np.concatenate(self.chosen),
    }


def describe(statistics: Statistics, wanted: int) -> str:
  """Returns a table of the scores, a histogram, and what was dropped.

  Args:
    statistics: Of a mining run.
    wanted: `num_negatives`.
  """
  columns = statistics.columns()
  differences = np.concatenate(statistics.differences)
  lines = [
    "Scores before (positives, candidates) and after (negatives); a difference"
    " is that of a question's worst positive and a negative.",
    _table(columns | {"difference": differences}),
    _histogram(columns),
    f"Candidates: {len(columns['candidates']):,}, without the positives of"
    " their questions. Dropped:",
    *_dropped(statistics.dropped),
  ]
  counts = Counter(statistics.negatives)
  fewer = sum(number for count, number in counts.items() if count < wanted)
  total = len(statistics.negatives)
  lines.append(
    f"Mined {sum(statistics.negatives):,} negatives for {total:,} questions;"
    f" {fewer:,} ({fewer / total:.1%}) have fewer than {wanted}"
    f" ({counts[0]:,} have none)."
  )
  if fewer:
    lines.append(
      "For more negatives raise range_max, or loosen the rules that dropped"
      " most."
    )
  return "\n".join(lines)


def _dropped(dropped: Counter[str]) -> list[str]:
  found = [
    f"  {number:>12,}  {reason}"
    for reason, number in dropped.most_common()
    if reason != rules.IS_POSITIVE
  ]
  return found or ["  none"]


def _table(columns: dict[str, np.ndarray]) -> str:
  lines = ["".join(["        ", *(f"{name:>14}" for name in columns)])]
  lines.append(
    "".join(["count   ", *(f"{len(v):>14,}" for v in columns.values())])
  )
  for name, function in _STATISTICS.items():
    cells = (
      f"{function(values):>14.4f}" if len(values) else f"{'-':>14}"
      for values in columns.values()
    )
    lines.append("".join([f"{name:<8}", *cells]))
  return "\n".join(lines)


def bins(columns: Sequence[np.ndarray]) -> np.ndarray:
  """Returns the edges of the histograms' bins, float64 [21]."""
  scores = np.concatenate(columns)
  return np.histogram_bin_edges(scores.astype(np.float64), _BINS)


def _histogram(columns: dict[str, np.ndarray]) -> str:
  """Draws the columns side by side; the longest bar of each has one length."""
  edges = bins(list(columns.values()))
  counts = {
    name: np.histogram(values, edges)[0] for name, values in columns.items()
  }
  width = _BAR + 2
  lines = ["".join([f"{'score':<18}", *(f"{n:<{width}}" for n in counts)])]
  for i in range(_BINS):
    line = f"{edges[i]:>7.3g} – {edges[i + 1]:<7.3g} "
    for values in counts.values():
      length = -(-int(values[i]) * _BAR // max(int(values.max()), 1))
      line += f"{'█' * length:<{width}}"
    lines.append(line.rstrip())
  return "\n".join(lines)
