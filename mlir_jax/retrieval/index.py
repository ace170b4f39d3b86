"""An index of passages: returns ids, with ties in the order of trec_eval."""

import collections
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from mlir_jax import bars, sharding
from mlir_jax import contract as contract_lib
from mlir_jax.retrieval import (
  device_memory,
  topk,
  vector_folder,
  vector_rows,
)

if TYPE_CHECKING:
  from mlir_jax.retrieval import model as model_lib

# Bytes of a device that the passages of a piece take, at most.
PIECE_BYTES = 1 << 29

Queries = np.ndarray | Sequence[str]


class _Piece(NamedTuple):
  """Passages that are on the devices together.

  Attributes:
    ranks: int64 [n], their places among all ids, ascending.
    rows: int64 [n], their rows in the files, in this order.
  """

  ranks: np.ndarray
  rows: np.ndarray


class Index:
  """Passage embeddings, searched exactly on a mesh.

  trec_eval ranks passages of equal scores by their ids, descending. So does the
  index, also at the cut after k.

  If the devices cannot hold all passages, some stay on the disk. A search reads
  these piece by piece. While a piece is searched, the next one is read.

  Attributes:
    passage_ids: The ids in the order in which ties are ranked: descending by
      code point.
    path: The folder that was loaded, "" if there is none.
    similarity: How vectors are compared, "cosine" or "dot".
    contract: How the passages were encoded, None if it is not known.
  """

  def __init__(
    self,
    passage_ids: Sequence[str],
    embeddings: np.ndarray,
    mesh: Mesh,
    memory: int | None = None,
  ):
    """Places passages on the mesh; they are compared by inner product.

    Args:
      passage_ids: N unique ids.
      embeddings: [N, D] floats, in the order of the ids.
      mesh: Its axis "data" splits the rows.
      memory: Bytes that the passages may take on each device; None for half of
        what is free.

    Raises:
      ValueError: if the ids are not unique, there are more or fewer ids than
        embeddings, or an embedding is not finite.
    """
    if len(passage_ids) != len(embeddings):
      raise ValueError(
        f"{len(passage_ids)} passage ids for {len(embeddings)} embeddings."
      )
    self._set_up(
      passage_ids, (embeddings,), (len(embeddings),), mesh, memory=memory
    )

  @classmethod
  def load(
    cls,
    folder: "str | os.PathLike | vector_folder.VectorFolder",
    model: "model_lib.Model | None" = None,
    mesh: Mesh | None = None,
    memory: int | None = None,
  ) -> "Index":
    """Opens a folder of vectors.

    Args:
      folder: The output of `mlir_jax.encode`, or a folder of pyserini's; or
        what `vector_folder.read` returned.
      model: Encodes queries that are texts.
      mesh: The devices; None for those of the model, or for all.
      memory: As in `__init__`.

    Raises:
      ValueError: if it is no such folder, a file is damaged, or an embedding is
        not finite.
      ContractMismatchError: if the model encodes in another way than the
        passages were encoded; it names the field.
    """
    found = folder
    if not isinstance(found, vector_folder.VectorFolder):
      found = vector_folder.read(found)
    if model:
      check_model(model, found)
    if mesh is None:
      mesh = model.text_encoder.mesh if model else sharding.make_mesh()
    shards = found.manifest.get("shards")
    counts = [shard["rows"] for shard in shards] if shards else None
    index = cls.__new__(cls)
    index._set_up(
      found.ids,
      found.blocks,
      counts or [len(block) for block in found.blocks],
      mesh,
      width=found.shape[1],
      memory=memory,
      path=found.path,
      similarity=found.similarity,
      contract=found.contract,
      model=model,
    )
    return index

  def _set_up(
    self,
    ids: Sequence[str],
    blocks: Sequence[np.ndarray],
    counts: Sequence[int],
    mesh: Mesh,
    *,
    width: int | None = None,
    memory: int | None = None,
    path: str = "",
    similarity: str = "dot",
    contract: contract_lib.EncodingContract | None = None,
    model: "model_lib.Model | None" = None,
  ) -> None:
    """Sorts the ids, and places what the devices can hold."""
    self.path = path
    self.similarity = similarity
    self.contract = contract
    self._model = model
    self._mesh = mesh
    # The contract says whether the vectors have unit length.
    self._scales = similarity == "cosine" and not (
      contract and contract.normalize
    )
    names = list(ids)
    order = np.array(
      sorted(range(len(names)), key=names.__getitem__, reverse=True), np.int64
    )
    self.passage_ids = tuple(names[row] for row in order)
    for first, second in itertools.pairwise(self.passage_ids):
      if first == second:
        raise ValueError(
          f"Passage id {first!r} occurs twice; give each passage its own id."
        )
    self._vectors = vector_rows.VectorRows(
      blocks,
      counts,
      blocks[0].shape[1] if width is None else width,
      unit_length=self._scales,
      name=lambda row: f"passage {names[row]!r}",
    )
    if memory is None:
      memory = device_memory.for_passages(mesh)
    self._pieces, held = _cut(order, self._vectors.shape[1], mesh, memory)
    self._placed = [self._place(piece) for piece in self._pieces[:held]]

  def _place(self, piece: _Piece) -> jax.Array:
    return topk.place(self._vectors, self._mesh, piece.rows)

  def _go_through(self) -> Iterator[tuple[_Piece, jax.Array]]:
    """Yields each piece and its vectors on the mesh.

    The caller deletes the vectors before it asks for the next ones. So there
    are at most two pieces on the devices that do not stay there.
    """
    coming = collections.deque(self._pieces[len(self._placed) :])
    with futures.ThreadPoolExecutor(1, "read") as pool:

      def start():
        if not coming:
          return None
        piece = coming.popleft()
        return piece, pool.submit(self._place, piece)

      following = start()
      yield from zip(self._pieces, self._placed, strict=False)
      while following:
        piece, future = following
        placed = future.result()
        del future  # It holds the vectors, too.
        following = start()
        yield piece, placed
        del placed

  @property
  def held(self) -> float:
    """The share of the passages that stay on the devices."""
    rows = sum(len(piece.rows) for piece in self._pieces[: len(self._placed)])
    return rows / len(self.passage_ids)

  def search(
    self, queries: Queries, k: int, *, description: str = "Searching"
  ) -> tuple[np.ndarray, list[list[str]]]:
    """Returns the k best passages of each query.

    Args:
      queries: [Q, D] floats, the embeddings of the queries; or their texts, if
        the index was loaded with a model.
      k: The number of results; all N passages if there are fewer.
      description: The text of the progress bar of a long search.

    Returns:
      scores: [Q, min(k, N)] float32, descending.
      ids: For each query, the ids of the passages in this order; ids with equal
        scores are descending.

    Raises:
      ValueError: if queries and passages have different widths, an embedding
        or a score is not finite, or texts are given without a model.
    """
    scores, ranks = self.search_ranks(
      self._encode(queries), k, description=description
    )
    return scores, [[self.passage_ids[rank] for rank in best] for best in ranks]

  def _encode(self, queries: Queries) -> np.ndarray:
    """Returns the embeddings of queries."""
    if isinstance(queries, np.ndarray) and queries.dtype.kind in "fiu":
      return queries
    if self._model is None:
      raise ValueError(
        "The queries are not an array of numbers. To search with texts, load"
        " the index with a model: Index.load(folder, model=mlir_jax.load(…))."
      )
    return self._model.encode(queries, "query")

  def search_ranks(
    self, queries: np.ndarray, k: int, *, description: str = "Searching"
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k best passages of each query, as places in `passage_ids`.

    Args:
      queries: [Q, D] floats.
      k: As in `search`.
      description: As in `search`.

    Returns:
      scores: As in `search`.
      ranks: [Q, min(k, N)] int64.

    Raises:
      ValueError: as in `search`, and if k is not positive.
    """
    total, width = self._vectors.shape
    if queries.ndim != 2 or queries.shape[1] != width:
      raise ValueError(
        f"Queries of shape {queries.shape} do not fit passages of shape"
        f" {self._vectors.shape}; encode both with the same model."
      )
    if bad := np.flatnonzero(~np.isfinite(queries).all(axis=1)).tolist():
      raise ValueError(
        f"The embeddings of {len(bad)} of {len(queries)} queries are not"
        f" finite, first of all query number {bad[0] + 1}; the model's"
        " parameters are broken."
      )
    if self._scales:
      queries = vector_rows.unit_length(queries)
    k = min(k, total)
    best = _Found.nothing(len(queries), k)
    with bars.bar(
      None,
      description,
      unit="score",
      unit_scale=True,
      delay=2,
      total=len(queries) * total,
      leave=False,
    ) as progress:
      for piece, placed in self._go_through():
        size = len(piece.rows)
        scores, places = topk.search(
          queries,
          placed,
          min(k, size),
          mesh=self._mesh,
          num_valid=size,
          floor=best.floor(),
          moved=lambda count, size=size: progress.update(count * size),
        )
        del placed
        best = best.merged(_Found(scores, _ranks(piece, places, total)))
    if not np.isfinite(best.scores).all():
      raise ValueError(
        "Some scores overflow float32: the embeddings are too large."
      )
    return best


def _cut(
  order: np.ndarray, width: int, mesh: Mesh, memory: int
) -> tuple[list[_Piece], int]:
  """Cuts passages into pieces.

  Args:
    order: int64 [N], the rows in the order of their ranks.
    width: D.
    mesh: The mesh.
    memory: Bytes that the passages may take on each device.

  Returns:
    The pieces, and how many of them stay on the devices. If all passages fit,
    they are one piece. Otherwise a piece has consecutive rows of the files, and
    two pieces of the memory are for those that come and go.

  Raises:
    ValueError: if a device cannot hold three pieces of the smallest size.
  """
  devices = mesh.shape[sharding.DATA]
  unit = topk.BLOCK * 4 * width  # Bytes of the rows that a device has at least.
  count = len(order)
  if -(-count // (topk.BLOCK * devices)) * unit <= memory:
    return [_Piece(np.arange(count), order)], 1
  units = min(memory // 4, PIECE_BYTES) // unit
  if units < 1:
    raise ValueError(
      f"{memory:,} bytes of memory for the passages on each device are not"
      f" enough; give at least {4 * unit:,}."
    )
  size = units * topk.BLOCK * devices
  ranks = np.empty_like(order)
  ranks[order] = np.arange(count)
  pieces = []
  for first in range(0, count, size):
    of_piece = np.sort(ranks[first : first + size])
    pieces.append(_Piece(of_piece, order[of_piece]))
  return pieces, memory // (units * unit) - 2


def _ranks(piece: _Piece, places: np.ndarray, none: int) -> np.ndarray:
  """Returns the ranks of places in a piece; `none` for the place -1."""
  return np.where(places < 0, none, piece.ranks[places])


class _Found(NamedTuple):
  """The best passages so far, by score and then by rank.

  Attributes:
    scores: float32 [Q, k], descending; -inf where there is no passage.
    ranks: int64 [Q, k].
  """

  scores: np.ndarray
  ranks: np.ndarray

  @classmethod
  def nothing(cls, queries: int, k: int) -> "_Found":
    """Returns the start: no passages."""
    return cls(
      np.full((queries, k), -np.inf, np.float32),
      np.full((queries, k), np.iinfo(np.int64).max),
    )

  def floor(self) -> np.ndarray:
    """Returns scores [Q] below which passages are not needed.

    A passage with the score of the k-th best one is still needed, because its
    rank may be lower.
    """
    last = self.scores[:, -1]
    return last - np.maximum(np.abs(last) * np.float32(1e-6), np.float32(1e-30))

  def merged(self, other: "_Found") -> "_Found":
    """Returns the k best of both."""
    k = self.scores.shape[1]
    if np.isneginf(self.scores).all() and other.scores.shape[1] == k:
      return other
    scores, ranks = (
      np.concatenate(pair, axis=1) for pair in zip(self, other, strict=True)
    )
    best = np.lexsort((ranks, -scores))[:, :k]
    return _Found(
      np.take_along_axis(scores, best, axis=1),
      np.take_along_axis(ranks, best, axis=1),
    )


def check_model(
  model: "model_lib.Model", passages: vector_folder.VectorFolder
) -> None:
  """Refuses a model that encodes in another way than passages were encoded.

  Raises:
    ContractMismatchError: naming the field.
    ValueError: if the vectors have another width.
  """
  if passages.contract:
    contract_lib.check_role(
      model.contract, passages.contract, passages.role, passages.path
    )
    if (
      model.similarity_fn_name != passages.similarity
      and not model.contract.normalize
    ):
      raise contract_lib.ContractMismatchError(
        f"The similarity differs from that of {passages.path}:"
        f" {model.similarity_fn_name!r} here, {passages.similarity!r} there."
      )
  width = model.width
  if width != passages.shape[1]:
    raise ValueError(
      f"{model.path} makes vectors of {width} numbers, but those of"
      f" {passages.path} have {passages.shape[1]}: encode both with the same"
      " model."
    )
