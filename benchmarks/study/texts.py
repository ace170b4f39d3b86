"""Writes the texts that a cell trains on, as a collection's folder."""

import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterable, Sequence

from mlir_jax.data import records
from mlir_jax.data.collections import folder as folder_lib
from mlir_jax.data.collections import layout, parallel_files
from mlir_jax.data.sources import moses, tatoeba
from mlir_jax.storage import writing
from study import cells as cells_lib

QUESTIONS = "nq"  # The source of the English pairs.
TESTS = "xquadr"
CORPORA = (QUESTIONS, "libreoffice", "tatoeba", "ntrex", TESTS)
# NTREX has Arabic and Thai; their sentences are used as plain text only.
PLAIN_OF_NTREX = ("ar", "th")
_PLAIN_SENTENCES = 1000  # Of a language.


def check(data: pathlib.Path) -> None:
  """Refuses a folder that lacks a corpus of the study.

  Raises:
    ValueError: if one is missing; it names those.
  """
  missing = [name for name in CORPORA if not (data / name).is_dir()]
  if missing:
    raise ValueError(
      f"--data={data} lacks {', '.join(missing)}: run mlir-jax download"
      f" {' '.join(missing)} --output={data}"
    )


def read_pairs(
  data: pathlib.Path, source: str, language: str
) -> list[tuple[str, str]]:
  """Reads the translations of a language: English sentence, translation.

  An English sentence comes once, with its first translation. Pairs with equal
  sides are left out.

  Args:
    data: The folder of all corpora.
    source: "libreoffice", "ntrex" or "tatoeba".
    language: The language of the translations.

  Raises:
    ValueError: if the corpus has none.
  """
  bad_records = records.BadRecords("error", "--data")
  folder = data / source
  if source == "tatoeba":
    found = tatoeba.find_pairs(folder, setting="--data")
    if language not in found:
      raise _missing(folder, language)
    read = moses.read(*found[language], language, "en", bad_records)
  else:
    folder = folder / "parallel" if (folder / "parallel").is_dir() else folder
    files = [
      each
      for each in parallel_files.find(folder, layout.Names())
      if {"en", language} == {*each.languages}
    ]
    if not files:
      raise _missing(folder, language)
    # NTREX has some languages twice, such as spa and spa-MX.
    plainest = min(files, key=lambda each: sum(len(str(f)) for f in each.files))
    read = plainest.read(bad_records)
  pairs: dict[str, str] = {}
  for pair in read:
    sides = {
      pair.source_language: _one_line(pair.source),
      pair.target_language: _one_line(pair.target),
    }
    if sides["en"] != sides[language]:
      pairs.setdefault(sides["en"], sides[language])
  return list(pairs.items())


def choose_pairs(
  pairs: Iterable[tuple[str, str]], count: int, seed: int
) -> list[tuple[str, str]]:
  """Returns the first pairs of an order that the seed makes.

  The order is that of a hash of the English sentence. So a hundred pairs are
  among the thousand, and languages with the same English sentences get
  translations of the same ones.

  Args:
    pairs: English sentence and translation.
    count: The most pairs to return.
    seed: Another seed makes another order.
  """
  ordered = sorted(pairs, key=lambda pair: _hash(pair[0], seed))
  return ordered[:count]


