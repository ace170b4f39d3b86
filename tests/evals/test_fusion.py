"""Fusions are as their papers define them."""

import pytest

from mlir_jax.evals import fusion

FIRST = {"q": {"a": 9.0, "b": 7.0, "c": 5.0}, "only": {"a": 1.0}}
SECOND = {"q": {"c": 0.5, "d": 0.5}, "other": {"b": 3.0, "c": 2.0}}


def test_reciprocal_ranks_are_summed_in_the_order_of_trec_eval():
  found = fusion.reciprocal_ranks([FIRST, SECOND])
  assert found == {
    "q": pytest.approx(
      # Of the second run's equal scores, d comes before c.
      {"a": 1 / 61, "b": 1 / 62, "c": 1 / 63 + 1 / 62, "d": 1 / 61}
    ),
    "only": {"a": 1 / 61},
    "other": {"b": 1 / 61, "c": 1 / 62},
  }
  assert fusion.reciprocal_ranks([SECOND, FIRST])["q"] == found["q"]


def test_scores_are_scaled_for_each_query_and_weighed():
  first, second = fusion.scale(FIRST), fusion.scale(SECOND)
  assert first["q"] == {"a": 1, "b": 0.5, "c": 0}
  assert first["only"] == {"a": 1} and second["q"] == {"c": 1, "d": 1}
  found = fusion.weighted(first, second, 0.75)
  assert found["q"] == {"a": 0.75, "b": 0.375, "c": 0.25, "d": 0.25}
  assert found["only"] == {"a": 0.75}
  assert found["other"] == {"b": 0.25, "c": 0}
  assert fusion.scale({"q": {}}) == {"q": {}}


def test_the_best_weight_wins_and_of_equal_ones_the_middle():
  assert fusion.tune(lambda weight: -abs(weight - 0.3)) == 0.3
  assert fusion.tune(lambda weight: 1.0) == 0.5
  assert fusion.tune(lambda weight: float(weight > 0.5)) == 0.6
