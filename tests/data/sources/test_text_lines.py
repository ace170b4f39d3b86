"""Lines end where they should, and a bad line is named."""

import time

import pytest
import source_files

from mlir_jax.data import records
from mlir_jax.data.sources import text_lines


def test_only_newlines_end_lines(tmp_path):
  text = "\ufeffa\u2028b\x85c\r\nd\x0ce\n\n f "
  for name in ("a.txt", "a.txt.gz"):
    path = source_files.write(tmp_path / name, text)
    assert list(text_lines.read_lines(path, source_files.strict())) == [
      (1, "a\u2028b\x85c"),
      (2, "d\x0ce"),
      (3, ""),
      (4, "f"),
    ]
    assert text_lines.count_lines(path) == 4


def test_a_byte_order_mark_before_any_line_is_ignored(tmp_path):
  """As in a file that was joined from several."""
  path = source_files.write(tmp_path / "a.txt", "\ufeffone\n\ufefftwo\n")
  assert list(text_lines.read_lines(path, source_files.strict())) == [
    (1, "one"),
    (2, "two"),
  ]


def test_a_line_that_is_not_utf8_is_named_and_keeps_its_place(tmp_path):
  path = source_files.write(tmp_path / "a.txt", b"one\ntw\xf6\nthree\n")
  with pytest.raises(records.RecordError, match=r"a\.txt:2: text: .*byte 3"):
    list(text_lines.read_lines(path, source_files.strict()))
  bad = source_files.skipping()
  assert list(text_lines.read_lines(path, bad)) == [
    (1, "one"),
    (2, None),
    (3, "three"),
  ]
  assert bad.count == 1


@pytest.mark.parametrize(
  "content, line, problem",
  [
    (b"yksi\rkaksi\rkolme\r", 1, "carriage return"),
    (b"yksi\nkaksi\rkolme\n", 2, "carriage return"),
    (b"yksi\nkak\0si\n", 2, "holds a NUL"),
    ("yksi\nkaksi\n".encode("utf-16-le"), 1, "holds a NUL"),
    ("yksi\nkaksi\n".encode("utf-16-be"), 1, "holds a NUL"),
    ("yksi\nkaksi\n".encode("utf-32-be"), 1, "holds a NUL"),
    ("päivä\n".encode("latin-1"), 1, "not UTF-8"),
  ],
)
def test_what_breaks_lines_is_a_bad_line(tmp_path, content, line, problem):
  path = source_files.write(tmp_path / "a.fi.txt", content)
  with pytest.raises(records.RecordError, match=rf":{line}: text: .*{problem}"):
    list(text_lines.read_lines(path, source_files.strict()))
  bad = source_files.skipping()
  numbered = dict(text_lines.read_lines(path, bad))
  assert numbered[line] is None and bad.count


def test_a_line_of_millions_of_invisible_characters_takes_no_time(tmp_path):
  """A crash may leave millions of zeros in a file."""
  for content in (b"\0" * 20_000_000, b"\x01" * 20_000_000):
    path = source_files.write(tmp_path / "a.txt", content)
    start = time.process_time()
    list(text_lines.read_lines(path, source_files.skipping()))
    assert time.process_time() - start < 2
