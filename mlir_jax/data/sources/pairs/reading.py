"""Reads and writes a file of question-passage pairs, in whatever format."""

import collections
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from mlir_jax.data import languages, records
from mlir_jax.data.sources import containers, files, record_fields
from mlir_jax.data.sources.pairs import base, registry

# The format is that of the first of these records that has one.
_PEEKED = 100
_SHOWN = 5  # Prompts in a note.


class Pair(NamedTuple):
  """A record of a file, as it is there and as training reads it.

  Attributes:
    raw: The decoded object. A field that has no meaning in JSON, such as NaN,
      is `record_fields.Unusable`.
    record: The record; its `place` is that of `raw`.
  """

  raw: dict[str, Any]
  record: records.RetrievalRecord


class NoCorpus:
  """The corpus of a folder without passages."""

  files = ()

  def read(self, bad_records: records.BadRecords, reader: str = "") -> None:
    """Does nothing."""

  def find(self, passage_id: str, field: str) -> records.Passage:
    """Raises FieldError for any id."""
    raise record_fields.FieldError(
      field,
      f"is the id {record_fields.show(passage_id)}, but there are no passages"
      " in corpus/; put them there",
    )


@dataclasses.dataclass
class Seen:
  """What the last whole pass over a file has found.

  Attributes:
    format: The name of the file's format.
    count: The number of good records.
    languages: Their languages.
    unused: The fields that hold something and are not used.
    prompts: The prompts that are used, to their numbers.
  """

  format: str
  count: int = 0
  languages: set[str] = dataclasses.field(default_factory=set)
  unused: set[str] = dataclasses.field(default_factory=set)
  prompts: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )

  def describe(self, name: str) -> list[str]:
    """Describes the file in lines, under a name."""
    lines = [
      f"{name}: {self.format}, {self.count:,} records"
      f" ({', '.join(sorted(self.languages))})"
    ]
    if self.unused:
      lines.append(f"{name}: fields not used: {', '.join(sorted(self.unused))}")
    if self.prompts:
      shown = [
        f"{prompt!r} ({count:,})"
        for prompt, count in self.prompts.most_common(_SHOWN)
      ]
      more = ", …" if len(self.prompts) > _SHOWN else ""
      lines.append(
        f"{name}: in place of the query's prefix, questions have the prompts"
        f" {', '.join(shown)}{more}"
      )
    return lines


