"""The whole road on a tiny collection: train, resume, evaluate, report.

tensorflow cannot be imported here, as in an installation without it.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

from mlir_jax import contract as contract_lib
from mlir_jax import evaluate, sharding
from mlir_jax.data import (
  collections,
  preparation,
  store_texts,
  token_store,
)
from mlir_jax.evals import report
from mlir_jax.models import architecture, rows
from mlir_jax.retrieval import encoding, model
from mlir_jax.training import initial_state, progress, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]

PACKAGE = pathlib.Path(preparation.__file__).parents[2]
BLOCKED = """
import sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None
import runpy
module, sys.argv[1:] = sys.argv[1], sys.argv[2:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
CONFIG = """
import pathlib
import sys
sys.path.insert(0, {tests!r})
import tiny
def get_config():
  c = tiny.make_config(pathlib.Path({root!r}))
  c.eval.at_start = True
  return c
"""


def call(module, *flags, cwd):
  done = subprocess.run(
    [sys.executable, "-c", BLOCKED, module, *map(str, flags)],
    capture_output=True,
    text=True,
    timeout=300,
    cwd=cwd,
    env=os.environ
    | {
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": "2",
      "PYTHONPATH": str(PACKAGE),
    },
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Returns a finished run's folder, its data's folder and its output."""
  folder = tmp_path_factory.mktemp("road")
  root = tiny.write_folder(folder / "data")
  config = folder / "own.py"
  tests = str(pathlib.Path(tiny.__file__).parent)
  config.write_text(CONFIG.format(tests=tests, root=str(root)))
  output = call(
    "mlir_jax.train", f"--config={config}", "--workdir=run", cwd=folder
  )
  return folder / "run", root, output


def test_the_run_prints_what_it_reads_before_the_first_step(trained):
  _, _, output = trained
  assert "retrieval: 120 rows (en 120)" in output
  assert "parallel: 120 rows (de-en 120)" in output
  assert "monolingual: 120 rows (fi 120)" in output
  assert "passage texts cut to 16 tokens: en" in output
  assert "bad training records: none" in output
  assert "bad test records: none" in output
  assert "Parameters: " in output


def test_the_run_ends_with_the_table_before_and_after(trained):
  folder, _, output = trained
  assert "step 0" in output
  assert "step 8" in output
  for name in ("report.txt", "report.md", "report.json", "report.png"):
    assert (folder / "results" / name).stat().st_size > 100
  assert (folder / "results/step-8/test.de.trec").exists()
  for test_set in ("queries", "passages"):
    assert test_set in output  # Texts shared with training.


def test_each_step_has_its_line_with_every_promised_metric(trained):
  folder, _, _ = trained
  lines = progress.read_metrics(str(folder))
  steps = [line["step"] for line in lines if line["kind"] == "train"]
  assert steps == list(range(1, 9))
  promised = {
    *("loss/total", "loss/ir", "loss/semantic", "loss/language"),
    *("grad_norm/ir", "grad_norm/semantic", "grad_norm/language"),
    *("ir/masked", "semantic/masked", "language/masked"),
    *("semantic/mean_cosine", "semantic/effective_rank"),
    *("language/rms_difference", "language/excess", "learning_rate"),
    *("steps_per_second", "sequences_per_second", "skipped"),
  }
  for line in lines:
    if line["kind"] == "train":
      assert promised <= line.keys()
  assert any((folder / "tensorboard").iterdir())


def test_evaluating_a_checkpoint_gives_what_training_reported(trained):
  folder, root, _ = trained
  output = call(
    "mlir_jax.evaluate", f"--workdir={folder}", "--checkpoint=best", cwd=root
  )
  assert "Also in training" in output
  (path,) = (folder / f"evaluate-{root.name}-best").glob("step-[0-9].json")
  reported = json.loads((folder / "results/step-8.json").read_text())
  if path.name == "step-8.json":
    assert json.loads(path.read_text()) == pytest.approx(reported, abs=1e-6)
  evaluate.evaluate(str(folder))
  evaluated = folder / f"evaluate-{root.name}-last/step-8.json"
  assert json.loads(evaluated.read_text()) == pytest.approx(reported, abs=1e-6)


def test_a_model_is_evaluated_on_another_folder_of_tests(trained, tmp_path):
  folder, root, _ = trained
  other = tmp_path / "other"
  shutil.copytree(root / "eval", other / "eval")
  for language in ("fi", "sw"):
    shutil.copytree(root / "eval" / "de", other / "eval" / language)
  out = str(tmp_path / "out")
  evaluate.evaluate(str(folder), root=str(other), output=out)
  found = json.loads((tmp_path / "out/step-8.json").read_text())
  reported = json.loads((folder / "results/step-8.json").read_text())
  assert {name: found[name] for name in reported} == pytest.approx(
    reported, abs=1e-6
  )
  # A language keeps its group of training: this folder has no parallel text.
  recorded = model.load(str(folder)).description.provenance["groups"]
  assert list(recorded) == ["en", "de", "fi"]
  table = json.loads((tmp_path / "out/report.json").read_text())
  assert {
    row["languages"][0]: row["group"]
    for row in table["rows"]
    if row["label"] != "mean"
  } == {
    "en": "English",
    "de": "with parallel text",
    "fi": "without parallel text",
    "sw": report.OTHER,
  }
  assert table["shared_with_training"]["de"]["queries"] == 20


def test_a_folder_with_only_pairs_trains_to_the_end(trained, tmp_path):
  _, root, _ = trained
  pairs = tmp_path / "pairs"
  shutil.copytree(root / "ir", pairs / "ir")
  c = tiny.make_config(pairs)
  c.batch.parallel = c.batch.monolingual = c.batch.masked = 0
  c.loss.semantic.weight = c.loss.language.weight = 0.0
  c.loss.masked_lm.weight = 0.0
  c.train.steps = 2
  assert run.train(c, str(tmp_path / "run")) == {}
  lines = progress.read_metrics(str(tmp_path / "run"))
  assert [line["step"] for line in lines] == [1, 2]
  assert {"ir/mean_cosine", "ir/effective_rank"} <= lines[0].keys()


def test_only_plain_text_trains_a_backbone(trained, tmp_path):
  _, root, _ = trained
  shutil.copytree(root / "mono", tmp_path / "text" / "mono")
  c = tiny.make_config(tmp_path / "text")
  c.batch.retrieval = c.batch.parallel = c.batch.monolingual = 0
  c.loss.ir.weight = c.loss.semantic.weight = c.loss.language.weight = 0.0
  c.loss.masked_lm.weight = 1.0
  c.optim.learning_rate = 1e-2
  c.train.steps = 30
  assert run.train(c, str(tmp_path / "run")) == {}
  losses = [
    line["loss/masked_lm"]
    for line in progress.read_metrics(str(tmp_path / "run"))
  ]
  assert np.mean(losses[-5:]) < losses[0] - 0.3


def test_the_same_command_again_trains_no_further_step(trained):
  folder, _, _ = trained
  before = (folder / "metrics.jsonl").read_text()
  config = folder.parent / "own.py"
  output = call(
    "mlir_jax.train",
    f"--config={config}",
    "--workdir=run",
    cwd=folder.parent,
  )
  assert "Going on from step 8" in output
  assert (folder / "metrics.jsonl").read_text() == before


def test_another_config_in_the_same_folder_is_refused_by_field(trained):
  folder, root, _ = trained
  c = tiny.make_config(root)
  c.optim.learning_rate = 5e-4
  with pytest.raises(
    ValueError, match=r"config\.optim\.learning_rate: 0\.0005 here, 0\.001"
  ):
    run.train(c, str(folder))


def test_a_model_encodes_as_its_contract_says(trained):
  folder, _, _ = trained
  loaded = model.load(str(folder), "best", sharding.make_mesh())
  texts = ["river stone", "apple", "", " apple ", "cloud " * 50]
  one_by_one = np.concatenate(
    [
      loaded.text_encoder.encode(loaded.params, "query", [text])
      for text in texts
    ]
  )
  together = loaded.text_encoder.encode(loaded.params, "query", texts)
  np.testing.assert_allclose(together, one_by_one, atol=1e-6)
  np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
  np.testing.assert_array_equal(together[1], together[3])
  with pytest.raises(ValueError, match="Unknown role 'title'"):
    loaded.text_encoder.encode(loaded.params, "title", texts)
  with pytest.raises(ValueError, match="no checkpoint '7'"):
    model.load(str(folder), "7", sharding.make_mesh())


def test_training_and_encoding_embed_a_text_alike(trained):
  """Pooling, prefix, joiner and lengths are equal (a fault of tevax)."""
  folder, _, _ = trained
  loaded = model.load(str(folder), "last", sharding.make_mesh())
  encoder = loaded.text_encoder
  store = token_store.TokenStore.open(folder / "tokens")
  root = loaded.description.config["data"]["root"]
  record = next(iter(collections.load("folder", root).retrieval()))
  passage = record.positives[0]
  plain = store_texts.parse_tokenizer(encoder.tokenizer.to_str())
  body = encoder.contract.body(passage.text, passage.title)
  hashes = np.array(store_texts.hash_bodies(plain, [body]), np.uint64)
  found = np.flatnonzero(store.arrays["passage_text_hashes"] == hashes)
  ids, mask = store.sequences("passage", found[:1], 16)
  embed = encoding.make_embed(
    architecture.EncoderConfig(**loaded.description.encoder), encoder.contract
  )
  (trained_on,) = jax.jit(embed, static_argnums=1)(
    loaded.params, "passage", (rows.one_a_row(ids, mask),)
  )
  encoded = encoder.encode(
    loaded.params, "passage", [passage.text], [passage.title]
  )
  np.testing.assert_allclose(trained_on[:, 0], encoded, atol=1e-6)


def test_a_changed_tokenizer_is_refused_wherever_it_encodes(trained, tmp_path):
  folder, _, _ = trained
  copy = tmp_path / "run"
  shutil.copytree(folder, copy)
  path = copy / "tokenizer/tokenizer.json"
  definition = json.loads(path.read_text())
  pieces = definition["model"]["vocab"]
  pieces[10], pieces[11] = pieces[11], pieces[10]
  path.write_text(json.dumps(definition))
  with pytest.raises(
    contract_lib.ContractMismatchError, match="tokenizer_fingerprint"
  ):
    model.load(str(copy), "last", sharding.make_mesh())


def test_a_token_store_of_other_data_is_refused(trained):
  folder, _, _ = trained
  with pytest.raises(ValueError, match="is not the one that"):
    initial_state.check_same_data("abc", "def", str(folder))
