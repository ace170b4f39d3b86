"""Brings retrieval tests over Wikipedia in many languages: Mr. TyDi, MIRACL.

Mr. TyDi (Zhang et al. 2021) has an archive for each language, in the layout of
eval/. MIRACL (Zhang et al. 2023) has passages, topics and judgements in files
of their own. The judgements of its dev part are public: that part is the test.
The dev split of Mr. TyDi is kept in English alone: it selects the model.
"""

import pathlib
import shutil
from collections.abc import Iterable, Iterator
from typing import IO

from mlir_jax import bars
from mlir_jax.corpora import corpus, damage, downloads, layout
from mlir_jax.data import records
from mlir_jax.data.sources import judged as judged_lib
from mlir_jax.data.sources import miracl
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

MR_TYDI_SPLITS = ("train", "dev", "test")
# Languages of MIRACL without a training part.
_NOT_TRAINED = ("de", "yo")


def mr_tydi_file(base: str, language: str) -> downloads.File:
  """Returns the archive of a language."""
  name = f"mrtydi-v1.1-{MR_TYDI[language]}.tar.gz"
  return downloads.File(f"{base}/{name}", name)


def list_mr_tydi(
  request: corpus.Request, folder: pathlib.Path
) -> Iterator[downloads.File]:
  """Yields an archive for each language."""
  del folder
  for language in request.languages:
    yield mr_tydi_file(request.base, language)


def build_mr_tydi(
  request: corpus.Request, raw: pathlib.Path, folder: pathlib.Path
) -> list[str]:
  """Writes eval/; see `corpus.Corpus`."""
  for language in request.languages:
    splits = ("dev", "test") if language == "en" else ("test",)
    extract_mr_tydi(
      raw / mr_tydi_file(request.base, language).path,
      folder / "eval" / language,
      splits,
    )
  return [f"eval/: {', '.join(request.languages)}"]


def extract_mr_tydi(
  path: pathlib.Path, folder: pathlib.Path, splits: Iterable[str]
) -> None:
  """Writes the files of an archive in the layout of `sources.mr_tydi`.

  Args:
    path: The archive.
    folder: Where the files are put. Names in the archive do not lead elsewhere.
    splits: The splits whose topics and judgements are wanted.

  Raises:
    UnreadableError: if the archive is damaged or lacks a file.
  """
  wanted = {"collection/docs.jsonl.gz"}
  for split in splits:
    wanted |= {f"topic.{split}.tsv", f"qrels.{split}.txt"}
  with damage.open_tar(path) as archive:
    for member in bars.bar(archive, path.name, unit="file", delay=2):
      name = "/".join(pathlib.PurePosixPath(member.name).parts[-2:])
      name = name if name in wanted else name.rpartition("/")[2]
      if name in wanted and member.isfile():
        wanted.remove(name)
        source = archive.extractfile(member)
        assert source  # Since it is a file.
        _copy(source, folder / name)
  if wanted:
    raise reading.UnreadableError(
      f"{path} lacks {', '.join(sorted(wanted))}. {damage.MEND}"
    )


def list_miracl(
  request: corpus.Request, folder: pathlib.Path
) -> Iterator[downloads.File]:
  """Yields topics, judgements and passages of each language."""
  del folder
  for language in request.languages:
    yield from miracl_files(request.base, language, ("dev",))


def miracl_splits(language: str) -> tuple[str, ...]:
  """Returns the splits of MIRACL whose judgements are public."""
  return ("dev",) if language in _NOT_TRAINED else ("train", "dev")


def miracl_files(
  base: str, language: str, splits: Iterable[str]
) -> Iterator[downloads.File]:
  """Yields topics and judgements of splits, then the passages of a language."""
  judged = f"{base}/miracl/resolve/main/miracl-v1.0-{language}"
  for split in splits:
    for kind in ("topics", "qrels"):
      name = f"{kind}.miracl-v1.0-{language}-{split}.tsv"
      yield downloads.File(f"{judged}/{kind}/{name}", name)
  for number in range(MIRACL[language]):
    part = f"miracl-corpus-v1.0-{language}/docs-{number}.jsonl.gz"
    yield downloads.File(f"{base}/miracl-corpus/resolve/main/{part}", part)


def locate_miracl(
  raw: pathlib.Path, language: str, split: str
) -> judged_lib.Files:
  """Returns the downloaded files of a split; see `miracl_files`."""
  folder = raw / f"miracl-corpus-v1.0-{language}"
  topics, qrels = (
    raw / f"{kind}.miracl-v1.0-{language}-{split}.tsv"
    for kind in ("topics", "qrels")
  )
  docs = (folder / f"docs-{n}.jsonl.gz" for n in range(MIRACL[language]))
  return judged_lib.Files(tuple(docs), topics, qrels, miracl.parse_passage)


def build_miracl(
  request: corpus.Request, raw: pathlib.Path, folder: pathlib.Path
) -> list[str]:
  """Writes eval/; see `corpus.Corpus`."""
  notes = []
  for language in request.languages:
    target = folder / "eval" / language
    files = locate_miracl(raw, language, "dev")
    bad = records.BadRecords("skip")
    passages = bars.bar(
      judged_lib.iterate_passages(files, bad, check_ids=False),
      f"MIRACL, {language}",
      unit="passage",
      delay=2,
    )
    count = layout.write_test(folder, language, map(_in_lines, passages), {})
    for source, name in (
      (files.queries, "topic.test.tsv"),
      (files.qrels, "qrels.test.txt"),
    ):
      with open(source, "rb") as file:
        _copy(file, target / name)
    notes.append(f"eval/{language}: {count:,} passages")
    if bad.count:
      notes.append(records.describe_bad("test", bad.drain()))
  return notes


def _in_lines(passage: records.Passage) -> records.Passage:
  """Returns a passage whose text and title are a line each."""
  return records.Passage(
    layout.one_line(passage.text),
    layout.one_line(passage.title),
    passage.passage_id,
  )


def _copy(source: IO[bytes], path: pathlib.Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "wb") as file:
    shutil.copyfileobj(source, file)
