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
