"""Texts shared between training and test: what zero-shot must not hide."""

from collections.abc import Sequence

import tqdm

from mlir_jax import contract as contract_lib
from mlir_jax.data import records


def count_shared_texts(
  collection: records.Collection,
  tests: Sequence[records.RetrievalTest],
  contract: contract_lib.EncodingContract,
) -> dict[str, dict[str, int]]:
  """Counts the test texts that occur verbatim in training, per language.

  Args:
    collection: The collection: its three streams.
    tests: Its tests, of which the "test" splits are counted.
    contract: Says how a title and a text make one body.

  Returns:
    Language to {"queries", "shared_queries", "passages", "shared_passages"}.
  """
  trained = set()
  for record in tqdm.tqdm(
    collection.retrieval(), desc="Training texts", unit="record", leave=False
  ):
    trained.add(contract.body(record.question))
    for passage in (*record.positives, *record.hard_negatives):
      trained.add(contract.body(passage.text, passage.title))
  for record in collection.parallel():
    trained |= {contract.body(record.source), contract.body(record.target)}
  trained |= {contract.body(record.text) for record in collection.monolingual()}

  counts = {}
  for test in tests:
    if test.split != "test":
      continue
    passages = [contract.body(p.text, p.title) for p in test.passages]
    queries = [contract.body(text) for text in test.queries.values()]
    counts[test.language] = {
      "queries": len(queries),
      "shared_queries": sum(text in trained for text in queries),
      "passages": len(passages),
      "shared_passages": sum(text in trained for text in passages),
    }
  return counts
