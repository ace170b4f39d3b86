"""Builders of TensorFlow Datasets. Importing this package registers them.

  import tensorflow_datasets as tfds
  import mlir_jax.tfds

  tfds.load("mlir_jax_mr_tydi/sw", split="train")

The public files are those of `mlir_jax.corpora`, and `mlir_jax.data.sources`
reads them. Nothing else of mlir_jax needs this package but data sets by name
(`data.sources.named.tfds_sets`).
"""

from mlir_jax.tfds import (  # noqa: F401 They register.
  cldr,
  dpr_nq,
  miracl,
  mr_tydi,
  wikimatrix,
  xquad_r,
)
