"""Brings Natural Questions as DPR trains on it (Karpukhin et al. 2020).

The files are in the format of ir/ already: questions with a positive passage
and hard negatives of BM25.
"""

import os
import pathlib
import shutil
from collections.abc import Iterator

from mlir_jax.corpora import corpus, downloads

_NAME = "biencoder-nq-train.json.gz"


def list_files(
  request: corpus.Request, folder: pathlib.Path
) -> Iterator[downloads.File]:
  """Yields the training part."""
  del folder
  yield downloads.File(f"{request.base}/{_NAME}", _NAME)


def build(
  request: corpus.Request, raw: pathlib.Path, folder: pathlib.Path
) -> list[str]:
  """Writes ir/; see `corpus.Corpus`. A hard link takes no space."""
  del request
  (folder / "ir").mkdir()
  try:
    os.link(raw / _NAME, folder / "ir" / _NAME)
  except OSError:  # Not every file system has links.
    shutil.copyfile(raw / _NAME, folder / "ir" / _NAME)
  return [f"ir/{_NAME}"]
