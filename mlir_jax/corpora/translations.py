"""Brings translated sentences: WikiMatrix, NTREX and Tatoeba.

WikiMatrix (Schwenk et al. 2019) has mined pairs, a line each: margin, sentence,
sentence. Those below the margin of 1.04, which its authors advise, are left
out. Tatoeba is copied as it is; NTREX becomes parallel/.
"""

import gzip
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator

from mlir_jax import bars
from mlir_jax.corpora import corpus, downloads, layout
from mlir_jax.data import languages
from mlir_jax.storage import reading


def _codes(words: str) -> tuple[str, ...]:
  return tuple(words.split())


# Codes of Tatoeba's test set, as LASER has it.
TATOEBA = _codes(
  "afr amh ang ara arq arz ast awa aze bel ben ber bos bre bul cat cbk ceb "
  "ces cha cmn cor csb cym dan deu dsb dtp ell epo est eus fao fin fra fry "
  "gla gle glg gsw heb hin hrv hsb hun hye ido ile ina ind isl ita jav jpn "
  "kab kat kaz khm kor kur kzj lat lfn lit lvs mal mar max mhr mkd mon nds "
  "nld nno nob nov oci orv pam pes pms pol por ron rus slk slv spa sqi srp "
  "swe swg swh tam tat tel tgl tha tuk tur tzl uig ukr urd uzb vie war wuu "
  "xho yid yue zsm"
)
# Languages that have at least 30,000 lines with English in WikiMatrix.
WIKIMATRIX = _codes(
  "ar az be bg bn bs ca cs da de el eo es et eu fa fi fo fr fy gl he hi hr "
  "hu id is it ja ko la lt mk ml mr nds nl no oc pl pt ro ru sh si sk sl sq "
  "sr sv sw ta te tl tr tt uk vi zh"
)
# With the languages of the collections here; NTREX has 128.
NTREX = _codes(
  "arb ben ces dan deu ell fin fra hin ind ita jpn kor nld pol por ron rus "
  "spa swa swe tel tha tur ukr vie zho-CN"
)

_MIN_MARGIN = 1.04


def list_wikimatrix(
  request: corpus.Request, folder: pathlib.Path
) -> Iterator[downloads.File]:
  """Yields a file of each language; the two codes are in alphabetical order."""
  del folder
  for language in request.languages:
    name = f"WikiMatrix.{_pair(language)}.tsv.gz"
    yield downloads.File(f"{request.base}/{name}", name)


def build_wikimatrix(
  request: corpus.Request, raw: pathlib.Path, folder: pathlib.Path
) -> list[str]:
  """Writes parallel/; see `corpus.Corpus`."""
  notes = []
  for language in request.languages:
    pair = _pair(language)
    counts = {"below the margin": 0, "bad lines": 0}
    count = layout.write_parallel(
      folder,
      "wikimatrix",
      (pair.split("-")[0], pair.split("-")[1]),
      _read_wikimatrix(raw / f"WikiMatrix.{pair}.tsv.gz", counts),
    )
    left_out = ", ".join(f"{n:,} {what}" for what, n in counts.items())
    notes.append(f"parallel/{pair}: {count:,} pairs; left out: {left_out}")
  return notes


def list_tatoeba(
  request: corpus.Request, folder: pathlib.Path
) -> Iterator[downloads.File]:
  """Yields both sides of each language."""
  del folder
  for language in request.languages:
    for side in (language, "eng"):
      name = f"tatoeba.{language}-eng.{side}"
      yield downloads.File(f"{request.base}/{name}", name)


def list_ntrex(
  request: corpus.Request, folder: pathlib.Path
) -> Iterator[downloads.File]:
  """Yields the English source, then the translations."""
  del folder
  for part in ("src.eng", *(f"ref.{each}" for each in request.languages)):
    name = f"newstest2019-{part}.txt"
    yield downloads.File(f"{request.base}/{name}", name)


def copy_tatoeba(
  request: corpus.Request, raw: pathlib.Path, folder: pathlib.Path
) -> list[str]:
  """Copies both sides of each language as they are."""
  return _copy(list_tatoeba(request, raw), raw, folder)


def build_ntrex(
  request: corpus.Request, raw: pathlib.Path, folder: pathlib.Path
) -> list[str]:
  """Writes parallel/, each language with English; see `corpus.Corpus`."""
  notes = []
  english = _read_lines(raw / "newstest2019-src.eng.txt")
  for language in request.languages:
    path = raw / f"newstest2019-ref.{language}.txt"
    lines = _read_lines(path)
    if len(lines) != len(english):
      raise reading.UnreadableError(
        f"{path} has {len(lines):,} lines, but the English file has"
        f" {len(english):,}. Delete both, then the same command downloads them"
        " again."
      )
    count = layout.write_parallel(
      folder,
      "ntrex",
      ("en", languages.code(language)),
      zip(english, lines, strict=True),
    )
    notes.append(f"parallel/en-{language}: {count:,} pairs")
  return notes


def _pair(language: str) -> str:
  return "-".join(sorted(("en", language)))


def _read_wikimatrix(
  path: pathlib.Path, counts: dict[str, int]
) -> Iterator[tuple[str, str]]:
  """Yields the pairs above the margin; counts the lines that are left out."""
  with (
    open(path, "rb") as raw,
    gzip.open(raw, "rb") as file,
    bars.bar(
      description=path.name,
      total=os.path.getsize(path),
      unit="B",
      unit_scale=True,
      delay=2,
    ) as bar,
  ):
    for line in file:
      bar.update(raw.tell() - bar.n)
      columns = line.decode("utf-8", "replace").rstrip("\n").split("\t")
      try:
        margin, source, target = columns
        is_near = float(margin) >= _MIN_MARGIN
      except ValueError:
        counts["bad lines"] += 1
        continue
      source, target = layout.one_line(source), layout.one_line(target)
      if not source or not target or "\ufffd" in source + target:
        counts["bad lines"] += 1
      elif is_near:
        yield source, target
      else:
        counts["below the margin"] += 1


def _read_lines(path: pathlib.Path) -> list[str]:
  text = path.read_text(encoding="utf-8").removesuffix("\n")
  return [layout.one_line(line) for line in text.split("\n")]


def _copy(
  files: Iterable[downloads.File], raw: pathlib.Path, folder: pathlib.Path
) -> list[str]:
  names = [file.path for file in files]
  for name in names:
    shutil.copyfile(raw / name, folder / name)
  return [f"{len(names)} files"]
