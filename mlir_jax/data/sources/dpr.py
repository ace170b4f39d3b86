"""Reads question-passage pairs in DPR's biencoder JSON.

The format is that of Karpukhin et al. (2020): one JSON array of objects with
`question`, `positive_ctxs` and `hard_negative_ctxs`. A passage is an object
with `title`, `text` and `passage_id` (or `psg_id`, as in DPR's own files).
One object on each line is read, too.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

from mlir_jax.data import records
from mlir_jax.data.sources import json_stream, passages, record_fields


def _optional(
  check: Callable[[object, str], str], value: object, field: str
) -> str:
  """Returns what `check` makes of a value; "" if it is null or blank."""
  try:
    return check(value, field)
  except record_fields.EmptyTextError:
    return ""


def _passage(value: Any, where: str) -> records.Passage:
  text = record_fields.get_text(value, "text", where)
  id_field = "psg_id" if value.get("passage_id") is None else "passage_id"
  return records.Passage(
    text=text,
    title=_optional(
      record_fields.check_text, value.get("title"), f"{where}.title"
    ),
    passage_id=_optional(
      record_fields.check_id, value.get(id_field), f"{where}.{id_field}"
    ),
  )


def read(
  path: str | os.PathLike, bad_records: records.BadRecords, language: str = "en"
) -> Iterator[records.RetrievalRecord]:
  """Reads question-passage pairs; memory holds one of them at a time.

  `negative_ctxs` (random passages) are not read, because a batch has random
  negatives of its own. `hard_negative_ctxs` may be missing or null.

  Args:
    path: A JSON array of records, or one record on each line; plain or
      gzipped.
    bad_records: Receives bad records, and bad hard negatives of good records
      (see `passages.read_hard_negatives`).
    language: The language of the questions and the passages.

  Yields:
    The records, in the file's order.

  Raises:
    RecordError: as `json_stream.read_records` does.
  """

  def parse(value: Any, place: records.Place) -> records.RetrievalRecord:
    return records.RetrievalRecord(
      record_fields.get_text(value, "question"),
      passages.read_positives(value, "positive_ctxs", _passage),
      passages.read_hard_negatives(
        value, "hard_negative_ctxs", _passage, place, bad_records
      ),
      language,
      place,
    )

  return json_stream.read_records(path, bad_records, parse)
