"""Intervals and p-values equal those of independent computations."""

import itertools

import numpy as np
import pytest
import scipy.stats

from mlir_jax.evals import significance

NAME = "test/de"


def differences(count, seed=0, shift=0.05):
  rng = np.random.default_rng(seed)
  return np.stack(
    [rng.normal(shift, 0.3, count), rng.integers(-2, 3, count) / 2], axis=1
  )


def test_a_bootstrap_is_that_of_scipy_but_for_chance():
  values = differences(200)
  drawn = significance.bootstrap(values, NAME)
  assert drawn.shape == (significance.RESAMPLES, 2)
  expected = scipy.stats.bootstrap(
    (values[:, 0],), np.mean, method="percentile", rng=1, n_resamples=10_000
  )
  low, high = significance.interval(drawn)[:, 0]
  error = 4 * expected.standard_error / np.sqrt(1_000)
  assert low == pytest.approx(expected.confidence_interval.low, abs=error)
  assert high == pytest.approx(expected.confidence_interval.high, abs=error)
  # The means of draws spread as theory says: s / sqrt(n).
  spread = values.std(axis=0) / np.sqrt(len(values))
  np.testing.assert_allclose(drawn.std(axis=0), spread, rtol=0.03)
  np.testing.assert_allclose(
    drawn.mean(axis=0), values.mean(axis=0), atol=4 * spread.max() / 100
  )


def test_draws_are_the_same_again_but_not_in_another_test():
  values = differences(30)
  drawn = significance.bootstrap(values, NAME, 500)
  np.testing.assert_array_equal(
    drawn, significance.bootstrap(values, NAME, 500)
  )
  assert (drawn != significance.bootstrap(values, "test/fr", 500)).any()
  # All measures of a query are drawn together.
  np.testing.assert_allclose(
    significance.bootstrap(values[:, :1], NAME, 500), drawn[:, :1], atol=1e-12
  )
  p = significance.randomisation([values], NAME, 999)
  assert p == pytest.approx(significance.randomisation([values], NAME, 999))


def test_with_few_queries_each_swap_is_counted_once():
  """A definition in a loop over all 2 ** 9 swaps."""
  values = differences(9, shift=0.15)
  means = np.array(
    [
      (np.array(signs)[:, None] * values).mean(axis=0)
      for signs in itertools.product((1, -1), repeat=9)
    ]
  )
  found = np.abs(values.mean(axis=0))
  expected = (np.abs(means) >= found - 1e-12).mean(axis=0)
  assert significance.randomisation([values], NAME) == pytest.approx(expected)
  assert 0 < expected.min() < 1


def test_random_swaps_are_those_of_scipy_but_for_chance():
  values = differences(60)
  expected = scipy.stats.permutation_test(
    (values[:, 0],),
    lambda x, axis: x.mean(axis=axis),
    permutation_type="samples",
    vectorized=True,
    n_resamples=20_000,
    rng=2,
  ).pvalue
  found = significance.randomisation([values], NAME)[0]
  assert 0.01 < found < 0.95
  assert found == pytest.approx(expected, abs=4 * 0.5 / np.sqrt(20_000))


def test_the_p_value_of_a_mean_over_languages_weighs_languages_alike():
  small, large = differences(4, 1), differences(8, 2)
  means = [
    np.array(
      [
        (np.array(signs)[:, None] * values).mean(axis=0)
        for signs in itertools.product((1, -1), repeat=len(values))
      ]
    )
    for values in (small, large)
  ]
  both = (means[0][:, None] + means[1][None]).reshape(-1, 2)
  found = np.abs(small.mean(axis=0) + large.mean(axis=0))
  expected = (np.abs(both) >= found - 1e-12).mean(axis=0)
  assert significance.randomisation([small, large], NAME) == pytest.approx(
    expected
  )


def test_equal_systems_have_p_1_and_a_certain_difference_is_never_0():
  assert significance.randomisation([np.zeros((50, 1))], NAME, 999) == [1]
  assert significance.randomisation([np.ones((50, 1))], NAME, 999) == [0.001]


def test_holm_corrects_as_its_definition_says():
  assert significance.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
    [0.03, 0.06, 0.06, 0.02]  # Holm 1979: 4 and 3 and 2 times; never falling.
  )
  assert significance.holm([0.6, 0.7]) == [1, 1]
  assert significance.holm([]) == []
  p_values = list(np.random.default_rng(0).uniform(0, 0.2, 12))
  for place, found in enumerate(significance.holm(p_values)):
    # The largest of all steps that come before it.
    expected = max(
      p * sum(other >= p for other in p_values)
      for p in p_values
      if p <= p_values[place]
    )
    assert found == pytest.approx(min(1, expected))


def test_intervals_are_of_each_test_and_measure():
  values = {
    f"q{n}": {"mrr@100": value, "r@100": 1.0}
    for n, value in enumerate([0.0, 0.5, 1.0, 1.0])
  }
  found = significance.intervals({NAME: values, "test/sw": {}})
  assert found.keys() == {f"{NAME}/mrr@100", f"{NAME}/r@100"}
  low, high = found[f"{NAME}/mrr@100"]
  assert 0 < low < 0.625 < high <= 1
  assert found[f"{NAME}/r@100"] == [1, 1]
