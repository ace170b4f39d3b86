"""Offers MIRACL (Zhang et al. 2023) as a TensorFlow dataset."""

from typing import ClassVar

import tensorflow_datasets as tfds

from mlir_jax.corpora import catalog, wikipedia
from mlir_jax.data import records
from mlir_jax.tfds import judged, public_files

_CORPUS = catalog.MIRACL


class MlirJaxMiracl(judged.JudgedBuilder):
  """MIRACL 1.0; its splits are train and dev.

  German and Yoruba have dev alone. The judgements of its test splits are not
  public.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {
    "1.0.0": "The release 1.0 of MIRACL, train and dev."
  }
  BUILDER_CONFIGS = judged.configs(_CORPUS.languages)
  TITLE = (
    "MIRACL: questions in 18 languages, each over the Wikipedia of its"
    " language, with judgements of native speakers."
  )
  HOMEPAGE = "https://project-miracl.github.io"
  LICENSE = _CORPUS.licence
  CITATION = """\
@article{zhang-etal-2023-miracl,
  title = {{MIRACL}: A Multilingual Retrieval Dataset Covering 18 Diverse Languages},
  author = {Zhang, Xinyu and Thakur, Nandan and Ogundepo, Odunayo and Kamalloo, Ehsan and Alfonso-Hermelo, David and Li, Xiaoguang and Liu, Qun and Rezagholizadeh, Mehdi and Lin, Jimmy},
  journal = {Transactions of the Association for Computational Linguistics},
  volume = {11},
  year = {2023},
  pages = {1114--1131},
}"""  # noqa: E501

  def _find(
    self,
    dl_manager: tfds.download.DownloadManager,
    language: str,
    bad_records: records.BadRecords,
  ) -> judged.Source:
    splits = wikipedia.miracl_splits(language)
    brought = public_files.bring(
      dl_manager,
      _CORPUS.name,
      wikipedia.miracl_files(_CORPUS.base, language, splits),
    )
    return judged.source_of_files(
      {
        split: wikipedia.locate_miracl(brought.folder, language, split)
        for split in splits
      },
      bad_records,
    )
