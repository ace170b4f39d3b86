"""Defines the columns of sentence-transformers' data sets: pairs and triplets.

The names of columns have no meaning in sentence-transformers, but their order
has. A file of ours may be sorted otherwise, so the names count here.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from mlir_jax.data import records
from mlir_jax.data.sources import passages as passages_lib
from mlir_jax.data.sources import record_fields
from mlir_jax.data.sources.pairs import base

_QUESTIONS = ("anchor", "query", "question")
_POSITIVES = ("positive", "answer", "passage", "document")
_NEGATIVE = re.compile(r"negative(?:_([0-9]{1,6}))?")
# The field says which pairs are good ones, so not each row is a positive pair.
_JUDGED = ("label", "labels", "score")
_SCORES = "scores"


def _negatives(record: Mapping[str, Any]) -> list[str]:
  """Returns the columns of hard negatives in the order of their numbers."""
  found = filter(None, map(_NEGATIVE.fullmatch, record))
  return [
    match[0] for match in sorted(found, key=lambda each: int(each[1] or 0))
  ]


class Columns(base.PairFormat):
  """One row for each question and passage, with any number of hard negatives.

  The question is `anchor`, `query` or `question`; the passage is `positive`,
  `answer`, `passage` or `document`; hard negatives are `negative` or
  `negative_1`, `negative_2`, and so on. A row needs exactly one question and
  one passage.
  """

  name = "columns"
  example: ClassVar = {
    "anchor": "capital of Peru?",
    "positive": "Lima is …",
    "negative": "Oslo is …",
  }
  needs = tuple(
    (question, positive) for question in _QUESTIONS for positive in _POSITIVES
  )

  def parse(self, record, context):
    """Makes a record; a hard negative may be missing, null or empty."""
    names = {}
    for kind, choices in (("question", _QUESTIONS), ("passage", _POSITIVES)):
      there = [name for name in choices if name in record]
      if len(there) != 1:
        raise record_fields.FieldError(
          "record",
          f"has {' and '.join(there) or 'none'} of the columns"
          f" {', '.join(choices)}; keep the one that is the {kind}",
        )
      names[kind] = there[0]
    for name in _JUDGED:
      if record.get(name) not in (None, ""):
        raise record_fields.FieldError(
          name,
          "says how good a pair is, but each row must be a good pair; keep the"
          " good pairs, and remove the column",
        )
    negatives = _negatives(record)
    context.note_unused(
      record, (*names.values(), *negatives, *record_fields.LANGUAGE_FIELDS)
    )
    return records.RetrievalRecord(
      record_fields.get_text(record, names["question"]),
      (passages_lib.of_text(record[names["passage"]], names["passage"]),),
      tuple(self._hard_negatives(record, negatives, context)),
    )

  def _hard_negatives(
    self, record: Mapping[str, Any], names: list[str], context: base.Context
  ) -> Iterator[records.Passage]:
    """Yields the hard negatives; a bad one does not cost the record."""
    for name in names:
      try:
        yield passages_lib.of_text(record[name], name)
      except record_fields.EmptyTextError:
        yield records.Passage("")
      except record_fields.FieldError as error:
        passages_lib.report_hard_negative(
          error, context.place, context.bad_records
        )

  def with_negatives(self, record, passages, scores=None):
    """Adds columns after the last hard negative; fills empty ones first.

    Raises:
      ValueError: if the record has `scores`, but no scores are given.
    """
    changed = dict(record)
    names = _negatives(record)
    free = [name for name in names if changed[name] in (None, "")]
    numbers = [int(m[1] or 0) for m in map(_NEGATIVE.fullmatch, names) if m]
    following = max(numbers, default=0) + 1
    for passage in passages:
      if free:
        name = free.pop(0)
      else:
        name = f"negative_{following}"
        following += 1
      changed[name] = passages_lib.one_text(passage)
    if record.get(_SCORES) is not None:
      if scores is None:
        raise ValueError(
          f"{_SCORES} has a score for each passage, but the new ones have none:"
          f" give scores, or remove {_SCORES}."
        )
      changed = passages_lib.with_added(changed, _SCORES, scores)
    return changed

  def without_negatives(self, record):
    """Empties the columns of hard negatives, and cuts `scores` to one."""
    changed = {**record, **dict.fromkeys(_negatives(record))}
    if isinstance(record.get(_SCORES), list):
      changed[_SCORES] = record[_SCORES][:1]
    return changed
