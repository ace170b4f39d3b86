"""Reads retrieval tests in the layout of Mr. TyDi (Zhang et al. 2021).

A language's folder holds, each plain or with ".gz" after its name:
  collection/docs.jsonl  {"id", "contents"}: title, blank line, text
  topic.SPLIT.tsv        query id, tab, query
  qrels.SPLIT.txt        TREC's query id, iteration, passage id, relevance; or
                         BEIR's three columns below its header
  qrels.test.hidden      in place of qrels.test.txt: an empty file, which says
                         that the judgements are not public
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from mlir_jax.data import records
from mlir_jax.data.sources import files, judged, record_fields

_COLLECTION = "collection"
_HIDDEN = "qrels.test.hidden"
# It separates a title from its text. A line of white space is blank, too.
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")


def list_files(
  folder: pathlib.Path, not_read: list[pathlib.Path] | None = None
) -> dict[str, pathlib.Path]:
  """Lists the files of a language's folder, without those of its collection.

  Args:
    folder: The language's folder.
    not_read: Receives the hidden files.

  Returns:
    Name without ".gz" to path.

  Raises:
    ValueError: as `files.list_files` does.
  """
  return files.list_files(folder, not_read, folders=(_COLLECTION,))


def parse_passage(line: str) -> records.Passage:
  """Makes the passage of a line of docs.jsonl; raises FieldError."""
  return make_passage(record_fields.parse_json(line))


def make_passage(value: Any) -> records.Passage:
  """Makes the passage of a decoded record; raises FieldError."""
  passage_id = record_fields.check_id(
    record_fields.get_field(value, "id"), "id"
  )
  contents = record_fields.get_text(value, "contents")
  assert isinstance(value, Mapping)  # It has fields.
  if value.get("title"):
    raise record_fields.FieldError(
      "title",
      'is next to "contents"; begin the contents with the title and a blank'
      " line, and remove the field",
    )
  contents = contents.replace("\r\n", "\n").replace("\r", "\n")
  title, *rest = _BLANK_LINE.split(contents, maxsplit=1)
  title, text = record_fields.strip(title), record_fields.strip("".join(rest))
  if not text:  # No blank line, or nothing after it.
    title, text = "", title
  paragraph = value.get("paragraph")
  if not isinstance(paragraph, str):  # Another kind of field.
    paragraph = ""
  return records.Passage(text, title, passage_id, paragraph)


def locate(folder: str | os.PathLike, split: str) -> judged.Files:
  """Finds the files of a split.

  Raises:
    FileNotFoundError: if one of the files is missing.
    ValueError: as `files.list_files` does.
  """
  folder = pathlib.Path(folder)
  found = list_files(folder) if folder.is_dir() else {}
  corpus = folder / _COLLECTION
  in_corpus = files.list_files(corpus) if corpus.is_dir() else {}
  qrels = f"qrels.{split}.txt"
  hidden = split == "test" and _HIDDEN in found
  if hidden and qrels in found:
    raise ValueError(f"{found[qrels]} and {_HIDDEN} are both there: keep one.")
  paths = []
  for where, there, name in (
    (corpus, in_corpus, "docs.jsonl"),
    (folder, found, f"topic.{split}.tsv"),
    (folder, found, _HIDDEN if hidden else qrels),
  ):
    if name not in there:
      advice = ""
      if name == "qrels.test.txt":
        advice = f" If its judgements are not public, make {_HIDDEN}, empty."
      raise FileNotFoundError(
        f"{where} holds neither {name} nor {name}.gz.{advice}"
      )
    paths.append(there[name])
  docs, queries, judgements = paths
  return judged.Files(
    (docs,), queries, judgements, parse_passage, hidden=hidden
  )
