"""An index of passages: returns ids, with ties in the order of trec_eval."""

import itertools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mlir_jax import bars, sharding
from mlir_jax import contract as contract_lib
from mlir_jax.retrieval import (
  codes,
  device_memory,
  pieces,
  topk,
  vector_folder,
  vector_rows,
)

if TYPE_CHECKING:
  from mlir_jax.retrieval import model as model_lib

FLOAT32, INT8 = "float32", "int8"
PRECISIONS = (FLOAT32, INT8)

# A search of codes looks at so many times k passages, and some more. Queries
# for which that is too few get the next number, and after the last one they are
# searched in float32.
_ROUNDS = (2, 16)
_MORE = 32

Queries = np.ndarray | Sequence[str]


class Index:
  """Passage embeddings, searched exactly on a mesh.

  trec_eval ranks passages of equal scores by their ids, descending. So does the
  index, also at the cut after k.

  If the devices cannot hold all passages, some stay on the disk; see `pieces`.

  With the precision "int8" the devices hold codes of 8 bits (see `codes`), a
  quarter of the memory. A search finds candidates by their codes and computes
  their scores from the vectors, which stay where they are. The results are
  exact: a bound proves that no other passage is among the k best. Queries
  without this proof are searched in float32, which reads all vectors.

  Attributes:
    passage_ids: The ids in the order in which ties are ranked: descending by
      code point.
    path: The folder that was loaded, "" if there is none.
    similarity: How vectors are compared, "cosine" or "dot".
    contract: How the passages were encoded, None if it is not known.
    precision: "float32" or "int8".
    unproved: How many queries of codes were searched in float32 so far.
  """

  def __init__(
    self,
    passage_ids: Sequence[str],
    embeddings: np.ndarray,
    mesh: Mesh,
    memory: int | None = None,
    precision: str = FLOAT32,
  ):
    """Places passages on the mesh; they are compared by inner product.

    Args:
      passage_ids: N unique ids.
      embeddings: [N, D] floats, in the order of the ids.
      mesh: Its axis "data" splits the rows.
      memory: Bytes that the passages may take on each device; None for half of
        what is free.
      precision: One of `PRECISIONS`: what is on the devices.

    Raises:
      ValueError: if the ids are not unique, there are more or fewer ids than
        embeddings, an embedding is not finite, or the precision is unknown.
    """
    if len(passage_ids) != len(embeddings):
      raise ValueError(
        f"{len(passage_ids)} passage ids for {len(embeddings)} embeddings."
      )
    self._set_up(
      passage_ids,
      (embeddings,),
      (len(embeddings),),
      mesh,
      memory=memory,
      precision=precision,
    )

  @classmethod
  def load(
    cls,
    folder: "str | os.PathLike | vector_folder.VectorFolder",
    model: "model_lib.Model | None" = None,
    mesh: Mesh | None = None,
    memory: int | None = None,
    precision: str = FLOAT32,
  ) -> "Index":
    """Opens a folder of vectors.

    Args:
      folder: The output of `mlir_jax.encode`, or a folder of pyserini's; or
        what `vector_folder.read` returned.
      model: Encodes queries that are texts.
      mesh: The devices; None for those of the model, or for all.
      memory: As in `__init__`.
      precision: As in `__init__`.

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
      precision=precision,
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
    precision: str = FLOAT32,
    path: str = "",
    similarity: str = "dot",
    contract: contract_lib.EncodingContract | None = None,
    model: "model_lib.Model | None" = None,
  ) -> None:
    """Sorts the ids, and places what the devices can hold."""
    if precision not in PRECISIONS:
      raise ValueError(
        f"precision is {precision!r}; give one of {', '.join(PRECISIONS)}."
      )
    self.precision = precision
    self.unproved = 0
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
    self._place(order, memory)

  def _place(self, order: np.ndarray, memory: int) -> None:
    """Places the vectors or their codes in this order, as far as they fit."""
    mesh, width = self._mesh, self._vectors.shape[1]

    def place(rows: np.ndarray) -> topk.Passages:
      return topk.place(self._vectors, mesh, rows)

    if self.precision == FLOAT32:
      self._plain = pieces.Pieces(order, place, 4 * width, mesh, memory)
      self._held = self._plain.held
      return
    # A quarter is for queries without a proof.
    self._plain = pieces.Pieces(
      order, place, 4 * width, mesh, memory // 4, stay=False
    )
    self._center = codes.center_of(self._vectors)
    self._coded = pieces.Pieces(
      order,
      lambda rows: codes.place(self._vectors, mesh, rows, self._center),
      codes.row_bytes(width),
      mesh,
      memory - memory // 4,
    )
    self._held = self._coded.held

  @property
  def held(self) -> float:
    """The share of the passages that stay on the devices."""
    return self._held

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
    with bars.bar(
      None,
      description,
      unit="score",
      unit_scale=True,
      delay=2,
      total=len(queries) * total,
      leave=False,
    ) as progress:
      if self.precision == INT8:
        best = self._search_codes(queries, k, progress.update)
      else:
        best = self._search_vectors(queries, k, progress.update)
    if not np.isfinite(best.scores).all():
      raise ValueError(
        "Some scores overflow float32: the embeddings are too large."
      )
    return best

  def _search_vectors(
    self,
    queries: np.ndarray,
    k: int,
    moved: Callable[[int], object],
  ) -> "_Found":
    """Returns the k best passages; `moved` receives numbers of scores."""
    best = _Found.nothing(len(queries), k)
    for piece, placed in self._plain.go_through():
      size = len(piece.rows)
      scores, places = topk.search(
        queries,
        placed,
        min(k, size),
        mesh=self._mesh,
        num_valid=size,
        floor=best.floor(),
        moved=lambda count, size=size: moved(count * size),
      )
      del placed
      found = _Found(scores, piece.ranks_of(places, len(self.passage_ids)))
      is_first = size >= k and np.isneginf(best.scores).all()
      best = found if is_first else best.merged(found)
    return best

  def _search_codes(
    self,
    queries: np.ndarray,
    k: int,
    moved: Callable[[int], object],
  ) -> "_Found":
    """Returns the k best passages; see `_search_vectors`."""
    best = _Found.nothing(len(queries), k)
    left = np.arange(len(queries))
    for times in _ROUNDS:
      some = _rounded_up(left)  # There is a compilation for each number.
      found, missing = self._search_candidates(
        queries[some], k, times * k + _MORE, moved
      )
      best.put(some, found)
      proved = missing < found.floor()
      if self._mesh.is_multi_process:  # Their last bits may differ.
        proved = multihost_utils.broadcast_one_to_all(proved)
      left = left[~proved[: len(left)]]
      if not len(left):
        return best
      moved = _ignore
    self.unproved += len(left)
    some = _rounded_up(left)
    best.put(some, self._search_vectors(queries[some], k, moved))
    return best

  def _search_candidates(
    self,
    queries: np.ndarray,
    k: int,
    most: int,
    moved: Callable[[int], object],
  ) -> tuple["_Found", np.ndarray]:
    """Returns the k best passages of candidates, by their exact scores.

    Args:
      queries: As in `_search_vectors`, like `k` and `moved`.
      k: The number of results.
      most: The number of candidates.
      moved: Receives numbers of scores.

    Returns:
      The passages; and float64 [Q], scores that no other passage exceeds.
    """
    best = _Found.nothing(len(queries), k)
    coded = codes.encode_queries(queries, self._center)
    missing = np.full(len(queries), -np.inf)
    for piece, placed in self._coded.go_through():
      size = len(piece.rows)
      bounds = coded.bounds(placed)
      sums, places = topk.search(
        coded.codes,
        placed.passages,
        min(most, size),
        mesh=self._mesh,
        num_valid=size,
        floor=coded.sums(best.floor() - bounds),
        moved=lambda count, size=size: moved(count * size),
      )
      del placed
      exact = codes.exact_scores(
        queries, self._vectors, np.where(places < 0, -1, piece.rows[places])
      )
      ranks = piece.ranks_of(places, len(self.passage_ids))
      best = best.merged(_Found(exact, ranks))
      if most < size:
        # Without a last candidate, all passages above the floor are there.
        last = sums[:, -1].astype(np.float64)
        missing = np.maximum(
          missing,
          np.where(np.isneginf(last), last, coded.scores(last) + bounds),
        )
    return best, missing


def _rounded_up(rows: np.ndarray) -> np.ndarray:
  """Repeats the last row, until their number is a power of two."""
  size = 1 << (len(rows) - 1).bit_length()
  return np.pad(rows, (0, size - len(rows)), mode="edge")


def _ignore(count: int) -> None:
  """Receives the progress of what is no progress for the user."""
  del count


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
    least = np.maximum(np.abs(last) * np.float32(1e-6), np.float32(1e-30))
    with np.errstate(invalid="ignore"):  # A score may be infinite.
      return last - least

  def put(self, queries: np.ndarray, found: "_Found") -> None:
    """Takes the passages of some queries in place of those before."""
    self.scores[queries], self.ranks[queries] = found

  def merged(self, other: "_Found") -> "_Found":
    """Returns the k best of both; the others may be in any order."""
    k = self.scores.shape[1]
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
