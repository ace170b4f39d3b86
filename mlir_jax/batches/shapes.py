"""The shapes of a run's batches: few, so that few programs are compiled."""

from collections.abc import Mapping

import numpy as np

from mlir_jax.batches import batch as batch_lib
from mlir_jax.batches import buckets, drawing
from mlir_jax.data import token_store

# Group to the buckets of its texts, the longest first.
Plan = Mapping[str, tuple[buckets.Bucket, ...]]


def make_plans(
  store: token_store.TokenStore,
  spec: batch_lib.BatchSpec,
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
  drawn = [
    drawing.draw(store, spec, seed, temperature, step) for step in sampled
  ]
  lengths = [drawing.lengths(store, texts) for texts in drawn]
  longest = {
    group: max(store.padded_lengths[part.role] for part in parts)
    for group, parts in drawn[0].texts.items()
  }
  usual = choose(
    {
      group: np.stack([of_step[group] for of_step in lengths])
      for group in spec.texts()
    },
    longest,
    chunk=chunk,
    devices=devices,
    most=most,
  )
  widened = {
    group: buckets.widened(chosen, longest[group])
    for group, chosen in usual.items()
  }
  return (usual,) if widened == usual else (usual, widened)


def choose(
  lengths: Mapping[str, np.ndarray],
  longest: Mapping[str, int],
  *,
  chunk: int,
  devices: int,
  most: int,
) -> Plan:
  """The buckets of each group, whole chunks of each: see `buckets.choose`.

  Args:
    lengths: Group to the tokens of its texts in some steps, int [S, T].
    longest: Group to the length that no text of it exceeds.
    chunk: As in `make_plans`, like the next two.
    devices: Over how many the texts are split.
    most: Buckets of a group, at most.
  """
  return {
    group: buckets.choose(
      of_steps,
      longest[group],
      chunk if 0 < chunk < of_steps.shape[1] else devices,
      most,
    )
    for group, of_steps in lengths.items()
  }


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
    texts: From `batch_lib.BatchSpec.texts`; a group of fewer texts than a chunk
      needs no chunks.
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
