"""Finds the exact ranks of chosen passages in a search of all passages.

A measure without a cut, such as mean average precision, needs the rank of each
relevant passage, however low it is. The rank is 1 plus the number of passages
that beat it. They are counted on the mesh, in chunks: the matrix of all scores
never exists.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from mlir_jax import bars, sharding
from mlir_jax.retrieval import topk


def find(
  queries: np.ndarray,
  wanted: Sequence[Sequence[str]],
  passage_ids: Sequence[str],
  passages: np.ndarray,
  mesh: Mesh,
  *,
  description: str = "Ranking",
) -> list[np.ndarray]:
  """Ranks chosen passages of each query among all passages.

  Passages of equal scores are in the order of trec_eval: by id, descending.

  Args:
    queries: [Q, D] floats, the same in every process.
    wanted: For each query, the ids of the passages to rank.
    passage_ids: N unique ids.
    passages: [N, D] floats, in the order of the ids. They may be memory-mapped.
    mesh: Its axis "data" splits the passages.
    description: The text of the progress bar.

  Returns:
    For each query, int [len(wanted)]: the ranks, from 1; 0 for a passage that
    is not among the passages.

  Raises:
    ValueError: if numbers of rows differ, an id occurs twice, or an embedding
      is not finite.
  """
  for rows, ids, kind in (
    (queries, wanted, "queries"),
    (passages, passage_ids, "passages"),
  ):
    if len(rows) != len(ids):
      raise ValueError(f"{len(rows)} embeddings for {len(ids)} {kind}.")
    for start in range(0, len(rows), topk.CHUNK):
      if not np.isfinite(rows[start : start + topk.CHUNK]).all():
        raise ValueError(
          f"Some embeddings of {kind} are not finite; the model's parameters"
          " are broken."
        )
  order = sorted(
    range(len(passage_ids)), key=passage_ids.__getitem__, reverse=True
  )
  row_of = {passage_ids[number]: row for row, number in enumerate(order)}
  if len(row_of) != len(order):
    raise ValueError("A passage id occurs twice; give each passage its own id.")
  most = max((len(ids) for ids in wanted), default=0)
  targets = np.full((len(wanted), most), -1, np.int32)
  for query, ids in enumerate(wanted):
    targets[query, : len(ids)] = [row_of.get(name, -1) for name in ids]
  if not targets.size:
    return [np.zeros(len(ids), np.int64) for ids in wanted]
  placed = topk.place(passages, mesh, np.array(order, np.int64))
  found = _find_rows(
    queries, targets, placed, mesh, len(order), description=description
  )
  return [row[: len(ids)] for row, ids in zip(found, wanted, strict=True)]


def _find_rows(
  queries: np.ndarray,
  targets: np.ndarray,
  passages: jax.Array,
  mesh: Mesh,
  num_valid: int,
  *,
  description: str,
) -> np.ndarray:
  """Ranks rows of placed passages, in batches of queries of one size.

  Args:
    queries: [Q, D] floats.
    targets: int32 [Q, R], rows of `passages`; -1 for none.
    passages: float32 [N', D], as `topk.place` returns them.
    mesh: The mesh of the passages.
    num_valid: N, the number of passages before the padding.
    description: The text of the progress bar.

  Returns:
    int64 [Q, R], the ranks from 1; 0 for none.
  """
  size = min(topk.QUERY_BATCH, len(queries))
  ranks = np.zeros(targets.shape, np.int64)
  replicated = sharding.replicated(mesh)
  with bars.bar(
    None, description, unit="query", delay=2, total=len(queries), leave=False
  ) as progress:
    for start in range(0, len(queries), size):
      stop = min(start + size, len(queries))
      batch = np.zeros((size, queries.shape[1]), np.float32)
      batch[: stop - start] = queries[start:stop]
      rows = np.full((size, targets.shape[1]), -1, np.int32)
      rows[: stop - start] = targets[start:stop]
      found = _ranks(
        *(
          jax.make_array_from_callback(x.shape, replicated, x.__getitem__)
          for x in (batch, rows)
        ),
        passages,
        mesh=mesh,
        num_valid=num_valid,
      )
      ranks[start:stop] = jax.device_get(found)[: stop - start]
      progress.update(stop - start)
  return ranks


@functools.partial(jax.jit, static_argnames=("mesh", "num_valid"))
def _ranks(
  queries: jax.Array,
  targets: jax.Array,
  passages: jax.Array,
  *,
  mesh: Mesh,
  num_valid: int,
) -> jax.Array:
  """Returns int32 [Q, R], the ranks of rows; see `_find_rows`."""
  ranks = jax.shard_map(
    functools.partial(_shard_ranks, num_valid=num_valid),
    mesh=mesh,
    in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(sharding.DATA)),
    out_specs=PartitionSpec(),
  )(queries, targets, passages)
  return jnp.where(targets < 0, 0, ranks)


def _shard_ranks(
  queries: jax.Array, targets: jax.Array, shard: jax.Array, *, num_valid: int
) -> jax.Array:
  """Returns int32 [Q, R], the ranks; each device counts in its own rows.

  It goes through the rows twice: for the scores of the targets, then for the
  number of rows that beat them. Both passes are one loop with one product in
  the compiled program. So a target's own score has the same bits in both, and
  a rank is exact for the scores as they are computed.
  """
  rows = len(shard)
  num_chunks = -(-rows // topk.CHUNK)
  size = -(-rows // num_chunks)
  offset = jax.lax.axis_index(sharding.DATA) * rows

  def add_chunk(known, state, chunk):
    # The last chunk is moved back to end with the shard. It may then overlap
    # with the chunk before: those rows are skipped.
    start = jnp.minimum(chunk * size, rows - size)
    passages = jax.lax.dynamic_slice_in_dim(shard, start, size)
    scores = jnp.einsum(
      "qd,pd->qp", queries, passages, precision=jax.lax.Precision.HIGHEST
    )
    row = offset + start + jnp.arange(size, dtype=jnp.int32)
    used = (row >= offset + chunk * size) & (row < num_valid)

    def measure(target):
      wanted, score = target  # Int32 [Q] and float32 [Q].
      column = jnp.clip(wanted - offset - start, 0, size - 1)
      own = jnp.take_along_axis(scores, column[:, None], axis=1)[:, 0]
      is_here = (row[column] == wanted) & used[column]
      beats = (scores > score[:, None]) | (
        (scores == score[:, None]) & (row < wanted[:, None])
      )
      count = jnp.sum(beats & used, axis=1, dtype=jnp.int32)
      return jnp.where(is_here, own, -jnp.inf), count

    # One target of each query at a time: a mask has the size of the scores.
    own, counts = jax.lax.map(measure, (targets.T, known.T))
    best, total = state
    return (jnp.maximum(best, own.T), total + counts.T), None

  def go_through(known, _):
    nothing = (
      jnp.full(targets.shape, -jnp.inf, jnp.float32),
      jnp.zeros(targets.shape, jnp.int32),
    )
    (found, counts), _ = jax.lax.scan(
      functools.partial(add_chunk, known),
      jax.lax.pcast(nothing, sharding.DATA, to="varying"),
      jnp.arange(num_chunks, dtype=jnp.int32),
    )
    found = jax.lax.pmax(found, sharding.DATA)
    return found, 1 + jax.lax.psum(counts, sharding.DATA)

  unknown = jnp.full(targets.shape, jnp.inf, jnp.float32)
  _, ranks = jax.lax.scan(go_through, unknown, length=2)
  return ranks[1]
