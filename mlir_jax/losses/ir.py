"""The IR loss: each query finds its passage in the global batch."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from mlir_jax.batches import batch as batch_lib
from mlir_jax.batches import identity
from mlir_jax.losses import base, similarity

Array = jax.Array

# A batch rarely has more known positives of one question than this. They are
# compared together.
_USUAL = 4


@dataclasses.dataclass(frozen=True)
class IrLoss(base.Loss):
  """The IR loss; see `ir_loss`."""

  weight: float = base.setting(1.0, "[0, 1e6]")  # w_ir.
  # Divides the cosines. Our choice.
  temperature: float = base.setting(0.05, "[1e-4, 1e4]")
  symmetric: bool = base.setting(False)  # Adds passage -> query.

  title = "retrieval: a query and its passage"
  stream = "retrieval"
  reads = ("queries", "passages")

  def check(self, sizes: Mapping[str, int], group: str) -> None:
    """See `base.Loss.check`; also checks that a query has a negative."""
    super().check(sizes, group)
    if sizes["retrieval"] == 1 and not sizes["hard_negatives"]:
      raise ValueError(
        "batch.retrieval is 1 and batch.hard_negatives is 0: no question has a"
        " negative, so the IR loss is always 0. Set batch.retrieval to 2 or"
        f" more, batch.hard_negatives to 1 or more, or {group}.weight=0."
      )

  def score_matrices(self, sizes: Mapping[str, int]) -> list[tuple[int, int]]:
    """Returns [(queries, passages)]."""
    passages = sizes["retrieval"] * (1 + sizes["hard_negatives"])
    return [(sizes["retrieval"], passages)]

  def __call__(
    self,
    outputs: base.Outputs,
    batch: batch_lib.Batch,
    replicate: base.Replicate,
  ) -> tuple[Array, base.Metrics]:
    """See `base.Loss`; the metrics are those of `ir_loss`."""
    retrieval = batch.retrieval
    assert retrieval is not None  # See `stream`.
    return ir_loss(
      outputs["queries"],
      outputs["passages"],
      query_sequence=retrieval.query_sequence,
      passage_sequence=retrieval.passage_sequence,
      passage_valid=retrieval.passage_valid,
      positive_sequence=retrieval.positive_sequence,
      temperature=self.temperature,
      symmetric=self.symmetric,
      replicate=replicate,
    )


def ir_loss(
  queries: Array,
  passages: Array,
  *,
  query_sequence: Array,
  passage_sequence: Array,
  passage_valid: Array,
  positive_sequence: Array,
  temperature: float,
  symmetric: bool = False,
  replicate: Callable[[Array], Array] = lambda x: x,
) -> tuple[Array, base.Metrics]:
  """The IR loss: each query finds its passage in the global batch.

  For query i: -log softmax over all passages p of s(q_i, p) / temperature, at
  its own positive. Masked, so that they are not negatives, are passages with
  the sequence of a known positive of i, the positives of rows that ask the same
  question, and padding.

  Args:
    queries: [B, D].
    passages: [B, 1 + H, D]; column 0 is the positive, then hard negatives.
    query_sequence: Sequence hashes of the questions, int32 [B, 2]; see
      `batches.identity`.
    passage_sequence: int32 [B, 1 + H, 2].
    passage_valid: bool [B, 1 + H], False for padding. The vectors of padding
      must also be finite.
    positive_sequence: Sequence hashes of the known positives, at least of those
      in the batch, int32 [B, P, 2], padded with -1.
    temperature: Divides the cosines.
    symmetric: Adds the direction passage -> query for the positives, and halves
      the sum. If a passage is masked for a query, the query is also masked for
      the passage.
    replicate: A sharding constraint on the candidates.

  Returns:
    The loss, a scalar in nats, and the metrics "accuracy" (share of queries
    whose own positive scores higher than all negatives), "masked" (number of
    masked query-passage pairs, padding not counted),
    "queries_without_negatives" (number of queries that learn nothing),
    "mean_cosine" (of queries and their negatives) and "effective_rank" (of the
    positives).
  """
  batch, columns, _ = passages.shape
  candidates = replicate(passages.reshape(batch * columns, -1))
  valid = passage_valid.reshape(-1)
  row = jnp.arange(batch)
  positive = row * columns
  is_positive = _known_positives(
    query_sequence, passage_sequence, positive_sequence, replicate
  )
  cosines = similarity.scores(queries, candidates)
  scores = cosines / temperature
  allowed = valid[None] & ~is_positive
  loss = similarity.cross_entropy(scores, positive, allowed).mean()

  own = positive[:, None] == jnp.arange(batch * columns)
  best = jnp.argmax(jnp.where(allowed | own, scores, -jnp.inf), axis=1)
  metrics = {
    "accuracy": (best == positive).mean(),
    "masked": (is_positive & valid[None] & ~own).sum(),
    # A query's own positive is not allowed as a negative.
    "queries_without_negatives": (~allowed.any(axis=1)).sum(),
    "mean_cosine": similarity.masked_mean(cosines, allowed),
    "effective_rank": similarity.effective_rank(passages[:, 0]),
  }
  if symmetric:
    to_queries = scores.reshape(batch, batch, columns)[:, :, 0].T
    allowed = ~is_positive.reshape(batch, batch, columns)[:, :, 0].T
    backward = similarity.cross_entropy(to_queries, row, allowed).mean()
    loss = (loss + backward) / 2
  return loss, metrics


def _known_positives(
  query_sequence: Array,
  passage_sequence: Array,
  positive_sequence: Array,
  replicate: Callable[[Array], Array],
) -> Array:
  """Returns the pairs to mask, bool [B, B * (1 + H)], padding not included.

  The arguments are those of `ir_loss`.
  """
  batch, columns, _ = passage_sequence.shape
  passages = replicate(passage_sequence.reshape(-1, 2))

  def add(found, known):  # One of the P known positives at a time.
    hit = identity.equal(passages, known[:, None])
    return found | (hit & identity.is_text(known)[:, None]), None

  def add_all(found, known):
    return jax.lax.scan(add, found, known.swapaxes(0, 1))[0]

  # The reader lists the known positives that are in the batch, at the front. A
  # question has few of these, even if P is large. So only as many columns are
  # compared as the longest list needs, or up to twice as many.
  place = jnp.arange(1, positive_sequence.shape[1] + 1)
  is_known = identity.is_text(positive_sequence)
  longest = jnp.where(is_known, place, 0).max(initial=0)

  def add_from(start, found):
    more = positive_sequence[:, start : max(2 * start, _USUAL)]
    if not more.size:
      return found
    end = start + more.shape[1]
    return jax.lax.cond(
      longest > start,
      lambda found: add_from(end, add_all(found, more)),
      lambda found: found,
      found,
    )

  # The list may lack a row's own positive.
  own = identity.equal(passages[None], passage_sequence[:, :1])
  are_known = add_from(0, own)
  same_question = identity.equal(query_sequence[:, None], query_sequence)
  asked_alike = jnp.zeros((batch, batch, columns), bool)
  asked_alike = asked_alike.at[:, :, 0].set(same_question)
  return are_known | asked_alike.reshape(batch, -1)
