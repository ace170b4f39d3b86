"""Offers the CLDR collection as a TensorFlow dataset, for other pipelines.

Training does not need it, but reads `cldr.load()` itself. Importing this module
registers the builder:

  tfds.load("mlir_jax_cldr/retrieval", split="train")
  tfds.load("mlir_jax_cldr/passages", split="test_de")
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds
from babel import core

from mlir_jax.data import records
from mlir_jax.data.collections import cldr

_STREAM_FIELDS = {
  "retrieval": ("question", "passage_id", "passage", "language"),
  "parallel": ("source", "target", "source_language", "target_language"),
  "monolingual": ("text", "language"),
}
_TEST_FIELDS = {
  "passages": ("passage_id", "text"),
  "queries": ("query_id", "text"),
  "qrels": ("query_id", "passage_id", "relevance"),
}
_FIELDS = _STREAM_FIELDS | _TEST_FIELDS


class MlirJaxCldr(tfds.core.GeneratorBasedBuilder):
  """Names and facts of the Unicode CLDR; `cldr.py` says how they are made.

  The configs "retrieval", "parallel" and "monolingual" have one split,
  "train". The configs "passages", "queries" and "qrels" have "dev_en" and,
  for each language, "test_LANGUAGE". Examples are in the order of the
  collection. Every feature is a text, except the relevance: an int32.
  """

  builder_config: tfds.core.BuilderConfig  # One of those below.
  # The data are CLDR's, so its release is the version.
  VERSION = tfds.core.Version(f"{core.get_global('cldr')['version']}.0.0")
  BUILDER_CONFIGS = tuple(
    tfds.core.BuilderConfig(name=name, description=", ".join(fields))
    for name, fields in _FIELDS.items()
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Names and facts of the Unicode CLDR, as Babel ships it.",
      features=tfds.features.FeaturesDict(
        {
          field: tfds.features.Scalar(np.int32)
          if field == "relevance"
          else tfds.features.Text()
          for field in _FIELDS[self.builder_config.name]
        }
      ),
      homepage="https://cldr.unicode.org",
      license="Unicode License v3",
      disable_shuffling=True,
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> Mapping[str, Iterator[tuple[int, dict]]]:
    del dl_manager  # Nothing is downloaded.
    name = self.builder_config.name
    collection = cldr.load()
    if name in _STREAM_FIELDS:
      return {"train": self._generate_examples(_read_stream(collection, name))}
    return {
      f"{test.split}_{test.language}": self._generate_examples(
        _read_test(test, name)
      )
      for test in collection.tests()
    }

  def _generate_examples(
    self, examples: Iterable[dict]
  ) -> Iterator[tuple[int, dict]]:
    yield from enumerate(examples)


def _read_stream(collection: records.Collection, name: str) -> Iterator[dict]:
  for record in getattr(collection, name)():
    if name == "retrieval":
      (passage,) = record.positives
      yield {
        "question": record.question,
        "passage_id": passage.passage_id,
        "passage": passage.text,
        "language": record.language,
      }
    else:
      yield {field: getattr(record, field) for field in _STREAM_FIELDS[name]}


def _read_test(test: records.RetrievalTest, name: str) -> Iterator[dict]:
  if name == "passages":
    for passage in test.passages:
      yield {"passage_id": passage.passage_id, "text": passage.text}
  elif name == "queries":
    for query_id, text in test.queries.items():
      yield {"query_id": query_id, "text": text}
  else:
    for query_id, judged in test.qrels.items():
      for passage_id, relevance in judged.items():
        yield {
          "query_id": query_id,
          "passage_id": passage_id,
          "relevance": relevance,
        }
