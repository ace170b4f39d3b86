"""Test collections are read in the layouts in which they were released."""

import json

import pytest
import source_files

from mlir_jax.data import records
from mlir_jax.data.collections import folder


def _load(root, require_pairs=False, policy="error"):
  return folder.load(
    root, records.BadRecords(policy), require_pairs=require_pairs
  )


def _jsonl(*objects):
  return "".join(json.dumps(each) + "\n" for each in objects)


def write_mr_tydi(path):
  docs = [{"id": f"{i}#0", "contents": f"T{i}\n\ntext {i}"} for i in range(3)]
  source_files.write(path / "collection/docs.jsonl.gz", _jsonl(*docs))
  for i, split in enumerate(("train", "dev", "test")):
    source_files.write(path / f"topic.{split}.tsv", f"{i}\t{split}?\n")
    source_files.write(path / f"qrels.{split}.txt", f"{i}\tQ0\t{i}#0\t1\n")
  return path


def write_miracl(root):
  path = root / "miracl-v1.0-sw"
  for split in ("train", "dev", "test-a"):
    name = f"miracl-v1.0-sw-{split}.tsv"
    source_files.write(path / f"topics/topics.{name}", f"q\t{split}?\n")
    if split != "test-a":
      source_files.write(
        path / f"qrels/qrels.{name}", "q Q0 0#0 1\nq Q0 11#0 0\n"
      )
  for i in range(12):  # docs-10 comes after docs-9.
    doc = {"docid": f"{i}#0", "title": "T", "text": f"text {i}"}
    corpus = root / "miracl-corpus-v1.0-sw"
    source_files.write(corpus / f"docs-{i}.jsonl.gz", _jsonl(doc))
  return path


def write_beir(path):
  docs = [
    {"_id": "d1", "title": "T", "text": "text", "metadata": {}},
    {"_id": "d2", "title": "Title alone", "text": ""},
    {"_id": "d3", "text": "text 3"},
  ]
  queries = [{"_id": f"q{i}", "text": f"query {i}?"} for i in range(3)]
  source_files.write(path / "corpus.jsonl", _jsonl(*docs))
  source_files.write(path / "queries.jsonl.gz", _jsonl(*queries))
  header = "query-id\tcorpus-id\tscore\n"
  for split, rows in {
    "train": "q0\td1\t1\nq0\td3\t0\n",
    "dev": "q1\td3\t1\n",
    "test": "q2\td2\t2\n",
  }.items():
    source_files.write(path / f"qrels/{split}.tsv", header + rows)
  return path


def write_xquad_r(root):
  context = "Oslo is in Norway. Lima is in Peru."
  questions = [
    {"id": "a", "question": "Where is Lima?",
     "answers": [{"answer_start": 30, "text": "Peru"}]},
    {"id": "b", "question": "Where is Oslo?",
     "answers": [{"answer_start": 11, "text": "Norway"}]},
  ]  # fmt: skip
  paragraph = {
    "context": context,
    "qas": questions,
    "sentence_breaks": [[0, 18], [19, 35]],
  }
  articles = {"data": [{"title": "x", "paragraphs": [paragraph]}]}
  return source_files.write(root / "xquad-r/de.json", json.dumps(articles))


def test_mr_tydi_gives_pairs_and_tests_where_it_is_the_data(tmp_path):
  write_mr_tydi(tmp_path / "mrtydi-v1.1-arabic")
  loaded = _load(tmp_path, require_pairs=True)
  (pair,) = loaded.retrieval()
  assert pair == records.RetrievalRecord(
    "train?", (records.Passage("text 0", "T0", "0#0"),), (), "ar"
  )
  (test,) = loaded.tests()
  assert (test.language, test.split) == ("ar", "test")
  assert test.qrels == {"2": {"2#0": 1}}
  assert len(test.passages) == 3
  notes = "\n".join(loaded.notes())
  assert "topic.dev.tsv" in notes and "arabic as ar" in notes
  assert "question-passage pairs in ar (the split train)" in notes
  before = loaded.fingerprint()
  source_files.write(
    tmp_path / "mrtydi-v1.1-arabic/topic.train.tsv", "0\tother?\n"
  )
  assert _load(tmp_path).fingerprint() != before


