"""Finds the files of question-passage pairs in a collection's folder."""

import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mlir_jax.data import languages
from mlir_jax.data.sources import containers, files
from mlir_jax.data.sources.pairs import reading, registry

_NAME = re.compile(
  rf".*?[^.](?:\.({languages.PATTERN}))?\.(?:{'|'.join(containers.ENDINGS)})"
)


class Settings(NamedTuple):
  """What a config says about the pairs; the fields of `data` of these names.

  Attributes:
    language: The language of pairs that do not say theirs.
    format: The name of the format of all files; "" to recognize each one's.
    formats: The user's formats: name to "MODULE:CLASS".
  """

  language: str = "en"
  format: str = ""
  formats: Mapping[str, str] = {}
