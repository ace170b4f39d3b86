"""Brings translated sentences: WikiMatrix, NTREX and Tatoeba.

WikiMatrix (Schwenk et al. 2019) has mined pairs, a line each: margin, sentence,
sentence. Those below the margin of 1.04, which its authors advise, are left
out. Tatoeba is copied as it is; NTREX becomes parallel/.
"""

import pathlib
import shutil
from collections.abc import Iterable, Iterator

from mlir_jax import bars
from mlir_jax.corpora import corpus, damage, downloads, layout
from mlir_jax.data import languages, records
from mlir_jax.data.sources import translation_rows
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
# NTREX's names of its languages. British, Indian and American English are left
# out, because a pair is of two languages.
NTREX = _codes(
  "afr amh arb aze-Latn bak bel bem ben bod bos bul cat ces ckb-Arab cym dan "
  "deu div dzo ell est eus ewe fao fas fij fil fin fra fra-CA fuc gle glg "
  "gsw-BE gsw-ZH guj hau heb hin hmn hrv hun hye ibo ind isl ita jpn kan kat "
  "kaz khm kin kir kmr kor lao lav lit ltz mal mar mey mkd mlg mlt mon mri "
  "msa mya nde nep nld nno nob nso nya orm pan pol por por-BR prs pus ron rus "
  "shi sin slk slv smo sna-Latn snd-Arab som spa spa-MX sqi srp-Cyrl srp-Latn "
  "ssw swa swe tah tam tat tel tgk-Cyrl tha tir ton tsn tuk tur uig ukr urd "
  "uzb ven vie wol xho yor yue zho-CN zho-TW zul"
)

_MIN_MARGIN = 1.04


def list_wikimatrix(
  request: corpus.Request, folder: pathlib.Path
) -> Iterator[downloads.File]:
  """Yields a file of each language; the two codes are in alphabetical order."""
  del folder
  for language in request.languages:
    yield wikimatrix_file(request.base, wikimatrix_pair("en", language))


def wikimatrix_pair(first: str, second: str) -> tuple[str, str]:
  """Returns two languages in the order in which WikiMatrix names them."""
  return (first, second) if first < second else (second, first)


def wikimatrix_file(base: str, pair: tuple[str, str]) -> downloads.File:
  """Returns the file of a pair of languages."""
  name = f"WikiMatrix.{'-'.join(pair)}.tsv.gz"
  return downloads.File(f"{base}/{name}", name)


def build_wikimatrix(
  request: corpus.Request, raw: pathlib.Path, folder: pathlib.Path
) -> list[str]:
  """Writes parallel/; see `corpus.Corpus`."""
  notes = []
  for language in request.languages:
    pair = wikimatrix_pair("en", language)
    path = raw / wikimatrix_file(request.base, pair).path
    bad = records.BadRecords("skip")
    below = [0]
    count = layout.write_parallel(
      folder, "wikimatrix", pair, _read_wikimatrix(path, pair, bad, below)
    )
    notes.append(
      f"parallel/{'-'.join(pair)}: {count:,} pairs; left out: {below[0]:,}"
      f" below the margin, {bad.count:,} bad lines"
    )
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
    pairs = [*zip(english, lines, strict=True)]
    count = layout.write_parallel(
      folder,
      # Several files may be in one language, such as zho-CN and zho-TW.
      f"ntrex-{language}",
      ("en", languages.code(language)),
      filter(all, pairs),
    )
    empty = len(pairs) - count
    notes.append(
      f"parallel/en-{language}: {count:,} pairs"
      + (f"; left out: {empty:,} with an empty side" if empty else "")
    )
  return notes


def _read_wikimatrix(
  path: pathlib.Path,
  pair: tuple[str, str],
  bad_records: records.BadRecords,
  below: list[int],
) -> Iterator[tuple[str, str]]:
  """Yields the pairs from the margin on; counts the others in `below[0]`."""
  rows = translation_rows.read_scored(path, pair, bad_records)
  for margin, record in bars.bar(rows, path.name, unit="pair", delay=2):
    if margin >= _MIN_MARGIN:
      yield layout.one_line(record.source), layout.one_line(record.target)
    else:
      below[0] += 1


def _read_lines(path: pathlib.Path) -> list[str]:
  with damage.naming(path):
    text = path.read_text(encoding="utf-8").removesuffix("\n")
  return [layout.one_line(line) for line in text.split("\n")]


def _copy(
  files: Iterable[downloads.File], raw: pathlib.Path, folder: pathlib.Path
) -> list[str]:
  names = [file.path for file in files]
  for name in names:
    shutil.copyfile(raw / name, folder / name)
  return [f"{len(names)} files"]
