"""Configs are found by name, and values that no run can use are refused."""

import functools
import inspect
import itertools
import math
import pathlib
import re

import jax
import numpy as np
import pytest
import tiny

from mlir_jax import config, config_checks, config_files, contract, sharding
from mlir_jax.batches import masking
from mlir_jax.data import collections
from mlir_jax.evals import measures
from mlir_jax.losses import registry
from mlir_jax.models import architecture, encoder
from mlir_jax.training import checks, compiled_step, progress, run

FIELDS = {
  name: (kind, value)
  for name, kind, value in config_checks.fields(config.default())
}


RANGES, CHOICES = config_checks.ranges(), config_checks.choices()


def ends(name):
  """Returns the ends of a field's interval and the numbers just outside."""
  kind, _ = FIELDS[name]
  interval = RANGES[name].rpartition(" or ")[2]
  lower, upper = map(float, interval[1:-1].split(","))
  if kind is int:
    inside, outside = [int(lower), int(upper)], [int(lower) - 1, int(upper) + 1]
  else:
    inside = [lower, upper]
    outside = np.nextafter([lower, upper], [-math.inf, math.inf]).tolist()
  for place, bracket in enumerate((interval[0], interval[-1])):
    if bracket in "()":
      outside[place] = inside[place]
      inside[place] = np.nextafter(inside[place], 0.5).item()
  return inside, outside


def changed(name, value):
  """Returns the default config with one other value, of any type."""
  c = config.default()
  group = c
  for key in name.split(".")[:-1]:
    group = group[key]
  with group.ignore_type():
    group[name.rpartition(".")[2]] = value
  return c


@pytest.fixture
def no_training(monkeypatch):
  """Fails the test if `run.train` goes on after its checks."""
  monkeypatch.setattr(
    compiled_step, "keep_compiled", lambda *_: pytest.fail("It goes on.")
  )


@pytest.mark.parametrize("name", RANGES)
def test_a_number_outside_of_its_range_is_refused(name, no_training):
  kind, default = FIELDS[name]
  inside, outside = ends(name)
  for value in inside:
    config_checks.check(changed(name, value))
  wrong = [*outside, math.nan, math.inf, -math.inf, "1"]
  if kind is int:  # ml_collections turns integers into floats.
    wrong += [True, inside[0] + 0.5, 10**400, 10**5000]
  if default is not None:
    wrong.append(None)
  message = rf"^{re.escape(name)} is .*; it must be (-1 or |0 or )?in [\[(]"
  for value in wrong:
    with pytest.raises(ValueError, match=message):
      run.train(changed(name, value), "no/folder")


def test_every_number_has_a_range_and_every_word_its_choices():
  numbers = {n for n, (kind, _) in FIELDS.items() if kind in (int, float)}
  assert numbers == RANGES.keys()
  free = {"encoding.title_joiner", *config.PATHS}
  free |= {"model.revision", "loss.ir.guide_revision"}
  free |= {"loss.distillation.teacher_revision", "loss.distillation.language"}
  free |= {"data.format", "data.language", "eval.selection"}
  free |= {"eval.measures"}
  free |= {"loss.matryoshka.dimensions"}  # See `matryoshka.parse`.
  texts = {n for n, (kind, _) in FIELDS.items() if kind is str} - free
  texts = {n for n in texts if not n.endswith(".prefix")}
  assert texts == CHOICES.keys()
  # The choices are those of the modules that use them.
  assert config.CHOICES["data.collection"] == collections.NAMES
  assert config.CHOICES["data.masking.kind"] == masking.KINDS
  assert config.CHOICES["encoding.pooling"] == contract.POOLINGS
  assert config.CHOICES["model.towers"] == encoder.TOWERS
  assert config.CHOICES["model.remat"] == architecture.REMATS
  assert config.CHOICES["model.attention"] == architecture.ATTENTIONS
  assert ends("eval.top_k")[0][0] == measures.DEPTH
  for role in contract.ROLES:
    smallest = ends(f"encoding.{role}.max_length")[0][0]
    assert smallest == contract.MIN_LENGTH


