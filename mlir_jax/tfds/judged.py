"""Defines the builders of data sets of judged queries, in several languages.

For each language there are four configs:

  XX          the queries with the texts of their judged passages
  XX_corpus   all passages
  XX_queries  all queries
  XX_qrels    all judgements
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mlir_jax.data import records
from mlir_jax.data.sources import judged
from mlir_jax.tfds import public_files

PAIRS, CORPUS, QUERIES, QRELS = "pairs", "corpus", "queries", "qrels"
_DESCRIBED = {
  PAIRS: "queries with the texts of their judged passages",
  CORPUS: "all passages",
  QUERIES: "all queries",
  QRELS: "all judgements",
}


@dataclasses.dataclass(eq=False)
class JudgedConfig(tfds.core.BuilderConfig):
  """A part of the data set in a language.

  Attributes:
    language: The language, by the data set's own code.
    part: `PAIRS`, `CORPUS`, `QUERIES` or `QRELS`.
  """

  language: str = ""
  part: str = PAIRS


def configs(languages: Sequence[str]) -> list[JudgedConfig]:
  """Returns the four configs of each language."""
  return [
    JudgedConfig(
      name=language if part == PAIRS else f"{language}_{part}",
      description=f"{language}: {described}.",
      language=language,
      part=part,
    )
    for language in languages
    for part, described in _DESCRIBED.items()
  ]


class Source:
  """A data set in a language. What its splits share is read once."""

  def __init__(
    self,
    names: Mapping[str, judged.Names],
    read_judgements: Callable[[str], judged.Judgements],
    read_passages: Callable[[frozenset[str] | None], Iterable[records.Passage]],
  ):
    """Names the parts; they are read when needed.

    Args:
      names: Split to what messages call its parts.
      read_judgements: Reads the queries and judgements of a split.
      read_passages: Reads the passages of these ids; None for all.
    """
    self.names = names
    self.read_passages = read_passages
    self._read_judgements = read_judgements

  @functools.cached_property
  def judgements(self) -> dict[str, judged.Judgements]:
    """The queries and judgements of each split."""
    return {split: self._read_judgements(split) for split in self.names}

  @functools.cached_property
  def judged_passages(self) -> dict[str, records.Passage]:
    """The passages that any split judges, by their ids."""
    wanted = frozenset(
      passage_id
      for of_split in self.judgements.values()
      for of_query in of_split.judged.values()
      for passage_id in of_query
    )
    return {
      passage.passage_id: passage for passage in self.read_passages(wanted)
    }


def source_of_files(
  splits: Mapping[str, judged.Files], bad_records: records.BadRecords
) -> Source:
  """Makes a source of the files of splits that share their passages."""
  first = next(iter(splits.values()))
  return Source(
    {name: found.names for name, found in splits.items()},
    lambda split: judged.read_judgements(splits[split], bad_records),
    # All ids of a corpus would fill the memory, so they are not compared.
    lambda wanted: judged.iterate_passages(
      first, bad_records, wanted, check_ids=wanted is not None
    ),
  )


class JudgedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A builder of a data set of judged queries.

  Attributes:
    HAS_TITLES: Whether passages have titles.
    TITLE: What the data set is, in a line.
    HOMEPAGE: Its address.
    CITATION: Its entry in BibTeX.
    LICENSE: The licence of its texts.
  """

  builder_config: JudgedConfig
  HAS_TITLES = True
  TITLE: str
  HOMEPAGE: str
  CITATION: str
  LICENSE: str

  @abc.abstractmethod
  def _find(
    self,
    dl_manager: tfds.download.DownloadManager,
    language: str,
    bad_records: records.BadRecords,
  ) -> Source:
    """Brings the files of a language, and finds its splits."""

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=(
        f"{self.TITLE}\n\nThe config XX has the queries of the language XX,"
        " with the texts of the passages that are judged relevant (positive)"
        " and not relevant (negative). A query without a relevant passage is"
        " in XX_queries only. XX_corpus has all passages, and XX_qrels all"
        " judgements. Examples are in the order of the released files."
      ),
      features=tfds.features.FeaturesDict(self._features()),
      homepage=self.HOMEPAGE,
      citation=self.CITATION,
      license=self.LICENSE,
      disable_shuffling=True,
    )

  def _features(self) -> dict[str, Any]:
    text = tfds.features.Text
    query_id = text(doc="The id of the query, as released.")
    query = {"query_id": query_id, "query": text(doc="The query.")}
    passage = {"docid": text(doc="The id of the passage, as released.")}
    if self.HAS_TITLES:
      passage["title"] = text(doc="The title of the article, or empty.")
    passage["text"] = text(doc="The passage.")
    match self.builder_config.part:
      case "pairs":
        return query | {
          "positive_passages": tfds.features.Sequence(
            passage, doc="The passages that are judged relevant."
          ),
          "negative_passages": tfds.features.Sequence(
            passage, doc="The passages that are judged not relevant."
          ),
        }
      case "corpus":
        return passage
      case "queries":
        return query
      case _:
        relevance = tfds.features.Scalar(
          np.int32, doc="Above 0: the passage is relevant."
        )
        return {
          "query_id": query_id,
          "docid": passage["docid"],
          "relevance": relevance,
        }

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> Mapping[str, Iterator[tuple[int, dict]]]:
    part = self.builder_config.part
    bad = public_files.bad_records()
    source = self._find(dl_manager, self.builder_config.language, bad)
    if part == CORPUS:
      examples = map(self._passage, source.read_passages(None))
      return {CORPUS: self._generate_examples(examples, bad)}
    read = {PAIRS: self._pairs, QUERIES: _queries, QRELS: _qrels}[part]
    return {
      split: self._generate_examples(read(source, split, bad), bad)
      for split in source.names
    }

  def _generate_examples(
    self, examples: Iterable[dict], bad_records: records.BadRecords
  ) -> Iterator[tuple[int, dict]]:
    yield from enumerate(examples)
    public_files.log_bad(self, bad_records)

  def _passage(self, passage: records.Passage) -> dict[str, str]:
    example = {"docid": passage.passage_id, "text": passage.text}
    return example | ({"title": passage.title} if self.HAS_TITLES else {})

  def _pairs(
    self, source: Source, split: str, bad_records: records.BadRecords
  ) -> Iterator[dict]:
    judgements = source.judgements[split]
    names = list(judgements.queries)
    for record in judged.make_pairs(
      source.names[split],
      self.builder_config.language,
      source.judged_passages,
      judgements,
      bad_records,
    ):
      assert record.place  # `make_pairs` numbers the queries.
      yield {
        "query_id": names[record.place.number - 1],
        "query": record.question,
        "positive_passages": [*map(self._passage, record.positives)],
        "negative_passages": [*map(self._passage, record.hard_negatives)],
      }


def _queries(
  source: Source, split: str, bad_records: records.BadRecords
) -> Iterator[dict]:
  del bad_records  # The source has it.
  for query_id, query in source.judgements[split].queries.items():
    yield {"query_id": query_id, "query": query}


def _qrels(
  source: Source, split: str, bad_records: records.BadRecords
) -> Iterator[dict]:
  said = source.judgements[split]
  for _ in range(said.without_query):
    bad_records.count_removed(
      source.names[split].qrels, "judgements of queries that are not there"
    )
  for query_id, relevances in said.judged.items():
    for docid, relevance in relevances.items():
      yield {"query_id": query_id, "docid": docid, "relevance": relevance}
