"""Top-k is exact, including ties, on any number of devices."""

import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from mlir_jax import sharding
from mlir_jax.retrieval import topk

MESHES = {
  "1 device": lambda: sharding.make_mesh(devices=jax.devices()[:1]),
  "8 devices": sharding.make_mesh,
  "4 x 2 devices": lambda: sharding.make_mesh(4, 2),
}


@pytest.fixture(params=MESHES)
def mesh(request):
  return MESHES[request.param]()


@pytest.fixture
def small_pieces(monkeypatch):
  """Makes blocks, chunks and batches so small that little data needs many."""
  monkeypatch.setattr(topk, "BLOCK", 4)
  monkeypatch.setattr(topk, "CHUNK", 48)
  monkeypatch.setattr(topk, "QUERY_BATCH", 8)
  monkeypatch.setattr(topk, "_CPU", topk.Tiling(8 * 48, 2, 2))
  topk.top_k.clear_cache()
  yield
  topk.top_k.clear_cache()


def small_integers(rng, rows, width=4, low=-1, high=1):
  """Returns embeddings whose float32 scores are exact and often equal."""
  return rng.integers(low, high, (rows, width), endpoint=True).astype("f4")


def brute_force(queries, passages, k):
  """Returns rows sorted by score, descending, then by their number."""
  scores = queries.astype("f8") @ passages.T.astype("f8")
  order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
  return np.take_along_axis(scores, order, axis=1), order


def search(queries, passages, k, mesh):
  return topk.search(
    queries,
    topk.place(passages, mesh),
    k,
    mesh=mesh,
    num_valid=len(passages),
  )


@pytest.mark.parametrize("k", [1, 100, 1003])
def test_equals_brute_force_with_ties(mesh, k):
  rng = np.random.default_rng(0)
  queries, passages = small_integers(rng, 9), small_integers(rng, 1003)
  scores, indices = search(queries, passages, k, mesh)
  expected_scores, expected = brute_force(queries, passages, k)
  np.testing.assert_array_equal(indices, expected)
  np.testing.assert_array_equal(scores, expected_scores)
  assert scores.dtype == np.float32 and indices.dtype == np.int32


@pytest.mark.parametrize("k", [5, 13, 1003])
def test_equals_brute_force_in_many_blocks_and_chunks(small_pieces, mesh, k):
  rng = np.random.default_rng(k)
  queries, passages = small_integers(rng, 19), small_integers(rng, 1003)
  scores, indices = search(queries, passages, k, mesh)
  expected_scores, expected = brute_force(queries, passages, k)
  np.testing.assert_array_equal(indices, expected)
  np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("ascending", [False, True])
def test_sorted_passages_are_found(small_pieces, mesh, ascending):
  """Each row of the one is a hit, no row of the other after the first tile."""
  passages = np.arange(1003, dtype="f4")[:, None] * (1 if ascending else -1)
  _, indices = search(np.ones((2, 1), "f4"), passages, 11, mesh)
  expected = 1002 - np.arange(11) if ascending else np.arange(11)
  np.testing.assert_array_equal(indices, [expected] * 2)


def test_hits_of_one_block_are_more_than_the_others_have(small_pieces):
  """Hits are close together: more of them than a portion, in few blocks."""
  rng = np.random.default_rng(5)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  passages = rng.permutation(1003).astype("f4")
  passages[500:540] += 1000
  queries = np.array([[1.0], [-1.0]], "f4")
  _, indices = search(queries, passages[:, None], 24, mesh)
  expected = np.argsort(-queries * passages, axis=1, kind="stable")[:, :24]
  np.testing.assert_array_equal(indices, expected)


def test_scores_1e_4_apart_are_ranked_as_in_float64(mesh):
  """The number of passages is prime, and copies are on other devices."""
  rng = np.random.default_rng(6)
  queries = rng.standard_normal((7, 64))
  queries /= np.linalg.norm(queries, axis=1, keepdims=True)
  # Along each query, the passages differ by 1e-4 and nothing else matters.
  which = rng.permutation(np.arange(1009) % 503)
  for query in queries.astype("f4"):
    passages = (query[None] * (1 - 1e-4 * which[:, None])).astype("f4")
    _, indices = search(query[None], passages, 1009, mesh)
    expected = np.lexsort((np.arange(1009), which))
    np.testing.assert_array_equal(indices[0], expected)


