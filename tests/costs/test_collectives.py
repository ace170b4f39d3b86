"""Collectives are found with their bytes, devices and runs."""

import functools
import re

import hlo_texts
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from mlir_jax import sharding
from mlir_jax.costs import collectives

DATA = sharding.DATA


def compile_over(devices, function, *shapes):
  """Compiles a function of per-device float32 arrays, each split over rows."""
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  mapped = jax.shard_map(
    function,
    mesh=mesh,
    in_specs=(P(DATA),) * len(shapes),
    out_specs=P(DATA),
    check_vma=False,
  )
  arrays = [
    jax.ShapeDtypeStruct(
      (devices * shape[0], *shape[1:]),
      jnp.float32,
      sharding=sharding.over_data(mesh),
    )
    for shape in shapes
  ]
  return jax.jit(mapped).lower(*arrays).compile()


def each_kind(x):
  """One of each on a float32 [8, 16] array of 512 bytes."""
  gathered = jax.lax.all_gather(x, DATA, tiled=True)
  swapped = jax.lax.all_to_all(x, DATA, 0, 0, tiled=True)
  moved = jax.lax.ppermute(x, DATA, [(0, 1), (1, 0)])
  scattered = jax.lax.psum_scatter(gathered + 1, DATA, tiled=True)
  return jax.lax.psum(jnp.sin(x), DATA) + swapped + moved + scattered


def test_each_kind_is_found_with_its_bytes_and_devices():
  found = collectives.find(compile_over(4, each_kind, (8, 16)).as_text())
  by_kind = {collective.kind: collective for collective in found}
  assert len(by_kind) == len(found) == 5
  assert {
    kind: (c.operand_bytes, c.sent_bytes, c.group_size)
    for kind, c in by_kind.items()
  } == {
    "all-reduce": (512, 2 * 384, 4),
    "all-gather": (512, 3 * 512, 4),
    "reduce-scatter": (2048, 3 * 512, 4),
    "all-to-all": (512, 384, 4),
    "collective-permute": (512, 512, 2),
  }
  assert all(c.runs == 1 and c.loops == () for c in found)


def nested(x):
  """All-reduces of 4 bytes: 1 outside, 5 in a scan, 5 x 3 in its loop."""

  def turn(x, _):
    x = jax.lax.psum(jnp.sin(x), DATA)
    x = jax.lax.fori_loop(
      2, 8, lambda i, x: jax.lax.psum(jnp.cos(x * i), DATA), x
    )
    return x, None

  x, _ = jax.lax.scan(turn, x, length=5)
  return jax.lax.psum(jnp.tan(x), DATA)


@pytest.mark.parametrize("written_down", [True, False])
def test_a_collective_runs_as_often_as_its_loops_turn(written_down):
  """Whether or not the compiler writes down how many turns there are."""
  text = compile_over(8, nested, (1,)).as_text()
  if not written_down:
    text, removed = re.subn(r'"known_trip_count":\{"n":"\d+"\}', "", text)
    assert removed == 2
  found = collectives.find(text)
  assert sorted(c.loops for c in found) == [(), (5,), (5, 6)]
  assert {c.kind for c in found} == {"all-reduce"}
  assert sum(c.runs for c in found) == 1 + 5 + 30
  assert sum(c.runs * c.sent_bytes for c in found) == 36 * 7


def test_a_loop_of_unknown_length_is_refused_if_devices_talk_in_it():
  def until(function, x):
    return jax.lax.while_loop(lambda x: x.sum() < 9, function, x)

  quiet = compile_over(2, functools.partial(until, jnp.exp), (4,))
  assert collectives.find(quiet.as_text()) == []
  loud = compile_over(
    2, functools.partial(until, lambda x: jax.lax.psum(x, DATA)), (4,)
  )
  with pytest.raises(ValueError, match="number of turns"):
    collectives.find(loud.as_text())


def test_the_forms_of_gpus_and_tpus_are_understood():
  found = collectives.find(hlo_texts.GPU_AND_TPU)
  assert sorted(
    (c.kind, c.operand_bytes, c.group_size, c.loops) for c in found
  ) == [
    ("all-gather", 128, 8, ()),
    ("all-reduce", 2 * 1024, 4, (5,)),
    ("reduce-scatter", 1024, 2, ()),
  ]
