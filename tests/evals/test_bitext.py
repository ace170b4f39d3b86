"""Translations are found by cosine, in both directions."""

import jax
import numpy as np
import pytest

from mlir_jax import sharding
from mlir_jax.data import records
from mlir_jax.evals import bitext


@pytest.fixture(params=[1, 8])
def mesh(request):
  return sharding.make_mesh(devices=jax.devices()[: request.param])


def embedder(vectors):
  def embed(role, texts, titles=None):
    assert role == "sentence" and titles is None
    return np.array([vectors[text] for text in texts], "f4")

  return embed


def translation_test(sources, targets):
  return records.TranslationTest("de", "en", tuple(sources), tuple(targets))


def test_each_direction_has_its_own_accuracy(mesh):
  vectors = {
    "eins": [1, 0, 0],
    "zwei": [1, 0.5, 0],  # Nearer to "one" than to "two".
    "drei": [0, 0, 1],
    "one": [1, 0, 0],
    "two": [0, 1, 0],
    "three": [0, 0.1, 1],
  }
  test = translation_test(["eins", "zwei", "drei"], ["one", "two", "three"])
  assert list(bitext.evaluate(embedder(vectors), [test], mesh)) == [
    ("tatoeba/de-en/accuracy", pytest.approx(2 / 3)),
    ("tatoeba/de-en/strict", pytest.approx(2 / 3)),
    ("tatoeba/en-de/accuracy", 1),
    ("tatoeba/en-de/strict", 1),
  ]


def test_lengths_of_vectors_do_not_matter():
  vectors = {"a": [1, 0], "b": [0, 3], "A": [1, 0.2], "B": [50, 60]}
  test = translation_test(["a", "b"], ["A", "B"])
  results = bitext.evaluate(embedder(vectors), [test], sharding.make_mesh())
  assert [value for _, value in results] == [1] * 4


def test_a_text_in_two_lines_is_right_in_both_unless_the_count_is_strict(mesh):
  vectors = {"du": [1, 0], "ihr": [1, 0.01], "sie": [0, 1]}
  vectors |= {"you": [1, 0], "she": [0, 1]}
  test = translation_test(["du", "ihr", "sie"], ["you", "you", "she"])
  assert list(bitext.evaluate(embedder(vectors), [test], mesh)) == [
    ("tatoeba/de-en/accuracy", 1),
    ("tatoeba/de-en/strict", pytest.approx(2 / 3)),
    # Both "you" find "du": right for one, wrong for the other.
    ("tatoeba/en-de/accuracy", pytest.approx(2 / 3)),
    ("tatoeba/en-de/strict", pytest.approx(2 / 3)),
  ]


def test_equals_brute_force(mesh):
  rng = np.random.default_rng(0)
  meaning = rng.standard_normal((300, 16))
  sources = meaning + rng.standard_normal((300, 16))
  targets = meaning + rng.standard_normal((300, 16))
  names = [f"{number}" for number in range(300)]
  vectors = dict(zip([f"s{n}" for n in names], sources, strict=True))
  vectors |= dict(zip([f"t{n}" for n in names], targets, strict=True))
  test = translation_test([f"s{n}" for n in names], [f"t{n}" for n in names])
  found = dict(bitext.evaluate(embedder(vectors), [test], mesh))
  sources /= np.linalg.norm(sources, axis=1, keepdims=True)
  targets /= np.linalg.norm(targets, axis=1, keepdims=True)
  cosines = sources @ targets.T
  expected = [
    np.mean(cosines.argmax(axis=axis) == np.arange(300)) for axis in (1, 0)
  ]
  assert list(found.values()) == pytest.approx(np.repeat(expected, 2))
  assert 0.1 < min(expected) < 0.9


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_a_vector_without_direction_is_refused(value):
  vectors = {"a": [1, 0], "b": [value, 0], "A": [1, 0], "B": [0, 1]}
  test = translation_test(["a", "b"], ["A", "B"])
  with pytest.raises(ValueError, match="zero or not finite"):
    list(bitext.evaluate(embedder(vectors), [test], sharding.make_mesh()))
