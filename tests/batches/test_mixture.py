"""Promises of mixtures: which source and language each row is from."""

import numpy as np
import pytest

from mlir_jax.batches import mixture, sampling
from mlir_jax.data import token_store

SIZES = {
  ("a", "en"): 900,
  ("b", "en"): 100,
  ("a", "fi"): 60,
  ("c", "fi"): 30,
  ("c", "sw"): 10,
}
GROUPS = tuple(
  token_store.Group(source, language, rows)
  for (source, language), rows in SIZES.items()
)
STARTS = np.cumsum([0, *SIZES.values()])
WEIGHTED = mixture.Mixture(2.0, (("a", 1.0), ("b", 3.0)))


def draw(mixed, size, count=1, first=0, seed=3, groups=GROUPS):
  """Rows and epochs of some steps, int64 [count, size] each."""
  drawn = mixture.draw("retrieval", groups, mixed, seed, size, first, count)
  return [each.reshape(count, size) for each in drawn]


def group_of(rows):
  return np.searchsorted(STARTS, rows, side="right") - 1


def names_of(rows, field):
  return np.array([getattr(group, field) for group in GROUPS])[group_of(rows)]


def test_without_weights_the_rows_are_one_pool():
  found = dict(
    zip(SIZES, mixture.shares(GROUPS, mixture.Mixture(2.0)), strict=True)
  )
  roots = {"en": 1000**0.5, "fi": 90**0.5, "sw": 10**0.5}
  total = sum(roots.values())
  for (source, language), share in found.items():
    of_language = sum(g.rows for g in GROUPS if g.language == language)
    expected = roots[language] / total * SIZES[source, language] / of_language
    assert share == pytest.approx(expected)


def test_without_weights_rows_are_drawn_as_from_one_source():
  one = tuple(
    token_store.Group("", language, rows)
    for language, rows in (("en", 1000), ("fi", 90), ("sw", 10))
  )
  for mixed in (mixture.Mixture(2.0), mixture.Mixture(1.0)):
    for found, expected in zip(
      draw(mixed, 32, 300), draw(mixed, 32, 300, groups=one), strict=True
    ):
      np.testing.assert_array_equal(found, expected)
  # One source is never "alternating".
  alone = mixture.Mixture(2.0, one_source=True)
  np.testing.assert_array_equal(
    draw(alone, 32, 300, groups=one)[0],
    draw(mixture.Mixture(2.0), 32, 300, groups=one)[0],
  )


def test_with_a_weight_sources_share_by_weight_and_languages_are_smoothed():
  found = dict(zip(SIZES, mixture.shares(GROUPS, WEIGHTED), strict=True))
  # The source c has the weight 1.
  assert found["b", "en"] == pytest.approx(3 / 5)
  assert found["a", "fi"] / found["a", "en"] == pytest.approx((60 / 900) ** 0.5)
  assert found["c", "sw"] / found["c", "fi"] == pytest.approx((1 / 3) ** 0.5)
  assert mixture.source_shares(GROUPS, WEIGHTED) == pytest.approx(
    {"a": 1 / 5, "b": 3 / 5, "c": 1 / 5}
  )


