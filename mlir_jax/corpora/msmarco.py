"""Makes an English collection from MS MARCO's passages (Bajaj et al. 2016).

The archive has passages, queries and judgements in tables, for training and for
a small development part. Each judged pair of the training part is a pair of
ir/, without hard negatives. The development part is the test, over all 8.8
million passages.
"""

import io
import pathlib
import tarfile
from collections.abc import Iterator

from mlir_jax import bars
from mlir_jax.corpora import corpus, damage, downloads, layout
from mlir_jax.data import records
from mlir_jax.storage import reading

_NAME = "collectionandqueries.tar.gz"
_PASSAGES = "collection.tsv"


def list_files(
  request: corpus.Request, folder: pathlib.Path
) -> Iterator[downloads.File]:
  """Yields the archive."""
  del folder
  yield downloads.File(f"{request.base}/{_NAME}", _NAME)


def build(
  request: corpus.Request, raw: pathlib.Path, folder: pathlib.Path
) -> list[str]:
  """Writes the collection; see `corpus.Corpus`.

  It reads the archive twice. Memory holds the passages that are judged.
  """
  del request
  path = raw / _NAME
  queries, judged = _read_queries(path)
  wanted = {passage_id for _, passage_id in judged["train"]}
  texts: dict[str, str] = {}

  def passages() -> Iterator[records.Passage]:
    for passage_id, text in _read_passages(path):
      if passage_id in wanted:
        texts[passage_id] = text
      yield records.Passage(text, "", passage_id)

  relevant: dict[str, list[str]] = {}
  for query_id, passage_id in judged["dev.small"]:
    relevant.setdefault(query_id, []).append(passage_id)
  of_test = [
    layout.Query(query_id, queries["dev.small"][query_id], tuple(found))
    for query_id, found in relevant.items()
  ]
  count = layout.write_test(folder, "en", passages(), {"test": of_test})
  if missing := wanted - texts.keys():
    raise reading.UnreadableError(
      f"{path}: {_PASSAGES} lacks {len(missing):,} passages that are judged."
      f" {damage.MEND}"
    )
  pairs = layout.write_pairs(
    folder,
    "msmarco",
    (
      (
        queries["train"][query_id],
        records.Passage(texts[passage_id], "", passage_id),
      )
      for query_id, passage_id in judged["train"]
    ),
  )
  return [
    f"ir: {pairs:,} pairs",
    f"eval/en: {count:,} passages, {len(of_test):,} test queries",
  ]


def _read_queries(
  path: pathlib.Path,
) -> tuple[dict[str, dict[str, str]], dict[str, list[tuple[str, str]]]]:
  """Reads the small tables.

  Returns:
    Split to query id to query; and split to (query id, id of a relevant
    passage), of the queries that are there.
  """
  queries, judged = {}, {}
  for split in ("train", "dev.small"):
    queries[split], judged[split] = {}, []
  with damage.open_tar(path) as archive:
    for member, lines in _tables(archive):
      split = member.partition(".")[2].removesuffix(".tsv")
      if split not in queries:
        continue
      if member.startswith("queries."):
        for number, line in enumerate(lines, start=1):
          query_id, text = _columns(line, 2, path, member, number)
          queries[split][query_id] = layout.one_line(text)
      elif member.startswith("qrels."):
        for number, line in enumerate(lines, start=1):
          query_id, _, passage_id, _ = _columns(line, 4, path, member, number)
          judged[split].append((query_id, passage_id))
  for split, found in judged.items():
    judged[split] = [pair for pair in found if pair[0] in queries[split]]
    if not judged[split]:
      raise reading.UnreadableError(
        f"{path} has no judged query of {split}. {damage.MEND}"
      )
  return queries, judged


def _read_passages(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  with damage.open_tar(path) as archive:
    for member, lines in _tables(archive):
      if member == _PASSAGES:
        for number, line in enumerate(
          bars.bar(lines, _PASSAGES, unit="passage", delay=2), start=1
        ):
          passage_id, text = _columns(line, 2, path, member, number)
          yield passage_id, layout.one_line(text)


def _columns(
  line: str, count: int, path: pathlib.Path, member: str, number: int
) -> list[str]:
  columns = line.rstrip("\n").split("\t")
  if len(columns) != count:
    raise reading.UnreadableError(
      f"{path}: {member}:{number} has {len(columns)} columns, not {count}."
      f" {damage.MEND}"
    )
  return columns


def _tables(
  archive: tarfile.TarFile,
) -> Iterator[tuple[str, io.TextIOWrapper]]:
  """Yields the name and the lines of each file, one file at a time."""
  for member in archive:
    if member.isfile():
      file = archive.extractfile(member)
      assert file  # Since it is a file.
      name = pathlib.PurePosixPath(member.name).name
      yield name, io.TextIOWrapper(file, encoding="utf-8", newline="\n")
