"""Brings Natural Questions as DPR trains on it (Karpukhin et al. 2020).

The files are in the format of ir/ already: questions with a positive passage
and hard negatives of BM25.
"""

import os
import pathlib
import shutil
from collections.abc import Iterator

from mlir_jax.corpora import corpus, downloads

SPLITS = ("train", "dev")


def file(base: str, split: str) -> downloads.File:
  """Returns the file of a split."""
  name = f"biencoder-nq-{split}.json.gz"
  return downloads.File(f"{base}/{name}", name)


def list_files(
  request: corpus.Request, folder: pathlib.Path
) -> Iterator[downloads.File]:
  """Yields the training part."""
  del folder
  yield file(request.base, "train")


def build(
  request: corpus.Request, raw: pathlib.Path, folder: pathlib.Path
) -> list[str]:
  """Writes ir/; see `corpus.Corpus`. A hard link takes no space."""
  name = file(request.base, "train").path
  (folder / "ir").mkdir()
  try:
    os.link(raw / name, folder / "ir" / name)
  except OSError:  # Not every file system has links.
    shutil.copyfile(raw / name, folder / "ir" / name)
  return [f"ir/{name}"]
