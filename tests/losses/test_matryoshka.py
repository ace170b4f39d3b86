"""Losses on the first numbers of vectors equal those of cut vectors."""

import jax
import numpy as np
import pytest
import random_batches as rb

from mlir_jax import config
from mlir_jax.losses import distillation, matryoshka
from mlir_jax.training import checks

WIDTH = rb.CONFIG.hidden_size
DIMENSIONS = (8, 4)


def unit(vectors):
  lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
  return vectors / np.where(lengths > 0, lengths, 1)


def draw():
  """Draws a batch and its outputs, float64 of unit length; padding is 0."""
  random = np.random.default_rng(0)
  batch = rb.make_batch()
  shapes = {
    "queries": batch.retrieval.query.shape,
    "passages": batch.retrieval.passage.shape,
    "sentences": batch.parallel.sentence.shape,
    "monolingual": batch.monolingual.sentence.shape,
  }
  outputs = {
    name: unit(random.normal(size=(*shape, WIDTH)))
    for name, shape in shapes.items()
  }
  outputs["passages"][~batch.retrieval.passage_valid] = 0
  return batch, outputs


@pytest.mark.parametrize("name", ["ir", "semantic", "language"])
def test_the_loss_is_the_mean_over_all_widths(name):
  batch, outputs = draw()
  loss = rb.LOSSES[name]
  read = {each: outputs[each] for each in loss.reads}
  assert not batch.retrieval.passage_valid.all()  # Vectors of length 0 are cut.

  def of(vectors):
    return float(loss(vectors, batch, lambda x: x)[0])

  with jax.enable_x64(True):
    expected = [of(read)] + [
      of({each: unit(x[..., :width]) for each, x in read.items()})
      for width in DIMENSIONS
    ]
    compute = jax.value_and_grad(
      lambda read: matryoshka.compute(
        loss, read, batch, lambda x: x, DIMENSIONS
      ),
      has_aux=True,
    )
    (value, metrics), gradient = compute(read)
    plain, own = matryoshka.compute(loss, read, batch, lambda x: x)
    # Central differences at a few numbers, of the numbers that all widths have
    # and of those that only the whole vector has.
    for each, vectors in read.items():
      for place in (0, 5, WIDTH - 1):
        moved = [
          {**read, each: vectors + step * (np.arange(WIDTH) == place)}
          for step in (1e-5, -1e-5)
        ]
        up, down = (
          matryoshka.compute(loss, m, batch, lambda x: x, DIMENSIONS)[0]
          for m in moved
        )
        if each != "passages":  # A vector of length 0 has no derivative.
          np.testing.assert_allclose(
            gradient[each][..., place].sum(), (up - down) / 2e-5, atol=1e-6
          )
  np.testing.assert_allclose(value, np.mean(expected), rtol=1e-12)
  np.testing.assert_allclose(
    [metrics["whole"], metrics["first_8"], metrics["first_4"]], expected
  )
  assert max(expected) - min(expected) > 1e-3
  assert all(np.isfinite(x).all() for x in gradient.values())
  # Without dimensions it is the loss itself, with its own metrics.
  assert plain == expected[0] and own.keys() < metrics.keys()


def test_a_loss_that_is_not_nested_ignores_the_dimensions():
  batch, outputs = draw()
  teacher = outputs["sentences"][:, 0].astype(np.float16)
  batch = batch.replace(parallel=batch.parallel.replace(teacher=teacher))
  loss = distillation.DistillationLoss(weight=1.0)
  found = [
    matryoshka.compute(
      loss, {"sentences": outputs["sentences"]}, batch, lambda x: x, each
    )
    for each in ((), DIMENSIONS)
  ]
  assert found[0] == found[1]


@pytest.mark.parametrize(
  "dimensions, message",
  [
    ("64,", "is '64,'; it must be different whole numbers"),
    ("64, 64", "must be different whole numbers"),
    ("0", "must be different whole numbers above 0"),
    ("-3", "must be different whole numbers above 0"),
  ],
)
def test_dimensions_that_are_no_widths_are_refused(dimensions, message):
  c = config.default()
  c.loss.matryoshka.dimensions = dimensions
  with pytest.raises(ValueError, match=message):
    checks.check_settings(c)
  assert matryoshka.parse("256, 64") == (256, 64)
  with pytest.raises(ValueError, match=r"has 128, .*has 128 numbers"):
    matryoshka.check((64, 128), 128)


@pytest.mark.slow
def test_chunked_and_sharded_steps_are_the_plain_one():
  results = []
  for devices, chunk in ((1, 0), (8, 0), (8, 8)):
    batch = rb.make_batch(plan=rb.packed(rb.SPEC))
    with jax.enable_x64(True):
      results.append(
        rb.gradients(
          rb.make_params(rb.float64()),
          batch,
          config=rb.float64(),
          devices=devices,
          fsdp=devices > 1,
          chunk_rows=chunk,
          dimensions=DIMENSIONS,
        )
      )
  plain, *others = results
  assert plain[2]["ir/first_4"] != plain[2]["ir/whole"]
  for other in others:
    rb.assert_same(other, plain, atol=1e-10)