def test_passages_up_to_the_floor_may_be_missing_and_no_others(
  small_pieces, mesh
):
  rng = np.random.default_rng(7)
  queries, passages = small_integers(rng, 5), small_integers(rng, 1003)
  everything = search(queries, passages, 90, mesh)
  floor = everything[0][:, 40]
  scores, indices = topk.search(
    queries,
    topk.place(passages, mesh),
    90,
    mesh=mesh,
    num_valid=1003,
    floor=floor,
  )
  above = everything[0] > floor[:, None]
  np.testing.assert_array_equal(indices[above], everything[1][above])
  np.testing.assert_array_equal(scores[above], everything[0][above])


def test_all_passages_equal_gives_the_first_k(small_pieces, mesh):
  _, indices = search(np.ones((3, 4), "f4"), np.ones((900, 4), "f4"), 77, mesh)
  np.testing.assert_array_equal(indices, np.tile(np.arange(77), (3, 1)))


def test_the_cut_falls_within_a_tie_across_blocks_and_devices(
  small_pieces, mesh
):
  """Two rows on each device are best; then all others tie, in order."""
  passages = np.zeros((8 * 64, 1), "f4")
  best = np.sort(np.r_[np.arange(8) * 64 + 63, np.arange(8) * 64 + 5])
  passages[best] = 1
  _, indices = search(np.ones((1, 1), "f4"), passages, 30, mesh)
  others = np.setdiff1d(np.arange(len(passages)), best)
  np.testing.assert_array_equal(indices[0], np.r_[best, others[:14]])


def test_a_tie_goes_to_the_lower_row_though_its_block_is_worse(
  small_pieces, mesh
):
  passages = np.zeros((48, 1), "f4")
  passages[:8] = 1
  passages[4] = 2  # The second block of four ranks first.
  _, indices = search(np.ones((1, 1), "f4"), passages, 3, mesh)
  assert indices.tolist() == [[4, 0, 1]]


def test_copies_of_a_passage_tie_in_any_row(mesh):
  """With real embeddings, a score must not depend on the row's number."""
  rng = np.random.default_rng(2)
  originals = rng.standard_normal((40, 96)).astype("f4")
  which = rng.integers(40, size=3000)
  queries = rng.standard_normal((33, 96)).astype("f4")
  _, indices = search(queries, originals[which], 200, mesh)
  scores = queries @ originals.T
  for found, of_original in zip(indices, scores, strict=True):
    expected = np.lexsort((np.arange(len(which)), -of_original[which]))[:200]
    np.testing.assert_array_equal(found, expected)


def test_zero_and_minus_zero_are_equal(mesh):
  passages = np.array([-0.0, 0.0, -0.0, 0.0, 0.0, -0.0], "f4")[:, None]
  queries = np.array([[1.0], [-1.0]], "f4")
  assert np.signbit(queries * passages[:, 0]).any()
  scores, indices = search(queries, passages, 6, mesh)
  np.testing.assert_array_equal(indices, [range(6)] * 2)
  assert not np.signbit(scores).any()


def test_rows_may_be_placed_in_another_order(mesh, monkeypatch):
  monkeypatch.setattr(topk, "CHUNK", 32)  # Rows that are copied at a time.
  rng = np.random.default_rng(0)
  passages, order = rng.normal(size=(301, 3)), rng.permutation(301)
  np.testing.assert_array_equal(
    topk.place(passages, mesh, order), topk.place(passages[order], mesh)
  )


def test_padding_is_never_returned(mesh):
  passages = np.full((5, 3), -1.0, "f4")  # The padding's score of 0 is higher.
  scores, indices = search(np.ones((2, 3), "f4"), passages, 8, mesh)
  np.testing.assert_array_equal(indices, [[0, 1, 2, 3, 4, -1, -1, -1]] * 2)
  np.testing.assert_array_equal(scores, [[-3.0] * 5 + [-np.inf] * 3] * 2)


