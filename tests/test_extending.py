"""The user's loss, collection, format, … of docs/extending.md work as shown."""

import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import tiny

import mlir_jax
from mlir_jax import (
  config,
  config_checks,
  evaluate,
  export,
  extensions,
  mine,
  sharding,
  workdir,
)
from mlir_jax.command_line import config_fields
from mlir_jax.data import collections, records
from mlir_jax.data.collections import folder, pair_files
from mlir_jax.data.sources.pairs import registry
from mlir_jax.evals import of_run, own_systems, protocols
from mlir_jax.evals.protocols import protocol_data
from mlir_jax.losses import base
from mlir_jax.mining import rules as rules_lib
from mlir_jax.mining import search
from mlir_jax.retrieval import model as model_lib
from mlir_jax.training import checks, progress, run

PACKAGE = pathlib.Path(mlir_jax.__file__).parents[1]
TESTS = pathlib.Path(__file__).parent
DOCS = TESTS.parent / "docs/extending.md"
TARGET = "my_project.losses:Margin"


def examples():
  """Returns the files of the document: name to content."""
  text = DOCS.read_text(encoding="utf-8")
  found = re.findall(
    r"`(my_project/\w+\.py)`:\n\n```python\n(.*?)```", text, re.S
  )
  return dict(found)


@pytest.fixture
def project(tmp_path, monkeypatch):
  """Makes a folder with the document's files; importing them leaves a mark."""
  if not DOCS.is_file():
    pytest.skip("docs/ is not next to the tests")
  folder = tmp_path / "project"
  package = folder / "my_project"
  package.mkdir(parents=True)
  (package / "__init__.py").write_text(
    f"open({str(folder / 'imported')!r}, 'a').write('once ')\n"
  )
  for name, content in examples().items():
    (folder / name).write_text(content, encoding="utf-8")
  monkeypatch.syspath_prepend(folder)
  yield folder
  for name in [name for name in sys.modules if name.startswith("my_project")]:
    del sys.modules[name]


def imported(project):
  path = project / "imported"
  return path.read_text().split() if path.exists() else []


def settle(*flags, extra=None):
  """Returns the checked config of a command line."""
  c = config.default()
  for name, given in (extra or {}).items():
    c.loss.extra[name] = given
  argv = ["train", "--config=own", *flags]
  config_fields.check_names(argv)
  config_fields.add_targets(c, argv)
  config_checks.complete(c)
  config_fields.check_names(argv, c)
  config_checks.check(c)
  return c


def test_its_fields_have_their_defaults_and_are_checked_like_ours(project):
  c = settle(f"--config.loss.extra.margin.target={TARGET}")
  assert c.loss.extra.to_dict() == {
    "margin": {"target": TARGET, "weight": 1.0, "margin": 0.2}
  }
  c = settle(extra={"margin": {"target": TARGET, "weight": 1, "margin": 0}})
  assert c.loss.extra.margin.get_type("weight") is float
  for fields, message in {
    ("margin", 3.0): r"loss\.extra\.margin\.margin is 3\.0; .* in \[0, 2\]",
    ("margin", float("nan")): r"margin\.margin is nan; .* in \[0, 2\]",
    ("margin", "wide"): r"margin\.margin is 'wide'; .* in \[0, 2\]",
    ("weight", -1.0): r"margin\.weight is -1\.0; .* in \[0, 1e6\]",
    ("margn", 0.1): r"do not exist: loss\.extra\.margin\.margn",
  }.items():
    given = {"target": TARGET, fields[0]: fields[1]}
    with pytest.raises(ValueError, match=message):
      settle(extra={"margin": given})
  with pytest.raises(ValueError, match=r"Did you mean --config\.loss\.extra\."):
    settle(
      f"--config.loss.extra.margin.target={TARGET}",
      "--config.loss.extra.margin.wieght=1",
    )


