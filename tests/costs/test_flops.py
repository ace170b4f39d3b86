"""The formula of a step's operations, against the compiler's own count."""

import jax
import jax.numpy as jnp
import pytest

from mlir_jax.costs import flops
from mlir_jax.losses import registry
from mlir_jax.models import architecture, encoder

BERT = architecture.EncoderConfig(
  vocab_size=300,
  hidden_size=256,
  num_layers=2,
  num_heads=4,
  intermediate_size=1024,
  max_positions=64,
  hidden_dropout=0.0,
  attention_dropout=0.0,
  projection_size=64,
)
MODERN = architecture.EncoderConfig(
  vocab_size=300,
  hidden_size=256,
  num_layers=2,
  num_heads=4,
  intermediate_size=384,
  max_positions=64,
  type_vocab_size=0,
  hidden_dropout=0.0,
  attention_dropout=0.0,
  family="modernbert",
  attention_window=16,
  layer_types=(architecture.FULL, architecture.SLIDING),
)


def counted(function, *arguments):
  """What XLA counts in a program without loops, on one device."""
  return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("config", [BERT, MODERN], ids=["bert", "modernbert"])
def test_a_training_step_takes_what_the_compiler_counts(config):
  rows, length = 8, 64
  params = encoder.abstract_params(config, "tied")
  tokens = {
    "ids": jax.ShapeDtypeStruct((rows, length), jnp.int32),
    "mask": jax.ShapeDtypeStruct((rows, length), jnp.bool),
  }

  def loss(params, tokens):
    vectors = encoder.embed(
      config, params, "query", tokens, pooling="mean", normalize=True
    )
    return (vectors @ vectors.T).sum()

  found = flops.train_step(config, [(rows, length)], [(rows, rows)])
  assert found.again == 0
  # What is no matrix product is counted by the compiler alone.
  expected = counted(jax.grad(loss), params, tokens)
  assert found.model == pytest.approx(expected, rel=0.02)
  assert found.model < expected


def test_recomputing_is_the_hardwares_work_and_not_the_models():
  texts = [(16, 32), (64, 64)]
  once = flops.train_step(BERT, texts)
  again = flops.train_step(BERT, texts, forwards_again=1)
  assert again.model == once.model == once.hardware
  assert 3 * again.hardware == 4 * once.hardware
  attended = flops.train_step(BERT, texts, attends_again=1)
  products = 4 * BERT.num_layers * BERT.hidden_size * (16 * 32**2 + 64 * 64**2)
  assert attended.again == products


def test_the_losses_score_matrices_and_the_vocabulary_are_counted():
  sizes = {
    "retrieval": 8,
    "hard_negatives": 2,
    "parallel": 4,
    "monolingual": 0,
  }
  settings = registry.defaults()
  settings["language"]["passages"] = 0.0
  matrices = [
    matrix
    for loss in registry.make(settings).values()
    for matrix in loss.score_matrices(sizes)
  ]
  assert matrices == [(8, 24), (8, 8), (4, 8), (4, 0)]
  found = flops.train_step(BERT, [], matrices, places=10)
  assert found.scores == 3 * 2 * 64 * (8 * 24 + 8 * 8 + 4 * 8)
  head = 2 * 10 * (256 * 256 + 256 * 512)
  assert found.model == found.scores + 3 * head
  assert found.again == head
