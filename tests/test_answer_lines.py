"""Found passages are readable on a terminal, in any script."""

import pytest

from mlir_jax.command_line import answer_lines
from mlir_jax.retrieval import passage_texts


def shown(text, title="", columns=30, language="en"):
  passage = passage_texts.PassageText("d1", language, title, text)
  return [*answer_lines.lay_out([(0.5, passage)], columns)]


@pytest.mark.parametrize(
  "text,columns,lines",
  [
    ("one two three", 7, ["one two", "three"]),
    ("one  two\tthree", 20, ["one two three"]),
    ("a incomprehensible b", 8, ["a", "incompre", "hensible", "b"]),
    ("川は古い町を", 6, ["川は古", "い町を"]),  # Two columns each.
    ("e\u0301e\u0301e\u0301", 2, ["e\u0301e\u0301", "e\u0301"]),
    ("", 9, []),
  ],
)
def test_text_is_wrapped_by_its_width_on_the_screen(text, columns, lines):
  assert answer_lines.wrap(text, columns) == lines


def test_a_text_from_right_to_left_is_kept_apart():
  first, *text = shown("يمر النهر عبر the المدينة القديمة", "النهر", 26, "ar")
  assert first == " 1.  0.5000  ar  [d1]  \u2067النهر\u2069"
  assert len(text) == 2
  for line in text:  # Also the one that begins with a Latin word.
    assert line.startswith("    \u2067") and line.endswith("\u2069")


def test_a_passage_cannot_control_the_terminal_or_the_order_of_the_screen():
  lines = shown("a\x1b[31m b\u202ec\ud800\u2028d می\u200cخواهم", columns=80)
  assert lines[1].split() == ["a", "[31m", "bc", "d", "می\u200cخواهم"]


def test_a_long_passage_is_cut_and_a_missing_one_is_said():
  assert len(shown("word " * 200)) == 1 + 8 + 1
  assert shown("word " * 200)[-1] == "    …"
  assert shown(None, language="") == [
    " 1.  0.5000  [d1]",
    "    (its text was not found)",
  ]