class PairFile:
  """A file of question-passage pairs: JSON, CSV, TSV or Parquet.

  Attributes:
    path: The file.
    name: The name of the source, see `records.RetrievalRecord`.
    files: The file, and those of the corpus.
    seen: What the last whole pass has found; None before it.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    *,
    language: str = "en",
    is_named: bool = False,
    formats: registry.Formats = registry.BUILT_IN,
    format_name: str = "",
    corpus: base.Corpus | None = None,
    use_prompts: bool = True,
    prefix: str = "data.",
    name: str = "",
  ):
    """Names the file; it is read later.

    Args:
      path: The file; see `containers`. All passes must read the same bytes.
      language: The language of records without a field of it.
      is_named: Whether the file's name says this language. Then the language
        of a record may not be another.
      formats: The formats by name.
      format_name: The name of the file's format; "" to recognize it.
      corpus: The passages to which records refer by id.
      use_prompts: Whether a question keeps its prompt.
      prefix: What precedes the settings' names in messages; see
        `collections.load`.
      name: The name of the source.
    """
    self.name = name
    self.path = (
      path
      if isinstance(path, files.UnchangedFile)
      else files.UnchangedFile(pathlib.Path(path))
    )
    self.seen: Seen | None = None
    self._language = language
    self._is_named = is_named
    self._formats = formats
    self._format_name = format_name
    self._corpus = corpus or NoCorpus()
    self._use_prompts = use_prompts
    self._prefix = prefix
    self.files = (self.path, *self._corpus.files)

  def describe(self, root: pathlib.Path) -> list[str]:
    """Describes in lines what the last pass has found; none before it.

    Args:
      root: The folder to which the file's name is relative.
    """
    if not self.seen:
      return []
    name = pathlib.Path(self.path).relative_to(root).as_posix()
    return [records.printable(line) for line in self.seen.describe(name)]

  def read(
    self, bad_records: records.BadRecords
  ) -> Iterator[records.RetrievalRecord]:
    """Yields the records of training; see `read_pairs`."""
    for pair in self.read_pairs(bad_records):
      yield pair.record

  def read_pairs(self, bad_records: records.BadRecords) -> Iterator[Pair]:
    """Reads the good records; memory holds some of them at a time.

    Args:
      bad_records: Receives bad records, and bad hard negatives of good ones
        (see `passages.read_hard_negatives`).

    Yields:
      The records, in the file's order.

    Raises:
      RecordError: for a bad record, if the policy is "error"; under any policy
        if the container is damaged, the format is not known, two formats could
        be meant, or no record can be used.
    """
    bad_records = records.BadRecordsOfFile(bad_records)
    values = self._read_values(bad_records)
    name, values = self._choose(values)
    format_, seen = self._formats[name], Seen(name)
    if format_.by_id:
      self._corpus.read(bad_records, str(self.path))
    for place, value in values:
      context = base.Context(place, bad_records, self._corpus)
      try:
        record = self._parse(format_, value, context)
      except record_fields.FieldError as error:
        bad_records.report(
          place.file,
          place.line,
          f"record {place.number}, {error.field}",
          error.problem,
        )
        continue
      seen.count += 1
      seen.unused |= context.unused
      seen.languages.add(record.language)
      if record.prompt is not None:
        seen.prompts[record.prompt] += 1
      yield Pair(value, record)
    bad_records.check_some(self.path, seen.count)
    self.seen = seen

  def recognize(self, bad_records: records.BadRecords) -> base.PairFormat:
    """Returns the file's format; raises as `read_pairs` does."""
    values = self._read_values(records.BadRecordsOfFile(bad_records))
    name, _ = self._choose(values)
    return self._formats[name]

  def check(self, raw: Iterable[tuple[object, Mapping[str, Any]]]) -> None:
    """Checks that `write` can write records; raises as `containers.check`.

    Args:
      raw: Records as in `write`, each after its place.
    """
    containers.check(raw, like=self.path)

  def write(
    self, target: str | os.PathLike, raw: Iterable[Mapping[str, Any]]
  ) -> None:
    """Writes records in this file's container, whole or not at all.

    Args:
      target: The new file; it may be this one.
      raw: Records as in `Pair.raw`, from the format's `with_negatives`.

    Raises:
      ValueError: if a value cannot be written; it names the field.
    """
    containers.write(target, raw, like=self.path)

  def _read_values(
    self, bad_records: records.BadRecords
  ) -> Iterator[tuple[records.Place, Any]]:
    """Yields the place and the decoded value of each record."""
    return containers.read(self.path, bad_records)

  def _choose(
    self, values: Iterator[tuple[records.Place, Any]]
  ) -> tuple[str, Iterator[tuple[records.Place, Any]]]:
    """Returns the name of the format, and all values."""
    peeked, found = [], []
    for place, value in values:
      peeked.append((place, value))
      found = registry.recognize(value, self._formats)
      if found or self._format_name or len(peeked) == _PEEKED:
        break
    if not peeked:
      raise records.RecordError(
        f"{self.path} holds no record; remove the file, or write it again."
      )
    if self._format_name:
      found = [self._format_name]
    if not found:
      self._refuse(*peeked[0])
    if len(found) > 1:
      place, _ = peeked[-1]
      raise records.RecordError(
        f"{place}: its fields are those of {' and '.join(found)}; set"
        f" {self._prefix}format to the format that you mean."
      )
    return found[0], itertools.chain(peeked, values)

  def _refuse(self, place: records.Place, value: Any):
    """Raises the error for a format that is not known."""
    has = f"it is {record_fields.json_type(value)}"
    if isinstance(value, Mapping):
      names = ", ".join(map(record_fields.show, itertools.islice(value, 12)))
      has = f"its fields are {names}" if value else "it has no fields"
    raise records.RecordError(
      f"{place}: its format is not known: {has}. A record has one of these"
      f" forms ({self._prefix}formats adds one of your own):\n"
      + registry.describe(self._formats)
    )

  def _parse(
    self, format_: base.PairFormat, value: Any, context: base.Context
  ) -> records.RetrievalRecord:
    """Makes the record of a value, with its place and language."""
    if not isinstance(value, Mapping):
      # It names the type, as for a missing field.
      record_fields.get_field(value, format_.needs[0][0])
    record = format_.parse(value, context)
    if record.prompt is not None and not self._use_prompts:
      context.unused.add("prompt")
      record = dataclasses.replace(record, prompt=None)
    return dataclasses.replace(
      record, language=self._find_language(value), place=context.place
    )

  def _find_language(self, value: Mapping[str, Any]) -> str:
    """Returns the language of a record.

    Raises:
      FieldError: if its field is no code, or differs from the file's name.
    """
    found = {}
    for field in record_fields.LANGUAGE_FIELDS:
      if value.get(field) not in (None, ""):
        text = record_fields.check_text(value[field], field)
        try:
          found[field] = languages.code(text)
        except ValueError as error:
          raise record_fields.FieldError(field, str(error)) from None
    if self._is_named:
      found["the file's name"] = self._language
    if len(set(found.values())) > 1:
      fields = [f"{name} says {code}" for name, code in found.items()]
      raise record_fields.FieldError(
        next(iter(found)), f"{', but '.join(fields)}; repair one"
      )
    return next(iter(found.values()), self._language)
