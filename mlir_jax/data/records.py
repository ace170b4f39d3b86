"""Defines the records that all sources yield, or report as bad."""

import dataclasses
import itertools
import os
from collections.abc import (
  Callable,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
  Set,
)
from typing import Any, NamedTuple, Protocol, TypeVar

STREAMS = ("retrieval", "parallel", "monolingual")
_SHOWN = 5  # Messages of bad records that are kept.


@dataclasses.dataclass(frozen=True, slots=True)
class Passage:
  """A passage: a text that is searched for."""

  text: str
  title: str = ""
  # Its id in its file; "" for none. Training only checks that an id has one
  # text: a passage is identified by its text.
  passage_id: str = ""
  # The name of the paragraph that a sentence is from; "" if it is not said.
  paragraph: str = dataclasses.field(default="", compare=False)
  # How good a teacher finds it for its question; None if this is not known.
  score: float | None = dataclasses.field(default=None, compare=False)


class Place(NamedTuple):
  """The place of a record: its file, its line and its number, from 1."""

  file: str
  line: int
  number: int

  def __str__(self) -> str:
    return f"{self.file}:{self.line}: record {self.number}"


@dataclasses.dataclass(frozen=True, slots=True)
class RetrievalRecord:
  """A question with the passages that answer it, and some that do not.

  A reader may keep hard negatives that have no text or are a positive of the
  question. The token store drops and counts them.

  Attributes:
    question: The question.
    positives: At least one.
    hard_negatives: May be empty.
    language: The language of all texts.
    place: The record's place. It is needed to check passage ids: an id with two
      texts in one file is refused, or ignored and counted.
    prompt: What precedes the question in place of the query's prefix; None for
      the prefix.
    source_name: The name of the data set that the record is from; "" for none.
      A config gives sources their weights and prompts by this name.
  """

  question: str
  positives: tuple[Passage, ...]
  hard_negatives: tuple[Passage, ...] = ()
  language: str = "en"
  place: Place | None = dataclasses.field(default=None, compare=False)
  prompt: str | None = None
  source_name: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True, slots=True)
class ParallelRecord:
  """A sentence and its translation; `source_name` as in a `RetrievalRecord`."""

  source: str
  target: str
  source_language: str
  target_language: str
  source_name: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True, slots=True)
class MonolingualRecord:
  """A sentence in one language; `source_name` as in a `RetrievalRecord`."""

  text: str
  language: str
  source_name: str = dataclasses.field(default="", compare=False)


Record = TypeVar("Record", RetrievalRecord, ParallelRecord, MonolingualRecord)


def of_source(name: str, rows: Iterable[Record]) -> Iterator[Record]:
  """Yields the records with the name of their source."""
  for record in rows:
    yield dataclasses.replace(record, source_name=name)


def texts(
  record: RetrievalRecord | ParallelRecord | MonolingualRecord,
) -> Iterator[tuple[str, str]]:
  """Yields each (title, text) of a record; the title is "" if there is none."""
  match record:
    case RetrievalRecord():
      yield "", record.question
      for passage in (*record.positives, *record.hard_negatives):
        yield passage.title, passage.text
    case ParallelRecord():
      yield "", record.source
      yield "", record.target
    case MonolingualRecord():
      yield "", record.text


@dataclasses.dataclass(frozen=True)
class RetrievalTest:
  """A test collection of one language, judged by TREC qrels.

  Attributes:
    language: Language code, e.g. "de".
    split: "test", or "dev" for a set that may select the best checkpoint.
    passages: The corpus; passage ids are unique.
    queries: Query id to query text. A query without a judgement is searched,
      but not part of any mean.
    qrels: Query id to passage id to relevance, an int; a passage is relevant if
      it is above 0. A judged passage that is not among the passages counts as
      not found.
    own_passages: The ids of queries that are also passages of the corpus, with
      the same id (as in BEIR's ArguAna and Quora). They do not find themselves.
    notes: Lines that say what is unusual in the files.
  """

  language: str
  split: str
  passages: tuple[Passage, ...]
  queries: Mapping[str, str]
  qrels: Mapping[str, Mapping[str, int]]
  own_passages: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class TranslationTest:
  """Line-aligned sentences, of which each must find its translation."""

  source_language: str
  target_language: str
  sources: tuple[str, ...]
  targets: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class MiningTest:
  """Two monolingual texts, and which of their sentences are translations.

  Attributes:
    source_language: Language code.
    target_language: Language code.
    split: "test", or the name of another split, on which a threshold is set.
    sources: Id to sentence.
    targets: Id to sentence.
    gold: The pairs (source id, target id) that are translations.
  """

  source_language: str
  target_language: str
  split: str
  sources: Mapping[str, str]
  targets: Mapping[str, str]
  gold: Set[tuple[str, str]]


