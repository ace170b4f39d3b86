"""The user's own evaluators: functions that `eval.extra` names."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from mlir_jax import extensions
from mlir_jax.evals import report

# embed(role, texts, titles=None) -> float32 [n, D]; returns metrics by name.
Evaluator = Callable[[Callable[..., np.ndarray]], Mapping[str, float]]


def find(targets: Mapping[str, str], prefix: str) -> dict[str, Evaluator]:
  """Imports the evaluators that this command line names.

  Args:
    targets: The evaluator's name to "MODULE:FUNCTION".
    prefix: What stands before the name in messages: "eval.extra.".

  Raises:
    ValueError: if a name is taken, or a target is missing or not a function.
  """
  found = {}
  for name, target in targets.items():
    field = f"{prefix}{name}"
    if not report.split_extra(f"{name}/metric"):
      raise ValueError(
        f"{field}: give another name, of the letters a to z, digits and"
        f" underscores; {', '.join(report.TAKEN)} have a meaning already."
      )
    found[name] = extensions.load(target, field)
    if not callable(found[name]):
      raise ValueError(f"{field} is {target!r}, which is not a function.")
  return found


def evaluate(
  embed: Callable[..., np.ndarray], evaluators: Mapping[str, Evaluator]
) -> Iterator[tuple[str, float]]:
  """Calls each evaluator.

  Args:
    embed: `embed(role, texts, titles=None)`, float32 [n, D] of n texts.
    evaluators: From `find`.

  Yields:
    Name and value, ("gap/rivers", 0.3).

  Raises:
    ValueError: if an evaluator does not return numbers by name.
  """
  for name, evaluator in evaluators.items():
    results = evaluator(embed)
    try:
      values = [(f"{name}/{key}", float(results[key])) for key in results]
    except (TypeError, ValueError) as error:
      raise _wrong(name, results) from error
    for result, value in values:
      if not report.split_extra(result):
        raise _wrong(name, results)
      yield result, value


def _wrong(name: str, results: object) -> ValueError:
  return ValueError(
    f"The evaluator {name} returned {repr(results)[:200]}; it must return"
    ' numbers by name, such as {"rivers": 0.3}.'
  )
