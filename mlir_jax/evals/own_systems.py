"""The user's systems: functions that make TREC runs, whose results we check."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from mlir_jax import extensions
from mlir_jax.data import records
from mlir_jax.evals import systems
from mlir_jax.retrieval import runs


def find(
  targets: Mapping[str, str], prefix: str = "--system="
) -> dict[str, systems.System]:
  """Imports the systems of the user, which this command line names.

  Args:
    targets: Name to "MODULE:FUNCTION". The function is a `System`.
    prefix: The text before a name in messages.

  Returns:
    Name to system. A result that is not a run is an error.

  Raises:
    ValueError: if a system cannot be imported or is not a function.
  """
  found: dict[str, systems.System] = {}
  for name, target in targets.items():
    field = f"{prefix}{name}"
    function = extensions.load(target, field)
    if not callable(function):
      raise ValueError(f"{field} is {target!r}, which is not a function.")
    found[name] = _Checked(f"{field} ({target})", function)
  return found


class _Checked:
  """A function of the user whose runs are checked."""

  def __init__(self, where: str, function: Callable[..., Any]):
    self._where = where
    self._function = function

  def __call__(self, test: records.RetrievalTest, k: int) -> runs.Run | None:
    run = self._function(test, k)
    if run is None:
      return None
    name = f"{test.split}/{test.language}"
    known = {passage.passage_id for passage in test.passages}
    if not isinstance(run, Mapping):
      self._refuse(name, f"{type(run).__name__}, not query id to passages")
    for query_id, scores in run.items():
      if query_id not in test.queries:
        self._refuse(
          name, f"the query {query_id!r}, which the test does not have"
        )
      if not isinstance(scores, Mapping):
        self._refuse(
          name, f"{scores!r:.100} for {query_id!r}, not passage id to score"
        )
      for passage_id, score in scores.items():
        if passage_id not in known:
          self._refuse(
            name, f"the passage {passage_id!r}, which the corpus does not have"
          )
        if not _is_finite(score):
          self._refuse(
            name, f"the score {score!r:.100} of {passage_id!r}, not a number"
          )
    return {
      query_id: {
        passage_id: float(score) for passage_id, score in scores.items()
      }
      for query_id, scores in run.items()
    }

  def _refuse(self, test: str, what: str) -> None:
    raise ValueError(
      f"{self._where} returns for {test} {what}; it must return"
      " {query_id: {passage_id: score}}."
    )


def _is_finite(score: Any) -> bool:
  try:
    return math.isfinite(score)
  except TypeError:
    return False
