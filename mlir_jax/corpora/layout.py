"""Writes the files of a collection, in the layout of docs/data.md.

Equal content gives equal bytes: the gzip files hold no time and no name.
"""

import contextlib
import gzip
import io
import json
import pathlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TextIO

from mlir_jax.data import records


class Query(NamedTuple):
  """A query of a test, and the ids of its relevant passages."""

  query_id: str
  text: str
  relevant: tuple[str, ...]


def one_line(text: str) -> str:
  """Returns a text with single spaces in place of all white space."""
  return " ".join(text.split())


def same(text: str) -> str:
  """Returns a form that is the same for texts that differ little.

  They may differ in case, in white space, and in how a character is encoded.
  """
  if not text.isascii():
    text = unicodedata.normalize("NFKC", text)
  return one_line(text).casefold()


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[TextIO]:
  """Opens a gzipped text file; its folder is made if missing."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with (
    open(path, "wb") as raw,
    gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as zipped,
    io.TextIOWrapper(zipped, encoding="utf-8", newline="\n") as file,
  ):
    yield file


def write_lines(path: pathlib.Path, lines: Iterable[str]) -> int:
  """Writes lines to a gzipped file; returns how many there are."""
  count = 0
  with writing(path) as file:
    for line in lines:
      file.write(f"{line}\n")
      count += 1
  return count


def write_pairs(
  folder: pathlib.Path,
  name: str,
  pairs: Iterable[tuple[str, records.Passage]],
) -> int:
  """Writes question-passage pairs as ir/NAME-train.json.gz, DPR's JSON.

  Returns:
    Their number.
  """
  count = 0
  with writing(folder / "ir" / f"{name}-train.json.gz") as file:
    file.write("[")
    for count, (question, passage) in enumerate(pairs, start=1):
      record = {
        "dataset": name,
        "question": question,
        "answers": [],
        "positive_ctxs": [
          {
            "title": passage.title,
            "text": passage.text,
            "passage_id": passage.passage_id,
          }
        ],
        "negative_ctxs": [],
        "hard_negative_ctxs": [],
      }
      file.write(",\n" if count > 1 else "\n")
      file.write(json.dumps(record, ensure_ascii=False))
    file.write("\n]\n")
  return count


def write_parallel(
  folder: pathlib.Path,
  name: str,
  languages: tuple[str, str],
  pairs: Iterable[tuple[str, str]],
) -> int:
  """Writes translations as parallel/NAME.A-B.{A,B}.gz; returns their number."""
  first, second = (
    folder / "parallel" / f"{name}.{'-'.join(languages)}.{language}.gz"
    for language in languages
  )
  count = 0
  with writing(first) as first_file, writing(second) as second_file:
    for source, target in pairs:
      first_file.write(f"{source}\n")
      second_file.write(f"{target}\n")
      count += 1
  return count


def write_monolingual(
  folder: pathlib.Path, name: str, language: str, sentences: Iterable[str]
) -> int:
  """Writes mono/NAME.XX.txt.gz; returns the number of sentences."""
  return write_lines(folder / "mono" / f"{name}.{language}.txt.gz", sentences)


def write_test(
  folder: pathlib.Path,
  language: str,
  passages: Iterable[records.Passage],
  queries: Mapping[str, Iterable[Query]],
  paragraphs: Mapping[str, str] | None = None,
) -> int:
  """Writes a test as eval/XX, in the layout of Mr. TyDi.

  Args:
    folder: The folder of the collection.
    language: The language's code.
    passages: Each has an id.
    queries: Split ("test", "dev") to its queries.
    paragraphs: Passage id to the id of the paragraph that it is from; it is
      written in a field of its own, "paragraph".

  Returns:
    The number of passages.
  """
  of_language = folder / "eval" / language

  def passage_lines():
    for passage in passages:
      title = f"{passage.title}\n\n" if passage.title else ""
      line = {"id": passage.passage_id, "contents": f"{title}{passage.text}"}
      if paragraphs:
        line["paragraph"] = paragraphs[passage.passage_id]
      yield json.dumps(line, ensure_ascii=False)

  count = write_lines(
    of_language / "collection" / "docs.jsonl.gz", passage_lines()
  )
  for split, of_split in queries.items():
    of_split = list(of_split)
    write_lines(
      of_language / f"topic.{split}.tsv.gz",
      (f"{query.query_id}\t{query.text}" for query in of_split),
    )
    write_lines(
      of_language / f"qrels.{split}.txt.gz",
      (
        f"{query.query_id} Q0 {passage_id} 1"
        for query in of_split
        for passage_id in query.relevant
      ),
    )
  return count
