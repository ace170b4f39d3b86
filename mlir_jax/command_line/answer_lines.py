"""Lays out found passages for a terminal, in any script."""

import unicodedata
from collections.abc import Iterator, Sequence

from mlir_jax.retrieval import passage_texts

# Lines of a passage that are shown.
_SHOWN = 8
_INDENT = 4
_NARROWEST = 20
# Order a part of a line from right to left, apart from the rest of the line.
_ISOLATE, _END = "\u2067", "\u2069"
# Characters that would change the order of what follows them on the screen.
_ORDERING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F}


def clean(text: str) -> str:
  """Returns a text without what a terminal would obey.

  Characters that join others stay: Persian and Hindi need them.
  """
  return "".join(
    " " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c
    for c in text
    if ord(c) not in _ORDERING
  )


def _width(character: str) -> int:
  """Returns how many columns a character takes: 0, 1 or 2."""
  if unicodedata.category(character) in ("Mn", "Me", "Cf"):
    return 0
  return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _pieces(word: str, columns: int) -> Iterator[tuple[str, int]]:
  """Yields a word with its width; in pieces if it is wider than a line."""
  piece, width = "", 0
  for character in word:
    taken = _width(character)
    if taken and width + taken > columns:
      yield piece, width
      piece, width = "", 0
    piece, width = piece + character, width + taken
  if piece:
    yield piece, width


def wrap(text: str, columns: int) -> list[str]:
  """Returns the lines of a text, each at most so many columns wide.

  Lines end between words. Text without spaces, as in Chinese or Thai, fills
  each line. A mark stays with its letter.
  """
  lines, line, width = [], "", 0
  for word in text.split():
    for number, (piece, taken) in enumerate(_pieces(word, columns)):
      space = bool(line) and not number
      if line and width + space + taken > columns:
        lines.append(line)
        line, width, space = "", 0, False
      line += " " * space + piece
      width += space + taken
  return [*lines, line] if line else lines


def _is_right_to_left(text: str) -> bool:
  """Whether the first letter of a text is of a script like Arabic."""
  for character in text:
    direction = unicodedata.bidirectional(character)
    if direction in ("L", "R", "AL"):
      return direction != "L"
  return False


def _directed(lines: Sequence[str], text: str) -> list[str]:
  """Returns the lines of a text, each in the direction of the text."""
  if not _is_right_to_left(text):
    return list(lines)
  return [f"{_ISOLATE}{line}{_END}" for line in lines]


def lay_out(
  answers: Sequence[tuple[float, passage_texts.PassageText]], columns: int
) -> Iterator[str]:
  """Yields the lines that show the found passages of a query.

  Args:
    answers: Scores and passages, the best one first.
    columns: The width of the terminal.
  """
  columns = max(columns - _INDENT, _NARROWEST)
  for rank, (score, passage) in enumerate(answers, start=1):
    parts = [f"{rank:>2}.", f"{score:.4f}"]
    parts += [passage.language] if passage.language else []
    parts.append(f"[{clean(passage.passage_id)}]")
    title = clean(passage.title).strip()
    yield "  ".join([*parts, *_directed([title] if title else [], title)])
    if passage.text is None:
      yield " " * _INDENT + "(its text was not found)"
      continue
    text = clean(passage.text)
    lines = wrap(text, columns)
    if len(lines) > _SHOWN:
      lines = [*lines[:_SHOWN], "…"]
    for line in _directed(lines, text):
      yield " " * _INDENT + line
