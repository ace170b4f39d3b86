"""The self-check passes only on devices that compute right gradients."""

import dataclasses

import jax
import pytest
import random_batches as rb

from mlir_jax import sharding
from mlir_jax.models import architecture
from mlir_jax.training import chunking, selfcheck


def test_it_passes_here():
  mesh = sharding.make_mesh()
  config = dataclasses.replace(
    rb.CONFIG, hidden_dropout=0.1, attention_dropout=0.1
  )
  said = selfcheck.check(config, rb.CONTRACT, mesh)
  assert "Self-check" in said
  difference, _ = selfcheck.largest_difference(config, rb.CONTRACT, mesh)
  assert 0 < difference < 1e-5


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_a_wrong_gradient_of_one_leaf_is_found_and_named(factor, monkeypatch):
  right = chunking.make_encode

  def wrong(*args, **kwargs):
    encode = right(*args, **kwargs)

    @jax.custom_jvp
    def bend(leaf):
      return leaf

    bend.defjvp(lambda primals, tangents: (primals[0], factor * tangents[0]))

    def bent(params, texts):
      tower = params["encoder"]
      embeddings = tower["embeddings"]
      embeddings = {**embeddings, "token": bend(embeddings["token"])}
      return encode({"encoder": {**tower, "embeddings": embeddings}}, texts)

    return bent

  monkeypatch.setattr(chunking, "make_encode", wrong)
  with pytest.raises(ArithmeticError, match="encoder/embeddings/token"):
    selfcheck.check(rb.CONFIG, rb.CONTRACT, sharding.make_mesh())


def test_large_models_are_checked_as_small_ones():
  """A large model of any family takes a moment to check."""
  large = architecture.EncoderConfig(
    vocab_size=300_000,
    hidden_size=16,
    num_layers=48,
    num_heads=2,
    intermediate_size=32,
    max_positions=514,
    family="xlm-roberta",
    pad_token_id=1,
    dtype="bfloat16",
    remat="layer",
  )
  difference, _ = selfcheck.largest_difference(
    large, rb.CONTRACT, sharding.make_mesh()
  )
  assert difference < 1e-5
