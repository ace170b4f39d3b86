"""The IR loss: each query finds its passage in the global batch."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from mlir_jax.batches import batch as batch_lib
from mlir_jax.batches import identity
from mlir_jax.losses import base, similarity
from mlir_jax.losses import guide as guide_lib

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
  # Whether passages of other questions are negatives, too. If not, a question
  # has its own hard negatives alone.
  in_batch: bool = base.setting(True)
  # Other questions are negatives of a question, too, and other passages are
  # negatives of its positive. With `symmetric`, this is the improved
  # contrastive loss of GTE (Li et al. 2023).
  same_tower: bool = base.setting(False)
  # A frozen retriever, "" for none: a run, an export, a sentence-transformers
  # folder or a hub name. A passage is no negative of a question if the guide
  # gives it a higher cosine than the question's positive (GISTEmbed). Its
  # vectors of all questions and passages are computed once and kept.
  guide: str = base.setting("")
  # As model.revision: a branch, tag or commit of a hub name, or a run's "last",
  # "best" or step.
  guide_revision: str = base.setting("")
  # A negative's cosine is at least so much lower than that of the positive.
  guide_absolute_margin: float = base.setting(0.0, "[0, 2]")
  # The same, as a share of the positive's cosine: 0.05 allows 95% of it.
  guide_relative_margin: float = base.setting(0.0, "[0, 1)")

  title = "retrieval: a query and its passage"
  stream = "retrieval"
  reads = ("queries", "passages")

  def check(self, sizes: Mapping[str, int], group: str) -> None:
    """See `base.Loss.check`; also checks that a query has a negative."""
    super().check(sizes, group)
    if not self.in_batch and not sizes["hard_negatives"]:
      raise ValueError(
        f"{group}.in_batch is False and batch.hard_negatives is 0: no question"
        " has a negative. Set batch.hard_negatives to 1 or more, or"
        f" {group}.in_batch=True."
      )
    if not self.in_batch and self.symmetric:
      raise ValueError(
        f"{group}.in_batch is False, but {group}.symmetric compares a passage"
        f" with the questions of the batch: set {group}.symmetric=False."
      )
    if not self.in_batch and self.same_tower:
      raise ValueError(
        f"{group}.in_batch is False, but {group}.same_tower compares a question"
        f" with others of the batch: set {group}.same_tower=False."
      )
    if sizes["retrieval"] == 1 and not sizes["hard_negatives"]:
      raise ValueError(
        "batch.retrieval is 1 and batch.hard_negatives is 0: no question has a"
        " negative, so the IR loss is always 0. Set batch.retrieval to 2 or"
        f" more, batch.hard_negatives to 1 or more, or {group}.weight=0."
      )

  def score_matrices(self, sizes: Mapping[str, int]) -> list[tuple[int, int]]:
    """See `base.Loss`: queries x passages, then those of `same_tower`."""
    queries = sizes["retrieval"]
    across = (queries, queries * (1 + sizes["hard_negatives"]))
    # Queries x queries, and positives x passages.
    return [across, *([(queries, queries), across] if self.same_tower else ())]

  def guide_matrices(self, sizes: Mapping[str, int]) -> list[tuple[int, int]]:
    """Returns [(queries, passages)]; [] without a guide."""
    return self.score_matrices(sizes)[:1] if self.guide else []

  def __call__(
    self,
    outputs: base.Outputs,
    batch: batch_lib.Batch,
    replicate: base.Replicate,
  ) -> tuple[Array, base.Metrics]:
    """See `base.Loss`; the metrics are those of `ir_loss`."""
    retrieval = batch.retrieval
    assert retrieval is not None  # See `stream`.
    false_negatives = None
    if self.guide:
      queries, passages = retrieval.query_guide, retrieval.passage_guide
      if queries is None or passages is None:
        raise ValueError(
          f"The batch has no vectors of the guide {self.guide!r}: a run has one"
          " guide, that of loss.ir.guide."
        )
      false_negatives = guide_lib.false_negatives(
        queries,
        passages,
        absolute_margin=self.guide_absolute_margin,
        relative_margin=self.guide_relative_margin,
        replicate=replicate,
      )
    return ir_loss(
      outputs["queries"],
      outputs["passages"],
      query_sequence=retrieval.query_sequence,
      passage_sequence=retrieval.passage_sequence,
      passage_valid=retrieval.passage_valid,
      positive_sequence=retrieval.positive_sequence,
      temperature=self.temperature,
      symmetric=self.symmetric,
      in_batch=self.in_batch,
      same_tower=self.same_tower,
      false_negatives=false_negatives,
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
  in_batch: bool = True,
  same_tower: bool = False,
  false_negatives: Array | None = None,
  replicate: Callable[[Array], Array] = lambda x: x,
) -> tuple[Array, base.Metrics]:
  """The IR loss: each query finds its passage in the global batch.

  For query i: -log softmax over all passages p of s(q_i, p) / temperature, at
  its own positive. Masked, so that they are not negatives, are passages with
  the sequence of a known positive of i, the positives of rows that ask the same
  question, padding, and what a guide takes for a right answer.

  With `same_tower`, the softmax of query i also has s(q_i, q_j) of the other
  queries j and s(p_i, p) of all passages p but its own positive p_i; with
  `symmetric`, also s(q_j, p_i). All share one softmax, as in GTE's improved
  contrastive loss (Li et al. 2023, arXiv 2308.03281). A passage that is masked
  for query i is also left out of s(p_i, p). Query j is left out if the positive
  of one of i and j is masked for the other one: both ask the same, or have the
  same answer.

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
      the sum; `same_tower` puts it into the one softmax. If a passage is masked
      for a query, the query is also masked for the passage.
    in_batch: Whether passages of other rows are negatives. If not, pairs of
      different rows count nowhere in the metrics, and `symmetric` and
      `same_tower` are False.
    same_tower: Adds queries as negatives of queries, and passages as negatives
      of positives. The metrics do not count them.
    false_negatives: bool [B, B * (1 + H)], from `guide.false_negatives`; None
      without a guide. A query's own positive stays.
    replicate: A sharding constraint on the candidates.

  Returns:
    The loss, a scalar in nats, and the metrics "accuracy" (share of queries
    whose own positive scores higher than all negatives), "masked" (number of
    masked query-passage pairs, neither padding nor those of the guide counted),
    "masked_by_guide" (number of other pairs that the guide masks; only with a
    guide),
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
  compared = jnp.broadcast_to(valid[None], is_positive.shape)
  if not in_batch:
    compared &= row[:, None] == jnp.arange(batch * columns) // columns
  masked, metrics = is_positive, {}
  if false_negatives is not None:
    masked = is_positive | false_negatives
    metrics["masked_by_guide"] = similarity.count(
      compared & false_negatives & ~is_positive
    )
  allowed = compared & ~masked
  to_queries, queries_allowed = None, None
  if symmetric:
    to_queries = scores.reshape(batch, batch, columns)[:, :, 0].T
    queries_allowed = ~masked.reshape(batch, batch, columns)[:, :, 0].T
  if same_tower:
    loss = _same_tower_loss(
      queries,
      passages[:, 0],
      candidates,
      scores,
      masked,
      allowed,
      (to_queries, queries_allowed),
      temperature=temperature,
      replicate=replicate,
    )
  else:
    loss = similarity.cross_entropy(scores, positive, allowed).mean()
    if to_queries is not None and queries_allowed is not None:
      backward = similarity.cross_entropy(to_queries, row, queries_allowed)
      loss = (loss + backward.mean()) / 2

  own = positive[:, None] == jnp.arange(batch * columns)
  best = jnp.argmax(jnp.where(allowed | own, scores, -jnp.inf), axis=1)
  metrics |= {
    "accuracy": (best == positive).mean(),
    "masked": (is_positive & compared & ~own).sum(),
    # A query's own positive is not allowed as a negative.
    "queries_without_negatives": (~allowed.any(axis=1)).sum(),
    "mean_cosine": similarity.masked_mean(cosines, allowed),
    "effective_rank": similarity.effective_rank(passages[:, 0]),
  }
  return loss, metrics