@pytest.mark.parametrize("one_source", [False, True])
@pytest.mark.parametrize("weights", [(), WEIGHTED.weights, (("a", 0.0),)])
def test_every_row_comes_once_in_each_epoch_of_its_source(weights, one_source):
  """Over 10,000 steps, whatever is mixed."""
  mixed = mixture.Mixture(2.0, weights, one_source)
  rows, epochs = (each.ravel() for each in draw(mixed, 32, 10_000))
  pooled = not one_source and not any(weight for _, weight in weights)
  # Without weights, the rows of a language are one pool of all sources.
  names = names_of(rows, "language") if pooled else group_of(rows)
  left_out = {source for source, weight in weights if not weight}
  drawn = 0
  for name in np.unique(names):
    inside = names == name
    size = sum(
      group.rows
      for i, group in enumerate(GROUPS)
      if (group.language if pooled else i) == name
      and group.source not in left_out
    )
    assert (np.diff(epochs[inside]) >= 0).all()  # Epochs do not overlap.
    whole = epochs[inside].max()
    assert whole > 5
    for epoch in (0, whole // 2, whole - 1):
      of_epoch = rows[inside & (epochs == epoch)]
      assert len(of_epoch) == len(np.unique(of_epoch)) == size
    drawn += size
  assert drawn == sum(
    group.rows for group in GROUPS if group.source not in left_out
  )


def test_each_batch_has_one_source_and_sources_alternate_by_quota():
  mixed = WEIGHTED._replace(one_source=True)
  rows, _ = draw(mixed, 16, 2 * sampling.BLOCK)
  of_steps = names_of(rows, "source")
  assert (of_steps == of_steps[:, :1]).all()
  assert len({*names_of(rows[of_steps[:, 0] == "c"], "language").ravel()}) == 2
  source = of_steps[:, 0]
  for block in np.split(source, 2):
    counts = {name: int((block == name).sum()) for name in "abc"}
    expected = {"a": 1 / 5, "b": 3 / 5, "c": 1 / 5}
    assert all(
      abs(counts[name] - share * sampling.BLOCK) < 1
      for name, share in expected.items()
    )
  for name in "abc":  # Spread evenly: no long wait for any of the three.
    steps = np.flatnonzero(source == name)
    share = len(steps) / len(source)
    assert np.diff(steps).max() <= 2 / share + 3
  # The streams alternate on their own; monolingual text is always mixed.
  steps = np.arange(200)
  orders = [
    mixture.sources_of_steps(stream, GROUPS, mixed, 3, steps)
    for stream in ("retrieval", "parallel", "monolingual")
  ]
  assert (orders[0] != orders[1]).any()
  assert not orders[2].any()


def test_one_source_has_the_shares_of_the_pool_without_weights():
  mixed = mixture.Mixture(2.0, one_source=True)
  rows, _ = draw(mixed, 8, sampling.BLOCK)
  counts = np.bincount(group_of(rows).ravel(), minlength=len(GROUPS))
  expected = mixture.shares(GROUPS, mixture.Mixture(2.0)) * rows.size
  assert np.abs(counts - expected).max() < 0.01 * rows.size


@pytest.mark.parametrize("one_source", [False, True])
def test_a_late_step_is_computed_cold_and_alone(one_source, monkeypatch):
  mixed = WEIGHTED._replace(one_source=one_source)
  first = 10**6
  together, epochs = draw(mixed, 24, 300, first)
  permute, permuted = sampling.permute, []

  def counting(index, size, key):
    found = permute(index, size, key)
    permuted.append(found.size)
    return found

  monkeypatch.setattr(sampling, "permute", counting)

  def cold(step):
    caches = (
      sampling._interleave,
      sampling._spread_evenly,
      mixture._pools,
      mixture._alternating,
    )
    for cached in caches:
      cached.cache_clear()
    permuted.clear()
    found = draw(mixed, 24, 1, step)
    return found, sum(permuted), [each.cache_info().misses for each in caches]

  for step in (0, 137, 299):
    (rows, of_step), _, _ = cold(first + step)
    np.testing.assert_array_equal(rows[0], together[step])
    np.testing.assert_array_equal(of_step[0], epochs[step])
  # Work does not grow with the step: a late one reads one or two blocks, too.
  for step in (0, first, first + 299):
    _, numbers, misses = cold(step)
    assert numbers <= 24 + 2 * sampling.BLOCK
    assert max(misses) <= 2


def test_what_cannot_be_drawn_is_refused():
  none = mixture.Mixture(1.0, tuple((name, 0.0) for name in "abc"))
  with pytest.raises(ValueError, match=r"batch\.parallel is 4.*the weight 0"):
    mixture.check("parallel", GROUPS, none, 4, "the store")
  alternating = mixture.Mixture(1.0, one_source=True)
  mixture.check("retrieval", GROUPS, alternating, 40, "the store")
  with pytest.raises(ValueError, match="'c' has only 40 rows in the store"):
    mixture.check("retrieval", GROUPS, alternating, 41, "the store")
  without = alternating._replace(weights=(("c", 0.0),))
  mixture.check("retrieval", GROUPS, without, 41, "the store")
  mixture.check("monolingual", GROUPS, alternating, 5000, "the store")
