"""What the encoder gives the losses, by name: the outputs of a batch.

An output is an array or a tree of arrays. With B question-passage pairs, H hard
negatives each, N sentence pairs, M sentences and vectors of D numbers:
  queries: float32 [B, D]
  passages: float32 [B, 1 + H, D], the positive first
  sentences: float32 [N, 2, D], both sides of each translation
  monolingual: float32 [M, D]
  masked: the last states at the masked places, [R, K, D] of each bucket
  vocabulary: `losses.masked_lm.Vocabulary`, what scores tokens at those places
A batch has those of its streams. The first four are of unit length unless the
encoding contract says otherwise.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mlir_jax.losses import base, masked_lm
from mlir_jax.training import chunking

PyTree = Any
# (parameters, batch, key for dropout or None) -> outputs.
Encode = Callable[[PyTree, base.Batch, jax.Array | None], dict[str, PyTree]]

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
      tower: replicate(jnp.concatenate(found[tower]))
      for tower in batch["texts"]
    }

    def find(stream, role):
      tower = role if role in vectors else "passage"
      return vectors[tower][batch[stream][role]]

    outputs = {}
    if "retrieval" in batch:
      outputs["queries"] = find("retrieval", "query")
      outputs["passages"] = find("retrieval", "passage")
    if "parallel" in batch:
      outputs["sentences"] = find("parallel", "sentence")
    if "monolingual" in batch:
      outputs["monolingual"] = find("monolingual", "sentence")
    if "masked" in batch:
      outputs["masked"] = found["masked"]
      outputs["vocabulary"] = vocabulary(params)
    return outputs

  return outputs_of


def texts_of(batch: base.Batch, key: jax.Array | None) -> chunking.Texts:
  """The texts that a step encodes, each with its seed for dropout.

  Args:
    batch: The reader's batch.
    key: For dropout; None for none.

  Returns:
    Group to buckets: "query", "passage" and "masked", as far as the batch has
    them. Seeds go by the texts' numbers, so that no bucket or device changes
    what a text loses.
  """
  groups = dict(batch["texts"])
  if "masked" in batch:
    read = ("ids", "mask", "number", "positions")
    groups["masked"] = [
      {name: bucket[name] for name in read} for bucket in batch["masked"]
    ]
  texts = {}
  for position, group in enumerate(sorted(groups)):
    numbers = [bucket["number"] for bucket in groups[group]]
    texts[group] = [
      {name: bucket[name] for name in bucket if name != "number"}
      for bucket in groups[group]
    ]
    if key is None:
      continue
    seeds = jax.random.bits(
      jax.random.fold_in(key, position),
      (sum(len(number) for number in numbers),),
      jnp.uint32,
    )
    for bucket, number in zip(texts[group], numbers, strict=True):
      bucket["seeds"] = seeds[number]
  return texts
