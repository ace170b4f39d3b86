"""Systems: each one makes the TREC run of a test.

A model, BM25, files of TREC runs, a fusion of other systems and a function of
the user are systems. Whatever measures or compares them needs only their runs.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath
from jax.sharding import Mesh

from mlir_jax import bars
from mlir_jax.data import records
from mlir_jax.evals import fusion, measures
from mlir_jax.retrieval import bm25, index, runs, terms

BM25 = "bm25"
RRF = "rrf"
MIN_MAX = "minmax"
ENGLISH = "en"
# A name is also that of a folder, and the tag in TREC runs.
NAME = re.compile(r"[A-Za-z0-9_][\w.+-]{0,99}", re.ASCII)


class System(Protocol):
  """Makes the TREC run of a test."""

  def __call__(self, test: records.RetrievalTest, k: int) -> runs.Run | None:
    """Returns the k best passages of each query; None if it has no run.

    Tests that share a corpus come one after the other, with the same object
    `test.passages`.
    """
    ...


def run_file(test: records.RetrievalTest) -> str:
  """Returns the name of the file of a test's run."""
  return f"{test.split}.{test.language}.trec"


class Dense:
  """A model: exact search with its vectors."""

  def __init__(self, embed: Callable[..., np.ndarray], mesh: Mesh):
    """Keeps the model.

    Args:
      embed: `embed(role, texts, titles=None)`, float32 [n, D] of n texts.
      mesh: Its axis "data" splits the passages.
    """
    self._embed = embed
    self._mesh = mesh
    self._corpus: Sequence[records.Passage] | None = None
    self._index: index.Index | None = None

  def __call__(self, test: records.RetrievalTest, k: int) -> runs.Run:
    """Encodes a corpus once, then the queries, and searches."""
    if self._index is None or test.passages is not self._corpus:
      self._index = None  # Frees the last index first.
      self._corpus = test.passages
      self._index = index.Index(
        [passage.passage_id for passage in test.passages],
        self._embed(
          "passage",
          [passage.text for passage in test.passages],
          [passage.title for passage in test.passages],
        ),
        self._mesh,
      )
    scores, found = self._index.search(
      self._embed("query", list(test.queries.values())),
      k,
      description=f"Searching {test.split}/{test.language}",
    )
    return {
      query_id: dict(zip(ids, map(float, of_query), strict=True))
      for query_id, ids, of_query in zip(
        test.queries, found, scores, strict=True
      )
    }


class Bm25:
  """BM25 over words, in every script; see `terms.words`."""

  def __init__(self):
    self._corpus: Sequence[records.Passage] | None = None
    self._ids: list[str] = []
    self._index: bm25.Bm25 | None = None

  def __call__(self, test: records.RetrievalTest, k: int) -> runs.Run:
    """Counts the terms of a corpus once, then ranks it for each query."""
    name = f"{test.split}/{test.language}"
    if self._index is None or test.passages is not self._corpus:
      self._index = None
      self._corpus = test.passages
      # Of equal scores, the lower row wins. In trec_eval it is the higher id.
      ordered = sorted(
        test.passages, key=lambda passage: passage.passage_id, reverse=True
      )
      self._ids = [passage.passage_id for passage in ordered]
      texts = bars.bar(
        ordered, f"Counting terms, {name}", unit="passage", delay=5, leave=False
      )
      self._index = bm25.Bm25(
        (f"{each.title} {each.text}" for each in texts), terms.words
      )
    run = {}
    for query_id, query in bars.bar(
      test.queries.items(),
      f"Searching {name}",
      unit="query",
      delay=5,
      leave=False,
    ):
      scores = self._index.scores(query)
      run[query_id] = {
        self._ids[row]: float(scores[row]) for row in bm25.best(scores, k)
      }
    return run


class TrecRuns:
  """Files of TREC runs, which another program or an earlier call has made."""

  def __init__(self, path: str, tests: Sequence[records.RetrievalTest] = ()):
    """Finds the files.

    Args:
      path: A folder that holds SPLIT.LANGUAGE.trec for some tests; or the file
        of one test, which may have another name if there is only one test.
      tests: The tests that there are, to refuse a file that is of none of them;
        () if the files will be written later.

    Raises:
      ValueError: if there is no run of any test.
    """
    self._folder, self._file = epath.Path(path), ""
    if not tests:
      return
    names = [run_file(test) for test in tests]
    if self._folder.is_dir():
      if not any((self._folder / name).exists() for name in names):
        raise ValueError(
          f"{path} holds the TREC run of no test: a run is named"
          f" SPLIT.LANGUAGE.trec, such as {names[0]}."
        )
    elif not self._folder.exists():
      raise ValueError(f"{path}: there is no such file or folder.")
    else:
      self._file = self._folder.name
      if len(names) == 1:
        names, self._file = [self._file], names[0]
      if self._folder.name not in names:
        raise ValueError(
          f"{path}: there are {len(names)} tests, so the name of the file must"
          f" say which one it is of: {', '.join(names[:5])}."
        )

  def __call__(self, test: records.RetrievalTest, k: int) -> runs.Run | None:
    """Reads the run of a test, if there is one."""
    del k  # It is cut later.
    name = run_file(test)
    if self._file:
      path = self._folder if name == self._file else None
    else:
      path = self._folder / name
    if path is None or not path.exists():
      return None
    run = runs.read_run(path)
    if run and not run.keys() & test.queries.keys():
      raise ValueError(
        f"{path} holds no query of {test.split}/{test.language}: its first"
        f" query is {next(iter(run))!r}, and the test's is"
        f" {next(iter(test.queries))!r}."
      )
    return run


