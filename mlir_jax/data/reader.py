"""Batches as a function of (seed, step), by tf.data or without tensorflow."""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mlir_jax.data import buckets, masking, sampling, tokens

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
    tied: Whether one tower encodes all: queries then stand among passages.
  """

  retrieval: int
  hard_negatives: int
  parallel: int
  monolingual: int
  masked: int = 0
  tied: bool = True

  def texts(self) -> dict[str, int]:
    """Group to how many texts of it a step encodes, for those it has."""
    passages = self.retrieval * (1 + self.hard_negatives)
    passages += 2 * self.parallel + self.monolingual
    counts = {
      "query": 0 if self.tied else self.retrieval,
      "passage": passages + (self.retrieval if self.tied else 0),
      "masked": self.masked,
    }
    return {group: count for group, count in counts.items() if count}


# Group to the buckets of its texts, the longest first.
Plan = Mapping[str, tuple[buckets.Bucket, ...]]


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


def make_plans(
  store: tokens.TokenStore,
  spec: BatchSpec,
  seed: int,
  temperature: float,
  steps: int,
  *,
  chunk: int = 0,
  devices: int = 1,
  most: int = 1,
) -> tuple[Plan, ...]:
  """The shapes that a run's batches may have; a step takes the first it fits.

  They are a function of the arguments, so all hosts make the same.

  Args:
    store: The token store.
    spec: Global batch sizes.
    seed: The run's seed.
    temperature: Of the languages' mixture.
    steps: Of the whole run.
    chunk: Texts encoded at once, over all devices; 0 for all of them.
    devices: Over how many the texts are split.
    most: Buckets of a group, at most.

  Returns:
    A plan for (nearly) all steps and, if there are steps that it is too short
    for, one for those.

  Raises:
    ValueError: if the store lacks a stream, or the chunk does not divide what
      a step encodes.
  """
  check_chunk(chunk, spec.texts(), devices)
  sampled = np.unique(np.linspace(0, steps - 1, buckets.SAMPLES).astype(int))
  drawn = [_draw(store, spec, seed, temperature, step) for step in sampled]
  lengths = [_lengths(store, texts) for texts in drawn]
  longest = {
    group: max(store.padded_lengths[part.role] for part in parts)
    for group, parts in drawn[0].texts.items()
  }
  usual = {
    group: buckets.choose(
      np.stack([of_step[group] for of_step in lengths]),
      longest[group],
      chunk if 0 < chunk < texts else devices,
      most,
    )
    for group, texts in spec.texts().items()
  }
  widened = {
    group: buckets.widened(chosen, longest[group])
    for group, chosen in usual.items()
  }
  return (usual,) if widened == usual else (usual, widened)


def describe(plan: Plan) -> str:
  """A plan in words: its buckets, and what they save."""
  lines = []
  for group, chosen in plan.items():
    texts = sum(bucket.rows for bucket in chosen)
    padded = sum(bucket.rows * bucket.length for bucket in chosen)
    saved = 1 - padded / (texts * chosen[0].length)
    each = " + ".join(f"{rows:,} x {length}" for rows, length in chosen)
    lines.append(
      f"{group} texts of a step, padded: {each} tokens"
      f" ({saved:.0%} fewer than all at {chosen[0].length})"
    )
  return "\n".join(lines)


def check_chunk(chunk: int, texts: Mapping[str, int], devices: int = 1) -> None:
  """Refuses a chunk that does not divide what is encoded in such chunks.

  Args:
    chunk: Texts encoded at once, over all devices; 0 for all of them.
    texts: From `BatchSpec.texts`; a group of fewer texts than a chunk needs no
      chunks.
    devices: Over how many the texts are split.

  Raises:
    ValueError: naming the nearest that does.
  """

  def divides(chunk):
    return chunk % devices == 0 and all(
      count <= chunk or count % chunk == 0 for count in texts.values()
    )

  if not chunk or divides(chunk):
    return
  possible = [n for n in range(1, max(texts.values()) + 1) if divides(n)]
  nearest = sorted(possible, key=lambda n: (abs(n - chunk), n))[:2]
  counts = " and ".join(f"{n} {group} texts" for group, n in texts.items())
  raise ValueError(
    f"batch.chunk is {chunk}, but a step encodes {counts} on {devices} devices"
    f" along the mesh's 'data': use {' or '.join(map(str, nearest))}, or change"
    " the batch."
  )


def batch_of_step(
  store: tokens.TokenStore,
  spec: BatchSpec,
  plans: Sequence[Plan],
  seed: int,
  temperature: float,
  step: int,
  host_rows: Callable[[int], np.ndarray] = np.arange,
  masker: masking.Masker | None = None,
) -> dict:
  """The batch of a step, or the part of it that this host needs.

  Args:
    store: The token store.
    spec: Global batch sizes.
    plans: From `make_plans`.
    seed: The run's seed.
    temperature: Languages are drawn with probability ~ size ** (1 /
      temperature).
    step: From 0; any step costs the same.
    host_rows: Rows of a global array to those of them that are wanted, int
      [n]; all, by default.
    masker: Hides words of the stream "masked".

  Returns:
    A dict of what the batch has; R, B, N and M stand for the rows wanted, H
    for hard negatives, L for a bucket's length, P for the most known
    positives of a question, K for the most targets of a row. Ids are int32;
    -1 is none. A row number is that of a tower's text in its buckets, one
    behind the other.
      texts: tower ("query" if it is one of its own, "passage") to buckets:
        a tuple of {"ids": [R, L], "mask": bool, "number": [R], the text's in
        the step, whatever the buckets}
      retrieval:
        query: row numbers [B]
        query_text: [B]
        passage: row numbers [B, 1 + H], the positive first
        passage_text, passage_id: [B, 1 + H]
        passage_valid: bool [B, 1 + H]; False where hard negatives lack
        positive_text, positive_id: [B, P], all known positives
      parallel:
        sentence: row numbers [N, 2]
        text: [N, 2]
      monolingual:
        sentence: row numbers [M]
        text: [M]
      masked: buckets, a tuple of {"ids", "mask", "number"}, words hidden, and
        positions, targets: [R, K], where and what they were; else 0
        valid: bool [R, K]

  Raises:
    ValueError: if the store lacks a stream, see `check`, the masker is missing,
      or the plans are not of this store.
  """
  _check_masker(spec, masker)
  drawn = _draw(store, spec, seed, temperature, step)
  lengths = _lengths(store, drawn)
  fitting = [
    plan
    for plan in plans
    if all(buckets.fit(lengths[group], plan[group]) for group in lengths)
  ]
  if not fitting:
    raise ValueError(f"The texts of step {step} fit none of the plans.")
  plan = fitting[0]
  batch = {
    stream: {
      name: values[host_rows(len(values))] for name, values in fields.items()
    }
    for stream, fields in drawn.fields.items()
  }
  batch["texts"] = {}
  for group, parts in drawn.texts.items():
    order = buckets.order(lengths[group])
    row_of = np.empty(len(order), np.int32)
    row_of[order] = np.arange(len(order))
    start = 0
    filled = []
    for bucket in plan[group]:
      number = order[start + host_rows(bucket.rows)]
      filled.append(_bucket(store, parts, number, bucket.length))
      start += bucket.rows
    if group == "masked":
      batch["masked"] = tuple(
        _mask(masker, texts, drawn.mask_keys) for texts in filled
      )
      continue
    batch["texts"][group] = tuple(filled)  # tf.data takes no lists.
    at = 0
    for part in parts:
      rows = row_of[at : at + part.text.size].reshape(part.text.shape)
      batch[part.stream][part.role] = rows[host_rows(len(rows))]
      at += part.text.size
  return batch


class _Part(NamedTuple):
  """Texts of a stream that are encoded in one role; text is int32 [n, ...]."""

  stream: str
  role: str
  text: np.ndarray


class _Drawn(NamedTuple):
  """A step's global batch before anything is padded.

  Attributes:
    fields: Stream to what its losses compare texts by.
    texts: Group to its texts; their order gives each its number.
    mask_keys: uint64 [M], of the masked sentences.
  """

  fields: dict[str, dict[str, np.ndarray]]
  texts: dict[str, list[_Part]]
  mask_keys: np.ndarray


def _draw(
  store: tokens.TokenStore,
  spec: BatchSpec,
  seed: int,
  temperature: float,
  step: int,
) -> _Drawn:
  """Which texts a step reads."""
  check(store, spec)
  fields, texts, mask_keys = {}, collections.defaultdict(list), np.zeros(0)
  for stream in STREAMS:
    size = getattr(spec, stream)
    if not size:
      continue
    positions = step * size + np.arange(size)
    rows, epochs = sampling.draw(
      positions,
      seed,
      stream,
      list(store.groups(_ROWS[stream]).values()),
      temperature,
    )
    if stream == "retrieval":
      fields[stream] = found = _retrieval(
        store, rows, epochs, seed, spec.hard_negatives
      )
      queries = "passage" if spec.tied else "query"
      texts[queries].append(_Part(stream, "query", found["query_text"]))
      texts["passage"].append(_Part(stream, "passage", found["passage_text"]))
      continue
    part = _Part(
      stream, "sentence", store.arrays[f"{_ROWS[stream]}_texts"][rows]
    )
    if stream == "masked":
      # By position, not by row: a later epoch hides other words.
      mask_keys = sampling.make_key(seed, "masking", positions)
      texts["masked"].append(part)
    else:
      fields[stream] = {"text": part.text}
      texts["passage"].append(part)
  return _Drawn(fields, dict(texts), mask_keys)


def _lengths(store: tokens.TokenStore, drawn: _Drawn) -> dict[str, np.ndarray]:
  """Group to the tokens of each of its texts, int64 [T]."""
  return {
    group: np.concatenate(
      [store.text_lengths(part.role, part.text.ravel()) for part in parts]
    )
    for group, parts in drawn.texts.items()
  }


def _bucket(
  store: tokens.TokenStore,
  parts: Sequence[_Part],
  number: np.ndarray,
  length: int,
) -> dict:
  """The padded tokens of some of a group's texts, told by their numbers."""
  ids = np.full((len(number), length), store.pad_id, np.int32)
  mask = np.zeros(ids.shape, bool)
  at = 0
  for part in parts:
    here = (at <= number) & (number < at + part.text.size)
    ids[here], mask[here] = store.sequences(
      part.role, part.text.ravel()[number[here] - at], length
    )
    at += part.text.size
  return {"ids": ids, "mask": mask, "number": number.astype(np.int32)}


