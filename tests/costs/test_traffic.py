"""Traffic counts what each kernel moves, in each turn of its loops."""

import hlo_texts
import jax
import jax.numpy as jnp

from mlir_jax.costs import traffic


def test_only_main_memory_counts():
  gather, copied, to_chip, from_chip = 128 + 1024, 4 + 4, 1024, 512
  counter = (4 + 4 + 4) + (4 + 4 + 1)  # Subtracted, compared.
  assert traffic.count(hlo_texts.GPU_AND_TPU) == (
    gather + copied + to_chip + from_chip + 5 * counter
  )


def test_a_pallas_kernel_moves_its_operands_and_results():
  """Its metadata has line breaks; what follows it is counted, too."""
  text = r"""HloModule step

ENTRY %main (a: f32[256], b: f32[64]) -> f32[256] {
  %a = f32[256]{0} parameter(0)
  %b = f32[64]{0:S(1)} parameter(1)
  %kernel = (f32[256]{0}, f32[64]{0:S(1)}) custom-call(%a, %b), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={

"xprof_metadata":"{\"block_q\": 128, \"name\": \"{\"}"
}}, metadata={op_name="splash"}
  %result = f32[256]{0} get-tuple-element(%kernel), index=0, \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}
  ROOT %copied = f32[256]{0} copy(%result)
}
"""
  kernel, copied = 1024 + 1024, 1024 + 1024
  assert traffic.count(text.replace("\\\n", "")) == kernel + copied


def test_traffic_counts_each_turn_and_only_what_is_read_of_a_table():
  def layers(x, w):
    return jax.lax.scan(lambda x, _: (jnp.sin(x @ w), None), x, length=6)[0]

  square = jax.ShapeDtypeStruct((256, 256), jnp.float32)
  once = 256 * 256 * 4
  moved = traffic.count(
    jax.jit(layers).lower(square, square).compile().as_text()
  )
  # A turn reads x and w and writes x, at least; and the sine is a kernel.
  assert 6 * 3 * once < moved < 6 * 9 * once

  table = jax.ShapeDtypeStruct((100_000, 64), jnp.float32)
  ids = jax.ShapeDtypeStruct((32,), jnp.int32)
  gather = jax.jit(lambda table, ids: table[ids] * 2).lower(table, ids)
  assert traffic.count(gather.compile().as_text()) < 8 * 32 * 64 * 4
