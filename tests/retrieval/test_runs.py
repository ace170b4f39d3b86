"""Files of TREC runs keep every score; errors say where a file is broken."""

import numpy as np
import pytest

from mlir_jax.retrieval import runs


def test_a_run_reads_back_with_the_same_float32_scores(tmp_path):
  rng = np.random.default_rng(0)
  bits = rng.integers(0, 2**31, 5000, dtype=np.int64).astype(np.int32)
  scores = bits.view(np.float32)
  scores = scores[np.isfinite(scores)]
  scores *= rng.choice(np.float32([-1, 1]), len(scores))
  run = {"q1": {f"d{i}": float(s) for i, s in enumerate(scores)}}
  path = tmp_path / "new folder" / "run.trec"
  runs.write_run(path, run)
  read = runs.read_run(path)
  assert {k: np.float32(v) for k, v in read["q1"].items()} == {
    k: np.float32(v) for k, v in run["q1"].items()
  }


def test_lines_are_in_the_order_of_trec_eval(tmp_path):
  path = tmp_path / "run.trec"
  runs.write_run(path, {"q": {"a": 1, "c": 0.1, "b": 1, "é": 2}, "r": {"a": 3}})
  assert path.read_text(encoding="utf-8") == (
    "q Q0 é 1 2 mlir_jax\n"
    "q Q0 b 2 1 mlir_jax\n"
    "q Q0 a 3 1 mlir_jax\n"
    "q Q0 c 4 0.1 mlir_jax\n"
    "r Q0 a 1 3 mlir_jax\n"
  )


def test_scores_are_compared_as_float32():
  """trec_eval keeps float32 scores: a difference of 1e-9 is a tie."""
  assert [name for name, _ in runs.ranked({"a": 1 + 1e-9, "b": 1})] == [
    "b",
    "a",
  ]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
  path = tmp_path / "run.trec"
  runs.write_run(path, {"q": {"a": 1.0}})
  before = path.read_text()
  with pytest.raises(ValueError, match="is nan; scores must be finite"):
    runs.write_run(path, {"q": {"a": 1.0, "b": float("nan")}})
  assert path.read_text() == before
  assert [p.name for p in tmp_path.iterdir()] == ["run.trec"]


@pytest.mark.parametrize("name", ["", "two words", "tab\t", "line\n"])
def test_ids_that_would_break_the_line_are_refused(tmp_path, name):
  for run in ({"q": {name: 1.0}}, {name: {"d": 1.0}}):
    with pytest.raises(ValueError, match="white space"):
      runs.write_run(tmp_path / "run.trec", run)


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("q Q0 d 1 0.5", "5 fields"),
    ("q Q0 d 1 high tag", "score: 'high'"),
    ("q Q0 d 1 nan tag", "score: 'nan'"),
    ("q Q0 d 1 1_0 tag", "score: '1_0'"),
    ("q Q0 d 1 ١ tag", "score: '١'"),
    ("q Q0 d 1 1e300 tag", "score: '1e300'"),
    ("q Q0 d 1 0.5 tag\rq Q0 e 1 0.5 tag", "text: holds a carriage return"),
    ("q Q0 d\0 1 0.5 tag", "text: holds a NUL"),
    ("q Q0 a 2 0.4 tag", "passage: 'a' occurs twice for query 'q'"),
  ],
)
def test_a_bad_line_is_named_by_file_line_and_field(tmp_path, line, message):
  path = tmp_path / "run.trec"
  path.write_bytes(f"q Q0 a 1 0.5 tag\n{line}\n".encode())
  with pytest.raises(ValueError) as error:
    runs.read_run(path)
  assert str(error.value).startswith(f"{path}:2: {message}")


def test_another_encoding_is_named_and_a_byte_order_mark_is_removed(tmp_path):
  path = tmp_path / "run.trec"
  path.write_text("q Q0 a 1 0.5 tag\n", encoding="utf-16")
  with pytest.raises(
    ValueError, match=r"run\.trec:1: text: holds a NUL, as UTF-16"
  ):
    runs.read_run(path)
  path.write_text("q Q0 a 1 0.5 tag\n", encoding="utf-8-sig")
  assert runs.read_run(path) == {"q": {"a": 0.5}}


def test_ranks_and_the_order_of_lines_are_ignored(tmp_path):
  path = tmp_path / "run.trec"
  path.write_text("q Q0 b 7 0.25 x\r\nr\tQ0\tc\t1\t-1e-3\ty\n\nq Q0 a 7 0.5 x")
  assert runs.read_run(path) == {"q": {"a": 0.5, "b": 0.25}, "r": {"c": -1e-3}}
