"""Texts with ids are read from every format of passages and queries."""

import gzip
import json

import pytest

from mlir_jax.data import collections, id_sources, records, unique_ids


def read(path, role="passage", format_name=None, policy="error"):
  (source,) = id_sources.from_files([str(path)], role, format_name)
  bad_records = records.BadRecords(policy)
  found = list(source.read(bad_records))
  assert {text.place.rpartition(":")[0] for text in found} <= {str(path)}
  return source.format, [tuple(text[:3]) for text in found], bad_records.count


def jsonl(*values):
  return "".join(f"{json.dumps(value)}\n" for value in values)


XQUAD_R = {
  "data": [
    {
      "paragraphs": [
        {
          "context": "Lima. Cusco.",
          "sentence_breaks": [[0, 5], [6, 12]],
          "qas": [
            {
              "id": "q1",
              "question": "capital?",
              "answers": [{"answer_start": 0, "text": "Lima"}],
            }
          ],
        }
      ]
    }
  ]
}


@pytest.mark.parametrize(
  "name, content, role, expected",
  [
    (
      "docs.jsonl",
      jsonl({"id": "a", "contents": "Lima\n\nCapital."}),
      "passage",
      ("records", [("a", "Capital.", "Lima")]),
    ),
    (
      "docs-0.jsonl.gz",
      jsonl({"docid": "5#1", "title": "Lima", "text": "Capital."}),
      "passage",
      ("records", [("5#1", "Capital.", "Lima")]),
    ),
    (
      "corpus.jsonl",
      jsonl({"_id": "x", "title": "", "text": "Capital.", "metadata": {}}),
      "passage",
      ("records", [("x", "Capital.", "")]),
    ),
    (
      "queries.jsonl",
      jsonl({"query_id": 7, "query": "capital?"}),
      "query",
      ("records", [("7", "capital?", "")]),
    ),
    (
      "wiki.tsv",
      "id\ttext\ttitle\n1\tCapital.\tLima\n",
      "passage",
      ("records", [("1", "Capital.", "Lima")]),
    ),
    (
      "wiki.csv",
      'id,text\n1,"Lima,\nCusco"\n',
      "passage",
      ("records", [("1", "Lima,\nCusco", "")]),
    ),
    (
      "topic.test.tsv",
      "q1\tcapital?\nq2\twhere?\n",
      "query",
      ("topics", [("q1", "capital?", ""), ("q2", "where?", "")]),
    ),
    (
      "texts.txt",
      "Lima\n\nCusco\n",
      "sentence",
      ("lines", [("1", "Lima", ""), ("2", "", ""), ("3", "Cusco", "")]),
    ),
    (
      "es.json",
      json.dumps(XQUAD_R),
      "passage",
      ("xquad_r", [("a00p0s0.es", "Lima.", ""), ("a00p0s1.es", "Cusco.", "")]),
    ),
    (
      "es.json",
      json.dumps(XQUAD_R),
      "query",
      ("xquad_r", [("q1", "capital?", "")]),
    ),
  ],
)
def test_a_file_shows_its_format(tmp_path, name, content, role, expected):
  path = tmp_path / name
  content = content.encode()
  path.write_bytes(gzip.compress(content) if ".gz" in name else content)
  if name != "es.json":
    assert read(path, role)[:2] == expected
  else:
    source = id_sources.from_files([str(path)], role)[0]
    found = list(source.read(records.BadRecords()))
    assert (source.format, [tuple(t[:3]) for t in found]) == expected
    assert found[0].place.startswith(f"{path}: ")


@pytest.mark.parametrize(
  "name, content, says",
  [
    ("a.jsonl", jsonl({"id": "1", "_id": "2", "text": "t"}), "has id and _id;"),
    ("a.jsonl", jsonl({"id": "1", "body": "t"}), "has no field for the text"),
    ("a.jsonl", jsonl({"id": "a b", "text": "t"}), "'a b' holds white space"),
    ("a.jsonl", jsonl({"id": "1", "text": ""}), "text: is empty"),
    ("a.jsonl", jsonl({"text": "t"}), "give --format=numbered"),
    ("a.txt", jsonl({"id": "1", "text": "t"}), "let it end in .jsonl"),
    ("a.tsv", "q1\tone\ttwo\n", "has 3 columns, not 2"),
  ],
)
def test_what_cannot_be_used_is_named(tmp_path, name, content, says):
  path = tmp_path / name
  path.write_text(content)
  with pytest.raises(ValueError) as error:
    read(path)
  assert str(error.value).startswith(str(path)) and says in str(error.value)


def test_a_named_format_decides_and_bad_records_may_be_skipped(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text(jsonl({"text": "one"}, {"text": ""}, {"text": "three"}))
  _, found, skipped = read(path, "sentence", "numbered", "skip")
  assert found == [("1", "one", ""), ("3", "three", "")] and skipped == 1
  _, found, _ = read(path, "sentence", "lines")
  assert found[0] == ("1", '{"text": "one"}', "")


def check(paths, role="passage"):
  sources = id_sources.from_files([str(path) for path in paths], role)
  return id_sources.check(sources, role, records.BadRecords())


def test_an_id_that_occurs_twice_is_named_with_both_lines(
  tmp_path, monkeypatch
):
  first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
  first.write_text(jsonl(*({"id": f"d{n}", "text": "t"} for n in range(9))))
  second.write_text(jsonl(*({"id": f"e{n}", "text": "t"} for n in range(9))))
  # In parts, as in a large corpus.
  monkeypatch.setattr(unique_ids, "_SORTED", 4)
  monkeypatch.setattr(unique_ids, "_WRITTEN", 5)
  assert check([first, second]) == 18
  with second.open("a") as file:
    file.write(jsonl({"id": "d4", "text": "another"}))
  with pytest.raises(records.RecordError) as error:
    check([first, second])
  assert str(error.value) == (
    f"{second}:10: id: 'd4' is in {first}:5, too; give each text an id of its"
    " own."
  )


def test_a_title_of_a_text_that_is_no_passage_is_refused(tmp_path):
  path = tmp_path / "docs.jsonl"
  path.write_text(jsonl({"id": "1", "title": "Lima", "text": "Capital."}))
  assert check([path]) == 1
  with pytest.raises(records.RecordError, match=r":1: title: .*--role=passage"):
    check([path], "query")
  path.write_text("\n")
  with pytest.raises(ValueError, match="no record"):
    check([path])


def test_the_tests_of_a_collection_are_read_by_language():
  collection = collections.load("cldr")
  tests = {t.language: t for t in collection.tests() if t.split == "test"}
  german, french = tests["de"], tests["fr"]
  one, two = id_sources.from_tests(
    collection, "passage", languages=["de", "fr"], language_in_ids=True
  )
  texts = list(id_sources.read_all([one, two], records.BadRecords()))
  assert len(texts) == len(german.passages) + len(french.passages)
  assert texts[0].text_id == f"de/{german.passages[0].passage_id}"
  assert texts[-1].text == french.passages[-1].text
  assert one.sha256() != two.sha256() and one.name == "cldr/test/de"
  (queries,) = id_sources.from_tests(collection, "query", languages=["de"])
  found = [(t.text_id, t.text) for t in queries.read(records.BadRecords())]
  assert found == list(german.queries.items())
  with pytest.raises(ValueError, match="cldr has no test set in xx; its"):
    id_sources.from_tests(collection, "query", languages=["de", "xx"])
