"""Finds the translations in a folder."""

import pathlib
import re
from collections.abc import Mapping

from mlir_jax.data import languages
from mlir_jax.data.collections import layout
from mlir_jax.data.sources import (
  files,
  moses,
  tmx,
  translation_records,
  translation_rows,
  translations,
)

_CODE = languages.PATTERN
_MOSES = re.compile(rf"((.+)\.({_CODE})-({_CODE}))\.(\3|\4)")
# One file; sentence-transformers names some "TED2020-en-de-train.tsv".
_ONE_FILE = re.compile(
  r"(.+)-([a-z]{2,3}-[a-z]{2,3})-train\.(tsv)"
  rf"|(?:(.+)\.)?({languages.SEVERAL})\.(tsv|tmx|jsonl?|csv|parquet)"
)
_NTREX_NAME = "newstest2019"
_NTREX = re.compile(rf"{_NTREX_NAME}-(src|ref)\.({_CODE})\.txt")
# Of a second Spanish translation, too.
_NTREX_COMPANION = re.compile(
  rf"(DOCUMENT_IDS|LANGUAGES)\.tsv|{_NTREX_NAME}-ref-2\.spa\.txt"
)


def _two_files(
  name: str,
  paths: tuple[pathlib.Path, pathlib.Path],
  codes: tuple[str, str],
  opened: dict[pathlib.Path, files.UnchangedFile],
  kind: str,
) -> layout.Source:
  """Makes the source of two line-aligned files."""
  if codes[0] == codes[1]:
    raise ValueError(
      f"{paths[0]} and {paths[1]} are both in {codes[0]!r}; a pair is of two"
      " languages."
    )
  source, target = (
    opened.setdefault(path, files.UnchangedFile(path)) for path in paths
  )
  return layout.Source(
    name,
    (source, target),
    codes,
    lambda bad_records: moses.read(source, target, *codes, bad_records),
    lambda: kind,
  )


def _one_file(
  name: str,
  path: pathlib.Path,
  codes: tuple[str, ...],
  ending: str,
  margin: float,
) -> layout.Source:
  """Makes the source of a file that holds both sides."""
  file = files.UnchangedFile(path)
  if len(set(codes)) != len(codes) or len(codes) < 2:
    raise ValueError(
      f"{path} names the languages {', '.join(codes)}: a pair is of two"
      " languages."
    )
  if ending == "tmx":
    return layout.Source(
      name,
      (file,),
      codes,
      lambda bad_records: tmx.read(file, codes, bad_records),
      lambda: f"TMX ({', '.join(codes)})",
    )
  if len(codes) > 2:
    raise ValueError(
      f"{path} names the languages {', '.join(codes)}, but a file like it is of"
      " two. (After a hyphen a code begins: write pt_br for Brazil's"
      " Portuguese.)"
    )
  pair = codes[0], codes[1]

  def reader():
    # It reads the first row, so it waits until the file is asked for.
    has_names = ending != "tsv" or translation_rows.has_header(file, pair)
    return translation_records if has_names else translation_rows

  return layout.Source(
    name,
    (file,),
    pair,
    lambda bad_records: reader().read(file, pair, bad_records, margin),
    lambda: reader().recognize(file, pair).kind,
  )


def _misnamed(path: pathlib.Path) -> ValueError:
  return ValueError(
    f"{path} is not named as the layout says; rename it or move it elsewhere."
    f" {translations.EXAMPLES}"
  )


def _moses_pairs(
  found: Mapping[tuple[str, str, str, str], Mapping[str, pathlib.Path]],
  names: layout.Names,
  opened: dict[pathlib.Path, files.UnchangedFile],
) -> list[layout.Source]:
  """Makes the sources of files like NAME.en-de.en and NAME.en-de.de."""
  sources = []
  for (pair, name, source, target), paths in found.items():
    if len(paths) != 2:
      (path,) = paths.values()
      raise ValueError(
        f"{path} lacks its other side: {pair}.{source} and"
        f" {pair}.{target} belong together, in two languages."
      )
    sources.append(
      _two_files(
        name,
        (paths[source], paths[target]),
        (names.code(source), names.code(target)),
        opened,
        "two line-aligned files",
      )
    )
  return sources


def _ntrex_pairs(
  found: Mapping[tuple[str, str], pathlib.Path],
  names: layout.Names,
  opened: dict[pathlib.Path, files.UnchangedFile],
) -> list[layout.Source]:
  """Makes the sources of NTREX: its English with each translation.

  Args:
    found: ("src" or "ref", language) to file.
    names: Receives the translations into other kinds of English.
    opened: File by path.
  """
  sources = [path for (side, _), path in found.items() if side == "src"]
  references = {
    name: path for (side, name), path in found.items() if side == "ref"
  }
  if not found:
    return []
  if len(sources) != 1 or not references:
    (path, *_) = found.values()
    raise ValueError(
      f"{path} is a file of NTREX, which needs newstest2019-src.eng.txt and a"
      " newstest2019-ref.XXX.txt next to it."
    )
  pairs = []
  for name, path in references.items():
    if names.code(name) == "en":
      names.not_read.append(path)
      continue
    pairs.append(
      _two_files(
        _NTREX_NAME,
        (sources[0], path),
        ("en", names.code(name)),
        opened,
        "NTREX",
      )
    )
  return pairs


def find(
  folder: pathlib.Path, names: layout.Names, margin: float = 0.0
) -> list[layout.Source]:
  """Finds the translations; none if there is no such folder.

  Args:
    folder: The folder.
    names: Receives what is not read, and the codes.
    margin: The lowest margin that is kept, of pairs that have one.

  Returns:
    The sources, in the order of the files' names.

  Raises:
    ValueError: for a file with another name, a side without its other side, or
      two sides in one language.
  """
  sides: dict[tuple[str, str, str, str], dict[str, pathlib.Path]] = {}
  ntrex: dict[tuple[str, str], pathlib.Path] = {}
  opened: dict[pathlib.Path, files.UnchangedFile] = {}
  sources = []
  for name, path in names.listed(folder).items():
    if match := _MOSES.fullmatch(name):
      *key, side = match.groups()
      pair, source_name, source, target = key
      sides.setdefault((pair, source_name, source, target), {})[side] = path
    elif match := _NTREX.fullmatch(name):
      ntrex[match[1], match[2]] = path
    elif match := _ONE_FILE.fullmatch(name):
      # Three groups for each form of a name.
      source_name, several, ending = (
        match.groups()[:3] if match[2] else match.groups()[3:]
      )
      codes = tuple(names.code(code) for code in languages.split(several))
      sources.append(_one_file(source_name or "", path, codes, ending, margin))
    elif files.is_companion(name) or _NTREX_COMPANION.fullmatch(name):
      names.not_read.append(path)
    else:
      raise _misnamed(path)
  sources += _moses_pairs(sides, names, opened)
  sources += _ntrex_pairs(ntrex, names, opened)
  return sorted(sources, key=lambda source: min(map(str, source.files)))
