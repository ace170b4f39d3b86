"""The records that every source yields and the token store is built from."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True, slots=True)
class Passage:
  """A passage: what is searched for."""

  text: str
  title: str = ""
  # Of its file; "" for none. In training it is checked, and nothing more: a
  # passage is known by its text.
  passage_id: str = ""


class Place(NamedTuple):
  """Where a record stands: its file, its line and its number, from 1."""

  file: str
  line: int
  number: int

  def __str__(self) -> str:
    return f"{self.file}:{self.line}: record {self.number}"


@dataclasses.dataclass(frozen=True, slots=True)
class RetrievalRecord:
  """A question with the passages that answer it, and some that do not.

  The token store drops and counts hard negatives without text, and those that
  are a positive of the question: a reader need not.

  Attributes:
    question: The question.
    positives: At least one.
    hard_negatives: May be none.
    language: Of all of them.
    place: Where it was read. A passage id that has two texts in one file is
      refused, or ignored and counted; without a place, ids are not looked at.
  """

  question: str
  positives: tuple[Passage, ...]
  hard_negatives: tuple[Passage, ...] = ()
  language: str = "en"
  place: Place | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True, slots=True)
class ParallelRecord:
  """A sentence and its translation."""

  source: str
  target: str
  source_language: str
  target_language: str


@dataclasses.dataclass(frozen=True, slots=True)
class MonolingualRecord:
  """A sentence in one language."""

  text: str
  language: str


def texts(
  record: RetrievalRecord | ParallelRecord | MonolingualRecord,
) -> Iterator[tuple[str, str]]:
  """Every (title, text) of a record, hard negatives included; "" for none."""
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
    split: "test", or "dev" for the English set that selects models.
    passages: The corpus; passage ids are unique.
    queries: Query id to query text. A query without a judgement is searched
      for, but takes part in no mean.
    qrels: Query id to passage id to relevance (an int, above 0 relevant). A
      judged passage that is not among the passages counts as not found.
    own_passages: The queries that are passages of the corpus under their own
      id (as in BEIR's ArguAna and Quora). They do not find themselves.
    notes: Lines that say what in its files is unusual.
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
  """Line-aligned sentences; each side's translation is to be found."""

  source_language: str
  target_language: str
  sources: tuple[str, ...]
  targets: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Collection:
  """Everything a training run reads: three streams and the tests.

  The fields are callables, so that nothing is read before it is needed and
  each call starts a fresh pass in the same order.

  Attributes:
    name: Name for progress bars and provenance.
    retrieval: Yields the question-passage pairs.
    parallel: Yields the translations.
    monolingual: Yields the plain sentences.
    tests: Returns the retrieval tests, "test" and "dev" splits.
    translation_tests: Returns the translation-finding tests.
    groups: Language to the name of the group it is reported in, e.g.
      {"de": "with parallel text"}; the report averages within groups, in
      order of first appearance.
    fingerprint: Returns a hash that changes with the files that the three
      streams are read from, wherever their folder stands. Streams and
      fingerprint of one collection are of the same bytes: a file that changes
      in between is an error.
    notes: Returns lines that say what was left out when it was made.
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


class RecordError(ValueError):
  """A record that cannot be used, with the place where it stands."""


def printable(text: str) -> str:
  """The text in one line, without control characters or lone surrogates."""
  return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class BadRecords:
  """What to do with a bad record: stop at it, or skip and count it.

  Attributes:
    policy: "error" or "skip".
    setting: The field or flag that sets the policy, for messages.
    count: How many were skipped.
    first: The first few messages, to be shown with the count.
    removed: What readers removed from texts that are good without it: its name
      to how often, and the first file.
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
      raise RecordError(f"{message} ({self.setting}=skip goes on.)")
    self.count += 1
    if len(self.first) < 5:
      self.first.append(message)

  def count_removed(self, path: str, what: str) -> None:
    """Counts what is removed from a text that is good without it."""
    self.removed.setdefault(what, [0, printable(path)])[0] += 1

  def drain(self) -> dict[str, Any]:
    """Returns all counts, by attribute, and starts again from none."""
    drained = {
      "count": self.count,
      "first": self.first,
      "removed": self.removed,
    }
    self.count, self.first, self.removed = 0, [], {}
    return drained


class BadRecordsOfFile(BadRecords):
  """Counts the bad records of one file, and passes them on.

  A file without a good record is an error under any policy: it has another
  format than its name says, or its text is in another encoding.
  """

  def __init__(self, bad: BadRecords):
    super().__init__(bad.policy, bad.setting)
    self._bad = bad

  def report(self, path: str, line: int, field: str, problem: str) -> None:
    """Passes one on and counts it; see `BadRecords.report`."""
    self._bad.report(path, line, field, problem)
    super().report(path, line, field, problem)

  def count_removed(self, path: str, what: str) -> None:
    """Passes one on; see `BadRecords.count_removed`."""
    self._bad.count_removed(path, what)

  def check_some(self, path: str | os.PathLike, good: int) -> None:
    """Refuses a file of bad records alone.

    Args:
      path: The file, for the message.
      good: How many of its records can be used.

    Raises:
      RecordError: if there are none, and some are bad.
    """
    if self.count and not good:
      raise RecordError(
        f"{path} holds no record that can be used. Bad records:"
        f" {self.count:,}, the first: {self.first[0]}"
      )


def describe_bad(kind: str, bad: Mapping[str, Any]) -> str:
  """How many records were skipped, and the first few of them, in lines.

  What was removed from records that stay is told, too.

  Args:
    kind: What they were for: "training" or "test".
    bad: From `BadRecords.drain`.
  """
  lines = [f"bad {kind} records: none"]
  if bad["count"]:
    lines = [
      f"bad {kind} records skipped: {bad['count']:,}, the first:",
      *(f"  {message}" for message in bad["first"]),
    ]
  # A token store of before has no such count.
  for what, (count, path) in bad.get("removed", {}).items():
    lines.append(f"removed {what}: {count:,}, the first in {path}")
  return "\n".join(lines)
