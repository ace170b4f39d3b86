"""A collection of one's own files, in a folder laid out as `LAYOUT` says."""

import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator

import tqdm

from mlir_jax.data import records
from mlir_jax.data.sources import dpr, files, lines, moses, mr_tydi, tatoeba

LAYOUT = """\
  ir/NAME.json                   English pairs in DPR's biencoder JSON
  parallel/NAME.A-B.{A,B}        translations: two line-aligned files
  mono/NAME.XX.txt               text in language XX, one sentence a line
  eval/XX/collection/docs.jsonl  tests in language XX, Mr. TyDi's layout:
  eval/XX/topic.test.tsv         the passages, the queries,
  eval/XX/qrels.test.txt         and the judgements;
  eval/en/{topic.dev.tsv,qrels.dev.txt}  select models: in English only
A, B and XX are codes like en, swa, pt_BR. Any file may be gzipped, with .gz
after its name. Training needs ir/ at least, evaluating eval/."""

_CODE = r"[a-z]{2,3}(?:_[A-Za-z]+)?"
_IR = re.compile(r".+\.jsonl?")
_PARALLEL = re.compile(rf"(.+\.({_CODE})-({_CODE}))\.(\2|\3)")
_MONO = re.compile(rf".+\.({_CODE})\.txt")

_Pair = tuple[pathlib.Path, pathlib.Path, str, str]


def _find(
  folder: pathlib.Path, pattern: re.Pattern
) -> Iterator[tuple[re.Match, pathlib.Path]]:
  """The files of a folder by name; one named otherwise is an error."""
  if not folder.is_dir():
    return
  for name, path in files.list_files(folder).items():
    match = pattern.fullmatch(name)
    if not match:
      raise ValueError(
        f"{path} is not named as the layout says; rename it or move it"
        f" elsewhere. The layout:\n{LAYOUT}"
      )
    yield match, path


def _find_parallel(folder: pathlib.Path) -> list[_Pair]:
  sides: dict[tuple[str, str, str], dict[str, pathlib.Path]] = {}
  for match, path in _find(folder, _PARALLEL):
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
    pairs.append((paths[source], paths[target], source, target))
  return pairs


def _find_tests(
  folder: pathlib.Path,
) -> dict[str, tuple[pathlib.Path, tuple[str, ...]]]:
  """Language to its folder and its splits."""
  tests = {}
  if not folder.is_dir():
    return tests
  for path in sorted(folder.iterdir()):
    if path.name.startswith(".") or not path.is_dir():
      continue
    if not re.fullmatch(_CODE, path.name):
      raise ValueError(
        f"{path} is not named by a language code like en or swa; rename it."
      )
    names = files.list_files(path)
    dev = [n for n in ("topic.dev.tsv", "qrels.dev.txt") if n in names]
    if dev and path.name != "en":
      raise ValueError(
        f"{names[dev[0]]}: only English may have a dev split. Models are"
        " selected by it, so a language that has one is not zero-shot any"
        " more; move it out of the collection."
      )
    splits = ("dev", "test") if dev else ("test",)
    for split in splits:
      mr_tydi.locate(path, split)
    tests[path.name] = path, splits
  return tests


def _groups(pairs: Iterable[_Pair], others: Iterable[str]) -> dict[str, str]:
  """Language to group: English, those with parallel text, the others."""
  with_parallel = {language for pair in pairs for language in pair[2:]}
  groups = {"en": "English"}
  for language in sorted(with_parallel - {"en"}):
    groups[language] = "with parallel text"
  for language in sorted(set(others) - with_parallel - {"en"}):
    groups[language] = "without parallel text"
  return groups


def _fingerprint(folder: pathlib.Path, paths: Iterable[pathlib.Path]) -> str:
  """SHA-256 over the files' names within the folder and their contents."""
  named = sorted((path.relative_to(folder).as_posix(), path) for path in paths)
  contents = []
  for name, path in tqdm.tqdm(
    named, desc="Hashing the training files", unit="file", leave=False
  ):
    with open(path, "rb") as file:
      digest = hashlib.file_digest(file, "sha256").hexdigest()
    contents.append((name, digest))
  return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def _missing(root: str | os.PathLike, wanted: str) -> ValueError:
  return ValueError(
    f"data.root={root}: there is no {wanted}, or no such folder. It should"
    f" hold:\n{LAYOUT}"
  )


def load(
  root: str | os.PathLike,
  bad: records.BadRecords,
  tatoeba_root: str | os.PathLike = "",
  *,
  require_pairs: bool = True,
) -> records.Collection:
  """Finds the files of a collection and reads them when they are asked for.

  Args:
    root: A folder laid out as `LAYOUT` says; its name is the collection's.
    bad: Told of bad records whenever a stream or test is read.
    tatoeba_root: A folder of files in LASER's Tatoeba naming; "" for none.
    require_pairs: Whether ir/ must hold a file; without it, some tests or
      monolingual text will do.

  Returns:
    The collection. Files are read in the order of their names, tests in that
    of their languages, "dev" before "test". The groups are "English", "with
    parallel text" and "without parallel text", by the files in parallel/, of
    all languages that occur.

  Raises:
    ValueError: if the folder is not laid out so: no such folder, no pairs (or,
      if they are not required, nothing else either), a file named otherwise or
      both plain and gzipped, a lone side of parallel text, a dev split in
      another language than English.
    FileNotFoundError: if a file of a test is missing.
  """
  folder = pathlib.Path(root)
  retrieval_paths = [path for _, path in _find(folder / "ir", _IR)]
  if not root or (require_pairs and not retrieval_paths):
    raise _missing(root, "ir/NAME.json")
  pairs = _find_parallel(folder / "parallel")
  monolingual = [(path, m[1]) for m, path in _find(folder / "mono", _MONO)]
  tests = _find_tests(folder / "eval")
  translations = tatoeba.find_pairs(tatoeba_root) if tatoeba_root else {}
  if not (retrieval_paths or tests or translations or monolingual):
    raise _missing(root, "ir/NAME.json, no mono/ and no test")

  training_paths = [
    *retrieval_paths,
    *(path for pair in pairs for path in pair[:2]),
    *(path for path, _ in monolingual),
  ]
  return records.Collection(
    name=folder.resolve().name,
    retrieval=lambda: itertools.chain.from_iterable(
      dpr.read(path, bad) for path in retrieval_paths
    ),
    parallel=lambda: itertools.chain.from_iterable(
      moses.read(*pair, bad) for pair in pairs
    ),
    monolingual=lambda: itertools.chain.from_iterable(
      lines.read(path, language, bad) for path, language in monolingual
    ),
    tests=lambda: tuple(
      test
      for language, (path, splits) in tests.items()
      for test in mr_tydi.read_tests(path, language, splits, bad)
    ),
    translation_tests=lambda: (
      tatoeba.read_all(tatoeba_root, bad) if tatoeba_root else ()
    ),
    groups=_groups(
      pairs, [*(m[1] for m in monolingual), *tests, *translations]
    ),
    fingerprint=lambda: _fingerprint(folder, training_paths),
    notes=tuple,
  )