@pytest.mark.parametrize(
  "name", [name for name, (kind, _) in FIELDS.items() if kind in (str, bool)]
)
def test_a_word_that_is_not_a_choice_is_refused(name, no_training):
  wrong = [1, 0.5, ["cosine"]]
  if name in CHOICES:
    wrong += ["", "Cosine", f"{CHOICES[name][0]} "]
    for value in CHOICES[name]:
      config_checks.check(changed(name, value))
  if FIELDS[name][1] is not None:
    wrong.append(None)
  for value in wrong:
    with pytest.raises(ValueError, match=rf"^{re.escape(name)} is "):
      run.train(changed(name, value), "no/folder")


# Runs with these values once trained without an error, uphill or to NaN.
@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("optim.clip_norm", -1.0),
    ("optim.clip_norm", math.inf),
    ("optim.learning_rate", math.nan),
    ("optim.learning_rate", -1.0),
    ("optim.learning_rate", 1e30),
    ("optim.b1", 1.0),
    ("optim.b2", 1.0),
    ("optim.b2", 1 - 1e-9),  # In float32 it is 1.
    ("optim.eps", 0.0),
    ("optim.eps", 1e-50),
    ("optim.weight_decay", -1.0),
    ("optim.final_fraction", -1.0),
    ("optim.warmup_steps", -5),
    ("loss.ir.weight", math.nan),
    ("loss.semantic.temperature", math.nan),
    ("loss.ir.temperature", 1e-39),
    ("seed", 2**63),
    ("seed", 2**32),  # JAX's key of 0.
    ("seed", -1),
  ],
)
def test_a_value_that_spoils_training_is_refused(name, value):
  with pytest.raises(ValueError, match=rf"^{re.escape(name)} is "):
    checks.check_settings(changed(name, value))


@pytest.mark.parametrize("text", ["a\0b", "\udcff"])
def test_a_text_that_cannot_be_stored_is_refused(text):
  free = {"encoding.title_joiner", "encoding.query.prefix", "model.revision"}
  for name in free | set(config.PATHS):
    with pytest.raises(ValueError, match=rf"^{re.escape(name)} is .*Unicode"):
      checks.check_settings(changed(name, text))


@pytest.mark.parametrize(
  ("fields", "named"),
  [
    ({"encoding.normalize": False}, "encoding.normalize"),
    ({"encoding.passage.prefix": " \t"}, "encoding.passage.prefix"),
    ({"model.num_heads": 3}, "model.hidden_size"),
    ({"encoding.query.max_length": 513}, "encoding.query.max_length"),
    ({"model.max_positions": 127}, "encoding.passage.max_length"),
    ({"data.root": "/data"}, "data.root"),
    ({"data.tatoeba_root": "/data"}, "data.tatoeba_root"),
    ({"model.revision": "main"}, "model.revision"),
    ({"model.revision": "main", "model.pretrained": "."}, "model.revision"),
  ],
)
def test_fields_that_do_not_fit_together_are_refused_before_anything_is_read(
  fields, named, no_training
):
  c = config.default()
  c.update_from_flattened_dict(fields)
  with pytest.raises(ValueError, match=rf"^{re.escape(named)} is "):
    run.train(c, "no/folder")


def test_all_that_cudnn_needs_is_named_at_once(monkeypatch):
  c = config.default()
  c.update_from_flattened_dict(
    {"model.attention": "cudnn", "model.hidden_size": 48, "batch.row_length": 9}
  )
  with pytest.raises(
    ValueError,
    match=r"^model\.attention='cudnn' needs a GPU and model\.dtype=bfloat16 and"
    r" model\.attention_dropout=0\.0 and a model\.hidden_size /"
    r" model\.num_heads .* not 12 and an even batch\.row_length; or use 'xla'",
  ):
    checks.check_settings(c)
  # A pretrained model has its own heads.
  c.update_from_flattened_dict(
    {"model.pretrained": "a/model", "model.dtype": "bfloat16"}
    | {"model.attention_dropout": 0.0, "batch.row_length": 0}
  )
  monkeypatch.setattr("jax.default_backend", lambda: "gpu")
  checks.check_settings(c)


