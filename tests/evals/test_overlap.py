"""Counts every test text that is in the streams that were trained on."""

import dataclasses

import pytest
import tokenizers
from tokenizers import models

from mlir_jax import contract as contract_lib
from mlir_jax.data import records, source_settings
from mlir_jax.evals import overlap

CONTRACT = contract_lib.PartialContract(
  pooling="mean",
  normalize=True,
  title_joiner=" ",
  **dict.fromkeys(contract_lib.ROLES, contract_lib.PartialRole("", 8)),
).complete(tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0}, "[UNK]")))
COLLECTION = records.Collection(
  name="made",
  retrieval=lambda: iter(
    [
      records.RetrievalRecord(
        "question",
        (records.Passage("positive", "title"),),
        (records.Passage("negative"),),
      )
    ]
  ),
  parallel=lambda: iter([records.ParallelRecord("source", "Ziel", "en", "de")]),
  monolingual=lambda: iter([records.MonolingualRecord("teksti", "fi")]),
  tests=tuple,
  translation_tests=tuple,
  groups={},
  fingerprint=str,
  notes=tuple,
)


def make_test(language, queries, passages, split="test"):
  return records.RetrievalTest(
    language=language,
    split=split,
    passages=tuple(records.Passage(*passage) for passage in passages),
    queries={str(i): text for i, text in enumerate(queries)},
    qrels={},
  )


TESTS = (
  make_test("en", ["question"], [("negative",)], split="dev"),
  make_test(
    "en",
    ["question", " question ", "source", "unseen", "positive"],
    # A title and a text make one body, wherever the title ends.
    [("title positive",), ("positive", "title"), ("negative",), ("title",)],
  ),
  make_test("de", ["Ziel", "Ziel?"], [("source",), ("teksti",)]),
)


@pytest.mark.parametrize(
  "streams, english, german",
  [
    (("retrieval", "parallel", "monolingual"), (3, 3), (1, 2)),
    (("retrieval",), (2, 3), (0, 0)),
    (("parallel",), (1, 0), (1, 1)),
    (("monolingual",), (0, 0), (0, 1)),
    ((), (0, 0), (0, 0)),
  ],
)
def test_texts_of_the_streams_trained_on_are_counted(streams, english, german):
  counts = overlap.count_shared_texts(COLLECTION, TESTS, CONTRACT, streams)
  assert counts == {
    language: {
      "queries": queries,
      "shared_queries": shared[0],
      "passages": passages,
      "shared_passages": shared[1],
    }
    for language, queries, passages, shared in (
      ("en", 5, 4, english),
      ("de", 2, 2, german),
    )
  }


def test_all_streams_count_by_default():
  assert overlap.count_shared_texts(COLLECTION, TESTS, CONTRACT) == (
    overlap.count_shared_texts(
      COLLECTION, TESTS, CONTRACT, ("monolingual", "retrieval", "parallel")
    )
  )


def test_a_stream_that_was_not_trained_on_is_not_read():
  def unread():
    raise AssertionError("read")
    yield

  collection = dataclasses.replace(COLLECTION, parallel=unread)
  overlap.count_shared_texts(
    collection, TESTS, CONTRACT, ("retrieval", "monolingual")
  )
  with pytest.raises(AssertionError, match="read"):
    overlap.count_shared_texts(collection, TESTS, CONTRACT)


def test_a_source_that_is_left_out_shares_nothing():
  def named(stream):
    return lambda: [
      dataclasses.replace(record, source_name="a") for record in stream()
    ]

  collection = dataclasses.replace(
    COLLECTION, retrieval=named(COLLECTION.retrieval)
  )
  for weight, streams in (("0", ("parallel", "monolingual")), ("2", None)):
    settings = source_settings.find({"a": f"weight={weight}"})
    counts = overlap.count_shared_texts(
      source_settings.trained_on(collection, settings), TESTS, CONTRACT
    )
    assert counts == overlap.count_shared_texts(
      collection, TESTS, CONTRACT, *([streams] if streams else [])
    )


def test_without_tests_nothing_is_read_or_counted():
  def unread():
    raise AssertionError("read")
    yield

  collection = dataclasses.replace(COLLECTION, retrieval=unread)
  assert overlap.count_shared_texts(collection, TESTS[:1], CONTRACT) == {}
