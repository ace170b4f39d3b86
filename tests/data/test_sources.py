"""Each format is read rightly, and the error for a bad record names it."""

import bz2
import errno
import gzip
import hashlib
import io
import itertools
import json
import lzma
import time
import zipfile

import pytest

from mlir_jax.data import records
from mlir_jax.data.sources import (
  dpr,
  files,
  json_stream,
  moses,
  mr_tydi,
  plain_text,
  record_fields,
  tatoeba,
  text_lines,
)
from mlir_jax.evals import ranking

RECORD = {
  "question": "what is a package?",
  "answers": [],
  "positive_ctxs": [{"title": "dpkg", "text": "An archive.", "psg_id": "7"}],
  "negative_ctxs": [{"title": "", "text": "Random.", "passage_id": "1"}],
  "hard_negative_ctxs": [
    {"title": "apt", "text": "A tool.", "passage_id": 9},
    {"title": None, "text": " No id. "},
  ],
}


def _strict():
  return records.BadRecords("error")


def _skipping():
  return records.BadRecords("skip")


def _write(path, content):
  data = content if isinstance(content, bytes) else content.encode()
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
  return path


def _with(**fields):
  return {**RECORD, **fields}


# --- Files. ---


def test_only_newlines_end_lines(tmp_path):
  text = "\ufeffa\u2028b\x85c\r\nd\x0ce\n\n f "
  for name in ("a.txt", "a.txt.gz"):
    path = _write(tmp_path / name, text)
    assert list(text_lines.read_lines(path, _strict())) == [
      (1, "a\u2028b\x85c"),
      (2, "d\x0ce"),
      (3, ""),
      (4, "f"),
    ]
    assert text_lines.count_lines(path) == 4


def test_a_byte_order_mark_before_any_line_is_ignored(tmp_path):
  """As in a file that was joined from several."""
  path = _write(tmp_path / "a.txt", "\ufeffone\n\ufefftwo\n")
  assert list(text_lines.read_lines(path, _strict())) == [
    (1, "one"),
    (2, "two"),
  ]


def test_a_line_that_is_not_utf8_is_named_and_keeps_its_place(tmp_path):
  path = _write(tmp_path / "a.txt", b"one\ntw\xf6\nthree\n")
  with pytest.raises(records.RecordError, match=r"a\.txt:2: text: .*byte 3"):
    list(text_lines.read_lines(path, _strict()))
  bad = _skipping()
  assert list(text_lines.read_lines(path, bad)) == [
    (1, "one"),
    (2, None),
    (3, "three"),
  ]
  assert bad.count == 1


@pytest.mark.parametrize(
  "damage",
  [
    lambda data: data[:-12],
    lambda data: data[:-4],
    lambda data: data[:40] + b"plain text",
    lambda data: data + b"plain text",
  ],
)
def test_damaged_gzip_data_is_an_error_whatever_the_policy(tmp_path, damage):
  path = tmp_path / "a.txt.gz"
  path.write_bytes(damage(gzip.compress(b"some text\n" * 1000)))
  with pytest.raises(records.RecordError, match=r"a\.txt\.gz: the gzip data"):
    list(text_lines.read_lines(path, _skipping()))


def test_an_error_of_the_disk_names_the_file(tmp_path, monkeypatch):
  class FailingFile(io.FileIO):
    def readinto(self, buffer):
      raise OSError(errno.EIO, "Input/output error")

  path = _write(tmp_path / "a.txt", "one\n")
  monkeypatch.setattr(
    files, "open", lambda path, *_, **__: FailingFile(path), raising=False
  )
  for read in (
    lambda: list(text_lines.read_lines(path, _skipping())),
    files.UnchangedFile(path).read_hash,
  ):
    with pytest.raises(OSError, match=r"error: '\S*a\.txt'"):
      read()


def test_a_file_plain_and_gzipped_is_refused(tmp_path):
  _write(tmp_path / "a.txt", "x\n")
  _write(tmp_path / "a.txt.gz", "x\n")
  with pytest.raises(ValueError, match=r"both a\.txt and a\.txt\.gz"):
    files.list_files(tmp_path)


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
  path = _write(tmp_path / "a.fi.txt", content)
  with pytest.raises(records.RecordError, match=rf":{line}: text: .*{problem}"):
    list(text_lines.read_lines(path, _strict()))
  bad = _skipping()
  numbered = dict(text_lines.read_lines(path, bad))
  assert numbered[line] is None and bad.count


def _zipped(data):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:
    archive.writestr("a.txt", data)
  return buffer.getvalue()


