"""Finds the retrieval tests in a folder."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence

from mlir_jax.data import languages, records
from mlir_jax.data.collections import layout
from mlir_jax.data.sources import (
  beir,
  files,
  judged,
  miracl,
  mr_tydi,
  xquad_r,
)

_CODE = languages.PATTERN
_TEST = re.compile(
  r"topic\.(dev|test)\.tsv|qrels\.(dev|test)\.txt|qrels\.test\.hidden"
)
# Mr. TyDi's training split, which is next to the others.
_TRAIN = re.compile(r"(topic\.train\.tsv)|(qrels\.train\.txt)")
_DOCS = re.compile(r"docs\.jsonl")

# Folders as they are released. A folder of this name says what it holds.
_MR_TYDI = re.compile(r"mrtydi-v[0-9.]+-([a-z]+)")
_MIRACL = re.compile(r"miracl-v[0-9.]+-([a-z]{2,3})")
_MIRACL_CORPUS = re.compile(r"miracl-corpus-v[0-9.]+-([a-z]{2,3})")
_XQUAD_R = re.compile(r"xquad-r", re.IGNORECASE)

EXAMPLES = """\
A test is in one of these forms:
  XX/collection/docs.jsonl     {"id": "d1", "contents": "Title\\n\\nText."}
  XX/topic.test.tsv            q1<tab>a question?        (Mr. TyDi's form)
  XX/qrels.test.txt            q1 Q0 d1 1
  XX/corpus.jsonl              {"_id": "d1", "title": "Title", "text": "Text."}
  XX/queries.jsonl             {"_id": "q1", "text": "a question?"}
  XX/qrels/test.tsv            q1<tab>d1<tab>1     (BEIR: there is a header)
  mrtydi-v1.1-arabic/          as released
  miracl-v1.0-sw/              as released, next to miracl-corpus-v1.0-sw/
  xquad-r/de.json              as LAReQA released it
XX is a language code like en or swa."""


@dataclasses.dataclass(frozen=True)
class Tests:
  """The tests of one language.

  Attributes:
    path: Their folder or file.
    language: The language's code.
    kind: The name of the format, for the notes.
    read: Reads the tests; bad records go to its argument.
    train: The files of a training split that is next to them, or None.
  """

  path: pathlib.Path
  language: str
  kind: str
  read: Callable[[records.BadRecords], tuple[records.RetrievalTest, ...]]
  train: judged.Files | None = None


def _of_splits(
  path: pathlib.Path,
  language: str,
  kind: str,
  splits: dict[str, judged.Files],
) -> Tests:
  """Makes the tests of splits; "train" is kept apart."""
  train = splits.pop("train", None)
  return Tests(
    path,
    language,
    kind,
    lambda bad_records: judged.read_tests(splits, language, bad_records),
    train,
  )


def _find_mr_tydi(
  path: pathlib.Path, language: str, names: layout.Names, *, released: bool
) -> Tests:
  """Finds the tests of a folder in Mr. TyDi's form.

  Args:
    path: The folder.
    language: Its language.
    names: Receives what is not read.
    released: Whether the folder is one that was released. Its training split
      may be used; its dev split is not read if it does not select.
  """
  listed = mr_tydi.list_files(path, names.not_read)
  train = [name for name in listed if _TRAIN.fullmatch(name)]
  if len(train) < 2 or not released:
    for name in train:
      names.not_read.append(listed.pop(name))
    train = []
  kept = {name: file for name, file in listed.items() if name not in train}
  found = [file for _, file in names.matches(kept, _TEST)]
  dev = [file for file in found if ".dev." in file.name]
  has_dev = bool(dev) and names.selects(language)
  if dev and not has_dev:
    if not released:
      raise ValueError(
        f"{dev[-1]}: eval.selection does not name this dev split. A dev split"
        " selects the model, so its language would not be zero-shot. Set"
        f" eval.selection, such as dev/{language}/mrr@100, if that is meant;"
        " else move the file out of the collection."
      )
    names.not_read += dev
  splits = ("dev", "test") if has_dev else ("test",)
  if train:
    splits = (*splits, "train")
  located = {split: mr_tydi.locate(path, split) for split in splits}
  (docs,) = located["test"].docs
  list(names.find(pathlib.Path(docs).parent, _DOCS))  # Refuses other names.
  return _of_splits(path, language, "Mr. TyDi", located)


def _find_beir(path: pathlib.Path, language: str, names: layout.Names) -> Tests:
  located = beir.locate(path, names.not_read)
  if "test" not in located:
    raise FileNotFoundError(
      f"{path / beir.QRELS} holds no test.tsv. If its judgements are not"
      " public, make test.hidden, empty."
    )
  if not names.selects(language) and "dev" in located:
    names.not_read.append(pathlib.Path(located.pop("dev").qrels))
  order = ("dev", "test", "train")
  return _of_splits(
    path,
    language,
    "BEIR",
    {split: located[split] for split in order if split in located},
  )


def _find_miracl(
  path: pathlib.Path, language: str, names: layout.Names
) -> Tests:
  located = {"test": miracl.locate_test(path)}
  train_split = path / "qrels" / f"qrels.{path.name}-train.tsv"
  if (
    train_split.exists()
    or train_split.with_name(f"{train_split.name}.gz").exists()
  ):
    located["train"] = miracl.locate(path, "train")
  used = {
    file for each in located.values() for file in (each.queries, each.qrels)
  }
  for part in ("topics", "qrels"):
    listed = files.list_files(path / part, names.not_read)
    names.not_read += [file for file in listed.values() if file not in used]
  kind = "hidden" if located["test"].hidden else "dev"
  return _of_splits(path, language, f"MIRACL (its split {kind})", located)


def _find_xquad_r(path: pathlib.Path, names: layout.Names) -> Iterator[Tests]:
  def read(file: pathlib.Path, language: str):
    return lambda bad_records: (xquad_r.read_test(file, language, bad_records),)

  for match, file in names.matches(names.listed(path), xquad_r.NAME):
    language = names.code(match[1])
    yield Tests(file, language, "XQuAD-R", read(file, language))


def is_released(name: str) -> bool:
  """Returns whether a folder of this name is one that was released."""
  patterns = (_MR_TYDI, _MIRACL, _MIRACL_CORPUS, _XQUAD_R)
  return any(pattern.fullmatch(name) for pattern in patterns)


def source_name(path: pathlib.Path) -> str:
  """Returns the name of the source of a split train: that of its folder.

  Folders as released, of different languages, are one source: "mrtydi".
  """
  if _MR_TYDI.fullmatch(path.name) or _MIRACL.fullmatch(path.name):
    return path.name.partition("-")[0]
  return path.name or path.resolve().name  # The folder may be ".".


def find_released(path: pathlib.Path, names: layout.Names) -> Iterator[Tests]:
  """Yields the tests of a folder for which `is_released` is true."""
  if match := _MR_TYDI.fullmatch(path.name):
    try:
      language = languages.code_of_name(match[1])
    except ValueError as error:
      raise ValueError(f"{path}: {error}") from None
    names.codes[match[1]] = language
    yield _find_mr_tydi(path, language, names, released=True)
  elif match := _MIRACL.fullmatch(path.name):
    yield _find_miracl(path, names.code(match[1]), names)
  elif _XQUAD_R.fullmatch(path.name):
    yield from _find_xquad_r(path, names)


def find_beir(
  root: pathlib.Path, language: str, names: layout.Names
) -> Tests | None:
  """Finds the tests of a collection's folder that is a data set of BEIR."""
  return _find_beir(root, language, names) if beir.is_there(root) else None


def _without_train(tests: Tests, names: layout.Names) -> Tests:
  """Leaves out a training split, and names its files among those not read."""
  if train := tests.train:
    own = [train.qrels, *(() if train.of_all_splits else (train.queries,))]
    names.not_read += map(pathlib.Path, own)
  return dataclasses.replace(tests, train=None)


def _find_in(path: pathlib.Path, names: layout.Names) -> Iterator[Tests]:
  """Yields the tests of a folder in eval/."""
  if is_released(path.name):
    yield from find_released(path, names)
    return
  if not re.fullmatch(_CODE, path.name):
    raise ValueError(
      f"{path} is not named with a language code like en or swa; rename it."
      f" {EXAMPLES}"
    )
  language = names.code(path.name)
  if beir.is_there(path):
    yield _find_beir(path, language, names)
  else:
    yield _find_mr_tydi(path, language, names, released=False)


def find(folder: pathlib.Path, names: layout.Names) -> list[Tests]:
  """Finds the tests in eval/, in the order of their folders.

  A training split there is not trained on.

  Raises:
    ValueError: for a file or folder with another name, or a dev split that
      does not select (see `Names.selects`).
    FileNotFoundError: if a file of a test is missing.
  """
  tests = []
  by_code: dict[str, pathlib.Path] = {}
  for path in sorted(folder.iterdir()) if folder.is_dir() else ():
    if path.name.startswith("."):
      names.not_read.append(path)
    elif files.is_folder(path):
      if re.fullmatch(_CODE, path.name) and not is_released(path.name):
        code = names.code(path.name)
        if code in by_code:
          raise _twice(by_code[code], path, code)
        by_code[code] = path
      tests += (_without_train(each, names) for each in _find_in(path, names))
    elif files.is_companion(path.name):
      names.not_read.append(path)
    else:
      raise ValueError(
        f"{path} is not named as the layout says; rename it or move it"
        f" elsewhere. {EXAMPLES}"
      )
  return tests


def _twice(
  first: pathlib.Path, second: pathlib.Path, language: str
) -> ValueError:
  return ValueError(f"{first} and {second} are both in {language!r}; keep one.")


def check_languages(tests: Sequence[Tests]) -> None:
  """Refuses two tests in one language."""
  found: dict[str, pathlib.Path] = {}
  for test in tests:
    if test.language in found:
      raise _twice(found[test.language], test.path, test.language)
    found[test.language] = test.path


def describe(tests: Sequence[Tests]) -> list[str]:
  """Describes in lines which languages have a test of which format."""
  by_kind: dict[str, list[str]] = {}
  for test in tests:
    by_kind.setdefault(test.kind, []).append(test.language)
  return [
    f"Read as tests, {kind}: {', '.join(codes)}"
    for kind, codes in by_kind.items()
  ]
