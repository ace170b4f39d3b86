"""Batches as a function of (seed, step), by tf.data or without tensorflow."""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Generator, Mapping

import numpy as np

from mlir_jax.data import masking, sampling, tokens

READERS = ("tf_data", "in_process")
STREAMS = (*tokens.STREAMS, "masked")


@dataclasses.dataclass(frozen=True)
class BatchSpec:
  """Global batch sizes, over all devices and hosts; 0 leaves a stream out.

  Attributes:
    retrieval: Question-passage pairs.
    hard_negatives: Per question.
    parallel: Sentence pairs.
    monolingual: Sentences.
    masked: Monolingual sentences with words hidden, drawn on their own.
  """

  retrieval: int
  hard_negatives: int
  parallel: int
  monolingual: int
  masked: int = 0


# What a config without a stream sets beside its batch size.
_WITHOUT = {
  "retrieval": "",
  "parallel": " and loss.semantic.weight=0, loss.language.weight=0",
  "monolingual": " and loss.language.monolingual=0",
  "masked": " and loss.masked_lm.weight=0",
}
# The rows of the store that a stream reads.
_ROWS = {stream: stream for stream in tokens.STREAMS} | {
  "masked": "monolingual"
}


def streams_read(sizes: Mapping[str, int]) -> list[str]:
  """The collection's streams that batches of these sizes read."""
  read = {_ROWS[stream] for stream in STREAMS if sizes[stream]}
  return [stream for stream in tokens.STREAMS if stream in read]


def check(store: tokens.TokenStore, spec: BatchSpec) -> None:
  """Raises ValueError if the store lacks what the batch shall hold."""
  for stream in STREAMS:
    size, rows = getattr(spec, stream), _ROWS[stream]
    if size > 0 and not store.rows(rows):
      raise ValueError(
        f"batch.{stream} is {size}, but the token store {store.path} has no"
        f" {rows} rows: set batch.{stream}=0{_WITHOUT[stream]}, or add"
        f" {rows} text to the collection."
      )
  if spec.hard_negatives > 0 and not len(store.arrays["retrieval_negatives"]):
    raise ValueError(
      f"batch.hard_negatives is {spec.hard_negatives}, but the token store"
      f" {store.path} has no hard negatives: set batch.hard_negatives=0, or"
      " mine some."
    )


def batch_of_step(
  store: tokens.TokenStore,
  spec: BatchSpec,
  seed: int,
  temperature: float,
  step: int,
  rows: Mapping[str, np.ndarray] | None = None,
  masker: masking.Masker | None = None,
) -> dict:
  """The batch of a step, or the part of it that this host needs.

  Args:
    store: The token store.
    spec: Global batch sizes.
    seed: The run's seed.
    temperature: Languages are drawn with probability ~ size ** (1 /
      temperature).
    step: From 0; any step costs the same.
    rows: Stream to the rows of its global batch that are wanted, int [n];
      None for all.
    masker: Hides words of the stream "masked".

  Returns:
    A dict of the streams whose batch size is not 0; B, N and M stand for
    the rows wanted, H for hard negatives, L for the role's padded length, P
    for the most known positives of a question, K for the most targets of a
    row. Ids are int32; -1 is none.
      retrieval:
        query: {"ids": [B, L], "mask": bool [B, L]}
        query_text: [B]
        passage: {"ids": [B, 1 + H, L], "mask": bool}, the positive first
        passage_text, passage_id: [B, 1 + H]
        passage_valid: bool [B, 1 + H]; False where hard negatives lack
        positive_text, positive_id: [B, P], all known positives
      parallel:
        tokens: {"ids": [N, 2, L], "mask": bool}
        text: [N, 2]
      monolingual:
        tokens: {"ids": [M, L], "mask": bool}
        text: [M]
      masked:
        tokens: {"ids": [M, L], "mask": bool}, words hidden
        positions, targets: [M, K], where and what they were; else 0
        valid: bool [M, K]

  Raises:
    ValueError: if the store lacks a stream, see `check`, or the masker is
      missing.
  """
  check(store, spec)
  _check_masker(spec, masker)
  batch = {}
  for stream in STREAMS:
    size = getattr(spec, stream)
    if not size:
      continue
    wanted = np.arange(size) if rows is None else rows[stream]
    positions = step * size + wanted
    drawn, epochs = sampling.draw(
      positions,
      seed,
      stream,
      list(store.groups(_ROWS[stream]).values()),
      temperature,
    )
    if stream == "retrieval":
      batch[stream] = _retrieval(
        store, drawn, epochs, seed, spec.hard_negatives
      )
      continue
    text = store.arrays[f"{_ROWS[stream]}_texts"][drawn]
    sentences = _sequences(store, "sentence", text)
    if stream == "masked":
      # By position, not by row: a later epoch hides other words.
      keys = sampling.make_key(seed, "masking", positions)
      batch[stream] = masker(**sentences, keys=keys)
    else:
      batch[stream] = {"tokens": sentences, "text": text}
  return batch


def _check_masker(spec: BatchSpec, masker: masking.Masker | None) -> None:
  if spec.masked > 0 and masker is None:
    raise ValueError(
      f"batch.masked is {spec.masked}, but there is no masker: make one with"
      " masking.make_masker, or set batch.masked=0."
    )


