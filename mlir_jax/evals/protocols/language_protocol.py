"""Measures whether a model is language-agnostic, on tests or on dev text.

The protocol "languages" reads the tests. While a model is trained, the same
measures are taken on translations of their own (eval.diagnostics_root), never
on a text of a test.
"""

import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from mlir_jax.data import collections, records
from mlir_jax.data.collections import layout, parallel_files
from mlir_jax.evals.protocols import (
  embedding_map,
  language_diagnostics,
  language_samples,
  pools,
  protocol_data,
)
from mlir_jax.retrieval import index

TOP = 10  # Passages whose languages are compared with those of the pool.
FIELD = "eval.diagnostics_root"
DEV_NAME = "languages_dev"  # Of the results while training.
DEV_MOST = 200  # Texts of a language while training.


def evaluate(
  embed: protocol_data.Embed, data: protocol_data.Data, mesh: Mesh
) -> dict[str, Any]:
  """Measures queries, passages and sentences of the tests.

  Args:
    embed: `embed(role, texts, titles=None)`, float32 [n, D] of n texts.
    data: Retrieval tests in two languages, or translation tests.
    mesh: Its axis "data" splits the passages.

  Returns:
    "passages/probe_accuracy" and all other values of
    `language_diagnostics.measure`, also of "queries" and "sentences"; "top10/…"
    of `language_diagnostics.language_mix`; "map" of `embedding_map.make`.

  Raises:
    ValueError: if the tests are in one language.
  """
  tests = [test for test in data.tests if test.split == "test"]
  samples = {
    "passages": language_samples.of_passages(tests),
    "queries": language_samples.of_queries(tests),
    "sentences": language_samples.of_translations(
      _pairs(data.translation_tests)
    ),
  }
  found: dict[str, Any] = {}
  for kind, sample in samples.items():
    if len(set(sample.languages)) < 2:
      continue
    vectors = _embed(embed, sample)
    measured = language_diagnostics.measure(
      vectors, sample.languages, sample.meanings
    )
    found |= {f"{kind}/{name}": value for name, value in measured.items()}
    if "map" not in found:
      found["map"] = embedding_map.make(
        vectors, sample.languages, [item.text for item in sample.items]
      )
  if not found:
    raise ValueError(
      "The diagnostics of languages need tests in two languages or more."
    )
  if len(tests) > 1:
    mix = _language_mix(embed, tests, mesh)
    found |= {f"top{TOP}/{name}": value for name, value in mix.items()}
  return found


def find_dev(
  root: str,
  tests: Sequence[records.RetrievalTest],
  translation_tests: Sequence[records.TranslationTest],
  bad_records: records.BadRecords,
  taken: Collection[str] = (),
) -> tuple[dict[str, Callable[[Callable], dict[str, float]]], list[str]]:
  """Makes the evaluator that measures dev text while a model is trained.

  Args:
    root: A folder of translations, as parallel/ of a collection; "" for none.
    tests: All tests. A pair with a text of a test is left out.
    translation_tests: All translation tests.
    bad_records: Receives bad pairs.
    taken: The names of the user's evaluators.

  Returns:
    The evaluator by its name, as in `evaluators.find`; and lines for the
    report. Both are empty without a folder.

  Raises:
    ValueError: if the folder holds no translations that can be used, or the
      evaluator's name is taken.
  """
  if not root:
    return {}, []
  if DEV_NAME in taken:
    raise ValueError(
      f"eval.extra.{DEV_NAME}: give another name; {FIELD} uses this one."
    )
  folder = pathlib.Path(collections.on_disk(root, FIELD))
  if not folder.is_dir():
    raise ValueError(f"{FIELD}={root}: there is no such folder.")
  pairs = [
    (
      record.source_language,
      record.source,
      record.target_language,
      record.target,
    )
    for source in parallel_files.find(folder, layout.Names())
    for record in source.read(bad_records)
  ]
  dev_texts = {
    text for _, source, _, target in pairs for text in (source, target)
  }
  tested = dev_texts & set(_texts(tests, translation_tests))
  kept = [pair for pair in pairs if not {pair[1], pair[3]} & tested]
  sample = language_samples.of_translations(kept, DEV_MOST)
  if len(set(sample.languages)) < 2:
    raise ValueError(
      f"{FIELD}={root}: {len(pairs):,} translations are there, and"
      f" {len(kept):,} of them hold no text of a test. It needs translations in"
      " files that are named as in parallel/ of a collection."
    )
  notes = [
    f"{DEV_NAME}: {len(sample.items):,} texts in"
    f" {len(set(sample.languages))} languages of {root}, none of them of a test"
    f" (left out: {len(pairs) - len(kept):,} of {len(pairs):,} translations)."
  ]

  def measure(embed: Callable[..., np.ndarray]) -> dict[str, float]:
    measured = language_diagnostics.measure(
      _embed(embed, sample), sample.languages, sample.meanings
    )
    return {
      name: value for name, value in measured.items() if type(value) is float
    }

  return {DEV_NAME: measure}, notes


def _pairs(
  tests: Sequence[records.TranslationTest],
) -> Iterator[tuple[str, str, str, str]]:
  """Yields the translations of tests, as `of_translations` reads them."""
  for test in tests:
    for source, target in zip(test.sources, test.targets, strict=True):
      yield test.source_language, source, test.target_language, target


def _texts(
  tests: Sequence[records.RetrievalTest],
  translation_tests: Sequence[records.TranslationTest],
) -> Iterator[str]:
  """Yields the texts of all tests; a dev set may share its texts."""
  for test in tests:
    if test.split == "test":
      yield from test.queries.values()
      yield from (passage.text for passage in test.passages)
  for test in translation_tests:
    yield from test.sources
    yield from test.targets


def _embed(
  embed: Callable[..., np.ndarray], sample: language_samples.Sample
) -> np.ndarray:
  """Returns the vectors of a sample, float32 [n, D]."""
  titles = [item.title for item in sample.items]
  texts = [item.text for item in sample.items]
  return (
    embed(sample.role, texts, titles)
    if any(titles)
    else embed(sample.role, texts)
  )


def _language_mix(
  embed: protocol_data.Embed,
  tests: Sequence[records.RetrievalTest],
  mesh: Mesh,
) -> dict[str, Any]:
  """Searches all passages together; see `language_diagnostics.language_mix`."""
  vectors = pools.embed_passages(
    embed, {test.language: test.passages for test in tests}
  )
  # Languages may use the same ids.
  searched = index.Index(
    [
      f"{passage.passage_id}\t{test.language}"
      for test in tests
      for passage in test.passages
    ],
    np.concatenate([vectors[test.language] for test in tests]),
    mesh,
  )
  found, asked = [], []
  for test in tests:
    _, ids = searched.search(
      embed("query", list(test.queries.values())),
      TOP,
      description=f"Searching all languages in {test.language}",
    )
    found += [[name.rpartition("\t")[2] for name in best] for best in ids]
    asked += [test.language] * len(ids)
  return language_diagnostics.language_mix(
    found, asked, {test.language: len(test.passages) for test in tests}
  )
