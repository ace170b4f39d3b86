"""Finds the plain text in a folder."""

import pathlib
import re

from mlir_jax.data import languages
from mlir_jax.data.collections import layout
from mlir_jax.data.sources import files, plain_text

_TEXT = re.compile(rf".+\.({languages.PATTERN})\.txt")


def _text(path: pathlib.Path, language: str) -> layout.Source:
  file = files.UnchangedFile(path)
  return layout.Source(
    (file,),
    (language,),
    lambda bad_records: plain_text.read(file, language, bad_records),
    lambda: "one sentence a line",
  )


def find(folder: pathlib.Path, names: layout.Names) -> list[layout.Source]:
  """Finds the plain text; none if there is no such folder.

  Raises:
    ValueError: for a file with another name.
  """
  return [
    _text(path, names.code(match[1]))
    for match, path in names.find(folder, _TEXT)
  ]
