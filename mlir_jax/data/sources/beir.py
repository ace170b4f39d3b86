"""Finds a data set in the layout of BEIR (Thakur et al. 2021).

A folder holds, each plain or with ".gz" after its name:
  corpus.jsonl     {"_id", "title", "text"}
  queries.jsonl    {"_id", "text"}, of all splits
  qrels/SPLIT.tsv  query-id, corpus-id, score, below this header
  qrels/test.hidden  in place of qrels/test.tsv: an empty file, which says that
                     the judgements are not public; the test has the queries
                     that no other split judges
"""

import functools
import os
import pathlib
from collections.abc import Sequence

from mlir_jax.data import records
from mlir_jax.data.sources import (
  files,
  judged,
  record_fields,
  text_lines,
  trec,
)

NAMES = frozenset(("corpus.jsonl", "queries.jsonl"))
QRELS = "qrels"
SPLITS = ("train", "dev", "test")
_HIDDEN = "test.hidden"


def _get_id(value: object) -> str:
  return record_fields.check_id(record_fields.get_field(value, "_id"), "_id")


def _parse_passage(line: str) -> records.Passage:
  value = record_fields.parse_json(line)
  return judged.make_passage(value, _get_id(value))


def _read_queries(
  path: str | os.PathLike, bad_records: records.BadRecords
) -> dict[str, str]:
  lines: dict[str, int] = {}

  def parse(line: str, number: int) -> tuple[str, str]:
    value = record_fields.parse_json(line)
    query_id = _get_id(value)
    trec.check_new_id(query_id, lines, "_id")
    lines[query_id] = number
    return query_id, record_fields.get_text(value, "text")

  return dict(text_lines.read_records(path, bad_records, parse))


def _read_unjudged(
  path: str | os.PathLike,
  bad_records: records.BadRecords,
  others: Sequence[pathlib.Path],
) -> dict[str, str]:
  """Reads the queries that no other split judges."""
  queries = _read_queries(path, bad_records)
  for other in others:
    found = trec.read_qrels(other, queries, records.BadRecords("skip"))
    for query_id in found.judged:
      del queries[query_id]
  return queries


def is_there(folder: pathlib.Path) -> bool:
  """Returns whether a folder holds the corpus and the queries of BEIR."""
  names = {path.name.removesuffix(".gz") for path in folder.iterdir()}
  return names >= {*NAMES, QRELS}


def locate(
  folder: pathlib.Path, not_read: list[pathlib.Path] | None = None
) -> dict[str, judged.Files]:
  """Finds the files of each split of `SPLITS` that there is.

  Args:
    folder: A folder for which `is_there` is true.
    not_read: Receives hidden files, and files that accompany the texts.

  Raises:
    ValueError: if there is another file, the test has judgements and is
      hidden, or as `files.list_files` does.
  """
  not_read = [] if not_read is None else not_read
  found = files.list_files(folder, not_read, folders=(QRELS,))
  splits = files.list_files(folder / QRELS, not_read)
  known = {*NAMES, *(f"{split}.tsv" for split in SPLITS), _HIDDEN}
  for name, path in (found | splits).items():
    if name in known:
      continue
    if not files.is_companion(name):
      raise ValueError(
        f"{path} is not a file of BEIR, which has corpus.jsonl, queries.jsonl"
        " and qrels/{train,dev,test}.tsv: move it elsewhere."
      )
    not_read.append(path)
  located = {
    split: judged.Files(
      (found["corpus.jsonl"],),
      found["queries.jsonl"],
      splits[f"{split}.tsv"],
      _parse_passage,
      _read_queries,
      of_all_splits=True,
    )
    for split in SPLITS
    if f"{split}.tsv" in splits
  }
  if _HIDDEN in splits:
    if "test" in located:
      raise ValueError(
        f"{splits['test.tsv']} and {_HIDDEN} are both there: keep one."
      )
    others = [pathlib.Path(each.qrels) for each in located.values()]
    located["test"] = judged.Files(
      (found["corpus.jsonl"],),
      found["queries.jsonl"],
      splits[_HIDDEN],
      _parse_passage,
      functools.partial(_read_unjudged, others=others),
      of_all_splits=True,
      hidden=True,
    )
  return located
