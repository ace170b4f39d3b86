"""Memory is that of arguments, outputs and temporaries, each once."""

import jax
import jax.numpy as jnp

from mlir_jax.costs import memory


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
