"""An index of passages: returns ids, with ties in the order of trec_eval."""

import itertools
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from mlir_jax.retrieval import topk


def _not_finite(embeddings: np.ndarray) -> list[int]:
  """Returns the rows of [n, D] embeddings that have an infinity or NaN."""
  bad = []
  # In chunks, because `isfinite` makes an array of the same shape.
  for start in range(0, len(embeddings), topk.CHUNK):
    finite = np.isfinite(embeddings[start : start + topk.CHUNK]).all(axis=1)
    bad += (start + np.flatnonzero(~finite)).tolist()
  return bad


class Index:
  """Passage embeddings on a mesh, searched exactly.

  trec_eval ranks passages of equal scores by their ids, descending. The rows of
  the index are in that order, and the lowest row wins a tie. So the cut after k
  keeps the same passages as trec_eval.

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
      mesh: Its axis "data" splits the rows.

    Raises:
      ValueError: if the ids are not unique, there are more or fewer ids than
        embeddings, or an embedding is not finite.
    """
    if len(passage_ids) != len(embeddings):
      raise ValueError(
        f"{len(passage_ids)} passage ids for {len(embeddings)} embeddings."
      )
    if bad := _not_finite(embeddings):
      raise ValueError(
        f"The embeddings of {len(bad)} of {len(passage_ids)} passages are not"
        f" finite, first of all passage {passage_ids[bad[0]]!r}; the model's"
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
          f"Passage id {first!r} occurs twice; give each passage its own id."
        )
    self._mesh = mesh
    self._shape = embeddings.shape
    self._passages = topk.place(embeddings, mesh, order)

  def search(
    self, queries: np.ndarray, k: int, *, description: str = "Searching"
  ) -> tuple[np.ndarray, list[list[str]]]:
    """Returns the k best passages of each query.

    Args:
      queries: [Q, D] floats, the embeddings of the queries.
      k: The number of results; all N passages if there are fewer.
      description: The text of the progress bar of a long search.

    Returns:
      scores: [Q, min(k, N)] float32, descending.
      ids: For each query, the ids of the passages in this order; ids with equal
        scores are descending.

    Raises:
      ValueError: if queries and passages have different widths, or an embedding
        or a score is not finite.
    """
    if queries.ndim != 2 or queries.shape[1] != self._shape[1]:
      raise ValueError(
        f"Queries of shape {queries.shape} do not fit passages of shape"
        f" {self._shape}; encode both with the same model."
      )
    if bad := _not_finite(queries):
      raise ValueError(
        f"The embeddings of {len(bad)} of {len(queries)} queries are not"
        f" finite, first of all query number {bad[0] + 1}; the model's"
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