class TrainingFile(Protocol):
  """A file that must hold the same bytes at each reading.

  Attributes:
    sha256: The hash of the bytes; "" before the file was first read.
  """

  sha256: str

  def __fspath__(self) -> str: ...

  def check(self, sha256: str) -> None:
    """Keeps the first hash; raises RecordError if a later one differs."""
    ...

  def read_hash(self) -> str:
    """Reads the file and returns its hash; raises as `check` does."""
    ...


@dataclasses.dataclass(frozen=True)
class Part:
  """A part of a stream that is read at once, such as a file.

  Attributes:
    files: The files that are read.
    read: Yields the records; it reports bad ones to its argument.
    notes: Returns lines that say what the last pass has found.
  """

  files: Sequence[TrainingFile]
  read: Callable[["BadRecords"], Iterator[Any]]
  notes: Callable[[], Sequence[str]] = tuple


def chained(
  parts: Sequence[Part], bad_records: "BadRecords"
) -> Callable[[], Iterator[Any]]:
  """Returns the function that yields the records of all parts, in order."""
  return lambda: itertools.chain.from_iterable(
    part.read(bad_records) for part in parts
  )


@dataclasses.dataclass(frozen=True)
class Collection:
  """All that a training run reads: three streams and the tests.

  Most fields are callables, so that nothing is read before it is needed. Each
  call starts a new pass in the same order.

  Attributes:
    name: Name for progress bars and provenance.
    retrieval: Yields the question-passage pairs.
    parallel: Yields the translations.
    monolingual: Yields the plain sentences.
    tests: Returns the retrieval tests, "test" and "dev" splits.
    translation_tests: Returns the translation-finding tests.
    groups: Language to the name of its group in the report, e.g.
      {"de": "with parallel text"}. The report averages within groups, in
      order of first appearance.
    fingerprint: Returns a hash of the files of the three streams. It does not
      change when their folder is moved. Streams and fingerprint must come from
      the same bytes: a file that changes in between is an error.
    notes: Returns lines that say what the collection left out.
    sources: Returns the names of the records' sources, without reading records;
      None if they are not known.
    parts: The parts of each stream, in order, by its name; together they are
      the stream. So several processes can read it. None: one process reads it.
    files: The files of the three streams, by their names in the folder. A token
      store can be used when they are gone.
    mining_tests: Returns the tests of bitext mining.
  """

  name: str
  retrieval: Callable[[], Iterable[RetrievalRecord]]
  parallel: Callable[[], Iterable[ParallelRecord]]
  monolingual: Callable[[], Iterable[MonolingualRecord]]
  tests: Callable[[], tuple[RetrievalTest, ...]]
  translation_tests: Callable[[], tuple[TranslationTest, ...]]
  groups: Mapping[str, str]
  fingerprint: Callable[[], str]
  notes: Callable[[], Sequence[str]]
  sources: Callable[[], Sequence[str] | None] = lambda: None
  parts: Mapping[str, Sequence[Part]] | None = None
  files: Mapping[str, TrainingFile] = dataclasses.field(default_factory=dict)
  mining_tests: Callable[[], tuple[MiningTest, ...]] = tuple


class RecordError(ValueError):
  """A record cannot be used; the message names its place."""


