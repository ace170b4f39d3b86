"""A plot is written if, and only if, there is something to draw."""

import itertools

import pytest

from mlir_jax.evals import plot

GROUPS = {"en": "English", "de": "parallel", "da": "parallel", "fi": "neither"}
BEFORE = {
  "dev/en/mrr@100": 0.55,
  "test/en/mrr@100": 0.5,
  "test/de/mrr@100": 0.1,
  "test/da/mrr@100": 0.2,
  "test/fi/mrr@100": 0.3,
}
AFTER = {name: value + 0.1 for name, value in BEFORE.items()}
AFTER["test/fi/mrr@100"] = 0.2
COLUMNS = {"step 0": BEFORE, "step 50": {}, "step 100": AFTER}


def test_plot_is_a_png(tmp_path):
  pytest.importorskip("matplotlib")
  path = tmp_path / "plots" / "mrr.png"
  assert plot.plot(COLUMNS, GROUPS, path) is True
  assert path.read_bytes().startswith(b"\x89PNG")
  assert [p.name for p in path.parent.iterdir()] == ["mrr.png"]
  assert plot.plot({"only": AFTER}, GROUPS, tmp_path / "one.png") is True


@pytest.mark.parametrize(
  "columns, measure",
  [
    (COLUMNS, "ndcg@10"),
    ({"a": BEFORE, "b": {"test/en/r@100": 0.5}}, "mrr@100"),
    ({"a": {"dev/en/mrr@100": 0.5}}, "mrr@100"),
    ({"a": {}, "b": BEFORE, "c": {}}, "mrr@100"),
    ({"a": {}}, "mrr@100"),
    ({}, "mrr@100"),
  ],
)
def test_without_a_language_to_draw_nothing_is_written(
  tmp_path, columns, measure
):
  assert plot.plot(columns, GROUPS, tmp_path / "mrr.png", measure) is False
  assert not list(tmp_path.iterdir())


def test_rows_do_not_overlap_and_dev_is_left_out():
  ends = {"step 0": BEFORE, "step 100": AFTER}
  changes, headings = plot._lay_out(ends, GROUPS, "mrr@100")
  assert [(change.row.group, change.row.label) for change in changes] == [
    ("English", "en"),
    ("parallel", "de"),
    ("parallel", "da"),
    ("parallel", "mean"),
    ("neither", "fi"),
    ("all but English", "mean"),
  ]
  assert changes[4].before == pytest.approx(30)
  assert changes[4].after == pytest.approx(20)
  places = sorted(item.place for item in (*changes, *headings))
  gaps = [b - a for a, b in itertools.pairwise(places)]
  assert len(headings) == 4 and min(gaps) >= 1
