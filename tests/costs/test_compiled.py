"""What compiled programs cost: known collectives, in and out of loops."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from mlir_jax import sharding
from mlir_jax.costs import collectives, memory

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
    kind: (c.operand_bytes, c.result_bytes, c.sent_bytes, c.group_size)
    for kind, c in by_kind.items()
  } == {
    "all-reduce": (512, 512, 2 * 384, 4),
    "all-gather": (512, 2048, 3 * 512, 4),
    "reduce-scatter": (2048, 512, 3 * 512, 4),
    "all-to-all": (512, 512, 384, 4),
    "collective-permute": (512, 512, 512, 2),
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
  assert collectives.totals(found) == {"all-reduce": (1 + 5 + 30, 36 * 7)}


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


# Forms that the CPU's compiler does not write: parts that start and end (GPU);
# a reduction woven into fusions, a scatter as a fusion, groups as axes of a
# mesh, a loop without its number of turns, on-chip memory (TPU).
_TEXT = """HloModule step, is_scheduled=true, num_partitions=8

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%begin (p: bf16[64]) -> (bf16[64], bf16[512], u32[]) {
  %p = bf16[64]{0} parameter(0)
  %gather.1 = bf16[512]{0} all-gather(%p), replica_groups=mesh['x'=4,'y'=2] \
{'x','y'}, dimensions={0}, backend_config={"async_collective_fusion_config":\
{"flag_start":"-1","flag_end":"-1"}}
  %flag = u32[]{:S(2)} constant(0)
  ROOT %parts = (bf16[64]{0}, bf16[512]{0}, u32[]{:S(2)}) tuple(%p, %gather.1, \
/*index=2*/%flag)
}

%go_on (p.1: bf16[64], q.1: bf16[512], f: u32[]) -> bf16[512] {
  %p.1 = bf16[64]{0} parameter(0)
  %q.1 = bf16[512]{0} parameter(1)
  %f = u32[]{:S(2)} parameter(2)
  ROOT %gather.2 = bf16[512]{0} all-gather(%p.1), replica_groups=mesh['x'=4,\
'y'=2] {'x','y'}, dimensions={0}, backend_config={\
"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}
}

%scatter (input: f32[32,8]) -> f32[16,8] {
  %input = f32[32,8]{1,0} parameter(0)
  %all = f32[32,8]{1,0} all-reduce(%input), replica_groups=mesh['x'=4,'y'=2] \
{'y'}, to_apply=%sum
  %zero = u32[] constant(0)
  ROOT %mine = f32[16,8]{1,0} dynamic-slice(%all, %zero, %zero), \
dynamic_slice_sizes={16,8}
}

%body (state: (s32[], f32[32,8], s32[])) -> (s32[], f32[32,8], s32[]) {
  %state = (s32[]{:T(128)}, f32[32,8]{1,0:T(8,128)S(1)}, s32[]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = f32[32,8]{1,0:T(8,128)S(1)} get-tuple-element(%state), index=1
  %stride = s32[] get-tuple-element(%state), index=2
  %next = s32[]{:T(128)} subtract(%i, %stride)
  %sums = (f32[32,8]{1,0:S(1)}, f32[32,8]{1,0:S(1)}) all-reduce-start(%x, %x), \
replica_groups=[2,4]<=[8], to_apply=%sum
  %summed = (f32[32,8]{1,0:S(1)}, f32[32,8]{1,0:S(1)}) all-reduce-done(%sums)
  %first = f32[32,8]{1,0:S(1)} get-tuple-element(%summed), index=0
  ROOT %after = (s32[], f32[32,8]{1,0:S(1)}, s32[]) tuple(%next, %first, \
%stride)
}

%goes_on (state.1: (s32[], f32[32,8], s32[])) -> pred[] {
  %state.1 = (s32[], f32[32,8]{1,0:S(1)}, s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %end = s32[] constant(-4)
  ROOT %lower = pred[] compare(%end, %i.1), direction=LT
}

ENTRY %main (in: bf16[64], x.1: f32[32,8]) -> f32[16,8] {
  %in = bf16[64]{0} parameter(0)
  %x.1 = f32[32,8]{1,0} parameter(1)
  %start = (bf16[64]{0}, bf16[512]{0}, u32[]{:S(2)}) fusion(%in), \
kind=kCustom, calls=%begin
  %s.0 = bf16[64]{0} get-tuple-element(%start), index=0
  %s.1 = bf16[512]{0} get-tuple-element(%start), index=1
  %s.2 = u32[]{:S(2)} get-tuple-element(%start), index=2
  %done = bf16[512]{0} fusion(%s.0, %s.1, %s.2), kind=kCustom, calls=%go_on
  %six = s32[] constant(6)
  %two = s32[] constant(2)
  %copied = s32[] copy(%six)
  %chip = f32[32,8]{1,0:T(8,128)S(1)} copy(%x.1)
  %before = (s32[], f32[32,8]{1,0:S(1)}, s32[]) tuple(%copied, %chip, %two)
  %loop = (s32[], f32[32,8]{1,0:S(1)}, s32[]) while(%before), \
condition=%goes_on, body=%body
  %y = f32[32,8]{1,0:S(1)} get-tuple-element(%loop), index=1
  ROOT %out = f32[16,8]{1,0} fusion(%y), kind=kCustom, calls=%scatter
}
"""


def test_the_forms_of_gpus_and_tpus_are_understood():
  found = collectives.find(_TEXT)
  assert sorted(
    (c.kind, c.operand_bytes, c.group_size, c.loops) for c in found
  ) == [
    ("all-gather", 128, 8, ()),
    ("all-reduce", 2 * 1024, 4, (5,)),
    ("reduce-scatter", 1024, 2, ()),
  ]


def test_main_memory_is_told_from_what_is_on_the_chip():
  gather, copied, to_chip, from_chip = 128 + 1024, 4 + 4, 1024, 512
  counter = (4 + 4 + 4) + (4 + 4 + 1)  # Subtracted, compared.
  assert memory.traffic(_TEXT) == (
    gather + copied + to_chip + from_chip + 5 * counter
  )


def test_traffic_counts_each_turn_and_only_what_is_read_of_a_table():
  def layers(x, w):
    return jax.lax.scan(lambda x, _: (jnp.sin(x @ w), None), x, length=6)[0]

  square = jax.ShapeDtypeStruct((256, 256), jnp.float32)
  once = 256 * 256 * 4
  moved = memory.traffic(
    jax.jit(layers).lower(square, square).compile().as_text()
  )
  # A turn reads x and w and writes x, at least; and the sine is a kernel.
  assert 6 * 3 * once < moved < 6 * 9 * once

  table = jax.ShapeDtypeStruct((100_000, 64), jnp.float32)
  ids = jax.ShapeDtypeStruct((32,), jnp.int32)
  gather = jax.jit(lambda table, ids: table[ids] * 2).lower(table, ids)
  assert memory.traffic(gather.compile().as_text()) < 8 * 32 * 64 * 4


def test_memory_counts_what_is_donated_once():
  array = jax.ShapeDtypeStruct((1024, 256), jnp.float32)
  for donated in (False, True):
    found = memory.of_program(
      jax.jit(lambda x: x + 1, donate_argnums=(0,) * donated)
      .lower(array)
      .compile()
    )
    assert found["arguments"] == found["outputs"] == 2**20
    assert found["aliased"] == 2**20 * donated
    assert 2**20 * (2 - donated) <= found["total"] < 2**20 * 2.1
