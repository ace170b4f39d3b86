"""Every command that encodes refuses a checkpoint with another contract.

Each command is tried with each field of the contract.
"""

import json
import pathlib
import runpy
import shutil
import sys

import numpy as np
import pytest
import tiny
from absl import app, flags

from mlir_jax import contract as contract_lib
from mlir_jax.checkpoints import damage
from mlir_jax.data import token_store
from mlir_jax.storage import digests
from mlir_jax.training import run

pytestmark = [
  pytest.mark.slow,
  # How ml_collections reads a config file, on Python 3.11.
  pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),
]

FIELDS = {
  "pooling": "cls",
  "normalize": False,
  "title_joiner": "\n",
  **{
    f"{role}.{field}": value
    for role in contract_lib.ROLES
    for field, value in (("prefix", "x: "), ("max_length", 8))
  },
  "query.tower": "passage",
  "passage.tower": "query",
  "sentence.tower": "query",
  "tokenizer_fingerprint": "0" * 64,
  "golden_ids": ((1, 2, 3),) * len(contract_lib.GOLDEN_TEXTS),
}
CONFIG = """
import pathlib
import sys
sys.path.insert(0, {tests!r})
import test_contract_refusals
def get_config():
  return test_contract_refusals.make_config(pathlib.Path({root!r}))
"""


def make_config(root):
  """Returns a run with pairs only, which compiles in a few seconds."""
  c = tiny.make_config(root)
  c.encoding.query.prefix = "q: "
  tiny.train_pairs_alone(c)
  c.batch.retrieval = 8
  c.train.steps = 2
  c.eval.every = 0
  return c


@pytest.fixture(scope="module")
def trained(tmp_path_factory, one_device):
  """Makes a folder with a finished run, its data and its config."""
  folder = tmp_path_factory.mktemp("refusals")
  root = tiny.write_folder(folder / "data", pairs=40)
  shutil.rmtree(root / "eval/de")  # One language takes less time.
  run.train(make_config(root), str(folder / "run"))
  tests = str(pathlib.Path(__file__).parent)
  (folder / "own.py").write_text(CONFIG.format(tests=tests, root=str(root)))
  (folder / "texts.txt").write_text("river stone\n")
  return folder


@pytest.fixture
def copy(trained, tmp_path):
  """Copies the run to a folder that a test may change."""
  return shutil.copytree(trained / "run", tmp_path / "run")


def call(main, workdir, trained, capsys, monkeypatch):
  """Runs a command in this process; returns its exit status and its errors."""
  arguments = {
    "train": (f"--config={trained}/own.py", f"--workdir={workdir}"),
    "encode": (
      *(f"--model={workdir}", "--role=query"),
      *(f"--output={workdir}/out/v.npy", f"{trained}/texts.txt"),
    ),
    "evaluate": (f"--workdir={workdir}", f"--output={workdir}/out/e"),
    "export": (f"--workdir={workdir}", f"--output={workdir}/out/x"),
  }[main]
  monkeypatch.setattr(sys, "argv", [main, *arguments])
  app.define_help_flags()
  known = set(flags.FLAGS)
  try:
    runpy.run_module(f"mlir_jax.{main}", run_name="__main__")
  except SystemExit as stopped:
    return stopped.code, capsys.readouterr().err
  finally:
    for name in set(flags.FLAGS) - known:
      delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
  raise AssertionError("Commands end with SystemExit.")


def change_checkpoint(workdir, field, value):
  """Changes one field of the contract in the checkpoint."""
  (path,) = workdir.glob("checkpoints/*/description/metadata")
  description = json.loads(path.read_text())
  contract = json.loads(description["contract"])
  *outer, name = field.split(".")
  inner = contract[outer[0]] if outer else contract
  assert inner[name] != value
  inner[name] = value
  description["contract"] = json.dumps(contract)
  # The hash is as if the checkpoint had been saved like this.
  del description["fingerprint"]
  description["fingerprint"] = digests.of_value(description)
  path.write_text(json.dumps(description))
  (path.parents[1] / damage.FILES).unlink()  # It would show damage.


@pytest.mark.parametrize("main", ["train", "encode", "evaluate", "export"])
def test_an_unchanged_run_is_accepted(main, copy, trained, capsys, monkeypatch):
  code, error = call(main, copy, trained, capsys, monkeypatch)
  assert not code, error
  if main == "encode":
    assert np.load(copy / "out/v.npy").shape == (1, 32)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("main", ["train", "encode", "evaluate", "export"])
def test_a_mismatch_of_any_field_is_refused(
  field, main, copy, trained, capsys, monkeypatch
):
  change_checkpoint(copy, field, FIELDS[field])
  code, error = call(main, copy, trained, capsys, monkeypatch)
  assert code == 2
  assert "The encoding contract differs" in error
  assert f"\n  {field}: " in error
  assert not (copy / "out").exists()


def test_a_config_of_another_contract_is_refused_where_it_encodes(
  copy, trained, capsys, monkeypatch
):
  path = copy / "config.json"
  config = json.loads(path.read_text())
  config["encoding"]["query"]["prefix"] = "x: "
  path.write_text(json.dumps(config))
  shutil.rmtree(copy / "tokens")  # Not needed to encode.
  code, error = call("encode", copy, trained, capsys, monkeypatch)
  assert code == 2 and str(path) in error
  assert "\n  query.prefix: 'q: ' here, 'x: ' there" in error
  # The checkpoint decides a field that the config leaves open.
  config["encoding"]["query"]["prefix"] = None
  path.write_text(json.dumps(config))
  code, error = call("encode", copy, trained, capsys, monkeypatch)
  assert not code, error


def test_a_token_store_of_another_contract_is_refused(
  copy, trained, capsys, monkeypatch
):
  path = copy / "tokens/meta.json"
  meta = json.loads(path.read_text())
  meta["contract"]["passage"]["prefix"] = "x: "
  path.write_text(json.dumps(token_store.sealed(meta)))
  for main in ("train", "encode", "evaluate", "export"):
    code, error = call(main, copy, trained, capsys, monkeypatch)
    assert code == 2
    # In training, the store decides what the config leaves open, and that
    # differs from the checkpoint.
    sides = ("'x: '", "''") if main == "train" else ("''", "'x: '")
    assert "\n  passage.prefix: {} here, {} there".format(*sides) in error
    place = "checkpoints" if main == "train" else "tokens"
    assert str(copy / place) in error


def test_another_tokenizer_is_refused(copy, trained, capsys, monkeypatch):
  path = copy / "tokenizer/tokenizer.json"
  definition = json.loads(path.read_text())
  pieces = definition["model"]["vocab"]
  pieces[10], pieces[11] = pieces[11], pieces[10]
  path.write_text(json.dumps(definition))
  for main in ("train", "encode", "evaluate", "export"):
    code, error = call(main, copy, trained, capsys, monkeypatch)
    assert code == 2 and "\n  tokenizer_fingerprint: " in error