def test_a_stream_whose_losses_have_weight_0_is_accepted():
  c = config.default()
  c.loss.semantic.weight = c.loss.language.weight = 0.0
  checks.check_settings(c)


@pytest.mark.parametrize("place", ["file", "file/x", "w/file"])
def test_compiled_programs_are_kept_in_a_folder_or_refused(place, tmp_path):
  (tmp_path / "w").mkdir()
  (tmp_path / "file").touch()
  (tmp_path / "w/file").touch()
  cache = "file" if place == "w/file" else str(tmp_path / place)
  with pytest.raises(ValueError, match=r"^train\.compilation_cache=.*: /"):
    compiled_step.keep_compiled(cache, str(tmp_path / "w"))


def test_a_decay_that_changes_the_sign_of_a_weight_is_refused():
  c = config.default()
  c.optim.learning_rate, c.optim.weight_decay = 0.5, 2.0
  with pytest.raises(ValueError, match=r"optim\.weight_decay is 1\.0: "):
    checks.check_settings(c)


def test_names_and_paths_resolve_with_their_argument(tmp_path):
  path = config_files.resolve("quickstart:ir")
  assert re.fullmatch(r"/.*/configs/quickstart\.py:ir", path)
  own = tmp_path / "own.py"
  own.write_text("")
  assert config_files.resolve(f"{own}:x") == f"{own}:x"
  with pytest.raises(ValueError, match="there is no file"):
    config_files.resolve(f"{own.parent}/other.py")


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
  for loss in registry.BUILT_IN.values():
    lines = inspect.getsource(loss).splitlines()
    for previous, line in itertools.pairwise(lines):
      if "base.setting(" in line:
        fields += 1
        assert "  # " in line or previous.strip().startswith("# "), line
  assert fields > 50


@pytest.mark.parametrize("name", sorted(config_files.shipped()))
def test_every_shipped_config_is_made_of_known_fields(name):
  c = config_files.load(name)
  assert c.to_dict().keys() == config.default().to_dict().keys()


def smoke_variants():
  """The smoke variant of each config; equal ones are one."""
  names = {}
  for name in sorted(config_files.shipped()):
    variant = config_files.load(f"{name}:smoke").to_json()
    names.setdefault(variant, []).append(name)
  return [pytest.param(same[0], id="-".join(same)) for same in names.values()]


@pytest.mark.slow
@pytest.mark.parametrize("name", smoke_variants())
def test_the_smoke_variant_of_every_config_trains_a_step(
  name, tmp_path, monkeypatch
):
  c = config_files.load(f"{name}:smoke")
  devices = jax.devices()[: 2 if c.mesh.fsdp else 1]
  monkeypatch.setattr(
    sharding,
    "make_mesh",
    functools.partial(sharding.make_mesh, devices=devices),
  )
  if c.data.collection == "folder":
    c.data.root = str(tiny.write_folder(tmp_path / "data"))
    c.data.tatoeba_root = ""
    c.tokenizer.vocab_size = 200
  c.eval.at_start = c.train.self_check = False
  c.model.num_layers = 1  # A small program to compile.
  results = run.train(c, str(tmp_path / "run"))
  assert 0 <= results["test/de/mrr@100"] <= 1
  (record,) = [
    record
    for record in progress.read_metrics(str(tmp_path / "run"))
    if record["kind"] == "train"
  ]
  for loss, settings in c.loss.items():
    if settings.get("weight"):
      assert record[f"grad_norm/{loss}"] > 0
  assert record["learning_rate"] > 0
