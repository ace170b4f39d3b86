"""Reads translation tests from files that are named as in LASER's Tatoeba."""

import os
import pathlib
import re

from mlir_jax.corpora import catalog
from mlir_jax.data import languages, records
from mlir_jax.data.sources import files, moses

_NAME = re.compile(r"tatoeba\.(?P<pair>([a-z]{3})-eng)\.(?P<side>\2|eng)")


def find_pairs(
  root: str | os.PathLike,
  not_read: list[pathlib.Path] | None = None,
  setting: str = "data.tatoeba_root",
) -> dict[str, tuple[pathlib.Path, pathlib.Path]]:
  """Finds each `tatoeba.XXX-eng.XXX` and its `tatoeba.XXX-eng.eng`.

  Args:
    root: The folder.
    not_read: Receives hidden files, and files for which `files.is_companion` is
      true.
    setting: The field or flag that names the folder, for messages.

  Returns:
    Language to its file and the English file, sorted by language. A language
    has its two-letter code where there is one ("deu" is "de", "cmn" is "zh"),
    else its ISO 639-3 code.

  Raises:
    ValueError: if there are no such files, a file has another name or lacks
      its other side, or two pairs have the same language.
  """
  folder = pathlib.Path(root)
  if not folder.is_dir():
    raise ValueError(
      f"{setting}={root}: there is no such folder.{catalog.hint(root)}"
    )
  sides = {}
  for name, path in files.list_files(folder, not_read).items():
    if files.is_companion(name):
      if not_read is not None:
        not_read.append(path)
      continue
    match = _NAME.fullmatch(name)
    if not match:
      raise ValueError(f"{path} is not named like tatoeba.deu-eng.deu.")
    sides.setdefault(match["pair"], {})[match["side"]] = path
  if not sides:
    raise ValueError(
      f"{setting}={root} holds no files like tatoeba.deu-eng.deu."
    )
  pairs = {}
  for pair, paths in sides.items():
    code = pair.removesuffix("-eng")
    if len(paths) != 2:
      (path,) = paths.values()
      raise ValueError(f"{path} lacks the other side of {pair}.")
    language = languages.code(code)
    if language in pairs:
      raise ValueError(
        f"{paths[code]} and {pairs[language][0]} are both in {language!r};"
        " remove one pair."
      )
    pairs[language] = paths[code], paths["eng"]
  return dict(sorted(pairs.items()))


def read_all(
  root: str | os.PathLike, bad_records: records.BadRecords
) -> tuple[records.TranslationTest, ...]:
  """Reads all tests of a folder, each from its language to English.

  Args:
    root: The folder; see `find_pairs`.
    bad_records: Receives bad pairs, see `moses.read`.

  Raises:
    ValueError: as `find_pairs` does.
    RecordError: as `moses.read` does.
  """
  tests = []
  for language, (path, english_path) in find_pairs(root).items():
    pairs = tuple(moses.read(path, english_path, language, "en", bad_records))
    tests.append(
      records.TranslationTest(
        source_language=language,
        target_language="en",
        sources=tuple(pair.source for pair in pairs),
        targets=tuple(pair.target for pair in pairs),
      )
    )
  return tuple(tests)
