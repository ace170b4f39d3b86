"""Finds the user's own files in a folder and makes a collection of them."""

import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping

from mlir_jax import bars
from mlir_jax.corpora import catalog
from mlir_jax.data import languages, records
from mlir_jax.data.sources import (
  dpr,
  files,
  moses,
  mr_tydi,
  plain_text,
  tatoeba,
)

LAYOUT = """\
  ir/NAME.json                   English pairs in DPR's biencoder JSON
  parallel/NAME.A-B.{A,B}        translations: two line-aligned files
  mono/NAME.XX.txt               text in language XX, one sentence a line
  eval/XX/collection/docs.jsonl  tests in language XX, Mr. TyDi's layout:
  eval/XX/topic.test.tsv         the passages, the queries,
  eval/XX/qrels.test.txt         and the judgements;
  eval/en/{topic.dev.tsv,qrels.dev.txt}  select models: in English only
A, B and XX are codes like en, deu, zh_TW, eng_Latn; script and region are
ignored. Any file may be gzipped, with .gz after its name. README…, LICENSE…,
.ids, .xml and hidden files and a folder pool/ are not read; any other file is
an error. Training needs at least ir/, evaluating needs eval/."""

_PARTS = ("ir", "parallel", "mono", "eval")
# Judgements over the passages of all languages (LAReQA); not read yet.
_POOL = "pool"

_CODE = languages.PATTERN
_IR = re.compile(r".+\.jsonl?")
_PARALLEL = re.compile(rf"(.+\.({_CODE})-({_CODE}))\.(\2|\3)")
_MONO = re.compile(rf".+\.({_CODE})\.txt")
_TEST = re.compile(r"(topic\.(dev|test)\.tsv)|(qrels\.(dev|test)\.txt)")
# Mr. TyDi's training split, which is next to the others.
_TRAIN = re.compile(r"(topic\.train\.tsv)|(qrels\.train\.txt)")
_DOCS = re.compile(r"docs\.jsonl")

_SHOWN = 10  # Names in an error.

_Pair = tuple[files.UnchangedFile, files.UnchangedFile, str, str]


def _not_of_layout(path: pathlib.Path) -> ValueError:
  return ValueError(
    f"{path} is not named as the layout says; rename it or move it elsewhere."
    f" The layout:\n{LAYOUT}"
  )


class _Names:
  """Reads the names of files, and keeps what the notes say about them.

  Attributes:
    not_read: Files that are not read.
    codes: Each language code in a name to the code that is used.
  """

  def __init__(self):
    self.not_read: list[pathlib.Path] = []
    self.codes: dict[str, str] = {}

  def code(self, name: str) -> str:
    self.codes[name] = languages.code(name)
    return self.codes[name]

  def matches(
    self, listed: Mapping[str, pathlib.Path], pattern: re.Pattern
  ) -> Iterator[tuple[re.Match, pathlib.Path]]:
    """Yields the files that fit the layout; any other name is an error."""
    for name, path in listed.items():
      match = pattern.fullmatch(name)
      if match:
        yield match, path
      elif files.is_companion(name):
        self.not_read.append(path)
      else:
        raise _not_of_layout(path)

  def find(
    self, folder: pathlib.Path, pattern: re.Pattern
  ) -> Iterator[tuple[re.Match, pathlib.Path]]:
    """Yields the `matches` of a folder; none if there is no such folder."""
    if folder.is_dir():
      yield from self.matches(files.list_files(folder, self.not_read), pattern)

  def notes(self, root: pathlib.Path) -> list[str]:
    """Describes in lines the files that are not read, and changed codes."""
    notes = []
    if self.not_read:
      names = [
        path.relative_to(root).as_posix()
        if path.is_relative_to(root)
        else str(path)
        for path in self.not_read
      ]
      notes.append(records.printable(f"Not read: {', '.join(names)}"))
    renamed = [
      f"{name} as {code}"
      for name, code in sorted(self.codes.items())
      if name != code
    ]
    if renamed:
      notes.append(f"Language codes read as others: {', '.join(renamed)}")
    return notes


