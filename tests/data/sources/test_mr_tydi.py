"""Retrieval tests are read as trec_eval reads them."""

import json

import pytest
import source_files

from mlir_jax.data import records
from mlir_jax.evals import ranking


def test_a_retrieval_test_is_read(tmp_path):
  source_files.write_test(tmp_path)
  (test,) = source_files.read_tests(tmp_path, source_files.strict())
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
  path = source_files.write_test(tmp_path).rename(tmp_path / "eval/en")
  source_files.write(path / "topic.dev.tsv", "q9\tdev?\n")
  source_files.write(path / "qrels.dev.txt", "q9 Q0 d2 1\n")
  dev, test = source_files.read_tests(tmp_path, source_files.strict())
  assert (dev.split, test.split) == ("dev", "test")
  assert dev.queries == {"q9": "dev?"}
  assert dev.passages is test.passages


@pytest.mark.parametrize(
  "change, place, problem",
  [
    ({"docs": [*source_files.DOCS, {"id": "d1", "contents": "x"}]},
     r"docs\.jsonl\.gz:5: id", "is in line 1, too"),
    ({"docs": [*source_files.DOCS, {"id": "a b", "contents": "x"}]},
     r"docs\.jsonl\.gz:5: id", "white space"),
    ({"docs": [*source_files.DOCS, {"id": "d5", "contents": " \n\n"}]},
     r"docs\.jsonl\.gz:5: contents", "is empty"),
    ({"docs": [*source_files.DOCS, {"id": "d5", "text": "x"}]},
     r"docs\.jsonl\.gz:5: contents", "the fields are id, text"),
    ({"docs": "\n".join(map(json.dumps, source_files.DOCS)) + '\n{"id"'},
     r"docs\.jsonl\.gz:5: record", "is not JSON"),
    ({"topics": source_files.TOPICS + "q3 third?\n"},
     r"topic\.test\.tsv:3: query", "a tab"),
    ({"topics": source_files.TOPICS + "\u200b\tthird?\n"},
     r"topic\.test\.tsv:3: query id", "is empty"),
    ({"topics": source_files.TOPICS + "q3\t\n"},
     r"topic\.test\.tsv:3: query", "is missing"),
    ({"topics": source_files.TOPICS + "q1\tagain?\n"},
     r"topic\.test\.tsv:3: query id", "'q1' is in line 1, too"),
    ({"topics": source_files.TOPICS + "q3\tthird?\tmore\n"},
     r"topic\.test\.tsv:3: query", "has 3 columns"),
    ({"topics": "query_id\ttext\n" + source_files.TOPICS},
     r"topic\.test\.tsv:1: query id", "is the name of a column"),
    ({"docs": [*source_files.DOCS,
               {"id": "d5", "title": "t", "contents": "x"}]},
     r"docs\.jsonl\.gz:5: title", 'next to "contents"'),
    ({"qrels": source_files.QRELS + "q1 Q0 d4\n"},
     r"qrels\.test\.txt\.gz:4: qrels", "3 columns, not 4"),
    *(
      ({"qrels": source_files.QRELS + f"q1 Q0 d4 {grade}\n"},
       r"qrels\.test\.txt\.gz:4: relevance", "is not a whole number")
      for grade in ("1.0", "1_000", "+1", "١", "9" * 5_000)
    ),
    ({"qrels": source_files.QRELS + "q1 Q0 d1 1\n"},
     r"qrels\.test\.txt\.gz:4: passage id", "judged twice for 'q1'"),
  ],
)  # fmt: skip
def test_a_bad_record_of_a_test_is_named_and_skipped(
  tmp_path, change, place, problem
):
  source_files.write_test(tmp_path)
  clean = source_files.read_tests(tmp_path, source_files.strict())
  source_files.write_test(tmp_path, **change)
  with pytest.raises(records.RecordError, match=f"{place}: .*{problem}"):
    source_files.read_tests(tmp_path, source_files.strict())
  bad = source_files.skipping()
  assert source_files.read_tests(tmp_path, bad) == clean
  assert bad.count == 1


def test_a_title_ends_at_a_line_of_white_space(tmp_path):
  docs = [{"id": "d1", "contents": "Title\n \t\nText.\n\nMore."}]
  source_files.write_test(
    tmp_path, docs, topics="q1\tfirst?\n", qrels="q1 Q0 d1 1\n"
  )
  (test,) = source_files.read_tests(tmp_path, source_files.strict())
  assert test.passages == (records.Passage("Text.\n\nMore.", "Title", "d1"),)


def test_judgements_and_queries_without_each_other_are_counted_and_kept(
  tmp_path,
):
  """beir#101: a judged passage that is missing counts as not found."""
  folder = source_files.write_test(
    tmp_path,
    topics=source_files.TOPICS + "q3\tthird?\n",
    qrels=source_files.QRELS + "q1 Q0 gone 1\nq9 Q0 d1 1\n",
  )
  (test,) = source_files.read_tests(tmp_path, source_files.strict())
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
  source_files.write_test(
    tmp_path,
    docs=docs,
    topics="q1\tfirst?\nq2\tsecond?\nq3\ttitle third?\n",
    qrels="q1 Q0 q2 1\nq2 Q0 q1 1\nq3 Q0 q1 1\n",
  )
  (test,) = source_files.read_tests(tmp_path, source_files.strict())
  assert test.own_passages == ("q1", "q3")
  assert test.notes[0].endswith(", unless they are judged so: 2")


def test_blank_lines_windows_lines_and_beirs_header_are_read(tmp_path):
  source_files.write_test(tmp_path / "plain")
  source_files.write_test(
    tmp_path / "odd",
    docs="\r\n".join(
      json.dumps(doc).replace(r"\n\n", r"\r\n\r\n") + "\r\n"
      for doc in source_files.DOCS
    )
    + "\r\n",
    topics=source_files.TOPICS.replace("\n", "\r\n\n"),
    qrels="\nquery-id\tcorpus-id\tscore\n\nq1\td1\t1\nq1\td2\t0\n"
    "q2\t3\t2\n\u200b\n\n",
  )
  plain, odd = (
    source_files.read_tests(tmp_path / name, source_files.strict())[0]
    for name in ("plain", "odd")
  )
  assert odd.passages[0] == records.Passage(
    "Text.\n\nMore text.", "Title", "d1"
  )
  assert odd == plain


def test_a_test_without_a_judged_query_is_an_error(tmp_path):
  source_files.write_test(tmp_path, topics="", qrels="")
  with pytest.raises(records.RecordError, match="holds no query"):
    source_files.read_tests(tmp_path, source_files.skipping())
  source_files.write_test(tmp_path, qrels="q1 d1 Q0 1\nq1 Q0 d1 0\n")
  with pytest.raises(records.RecordError, match="lacks all passages"):
    source_files.read_tests(tmp_path, source_files.skipping())
  source_files.write_test(tmp_path, qrels="q1 Q0 d1 0\nq2 Q0 d2 -1\n")
  with pytest.raises(records.RecordError, match=r"qrels\S+ judges no passage"):
    source_files.read_tests(tmp_path, source_files.skipping())
