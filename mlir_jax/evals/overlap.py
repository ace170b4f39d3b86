"""Counts test texts that training saw, which zero-shot results must show."""

from collections.abc import Iterator, Sequence

from mlir_jax import bars
from mlir_jax import contract as contract_lib
from mlir_jax.data import records


def _training_bodies(
  collection: records.Collection,
  stream: str,
  contract: contract_lib.EncodingContract,
) -> Iterator[str]:
  """Yields the body of every text of a stream, hard negatives included."""
  for record in bars.bar(
    getattr(collection, stream)(),
    f"Texts shared with {stream}",
    unit=" rows",
    leave=False,
  ):
    for title, text in records.texts(record):
      yield contract.body(text, title)


def count_shared_texts(
  collection: records.Collection,
  tests: Sequence[records.RetrievalTest],
  contract: contract_lib.EncodingContract,
  streams: Sequence[str] = ("retrieval", "parallel", "monolingual"),
) -> dict[str, dict[str, int]]:
  """Counts the test texts that occur verbatim in training, per language.

  Memory holds the texts of the tests; the training texts are read one by one.

  Args:
    collection: The collection that was trained on.
    tests: The tests; only "test" splits are counted.
    contract: Joins a title and a text into a body.
    streams: The streams of the collection that were trained on.

  Returns:
    Language to {"queries", "shared_queries", "passages", "shared_passages"}.
  """
  bodies = {
    test.language: {
      "queries": [contract.body(text) for text in test.queries.values()],
      "passages": [contract.body(p.text, p.title) for p in test.passages],
    }
    for test in tests
    if test.split == "test"
  }
  wanted = {
    body
    for kinds in bodies.values()
    for texts in kinds.values()
    for body in texts
  }
  seen = set()
  for stream in streams if wanted else ():
    seen.update(
      body
      for body in _training_bodies(collection, stream, contract)
      if body in wanted
    )
  counts = {}
  for language, kinds in bodies.items():
    counts[language] = {}
    for kind, texts in kinds.items():
      counts[language][kind] = len(texts)
      counts[language][f"shared_{kind}"] = sum(body in seen for body in texts)
  return counts