LFS_POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 12345
"""


@pytest.mark.parametrize(
  "name, data, problem",
  [
    ("a.txt", LFS_POINTER, "is a Git LFS pointer"),
    ("a.txt.gz", LFS_POINTER, "is a Git LFS pointer"),
    ("a.txt", gzip.compress(b"x\n"), "is gzipped: add"),
    ("a.txt.gz", b"x\n", "is not gzipped"),
    ("a.txt.gz", gzip.compress(gzip.compress(b"x\n")), "is gzipped twice"),
    ("a.txt", _zipped(b"x\n"), "is a zip archive"),
    ("a.txt.gz", gzip.compress(_zipped(b"x\n")), "is a zip archive"),
    ("a.txt", lzma.compress(b"x\n"), "is an xz file"),
    ("a.txt", bz2.compress(b"x\n"), "is a bzip2 file"),
    ("a.txt", "x\n".encode("utf-16"), "is UTF-16 text"),
  ],
  # Compressed data holds the time, but each process must give a test the same
  # name.
  ids=lambda value: "data" if isinstance(value, bytes) else None,
)
def test_a_file_that_is_not_what_its_name_says_is_refused(
  tmp_path, name, data, problem
):
  path = tmp_path / name
  path.write_bytes(data)
  bad = _skipping()
  for read in (dpr.read(path, bad), plain_text.read(path, "fi", bad)):
    with pytest.raises(ValueError, match=f"{name} {problem}"):
      list(read)
  assert not bad.count


def test_a_line_of_millions_of_invisible_characters_takes_no_time(tmp_path):
  """A crash may leave millions of zeros in a file."""
  for content in (b"\0" * 20_000_000, b"\x01" * 20_000_000):
    path = _write(tmp_path / "a.txt", content)
    start = time.process_time()
    list(text_lines.read_lines(path, _skipping()))
    assert time.process_time() - start < 2


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
  folder = _write_test(tmp_path / "de", docs, topics, qrels)
  bad = _skipping()
  (test,) = mr_tydi.read_tests(folder, "de", ["test"], bad)
  assert len(test.passages) == bad.count == 1
  assert (folder / "collection/docs.jsonl.gz:3: ").as_posix() in bad.first[0]
  assert bad.first[0].isprintable()
  with pytest.raises(records.RecordError, match=problem):
    mr_tydi.read_tests(folder, "de", ["test"], _strict())


def test_a_duplicate_key_among_many_is_found_in_linear_time():
  keys = "".join(f'"{number}": 0, ' for number in range(100_000))
  value = record_fields.parse_json(f'{{{keys}"last": 1, "last": 2}}')
  assert value == record_fields.Unusable(
    "an object that has the field 'last' twice"
  )


@pytest.mark.parametrize(
  "change",
  [
    lambda path: path.write_bytes(b"other\n" * 100),
    lambda path: path.write_bytes(path.read_bytes().replace(b"0", b"1")),
    lambda path: path.write_bytes(path.read_bytes() + b"one more\n"),
  ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_file_that_changes_is_refused_when_its_end_is_read(
  tmp_path, monkeypatch, name, change
):
  monkeypatch.setattr(files, "_BUFFER_BYTES", 64)
  text = "".join(
    f"{hashlib.sha256(b'%d' % n).hexdigest()}\n" for n in range(9_000)
  )
  path = _write(tmp_path / name, text)
  file = files.UnchangedFile(path)
  before = file.read_hash()
  assert len(list(text_lines.read_lines(file, _strict()))) == 9_000
  assert file.read_hash() == before
  reading = text_lines.read_lines(file, _strict())
  assert next(reading) == (1, text[:64])
  change(path)
  with pytest.raises(records.RecordError):  # Cut, or not the same.
    list(reading)
  if name == "a.txt":
    with pytest.raises(records.RecordError, match="has changed since it was"):
      list(text_lines.read_lines(file, _skipping()))
  with pytest.raises(records.RecordError, match="has changed since it was"):
    file.read_hash()


# --- DPR. ---


@pytest.mark.parametrize(
  "name, content",
  [
    ("a.json", json.dumps([RECORD])),
    ("a.json.gz", json.dumps([RECORD])),
    ("a.json", "\ufeff\n" + json.dumps([RECORD], indent=4) + "\n"),
    ("a.jsonl", json.dumps(RECORD) + "\n"),
    ("a.jsonl.gz", json.dumps(RECORD)),
  ],
)
def test_dpr_records_are_read_from_arrays_and_lines(tmp_path, name, content):
  path = _write(tmp_path / name, content)
  assert list(dpr.read(path, _strict())) == [
    records.RetrievalRecord(
      question="what is a package?",
      positives=(records.Passage("An archive.", "dpkg", "7"),),
      hard_negatives=(
        records.Passage("A tool.", "apt", "9"),
        records.Passage("No id."),
      ),
      language="en",
    )
  ]


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 64, 100_000])
@pytest.mark.parametrize("indent", [None, 1])
def test_dpr_reads_the_same_wherever_the_chunks_end(
  tmp_path, monkeypatch, chunk_bytes, indent
):
  monkeypatch.setattr(json_stream, "_CHUNK_BYTES", chunk_bytes)
  values = [
    _with(
      question=f'è "{i}" \\ 😀 [{{,}}]',
      answers=[i, -1.5e-7, True, None, float("-inf"), "\ud83d\ude00"],
    )
    for i in range(20)
  ]
  for ensure_ascii in (True, False):
    content = json.dumps(values, indent=indent, ensure_ascii=ensure_ascii)
    if not ensure_ascii:
      content = content.encode("utf-16", "surrogatepass").decode("utf-16")
    path = _write(tmp_path / "a.json", content)
    questions = [r.question for r in dpr.read(path, _strict())]
    assert questions == [value["question"] for value in values]


def test_dpr_holds_one_record_at_a_time(tmp_path, monkeypatch):
  monkeypatch.setattr(json_stream, "_CHUNK_BYTES", 4096)
  path = _write(tmp_path / "a.json", json.dumps([RECORD] * 2000))
  with files.open_bytes(path) as file:
    array = json_stream._JsonArray(path, file)
    for _ in array.values():
      assert len(array._buffer) <= 2 * 4096


def test_dpr_reads_a_long_record_in_few_attempts(monkeypatch):
  monkeypatch.setattr(json_stream, "_CHUNK_BYTES", 16)
  file = io.BytesIO(json.dumps([_with(question="q" * 100_000)]).encode())
  sizes = []
  read = file.read
  file.read = lambda size: sizes.append(size) or read(size)
  (value,) = json_stream._JsonArray("a.json", file).values()
  assert len(value[2]["question"]) == 100_000
  assert len(sizes) < 20


@pytest.mark.parametrize(
  "value, field, problem",
  [
    ("text", "question", "the record is a string"),
    ({"query": "q", "pos": []}, "question", "the fields are query, pos"),
    (_with(question=" "), "question", "is empty"),
    (_with(question=3), "question", "is a number"),
    (_with(question="\udcff"), "question", "surrogate"),
    (_with(positive_ctxs=[]), "positive_ctxs", "at least one"),
    (_with(positive_ctxs="text"), "positive_ctxs", "is a string; give a list"),
    (_with(positive_ctxs=None), "positive_ctxs", "at least one"),
    (
      _with(positive_ctxs=[{"text": None}]),
      r"positive_ctxs\[0\]\.text",
      "is null",
    ),
    (_with(positive_ctxs=["a"]), r"positive_ctxs\[0\]", "is a string"),
    (
      _with(positive_ctxs=[{"text": "a"}, {"title": "b"}]),
      r"positive_ctxs\[1\]\.text",
      "is missing; the fields are title",
    ),
    (
      _with(positive_ctxs=[{"text": "a", "title": ["b"]}]),
      r"positive_ctxs\[0\]\.title",
      "is a list",
    ),
    (
      _with(positive_ctxs=[{"text": "a", "psg_id": 1.5}]),
      r"positive_ctxs\[0\]\.psg_id",
      "is a number",
    ),
  ],
)
def test_a_bad_dpr_record_is_named_and_the_others_are_read(
  tmp_path, value, field, problem
):
  one_line = json.dumps([RECORD, value, RECORD])
  path = _write(tmp_path / "a.json", one_line)
  with pytest.raises(
    records.RecordError,
    match=rf"a\.json:1: record 2, {field}: .*{problem}",
  ):
    list(dpr.read(path, _strict()))

  many_lines = "[\n" + ",\n\n".join(map(json.dumps, (RECORD, value, RECORD)))
  bad = _skipping()
  read = list(dpr.read(_write(tmp_path / "a.json", many_lines + "\n]"), bad))
  assert [record.question for record in read] == [RECORD["question"]] * 2
  assert bad.count == 1
  assert "a.json:4: record 2" in bad.first[0]


@pytest.mark.parametrize(
  "negative, field, problem",
  [
    ("text", r"\[1\]", "is a string"),
    ({"title": "b"}, r"\[1\]\.text", "is missing"),
    ({"text": 3}, r"\[1\]\.text", "is a number"),
    ({"text": "\udcff"}, r"\[1\]\.text", "surrogate"),
    ({"text": "a", "title": ["b"]}, r"\[1\]\.title", "is a list"),
  ],
)
def test_a_bad_hard_negative_is_refused_or_costs_itself_alone(
  tmp_path, negative, field, problem
):
  good = {"text": "A tool."}
  value = _with(hard_negative_ctxs=[good, negative, good])
  path = _write(tmp_path / "a.json", json.dumps([RECORD, value]))
  with pytest.raises(
    records.RecordError,
    match=rf"a\.json:1: record 2, hard_negative_ctxs{field}: .*{problem}",
  ):
    list(dpr.read(path, _strict()))
  bad = _skipping()
  _, record = dpr.read(path, bad)
  assert [p.text for p in record.hard_negatives] == ["A tool."] * 2
  assert bad.count == 1


@pytest.mark.parametrize(
  "negatives, kind",
  [("text", "a string"), ({"text": "a"}, "an object"), (False, "a boolean")],
)
def test_hard_negatives_that_are_not_a_list_do_not_cost_the_question(
  tmp_path, negatives, kind
):
  value = _with(hard_negative_ctxs=negatives)
  path = _write(tmp_path / "a.json", json.dumps([RECORD, value]))
  with pytest.raises(
    records.RecordError,
    match=rf"a\.json:1: record 2, hard_negative_ctxs: is {kind}; give a list",
  ):
    list(dpr.read(path, _strict()))
  bad = _skipping()
  first, second = dpr.read(path, bad)
  assert second.positives == first.positives
  assert second.hard_negatives == ()
  assert bad.count == 1


def test_hard_negatives_without_text_and_null_lists_are_not_an_error(tmp_path):
  without = [None, {"text": None}, {"text": " ", "title": "b"}, {"text": ""}]
  copy = {"title": "dpkg", "text": "An archive.", "passage_id": 7}
  values = [
    _with(hard_negative_ctxs=[*without, copy]),
    _with(hard_negative_ctxs=None, negative_ctxs=None),
  ]
  path = _write(tmp_path / "a.json", json.dumps(values))
  first, second = dpr.read(path, _strict())
  # The token store drops and counts them, whatever the format.
  assert first.hard_negatives == (
    *[records.Passage("")] * 4,
    first.positives[0],
  )
  assert second.hard_negatives == ()
  assert first.place == (str(path), 1, 1)
  assert str(second.place) == f"{path}:1: record 2"


def test_a_bad_dpr_record_is_named_by_its_first_line(tmp_path):
  content = json.dumps([RECORD, _with(question="")], indent=1)
  line = [i for i, x in enumerate(content.split("\n"), 1) if x == " {"][1]
  path = _write(tmp_path / "a.json", content)
  with pytest.raises(records.RecordError, match=rf"a\.json:{line}: record 2,"):
    list(dpr.read(path, _strict()))


def test_passages_without_ids_are_not_the_same_passage(tmp_path):
  value = _with(
    positive_ctxs=[{"text": "a"}], hard_negative_ctxs=[{"text": "b"}]
  )
  path = _write(tmp_path / "a.json", json.dumps([value]))
  (record,) = dpr.read(path, _strict())
  assert record.hard_negatives == (records.Passage("b"),)


def test_bytes_that_are_not_utf8_are_named_where_they_are_read(tmp_path):
  good = json.dumps(RECORD).encode()
  content = b"[%s,\n%s,\n%s]" % (
    good.replace(b'"answers": []', b'"answers": ["\xff"]'),  # Not read.
    good.replace(b"An archive", b"An \xe9rchive"),
    good,
  )
  path = _write(tmp_path / "a.json", content)
  bad = _skipping()
  assert len(list(dpr.read(path, bad))) == 2
  assert bad.count == 1
  assert "a.json:2: record 2, positive_ctxs[0].text: " in bad.first[0]


def test_a_dpr_array_cut_anywhere_is_an_error(tmp_path, monkeypatch):
  monkeypatch.setattr(json_stream, "_CHUNK_BYTES", 64)
  content = json.dumps([RECORD, RECORD], indent=1)
  for length in range(1, len(content)):
    path = _write(tmp_path / "a.json", content[:length])
    with pytest.raises(records.RecordError, match=r"a\.json:\d+: record \d: "):
      list(dpr.read(path, _skipping()))
  path = _write(tmp_path / "a.json", content[:-10])
  with pytest.raises(records.RecordError, match="the file ends before"):
    list(dpr.read(path, _skipping()))


@pytest.mark.parametrize(
  "content, problem",
  [
    (
      '[\n{"question": "a"},\n{"question"\n: oops},\n{}]',
      ":4: record 2: is no",
    ),
    ('[{"question": "a"}\n{"question": "b"}]', ":2: record 1: , or ] should"),
    ("[]\n{}", ":2: record 0: text follows"),
    ("[]", " holds no record"),
    ("\n", " holds no record"),
    ("", " holds no record"),
  ],
)
def test_a_file_that_is_not_an_array_of_records_is_an_error(
  tmp_path, content, problem
):
  path = _write(tmp_path / "a.json", content)
  with pytest.raises(records.RecordError) as error:
    list(dpr.read(path, _skipping() if content.strip() else _strict()))
  assert problem in str(error.value)


def test_malformed_json_does_not_read_the_rest_of_the_file(tmp_path):
  path = _write(
    tmp_path / "a.json", '[{"question": x},' + " " * (8 << 20) + "]"
  )
  with files.open_bytes(path) as file:
    with pytest.raises(records.RecordError, match="is not JSON"):
      list(json_stream._JsonArray(path, file).values())
    assert file.tell() <= 2 * json_stream._CHUNK_BYTES


def test_a_line_that_is_not_json_is_one_bad_record(tmp_path):
  good = json.dumps(RECORD)
  path = _write(tmp_path / "a.jsonl", f"{good}\n{good[:-5]}\n{good}\n")
  bad = _skipping()
  assert len(list(dpr.read(path, bad))) == 2
  assert "a.jsonl:2: record 2: is not JSON" in bad.first[0]


@pytest.mark.parametrize(
  "value, problem",
  [
    ('{"question": "a", "question": "b"}', "has the field 'question' twice"),
    (r'{"question": "a\u0000b"}', "holds a NUL"),
    ('{"question": "a", "positive_ctxs": NaN}', "is NaN, which is not JSON"),
    (
      '{"question": "a", "positive_ctxs": [{"text": "b", "text": "c"}]}',
      r"positive_ctxs\[0\]: is an object that has the field 'text' twice",
    ),
    (
      '{"question": "a", "positive_ctxs": [{"text": "b", "psg_id": %s}]}'
      % ("7" * 5_000),
      r"psg_id: is a number of 5,000 digits",
    ),
  ],
)
def test_json_without_a_meaning_costs_one_dpr_record(tmp_path, value, problem):
  good = json.dumps(RECORD)
  for name, content in (
    ("a.json", f"[{good},\n{value},\n{good}]"),
    ("a.jsonl", f"{good}\n{value}\n\n{good}\n\n"),
  ):
    path = _write(tmp_path / name, content)
    bad = _skipping()
    assert len(list(dpr.read(path, bad))) == 2
    assert bad.count == 1
    with pytest.raises(records.RecordError, match=rf"{name}:2: .*{problem}"):
      list(dpr.read(path, _strict()))


@pytest.mark.parametrize(
  "value, problem",
  [("[" * 100_000, "nested too deep"), ("\0", "it holds a NUL")],
)
def test_the_error_names_where_an_array_breaks(tmp_path, value, problem):
  path = _write(tmp_path / "a.json", f"[{json.dumps(RECORD)},\n{value}")
  with pytest.raises(records.RecordError, match=rf":2: record 2: .*{problem}"):
    list(dpr.read(path, _skipping()))


# --- Line-aligned and plain text. ---


def _read_moses(folder, source, target, bad):
  return [
    (pair.source, pair.target)
    for pair in moses.read(
      _write(folder / "a.en-de.en", source),
      _write(folder / "a.en-de.de.gz", target),
      "en",
      "de",
      bad,
    )
  ]


def test_translations_stay_aligned_around_a_bad_line(tmp_path):
  source = b"one\n\nthree\n\xff\nfive\nsix\n"
  target = "eins\nzwei\n \nvier\nfünf\n".encode() + b"\xff"
  bad = _skipping()
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
    _read_moses(tmp_path, source, target, _strict())


def test_a_pair_that_is_bad_on_both_sides_counts_once(tmp_path):
  bad = _skipping()
  pairs = _read_moses(tmp_path, b"one\n\xff\n", b"eins\n\xff\n", bad)
  assert pairs == [("one", "eins")]
  assert bad.count == 1


@pytest.mark.parametrize("source, target", [(3, 5), (5, 3), (0, 1)])
def test_differing_line_counts_are_an_error_whatever_the_policy(
  tmp_path, source, target
):
  with pytest.raises(
    records.RecordError, match=rf"has {source} lines, but .* has {target}:"
  ):
    _read_moses(tmp_path, "a\n" * source, "b\n" * target, _skipping())


def test_empty_parallel_files_are_an_error(tmp_path):
  with pytest.raises(records.RecordError, match="are empty"):
    _read_moses(tmp_path, "", "", _skipping())


def test_blank_lines_are_ignored_between_documents_and_at_the_end(tmp_path):
  pairs = [("one", "eins"), ("three", "drei")]
  for source, target in itertools.product(
    ("one\n\nthree", "one\n\u200b\nthree\n \n\n\n"),
    ("eins\n\ndrei\n", "eins\r\n\r\ndrei\r\n\r\n"),
  ):
    assert _read_moses(tmp_path, source, target, _strict()) == pairs
  with pytest.raises(records.RecordError, match=r"has 3 lines, but .* has 5:"):
    _read_moses(tmp_path, "1\n2\n3\n\u200b\n", "1\n2\n3\n\n5\n", _skipping())


def test_a_number_before_a_sentence_is_not_text(tmp_path):
  """As in the Leipzig corpora."""
  path = _write(tmp_path / "a.de.txt", "1\tEin Satz.\n12\t3 Sätze.\n4 a\tb\n")
  bad = _strict()
  texts = [record.text for record in plain_text.read(path, "de", bad)]
  assert texts == ["Ein Satz.", "3 Sätze.", "4 a\tb"]
  pairs = _read_moses(tmp_path, "7\tone\n", "7\teins\n", bad)
  assert pairs == [("one", "eins")]
  counts = {"numbers before sentences": [4, str(path)]}
  assert bad.drain()["removed"] == counts
  assert _read_moses(
    tmp_path, "1\tone\n2\t\u200b\n", "1\teins\n2\t\u200b\n", _strict()
  ) == [("one", "eins")]


def test_a_number_is_text_where_the_first_sentence_has_none(tmp_path):
  path = _write(tmp_path / "a.de.txt", "\nEin Satz.\n3\tSätze.\n")
  bad = _strict()
  texts = [record.text for record in plain_text.read(path, "de", bad)]
  assert texts == ["Ein Satz.", "3\tSätze."]
  pairs = _read_moses(tmp_path, "one\n3\ttwo\n", "eins\n3 zwei\n", bad)
  assert pairs == [("one", "eins"), ("3\ttwo", "3 zwei")]
  assert not bad.drain()["removed"]


@pytest.mark.parametrize(
  "name, content",
  [
    ("a.json", '[{"query": "q"}, {"query": "r"}]'),
    ("a.jsonl", '{"query": "q"}\n{"query": "r"}\n\n'),
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
  bad = _skipping()
  _write_test(tmp_path)
  folder = tmp_path / "collection" if name.startswith("docs") else tmp_path
  path = _write(folder / name, content)
  with pytest.raises(
    records.RecordError, match=r"can be used\. Bad records: 2, the first: .*:\d"
  ) as error:
    if name in ("a.json", "a.jsonl"):
      list(dpr.read(path, bad))
    elif name == "a.fi.txt":
      list(plain_text.read(path, "fi", bad))
    elif name == "a.en-de.en":
      other = _write(tmp_path / "a.en-de.de", "eins\n\n\n")
      list(moses.read(path, other, "en", "de", bad))
    else:
      mr_tydi.read_tests(tmp_path, "de", ["test"], bad)
  assert str(path) in str(error.value)


def test_blank_lines_are_not_sentences(tmp_path):
  path = _write(tmp_path / "a.fi.txt", "yksi\n\n \nkaksi \n")
  assert list(plain_text.read(path, "fi", _strict())) == [
    records.MonolingualRecord("yksi", "fi"),
    records.MonolingualRecord("kaksi", "fi"),
  ]
  with pytest.raises(records.RecordError, match="holds no sentence"):
    list(plain_text.read(_write(path, "\n\n"), "fi", _skipping()))


# --- Mr. TyDi. ---

DOCS = [
  {"id": "d1", "contents": "Title\n\nText.\n\nMore text."},
  {"id": "d2", "contents": "Text alone,\non two lines."},
  {"id": 3, "contents": "\n\nNo title."},
  {"id": "d4", "contents": "Title alone\n\n"},
]
TOPICS = "q1\tfirst?\nq2\tsecond?\n"
QRELS = "q1 Q0 d1 1\nq1\tQ0\td2\t0\nq2 0 3 2\n"


def _write_test(folder, docs=DOCS, topics=TOPICS, qrels=QRELS):
  content = docs
  if not isinstance(docs, str):
    content = "".join(json.dumps(doc) + "\n" for doc in docs)
  _write(folder / "collection/docs.jsonl.gz", content)
  _write(folder / "topic.test.tsv", topics)
  _write(folder / "qrels.test.txt.gz", qrels)
  return folder


def test_a_retrieval_test_is_read(tmp_path):
  (test,) = mr_tydi.read_tests(_write_test(tmp_path), "de", ["test"], _strict())
  assert test == records.RetrievalTest(
    language="de",
    split="test",
    passages=(
      records.Passage("Text.\n\nMore text.", "Title", "d1"),
      records.Passage("Text alone,\non two lines.", "", "d2"),
      records.Passage("No title.", "", "3"),
      records.Passage("Title alone", "", "d4"),
    ),
    queries={"q1": "first?", "q2": "second?"},
    qrels={"q1": {"d1": 1, "d2": 0}, "q2": {"3": 2}},
  )


def test_the_splits_of_a_language_share_one_collection(tmp_path):
  _write_test(tmp_path)
  _write(tmp_path / "topic.dev.tsv", "q9\tdev?\n")
  _write(tmp_path / "qrels.dev.txt", "q9 Q0 d2 1\n")
  dev, test = mr_tydi.read_tests(tmp_path, "en", ["dev", "test"], _strict())
  assert (dev.split, test.split) == ("dev", "test")
  assert dev.queries == {"q9": "dev?"}
  assert dev.passages is test.passages


@pytest.mark.parametrize(
  "change, place, problem",
  [
    ({"docs": [*DOCS, {"id": "d1", "contents": "x"}]},
     r"docs\.jsonl\.gz:5: id", "is in line 1, too"),
    ({"docs": [*DOCS, {"id": "a b", "contents": "x"}]},
     r"docs\.jsonl\.gz:5: id", "white space"),
    ({"docs": [*DOCS, {"id": "d5", "contents": " \n\n"}]},
     r"docs\.jsonl\.gz:5: contents", "is empty"),
    ({"docs": [*DOCS, {"id": "d5", "text": "x"}]},
     r"docs\.jsonl\.gz:5: contents", "the fields are id, text"),
    ({"docs": "\n".join(map(json.dumps, DOCS)) + '\n{"id"'},
     r"docs\.jsonl\.gz:5: record", "is not JSON"),
    ({"topics": TOPICS + "q3 third?\n"},
     r"topic\.test\.tsv:3: query", "a tab"),
    ({"topics": TOPICS + "\u200b\tthird?\n"},
     r"topic\.test\.tsv:3: query id", "is empty"),
    ({"topics": TOPICS + "q3\t\n"},
     r"topic\.test\.tsv:3: query", "is missing"),
    ({"topics": TOPICS + "q1\tagain?\n"},
     r"topic\.test\.tsv:3: query id", "'q1' is in line 1, too"),
    ({"topics": TOPICS + "q3\tthird?\tmore\n"},
     r"topic\.test\.tsv:3: query", "has 3 columns"),
    ({"topics": "query_id\ttext\n" + TOPICS},
     r"topic\.test\.tsv:1: query id", "is the name of a column"),
    ({"docs": [*DOCS, {"id": "d5", "title": "t", "contents": "x"}]},
     r"docs\.jsonl\.gz:5: title", 'next to "contents"'),
    ({"qrels": QRELS + "q1 Q0 d4\n"},
     r"qrels\.test\.txt\.gz:4: qrels", "3 columns, not 4"),
    *(
      ({"qrels": QRELS + f"q1 Q0 d4 {grade}\n"},
       r"qrels\.test\.txt\.gz:4: relevance", "is not a whole number")
      for grade in ("1.0", "1_000", "+1", "١", "9" * 5_000)
    ),
    ({"qrels": QRELS + "q1 Q0 d1 1\n"},
     r"qrels\.test\.txt\.gz:4: passage id", "judged twice for 'q1'"),
  ],
)  # fmt: skip
def test_a_bad_record_of_a_test_is_named_and_skipped(
  tmp_path, change, place, problem
):
  clean = mr_tydi.read_tests(
    _write_test(tmp_path / "clean"), "de", ["test"], _strict()
  )
  folder = _write_test(tmp_path / "de", **change)
  with pytest.raises(records.RecordError, match=f"{place}: .*{problem}"):
    mr_tydi.read_tests(folder, "de", ["test"], _strict())
  bad = _skipping()
  assert mr_tydi.read_tests(folder, "de", ["test"], bad) == clean
  assert bad.count == 1


def test_a_title_ends_at_a_line_of_white_space(tmp_path):
  docs = [{"id": "d1", "contents": "Title\n \t\nText.\n\nMore."}]
  folder = _write_test(
    tmp_path, docs, topics="q1\tfirst?\n", qrels="q1 Q0 d1 1\n"
  )
  (test,) = mr_tydi.read_tests(folder, "de", ["test"], _strict())
  assert test.passages == (records.Passage("Text.\n\nMore.", "Title", "d1"),)


def test_judgements_and_queries_without_each_other_are_counted_and_kept(
  tmp_path,
):
  """beir#101: a judged passage that is missing counts as not found."""
  folder = _write_test(
    tmp_path,
    topics=TOPICS + "q3\tthird?\n",
    qrels=QRELS + "q1 Q0 gone 1\nq9 Q0 d1 1\n",
  )
  (test,) = mr_tydi.read_tests(folder, "de", ["test"], _strict())
  assert test.queries.keys() == {"q1", "q2", "q3"}
  assert test.qrels == {"q1": {"d1": 1, "d2": 0, "gone": 1}, "q2": {"3": 2}}
  notes = [note.removeprefix(f"{folder}, test: ") for note in test.notes]
  assert notes == [
    "judgements of queries that topic.test.tsv lacks; left out: 1"
  ]
  # Each count is printed once.
  assert ranking.describe_unfindable([test]) == [
    "Relevant passages that are not in the corpus count as not found:"
    " de 1 of 3.",
    "Queries without judgements are not in the means: de 1 of 3.",
  ]


