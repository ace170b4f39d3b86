"""Pairs of any format are read rightly and written back, or refused."""

import gzip
import json

import pytest
import source_files
from pyarrow import parquet

from mlir_jax.data import records
from mlir_jax.data.collections import folder, pair_files
from mlir_jax.data.sources import beir, containers
from mlir_jax.data.sources.pairs import judged_pairs, reading, registry

ADDED = (
  records.Passage("Mined text.", "Mined", "7"),
  records.Passage("Another.", "", "8"),
)
TEVATRON = {
  "query_id": "1",
  "query": "who?",
  "positive_passages": [{"docid": "7", "title": "A", "text": "Text."}],
}
FLAG = {"query": "who?", "pos": ["Text."], "neg": ["Other."]}
COLUMNS = {"anchor": "who?", "positive": "Text."}


def write_json(path, *values):
  return source_files.write(path, "\n".join(map(json.dumps, values)))


def read(path, bad=None, **settings):
  """Returns the records of a file."""
  file = reading.PairFile(path, **settings)
  return list(file.read(bad or source_files.strict()))


class Corpus:
  """Has any id."""

  files = ()

  def read(self, bad_records, reader=""):
    pass

  def find(self, passage_id, field):
    return records.Passage(f"on {passage_id}", "", passage_id)


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_each_format_is_recognized_and_written_with_more_negatives(
  tmp_path, name
):
  known = registry.BUILT_IN[name]
  assert registry.recognize(known.example, registry.BUILT_IN) == [name]
  example = {**known.example, "source": "kept"}
  endings = ["jsonl", "json", "jsonl.gz", "parquet"]
  for ending in [*endings, *(["csv", "tsv.gz"] if name == "columns" else ())]:
    path = tmp_path / f"a.{ending}"
    like = path
    if ending == "json":
      source_files.write(path, json.dumps([example] * 3))
    elif ending.startswith("jsonl"):
      write_json(path, *[example] * 3)
    else:
      like = write_json(tmp_path / "like.jsonl", *[example] * 3)
      if ending == "parquet":
        import pyarrow as pa

        parquet.write_table(pa.Table.from_pylist([example] * 3), path)
      else:
        line = "\t" if "tsv" in ending else ","
        rows = [line.join(row) for row in (example, *[example.values()] * 3)]
        source_files.write(path, "\n".join(rows))
    file = reading.PairFile(path, corpus=Corpus())
    pairs = list(file.read_pairs(source_files.strict()))
    assert file.seen.format == name
    assert file.describe(tmp_path)[0] == f"a.{ending}: {name}, 3 records (en)"
    assert file.seen.unused == {"source"}
    target = tmp_path / f"new.{ending}"
    # The first record gets no negatives: later ones add columns to a table.
    file.write(
      target,
      [pairs[0].raw]
      + [
        known.with_negatives(pair.raw, ADDED, [2.0, 1.0]) for pair in pairs[1:]
      ],
    )
    written = reading.PairFile(target, corpus=Corpus())
    again = list(written.read_pairs(source_files.strict()))
    assert again[0].record.positives == pairs[0].record.positives
    for before, after in zip(pairs[1:], again[1:], strict=True):
      assert after.raw["source"] == "kept"
      assert after.record.question == before.record.question
      assert after.record.positives == before.record.positives
      old = len(before.record.hard_negatives)
      assert after.record.hard_negatives[:old] == before.record.hard_negatives
      mined = [p.text for p in after.record.hard_negatives[old:]]
      assert len(mined) == 2
      if not known.by_id:
        assert mined[0].endswith("Mined text.") and mined[1] == "Another."
    names = list(pairs[0].raw)
    assert list(again[1].raw)[: len(names)] == names
    if ending in ("json", "jsonl"):
      first = target.read_text("utf-8").lstrip()[0]
      assert first == like.read_text("utf-8")[0]


