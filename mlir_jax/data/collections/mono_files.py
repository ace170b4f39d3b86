"""Finds the plain text in a folder."""

import pathlib
import re

from mlir_jax.data import languages
from mlir_jax.data.collections import layout
from mlir_jax.data.sources import files, plain_text, record_fields, text_records

# The second is a name of the Leipzig corpora: deu_news_2023_10K-sentences.
_TEXT = re.compile(
  rf"(.+)\.({languages.PATTERN})\.(txt|jsonl?|csv|parquet)"
  r"|([a-z]{3})_(.+)-sentences\.txt"
)
# What comes with a Leipzig corpus.
_COMPANION = re.compile(
  r"[a-z]{3}_.+-(co_[ns]|inv_so|inv_w|meta|sources|words)\.txt"
  r"|[a-z]{3}_.+-import\.sql"
)
EXAMPLES = """\
Plain text is in one of these forms, in files that name its language:
  NAME.fi.txt                     Yksi lause.   (a sentence on each line)
  NAME.fi.txt                     1<tab>Yksi lause.   (Leipzig: numbered)
  fin_news_2023_10K-sentences.txt 1<tab>Yksi lause.
  NAME.fi.jsonl                   {"text": "Yksi lause."}
Records with the field "text" may be in .json, .jsonl, .csv or .parquet."""


def _lines(name: str, path: pathlib.Path, language: str) -> layout.Source:
  file = files.UnchangedFile(path)
  return layout.Source(
    name,
    (file,),
    (language,),
    lambda bad_records: plain_text.read(file, language, bad_records),
    lambda: "one sentence on each line",
  )


def _records(name: str, path: pathlib.Path, language: str) -> layout.Source:
  file = files.UnchangedFile(path)

  def kind() -> str:
    unused = ", ".join(
      map(record_fields.show, text_records.unused_fields(file))
    )
    return 'JSON with the field "text"' + (
      f" (not read: {unused})" if unused else ""
    )

  return layout.Source(
    name,
    (file,),
    (language,),
    lambda bad_records: text_records.read(file, language, bad_records),
    kind,
  )


def find(folder: pathlib.Path, names: layout.Names) -> list[layout.Source]:
  """Finds the plain text; none if there is no such folder.

  Raises:
    ValueError: for a file with another name.
  """
  sources = []
  for name, path in names.listed(folder).items():
    if match := _TEXT.fullmatch(name):
      source, code, ending, leipzig_code, leipzig_source = match.groups()
      make = _lines if ending in ("txt", None) else _records
      sources.append(
        make(source or leipzig_source, path, names.code(code or leipzig_code))
      )
    elif files.is_companion(name) or _COMPANION.fullmatch(name):
      names.not_read.append(path)
    else:
      raise ValueError(
        f"{path} is not named as the layout says; rename it or move it"
        f" elsewhere. {EXAMPLES}"
      )
  return sources
