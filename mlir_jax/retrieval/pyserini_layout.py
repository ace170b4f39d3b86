"""Reads and writes vectors as `pyserini.encode` does: JSON lines.

A folder holds files of lines {"id", "contents", "vector"}; pyserini names its
file embeddings.jsonl. `pyserini.index.faiss` makes an index of the files of a
folder and reads the id and the vector of each line.
"""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlir_jax.retrieval import vector_folder
from mlir_jax.storage import reading, writing

FILE = "embeddings.jsonl"
# Vectors in a block.
_ROWS = 16_384


def _parse(content: bytes, where: str) -> tuple[str, np.ndarray]:
  """Returns the id and the vector of a line, float32 [D]."""
  value = reading.parse_json(content, where, mend=vector_folder.MEND)
  text_id, numbers = value.get("id"), value.get("vector")
  if type(text_id) not in (str, int):
    problem = f"id is {text_id!r}, not a text"
  elif not isinstance(numbers, list) or not all(
    type(number) in (float, int) for number in numbers
  ):
    problem = "vector is not a list of numbers"
  else:
    with np.errstate(over="ignore"):
      vector = np.array(numbers, np.float64).astype(np.float32)
    if vector.size and np.isfinite(vector).all():
      return str(text_id), vector
    problem = "the vector is empty or not finite"
  raise reading.UnreadableError(f"{where}: {problem}. {vector_folder.MEND}")


def read(
  folder: pathlib.Path,
) -> tuple[Sequence[str], tuple[int, int], list[np.ndarray]]:
  """Reads the vectors of all .jsonl files of a folder into memory.

  Returns:
    The ids, (N, D), and float32 blocks [n, D] in the order of the ids. The
    files are read in the order of their names.

  Raises:
    UnreadableError: if a line cannot be used; it names the file and the line.
  """
  ids: list[str] = []
  blocks: list[np.ndarray] = []
  waiting: list[Any] = []

  def flush():
    if waiting:
      blocks.append(np.stack(waiting))
      waiting.clear()

  width = 0
  for path in sorted(folder.glob("*.jsonl")):
    reading.check_file(path, vector_folder.MEND)
    with open(path, "rb") as file:
      for number, line in enumerate(file, start=1):
        if not line.strip():
          continue
        text_id, vector = _parse(line, f"{path}:{number}")
        width = width or len(vector)
        if len(vector) != width:
          raise reading.UnreadableError(
            f"{path}:{number}: the vector has {len(vector)} numbers, and those"
            f" before have {width}. {vector_folder.MEND}"
          )
        ids.append(text_id)
        waiting.append(vector)
        if len(waiting) == _ROWS:
          flush()
  flush()
  if not ids:
    raise reading.UnreadableError(f"{folder} holds no vector.")
  return ids, (len(ids), width), blocks


def write(
  vectors: vector_folder.VectorFolder, folder: str | os.PathLike
) -> None:
  """Writes embeddings.jsonl into a folder.

  The contents are "": a folder of vectors does not hold its texts. Vectors that
  are compared by cosine are scaled to unit length.
  """
  ids = iter(vectors.ids)
  with writing.writing_aside(f"{os.fspath(folder)}/{FILE}") as file:
    for block in vectors.float32_blocks():
      for row in block.tolist():
        line = {"id": next(ids), "contents": "", "vector": row}
        file.write(f"{json.dumps(line, ensure_ascii=False)}\n".encode())
