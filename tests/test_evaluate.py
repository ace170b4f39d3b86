"""Any model is evaluated on any tests; messages name the program's flags."""

import json
import shutil

import pytest
import sentence_models
import tiny

from mlir_jax import evaluate
from mlir_jax.command_line import shared_flags
from mlir_jax.data import collections
from mlir_jax.evals import columns, model_prefixes, of_run, options, report
from mlir_jax.retrieval import model as model_lib


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Returns a model that was not trained here, and a folder of tests."""
  folder = tmp_path_factory.mktemp("evaluate")
  sentence_models.save(folder / "model")
  root = tiny.write_folder(folder / "data")
  return str(folder / "model"), root


def test_foreign_models_have_one_mean_and_no_groups_and_their_own_prefixes(
  made, tmp_path, capsys
):
  """The folder has parallel text, but the models' training is unknown."""
  model, root = made
  output = tmp_path / "out"
  text = evaluate.evaluate(
    {"plain": model, "stone": model},
    root=str(root),
    output=str(output),
    prefixes={"query_prefix": {"stone": "stone river "}},
  )
  table = json.loads((output / "report.json").read_text())
  assert "stone: Prefixes that were given: query 'stone river '." in text
  german = table["rows"][0]["values"]["mrr@100"]
  assert german["plain"] != german["stone"]
  assert [(row["group"], row["label"]) for row in table["rows"]] == [
    (report.ALL, "de"),
    (report.ALL, "en (dev)"),
    (report.ALL, "en"),
    (report.ALL, "mean"),
  ]
  assert table["rows"][-1]["languages"] == ["de", "en"]
  assert table["shared_with_training"] == {} and report.ALL in text
  printed = capsys.readouterr().out
  assert "bad test records: none" in printed
  assert "passage texts cut to 20 tokens: " in printed


