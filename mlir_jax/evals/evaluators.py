"""The user's evaluators: functions that the config names in eval.extra."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mlir_jax import extensions
from mlir_jax.evals import report

# embed(role, texts, titles=None) -> float32 [n, D]; returns metrics by name.
Evaluator = Callable[[Callable[..., np.ndarray]], Mapping[str, float]]


def find(
  extra: Mapping[str, Any], prefix: str = "eval.extra."
) -> dict[str, Evaluator]:
  """Imports the evaluators of the user, which this command line names.

  Args:
    extra: Name to target, "MODULE:FUNCTION".
    prefix: The text before a name in messages.

  Returns:
    Name to evaluator. A result that is not metrics by name is an error.

  Raises:
    ValueError: if a name is taken, or an evaluator cannot be imported or is not
      a function.
  """
  found = {}
  for name, target in extra.items():
    field = f"{prefix}{name}"
    if not report.may_name(name):
      raise ValueError(
        f"{field}: give another name, of the letters a to z, digits and"
        f" underscores; {', '.join(report.TAKEN)} have a meaning already."
      )
    function = extensions.load(target, field)
    if not callable(function):
      raise ValueError(f"{field} is {target!r}, which is not a function.")
    found[name] = functools.partial(_evaluate, f"{field} ({target})", function)
  return found


def _evaluate(
  where: str, function: Callable, embed: Callable[..., np.ndarray]
) -> dict[str, float]:
  """Calls an evaluator and checks its result.

  Args:
    where: The evaluator's field and target, for the error.
    function: The evaluator.
    embed: See `Evaluator`.

  Raises:
    ValueError: if the result is not a mapping of names to numbers.
  """
  metrics = function(embed)
  if not isinstance(metrics, Mapping):
    raise ValueError(
      f"{where} returns {type(metrics).__name__}; it must return metrics by"
      " name, such as {'accuracy': 0.5}."
    )
  checked = {}
  for name, value in metrics.items():
    try:
      checked[str(name)] = float(value)
    except (TypeError, ValueError):
      raise ValueError(
        f"{where} returns {name!r}: {value!r:.100}; it must be a number."
      ) from None
  if "" in checked:
    raise ValueError(f"{where} returns a metric without a name.")
  return checked
