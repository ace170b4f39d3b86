"""The report shows what is in the folders of runs, and refuses what is not."""

import html.parser
import json
import re

import numpy as np
import pytest
import scipy.stats
from reporting import made_runs

from mlir_jax import report
from mlir_jax.reporting import page

CHANGED = {"loss": {"semantic": {"weight": 0.0}}, "mesh": {"fsdp": True}}


class _Parser(html.parser.HTMLParser):
  """Collects what a browser would show, and what it would run."""

  def __init__(self, text: str):
    super().__init__()
    self.tags: list[tuple[str, dict]] = []
    self.texts: list[str] = []
    self.scripts: list[str] = []
    self._inside = ""
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    self._inside = tag

  def handle_endtag(self, tag):
    self._inside = ""

  def handle_data(self, data):
    if self._inside in ("script", "style"):
      self.scripts.append(data)
    else:
      self.texts.append(data)

  @property
  def text(self) -> str:
    return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Three seeds of one config, and one run of another."""
  folder = tmp_path_factory.mktemp("runs")
  for seed in range(3):
    made_runs.make_run(
      folder / f"all-{seed}", seed=seed, gain=0.2 + 0.01 * seed
    )
  made_runs.make_run(folder / "ir-0", seed=0, config=CHANGED, gain=0.1)
  return folder


@pytest.fixture(scope="module")
def made(runs, tmp_path_factory):
  """The page of these runs, its text, and the folder of the paper."""
  pytest.importorskip("plotly")
  folder = tmp_path_factory.mktemp("report")
  paths = [str(path) for path in sorted(runs.iterdir())]
  output = folder / "report.html"
  report.report(paths, str(output), str(folder / "paper"))
  text = output.read_text(encoding="utf-8")
  return text, _Parser(text), folder / "paper"


def _after(runs, name, seed):
  path = runs / f"all-{seed}" / "results" / "step-300.json"
  return json.loads(path.read_text())[name]


def test_seeds_are_one_row_with_students_interval(runs, made):
  _, parser, paper = made
  values = [100 * _after(runs, "test/ja/mrr@100", seed) for seed in range(3)]
  half = scipy.stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / np.sqrt(3)
  expected = f"{np.mean(values):.1f} ± {half:.1f}"
  markdown = (paper / "report.md").read_text(encoding="utf-8")
  assert "all (3 seeds)" in parser.text
  assert expected in parser.text
  (row,) = re.findall(r"^\| ja \|.*", markdown.split("**nDCG")[0], re.MULTILINE)
  assert expected in row
  # One run has the interval of its file: [value - 0.02, value + 0.03].
  path = runs / "ir-0" / "results" / "step-300.json"
  value = 100 * json.loads(path.read_text())["test/ja/mrr@100"]
  assert f"{value:.1f} [{value - 2:.1f}, {value + 3:.1f}]" in row


def test_a_mean_of_one_run_has_its_interval_over_queries(runs, made):
  """Each of four languages has two queries, 0.1 apart.

  The sum of their draws is binomial, of 8 coins: at most 1 of them falls on one
  side with a probability of 9/256, and none with 1/256.
  """
  _, parser, paper = made
  path = runs / "ir-0" / "results" / "step-300.json"
  results = json.loads(path.read_text())
  languages = [name for name, of in made_runs.GROUPS.items() if of == "neither"]
  assert len(languages) == 4
  mean = 100 * np.mean([results[f"test/{each}/mrr@100"] for each in languages])
  expected = f"{mean:.1f} [{mean - 3.75:.1f}, {mean + 3.75:.1f}]"
  assert expected in parser.text
  assert expected in (paper / "report.md").read_text(encoding="utf-8")


def test_the_config_shows_what_differs_but_not_how_it_was_computed(made):
  _, parser, paper = made
  markdown = (paper / "report.md").read_text(encoding="utf-8")
  differing = markdown.split("**Fields that differ between runs**")[1]
  differing = differing.split("**Fields that are not the default**")[0]
  assert "| loss.semantic.weight | 1.0 | 0.0 |" in differing
  assert "seed" not in differing.split("|:--")[1]
  assert "loss.semantic.weight" in parser.text


def test_what_a_passage_holds_is_text_and_never_runs(made):
  text, parser, paper = made
  assert made_runs.ATTACK in parser.text
  assert not [tag for tag, _ in parser.tags if tag == "img"]
  assert not [
    script for script in parser.scripts if "<script" in script[-9999:]
  ]
  allowed = re.search('script-src ([^"]*)', text).group(1)
  assert allowed.count("sha256") == len(re.findall("<script>", text))
  for script in re.findall("<script>(.*?)</script>", text, re.DOTALL):
    assert page._hash(script).replace("'", "&#39;") in allowed
  markdown = (paper / "report.md").read_text(encoding="utf-8")
  assert made_runs.ATTACK not in markdown
  assert "alert" in markdown


def test_no_file_or_server_is_asked_for_anything(made):
  _, parser, _ = made
  for tag, attributes in parser.tags:
    assert not {"src", "srcset", "data", "action"} & attributes.keys(), tag
    assert attributes.get("href", "#").startswith("#")
  (policy,) = (a["content"] for _, a in parser.tags if "http-equiv" in a)
  assert policy.startswith("default-src 'none'")
  assert "http" not in policy


@pytest.mark.parametrize("language", made_runs.QUERIES)
def test_texts_are_set_by_their_script(made, language):
  text, parser, _ = made
  query = made_runs.QUERIES[language]
  assert f'<h3 dir="auto" lang="{language}">{query}</h3>' in text
  title, passage = made_runs.PASSAGES[language]
  assert title in parser.text
  assert passage in parser.text
  assert f'<p dir="auto" lang="{language}">{passage}</p>' in text


def test_the_judged_passage_is_marked_at_its_rank(made):
  text, _, _ = made
  # Before training its place is after the first passages, so the file does not
  # say its rank.
  relevant = re.findall(r'<li ([^>]*) class="relevant">', text)
  assert set(relevant) == {'value="1"', 'data-rank="none"'}
  assert text.count("✓ judged relevant") == len(relevant)


def test_the_same_input_gives_the_same_bytes(runs, made, tmp_path):
  paths = [str(path) for path in sorted(runs.iterdir())]
  report.report(paths, str(tmp_path / "again.html"), str(tmp_path / "paper"))
  again = (tmp_path / "again.html").read_text(encoding="utf-8")
  assert again == made[0]
  names = {path.name for path in made[2].iterdir()}
  assert names == {path.name for path in (tmp_path / "paper").iterdir()}
  for name in names:
    written = (tmp_path / "paper" / name).read_bytes()
    assert written == (made[2] / name).read_bytes(), name


def test_the_paper_has_a_whole_figure_for_each_that_it_shows(made):
  _, _, paper = made
  markdown = (paper / "report.md").read_text(encoding="utf-8")
  shown = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", markdown)
  assert {"curves.png", "languages-mrr-100.png", "map.png"} <= set(shown)
  assert {p.name for p in paper.iterdir()} == {*shown, "report.md"}
  for name in shown:
    assert (paper / name).read_bytes().startswith(b"\x89PNG")


def test_a_section_without_its_file_says_which_command_makes_it(tmp_path):
  pytest.importorskip("plotly")
  run = made_runs.make_run(tmp_path / "run", explained=False)
  (run / "metrics.jsonl").unlink()
  report.report([str(run)], str(tmp_path / "report.html"))
  parser = _Parser((tmp_path / "report.html").read_text(encoding="utf-8"))
  for sentence in (
    "There are no curves. python -m mlir_jax.train",
    "There are no diagnostics. python -m mlir_jax.evaluate",
    "There is no map. python -m mlir_jax.evaluate",
    "There are no queries. python -m mlir_jax.evaluate",
  ):
    assert sentence in parser.text
  assert "MRR@100" in parser.text


def test_other_systems_of_a_table_are_there_once(tmp_path):
  pytest.importorskip("plotly")
  folders = []
  for name in ("first", "second"):
    folder = tmp_path / name
    made_runs.write_results(
      folder / "bm25.json", np.random.default_rng(7), 0.1, explained=False
    )
    made_runs.write_results(
      folder / "step-0.json", np.random.default_rng(len(name)), 0.2
    )
    made_runs.write_report(
      folder / "report.json", columns=["step 0", "bm25", "not there"]
    )
    folders.append(str(folder))
  paper = tmp_path / "paper"
  report.report(folders, str(tmp_path / "report.html"), str(paper))
  markdown = (paper / "report.md").read_text(encoding="utf-8")
  assert markdown.startswith("# first, bm25, second\n")


@pytest.mark.parametrize(
  "name, content, problem",
  [
    ("map.json", {"points": [{"language": 1}]}, "points[0]: language is 1"),
    ("map.json", {"points": [], "method": None}, "method is None"),
    ("examples.jsonl", {"test": "test/de"}, "1: passages is None"),
    (
      "examples.jsonl",
      {
        "test": "test/de",
        "query_id": "1",
        "query": "q",
        "passages": [
          {"passage_id": "p", "title": "", "text": "t", "score": "high"}
        ],
      },
      "1: passages[0]: score is 'high'",
    ),
    ("queries.jsonl", {"test": "test/en", "query_id": "q1"}, "1: measures is"),
    ("../step-300.intervals.json", {"test/de/mrr@100": [0.1]}, "is [0.1]"),
    ("../report.json", {"rows": [], "columns": 3}, "is not a report"),
  ],
)
def test_a_damaged_file_is_named_with_its_field(
  tmp_path, name, content, problem
):
  pytest.importorskip("plotly")
  run = made_runs.make_run(tmp_path / "run")
  path = run / "results" / "step-300" / name
  made_runs.write_lines(path, [content])
  with pytest.raises(ValueError) as refused:
    report.report([str(run)], str(tmp_path / "report.html"))
  assert path.resolve().name in str(refused.value)
  assert problem in str(refused.value)
  assert not (tmp_path / "report.html").exists()


def test_a_folder_that_is_no_run_or_is_given_twice_is_refused(tmp_path, runs):
  pytest.importorskip("plotly")
  output = str(tmp_path / "report.html")
  run = str(runs / "ir-0")
  for folders, problem in (
    ([run, f"{run}/"], "is given twice"),
    ([str(tmp_path)], "has neither metrics.jsonl nor results"),
    ([str(tmp_path / "gone")], "is not a folder"),
  ):
    with pytest.raises(ValueError, match=problem):
      report.report(folders, output)
  with pytest.raises(ValueError, match="is a folder: name a file"):
    report.report([run], str(tmp_path))