def test_evaluators_of_the_user_are_named_by_the_command(
  made, tmp_path, monkeypatch
):
  model, root = made
  (tmp_path / "own_evals.py").write_text(
    "def gap(embed):\n  return {'width': embed('query', ['apple']).shape[1]}\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  given = {"root": str(root), "output": str(tmp_path / "out")}
  extra = shared_flags.parse_named("--evaluator", ["gap=own_evals:gap"], "")
  evaluate.evaluate(model, extra=extra, **given)
  table = json.loads((tmp_path / "out/report.json").read_text())
  assert table["extra"] == {"gap": {"width": {"model": 24.0}}}
  monkeypatch.setattr(
    model_lib, "load", lambda *_: pytest.fail("It continues.")
  )
  with pytest.raises(ValueError, match=r"^--evaluator=gap is 'own_evals:no'"):
    evaluate.evaluate(model, extra={"gap": "own_evals:no"}, **given)
  for values in (["own_evals:gap"], ["a=b:c", "a=b:d"]):
    with pytest.raises(ValueError, match=r"^--evaluator="):
      shared_flags.parse_named("--evaluator", values, "")


KINDS = ("rrf", "minmax")
SYSTEMS = """
def first(test, k):
  return {q: {p.passage_id: -n for n, p in enumerate(test.passages[:k])}
          for q in test.queries} if test.language == "de" else None
"""


def test_models_bm25_runs_and_fusions_are_one_table(
  made, tmp_path, monkeypatch, capsys
):
  model, root = made
  (tmp_path / "own_systems.py").write_text(SYSTEMS)
  monkeypatch.syspath_prepend(tmp_path)
  shutil.copytree(root, tmp_path / "data")
  root = tmp_path / "data"
  # A hidden test: no query of it is judged.
  shutil.copytree(root / "eval/de", root / "eval/sw")
  (root / "eval/sw/qrels.test.txt").unlink()
  with pytest.raises(FileNotFoundError, match=r"make qrels\.test\.hidden, em"):
    collections.load("folder", str(root)).tests()
  (root / "eval/sw/qrels.test.hidden").write_text("q0 0 d0 1")
  with pytest.raises(ValueError, match=r"hidden says .* so it must be empty"):
    collections.load("folder", str(root)).tests()
  (root / "eval/sw/qrels.test.hidden").write_text("")
  output = tmp_path / "out"
  given = {"root": str(root), "output": str(output)}
  wanted = options.Options(
    hybrid=True,
    systems={"mine": "own_systems:first"},
    measures="nDCG@20,AP",
    intervals=True,
  )
  text = evaluate.evaluate([model, model], options=wanted, **given)
  table = json.loads((output / "report.json").read_text())
  names = ["model", table["columns"][1], "mine", "bm25"]
  assert names[1].endswith(".model")
  pairs = [f"{name}+bm25.{kind}" for name in names[:2] for kind in KINDS]
  assert table["columns"] == [*names, *pairs, "mine+bm25.rrf"]
  assert {"ndcg@20", "ap"} < set(table["measures"])
  rows = {row["label"]: row for row in table["rows"]}
  assert list(rows) == ["de", "en (dev)", "en", "mean"]
  german = rows["de"]["values"]["mrr@100"]
  assert german["model"] == german[names[1]]
  assert 0 < german["bm25"] != german["mine"] > 0
  assert rows["en"]["values"]["mrr@100"]["mine"] is None
  for row in rows.values():
    for column, ends in row["intervals"]["mrr@100"].items():
      value = row["values"]["mrr@100"][column]
      assert (ends is None) == (value is None)
      assert ends is None or ends[0] <= value <= ends[1]
  assert sum("English dev chose it" in note for note in table["notes"]) == 2
  assert any("have TREC runs, but no values: sw." in n for n in table["notes"])
  assert any("bm25 is BM25 (k1 = 1.5" in note for note in table["notes"])
  assert "In brackets: 95 % intervals" in text and " [" in text
  for name in table["columns"]:
    there = {path.name for path in (output / name).iterdir()}
    assert {"queries.jsonl", "examples.jsonl", "test.de.trec"} <= there
    assert ("test.sw.trec" in there) == ("mine" not in name)
    values = columns.read_queries(output / name)["test/de"]
    mean = sum(each["mrr@100"] for each in values.values()) / len(values)
    assert german[name] == pytest.approx(mean)
  assert capsys.readouterr().out.count("Evaluating ") == len(table["columns"])
  # TREC runs come in as they went out, without a model.
  runs = {"old": str(output / "bm25")}
  given["output"] = str(tmp_path / "again")
  evaluate.evaluate((), options=options.Options(runs=runs), **given)
  table = json.loads((tmp_path / "again/report.json").read_text())
  assert table["columns"] == ["old"]
  (row,) = (row for row in table["rows"] if row["label"] == "de")
  assert row["values"]["mrr@100"] == {"old": german["bm25"]}
  # All tests hidden: there is no table, and the TREC runs are there.
  hidden = tmp_path / "hidden"
  shutil.copytree(root / "eval/sw", hidden / "eval/sw")
  given = {"root": str(hidden), "output": str(tmp_path / "last")}
  text = evaluate.evaluate((), options=options.Options(bm25=True), **given)
  assert text.startswith("No test has judgements. The TREC runs are in ")
  assert (tmp_path / "last/bm25/test.sw.trec").stat().st_size


@pytest.mark.parametrize(
  ("source", "changes", "message"),
  [
    ((), {}, "There is nothing to evaluate: give --workdir"),
    ((), {"hybrid": True}, "--hybrid fuses BM25 with other systems"),
    ((), {"runs": {"bm25": "x"}, "bm25": True}, "Two systems have the name"),
    ((), {"runs": {"a/b": "x"}}, "The name 'a/b' of a system must hold"),
    ((), {"runs": {"a": "/gone"}}, "/gone: there is no such file"),
    ((), {"systems": {"a": "no_such:x"}}, "^--system=a is 'no_such:x'"),
    ((), {"bm25": True, "measures": "mmr@10"}, "^--measures: there is no meas"),
    ((), {"bm25": True, "measures": "R@500"}, "^--top_k is 100; R@500 needs"),
    ((), {"bm25": True, "top_k": 50}, "^--top_k is 50; MRR@100 needs"),
  ],
)
def test_a_system_that_cannot_be_evaluated_is_refused(
  source, changes, message, made, tmp_path
):
  with pytest.raises(ValueError, match=message):
    evaluate.evaluate(
      source,
      root=str(made[1]),
      output=str(tmp_path / "out"),
      options=options.Options(**changes),
    )
  assert not (tmp_path / "out").exists()


def test_a_path_may_have_a_name():
  named = evaluate._name_paths
  assert named("--model", ["a=x/b", "x/b", "y/b", "hub/e=5"]) == {
    "a": "x/b",
    "b": "x/b",
    "y.b": "y/b",
    "e-5": "hub/e=5",
  }
  with pytest.raises(ValueError, match="--model=a=y: a is given twice"):
    named("--model", ["a=x", "a=y"])


def test_a_prefix_is_of_all_models_or_of_the_one_that_it_names():
  models = {"e5": "hub/e5", "mine": "W"}

  def parse(*values):
    return model_prefixes.parse("--query_prefix", values, models)

  assert parse("query: ") == {"e5": "query: ", "mine": "query: "}
  assert parse("q: ", "e5=") == {"e5": "", "mine": "q: "}
  assert parse("mine=a=b") == {"mine": "a=b"}
  assert parse("task: a=b") == {"e5": "task: a=b", "mine": "task: a=b"}
  assert model_prefixes.parse("--query_prefix", None, models) == {}
  given = {"query_prefix": parse("mine=q"), "passage_prefix": "p"}
  assert model_prefixes.of_model(given, "e5") == {
    "query_prefix": None,
    "passage_prefix": "p",
  }
  for values, message in (
    (["e6=q"], r"e6=q: there is no model 'e6'; there are e5, mine.*=e5=e6=q\."),
    (["e5=a", "e5=b"], "=e5=b: e5 is given two prefixes"),
    (["a", "b"], "is given as 'a' and as 'b', both for all models"),
  ):
    with pytest.raises(ValueError, match=f"^--query_prefix.*{message}"):
      parse(*values)
  with pytest.raises(ValueError, match="--query_prefix needs --model"):
    model_prefixes.parse("--query_prefix", ["q"], {})
  with pytest.raises(ValueError, match="query_prefix: there is no model 'x'"):
    evaluate.evaluate("W", output="O", prefixes={"query_prefix": {"x": "q"}})


def test_protocols_have_their_results_and_their_files(made, tmp_path):
  model, root = made
  output = tmp_path / "out"
  evaluate.evaluate(
    model,
    root=str(root),
    output=str(output),
    options=options.Options(protocols={"languages": "languages"}),
  )
  found = json.loads((output / "model.json").read_text())
  assert 0 <= found["languages/passages/probe_accuracy"] <= 1
  table = json.loads((output / "report.json").read_text())
  assert table["extra"]["languages"]["top10/distance"]["model"] > 0
  points = json.loads((output / "model/map.json").read_text())["points"]
  assert {point["language"] for point in points} == {"de", "en"}
  diagnostics = json.loads((output / "model/diagnostics.json").read_text())
  assert diagnostics["languages/top10/languages"] == ["de", "en"]
  with pytest.raises(
    ValueError, match=r"^--protocol=lareqa \(lareqa\): Passage"
  ):
    # Its ids are not those of one language.
    evaluate.evaluate(
      model,
      root=str(root),
      output=str(output),
      options=options.Options(protocols={"lareqa": "lareqa"}),
    )


def test_tests_by_name_take_the_place_of_the_runs_tests():
  data = {"collection": "folder", "root": "R", "tatoeba_root": "T"}
  data["sets"] = {"own": "ir_datasets:a"}
  given = {"sw": "ir_datasets:mr-tydi/sw/test"}

  def choose(collection="", root="", sets=()):
    tests = of_run.Tests(collection, root, "", dict(sets))
    return tuple(of_run.choose_tests(tests, data, "W"))

  assert choose() == ("folder", "R", "T", data["sets"])
  assert choose(sets=given) == ("sets", "", "", given)
  assert choose(root="Q") == ("folder", "Q", "", {})
  assert choose(root="Q", sets=given) == ("folder", "Q", "", given)


def test_an_output_is_checked_before_the_model(tmp_path, monkeypatch):
  monkeypatch.setattr(
    model_lib, "load", lambda *_: pytest.fail("It continues.")
  )
  (tmp_path / "file").touch()
  for output in ("file", "file/x"):
    with pytest.raises(ValueError, match=r"^--output=.*file is not a folder"):
      evaluate.evaluate("model", output=str(tmp_path / output))


def test_groups_are_those_that_training_recorded(capsys):
  root = collections.load("cldr")
  recorded = {"en": "English", "de": "with parallel text"}
  assert of_run.find_groups({"groups": recorded}, root) == recorded
  # Older versions did not record the groups: use those of the data, if any.
  assert of_run.find_groups({}, root) == root.groups
  assert capsys.readouterr().out == ""
  assert of_run.find_groups({}, None) == {}
  assert "one mean of all languages" in capsys.readouterr().out


def test_refusals_name_the_flag(made, tmp_path):
  model, root = made
  with pytest.raises(ValueError, match=r"tests with --root or.* --output"):
    evaluate.evaluate(model)
  given = {"output": str(tmp_path / "out")}
  with pytest.raises(ValueError, match="need --collection=folder"):
    evaluate.evaluate(model, root=str(root), collection="cldr", **given)
  for flag in ("root", "tatoeba_root"):
    with pytest.raises(ValueError, match=f"--{flag}=/gone: there is no such"):
      evaluate.evaluate(model, **{"root": str(root), flag: "/gone"}, **given)
  others = tmp_path / "others"
  (others / "test").mkdir(parents=True)
  with pytest.raises(
    ValueError, match=r"^--root=.*/others: .* eval/\. It holds test\."
  ):
    evaluate.evaluate(model, root=str(others), **given)
  pairs = tmp_path / "pairs"
  shutil.copytree(root / "ir", pairs / "ir")
  with pytest.raises(ValueError, match=r"^--root=.*/pairs: there are no tests"):
    evaluate.evaluate(model, root=str(pairs), **given)
  assert not (tmp_path / "out").exists()
  bad = tmp_path / "bad"
  shutil.copytree(root / "eval" / "de", bad / "eval" / "de")
  topics = bad / "eval/de/topic.test.tsv"
  topics.write_text(f"q no tab\n{topics.read_text()}")
  with pytest.raises(
    ValueError,
    match=r"topic\.test\.tsv:1: .*\(--on_bad_record=skip skips it\.\)",
  ):
    evaluate.evaluate(model, root=str(bad), **given)
  evaluate.evaluate(model, root=str(bad), on_bad_record="skip", **given)
