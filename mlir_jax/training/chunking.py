"""Encoding a batch over the mesh, whole or in chunks of bounded memory.

In-batch losses need the vectors of all texts at once, but not their
activations. In chunks, the vectors are made without keeping anything; when
the losses have given each its gradient, a chunk is encoded again and pulled
back, and the parameters' gradients are summed over the chunks (Gao et al.
2021, arXiv 2101.06983). The result is exact, whereas accumulating the
gradients of small batches would lose negatives.

Each device goes through its own rows, which is the strided fold of the global
batch: chunk c holds the c-th part of every device's rows, and no row moves.
Parameters are gathered once before the loop, gradients summed over the devices
once after it: what passes between devices does not grow with the chunks.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mlir_jax import sharding
from mlir_jax.models import encoder

PyTree = Any
# Group of texts ("query", "passage", "masked") to its buckets.
Texts = Mapping[str, Sequence[Mapping[str, jax.Array]]]
# read(towers' parameters, group, texts, token_vectors=None) -> [rows, ...], of
# a bucket or a part of it, with "seeds" if there is dropout.
Read = Callable[..., jax.Array]
# (parameters, texts) -> group to what `Read` gives for each of its buckets.
Encode = Callable[[PyTree, Texts], dict[str, list[jax.Array]]]


def make_encode(
  read: Read, mesh: Mesh, shardings: PyTree, chunk: int = 0
) -> Encode:
  """Makes the function that encodes a batch.

  Args:
    read: Encodes some texts; each on its own, whatever stands beside it.
    mesh: The mesh; texts are split over its axis "data".
    shardings: Of the parameters, `NamedSharding`s by name, of the towers at
      least.
    chunk: Texts encoded at once, over all devices, at most; 0 for all of them.

  Returns:
    encode(params, texts), differentiable by the parameters.

  Raises:
    ValueError: if the chunk does not divide over the mesh.
  """
  devices = mesh.shape[sharding.DATA]
  if chunk % devices:
    raise ValueError(
      f"batch.chunk is {chunk}, which is no multiple of the {devices} devices"
      f" along '{sharding.DATA}'; the nearest that is:"
      f" {-(-chunk // devices) * devices}."
    )
  names = [name for name in shardings if name in encoder.TOWER_NAMES]
  over_rows = sharding.over_rows(
    in_chunks(read, chunk // devices) if chunk else whole(read),
    mesh,
    {name: shardings[name] for name in names},
  )

  def encode(params, texts):
    return over_rows({name: params[name] for name in names}, texts)

  return encode


def whole(read: Read) -> Encode:
  """Encodes each bucket at once, keeping what the backward pass needs."""

  def encode(params, texts):
    return {
      group: [read(params, group, bucket) for bucket in buckets]
      for group, buckets in texts.items()
    }

  return encode


def in_chunks(read: Read, chunk: int) -> Encode:
  """Encodes chunk by chunk, keeping nothing but the texts.

  Args:
    read: Encodes some texts.
    chunk: How many at once, at most.
  """

  @jax.custom_vjp
  def encode(params, texts):
    def through(group, bucket):
      vectors = jax.lax.map(
        lambda part: read(params, group, part), _fold(bucket, chunk)
      )
      return vectors.reshape(-1, *vectors.shape[2:])

    return {
      group: [through(group, bucket) for bucket in buckets]
      for group, buckets in texts.items()
    }

  def forward(params, texts):
    return encode(params, texts), (params, texts)

  def backward(kept, cotangents):
    params, texts = kept
    gradient = jax.tree.map(jnp.zeros_like, params)
    for group, buckets in texts.items():
      name = encoder.tower_name(params, group)
      add = _adder(functools.partial(read, group=group), params, name)
      for parts in zip(buckets, cotangents[group], strict=True):
        gradient[name], _ = jax.lax.scan(
          add, gradient[name], _fold(parts, chunk)
        )
    return gradient, None

  encode.defvjp(forward, backward)
  return encode


def parts(rows: int, chunk: int) -> int:
  """In how many parts of at most a chunk a bucket's rows are encoded.

  Two at least: a compiler takes a loop of one turn apart, and what several
  such loops keep is then in memory together.
  """
  sizes = [n for n in range(1, rows) if rows % n == 0 and n <= chunk]
  return rows // max(sizes, default=1)


def _fold(rows: PyTree, chunk: int) -> PyTree:
  """Arrays [n, ...] as [parts, n / parts, ...]."""
  return jax.tree.map(
    lambda x: x.reshape(parts(len(x), chunk), -1, *x.shape[1:]), rows
  )


def _adder(read: Callable, params: PyTree, name: str) -> Callable:
  """A scan's body that adds a chunk's gradient by one tower's parameters."""
  table, rest = encoder.split_table(params[name])

  def add(gradient, part):
    texts, cotangent = part

    def again(rest, vectors):
      tower = encoder.join_table(table, rest)
      return read({**params, name: tower}, texts=texts, token_vectors=vectors)

    _, pull_back = jax.vjp(again, rest, table[texts["ids"]])
    by_rest, by_vectors = pull_back(cotangent)
    of_table, of_rest = encoder.split_table(gradient)
    # Added to rows in place: a derivative by the table would be one more
    # table, most of it zeros, to be made and added for each chunk.
    of_table = of_table.at[texts["ids"]].add(by_vectors)
    of_rest = jax.tree.map(jnp.add, of_rest, by_rest)
    return encoder.join_table(of_table, of_rest), None

  return add
