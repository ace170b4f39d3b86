"""Tests that gradients do not depend on chunks, and that memory does."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import random_batches as rb

from mlir_jax import sharding
from mlir_jax.batches import batch as batch_lib
from mlir_jax.costs import collectives, memory
from mlir_jax.models import encoder
from mlir_jax.models import rows as rows_lib
from mlir_jax.training import build, chunking, compiled_step, outputs
from mlir_jax.training import step as step_lib


def config_of(dropout):
  return rb.float64(hidden_dropout=dropout, attention_dropout=dropout)


@functools.cache
def expected(towers, dropout):
  """Computes gradients in float64 without chunks, with one text in a row."""
  config = config_of(dropout)
  spec = spec_of(towers)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  params = rb.make_params(config, towers, with_head=True)
  replicated = sharding.state_shardings(params, mesh, False)
  batch = rb.make_batch(spec)
  compute = jax.jit(
    lambda params, batch: step_lib.gradients(
      params,
      batch,
      outputs.make_encode(
        chunking.whole(build.make_read(config, rb.CONTRACT)),
        vocabulary=build.make_vocabulary(config, mesh, replicated),
      ),
      rb.LOSSES,
      lambda x: x,
      jax.random.key(1) if dropout else None,
    )
  )
  return params, jax.device_get(compute(params, batch))


def spec_of(towers):
  return dataclasses.replace(rb.MASKED_SPEC, tied=towers == "tied")


CASES = [
  ("tied", 0.5, 1, False, 0, True),
  ("tied", 0.5, 1, False, 8, True),
  ("tied", 0.5, 8, False, 8, True),
  ("tied", 0.5, 8, True, 0, True),
  ("separate", 0.0, 1, False, 512, True),
  ("separate", 0.0, 8, True, 24, False),
]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("towers", "dropout", "devices", "fsdp", "chunk", "packed"), CASES
)
def test_gradients_are_those_of_one_piece_to_1e_12(
  monkeypatch, towers, dropout, devices, fsdp, chunk, packed
):
  """Uses all losses, with hard negatives, repeated texts and unequal taus.

  Some cases have dropout, which must not depend on a text's row or device. One
  device on the CPU encodes in halves.
  """
  monkeypatch.setattr(chunking, "_HALF", 1)
  with jax.enable_x64(True):
    params, (total, gradient, metrics) = expected(towers, dropout)
    spec = spec_of(towers)
    plan = rb.packed(spec) if packed else rb.one_a_row(spec)
    found = rb.gradients(
      params,
      rb.make_batch(spec, plan),
      config=config_of(dropout),
      devices=devices,
      fsdp=fsdp,
      chunk_rows=chunk,
      key=jax.random.key(1) if dropout else None,
    )
    np.testing.assert_allclose(found[0], total, rtol=1e-12)
    rb.assert_same(found[1], gradient)
    rb.assert_same(found[2], metrics, atol=1e-10)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    assert largest > 0.1


@pytest.mark.slow
def test_own_negatives_alone_are_those_of_one_piece():
  losses = rb.make_losses(ir={"in_batch": False, "symmetric": False})
  with jax.enable_x64(True):
    config = config_of(0.0)
    params = rb.make_params(config, "tied", with_head=True)
    whole, split = (
      rb.gradients(
        params,
        rb.make_batch(rb.MASKED_SPEC, plan),
        config=config,
        losses=losses,
        **options,
      )
      for plan, options in (
        (rb.one_a_row(rb.MASKED_SPEC), {}),
        (rb.packed(rb.MASKED_SPEC), {"devices": 8, "chunk_rows": 8}),
      )
    )
    np.testing.assert_allclose(split[0], whole[0], rtol=1e-12)
    rb.assert_same(split[1], whole[1])
    rb.assert_same(split[2], whole[2], atol=1e-10)


@pytest.mark.slow
def test_long_lists_of_known_positives_change_nothing():
  """One device has short lists; eight have long ones, and chunks."""
  with jax.enable_x64(True):
    params, (total, gradient, _) = expected("tied", 0.5)
    spec = spec_of("tied")
    batch = rb.make_batch(spec, rb.packed(spec))
    retrieval = batch.retrieval
    known = np.repeat(retrieval.positive_sequence, 300, axis=1)
    found = rb.gradients(
      params,
      batch.replace(retrieval=retrieval.replace(positive_sequence=known)),
      config=config_of(0.5),
      devices=8,
      fsdp=False,
      chunk_rows=8,
      key=jax.random.key(1),
    )
    np.testing.assert_allclose(found[0], total, rtol=1e-12)
    rb.assert_same(found[1], gradient)


@pytest.mark.slow
def test_with_dropout_the_gradient_is_that_of_the_chunked_function():
  """Compares the gradient with differences along a random direction."""
  with jax.enable_x64(True):
    config = config_of(0.3)
    params = rb.make_params(config, with_head=True)
    batch = rb.make_batch(rb.MASKED_SPEC, rb.packed(rb.MASKED_SPEC))
    direction = rb.random_like(params)
    compute, (placed, on_mesh) = rb.prepare_gradients(
      params,
      batch,
      config=config,
      losses=rb.LOSSES,
      devices=8,
      fsdp=False,
      chunk_rows=8,
      key=jax.random.key(2),
    )
    _, gradient, _ = compute(placed, on_mesh)
    size = 1e-6

    def total(sign):
      moved = jax.tree.map(lambda p, d: p + sign * size * d, params, direction)
      return compute(moved, on_mesh)[0]

    slope = (total(1) - total(-1)) / (2 * size)
    predicted = sum(
      (g * d).sum()
      for g, d in zip(
        jax.tree.leaves(jax.device_get(gradient)),
        jax.tree.leaves(direction),
        strict=True,
      )
    )
    assert abs(predicted) > 0.1
    np.testing.assert_allclose(slope, predicted, rtol=1e-6)


def compile_gradients(fsdp, chunk, rows, devices=8, **changes):
  """Compiles the gradients of a batch of `rows` pairs."""
  config = dataclasses.replace(rb.CONFIG, **changes)
  spec = batch_lib.BatchSpec(rows, 0, 0, 0)
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  params = encoder.abstract_params(config, "tied")
  shardings = sharding.state_shardings(params, mesh, fsdp)
  encode = build.make_encode(config, rb.CONTRACT, mesh, shardings, chunk)

  def compute(params, batch):
    return step_lib.gradients(
      params, batch, encode, rb.LOSSES, sharding.replicate(mesh), None
    )[1]

  (block,) = rb.one_a_row(spec)["passage"]
  abstract = compiled_step.abstract_batch(spec, {"passage": (block,)}, mesh)
  placed = jax.tree.map(
    lambda p, s: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=s),
    params,
    shardings,
  )
  jitted = jax.jit(compute, out_shardings=shardings)
  return params, jitted.lower(placed, abstract).compile()


@pytest.mark.slow
def test_parameters_and_gradients_pass_between_devices_once_a_step(capsys):
  """No collective is in a loop, with any number of chunks."""
  for fsdp in (False, True):
    for chunk in (0, 64, 8):
      params, step = compile_gradients(fsdp, chunk, 64, vocab_size=2000)
      size = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
      found = collectives.find(step.as_text())
      looped = [each for each in found if each.runs > 1]
      assert not looped, looped
      moved = sum(each.sent_bytes * each.runs for each in found)
      with capsys.disabled():
        print(
          f"\nFSDP {fsdp}, {128 // (chunk or 128)} chunks:"
          f" {moved / size:.2f} x the parameters sent by a device in a step",
          end="",
        )
      assert moved < 3.5 * size


@pytest.mark.slow
def test_memory_is_that_of_a_chunk_and_of_the_vectors():
  """Compares 4,096 texts in chunks of 64 with 64 texts without chunks."""
  size = {"hidden_size": 128, "intermediate_size": 512, "num_layers": 2}
  params, small = compile_gradients(False, 0, 32, devices=1, **size)
  _, large = compile_gradients(False, 64, 2048, devices=1, **size)
  gradient = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
  # Only the loss: the vectors, the scores, and their gradients.
  read = {
    name: jax.ShapeDtypeStruct(shape, np.float32)
    for name, shape in (
      ("queries", (2048, 128)),
      ("passages", (2048, 1, 128)),
    )
  }
  batch = rb.make_batch(batch_lib.BatchSpec(2048, 0, 0, 0))
  ir = functools.partial(rb.LOSSES["ir"], batch=batch, replicate=lambda x: x)
  alone = jax.jit(jax.value_and_grad(ir, has_aux=True))
  scores = memory.of_program(alone.lower(read).compile())["total"]
  taken = [memory.of_program(each)["temporaries"] for each in (small, large)]
  assert taken[1] < 1.3 * taken[0] + scores + gradient
  # Without chunks it would be many times as much.
  assert 64 * taken[0] > 10 * taken[1]


def test_halves_hold_each_row_once_and_each_enough_tokens(monkeypatch):
  monkeypatch.setattr(chunking, "_HALF", 8)
  table = np.arange(20.0)[:, None] * [1, 2]
  params = {"encoder": {"embeddings": {"token": table}}}
  seen = []

  def read(params, group, blocks, token_vectors=None):
    shapes = [block.ids.shape for block in blocks]
    if token_vectors is None:
      token_vectors = table[rows_lib.flat(blocks, "ids")]
    else:
      seen.append(shapes)
    return [part.sum(axis=1) for part in rows_lib.split(blocks, token_vectors)]

  def encode(*shapes):
    blocks = [
      rows_lib.one_a_row(np.arange(size).reshape(shape) % 20, np.ones(shape))
      for shape, size in zip(shapes, map(np.prod, shapes), strict=True)
    ]
    found = chunking.in_halves(read)(params, "passage", blocks)
    for each, block in zip(found, blocks, strict=True):
      np.testing.assert_array_equal(each, table[block.ids].sum(axis=1))

  encode((5, 3), (2, 2))
  assert seen == [[(2, 3), (1, 2)], [(3, 3), (1, 2)]]
  seen.clear()
  encode((5, 3))  # 15 tokens are not enough for two halves.
  encode((1, 99), (2, 2))  # One row has no halves.
  assert not seen


def test_a_chunk_that_does_not_divide_is_refused():
  mesh = sharding.make_mesh()
  with pytest.raises(ValueError, match=r"batch\.chunk_rows is 12.*16"):
    chunking.make_encode(None, mesh, {}, 12)


def test_parts_are_the_fewest_that_are_small_enough_but_two():
  def parts(chunk_rows):
    return chunking.count_parts([(24, 64), (48, 16)], chunk_rows)

  # 24 rows of 64 tokens; the short rows have as many tokens as 12 of these.
  assert [parts(n) for n in (36, 18, 12, 6, 2, 1)] == [2, 2, 3, 6, 24, 24]
  assert chunking.count_parts([(1, 64)], 8) == 1
