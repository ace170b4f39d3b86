"""Sentences and translations are read line by line, and stay aligned."""

import itertools

import pytest
import source_files

from mlir_jax.data import records
from mlir_jax.data.sources import (
  moses,
  plain_text,
)


def _read_moses(folder, source, target, bad):
  return [
    (pair.source, pair.target)
    for pair in moses.read(
      source_files.write(folder / "a.en-de.en", source),
      source_files.write(folder / "a.en-de.de.gz", target),
      "en",
      "de",
      bad,
    )
  ]


def test_translations_stay_aligned_around_a_bad_line(tmp_path):
  source = b"one\n\nthree\n\xff\nfive\nsix\n"
  target = "eins\nzwei\n \nvier\nfünf\n".encode() + b"\xff"
  bad = source_files.skipping()
  assert _read_moses(tmp_path, source, target, bad) == [
    ("one", "eins"),
    ("five", "fünf"),
  ]
  assert bad.count == 4
  assert "a.en-de.en:2: en: is empty" in bad.first[0]
  assert "a.en-de.de.gz:3: de: is empty" in bad.first[1]
  assert "a.en-de.en:4: text: is not UTF-8" in bad.first[2]
  assert "a.en-de.de.gz:6: text: is not UTF-8" in bad.first[3]
  with pytest.raises(
    records.RecordError, match=r"a\.en-de\.en:2: en: is empty"
  ):
    _read_moses(tmp_path, source, target, source_files.strict())


def test_a_pair_that_is_bad_on_both_sides_counts_once(tmp_path):
  bad = source_files.skipping()
  pairs = _read_moses(tmp_path, b"one\n\xff\n", b"eins\n\xff\n", bad)
  assert pairs == [("one", "eins")]
  assert bad.count == 1


_NO_TEXT = '{"question": "q", "positive_ctxs": []}'


@pytest.mark.parametrize("source, target", [(3, 5), (5, 3), (0, 1)])
def test_differing_line_counts_are_an_error_whatever_the_policy(
  tmp_path, source, target
):
  with pytest.raises(
    records.RecordError, match=rf"has {source} lines, but .* has {target}:"
  ):
    _read_moses(
      tmp_path, "a\n" * source, "b\n" * target, source_files.skipping()
    )


def test_empty_parallel_files_are_an_error(tmp_path):
  with pytest.raises(records.RecordError, match="are empty"):
    _read_moses(tmp_path, "", "", source_files.skipping())


def test_blank_lines_are_ignored_between_documents_and_at_the_end(tmp_path):
  pairs = [("one", "eins"), ("three", "drei")]
  for source, target in itertools.product(
    ("one\n\nthree", "one\n\u200b\nthree\n \n\n\n"),
    ("eins\n\ndrei\n", "eins\r\n\r\ndrei\r\n\r\n"),
  ):
    assert _read_moses(tmp_path, source, target, source_files.strict()) == pairs
  with pytest.raises(records.RecordError, match=r"has 3 lines, but .* has 5:"):
    _read_moses(
      tmp_path, "1\n2\n3\n\u200b\n", "1\n2\n3\n\n5\n", source_files.skipping()
    )


def test_a_number_before_a_sentence_is_not_text(tmp_path):
  """As in the Leipzig corpora."""
  path = source_files.write(
    tmp_path / "a.de.txt", "1\tEin Satz.\n12\t3 Sätze.\n4 a\tb\n"
  )
  bad = source_files.strict()
  texts = [record.text for record in plain_text.read(path, "de", bad)]
  assert texts == ["Ein Satz.", "3 Sätze.", "4 a\tb"]
  pairs = _read_moses(tmp_path, "7\tone\n", "7\teins\n", bad)
  assert pairs == [("one", "eins")]
  counts = {"numbers before sentences": [4, str(path)]}
  assert bad.drain()["removed"] == counts
  assert _read_moses(
    tmp_path,
    "1\tone\n2\t\u200b\n",
    "1\teins\n2\t\u200b\n",
    source_files.strict(),
  ) == [("one", "eins")]


def test_a_number_is_text_where_the_first_sentence_has_none(tmp_path):
  path = source_files.write(tmp_path / "a.de.txt", "\nEin Satz.\n3\tSätze.\n")
  bad = source_files.strict()
  texts = [record.text for record in plain_text.read(path, "de", bad)]
  assert texts == ["Ein Satz.", "3\tSätze."]
  pairs = _read_moses(tmp_path, "one\n3\ttwo\n", "eins\n3 zwei\n", bad)
  assert pairs == [("one", "eins"), ("3\ttwo", "3 zwei")]
  assert not bad.drain()["removed"]


@pytest.mark.parametrize(
  "name, content",
  [
    ("a.json", f"[{_NO_TEXT},{_NO_TEXT}]"),
    ("a.jsonl", f"{_NO_TEXT}\n{_NO_TEXT}\n\n"),
    ("a.fi.txt", b"\xff\n\n\xfe\n"),
    ("a.en-de.en", "\none\n"),
    ("docs.jsonl.gz", '{"docid": "a"}\n{"docid": "b"}\n'),
    ("topic.test.tsv", "one\ntwo\n"),
    ("qrels.test.txt.gz", "q d 1\nq e 1\n"),
  ],
)
def test_a_file_of_bad_records_alone_is_an_error_whatever_the_policy(
  tmp_path, name, content
):
  bad = source_files.skipping()
  folder = source_files.write_test(tmp_path)
  if name.startswith("docs"):
    folder /= "collection"
  path = source_files.write(folder / name, content)
  with pytest.raises(
    records.RecordError, match=r"can be used\. Bad records: 2, the first: .*:\d"
  ) as error:
    if name in ("a.json", "a.jsonl"):
      list(source_files.read_pairs(path, bad))
    elif name == "a.fi.txt":
      list(plain_text.read(path, "fi", bad))
    elif name == "a.en-de.en":
      other = source_files.write(folder / "a.en-de.de", "eins\n\n\n")
      list(moses.read(path, other, "en", "de", bad))
    else:
      source_files.read_tests(tmp_path, bad)
  assert str(path) in str(error.value)


def test_blank_lines_are_not_sentences(tmp_path):
  path = source_files.write(tmp_path / "a.fi.txt", "yksi\n\n \nkaksi \n")
  assert list(plain_text.read(path, "fi", source_files.strict())) == [
    records.MonolingualRecord("yksi", "fi"),
    records.MonolingualRecord("kaksi", "fi"),
  ]
  with pytest.raises(records.RecordError, match="holds no sentence"):
    list(
      plain_text.read(
        source_files.write(path, "\n\n"), "fi", source_files.skipping()
      )
    )