def printable(text: str) -> str:
  """Puts a text in one line, without control characters or lone surrogates."""
  return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class BadRecords:
  """Handles bad records: raises at the first one, or skips and counts them.

  Attributes:
    policy: "error" or "skip".
    setting: The field or flag that sets the policy, for messages.
    count: The number of skipped records.
    first: The first few messages, which are shown with the count.
    removed: Parts that readers removed from good texts: the part's name to its
      number and the first file.
  """

  def __init__(
    self, policy: str = "error", setting: str = "data.on_bad_record"
  ):
    if policy not in ("error", "skip"):
      raise ValueError(f"{setting} is {policy!r}; use 'error' or 'skip'.")
    self.policy = policy
    self.setting = setting
    self.count = 0
    self.first: list[str] = []
    self.removed: dict[str, list[Any]] = {}

  def report(self, path: str, line: int, field: str, problem: str) -> None:
    """Raises or counts one bad record.

    Args:
      path: The file.
      line: Line in the file, from 1.
      field: The record's field, in the file's own spelling.
      problem: What is wrong and what to do, as one clause.

    Raises:
      RecordError: if the policy is "error".
    """
    message = printable(f"{path}:{line}: {field}: {problem}")
    if self.policy == "error":
      raise RecordError(f"{message} ({self.setting}=skip skips it.)")
    self.count += 1
    if len(self.first) < _SHOWN:
      self.first.append(message)

  def count_removed(self, path: str, what: str) -> None:
    """Counts a part that a reader removed from a good text."""
    self.removed.setdefault(what, [0, printable(path)])[0] += 1

  def drain(self) -> dict[str, Any]:
    """Returns all counts, by attribute, and resets them."""
    drained = {
      "count": self.count,
      "first": self.first,
      "removed": self.removed,
    }
    self.count, self.first, self.removed = 0, [], {}
    return drained


def merge_bad(all_bad: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
  """Adds up what `BadRecords.drain` has returned for several parts, in order.

  Returns:
    What it would have returned for all parts together.
  """
  merged: dict[str, Any] = {"count": 0, "first": [], "removed": {}}
  for bad in all_bad:
    merged["count"] += bad["count"]
    merged["first"] = [*merged["first"], *bad["first"]][:_SHOWN]
    for what, (count, path) in bad["removed"].items():
      merged["removed"].setdefault(what, [0, path])[0] += count
  return merged


class BadRecordsOfFile(BadRecords):
  """Counts the bad records of one file, and reports them to `bad_records`, too.

  A file without a good record is an error under any policy: its name does not
  say its format, or its text has another encoding.
  """

  def __init__(self, bad_records: BadRecords):
    super().__init__(bad_records.policy, bad_records.setting)
    self._bad_records = bad_records

  def report(self, path: str, line: int, field: str, problem: str) -> None:
    """Raises or counts one bad record; see `BadRecords.report`."""
    self._bad_records.report(path, line, field, problem)
    super().report(path, line, field, problem)

  def count_removed(self, path: str, what: str) -> None:
    """Counts a removed part; see `BadRecords.count_removed`."""
    self._bad_records.count_removed(path, what)

  def check_some(self, path: str | os.PathLike, good: int) -> None:
    """Refuses a file that has bad records only.

    Args:
      path: The file, for the message.
      good: The number of its good records.

    Raises:
      RecordError: if there is no good record, but a bad one.
    """
    if self.count and not good:
      raise RecordError(
        f"{path} holds no record that can be used. Bad records:"
        f" {self.count:,}, the first: {self.first[0]}"
      )


def describe_bad(kind: str, bad: Mapping[str, Any]) -> str:
  """Describes in lines the skipped records and the removed parts of texts.

  Args:
    kind: "training" or "test".
    bad: From `BadRecords.drain`.
  """
  lines = [f"bad {kind} records: none"]
  if bad["count"]:
    lines = [
      f"bad {kind} records skipped: {bad['count']:,}, the first:",
      *(f"  {message}" for message in bad["first"]),
    ]
  # An older token store does not have this count.
  for what, (count, path) in bad.get("removed", {}).items():
    lines.append(f"removed {what}: {count:,}, the first in {path}")
  return "\n".join(lines)