def test_pairs_are_read_with_the_ids_of_judged_passages_alone(tmp_path):
  """The ids of a whole corpus would fill the memory."""
  path = write_mr_tydi(tmp_path / "mrtydi-v1.1-arabic")
  docs = [{"id": f"{i}#0", "contents": f"T\n\ntext {i}"} for i in (0, 1, 2, 2)]
  source_files.write(path / "collection/docs.jsonl.gz", _jsonl(*docs))
  (pair,) = _load(tmp_path, require_pairs=True).retrieval()
  assert pair.positives[0].text == "text 0"
  docs.append(docs[0])
  source_files.write(path / "collection/docs.jsonl.gz", _jsonl(*docs))
  with pytest.raises(records.RecordError, match=r":5: id: '0#0' is in line 1"):
    list(_load(tmp_path, require_pairs=True).retrieval())


def test_in_eval_a_released_folder_is_a_test_alone(tmp_path):
  write_mr_tydi(tmp_path / "eval/mrtydi-v1.1-english")
  write_miracl(tmp_path / "eval")
  write_beir(tmp_path / "eval/fi")
  write_xquad_r(tmp_path / "eval")
  loaded = _load(tmp_path)
  assert not list(loaded.retrieval())
  notes = "\n".join(loaded.notes())
  for name in (
    *("topic.train.tsv", "qrels.train.txt"),
    *("topics.miracl-v1.0-sw-train.tsv", "qrels.miracl-v1.0-sw-train.tsv"),
    "fi/qrels/train.tsv",
  ):
    assert notes.partition("Not read: ")[2].count(name) == 1, name
  tests = {(test.language, test.split): test for test in loaded.tests()}
  assert sorted(tests) == [
    ("de", "test"), ("en", "dev"), ("en", "test"), ("fi", "test"),
    ("sw", "test"),
  ]  # fmt: skip
  swahili = tests["sw", "test"]
  assert swahili.queries == {"q": "dev?"}  # All publish results on dev.
  assert [p.passage_id for p in swahili.passages][-3:] == [
    *("9#0", "10#0", "11#0")
  ]
  german = tests["de", "test"]
  assert [p.text for p in german.passages] == [
    *("Oslo is in Norway.", "Lima is in Peru.")
  ]
  assert german.qrels == {"a": {"a00p0s1.de": 1}, "b": {"a00p0s0.de": 1}}
  finnish = tests["fi", "test"]
  assert finnish.queries == {"q2": "query 2?"}  # Not those of other splits.
  assert finnish.passages[1] == records.Passage("Title alone", "", "d2")
  with pytest.raises(ValueError, match=r"eval/en and .*mrtydi.* are both in"):
    write_beir(tmp_path / "eval/en")
    _load(tmp_path)


def test_beir_gives_pairs_with_judged_hard_negatives_and_english_dev(tmp_path):
  loaded = _load(write_beir(tmp_path / "scifact"), require_pairs=True)
  (pair,) = loaded.retrieval()
  assert [p.passage_id for p in pair.positives] == ["d1"]
  assert [p.passage_id for p in pair.hard_negatives] == ["d3"]
  assert [(t.language, t.split) for t in loaded.tests()] == [
    *(("en", "dev"), ("en", "test"))
  ]
  source_files.write(tmp_path / "scifact/qrels/validation.tsv", "x\n")
  with pytest.raises(ValueError, match=r"validation\.tsv is not a file of"):
    _load(tmp_path / "scifact")


def test_miracls_training_split_has_judged_hard_negatives(tmp_path):
  write_miracl(tmp_path)
  (pair,) = _load(tmp_path, require_pairs=True).retrieval()
  assert (pair.question, pair.language) == ("train?", "sw")
  assert [p.text for p in pair.positives] == ["text 0"]
  assert [p.text for p in pair.hard_negatives] == ["text 11"]


@pytest.mark.parametrize(
  "gone, problem",
  [
    ("miracl-corpus-v1.0-sw/docs-4.jsonl.gz", "lacks docs-4"),
    ("miracl-v1.0-sw/topics/topics.miracl-v1.0-sw-dev.tsv", "neither topics"),
  ],
)
def test_a_part_of_miracl_that_is_missing_is_named(tmp_path, gone, problem):
  write_miracl(tmp_path)
  (tmp_path / gone).unlink()
  with pytest.raises(FileNotFoundError, match=problem):
    _load(tmp_path)


