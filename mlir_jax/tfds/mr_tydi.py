"""Offers Mr. TyDi (Zhang et al. 2021) as a TensorFlow dataset."""

import contextlib
from typing import ClassVar

import tensorflow_datasets as tfds

from mlir_jax.corpora import catalog, wikipedia
from mlir_jax.data import records
from mlir_jax.data.sources import mr_tydi
from mlir_jax.storage import writing
from mlir_jax.tfds import judged, public_files

_CORPUS = catalog.MR_TYDI


class MlirJaxMrTydi(judged.JudgedBuilder):
  """Mr. TyDi 1.1; its splits are train, dev and test."""

  VERSION = tfds.core.Version("1.1.0")
  RELEASE_NOTES: ClassVar = {"1.1.0": "The release 1.1 of Mr. TyDi."}
  BUILDER_CONFIGS = judged.configs(_CORPUS.languages)
  TITLE = (
    "Mr. TyDi: questions in 11 languages, each over the Wikipedia of its"
    " language. Only relevant passages are judged."
  )
  HOMEPAGE = "https://github.com/castorini/mr.tydi"
  LICENSE = _CORPUS.licence
  CITATION = """\
@inproceedings{zhang-etal-2021-mr,
  title = {Mr. {TyDi}: A Multi-lingual Benchmark for Dense Retrieval},
  author = {Zhang, Xinyu and Ma, Xueguang and Shi, Peng and Lin, Jimmy},
  booktitle = {Proceedings of the 1st Workshop on Multilingual Representation Learning},
  year = {2021},
  pages = {127--137},
}"""  # noqa: E501

  def _find(
    self,
    dl_manager: tfds.download.DownloadManager,
    language: str,
    bad_records: records.BadRecords,
  ) -> judged.Source:
    file = wikipedia.mr_tydi_file(_CORPUS.base, language)
    brought = public_files.bring(dl_manager, _CORPUS.name, [file])
    archive = file.path
    # The hash keeps the files of another archive of this name apart.
    sha256 = brought.sha256[archive]
    folder = brought.folder / f"{archive.partition('.tar')[0]}-{sha256[:16]}"
    if not folder.exists():
      with (
        # Another process may be faster.
        contextlib.suppress(writing.TakenError),
        writing.folder_aside(folder) as aside,
      ):
        wikipedia.extract_mr_tydi(
          brought.folder / archive, aside, wikipedia.MR_TYDI_SPLITS
        )
    return judged.source_of_files(
      {
        split: mr_tydi.locate(folder, split)
        for split in wikipedia.MR_TYDI_SPLITS
      },
      bad_records,
    )
