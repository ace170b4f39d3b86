"""Random batches in buckets, and their gradients on a mesh, for step tests."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np

from mlir_jax.data import buckets, drawing
from mlir_jax.losses import registry
from mlir_jax.mesh import sharding
from mlir_jax.models import config as config_lib
from mlir_jax.models import encoder
from mlir_jax.training import build, step

CONFIG = config_lib.EncoderConfig(
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
SPEC = drawing.BatchSpec(16, 2, 8, 8)
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

  def text(*shape):
    return random.integers(0, 60, shape).astype(np.int32)

  batch = {"texts": {}}
  size, passages = spec.retrieval, (spec.retrieval, 1 + spec.hard_negatives)
  if size:
    valid = np.ones(passages, bool)
    valid[::3, 1:][:, 1:] = False
    batch["retrieval"] = {
      "query_text": text(size),
      "query_sequence": text(size),
      "passage_text": np.where(valid, text(*passages), -1).astype(np.int32),
      "passage_sequence": np.where(valid, text(*passages), -1).astype(np.int32),
      "passage_valid": valid,
      "positive_sequence": text(size, 2),
    }
  if spec.parallel:
    shape = (spec.parallel, 2)
    batch["parallel"] = {"text": text(*shape), "sequence": text(*shape)}
  if spec.monolingual:
    shape = (spec.monolingual,)
    batch["monolingual"] = {"text": text(*shape), "sequence": text(*shape)}
  # Where each group's texts go, in the order of their numbers.
  places = {"query": [], "passage": []}
  if size:
    queries = "passage" if spec.tied else "query"
    places[queries].append(("retrieval", "query", (size,)))
    places["passage"].append(("retrieval", "passage", passages))
  if spec.parallel:
    places["passage"].append(("parallel", "sentence", (spec.parallel, 2)))
  if spec.monolingual:
    places["passage"].append(("monolingual", "sentence", (spec.monolingual,)))
  for group, count in spec.texts().items():
    long = random.random(count) < 0.2
    lengths = np.where(
      long, random.integers(6, 9, count), random.integers(1, 6, count)
    )
    if group == "passage" and size and spec.hard_negatives:
      first = size if spec.tied else 0
      end = first + valid.size
      lengths[first:end] *= valid.ravel()
    ids = random.integers(5, 200, (count, LENGTH)).astype(np.int32)
    order = buckets.order(lengths)
    assert buckets.fit(lengths, plan[group])
    targets = {
      "positions": random.integers(0, 2, (count, TARGETS)).astype(np.int32),
      "targets": random.integers(5, 200, (count, TARGETS)).astype(np.int32),
      "valid": np.arange(TARGETS) < random.integers(0, 4, (count, 1)),
    }
    filled, start = [], 0
    for rows, length in plan[group]:
      number = order[start : start + rows]
      mask = np.arange(length) < lengths[number][:, None]
      filled.append(
        {
          "ids": np.where(mask, ids[number, :length], 1).astype(np.int32),
          "mask": mask,
          "number": number.astype(np.int32),
        }
      )
      if group == "masked":
        filled[-1] |= {name: value[number] for name, value in targets.items()}
      start += rows
    if group == "masked":
      batch["masked"] = tuple(filled)
      continue
    batch["texts"][group] = tuple(filled)
    row_of = np.argsort(order).astype(np.int32)
    for stream, role, shape in places[group]:
      rows, row_of = np.split(row_of, [np.prod(shape)])
      batch[stream][role] = rows.reshape(shape)
  return batch


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
