"""Reads the collections of ir_datasets: any id with passages and judgements."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mlir_jax.data import records
from mlir_jax.data.sources import judged, record_fields, trec
from mlir_jax.data.sources.named import setting as setting_lib


class JudgedSet:
  """A data set of ir_datasets."""

  def __init__(self, setting: setting_lib.Setting):
    """Finds the data set; nothing is downloaded before it is read.

    Raises:
      ValueError: if there is none of this id, it lacks a part, or its language
        is not known.
    """
    # Here, because it is an extra.
    import ir_datasets  # pyright: ignore[reportMissingImports]

    try:
      self._dataset = ir_datasets.load(setting.name)
    except KeyError:
      raise ValueError(
        f"{setting.field}: ir_datasets has no {setting.name}; its ids are those"
        " of https://ir-datasets.com."
      ) from None
    missing = [
      part
      for part in ("docs", "queries", "qrels")
      if not self._dataset.has(part)
    ]
    is_test = setting.stream == "test" and setting.split == "test"
    # The judgements are not public: there are TREC runs, and no values.
    self.hidden = is_test and missing == ["qrels"]
    if missing and not self.hidden:
      raise ValueError(
        f"{setting.field}: {setting.name} has no {' and no '.join(missing)};"
        " name a split that has them."
      )
    self._setting = setting
    self.language = self._find_language()
    place = setting.place
    self._names = judged.Names(
      f"{place}/docs", f"{place}/queries", f"{place}/qrels"
    )

  def _find_language(self) -> str:
    if self._setting.languages:
      return self._setting.languages[0]
    found = {self._dataset.docs_lang(), self._dataset.queries_lang()}
    language = found.pop()
    if found or not language:
      raise ValueError(
        f"{self._setting.field}: ir_datasets does not say one language for"
        f" {self._setting.name}; add languages=en, or what it is."
      )
    return setting_lib.languages.code(language)

  def _records(self, part: str, values: Iterable, bad_records) -> Iterator[Any]:
    """Yields the good values of a part: each is a tuple, made by its reader."""
    reader = {"docs": _passage, "queries": _query}[part]
    where = f"{self._setting.place}/{part}"
    seen: dict[str, int] = {}
    for number, value in enumerate(values, start=1):
      try:
        identifier, found = reader(value)
        trec.check_new_id(identifier, seen, f"{part} id")
      except record_fields.FieldError as error:
        bad_records.report(where, number, error.field, error.problem)
        continue
      seen[identifier] = number
      yield identifier, found

  def _judgements(self, bad_records: records.BadRecords) -> judged.Judgements:
    queries = dict(
      self._records("queries", self._dataset.queries_iter(), bad_records)
    )
    if self.hidden:
      return judged.Judgements(queries, {}, 0, hidden=True)
    found: dict[str, dict[str, int]] = {}
    without_query = 0
    for number, qrel in enumerate(self._dataset.qrels_iter(), start=1):
      if qrel.query_id not in queries:
        without_query += 1
        continue
      try:
        trec.check_new_judgement(qrel.query_id, qrel.doc_id, found)
      except record_fields.FieldError as error:
        bad_records.report(
          self._names.qrels, number, error.field, error.problem
        )
        continue
      found.setdefault(qrel.query_id, {})[qrel.doc_id] = int(qrel.relevance)
    return judged.Judgements(queries, found, without_query)

  def _passages(
    self, bad_records: records.BadRecords, wanted: Mapping[str, Any] | None
  ) -> Iterator[records.Passage]:
    docs = self._dataset.docs_iter()
    if wanted is not None:
      docs = (doc for doc in docs if doc.doc_id in wanted)
    for _, passage in self._records("docs", docs, bad_records):
      yield passage

  def read_test(self, bad_records: records.BadRecords) -> records.RetrievalTest:
    """Reads the data set as a test.

    Args:
      bad_records: Receives passages, queries and judgements that cannot be
        used. The line is the number of the record.

    Raises:
      RecordError: as `judged.make_test` does.
    """
    bad_records = records.BadRecordsOfFile(bad_records)
    passages = tuple(self._passages(bad_records, None))
    bad_records.check_some(self._names.docs, len(passages))
    return judged.make_test(
      self._names,
      self.language,
      self._setting.split,
      passages,
      self._judgements(bad_records),
    )

  def read_pairs(
    self, bad_records: records.BadRecords
  ) -> Iterator[records.RetrievalRecord]:
    """Reads the judged queries as pairs; see `judged.read_pairs`."""
    judgements = self._judgements(bad_records)
    wanted = {
      passage_id: None
      for relevances in judgements.judged.values()
      for passage_id in relevances
    }
    by_id = {
      passage.passage_id: passage
      for passage in self._passages(bad_records, wanted)
    }
    return judged.make_pairs(
      self._names, self.language, by_id, judgements, bad_records
    )


def _text(value: Any, field: str) -> str:
  """Returns the text of a document or query of any class of ir_datasets."""
  text = value.text if hasattr(value, "text") else value.default_text()
  return record_fields.check_text(text, field)


def _passage(doc: Any) -> tuple[str, records.Passage]:
  passage_id = record_fields.check_id(doc.doc_id, "docs id")
  if hasattr(doc, "title") and hasattr(doc, "text"):
    parts = {"title": doc.title, "text": doc.text}
    return passage_id, judged.make_passage(parts, passage_id)
  return passage_id, records.Passage(_text(doc, "docs"), "", passage_id)


def _query(query: Any) -> tuple[str, str]:
  query_id = record_fields.check_id(query.query_id, "queries id")
  return query_id, _text(query, "queries")
