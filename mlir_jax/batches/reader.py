"""Batches as a function of (seed, step), by tf.data or without tensorflow."""

import collections
import concurrent.futures
import functools
import importlib.util
import itertools
import os
from collections.abc import Callable, Generator, Sequence

import jax
import numpy as np

from mlir_jax.batches import batch as batch_lib
from mlir_jax.batches import buckets, drawing, masking, shapes
from mlir_jax.data import token_store

KINDS = {
  "tf_data": "made in a tf.data pipeline",
  "in_process": "made in a thread of this process",
}


def batch_of_step(
  store: token_store.TokenStore,
  spec: batch_lib.BatchSpec,
  plans: Sequence[shapes.Plan],
  seed: int,
  temperature: float,
  step: int,
  host_rows: Callable[[int], np.ndarray] = np.arange,
  masker: masking.Masker | None = None,
) -> batch_lib.Batch:
  """The batch of a step, or the part of it that this host needs.

  Args:
    store: The token store.
    spec: Global batch sizes.
    plans: From `shapes.make_plans`.
    seed: The run's seed.
    temperature: Languages are drawn with probability ~ size ** (1 /
      temperature).
    step: From 0; any step costs the same.
    host_rows: Rows of a global array to those of them that are wanted, int
      [n]; all, by default.
    masker: Hides words of the stream "masked".

  Returns:
    The batch, of NumPy arrays.

  Raises:
    ValueError: if the store lacks a stream, see `drawing.check`, the masker is
      missing, or the plans are not of this store.
  """
  _check_masker(spec, masker)
  drawn = drawing.draw(store, spec, seed, temperature, step)
  lengths = drawing.lengths(store, drawn)
  fitting = [
    plan
    for plan in plans
    if all(buckets.fit(lengths[group], plan[group]) for group in lengths)
  ]
  if not fitting:
    raise ValueError(f"The texts of step {step} fit none of the plans.")
  plan = fitting[0]
  arrays = {
    stream: {
      name: values[host_rows(len(values))] for name, values in fields.items()
    }
    for stream, fields in drawn.fields.items()
  }
  texts, masked = {}, None
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
      assert masker is not None  # See `_check_masker`.
      masked = tuple(_mask(masker, each, drawn.mask_keys) for each in filled)
      continue
    texts[group] = tuple(filled)
    at = 0
    for part in parts:
      rows = row_of[at : at + part.text.size].reshape(part.text.shape)
      arrays[part.stream][part.role] = rows[host_rows(len(rows))]
      at += part.text.size
  kinds = {
    "retrieval": batch_lib.Retrieval,
    "parallel": batch_lib.Parallel,
    "monolingual": batch_lib.Monolingual,
  }
  return batch_lib.Batch(
    texts=texts,
    masked=masked,
    **{stream: kinds[stream](**arrays[stream]) for stream in arrays},
  )


def _bucket(
  store: token_store.TokenStore,
  parts: Sequence[drawing.Part],
  number: np.ndarray,
  length: int,
) -> batch_lib.TextBucket:
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
  return batch_lib.TextBucket(ids, mask, number.astype(np.int32))


def _mask(
  masker: masking.Masker, texts: batch_lib.TextBucket, keys: np.ndarray
) -> batch_lib.MaskedBucket:
  """A bucket with words hidden, and what they were."""
  return batch_lib.MaskedBucket(
    number=texts.number, **masker(texts.ids, texts.mask, keys[texts.number])
  )


def _check_masker(
  spec: batch_lib.BatchSpec, masker: masking.Masker | None
) -> None:
  if spec.masked > 0 and masker is None:
    raise ValueError(
      f"batch.masked is {spec.masked}, but there is no masker: make one with"
      " masking.make_masker, or set batch.masked=0."
    )


def choose(kind: str) -> str:
  """The reader that a config asks for.

  Args:
    kind: data.reader.

  Returns:
    "tf_data" or "in_process"; for "auto" the first where tensorflow is
    installed.
  """
  if kind != "auto":
    return kind
  spec = importlib.util.find_spec("tensorflow")
  # A folder of that name alone has no file.
  return "tf_data" if spec and spec.origin else "in_process"


def batches(
  kind: str,
  store: token_store.TokenStore,
  spec: batch_lib.BatchSpec,
  plans: Sequence[shapes.Plan],
  seed: int,
  temperature: float,
  start: int,
  stop: int,
  host_rows: Callable[[int], np.ndarray] = np.arange,
  prefetch: int = 2,
  masker: masking.Masker | None = None,
) -> Generator[tuple[int, batch_lib.Batch], None, None]:
  """The batches of the steps from `start` to before `stop`.

  Args:
    kind: "tf_data", or "in_process": the same batches from a thread, without
      tensorflow.
    store: The token store.
    spec: Global batch sizes.
    plans: From `shapes.make_plans`.
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
    ValueError: if the store does not have what the batches need.
    ImportError: for "tf_data" without tensorflow.
  """
  drawing.check(store, spec)
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
  read = {"tf_data": _tf_data, "in_process": _in_process}[kind]
  return read(make_batch, start, stop, prefetch)


def _in_process(
  make_batch: Callable[[int], batch_lib.Batch],
  start: int,
  stop: int,
  prefetch: int,
) -> Generator[tuple[int, batch_lib.Batch], None, None]:
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
  make_batch: Callable[[int], batch_lib.Batch],
  start: int,
  stop: int,
  prefetch: int,
) -> Generator[tuple[int, batch_lib.Batch], None, None]:
  """Makes batches in a tf.data pipeline."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # Errors and worse.
  try:
    import tensorflow as tf
  except ImportError as e:
    raise ImportError(
      "data.reader=tf_data needs tensorflow: pip install mlir_jax[tf], or set"
      " data.reader=in_process, which gives the same batches."
    ) from e
  # TensorFlow would take the memory that JAX needs.
  tf.config.set_visible_devices([], "GPU")
  leaves, tree = jax.tree.flatten(make_batch(start))

  def load(step):
    arrays = tf.numpy_function(
      lambda step: jax.tree.leaves(make_batch(int(step))),
      [step],
      [leaf.dtype for leaf in leaves],
      stateful=False,
    )
    return step, tuple(arrays)  # tf.data takes no lists.

  # A map without parallel calls keeps the order.
  dataset = tf.data.Dataset.range(start, stop).map(load).prefetch(prefetch)
  return (
    (int(step), jax.tree.unflatten(tree, arrays))
    for step, arrays in dataset.as_numpy_iterator()
  )
