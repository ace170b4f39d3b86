"""Reads the batches of a run; each is a function of (seed, step)."""

import collections
import concurrent.futures
import functools
import importlib.util
import itertools
import math
import os
from collections.abc import Callable, Generator, Mapping, Sequence

import jax
import numpy as np

from mlir_jax.batches import batch as batch_lib
from mlir_jax.batches import drawing, identity, masking, packing, row_plans
from mlir_jax.batches import mixture as mixture_lib
from mlir_jax.data import guide_vectors, token_store

KINDS = {
  "tf_data": "made in a tf.data pipeline",
  "in_process": "made in a thread of this process",
}


def batch_of_step(
  store: token_store.TokenStore,
  spec: batch_lib.BatchSpec,
  plans: Sequence[row_plans.Plan],
  seed: int,
  mixture: mixture_lib.Mixture,
  step: int,
  host_rows: Callable[[int], np.ndarray] = np.arange,
  masker: masking.Masker | None = None,
  guide: guide_vectors.GuideVectors | None = None,
  teacher: guide_vectors.GuideVectors | None = None,
) -> batch_lib.Batch:
  """Makes the batch of a step, or the part of it that this host needs.

  Args:
    store: The token store.
    spec: Global batch sizes.
    plans: From `row_plans.make_plans`.
    seed: The run's seed.
    mixture: How sources and languages share the rows.
    step: From 0. Late steps take no longer than early ones.
    host_rows: (number of rows of a global array) -> the rows that this host
      needs, int [n]. The default is all rows.
    masker: Hides words of the stream "masked".
    guide: Its vectors are added to the questions and passages.
    teacher: Its vectors are added to the translations.

  Returns:
    The batch, of NumPy arrays.

  Raises:
    ValueError: if the store lacks a stream (see `drawing.check`), the masker is
      missing, or the plans were made for another store.
  """
  _check_masker(spec, masker)
  drawn = drawing.draw(store, spec, seed, mixture, step)
  lengths = drawing.lengths(store, drawn)
  plan, packed = _pack(plans, lengths, masker, step)
  arrays = {
    stream: {
      name: values[host_rows(len(values))] for name, values in fields.items()
    }
    for stream, fields in drawn.fields.items()
  }
  if guide and (retrieval := arrays.get("retrieval")):
    for role in guide_vectors.GUIDE.roles:
      retrieval[f"{role}_guide"] = guide.find(
        role, identity.join(retrieval[f"{role}_text"])
      )
  if teacher and (parallel := arrays.get("parallel")):
    languages = drawn.languages[host_rows(len(drawn.languages))]
    parallel["teacher"] = _teacher_vectors(
      store, teacher, identity.join(parallel["text"]), languages
    )
  texts, masked = {}, None
  for group, parts in drawn.texts.items():
    blocks = [
      (block.length, number[host_rows(block.rows)])
      for block, number in zip(plan[group], packed[group].numbers, strict=True)
    ]
    if group == "masked":
      assert masker is not None  # See `_check_masker`.
      masked = tuple(
        _masked_rows(
          store, parts, number, length, block.targets, masker, drawn.mask_keys
        )
        for block, (length, number) in zip(plan[group], blocks, strict=True)
      )
      continue
    texts[group] = tuple(
      _text_rows(store, parts, number, length) for length, number in blocks
    )
    at = 0
    for part in parts:
      slot = packed[group].slot[at : at + part.text.size]
      slot = slot.reshape(part.text.shape)
      arrays[part.stream][part.role] = slot[host_rows(len(slot))]
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


def _teacher_vectors(
  store: token_store.TokenStore,
  teacher: guide_vectors.GuideVectors,
  texts: np.ndarray,
  languages: np.ndarray,
) -> np.ndarray:
  """Finds the teacher's vectors of the sides that it reads.

  Args:
    store: The token store.
    teacher: The vectors.
    texts: Text hashes of both sides of translations, uint64 [N, 2].
    languages: The numbers of their languages, int32 [N, 2].

  Returns:
    float16 [N, T], 0 for a translation of which it reads no side.
  """
  number = guide_vectors.language_number(
    store.languages, teacher.guide["language"]
  )
  side = guide_vectors.sides_to_read(languages, number)
  read = np.take_along_axis(texts, np.maximum(side, 0)[:, None], axis=1)[:, 0]
  return teacher.find("sentence", np.where(side < 0, identity.NONE, read))


def _pack(
  plans: Sequence[row_plans.Plan],
  lengths: Mapping[str, np.ndarray],
  masker: masking.Masker | None,
  step: int,
) -> tuple[row_plans.Plan, dict[str, packing.Packed]]:
  """Packs a step's texts by the first plan that has room for them."""
  for plan in plans:
    packed = {}
    for group, of_group in lengths.items():
      targets = None
      if group == "masked" and masker:
        targets = row_plans.targets(masker.rate, int(of_group.max(initial=0)))
      found = packing.pack(of_group, plan[group], targets)
      if found is None:
        break
      packed[group] = found
    else:
      return plan, packed
  raise ValueError(f"The texts of step {step} do not fit in any plan.")


