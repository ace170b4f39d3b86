"""Finds the retrieval tests in a folder."""

import pathlib
import re

from mlir_jax.data import languages
from mlir_jax.data.collections import layout
from mlir_jax.data.sources import files, mr_tydi

_CODE = languages.PATTERN
_TEST = re.compile(r"(topic\.(dev|test)\.tsv)|(qrels\.(dev|test)\.txt)")
# Mr. TyDi's training split, which is next to the others.
_TRAIN = re.compile(r"(topic\.train\.tsv)|(qrels\.train\.txt)")
_DOCS = re.compile(r"docs\.jsonl")


def find(
  folder: pathlib.Path, names: layout.Names
) -> dict[str, tuple[pathlib.Path, tuple[str, ...]]]:
  """Finds the tests: language to its folder and its splits."""
  tests = {}
  for path in sorted(folder.iterdir()) if folder.is_dir() else ():
    if path.name.startswith("."):
      names.not_read.append(path)
      continue
    if not files.is_folder(path):
      if not files.is_companion(path.name):
        raise layout.misnamed(path)
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
