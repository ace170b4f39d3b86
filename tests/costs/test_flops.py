"""The formula of a step's operations, against the compiler's own count."""

import jax
import jax.numpy as jnp
import pytest

from mlir_jax.costs import flops
from mlir_jax.losses import registry
from mlir_jax.models import architecture, encoder
from mlir_jax.models import rows as rows_lib

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


def texts_of(rows, length):
  return flops.Texts(rows, rows * length, rows * length**2)


@pytest.mark.parametrize("config", [BERT, MODERN], ids=["bert", "modernbert"])
def test_a_training_step_takes_what_the_compiler_counts(config):
  rows, length = 8, 64
  params = encoder.abstract_params(config, "tied")
  array = jax.ShapeDtypeStruct((rows, length), jnp.int32)
  tokens = rows_lib.Rows(array, array, array)

  def loss(params, tokens):
    (vectors,) = encoder.embed(
      config, params, "query", [tokens], pooling="mean", normalize=True
    )
    vectors = vectors[:, 0]
    return (vectors @ vectors.T).sum()

  texts = [texts_of(rows, length)]
  found = flops.train_step(
    config, texts, texts, [(rows, rows, config.output_size)]
  )
  assert found.again == found.padding == 0
  # What is no matrix product is counted by the compiler alone.
  expected = counted(jax.grad(loss), params, tokens)
  assert found.model == pytest.approx(expected, rel=0.02)
  assert found.model < expected


def test_recomputing_is_the_hardwares_work_and_not_the_models():
  texts = [texts_of(16, 32), texts_of(64, 64)]
  once = flops.train_step(BERT, texts, texts)
  again = flops.train_step(BERT, texts, texts, forwards_again=1)
  assert again.model == once.model == once.hardware
  assert 3 * again.hardware == 4 * once.hardware
  attended = flops.train_step(BERT, texts, texts, attends_again=1)
  products = 4 * BERT.num_layers * BERT.hidden_size * (16 * 32**2 + 64 * 64**2)
  assert attended.again == products


def test_padding_is_computed_and_is_not_the_models_work():
  real, computed = texts_of(32, 24), texts_of(8, 128)
  assert computed.tokens > real.tokens
  found = flops.train_step(BERT, [real], [computed])
  assert found.model == flops.train_step(BERT, [real], [real]).model
  assert found.hardware == flops.train_step(BERT, [computed], [computed]).model


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
  matrices = [(*matrix, 64) for matrix in matrices]
  found = flops.train_step(BERT, [], [], matrices, places=10)
  assert found.scores == 3 * 2 * 64 * (8 * 24 + 8 * 8 + 4 * 8)
  head = 2 * 10 * (256 * 256 + 256 * 512)
  assert found.model == found.scores + 3 * head
  assert found.again == head
