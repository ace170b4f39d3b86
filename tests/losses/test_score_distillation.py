"""A question learns the scores that the data have of its passages."""

import functools
import json

import jax
import numpy as np
import pytest
import random_batches as rb
import tiny

from mlir_jax import config
from mlir_jax.batches import reader
from mlir_jax.data import preparation, records, store_texts
from mlir_jax.data.sources import passages, record_fields
from mlir_jax.losses import score_distillation
from mlir_jax.training import build, checks

SETTINGS = {"temperature": 0.5, "teacher_temperature": 2.0}
NAN = np.nan
# Two questions with all scores; one without that of its positive; one with two
# scores; one with one score; one without any.
SCORES = np.array(
  [
    [9.0, 3.0, -2.0],
    [1.0, 4.0, 2.5],
    [NAN, 3.0, 1.0],
    [5.0, NAN, 1.5],
    [5.0, NAN, NAN],
    [NAN, NAN, NAN],
  ],
  np.float32,
)
VALID = np.ones(SCORES.shape, bool)
VALID[1, 2] = False  # Padding, which has no meaning.


def draw():
  random = np.random.default_rng(0)
  vectors = random.normal(size=(len(SCORES), 4, 5))
  vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
  return vectors[:, 0], vectors[:, 1:]


def reference(queries, texts, kind):
  """Returns the loss of a loop over all questions, float64."""
  losses = []
  for query, own, scores, valid in zip(
    queries, texts, SCORES, VALID, strict=True
  ):
    used = [k for k in range(3) if valid[k] and np.isfinite(scores[k])]
    ours = {k: query @ own[k] / SETTINGS["temperature"] for k in used}
    theirs = {k: scores[k] / SETTINGS["teacher_temperature"] for k in used}
    if kind == "kl" and len(used) >= 2:
      p, q = (
        {k: np.exp(x[k]) / sum(map(np.exp, x.values())) for k in used}
        for x in (theirs, ours)
      )
      losses.append(sum(p[k] * np.log(p[k] / q[k]) for k in used))
    if kind == "margin_mse" and 0 in used and len(used) >= 2:
      losses.append(
        np.mean(
          [
            ((ours[0] - ours[k]) - (theirs[0] - theirs[k])) ** 2
            for k in used[1:]
          ]
        )
      )
  return np.mean(losses), len(losses)


@pytest.mark.parametrize("kind, questions", [("kl", 4), ("margin_mse", 3)])
def test_the_loss_is_that_of_the_formula(kind, questions):
  queries, texts = draw()

  def compute(queries, texts):
    return score_distillation.score_distillation_loss(
      queries, texts, SCORES, VALID, kind=kind, **SETTINGS
    )

  with jax.enable_x64(True):
    (loss, metrics), gradients = jax.value_and_grad(
      compute, argnums=(0, 1), has_aux=True
    )(queries, texts)
  expected, count = reference(queries, texts, kind)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  assert metrics["questions"] == count == questions
  assert 0 <= metrics["agreement"] <= 1
  step = 1e-5
  for which in range(2):
    direction = np.random.default_rng(which).normal(
      size=(queries, texts)[which].shape
    )
    moved = [[queries, texts], [queries, texts]]
    moved[0][which] = moved[0][which] + step * direction
    moved[1][which] = moved[1][which] - step * direction
    up, down = (reference(*each, kind)[0] for each in moved)
    np.testing.assert_allclose(
      (gradients[which] * direction).sum(), (up - down) / (2 * step), rtol=1e-4
    )
  # What has no score has no gradient.
  assert not np.any(gradients[1][4:]) and not np.any(gradients[0][4:])
  assert not np.any(gradients[1][1, 2]) and np.any(gradients[1][0])


def test_scores_that_the_student_has_already_cost_nothing():
  queries, texts = draw()
  scores = np.einsum("bd,bcd->bc", queries, texts).astype(np.float32)
  for kind in score_distillation.KINDS:
    loss, metrics = score_distillation.score_distillation_loss(
      queries, texts, scores, np.ones_like(VALID), kind=kind, temperature=1.0
    )
    assert abs(loss) < 1e-6 and metrics["agreement"] == 1