def test_a_query_is_its_own_passage_where_id_and_text_are_the_same(tmp_path):
  """In MS MARCO both have the same numbers; ArguAna's queries are passages."""
  docs = [
    {"id": "q1", "contents": "First? "},
    {"id": "q2", "contents": "Another text."},
    {"id": "q3", "contents": "Title\n\nthird?"},
  ]
  (test,) = mr_tydi.read_tests(
    _write_test(
      tmp_path,
      docs=docs,
      topics="q1\tfirst?\nq2\tsecond?\nq3\ttitle third?\n",
      qrels="q1 Q0 q2 1\nq2 Q0 q1 1\nq3 Q0 q1 1\n",
    ),
    "de",
    ["test"],
    _strict(),
  )
  assert test.own_passages == ("q1", "q3")
  assert test.notes[0].endswith(", unless they are judged so: 2")


def test_blank_lines_windows_lines_and_beirs_header_are_read(tmp_path):
  _write_test(tmp_path / "plain")
  _write_test(
    tmp_path / "odd",
    docs="\r\n".join(
      json.dumps(doc).replace(r"\n\n", r"\r\n\r\n") + "\r\n" for doc in DOCS
    )
    + "\r\n",
    topics=TOPICS.replace("\n", "\r\n\n"),
    qrels="\nquery-id\tcorpus-id\tscore\n\nq1\td1\t1\nq1\td2\t0\n"
    "q2\t3\t2\n\u200b\n\n",
  )
  plain, odd = (
    mr_tydi.read_tests(tmp_path / name, "de", ["test"], _strict())[0]
    for name in ("plain", "odd")
  )
  assert odd.passages[0] == records.Passage(
    "Text.\n\nMore text.", "Title", "d1"
  )
  assert odd == plain


