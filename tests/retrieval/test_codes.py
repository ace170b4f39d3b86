"""A search of 8-bit codes finds exactly what a search of vectors finds."""

import jax
import numpy as np
import pytest

from mlir_jax import sharding
from mlir_jax.retrieval import codes, index, topk


@pytest.fixture(params=[1, 8])
def mesh(request):
  return sharding.make_mesh(devices=jax.devices()[: request.param])


@pytest.fixture
def small_pieces(monkeypatch):
  """Makes blocks and tiles so small that little data needs many."""
  monkeypatch.setattr(topk, "BLOCK", 4)
  monkeypatch.setattr(topk, "_CPU", topk.Tiling(1 << 10, 2, 4))
  monkeypatch.setattr(codes, "_ROWS", 7)
  monkeypatch.setattr(index, "_MORE", 3)
  topk.top_k.clear_cache()
  yield
  topk.top_k.clear_cache()


def unit(rng, rows, width, offset=0.0):
  """Returns vectors of length 1 around a common direction."""
  vectors = rng.standard_normal((rows, width)) + offset
  return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("f4")


def ranked(ids, scores, k):
  """Returns the ids of each query by float64 score and id, both descending."""
  by_id = sorted(range(len(ids)), key=ids.__getitem__, reverse=True)
  order = np.argsort(-scores[:, by_id], axis=1, kind="stable")[:, :k]
  return [[ids[by_id[place]] for place in best] for best in order]


@pytest.mark.parametrize("fast_int8", [False, True])
@pytest.mark.parametrize("queries", [1, 9])
def test_no_score_is_off_by_more_than_the_bound(mesh, queries, fast_int8):
  """With outliers, with zeros, and with vectors that are all alike."""
  rng = np.random.default_rng(queries)
  passages = unit(rng, 301, 96, offset=1.5)
  passages[17] = 0
  passages[18] *= 1e-30
  passages[19, 5] = 40
  asked = np.concatenate([passages[200 : 200 + queries - 1], [passages[19]]])
  center = codes.center_of(passages)
  placed = codes.place(passages, mesh, np.arange(301), center)
  coded = codes.encode_queries(asked, center)
  found, places = (
    topk.search(
      coded.codes,
      placed.passages,
      301,
      mesh=mesh,
      num_valid=301,
    )
    if not fast_int8
    else jax.device_get(
      topk.top_k(
        coded.codes,
        placed.passages,
        np.full(queries, -np.inf, "f4"),
        k=301,
        mesh=mesh,
        num_valid=301,
        tiling=topk.Tiling(1 << 20, 16, 16, has_int8=True),
      )
    )
  )
  exact = asked.astype("f8") @ passages.T.astype("f8")
  for query in range(queries):
    near = coded.scales[query] * found[query].astype("f8")
    near += coded.offsets[query]
    off = np.abs(near - exact[query, places[query]])
    bound = coded.bounds(placed)[query]
    assert off.max() <= bound
    # It is not so wide that it proves nothing.
    assert bound < 0.05 * np.linalg.norm(asked[query]) * 40


@pytest.mark.parametrize("offset", [0.0, 2.0])
@pytest.mark.parametrize("k", [10, 1003])
def test_results_are_those_of_float64(mesh, k, offset):
  rng = np.random.default_rng(k)
  ids = [f"d{number:04}" for number in rng.permutation(1003)]
  passages = unit(rng, 1003, 64, offset)
  passages[rng.integers(0, 1003, 60)] = passages[5]  # Equal scores.
  queries = unit(rng, 5, 64, offset)
  found = index.Index(ids, passages, mesh, precision="int8")
  scores, best = found.search(queries, k)
  exact = queries.astype("f8") @ passages.T.astype("f8")
  assert best == ranked(ids, exact.astype("f4"), k)
  np.testing.assert_array_equal(scores, -np.sort(-exact.astype("f4"))[:, :k])
  assert found.unproved == 0


def test_passages_too_close_for_codes_are_searched_in_float32(small_pieces):
  """Along a query, they differ by less than the bound."""
  mesh = sharding.make_mesh()
  rng = np.random.default_rng(1)
  passages = unit(rng, 903, 32)
  passages[:, 0] = 1 + 1e-6 * rng.permutation(903)
  queries = np.eye(3, 32, dtype="f4")
  ids = [f"d{number:04}" for number in range(903)]
  found = index.Index(ids, passages, mesh, precision="int8")
  _, best = found.search(queries, 4)
  assert best == ranked(ids, queries @ passages.T.astype("f8"), 4)
  assert found.unproved == 1


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_codes_that_the_devices_cannot_hold_are_made_piece_by_piece(
  mesh, small_pieces, share
):
  rng = np.random.default_rng(2)
  ids = [f"d{number:04}" for number in rng.permutation(4001)]
  passages = rng.integers(-2, 3, (4001, 6)).astype("f4")
  passages[:40, 2] *= 50
  queries = rng.integers(-2, 3, (6, 6)).astype("f4")
  queries[3] = 0
  codes_bytes = 4001 // mesh.size * codes.row_bytes(6)
  memory = int(share * codes_bytes / 0.75)
  found = index.Index(ids, passages, mesh, memory, "int8")
  assert 0 < found.held < 1
  _, best = found.search(queries, 60)
  assert best == ranked(ids, queries @ passages.T.astype("f8"), 60)
  with pytest.raises(ValueError, match="are not enough; give at least"):
    index.Index(ids, passages, mesh, 300, "int8")


def test_a_quarter_of_the_memory_is_enough():
  passages = unit(np.random.default_rng(3), 2048, 384)
  mesh = sharding.make_mesh()
  placed = codes.place(
    passages, mesh, np.arange(2048), codes.center_of(passages)
  ).passages
  assert sum(each.nbytes for each in placed) < 0.26 * passages.nbytes


def test_broken_vectors_and_precisions_are_refused():
  mesh = sharding.make_mesh()
  large = np.full((1, 2), 1e30, "f4")
  with pytest.raises(ValueError, match="overflow"):
    index.Index(["a"], large, mesh, precision="int8").search(large, 1)
  broken = np.array([[1.0, 2.0], [np.nan, 0.0]], "f4")
  with pytest.raises(ValueError, match="passage 'b' is not finite"):
    index.Index(["a", "b"], broken, mesh, precision="int8")
  with pytest.raises(ValueError, match="'int4'; give one of float32, int8"):
    index.Index(["a"], large, mesh, precision="int4")
