"""Two systems are compared query by query, in each language."""

import json

import numpy as np
import pytest
import tiny

from mlir_jax import compare
from mlir_jax.evals import columns, comparison, significance
from mlir_jax.retrieval import runs


def values(seed, queries=40, gain=0.0):
  rng = np.random.default_rng(seed)
  return {
    f"q{n}": {"mrr@100": float(value), "r@100": 1.0}
    for n, value in enumerate(np.clip(rng.uniform(0, 1, queries) + gain, 0, 1))
  }


def write(folder, name, tests):
  columns.Column(folder, name).write({}, tests)
  return str(folder / name)


@pytest.fixture
def pair(tmp_path):
  """Two columns: in German the second is better, in French equal."""
  before = {"dev/en": values(0), "test/de": values(1), "test/fr": values(2)}
  after = before | {"test/de": values(1, gain=0.1), "test/sw": values(3)}
  return write(tmp_path / "a", "e5", before), write(tmp_path / "b", "e5", after)


def test_each_language_has_its_difference_interval_and_p_values(pair, tmp_path):
  text = compare.compare(pair, output=str(tmp_path / "out"))
  content = json.loads((tmp_path / "out/compare.json").read_text())
  assert content["systems"] == ["a/e5", "b/e5"]
  lines = {each["test"]: each for each in content["measures"]["mrr@100"]}
  assert list(lines) == ["en (dev)", "de", "fr", "mean"]
  german, mean = lines["de"], lines["mean"]
  ours, theirs = values(1), values(1, gain=0.1)
  difference = np.array(
    [[theirs[q]["mrr@100"] - ours[q]["mrr@100"]] for q in ours]
  )
  assert german["queries"] == 40
  assert german["difference"] == pytest.approx(difference.mean())
  assert german["second"] - german["first"] == pytest.approx(difference.mean())
  drawn = significance.bootstrap(difference, "test/de")
  assert german["interval"] == pytest.approx(
    significance.interval(drawn)[:, 0].tolist()
  )
  assert german["interval"][0] < difference.mean() < german["interval"][1]
  assert german["p"] < 1e-4 and german["corrected"] == 2 * german["p"]
  for name in ("fr", "en (dev)"):
    assert lines[name]["difference"] == 0 and lines[name]["p"] == 1
    assert lines[name]["interval"] == [0, 0]
  # Dev is not in the mean.
  assert mean["difference"] == pytest.approx(difference.mean() / 2)
  assert mean["queries"] == 80 and mean["corrected"] is None
  assert mean["interval"] == pytest.approx(
    (np.array(german["interval"]) / 2).tolist()
  )
  assert content["notes"] == [
    "test/sw is left out: only b/e5 has it.",
    f"a/e5 is {pair[0]}.",
    f"b/e5 is {pair[1]}.",
  ]
  assert text == (tmp_path / "out/compare.txt").read_text("utf-8")
  assert "MRR@100\n" in text and "<0.0001" in text and comparison.NOTE in text
  markdown = (tmp_path / "out/compare.md").read_text("utf-8")
  assert "| MRR@100 | queries | a/e5 | b/e5 | difference | p | Holm |" in (
    markdown.splitlines()
  )


def test_a_run_is_compared_by_the_results_of_a_step(pair, tmp_path):
  first, _ = pair
  results = tmp_path / "run/results"
  for step, gain in ((0, 0.2), (8, 0.1), (100, 0.0)):
    write(results, f"step-{step}", {"test/de": values(1, gain=gain)})
  run = str(tmp_path / "run")
  assert "+0.0 [+0.0, +0.0]" in compare.compare([first, run])
  before, after = str(results / "step-0"), str(results / "step-100")
  assert "  step-0  step-100  " in compare.compare([before, after])
  text = compare.compare([first, run], step=8)
  assert f"run is {results}/step-8." in text
  with pytest.raises(ValueError, match=r"--step=9: .* of the steps 0, 8, 100"):
    compare.compare([first, run], step=9)


def test_trec_runs_are_compared_with_judgements(tmp_path):
  qrels = tmp_path / "qrels.txt"
  qrels.write_text("q1 0 a 1\nq2 0 b 2\nq2 0 c 1\n")
  runs.write_run(tmp_path / "a.trec", {"q1": {"a": 2, "b": 1}})
  runs.write_run(
    tmp_path / "b.trec", {"q1": {"a": 1, "b": 2}, "q2": {"b": 1, "x": 0}}
  )
  text = compare.compare(
    [str(tmp_path / "a.trec"), str(tmp_path / "b.trec")],
    qrels=str(qrels),
    measures="AP",
    output=str(tmp_path / "out"),
  )
  content = json.loads((tmp_path / "out/compare.json").read_text())
  (line,) = content["measures"]["mrr@100"]
  # q1 falls from 1 to 1/2, q2 rises from 0 to 1.
  assert (line["first"], line["second"]) == (0.5, 0.75)
  (line,) = content["measures"]["ap"]
  assert (line["first"], line["second"]) == (0.5, 0.5)
  assert "a.trec  b.trec" in text


def test_folders_of_trec_runs_are_compared_on_a_collection(tmp_path):
  root = tiny.write_folder(tmp_path / "data", pairs=40)
  for name, place in (("a", 0), ("b", 1)):
    for test in ("test.de", "test.en", "dev.en")[: 2 + place]:
      runs.write_run(
        tmp_path / name / f"{test}.trec",
        {f"q{n}": {f"d{n}": 1.0, f"d{n + place}": 2.0} for n in range(30)},
      )
  folders = [str(tmp_path / "a"), str(tmp_path / "b")]
  text = compare.compare(folders, root=str(root))
  first, *_ = text.split("\n\n")
  rows = [line.split() for line in first.splitlines()[2:]]
  assert [row[:4] for row in rows] == [
    ["de", "20", "100.0", "50.0"],
    ["en", "20", "100.0", "50.0"],
    ["mean", "40", "100.0", "50.0"],
  ]
  assert "dev/en is left out: only b has it." in text


def test_what_cannot_be_compared_is_refused(pair, tmp_path):
  first, second = pair
  (tmp_path / "empty").mkdir()
  other = write(tmp_path, "other", {"test/de": values(1, queries=30)})
  none = write(tmp_path, "none", {"test/xx": values(1)})
  hidden = write(tmp_path, "hidden", {})
  (tmp_path / "x.trec").touch()
  for paths, settings, message in (
    ([first], {}, "two systems to compare, not 1"),
    ([first, first], {}, "is given twice"),
    ([first, "/gone"], {}, "/gone: there is no such folder"),
    ([first, str(tmp_path / "empty")], {}, "evaluate it again with"),
    ([first, str(tmp_path / "x.trec")], {}, "needs --qrels or --root"),
    ([first, other], {}, "test/de: .* 40 judged queries, .* 30, and 30 are"),
    ([first, none], {}, "have no test in common"),
    ([first, hidden], {}, "holds no judged query"),
    ([first, second], {"measures": "AP"}, "--measures needs TREC runs"),
    ([first, second], {"qrels": "a", "root": "b"}, "either --qrels or --root"),
  ):
    with pytest.raises(ValueError, match=message):
      compare.compare(paths, **settings)
