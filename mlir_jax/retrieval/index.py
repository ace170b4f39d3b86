"""Passages that can be searched: ids out, ties in the order of trec_eval."""

import itertools
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from mlir_jax.retrieval import topk


def _not_finite(embeddings: np.ndarray) -> list[int]:
  """Rows of [n, D] embeddings that hold an infinity or NaN."""
  bad = []
  for start in range(0, len(embeddings), topk.CHUNK):  # It takes memory, too.
    finite = np.isfinite(embeddings[start : start + topk.CHUNK]).all(axis=1)
    bad += (start + np.flatnonzero(~finite)).tolist()
  return bad


class Index:
  """Passage embeddings on a mesh, searched exactly.

  trec_eval ranks passages of equal scores by their ids, descending. So do the
  rows of the index, of which the lowest wins a tie: the passages that are cut
  off after k are those that trec_eval would cut off.

  Attributes:
    passage_ids: The ids in the order of the rows: descending by code point.
  """

  def __init__(
    self, passage_ids: Sequence[str], embeddings: np.ndarray, mesh: Mesh
  ):
    """Sorts the passages and places them on the mesh.

    Args:
      passage_ids: N unique ids.
      embeddings: [N, D] floats, in the order of the ids.
      mesh: The mesh; rows are split over its axis "data".

    Raises:
      ValueError: if the ids are not unique, their number is not that of the
        embeddings, or an embedding is not finite.
    """
    if len(passage_ids) != len(embeddings):
      raise ValueError(
        f"{len(passage_ids)} passage ids for {len(embeddings)} embeddings."
      )
    if bad := _not_finite(embeddings):
      raise ValueError(
        f"The embeddings of {len(bad)} of {len(passage_ids)} passages are not"
        f" finite, first that of passage {passage_ids[bad[0]]!r}; the model's"
        " parameters are broken."
      )
    order = np.array(
      sorted(
        range(len(passage_ids)), key=passage_ids.__getitem__, reverse=True
      ),
      np.int64,
    )
    self.passage_ids = tuple(passage_ids[row] for row in order)
    for first, second in itertools.pairwise(self.passage_ids):
      if first == second:
        raise ValueError(
          f"Passage id {first!r} occurs twice; give each passage its own."
        )
    self._mesh = mesh
    self._shape = embeddings.shape
    self._passages = topk.place(embeddings, mesh, order)

  def search(
    self, queries: np.ndarray, k: int, *, description: str = "Searching"
  ) -> tuple[np.ndarray, list[list[str]]]:
    """The k best passages of each query.

    Args:
      queries: [Q, D] floats, the queries' embeddings.
      k: How many; all N passages if there are fewer.
      description: Of the progress bar, which a long search shows.

    Returns:
      scores: [Q, min(k, N)] float32, descending.
      ids: For each query, the passages' ids in this order; those of equal
        scores descending.

    Raises:
      ValueError: if the queries' width is not that of the passages, or an
        embedding or a score is not finite.
    """
    if queries.ndim != 2 or queries.shape[1] != self._shape[1]:
      raise ValueError(
        f"Queries of shape {queries.shape} do not fit passages of shape"
        f" {self._shape}; encode both with the same model."
      )
    if bad := _not_finite(queries):
      raise ValueError(
        f"The embeddings of {len(bad)} of {len(queries)} queries are not"
        f" finite, first that of query number {bad[0] + 1}; the model's"
        " parameters are broken."
      )
    scores, rows = topk.search(
      queries,
      self._passages,
      min(k, self._shape[0]),
      mesh=self._mesh,
      num_valid=self._shape[0],
      description=description,
    )
    if not np.isfinite(scores).all():
      raise ValueError(
        "Some scores overflow float32: the embeddings are too large."
      )
    return scores, [[self.passage_ids[row] for row in best] for best in rows]
