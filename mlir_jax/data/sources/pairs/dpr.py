"""Defines DPR's biencoder JSON (Karpukhin et al. 2020).

`negative_ctxs` (random passages) are not used, because a batch has random
negatives of its own.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from mlir_jax.data import records
from mlir_jax.data.sources import passages as passages_lib
from mlir_jax.data.sources import record_fields
from mlir_jax.data.sources.pairs import base

_POSITIVES = "positive_ctxs"
_NEGATIVES = "hard_negative_ctxs"
# The second is the name in some of DPR's own files.
_IDS = ("passage_id", "psg_id")


class Dpr(base.PairFormat):
  """One object for each question; passages are objects with a title."""

  name = "dpr"
  example: ClassVar = {
    "question": "capital of Peru?",
    _POSITIVES: [{"title": "Lima", "text": "Lima is …", "passage_id": "7"}],
    _NEGATIVES: [{"title": "Oslo", "text": "Oslo is …", "passage_id": "8"}],
  }
  needs = (("question", _POSITIVES),)

  def parse(self, record, context):
    """Makes a record; hard negatives may be missing or null."""

    def passage(value: Any, where: str) -> records.Passage:
      is_new = isinstance(value, Mapping) and value.get(_IDS[0]) is not None
      return passages_lib.of_object(
        value, where, _IDS[0 if is_new else 1], context.note_unused
      )

    context.note_unused(
      record,
      ("question", _POSITIVES, _NEGATIVES, *record_fields.LANGUAGE_FIELDS),
    )
    return records.RetrievalRecord(
      record_fields.get_text(record, "question"),
      passages_lib.read_positives(record, _POSITIVES, passage),
      passages_lib.read_hard_negatives(
        record, _NEGATIVES, passage, context.place, context.bad_records
      ),
    )

  def with_negatives(self, record, passages, scores=None):
    """Adds objects to `hard_negative_ctxs`, each with its score."""
    id_field = _IDS[any(_IDS[1] in value for value in record[_POSITIVES])]
    known = [value.get(id_field) for value in record[_POSITIVES]]
    added: list[dict[str, Any]] = [
      {"title": passage.title, "text": passage.text}
      | (
        {id_field: passages_lib.written_id(passage.passage_id, known)}
        if passage.passage_id
        else {}
      )
      for passage in passages
    ]
    for value, score in zip(added, scores or (), strict=bool(scores)):
      value["score"] = score
    return passages_lib.with_added(record, _NEGATIVES, added)

  def without_negatives(self, record):
    """Empties the list of hard negatives, if there is one."""
    return passages_lib.emptied(record, _NEGATIVES)
