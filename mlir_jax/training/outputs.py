"""Encodes a batch into the outputs that the losses read, by name.

`losses.base.OUTPUTS` describes each output.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mlir_jax.batches import batch as batch_lib
from mlir_jax.losses import base, masked_lm
from mlir_jax.models import blocks
from mlir_jax.models import rows as rows_lib
from mlir_jax.training import chunking

PyTree = Any
# (parameters, batch, key for dropout or None) -> outputs.
Encode = Callable[
  [PyTree, batch_lib.Batch, jax.Array | None], dict[str, PyTree]
]

# Outputs that are parameters, not encoded texts.
_PARAMETERS = ("vocabulary",)


def encoded(outputs: base.Outputs) -> base.Outputs:
  """Returns the outputs that are encoded texts."""
  return {name: outputs[name] for name in outputs if name not in _PARAMETERS}


def make_encode(
  encode: chunking.Encode,
  replicate: base.Replicate = lambda x: x,
  vocabulary: Callable[[PyTree], masked_lm.Vocabulary] | None = None,
) -> Encode:
  """Makes the function that encodes a batch.

  Queries go through the query tower; passages, parallel and monolingual
  sentences through the passage tower (Hu et al. 2023, Figure 2).

  Args:
    encode: From `chunking.make_encode`: encodes texts.
    replicate: A sharding constraint on all texts' vectors.
    vocabulary: (parameters) -> the output "vocabulary". Batches with masked
      sentences need it.

  Returns:
    encode(params, batch, key) -> outputs, differentiable by the parameters.
  """

  def outputs_of(params, batch, key):
    found = encode(params, texts_of(batch, key))

    def vectors_of(tower):
      size = found[tower][0].shape[-1]
      return replicate(
        jnp.concatenate([each.reshape(-1, size) for each in found[tower]])
      )

    vectors = {tower: vectors_of(tower) for tower in batch.texts}

    def take(tower, places):
      # A missing text has a place after the last one. Its vector is 0.
      return vectors[tower].at[places].get(mode="fill", fill_value=0)

    queries = "query" if "query" in vectors else "passage"
    outputs = {}
    if retrieval := batch.retrieval:
      outputs["queries"] = take(queries, retrieval.query)
      outputs["passages"] = take("passage", retrieval.passage)
    if batch.parallel:
      outputs["sentences"] = take("passage", batch.parallel.sentence)
    if batch.monolingual:
      outputs["monolingual"] = take("passage", batch.monolingual.sentence)
    if batch.masked:
      assert vocabulary is not None  # See above.
      outputs["masked"] = found["masked"]
      outputs["vocabulary"] = vocabulary(params)
    return outputs

  return outputs_of


def texts_of(batch: batch_lib.Batch, key: jax.Array | None) -> chunking.Texts:
  """Returns the rows that a step encodes, with the texts' dropout seeds.

  Args:
    batch: The reader's batch.
    key: For dropout; None for no dropout.

  Returns:
    Group to rows, for those of "query", "passage" and "masked" that the batch
    has. A text's seed is a function of its number, so dropout does not depend
    on its row or device.
  """
  groups = dict(batch.texts)
  if batch.masked:
    groups["masked"] = batch.masked
  texts = {}
  for position, group in enumerate(sorted(groups)):
    seed = None
    if key is not None:
      seed = jax.random.bits(jax.random.fold_in(key, position), (), jnp.uint32)
    texts[group] = tuple(_rows(block, seed) for block in groups[group])
  return texts


def _rows(block: batch_lib.TextRows, seed: jax.Array | None) -> rows_lib.Rows:
  """Converts a batch's rows to the encoder's input."""
  seeds = None
  if seed is not None:
    text = jnp.maximum(block.segment - 1, 0)
    number = jnp.take_along_axis(block.number, text, axis=1)
    seeds = blocks.text_seeds(seed, number)
  return rows_lib.Rows(
    ids=block.ids,
    position=block.position,
    segment=block.segment,
    seeds=seeds,
    places=getattr(block, "places", None),
    texts=block.number.shape[1],
  )
