"""Reads XQuAD-R as LAReQA released it (Roy et al. 2020): a file a language.

A file is one JSON object in the form of SQuAD: data[].paragraphs[] with
`context`, `qas` and `sentence_breaks`, the start and end of each sentence. The
sentences are the passages. The sentence in which the answer of a question
starts is relevant.
"""

import json
import os
import re
from typing import Any

from mlir_jax.data import records
from mlir_jax.data.sources import files, record_fields

NAME = re.compile(r"([a-z]{2})\.json")


def _load(path: str | os.PathLike) -> Any:
  """Returns the content of a file; RecordError if it is not JSON."""
  with files.open_bytes(path) as file:
    try:
      return record_fields.parse_json(file.read().decode("utf-8-sig"))
    except (record_fields.FieldError, UnicodeDecodeError) as error:
      problem = getattr(error, "problem", "is not UTF-8")
      raise records.RecordError(
        f"{path}:1: {problem}; fetch or write the file again."
      ) from None


def _get_list(value: Any, name: str, where: str) -> list:
  found = record_fields.get_field(value, name, where)
  if not isinstance(found, list):
    raise record_fields.FieldError(
      f"{where}.{name}" if where else name,
      f"is {record_fields.json_type(found)}; give a list",
    )
  return found


def _get_whole_number(value: Any, field: str) -> int:
  if type(value) is not int or value < 0:
    raise record_fields.FieldError(
      field, f"is {json.dumps(value, default=str):.40}; give 0, 1, …"
    )
  return value


def _breaks(paragraph: Any, where: str) -> list[tuple[int, int]]:
  """Returns the start and the end of each sentence, in characters."""
  breaks = []
  for i, pair in enumerate(_get_list(paragraph, "sentence_breaks", where)):
    field = f"{where}.sentence_breaks[{i}]"
    if not isinstance(pair, list) or len(pair) != 2:
      raise record_fields.FieldError(field, "is not a start and an end")
    start, end = (_get_whole_number(value, field) for value in pair)
    breaks.append((start, end))
  return breaks


class _Test:
  """Collects the passages, queries and judgements of a file."""

  def __init__(
    self,
    path: str | os.PathLike,
    language: str,
    bad_records: records.BadRecords,
    whole_paragraphs: bool,
  ):
    self.passages: list[records.Passage] = []
    self.queries: dict[str, str] = {}
    self.qrels: dict[str, dict[str, int]] = {}
    self._path = str(path)
    self._language = language
    self._bad_records = bad_records
    self._whole_paragraphs = whole_paragraphs

  def add_paragraph(self, value: Any, where: str, name: str) -> None:
    """Adds the passages and the questions of a paragraph."""
    # As it is: the starts of sentences and answers count its characters.
    context = record_fields.get_field(value, "context", where)
    record_fields.check_text(context, f"{where}.context")
    assert isinstance(context, str)
    passages, sentences = [], {}
    breaks = (
      [(0, len(context))] if self._whole_paragraphs else _breaks(value, where)
    )
    for i, (start, end) in enumerate(breaks):
      sentence = "" if self._whole_paragraphs else f"s{i}"
      passage_id = f"{name}{sentence}.{self._language}"
      text = record_fields.check_text(
        context[start:end], f"{where}.sentence_breaks[{i}]"
      )
      paragraph = f"{name}.{self._language}"
      passages.append(records.Passage(text, "", passage_id, paragraph))
      sentences[passage_id] = range(start, end)
    questions = _get_list(value, "qas", where)
    self.passages += passages
    for i, question in enumerate(questions):
      try:
        self._add_question(question, f"{where}.qas[{i}]", sentences)
      except record_fields.FieldError as error:
        self._bad_records.report(self._path, 1, error.field, error.problem)

  def _add_question(self, value: Any, where: str, sentences) -> None:
    query_id = record_fields.check_id(
      record_fields.get_field(value, "id", where), f"{where}.id"
    )
    if query_id in self.queries or len(query_id.split()) != 1:
      raise record_fields.FieldError(
        f"{where}.id",
        f"{record_fields.show(query_id)} is there before, or holds white space;"
        " rename it",
      )
    query = record_fields.get_text(value, "question", where)
    relevant = {}
    for i, answer in enumerate(_get_list(value, "answers", where)):
      field = f"{where}.answers[{i}]"
      start = _get_whole_number(
        record_fields.get_field(answer, "answer_start", field),
        f"{field}.answer_start",
      )
      relevant |= {
        passage_id: 1
        for passage_id, places in sentences.items()
        if start in places
      }
    if not relevant:
      raise record_fields.FieldError(
        f"{where}.answers", "start in no sentence of the paragraph"
      )
    self.queries[query_id] = query
    self.qrels[query_id] = relevant


def read_test(
  path: str | os.PathLike,
  language: str,
  bad_records: records.BadRecords,
  whole_paragraphs: bool = False,
) -> records.RetrievalTest:
  """Reads the test of a language.

  Args:
    path: The file, plain or gzipped.
    language: Language code; ids of passages end in it, because LAReQA also
      searches the passages of all languages together.
    bad_records: Receives paragraphs and questions that cannot be used. The
      line is that of the file's object.
    whole_paragraphs: Whether paragraphs, not sentences, are the passages.

  Raises:
    RecordError: for a bad record, if the policy is "error"; under any policy if
      the file is not JSON or holds no question.
  """
  bad_records = records.BadRecordsOfFile(bad_records)
  test = _Test(path, language, bad_records, whole_paragraphs)
  value = _load(path)
  try:
    articles = _get_list(value, "data", "")
  except record_fields.FieldError as error:
    raise records.RecordError(
      f"{path}:1: {error.field}: {error.problem}."
    ) from None
  for i, article in enumerate(articles):
    where = f"data[{i}]"
    try:
      paragraphs = _get_list(article, "paragraphs", where)
    except record_fields.FieldError as error:
      bad_records.report(str(path), 1, error.field, error.problem)
      continue
    for j, paragraph in enumerate(paragraphs):
      try:
        test.add_paragraph(
          paragraph, f"{where}.paragraphs[{j}]", f"a{i:02}p{j}"
        )
      except record_fields.FieldError as error:
        bad_records.report(str(path), 1, error.field, error.problem)
  bad_records.check_some(path, len(test.queries))
  if not test.queries:
    raise records.RecordError(f"{path} holds no question; write it again.")
  return records.RetrievalTest(
    language=language,
    split="test",
    passages=tuple(test.passages),
    queries=test.queries,
    qrels=test.qrels,
  )
