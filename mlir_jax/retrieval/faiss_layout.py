"""Reads and writes a flat index of Faiss with its ids, as pyserini has them.

A folder holds:
  index   Faiss's index
  docid   the ids of its vectors, one on each line
"""

import os
import pathlib
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlir_jax.retrieval import vector_folder
from mlir_jax.storage import reading, writing

INDEX = "index"
IDS = "docid"
# Rows in a block.
_ROWS = 65_536


def _import() -> Any:
  """Returns the module of faiss-cpu; ImportError if it is not installed."""
  try:
    import faiss
  except ImportError as error:
    raise ImportError(
      "A Faiss index needs faiss-cpu: pip install 'mlir_jax[faiss]'."
    ) from error
  return faiss


def read(
  folder: pathlib.Path,
) -> tuple[Sequence[str], tuple[int, int], Sequence[np.ndarray]]:
  """Reads the ids and the vectors of an index; the vectors are memory-mapped.

  The index must hold whole vectors (IndexFlat, IndexHNSWFlat) that are compared
  by inner product.

  Returns:
    The ids, (N, D), and float32 blocks [n, D] in the order of the ids.

  Raises:
    UnreadableError: if a file is missing or damaged; it names the file.
    ValueError: if the index is of another kind.
    ImportError: if faiss-cpu is not installed.
  """
  faiss = _import()
  path = folder / INDEX
  for each in (path, folder / IDS):
    reading.check_file(each, vector_folder.MEND)
  try:
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    if isinstance(index, faiss.IndexHNSWFlat):
      index = faiss.downcast_index(index.storage)
  except RuntimeError as error:
    reason = str(error).rpartition(": ")[2]
    raise reading.UnreadableError(
      f"{path} is not an index of Faiss, or it is damaged ({reason})."
      f" {vector_folder.MEND}"
    ) from error
  kind = type(index).__name__
  if not isinstance(index, faiss.IndexFlat):
    raise ValueError(
      f"{path} is a Faiss index of the kind {kind}, which does not hold the"
      " whole vectors in their order; only flat indexes are read."
    )
  if index.metric_type != faiss.METRIC_INNER_PRODUCT:
    raise ValueError(
      f"{path} compares vectors by another metric than the inner product; build"
      " it with IndexFlatIP."
    )
  if not index.ntotal:
    raise reading.UnreadableError(f"{path} holds no vector.")
  count, width = index.ntotal, index.d
  whole = faiss.rev_swig_ptr(index.get_xb(), count * width)
  whole = whole.reshape(count, width)
  whole.flags.writeable = False

  def open_block(number: int) -> np.ndarray:
    rows = whole[number * _ROWS : (number + 1) * _ROWS]
    if not np.isfinite(rows).all():
      raise reading.UnreadableError(
        f"{path} holds a vector that is not finite. {vector_folder.MEND}"
      )
    assert index  # The rows are its memory.
    return rows

  try:
    text = (folder / IDS).read_text(encoding="utf-8")
  except UnicodeDecodeError as error:
    raise reading.UnreadableError(
      f"{folder / IDS} is not UTF-8. {vector_folder.MEND}"
    ) from error
  ids = [line.rstrip() for line in text.removesuffix("\n").split("\n")]
  blocks = vector_folder.Blocks(-(-count // _ROWS), open_block)
  return ids, (count, width), blocks


def write(
  vectors: vector_folder.VectorFolder, folder: str | os.PathLike
) -> None:
  """Writes an IndexFlatIP and its ids into a folder, block by block.

  Faiss would hold the whole index in memory. So it writes the header alone.
  Vectors that are compared by cosine are scaled to unit length, so that the
  inner product is the cosine.

  Raises:
    ImportError: if faiss-cpu is not installed.
    ValueError: if this version of Faiss writes another header.
  """
  header = _header(_import(), *vectors.shape)
  with writing.writing_aside(f"{os.fspath(folder)}/{IDS}") as file:
    for text_id in vectors.ids:
      file.write(f"{text_id}\n".encode())
  with writing.writing_aside(f"{os.fspath(folder)}/{INDEX}") as file:
    file.write(header)
    for block in vectors.float32_blocks():
      file.write(np.ascontiguousarray(block, "<f4").data)


def _header(faiss: Any, count: int, width: int) -> bytes:
  """Returns what is before the vectors in the file of an IndexFlatIP.

  Faiss writes that of an index of one vector. Two of its 64-bit numbers depend
  on the vectors: how many they are, after the kind and the width of the index;
  and how many numbers they have together, at the end.
  """
  index = faiss.IndexFlatIP(width)
  index.add(np.zeros((1, width), np.float32))
  header = bytearray(faiss.serialize_index(index)[: -4 * width])
  for place, of_one, of_all in (
    (8, 1, count),
    (len(header) - 8, width, count * width),
  ):
    if struct.unpack_from("<q", header, place) != (of_one,):
      raise ValueError(
        f"faiss-cpu {faiss.__version__} writes indexes in a form that is not"
        " known here; use the layout pyserini, or an earlier version."
      )
    struct.pack_into("<q", header, place, of_all)
  return bytes(header)
