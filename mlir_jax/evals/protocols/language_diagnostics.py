"""Measures how far vectors depend on the language of their texts.

All functions take vectors and return numbers or lists by name, for the table
and for diagnostics.json. Cosines are used, whatever the length of a vector.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlir_jax.evals import bitext
from mlir_jax.evals.protocols import language_probe

BINS = np.linspace(-1, 1, 81)  # Edges of the histograms of differences.
MOST_PAIRS = 2000  # Translations whose differences are measured.
_SIZE_BINS = 20_000  # Of sizes from 0 to 2, for quantiles.
_BLOCK = 512  # Vectors that are compared with all others at once.


def measure(
  vectors: np.ndarray, languages: Sequence[str], meanings: Sequence[str]
) -> dict[str, Any]:
  """Returns all measures of vectors.

  Args:
    vectors: float32 [n, D].
    languages: The language of each vector; two or more.
    meanings: The meaning of each vector. Texts of one meaning are translations
      of each other.

  Returns:
    What `similarities`, `uniformity` and `differences` return, and of
    `language_probe` "probe_accuracy" and "probe_chance".

  Raises:
    ValueError: if a vector is zero or not finite.
  """
  vectors = bitext.unit(vectors).astype(np.float64)
  found: dict[str, Any] = similarities(vectors, languages, meanings)
  found["uniformity"] = uniformity(vectors)
  found |= differences(vectors, languages, meanings)
  if probe := language_probe.measure(vectors, languages, meanings):
    found["probe_accuracy"] = probe.accuracy
    found["probe_chance"] = probe.chance
  return found


def similarities(
  vectors: np.ndarray, languages: Sequence[str], meanings: Sequence[str]
) -> dict[str, Any]:
  """Returns mean cosines of texts that are no translations, and alignment.

  Args:
    vectors: float64 [n, D], of unit length.
    languages: See `measure`.
    meanings: See `measure`.

  Returns:
    "same_language" and "cross_language", the mean cosine of two texts of
    different meanings in one language, and in two; "language_gap", the first
    minus the second: 0 if vectors do not depend on the language. "alignment"
    is the mean of |x - y|^2 over translations (Wang and Isola 2020, with the
    power 2); without translations it is left out. "cosines", [L, L], has the
    mean cosine of each pair of languages; "languages" names them.
  """
  names, codes = np.unique(np.array(languages), return_inverse=True)
  _, numbers = np.unique(np.array(meanings), return_inverse=True)
  count = numbers.max() + 1
  # Sums of the vectors of a language, and of a meaning in a language.
  by_meaning, texts = [], []
  for code in range(len(names)):
    mine = codes == code
    sums = np.zeros((count, vectors.shape[1]))
    np.add.at(sums, numbers[mine], vectors[mine])
    by_meaning.append(sums)
    texts.append(np.bincount(numbers[mine], minlength=count).astype(float))
  total = np.array([sums.sum(axis=0) for sums in by_meaning])
  size = np.array([each.sum() for each in texts])
  # A mean of cosines of all pairs is a product of sums. Pairs of one meaning
  # are taken away: translations, and each vector with itself.
  alike = np.array(
    [[np.vdot(first, second) for second in by_meaning] for first in by_meaning]
  )
  pairs_alike = np.array([[a @ b for b in texts] for a in texts])
  cosines = total @ total.T - alike
  pairs = np.outer(size, size) - pairs_alike
  same = np.eye(len(names), dtype=bool)
  found: dict[str, Any] = {"languages": names.tolist()}
  with np.errstate(invalid="ignore", divide="ignore"):
    found["same_language"] = float(cosines[same].sum() / pairs[same].sum())
    found["cross_language"] = float(cosines[~same].sum() / pairs[~same].sum())
    found["language_gap"] = found["same_language"] - found["cross_language"]
    if pairs_alike[~same].sum():
      found["alignment"] = float(
        2 - 2 * alike[~same].sum() / pairs_alike[~same].sum()
      )
    found["cosines"] = [
      [None if np.isnan(value) else float(value) for value in row]
      for row in cosines / pairs
    ]
  return found


def uniformity(vectors: np.ndarray) -> float:
  """Returns log mean exp(-2 |x - y|^2) of two texts (Wang and Isola 2020).

  Lower is more uniform; 0 means that all vectors are equal.

  Args:
    vectors: float64 [n, D], of unit length; two or more.
  """
  total, count = 0.0, len(vectors)
  for start in range(0, count, _BLOCK):
    block = vectors[start : start + _BLOCK] @ vectors.T
    total += np.exp(4 * block - 4).sum()
  # Each vector with itself has added exp(0).
  return float(np.log((total - count) / (count * (count - 1))))


def differences(
  vectors: np.ndarray, languages: Sequence[str], meanings: Sequence[str]
) -> dict[str, Any]:
  """Returns the distribution of the differences of the language loss.

  For a pair of translations (i, j) and a third text k with another meaning, the
  difference is s(i, k) - s(j, k), of cosines; see `losses.language`. It is 0 if
  no text prefers the language of i or that of j.

  Args:
    vectors: float64 [n, D], of unit length.
    languages: See `measure`.
    meanings: See `measure`.

  Returns:
    Nothing without translations. "delta_rms", over all k; "delta_own_language",
    the mean over k in the language of i: above 0, texts prefer their own
    language. "delta_abs_quantiles", of the sizes: 50, 90 and 99 %.
    "delta_edges" are the edges of the bins of "delta_own" (k in the language of
    i) and "delta_other" (k in a third language), which count differences. Both
    orders of a pair count, up to `MOST_PAIRS` in all.
  """
  _, codes = np.unique(np.array(languages), return_inverse=True)
  _, numbers = np.unique(np.array(meanings), return_inverse=True)
  pairs = _translations(codes, numbers)
  if not len(pairs):
    return {}
  squares = own_sum = 0.0
  count = own_count = 0
  histograms = {
    "own": np.zeros(len(BINS) - 1),
    "other": np.zeros(len(BINS) - 1),
  }
  sizes = np.zeros(_SIZE_BINS)
  for start in range(0, len(pairs), _BLOCK):
    i, j = pairs[start : start + _BLOCK].T
    delta = (vectors[i] - vectors[j]) @ vectors.T  # [pairs, n]
    used = numbers[i][:, None] != numbers
    own = used & (codes[i][:, None] == codes)
    other = used & ~own & (codes[j][:, None] != codes)
    squares += np.square(delta[used]).sum()
    count += used.sum()
    own_sum += delta[own].sum()
    own_count += own.sum()
    for kind, mask in (("own", own), ("other", other)):
      clipped = np.clip(delta[mask], BINS[0], BINS[-1])
      histograms[kind] += np.histogram(clipped, BINS)[0]
    sizes += np.histogram(np.abs(delta[used]), len(sizes), (0, 2))[0]
  if not count:
    return {}
  found: dict[str, Any] = {
    "delta_rms": float(np.sqrt(squares / count)),
    "delta_abs_quantiles": _quantiles(sizes, (0.5, 0.9, 0.99)),
    "delta_edges": BINS.tolist(),
    "delta_own": histograms["own"].astype(int).tolist(),
    "delta_other": histograms["other"].astype(int).tolist(),
  }
  if own_count:
    found["delta_own_language"] = float(own_sum / own_count)
  return found


def _translations(codes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
  """Returns rows of translations, int [P, 2], in both orders.

  Args:
    codes: int [n], the languages.
    numbers: int [n], the meanings.
  """
  order = np.lexsort((codes, numbers))
  starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
  pairs = [
    (i, j)
    for group in np.split(order, starts[1:])
    for i in group
    for j in group
    if codes[i] != codes[j]
  ]
  found = np.array(pairs, np.int64).reshape(-1, 2)
  if len(found) > MOST_PAIRS:
    chosen = np.random.default_rng(0).choice(
      len(found), MOST_PAIRS, replace=False
    )
    found = found[np.sort(chosen)]
  return found


def _quantiles(counts: np.ndarray, shares: Sequence[float]) -> list[float]:
  """Returns quantiles of sizes from 0 to 2, from counts in equal bins."""
  places = np.searchsorted(np.cumsum(counts), np.array(shares) * counts.sum())
  return ((places + 0.5) * 2 / len(counts)).tolist()


def language_mix(
  found: Sequence[Sequence[str]],
  asked: Sequence[str],
  pool: Mapping[str, int],
) -> dict[str, Any]:
  """Compares the languages of the top k with those of the pool.

  Args:
    found: For each query, the languages of its k best passages.
    asked: The language of each query.
    pool: Language to the number of passages in the pool.

  Returns:
    "same_language", the mean share of the query's language in the top k;
    "same_language_in_pool", its mean share in the pool; "distance", half the
    sum of |share in the top k - share in the pool| over the languages, in the
    mean over the queries' languages: 0 if the mix is that of the pool, 1 if no
    language is in both. "mix", [L, L], has the shares of the passages'
    languages (column) for queries in a language (row, None without queries);
    "pool" has the shares in the pool; "languages" names them.
  """
  languages = list(pool)
  column = {language: number for number, language in enumerate(languages)}
  counts = np.zeros((len(languages), len(languages)))
  same = []
  for language, best in zip(asked, found, strict=True):
    shares = np.bincount(
      [column[each] for each in best], minlength=len(languages)
    ) / len(best)
    counts[column[language]] += shares
    same.append(shares[column[language]])
  asked_count = np.array([list(asked).count(name) for name in languages])
  whole = np.array([pool[name] for name in languages], float)
  whole /= whole.sum()
  there = asked_count > 0
  mix = counts[there] / asked_count[there][:, None]
  rows = iter(mix.tolist())
  return {
    "languages": languages,
    "same_language": float(np.mean(same)),
    "same_language_in_pool": float(asked_count @ whole / asked_count.sum()),
    "distance": float(np.abs(mix - whole).sum(axis=1).mean() / 2),
    "mix": [next(rows) if each else None for each in there],
    "pool": whole.tolist(),
  }
