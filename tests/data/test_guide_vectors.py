"""A run's guide: its vectors are computed once, kept, and read by the steps."""

import functools
import json
import shutil

import numpy as np
import pytest
import sentence_models
import tiny

from mlir_jax import config, sharding
from mlir_jax.batches import reader
from mlir_jax.checkpoints import manager
from mlir_jax.data import (
  guide_vectors,
  guide_writer,
  preparation,
  store_texts,
)
from mlir_jax.planner import backbones, chips, rows
from mlir_jax.storage import reading
from mlir_jax.training import build, checks, progress, run

PAIRS = 120


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
  """The folder of a sentence-transformers model with prompts, and the model."""
  folder = tmp_path_factory.mktemp("guide") / "model"
  return folder, sentence_models.save(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """The tiny collection with hard negatives, and its first question twice."""
  root = tiny.write_folder(tmp_path_factory.mktemp("collection"), PAIRS)
  path = root / "ir/train.json"
  pairs = json.loads(path.read_text("utf-8"))
  for number, pair in enumerate(pairs):
    if number % 3:
      (other,) = pairs[number - 1]["positive_ctxs"]
      pair["hard_negative_ctxs"] = [{"title": "", "text": other["text"]}]
  path.write_text(json.dumps([*pairs, pairs[0]]), "utf-8")
  return root


def make_config(root, guide):
  c = tiny.make_config(root)
  tiny.train_pairs_alone(c)
  c.batch.hard_negatives = 1
  c.loss.ir.guide = str(guide)
  return c


def prepare(c, folder):
  check = functools.partial(checks.check_fits, c, str(folder))
  return preparation.prepare(c, str(folder), check)


def files(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def count_encoded(monkeypatch, dies_at=None):
  """Returns the sizes of the parts that are encoded from now on."""
  sizes, encode = [], guide_writer._encode

  def counted(model, role, texts, advance):
    if len(sizes) == dies_at:
      raise KeyboardInterrupt
    sizes.append(len(texts))
    return encode(model, role, texts, advance)

  monkeypatch.setattr(guide_writer, "_encode", counted)
  return sizes


def test_each_text_has_the_vector_that_sentence_transformers_gives_it(
  root, guide, tmp_path, capsys, monkeypatch
):
  folder, model = guide
  monkeypatch.setattr(guide_writer, "_TEXTS", 50)
  c = make_config(root, folder)
  prepared = prepare(c, tmp_path)
  found = prepared.guide
  printed = capsys.readouterr().out
  assert f"guide {folder}: vectors of 24, 120 of the role query and" in printed
  assert not (tmp_path / "guide-parts").exists()
  plain = store_texts.parse_tokenizer(prepared.tokenizer.to_str())

  def vectors(role, bodies):
    hashes = store_texts.hash_bodies(plain, bodies)
    return found.find(role, np.array(hashes, np.uint64)).astype(np.float32)

  records = list(prepared.collection.retrieval())
  questions = [record.question for record in records]
  np.testing.assert_allclose(
    vectors("query", questions), model.encode_query(questions), atol=1e-3
  )
  passages = [
    passage
    for record in records
    for passage in (*record.positives, *record.hard_negatives)
  ]
  texts = [f"{each.title} {each.text}".strip() for each in passages]
  np.testing.assert_allclose(
    vectors("passage", texts), model.encode_document(texts), atol=1e-3
  )

  # A batch has the vectors of its texts, on each host those of its rows.
  spec = build.batch_spec(c)
  mesh = sharding.make_mesh()
  plans = build.make_plans(c, prepared.store, mesh).plans
  whole = reader.batch_of_step(
    prepared.store, spec, plans, 0, build.make_mixture(c), 3, guide=found
  ).retrieval
  own = np.einsum("bg,bg->b", whole.query_guide, whole.passage_guide[:, 0])
  parts = [
    reader.batch_of_step(
      prepared.store, spec, plans, 0, build.make_mixture(c), 3, guide=found,
      host_rows=lambda size, host=host: np.arange(host, size, 2),
    ).retrieval
    for host in (0, 1)
  ]  # fmt: skip
  for host, part in enumerate(parts):
    np.testing.assert_array_equal(part.query_guide, whole.query_guide[host::2])
    np.testing.assert_array_equal(
      part.passage_guide, whole.passage_guide[host::2]
    )
  assert own.dtype == np.float16
  missing = ~whole.passage_valid
  assert missing.any() and not whole.passage_guide[missing].any()
  assert whole.passage_guide[whole.passage_valid].any(axis=-1).all()
  plain_batch = reader.batch_of_step(
    prepared.store, spec, plans, 0, build.make_mixture(c), 3
  )
  assert plain_batch.retrieval.query_guide is None


def test_a_killed_computation_goes_on_at_the_missing_part(
  root, guide, tmp_path, monkeypatch
):
  folder, _ = guide
  monkeypatch.setattr(guide_writer, "_TEXTS", 50)
  c = make_config(root, folder)
  sizes = count_encoded(monkeypatch)
  prepare(c, tmp_path / "whole")
  total = len(sizes)
  assert total > 5 and max(sizes) == 50
  killed = tmp_path / "killed"
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    count_encoded(patch, dies_at=4)
    prepare(c, killed)
  parts = sorted((killed / "guide-parts").glob("*.npy"))
  assert len(parts) == 4
  with open(parts[0], "r+b") as file:  # A disk has lost its end.
    file.truncate(100)
  again = count_encoded(monkeypatch)
  prepare(c, killed)
  assert len(again) == total - 3
  assert files(killed / "guide") == files(tmp_path / "whole/guide")
  prepare(c, killed)  # They are there: nothing is encoded.
  assert len(again) == total - 3


def test_vectors_outlive_their_guide_and_another_guide_replaces_them(
  root, guide, tmp_path, monkeypatch
):
  folder = shutil.copytree(guide[0], tmp_path / "guide")
  c = make_config(root, folder)
  first = prepare(c, tmp_path / "run").guide
  folder.rename(tmp_path / "other")
  assert prepare(c, tmp_path / "run").guide.guide == first.guide
  c.loss.ir.guide = str(tmp_path / "other")
  sizes = count_encoded(monkeypatch)
  other = prepare(c, tmp_path / "run").guide
  assert sizes and other.guide["name"] == c.loss.ir.guide
  assert other.guide["fingerprint"] == first.guide["fingerprint"]
  # One without weights is found before texts are tokenized.
  c.loss.ir.guide = str(folder)
  with pytest.raises(ValueError, match=r"loss\.ir\.guide=.*There is no folder"):
    prepare(c, tmp_path / "new")
  assert not (tmp_path / "new/tokens").exists()
  # A changed file is refused.
  path = tmp_path / "run/guide/query_vectors.npy"
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)
  c.loss.ir.guide = str(tmp_path / "other")
  with pytest.raises(reading.UnreadableError, match="query_vectors"):
    prepare(c, tmp_path / "run")


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"loss.ir.guide_revision": "main"}, "guide_revision is 'main', but"),
    ({"loss.ir.guide_relative_margin": 0.1}, "guide_relative_margin is 0.1"),
    ({"loss.ir.guide": "x", "batch.retrieval": 0, "loss.ir.weight": 0.0,
      "loss.language.passages": 0.0},
     "batch.retrieval is 0, so there is nothing to mask"),
  ],
)  # fmt: skip
def test_settings_without_effect_are_refused(changes, message):
  c = config.default()
  c.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=message):
    checks.check_settings(c)


