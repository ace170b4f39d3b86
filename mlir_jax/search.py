"""Searches an index of passages: queries in, a TREC run out.

python -m mlir_jax.search --index=FOLDER --queries=topics.tsv --output=run.trec

The index is a folder that `mlir_jax.encode` wrote, or one of pyserini's. The
queries are encoded with the model that the index names, or with --model. A
model that encodes in another way than the passages were encoded is refused.

--queries is one of these:
  a file of queries with ids, as for `mlir_jax.encode`: topics (id, tab, query),
  BEIR's queries.jsonl, a table, XQuAD-R; or plain text, where the number of a
  line is the id
  a folder that `mlir_jax.encode --role=query` wrote
  vectors, float [Q, D] in a .npy file; --query_ids names a file with an id on
  each line

The search is exact, also with --precision=int8, which needs a quarter of the
memory of the devices. Passages that they cannot hold are read from the disk,
piece by piece. Several processes (--distributed) share the work; each of them
needs the index and the queries.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from absl import flags

from mlir_jax import contract as contract_lib
from mlir_jax.command_line import (
  index_flags,
  process_flags,
  program,
  shared_flags,
)
from mlir_jax.data import records
from mlir_jax.data.sources import id_texts
from mlir_jax.storage import locations, reading

if TYPE_CHECKING:
  from mlir_jax.retrieval import index as index_lib
  from mlir_jax.retrieval import vector_folder


class _Queries(NamedTuple):
  """The queries: texts, or vectors of texts that were encoded before.

  Attributes:
    ids: Their ids.
    texts: The texts; None if there are vectors.
    vectors: float32 [Q, D]; None if there are texts.
  """

  ids: Sequence[str]
  texts: Sequence[str] | None
  vectors: np.ndarray | None


class _Run(Mapping):
  """The results as a TREC run; the results of a query are made when asked for.

  A dictionary of all of them would take some gigabytes for many queries.
  """

  def __init__(
    self,
    query_ids: Sequence[str],
    passage_ids: Sequence[str],
    scores: np.ndarray,
    ranks: np.ndarray,
  ):
    self._numbers = {name: number for number, name in enumerate(query_ids)}
    self._passage_ids = passage_ids
    self._scores = scores
    self._ranks = ranks

  def __len__(self) -> int:
    return len(self._numbers)

  def __iter__(self) -> Iterator[str]:
    return iter(self._numbers)

  def __getitem__(self, query_id: str) -> dict[str, float]:
    number = self._numbers[query_id]
    scores = self._scores[number].tolist()
    return {
      self._passage_ids[int(rank)]: score
      for rank, score in zip(self._ranks[number], scores, strict=True)
    }


def _read_vectors(path: str, ids_path: str | None) -> _Queries:
  """Reads the vectors of a .npy file.

  Raises:
    ValueError: if a file is damaged, or there are more or fewer ids than rows.
  """
  reading.check_file(path)
  try:
    vectors = np.load(path, mmap_mode="r", allow_pickle=False)
  except (ValueError, EOFError, OSError) as error:
    raise ValueError(
      f"{path} is not a .npy file of vectors: {error}."
    ) from error
  if vectors.ndim != 2 or vectors.dtype.kind != "f":
    raise ValueError(
      f"{path} holds {vectors.dtype} {list(vectors.shape)}; it must be an array"
      " of floats, [queries, width]."
    )
  if ids_path is None:
    return _Queries(
      [str(number) for number in range(1, len(vectors) + 1)], None, vectors
    )
  ids = [
    text.text
    for text in id_texts.read(
      ids_path, "lines", records.BadRecords("error", "--on_bad_record"), "query"
    )
  ]
  if len(ids) != len(vectors):
    raise ValueError(
      f"{ids_path} has {len(ids):,} lines, but {path} has"
      f" {len(vectors):,} vectors; give an id for each."
    )
  _check_ids(ids, ids_path)
  return _Queries(ids, None, vectors)


def _check_ids(ids: Sequence[str], path: str) -> None:
  """Refuses ids that cannot be in a TREC run; it names the line."""
  lines: dict[str, int] = {}
  for line, name in enumerate(ids, start=1):
    if len(name.split()) != 1:
      raise ValueError(
        f"{path}:{line}: id: {name!r} is empty or holds white space, which"
        " separates the columns of a run."
      )
    if name in lines:
      raise ValueError(
        f"{path}:{line}: id: {name!r} is in line {lines[name]}, too; give each"
        " query an id of its own."
      )
    lines[name] = line


def _read_folder(path: str, passages: "vector_folder.VectorFolder") -> _Queries:
  """Reads the queries that `encode --role=query` wrote.

  Raises:
    ValueError: if they are not queries, or a file is damaged.
    ContractMismatchError: if they were encoded in another way than the
      passages; it names the field.
  """
  from mlir_jax.retrieval import vector_folder

  found = vector_folder.read(path)
  if found.role not in ("", "query"):
    raise ValueError(
      f"{path} holds texts of the role {found.role!r}; encode the queries with"
      " --role=query."
    )
  if found.contract and passages.contract:
    # Each folder has used the prefix of its own role alone.
    theirs = passages.contract.with_prefixes_of(
      found.contract, contract_lib.ROLES
    )
    contract_lib.check_same(found.contract, theirs, passages.path)
  vectors = np.concatenate([np.asarray(b, np.float32) for b in found.blocks])
  return _Queries(list(found.ids), None, vectors)


def _read_texts(path: str, format_name: str | None, policy: str) -> _Queries:
  """Reads a file of queries in any format that `encode` reads.

  Raises:
    RecordError: for a bad record, if the policy is "error"; it names the place.
    ValueError: if there are no queries, or two have one id.
  """
  from mlir_jax.data import id_sources

  bad_records = records.BadRecords(policy, "--on_bad_record")
  sources = id_sources.from_files([path], "query", format_name)
  id_sources.check(sources, "query", bad_records)
  if bad_records.count:
    print(records.describe_bad("query", bad_records.drain()))
  found = list(id_sources.read_all(sources, records.BadRecords("skip")))
  return _Queries(
    [each.text_id for each in found], [each.text for each in found], None
  )


def _describe(index: "index_lib.Index", queries: int, path: str, k: int) -> str:
  found = min(k, len(index.passage_ids))
  return (
    f"Wrote {path}: {found:,} of {len(index.passage_ids):,} passages for each"
    f" of {queries:,} queries, by {index.similarity}."
  )


def main():
  """Searches as the flags say."""
  process_flags.join()
  from mlir_jax.hosts import multihost
  from mlir_jax.retrieval import runs, vector_folder

  output = locations.absolute(_OUTPUT.value)
  queries_path = locations.absolute(_QUERIES.value)
  is_array = queries_path.endswith(".npy")
  if _QUERY_IDS.value and not is_array:
    raise ValueError("--query_ids needs --queries=FILE.npy.")
  if not os.path.exists(queries_path):
    raise FileNotFoundError(f"There is no {queries_path} (--queries).")
  if multihost.is_first():
    if os.path.isdir(output):
      raise ValueError(f"--output={output} is a folder: name the file.")
    locations.check_output(os.path.dirname(output), f"--output={output}")
  passages = vector_folder.read(_INDEX.value)
  model: Any = None
  if is_array:
    queries = _read_vectors(queries_path, _QUERY_IDS.value)
  elif os.path.isdir(queries_path):
    queries = _read_folder(queries_path, passages)
  else:
    queries = _read_texts(queries_path, _FORMAT.value, _ON_BAD_RECORD.value)
    model = index_flags.load_model(passages, _MODEL.value)
  multihost.check_in(
    "search", {"queries": len(queries.ids), "passages": len(passages.ids)}
  )
  memory = _DEVICE_MEMORY.value
  index = index_flags.load_index(
    passages, model, None if memory is None else int(memory * 2**30)
  )
  vectors = queries.vectors
  if vectors is None:
    model.check_role("query")
    vectors = model.text_encoder.encode(
      model.params, "query", queries.texts, progress="query texts"
    )
    if cut := model.text_encoder.describe_truncation():
      print(cut)
  if index.held < 1:
    print(
      f"The devices hold {index.held:.0%} of the passages; the others are read"
      " from the disk."
    )
  scores, ranks = index.search_ranks(vectors, _K.value)
  if index.unproved and multihost.is_first():
    print(
      f"{index.unproved:,} of {len(queries.ids):,} queries had to be searched"
      " in float32: their best passages are too close for int8."
    )
  if multihost.is_first():
    run = _Run(queries.ids, index.passage_ids, scores, ranks)
    runs.write_run(output, run, _RUN_TAG.value)
    print(_describe(index, len(queries.ids), output, _K.value))


if __name__ == "__main__":
  _INDEX = shared_flags.define_path(
    "index", "The folder of the passages' vectors, of `encode` or pyserini."
  )
  _QUERIES = shared_flags.define_path(
    "queries", "A file of queries, a folder of encoded queries, or a .npy file."
  )
  _OUTPUT = shared_flags.define_path("output", "The TREC run to write.")
  _MODEL = shared_flags.define_path(
    "model",
    "Encodes the queries: a run's folder, an export, a sentence-transformers"
    " folder or a name on the Hugging Face hub. By default the model that the"
    " index names.",
  )
  index_flags.define()
  _QUERY_IDS = shared_flags.define_path(
    "query_ids",
    "The ids of the vectors in a .npy file, one on each line; by default their"
    " numbers, from 1.",
  )
  _FORMAT = flags.DEFINE_enum(
    "format",
    None,
    id_texts.FORMATS,
    "What the file of queries holds; by default, its name and first record tell"
    " it.",
  )
  _ON_BAD_RECORD = flags.DEFINE_enum(
    "on_bad_record",
    "error",
    ("error", "skip"),
    "What to do with bad queries: stop, or skip and count them.",
  )
  _K = flags.DEFINE_integer(
    "k", 100, "Passages for each query.", lower_bound=1, upper_bound=1_000_000
  )
  _RUN_TAG = flags.DEFINE_string(
    "run_tag", "mlir_jax", "The name of the run, the last column of its file."
  )
  _DEVICE_MEMORY = flags.DEFINE_float(
    "device_memory_gib",
    None,
    "GiB of each device that passages may take; by default half of what is"
    " free. Other passages are read from the disk for each search.",
    lower_bound=0.0,
  )
  process_flags.define()
  program.start(main, required=("index", "queries", "output"))
