"""The index finds ids, with ties in the order of trec_eval."""

import jax
import numpy as np
import pytest
import pytrec_eval

from mlir_jax import sharding
from mlir_jax.retrieval import index


@pytest.fixture(params=[1, 8])
def mesh(request):
  return sharding.make_mesh(devices=jax.devices()[: request.param])


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
