"""Finds the question-passage pairs in a folder."""

import pathlib
import re
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

from mlir_jax.data import languages
from mlir_jax.data.collections import layout
from mlir_jax.data.sources import containers, files
from mlir_jax.data.sources.pairs import corpus, reading, registry

_ENDINGS = "|".join(containers.ENDINGS)
# The dots of a name separate a language from the rest.
_PAIRS = re.compile(rf"(.*?[^.])(?:\.({languages.PATTERN}))?\.(?:{_ENDINGS})")
_CORPUS = re.compile(rf".+\.(?:{_ENDINGS})")


class Settings(NamedTuple):
  """What a config says about the pairs: the fields of `data` of these names.

  Attributes:
    language: The language of pairs that do not say theirs.
    format: The name of the format of all files; "" to recognize each one's.
    formats: The user's formats: name to "MODULE:CLASS".
    prompts: "use" or "ignore": whether a prompt of a question is used.
  """

  language: str = "en"
  format: str = ""
  formats: Mapping[str, str] = types.MappingProxyType({})
  prompts: str = "use"

  @classmethod
  def of_config(cls, data: Mapping[str, Any]) -> "Settings":
    """Takes the settings from the part `data` of a config, a plain dict.

    A config of an earlier version may lack them.
    """
    return cls(**{name: data[name] for name in cls._fields if name in data})


DEFAULTS = Settings()


def find_corpus(
  folder: pathlib.Path, names: layout.Names
) -> corpus.CorpusFiles | None:
  """Finds the passages to which pairs refer by id; None if there are none.

  Raises:
    ValueError: for a file with another name.
  """
  found = [files.UnchangedFile(path) for _, path in names.find(folder, _CORPUS)]
  return corpus.CorpusFiles(found) if found else None


def check_format(
  name: str, formats: registry.Formats, prefix: str = "data."
) -> None:
  """Refuses the name of a format that there is not; "" is allowed.

  Raises:
    ValueError: if there is no such format.
  """
  if name and name not in formats:
    raise ValueError(
      f"{prefix}format is {name!r}; use one of {', '.join(formats)}."
    )


def find(
  folder: pathlib.Path,
  names: layout.Names,
  settings: Settings,
  passages: corpus.CorpusFiles | None,
  prefix: str = "data.",
) -> list[reading.PairFile]:
  """Finds the pairs; none if there is no such folder.

  Args:
    folder: The folder ir/.
    names: Reads the names of files.
    settings: What the config says.
    passages: From `find_corpus`.
    prefix: What precedes the settings' names in messages.

  Raises:
    ValueError: for a file with another name, a part of a name that looks like
      a language but is none, or settings that cannot be used.
  """
  formats = registry.find(settings.formats)
  check_format(settings.format, formats, prefix)
  try:
    default = languages.code(settings.language)
  except ValueError as error:
    raise ValueError(f"{prefix}language: {error}") from None
  return [
    reading.PairFile(
      files.UnchangedFile(path),
      language=_language(path, match[2], names) if match[2] else default,
      is_named=bool(match[2]),
      formats=formats,
      format_name=settings.format,
      corpus=passages,
      use_prompts=settings.prompts == "use",
      name=match[1],
    )
    for match, path in names.find(folder, _PAIRS)
  ]


def _language(path: pathlib.Path, code: str, names: layout.Names) -> str:
  """Returns the language that the name of a file says."""
  if not languages.is_known(code):
    raise ValueError(
      f"{path}: is {code!r} a language? None is known by this code. Replace the"
      ' dot before it by "-" if it is none. If it is one, say so in a field'
      ' "language" of the records.'
    )
  return names.code(code)
