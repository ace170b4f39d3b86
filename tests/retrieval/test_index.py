"""The index finds ids, with ties in the order of trec_eval."""

import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import pytrec_eval

from mlir_jax import sharding
from mlir_jax.retrieval import index, topk


@pytest.fixture(params=[1, 8])
def mesh(request):
  return sharding.make_mesh(devices=jax.devices()[: request.param])


@pytest.fixture
def small_blocks(monkeypatch):
  """Makes blocks and tiles so small that little data needs many."""
  monkeypatch.setattr(topk, "BLOCK", 4)
  monkeypatch.setattr(topk, "_CPU", topk.Tiling(1 << 10, 2, 4))
  topk.top_k.clear_cache()
  yield
  topk.top_k.clear_cache()


def test_finds_the_nearest_ids(mesh):
  embeddings = np.eye(5, dtype="f4")
  passages = index.Index(["b", "d", "a", "e", "c"], embeddings, mesh)
  scores, ids = passages.search(embeddings[[1, 4]], 2)
  assert [best[0] for best in ids] == ["d", "c"]
  np.testing.assert_array_equal(scores, [[1, 0], [1, 0]])


def test_ties_are_ranked_by_id_descending(mesh):
  """By code point, which is also the order of UTF-8 bytes."""
  ids = ["9", "10", "B", "a", "é", "z", "日", "\U0001f600", "\uffee"]
  passages = index.Index(ids, np.ones((9, 2), "f4"), mesh)
  _, found = passages.search(np.ones((1, 2), "f4"), 9)
  assert found == [sorted(ids, key=str.encode, reverse=True)]


def test_results_are_ranked_and_cut_as_trec_eval_ranks_them(mesh):
  """A passage has the same rank in our list and in trec_eval."""
  rng = np.random.default_rng(0)
  ids = [f"d{number}" for number in rng.permutation(300)]
  embeddings = rng.integers(-1, 2, (300, 3)).astype("f4")
  query = rng.integers(-1, 2, (1, 3)).astype("f4")
  scores, found = index.Index(ids, embeddings, mesh).search(query, 100)
  everything = dict(zip(ids, (embeddings @ query[0]).tolist(), strict=True))
  for rank, passage_id in enumerate(found[0], start=1):
    evaluator = pytrec_eval.RelevanceEvaluator(
      {"q": {passage_id: 1}}, {"recip_rank"}
    )
    measured = evaluator.evaluate({"q": everything})["q"]["recip_rank"]
    assert measured == pytest.approx(1 / rank)
  assert scores[0].tolist() == [everything[name] for name in found[0]]


def ranked(ids, scores, k):
  """Returns the ids of each query by float64 score and id, both descending."""
  by_id = sorted(range(len(ids)), key=ids.__getitem__, reverse=True)
  order = np.argsort(-scores[:, by_id], axis=1, kind="stable")[:, :k]
  return [[ids[by_id[place]] for place in best] for best in order]


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_passages_that_the_devices_cannot_hold_are_read_in_pieces(
  mesh, small_blocks, share
):
  """Of equal scores the highest id wins, whichever piece has it."""
  rng = np.random.default_rng(1)
  ids = [f"d{number}" for number in rng.permutation(1009)]
  embeddings = rng.integers(-1, 2, (1009, 3)).astype("f2")
  queries = rng.integers(-1, 2, (20, 3)).astype("f4")
  needed = 1009 * 3 * 4 // mesh.size  # Bytes on each device.
  passages = index.Index(ids, embeddings, mesh, memory=int(share * needed))
  assert 0 < passages.held < 1
  for k in (50, 2000):
    scores, found = passages.search(queries, k)
    assert found == ranked(ids, queries @ embeddings.T.astype("f8"), k)
    assert (np.diff(scores) <= 0).all()
  whole = index.Index(ids, embeddings, mesh, memory=1 << 30)
  assert whole.held == 1 and whole.search(queries, 50)[1] == ranked(
    ids, queries @ embeddings.T.astype("f8"), 50
  )


def test_too_little_memory_is_refused_and_says_how_much_is_needed(mesh):
  with pytest.raises(ValueError, match="give at least 4,096"):
    index.Index(["a"], np.ones((1, 2), "f4"), mesh, memory=1000)


