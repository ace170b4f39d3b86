"""Reads translation tests under the names of LASER's Tatoeba test set."""

import os
import pathlib
import re

from mlir_jax.data import languages, records
from mlir_jax.data.sources import files, moses

_NAME = re.compile(r"tatoeba\.(?P<pair>([a-z]{3})-eng)\.(?P<side>\2|eng)")


def find_pairs(
  root: str | os.PathLike,
  passed_over: list[pathlib.Path] | None = None,
  setting: str = "data.tatoeba_root",
) -> dict[str, tuple[pathlib.Path, pathlib.Path]]:
  """Finds `tatoeba.XXX-eng.XXX` with `tatoeba.XXX-eng.eng`.

  Args:
    root: The folder.
    passed_over: Gets hidden files and those that `files.is_companion` knows.
    setting: The field or flag that says the folder, for messages.

  Returns:
    Language to its file and the English one, sorted by language. ISO 639-3
    codes become two-letter ones where there are any: "deu" is "de", "cmn" is
    "zh"; the others stay.

  Raises:
    ValueError: if there are no such files, one is named otherwise or lacks
      its other side, or two are of one language by its two-letter code.
  """
  folder = pathlib.Path(root)
  if not folder.is_dir():
    raise ValueError(f"{setting}={root}: there is no such folder.")
  sides = {}
  for name, path in files.list_files(folder, passed_over).items():
    if files.is_companion(name):
      if passed_over is not None:
        passed_over.append(path)
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
        f"{paths[code]} and {pairs[language][0]} are both of {language!r};"
        " remove one pair."
      )
    pairs[language] = paths[code], paths["eng"]
  return dict(sorted(pairs.items()))


def read_all(
  root: str | os.PathLike, bad: records.BadRecords
) -> tuple[records.TranslationTest, ...]:
  """Reads all tests of a folder, each from its language to English.

  Args:
    root: The folder; see `find_pairs`.
    bad: Receives lines that are empty or not UTF-8; skipping one takes its
      translation with it.

  Raises:
    ValueError: as `find_pairs` says.
    RecordError: as `moses.read` says.
  """
  tests = []
  for language, (path, english_path) in find_pairs(root).items():
    pairs = tuple(moses.read(path, english_path, language, "en", bad))
    tests.append(
      records.TranslationTest(
        source_language=language,
        target_language="en",
        sources=tuple(pair.source for pair in pairs),
        targets=tuple(pair.target for pair in pairs),
      )
    )
  return tuple(tests)
