"""Makes random batches, and computes their gradients, for tests of the step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mlir_jax import contract, sharding
from mlir_jax.batches import batch as batch_lib
from mlir_jax.batches import identity, packing
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
  "distillation": {},
  "score_distillation": {},
}


def make_losses(**changes):
  """Makes the losses with changed settings: make_losses(ir={"weight": 0.0})."""
  return registry.make(
    {name: SETTINGS[name] | changes.get(name, {}) for name in SETTINGS}
  )


LOSSES = make_losses()
SPEC = batch_lib.BatchSpec(16, 2, 8, 8)
MASKED_SPEC = dataclasses.replace(SPEC, masked=16)
LENGTH = 8
TARGETS = 3
CONTRACT = contract.PartialContract(
  pooling="mean",
  normalize=True,
  title_joiner=" ",
  **{role: contract.PartialRole("", LENGTH) for role in contract.ROLES},
).complete(None)


def one_a_row(spec):
  """Returns the plan in which every row holds one text."""
  return {
    group: (packing.Block(texts, LENGTH, 1, TARGETS),)
    for group, texts in spec.texts().items()
  }


def packed(spec, quantum=8):
  """Returns a plan of long and short rows, each for several texts."""
  plan = {}
  for group, texts in spec.texts().items():
    most = -(-texts // (4 * quantum)) * quantum
    plan[group] = (
      packing.Block(most, 2 * LENGTH, 6, 6 * TARGETS),
      packing.Block(most, LENGTH - 3, 2, 2 * TARGETS),
    )
  return plan


def make_batch(spec=SPEC, plan=None, seed=0):
  """Makes a batch with repeated texts and hard negatives, some of them padding.

  The texts do not depend on the plan.
  """
  random = np.random.default_rng(seed)
  plan = plan or one_a_row(spec)

  def text(shape, dtype=np.int32):
    return random.integers(0, 60, shape).astype(dtype)

  def hashes(like):
    return identity.split(text(like.shape[:-1], np.uint64))

  # Made without rows, so that the random numbers do not depend on the plan.
  made = batch_lib.make(spec, {"masked": ()}, text, positives=2)
  retrieval = made.retrieval
  if retrieval:
    valid = np.ones(retrieval.passage_valid.shape, bool)
    valid[::3, 1:][:, 1:] = False
    is_there = valid[..., None]
    retrieval = retrieval.replace(
      query_text=hashes(retrieval.query_text),
      query_sequence=hashes(retrieval.query_sequence),
      passage_text=np.where(is_there, hashes(retrieval.passage_text), -1),
      passage_sequence=np.where(
        is_there, hashes(retrieval.passage_sequence), -1
      ),
      passage_valid=valid,
      positive_sequence=hashes(retrieval.positive_sequence),
    )
  slot_of, rows_of = {}, {}
  for group, count in spec.texts().items():
    long = random.random(count) < 0.2
    lengths = np.where(
      long, random.integers(6, 9, count), random.integers(1, 6, count)
    )
    if group == "passage" and retrieval and spec.hard_negatives:
      first = spec.retrieval if spec.tied else 0
      lengths[first : first + valid.size] *= valid.ravel()
    ids = random.integers(5, 200, (count, LENGTH)).astype(np.int32)
    hidden = {
      "places": random.integers(0, 2, (count, TARGETS)).astype(np.int32),
      "targets": random.integers(5, 200, (count, TARGETS)).astype(np.int32),
    }
    amounts = random.integers(0, 4, count)
    found = packing.pack(lengths, plan[group])
    assert found is not None
    slot_of[group] = found.slot
    filled = []
    for block, number in zip(plan[group], found.numbers, strict=True):
      shape = block.rows, block.length
      rows = {
        "ids": np.ones(shape, np.int32),
        "position": np.zeros(shape, np.int32),
        "segment": np.zeros(shape, np.int32),
        "number": number,
      }
      masked = {
        name: np.zeros((block.rows, block.targets), np.int32) for name in hidden
      } | {"valid": np.zeros((block.rows, block.targets), bool)}
      for row, texts in enumerate(number):
        start = done = 0
        for place, each in enumerate(texts[texts >= 0]):
          at = row, slice(start, start + lengths[each])
          rows["ids"][at] = ids[each, : lengths[each]]
          rows["position"][at] = np.arange(lengths[each])
          rows["segment"][at] = place + 1
          known = row, slice(done, done + amounts[each])
          masked["places"][known] = (
            start + hidden["places"][each, : amounts[each]] % lengths[each]
          )
          masked["targets"][known] = hidden["targets"][each, : amounts[each]]
          masked["valid"][known] = True
          start += lengths[each]
          done += amounts[each]
      if group == "masked":
        filled.append(batch_lib.MaskedRows(**rows, **masked))
      else:
        filled.append(batch_lib.TextRows(**rows))
    rows_of[group] = tuple(filled)

  def place(group, rows):
    """Returns the places of the group's next texts, in order of number."""
    taken, slot_of[group] = np.split(slot_of[group], [rows.size])
    return taken.reshape(rows.shape)

  streams = {"masked": rows_of.pop("masked", None)}
  if retrieval:
    queries = "passage" if spec.tied else "query"
    streams["retrieval"] = retrieval.replace(
      query=place(queries, retrieval.query),
      passage=place("passage", retrieval.passage),
    )
  for name in ("parallel", "monolingual"):
    if sentences := getattr(made, name):
      rows = place("passage", sentences.sentence)
      streams[name] = sentences.replace(
        sentence=rows,
        text=hashes(sentences.text),
        sequence=hashes(sentences.sequence),
      )
  return batch_lib.Batch(texts=rows_of, **streams)


