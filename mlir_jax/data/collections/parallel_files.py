"""Finds the translations in a folder."""

import pathlib
import re

from mlir_jax.data import languages
from mlir_jax.data.collections import layout
from mlir_jax.data.sources import files, moses

_CODE = languages.PATTERN
_MOSES = re.compile(rf"(.+\.({_CODE})-({_CODE}))\.(\2|\3)")


def _moses(
  paths: tuple[pathlib.Path, pathlib.Path], codes: tuple[str, str]
) -> layout.Source:
  """Makes the source of two line-aligned files."""
  if codes[0] == codes[1]:
    raise ValueError(
      f"{paths[0]} and {paths[1]} are both in {codes[0]!r}; a pair is of two"
      " languages."
    )
  source, target = map(files.UnchangedFile, paths)
  return layout.Source(
    (source, target),
    codes,
    lambda bad_records: moses.read(source, target, *codes, bad_records),
    lambda: "two line-aligned files",
  )


def find(folder: pathlib.Path, names: layout.Names) -> list[layout.Source]:
  """Finds the translations; none if there is no such folder.

  Raises:
    ValueError: for a file with another name, a side without its other side, or
      two sides in one language.
  """
  sides: dict[tuple[str, str, str], dict[str, pathlib.Path]] = {}
  for match, path in names.find(folder, _MOSES):
    pair, source, target, side = match.groups()
    sides.setdefault((pair, source, target), {})[side] = path
  sources = []
  for (pair, source, target), paths in sides.items():
    if len(paths) != 2:
      (path,) = paths.values()
      raise ValueError(
        f"{path} lacks its other side: {pair}.{source} and"
        f" {pair}.{target} belong together, in two languages."
      )
    sources.append(
      _moses(
        (paths[source], paths[target]),
        (names.code(source), names.code(target)),
      )
    )
  return sources
