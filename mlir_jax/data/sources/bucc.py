"""Reads tests of bitext mining from files that are named as in BUCC 2018.

Each is plain, or has ".gz" after its name:
  de-en.training.de    a line is the sentence's id, a tab, the sentence
  de-en.training.en
  de-en.training.gold  a line is the ids of two translations, with a tab between
A split without a file of gold pairs is not read: its pairs are not public.
"""

import os
import pathlib
import re

from mlir_jax.data import languages, records
from mlir_jax.data.sources import files, record_fields, text_lines, trec

_GOLD = "gold"
_NAME = re.compile(
  rf"(?P<pair>([a-z]{{2,3}})-([a-z]{{2,3}}))"
  rf"\.(?P<split>[a-z]+)\.(?P<part>\2|\3|{_GOLD})"
)
EXAMPLE = "de-en.test.de, de-en.test.en and de-en.test.gold"

Parts = dict[str, pathlib.Path]  # "gold" or a code of the pair to its file.


def find(
  folder: pathlib.Path, not_read: list[pathlib.Path] | None = None
) -> dict[tuple[str, str], Parts]:
  """Finds the files of each pair and split.

  Args:
    folder: The folder; it need not exist.
    not_read: Receives hidden files, files for which `files.is_companion` is
      true, and the files of splits without gold pairs.

  Returns:
    (pair, split), such as ("de-en", "test"), to its files.

  Raises:
    ValueError: if a file has another name, or a split lacks a side.
  """
  if not folder.is_dir():
    return {}
  found: dict[tuple[str, str], Parts] = {}
  for name, path in files.list_files(folder, not_read).items():
    if match := _NAME.fullmatch(name):
      parts = found.setdefault((match["pair"], match["split"]), {})
      parts[match["part"]] = path
    elif not files.is_companion(name):
      raise ValueError(
        f"{path} is not named like {EXAMPLE}; rename it or move it elsewhere."
      )
    elif not_read is not None:
      not_read.append(path)
  for key, parts in list(found.items()):
    if _GOLD not in parts:
      del found[key]
      if not_read is not None:
        not_read += parts.values()
    elif len(parts) < 3:
      raise ValueError(
        f"{parts[_GOLD]} lacks the sentences of a side: a test is of three"
        f" files, such as {EXAMPLE}."
      )
  return found


def read_all(
  folder: pathlib.Path, bad_records: records.BadRecords
) -> tuple[records.MiningTest, ...]:
  """Reads all tests of a folder, in the order of their names.

  Args:
    folder: See `find`.
    bad_records: Receives bad sentences and bad pairs.

  Raises:
    ValueError: as `find` does.
    RecordError: for a bad record, if the policy is "error"; under any policy if
      a file holds no record that can be used.
  """
  tests = []
  for (pair, split), parts in find(folder).items():
    source, target = pair.split("-")
    sources = trec.read_queries(parts[source], bad_records)
    targets = trec.read_queries(parts[target], bad_records)
    gold = _read_gold(parts[_GOLD], sources, targets, bad_records)
    tests.append(
      records.MiningTest(
        languages.code(source),
        languages.code(target),
        split,
        sources,
        targets,
        gold,
      )
    )
  return tuple(tests)


def _read_gold(
  path: str | os.PathLike,
  sources: dict[str, str],
  targets: dict[str, str],
  bad_records: records.BadRecords,
) -> frozenset[tuple[str, str]]:
  """Reads the pairs of ids; an id without a sentence is a bad record."""

  def parse(line: str, number: int) -> tuple[str, str]:
    del number
    columns = line.split()
    if len(columns) != 2:
      raise record_fields.FieldError(
        "gold", f"has {len(columns)} columns, not 2: two ids"
      )
    for name, sentences in zip(columns, (sources, targets), strict=True):
      if name not in sentences:
        raise record_fields.FieldError(
          "gold", f"{record_fields.show(name)} is the id of no sentence"
        )
    return columns[0], columns[1]

  gold = frozenset(text_lines.read_records(path, bad_records, parse))
  if not gold:
    raise records.RecordError(f"{path} holds no pair; write it again.")
  return gold
