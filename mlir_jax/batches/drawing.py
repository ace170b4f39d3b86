"""Draws the texts of a step from the token store, the same on all hosts."""

import collections
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mlir_jax.batches import batch as batch_lib
from mlir_jax.batches import identity, sampling
from mlir_jax.batches import mixture as mixture_lib
from mlir_jax.data import records, token_store
from mlir_jax.losses import registry

# Stream to the rows of the store that it reads.
_ROWS = {stream: stream for stream in token_store.STREAMS} | {
  "masked": "monolingual"
}


def streams_read(sizes: Mapping[str, int]) -> list[str]:
  """Returns the collection's streams that batches of these sizes read."""
  read = {_ROWS[stream] for stream in batch_lib.STREAMS if sizes[stream]}
  return [stream for stream in token_store.STREAMS if stream in read]


def check(
  store: token_store.TokenStore,
  spec: batch_lib.BatchSpec,
  mixture: mixture_lib.Mixture,
) -> None:
  """Raises ValueError if the store lacks data that the batch needs."""
  for stream in batch_lib.STREAMS:
    size, rows = getattr(spec, stream), _ROWS[stream]
    if size > 0 and not store.rows(rows):
      others = ", ".join(f"{f}=0" for f in registry.fields_without(stream))
      raise ValueError(
        f"batch.{stream} is {size}, but the token store {store.path} has no"
        f" {rows} rows: set batch.{stream}=0 and {others}, or add"
        f" {rows} text to the collection."
      )
    if size > 0:
      mixture_lib.check(
        stream, store.groups(rows), mixture, size, str(store.path)
      )
  if spec.scores and not store.has_scores:
    raise ValueError(
      "loss.score_distillation.weight is above 0, but no passage in the token"
      f" store {store.path} has a score: set it to 0, or use pairs with"
      " pos_scores and neg_scores (FlagEmbedding's format)."
    )
  if spec.hard_negatives > 0 and not len(store.arrays["retrieval_negatives"]):
    raise ValueError(
      f"batch.hard_negatives is {spec.hard_negatives}, but the token store"
      f" {store.path} has no hard negatives: set batch.hard_negatives=0, or"
      " mine some."
    )


class Part(NamedTuple):
  """A stream's texts in one role: `text` is int32 [n, ...], -1 for none."""

  stream: str
  role: str
  text: np.ndarray


class Drawn(NamedTuple):
  """A step's global batch before anything is padded.

  Attributes:
    fields: Stream to its fields in the batch but for the places of texts: the
      hashes by which its losses recognize equal texts. See `batch.Batch`.
    texts: Group to its texts. A text's number is its index in this order.
    mask_keys: uint64 [M], a key for each masked sentence.
    languages: The numbers of the languages of both sides of each translation,
      int32 [N, 2]; empty without translations.
  """

  fields: dict[str, dict[str, np.ndarray]]
  texts: dict[str, list[Part]]
  mask_keys: np.ndarray
  languages: np.ndarray


def draw(
  store: token_store.TokenStore,
  spec: batch_lib.BatchSpec,
  seed: int,
  mixture: mixture_lib.Mixture,
  step: int,
) -> Drawn:
  """Draws the global batch of a step.

  Args:
    store: The token store.
    spec: Global batch sizes.
    seed: The run's seed.
    mixture: How sources and languages share the rows.
    step: From 0. Late steps take no longer than early ones.

  Raises:
    ValueError: if the store lacks a stream, see `check`.
  """
  check(store, spec, mixture)
  return _draw(store, spec, seed, mixture, step, 1)


