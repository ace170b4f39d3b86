"""A run's teacher: it reads one side of each pair, once, and is kept."""

import functools

import numpy as np
import pytest
import sentence_models
import tiny

from mlir_jax import config
from mlir_jax.batches import reader
from mlir_jax.checkpoints import manager
from mlir_jax.data import guide_vectors, preparation, store_texts
from mlir_jax.training import build, checks, progress, run


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  """The folder of a sentence-transformers model with prompts, and the model."""
  folder = tmp_path_factory.mktemp("teacher") / "model"
  return folder, sentence_models.save(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """The tiny collection, also with pairs without English."""
  root = tiny.write_folder(tmp_path_factory.mktemp("collection"), 40)
  english = (root / "parallel/made.en-de.en").read_text("utf-8").splitlines()

  def turn(text):
    return " ".join(reversed(text.split()))

  # The tokenizer knows the first ones, and none of the second.
  for language, change in (("fi", turn), ("sv", str.title)):
    (root / f"parallel/north.fi-sv.{language}").write_text(
      "".join(f"{change(text)}\n" for text in english[:10]), "utf-8"
    )
  return root


def make_config(root, folder):
  c = tiny.make_config(root)
  c.model.pretrained = str(folder)
  c.encoding.sentence.max_length = sentence_models.LENGTH
  tiny.train_pairs_alone(c)
  c.batch.parallel = 16
  c.loss.distillation.weight = 1.0
  return c


def prepare(c, folder):
  check = functools.partial(checks.check_fits, c, str(folder))
  return preparation.prepare(c, str(folder), check)


def test_each_pair_has_the_starts_vector_of_its_english_side(
  root, teacher, tmp_path, capsys
):
  folder, model = teacher
  c = make_config(root, folder)
  prepared = prepare(c, tmp_path)
  assert "teacher" in capsys.readouterr().out
  store, found = prepared.store, prepared.teacher
  english = [
    record.source
    for record in prepared.collection.parallel()
    if record.source_language == "en"
  ]
  assert len(found.arrays["sentence_hashes"]) == len(set(english)) == 40
  plain = store_texts.parse_tokenizer(prepared.tokenizer.to_str())
  hashes = np.array(store_texts.hash_bodies(plain, english), np.uint64)
  expected = model.encode(english, prompt_name="sentence")
  np.testing.assert_allclose(
    found.find("sentence", hashes).astype(np.float32), expected, atol=1e-3
  )

  # A batch has the vector of each pair's English side, on each host.
  def batch(host_rows=np.arange):
    plans = build.make_plans(c, store, build.sharding.make_mesh()).plans
    return reader.batch_of_step(
      store, build.batch_spec(c), plans, 0, build.make_mixture(c), 1,
      host_rows=host_rows, teacher=found,
    ).parallel  # fmt: skip

  whole = batch()
  vector_of = {tuple(each): v for each, v in zip(
    reader.identity.split(hashes).tolist(), expected, strict=True)}  # fmt: skip
  with_english = 0
  for text, vector in zip(whole.text.tolist(), whole.teacher, strict=True):
    # Sides are sorted by language: German, English; Finnish, Swedish.
    known = vector_of.get(tuple(text[1]))
    if known is None:
      assert not vector.any()
    else:
      np.testing.assert_allclose(vector, known, atol=1e-3)
      with_english += 1
  assert 0 < with_english < 16 and whole.teacher.dtype == np.float16
  part = batch(lambda size: np.arange(1, size, 2))
  np.testing.assert_array_equal(part.teacher, whole.teacher[1::2])

  # Vectors are kept, and those of another language take their place.
  before = (tmp_path / "teacher/meta.json").read_bytes()
  prepare(c, tmp_path)
  assert (tmp_path / "teacher/meta.json").read_bytes() == before
  c.loss.distillation.language = "fi"
  assert len(prepare(c, tmp_path).teacher.arrays["sentence_hashes"]) == 10
  c.loss.distillation.language = "sw"
  with pytest.raises(ValueError, match=r"language is 'sw'.*de-en, fi-sv"):
    prepare(c, tmp_path)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"teacher": "x"}, "weight is 0: give a weight above 0"),
    ({"weight": 1.0}, "name a teacher"),
    ({"weight": 1.0, "teacher": "x", "language": ""}, "language is ''"),
    ({"teacher_revision": "main"}, "teacher_revision is 'main', but"),
  ],
)
def test_settings_that_lack_a_teacher_are_refused(changes, message):
  c = config.default()
  c.loss.distillation.update(changes)
  with pytest.raises(ValueError, match=message):
    checks.check_settings(c)


@pytest.mark.slow
def test_a_run_learns_from_its_teacher_and_says_so(root, teacher, tmp_path):
  c = make_config(root, teacher[0])
  c.loss.ir.weight = 0.0
  c.optim.warmup_steps = 0
  c.train.steps, c.eval.every = 20, 20
  run.train(c, str(tmp_path / "run"))
  lines = progress.read_metrics(str(tmp_path / "run"))
  cosines = [
    line["distillation/cosine"] for line in lines if line["kind"] == "train"
  ]
  assert np.mean(cosines[-5:]) > np.mean(cosines[:5])
  description = manager.read_description(str(tmp_path / "run/checkpoints"), 20)
  (said,) = guide_vectors.describe_all(
    description.provenance, description.config["loss"]
  )
  assert said.startswith(f"Teacher: {teacher[0]}.") and "'en'" in said
  assert said in (tmp_path / "run/results/report.md").read_text("utf-8")