def _find_parts(root: pathlib.Path, names: _Names) -> list[str]:
  """Returns the parts of the layout in a folder; other files are an error."""
  parts, misnamed = [], []
  for path in sorted(root.iterdir()) if root.is_dir() else ():
    if path.name.startswith("."):
      names.not_read.append(path)
      continue
    is_folder = files.is_folder(path)
    if path.name in _PARTS:
      if not is_folder:
        raise ValueError(f"{path} should be a folder, but it is a file.")
      parts.append(path.name)
    elif path.name == _POOL if is_folder else files.is_companion(path.name):
      names.not_read.append(path)
    else:
      misnamed.append(path)
  if parts and misnamed:
    raise _not_of_layout(misnamed[0])
  return parts


def _find_parallel(folder: pathlib.Path, names: _Names) -> list[_Pair]:
  sides: dict[tuple[str, str, str], dict[str, pathlib.Path]] = {}
  for match, path in names.find(folder, _PARALLEL):
    pair, source, target, side = match.groups()
    sides.setdefault((pair, source, target), {})[side] = path
  pairs = []
  for (pair, source, target), paths in sides.items():
    if len(paths) != 2:
      (path,) = paths.values()
      raise ValueError(
        f"{path} lacks its other side: {pair}.{source} and"
        f" {pair}.{target} belong together, in two languages."
      )
    codes = names.code(source), names.code(target)
    if codes[0] == codes[1]:
      raise ValueError(
        f"{paths[source]} and {paths[target]} are both in {codes[0]!r}; a pair"
        " is of two languages."
      )
    pairs.append(
      (
        files.UnchangedFile(paths[source]),
        files.UnchangedFile(paths[target]),
        *codes,
      )
    )
  return pairs


def _find_tests(
  folder: pathlib.Path, names: _Names
) -> dict[str, tuple[pathlib.Path, tuple[str, ...]]]:
  """Finds the tests: language to its folder and its splits."""
  tests = {}
  for path in sorted(folder.iterdir()) if folder.is_dir() else ():
    if path.name.startswith("."):
      names.not_read.append(path)
      continue
    if not files.is_folder(path):
      if not files.is_companion(path.name):
        raise _not_of_layout(path)
      names.not_read.append(path)
      continue
    if not re.fullmatch(_CODE, path.name):
      raise ValueError(
        f"{path} is not named with a language code like en or swa; rename it."
      )
    language = names.code(path.name)
    if language in tests:
      raise ValueError(
        f"{tests[language][0]} and {path} are both in {language!r}; keep one."
      )
    listed = mr_tydi.list_files(path, names.not_read)
    for name in [name for name in listed if _TRAIN.fullmatch(name)]:
      names.not_read.append(listed.pop(name))
    found = [file for _, file in names.matches(listed, _TEST)]
    dev = [file for file in found if ".dev." in file.name]
    if dev and language != "en":
      raise ValueError(
        f"{dev[-1]}: only English may have a dev split. It selects the model,"
        " so a language with a dev split would not be zero-shot; move the file"
        " out of the collection."
      )
    splits = ("dev", "test") if dev else ("test",)
    for split in splits:
      docs, *_ = mr_tydi.locate(path, split)
    list(names.find(docs.parent, _DOCS))  # Refuses other names.
    tests[language] = path, splits
  return tests


def _groups(pairs: Iterable[_Pair], others: Iterable[str]) -> dict[str, str]:
  """Returns language to group: English, with parallel text, without it."""
  with_parallel = {language for pair in pairs for language in pair[2:]}
  groups = {"en": "English"}
  for language in sorted(with_parallel - {"en"}):
    groups[language] = "with parallel text"
  for language in sorted(set(others) - with_parallel - {"en"}):
    groups[language] = "without parallel text"
  return groups


