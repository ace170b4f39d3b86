"""Exact top-k search over passages sharded over the mesh.

All ranking uses this search. Scores are float32 inner products. Of equal
scores, the lower row comes first: within a device, between devices, and at the
cut after k.

A device scores its rows tile by tile. Few rows of a later tile can be among the
k best: those whose score is above the k-th best score so far. Only they are
collected, and they are sorted when many of them wait.

Rows are float32, or codes of 8 bits (see `codes`). The scores of codes are
float32, too.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlir_jax import bars, sharding

BLOCK = 128  # The rows of a device are padded to a multiple of it.
CHUNK = 131072  # Rows that are read at once when passages are placed.
QUERY_BATCH = 1024  # Queries that are searched at once, at most.
_RESULTS = 1 << 24  # Results that are searched at once, of all queries.


class Tiling(NamedTuple):
  """How a device cuts its work into pieces.

  Attributes:
    scores: Scores of a tile: queries times rows. It bounds the memory.
    block: Rows whose hits are counted together, at least; a power of two up to
      `BLOCK`.
    portion: Hits of a query that are added at once, at least; no fewer than
      rows of a block.
    has_int8: Whether products of 8-bit numbers are fast.
  """

  scores: int
  block: int
  portion: int
  has_int8: bool = False


# If a query has more hits than so many portions, the best rows of the tile are
# found together.
_PORTIONS = 8

# On a CPU, XLA copies the rows of a tile unless it has all rows of a device.
# Other devices have less memory, and vectors of 128 lanes.
_CPU = Tiling(1 << 27, 16, 64)
_ACCELERATOR = Tiling(1 << 25, 128, 128, has_int8=True)
# Without fast products of 8-bit numbers, the codes of a tile become float32, so
# many numbers at once.
_CONVERTED = 1 << 25
# So few queries are multiplied by the codes as whole numbers, in so many
# dimensions at once.
_FEW = 2
DIMENSIONS = 16


def tiling_of(mesh: Mesh) -> Tiling:
  """Returns the tiling for the devices of a mesh."""
  is_cpu = mesh.devices.flat[0].platform == "cpu"
  return _CPU if is_cpu else _ACCELERATOR


class Rows(Protocol):
  """Vectors that can be indexed: a NumPy array, or several files as one."""

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape [N, D]."""
    ...

  def __getitem__(self, rows, /) -> np.ndarray:
    """Returns the rows of a slice, or those of an array of numbers."""
    ...


class Codes(NamedTuple):
  """Passages as codes of 8 bits, from `codes.place`.

  A query is int16. The score of a passage is its scale times the product of
  both codes.

  Attributes:
    codes: int8 [D', N'], split over "data": a column for each passage. D' is a
      multiple of `DIMENSIONS`; zeros fill it.
    scales: float32 [N'].
  """

  codes: jax.Array
  scales: jax.Array


Passages = jax.Array | Codes  # [N', D], split over "data".


def _count(passages: Passages) -> int:
  """Returns N'."""
  return len(passages.scales if isinstance(passages, Codes) else passages)


def _axes(passages: Passages) -> Any:
  """Returns which axes of the arrays have the passages."""
  return Codes(1, 0) if isinstance(passages, Codes) else 0  # pyright: ignore[reportArgumentType]