def test_new_fields_of_objects_in_parquet_are_written(tmp_path):
  import pyarrow as pa

  path = tmp_path / "a.parquet"
  passage = {"text": "Lima is …", "score": 7}
  example = {
    "question": "capital?",
    "positive_ctxs": [passage],
    "hard_negative_ctxs": [passage],
    "others": [],
  }
  parquet.write_table(pa.Table.from_pylist([example]), path)
  ((_, raw),) = containers.read(path, source_files.strict())
  changed = registry.BUILT_IN["dpr"].with_negatives(raw, ADDED, [2.5, 1.0])
  changed["others"] = ["new"]
  # More rows than a batch: the first batches have the narrow type.
  containers.write(path, [raw] * 1000 + [changed], like=path)
  *_, (_, last) = containers.read(path, source_files.strict())
  first, *added = last["hard_negative_ctxs"]
  assert first == dict.fromkeys(added[0]) | passage
  assert [each["score"] for each in added] == [2.5, 1.0]
  assert last["others"] == ["new"]
  assert [each["title"] for each in added] == [each.title for each in ADDED]


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
  for name in ("a.jsonl", "a.csv", "a.parquet"):
    path = tmp_path / name
    if name == "a.parquet":
      import pyarrow as pa

      parquet.write_table(pa.Table.from_pylist([COLUMNS]), path)
    else:
      source_files.write(
        path, json.dumps(COLUMNS) if "json" in name else "anchor,positive\na,b"
      )
    before = path.read_bytes()

    def values(path=path):
      yield COLUMNS
      raise KeyError(path)

    with pytest.raises(KeyError):
      containers.write(path, values(), like=path)
    assert path.read_bytes() == before
  assert len(list(tmp_path.iterdir())) == 3
  path = write_json(tmp_path / "b.jsonl", {**COLUMNS, "x": 1})
  path.write_text(path.read_text().replace("1", "NaN"))
  ((_, value),) = containers.read(path, source_files.strict())
  with pytest.raises(ValueError, match="part of it is NaN"):
    containers.write(path, [value], like=path)


def test_an_unknown_or_ambiguous_format_is_refused_with_examples(tmp_path):
  path = write_json(tmp_path / "a.jsonl", {"q": "who?", "d": "Text."})
  with pytest.raises(records.RecordError) as error:
    read(path, source_files.skipping())
  message = str(error.value)
  assert f"{path}:1: record 1: its format is not known" in message
  assert "'q', 'd'" in message
  for known in registry.BUILT_IN.values():
    assert json.dumps(known.example, ensure_ascii=False) in message
  path = write_json(tmp_path / "a.jsonl", {**FLAG, "answer": "Text."})
  with pytest.raises(
    records.RecordError, match=r"flag_embedding and columns; set data\.format"
  ):
    read(path)
  assert read(path, format_name="columns")[0].hard_negatives == ()
  assert read(path, format_name="flag_embedding")[0].hard_negatives
  # Bad records before the first good one do not hide the format.
  path = write_json(tmp_path / "a.jsonl", {"query": "who?"}, [], FLAG)
  bad = source_files.skipping()
  assert len(read(path, bad)) == 1
  assert "record 1, pos: is missing" in bad.first[0]
  assert "record 2, query: the record is a list" in bad.first[1]


def test_fields_that_are_not_used_are_said(tmp_path):
  value = {
    **source_files.DPR_RECORD,
    "hard_negative_ctxs": [{"text": "a", "score": 1.5, "title_score": None}],
  }
  file = reading.PairFile(write_json(tmp_path / "a.jsonl", value))
  list(file.read(source_files.strict()))
  assert file.describe(tmp_path)[1] == (
    "a.jsonl: fields not used: hard_negative_ctxs[].score, negative_ctxs"
  )


def test_scores_stay_aligned_with_hard_negatives():
  known = registry.BUILT_IN["flag_embedding"]
  scored = {**FLAG, "pos_scores": [0.9], "neg_scores": [0.1]}
  with pytest.raises(ValueError, match="neg_scores has a score for each"):
    known.with_negatives(scored, ADDED)
  changed = known.with_negatives(scored, ADDED, [0.3, 0.2])
  assert changed["neg_scores"] == [0.1, 0.3, 0.2]
  assert len(changed["neg"]) == 3
  assert "neg_scores" not in known.with_negatives(FLAG, ADDED, [0.3, 0.2])
  columns = registry.BUILT_IN["columns"]
  with pytest.raises(ValueError, match="scores has a score for each"):
    columns.with_negatives({**COLUMNS, "scores": [1.0]}, ADDED)
  with pytest.raises(ValueError, match="a hard negative has none"):
    registry.BUILT_IN["tevatron_by_id"].with_negatives(
      {"negative_document_ids": ["1"]}, [records.Passage("a")]
    )


