"""Checks the fields of a record: JSON values, texts, ids.

A text without a visible character is empty.
"""

import collections
import dataclasses
import functools
import json
import re
import reprlib
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

# A record of any format may say its language in one of these fields.
LANGUAGE_FIELDS = ("language", "lang")

# Format characters, controls, spaces and separators.
_INVISIBLE_CATEGORIES = frozenset(("Cc", "Cf", "Zl", "Zp", "Zs"))
# Invisible characters of other categories, as ranges: Unicode's
# Default_Ignorable_Code_Point (Hangul fillers, Khmer inherent vowels,
# variation selectors), and the blank of Braille.
_INVISIBLE = re.compile(
  "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f"
  "\uffa0\U000e0000-\U000e0fff]"
)

_JSON_TYPES = {
  bool: "a boolean",
  dict: "an object",
  float: "a number",
  int: "a number",
  list: "a list",
  str: "a string",
  type(None): "null",
}

_short = reprlib.Repr()
_short.maxstring = 60


class FieldError(ValueError):
  """A field that cannot be used. The reader adds the file and the line.

  Attributes:
    field: The field, in the file's own spelling.
    problem: What is wrong and what to do, as one clause.
  """

  def __init__(self, field: str, problem: str):
    super().__init__(f"{field}: {problem}")
    self.field = field
    self.problem = problem


class EmptyTextError(FieldError):
  """A field that holds no text: it is null, or nothing in it is visible."""


@dataclasses.dataclass(frozen=True)
class Unusable:
  """Takes the place of a JSON value that has no meaning.

  So a record is refused only if such a field is read, the error names the
  field, and the next record can be read.

  Attributes:
    kind: What the value is, as the words after "is" in a message.
  """

  kind: str


def strip(text: str) -> str:
  """Removes white space around a text; returns "" if nothing is visible.

  Invisible characters within a text stay: Persian is spelled with a
  zero-width non-joiner.
  """
  text = text.strip()
  # In most texts the first character is visible. A damaged file may hold
  # millions of invisible ones in a line, so each distinct one is checked once.
  if any(map(_is_visible, text[:1])) or any(map(_is_visible, set(text))):
    return text
  return ""


def _is_visible(character: str) -> bool:
  return unicodedata.category(
    character
  ) not in _INVISIBLE_CATEGORIES and not _INVISIBLE.match(character)


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Unusable:
  """Makes a JSON object; duplicate keys have no meaning (RFC 8259, 4)."""
  value = dict(pairs)
  if len(value) == len(pairs):
    return value
  counts = collections.Counter(name for name, _ in pairs)
  twice = next(name for name, count in counts.items() if count > 1)
  return Unusable(f"an object that has the field {show(twice)} twice")


def _json_whole_number(digits: str) -> int | Unusable:
  try:
    return int(digits)
  except ValueError:  # Python reads at most 4,300 digits.
    return Unusable(f"a number of {len(digits):,} digits")


# For its `raw_decode`, which decodes a part; `parse_json` decodes a whole text.
JSON_DECODER = json.JSONDecoder(
  object_pairs_hook=_json_object,
  parse_int=_json_whole_number,
  parse_constant=lambda name: Unusable(f"{name}, which is not JSON"),
)
NESTED_TOO_DEEP = "is nested too deep to be a record"


def parse_json(text: str) -> Any:
  """Decodes a line of JSON; parts of the value may be `Unusable`.

  Raises:
    FieldError: if the line is not JSON.
  """
  try:
    return JSON_DECODER.decode(text)
  except json.JSONDecodeError as error:
    raise FieldError(
      "record",
      f"is not JSON: {error.msg} at character {error.pos + 1}; give one object"
      " a line",
    ) from None
  except RecursionError:
    raise FieldError("record", NESTED_TOO_DEEP) from None


def dump_json(value: Mapping[str, Any]) -> bytes:
  """Encodes a record in one line of JSON; `parse_json` decodes it.

  Raises:
    ValueError: if a part of it is `Unusable`, or has no form in JSON; it names
      the field.
  """

  def refuse(part):
    raise ValueError(f"a part of it is {json_type(part)}")

  encode = functools.partial(json.dumps, allow_nan=False, default=refuse)
  try:
    text = encode(value, ensure_ascii=False)
  except ValueError:
    for name, part in value.items():
      try:
        encode(part)
      except ValueError as error:
        raise ValueError(
          f"{show(name)}: cannot be written as JSON: {error}; repair it, or"
          " remove the field."
        ) from None
    raise
  try:
    return text.encode("utf-8")
  except UnicodeEncodeError:  # Half of a surrogate pair, in an unused field.
    return encode(value).encode()


def json_type(value: object) -> str:
  """Names the type of a decoded JSON value, in JSON's words."""
  if isinstance(value, Unusable):
    return value.kind
  # A table's cell may have other types, such as a date.
  return _JSON_TYPES.get(type(value), f"of the type {type(value).__name__}")


def show(text: str) -> str:
  """Quotes a text for a message: shortened, without control characters."""
  return _short.repr(text)


def check_text(value: object, field: str) -> str:
  """Checks that a value is a text, and removes white space around it.

  Raises:
    EmptyTextError: if the value is null or an empty text.
    FieldError: if it is not a string or not Unicode text, or holds a NUL.
  """
  if not isinstance(value, str):
    error = EmptyTextError if value is None else FieldError
    raise error(field, f"is {json_type(value)}; give a string")
  try:
    value.encode("utf-8")
  except UnicodeEncodeError as error:
    raise FieldError(
      field,
      f"is not Unicode text at character {error.start + 1}: bytes that are"
      " not UTF-8, or half of a surrogate pair; repair or remove it",
    ) from None
  if "\0" in value:
    raise FieldError(field, "holds a NUL character; repair or remove it")
  text = strip(value)
  if not text:
    raise EmptyTextError(field, "is empty; give its text or remove the record")
  return text


def get_field(record: object, name: str, where: str = "") -> object:
  """Returns a field of a JSON object.

  Args:
    record: The decoded JSON value, which should be an object.
    name: The field's name.
    where: Path to the object, for messages, e.g. "positive_ctxs[0]"; "" if it
      is the record itself.

  Raises:
    FieldError: if the value is not an object or lacks the field.
  """
  if isinstance(record, Unusable):
    raise FieldError(
      where or name,
      f"{'' if where else 'the record '}is {record.kind}; repair it",
    )
  if not isinstance(record, Mapping):
    raise FieldError(
      where or name,
      f"{'' if where else 'the record '}is {json_type(record)}; give an"
      f' object with "{name}"',
    )
  if name not in record:
    shown = [field if len(field) < 40 else show(field) for field in record]
    raise FieldError(
      f"{where}.{name}" if where else name,
      f"is missing; the fields are {', '.join(shown[:12]) or 'none'}"
      f"{', …' if shown[12:] else ''}",
    )
  return record[name]


def get_text(record: object, name: str, where: str = "") -> str:
  """Returns a field of a JSON object as text.

  It raises as `get_field` and `check_text` do.
  """
  value = get_field(record, name, where)
  return check_text(value, f"{where}.{name}" if where else name)


def check_id(value: object, field: str) -> str:
  """Returns an id as a string. A whole number becomes its digits.

  Raises:
    FieldError: if the value is neither a string nor a whole number, or is
      empty.
  """
  return check_text(str(value) if type(value) is int else value, field)


def optional(
  check: Callable[[object, str], str], value: object, field: str
) -> str:
  """Returns what `check` makes of a value; "" if it is null or blank."""
  try:
    return check(value, field)
  except EmptyTextError:
    return ""