def _fingerprint(
  folder: pathlib.Path, training_files: Iterable[files.UnchangedFile]
) -> str:
  """Returns SHA-256 of the files' contents and their names in the folder."""
  named = sorted(
    (pathlib.Path(file).relative_to(folder).as_posix(), file)
    for file in training_files
  )
  contents = [
    (name, file.read_hash())
    for name, file in bars.bar(
      named, "Hashing the training files", unit="file", leave=False
    )
  ]
  return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def _missing(folder: pathlib.Path, setting: str, wanted: str) -> ValueError:
  """Makes the error for a folder that lacks the files that are needed."""
  names = sorted(path.name for path in folder.iterdir())
  more = ", …" if names[_SHOWN:] else ""
  there = f" It holds {', '.join(names[:_SHOWN])}{more}." if names else ""
  return ValueError(
    f"{setting}={folder}: there is no {wanted}.{there} It should"
    f" hold:\n{LAYOUT}"
  )


def load(
  root: str | os.PathLike,
  bad_records: records.BadRecords,
  tatoeba_root: str | os.PathLike = "",
  *,
  require_pairs: bool = True,
  prefix: str = "data.",
) -> records.Collection:
  """Finds the files of a collection. They are read when they are needed.

  Args:
    root: A folder laid out as in `LAYOUT`; its name is the collection's name.
    bad_records: Receives every bad record, whenever a stream or test is read.
    tatoeba_root: A folder of files, named as in LASER's Tatoeba; "" for none.
    require_pairs: Whether ir/ must hold a file. If not, any file is enough.
    prefix: What precedes the settings' names in messages, see
      `collections.load`.

  Returns:
    The collection. Files are read in the order of their names, tests in the
    order of their folders, "dev" before "test". Each language has a group:
    "English", "with parallel text" if it is in parallel/, or "without parallel
    text".

  Raises:
    ValueError: if the folder is not laid out so: it does not exist, has no
      pairs (or no file, if pairs are not required), a file or folder with
      another name, something that is neither a file nor a folder, a file both
      plain and gzipped, only one side of parallel text, two tests in one
      language, or a dev split in a language other than English.
    FileNotFoundError: if a file of a test is missing.
  """
  folder = pathlib.Path(root)
  names = _Names()
  setting = f"{prefix}root"
  if not root or not folder.is_dir():
    raise ValueError(
      f"{setting}={root}: there is no such folder.{catalog.hint(root)}"
      f" It should hold:\n{LAYOUT}"
    )
  any_file = "file in ir/, parallel/, mono/ and eval/"
  wanted = "ir/NAME.json" if require_pairs else any_file
  if not _find_parts(folder, names):
    raise _missing(folder, setting, wanted)
  retrieval = [
    files.UnchangedFile(path) for _, path in names.find(folder / "ir", _IR)
  ]
  if require_pairs and not retrieval:
    raise _missing(folder, setting, wanted)
  pairs = _find_parallel(folder / "parallel", names)
  monolingual = [
    (files.UnchangedFile(path), names.code(match[1]))
    for match, path in names.find(folder / "mono", _MONO)
  ]
  tests = _find_tests(folder / "eval", names)
  translations = (
    tatoeba.find_pairs(tatoeba_root, names.not_read, f"{prefix}tatoeba_root")
    if tatoeba_root
    else {}
  )
  if not (retrieval or pairs or monolingual or tests or translations):
    raise _missing(folder, setting, any_file)

  training_files = [
    *retrieval,
    *(file for pair in pairs for file in pair[:2]),
    *(file for file, _ in monolingual),
  ]
  return records.Collection(
    name=folder.resolve().name,
    retrieval=lambda: itertools.chain.from_iterable(
      dpr.read(file, bad_records) for file in retrieval
    ),
    parallel=lambda: itertools.chain.from_iterable(
      moses.read(*pair, bad_records) for pair in pairs
    ),
    monolingual=lambda: itertools.chain.from_iterable(
      plain_text.read(file, language, bad_records)
      for file, language in monolingual
    ),
    tests=lambda: tuple(
      test
      for language, (path, splits) in tests.items()
      for test in mr_tydi.read_tests(path, language, splits, bad_records)
    ),
    translation_tests=lambda: (
      tatoeba.read_all(tatoeba_root, bad_records) if tatoeba_root else ()
    ),
    groups=_groups(
      pairs, [*(code for _, code in monolingual), *tests, *translations]
    ),
    fingerprint=lambda: _fingerprint(folder, training_files),
    notes=lambda: names.notes(folder),
  )
