"""What a public corpus is: its files, and how they become a collection."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator

from mlir_jax.corpora import downloads


@dataclasses.dataclass(frozen=True)
class Request:
  """What a user asks of a corpus.

  Attributes:
    base: The address below which the corpus's files are.
    variant: What follows a colon after the corpus's name.
    languages: The languages that are wanted.
  """

  base: str
  variant: str
  languages: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A public corpus.

  Attributes:
    name: Its name on the command line, and the name of its folder.
    summary: What it is, in a line.
    licence: The licence of its texts.
    base: The public address below which its files are.
    languages: All languages that it has, by its own codes.
    list_files: Yields its files. It may read a file that it has yielded, if
      that is in the folder already: Debian's list of files is a file, too.
    build: Writes the collection's files into a folder, from the folder of the
      downloaded files; returns notes, a line each.
    variants: What may follow the name after a colon; the first is the default.
  """

  name: str
  summary: str
  licence: str
  base: str
  languages: tuple[str, ...]
  list_files: Callable[[Request, pathlib.Path], Iterator[downloads.File]]
  build: Callable[[Request, pathlib.Path, pathlib.Path], list[str]]
  variants: tuple[str, ...] = ("",)


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Several corpora that make one collection.

  Attributes:
    name: As of a corpus.
    summary: As of a corpus.
    parts: They write different files of the collection.
    languages: The languages that are brought, of those that each part has.
  """

  name: str
  summary: str
  parts: tuple[Corpus, ...]
  languages: tuple[str, ...]
