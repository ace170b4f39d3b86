"""Answers queries with the best passages and their texts."""

from collections.abc import Sequence
from typing import NamedTuple

from mlir_jax.data import records
from mlir_jax.retrieval import index as index_lib
from mlir_jax.retrieval import model as model_lib
from mlir_jax.retrieval import passage_texts


class Answer(NamedTuple):
  """A passage that was found.

  Attributes:
    score: The model's similarity of query and passage.
    passage: The passage.
  """

  score: float
  passage: passage_texts.PassageText


class Answerer:
  """A model, the vectors of passages, and their texts.

  Attributes:
    model: Encodes the queries. Its vectors are compared by inner product.
    index: The passages' vectors, by their keys.
    texts: The passages' texts, by their keys.
  """

  def __init__(
    self,
    model: model_lib.Model,
    index: index_lib.Index,
    texts: passage_texts.Texts,
  ):
    self.model = model.with_inner_products()
    self.index = index
    self.texts = texts

  @property
  def size(self) -> int:
    """The number of passages."""
    return len(self.index.passage_ids)

  def answer(self, queries: Sequence[str], k: int) -> list[list[Answer]]:
    """Returns the `k` best passages of each query, the best one first."""
    vectors = self.model.text_encoder.encode(
      self.model.params, "query", queries
    )
    scores, found = self.index.search(vectors, k)
    return [
      [
        Answer(score, passage_texts.find(self.texts, key))
        for score, key in zip(of_query.tolist(), keys, strict=True)
      ]
      for of_query, keys in zip(scores, found, strict=True)
    ]


def of_tests(
  model: model_lib.Model,
  tests: Sequence[records.RetrievalTest],
  progress: str | None = "passage texts",
) -> Answerer:
  """Encodes the passages of tests, all languages in one pool.

  Args:
    model: The model.
    tests: The tests. Two splits of a language have the same passages, which
      are encoded once.
    progress: Description of the progress bar; None for no bar.

  Raises:
    ValueError: if there is no passage.
  """
  passages = {
    f"{test.language}/{passage.passage_id}": (test.language, passage)
    for test in tests
    for passage in test.passages
  }
  if not passages:
    raise ValueError("There are no passages.")
  model = model.with_inner_products()
  vectors = model.text_encoder.encode(
    model.params,
    "passage",
    [passage.text for _, passage in passages.values()],
    [passage.title for _, passage in passages.values()],
    progress=progress,
  )
  texts = {
    key: passage_texts.PassageText(
      passage.passage_id, language, passage.title, passage.text
    )
    for key, (language, passage) in passages.items()
  }
  index = index_lib.Index([*texts], vectors, model.text_encoder.mesh)
  return Answerer(model, index, texts)
