"""Vectors as codes of 8 bits, and how far a product with them can be off.

A passage p is center + scale * code + e. Its code has whole numbers from -127
to 127, and its own scale. A query q is scale * code + r; its code has 14 bits.
So

  q · p = q · center + (scale * code of q) · (scale * code of p)
          + r · (scale * code of p) + q · e

Of the four terms, a device computes the second one. By Cauchy and Schwarz, the
last two are at most |r| |scale * code of p| and |q| |e|. That is a bound for
all passages, because the largest of these lengths are kept.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mlir_jax import sharding
from mlir_jax.retrieval import topk

LARGEST = 127
# Two codes of 8 bits hold such a number: 128 * high + low.
LARGEST_OF_QUERY = 128 * LARGEST + 63
_SAMPLE = 4096  # Passages of which the mean is the center.
_ROWS = 4096  # Passages that are encoded together; they fit into a cache.
# More than what rounding to float32 adds to the computed length of an error.
_ROUNDED = 1.001


class Placed(NamedTuple):
  """Passages on the mesh.

  Attributes:
    passages: Their codes.
    length: The largest length of scale * code.
    error: The largest length of e.
  """

  passages: topk.Codes
  length: float
  error: float


class Queries(NamedTuple):
  """Encoded queries; see the module.

  Attributes:
    codes: int16 [Q, D'], as `topk.Codes` has D'.
    scales: float64 [Q].
    offsets: float64 [Q], the products with the center.
    lengths: float64 [Q], of the queries.
    errors: float64 [Q], the lengths of r.
  """

  codes: np.ndarray
  scales: np.ndarray
  offsets: np.ndarray
  lengths: np.ndarray
  errors: np.ndarray

  def scores(self, sums: np.ndarray) -> np.ndarray:
    """Returns the scores, float64 [Q], of sums that a device has computed."""
    return self.scales * sums + self.offsets

  def sums(self, scores: np.ndarray) -> np.ndarray:
    """Returns sums, float32 [Q], that are not above those of some scores."""
    with np.errstate(over="ignore"):
      found = ((scores - self.offsets) / self.scales).astype(np.float32)
    return np.nextafter(found, np.float32(-np.inf))

  def bounds(self, placed: Placed) -> np.ndarray:
    """Returns how far scores can be off, float64 [Q], rounding included."""
    width = self.codes.shape[1]
    # A sum of D products in float32 is off by D * 2^-24 of their absolute
    # values, at most. Twice as much, and some operations more, is enough.
    rounding = (width + 32) * 2.0**-23
    return (
      self.errors * placed.length
      + self.lengths * placed.error * _ROUNDED
      + rounding * (self.lengths + self.errors) * placed.length
    )


def center_of(passages: topk.Rows) -> np.ndarray:
  """Returns the mean of some passages, float32 [D]: codes are finer around it.

  Any center is right. All processes find the same one.
  """
  count = passages.shape[0]
  rows = np.linspace(0, count - 1, min(count, _SAMPLE)).astype(np.int64)
  return passages[rows].mean(axis=0, dtype=np.float64).astype(np.float32)


def encode_queries(queries: np.ndarray, center: np.ndarray) -> Queries:
  """Encodes queries, [Q, D] floats."""
  queries = np.asarray(queries, np.float64)
  # Sums of products are then below 2^31.
  largest = min(LARGEST_OF_QUERY, (2**31 - 1) // (LARGEST * queries.shape[1]))
  scales = np.abs(queries).max(axis=1) / largest
  scales = np.where(scales > 0, scales, 1.0)
  codes = np.rint(queries / scales[:, None])
  more = _padded(queries.shape[1]) - queries.shape[1]
  return Queries(
    np.pad(codes.astype(np.int16), ((0, 0), (0, more))),
    scales,
    queries @ center.astype(np.float64),
    np.linalg.norm(queries, axis=1),
    np.linalg.norm(queries - codes * scales[:, None], axis=1),
  )


def _padded(width: int) -> int:
  """Returns D' of D."""
  return -(-width // topk.DIMENSIONS) * topk.DIMENSIONS


def row_bytes(width: int) -> int:
  """Returns the bytes of a passage on a device, while it is placed."""
  return _padded(width) + 12


class _Encoded(NamedTuple):
  """Encoded passages: codes, scales, and the lengths of both terms."""

  codes: np.ndarray
  scales: np.ndarray
  lengths: np.ndarray
  errors: np.ndarray


def _encode(rows: np.ndarray, center: np.ndarray, into: _Encoded) -> None:
  """Encodes passages, float32 [n, D]."""
  with np.errstate(over="ignore", invalid="ignore"):
    rest = rows - center
    scales = np.abs(rest).max(axis=1) / np.float32(LARGEST)
    scales = np.where(scales > 0, scales, np.float32(1))
    codes = np.rint(rest / scales[:, None])
    near = codes * scales[:, None]
    into.codes[: rows.shape[1]] = codes.T
    into.scales[:] = scales
    into.lengths[:] = np.linalg.norm(near, axis=1)
    into.errors[:] = np.linalg.norm(rest - near, axis=1)


def place(
  passages: topk.Rows, mesh: Mesh, order: np.ndarray, center: np.ndarray
) -> Placed:
  """Encodes passages and puts the codes on the mesh; see `topk.place`.

  Args:
    passages: [N, D] floats.
    mesh: Has the axis "data".
    order: int [n], the rows in the order in which they are placed.
    center: From `center_of`.
  """
  width = _padded(passages.shape[1])

  def shard(start: int, stop: int) -> _Encoded:
    count = stop - start
    made = _Encoded(
      np.zeros((width, count), np.int8),
      *np.zeros((3, count), np.float32),
    )
    rows = order[start:stop]
    for first in range(0, len(rows), topk.CHUNK):
      some = passages[rows[first : first + topk.CHUNK]]
      for part in range(0, len(some), _ROWS):
        at = slice(first + part, first + min(part + _ROWS, len(some)))
        _encode(
          some[part : part + _ROWS],
          center,
          _Encoded(*(array[..., at] for array in made)),
        )
    return made

  axes = _Encoded(1, 0, 0, 0)  # pyright: ignore[reportArgumentType]
  placed = topk.place_shards(len(order), mesh, shard, axes)
  # Each process has encoded the rows of its own devices.
  longest = jax.jit(
    lambda lengths, errors: (jnp.max(lengths), jnp.max(errors)),
    out_shardings=sharding.replicated(mesh),
  )(placed.lengths, placed.errors)
  length, error = map(float, jax.device_get(longest))
  return Placed(topk.Codes(placed.codes, placed.scales), length, error)


def exact_scores(
  queries: np.ndarray, passages: topk.Rows, rows: np.ndarray
) -> np.ndarray:
  """Computes the products of queries with some passages, in float64.

  Equal passages have equal scores.

  Args:
    queries: [Q, D] floats.
    passages: [N, D] floats.
    rows: int64 [Q, m], the passages of each query; -1 for none.

  Returns:
    float32 [Q, m]; -inf for none.
  """
  scores = np.full(rows.shape, -np.inf, np.float32)
  step = max(1, topk.CHUNK // 2 // max(rows.shape[1], 1))
  for start in range(0, len(rows), step):
    some = rows[start : start + step]
    known, places = np.unique(some, return_inverse=True)
    places = places.reshape(some.shape)
    skipped = int(np.searchsorted(known, 0))
    found = passages[known[skipped:]].astype(np.float64)
    for number, (query, at) in enumerate(
      zip(queries[start : start + step], places, strict=True)
    ):
      there = at >= skipped
      with np.errstate(over="ignore"):
        scores[start + number, there] = np.einsum(
          "pd,d->p", found[at[there] - skipped], query.astype(np.float64)
        )
  return scores
