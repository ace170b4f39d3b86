"""Exact top-k search over passages sharded over the mesh.

All ranking uses this search. Scores are float32 inner products. Of equal
scores, the lower row comes first: within a device, between devices, and at the
cut after k.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from mlir_jax import bars, sharding

BLOCK = 128  # Rows whose maximum is taken first: the lanes of a TPU.
CHUNK = 131072  # Rows scored at once; it bounds the score matrix.
QUERY_BATCH = 256  # Queries searched at once; it bounds the matrix, too.


def place(
  passages: np.ndarray, mesh: Mesh, order: np.ndarray | None = None
) -> jax.Array:
  """Puts passage embeddings on the mesh, padded so that they divide evenly.

  Every process passes the same array. It may be memory-mapped: a process reads
  only the rows of its own devices, one device after the other.

  Args:
    passages: [N, D] floats.
    mesh: Has the axis "data".
    order: int [N], the rows in the order in which they are placed; None for the
      order of `passages`.

  Returns:
    [N', D] float32, split over "data": the rows, then N' - N rows of zeros. N'
    is a multiple of `BLOCK` times the size of the axis.

  Raises:
    ValueError: if there are no passages.
  """
  if passages.ndim != 2 or not passages.size:
    raise ValueError(
      "Passage embeddings must be a non-empty [N, D] array, not one of"
      f" shape {passages.shape}."
    )
  unit = BLOCK * mesh.shape[sharding.DATA]
  shape = (-(-len(passages) // unit) * unit, passages.shape[1])

  def shard(index: tuple[slice, ...]) -> np.ndarray:
    start, stop, _ = index[0].indices(shape[0])
    rows = np.zeros((stop - start, shape[1]), np.float32)
    stop = min(stop, len(passages))
    for first in range(start, stop, CHUNK):  # Indexing by `order` copies.
      last = min(first + CHUNK, stop)
      rows[first - start : last - start] = passages[
        slice(first, last) if order is None else order[first:last]
      ]
    return rows

  over_data = sharding.over_data(mesh)
  # make_array_from_callback would make all shards before it places the first.
  # Each device of a mesh has an index, though JAX's type allows None.
  shards = [
    jax.device_put(shard(index), device)  # pyright: ignore[reportArgumentType]
    for device, index in over_data.addressable_devices_indices_map(
      shape
    ).items()
  ]
  return jax.make_array_from_single_device_arrays(shape, over_data, shards)


def _top_k_of_blocks(scores: jax.Array, k: int):
  """Returns `lax.top_k` of [Q, M] scores; it reads most scores only once.

  Rank blocks of consecutive columns by their maxima, where the earlier block
  wins a tie. Then the k best columns are in the k best blocks. Proof: take a
  column in another block. Each of the k best blocks has a column that beats it,
  by a higher score, or by an equal score further left.
  """
  blocks = scores.reshape(len(scores), -1, BLOCK)
  if blocks.shape[1] <= k:
    return jax.lax.top_k(scores, min(k, scores.shape[1]))
  _, winners = jax.lax.top_k(blocks.max(axis=-1), k)
  winners = jnp.sort(winners, axis=-1)  # Columns in order: ties go left.
  candidates = jnp.take_along_axis(blocks, winners[:, :, None], axis=1)
  best, places = jax.lax.top_k(candidates.reshape(len(scores), -1), k)
  block = jnp.take_along_axis(winners, places // BLOCK, axis=1)
  return best, block * BLOCK + places % BLOCK


def _best_of(scores: jax.Array, indices: jax.Array, k: int):
  """Returns the k best of [Q, M] candidates; equals keep their order."""
  scores, places = jax.lax.top_k(scores, k)
  return scores, jnp.take_along_axis(indices, places, axis=1)


def _shard_top_k(
  queries: jax.Array, shard: jax.Array, *, k: int, num_valid: int
):
  """Returns the best rows of one device: [Q, k] scores and global indices."""
  rows = len(shard)
  num_chunks = -(-rows // CHUNK)
  size = BLOCK * -(-rows // (BLOCK * num_chunks))
  offset = jax.lax.axis_index(sharding.DATA) * rows

  def merge(best, chunk):
    # The last chunk is moved back to end with the shard. It may then overlap
    # with the chunk before: those rows are skipped.
    start = jnp.minimum(chunk * size, rows - size)
    passages = jax.lax.dynamic_slice_in_dim(shard, start, size)
    scores = jnp.einsum(
      "qd,pd->qp", queries, passages, precision=jax.lax.Precision.HIGHEST
    )
    # lax.top_k ranks 0.0 before -0.0, but they are equal scores.
    scores = jnp.where(scores == 0, 0.0, scores)
    row = start + jnp.arange(size, dtype=jnp.int32)
    skipped = (row < chunk * size) | (offset + row >= num_valid)
    scores, columns = _top_k_of_blocks(jnp.where(skipped, -jnp.inf, scores), k)
    # Earlier results come first, because their rows are lower. Of equal -inf,
    # index -1 then comes before skipped rows.
    scores = jnp.concatenate([best[0], scores], axis=1)
    indices = jnp.concatenate([best[1], offset + start + columns], axis=1)
    return _best_of(scores, indices, k), None

  nothing = (
    jnp.full((len(queries), k), -jnp.inf, jnp.float32),
    jnp.full((len(queries), k), -1, jnp.int32),
  )
  best, _ = jax.lax.scan(
    merge,
    jax.lax.pcast(nothing, sharding.DATA, to="varying"),
    jnp.arange(num_chunks, dtype=jnp.int32),
  )
  return best


@functools.partial(jax.jit, static_argnames=("k", "mesh", "num_valid"))
def top_k(
  queries: jax.Array,
  passages: jax.Array,
  *,
  k: int,
  mesh: Mesh,
  num_valid: int,
) -> tuple[jax.Array, jax.Array]:
  """Returns the k passages with the highest inner products, exactly.

  Each device scores its own rows, `CHUNK` at a time, and sends its k best. The
  result is the k best of these.

  Args:
    queries: [Q, D] float32, replicated.
    passages: [N', D] float32, as `place` returns them. All scores must be
      finite.
    k: The number of results; it may exceed the number of passages.
    mesh: The mesh of the passages.
    num_valid: N, the number of passages before the padding.

  Returns:
    scores: [Q, k] float32, replicated, descending; -inf after the last passage.
    indices: [Q, k] int32 rows of `passages`, replicated; of equal scores, the
      lower row is first; -1 after the last passage.

  Raises:
    ValueError: if k is not positive, or `place` did not pad the passages.
  """
  if k < 1:
    raise ValueError(f"k is {k}; it must be at least 1.")
  if len(passages) % (BLOCK * mesh.shape[sharding.DATA]):
    raise ValueError(
      f"The number of rows, {len(passages)}, is not a multiple of {BLOCK} for"
      f" each of {mesh.shape[sharding.DATA]} devices; pad them with place()."
    )
  everywhere = sharding.replicate(mesh)
  candidates = jax.shard_map(
    functools.partial(_shard_top_k, k=k, num_valid=num_valid),
    mesh=mesh,
    in_specs=(PartitionSpec(), PartitionSpec(sharding.DATA)),
    out_specs=PartitionSpec(None, sharding.DATA),
  )(queries, passages)
  # One all-gather brings k candidates per device, in the order of their rows.
  return everywhere(_best_of(*everywhere(candidates), k=k))


def search(
  queries: np.ndarray,
  passages: jax.Array,
  k: int,
  *,
  mesh: Mesh,
  num_valid: int,
  description: str = "Searching",
) -> tuple[np.ndarray, np.ndarray]:
  """Calls `top_k` for any number of queries, in batches of one compiled size.

  Args:
    queries: [Q, D] floats, the same in every process.
    passages: [N', D] float32, as `place` returns them.
    k: As in `top_k`.
    mesh: As in `top_k`.
    num_valid: As in `top_k`.
    description: The text of the progress bar of a long search.

  Returns:
    scores: [Q, k] float32, as in `top_k`.
    indices: [Q, k] int32, as in `top_k`.
  """
  size = min(QUERY_BATCH, len(queries))
  scores = np.empty((len(queries), k), np.float32)
  indices = np.empty((len(queries), k), np.int32)
  with bars.bar(
    None, description, unit="query", delay=2, total=len(queries), leave=False
  ) as progress:
    for start in range(0, len(queries), size or 1):
      real = queries[start : start + size]
      batch = np.zeros((size, queries.shape[1]), np.float32)
      batch[: len(real)] = real
      found = top_k(
        jax.make_array_from_callback(
          batch.shape, sharding.replicated(mesh), batch.__getitem__
        ),
        passages,
        k=k,
        mesh=mesh,
        num_valid=num_valid,
      )
      stop = start + len(real)
      scores[start:stop], indices[start:stop] = (
        rows[: len(real)] for rows in jax.device_get(found)
      )
      progress.update(len(real))
  return scores, indices
