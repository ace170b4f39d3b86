"""A column's files hold each query, some examples, and intervals."""

import json

import pytest

from mlir_jax.data import records
from mlir_jax.evals import columns
from mlir_jax.storage import reading

TEST = records.RetrievalTest(
  "de",
  "test",
  tuple(
    records.Passage(f"text {n}" * (1 if n else 300), f"t{n}", f"p{n}")
    for n in range(9)
  ),
  {f"q{n}": f"query {n}" for n in range(9)},
  {"q1": {"p8": 1, "p0": 0}, "q2": {"p1": 2}, "q3": {"gone": 1}},
)
RUN = {
  query_id: {f"p{n}": 9.0 - n for n in range(9)} for query_id in TEST.queries
}
VALUES = {
  "test/de": {
    "q1": {"mrr@100": 1 / 9, "r@100": 1.0},
    "q2": {"mrr@100": 0.5, "r@100": 1.0},
    "q3": {"mrr@100": 0.0, "r@100": 0.0},
  },
  "test/sw": {},
}


@pytest.fixture
def folder(tmp_path):
  column = columns.Column(tmp_path, "e5")
  column.look(TEST, RUN)
  column.write({"test/de/r@100": 2 / 3}, VALUES)
  return tmp_path


def test_each_query_is_read_back_and_intervals_have_the_names_of_results(
  folder,
):
  assert columns.read_queries(folder / "e5") == {"test/de": VALUES["test/de"]}
  assert columns.read_queries(folder) == {}
  (first, *_) = (folder / "e5/queries.jsonl").read_text().splitlines()
  assert json.loads(first) == {
    "test": "test/de",
    "query_id": "q1",
    "measures": {"mrr@100": 1 / 9, "r@100": 1.0},
  }
  results = json.loads((folder / "e5.json").read_text())
  assert results == {"test/de/r@100": 2 / 3}
  ends = json.loads((folder / "e5.intervals.json").read_text())
  assert ends.keys() == {"test/de/mrr@100", "test/de/r@100"}
  assert ends["test/de/r@100"] == [0, 1]


def test_examples_show_the_best_passages_and_the_judged_one(folder):
  lines = (folder / "e5/examples.jsonl").read_text().splitlines()
  shown = {line["query_id"]: line for line in map(json.loads, lines)}
  # Judged queries come first.
  assert len(shown) == 5 and {"q1", "q2", "q3"} < shown.keys()
  found = shown["q1"]
  assert (found["test"], found["query"]) == ("test/de", "query 1")
  passages = found["passages"]
  assert [each["passage_id"] for each in passages] == [
    *("p0", "p1", "p2", "p3", "p4"),
    "p8",  # It is judged relevant and not among the best.
  ]
  assert passages[5] == {
    "passage_id": "p8",
    "title": "t8",
    "text": "text 8",
    "rank": 9,
    "score": 1.0,
    "relevance": 1,
  }
  assert [each["relevance"] for each in passages] == [0, *[None] * 4, 1]
  assert len(passages[0]["text"]) == 1_001 and passages[0]["text"][-1] == "…"
  assert len(shown["q2"]["passages"]) == len(shown["q3"]["passages"]) == 5
  # The same queries for every system.
  other = columns.Column(folder, "bm25")
  other.look(TEST, {})
  other.write({}, {})
  lines = (folder / "bm25/examples.jsonl").read_text().splitlines()
  assert [json.loads(line)["query_id"] for line in lines] == list(shown)
  (judged,) = json.loads(lines[list(shown).index("q1")])["passages"]
  assert judged["score"] is None and judged["relevance"] == 1


@pytest.mark.parametrize(
  "line, message",
  [
    ("{", "it is not JSON"),
    ('{"test": 3}', "test is 3"),
    ('{"test": "test/de", "query_id": "q1"}', "query_id is 'q1'"),
    ('{"test": "test/de", "query_id": "q9"}', "measures is None"),
    (
      '{"test": "test/de", "query_id": "q9", "measures": {"mrr@100": 1}}',
      "measures is {'mrr@100': 1}",
    ),
    (
      '{"test": "a/b", "query_id": "q", "measures": {"x": true}}',
      "measures is {'x': True}",
    ),
  ],
)
def test_a_damaged_line_is_named(folder, line, message):
  path = folder / "e5/queries.jsonl"
  path.write_text(f"{path.read_text()}{line}\n")
  with pytest.raises(reading.UnreadableError) as error:
    columns.read_queries(folder / "e5")
  assert str(error.value).startswith(f"{path}:4")
  assert message in str(error.value)
  assert "make it again with mlir_jax.evaluate" in str(error.value)