@pytest.mark.parametrize(
  "value, field, problem",
  [
    ({**COLUMNS, "label": 0}, "label", "says how good a pair is"),
    ({**COLUMNS, "score": 0.5}, "score", "says how good a pair is"),
    ({**COLUMNS, "query": "x"}, "record", "has anchor and query of the"),
    ({**COLUMNS, "answer": "x"}, "record", "has positive and answer of the"),
    ({**COLUMNS, "positive": ""}, "positive", "is empty"),
    ({**COLUMNS, "positive": ["a"]}, "positive", "is a list"),
    ({**FLAG, "prompt": 3}, "prompt", "is a number"),
    ({**FLAG, "pos": "a"}, "pos", "is a string; give a list"),
    ({**FLAG, "neg": "a"}, "neg", "is a string; give a list"),
    ({**COLUMNS, "lang": "English"}, "lang", "is not a language code"),
    (
      {**COLUMNS, "lang": "ja", "language": "de"},
      "language",
      "language says de, but lang says ja",
    ),
    ({**TEVATRON, "positive_passages": [3]}, r"positive.*\[0\]", "is a number"),
  ],
)
def test_a_bad_record_is_named_with_its_field(tmp_path, value, field, problem):
  path = write_json(tmp_path / "a.jsonl", value)
  with pytest.raises(
    records.RecordError, match=rf"a\.jsonl:1: record 1, {field}: .*{problem}"
  ):
    read(path)


def test_a_bad_hard_negative_of_a_row_costs_itself_alone(tmp_path):
  value = {**COLUMNS, "negative_10": "ten", "negative": "", "negative_2": 2}
  path = write_json(tmp_path / "a.jsonl", value)
  with pytest.raises(records.RecordError, match="negative_2: is a number"):
    read(path)
  bad = source_files.skipping()
  (record,) = read(path, bad)
  # The store drops and counts the empty one.
  assert [p.text for p in record.hard_negatives] == ["", "ten"]
  assert bad.count == 1
  changed = registry.BUILT_IN["columns"].with_negatives(value, ADDED)
  assert changed["negative"] == "Mined Mined text."
  assert changed["negative_11"] == "Another."


def test_the_language_is_that_of_the_field_the_name_or_the_config(tmp_path):
  rows = [{**FLAG, "language": "jpn"}, {**FLAG, "lang": "zh-Hant"}, FLAG]
  root = tmp_path / "mine"
  write_json(root / "ir/mixed.jsonl", *rows)
  write_json(root / "ir/one.sr@latin.jsonl.gz", FLAG)

  def languages(**settings):
    found = folder.find_pairs(root, pair_files.Settings(**settings))
    return [
      record.language
      for file in found
      for record in file.read(source_files.strict())
    ]

  assert languages() == ["ja", "zh", "en", "sr"]
  assert languages(language="fin_Latn") == ["ja", "zh", "fi", "sr"]
  with pytest.raises(ValueError, match=r"data\.language: 'Finnish' is not"):
    languages(language="Finnish")
  with pytest.raises(ValueError, match=r"data\.format is 'x'; use one of dpr"):
    languages(format="x")
  write_json(root / "ir/two.fi.jsonl", {**FLAG, "lang": "ja"})
  with pytest.raises(
    records.RecordError, match="lang says ja, but the file's name says fi"
  ):
    languages()
  (root / "ir/two.fi.jsonl").rename(root / "ir/two.dev.jsonl")
  with pytest.raises(ValueError, match=r"two\.dev\.jsonl: is 'dev' a language"):
    languages()


