"""TFDS's own tests of each builder; `test_tfds_builders.py` starts them.

They need tensorflow, so they run in a process of their own.
"""

import os

import tensorflow_datasets as tfds

from mlir_jax.tfds import dpr_nq, miracl, mr_tydi, wikimatrix, xquad_r


class StandIns:
  """The files that the test made are the downloads."""

  EXAMPLE_DIR = os.environ["STAND_INS"]


class MrTydiTest(StandIns, tfds.testing.DatasetBuilderTestCase):
  DATASET_CLASS = mr_tydi.MlirJaxMrTydi
  BUILDER_CONFIG_NAMES_TO_TEST = ("sw",)
  SPLITS = {"train": 2, "dev": 1, "test": 1}  # noqa: RUF012


class MrTydiCorpusTest(StandIns, tfds.testing.DatasetBuilderTestCase):
  DATASET_CLASS = mr_tydi.MlirJaxMrTydi
  BUILDER_CONFIG_NAMES_TO_TEST = ("sw_corpus",)
  SPLITS = {"corpus": 6}  # noqa: RUF012


class MrTydiQueriesTest(StandIns, tfds.testing.DatasetBuilderTestCase):
  DATASET_CLASS = mr_tydi.MlirJaxMrTydi
  BUILDER_CONFIG_NAMES_TO_TEST = ("sw_queries",)
  SPLITS = {"train": 3, "dev": 2, "test": 2}  # noqa: RUF012


class MrTydiQrelsTest(StandIns, tfds.testing.DatasetBuilderTestCase):
  DATASET_CLASS = mr_tydi.MlirJaxMrTydi
  BUILDER_CONFIG_NAMES_TO_TEST = ("sw_qrels",)
  SPLITS = {"train": 4, "dev": 2, "test": 2}  # noqa: RUF012


class MiraclTest(StandIns, tfds.testing.DatasetBuilderTestCase):
  DATASET_CLASS = miracl.MlirJaxMiracl
  BUILDER_CONFIG_NAMES_TO_TEST = ("sw",)
  SPLITS = {"train": 1, "dev": 1}  # noqa: RUF012


class MiraclWithoutTrainTest(StandIns, tfds.testing.DatasetBuilderTestCase):
  DATASET_CLASS = miracl.MlirJaxMiracl
  BUILDER_CONFIG_NAMES_TO_TEST = ("yo", "yo_queries")
  SPLITS = {"dev": 1}  # noqa: RUF012


class XquadRTest(StandIns, tfds.testing.DatasetBuilderTestCase):
  DATASET_CLASS = xquad_r.MlirJaxXquadR
  BUILDER_CONFIG_NAMES_TO_TEST = ("de", "de_queries", "de_qrels")
  SPLITS = {"test": 2}  # noqa: RUF012


class XquadRCorpusTest(StandIns, tfds.testing.DatasetBuilderTestCase):
  DATASET_CLASS = xquad_r.MlirJaxXquadR
  BUILDER_CONFIG_NAMES_TO_TEST = ("de_corpus",)
  SPLITS = {"corpus": 2}  # noqa: RUF012


class WikimatrixTest(StandIns, tfds.testing.DatasetBuilderTestCase):
  DATASET_CLASS = wikimatrix.MlirJaxWikimatrix
  BUILDER_CONFIG_NAMES_TO_TEST = (
    "en-sw",
    wikimatrix.make_config("sw", "de"),
  )
  SPLITS = {"train": 8}  # noqa: RUF012


class DprNqTest(StandIns, tfds.testing.DatasetBuilderTestCase):
  DATASET_CLASS = dpr_nq.MlirJaxDprNq
  SPLITS = {"train": 3, "dev": 2}  # noqa: RUF012


if __name__ == "__main__":
  tfds.testing.test_main()