def test_an_id_in_two_parts_of_miracl_is_bad(tmp_path):
  write_miracl(tmp_path)
  docs = [{"docid": f"{i}#0", "title": "", "text": "t"} for i in (0, 12)]
  source_files.write(
    tmp_path / "miracl-corpus-v1.0-sw/docs-12.jsonl.gz", _jsonl(*docs)
  )
  with pytest.raises(
    records.RecordError, match=r"docs-12\.jsonl\.gz:1: id: .*1 of docs-0\."
  ):
    _load(tmp_path).tests()
  (test,) = _load(tmp_path, policy="skip").tests()
  assert len(test.passages) == 13


def test_a_hidden_test_has_the_queries_that_nothing_judges(tmp_path):
  beir = write_beir(tmp_path / "eval/en") / "qrels"
  miracl = write_miracl(tmp_path / "eval") / "qrels"
  source_files.write(beir / "test.hidden", "")
  with pytest.raises(ValueError, match=r"test\.hidden are both there"):
    _load(tmp_path)
  (beir / "test.tsv").unlink()
  marker = miracl / "qrels.miracl-v1.0-sw-test-a.hidden"
  source_files.write(marker, "")
  loaded = _load(tmp_path)
  tests = {(test.language, test.split): test for test in loaded.tests()}
  assert sorted(tests) == [("en", "dev"), ("en", "test"), ("sw", "test")]
  for language, queries in (
    ("en", {"q2": "query 2?"}),
    ("sw", {"q": "test-a?"}),
  ):
    test = tests[language, "test"]
    assert (test.queries, dict(test.qrels)) == (queries, {})
  notes = "\n".join(loaded.notes())
  assert "MIRACL (its split hidden): sw" in notes
  assert "qrels.miracl-v1.0-sw-dev.tsv" in notes.partition("Not read: ")[2]
  source_files.write(marker, "q Q0 0#0 1\n")
  with pytest.raises(records.RecordError, match="so it must be empty"):
    _load(tmp_path).tests()
  source_files.write(miracl / "qrels.miracl-v1.0-sw-test-b.hidden", "")
  with pytest.raises(ValueError, match="names 2 hidden splits"):
    _load(tmp_path)
  (beir / "test.hidden").unlink()
  with pytest.raises(FileNotFoundError, match=r"make test\.hidden, empty"):
    _load(tmp_path)


def test_a_folder_of_an_unknown_language_is_refused(tmp_path):
  write_mr_tydi(tmp_path / "eval/mrtydi-v1.1-klingonese")
  with pytest.raises(ValueError, match="'klingonese' is not the English name"):
    _load(tmp_path)


@pytest.mark.parametrize(
  "change, problem",
  [
    (lambda p: p["qas"][0].update(question=" "),
     r"paragraphs\[0\]\.qas\[0\]\.question: is empty"),
    (lambda p: p["qas"][0]["answers"][0].update(answer_start=18),
     r"qas\[0\]\.answers: start in no sentence"),
    (lambda p: p["qas"][0]["answers"][0].update(answer_start="30"),
     r"answers\[0\]\.answer_start: is \"30\""),
    (lambda p: p["qas"][0].update(id="b c"), r"qas\[0\]\.id: 'b c'"),
  ],
)  # fmt: skip
def test_a_bad_question_of_xquad_r_is_named_and_skipped(
  tmp_path, change, problem
):
  path = write_xquad_r(tmp_path)
  value = json.loads(path.read_text())
  change(value["data"][0]["paragraphs"][0])
  path.write_text(json.dumps(value))
  with pytest.raises(records.RecordError, match=rf"de\.json:1: .*{problem}"):
    _load(tmp_path).tests()
  (test,) = _load(tmp_path, policy="skip").tests()
  assert list(test.queries) == ["b"] and len(test.passages) == 2


@pytest.mark.parametrize(
  "content, problem",
  [("{", "is not JSON"), ("[]", "is a list"), ('{"data": []}', "no question"),
   (b'{"data": "\xff"}', "is not UTF-8")],
)  # fmt: skip
def test_a_file_that_is_not_xquad_r_is_refused(tmp_path, content, problem):
  source_files.write(tmp_path / "xquad-r/de.json", content)
  with pytest.raises(records.RecordError, match=rf"de\.json.*{problem}"):
    _load(tmp_path, policy="skip").tests()
