"""Brings the files of a public corpus for a builder."""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import tensorflow_datasets as tfds
from absl import logging

from mlir_jax.corpora import downloads
from mlir_jax.data import records
from mlir_jax.storage import copies, locations

# A bad record does not cost the whole data set: it is left out and counted.
_POLICY = "skip"


class Brought(NamedTuple):
  """The files of a corpus on this machine.

  Attributes:
    folder: Their folder.
    sha256: The SHA-256 of each, by its path in the folder.
  """

  folder: pathlib.Path
  sha256: dict[str, str]


def bring(
  dl_manager: tfds.download.DownloadManager,
  corpus: str,
  files: Iterable[downloads.File],
) -> Brought:
  """Downloads the files that are not there, and checks all.

  Checksums are kept, and an interrupted download goes on, as `downloads` does.
  So `download_dir` may be the folder `downloads` of `mlir-jax download`.

  Args:
    dl_manager: It says where files are put. If that is on object storage, they
      are put in the user's cache on this machine.
    corpus: The name of the corpus, which is the name of its folder.
    files: The files, with their paths in that folder.

  Raises:
    DownloadError, UnreadableError: as `downloads.fetch` does.
  """
  where = locations.absolute(str(dl_manager.download_dir))
  folder = pathlib.Path(copies.local_copy(where))
  fetched = downloads.fetch(
    (dataclasses.replace(file, path=f"{corpus}/{file.path}") for file in files),
    folder,
  )
  return Brought(
    folder / corpus,
    {name.partition("/")[2]: sha256 for name, sha256 in fetched.items()},
  )


def bad_records() -> records.BadRecords:
  """Makes the receiver of a builder's bad records."""
  return records.BadRecords(_POLICY)


def log_bad(
  builder: tfds.core.DatasetBuilder, bad_records: records.BadRecords
) -> None:
  """Logs what the readers left out, if anything; the counts are reset."""
  drained = bad_records.drain()
  if drained["count"] or drained["removed"]:
    name = builder.info.full_name
    logging.warning("%s: %s", name, records.describe_bad("source", drained))
