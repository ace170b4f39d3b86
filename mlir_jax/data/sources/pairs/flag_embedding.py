"""Defines FlagEmbedding's JSON: query, pos, neg."""

from typing import ClassVar

from mlir_jax.data import records
from mlir_jax.data.sources import passages as passages_lib
from mlir_jax.data.sources import record_fields
from mlir_jax.data.sources.pairs import base

_SCORES = ("pos_scores", "neg_scores")


class FlagEmbedding(base.PairFormat):
  """One object for each query; passages are texts without titles.

  A `prompt` takes the place of the query's prefix, as in FlagEmbedding.
  `pos_scores` and `neg_scores` are those of a teacher, for
  `losses.score_distillation`.
  """

  name = "flag_embedding"
  example: ClassVar = {
    "query": "capital of Peru?",
    "pos": ["Lima is …"],
    "neg": ["Oslo is …"],
  }
  needs = (("query", "pos"),)

  def parse(self, record, context):
    """Makes a record; hard negatives may be missing or null."""
    context.note_unused(
      record,
      (
        *("query", "pos", "neg", "prompt", *_SCORES),
        *record_fields.LANGUAGE_FIELDS,
      ),
    )
    prompt = record.get("prompt")
    if prompt is not None:
      # White space at its end is a part of it.
      record_fields.optional(record_fields.check_text, prompt, "prompt")
    return records.RetrievalRecord(
      record_fields.get_text(record, "query"),
      passages_lib.read_positives(
        record, "pos", passages_lib.of_text, "pos_scores"
      ),
      passages_lib.read_hard_negatives(
        record,
        "neg",
        passages_lib.of_text,
        context.place,
        context.bad_records,
        "neg_scores",
      ),
      prompt=prompt,
    )

  def with_negatives(self, record, passages, scores=None):
    """Adds texts to `neg`, and scores to `neg_scores` if the record has some.

    Raises:
      ValueError: if the record has `neg_scores`, but no scores are given.
    """
    texts = [passages_lib.one_text(passage) for passage in passages]
    changed = passages_lib.with_added(record, "neg", texts)
    if any(record.get(field) is not None for field in _SCORES):
      if scores is None:
        raise ValueError(
          "neg_scores has a score for each hard negative, but the new ones have"
          " none: give scores, or remove pos_scores and neg_scores."
        )
      changed = passages_lib.with_added(changed, "neg_scores", scores)
    return changed

  def without_negatives(self, record):
    """Empties `neg` and `neg_scores`, if they are there."""
    return passages_lib.emptied(record, "neg", "neg_scores")
