"""The user's evaluators have their part of the table, and no part in means."""

import json

from mlir_jax.evals import rendering, report

BEFORE = {
  "gap/rivers": 0.031234,
  "test/de/mrr@100": 0.1,
  "test/fi/mrr@100": 0.3,
  "speed/texts/s": 12.0,
}
AFTER = BEFORE | {"gap/rivers": 0.41, "gap/cities": -2.0}
COLUMNS = {"step 0": BEFORE, "step 100": AFTER}

TEXT = """\
            MRR@100
        step 0  step 100
        ────────────────
all languages
  de      10.0      10.0
  fi      30.0      30.0
  mean    20.0      20.0

             Other measures
            step 0  step 100
           ─────────────────
gap
  rivers   0.03123      0.41
  cities         –        -2
speed
  texts/s       12        12
"""


def test_each_evaluator_has_its_rows_and_no_part_in_means():
  table = report.make_table(COLUMNS, {})
  assert [row.label for row in table.rows] == ["de", "fi", "mean"]
  assert table.measures == ("mrr@100",)
  assert table.extra == (
    report.ExtraRow("gap", "rivers", (0.031234, 0.41)),
    report.ExtraRow("gap", "cities", (None, -2.0)),
    report.ExtraRow("speed", "texts/s", (12.0, 12.0)),
  )


def test_text_markdown_and_json_show_values_as_they_were_returned():
  table = report.make_table(COLUMNS, {})
  text = rendering.to_text(table)
  assert text == f"{TEXT}\n{rendering.NOTE}\n{rendering.EXTRA_NOTE}\n"
  lines = rendering.to_markdown(table).splitlines()
  start = lines.index(
    "| evaluator or protocol | Other measures<br>step 0"
    " | Other measures<br>step 100 |"
  )
  assert lines[start - 1 :][:7] == [
    "",
    lines[start],
    "|:--|--:|--:|",
    "| **gap** | | |",
    "| rivers | 0.03123 | 0.41 |",
    "| cities | – | -2 |",
    "| **speed** | | |",
  ]
  content = json.loads(rendering.to_json(table))
  assert content["extra"] == {
    "gap": {
      "rivers": {"step 0": 0.031234, "step 100": 0.41},
      "cities": {"step 0": None, "step 100": -2.0},
    },
    "speed": {"texts/s": {"step 0": 12.0, "step 100": 12.0}},
  }
  assert all("gap" not in row["values"] for row in content["rows"])


def test_evaluators_without_tests_are_a_table():
  table = report.make_table({"now": {"gap/mean": 1.0}}, {})
  text = rendering.to_text(table, notes=["A note."])
  assert text.endswith(f"\n{rendering.EXTRA_NOTE}\nA note.\n")
  assert rendering.NOTE not in text
  assert "| mean | 1 |" in rendering.to_markdown(table).splitlines()


def test_names_of_evaluators_are_not_those_of_our_results():
  assert report.split_extra("gap/rivers") == ("gap", "rivers")
  for name in ("test/de/mrr@100", "dev/en", "tatoeba/x", "gap", "gap/", "G/x"):
    assert report.split_extra(name) is None
