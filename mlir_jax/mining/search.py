"""Makes the search that finds candidates: BM25, a model, or both."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import tokenizers

from mlir_jax import bars, workdir
from mlir_jax import contract as contract_lib
from mlir_jax.data import records
from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.mining import candidates, portions, progress
from mlir_jax.mining import questions as questions_lib
from mlir_jax.models import layout, pretrained
from mlir_jax.retrieval import bm25, encoding, fingerprints, terms
from mlir_jax.retrieval import model as model_lib
from mlir_jax.storage import digests, locations


@dataclasses.dataclass(frozen=True)
class Search:
  """How candidates are found.

  Attributes:
    finder: "bm25", "dense" or "both".
    model: Finds candidates, or ranks those of BM25; None if BM25 does both.
    analyzer: What BM25 counts: "words" or "subwords".
    tokenizer: The folder or hub name of the tokenizer for "subwords"; "" for
      that of the model.
  """

  finder: str = "bm25"
  model: model_lib.Model | None = None
  analyzer: str = "words"
  tokenizer: str = ""

  @property
  def score(self) -> str:
    """Names the scores that rank candidates."""
    if self.model is None:
      return "BM25"
    kind = (
      "cosine" if self.model.similarity_fn_name == "cosine" else "inner product"
    )
    return f"the model's {kind}"

  def describe(self, depth: int) -> str:
    """Describes the search of `depth` candidates in a line."""
    by = {
      "bm25": "BM25",
      "dense": "the model",
      "both": "BM25 and of each by the model",
    }
    analyzer = f"; analyzer: {self.analyzer}" * (self.finder != "dense")
    return (
      f"Candidates: the best {depth} of each question by {by[self.finder]},"
      f" ranked by {self.score}{analyzer}."
    )

  @functools.cached_property
  def _subwords(self) -> tokenizers.Tokenizer:
    if self.tokenizer:
      return _load_tokenizer(self.tokenizer)
    assert self.model, "A flag is missing; the program refuses this."
    return self.model.text_encoder.tokenizer

  def identity(self) -> dict[str, str]:
    """Returns all that decides the candidates; hashes the model."""
    analyzer = self.analyzer
    if analyzer == "subwords":
      analyzer += f" {contract_lib.fingerprint(self._subwords)}"
    return {
      "candidates": self.finder,
      "analyzer": analyzer,
      "model": _hash_model(self.model) if self.model else "",
    }

  def make_finder(
    self,
    questions: Sequence[questions_lib.Question],
    corpus: questions_lib.Corpus,
    depth: int,
    kept: progress.Progress,
  ) -> candidates.Finder:
    """Counts the terms of the passages, encodes texts, and returns the finder.

    Args:
      questions: All questions.
      corpus: The passages.
      depth: Candidates of a question, at most, by each method.
      kept: Keeps the vectors.
    """
    finders = []
    if self.finder != "dense":
      index = self._count_terms(corpus)
      finders.append(candidates.with_bm25(questions, index, depth))
    if self.model is None:
      return finders[0]
    vectors = _encode(self.model, questions, corpus, kept)
    if self.finder != "bm25":
      mesh = self.model.text_encoder.mesh
      finders.append(candidates.with_model(questions, vectors, mesh, depth))
    if self.finder == "dense":
      return finders[0]
    return candidates.judged(questions, finders, vectors)

  def _count_terms(self, corpus: questions_lib.Corpus) -> bm25.Bm25:
    analyze = terms.words
    if self.analyzer == "subwords":
      analyze = terms.subwords(self._subwords)
    texts = bars.bar(
      map(questions_lib.join, corpus.passages),
      "Counting terms",
      unit="passage",
      total=len(corpus.passages),
    )
    return bm25.Bm25(texts, analyze)


def _encode(
  model: model_lib.Model,
  questions: Sequence[questions_lib.Question],
  corpus: questions_lib.Corpus,
  kept: progress.Progress,
) -> candidates.Vectors:
  embed = functools.partial(model.text_encoder.encode, model.params)
  asked = [records.Passage(question.text) for question in questions]
  encoded = [
    portions.encode(kept, embed, "query", asked),
    portions.encode(kept, embed, "passage", corpus.passages),
  ]
  if cut := model.text_encoder.describe_truncation():
    print(cut)
  if model.similarity_fn_name == "cosine" and not model.contract.normalize:
    encoded = [encoding.unit_length(each) for each in encoded]
  return candidates.Vectors(*encoded)


def _load_tokenizer(name: str) -> tokenizers.Tokenizer:
  """Loads the tokenizer of a run, an export or another model."""
  run = pathlib.Path(locations.absolute(name)) / workdir.TOKENIZER
  if run.exists():
    return tokenizer_lib.load(str(run.parent))
  folder = layout.read(pretrained.fetch(name)).transformer
  return tokenizer_lib.load(str(folder))


def _hash_model(model: model_lib.Model) -> str:
  """Returns a hash of all that decides a model's vectors."""
  prompt = model.text_encoder.prompt
  return digests.of_value(
    [fingerprints.of_model(model), model.similarity_fn_name, prompt]
  )