def test_device_counts_agree_on_real_numbers():
  rng = np.random.default_rng(3)
  queries = rng.standard_normal((20, 64)).astype("f4")
  passages = rng.standard_normal((2000, 64)).astype("f4")
  results = [search(queries, passages, 50, make()) for make in MESHES.values()]
  for scores, indices in results[1:]:
    np.testing.assert_array_equal(indices, results[0][1])
    np.testing.assert_allclose(scores, results[0][0], rtol=1e-6)


def test_no_queries_give_no_rows(mesh):
  scores, indices = search(
    np.zeros((0, 3), "f4"), np.ones((5, 3), "f4"), 2, mesh
  )
  assert scores.shape == indices.shape == (0, 2)


def test_all_batches_are_one_compilation(small_pieces):
  rng = np.random.default_rng(4)
  mesh = sharding.make_mesh()
  search(small_integers(rng, 21), small_integers(rng, 90), 3, mesh)
  assert topk.top_k._cache_size() == 1


def test_passages_stay_on_their_device_and_dots_are_float32():
  mesh = sharding.make_mesh()
  passages = topk.place(np.ones((3000, 16), "f4"), mesh)
  lowered = topk.top_k.lower(
    np.ones((5, 16), "f4"),
    passages,
    np.zeros(5, "f4"),
    k=7,
    mesh=mesh,
    num_valid=3000,
    tiling=topk.tiling_of(mesh),
  )
  dots = re.findall(r"dot_general.*", lowered.as_text())
  assert dots and all("HIGHEST, HIGHEST" in dot for dot in dots)
  text = lowered.compile().as_text()
  # Only the k best scores and rows of each device are gathered.
  gathered = re.findall(r"= (.*) all-gather(?:-start)?\(", text)
  assert gathered and all("5,56" in shape for shape in gathered)
  assert not re.search(r"all-(reduce|to-all)|collective-permute", text)


def test_unusable_arguments_are_refused():
  mesh = sharding.make_mesh()
  queries = np.ones((1, 3), "f4")
  with pytest.raises(ValueError, match="k is 0"):
    search(queries, np.ones((5, 3), "f4"), 0, mesh)
  with pytest.raises(ValueError, match=r"pad them with place\(\)"):
    topk.top_k(
      queries,
      np.ones((5, 3), "f4"),
      np.zeros(1, "f4"),
      k=1,
      mesh=mesh,
      num_valid=5,
      tiling=topk.tiling_of(mesh),
    )
  with pytest.raises(ValueError, match="non-empty"):
    topk.place(np.zeros((0, 3), "f4"), mesh)


# It prints the bytes of the temporaries of a search over 4 M passages.
COMPILES = """
import jax, numpy as np
from mlir_jax import config, sharding
from mlir_jax.planner import lowering
from mlir_jax.retrieval import topk

_, _, mesh = lowering.make_mesh(config.default(), "v5e:2x2")
rows, width, queries = 1 << 22, 384, 1024

def shaped(shape, placed):
  return jax.ShapeDtypeStruct(shape, np.float32, sharding=placed)

compiled = topk.top_k.lower(
  shaped((queries, width), sharding.replicated(mesh)),
  shaped((rows, width), sharding.over_data(mesh)),
  shaped((queries,), sharding.replicated(mesh)),
  k=100,
  mesh=mesh,
  num_valid=rows - 5,
  tiling=topk.tiling_of(mesh),
).compile()
print("bytes", compiled.memory_analysis().temp_size_in_bytes)
"""


@pytest.mark.slow
def test_it_compiles_for_tpus_and_holds_a_tile_of_scores():
  """Without TPUs: for those of a slice that is not there."""
  pytest.importorskip("libtpu")
  done = subprocess.run(
    [sys.executable, "-c", COMPILES],
    capture_output=True,
    text=True,
    # libtpu ends a process whose XLA_FLAGS are those of a CPU.
    env={**os.environ, "XLA_FLAGS": ""},
    check=False,
  )
  assert done.returncode == 0, done.stderr
  # A few arrays of a tile's scores; all scores would be 4 GiB on each chip.
  assert int(done.stdout.split("bytes ")[1]) < 1 << 30
