"""Only fields with a meaning are read."""

import pytest
import source_files

from mlir_jax.data import records
from mlir_jax.data.sources import record_fields


def test_text_is_empty_where_no_character_is_visible():
  invisible = "\u200b\ufeff\xa0\xad\u2060\u200e\u202e\ufe0f\u3164\u2800\x07\x85"
  for text in ("", " \n", *invisible, invisible, "\U000e0041"):
    assert record_fields.strip(text) == ""
    with pytest.raises(record_fields.FieldError, match="title: is empty"):
      record_fields.check_text(text, "title")
  # Within a word they have a meaning: Persian, an emoji, an accent alone.
  for text in ("می\u200cخواهم", "❤\ufe0f", "\u0301"):
    assert record_fields.strip(f" {text}\n") == text
  with pytest.raises(record_fields.FieldError, match="NUL"):
    record_fields.check_text("a\0b", "text")


@pytest.mark.parametrize(
  "value, problem",
  [
    ('{"id": 1, "contents": "a", "id": 2}', "has the field 'id' twice"),
    ('{"id": NaN, "contents": "a"}', "id: is NaN, which is not JSON"),
    ('{"id": "a", "contents": -Infinity}', "contents: is -Infinity, which"),
    ('{"id": %s, "contents": "a"}' % ("7" * 5_000), "a number of 5,000 digits"),
    ('{"id": %s}' % ("[" * 100_000), "nested too deep"),
    (r'{"id": "\ud800", "contents": "a"}', "id: is not Unicode text"),
    (r'{"\ud800": "\u001b[31m"}', r"the fields are \\ud800"),
    ('{"id": true, "contents": "a"}', "id: is a boolean"),
    ("x" * 9, "is not JSON"),
  ],
)
def test_json_without_a_meaning_is_one_bad_record(tmp_path, value, problem):
  topics, qrels = "q\tquery\n", "q Q0 a 1\n"
  docs = '{"id": "a", "contents": "text"}\n\n' + value + "\n"
  folder = source_files.write_test(tmp_path, docs, topics, qrels)
  bad = source_files.skipping()
  (test,) = source_files.read_tests(tmp_path, bad)
  assert len(test.passages) == bad.count == 1
  assert (folder / "collection/docs.jsonl.gz:3: ").as_posix() in bad.first[0]
  assert bad.first[0].isprintable()
  with pytest.raises(records.RecordError, match=problem):
    source_files.read_tests(tmp_path, source_files.strict())


def test_a_duplicate_key_among_many_is_found_in_linear_time():
  keys = "".join(f'"{number}": 0, ' for number in range(100_000))
  value = record_fields.parse_json(f'{{{keys}"last": 1, "last": 2}}')
  assert value == record_fields.Unusable(
    "an object that has the field 'last' twice"
  )
