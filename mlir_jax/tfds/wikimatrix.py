"""Offers WikiMatrix (Schwenk et al. 2021) as a TensorFlow dataset."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from mlir_jax.corpora import catalog, translations
from mlir_jax.data.sources import translation_rows
from mlir_jax.tfds import public_files

_CORPUS = catalog.WIKIMATRIX


@dataclasses.dataclass(eq=False)
class WikimatrixConfig(tfds.core.BuilderConfig):
  """A pair of languages.

  Attributes:
    languages: Two codes of WikiMatrix, in alphabetical order.
  """

  languages: tuple[str, str] = ("", "")


def make_config(first: str, second: str) -> WikimatrixConfig:
  """Makes the config of any pair of languages that WikiMatrix has.

  The pairs with English are registered. For another pair, give its config to
  `tfds.builder("mlir_jax_wikimatrix", config=…)`.
  """
  languages = translations.wikimatrix_pair(first, second)
  return WikimatrixConfig(
    name="-".join(languages),
    description=f"Sentences in {' and '.join(languages)}.",
    languages=languages,
  )


class MlirJaxWikimatrix(tfds.core.GeneratorBasedBuilder):
  """Mined translations of Wikipedia's sentences; the one split is train."""

  builder_config: WikimatrixConfig
  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {
    "1.0.0": "WikiMatrix v1, all rows with their margins."
  }
  BUILDER_CONFIGS: ClassVar = [
    make_config("en", each) for each in _CORPUS.languages
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text
    languages = self.builder_config.languages
    features = {
      "margin": tfds.features.Scalar(
        np.float32,
        doc="The margin score of the pair. The authors advise 1.04 or more.",
      ),
      **{code: text(doc=f"The sentence in {code}.") for code in languages},
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description=(
        "WikiMatrix: sentences of Wikipedia in two languages that were mined as"
        " translations. All pairs are here, whatever their margin is, in the"
        " order of the released file: the best first."
      ),
      features=tfds.features.FeaturesDict(features),
      supervised_keys=languages,
      homepage=(
        "https://github.com/facebookresearch/LASER/tree/main/tasks/WikiMatrix"
      ),
      license=_CORPUS.licence,
      citation="""\
@inproceedings{schwenk-etal-2021-wikimatrix,
  title = {{WikiMatrix}: Mining 135{M} Parallel Sentences in 1620 Language Pairs from {Wikipedia}},
  author = {Schwenk, Holger and Chaudhary, Vishrav and Sun, Shuo and Gong, Hongyu and Guzm{\\'a}n, Francisco},
  booktitle = {Proceedings of the 16th Conference of the European Chapter of the Association for Computational Linguistics},
  year = {2021},
  pages = {1351--1361},
}""",  # noqa: E501
      disable_shuffling=True,
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> Mapping[str, Iterator[tuple[int, dict]]]:
    file = translations.wikimatrix_file(
      _CORPUS.base, self.builder_config.languages
    )
    brought = public_files.bring(dl_manager, _CORPUS.name, [file])
    return {"train": self._generate_examples(brought.folder / file.path)}

  def _generate_examples(self, path) -> Iterator[tuple[int, dict]]:
    first, second = self.builder_config.languages
    bad = public_files.bad_records()
    rows = translation_rows.read_scored(path, (first, second), bad)
    for number, (margin, pair) in enumerate(rows):
      yield (
        number,
        {"margin": margin, first: pair.source, second: pair.target},
      )
    public_files.log_bad(self, bad)