def _mask(masker: masking.Masker, texts: dict, keys: np.ndarray) -> dict:
  """A bucket with words hidden, and what they were."""
  number = texts["number"]
  return {**masker(texts["ids"], texts["mask"], keys[number]), "number": number}


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
  """What the IR loss compares texts by; rows and epochs are int64 [B]."""
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
    "query_text": query_text,
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


def batches(
  kind: str,
  store: tokens.TokenStore,
  spec: BatchSpec,
  plans: Sequence[Plan],
  seed: int,
  temperature: float,
  start: int,
  stop: int,
  host_rows: Callable[[int], np.ndarray] = np.arange,
  prefetch: int = 2,
  masker: masking.Masker | None = None,
) -> Generator[tuple[int, dict], None, None]:
  """The batches of the steps from `start` to before `stop`.

  Args:
    kind: "tf_data", or "in_process": the same batches from a thread, without
      tensorflow.
    store: The token store.
    spec: Global batch sizes.
    plans: From `make_plans`.
    seed: The run's seed.
    temperature: Of the languages' mixture.
    start: First step.
    stop: The step after the last one.
    host_rows: As in `batch_of_step`.
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
    batch_of_step,
    store,
    spec,
    plans,
    seed,
    temperature,
    host_rows=host_rows,
    masker=masker,
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
    return step, tf.nest.pack_sequence_as(example, arrays)

  # A map without parallel calls keeps the order.
  dataset = tf.data.Dataset.range(start, stop).map(load).prefetch(prefetch)
  return ((int(step), batch) for step, batch in dataset.as_numpy_iterator())
