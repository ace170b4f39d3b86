"""Candidates are ranked by their scores, in bounded memory."""

import tracemalloc

import numpy as np

from mlir_jax.mining import candidates
from mlir_jax.mining import questions as questions_lib


def test_candidates_of_two_finders_are_ranked_in_bounded_memory(monkeypatch):
  generator = np.random.default_rng(0)
  vectors = candidates.Vectors(
    *(generator.normal(size=(n, 64)).astype(np.float32) for n in (40, 900))
  )
  questions = [questions_lib.Question("", [i, i + 1]) for i in range(40)]

  def finder(share):
    def find(first, last):
      rows = np.full((last - first, 500), -1, np.int32)
      for i in range(first, last):
        drawn = np.random.default_rng([share, i]).permutation(900)[: 450 + i]
        rows[i - first, : len(drawn)] = drawn
      return candidates.Found(rows, np.zeros(0), np.zeros(0))

    return find

  find = candidates.judged(questions, [finder(0), finder(1)], vectors)
  monkeypatch.setattr(candidates, "_NUMBERS", 1 << 14)
  tracemalloc.start()
  found = find(8, 40)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  # The vectors of all candidates would take 8 MB.
  assert peak < 2e6
  all_scores = vectors.questions @ vectors.passages.T
  for i in range(8, 40):
    rows, scores = found.rows[i - 8], found.scores[i - 8]
    wanted = {row for each in (0, 1) for row in finder(each)(i, i + 1).rows[0]}
    count = len(wanted - {-1})
    assert set(rows[:count]) == wanted - {-1}
    assert (rows[count:] == -1).all() and (scores[count:] == -np.inf).all()
    np.testing.assert_allclose(
      scores[:count], all_scores[i, rows[:count]], atol=1e-4
    )
    assert (np.diff(scores[:count]) <= 0).all()
    np.testing.assert_allclose(
      found.positive_scores[2 * (i - 8) :][:2],
      all_scores[i, [i, i + 1]],
      atol=1e-4,
    )
