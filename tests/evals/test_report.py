"""The report has all that was measured: rows, groups and means."""

import json

import pytest

from mlir_jax.evals import rendering, report, significance

GROUPS = {"en": "English", "de": "parallel", "da": "parallel", "fi": "neither"}
BEFORE = {
  "test/fi/mrr@100": 0.01,
  "test/en/mrr@100": 0.5,
  "test/de/mrr@100": 0.1,
  "test/da/mrr@100": 0.2,
  "test/de/r@100": 0.3,
  "dev/en/mrr@100": 0.55,
  "tatoeba/de-en/accuracy": 0.6,
  "tatoeba/en-de/accuracy": 0.7,
}
AFTER = {name: value + 0.1 for name, value in BEFORE.items()}
COLUMNS = {"step 0": BEFORE, "step 100": AFTER}
SHARED = {
  "de": {
    "queries": 500,
    "shared_queries": 3,
    "passages": 6000,
    "shared_passages": 12,
  }
}

TEXT = """\
                MRR@100             R@100           Tatoeba → en
            step 0  step 100   step 0  step 100   step 0  step 100
            ────────────────   ────────────────   ────────────────
English
  en (dev)    55.0      65.0        –         –        –         –
  en          50.0      60.0        –         –        –         –
parallel
  de          10.0      20.0     30.0      40.0     60.0      70.0
  da          20.0      30.0        –         –        –         –
  mean        15.0      25.0     30.0      40.0     60.0      70.0
neither
  fi           1.0      11.0        –         –        –         –
all but English
  mean        10.3      20.3     30.0      40.0     60.0      70.0
"""


def rows(table):
  return {(row.group, row.label): row.values for row in table.rows}


def test_rows_are_sorted_by_group_in_the_order_of_the_groups():
  table = report.make_table(COLUMNS, GROUPS)
  assert [(row.group, row.label) for row in table.rows] == [
    ("English", "en (dev)"),
    ("English", "en"),
    ("parallel", "de"),
    ("parallel", "da"),
    ("parallel", "mean"),
    ("neither", "fi"),
    ("all but English", "mean"),
  ]
  assert table.measures[0] == "mrr@100"


def test_means_are_over_languages_and_leave_out_dev_and_english():
  found = rows(report.make_table(COLUMNS, GROUPS))
  assert found["parallel", "mean"]["mrr@100"] == pytest.approx((0.15, 0.25))
  assert found["all but English", "mean"]["mrr@100"] == pytest.approx(
    (0.31 / 3, 0.61 / 3)
  )


def test_means_compare_the_same_languages_in_every_column():
  after = dict(AFTER)
  del after["test/da/mrr@100"]
  found = rows(report.make_table({"a": BEFORE, "b": after}, GROUPS))
  assert found["parallel", "da"]["mrr@100"] == (0.2, None)
  assert found["parallel", "mean"]["mrr@100"] == pytest.approx((0.1, 0.2))


def test_a_translation_test_is_about_the_language_that_is_not_english():
  assert report.parse("tatoeba/de-en/accuracy") == (
    "test",
    "de",
    "tatoeba to en",
  )
  assert report.parse("tatoeba/en-de/accuracy") == (
    "test",
    "de",
    "tatoeba from en",
  )


def test_without_groups_there_is_one_mean_of_all_languages():
  for groups in ({}, {"de": report.ALL}):
    table = report.make_table({"now": BEFORE}, groups)
    assert {row.group for row in table.rows} == {report.ALL}
    (mean,) = (row for row in table.rows if row.label == "mean")
    assert mean.values["mrr@100"] == pytest.approx(((0.01 + 0.5 + 0.3) / 4,))


def test_notes_are_below_the_table():
  table = report.make_table(COLUMNS, GROUPS)
  notes = ["One note.", "Another."]
  text = rendering.to_text(table, notes=notes)
  assert text.endswith("every column.\nOne note.\nAnother.\n")
  markdown = rendering.to_markdown(table, notes=notes)
  assert markdown.endswith("every column.\n\nOne note.\n\nAnother.\n")
  assert json.loads(rendering.to_json(table, notes=notes))["notes"] == notes


def test_languages_without_a_group_come_last():
  results = BEFORE | {"test/zu/mrr@100": 0.4, "test/ar/mrr@100": 0.2}
  table = report.make_table({"now": results}, GROUPS)
  assert [row.label for row in table.rows if row.group == report.OTHER] == [
    "ar",
    "zu",
    "mean",
  ]