def test_a_target_that_is_not_a_loss_is_refused_with_the_reason(project):
  (project / "my_project/broken.py").write_text("\nraise OSError('no disk')\n")
  (project / "my_project/others.py").write_text(
    "import dataclasses\nfrom mlir_jax.losses import base\n"
    "class Plain(base.Loss):\n  stream, reads = 'retrieval', ('queries',)\n"
    "@dataclasses.dataclass(frozen=True)\nclass Stray(base.Loss):\n"
    "  stream, reads = 'retrieval', ('query',)\n"
    "@dataclasses.dataclass(frozen=True)\nclass Lost(base.Loss):\n"
    "  stream, reads = 'rivers', ('queries',)\n"
    "@dataclasses.dataclass(frozen=True)\nclass Listed(base.Loss):\n"
    "  some: tuple = ()\n  stream, reads = 'retrieval', ('queries',)\n"
    "@dataclasses.dataclass(frozen=True)\nclass Aimed(base.Loss):\n"
    "  target: float = 0.5\n  stream, reads = 'retrieval', ('queries',)\n"
  )
  for name, target, message in (
    ("margin", None, "loss.extra.margin has no target"),
    ("ir", TARGET, "loss.extra.ir: give another name"),
    ("margin", "Margin", "it must be MODULE:NAME"),
    ("margin", "no_project.losses:Margin", "there is no module no_project:"),
    ("margin", "my_project.no:Margin", "there is no module my_project.no:"),
    ("margin", "my_project.losses:None_", "losses.py defines no None_"),
    ("margin", "my_project.broken:X", "broken.py:2: OSError: no disk"),
    ("margin", "my_project.losses:base", "is not a subclass of"),
    ("margin", "my_project.others:Plain", "is not a dataclass"),
    ("margin", "my_project.others:Stray", "reads is ('query',)"),
    ("margin", "my_project.others:Lost", "stream is not one of"),
    ("margin", "my_project.others:Listed", "Listed.some: a field of a loss"),
    ("margin", "my_project.others:Aimed", "Aimed has a field 'target'"),
    ("margin", "sys:foo", "but sys defines no foo"),
  ):
    given = {"weight": 1.0} if target is None else {"target": target}
    with pytest.raises(ValueError, match=re.escape(message)):
      settle(extra={name: given})


def test_the_files_of_a_users_modules_are_compared_between_processes(project):
  named = (
    {"margin": {"target": TARGET, "weight": 1.0}},
    "cldr",
    {"a": "no.no:x"},
  )
  before = extensions.fingerprints(*named)
  assert before.keys() == {"my_project.losses", "no.no"}
  assert before["no.no"] == ""
  assert extensions.fingerprints(*named) == before
  path = project / "my_project/losses.py"
  path.write_text(path.read_text() + "# Another.\n")
  assert extensions.fingerprints(*named) != before


def test_a_change_of_a_users_file_is_noticed_where_a_run_goes_on():
  saved = {"my_project.losses": "1", "my_project.evals": "2"}
  assert not extensions.describe_changes(saved, saved)
  assert not extensions.describe_changes({}, saved)  # Not recorded, or new.
  (line,) = extensions.describe_changes(
    saved, saved | {"my_project.evals": "3"}
  )
  assert line.startswith("The file of my_project.evals has changed since")


def test_evaluators_may_change_within_a_run():
  there = {"eval": {"extra": {"gap": "my_project.evals:gap"}}}
  assert not workdir.differences({"eval": {"extra": {}}}, there, there)


def test_a_loss_and_its_metrics_are_scalars():
  base.check_result("margin", np.zeros(()), {"violations": 0.5})
  for value, metrics in ((np.zeros(3), {}), (0.0, {"violations": np.zeros(3)})):
    with pytest.raises(ValueError, match=r"loss margin .* of shape \(3,\)"):
      base.check_result("margin", value, metrics)


