"""Diagnostics find a language offset, and none after its removal."""

import numpy as np
import pytest

from mlir_jax.evals.protocols import (
  embedding_map,
  language_diagnostics,
  language_probe,
)

LANGUAGES = ("de", "en", "zh")


def make_vectors(offset, count=300, width=24, noise=0.3, seed=0):
  """Translations: a meaning, noise, and `offset` times a language's vector."""
  rng = np.random.default_rng(seed)
  meaning = rng.standard_normal((count, width))
  offsets = np.linalg.qr(rng.standard_normal((width, len(LANGUAGES))))[0].T
  vectors, languages, meanings = [], [], []
  for language, direction in zip(LANGUAGES, offsets, strict=True):
    each = meaning + noise * rng.standard_normal((count, width))
    vectors.append(each + offset * np.sqrt(width) * direction)
    languages += [language] * count
    meanings += [f"m{number}" for number in range(count)]
  return np.concatenate(vectors).astype("f4"), languages, meanings


def by_definition(vectors, languages, meanings):
  """Loops over all pairs of texts."""
  z = vectors.astype("f8")
  z /= np.linalg.norm(z, axis=1, keepdims=True)
  same, cross, aligned, potentials = [], [], [], []
  for a in range(len(z)):
    for b in range(a):
      cosine = z[a] @ z[b]
      potentials.append(np.exp(-2 * np.square(z[a] - z[b]).sum()))
      if meanings[a] == meanings[b]:
        aligned.append(np.square(z[a] - z[b]).sum())
      elif languages[a] == languages[b]:
        same.append(cosine)
      else:
        cross.append(cosine)
  deltas, own = [], []
  for i in range(len(z)):
    for j in range(len(z)):
      if i == j or meanings[i] != meanings[j]:
        continue
      for k in range(len(z)):
        if meanings[k] != meanings[i]:
          deltas.append(z[i] @ z[k] - z[j] @ z[k])
          if languages[k] == languages[i]:
            own.append(deltas[-1])
  return {
    "same_language": np.mean(same),
    "cross_language": np.mean(cross),
    "language_gap": np.mean(same) - np.mean(cross),
    "alignment": np.mean(aligned),
    "uniformity": np.log(np.mean(potentials)),
    "delta_rms": np.sqrt(np.mean(np.square(deltas))),
    "delta_own_language": np.mean(own),
  }


def test_measures_equal_loops_over_all_pairs():
  vectors, languages, meanings = make_vectors(0.7, count=12)
  kept = [0, 1, 2, 5, 7, 9, 11, 12, 13, 14, 20, 23, 25, 26, 29, 30, 31]
  vectors = vectors[kept]
  languages = [languages[row] for row in kept]
  meanings = [meanings[row] for row in kept]
  found = language_diagnostics.measure(vectors, languages, meanings)
  expected = by_definition(vectors, languages, meanings)
  assert {name: found[name] for name in expected} == pytest.approx(expected)
  assert "probe_accuracy" not in found  # There are too few texts.
  histograms = np.array([found["delta_own"], found["delta_other"]])
  assert histograms.sum() > 100
  # The vectors' lengths are no part of it.
  longer = language_diagnostics.measure(3 * vectors, languages, meanings)
  assert longer["uniformity"] == pytest.approx(found["uniformity"])


def test_an_offset_of_languages_is_seen_and_its_removal_too():
  before = language_diagnostics.measure(*make_vectors(1.0))
  after = language_diagnostics.measure(*make_vectors(0.0))
  assert before["probe_accuracy"] == 1
  # 225 held-out texts: chance, give or take three standard deviations.
  assert after["probe_accuracy"] == pytest.approx(1 / 3, abs=0.1)
  assert before["probe_chance"] == after["probe_chance"] == 1 / 3
  assert before["language_gap"] > 0.4 and abs(after["language_gap"]) < 0.01
  assert before["delta_own_language"] > 0.4
  assert abs(after["delta_own_language"]) < 0.01
  assert before["delta_rms"] > 2 * after["delta_rms"]
  assert before["alignment"] > 2 * after["alignment"] > 0
  assert before["uniformity"] > after["uniformity"]
  median, _, highest = before["delta_abs_quantiles"]
  assert 0.3 < median < highest < 2
  assert sum(before["delta_own"][41:]) > 0.9 * sum(before["delta_own"])
  # No language in "cosines" is nearer to itself after the removal.
  cosines = np.array(after["cosines"])
  assert np.abs(cosines).max() < 0.02


def test_the_probe_weighs_languages_equally_and_splits_by_meaning():
  vectors, languages, meanings = make_vectors(0.0, count=400)
  # Ten times more German. Guessing German would be right in 5 of 6 texts.
  kept = [
    row
    for row, language in enumerate(languages)
    if language == "de" or row % 10 == 0
  ]
  probe = language_probe.measure(
    vectors[kept],
    [languages[row] for row in kept],
    [meanings[row] for row in kept],
  )
  assert probe.accuracy < 0.55
  equal = np.ones((40, 3))
  codes = ["de", "en"] * 20
  assert language_probe.measure(equal, codes, [f"m{n}" for n in range(40)]) == (
    0.5,
    0.5,
  )
  assert language_probe.measure(equal, ["de"] * 40, codes) is None
  # A meaning in two languages is on one side: nothing of it is learned.
  shares = [language_probe._share(meaning) for meaning in meanings]
  assert shares[:400] == shares[400:800]


def test_the_mix_of_languages_is_compared_with_the_pool():
  pool = {"de": 10, "en": 30, "fi": 60}
  fair = language_diagnostics.language_mix(
    [["de", *["en"] * 3, *["fi"] * 6]] * 2, ["de", "fi"], pool
  )
  assert fair["distance"] == pytest.approx(0)
  assert fair["same_language"] == pytest.approx(0.35)
  assert fair["same_language_in_pool"] == pytest.approx(0.35)
  assert fair["mix"][1] is None  # There are no English queries.
  biased = language_diagnostics.language_mix(
    [["de"] * 10, ["fi"] * 10], ["de", "fi"], pool
  )
  assert biased["same_language"] == 1
  assert biased["distance"] == pytest.approx((0.9 + 0.4) / 2)
  assert biased["mix"][2] == [0, 0, 1]


def test_the_map_shows_the_main_axes_and_not_too_many_points():
  vectors, languages, _ = make_vectors(3.0, count=50)
  made = embedding_map.make(vectors, languages, ["text " * 99] * 150, most=20)
  assert len(made["points"]) == 60
  assert len(made["points"][0]["text"]) == 200
  centers = {
    language: np.mean(
      [
        [point["x"], point["y"]]
        for point in made["points"]
        if point["language"] == language
      ],
      axis=0,
    )
    for language in LANGUAGES
  }
  # Languages with a large offset are apart.
  assert np.linalg.norm(centers["de"] - centers["en"]) > 10
  assert "150 vectors" in made["method"]
  again = embedding_map.make(vectors, languages, [""] * 150)
  assert again["points"][7]["x"] == made["points"][7]["x"]
  flat = embedding_map.make(np.ones((4, 1)), ["de"] * 4, ["a"] * 4)
  assert {(point["x"], point["y"]) for point in flat["points"]} == {(0, 0)}
