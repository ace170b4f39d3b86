"""Measures queries in other languages on the English corpus.

This is cross-language retrieval: people ask in their language, and the passages
are English. The English test judges the queries of all languages, so a question
must have one id in all of them.
"""

from jax.sharding import Mesh

from mlir_jax.data import records
from mlir_jax.evals import ranking
from mlir_jax.evals.protocols import pools, protocol_data

CORPUS = "en"


def evaluate(
  embed: protocol_data.Embed, data: protocol_data.Data, mesh: Mesh
) -> dict[str, float]:
  """Searches the English passages with the queries of each other language.

  Args:
    embed: `embed(role, texts, titles=None)`, float32 [n, D] of n texts.
    data: Its tests, one of them in English.
    mesh: Its axis "data" splits the passages.

  Returns:
    The measures of `ranking.measures`: {"en/de/mrr@100": value, ...} for
    queries in German.

  Raises:
    ValueError: if there is no English test, or no other test has its queries.
  """
  tests = {test.language: test for test in data.tests if test.split == "test"}
  english = tests.pop(CORPUS, None)
  if english is None:
    raise ValueError(
      "Queries on an English corpus need an English test; there are tests in"
      f" {', '.join(tests) or 'no language'}."
    )
  crossed = [
    _crossed(test, english)
    for test in tests.values()
    if pools.is_parallel([english, test])
  ]
  if not crossed:
    raise ValueError(
      "Queries on an English corpus need another test that has the ids of the"
      " English queries (as in XQuAD-R): a question must have one id in all"
      " languages."
    )
  return {
    f"{CORPUS}/{name.removeprefix('test/')}": value
    for name, value in ranking.evaluate(embed, crossed, mesh)
  }


def _crossed(
  test: records.RetrievalTest, english: records.RetrievalTest
) -> records.RetrievalTest:
  """Returns the test of a language's queries on the English passages."""
  shared = test.queries.keys() & english.queries.keys()
  return records.RetrievalTest(
    test.language,
    test.split,
    english.passages,
    {name: query for name, query in test.queries.items() if name in shared},
    {name: judged for name, judged in english.qrels.items() if name in shared},
  )