def _sequences(
  store: token_store.TokenStore,
  parts: Sequence[drawing.Part],
  number: np.ndarray,
  length: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Reads the padded tokens of the texts of some rows.

  Args:
    store: The token store.
    parts: The texts of the group.
    number: int32 [R, S], the texts' numbers; -1 for no text.
    length: L, to which the texts are padded.

  Returns:
    The tokens, int32 [n, L], and the mask, bool [n, L], of the n texts in these
    rows, row by row.
  """
  number = number[number >= 0]
  ids = np.full((len(number), length), store.pad_id, np.int32)
  mask = np.zeros(ids.shape, bool)
  at = 0
  for part in parts:
    here = (at <= number) & (number < at + part.text.size)
    ids[here], mask[here] = store.sequences(
      part.role, part.text.ravel()[number[here] - at], length
    )
    at += part.text.size
  return ids, mask


def _text_rows(
  store: token_store.TokenStore,
  parts: Sequence[drawing.Part],
  number: np.ndarray,
  length: int,
) -> batch_lib.TextRows:
  """Makes rows of texts; the arguments are those of `_sequences`."""
  ids, mask = _sequences(store, parts, number, length)
  rows, _, _ = packing.lay_out(number, length, ids[mask], mask.sum(axis=1))
  return batch_lib.TextRows(*rows, number)


def _masked_rows(
  store: token_store.TokenStore,
  parts: Sequence[drawing.Part],
  number: np.ndarray,
  length: int,
  amount: int,
  masker: masking.Masker,
  keys: np.ndarray,
) -> batch_lib.MaskedRows:
  """Makes rows of texts with hidden words, and their targets.

  Args:
    store: As in `_sequences`.
    parts: As in `_sequences`.
    number: As in `_sequences`.
    length: As in `_sequences`.
    amount: K, the largest number of hidden tokens of a row.
    masker: Hides words.
    keys: uint64, one for each text of the group.
  """
  ids, mask = _sequences(store, parts, number, length)
  places, targets = np.zeros((2, len(number), amount), np.int32)
  valid = np.zeros(places.shape, bool)
  if len(ids):
    hidden = masker(ids, mask, keys[number[number >= 0]])
    ids = hidden["ids"]
  rows, row, start = packing.lay_out(
    number, length, ids[mask], mask.sum(axis=1)
  )
  if len(ids):
    text, which = np.nonzero(hidden["valid"])
    counts = np.bincount(row[text], minlength=len(number))
    valid = np.arange(amount) < counts[:, None]
    # Texts are in the order of the rows, from left to right; targets, too.
    places[valid] = start[text] + hidden["positions"][text, which]
    targets[valid] = hidden["targets"][text, which]
  return batch_lib.MaskedRows(*rows, number, places, targets, valid)


def _check_masker(
  spec: batch_lib.BatchSpec, masker: masking.Masker | None
) -> None:
  if spec.masked > 0 and masker is None:
    raise ValueError(
      f"batch.masked is {spec.masked}, but there is no masker: make one with"
      " masking.make_masker, or set batch.masked=0."
    )


def choose(kind: str) -> str:
  """Chooses the reader from the config's data.reader.

  Args:
    kind: data.reader.

  Returns:
    "tf_data" or "in_process". For "auto" it is "tf_data" if tensorflow is
    installed.
  """
  if kind != "auto":
    return kind
  spec = importlib.util.find_spec("tensorflow")
  # A plain folder named tensorflow is also found, but has no origin.
  return "tf_data" if spec and spec.origin else "in_process"


def batches(
  kind: str,
  store: token_store.TokenStore,
  spec: batch_lib.BatchSpec,
  plans: Sequence[row_plans.Plan],
  seed: int,
  mixture: mixture_lib.Mixture,
  start: int,
  stop: int,
  host_rows: Callable[[int], np.ndarray] = np.arange,
  prefetch: int = 2,
  masker: masking.Masker | None = None,
  guide: guide_vectors.GuideVectors | None = None,
  teacher: guide_vectors.GuideVectors | None = None,
) -> Generator[tuple[int, batch_lib.Batch], None, None]:
  """Reads the batches of the steps from `start` to `stop` - 1.

  Args:
    kind: "tf_data", or "in_process", which makes the same batches in a thread,
      without tensorflow.
    store: The token store.
    spec: Global batch sizes.
    plans: From `row_plans.make_plans`.
    seed: The run's seed.
    mixture: As in `batch_of_step`.
    start: First step.
    stop: The step after the last one.
    host_rows: As in `batch_of_step`.
    prefetch: Batches prepared ahead, at least 1.
    masker: As in `batch_of_step`.
    guide: As in `batch_of_step`.
    teacher: As in `batch_of_step`.

  Returns:
    A generator of (step, batch). Closing it also stops the preparation of later
    batches.

  Raises:
    ValueError: if the store lacks data that the batches need.
    ImportError: if the kind is "tf_data" and tensorflow is not installed.
  """
  drawing.check(store, spec, mixture)
  _check_masker(spec, masker)
  make_batch = functools.partial(
    batch_of_step,
    store,
    spec,
    plans,
    seed,
    mixture,
    host_rows=host_rows,
    masker=masker,
    guide=guide,
    teacher=teacher,
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
  # The plan of a step decides how many arrays its batch has, but a pipeline has
  # one signature: the arrays of a batch pass through it as one row of bytes.
  layouts = {}

  def load(step):
    leaves, tree = jax.tree.flatten(make_batch(int(step)))
    layouts[int(step)] = tree, [(leaf.dtype, leaf.shape) for leaf in leaves]
    return np.frombuffer(b"".join(leaf.tobytes() for leaf in leaves), np.uint8)

  def restore(step, data):
    tree, arrays = layouts.pop(int(step))
    leaves, at = [], 0
    for dtype, shape in arrays:
      end = at + dtype.itemsize * math.prod(shape)
      leaves.append(data[at:end].view(dtype).reshape(shape))
      at = end
    return jax.tree.unflatten(tree, leaves)

  def numbered(step):
    return step, tf.numpy_function(load, [step], tf.uint8, stateful=False)

  # Without parallel calls, `map` keeps the order.
  dataset = tf.data.Dataset.range(start, stop).map(numbered).prefetch(prefetch)
  return (
    (int(step), restore(step, data))
    for step, data in dataset.as_numpy_iterator()
  )