def place_shards(
  count: int,
  mesh: Mesh,
  make: Callable[[int, int], Any],
  axes: Any = 0,
) -> Any:
  """Puts arrays on the mesh, each device's rows after those of another one.

  Args:
    count: The number N of rows.
    mesh: Has the axis "data".
    make: Returns a tree of arrays: the rows from `start` to `stop`. Rows from N
      on are padding.
    axes: The same tree of numbers: which axis of an array has the rows.

  Returns:
    The tree of arrays, split over "data". They have N' rows, a multiple of
    `BLOCK` times the size of the axis "data".
  """
  unit = BLOCK * mesh.shape[sharding.DATA]
  total = -(-count // unit) * unit
  over_data = sharding.over_data(mesh)
  # make_array_from_callback would make all shards before it places the first.
  # Each device of a mesh has an index, though JAX's type allows None.
  shards = [
    jax.device_put(make(*index[0].indices(total)[:2]), device)  # pyright: ignore[reportOptionalSubscript]
    for device, index in over_data.addressable_devices_indices_map(
      (total,)
    ).items()
  ]

  def join(axis: int, *parts: jax.Array) -> jax.Array:
    shape = list(parts[0].shape)
    shape[axis] = total
    spec = PartitionSpec(*[None] * axis, sharding.DATA)
    return jax.make_array_from_single_device_arrays(
      tuple(shape), NamedSharding(mesh, spec), list(parts)
    )

  return jax.tree.map(join, axes, *shards)


def place(
  passages: Rows, mesh: Mesh, order: np.ndarray | None = None
) -> jax.Array:
  """Puts passage embeddings on the mesh, padded so that they divide evenly.

  Every process passes the same array. It may be memory-mapped: a process reads
  only the rows of its own devices, one device after the other.

  Args:
    passages: [N, D] floats.
    mesh: Has the axis "data".
    order: int [n], the rows in the order in which they are placed; None for all
      rows in the order of `passages`.

  Returns:
    [N', D] float32, split over "data": the rows, then N' - N rows of zeros. N'
    is a multiple of `BLOCK` times the size of the axis.

  Raises:
    ValueError: if there are no passages.
  """
  if len(passages.shape) != 2 or 0 in passages.shape:
    raise ValueError(
      "Passage embeddings must be a non-empty [N, D] array, not one of"
      f" shape {passages.shape}."
    )
  count = passages.shape[0] if order is None else len(order)

  def shard(start: int, stop: int) -> np.ndarray:
    rows = np.zeros((stop - start, passages.shape[1]), np.float32)
    stop = min(stop, count)
    for first in range(start, stop, CHUNK):  # Indexing by `order` copies.
      last = min(first + CHUNK, stop)
      rows[first - start : last - start] = passages[
        slice(first, last) if order is None else order[first:last]
      ]
    return rows

  return place_shards(count, mesh, shard)


def _scores_of(
  queries: jax.Array, passages: Passages, tiling: Tiling
) -> jax.Array:
  """Returns float32 [Q, M], the scores of all queries and passages."""
  if not isinstance(passages, Codes):
    return jnp.einsum(
      "qd,pd->qp", queries, passages, precision=jax.lax.Precision.HIGHEST
    )
  codes, scales = passages
  if tiling.has_int8:
    high = (queries + 64) >> 7
    parts = jnp.concatenate([high, queries - 128 * high]).astype(jnp.int8)
    sums = jnp.einsum(
      "qd,dp->qp", parts, codes, preferred_element_type=jnp.int32
    )
    high, low = jnp.split(sums.astype(jnp.float32), 2)
    return (128 * high + low) * scales
  if len(queries) <= _FEW:
    return _sums_of_few(queries, codes).astype(jnp.float32) * scales
  return jnp.einsum(
    "qd,dp->qp",
    queries.astype(jnp.float32),
    codes.astype(jnp.float32) * scales,
    precision=jax.lax.Precision.HIGHEST,
  )


def _sums_of_few(queries: jax.Array, codes: jax.Array) -> jax.Array:
  """Returns int32 [Q, M], the products of codes, on a CPU.

  XLA has no fast product of whole numbers there. But it adds arrays fast, some
  of them in one loop.
  """

  def add(number, sums):
    start = number * DIMENSIONS
    of_queries, of_passages = (
      jax.lax.dynamic_slice_in_dim(each, start, DIMENSIONS).astype(jnp.int32)
      for each in (queries.T, codes)
    )
    for query, passages in zip(of_queries, of_passages, strict=True):
      sums += query[:, None] * passages
    return sums

  return jax.lax.fori_loop(
    0,
    len(codes) // DIMENSIONS,
    add,
    # It varies over the devices, as the codes do.
    jnp.zeros((len(queries), 1), jnp.int32) * codes[:1].astype(jnp.int32),
  )


def _top_k_of_tile(tile: "_Tile", k: int, block: int):
  """Returns the k best of a tile; it reads most scores only once.

  Rank blocks of consecutive columns by their maxima, where the earlier block
  wins a tie. Then the k best columns are in the k best blocks. Proof: take a
  column in another block. Each of the k best blocks has a column that beats it,
  by a higher score, or by an equal score further left.

  Args:
    tile: The tile, of M columns; M is a multiple of `BLOCK`.
    k: The number of results.
    block: The smallest size of a block.

  Returns:
    float32 and int32 [Q, min(k, M)]: scores and rows.
  """
  count, size = tile.scores.shape
  columns = jnp.arange(size, dtype=jnp.int32)
  # Few maxima and few columns of the k best blocks: M / block + k * block.
  while block < BLOCK and 2 * block * block * k < size:
    block *= 2
  if size // block <= k:
    scores = _comparable(tile.scores, tile.counts(columns))
    best, places = jax.lax.top_k(scores, min(k, size))
    return best, tile.start + places
  blocks = tile.scores.reshape(count, -1, block)
  counts = tile.counts(columns).reshape(-1, block)
  maxima = jnp.where(counts, blocks, -jnp.inf).max(axis=-1)
  _, winners = jax.lax.top_k(
    _comparable(maxima, jnp.ones_like(maxima, bool)), k
  )
  winners = jnp.sort(winners, axis=-1)  # Columns in order: ties go left.
  scores = jnp.take_along_axis(blocks, winners[:, :, None], axis=1)
  places = winners[:, :, None] * block + jnp.arange(block, dtype=jnp.int32)
  return _best_of(
    _comparable(scores, tile.counts(places)).reshape(count, -1),
    (tile.start + places).reshape(count, -1),
    k,
  )


def _best_of(scores: jax.Array, indices: jax.Array, k: int):
  """Returns the k best of [Q, M] candidates; equals keep their order."""
  scores, places = jax.lax.top_k(scores, k)
  return scores, jnp.take_along_axis(indices, places, axis=1)


class _Kept(NamedTuple):
  """The candidates of one device, while it goes through its tiles.

  The first k columns are the best ones, sorted. Candidates that wait follow, in
  the order of their tiles. So of equal scores, the lower row is further left.
  Free columns have the score -inf and the row -1.

  Attributes:
    scores: float32 [Q, k + room].
    rows: int32 [Q, k + room].
    waiting: int32, the columns after the first k that are in use.
    floor: float32 [Q]. A row of a later tile is a hit if its score is higher.
  """

  scores: jax.Array
  rows: jax.Array
  waiting: jax.Array
  floor: jax.Array

  def add(self, k: int, scores: jax.Array, rows: jax.Array) -> "_Kept":
    """Lets [Q, m] more candidates wait; there must be room for them."""
    at = (jnp.zeros_like(self.waiting), k + self.waiting)
    return self._replace(
      scores=jax.lax.dynamic_update_slice(self.scores, scores, at),
      rows=jax.lax.dynamic_update_slice(self.rows, rows, at),
      waiting=self.waiting + scores.shape[1],
    )


def _sorted(kept: _Kept, k: int) -> _Kept:
  """Sorts the candidates, keeps the k best and raises the floor.

  A later row with the score of the k-th best row is not among the k best,
  because k lower rows have this score or a higher one.
  """
  best, rows = _best_of(kept.scores, kept.rows, k)
  return _Kept(
    jnp.full_like(kept.scores, -jnp.inf).at[:, :k].set(best),
    kept.rows.at[:, :k].set(rows),
    jnp.zeros_like(kept.waiting),
    jnp.maximum(kept.floor, best[:, -1]),
  )


def _with_room(kept: _Kept, k: int, columns: int) -> _Kept:
  """Sorts the candidates if there is no room for more columns of them."""
  # A loop is a condition here: XLA changes its state in place.
  return jax.lax.while_loop(
    lambda kept: kept.waiting + columns > kept.scores.shape[1] - k,
    lambda kept: _sorted(kept, k),
    kept,
  )


class _Tile(NamedTuple):
  """The scores of consecutive rows of one device.

  Attributes:
    scores: float32 [Q, M].
    start: The row of the first column.
    first: The first row that counts: others were in the tile before.
    stop: The row after the last one that counts: padding follows.
  """

  scores: jax.Array
  start: jax.Array
  first: jax.Array
  stop: jax.Array

  def counts(self, columns: jax.Array) -> jax.Array:
    """Says which of some columns count."""
    rows = self.start + columns
    return (rows >= self.first) & (rows < self.stop)


def _comparable(scores: jax.Array, counts: jax.Array) -> jax.Array:
  """Returns scores as `lax.top_k` should rank them.

  `lax.top_k` ranks 0.0 before -0.0, but they are equal scores. A NaN is the
  difference of two scores that overflow: it becomes inf, and is seen.

  Args:
    scores: float32.
    counts: Which of them count; the others become -inf.
  """
  scores = jnp.where(scores == 0, 0.0, scores)
  scores = jnp.where(jnp.isnan(scores), jnp.inf, scores)
  return jnp.where(counts, scores, -jnp.inf)


def _collect(kept: _Kept, tile: _Tile, k: int, least: int, portion: int):
  """Adds the hits of a tile to the candidates.

  Args:
    kept: The candidates; there is room for k of them behind the first k, and
      for a portion.
    tile: The tile.
    k: The number of results.
    least: Columns whose hits are counted together, at least.
    portion: Hits of each query that are added at once; at least `least`.
  """
  count, size = tile.scores.shape
  block = least
  # Few blocks, and few columns in those of a portion.
  while 2 * block <= min(BLOCK, portion) and 4 * block**2 * portion <= size:
    block *= 2
  blocks = tile.scores.reshape(count, -1, block)
  floor = kept.floor[:, None, None]
  columns = jnp.arange(size, dtype=jnp.int32)
  hits = ~(blocks <= floor) & tile.counts(columns).reshape(-1, block)
  hits = hits.sum(axis=-1, dtype=jnp.int32)  # [Q, B].
  numbers = jnp.arange(hits.shape[1], dtype=jnp.int32)
  most = hits.sum(axis=1).max()

  def add_best(state):
    """Adds the best rows of the tile, whether or not they are hits."""
    return _add_best(state[0], tile, k, least), jnp.zeros_like(most)

  # In the first tile, almost all rows are hits.
  kept, most = jax.lax.while_loop(
    lambda state: state[1] > _PORTIONS * portion, add_best, (kept, most)
  )

  def left(done):
    return (hits > 0) & (numbers > done[:, None])

  def add_portion(state):
    kept, done, _ = state
    kept = _with_room(kept, k, portion)
    # Blocks with hits come first, in their order. Of these, as many as have no
    # more than a portion of hits together.
    has_hits, chosen = jax.lax.top_k(
      left(done).astype(jnp.float32), min(portion, hits.shape[1])
    )
    here = jnp.take_along_axis(hits, chosen, axis=1)
    taken = (has_hits > 0) & (jnp.cumsum(here, axis=1) <= portion)
    scores = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1)
    places = chosen[:, :, None] * block + jnp.arange(block, dtype=jnp.int32)
    is_hit = ~(scores <= floor) & tile.counts(places) & taken[:, :, None]
    best, rows = _best_of(
      _comparable(scores, is_hit).reshape(count, -1),
      (tile.start + places).reshape(count, -1),
      portion,
    )
    done = jnp.where(taken, chosen, done[:, None]).max(axis=1)
    return kept.add(k, best, rows), done, left(done).any()

  done = jnp.full_like(kept.rows[:, 0], -1)
  kept, _, _ = jax.lax.while_loop(
    lambda state: state[2], add_portion, (kept, done, most > 0)
  )
  # The floor is raised for the next tile.
  return jax.lax.while_loop(
    lambda kept: kept.waiting > 0, lambda kept: _sorted(kept, k), kept
  )