@pytest.mark.slow
def test_a_run_masks_by_its_guide_and_says_so(root, guide, tmp_path, capsys):
  folder, _ = guide
  c = make_config(root, folder)
  c.loss.ir.guide_absolute_margin = 0.05
  c.train.steps, c.eval.every = 4, 4
  run.train(c, str(tmp_path / "run"))
  lines = progress.read_metrics(str(tmp_path / "run"))
  masked = [
    line["ir/masked_by_guide"] for line in lines if line["kind"] == "train"
  ]
  assert len(masked) == 4 and all(0 < each < 16 * 32 for each in masked)
  said = f"Guide: {folder}. A passage that it finds closer"
  assert said in (tmp_path / "run/results/report.md").read_text("utf-8")
  description = manager.read_description(str(tmp_path / "run/checkpoints"), 4)
  known_as = description.provenance
  known = known_as["guide"]
  meta = json.loads((tmp_path / "run/guide/meta.json").read_text("utf-8"))
  assert known == meta["guide"] and len(known["fingerprint"]) == 64
  text = guide_vectors.describe_all(known_as, description.config["loss"])
  assert said in text[0] and "(absolute margin 0.05)" in text[0]
  # Another guide is another experiment.
  c.loss.ir.guide = ""
  c.loss.ir.guide_absolute_margin = 0.0
  with pytest.raises(ValueError, match=r"loss\.ir\.guide"):
    run.train(c, str(tmp_path / "run"))


@pytest.mark.slow
def test_a_plan_counts_the_guides_vectors(guide, tmp_path):
  folder, _ = guide
  c = config.default()
  c.tokenizer.vocab_size = 500
  c.model.hidden_size = c.model.intermediate_size = 32
  c.model.num_layers = 1
  c.model.num_heads = 2
  c.model.max_positions = 16
  for role in ("query", "passage", "sentence"):
    c.encoding[role].max_length = 16
  tiny.train_pairs_alone(c)
  c.batch.retrieval = 64
  mesh = sharding.make_mesh()
  chip = chips.CHIPS["v5e"]

  def make_row():
    return rows.make_row(c, backbones.encoder_config(c), mesh, chip, (2, 4))

  without = make_row()
  c.loss.ir.guide = str(folder)
  row = make_row()
  assert not row.problem
  devices = mesh.size
  assert (row.model_flops - without.model_flops) * devices == 2 * 64 * 64 * 24
  more = row.memory["arguments"] - without.memory["arguments"]
  assert more == 2 * 64 * 24 * 2 // devices  # Of one device, in float16.
  c.loss.ir.guide = "someone/unknown"
  with pytest.raises(ValueError, match="shape of someone/unknown is not known"):
    backbones.widths(c)