def test_csv_is_that_of_rfc_4180(tmp_path):
  content = (
    '\ufeffanchor,positive,negative\r\n"who, ""me""?",\u200btext,\r\n\r\n'
    '"two\nlines",b,"c\rd"\n'
  )
  for name in ("a.csv", "a.csv.gz"):
    path = source_files.write(tmp_path / name, content)
    first, second = read(path)
    assert first.question == 'who, "me"?'
    assert str(first.place) == f"{path}:2: record 1"
    assert second.question == "two\nlines"
    assert second.hard_negatives[0].text == "c\rd"
    assert str(second.place) == f"{path}:4: record 2"
    new = tmp_path / f"new.{name}"
    file = reading.PairFile(path)
    file.write(new, [p.raw for p in file.read_pairs(source_files.strict())])
    assert read(new) == [first, second]
  packed = new.read_bytes()
  assert gzip.decompress(packed).startswith(b"anchor,positive,negative\n")


@pytest.mark.parametrize(
  "rows, problem",
  [
    ('a,"b', r":2: record is not a row: unexpected end"),
    ('a,"b"c\nd,e', r":2: record is not a row"),
    ("a,b\rc,d", r":2: record is not a row: new-line character"),
  ],
)
def test_damaged_csv_is_refused_under_any_policy(tmp_path, rows, problem):
  path = source_files.write(tmp_path / "a.csv", f"anchor,positive\n{rows}\n")
  with pytest.raises(records.RecordError, match=problem):
    read(path, source_files.skipping())


@pytest.mark.parametrize(
  "header, problem",
  [
    ("anchor,positive,anchor", "names 'anchor' twice"),
    ("anchor,pos\0itive", "NUL"),
    ("anchor,positive\ra,b", "is not a row"),
    ("", "holds no record"),
  ],
)
def test_a_bad_header_is_refused(tmp_path, header, problem):
  path = source_files.write(tmp_path / "a.csv", header)
  with pytest.raises(records.RecordError, match=problem):
    read(path, source_files.skipping())


def test_a_bad_row_is_skipped_alone(tmp_path):
  good = b"q%d\tp%d"
  rows = [
    (b"a", "has 1 cells, but the header has 2"),
    (b"anchor\tpositive", "is the header again"),
    (b"a\0\tb", "NUL"),
    (b"a\t\xff", "not Unicode text"),
    (b'a\t"b', "unexpected end"),
    (b'a\t"b"c', "is not a row"),
    (b"a\rb\tc", "is not a row: new-line"),
    (b"\xe2\x80\x8b\tb", "anchor: is empty"),
  ]
  lines = [b"anchor\tpositive", good % (0, 0)]
  for number, (row, _) in enumerate(rows, start=1):
    lines += [row, good % (number, number)]
  path = source_files.write(tmp_path / "a.tsv", b"\n".join(lines))
  bad = records.BadRecords("skip")
  questions = [record.question for record in read(path, bad)]
  assert questions == [f"q{number}" for number in range(len(rows) + 1)]
  assert bad.count == len(rows)
  for number, (row, problem) in enumerate(rows, start=1):
    path.write_bytes(b"anchor\tpositive\na\tb\n" + row + b"\n")
    with pytest.raises(records.RecordError, match=rf"a\.tsv:3: .*{problem}"):
      read(path)
    del number