def test_only_a_few_pieces_are_on_the_devices_at_a_time(
  mesh, small_blocks, monkeypatch
):
  unit = 4 * 4 * 3
  passages = index.Index(
    [f"{number:04}" for number in range(999)],
    np.ones((999, 3), "f4"),
    mesh,
    memory=8 * unit,
  )
  before, most = len(jax.live_arrays()), []
  searched = topk.search

  def search(*arguments, **settings):
    most.append(len(jax.live_arrays()) - before)
    return searched(*arguments, **settings)

  monkeypatch.setattr(topk, "search", search)
  passages.search(np.ones((1, 3), "f4"), 5)
  assert len(most) > 10 and max(most) <= 2


TWO_PROCESSES = """
import sys
import jax
import numpy as np
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from mlir_jax import sharding
from mlir_jax.retrieval import index
with np.load(sys.argv[3]) as given:
  ids, embeddings, queries = given["ids"], given["passages"], given["queries"]
found = [
  index.Index(ids.tolist(), embeddings, sharding.make_mesh(), memory=memory)
  .search(queries, 300)[1]
  for memory in (None, 4 * 512 * 3)
]
np.save(f"{sys.argv[3]}.{sys.argv[2]}.npy", np.array(found))
"""


@pytest.mark.slow
def test_two_processes_find_the_same_as_one(tmp_path):
  rng = np.random.default_rng(3)
  ids = [f"d{number:04}" for number in rng.permutation(4001)]
  embeddings = rng.integers(-1, 2, (4001, 3)).astype("f4")
  queries = rng.integers(-1, 2, (5, 3)).astype("f4")
  path = tmp_path / "given.npz"
  np.savez(path, ids=ids, passages=embeddings, queries=queries)
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  package = os.path.dirname(os.path.dirname(sharding.__file__))
  started = [
    subprocess.Popen(
      [sys.executable, "-c", TWO_PROCESSES, address, str(process), str(path)],
      env=os.environ | {"JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": package},
      stderr=subprocess.PIPE,
      text=True,
    )
    for process in range(2)
  ]
  try:
    for process in started:
      _, errors = process.communicate(timeout=300)
      assert process.returncode == 0, errors
  finally:
    for process in started:
      process.kill()
  expected = ranked(ids, queries @ embeddings.T.astype("f8"), 300)
  for process in range(2):
    for found in np.load(f"{path}.{process}.npy"):
      assert found.tolist() == expected


def test_a_k_above_the_number_of_passages_gives_all(mesh):
  passages = index.Index(["a", "b"], np.eye(2, dtype="f4"), mesh)
  scores, ids = passages.search(np.eye(2, dtype="f4"), 100)
  assert ids == [["a", "b"], ["b", "a"]] and scores.shape == (2, 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_not_finite_are_refused(value):
  mesh = sharding.make_mesh()
  broken = np.ones((3, 2), "f4")
  broken[1, 0] = value
  with pytest.raises(ValueError, match="passage 'b'"):
    index.Index(["a", "b", "c"], broken, mesh)
  passages = index.Index(["a", "b", "c"], np.ones((3, 2), "f4"), mesh)
  with pytest.raises(ValueError, match="query number 2"):
    passages.search(broken, 1)


def test_scores_that_overflow_are_refused():
  passages = index.Index(["a"], np.full((1, 2), 1e30), sharding.make_mesh())
  with pytest.raises(ValueError, match="overflow"):
    passages.search(np.full((1, 2), 1e30, "f4"), 1)


def test_ids_and_shapes_that_do_not_fit_are_refused():
  mesh = sharding.make_mesh()
  with pytest.raises(ValueError, match="'a' occurs twice"):
    index.Index(["a", "b", "a"], np.ones((3, 2), "f4"), mesh)
  with pytest.raises(ValueError, match="2 passage ids for 3 embeddings"):
    index.Index(["a", "b"], np.ones((3, 2), "f4"), mesh)
  passages = index.Index(["a"], np.ones((1, 2), "f4"), mesh)
  with pytest.raises(ValueError, match="same model"):
    passages.search(np.ones((1, 3), "f4"), 1)