def _draw(
  store: token_store.TokenStore,
  spec: batch_lib.BatchSpec,
  seed: int,
  mixture: mixture_lib.Mixture,
  first: int,
  count: int,
  *,
  only_texts: bool = False,
) -> Drawn:
  """Draws the batches of some consecutive steps, as if they were one batch.

  Without the fields, many steps take little memory: a question may have
  thousands of known positives.

  Args:
    store: As in `draw`.
    spec: As in `draw`.
    seed: As in `draw`.
    mixture: As in `draw`.
    first: The first step.
    count: The number of steps.
    only_texts: Whether to leave out the fields.
  """
  fields, texts, mask_keys = {}, collections.defaultdict(list), np.zeros(0)
  languages = np.zeros((0, 2), np.int32)
  for stream in batch_lib.STREAMS:
    size = getattr(spec, stream)
    if not size:
      continue
    rows, epochs = mixture_lib.draw(
      stream,
      store.groups(_ROWS[stream]),
      mixture,
      seed,
      size,
      first,
      count,
    )
    if stream == "retrieval":
      query = store.arrays["retrieval_queries"][rows]
      passage, valid = _passages(store, rows, epochs, seed, spec)
      if not only_texts:
        fields[stream] = _retrieval(store, rows, query, passage, valid, spec)
        if spec.scores:
          fields[stream]["passage_score"] = _scores(
            store, rows, epochs, seed, spec
          )
      queries = "passage" if spec.tied else "query"
      texts[queries].append(Part(stream, "query", query))
      texts["passage"].append(Part(stream, "passage", passage))
      continue
    part = Part(
      stream, "sentence", store.arrays[f"{_ROWS[stream]}_texts"][rows]
    )
    if stream == "masked":
      # The key depends on the position, not on the row, so each epoch hides
      # other words.
      positions = first * size + np.arange(count * size)
      mask_keys = sampling.make_key(seed, "masking", positions)
      texts["masked"].append(part)
      continue
    texts["passage"].append(part)
    if stream == "parallel" and not only_texts:
      languages = store.arrays["parallel_languages"][rows]
    if not only_texts:
      fields[stream] = {
        "text": identity.split(store.text_hashes(part.role, part.text)),
        "sequence": identity.split(store.sequence_hashes(part.role, part.text)),
      }
  return Drawn(fields, dict(texts), mask_keys, languages)


def lengths(
  store: token_store.TokenStore, drawn: Drawn
) -> dict[str, np.ndarray]:
  """Maps each group to the number of tokens of its texts, int64 [T]."""
  return {
    group: np.concatenate(
      [store.text_lengths(part.role, part.text.ravel()) for part in parts]
    )
    for group, parts in drawn.texts.items()
  }


def lengths_of_steps(
  store: token_store.TokenStore,
  spec: batch_lib.BatchSpec,
  seed: int,
  mixture: mixture_lib.Mixture,
  first: int,
  count: int,
) -> dict[str, np.ndarray]:
  """Draws the texts of consecutive steps together and returns their lengths.

  Args:
    store: As in `draw`.
    spec: As in `draw`.
    seed: As in `draw`.
    mixture: As in `draw`.
    first: The first step.
    count: The number of steps.

  Returns:
    Group to int64 [count, T], the number of tokens of its T texts.
  """
  check(store, spec, mixture)
  drawn = _draw(store, spec, seed, mixture, first, count, only_texts=True)
  return {
    group: np.concatenate(
      [
        store.text_lengths(part.role, part.text).reshape(count, -1)
        for part in parts
      ],
      axis=1,
    )
    for group, parts in drawn.texts.items()
  }


def describe_sources(
  store: token_store.TokenStore,
  spec: batch_lib.BatchSpec,
  mixture: mixture_lib.Mixture,
) -> list[str]:
  """Says in lines how several sources share the rows of each stream."""
  lines = []
  for stream in batch_lib.STREAMS:
    groups = store.groups(_ROWS[stream])
    if not getattr(spec, stream):
      continue
    shares = mixture_lib.source_shares(groups, mixture)
    if len(shares) > 1:
      listed = ", ".join(
        f"{source or '(no name)'} {share:.1%}"
        for source, share in sorted(shares.items())
      )
      lines.append(records.printable(f"Sources of batch.{stream}: {listed}"))
  return lines


def kinds_of_steps(
  store: token_store.TokenStore,
  spec: batch_lib.BatchSpec,
  seed: int,
  mixture: mixture_lib.Mixture,
  steps: np.ndarray,
) -> np.ndarray:
  """Returns the sources of the batches of some steps; the arguments of `draw`.

  Returns:
    int64 [n, streams]: for each stream, the number of the source of its rows.
    It is 0 for a stream whose batches have all sources.
  """
  return np.stack(
    [
      mixture_lib.sources_of_steps(
        stream, store.groups(_ROWS[stream]), mixture, seed, steps
      )
      for stream in batch_lib.STREAMS
      if getattr(spec, stream)
    ],
    axis=1,
  )


def _passages(
  store: token_store.TokenStore,
  rows: np.ndarray,
  epochs: np.ndarray,
  seed: int,
  spec: batch_lib.BatchSpec,
) -> tuple[np.ndarray, np.ndarray]:
  """Chooses the passages of rows; rows and epochs are int64 [B].

  Returns:
    Texts, int32 [B, 1 + H], the positive first; and which of them are valid,
    bool [B, 1 + H].
  """
  passages, valid = _choose(store, "positive", rows, 1, epochs, seed)
  if spec.hard_negatives:
    negatives, has_negative = _choose(
      store, "negative", rows, spec.hard_negatives, epochs, seed
    )
    passages = np.concatenate([passages, negatives], axis=1)
    valid = np.concatenate([valid, has_negative], axis=1)
  return passages, valid