class Fused:
  """Reciprocal-rank fusion of other systems."""

  def __init__(self, parts: Sequence[System]):
    self._parts = parts

  def __call__(self, test: records.RetrievalTest, k: int) -> runs.Run | None:
    """Fuses the runs of a test; None if a system has none."""
    parts = [part(test, k) for part in self._parts]
    found = [part for part in parts if part is not None]
    return fusion.reciprocal_ranks(found) if len(found) == len(parts) else None


class MinMax:
  """The sum of two systems' scaled scores, with a weight tuned on dev.

  Attributes:
    weights: The language of a dev set to its weight of the first system.
  """

  def __init__(
    self,
    first: System,
    second: System,
    tests: Sequence[records.RetrievalTest],
    k: int,
  ):
    """Tunes the weights, for the highest MRR@100.

    English dev decides for all languages, so that these stay zero-shot. Without
    it, a dev set decides for its own language, and other languages have no run.

    Args:
      first: A system.
      second: Another one.
      tests: All tests; those of the split "dev" are used.
      k: The passages of a query that a fused run holds.
    """
    self._parts = first, second
    dev = [
      test for test in tests if test.split == "dev" and any(test.qrels.values())
    ]
    english = [test for test in dev if test.language == ENGLISH]
    self.weights: dict[str, float] = {}
    for test in english or dev:
      if (pair := self._scaled(test, k)) is not None:
        self.weights[test.language] = _tune(pair, test, k)

  def _scaled(
    self, test: records.RetrievalTest, k: int
  ) -> tuple[runs.Run, runs.Run] | None:
    first, second = (part(test, k) for part in self._parts)
    if first is None or second is None:
      return None
    return fusion.scale(first), fusion.scale(second)

  def weight(self, language: str) -> float | None:
    """Returns the weight of the first system in a language, if it has one."""
    return self.weights.get(ENGLISH, self.weights.get(language))

  def __call__(self, test: records.RetrievalTest, k: int) -> runs.Run | None:
    """Fuses the runs of a test; None without a weight or a run."""
    weight = self.weight(test.language)
    if weight is None or (pair := self._scaled(test, k)) is None:
      return None
    return fusion.weighted(*pair, weight)

  def describe(self, name: str) -> str:
    """Says in a sentence which weights are used, and from where.

    Args:
      name: The name of the first system.
    """
    if ENGLISH in self.weights:
      return (
        f"The weight of {name} is {self.weights[ENGLISH]:g} in all languages:"
        " English dev chose it."
      )
    if not self.weights:
      return "There is no dev set to choose a weight with, so it has no runs."
    shown = ", ".join(f"{code} {each:g}" for code, each in self.weights.items())
    return (
      f"The weight of {name} is that of the language's own dev set ({shown});"
      " other languages have no run."
    )


def _tune(
  pair: tuple[runs.Run, runs.Run], test: records.RetrievalTest, k: int
) -> float:
  """Returns the weight with the highest MRR@100 of a test."""
  chosen = measures.DEFAULT[:1]

  def value(weight: float) -> float:
    run = {
      query_id: dict(runs.ranked(scores)[:k])
      for query_id, scores in fusion.weighted(*pair, weight).items()
    }
    values = measures.per_query(chosen, test.qrels, run)
    return measures.means(chosen, values)[chosen[0].name]

  return fusion.tune(value)


def name_of(path: str, taken: Mapping[str, Any]) -> str:
  """Returns a name for what is at a path: the last part that is not taken.

  Args:
    path: A folder, a file or a name on the hub.
    taken: Names that others have.
  """
  *_, parent, last = ("", "", *os.path.normpath(path).split("/"))
  last = last.removesuffix(".trec")
  for name in (last, f"{parent}.{last}"):
    name = re.sub(r"[^\w.+-]+", "-", name, flags=re.ASCII).lstrip(".+-")[:80]
    name = name or "x"
    if name not in taken:
      return name
  number = 2
  while f"{name}.{number}" in taken:
    number += 1
  return f"{name}.{number}"
