"""Defines what a format of question-passage pairs is."""

import abc
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from mlir_jax.data import records
from mlir_jax.data.sources import files


class Corpus(Protocol):
  """The passages to which records refer by id.

  Attributes:
    files: Their files.
  """

  files: tuple[files.UnchangedFile, ...]

  def read(self, bad_records: records.BadRecords, reader: str = "") -> None:
    """Reads the passages, unless that was done before.

    Args:
      bad_records: Receives bad passages.
      reader: Names who reads. Each pass of the first reader reports the bad
        passages.
    """
    ...

  def find(self, passage_id: str, field: str) -> records.Passage:
    """Returns the passage of an id.

    Args:
      passage_id: The id.
      field: The field that holds it, for the message.

    Raises:
      FieldError: if there is no such passage.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Context:
  """What a format knows about a record besides its fields.

  Attributes:
    place: The record's place.
    bad_records: Receives bad hard negatives of a good record.
    corpus: The passages to which records refer by id.
    unused: Receives the fields that hold something and are not used.
  """

  place: records.Place
  bad_records: records.BadRecords
  corpus: Corpus
  unused: set[str] = dataclasses.field(default_factory=set)

  def note_unused(
    self, value: Any, used: Iterable[str], where: str = ""
  ) -> None:
    """Notes the fields of an object that hold something and are not used.

    Args:
      value: The decoded object.
      used: The names of the fields that are used.
      where: The path to the object, e.g. "positive_ctxs[0]"; "" for the record.
    """
    note_unused(self.unused, value, used, where)


def note_unused(
  unused: set[str], value: Any, used: Iterable[str], where: str
) -> None:
  """Adds to `unused` as `Context.note_unused` says."""
  for name in value.keys() - used:
    if value[name] not in (None, "", [], {}):
      path = f"{where}.{name}" if where else name
      unused.add(re.sub(r"\[\d+\]", "[]", path))


class PairFormat(abc.ABC):
  """A format: the meaning of the fields of a record.

  A record is a decoded JSON object, or a row of a table as a dict. A user's
  format is a subclass of this class, without arguments.

  Attributes:
    name: The name in messages and in `data.format`.
    example: A record, which is shown where a format is not known.
    needs: Groups of field names, the question's first. A record is of this
      format if it has all fields of one of the groups. See `recognizes`.
    by_id: Whether records refer by id to the passages in corpus/.
  """

  name: ClassVar[str]
  example: ClassVar[Mapping[str, Any]]
  needs: ClassVar[Sequence[tuple[str, ...]]]
  by_id: ClassVar[bool] = False

  def recognizes(self, record: Mapping[str, Any]) -> bool:
    """Returns whether a record has the fields of this format."""
    return any(record.keys() >= set(names) for names in self.needs)

  @abc.abstractmethod
  def parse(
    self, record: Mapping[str, Any], context: Context
  ) -> records.RetrievalRecord:
    """Makes a record of training from a record of a file.

    The reader adds the place and the language (see
    `record_fields.LANGUAGE_FIELDS`).

    Args:
      record: The decoded object.
      context: What is known besides. The method calls `note_unused`, so that
        no field is left out in silence.

    Raises:
      FieldError: if the record cannot be used; the functions of
        `record_fields` and `passages` do. For a bad hard negative, the record
        stays; see `passages.read_hard_negatives`.
    """

  @abc.abstractmethod
  def with_negatives(
    self,
    record: Mapping[str, Any],
    passages: Sequence[records.Passage],
    scores: Sequence[float] | None = None,
  ) -> dict[str, Any]:
    """Adds hard negatives to a record of a file, in the format's own fields.

    Args:
      record: A record that `parse` accepts. It is not changed.
      passages: The hard negatives, best first. They follow those that are
        there. A format by id needs their ids.
      scores: The score of each passage; None for none. A format without a
        field for scores leaves them out.

    Returns:
      The new record. All other fields, and the order of fields, are kept.

    Raises:
      ValueError: if the record cannot hold them, e.g. because it has scores of
        all its hard negatives and none are given. It names the field.
    """

  @abc.abstractmethod
  def without_negatives(self, record: Mapping[str, Any]) -> dict[str, Any]:
    """Removes the hard negatives of a record of a file, and their scores.

    Args:
      record: A record that `parse` accepts. It is not changed.

    Returns:
      The new record. All other fields, and the order of fields, are kept.
    """
