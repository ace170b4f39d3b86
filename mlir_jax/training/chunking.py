"""Encoding a batch over the mesh, whole or in chunks of bounded memory.

In-batch losses need the vectors of all texts at once, but not their
activations. In chunks, the vectors are made without keeping anything; when
the losses have given each its gradient, a chunk is encoded again and pulled
back, and the parameters' gradients are summed over the chunks (Gao et al.
2021, arXiv 2101.06983). The result is exact, whereas accumulating the
gradients of small batches would lose negatives.

Each device goes through its own rows, which is the strided fold of the global
batch: chunk c holds the c-th part of every device's rows, of each block, and no
row moves. Parameters are gathered once before the loop, gradients summed over
the devices once after it: what passes between devices does not grow with the
chunks.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mlir_jax import sharding
from mlir_jax.models import encoder
from mlir_jax.models import rows as rows_lib

PyTree = Any
# Group of texts ("query", "passage", "masked") to its rows, in blocks.
Texts = Mapping[str, Sequence[rows_lib.Rows]]
# read(towers' parameters, group, blocks, token_vectors=None) -> for each block,
# or part of it, [R, ...].
Read = Callable[..., list[jax.Array]]
# (parameters, texts) -> group to what `Read` gives.
Encode = Callable[[PyTree, Texts], dict[str, list[jax.Array]]]


def make_encode(
  read: Read, mesh: Mesh, shardings: PyTree, chunk_rows: int = 0
) -> Encode:
  """Makes the function that encodes a batch.

  Args:
    read: Encodes some rows; each on its own, whatever the others are.
    mesh: The mesh; rows are split over its axis "data".
    shardings: Of the parameters, `NamedSharding`s by name, of the towers at
      least.
    chunk_rows: Rows encoded at once, over all devices, at most; 0 for all. It
      counts rows of the longest block; of shorter ones there are more.

  Returns:
    encode(params, texts), differentiable by the parameters.

  Raises:
    ValueError: if the chunk does not divide over the mesh.
  """
  devices = mesh.shape[sharding.DATA]
  check_chunk(chunk_rows, devices)
  names = [name for name in shardings if name in encoder.TOWER_NAMES]
  over_rows = sharding.over_rows(
    in_chunks(read, chunk_rows // devices) if chunk_rows else whole(read),
    mesh,
    {name: shardings[name] for name in names},
  )

  def encode(params, texts):
    return over_rows({name: params[name] for name in names}, texts)

  return encode


def check_chunk(chunk_rows: int, devices: int) -> None:
  """Raises ValueError if a chunk's rows do not divide over the devices."""
  if chunk_rows % devices:
    raise ValueError(
      f"batch.chunk_rows is {chunk_rows}, which is no multiple of the"
      f" {devices} devices along '{sharding.DATA}'; the nearest that is:"
      f" {-(-chunk_rows // devices) * devices}."
    )


def whole(read: Read) -> Encode:
  """Encodes all rows at once, keeping what the backward pass needs."""

  def encode(params, texts):
    return {
      group: read(params, group, blocks) for group, blocks in texts.items()
    }

  return encode


def in_chunks(read: Read, chunk_rows: int) -> Encode:
  """Encodes chunk by chunk, keeping nothing but the texts.

  Args:
    read: Encodes some rows.
    chunk_rows: How many at once, at most.
  """

  @jax.custom_vjp
  def encode(params, texts):
    def through(group, blocks):
      found = jax.lax.map(
        lambda part: read(params, group, part),
        _fold(blocks, blocks, chunk_rows),
      )
      return [each.reshape(-1, *each.shape[2:]) for each in found]

    return {group: through(group, blocks) for group, blocks in texts.items()}

  def forward(params, texts):
    return encode(params, texts), (params, texts)

  def backward(kept, cotangents):
    params, texts = kept
    gradient = jax.tree.map(jnp.zeros_like, params)
    for group, blocks in texts.items():
      name = encoder.tower_name(params, group)
      add = _adder(functools.partial(read, group=group), params, name)
      both = blocks, cotangents[group]
      gradient[name], _ = jax.lax.scan(
        add, gradient[name], _fold(both, blocks, chunk_rows)
      )
    return gradient, None

  encode.defvjp(forward, backward)
  return encode


def count_parts(shapes: Sequence[tuple[int, int]], chunk_rows: int) -> int:
  """In how many parts some blocks' rows are encoded.

  Two at least: a compiler takes a loop of one turn apart, and what several
  such loops keep is then in memory together. Where no number of parts divides
  all blocks into chunks that are small enough, it is the largest that divides.

  Args:
    shapes: The (rows, length) of the blocks of a group, the longest first.
    chunk_rows: Rows of the longest at once, at most.
  """
  tokens = sum(rows * length for rows, length in shapes)
  most = chunk_rows * shapes[0][1]
  common = math.gcd(*(rows for rows, _ in shapes))
  possible = [n for n in range(2, common + 1) if common % n == 0] or [1]
  return next((n for n in possible if tokens <= n * most), possible[-1])


def _fold(tree: PyTree, blocks: Sequence[rows_lib.Rows], chunk_rows: int):
  """Arrays [R, ...] of the blocks as [parts, R / parts, ...]."""
  parts = count_parts([block.ids.shape for block in blocks], chunk_rows)
  return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), tree)


def _adder(read: Callable, params: PyTree, name: str) -> Callable:
  """A scan's body that adds a chunk's gradient by one tower's parameters."""
  table, rest = encoder.split_table(params[name])

  def add(gradient, part):
    blocks, cotangents = part
    ids = rows_lib.flat(blocks, "ids")

    def again(rest, vectors):
      tower = encoder.join_table(table, rest)
      return read({**params, name: tower}, blocks=blocks, token_vectors=vectors)

    _, pull_back = jax.vjp(again, rest, table[ids])
    by_rest, by_vectors = pull_back(cotangents)
    of_table, of_rest = encoder.split_table(gradient)
    # Added to rows in place: a derivative by the table would be one more
    # table, most of it zeros, to be made and added for each chunk.
    of_table = of_table.at[ids].add(by_vectors)
    of_rest = jax.tree.map(jnp.add, of_rest, by_rest)
    return encoder.join_table(of_table, of_rest), None

  return add
