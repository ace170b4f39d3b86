"""Defines Tevatron v2's JSON with ids of passages, which are in corpus/."""

from typing import Any, ClassVar

from mlir_jax.data import records
from mlir_jax.data.sources import passages as passages_lib
from mlir_jax.data.sources import record_fields
from mlir_jax.data.sources.pairs import base

_QUERIES = ("query_text", "query")
_POSITIVES = "positive_document_ids"
_NEGATIVES = "negative_document_ids"


class TevatronById(base.PairFormat):
  """One object for each query; passages are ids."""

  name = "tevatron_by_id"
  example: ClassVar = {
    "query_id": "1",
    "query_text": "capital of Peru?",
    _POSITIVES: ["7"],
    _NEGATIVES: ["8"],
  }
  needs = tuple((query, _POSITIVES) for query in _QUERIES)
  by_id = True

  def parse(self, record, context):
    """Makes a record; ids of hard negatives may be missing or null."""

    def passage(value: Any, where: str) -> records.Passage:
      return context.corpus.find(record_fields.check_id(value, where), where)

    # A record with both names is not of this format: which one is the query?
    query = _QUERIES[0] if _QUERIES[0] in record else _QUERIES[1]
    context.note_unused(
      record,
      (
        "query_id",
        query,
        _POSITIVES,
        _NEGATIVES,
        *record_fields.LANGUAGE_FIELDS,
      ),
    )
    return records.RetrievalRecord(
      record_fields.get_text(record, query),
      passages_lib.read_positives(record, _POSITIVES, passage),
      passages_lib.read_hard_negatives(
        record, _NEGATIVES, passage, context.place, context.bad_records
      ),
    )

  def with_negatives(self, record, passages, scores=None):
    """Adds ids to `negative_document_ids`; there is no field for scores."""
    del scores
    if not all(passage.passage_id for passage in passages):
      raise ValueError(
        f"{_NEGATIVES} holds ids, but a hard negative has none: take hard"
        " negatives from corpus/."
      )
    added = [
      passages_lib.written_id(passage.passage_id, record[_POSITIVES])
      for passage in passages
    ]
    return passages_lib.with_added(record, _NEGATIVES, added)

  def without_negatives(self, record):
    """Empties the list of hard negatives, if there is one."""
    return passages_lib.emptied(record, _NEGATIVES)
