"""Makes one shard of a token store, from its own records alone."""

import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlir_jax import contract as contract_lib
from mlir_jax.data import store_arrays, store_texts
from mlir_jax.data.shards import partition
from mlir_jax.storage import digests, reading, writing

_META = "shard.json"
_ROWS = "rows"  # The folder of what only the join needs.
_STEP = 100  # Records between two reports of progress.
_MEND = "Delete the folder and prepare again."


class Recipe(NamedTuple):
  """How the texts of all shards become tokens.

  Attributes:
    contract: The encoding contract.
    tokenizer: The tokenizer's JSON.
  """

  contract: contract_lib.EncodingContract
  tokenizer: str


def make(
  recipe: Recipe,
  job_folders: Sequence[str],
  shard: int,
  folder: str,
  *,
  progress: Callable[[int], object],
) -> None:
  """Makes a shard of the records that `partition.spill` has written.

  Args:
    recipe: How texts become tokens.
    job_folders: The folders of all jobs.
    shard: The shard.
    folder: Where to write; whole or not at all. Nothing is done if it is there.
    progress: Receives numbers of records.

  Raises:
    ValueError: if a record cannot be used.
  """
  if os.path.exists(folder):
    return

  def read(stream: str) -> Iterator[Any]:
    count = 0
    for record in partition.read_shard(job_folders, stream, shard):
      yield record
      count += 1
      if count == _STEP:
        progress(count)
        count = 0
    progress(count)

  with writing.folder_aside(folder) as aside:
    made = store_arrays.read_shard(
      aside,
      read("retrieval"),
      read("parallel"),
      read("monolingual"),
      recipe.contract,
      recipe.tokenizer,
    )
    rows = aside / _ROWS
    rows.mkdir()
    for path in aside.glob("*.npy"):
      if not path.stem.endswith("_tokens"):
        path.rename(rows / path.name)
    for stream, found in made.streams.items():
      for array, values in found.arrays.items():
        np.save(rows / f"{stream}.{array}.npy", values)
    meta = {
      "streams": {
        stream: {
          "groups": found.groups,
          "files": found.files,
          "dropped": found.dropped,
        }
        for stream, found in made.streams.items()
      },
      "languages": made.languages,
      "truncation": made.truncation,
      "arrays": {
        path.stem: describe_array(path) for path in sorted(aside.glob("*.npy"))
      },
    }
    (rows / _META).write_text(json.dumps(meta), encoding="utf-8")


def describe_array(path: str | os.PathLike) -> dict[str, Any]:
  """Returns what meta.json says of an array's file."""
  values = np.load(path, mmap_mode="r")
  return {
    "dtype": str(values.dtype),
    "shape": list(values.shape),
    "sha256": digests.of_file(path),
  }


def read_meta(folder: str | os.PathLike) -> dict[str, Any]:
  """Returns what `make` says of a shard: "arrays" describes its tokens."""
  return reading.read_json(f"{folder}/{_ROWS}/{_META}", mend=_MEND)


def read_rows(folder: str | os.PathLike) -> store_arrays.Shard:
  """Reads what a shard says to the join; the arrays are memory-mapped."""
  rows, meta = pathlib.Path(folder) / _ROWS, read_meta(folder)
  streams = {}
  for stream, described in meta["streams"].items():
    arrays = {
      path.name.split(".")[1]: np.load(path, mmap_mode="r")
      for path in rows.glob(f"{stream}.*.npy")
    }
    streams[stream] = store_arrays.ShardRows(
      arrays,
      tuple(map(tuple, described["groups"])),
      tuple(described["files"]),
      described["dropped"],
    )
  hashes = {
    role: store_texts.Hashes(
      np.load(rows / f"{role}_text_hashes.npy", mmap_mode="r"),
      np.load(rows / f"{role}_sequence_hashes.npy", mmap_mode="r"),
    )
    for role in contract_lib.ROLES
  }
  return store_arrays.Shard(
    streams, tuple(meta["languages"]), hashes, meta["truncation"]
  )


def text_array(folder: str | os.PathLike, array: str) -> np.ndarray:
  """Returns an array of a shard's texts, such as "query_offsets"."""
  return np.load(f"{folder}/{_ROWS}/{array}.npy", mmap_mode="r")


def rows_folder(folder: str | os.PathLike) -> str:
  """Returns the part of a shard's folder that the store does not keep."""
  return f"{folder}/{_ROWS}"
