"""JSON is read record by record, and its faults are named by place."""

import io
import json

import pytest
import source_files

from mlir_jax.data import records
from mlir_jax.data.sources import files, json_stream


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 64, 100_000])
@pytest.mark.parametrize("indent", [None, 1])
def test_dpr_reads_the_same_wherever_the_chunks_end(
  tmp_path, monkeypatch, chunk_bytes, indent
):
  monkeypatch.setattr(json_stream, "_CHUNK_BYTES", chunk_bytes)
  values = [
    source_files.dpr_record(
      question=f'è "{i}" \\ 😀 [{{,}}]',
      answers=[i, -1.5e-7, True, None, float("-inf"), "\ud83d\ude00"],
    )
    for i in range(20)
  ]
  for ensure_ascii in (True, False):
    content = json.dumps(values, indent=indent, ensure_ascii=ensure_ascii)
    if not ensure_ascii:
      content = content.encode("utf-16", "surrogatepass").decode("utf-16")
    path = source_files.write(tmp_path / "a.json", content)
    questions = [
      r.question for r in source_files.read_pairs(path, source_files.strict())
    ]
    assert questions == [value["question"] for value in values]


def test_dpr_holds_one_record_at_a_time(tmp_path, monkeypatch):
  monkeypatch.setattr(json_stream, "_CHUNK_BYTES", 4096)
  path = source_files.write(
    tmp_path / "a.json", json.dumps([source_files.DPR_RECORD] * 2000)
  )
  with files.open_bytes(path) as file:
    array = json_stream._JsonArray(path, file)
    for _ in array.values():
      assert len(array._buffer) <= 2 * 4096


def test_dpr_reads_a_long_record_in_few_attempts(monkeypatch):
  monkeypatch.setattr(json_stream, "_CHUNK_BYTES", 16)
  file = io.BytesIO(
    json.dumps([source_files.dpr_record(question="q" * 100_000)]).encode()
  )
  sizes = []
  read = file.read
  file.read = lambda size: sizes.append(size) or read(size)
  (value,) = json_stream._JsonArray("a.json", file).values()
  assert len(value[2]["question"]) == 100_000
  assert len(sizes) < 20


def test_bytes_that_are_not_utf8_are_named_where_they_are_read(tmp_path):
  good = json.dumps(source_files.DPR_RECORD).encode()
  content = b"[%s,\n%s,\n%s]" % (
    good.replace(b'"answers": []', b'"answers": ["\xff"]'),  # Not read.
    good.replace(b"An archive", b"An \xe9rchive"),
    good,
  )
  path = source_files.write(tmp_path / "a.json", content)
  bad = source_files.skipping()
  assert len(list(source_files.read_pairs(path, bad))) == 2
  assert bad.count == 1
  assert "a.json:2: record 2, positive_ctxs[0].text: " in bad.first[0]


def test_a_dpr_array_cut_anywhere_is_an_error(tmp_path, monkeypatch):
  monkeypatch.setattr(json_stream, "_CHUNK_BYTES", 64)
  content = json.dumps(
    [source_files.DPR_RECORD, source_files.DPR_RECORD], indent=1
  )
  for length in range(1, len(content)):
    path = source_files.write(tmp_path / "a.json", content[:length])
    with pytest.raises(records.RecordError, match=r"a\.json:\d+: record \d: "):
      list(source_files.read_pairs(path, source_files.skipping()))
  path = source_files.write(tmp_path / "a.json", content[:-10])
  with pytest.raises(records.RecordError, match="the file ends before"):
    list(source_files.read_pairs(path, source_files.skipping()))


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
  path = source_files.write(tmp_path / "a.json", content)
  with pytest.raises(records.RecordError) as error:
    list(
      source_files.read_pairs(
        path,
        source_files.skipping() if content.strip() else source_files.strict(),
      )
    )
  assert problem in str(error.value)


def test_malformed_json_does_not_read_the_rest_of_the_file(tmp_path):
  path = source_files.write(
    tmp_path / "a.json", '[{"question": x},' + " " * (8 << 20) + "]"
  )
  with files.open_bytes(path) as file:
    with pytest.raises(records.RecordError, match="is not JSON"):
      list(json_stream._JsonArray(path, file).values())
    assert file.tell() <= 2 * json_stream._CHUNK_BYTES


def test_a_line_that_is_not_json_is_one_bad_record(tmp_path):
  good = json.dumps(source_files.DPR_RECORD)
  path = source_files.write(
    tmp_path / "a.jsonl", f"{good}\n{good[:-5]}\n{good}\n"
  )
  bad = source_files.skipping()
  assert len(list(source_files.read_pairs(path, bad))) == 2
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
  good = json.dumps(source_files.DPR_RECORD)
  for name, content in (
    ("a.json", f"[{good},\n{value},\n{good}]"),
    ("a.jsonl", f"{good}\n{value}\n\n{good}\n\n"),
  ):
    path = source_files.write(tmp_path / name, content)
    bad = source_files.skipping()
    assert len(list(source_files.read_pairs(path, bad))) == 2
    assert bad.count == 1
    with pytest.raises(records.RecordError, match=rf"{name}:2: .*{problem}"):
      list(source_files.read_pairs(path, source_files.strict()))


@pytest.mark.parametrize(
  "value, problem",
  [("[" * 100_000, "nested too deep"), ("\0", "it holds a NUL")],
)
def test_the_error_names_where_an_array_breaks(tmp_path, value, problem):
  path = source_files.write(
    tmp_path / "a.json", f"[{json.dumps(source_files.DPR_RECORD)},\n{value}"
  )
  with pytest.raises(records.RecordError, match=rf":2: record 2: .*{problem}"):
    list(source_files.read_pairs(path, source_files.skipping()))
