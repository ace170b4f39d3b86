"""Encodes text files line by line: row n of the array is the vector of line n.

Files are UTF-8, plain or .gz, and are read one after the other; "-" is the
standard input. An empty line is a text, too.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from etils import epath

from mlir_jax import bars
from mlir_jax.data import records
from mlir_jax.data.sources import text_lines
from mlir_jax.storage import locations, writing

_STDIN = "/dev/stdin"

# Endings of files whose lines are not plain text.
_NOT_PLAIN = (".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".tsv")


class _NoBadLines(records.BadRecords):
  """Stops at a bad line: without that line, later rows would move."""

  def __init__(self, name: str):
    super().__init__()
    self._name = name  # The file as the user named it.

  def report(self, path: str, line: int, field: str, problem: str) -> None:
    raise records.RecordError(f"{self._name}:{line}: {field}: {problem}.")


def check_plain(path: str, line: str | None = None) -> None:
  """Refuses a file that is not plain text, by its name and first line.

  Args:
    path: The file's name.
    line: Its first line; None to check only the name.

  Raises:
    ValueError: if the lines have the syntax of a format.
  """
  suffix = os.path.splitext(path.removesuffix(".gz"))[1].lower()
  sign = f"its name ends in {suffix}" if suffix in _NOT_PLAIN else ""
  if line is not None and line.startswith(("{", "[{")):
    with contextlib.suppress(ValueError, RecursionError):
      json.loads(line)
      sign = "its first line is JSON"
  if sign:
    raise ValueError(
      f"{path} is not plain text: {sign}, and each line would be encoded with"
      " its syntax. Write one text per line to a .txt file, or give"
      " --plain_text to encode the lines as they are."
    )


def read_texts(
  paths: Sequence[str],
  plain_text: bool = False,
  copies: Mapping[str, str] | None = None,
) -> Iterator[str]:
  """Yields the lines of files, including empty lines.

  Args:
    paths: The files; "-" is the standard input.
    plain_text: Whether lines of JSON are texts, too.
    copies: Name of a file to the copy that is read in its place.

  Raises:
    RecordError: if a line is not UTF-8; the message has the file and the line.
    ValueError: if a file is not plain text.
  """
  for path in paths:
    local = _STDIN if path == "-" else (copies or {}).get(path, path)
    for number, text in text_lines.read_lines(local, _NoBadLines(path)):
      assert text is not None  # `_NoBadLines` skips no line.
      if number == 1 and not plain_text:
        check_plain(path, text)
      yield text


@contextlib.contextmanager
def copies_on_disk(paths: Sequence[str]) -> Iterator[dict[str, str]]:
  """Makes temporary copies of files on object storage; yields URL to copy."""
  with tempfile.TemporaryDirectory() as folder:
    copies = {}
    for number, path in enumerate(paths):
      if locations.is_url(path) and path not in copies:
        copies[path] = f"{folder}/{number}-{path.rpartition('/')[2]}"
        with (
          epath.Path(path).open("rb") as source,
          open(copies[path], "wb") as target,
        ):
          shutil.copyfileobj(source, target)
    yield copies


@contextlib.contextmanager
def write_rows(path: str) -> Iterator:
  """Opens a .npy file that grows by rows; it appears whole or not at all.

  Yields:
    append(rows) -> shape so far; rows are float32 [n, D] with the same D.

  Raises:
    ValueError: if rows are not finite or have another D.
  """
  shape = ()

  def write_header(file):
    # NumPy's header has room for a larger number of rows.
    np.lib.format.write_array_header_1_0(
      file, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )

  with writing.writing_aside(path) as file:

    def append(rows):
      nonlocal shape
      if not shape:
        shape = (0, rows.shape[1])
        write_header(file)
      if rows.shape[1:] != shape[1:] or not np.isfinite(rows).all():
        raise ValueError(
          f"{path} is not written: the vectors after row {shape[0]} are not"
          f" finite or do not have {shape[1]} numbers each."
        )
      file.write(np.ascontiguousarray(rows, "<f4").data)
      shape = (shape[0] + len(rows), shape[1])
      return shape

    yield append
    file.seek(0)
    write_header(file)


def encode_files(
  embed: Callable[[Iterable[str]], Iterator[np.ndarray]],
  paths: Sequence[str],
  output: str,
  description: str = "texts",
  writes: bool = True,
  plain_text: bool = False,
) -> tuple[int, int]:
  """Encodes the lines of files into a .npy file, in bounded memory.

  Args:
    embed: Takes any number of texts; yields float32 [m, D] for m at a time.
    paths: Text files; "-" is the standard input. They may be URLs.
    output: The .npy file; it may be a URL.
    description: The text of the progress bar.
    writes: Whether this process writes; only one of several may write.
    plain_text: Whether to encode files that do not look like plain text.

  Returns:
    The shape of the float32 array.

  Raises:
    ValueError: if there is no text, a line is not UTF-8, or a file is not
      plain text.
  """
  if not plain_text:
    for path in paths:
      check_plain(path)
  total = shape = None
  rows_written = contextlib.nullcontext(np.shape)
  with copies_on_disk(paths) as copies:
    # Read everything once first, because a bad line should stop at once.
    if "-" not in paths:
      total = sum(1 for _ in read_texts(paths, plain_text, copies))
    with (
      write_rows(output) if writes else rows_written as append,
      bars.bar(None, description, unit="text", total=total) as bar,
    ):
      for rows in embed(read_texts(paths, plain_text, copies)):
        shape = append(rows)
        bar.update(len(rows))
      if shape is None:
        raise ValueError(f"There are no texts in {', '.join(paths)}.")
  return shape
