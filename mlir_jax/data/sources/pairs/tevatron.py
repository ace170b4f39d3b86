"""Defines Tevatron's JSON with whole passages (Gao et al. 2022), v1 and v2."""

from typing import Any, ClassVar

from mlir_jax.data import records
from mlir_jax.data.sources import passages as passages_lib
from mlir_jax.data.sources import record_fields
from mlir_jax.data.sources.pairs import base

_POSITIVES = "positive_passages"
_NEGATIVES = "negative_passages"


class Tevatron(base.PairFormat):
  """One object for each query; passages are objects. v2 may have no titles."""

  name = "tevatron"
  example: ClassVar = {
    "query_id": "1",
    "query": "capital of Peru?",
    _POSITIVES: [{"docid": "7", "title": "Lima", "text": "Lima is …"}],
    _NEGATIVES: [{"docid": "8", "title": "Oslo", "text": "Oslo is …"}],
  }
  needs = (("query", _POSITIVES),)

  def parse(self, record, context):
    """Makes a record; hard negatives may be missing or null."""

    def passage(value: Any, where: str) -> records.Passage:
      return passages_lib.of_object(value, where, "docid", context.note_unused)

    context.note_unused(
      record,
      (
        "query_id",
        "query",
        _POSITIVES,
        _NEGATIVES,
        *record_fields.LANGUAGE_FIELDS,
      ),
    )
    return records.RetrievalRecord(
      record_fields.get_text(record, "query"),
      passages_lib.read_positives(record, _POSITIVES, passage),
      passages_lib.read_hard_negatives(
        record, _NEGATIVES, passage, context.place, context.bad_records
      ),
    )

  def with_negatives(self, record, passages, scores=None):
    """Adds objects to `negative_passages`; there is no field for scores."""
    del scores
    known = [value.get("docid") for value in record[_POSITIVES]]
    added = [
      {
        "docid": passages_lib.written_id(each.passage_id, known),
        "title": each.title,
        "text": each.text,
      }
      for each in passages
    ]
    return passages_lib.with_added(record, _NEGATIVES, added)

  def without_negatives(self, record):
    """Empties the list of hard negatives, if there is one."""
    return passages_lib.emptied(record, _NEGATIVES)