def test_names_without_a_place_and_empty_results_are_refused():
  for name in ("loss", "Train/de/mrr@100", "test/de", "test/de/mrr@100/1"):
    with pytest.raises(ValueError, match="no place in the table"):
      report.make_table({"now": {name: 1.0}}, GROUPS)
  with pytest.raises(ValueError, match="no results"):
    report.make_table({"now": {}}, GROUPS)


def test_text_is_aligned_and_no_line_is_too_long(monkeypatch):
  monkeypatch.setattr(rendering, "WIDTH", 80)
  text = rendering.to_text(report.make_table(COLUMNS, GROUPS), SHARED)
  assert text.startswith(TEXT)
  assert max(map(len, text.splitlines())) <= 80
  # Blocks that do not fit are below, with only the rows that have values.
  _, below, note, *_ = text.split("\n\n")
  assert "Tatoeba en →" in below and "3 of 500" in below
  assert "12 of 6,000" in below and "  da" not in below
  assert note == rendering.NOTE + "\n"


def test_markdown_has_every_cell():
  text = rendering.to_markdown(report.make_table(COLUMNS, GROUPS), SHARED)
  lines = text.splitlines()
  table = [line for line in lines if line.startswith("|")]
  assert {line.count("|") for line in table} == {1 + 1 + 2 * 4 + 2}
  assert "| **parallel** " in text
  assert (
    "| de | 10.0 | 20.0 | 30.0 | 40.0 | 60.0 | 70.0 | 70.0 | 80.0"
    " | 3 of 500 | 12 of 6,000 |"
  ) in lines
  assert (
    "| *mean* | *15.0* | *25.0* | *30.0* | *40.0* | *60.0* | *70.0* | *70.0*"
    " | *80.0* |  |  |"
  ) in lines


def test_json_has_the_values_unrounded():
  content = json.loads(
    rendering.to_json(report.make_table(COLUMNS, GROUPS), SHARED)
  )
  assert content["columns"] == ["step 0", "step 100"]
  assert content["shared_with_training"] == SHARED
  row = next(row for row in content["rows"] if row["label"] == "fi")
  assert row["group"] == "neither" and row["languages"] == ["fi"]
  assert row["values"]["mrr@100"] == {
    "step 0": BEFORE["test/fi/mrr@100"],
    "step 100": AFTER["test/fi/mrr@100"],
  }


def queries_of(languages, value):
  return {
    f"test/{language}": {
      f"q{n}": {"mrr@100": value if n % 2 else value / 2} for n in range(20)
    }
    for language in languages
  }


def test_intervals_are_of_languages_and_of_their_mean():
  queries = {
    "step 0": queries_of(["de", "da", "fi"], 0.5),
    "step 100": queries_of(["de"], 0.8),
  }
  table = report.make_table(COLUMNS, GROUPS, queries)
  found = {(row.group, row.label): row.intervals for row in table.rows}
  (low, high), (other, _) = found["parallel", "de"]["mrr@100"]
  expected = significance.intervals({"test/de": queries["step 0"]["test/de"]})
  assert [low, high] == expected["test/de/mrr@100"]
  assert 0.25 < low < 0.375 < high < 0.5 and other > high
  # The mean of two languages is surer than each of them.
  (ends, none) = found["parallel", "mean"]["mrr@100"]
  assert low < ends[0] < 0.375 < ends[1] < high and none is None
  assert found["neither", "fi"]["mrr@100"][1] is None
  assert "r@100" not in found["parallel", "de"]
  # English has no interval, and is not in this mean.
  assert found["English", "en"] == {}
  assert found["all but English", "mean"]["mrr@100"][0] is not None
  cell = f" 10.0 [{100 * low:.1f}, {100 * high:.1f}] "
  assert cell in rendering.to_text(table, intervals=True)
  assert cell in rendering.to_markdown(table, intervals=True)
  assert rendering.INTERVAL_NOTE in rendering.to_text(table, intervals=True)
  assert "[" not in rendering.to_text(table)
  content = json.loads(rendering.to_json(table))
  row = next(row for row in content["rows"] if row["label"] == "de")
  assert row["intervals"]["mrr@100"]["step 0"] == [low, high]


def test_titles_of_further_measures_are_those_of_ir_measures():
  results = {"test/de/ndcg@20": 0.5, "test/de/mrr@100": 0.5}
  text = rendering.to_text(report.make_table({"now": results}, {}))
  assert "MRR@100" in text and "nDCG@20" in text


def test_write_leaves_three_files_and_returns_the_text(tmp_path):
  folder = tmp_path / "results"
  text = rendering.write(COLUMNS, GROUPS, folder, shared=SHARED)
  assert sorted(path.name for path in folder.iterdir()) == [
    "report.json",
    "report.md",
    "report.txt",
  ]
  assert (folder / "report.txt").read_text(encoding="utf-8") == text
