"""Distillation equals its formula, on any devices and in any chunks."""

import jax
import numpy as np
import pytest
import random_batches as rb

from mlir_jax.losses import distillation

PAIRS, WIDTH = 6, 5


def unit(vectors):
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def draw(pairs=PAIRS, width=WIDTH):
  """Draws a teacher's vectors, float16; it reads no side of every third."""
  random = np.random.default_rng(0)
  teacher = unit(random.normal(size=(pairs, width)))
  teacher[1::3] = 0
  return teacher.astype(np.float16)


def test_the_loss_is_the_squared_distance_to_the_teacher_of_each_side():
  random = np.random.default_rng(1)
  sentences = unit(random.normal(size=(PAIRS, 2, WIDTH)))
  teacher = draw()
  squares, cosines = [], []
  for pair, target in zip(sentences, teacher.astype(np.float64), strict=True):
    if any(target):
      for side in pair:
        squares.append(sum((side - target) ** 2))
        cosines.append(sum(side * target))
  with jax.enable_x64(True):
    loss, metrics = distillation.distillation_loss(sentences, teacher)
    gradient = jax.grad(
      lambda z: distillation.distillation_loss(z, teacher)[0]
    )(sentences)
  np.testing.assert_allclose(loss, np.mean(squares), rtol=1e-12)
  np.testing.assert_allclose(metrics["cosine"], np.mean(cosines), rtol=1e-12)
  assert metrics["pairs"] == PAIRS - 2 and len(squares) == 2 * (PAIRS - 2)
  # d|z - t|^2 / dz = 2 (z - t), in the mean; nothing without a teacher.
  expected = 2 * (sentences - teacher[:, None].astype(float)) / len(squares)
  expected[1::3] = 0
  np.testing.assert_allclose(gradient, expected, atol=1e-12)
  # Without any teacher's vector the loss is 0, and so is its gradient.
  nothing = np.zeros_like(teacher)
  loss, gradient = jax.value_and_grad(
    lambda z: distillation.distillation_loss(z, nothing)[0]
  )(sentences.astype(np.float32))
  assert loss == 0 and not gradient.any()


def test_a_student_that_agrees_with_its_teacher_has_no_loss():
  teacher = np.eye(4, dtype=np.float16)
  same = np.repeat(np.eye(4, dtype=np.float32)[:, None], 2, axis=1)
  loss, metrics = distillation.distillation_loss(same, teacher)
  assert loss == 0 and metrics["cosine"] == 1
  opposite, _ = distillation.distillation_loss(-same, teacher)
  assert opposite == 4


def test_a_teacher_of_another_width_is_refused():
  batch = rb.make_batch()
  outputs = {"sentences": np.zeros((*batch.parallel.sentence.shape, WIDTH))}

  def compute(teacher):
    parallel = batch.parallel.replace(teacher=teacher)
    return distillation.DistillationLoss(weight=1.0)(
      outputs, batch.replace(parallel=parallel), lambda x: x
    )

  with pytest.raises(ValueError, match=r"have 7 numbers, those of the run 5"):
    compute(np.zeros((len(batch.parallel.sentence), 7), np.float16))
  with pytest.raises(ValueError, match="has no vectors of a teacher"):
    compute(None)
  assert not distillation.DistillationLoss().is_fed(("parallel",))


@pytest.mark.slow
def test_chunked_and_sharded_steps_are_the_plain_one():
  losses = dict(rb.LOSSES)
  losses["distillation"] = distillation.DistillationLoss(weight=3.0)
  results = []
  for devices, chunk in ((1, 0), (8, 0), (8, 8)):
    batch = rb.make_batch(plan=rb.packed(rb.SPEC))
    teacher = draw(rb.SPEC.parallel, rb.CONFIG.hidden_size)
    parallel = batch.parallel.replace(teacher=teacher)
    with jax.enable_x64(True):
      results.append(
        rb.gradients(
          rb.make_params(rb.float64()),
          batch.replace(parallel=parallel),
          config=rb.float64(),
          losses=losses,
          devices=devices,
          fsdp=devices > 1,
          chunk_rows=chunk,
        )
      )
  plain, *others = results
  assert plain[2]["distillation/pairs"] == 5
  assert plain[2]["loss/distillation"] > 0.1
  for other in others:
    rb.assert_same(other, plain, atol=1e-10)
