"""Are gradients in chunks over these devices what they are without either?

A compiler can be wrong on one kind of device alone: a loop over a sharded
batch that reads an embedding table split by vocabulary was, on TPUs
(openxla/xla#49143). So a small model is asked before a run's first step.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mlir_jax import contract as contract_lib
from mlir_jax import sharding
from mlir_jax.hosts import multihost
from mlir_jax.models import architecture, encoder
from mlir_jax.models import rows as rows_lib
from mlir_jax.training import build, chunking

# What the model has, of the run's shape, at most.
_LAYERS = 2
_VOCABULARY = 2**14
_LENGTH = 16
# float32 differs by some 1e-6 of a leaf's largest gradient.
TOLERANCE = 1e-4


def largest_difference(
  encoder_config: architecture.EncoderConfig,
  contract: contract_lib.EncodingContract,
  mesh: jax.sharding.Mesh,
) -> tuple[float, str]:
  """Compares the gradients of a small model of the run's kind.

  On one side every device encodes its rows in two chunks, with parameters
  split as under FSDP; on the other everything is encoded at once, by
  parameters that are whole. Both are float32, with dropout.

  Args:
    encoder_config: The run's.
    contract: The run's.
    mesh: The run's.

  Returns:
    The largest difference of a leaf's gradients, as a share of the largest
    gradient in that leaf, and the leaf's name.
  """
  layers = min(_LAYERS, encoder_config.num_layers)
  small = dataclasses.replace(
    encoder_config,
    num_layers=layers,
    layer_types=encoder_config.layer_types[:layers],
    vocab_size=min(_VOCABULARY, encoder_config.vocab_size),
    pad_token_id=min(encoder_config.pad_token_id, _VOCABULARY - 1),
    dtype="float32",
    attention="xla",
  )
  read = build.make_read(small, contract)
  devices = mesh.shape[sharding.DATA]
  rows = 2 * devices
  length = min(_LENGTH, small.max_length)
  random = np.random.default_rng(0)
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
  abstract = encoder.abstract_params(small, "tied")
  shardings = sharding.state_shardings(abstract, mesh, fsdp=True)
  whole = sharding.replicated(mesh)

  def gradient(encode, params, texts, weights):
    def total(params):
      (vectors,) = encode(params, {"passage": (texts,)})["passage"]
      return (vectors * weights).sum()

    return jax.grad(total)(params)

  def differences(params, texts, weights):
    found = gradient(
      chunking.make_encode(read, mesh, shardings, chunk_rows=devices),
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
    # Of some leaves the gradient is zero, but for rounding: attention's key
    # biases.
    least = 1e-3 * jnp.stack(jax.tree.leaves(largest)).max()

    def difference(found, expected, largest):
      share = jnp.abs(found - expected).max() / jnp.maximum(largest, least)
      # Where devices take a maximum together, a NaN may be lost.
      return jnp.where(jnp.isfinite(found).all(), share, jnp.inf)

    return jax.tree.map(difference, found, expected, largest)

  params = jax.jit(
    lambda: encoder.init_params(small, "tied", jax.random.key(0)),
    out_shardings=shardings,
  )()
  placed = sharding.place_batch(
    jax.tree.map(lambda x: x[sharding.host_rows(mesh, rows)], (texts, weights)),
    mesh,
  )
  with jax.default_matmul_precision("highest"):
    compared = jax.jit(differences, out_shardings=whole)
    compared = compared.lower(params, *placed).compile()
    multihost.check_in("self-check", {})  # See `compiled_step.CompiledStep`.
    found = jax.device_get(compared(params, *placed))
  named = {
    jax.tree_util.keystr(path, simple=True, separator="/"): float(value)
    for path, value in jax.tree_util.tree_leaves_with_path(found)
  }
  name = max(named, key=named.__getitem__)
  return named[name], name


def check(
  encoder_config: architecture.EncoderConfig,
  contract: contract_lib.EncodingContract,
  mesh: jax.sharding.Mesh,
) -> str:
  """Refuses to train where gradients come out wrong.

  Args:
    encoder_config: The run's.
    contract: The run's.
    mesh: The run's.

  Returns:
    What was found, in a line.

  Raises:
    ArithmeticError: if they differ by more than `TOLERANCE`.
  """
  difference, name = largest_difference(encoder_config, contract, mesh)
  if not difference <= TOLERANCE:
    raise ArithmeticError(
      f"Gradients in chunks over {mesh.size} devices differ from those of one"
      f" piece by {difference:.1e} of the largest, in {name}: the compiler is"
      " wrong on these devices. Try another version of jax, or, if you know"
      " better, train.self_check=False."
    )
  return (
    "Self-check: gradients in chunks over the devices are those of one piece,"
    f" to {difference:.0e} of the largest."
  )
