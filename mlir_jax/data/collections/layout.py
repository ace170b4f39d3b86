"""Reads the names of files in a folder that is laid out as the user's data."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from mlir_jax.data import languages, records
from mlir_jax.data.sources import files

LAYOUT = """\
  ir/NAME.jsonl                  question-passage pairs in a format that the
  ir/NAME.XX.jsonl               fields say; also .json, .csv, .tsv, .parquet
  corpus/NAME.jsonl              the passages, if pairs refer to them by id
  parallel/NAME.A-B.{A,B}        translations: two line-aligned files
  parallel/NAME.A-B.tsv          two columns, or WikiMatrix's margin first;
  parallel/NAME.A-B.jsonl        named fields, also .csv and .parquet; .tmx
  mono/NAME.XX.txt               text in language XX, one sentence a line;
  mono/NAME.XX.jsonl             also with the field "text"
  eval/XX/collection/docs.jsonl  tests in language XX, Mr. TyDi's layout:
  eval/XX/topic.test.tsv         the passages, the queries,
  eval/XX/qrels.test.txt         and the judgements;
  eval/en/{topic.dev.tsv,qrels.dev.txt}  select models, see eval.selection
  eval/XX/corpus.jsonl           tests of BEIR: with queries.jsonl, qrels/
  eval/mrtydi-v1.1-swahili/, eval/miracl-v1.0-sw/, eval/xquad-r/: as released
  mining/de-en.test.{de,en,gold}  tests of bitext mining, named as in BUCC
A released folder of Mr. TyDi or MIRACL may also be right in the folder, and the
folder itself may be a data set of BEIR: then its split train is trained on.
A, B and XX are codes like en, deu, zh_TW, eng_Latn; script and region are
ignored. Any file may be gzipped, with .gz after its name. README…, LICENSE…,
.ids, .xml and hidden files and a folder pool/ are not read; any other file is
an error. Training needs at least ir/, evaluating needs eval/."""


_SHOWN = 20  # Files of one format, in a note.


@dataclasses.dataclass(frozen=True)
class Source:
  """Files that one reader reads together, as a part of a stream.

  Attributes:
    name: The name of the source, see `records.RetrievalRecord`.
    files: The files.
    languages: Their languages.
    read: Yields the records; it reports bad ones to its argument.
    kind: Returns the name of the format, for the notes. It may read the first
      record of the file.
  """

  name: str
  files: tuple[files.UnchangedFile, ...]
  languages: tuple[str, ...]
  read: Callable[[records.BadRecords], Iterator[Any]]
  kind: Callable[[], str]


def misnamed(path: pathlib.Path) -> ValueError:
  """Makes the error for a file that does not fit the layout."""
  return ValueError(
    f"{path} is not named as the layout says; rename it or move it elsewhere."
    f" The layout:\n{LAYOUT}"
  )


def is_english(language: str) -> bool:
  """Whether a language is English."""
  return language == "en"


class Names:
  """Reads the names of files, and keeps what the notes say about them.

  Attributes:
    not_read: Files that are not read.
    codes: Each language code in a name to the code that is used.
    selects: Whether the dev set of a language selects the model; no other one
      is read.
  """

  def __init__(self, selects: Callable[[str], bool] = is_english):
    self.selects = selects
    self.not_read: list[pathlib.Path] = []
    self.codes: dict[str, str] = {}

  def code(self, name: str) -> str:
    """Returns the code that is used for a language code in a name."""
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
        raise misnamed(path)

  def listed(self, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Lists a folder as `files.list_files`; empty if there is no folder."""
    if not folder.is_dir():
      return {}
    return files.list_files(folder, self.not_read)

  def find(
    self, folder: pathlib.Path, pattern: re.Pattern
  ) -> Iterator[tuple[re.Match, pathlib.Path]]:
    """Yields the `matches` of a folder; none if there is no such folder."""
    yield from self.matches(self.listed(folder), pattern)

  def notes(self, root: pathlib.Path) -> list[str]:
    """Describes in lines the files that are not read, and changed codes."""
    notes = []
    if self.not_read:
      names = sorted(_relative(path, root) for path in self.not_read)
      notes.append(records.printable(f"Not read: {', '.join(names)}"))
    renamed = [
      f"{name} as {code}"
      for name, code in sorted(self.codes.items())
      if name != code
    ]
    if renamed:
      notes.append(f"Language codes read as others: {', '.join(renamed)}")
    return notes


def _relative(path: pathlib.Path, root: pathlib.Path) -> str:
  if path.is_relative_to(root):
    return path.relative_to(root).as_posix()
  return str(path)


def describe(sources: Iterable[Source], root: pathlib.Path) -> list[str]:
  """Describes in lines which files are read in which format."""
  by_kind: dict[str, dict[str, None]] = {}
  for source in sources:
    names = (_relative(pathlib.Path(file), root) for file in source.files)
    by_kind.setdefault(source.kind(), {}).update(dict.fromkeys(names))
  lines = []
  for kind, names in by_kind.items():
    shown = [*names][:_SHOWN]
    if len(names) > _SHOWN:
      shown.append(f"and {len(names) - _SHOWN:,} more")
    lines.append(records.printable(f"Read as {kind}: {', '.join(shown)}"))
  return lines
