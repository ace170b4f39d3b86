"""Finds the user's own files in a folder and makes a collection of them."""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from mlir_jax import bars
from mlir_jax.corpora import catalog
from mlir_jax.data import records
from mlir_jax.data.collections import (
  eval_files,
  layout,
  mono_files,
  pair_files,
  parallel_files,
)
from mlir_jax.data.sources import beir, bucc, files, judged, tatoeba
from mlir_jax.data.sources.pairs import reading

LAYOUT = layout.LAYOUT

_PARTS = ("ir", "corpus", "parallel", "mono", "eval", "mining")
# Judgements over the passages of all languages (LAReQA). They are not read: the
# tests of the languages hold the same; see `evals.protocols.pools`.
_POOL = "pool"

_SHOWN = 10  # Names in an error.


def _find_parts(root: pathlib.Path, names: layout.Names) -> list[str]:
  """Returns the parts of the layout in a folder; other files are an error."""
  parts, misnamed = [], []
  is_beir = root.is_dir() and beir.is_there(root)
  beir_names = {*beir.NAMES, beir.QRELS} if is_beir else ()
  for path in sorted(root.iterdir()) if root.is_dir() else ():
    if path.name.startswith("."):
      names.not_read.append(path)
      continue
    is_folder = files.is_folder(path)
    if path.name in _PARTS:
      if not is_folder:
        raise ValueError(f"{path} should be a folder, but it is a file.")
      parts.append(path.name)
    elif path.name.removesuffix(".gz") in beir_names or (
      is_folder and eval_files.is_released(path.name)
    ):
      parts.append(path.name)
    elif path.name == _POOL if is_folder else files.is_companion(path.name):
      names.not_read.append(path)
    else:
      misnamed.append(path)
  if parts and misnamed:
    raise layout.misnamed(misnamed[0])
  return parts


def _find_released(
  root: pathlib.Path, parts: Iterable[str], language: str, names: layout.Names
) -> list[eval_files.Tests]:
  """Finds the data sets that are in the collection's folder as released.

  Args:
    root: The folder.
    parts: From `_find_parts`.
    language: The language of a data set of BEIR.
    names: Receives what is not read.
  """
  found = []
  for name in parts:
    if eval_files.is_released(name):
      found += eval_files.find_released(root / name, names)
  if tests := eval_files.find_beir(root, language, names):
    found.append(tests)
  return found


def _training_source(tests: eval_files.Tests) -> layout.Source:
  """Makes the source of the training split of a released data set."""
  assert tests.train
  train, language = tests.train.unchanged(), tests.language
  return layout.Source(
    eval_files.source_name(tests.path),
    train.all,  # pyright: ignore[reportArgumentType]
    (language,),
    lambda bad_records: judged.read_pairs(train, language, bad_records),
    lambda: f"question-passage pairs in {language} (the split train)",
  )


def _part(
  source: layout.Source | reading.PairFile,
  notes: Callable[[], Sequence[str]] = tuple,
) -> records.Part:
  """Returns the part of a stream that a source is."""
  return records.Part(
    source.files,
    lambda bad_records: records.of_source(
      source.name, source.read(bad_records)
    ),
    notes,
  )


def _groups(
  parallel: Iterable[layout.Source], others: Iterable[str]
) -> dict[str, str]:
  """Returns language to group: English, with parallel text, without it."""
  with_parallel = {code for source in parallel for code in source.languages}
  groups = {"en": "English"}
  for language in sorted(with_parallel - {"en"}):
    groups[language] = "with parallel text"
  for language in sorted(set(others) - with_parallel - {"en"}):
    groups[language] = "without parallel text"
  return groups