def _same_tower_loss(
  queries: Array,
  positives: Array,
  candidates: Array,
  scores: Array,
  masked: Array,
  allowed: Array,
  backward: tuple[Array | None, Array | None],
  *,
  temperature: float,
  replicate: Callable[[Array], Array],
) -> Array:
  """Returns the mean loss of `ir_loss` with `same_tower`.

  Args:
    queries: [B, D].
    positives: [B, D].
    candidates: All passages, [B * C, D], on every device.
    scores: Of queries and passages, [B, B * C].
    masked: bool [B, B * C], the passages that are no negatives of a query.
    allowed: bool [B, B * C], its negatives, padding left out.
    backward: The scores of positives and queries, [B, B], and which of them
      are negatives, bool [B, B]; None for none.
    temperature: As in `ir_loss`.
    replicate: As in `ir_loss`.
  """
  batch = queries.shape[0]
  row = jnp.arange(batch)
  itself = row[:, None] == row
  # Query i and the positive of query j, [i, j].
  answers = masked.reshape(batch, batch, -1)[:, :, 0]
  of_queries = similarity.scores(queries, replicate(queries)) / temperature
  of_passages = similarity.scores(positives, candidates) / temperature
  parts = [
    (scores, allowed),
    (of_queries, ~(answers | answers.T | itself)),
    # A query's own positive is masked for it.
    (of_passages, allowed),
  ]
  to_queries, queries_allowed = backward
  if to_queries is not None and queries_allowed is not None:
    parts.append((to_queries, queries_allowed & ~itself))
  joined = [jnp.concatenate(each, axis=1) for each in zip(*parts, strict=True)]
  positive = row * (candidates.shape[0] // batch)
  return similarity.cross_entropy(joined[0], positive, joined[1]).mean()


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
