"""A pool: the passages of several languages, which answer the same questions.

The tests of a collection make a pool if a question has one id in all languages,
and each passage has an id of its own (XQuAD-R; LAReQA, Roy et al. 2020). Then
the passages that are relevant in any language are equal answers.
"""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np

from mlir_jax.data import records

_NEED = (
  "A pool of languages needs tests in two languages or more, in which a"
  " question has one id in all languages (as in XQuAD-R)."
)


@dataclasses.dataclass(frozen=True)
class Pool:
  """The passages and questions of several languages.

  Attributes:
    passages: Language to its passages. An id is in one language only.
    queries: Language to query id to query; judged queries only. A question has
      the same id in all languages.
    relevant: Query id to language to the ids of the passages that answer it.
      They may be missing from the passages; then they count as not found.
  """

  passages: Mapping[str, tuple[records.Passage, ...]]
  queries: Mapping[str, Mapping[str, str]]
  relevant: Mapping[str, Mapping[str, tuple[str, ...]]]

  @property
  def languages(self) -> tuple[str, ...]:
    """The languages, in the order of the tests."""
    return tuple(self.passages)

  def answers(
    self, query_id: str, languages: Collection[str] | None = None
  ) -> tuple[str, ...]:
    """Returns the ids of the relevant passages in some languages, or in all."""
    by_language = self.relevant[query_id]
    return tuple(
      itertools.chain.from_iterable(
        ids
        for language, ids in by_language.items()
        if languages is None or language in languages
      )
    )


def is_parallel(tests: Sequence[records.RetrievalTest]) -> bool:
  """Whether tests have questions in common, and passages of their own.

  Tests that number both their queries and their passages from 1 (as Mr. TyDi
  does) share ids, but no meanings.
  """
  passage_ids = [
    passage.passage_id for test in tests for passage in test.passages
  ]
  return _share_queries(tests) and len(set(passage_ids)) == len(passage_ids)


def _share_queries(tests: Sequence[records.RetrievalTest]) -> bool:
  """Whether two of the tests have a query id in common."""
  return any(
    first.queries.keys() & second.queries.keys()
    for first, second in itertools.combinations(tests, 2)
  )


def of_tests(
  tests: Iterable[records.RetrievalTest], split: str = "test"
) -> Pool:
  """Makes the pool of the tests of a split.

  Raises:
    ValueError: if there are fewer than two languages, they have no query id in
      common, two passages have one id, or queries are passages.
  """
  tests = [test for test in tests if test.split == split]
  if not _share_queries(tests):
    found = ", ".join(test.language for test in tests) or "none"
    raise ValueError(
      f"{_NEED} The {split} sets, in {found}, have no such questions."
    )
  language_of: dict[str, str] = {}
  relevant: dict[str, dict[str, tuple[str, ...]]] = {}
  for test in tests:
    if test.own_passages:
      raise ValueError(
        f"The {split} set in {test.language!r} searches its own queries. No"
        " pool can be made of it."
      )
    for passage in test.passages:
      other = language_of.setdefault(passage.passage_id, test.language)
      if other != test.language:
        raise ValueError(
          f"Passage id {passage.passage_id!r} is in {other!r} and in"
          f" {test.language!r}. A pool searches all languages together: give"
          " each passage its own id, such as one that ends in its language."
        )
    for query_id, judged in test.qrels.items():
      ids = tuple(name for name, value in judged.items() if value > 0)
      if ids:
        relevant.setdefault(query_id, {})[test.language] = ids
  return Pool(
    {test.language: test.passages for test in tests},
    {
      test.language: {
        query_id: query
        for query_id, query in test.queries.items()
        if query_id in relevant
      }
      for test in tests
    },
    relevant,
  )


def embed_passages(
  embed: Callable[..., np.ndarray],
  passages: Mapping[str, Sequence[records.Passage]],
) -> dict[str, np.ndarray]:
  """Returns the vectors of the passages of languages, float32 [n, D] each."""
  return {
    language: embed(
      "passage",
      [passage.text for passage in each],
      [passage.title for passage in each],
    )
    for language, each in passages.items()
  }
