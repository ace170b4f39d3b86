"""Finds MIRACL (Zhang et al. 2023) in the layout of its two repositories.

For a language XX these folders are next to each other:
  miracl-corpus-v1.0-XX/docs-0.jsonl.gz …                  docid, title, text
  miracl-v1.0-XX/topics/topics.miracl-v1.0-XX-SPLIT.tsv    query id, tab, query
  miracl-v1.0-XX/qrels/qrels.miracl-v1.0-XX-SPLIT.tsv      TREC's judgements

Judgements are public for the splits train and dev. All that publish results
test on dev, so `SPLITS` reads it as the test. The splits test-a and test-b are
hidden: an empty file qrels/qrels.miracl-v1.0-XX-test-a.hidden makes the first
of them the test in place of dev.
"""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

from mlir_jax.data import records
from mlir_jax.data.sources import files, judged, record_fields

# Our split to MIRACL's.
SPLITS = {"train": "train", "test": "dev"}

_DOCS = re.compile(r"docs-([0-9]+)\.jsonl")


def parse_passage(line: str) -> records.Passage:
  """Makes the passage of a line of docs-N.jsonl; raises FieldError."""
  value = record_fields.parse_json(line)
  passage_id = record_fields.check_id(
    record_fields.get_field(value, "docid"), "docid"
  )
  return judged.make_passage(value, passage_id)


def locate_test(folder: pathlib.Path) -> judged.Files:
  """Finds the files of the test: a hidden split if there is one, else dev.

  Raises:
    FileNotFoundError: as `locate` does.
    ValueError: if there are several hidden splits, or as `locate` does.
  """
  where = folder / "qrels"
  there = files.list_files(where) if where.is_dir() else {}
  found = [
    (match[1], path)
    for name, path in there.items()
    if (match := re.fullmatch(rf"qrels\.{folder.name}-(.+)\.hidden", name))
  ]
  if not found:
    return locate(folder, "test")
  if len(found) > 1:
    raise ValueError(
      f"{where} names {len(found)} hidden splits"
      f" ({', '.join(path.name for _, path in found)}): keep one."
    )
  ((split, marker),) = found
  return dataclasses.replace(
    _located(folder, split, ("topics",)), qrels=marker, hidden=True
  )


def locate(folder: pathlib.Path, split: str) -> judged.Files:
  """Finds the files of a split.

  Args:
    folder: The folder miracl-v1.0-XX.
    split: A key of `SPLITS`.

  Raises:
    FileNotFoundError: if a file is missing, or a part of the passages is.
    ValueError: as `files.list_files` does.
  """
  return _located(folder, SPLITS[split], ("topics", "qrels"))


def _located(
  folder: pathlib.Path, split: str, parts: Sequence[str]
) -> judged.Files:
  """Finds the files of one of MIRACL's splits; see `locate`."""
  name = f"{folder.name}-{split}.tsv"
  paths = []
  for part in parts:
    where = folder / part
    there = files.list_files(where) if where.is_dir() else {}
    if f"{part}.{name}" not in there:
      raise FileNotFoundError(
        f"{where} holds neither {part}.{name} nor {part}.{name}.gz."
      )
    paths.append(there[f"{part}.{name}"])
  corpus = folder.with_name(folder.name.replace("miracl-", "miracl-corpus-", 1))
  there = files.list_files(corpus) if corpus.is_dir() else {}
  docs = {
    int(match[1]): path
    for file, path in there.items()
    if (match := _DOCS.fullmatch(file))
  }
  missing = set(range(max(docs, default=0) + 1)) - docs.keys()
  if missing:
    raise FileNotFoundError(
      f"{corpus} lacks docs-{min(missing)}.jsonl.gz: the passages of"
      f" {folder.name} are in the repository miracl-corpus."
    )
  return judged.Files(
    tuple(docs[number] for number in sorted(docs)),
    paths[0],
    paths[-1],
    parse_passage,
  )