def test_the_scores_of_a_file_reach_the_batch_next_to_their_passages(tmp_path):
  root = tiny.write_folder(tmp_path / "data", 40)
  pairs = json.loads((root / "ir/train.json").read_text("utf-8"))
  (root / "ir/train.json").unlink()
  score_of, lines = {}, []
  for number, pair in enumerate(pairs):
    negatives = [f"wrong {n} of {number}" for n in range(number % 3)]
    positive = pair["positive_ctxs"][0]["text"]
    line = {"query": pair["question"], "pos": [positive], "neg": negatives}
    if number % 4:
      line["pos_scores"] = [float(number)]
      line["neg_scores"] = [number + (n + 1) / 8 for n in range(len(negatives))]
      score_of[positive] = line["pos_scores"][0]
      score_of |= dict(zip(negatives, line["neg_scores"], strict=True))
    lines.append(line)
  (root / "ir/train.jsonl").write_text("\n".join(map(json.dumps, lines)))
  c = tiny.make_config(root)
  tiny.train_pairs_alone(c)
  c.batch.hard_negatives = 2
  c.loss.score_distillation.weight = 1.0
  check = functools.partial(checks.check_fits, c, str(tmp_path / "run"))
  prepared = preparation.prepare(c, str(tmp_path / "run"), check)
  plain = store_texts.parse_tokenizer(prepared.tokenizer.to_str())
  known = dict(
    zip(
      store_texts.hash_bodies(plain, list(score_of)),
      score_of.values(),
      strict=True,
    )
  )

  def batch():
    plans = build.make_plans(c, prepared.store, build.sharding.make_mesh())
    return reader.batch_of_step(
      prepared.store, build.batch_spec(c), plans.plans, 0,
      build.make_mixture(c), 2,
    ).retrieval  # fmt: skip

  found = batch()
  hashes = reader.identity.join(found.passage_text)
  expected = [[known.get(int(h), NAN) for h in row] for row in hashes]
  np.testing.assert_array_equal(found.passage_score, np.float32(expected))
  assert np.isfinite(found.passage_score).sum() > 16
  assert np.isnan(found.passage_score[found.passage_valid]).any()
  c.loss.score_distillation.weight = 0.0
  assert batch().passage_score is None


def test_scores_that_do_not_fit_are_refused():
  place = records.Place("FILE", 1, 1)
  bad = records.BadRecords()

  def read(scores):
    return passages.read_hard_negatives(
      {"neg": ["a", None, "b"], "neg_scores": scores},
      "neg",
      passages.of_text,
      place,
      bad,
      "neg_scores",
    )

  assert [each.score for each in read([1, None, 0.5])] == [1.0, None, 0.5]
  assert [each.score for each in read(None)] == [None] * 3
  for scores, message in (
    ([1.0], "has 1 numbers; give one for each of the 3"),
    ("x", "is a text; give one for each|is .*; give one for each"),
    ([1, 2, "3"], "give a number, or null"),
    ([1, 2, float("nan")], "give a number, or null"),
    ([1, 2, True], "give a number, or null"),
  ):
    with pytest.raises(record_fields.FieldError, match=message):
      read(scores)
  c = config.default()
  c.loss.score_distillation.weight = 1.0
  with pytest.raises(ValueError, match="there is nothing to rank"):
    checks.check_settings(c)


@pytest.mark.slow
def test_chunked_and_sharded_steps_are_the_plain_one():
  losses = dict(rb.LOSSES)
  losses["score_distillation"] = score_distillation.ScoreDistillationLoss(
    weight=3.0, kind="kl"
  )
  results = []
  for devices, chunk in ((1, 0), (8, 0), (8, 8)):
    batch = rb.make_batch(plan=rb.packed(rb.SPEC))
    shape = batch.retrieval.passage.shape
    scores = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    scores[::3] = NAN
    with jax.enable_x64(True):
      results.append(
        rb.gradients(
          rb.make_params(rb.float64()),
          batch.replace(
            retrieval=batch.retrieval.replace(passage_score=scores)
          ),
          config=rb.float64(),
          losses=losses,
          devices=devices,
          fsdp=devices > 1,
          chunk_rows=chunk,
        )
      )
  plain, *others = results
  assert 0 < plain[2]["score_distillation/questions"] < len(scores)
  for other in others:
    rb.assert_same(other, plain, atol=1e-10)
