"""Any model is evaluated on any tests; messages name the program's flags."""

import json
import shutil

import pytest
import sentence_models
import tiny

from mlir_jax import evaluate
from mlir_jax.command_line import shared_flags
from mlir_jax.data import collections
from mlir_jax.evals import report
from mlir_jax.retrieval import model as model_lib


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Returns a model that was not trained here, and a folder of tests."""
  folder = tmp_path_factory.mktemp("evaluate")
  sentence_models.save(folder / "model")
  root = tiny.write_folder(folder / "data")
  return str(folder / "model"), root


def test_a_foreign_model_has_one_mean_and_no_groups(made, tmp_path, capsys):
  """The folder has parallel text, but the model's training is unknown."""
  model, root = made
  output = tmp_path / "out"
  text = evaluate.evaluate(model, root=str(root), output=str(output))
  table = json.loads((output / "report.json").read_text())
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
  assert table["extra"] == {"gap": {"width": {"step 0": 24.0}}}
  monkeypatch.setattr(
    model_lib, "load", lambda *_: pytest.fail("It continues.")
  )
  with pytest.raises(ValueError, match=r"^--evaluator=gap is 'own_evals:no'"):
    evaluate.evaluate(model, extra={"gap": "own_evals:no"}, **given)
  for values in (["own_evals:gap"], ["a=b:c", "a=b:d"]):
    with pytest.raises(ValueError, match=r"^--evaluator="):
      shared_flags.parse_named("--evaluator", values, "")


def test_protocols_have_their_results_and_their_files(made, tmp_path):
  model, root = made
  output = tmp_path / "out"
  evaluate.evaluate(
    model,
    root=str(root),
    output=str(output),
    chosen_protocols={"languages": "languages"},
  )
  found = json.loads((output / "step-0.json").read_text())
  assert 0 <= found["languages/passages/probe_accuracy"] <= 1
  table = json.loads((output / "report.json").read_text())
  assert table["extra"]["languages"]["top10/distance"]["step 0"] > 0
  points = json.loads((output / "step-0/map.json").read_text())["points"]
  assert {point["language"] for point in points} == {"de", "en"}
  diagnostics = json.loads((output / "step-0/diagnostics.json").read_text())
  assert diagnostics["languages/top10/languages"] == ["de", "en"]
  with pytest.raises(
    ValueError, match=r"^--protocol=lareqa \(lareqa\): Passage"
  ):
    # Its ids are not those of one language.
    evaluate.evaluate(
      model,
      root=str(root),
      output=str(output),
      chosen_protocols={"lareqa": "lareqa"},
    )


def test_tests_by_name_take_the_place_of_the_runs_tests():
  data = {"collection": "folder", "root": "R", "tatoeba_root": "T"}
  data["sets"] = {"own": "ir_datasets:a"}
  given = {"sw": "ir_datasets:mr-tydi/sw/test"}

  def choose(collection="", root="", sets=()):
    tests = evaluate._Tests(collection, root, "", dict(sets))
    return tuple(evaluate._choose_tests(tests, data, "W"))

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
  assert evaluate.find_groups({"groups": recorded}, root) == recorded
  # Older versions did not record the groups: use those of the data, if any.
  assert evaluate.find_groups({}, root) == root.groups
  assert capsys.readouterr().out == ""
  assert evaluate.find_groups({}, None) == {}
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
