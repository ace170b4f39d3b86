"""Encodes a batch over the mesh: whole, in halves, or in chunks.

In-batch losses need the vectors of all texts at once, but not their
activations. With chunks, the vectors are computed first, and no activation is
stored. The losses give each vector its gradient. Then each chunk is encoded
again and its gradient is pulled back, and the sum over the chunks is the
parameters' gradient (Gao et al. 2021, arXiv 2101.06983). The result is exact.
To accumulate the gradients of small batches instead would lose negatives.

Each device encodes its own rows: chunk c holds the c-th part of every device's
rows of each block, so no row moves between devices. Parameters are gathered
once before the loop, and gradients are summed over the devices once after it.
So the traffic between devices does not grow with the number of chunks.
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
# read(towers' parameters, group, blocks, token_vectors=None) -> [R, ...] for
# each block, which may be a part of a whole one.
Read = Callable[..., list[jax.Array]]
# (parameters, texts) -> group to the result of `Read`.
Encode = Callable[[PyTree, Texts], dict[str, list[jax.Array]]]

# `in_halves` halves rows if a half has at least this many tokens. To compile
# two halves takes longer, which small steps do not save.
_HALF = 2048


def make_encode(
  read: Read,
  mesh: Mesh,
  shardings: PyTree,
  chunk_rows: int = 0,
  stack: Callable[..., PyTree] = lambda tower, *_: tower,
) -> Encode:
  """Makes the function that encodes a batch.

  Args:
    read: Encodes some rows. The result of a row does not depend on other rows.
    mesh: The mesh; rows are split over its axis "data".
    shardings: Shardings of the parameters, `NamedSharding`s by name. The towers
      must be among them.
    chunk_rows: The largest number of rows of a chunk, over all devices; 0 for
      no chunks. It counts rows of the longest block; a chunk may hold more rows
      that are shorter.
    stack: (tower, function that joins leaves) -> the tower as `read` takes it.
      It stacks parameters before they are gathered, and so before any loop.

  Returns:
    encode(params, texts), differentiable by the parameters.

  Raises:
    ValueError: if the devices cannot share a chunk's rows equally.
  """
  devices = mesh.shape[sharding.DATA]
  check_chunk(chunk_rows, devices)
  names = [name for name in shardings if name in encoder.TOWER_NAMES]

  def towers(tree, join):
    return {name: stack(tree[name], join) for name in names}

  over_rows = sharding.over_rows(
    in_chunks(read, chunk_rows // devices) if chunk_rows else whole(read),
    mesh,
    towers(shardings, sharding.stacked),
  )

  def encode(params, texts):
    return over_rows(towers(params, lambda *leaves: jnp.stack(leaves)), texts)

  return encode


def check_chunk(chunk_rows: int, devices: int) -> None:
  """Raises ValueError if the devices cannot share a chunk's rows equally."""
  if chunk_rows % devices:
    raise ValueError(
      f"batch.chunk_rows is {chunk_rows}, which is not a multiple of the"
      f" {devices} devices along '{sharding.DATA}'; the next multiple is"
      f" {-(-chunk_rows // devices) * devices}."
    )


def whole(read: Read) -> Encode:
  """Encodes all rows at once and stores activations for the backward pass."""

  def encode(params, texts):
    return {
      group: read(params, group, blocks) for group, blocks in texts.items()
    }

  return encode


def in_halves(read: Read) -> Read:
  """Encodes each half of the rows by itself, for devices with several cores.

  XLA runs independent operations at the same time. Many operations of an
  encoder use one core only, such as the products of attention on a CPU. So
  while a core computes such an operation of one half, the others work on the
  other half. A half also takes less of the caches. Results are equal to those
  of all rows at once, up to rounding.

  Args:
    read: Encodes some rows. The result of a row does not depend on other rows.
  """

  def read_halves(params, group, blocks, token_vectors=None):
    rows = [block.ids.shape[0] for block in blocks]
    tokens = sum(block.ids.size for block in blocks)
    if min(rows) < 2 or tokens < 2 * _HALF:
      return read(params, group, blocks, token_vectors)
    if token_vectors is None:
      # Looked up once: each look-up has a derivative as large as the table.
      table, _ = encoder.split_table(encoder.tower_params(params, group))
      token_vectors = table[rows_lib.flat(blocks, "ids")]
    vectors = rows_lib.split(blocks, token_vectors)
    found = []
    for half in range(2):
      parts, of_parts = [], []
      for block, of_block, count in zip(blocks, vectors, rows, strict=True):
        own = slice(half * count // 2, (half + 1) * count // 2)
        parts.append(jax.tree.map(lambda x, own=own: x[own], block))
        of_parts.append(of_block[own].reshape(-1, of_block.shape[-1]))
      joined = jnp.concatenate(of_parts)
      found.append(read(params, group, tuple(parts), joined))
    return [jnp.concatenate(each) for each in zip(*found, strict=True)]

  return read_halves


def in_chunks(read: Read, chunk_rows: int) -> Encode:
  """Encodes chunk by chunk and stores only the texts for the backward pass.

  Args:
    read: Encodes some rows.
    chunk_rows: The largest number of rows of a chunk, on one device.
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
  """Returns the number of parts in which some blocks' rows are encoded.

  The number divides the rows of all blocks. It is at least 2 where possible:
  the compiler replaces a loop of one iteration by its body, and then the memory
  of several such loops is in use at the same time. If no number makes the
  chunks small enough, it is the largest one.

  Args:
    shapes: The (rows, length) of the blocks of a group, the longest first.
    chunk_rows: The largest number of rows of a chunk; it counts rows of the
      longest block.
  """
  tokens = sum(rows * length for rows, length in shapes)
  most = chunk_rows * shapes[0][1]
  common = math.gcd(*(rows for rows, _ in shapes))
  possible = [n for n in range(2, common + 1) if common % n == 0] or [1]
  return next((n for n in possible if tokens <= n * most), possible[-1])


def _fold(tree: PyTree, blocks: Sequence[rows_lib.Rows], chunk_rows: int):
  """Reshapes arrays [R, ...] of the blocks to [parts, R / parts, ...]."""
  parts = count_parts([block.ids.shape for block in blocks], chunk_rows)
  return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), tree)


def _adder(read: Callable, params: PyTree, name: str) -> Callable:
  """Returns a scan's body that adds up one tower's gradient over chunks."""
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
    # Added in place to the table's rows. A derivative by the table would be a
    # whole table, mostly zeros, to make and to add for each chunk.
    of_table = of_table.at[ids].add(by_vectors)
    of_rest = jax.tree.map(jnp.add, of_rest, by_rest)
    return encoder.join_table(of_table, of_rest), None

  return add
