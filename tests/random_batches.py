"""Random batches in buckets, and their gradients on a mesh, for step tests."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np

from mlir_jax import sharding
from mlir_jax.batches import batch as batch_lib
from mlir_jax.batches import buckets
from mlir_jax.losses import registry
from mlir_jax.models import architecture, encoder
from mlir_jax.training import build, step

CONFIG = architecture.EncoderConfig(
  vocab_size=200,
  hidden_size=16,
  num_layers=1,
  num_heads=2,
  intermediate_size=32,
  max_positions=8,
  hidden_dropout=0.0,
  attention_dropout=0.0,
)
SETTINGS = {
  "ir": {"weight": 1.0, "temperature": 0.1, "symmetric": True},
  "semantic": {"weight": 0.5, "temperature": 0.2},
  "language": {
    "weight": 2.0,
    "temperature": 0.3,
    "parallel": 1.0,
    "passages": 0.5,
    "monolingual": 2.0,
  },
  "masked_lm": {"weight": 0.7},
}


def make_losses(**changes):
  """The losses, with other settings: make_losses(ir={"weight": 0.0})."""
  return registry.make(
    {name: SETTINGS[name] | changes.get(name, {}) for name in SETTINGS}
  )


LOSSES = make_losses()
SPEC = batch_lib.BatchSpec(16, 2, 8, 8)
MASKED_SPEC = dataclasses.replace(SPEC, masked=16)
LENGTH = 8
TARGETS = 3
# What the step asks of a contract.
CONTRACT = types.SimpleNamespace(pooling="mean", normalize=True)


def one_bucket(spec):
  """The plan in which every text is padded alike."""
  return {
    group: (buckets.Bucket(texts, LENGTH),)
    for group, texts in spec.texts().items()
  }


def two_buckets(spec, quantum=8):
  """A plan with a shorter bucket for most of the texts."""
  plan = {}
  for group, texts in spec.texts().items():
    longer = -(-texts // (2 * quantum)) * quantum
    plan[group] = (buckets.Bucket(longer, LENGTH),)
    if texts > longer:
      plan[group] += (buckets.Bucket(texts - longer, LENGTH - 3),)
  return plan


def make_batch(spec=SPEC, plan=None, seed=0):
  """A batch with hard negatives, some of them padding, and repeated texts.

  The same texts, whatever the plan.
  """
  random = np.random.default_rng(seed)
  plan = plan or one_bucket(spec)

  def text(shape, dtype=np.int32):
    return random.integers(0, 60, shape).astype(dtype)

  # Without buckets: what is drawn must not depend on the plan.
  made = batch_lib.make(spec, {"masked": ()}, text, positives=2)
  retrieval = made.retrieval
  if retrieval:
    valid = np.ones(retrieval.passage_valid.shape, bool)
    valid[::3, 1:][:, 1:] = False
    retrieval = retrieval.replace(
      passage_text=np.where(valid, retrieval.passage_text, -1),
      passage_sequence=np.where(valid, retrieval.passage_sequence, -1),
      passage_valid=valid,
    )
  row_of, buckets_of = {}, {}
  for group, count in spec.texts().items():
    long = random.random(count) < 0.2
    lengths = np.where(
      long, random.integers(6, 9, count), random.integers(1, 6, count)
    )
    if group == "passage" and retrieval and spec.hard_negatives:
      first = spec.retrieval if spec.tied else 0
      lengths[first : first + valid.size] *= valid.ravel()
    ids = random.integers(5, 200, (count, LENGTH)).astype(np.int32)
    order = buckets.order(lengths)
    assert buckets.fit(lengths, plan[group])
    hidden = {
      "positions": random.integers(0, 2, (count, TARGETS)).astype(np.int32),
      "targets": random.integers(5, 200, (count, TARGETS)).astype(np.int32),
      "valid": np.arange(TARGETS) < random.integers(0, 4, (count, 1)),
    }
    filled, start = [], 0
    for rows, length in plan[group]:
      number = order[start : start + rows]
      mask = np.arange(length) < lengths[number][:, None]
      texts = {
        "ids": np.where(mask, ids[number, :length], 1).astype(np.int32),
        "mask": mask,
        "number": number.astype(np.int32),
      }
      if group == "masked":
        texts |= {name: value[number] for name, value in hidden.items()}
        filled.append(batch_lib.MaskedBucket(**texts))
      else:
        filled.append(batch_lib.TextBucket(**texts))
      start += rows
    buckets_of[group] = tuple(filled)
    row_of[group] = np.argsort(order).astype(np.int32)

  def place(group, rows):
    """The rows of the group's next texts, in the order of their numbers."""
    taken, row_of[group] = np.split(row_of[group], [rows.size])
    return taken.reshape(rows.shape)

  streams = {"masked": buckets_of.pop("masked", None)}
  if retrieval:
    queries = "passage" if spec.tied else "query"
    streams["retrieval"] = retrieval.replace(
      query=place(queries, retrieval.query),
      passage=place("passage", retrieval.passage),
    )
  for name in ("parallel", "monolingual"):
    if sentences := getattr(made, name):
      rows = place("passage", sentences.sentence)
      streams[name] = sentences.replace(sentence=rows)
  return batch_lib.Batch(texts=buckets_of, **streams)


def make_params(config=CONFIG, towers="tied", with_head=False):
  """Parameters in the config's dtype."""
  params = encoder.init_params(config, towers, jax.random.key(0), with_head)
  return jax.tree.map(lambda x: x.astype(config.dtype), params)


def gradients(
  params,
  batch,
  *,
  config=CONFIG,
  losses=LOSSES,
  devices=1,
  fsdp=False,
  chunk=0,
  key=None,
):
  """(total, gradient, metrics) on a mesh of so many devices."""
  compute, args = prepare_gradients(
    params,
    batch,
    config=config,
    losses=losses,
    devices=devices,
    fsdp=fsdp,
    chunk=chunk,
    key=key,
  )
  return jax.device_get(compute(*args))


def prepare_gradients(
  params, batch, *, config, losses, devices, fsdp, chunk, key
):
  """The jitted function of `gradients`, and its arguments on the mesh."""
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  shardings = sharding.state_shardings(params, mesh, fsdp)
  encode = build.make_encode(config, CONTRACT, mesh, shardings, chunk)

  @jax.jit
  def compute(params, batch):
    return step.gradients(
      params,
      batch,
      encode,
      losses,
      sharding.replicate(mesh),
      key,
    )

  return compute, (
    jax.device_put(params, shardings),
    sharding.place_batch(batch, mesh),
  )


def assert_same(ours, theirs, atol=1e-12):
  """Trees are equal but for rounding."""
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol),
    ours,
    theirs,
  )


def float64(config=CONFIG, **changes):
  """The config in float64, for tests of arithmetic under enable_x64."""
  return dataclasses.replace(config, dtype="float64", **changes)


def random_like(tree, seed=0):
  """A random direction in the space of parameters."""
  random = np.random.default_rng(seed)
  return jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape)), tree)
