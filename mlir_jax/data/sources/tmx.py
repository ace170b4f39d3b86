"""Reads translations from TMX, the format of translation memories.

A file is XML. Each unit (`tu`) holds a sentence in several languages: a variant
(`tuv`, with `xml:lang`) has it in a segment (`seg`). Memory holds one unit at a
time. A document type is passed over and never fetched; a file that declares
entities is refused, because they may grow without bound.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from xml.parsers import expat

from mlir_jax.data import languages, records
from mlir_jax.data.sources import files, record_fields

_CHUNK_BYTES = 1 << 16
# A longer segment is no sentence; the file may be damaged.
_LONGEST_SEGMENT = 1_000_000  # In characters.
# The codes of another program within a segment are no text of it.
_CODES = frozenset(("bpt", "ept", "it", "ph", "ut"))


class _Units:
  """Collects the units of a file while expat parses it.

  Attributes:
    ready: The units that are whole: the line, and (language tag, sentence) of
      each variant.
  """

  def __init__(self, path: str | os.PathLike):
    self.ready: list[tuple[int, list[tuple[str, str]]]] = []
    self._path = path
    self._line = 0
    self._variants: list[tuple[str, str]] | None = None  # None: not in a unit.
    self._tag: str | None = None  # Of the variant.
    self._segment: list[str] | None = None  # None: not in a segment.
    self._size = 0
    self._codes = 0  # Open elements of `_CODES`.
    self._root = ""
    self._parser = expat.ParserCreate()
    self._parser.buffer_text = True
    self._parser.StartElementHandler = self._start
    self._parser.EndElementHandler = self._end
    self._parser.CharacterDataHandler = self._text
    self._parser.EntityDeclHandler = self._refuse_entity
    self._parser.SkippedEntityHandler = self._refuse_entity

  def parse(self, data: bytes, *, final: bool = False) -> None:
    """Parses the next bytes of the file.

    Raises:
      RecordError: if they are not XML, or declare an entity.
    """
    try:
      self._parser.Parse(data, final)
    except expat.ExpatError as error:
      raise records.RecordError(
        f"{self._path}:{error.lineno}: is not XML:"
        f" {expat.ErrorString(error.code)}; fetch or write the file again."
      ) from None
    except (LookupError, ValueError) as error:  # An unknown encoding.
      if isinstance(error, records.RecordError):
        raise
      raise records.RecordError(
        f"{self._path}:1: is not XML that can be read: {error}; convert it to"
        " UTF-8."
      ) from None

  def _error(self, problem: str) -> records.RecordError:
    return records.RecordError(
      f"{self._path}:{self._parser.CurrentLineNumber}: {problem}"
    )

  def _refuse_entity(self, name: str, *_) -> None:
    raise self._error(
      f"it has the entity {record_fields.show(name)}, which is not read: write"
      " its text in its place."
    )

  def _start(self, name: str, attributes: dict[str, str]) -> None:
    if not self._root:
      self._root = name
      if name != "tmx":
        shown = record_fields.show(name)
        raise self._error(f"the file should begin with <tmx>, not {shown}.")
    if name == "tu":
      self._line = self._parser.CurrentLineNumber
      self._variants = []
    elif name == "tuv" and self._variants is not None:
      self._tag = attributes.get("xml:lang", attributes.get("lang", ""))
    elif name == "seg" and self._tag is not None:
      self._segment, self._size, self._codes = [], 0, 0
    elif name in _CODES and self._segment is not None:
      self._codes += 1

  def _end(self, name: str) -> None:
    if name in _CODES and self._segment is not None:
      self._codes -= 1
    elif name == "seg" and self._segment is not None:
      if self._variants is not None and self._tag is not None:
        self._variants.append((self._tag, "".join(self._segment)))
      self._segment = None
    elif name == "tuv":
      self._tag = None
    elif name == "tu" and self._variants is not None:
      self.ready.append((self._line, self._variants))
      self._variants = None

  def _text(self, text: str) -> None:
    if self._segment is None or self._codes:
      return
    self._size += len(text)
    if self._size > _LONGEST_SEGMENT:
      raise self._error(
        f"a segment has more than {_LONGEST_SEGMENT:,} characters, so it is no"
        " sentence; remove its unit."
      )
    self._segment.append(text)


def _read_units(
  path: str | os.PathLike,
) -> Iterator[tuple[int, list[tuple[str, str]]]]:
  """Yields the line and the variants of each unit."""
  units = _Units(path)
  with files.open_bytes(path) as file:
    while data := file.read(_CHUNK_BYTES):
      units.parse(data)
      yield from units.ready
      units.ready.clear()
    units.parse(b"", final=True)
    yield from units.ready


def _code(tag: str) -> str:
  """Returns the code of a variant's tag; "" if it names no language."""
  try:
    return languages.code_of_tag(tag)
  except ValueError:
    return ""


def read(
  path: str | os.PathLike,
  codes: Sequence[str],
  bad_records: records.BadRecords,
) -> Iterator[records.ParallelRecord]:
  """Reads the pairs of each unit, of all the languages that are asked for.

  If a unit has two variants in a language, each is in a pair.

  Args:
    path: The file, plain or gzipped.
    codes: Two or more languages. Variants in others are not read.
    bad_records: Receives pairs with a side that is not text; counts units that
      have fewer than two of the languages.

  Yields:
    The pairs, in the file's order.

  Raises:
    RecordError: for a bad pair, if the policy is "error"; under any policy if
      the file is not TMX, declares an entity, or holds no pair.
  """
  bad_records = records.BadRecordsOfFile(bad_records)
  pairs = 0
  for line, variants in _read_units(path):
    found: dict[str, list[str]] = {code: [] for code in codes}
    for tag, text in variants:
      if (code := _code(tag)) in found:
        found[code].append(text)
    if sum(map(bool, found.values())) < 2:
      bad_records.count_removed(
        str(path), f"units without two of {', '.join(codes)}"
      )
    for first, second in itertools.combinations(found, 2):
      for source, target in itertools.product(found[first], found[second]):
        try:
          # A segment may be written over several lines.
          texts = [
            record_fields.check_text(" ".join(text.split()), code)
            for text, code in ((source, first), (target, second))
          ]
        except record_fields.FieldError as error:
          bad_records.report(str(path), line, error.field, error.problem)
          continue
        pairs += 1
        yield records.ParallelRecord(texts[0], texts[1], first, second)
  bad_records.check_some(path, pairs)
  if not pairs:
    raise records.RecordError(
      f"{path} holds no unit with two of the languages of its name:"
      f" {', '.join(codes)}."
    )
