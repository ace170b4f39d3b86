"""BM25 scores, and the terms that it counts in many scripts."""

import collections
import math

import numpy as np
import pytest

from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.retrieval import bm25, terms


def lucene(question, passages):
  """BM25 as Lucene defines it, in float64."""
  split = [terms.words(passage) for passage in passages]
  mean = sum(map(len, split)) / len(split)
  scores = []
  for passage in split:
    counts = collections.Counter(passage)
    score = 0.0
    for term in terms.words(question):
      having = sum(term in other for other in split)
      weight = math.log(1 + (len(split) - having + 0.5) / (having + 0.5))
      scale = 1.5 * (0.25 + 0.75 * len(passage) / mean)
      score += weight * counts[term] / (counts[term] + scale)
    scores.append(score)
  return scores


def test_scores_are_those_of_lucene():
  passages = ["a river and a river", "the stone", "", "river stone ÉTÉ", "!"]
  index = bm25.Bm25(passages, terms.words)
  for question in ("the river river", "e\u0301te\u0301 stone", "?", "unknown"):
    np.testing.assert_allclose(
      index.scores(question), lucene(question, passages), rtol=1e-5
    )
  with pytest.raises(ValueError, match="no letter and no digit"):
    bm25.Bm25(["", "!"], terms.words)


def test_the_lower_row_wins_a_tie_at_the_cut_and_0_is_not_found():
  scores = np.array([0, 2, 1, 2, 1, 1, 3, 0], np.float32)
  assert bm25.best(scores, 4).tolist() == [6, 1, 3, 2]
  assert bm25.best(scores, 8).tolist() == [6, 1, 3, 2, 4, 5]
  assert bm25.best(np.zeros(3, np.float32), 2).tolist() == []


@pytest.mark.parametrize(
  "text,expected",
  [
    ("Größe: Ｆｕｌｌ-width, e\u0301", ["grösse", "full", "width", "é"]),
    ("हिन्दी में", ["हिन्दी", "में"]),  # Marks do not end a word.
    ("東京へ GO", ["東京", "京へ", "go"]),
    ("ภาษาไทย", ["ภา", "าษ", "ษา", "าไ", "ไท", "ทย"]),
    ("한국어 水", ["한국", "국어", "水"]),
    ("snake_case C3", ["snake", "case", "c3"]),
    ("…", []),
  ],
)
def test_words_are_cut_in_every_script(text, expected):
  assert terms.words(text) == expected


def test_subwords_have_no_special_tokens_and_are_not_cut():
  tokenizer = tokenizer_lib.train(["river stone", "stone river"] * 5, 60)
  tokenizer.enable_truncation(2)
  analyze = terms.subwords(tokenizer)
  found = analyze("River STONE river stone")
  assert found == analyze("river stone") * 2
  assert not {"<s>", "</s>"} & set(found)
