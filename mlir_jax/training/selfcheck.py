"""Checks that chunked, sharded gradients equal the plain ones.

A compiler can be wrong on one kind of device only. On TPUs it miscompiled a
loop over a sharded batch that reads an embedding table split by vocabulary
(openxla/xla#49143). So each run checks a small model before its first step.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlir_jax import contract as contract_lib
from mlir_jax import sharding
from mlir_jax.hosts import multihost
from mlir_jax.models import architecture, encoder, layers
from mlir_jax.models import rows as rows_lib
from mlir_jax.training import build, chunking

# The small model has the run's shape, but at most these sizes.
_LAYERS = 2
_VOCABULARY = 2**14
_LENGTH = 16
# In float32 the difference is about 1e-6 of a leaf's largest gradient.
TOLERANCE = 1e-4


def largest_difference(
  encoder_config: architecture.EncoderConfig,
  contract: contract_lib.EncodingContract,
  mesh: jax.sharding.Mesh,
) -> tuple[float, str]:
  """Compares the gradients of a small model with the run's kind of encoder.

  First, every device encodes its rows in two chunks, with parameters that are
  sharded as with FSDP. Second, all rows are encoded at once, with parameters
  that are whole on every device. Both use float32 and dropout.

  Returns:
    The largest difference between the gradients of a leaf, as a share of the
    largest gradient in that leaf; and the name of that leaf.
  """
  small = _shrink(encoder_config)
  rows = 2 * mesh.shape[sharding.DATA]
  shardings = sharding.state_shardings(
    encoder.abstract_params(small, "tied"), mesh, fsdp=True
  )
  params = jax.jit(
    lambda: encoder.init_params(small, "tied", jax.random.key(0)),
    out_shardings=shardings,
  )()
  placed = sharding.place_batch(
    jax.tree.map(
      lambda x: x[sharding.host_rows(mesh, rows)], _draw_batch(small, rows)
    ),
    mesh,
  )
  compare = _make_comparison(
    # Whole vectors have gradients everywhere.
    build.make_read(small, dataclasses.replace(contract, truncate_dim=0)),
    mesh,
    shardings,
    functools.partial(layers.stack, small),
  )
  with jax.default_matmul_precision("highest"):
    compiled = jax.jit(compare, out_shardings=sharding.replicated(mesh))
    compiled = compiled.lower(params, *placed).compile()
    multihost.check_in("self-check", {})  # See `compiled_step.CompiledStep`.
    differences = jax.device_get(compiled(params, *placed))
  by_name = {
    jax.tree_util.keystr(path, simple=True, separator="/"): float(value)
    for path, value in jax.tree_util.tree_leaves_with_path(differences)
  }
  name = max(by_name, key=by_name.__getitem__)
  return by_name[name], name


def _shrink(
  encoder_config: architecture.EncoderConfig,
) -> architecture.EncoderConfig:
  """Returns the shape of the small model."""
  count = min(_LAYERS, encoder_config.num_layers)
  scan = layers.find(encoder_config.layer_kinds)
  if encoder_config.scan_layers and scan:
    count = scan.first + 2 * scan.period  # So that the small model has a scan.
  return dataclasses.replace(
    encoder_config,
    num_layers=count,
    layer_types=encoder_config.layer_types[:count],
    vocab_size=min(_VOCABULARY, encoder_config.vocab_size),
    pad_token_id=min(encoder_config.pad_token_id, _VOCABULARY - 1),
    dtype="float32",
    attention="xla",
  )


def _draw_batch(
  small: architecture.EncoderConfig, rows: int
) -> tuple[rows_lib.Rows, np.ndarray]:
  """Draws packed texts, and weights of their vectors, float32 [rows, 2, D]."""
  length = min(_LENGTH, small.max_length)
  random = np.random.default_rng(0)
  # A row has two texts; the second begins at `cut`.
  cut, end = np.sort(random.integers(1, length + 1, (2, rows, 1)), axis=0)
  places = np.arange(length, dtype=np.int32)
  second = places >= cut
  texts = rows_lib.Rows(
    ids=random.integers(small.vocab_size, size=(rows, length), dtype=np.int32),
    position=places - cut.astype(np.int32) * second,
    segment=((1 + second) * (places < end)).astype(np.int32),
    seeds=random.integers(2**32, size=(rows, 2), dtype=np.uint32)[
      np.arange(rows)[:, None], second.astype(int)
    ],
    texts=2,
  )
  weights = random.normal(size=(rows, 2, small.output_size)).astype(np.float32)
  return texts, weights


def _make_comparison(
  read: chunking.Read,
  mesh: jax.sharding.Mesh,
  shardings: Any,
  stack: Callable[..., Any],
) -> Callable:
  """Returns (params, texts, weights) -> the largest difference of each leaf."""
  whole = sharding.replicated(mesh)

  def gradient(encode, params, texts, weights):
    def total(params):
      (vectors,) = encode(params, {"passage": (texts,)})["passage"]
      return (vectors * weights).sum()

    return jax.grad(total)(params)

  def compare(params, texts, weights):
    found = gradient(
      chunking.make_encode(
        read, mesh, shardings, mesh.shape[sharding.DATA], stack
      ),
      params, texts, weights,
    )  # fmt: skip
    replicate = functools.partial(
      jax.tree.map, lambda x: jax.lax.with_sharding_constraint(x, whole)
    )
    expected = gradient(
      chunking.whole(read), *map(replicate, (params, texts, weights))
    )
    expected = replicate(expected)
    largest = jax.tree.map(lambda x: jnp.abs(x).max(), expected)
    # The gradient of some leaves (attention's key biases) is zero, except for
    # rounding.
    smallest = 1e-3 * jnp.stack(jax.tree.leaves(largest)).max()

    def difference(found, expected, largest):
      share = jnp.abs(found - expected).max() / jnp.maximum(largest, smallest)
      # A maximum over devices may lose a NaN.
      return jnp.where(jnp.isfinite(found).all(), share, jnp.inf)

    return jax.tree.map(difference, found, expected, largest)

  return compare


def check(
  encoder_config: architecture.EncoderConfig,
  contract: contract_lib.EncodingContract,
  mesh: jax.sharding.Mesh,
) -> str:
  """Refuses to train on devices that compute wrong gradients.

  Returns:
    The result, in one line.

  Raises:
    ArithmeticError: if gradients differ by more than `TOLERANCE`.
  """
  difference, name = largest_difference(encoder_config, contract, mesh)
  if not difference <= TOLERANCE:
    raise ArithmeticError(
      f"Chunked gradients over {mesh.size} devices differ from the plain ones"
      f" by {difference:.1e} of the largest gradient, in {name}: the compiler"
      " is wrong on these devices. Try another version of jax; or, to train all"
      " the same, set train.self_check=False."
    )
  return (
    "Self-check: chunked, sharded gradients equal the plain ones to"
    f" {difference:.0e} of the largest gradient."
  )