def _add_best(kept: _Kept, tile: _Tile, k: int, least: int) -> _Kept:
  """Adds the best rows of a tile, whether or not they are hits."""
  best, rows = _top_k_of_tile(tile, k, least)
  return _with_room(kept, k, best.shape[1]).add(k, best, rows)


def _shard_top_k(
  queries: jax.Array,
  shard: Passages,
  floor: jax.Array,
  *,
  k: int,
  num_valid: int,
  tiling: Tiling,
):
  """Returns the best rows of one device: [Q, k] scores and global indices."""
  rows, count = _count(shard), len(queries)
  most = tiling.scores // count  # Rows of a tile.
  if isinstance(shard, Codes) and not tiling.has_int8 and count > _FEW:
    most = min(most, _CONVERTED // len(shard.codes))
  most = max(1, most // BLOCK)  # Blocks of a tile.
  num_tiles = -(-rows // (BLOCK * most))
  size = BLOCK * -(-rows // (BLOCK * num_tiles))
  offset = jax.lax.axis_index(sharding.DATA) * rows
  # The more rows are kept, the more hits a tile has.
  portion = min(size, tiling.portion * -(-k // (8 * tiling.portion)))
  columns = k + max(k, 4 * portion)

  def add(kept: _Kept, number):
    # The last tile is moved back to end with the shard. It may then overlap
    # with the tile before: those rows are skipped.
    start = jnp.minimum(number * size, rows - size)
    passages = shard
    if num_tiles > 1:
      passages = jax.tree.map(
        lambda each, axis: jax.lax.dynamic_slice_in_dim(
          each, start, size, axis
        ),
        shard,
        _axes(shard),
      )
    scores = _scores_of(queries, passages, tiling)
    stop = jnp.minimum(num_valid, offset + rows)
    tile = _Tile(scores, offset + start, offset + number * size, stop)
    if num_tiles == 1:
      return _add_best(kept, tile, k, tiling.block), None
    return _collect(kept, tile, k, tiling.block, portion), None

  nothing = _Kept(
    jnp.full((count, columns), -jnp.inf, jnp.float32),
    jnp.full((count, columns), -1, jnp.int32),
    jnp.zeros((), jnp.int32),
    floor,
  )
  kept, _ = jax.lax.scan(
    add,
    jax.lax.pcast(nothing, sharding.DATA, to="varying"),
    jnp.arange(num_tiles, dtype=jnp.int32),
  )
  scores, indices = _best_of(kept.scores, kept.rows, k)
  return scores, jnp.where(scores == -jnp.inf, -1, indices)


@functools.partial(
  jax.jit, static_argnames=("k", "mesh", "num_valid", "tiling")
)
def top_k(
  queries: jax.Array,
  passages: Passages,
  floor: jax.Array,
  *,
  k: int,
  mesh: Mesh,
  num_valid: int,
  tiling: Tiling,
) -> tuple[jax.Array, jax.Array]:
  """Returns the k passages with the highest inner products, exactly.

  Each device scores its own rows, a tile at a time, and sends its k best. The
  result is the k best of these.

  Args:
    queries: [Q, D] float32, replicated; int16 for codes.
    passages: [N', D] float32, as `place` returns them, or codes. All scores
      must be finite.
    floor: [Q] float32, replicated. Passages with this score or a lower one may
      be missing from the result; -inf to find all.
    k: The number of results; it may exceed the number of passages.
    mesh: The mesh of the passages.
    num_valid: N, the number of passages before the padding.
    tiling: From `tiling_of`.

  Returns:
    scores: [Q, k] float32, replicated, descending; -inf after the last passage.
    indices: [Q, k] int32 rows of `passages`, replicated; of equal scores, the
      lower row is first; -1 after the last passage.

  Raises:
    ValueError: if k is not positive, or `place` did not pad the passages.
  """
  if k < 1:
    raise ValueError(f"k is {k}; it must be at least 1.")
  rows = _count(passages)
  if rows % (BLOCK * mesh.shape[sharding.DATA]):
    raise ValueError(
      f"The number of rows, {rows}, is not a multiple of {BLOCK} for each"
      f" of {mesh.shape[sharding.DATA]} devices; pad them with place()."
    )
  everywhere = sharding.replicate(mesh)
  of_passages = jax.tree.map(
    lambda axis: PartitionSpec(*[None] * axis, sharding.DATA), _axes(passages)
  )
  candidates = jax.shard_map(
    functools.partial(_shard_top_k, k=k, num_valid=num_valid, tiling=tiling),
    mesh=mesh,
    in_specs=(PartitionSpec(), of_passages, PartitionSpec()),
    out_specs=PartitionSpec(None, sharding.DATA),
  )(queries, passages, floor)
  # One all-gather brings k candidates per device, in the order of their rows.
  return everywhere(_best_of(*everywhere(candidates), k=k))


def search(
  queries: np.ndarray,
  passages: Passages,
  k: int,
  *,
  mesh: Mesh,
  num_valid: int,
  floor: np.ndarray | None = None,
  description: str = "Searching",
  moved: Callable[[int], object] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Calls `top_k` for any number of queries, in batches of one compiled size.

  Args:
    queries: [Q, D] floats, the same in every process; int16 [Q, D'] for codes.
    passages: As in `top_k`.
    k: As in `top_k`.
    mesh: As in `top_k`.
    num_valid: As in `top_k`.
    floor: As in `top_k`; None for -inf.
    description: The text of the progress bar of a long search.
    moved: Receives the number of queries after each batch, in place of a bar.

  Returns:
    scores: [Q, k] float32, as in `top_k`.
    indices: [Q, k] int32, as in `top_k`.
  """
  size = min(QUERY_BATCH, max(1, _RESULTS // max(k, 1)), len(queries))
  dtype = np.int16 if isinstance(passages, Codes) else np.float32
  scores = np.empty((len(queries), k), np.float32)
  indices = np.empty((len(queries), k), np.int32)
  replicated = sharding.replicated(mesh)

  def put(array: np.ndarray) -> jax.Array:
    return jax.make_array_from_callback(
      array.shape, replicated, array.__getitem__
    )

  with bars.bar(
    None,
    description,
    unit="query",
    delay=2,
    total=len(queries),
    leave=False,
    disable=moved is not None,
  ) as progress:
    for start in range(0, len(queries), size or 1):
      real = queries[start : start + size]
      stop = start + len(real)
      batch = np.zeros((size, queries.shape[1]), dtype)
      batch[: len(real)] = real
      floors = np.full(size, -np.inf, np.float32)
      if floor is not None:
        floors[: len(real)] = floor[start:stop]
      found = top_k(
        put(batch),
        passages,
        put(floors),
        k=k,
        mesh=mesh,
        num_valid=num_valid,
        tiling=tiling_of(mesh),
      )
      scores[start:stop], indices[start:stop] = (
        rows[: len(real)] for rows in jax.device_get(found)
      )
      (moved or progress.update)(len(real))
  return scores, indices