def test_a_missing_file_of_a_test_is_named(tmp_path):
  _write_test(tmp_path)
  with pytest.raises(FileNotFoundError, match=r"neither topic\.dev\.tsv nor"):
    mr_tydi.read_tests(tmp_path, "en", ["test", "dev"], _strict())


def test_a_test_without_a_judged_query_is_an_error(tmp_path):
  _write_test(tmp_path, topics="", qrels="")
  with pytest.raises(records.RecordError, match="holds no query"):
    mr_tydi.read_tests(tmp_path, "de", ["test"], _skipping())
  _write_test(tmp_path, qrels="q1 d1 Q0 1\nq1 Q0 d1 0\n")
  with pytest.raises(records.RecordError, match="lacks all passages"):
    mr_tydi.read_tests(tmp_path, "de", ["test"], _skipping())
  _write_test(tmp_path, qrels="q1 Q0 d1 0\nq2 Q0 d2 -1\n")
  with pytest.raises(records.RecordError, match=r"qrels\S+ judges no passage"):
    mr_tydi.read_tests(tmp_path, "de", ["test"], _skipping())


# --- Tatoeba. ---


def test_tatoeba_languages_get_two_letter_codes_where_there_are_any(tmp_path):
  for code in ("deu", "cmn", "swh", "tgl", "dtp", "kzj", "ang"):
    _write(tmp_path / f"tatoeba.{code}-eng.{code}", f"{code} 1\n{code} 2\n")
    _write(tmp_path / f"tatoeba.{code}-eng.eng", "one\ntwo\n")
  _write(tmp_path / "LICENSE", "CC BY 2.0 FR\n")
  tests = tatoeba.read_all(tmp_path, _strict())
  assert [test.source_language for test in tests] == [
    "ang", "de", "dtp", "kzj", "sw", "tl", "zh",
  ]  # fmt: skip
  assert tests[1] == records.TranslationTest(
    source_language="de",
    target_language="en",
    sources=("deu 1", "deu 2"),
    targets=("one", "two"),
  )


@pytest.mark.parametrize(
  "names, problem",
  [
    ((), "holds no files like"),
    (("tatoeba.deu-eng.deu",), "lacks the other side of deu-eng"),
    (("tatoeba.deu-eng.fra",), "is not named like"),
    (("tatoeba.ara-eng.ara", "tatoeba.ara-eng.eng",
      "tatoeba.arb-eng.arb", "tatoeba.arb-eng.eng"), "both in 'ar'"),
  ],
)  # fmt: skip
def test_a_folder_that_is_not_tatoebas_is_an_error(tmp_path, names, problem):
  for name in names:
    _write(tmp_path / name, "x\n")
  with pytest.raises(ValueError, match=problem):
    tatoeba.read_all(tmp_path, _strict())
  with pytest.raises(ValueError, match="no such folder"):
    tatoeba.read_all(tmp_path / "missing", _strict())
