"""Brings retrieval tests over Wikipedia in many languages: Mr. TyDi, MIRACL.

Mr. TyDi (Zhang et al. 2021) has an archive for each language, in the layout of
eval/. MIRACL (Zhang et al. 2023) has passages, topics and judgements in files
of their own. The judgements of its dev part are public: that part is the test.
The dev split of Mr. TyDi is kept in English alone: it selects the model.
"""

import gzip
import json
import pathlib
import shutil
import tarfile
from collections.abc import Iterator
from typing import IO

from mlir_jax import bars
from mlir_jax.corpora import corpus, downloads, layout
from mlir_jax.data import records
from mlir_jax.storage import reading

MR_TYDI = {
  "ar": "arabic",
  "bn": "bengali",
  "en": "english",
  "fi": "finnish",
  "id": "indonesian",
  "ja": "japanese",
  "ko": "korean",
  "ru": "russian",
  "sw": "swahili",
  "te": "telugu",
  "th": "thai",
}
# The number of files of passages.
MIRACL = {
  "ar": 5,
  "bn": 1,
  "de": 32,
  "en": 66,
  "es": 21,
  "fa": 5,
  "fi": 4,
  "fr": 30,
  "hi": 2,
  "id": 3,
  "ja": 14,
  "ko": 3,
  "ru": 20,
  "sw": 1,
  "te": 2,
  "th": 2,
  "yo": 1,
  "zh": 10,
}

_MEND = "Delete the file, then the same command downloads it again."


def list_mr_tydi(
  request: corpus.Request, folder: pathlib.Path
) -> Iterator[downloads.File]:
  """Yields an archive for each language."""
  del folder
  for language in request.languages:
    name = f"mrtydi-v1.1-{MR_TYDI[language]}.tar.gz"
    yield downloads.File(f"{request.base}/{name}", name)


def build_mr_tydi(
  request: corpus.Request, raw: pathlib.Path, folder: pathlib.Path
) -> list[str]:
  """Writes eval/; see `corpus.Corpus`."""
  for language in request.languages:
    path = raw / f"mrtydi-v1.1-{MR_TYDI[language]}.tar.gz"
    splits = ("dev", "test") if language == "en" else ("test",)
    wanted = {"collection/docs.jsonl.gz"}
    for split in splits:
      wanted |= {f"topic.{split}.tsv", f"qrels.{split}.txt"}
    target = folder / "eval" / language
    try:
      with tarfile.open(path) as archive:
        for member in bars.bar(archive, path.name, unit="file", delay=2):
          name = "/".join(pathlib.PurePosixPath(member.name).parts[-2:])
          name = name if name in wanted else name.rpartition("/")[2]
          if name in wanted and member.isfile():
            wanted.remove(name)
            source = archive.extractfile(member)
            assert source  # Since it is a file.
            _copy(source, target / name)
    except (tarfile.TarError, OSError, EOFError) as error:
      raise reading.UnreadableError(
        f"{path} cannot be read: {error}. {_MEND}"
      ) from error
    if wanted:
      raise reading.UnreadableError(
        f"{path} lacks {', '.join(sorted(wanted))}. {_MEND}"
      )
  return [f"eval/: {', '.join(request.languages)}"]


def list_miracl(
  request: corpus.Request, folder: pathlib.Path
) -> Iterator[downloads.File]:
  """Yields topics, judgements and passages of each language."""
  del folder
  for language in request.languages:
    judged = f"{request.base}/miracl/resolve/main/miracl-v1.0-{language}"
    for kind in ("topics", "qrels"):
      name = f"{kind}.miracl-v1.0-{language}-dev.tsv"
      yield downloads.File(f"{judged}/{kind}/{name}", name)
    for number in range(MIRACL[language]):
      part = f"miracl-corpus-v1.0-{language}/docs-{number}.jsonl.gz"
      yield downloads.File(
        f"{request.base}/miracl-corpus/resolve/main/{part}", part
      )


def build_miracl(
  request: corpus.Request, raw: pathlib.Path, folder: pathlib.Path
) -> list[str]:
  """Writes eval/; see `corpus.Corpus`."""
  notes = []
  for language in request.languages:
    target = folder / "eval" / language
    count = layout.write_test(folder, language, _read_miracl(raw, language), {})
    for kind, name in (
      ("topics", "topic.test.tsv"),
      ("qrels", "qrels.test.txt"),
    ):
      source = raw / f"{kind}.miracl-v1.0-{language}-dev.tsv"
      with open(source, "rb") as file:
        _copy(file, target / name)
    notes.append(f"eval/{language}: {count:,} passages")
  return notes


def _read_miracl(raw: pathlib.Path, language: str) -> Iterator[records.Passage]:
  folder = raw / f"miracl-corpus-v1.0-{language}"
  for number in range(MIRACL[language]):
    path = folder / f"docs-{number}.jsonl.gz"
    try:
      with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in bars.bar(file, path.name, unit="passage", delay=2):
          value = json.loads(line)
          yield records.Passage(
            layout.one_line(value["text"]),
            layout.one_line(value["title"]),
            value["docid"],
          )
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
      raise reading.UnreadableError(
        f"{path} cannot be read ({type(error).__name__}: {error}). {_MEND}"
      ) from error


def _copy(source: IO[bytes], path: pathlib.Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "wb") as file:
    shutil.copyfileobj(source, file)