def _retrieval(
  store: tokens.TokenStore,
  rows: np.ndarray,
  epochs: np.ndarray,
  seed: int,
  hard_negatives: int,
) -> dict:
  """The retrieval part of a batch; rows and epochs are int64 [B]."""
  passages, valid = _choose(store, "positive", rows, 1, epochs, seed)
  if hard_negatives:
    negatives, has_negative = _choose(
      store, "negative", rows, hard_negatives, epochs, seed
    )
    passages = np.concatenate([passages, negatives], axis=1)
    valid = np.concatenate([valid, has_negative], axis=1)

  questions = store.arrays["retrieval_questions"][rows]
  offsets = store.arrays["retrieval_known_offsets"]
  places = offsets[questions][:, None] + np.arange(store.max_positives)
  known = _take(
    store.arrays["retrieval_known"],
    places,
    places < offsets[questions + 1][:, None],
  )
  query_text = store.arrays["retrieval_queries"][rows]
  return {
    "query": _sequences(store, "query", query_text),
    "query_text": query_text,
    "passage": _sequences(store, "passage", passages[..., 0]),
    "passage_text": passages[..., 0],
    "passage_id": passages[..., 1],
    "passage_valid": valid,
    "positive_text": known[..., 0],
    "positive_id": known[..., 1],
  }


def _choose(
  store: tokens.TokenStore,
  kind: str,
  rows: np.ndarray,
  amount: int,
  epochs: np.ndarray,
  seed: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Some of each row's positives or hard negatives.

  Returns:
    int32 [B, amount, 2], text id and passage id, and bool [B, amount], which
    of them there are.
  """
  offsets = store.arrays[f"retrieval_{kind}_offsets"]
  starts = offsets[rows]
  choice, valid = sampling.choose(
    offsets[rows + 1] - starts,
    amount,
    epochs,
    sampling.make_key(seed, kind, rows),
  )
  values = store.arrays[f"retrieval_{kind}s"]
  return _take(values, starts[:, None] + choice, valid), valid


def _take(
  values: np.ndarray, places: np.ndarray, valid: np.ndarray
) -> np.ndarray:
  """`values` [n, 2] at the valid places, -1 at the others."""
  taken = values[np.where(valid, places, 0)]
  return np.where(valid[..., None], taken, np.int32(-1))


def _sequences(store: tokens.TokenStore, role: str, text: np.ndarray) -> dict:
  ids, mask = store.sequences(role, text)
  return {"ids": ids, "mask": mask}


def batches(
  kind: str,
  store: tokens.TokenStore,
  spec: BatchSpec,
  seed: int,
  temperature: float,
  start: int,
  stop: int,
  rows: Mapping[str, np.ndarray] | None = None,
  prefetch: int = 2,
  masker: masking.Masker | None = None,
) -> Generator[tuple[int, dict], None, None]:
  """The batches of the steps from `start` to before `stop`.

  Args:
    kind: "tf_data", or "in_process": the same batches from a thread, without
      tensorflow.
    store: The token store.
    spec: Global batch sizes.
    seed: The run's seed.
    temperature: Of the languages' mixture.
    start: First step.
    stop: The step after the last one.
    rows: As in `batch_of_step`.
    prefetch: Batches prepared ahead, at least 1.
    masker: As in `batch_of_step`.

  Returns:
    A generator of (step, batch); closing it ends what runs ahead.

  Raises:
    ValueError: if an argument cannot be honoured.
    ImportError: for "tf_data" without tensorflow.
  """
  if kind not in READERS:
    raise ValueError(f"data.reader is {kind!r}; use one of {READERS}.")
  if prefetch < 1:
    raise ValueError(f"data.prefetch is {prefetch}; it must be at least 1.")
  check(store, spec)
  _check_masker(spec, masker)
  make_batch = functools.partial(
    batch_of_step, store, spec, seed, temperature, rows=rows, masker=masker
  )
  read = _tf_data if kind == "tf_data" else _in_process
  return read(make_batch, start, stop, prefetch)


def _in_process(
  make_batch: Callable[[int], dict], start: int, stop: int, prefetch: int
) -> Generator[tuple[int, dict], None, None]:
  """Makes batches in one thread, at most `prefetch` ahead."""
  steps = iter(range(start, stop))
  ahead = collections.deque()
  thread = concurrent.futures.ThreadPoolExecutor(1, "batches")

  def submit():
    for step in itertools.islice(steps, 1):
      ahead.append((step, thread.submit(make_batch, step)))

  try:
    for _ in range(prefetch):
      submit()
    while ahead:
      step, batch = ahead.popleft()
      submit()
      yield step, batch.result()
  finally:
    thread.shutdown(cancel_futures=True)


def _tf_data(
  make_batch: Callable[[int], dict], start: int, stop: int, prefetch: int
) -> Generator[tuple[int, dict], None, None]:
  """Makes batches in a tf.data pipeline."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # Errors and worse.
  try:
    import tensorflow as tf
  except ImportError as e:
    raise ImportError(
      "data.reader=tf_data needs tensorflow: install it, or set"
      " data.reader=in_process, which gives the same batches."
    ) from e
  # TensorFlow would take the memory that JAX needs.
  tf.config.set_visible_devices([], "GPU")
  example = make_batch(start)
  leaves = tf.nest.flatten(example)

  def load(step):
    arrays = tf.numpy_function(
      lambda step: tf.nest.flatten(make_batch(int(step))),
      [step],
      [leaf.dtype for leaf in leaves],
      stateful=False,
    )
    for array, leaf in zip(arrays, leaves, strict=True):
      array.set_shape(leaf.shape)
    return step, tf.nest.pack_sequence_as(example, arrays)

  # A map without parallel calls keeps the order.
  dataset = tf.data.Dataset.range(start, stop).map(load).prefetch(prefetch)
  return ((int(step), batch) for step, batch in dataset.as_numpy_iterator())