def write(
  cell: cells_lib.Cell, data: pathlib.Path, seed: int, folder: pathlib.Path
) -> dict[str, int]:
  """Writes the texts of a cell; English NQ is dev and test.

  A folder that is there already is kept: the same cell and seed give the same
  texts.

  Args:
    cell: The cell.
    data: The folder of all corpora.
    seed: Chooses the translations.
    folder: The new folder.

  Returns:
    Language to its number of translations.

  Raises:
    ValueError: if a corpus lacks a language.
  """
  chosen = {
    language: choose_pairs(
      read_pairs(data, cell.source, language), cell.pairs, seed
    )
    for language in (cell.languages if cell.pairs else ())
  }
  counts = {language: len(pairs) for language, pairs in chosen.items()}
  if folder.is_dir():
    return counts
  with writing.folder_aside(folder) as new:
    _copy_questions(data / QUESTIONS, new)
    for language, pairs in chosen.items():
      if cell.as_questions:
        rows = [{"query": a, "positive": b} for a, b in pairs]
        _write_rows(new / "ir" / f"pairs.{language}.jsonl", rows)
      else:
        rows = [{"en": a, language: b} for a, b in pairs]
        name = f"{cell.source}.en-{language}.jsonl"
        _write_rows(new / "parallel" / name, rows)
    for language in cell.plain:
      source = "ntrex" if language in PLAIN_OF_NTREX else "libreoffice"
      pairs = choose_pairs(
        read_pairs(data, source, language), _PLAIN_SENTENCES, seed
      )
      rows = [{"text": translation} for _, translation in pairs]
      _write_rows(new / "mono" / f"plain.{language}.jsonl", rows)
  return counts


def write_plain(
  data: pathlib.Path,
  seed: int,
  folder: pathlib.Path,
  languages: Sequence[str] = cells_lib.FOUR + cells_lib.THREE,
) -> None:
  """Writes plain text for masked language modelling, without translations.

  Of each sentence of LibreOffice and NTREX, one language alone has a text,
  which a hash chooses. So no text has a translation in another language. Then
  come the passages of English NQ.

  Args:
    data: The folder of all corpora.
    seed: Changes the choice.
    folder: The new folder.
    languages: Of LibreOffice. NTREX has two more; see `PLAIN_OF_NTREX`.
  """
  if folder.is_dir():
    return
  texts: dict[str, list[str]] = {"en": []}
  for source, of_source in (
    ("libreoffice", languages),
    ("ntrex", PLAIN_OF_NTREX),
  ):
    sentences: dict[str, dict[str, str]] = {}
    for language in of_source:
      for english, translation in read_pairs(data, source, language):
        sentences.setdefault(english, {"en": english})[language] = translation
    for english, versions in sentences.items():
      names = sorted(versions)
      language = names[int(_hash(english, seed), 16) % len(names)]
      texts.setdefault(language, []).append(versions[language])
  texts["en"] += [
    _one_line(passage.text)
    for record in english_pairs(data / QUESTIONS)
    for passage in record.positives
  ]
  with writing.folder_aside(folder) as new:
    for language, of_language in sorted(texts.items()):
      rows = [{"text": text} for text in dict.fromkeys(of_language)]
      _write_rows(new / "mono" / f"plain.{language}.jsonl", rows)


def english_pairs(folder: pathlib.Path) -> list[records.RetrievalRecord]:
  """Reads the question-passage pairs of a collection's folder."""
  bad_records = records.BadRecords("error", "--data")
  collection = folder_lib.load(folder, bad_records, prefix="--data: ")
  return list(collection.retrieval())


def _copy_questions(folder: pathlib.Path, new: pathlib.Path) -> None:
  """Copies NQ's pairs and its test; the copy does not keep file modes."""
  pairs = sorted((folder / "ir").glob("[!.]*.json*"))
  if len(pairs) != 1:
    raise ValueError(
      f"{folder / 'ir'} has {len(pairs)} files of pairs; the study needs"
      " exactly one."
    )
  copies = {pairs[0]: new / "ir" / f"nq{''.join(pairs[0].suffixes)}"}
  for path in sorted((folder / "eval").rglob("*")):
    if path.is_file():
      copies[path] = new / path.relative_to(folder)
  for path, copy in copies.items():
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, copy)


def _write_rows(path: pathlib.Path, rows: Iterable[dict[str, str]]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(
    "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
    encoding="utf-8",
  )


def _one_line(text: str) -> str:
  return " ".join(text.split())


def _hash(text: str, seed: int) -> str:
  return hashlib.sha256(f"{seed}\n{text}".encode()).hexdigest()


def _missing(folder: pathlib.Path, language: str) -> ValueError:
  return ValueError(
    f"{folder} has no translations between English and {language!r}."
  )
