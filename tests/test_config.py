"""Configs: found by name from anywhere, and wrong fields refused by name."""

import itertools
import os
import pathlib
import re
import subprocess
import sys

import pytest
import tiny

from mlir_jax import config

PACKAGE = str(pathlib.Path(config.__file__).parents[1])


def call(*flags, cwd, module="mlir_jax.train"):
  done = subprocess.run(
    [sys.executable, "-m", module, *flags],
    capture_output=True,
    text=True,
    timeout=120,
    cwd=cwd,
    env=os.environ | {"PYTHONPATH": PACKAGE},
  )
  return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
  "flag,message",
  [
    (
      "--config.optim.lerning_rate=1e-4",
      'Did you mean "learning_rate"',
    ),
    ("--config.train.steps=many", "train.steps=many: invalid literal"),
    ("--config.train.steps=1.5", "train.steps=1.5: invalid literal"),
    ("--config.mesh.fsdp=perhaps", "boolean"),
    ("--confg.seed=1", "Unknown command line flag 'confg.seed'"),
    ("--config.batch.retrieval=0", "loss.ir.weight is 1.0, but batch"),
    ("--config.optim.decay=exponential", "optim.decay is 'exponential'"),
    ("--config.data.collection=cldir", "data.collection is 'cldir'"),
  ],
)
def test_a_wrong_flag_is_refused_with_what_to_do(flag, message, tmp_path):
  code, output = call(
    "--config=quickstart", f"--workdir={tmp_path}/w", flag, cwd=tmp_path
  )
  assert code != 0
  assert message in output
  assert "Traceback" not in output


def test_an_unknown_config_is_refused_with_the_nearest_name(tmp_path):
  code, output = call("--config=quickstrat", "--workdir=w", cwd=tmp_path)
  assert code != 0
  assert "Did you mean quickstart?" in output
  assert "debian" in output


def test_names_and_paths_resolve_with_their_argument(tmp_path):
  path = config.resolve("quickstart:ir")
  assert re.fullmatch(r"/.*/configs/quickstart\.py:ir", path)
  own = tmp_path / "own.py"
  own.write_text("")
  assert config.resolve(f"{own}:x") == f"{own}:x"
  with pytest.raises(ValueError, match="there is no file"):
    config.resolve(f"{own.parent}/other.py")
  debian = config.resolve("debian")
  assert config.resolve_arguments(
    ["main", "--config", "debian", "--config.seed=1", "--config=debian"]
  ) == ["main", "--config", debian, "--config.seed=1", f"--config={debian}"]


def test_a_field_that_does_not_exist_cannot_be_set_in_a_file():
  c = config.default()
  with pytest.raises(AttributeError, match="learning_rate"):
    c.optim.lerning_rate = 1.0
  with pytest.raises(TypeError):
    c.train.steps = "many"


def test_every_field_has_a_comment():
  source = pathlib.Path(config.__file__).read_text()
  body = source[source.index("c = ml_collections") : source.index("c.lock()")]
  lines = body.splitlines()
  fields = 0
  for previous, line in itertools.pairwise(lines):
    if re.match(r" +[\w.\[\]]+ = (?!.*ConfigDict)", line):
      fields += 1
      assert "  # " in line or previous.strip().startswith("# "), line
  assert fields > 40


@pytest.mark.parametrize("name", sorted(config.shipped()))
def test_every_shipped_config_is_made_of_known_fields(name):
  c = config.load(name)
  assert c.to_dict().keys() == config.default().to_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(config.shipped()))
def test_the_smoke_variant_of_every_config_trains_a_step(name, tmp_path):
  from mlir_jax.training import progress, run

  c = config.load(f"{name}:smoke")
  if c.data.collection == "folder":
    c.data.root = str(tiny.write_folder(tmp_path / "data"))
    c.data.tatoeba_root = ""
    c.tokenizer.vocab_size = 200
  c.eval.at_start = c.train.self_check = False
  results = run.train(c, str(tmp_path / "run"))
  assert 0 <= results["test/de/mrr@100"] <= 1
  (record,) = [
    record
    for record in progress.read_metrics(str(tmp_path / "run"))
    if record["kind"] == "train"
  ]
  for loss, settings in c.loss.items():
    if settings.weight:
      assert record[f"grad_norm/{loss}"] > 0
  assert record["learning_rate"] > 0