def _fingerprint(training_files: Mapping[str, files.UnchangedFile]) -> str:
  """Returns SHA-256 of the files' contents and their names in the folder."""
  contents = [
    (name, file.read_hash())
    for name, file in bars.bar(
      sorted(training_files.items()),
      "Hashing the training files",
      unit="file",
      leave=False,
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


def find_pairs(
  root: str | os.PathLike, pairs: pair_files.Settings = pair_files.DEFAULTS
) -> list[reading.PairFile]:
  """Finds the question-passage pairs of a folder, without its other parts.

  Args:
    root: A folder laid out as in `LAYOUT`.
    pairs: What the config says about the files in ir/.

  Raises:
    ValueError: as `load` does for these files.
  """
  folder, names = pathlib.Path(root), layout.Names()
  corpus = pair_files.find_corpus(folder / "corpus", names)
  return pair_files.find(folder / "ir", names, pairs, corpus)


def load(
  root: str | os.PathLike,
  bad_records: records.BadRecords,
  tatoeba_root: str | os.PathLike = "",
  *,
  require_pairs: bool = True,
  prefix: str = "data.",
  pairs: pair_files.Settings = pair_files.DEFAULTS,
  margin: float = 0.0,
  selects: Callable[[str], bool] = layout.is_english,
) -> records.Collection:
  """Finds the files of a collection. They are read when they are needed.

  Args:
    root: A folder laid out as in `LAYOUT`; its name is the collection's name.
    bad_records: Receives every bad record, whenever a stream or test is read.
    tatoeba_root: A folder of files, named as in LASER's Tatoeba; "" for none.
    require_pairs: Whether ir/ must hold a file. If not, any file is enough.
    prefix: What precedes the settings' names in messages, see
      `collections.load`.
    pairs: What the config says about the files in ir/.
    margin: The lowest margin of a translation that is kept, where the file
      says the margin.
    selects: Whether the dev set of a language selects the model.

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
      language, or a dev split that does not select.
    FileNotFoundError: if a file of a test is missing.
  """
  folder = pathlib.Path(root)
  names = layout.Names(selects)
  setting = f"{prefix}root"
  if not root or not folder.is_dir():
    raise ValueError(
      f"{setting}={root}: there is no such folder.{catalog.hint(root)}"
      f" It should hold:\n{LAYOUT}"
    )
  any_file = "file in ir/, parallel/, mono/ and eval/"
  wanted = "file in ir/" if require_pairs else any_file
  parts = _find_parts(folder, names)
  if not parts:
    raise _missing(folder, setting, wanted)
  corpus = pair_files.find_corpus(folder / "corpus", names)
  retrieval = pair_files.find(folder / "ir", names, pairs, corpus, prefix)
  released = _find_released(folder, parts, pairs.language, names)
  trained = [_training_source(tests) for tests in released if tests.train]
  if require_pairs and not (retrieval or trained):
    wanted = f"{wanted} (a run without pairs needs batch.retrieval=0)"
    raise _missing(folder, setting, wanted)
  parallel = parallel_files.find(folder / "parallel", names, margin)
  monolingual = mono_files.find(folder / "mono", names)
  tests = [*released, *eval_files.find(folder / "eval", names)]
  eval_files.check_languages(tests)
  translations = (
    tatoeba.find_pairs(tatoeba_root, names.not_read, f"{prefix}tatoeba_root")
    if tatoeba_root
    else {}
  )
  mining = bucc.find(folder / "mining", names.not_read)
  if not (
    retrieval or parallel or monolingual or tests or translations or mining
  ):
    raise _missing(folder, setting, any_file)

  training_files = {
    pathlib.Path(file).relative_to(folder).as_posix(): file
    for files_read in (
      *(file.files for file in retrieval),
      *(source.files for source in (*trained, *parallel, *monolingual)),
    )
    for file in files_read
  }

  def describe_pairs(files: Sequence[reading.PairFile]) -> list[str]:
    lines = [line for file in files for line in file.describe(folder)]
    # The last file shows whether any file has needed the corpus.
    is_last = files and files[-1] is retrieval[-1]
    if corpus and is_last and all(file.seen for file in retrieval):
      lines += corpus.describe(folder)
    return lines

  parts = {
    "retrieval": [
      *(
        _part(file, functools.partial(describe_pairs, [file]))
        for file in retrieval
      ),
      *map(_part, trained),
    ],
    "parallel": list(map(_part, parallel)),
    "monolingual": list(map(_part, monolingual)),
  }

  return records.Collection(
    name=folder.resolve().name,
    **{
      stream: records.chained(each, bad_records)
      for stream, each in parts.items()
    },
    tests=lambda: tuple(
      test for each in tests for test in each.read(bad_records)
    ),
    translation_tests=lambda: (
      tatoeba.read_all(tatoeba_root, bad_records) if tatoeba_root else ()
    ),
    groups=_groups(
      parallel,
      [
        *(code for source in monolingual for code in source.languages),
        *(source.languages[0] for source in trained),
        *(each.language for each in tests),
        *translations,
      ],
    ),
    fingerprint=lambda: _fingerprint(training_files),
    notes=lambda: [
      *describe_pairs(retrieval),
      *layout.describe((*trained, *parallel, *monolingual), folder),
      *eval_files.describe(tests),
      *names.notes(folder),
    ],
    sources=lambda: [
      source.name for source in (*retrieval, *trained, *parallel, *monolingual)
    ],
    parts=parts,
    files=training_files,
    mining_tests=lambda: bucc.read_all(folder / "mining", bad_records),
  )