def _scores(
  store: token_store.TokenStore,
  rows: np.ndarray,
  epochs: np.ndarray,
  seed: int,
  spec: batch_lib.BatchSpec,
) -> np.ndarray:
  """Returns the scores of the passages that `_passages` chooses.

  Returns:
    float32 [B, 1 + H], NaN for a passage without a score.
  """
  amounts = {"positive": 1, "negative": spec.hard_negatives}
  found = []
  for kind, amount in amounts.items():
    if not amount:
      continue
    places, valid = _find(store, kind, rows, amount, epochs, seed)
    values = store.arrays[f"retrieval_{kind}_scores"]
    scores = np.full(places.shape, np.nan, np.float32)
    scores[valid] = values[places[valid]]
    found.append(scores)
  return np.concatenate(found, axis=1)


def _retrieval(
  store: token_store.TokenStore,
  rows: np.ndarray,
  query: np.ndarray,
  passage: np.ndarray,
  valid: np.ndarray,
  spec: batch_lib.BatchSpec,
) -> dict[str, np.ndarray]:
  """Returns the fields of the IR loss.

  Args:
    store: The token store.
    rows: int64 [B].
    query: Their texts, int32 [B].
    passage: From `_passages`.
    valid: From `_passages`.
    spec: Global batch sizes.
  """
  sequences = store.sequence_hashes("passage", passage)
  known = _known_positives(
    store, rows, sequences, min(store.max_positives, passage.size)
  )
  return {
    "query_text": identity.split(store.text_hashes("query", query)),
    "query_sequence": identity.split(store.sequence_hashes("query", query)),
    "passage_text": identity.split(store.text_hashes("passage", passage)),
    "passage_sequence": identity.split(sequences),
    "passage_valid": valid,
    "positive_sequence": identity.split(known),
  }


def _known_positives(
  store: token_store.TokenStore,
  rows: np.ndarray,
  sequences: np.ndarray,
  most: int,
) -> np.ndarray:
  """Finds the known positives of each row's question among the passages.

  Args:
    store: The token store.
    rows: int64 [B].
    sequences: uint64 [B, C], hashes of the batch's passages.
    most: P, see `BatchSpec.positives`.

  Returns:
    uint64 [B, P], sequence hashes, padded with `identity.NONE`.
  """
  questions = store.arrays["retrieval_questions"][rows]
  offsets = store.arrays["retrieval_known_offsets"]
  starts, counts = offsets[questions], np.diff(offsets)[questions]
  row = np.repeat(np.arange(len(rows)), counts)
  places = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
  known = store.arrays["retrieval_known"][np.repeat(starts, counts) + places]
  hit = np.isin(known, sequences)
  hits = np.bincount(row[hit], minlength=len(rows))
  found = np.full((len(rows), most), identity.NONE)
  found[np.arange(most) < hits[:, None]] = known[hit]
  return found


def _choose(
  store: token_store.TokenStore,
  kind: str,
  rows: np.ndarray,
  amount: int,
  epochs: np.ndarray,
  seed: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Chooses some of each row's positives or hard negatives.

  Returns:
    Texts, int32 [B, amount], and which of them are valid, bool [B, amount].
  """
  places, valid = _find(store, kind, rows, amount, epochs, seed)
  return _take(store.arrays[f"retrieval_{kind}s"], places, valid), valid


def _find(
  store: token_store.TokenStore,
  kind: str,
  rows: np.ndarray,
  amount: int,
  epochs: np.ndarray,
  seed: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Finds what `_choose` chooses: places in the store's array, and validity."""
  offsets = store.arrays[f"retrieval_{kind}_offsets"]
  starts = offsets[rows]
  choice, valid = sampling.choose(
    offsets[rows + 1] - starts,
    amount,
    epochs,
    sampling.make_key(seed, kind, rows),
  )
  return starts[:, None] + choice, valid


def _take(
  values: np.ndarray, places: np.ndarray, valid: np.ndarray
) -> np.ndarray:
  """Returns `values` [n] at the valid places, -1 at the others."""
  return np.where(valid, values[np.where(valid, places, 0)], np.int32(-1))