@pytest.mark.slow
def test_the_command_line_trains_with_it_and_nothing_else_imports_it(
  project, tmp_path, capsys
):
  """On 8 devices, in chunks; all that the document shows, in one run."""
  (tmp_path / "data").mkdir()
  (tmp_path / "data/pairs.tsv").write_text(
    "".join(f"{a} {b}\t{b} {a}\n" for a, b in itertools.pairwise(tiny.WORDS))
  )
  (project / "own.py").write_text(
    "import tiny\n"
    "def get_config():\n"
    "  c = tiny.make_config('nowhere')\n"
    "  c.batch.parallel = c.batch.monolingual = c.batch.masked = 0\n"
    "  for name in ('semantic', 'language', 'masked_lm'):\n"
    "    c.loss[name].weight = 0.0\n"
    "  c.tokenizer.vocab_size = 100\n"
    "  c.train.steps, c.eval.every = 3, 3\n"
    f"  c.loss.extra.margin = {{'target': {TARGET!r}, 'weight': 0.1}}\n"
    "  return c\n"
  )
  folder = tmp_path / "run"
  dev = tiny.write_folder(tmp_path / "dev")
  done = subprocess.run(
    [
      # -P: the folder is not on the path, as where `mlir-jax` is started.
      *(sys.executable, "-P", "-m", "mlir_jax", "train", "--config=./own.py"),
      *(f"--workdir={folder}", "--config.batch.chunk_rows=8"),
      *("--config.loss.extra.margin.weight=0.3", "--config.mesh.fsdp=True"),
      "--config.eval.extra.gap=my_project.evals:gap",
      "--config.data.collection=my_project.data:load",
      f"--config.data.root={tmp_path / 'data'}",
      f"--config.eval.diagnostics_root={dev / 'parallel'}",
      "--config.eval.at_start=True",
    ],
    cwd=project,
    capture_output=True,
    text=True,
    timeout=500,
    env=os.environ
    | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    | {"PYTHONPATH": f"{PACKAGE}:{TESTS}"},
  )
  assert done.returncode == 0, done.stderr
  assert "over 8 devices" in done.stdout
  assert imported(project) == ["once"]
  *lines, evaluated = progress.read_metrics(str(folder))
  assert "gap/rivers" in evaluated
  assert [line["step"] for line in lines] == [1, 2, 3]
  table = json.loads((folder / "results/report.json").read_text())
  assert table["extra"]["gap"]["rivers"].keys() == {"step 0", "step 3"}
  assert evaluated["languages_dev/probe_chance"] == 0.5
  assert table["extra"]["languages_dev"]["language_gap"].keys() == {
    "step 0",
    "step 3",
  }
  for line in lines:
    total = 0.3 * line["loss/margin"] + line["loss/ir"]
    np.testing.assert_allclose(line["loss/total"], total, rtol=1e-5)
    assert line["grad_norm/margin"] > 0
    assert 0 < line["margin/violations"] <= 1
  kept = json.loads((folder / "config.json").read_text())
  assert kept["loss"]["extra"] == {
    "margin": {"target": TARGET, "weight": 0.3, "margin": 0.2}
  }

  assert kept["data"]["collection"] == "my_project.data:load"
  assert "retrieval: 29 rows (en 29)" in done.stdout

  # Without the flags it is somebody else's run: its code is not imported.
  c = tiny.make_config(tiny.write_folder(tmp_path / "other"))
  c.batch.masked, c.loss.masked_lm.weight = 0, 0.0
  c.train.steps, c.eval.every = 3, 0
  with pytest.raises(ValueError) as refused:
    run.train(c, str(folder))
  assert (
    str(refused.value)
    .splitlines()[-1]
    .endswith(
      f"repeat: --config.loss.extra.margin.margin=0.2"
      f" --config.loss.extra.margin.target={TARGET}"
      " --config.loss.extra.margin.weight=0.3"
    )
  )
  loaded = mlir_jax.load(str(folder))
  assert loaded.encode(["stone river"], role="query").shape == (1, 32)
  code = loaded.description.provenance["user_code"]
  assert code.keys() == {
    f"my_project.{name}" for name in ("losses", "data", "evals")
  }
  export.export(str(folder), "last", str(tmp_path / "export"))
  card = (tmp_path / "export/README.md").read_text(encoding="utf-8")
  assert f"| margin ({TARGET}) | 0.3 | – |" in card
  assert "dense retriever" in card
  assert imported(project) == ["once"]
  assert "my_project" not in sys.modules


def test_evaluators_are_functions_and_named_by_this_command(project):
  flag = "--config.eval.extra.gap=my_project."
  c = settle(f"{flag}evals:gap")
  assert c.eval.extra.to_dict() == {"gap": "my_project.evals:gap"}
  assert checks.check_settings(c) is None
  for c, message in (
    (settle(f"{flag}evals:RIVERS"), "which is not a function"),
    (settle(f"{flag}evals:no"), "evals.py defines no no"),
    (settle("--config.eval.extra.dev=my_project.evals:gap"), "another name"),
  ):
    with pytest.raises(ValueError, match=message):
      checks.check_settings(c)


def test_a_users_collection_is_read(project, tmp_path):
  path = tmp_path / "pairs.tsv"
  path.write_text("capital of Peru?\tLima\n\nLima\t\n", "utf-8")
  c = config.default()
  c.data.collection = "my_project.data:load"
  config_checks.check(c)
  assert not imported(project)  # It is read where the run is prepared.
  bad = records.BadRecords("skip")
  found = collections.load(c.data.collection, str(tmp_path), bad)
  (record,) = found.retrieval()
  assert record.positives == (records.Passage("Lima"),)
  assert bad.count == 1
  with pytest.raises(ValueError, match=r"pairs\.tsv:3: passage: is empty"):
    list(collections.load(c.data.collection, str(tmp_path)).retrieval())
  before = found.fingerprint()
  path.write_text("capital of Peru?\tLima\n", "utf-8")
  again = collections.load(c.data.collection, str(tmp_path))
  assert again.fingerprint() != before
  with pytest.raises(records.RecordError, match=r"pairs\.tsv has changed"):
    list(found.retrieval())
  (project / "my_project/others.py").write_text("def load(*_): return 1\n")
  with pytest.raises(ValueError, match=r"returns int; it must return .*\.Coll"):
    collections.load("my_project.others:load", str(tmp_path))


