"""Offers XQuAD-R (LAReQA, Roy et al. 2020) as a TensorFlow dataset."""

import functools
from typing import ClassVar

import tensorflow_datasets as tfds

from mlir_jax.corpora import catalog, xquadr
from mlir_jax.data import records
from mlir_jax.data.sources import judged as judged_lib
from mlir_jax.data.sources import xquad_r
from mlir_jax.tfds import judged, public_files

_CORPUS = catalog.XQUAD_R


class MlirJaxXquadR(judged.JudgedBuilder):
  """XQuAD-R; its split is test. Sentences are the passages.

  An id of a passage ends in its language, and a question has one id in all
  languages. So the configs of several languages make LAReQA's pool.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "XQuAD-R as LAReQA released it."}
  BUILDER_CONFIGS = judged.configs(_CORPUS.languages)
  HAS_TITLES = False
  TITLE = (
    "XQuAD-R: the questions of XQuAD in 11 languages. A sentence in which an"
    " answer begins is relevant."
  )
  HOMEPAGE = "https://github.com/google-research-datasets/lareqa"
  LICENSE = _CORPUS.licence
  CITATION = """\
@inproceedings{roy-etal-2020-lareqa,
  title = {{LAReQA}: Language-Agnostic Answer Retrieval from a Multilingual Pool},
  author = {Roy, Uma and Constant, Noah and Al-Rfou, Rami and Barua, Aditya and Phillips, Aaron and Yang, Yinfei},
  booktitle = {Proceedings of the 2020 Conference on Empirical Methods in Natural Language Processing},
  year = {2020},
  pages = {5919--5930},
}"""  # noqa: E501

  def _find(
    self,
    dl_manager: tfds.download.DownloadManager,
    language: str,
    bad_records: records.BadRecords,
  ) -> judged.Source:
    file = xquadr.file(_CORPUS.base, language)
    path = (
      public_files.bring(dl_manager, _CORPUS.name, [file]).folder / file.path
    )
    read = functools.cache(
      lambda: xquad_r.read_test(path, language, bad_records)
    )

    def passages(wanted: frozenset[str] | None) -> list[records.Passage]:
      return [
        passage
        for passage in read().passages
        if wanted is None or passage.passage_id in wanted
      ]

    where = str(path)
    return judged.Source(
      {"test": judged_lib.Names(where, where, where)},
      lambda _: judged_lib.Judgements(read().queries, read().qrels, 0),
      passages,
    )