def all_different(retrieval):
  """Returns the pairs with texts that all differ, so that none is masked."""

  def number(values, first):
    *shape, _ = values.shape
    numbers = first + np.arange(np.prod(shape), dtype=np.uint64)
    return identity.split(numbers.reshape(shape))

  return retrieval.replace(
    query_sequence=number(retrieval.query_sequence, 0),
    passage_sequence=number(retrieval.passage_sequence, 0),
    positive_sequence=np.full_like(retrieval.positive_sequence, -1),
  )


def make_params(config=CONFIG, towers="tied", with_head=False):
  """Makes parameters in the config's dtype."""
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
  chunk_rows=0,
  key=None,
  dimensions=(),
):
  """Returns (total, gradient, metrics), computed on a mesh of `devices`."""
  compute, args = prepare_gradients(
    params,
    batch,
    config=config,
    losses=losses,
    devices=devices,
    fsdp=fsdp,
    chunk_rows=chunk_rows,
    key=key,
    dimensions=dimensions,
  )
  return jax.device_get(compute(*args))


def prepare_gradients(
  params,
  batch,
  *,
  config,
  losses,
  devices,
  fsdp,
  chunk_rows,
  key,
  dimensions=(),
):
  """Returns the jitted function of `gradients`, and its placed arguments."""
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  shardings = sharding.state_shardings(params, mesh, fsdp)
  encode = build.make_encode(config, CONTRACT, mesh, shardings, chunk_rows)

  @jax.jit
  def compute(params, batch):
    return step.gradients(
      params,
      batch,
      encode,
      losses,
      sharding.replicate(mesh),
      key,
      dimensions,
    )

  return compute, (
    jax.device_put(params, shardings),
    sharding.place_batch(batch, mesh),
  )


def assert_same(ours, theirs, atol=1e-12):
  """Checks that trees are equal up to rounding."""
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol),
    ours,
    theirs,
  )


def float64(config=CONFIG, **changes):
  """Returns the config in float64, for tests with enable_x64."""
  return dataclasses.replace(config, dtype="float64", **changes)


def random_like(tree, seed=0):
  """Returns a random direction in the space of parameters."""
  random = np.random.default_rng(seed)
  return jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape)), tree)