def test_parquet_that_is_cut_or_misnamed_is_refused(tmp_path):
  import pyarrow as pa

  path = tmp_path / "a.parquet"
  parquet.write_table(pa.Table.from_pylist([COLUMNS]), path)
  data = path.read_bytes()
  for content, problem in (
    (data[: len(data) // 2], "is cut or damaged"),
    (b"anchor,positive\n", "is not a Parquet file"),
    (b"version https://git-lfs.github.com/spec/v1\noid x\nsize 1\n", "LFS"),
    (gzip.compress(data), "gzipped"),
  ):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=problem):
      read(path)


def test_passages_are_found_by_id_in_the_corpus(tmp_path):
  value = {
    "query_id": "1",
    "query_text": "who?",
    "positive_document_ids": ["a"],
    "negative_document_ids": [2, None],
  }
  root = tmp_path / "mine"
  path = write_json(root / "ir/a.jsonl", value)
  with pytest.raises(records.RecordError, match="there are no passages in cor"):
    read(path)
  passages = [
    {"docid": "a", "title": "A", "text": "Text."},
    {"docid": "2", "title": None, "text": "Other.", "url": "x"},
    {"docid": "a", "title": "A", "text": "Text."},
  ]
  source_files.write(root / "corpus/a.json", json.dumps(passages))
  write_json(root / "corpus/b.jsonl.gz", {"_id": "b", "text": "Third."})
  loaded = folder.load(root, source_files.strict())
  (record,) = loaded.retrieval()
  assert record.positives == (records.Passage("Text.", "A", "a"),)
  assert record.hard_negatives == (
    records.Passage("Other.", "", "2"),
    records.Passage(""),
  )
  assert "corpus/a.json, corpus/b.jsonl.gz: fields not used: url" in (
    loaded.notes()
  )
  before = loaded.fingerprint()
  write_json(root / "corpus/b.jsonl.gz", {"_id": "b", "text": "Changed."})
  assert folder.load(root, source_files.strict()).fingerprint() != before

  for change, problem in (
    ({"docid": "a", "text": "Text."}, r"id: 'a' has another text in .*a\.json"),
    ({"docid": "c", "_id": "c", "text": "x"}, "has docid and _id"),
    ({"docid": "c"}, "text: is missing"),
    ({"text": "c"}, "docid: is missing"),
  ):
    write_json(root / "corpus/b.jsonl", change)
    (root / "corpus/b.jsonl.gz").unlink(missing_ok=True)
    with pytest.raises(records.RecordError, match=rf"b\.jsonl:1: .*{problem}"):
      list(folder.load(root, source_files.strict()).retrieval())
  write_json(root / "corpus/b.jsonl", {"docid": "c"}, {"_id": "b", "text": "b"})
  write_json(root / "ir/b.jsonl", value)
  bad = source_files.skipping()
  loaded = folder.load(root, bad)
  for _ in range(2):  # A tokenizer reads the pairs before the store does.
    assert len(list(loaded.retrieval())) == 2
    assert bad.drain()["count"] == 1
  (root / "ir/b.jsonl").unlink()
  (root / "corpus/b.jsonl").unlink()
  write_json(path, {**value, "positive_document_ids": ["x"]}, value)
  bad = source_files.skipping()
  assert len(list(folder.load(root, bad).retrieval())) == 1
  assert (
    "positive_document_ids[0]: is the id 'x', which a.json lacks"
    in (bad.first[0])
  )


@pytest.mark.parametrize("header", ["query-id\tcorpus-id\tscore\n", ""])
def test_mined_negatives_of_judged_queries_are_judgements_of_0(
  tmp_path, header
):
  root = tmp_path / "set"
  passages = [{"_id": f"p{n}", "text": f"on {n}"} for n in range(4)]
  write_json(root / "corpus.jsonl.gz", *passages)
  queries = [{"_id": f"q{n}", "text": f"who {n}?"} for n in range(3)]
  write_json(root / "queries.jsonl", *queries)
  middle = "" if header else "Q0\t"
  judged = [("q2", "p2", 2), ("q1", "p0", 0), ("q0", "p0", 1), ("q0", "p1", 0)]
  judged += [("q9", "p9", 1)]  # q1 has no positive, and q9 no text.
  lines = [f"{q}\t{middle}{p}\t{relevance}" for q, p, relevance in judged]
  source_files.write(
    root / "qrels/train.tsv", header + "".join(f"{line}\n" for line in lines)
  )
  pairs = judged_pairs.JudgedPairs(beir.locate(root)["train"])
  known = pairs.recognize(source_files.strict())
  read = list(pairs.read_pairs(source_files.strict()))
  assert [p.record.question for p in read] == ["who 0?", "who 2?"]
  assert [p.text for p in read[0].record.hard_negatives] == ["on 1"]
  assert len(list(pairs.passages(source_files.strict()))) == 4
  mined = [records.Passage("on 3", "", "p3"), records.Passage("on 0", "", "p0")]
  raw = [
    known.with_negatives(known.without_negatives(pair.raw), mined)
    for pair in read
  ]
  pairs.write(pairs.path, raw)
  assert (root / "qrels/train.tsv").read_text() == header + "".join(
    f"{query}\t{middle}{passage}\t{relevance}\n"
    for query, passage, relevance in (
      *(("q2", "p2", 2), ("q2", "p3", 0), ("q2", "p0", 0)),
      ("q1", "p0", 0),
      *(("q0", "p0", 1), ("q0", "p3", 0)),
      ("q9", "p9", 1),
    )
  )
