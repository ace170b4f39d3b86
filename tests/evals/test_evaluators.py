"""A user's evaluator is found by its name, and its result is checked."""

import re

import numpy as np
import pytest

from mlir_jax.evals import evaluators

MODULE = """
import numpy as np
whole = lambda embed: {"a": 1, "b": np.float32(0.5)}
scalar = lambda embed: 0.5
nothing = lambda embed: None
text = lambda embed: {"a": "high"}
array = lambda embed: {"a": np.zeros(3)}
unnamed = lambda embed: {"": 1}
"""


@pytest.fixture
def find(tmp_path, monkeypatch):
  (tmp_path / "evals_of_a_user.py").write_text(MODULE)
  monkeypatch.syspath_prepend(tmp_path)

  def found(name):
    return evaluators.find({"gap": f"evals_of_a_user:{name}"})["gap"]

  return found


def test_metrics_by_name_become_numbers(find):
  assert find("whole")(None) == {"a": 1.0, "b": np.float32(0.5)}


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("scalar", "returns float; it must return metrics by name"),
    ("nothing", "returns NoneType; it must return metrics by name"),
    ("text", "returns 'a': 'high'; it must be a number."),
    ("array", "returns 'a': array([0., 0., 0.]); it must be a number."),
    ("unnamed", "returns a metric without a name."),
  ],
)
def test_a_result_that_is_not_metrics_names_the_evaluator(name, message, find):
  named = f"eval.extra.gap (evals_of_a_user:{name}) {message}"
  with pytest.raises(ValueError, match=re.escape(named)):
    find(name)(None)


def test_names_of_our_results_are_not_those_of_evaluators():
  for name in ("test", "dev", "tatoeba", "Gap", "a/b", ""):
    with pytest.raises(ValueError, match=f"--evaluator={name}: give another"):
      evaluators.find({name: "evals_of_a_user:whole"}, "--evaluator=")
