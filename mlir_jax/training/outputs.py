"""What the encoder gives the losses: the outputs of a batch, by name.

`losses.base.OUTPUTS` says what each is.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mlir_jax.batches import batch as batch_lib
from mlir_jax.losses import base, masked_lm
from mlir_jax.training import chunking

PyTree = Any
# (parameters, batch, key for dropout or None) -> outputs.
Encode = Callable[
  [PyTree, batch_lib.Batch, jax.Array | None], dict[str, PyTree]
]

# Outputs that are parameters, not encoded texts.
_PARAMETERS = ("vocabulary",)


def encoded(outputs: base.Outputs) -> base.Outputs:
  """The outputs that were encoded of texts."""
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
    vocabulary: Parameters -> the output "vocabulary"; batches with masked
      sentences need it.

  Returns:
    encode(params, batch, key) -> outputs, differentiable by the parameters.
  """

  def outputs_of(params, batch, key):
    found = encode(params, texts_of(batch, key))
    vectors = {
      tower: replicate(jnp.concatenate(found[tower])) for tower in batch.texts
    }

    queries: Any = vectors.get("query", vectors.get("passage"))
    passages: Any = vectors.get("passage")  # None if all texts are masked.

    outputs = {}
    if retrieval := batch.retrieval:
      outputs["queries"] = queries[retrieval.query]
      outputs["passages"] = passages[retrieval.passage]
    if batch.parallel:
      outputs["sentences"] = passages[batch.parallel.sentence]
    if batch.monolingual:
      outputs["monolingual"] = passages[batch.monolingual.sentence]
    if batch.masked:
      assert vocabulary is not None  # See above.
      outputs["masked"] = found["masked"]
      outputs["vocabulary"] = vocabulary(params)
    return outputs

  return outputs_of


def texts_of(batch: batch_lib.Batch, key: jax.Array | None) -> chunking.Texts:
  """The texts that a step encodes, each with its seed for dropout.

  Args:
    batch: The reader's batch.
    key: For dropout; None for none.

  Returns:
    Group to buckets: "query", "passage" and "masked", as far as the batch has
    them. Seeds go by the texts' numbers, so that no bucket or device changes
    what a text loses.
  """
  groups = dict(batch.texts)
  if batch.masked:
    groups["masked"] = batch.masked
  texts = {}
  for position, group in enumerate(sorted(groups)):
    texts[group] = [
      {"ids": bucket.ids, "mask": bucket.mask} for bucket in groups[group]
    ]
    if batch.masked and group == "masked":
      for read, bucket in zip(texts[group], batch.masked, strict=True):
        read["positions"] = bucket.positions
    if key is None:
      continue
    numbers = [bucket.number for bucket in groups[group]]
    seeds = jax.random.bits(
      jax.random.fold_in(key, position),
      (sum(len(number) for number in numbers),),
      jnp.uint32,
    )
    for read, number in zip(texts[group], numbers, strict=True):
      read["seeds"] = seeds[number]
  return texts