def test_a_users_format_is_read_like_ours(project, tmp_path):
  lines = [
    {"ask": "a", "answer_texts": ["b"], "wrong": ["c", "", 3], "note": "x"},
    {"ask": "a", "answer_texts": "b"},
    {"ask": "a", "answer_texts": ["b"], "wrong": "one string", "lang": "fi"},
    {"question": "a"},
  ]
  path = tmp_path / "data/ir/pairs.jsonl"
  path.parent.mkdir(parents=True)
  path.write_text("\n".join(map(json.dumps, lines)))
  c = settle("--config.data.formats.ask=my_project.formats:Ask")
  pairs = pair_files.Settings.of_config(c.data.to_dict())
  root = str(tmp_path / "data")
  bad = records.BadRecords("skip")
  loaded = collections.load("folder", root, bad, pairs=pairs)
  first, second = loaded.retrieval()
  assert [p.text for p in first.hard_negatives] == ["c", ""]
  assert (second.hard_negatives, second.language) == ((), "fi")
  assert [message.split(": ")[1] for message in bad.first] == [
    *("record 1, wrong[2]", "record 2, answer_texts", "record 3, wrong"),
    "record 4, ask",
  ]
  assert "ir/pairs.jsonl: fields not used: note" in loaded.notes()
  (file,) = folder.find_pairs(root, pairs)
  known = file.recognize(bad)
  assert known.with_negatives({"ask": "a"}, first.positives)["wrong"] == ["b"]
  with pytest.raises(records.RecordError, match="format is not known"):
    list(collections.load("folder", root, bad).retrieval())
  for target, message in (
    ("my_project.formats:base", "is not a subclass of"),
    ("my_project.formats:No", "defines no No"),
    ("mlir_jax.data.sources.pairs.base:PairFormat", "abstract"),
  ):
    with pytest.raises(ValueError, match=rf"data\.formats\.x is .*{message}"):
      registry.find({"x": target})
  with pytest.raises(ValueError, match=r"data\.formats\.dpr: give another"):
    registry.find({"dpr": "my_project.formats:Ask"})
  path.write_text(
    "".join(
      json.dumps({"ask": f"is {i} odd?", "answer_texts": [f"{i} is odd"]})
      + "\n"
      for i in range(3)
    )
  )
  rules = rules_lib.Rules(num_negatives=1)
  output = tmp_path / "mined"
  mine.mine(root, str(output), rules, search.Search(), pair_settings=pairs)
  for i, line in enumerate((output / "pairs.jsonl").read_text().splitlines()):
    (wrong,) = json.loads(line)["wrong"]
    assert wrong.endswith(" is odd") and not wrong.startswith(str(i))


def test_a_runs_collection_is_not_imported_unless_it_is_named(
  project, monkeypatch
):
  description = types.SimpleNamespace(
    config={
      "data": {
        "collection": "my_project.data:load",
        "root": str(project),
        "tatoeba_root": "",
      }
    },
    provenance={"groups": {}},
  )
  loaded = types.SimpleNamespace(description=description, path="run", step=8)
  loaded.with_inner_products = lambda: loaded
  monkeypatch.setattr(model_lib, "load", lambda *_, **__: loaded)
  with pytest.raises(
    ValueError, match=r"repeat --collection=my_project\.data:load"
  ):
    evaluate.evaluate("run")
  assert of_run.find_trained_on(description.config, "cldr") is None
  assert not imported(project)


def test_a_system_makes_the_run_of_a_test(project):
  found = own_systems.find({"letters": "my_project.systems:letters"})
  passages = tuple(
    records.Passage(text, passage_id=name)
    for name, text in (("a", "sky"), ("b", "a river"), ("c", "rive"))
  )
  test = records.RetrievalTest(
    "en", "test", passages, {"q": "driver"}, {"q": {"b": 1}}
  )
  assert found["letters"](test, 2) == {"q": {"b": 4.0, "c": 4.0}}
  assert imported(project) == ["once"]


def test_the_protocol_of_the_document_has_a_row_for_each_language(project):
  del project
  tests = [
    records.RetrievalTest(
      language,
      "test",
      (records.Passage(word, "", f"p.{language}"),),
      {"q": word},
      {"q": {f"p.{language}": 1}},
    )
    for language, word in (("de", "Hund"), ("en", "dog"))
  ]

  def embed(role, texts, titles=None):
    return np.array([[1, 2.0 if text == "dog" else 1] for text in texts], "f4")

  found = protocols.find(
    {"bias": "my_project.protocols:english_first"}, "--protocol=", {}
  )
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  data = protocol_data.Data(tests)
  assert protocols.run(found, embed, data, mesh).results == {
    "bias-pool/de/english_first": 1,
    "bias-pool/en/english_first": 1,
  }
