"""DPR's records are read, and a bad record or negative is named."""

import json

import pytest
import source_files

from mlir_jax.data import records


@pytest.mark.parametrize(
  "name, content",
  [
    ("a.json", json.dumps([source_files.DPR_RECORD])),
    ("a.json.gz", json.dumps([source_files.DPR_RECORD])),
    (
      "a.json",
      "\ufeff\n" + json.dumps([source_files.DPR_RECORD], indent=4) + "\n",
    ),
    ("a.jsonl", json.dumps(source_files.DPR_RECORD) + "\n"),
    ("a.jsonl.gz", json.dumps(source_files.DPR_RECORD)),
  ],
)
def test_dpr_records_are_read_from_arrays_and_lines(tmp_path, name, content):
  path = source_files.write(tmp_path / name, content)
  assert list(source_files.read_pairs(path, source_files.strict())) == [
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


@pytest.mark.parametrize(
  "value, field, problem",
  [
    ("text", "question", "the record is a string"),
    ({"query": "q", "pos": []}, "question", "the fields are query, pos"),
    (source_files.dpr_record(question=" "), "question", "is empty"),
    (source_files.dpr_record(question=3), "question", "is a number"),
    (source_files.dpr_record(question="\udcff"), "question", "surrogate"),
    (
      source_files.dpr_record(positive_ctxs=[]),
      "positive_ctxs",
      "at least one",
    ),
    (
      source_files.dpr_record(positive_ctxs="text"),
      "positive_ctxs",
      "is a string; give a list",
    ),
    (
      source_files.dpr_record(positive_ctxs=None),
      "positive_ctxs",
      "at least one",
    ),
    (
      source_files.dpr_record(positive_ctxs=[{"text": None}]),
      r"positive_ctxs\[0\]\.text",
      "is null",
    ),
    (
      source_files.dpr_record(positive_ctxs=["a"]),
      r"positive_ctxs\[0\]",
      "is a string",
    ),
    (
      source_files.dpr_record(positive_ctxs=[{"text": "a"}, {"title": "b"}]),
      r"positive_ctxs\[1\]\.text",
      "is missing; the fields are title",
    ),
    (
      source_files.dpr_record(positive_ctxs=[{"text": "a", "title": ["b"]}]),
      r"positive_ctxs\[0\]\.title",
      "is a list",
    ),
    (
      source_files.dpr_record(positive_ctxs=[{"text": "a", "psg_id": 1.5}]),
      r"positive_ctxs\[0\]\.psg_id",
      "is a number",
    ),
  ],
)
def test_a_bad_dpr_record_is_named_and_the_others_are_read(
  tmp_path, value, field, problem
):
  one_line = json.dumps(
    [source_files.DPR_RECORD, value, source_files.DPR_RECORD]
  )
  path = source_files.write(tmp_path / "a.json", one_line)
  with pytest.raises(
    records.RecordError,
    match=rf"a\.json:1: record 2, {field}: .*{problem}",
  ):
    list(source_files.read_pairs(path, source_files.strict()))

  many_lines = "[\n" + ",\n\n".join(
    map(json.dumps, (source_files.DPR_RECORD, value, source_files.DPR_RECORD))
  )
  bad = source_files.skipping()
  read = list(
    source_files.read_pairs(
      source_files.write(tmp_path / "a.json", many_lines + "\n]"), bad
    )
  )
  assert [record.question for record in read] == [
    source_files.DPR_RECORD["question"]
  ] * 2
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
  value = source_files.dpr_record(hard_negative_ctxs=[good, negative, good])
  path = source_files.write(
    tmp_path / "a.json", json.dumps([source_files.DPR_RECORD, value])
  )
  with pytest.raises(
    records.RecordError,
    match=rf"a\.json:1: record 2, hard_negative_ctxs{field}: .*{problem}",
  ):
    list(source_files.read_pairs(path, source_files.strict()))
  bad = source_files.skipping()
  _, record = source_files.read_pairs(path, bad)
  assert [p.text for p in record.hard_negatives] == ["A tool."] * 2
  assert bad.count == 1


@pytest.mark.parametrize(
  "negatives, kind",
  [("text", "a string"), ({"text": "a"}, "an object"), (False, "a boolean")],
)
def test_hard_negatives_that_are_not_a_list_do_not_cost_the_question(
  tmp_path, negatives, kind
):
  value = source_files.dpr_record(hard_negative_ctxs=negatives)
  path = source_files.write(
    tmp_path / "a.json", json.dumps([source_files.DPR_RECORD, value])
  )
  with pytest.raises(
    records.RecordError,
    match=rf"a\.json:1: record 2, hard_negative_ctxs: is {kind}; give a list",
  ):
    list(source_files.read_pairs(path, source_files.strict()))
  bad = source_files.skipping()
  first, second = source_files.read_pairs(path, bad)
  assert second.positives == first.positives
  assert second.hard_negatives == ()
  assert bad.count == 1


def test_hard_negatives_without_text_and_null_lists_are_not_an_error(tmp_path):
  without = [None, {"text": None}, {"text": " ", "title": "b"}, {"text": ""}]
  copy = {"title": "dpkg", "text": "An archive.", "passage_id": 7}
  values = [
    source_files.dpr_record(hard_negative_ctxs=[*without, copy]),
    source_files.dpr_record(hard_negative_ctxs=None, negative_ctxs=None),
  ]
  path = source_files.write(tmp_path / "a.json", json.dumps(values))
  first, second = source_files.read_pairs(path, source_files.strict())
  # The token store drops and counts them, whatever the format.
  assert first.hard_negatives == (
    *[records.Passage("")] * 4,
    first.positives[0],
  )
  assert second.hard_negatives == ()
  assert first.place == (str(path), 1, 1)
  assert str(second.place) == f"{path}:1: record 2"


def test_a_bad_dpr_record_is_named_by_its_first_line(tmp_path):
  content = json.dumps(
    [source_files.DPR_RECORD, source_files.dpr_record(question="")], indent=1
  )
  line = [i for i, x in enumerate(content.split("\n"), 1) if x == " {"][1]
  path = source_files.write(tmp_path / "a.json", content)
  with pytest.raises(records.RecordError, match=rf"a\.json:{line}: record 2,"):
    list(source_files.read_pairs(path, source_files.strict()))


def test_passages_without_ids_are_not_the_same_passage(tmp_path):
  value = source_files.dpr_record(
    positive_ctxs=[{"text": "a"}], hard_negative_ctxs=[{"text": "b"}]
  )
  path = source_files.write(tmp_path / "a.json", json.dumps([value]))
  (record,) = source_files.read_pairs(path, source_files.strict())
  assert record.hard_negatives == (records.Passage("b"),)
