"""Texts in several languages, with what is known of equal meanings.

The diagnostics of languages compare vectors of translations with those of other
texts. Two texts have the same meaning if a chain of translations, or of
questions with equal answers, connects them.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mlir_jax.data import records
from mlir_jax.evals.protocols import pools

# A language and a text or an id; a question has the language "".
_Thing = tuple[str, str]
MOST = 500  # Texts of a language; a measure compares all pairs of texts.


class Item(NamedTuple):
  """A text: its language, itself, its title, and a name of its meaning."""

  language: str
  text: str
  title: str
  meaning: str


class Sample(NamedTuple):
  """Texts that are encoded in one role."""

  role: str
  items: Sequence[Item]

  @property
  def languages(self) -> list[str]:
    """The language of each text."""
    return [item.language for item in self.items]

  @property
  def meanings(self) -> list[str]:
    """The meaning of each text."""
    return [item.meaning for item in self.items]


def take(items: Iterable[Item], most: int = MOST) -> list[Item]:
  """Returns at most so many items of each language.

  Meanings are taken in the order of their hashes. So it is the same choice for
  any order of the items, and languages keep the same meanings.
  """
  kept, counts = [], {}
  for item in sorted(
    dict.fromkeys(items),
    key=lambda item: (
      hashlib.sha256(item.meaning.encode()).digest(),
      item.language,
      item.text,
    ),
  ):
    counts[item.language] = counts.get(item.language, 0) + 1
    if counts[item.language] <= most:
      kept.append(item)
  return kept


def of_translations(
  pairs: Iterable[tuple[str, str, str, str]], most: int = MOST
) -> Sample:
  """Makes the sample of translations.

  Args:
    pairs: (language, text, language of the translation, translation).
    most: Texts of a language.
  """
  links = [((a, text), (b, other)) for a, text, b, other in pairs]
  meaning_of = _connect(links)
  items = (
    Item(language, text, "", "\t".join(meaning))
    for (language, text), meaning in meaning_of.items()
  )
  return Sample("sentence", take(items, most))


def of_queries(
  tests: Sequence[records.RetrievalTest], most: int = MOST
) -> Sample:
  """Makes the sample of queries; a query id is the meaning if it is shared."""
  parallel = pools.is_parallel(tests)
  return Sample(
    "query",
    take(
      (
        Item(
          test.language,
          query,
          "",
          query_id if parallel else f"{test.language}\t{query_id}",
        )
        for test in tests
        for query_id, query in test.queries.items()
      ),
      most,
    ),
  )


def of_passages(
  tests: Sequence[records.RetrievalTest], most: int = MOST
) -> Sample:
  """Makes the sample of passages.

  If questions have one id in all languages, the sample holds answers only:
  answers to one question have the same meaning. Of other passages it is not
  known which are translations of each other.
  """
  links, parallel = [], pools.is_parallel(tests)
  for test in tests if parallel else ():
    for query_id, judged in test.qrels.items():
      links += (
        (("", query_id), (test.language, name))
        for name, value in judged.items()
        if value > 0
      )
  meaning_of = _connect(links)

  def items():
    for test in tests:
      for passage in test.passages:
        key = test.language, passage.passage_id
        if parallel and key not in meaning_of:
          continue
        meaning = "\t".join(meaning_of.get(key, key))
        yield Item(test.language, passage.text, passage.title, meaning)

  return Sample("passage", take(items(), most))


def _connect(
  links: Iterable[tuple[_Thing, _Thing]],
) -> dict[_Thing, _Thing]:
  """Returns, of each thing, the smallest thing that links connect it with."""
  parent = {}

  def find(thing):
    root = thing
    while parent.setdefault(root, root) != root:
      root = parent[root]
    while parent[thing] != root:  # Later searches take one step.
      parent[thing], thing = root, parent[thing]
    return root

  for first, second in links:
    roots = find(first), find(second)
    parent[max(roots)] = min(roots)
  return {thing: find(thing) for thing in list(parent)}
