"""Rows of tokens, the input of an encoder; a row holds several texts."""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Rows:
  """R rows of L tokens; each row holds at most S texts.

  A text's tokens are next to each other. A token sees only the tokens of its
  own text, so a text's vector does not depend on the other texts in its row.

  Attributes:
    ids: int32 [R, L].
    position: int32 [R, L], the token's place in its text, from 0.
    segment: int32 [R, L], the number of the token's text in its row, from 1;
      0 for padding.
    seeds: uint32 [R, L], the seed of the token's text, for dropout; None for
      no dropout.
    places: int32 [R, K], the tokens whose states are the result. None if the
      texts' vectors are the result.
    texts: S.
  """

  ids: Any
  position: Any
  segment: Any
  seeds: Any = None
  places: Any = None
  texts: int = flax.struct.field(pytree_node=False, default=1)


def one_a_row(ids: jax.Array, mask: jax.Array, seeds: Any = None) -> Rows:
  """Returns rows with one text each; padding may be on either side.

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
  """Joins the blocks' arrays [R, L] to one array of all tokens, [N]."""
  arrays = [getattr(block, name).reshape(-1) for block in blocks]
  return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays)


def split(blocks: Sequence[Rows], values: Any) -> list[Any]:
  """Splits an array of all tokens [N, ...] into the blocks' [R, L, ...]."""
  parts, start = [], 0
  for block in blocks:
    size = block.ids.size
    part = values[start : start + size]
    parts.append(part.reshape(*block.ids.shape, *values.shape[1:]))
    start += size
  return parts


def begins(segment: jax.Array) -> jax.Array:
  """Returns which tokens are the first of their text, bool [R, L]."""
  before = jnp.pad(segment[:, :-1], ((0, 0), (1, 0)))
  return (segment != before) & (segment > 0)


def ends(segment: jax.Array) -> jax.Array:
  """Returns which tokens are the last of their text, bool [R, L]."""
  after = jnp.pad(segment[:, 1:], ((0, 0), (0, 1)))
  return (segment != after) & (segment > 0)
