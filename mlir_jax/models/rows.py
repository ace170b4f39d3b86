"""Rows of tokens: what an encoder reads, with several texts to a row."""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Rows:
  """R rows of L tokens, which hold at most S texts each.

  A text's tokens are next to each other. A token sees those of its own text
  alone, so a text's vector does not depend on what shares its row.

  Attributes:
    ids: int32 [R, L].
    position: int32 [R, L], the token's place in its text, from 0.
    segment: int32 [R, L], the number of the token's text in its row, from 1;
      0 for padding.
    seeds: uint32 [R, L], the seed of the token's text, for dropout; None for
      no dropout.
    places: int32 [R, K], the tokens whose states are asked for, instead of
      the texts' vectors; None for vectors.
    texts: S.
  """

  ids: Any
  position: Any
  segment: Any
  seeds: Any = None
  places: Any = None
  texts: int = flax.struct.field(pytree_node=False, default=1)


def one_a_row(ids: jax.Array, mask: jax.Array, seeds: Any = None) -> Rows:
  """Rows of one text each, padded on either side.

  Args:
    ids: int32 [R, L].
    mask: bool [R, L], False at padding.
    seeds: uint32 [R]; None for no dropout.
  """
  position = jnp.arange(ids.shape[1], dtype=jnp.int32)
  if seeds is not None:
    seeds = jnp.broadcast_to(seeds[:, None], ids.shape)
  return Rows(
    ids=ids,
    position=jnp.broadcast_to(position, ids.shape),
    segment=jnp.asarray(mask).astype(jnp.int32),
    seeds=seeds,
  )


def flat(blocks: Sequence[Rows], name: str) -> jax.Array:
  """One array of all tokens [N], of the blocks' arrays [R, L]."""
  arrays = [getattr(block, name).reshape(-1) for block in blocks]
  return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays)


def split(blocks: Sequence[Rows], values: Any) -> list[Any]:
  """The parts [R, L, ...] of the blocks, of an array of all tokens [N, ...]."""
  parts, start = [], 0
  for block in blocks:
    size = block.ids.size
    part = values[start : start + size]
    parts.append(part.reshape(*block.ids.shape, *values.shape[1:]))
    start += size
  return parts


def begins(segment: jax.Array) -> jax.Array:
  """Which tokens are the first of their text, bool [R, L]."""
  before = jnp.pad(segment[:, :-1], ((0, 0), (1, 0)))
  return (segment != before) & (segment > 0)


def ends(segment: jax.Array) -> jax.Array:
  """Which tokens are the last of their text, bool [R, L]."""
  after = jnp.pad(segment[:, 1:], ((0, 0), (0, 1)))
  return (segment != after) & (segment > 0)
