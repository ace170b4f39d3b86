"""Reads texts with their ids from a file of passages or queries.

These formats are known:
  records   an object or a row for each text, in .jsonl, .json, .csv, .tsv or
            .parquet: an id (id, _id, docid or query_id), a text (text,
            contents, query or query_text) and perhaps a title. So are the
            passages of Mr. TyDi, MIRACL, BEIR and Tevatron.
  numbered  the same with a text alone: its number, from 1, is its id.
  topics    a query on each line: its id, a tab, the query.
  xquad_r   a file of LAReQA's XQuAD-R: its sentences or its questions.
  lines     a text on each line: its number, from 1, is its id.

Memory holds one text at a time, but for XQuAD-R, whose files are small.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from mlir_jax.data import records
from mlir_jax.data.sources import (
  containers,
  files,
  judged,
  mr_tydi,
  record_fields,
  text_lines,
  trec,
  xquad_r,
)

_IDS = ("id", "_id", "docid", "query_id")
_TEXTS = ("text", "contents", "query", "query_text")


class IdText(NamedTuple):
  """A text with its id.

  Attributes:
    text_id: The id, without white space.
    text: The text; only in the format "lines" it may be empty.
    title: The title of a passage, "" for none.
    place: The file and the line, for messages.
  """

  text_id: str
  text: str
  title: str
  place: str


Reader = Callable[
  [str | os.PathLike, records.BadRecords, str], Iterator[IdText]
]


def _only_field(value: Any, names: tuple[str, ...], what: str) -> str:
  """Returns which of some fields a record has; FieldError unless it has one."""
  if not isinstance(value, Mapping):
    record_fields.get_field(value, names[0])  # It raises.
  there = [name for name in names if name in value]
  if len(there) > 1:
    raise record_fields.FieldError(
      "record", f"has {' and '.join(there)}; keep the one that is {what}"
    )
  if not there:
    shown = [name if len(name) < 40 else "…" for name in value]
    raise record_fields.FieldError(
      "record",
      f"has no field for {what}, which is {', '.join(names[:-1])} or"
      f" {names[-1]}; its fields are {', '.join(shown[:12]) or 'none'}",
    )
  return there[0]


def _passage(value: Any) -> records.Passage:
  """Makes the text of a record; raises FieldError."""
  id_field = _only_field(value, _IDS, "the id")
  text_field = _only_field(value, _TEXTS, "the text")
  if text_field == "contents":
    return mr_tydi.make_passage(value)
  text_id = record_fields.check_id(
    record_fields.get_field(value, id_field), id_field
  )
  if text_field == "text":
    return judged.make_passage(value, text_id)
  return records.Passage(
    record_fields.get_text(value, text_field), passage_id=text_id
  )


def _read_values(
  path: str | os.PathLike,
  bad_records: records.BadRecords,
  parse: Callable[[Any, records.Place], records.Passage],
) -> Iterator[IdText]:
  """Yields the texts that `parse` makes of the records of a container."""

  def make(placed: tuple[records.Place, Any]) -> IdText:
    place, value = placed
    passage = parse(value, place)
    trec.check_new_id(passage.passage_id, {}, "id")
    return IdText(
      passage.passage_id,
      passage.text,
      passage.title,
      f"{place.file}:{place.line}",
    )

  own = records.BadRecordsOfFile(bad_records)
  values = (
    (place, (place, value)) for place, value in containers.read(path, own)
  )
  return containers.parse_all(values, path, own, make)


def _read_records(path, bad_records, role):
  del role
  return _read_values(path, bad_records, lambda value, _: _passage(value))


def _read_numbered(path, bad_records, role):
  del role
  return _read_values(
    path,
    bad_records,
    lambda value, place: judged.make_passage(value, str(place.number)),
  )


def _read_topics(path, bad_records, role):
  del role

  def parse(line: str, number: int) -> IdText:
    # Only the first line may be a header.
    lines = {"": 0} if number > 1 else {}
    text_id, text = trec.parse_query(line, lines)
    return IdText(text_id, text, "", f"{path}:{number}")

  return text_lines.read_records(path, bad_records, parse)


def _read_xquad_r(path, bad_records, role):
  language = os.path.basename(path).partition(".")[0]
  test = xquad_r.read_test(path, language, bad_records)
  if role == "query":
    for text_id, text in test.queries.items():
      yield IdText(text_id, text, "", f"{path}: question {text_id}")
    return
  for passage in test.passages:
    name = passage.passage_id
    yield IdText(name, passage.text, "", f"{path}: sentence {name}")


def _read_lines(path, bad_records, role):
  del role
  for number, text in text_lines.read_lines(path, bad_records):
    if text is not None:
      yield IdText(str(number), text, "", f"{path}:{number}")


_READERS: Mapping[str, Reader] = {
  "records": _read_records,
  "numbered": _read_numbered,
  "topics": _read_topics,
  "xquad_r": _read_xquad_r,
  "lines": _read_lines,
}
FORMATS = tuple(_READERS)


def _first_line(path: str | os.PathLike) -> str:
  """Returns the first line of a file; a damaged one is refused later."""
  with files.open_bytes(path) as file:
    return file.readline(1 << 16).decode("utf-8-sig", "replace")


def recognize(path: str | os.PathLike) -> str:
  """Returns the format of a file, by its name and its first line.

  Args:
    path: The file, plain or gzipped.

  Raises:
    ValueError: if the file does not say its format; it says what to do.
  """
  name = os.path.basename(path).removesuffix(".gz")
  ending = name.rpartition(".")[2].lower()
  if ending == "tsv":
    columns = {cell.strip() for cell in _first_line(path).split("\t")}
    is_table = columns.intersection(_IDS) and columns.intersection(_TEXTS)
    return "records" if is_table else "topics"
  if ending in containers.ENDINGS:
    _, first = containers.read_first(path)
    fields = first if isinstance(first, Mapping) else {}
    if xquad_r.NAME.fullmatch(name) and isinstance(fields.get("data"), list):
      return "xquad_r"
    if fields and not {*_IDS}.intersection(fields):
      shown = ", ".join(map(str, [*fields][:12]))
      raise ValueError(
        f"{path} holds records without an id: their fields are"
        f" {shown}, and none is {', '.join(_IDS)}. Add the ids, or"
        " give --format=numbered to number the records."
      )
    return "records"
  if _first_line(path).startswith(("{", "[{")):
    raise ValueError(
      f"{path} seems to hold JSON, but its name does not say so: let it end in"
      " .jsonl, or give --format=lines to encode the lines as they are."
    )
  return "lines"


def read(
  path: str | os.PathLike,
  format_name: str,
  bad_records: records.BadRecords,
  role: str,
) -> Iterator[IdText]:
  """Reads the texts of a file, in its order. Ids may repeat.

  Args:
    path: The file, plain or gzipped.
    format_name: One of `FORMATS`.
    bad_records: Receives records that cannot be used.
    role: "query" reads the questions of a file that has passages, too.

  Raises:
    RecordError: for a bad record, if the policy is "error"; under any policy if
      no record can be used.
  """
  return _READERS[format_name](path, bad_records, role)
