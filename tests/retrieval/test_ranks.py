"""Ranks are exact, with the ties of trec_eval, on any number of devices."""

import jax
import numpy as np
import pytest

from mlir_jax import sharding
from mlir_jax.retrieval import ranks, topk

MESHES = {
  "1 device": lambda: sharding.make_mesh(devices=jax.devices()[:1]),
  "4 x 2 devices": lambda: sharding.make_mesh(4, 2),
}


@pytest.fixture(params=MESHES)
def mesh(request):
  return MESHES[request.param]()


@pytest.fixture
def small_pieces(monkeypatch):
  monkeypatch.setattr(topk, "BLOCK", 4)
  monkeypatch.setattr(topk, "CHUNK", 48)
  monkeypatch.setattr(topk, "QUERY_BATCH", 8)
  ranks._ranks.clear_cache()
  yield
  ranks._ranks.clear_cache()


def brute_force(queries, wanted, ids, passages):
  """Sorts all passages by (score, id), both descending."""
  scores = queries.astype("f8") @ passages.T.astype("f8")
  found = []
  for row, names in zip(scores, wanted, strict=True):
    order = sorted(zip(row, ids, strict=True), reverse=True)
    place = {name: rank for rank, (_, name) in enumerate(order, start=1)}
    found.append([place.get(name, 0) for name in names])
  return found


def test_equals_brute_force_with_ties_in_chunks_and_shards(mesh, small_pieces):
  rng = np.random.default_rng(0)
  # Small integers: scores are exact, and most are equal to others.
  queries = rng.integers(-1, 2, (21, 5)).astype("f4")
  passages = rng.integers(-1, 2, (1009, 5)).astype("f4")
  ids = [f"p{n}" for n in rng.permutation(1009)]
  wanted = [list(rng.choice(ids, n % 5, replace=False)) for n in range(21)]
  wanted[3].append("not there")
  found = ranks.find(queries, wanted, ids, passages, mesh)
  expected = brute_force(queries, wanted, ids, passages)
  assert [row.tolist() for row in found] == expected
  assert found[3][-1] == 0 and max(max(row, default=0) for row in expected) > 99


def test_real_scores_have_the_ranks_of_the_whole_order(mesh):
  rng = np.random.default_rng(1)
  queries = rng.standard_normal((5, 32)).astype("f4")
  passages = rng.standard_normal((700, 32)).astype("f4")
  ids = [f"p{n}" for n in range(700)]
  found = ranks.find(queries, [ids] * 5, ids, passages, mesh)
  expected = brute_force(queries, [ids] * 5, ids, passages)
  assert [row.tolist() for row in found] == expected


def test_input_that_cannot_be_ranked_is_refused(mesh):
  one = np.ones((1, 2), "f4")
  two = np.ones((2, 2), "f4")
  with pytest.raises(ValueError, match="occurs twice"):
    ranks.find(one, [["a"]], ["a", "a"], two, mesh)
  with pytest.raises(ValueError, match="queries are not finite"):
    ranks.find(one * np.nan, [["a"]], ["a", "b"], two, mesh)
  with pytest.raises(ValueError, match="1 embeddings for 2 passages"):
    ranks.find(one, [["a"]], ["a", "b"], one, mesh)
  assert ranks.find(one, [[]], ["a", "b"], two, mesh)[0].tolist() == []
