"""Builds the token store of a collection, whole or not at all."""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from mlir_jax import bars
from mlir_jax import contract as contract_lib
from mlir_jax.data import (
  records,
  store_index,
  store_join,
  store_shuffling,
  store_texts,
  token_store,
)
from mlir_jax.data.shards import beam_runner, partition, pool, tokens
from mlir_jax.data.shards import shard as shard_lib
from mlir_jax.storage import writing

# Below it, starting a process takes longer than the work.
_MIN_BYTES = 4_000_000


class Workers(NamedTuple):
  """Who makes the shards.

  Attributes:
    open_collection: Opens the collection in another process. It is pickled.
    processes: The number of processes of this machine.
    key: Names all that the store's bytes depend on. What a killed build with
      the same key has done stays.
    beam: The flags of Apache Beam, which then does the work; None for no Beam.
  """

  open_collection: partition.Opener
  processes: int
  key: str
  beam: str | None = None


def build(
  path: str | os.PathLike,
  collection: records.Collection,
  contract: contract_lib.EncodingContract,
  tokenizer: tokenizers.Tokenizer,
  pad_id: int,
  *,
  shuffle_parallel: bool,
  seed: int,
  source: str,
  bad_records: records.BadRecords | None = None,
  shards: int = 1,
  workers: Workers | None = None,
) -> token_store.TokenStore:
  """Tokenizes a collection's three streams into a store.

  The store is whole or not there: see `writing.folder_aside`. Rows are grouped
  by language; within a language they keep the collection's order.

  Two texts are the same if the tokens of their stripped bodies (title, joiner
  and text) are equal, before prefix or prompt, special tokens and truncation.
  So "Oslo" and full-width "Oslo" are the same if the tokenizer gives both the
  same tokens. They then have one text hash. Texts that become equal in a role
  when they are cut have one sequence hash there: see `batches.identity`.

  Left out and counted: parallel pairs with identical sides, repeated
  parallel pairs of one language pair (in either direction), hard negatives
  without text, and hard negatives that are encoded like a positive of their
  question in any row (FlagEmbedding#850). The sides of a parallel pair are
  sorted by language.

  A passage id does not identify a text, because many files count from 0
  (DPR#243). An id with two texts in one file is an error, or is counted.

  Args:
    path: The store's folder; it may not exist.
    collection: The collection.
    contract: The encoding contract; it was made with `tokenizer`.
    tokenizer: The tokenizer.
    pad_id: The id with which sequences will be padded.
    shuffle_parallel: Control experiment: within each language pair, every
      sentence gets a partner that is not its translation.
    seed: Seed of that shuffling; not used otherwise.
    source: The collection's fingerprint.
    bad_records: Receives the collection's bad records. Earlier counts are
      dropped, because a tokenizer may have read the same streams. The counts of
      this build are stored, then dropped. Its policy holds for passage ids with
      two texts, too.
    shards: The number of shards; the store's bytes depend on it.
    workers: Who does the work, and where they go on after a kill. Without
      them, this process does all, and nothing is left after a kill.

  Returns:
    The open store.

  Raises:
    FileExistsError: if `path` exists.
    ValueError: if the contract was made with another tokenizer, a record cannot
      be used, or a language pair has too few pairs to be shuffled.
    RecordError: for a passage id with two texts; it names both places.
  """
  path = pathlib.Path(path)
  if path.exists():
    raise FileExistsError(
      f"{path} exists: open it with TokenStore.open, or delete it."
    )
  _check_tokenizer(tokenizer, contract, pad_id)
  bad_records = bad_records or records.BadRecords()
  bad_records.drain()
  meta = {}
  try:
    with _folders(path, workers) as (content, needed):
      meta_file = content / "meta.json"
      if not meta_file.exists():
        made = _make_shards(
          collection,
          bad_records,
          content,
          needed,
          shards,
          workers,
          shard_lib.Recipe(contract, tokenizer.to_str()),
        )
        shuffle_seed = seed if shuffle_parallel else None
        meta = _join(content, shards, shuffle_seed, bad_records) | made
        meta |= {
          "collection": collection.name,
          "contract": contract.to_dict(),
          "pad_id": pad_id,
          "source": source,
        }
        # A kill leaves no part of it in the store.
        aside = needed / "meta.json"
        aside.write_text(
          json.dumps(token_store.sealed(meta), indent=2, ensure_ascii=False),
          encoding="utf-8",
        )
        os.replace(aside, meta_file)
      meta = token_store.read_meta(meta_file)
      store_texts.parse_tokenizer.cache_clear()
      for folder in _shard_folders(content, shards):
        shutil.rmtree(shard_lib.rows_folder(folder), ignore_errors=True)
      for left in content.glob(".*.tmp"):  # Of killed processes.
        shutil.rmtree(left, ignore_errors=True)
  except writing.TakenError:
    # Another process may have built the same store in the meantime.
    built = token_store.TokenStore.open(path)
    if meta and built.fingerprint != meta["fingerprint"]:
      raise
    return built
  # With workers, a killed process may have written some of the arrays.
  return token_store.TokenStore.open(path, just_built=workers is None)


@contextlib.contextmanager
def _folders(
  path: pathlib.Path, workers: Workers | None
) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
  """Makes the folder of the store, and one for what it does not keep."""
  if workers:
    with writing.folder_resumed(path, workers.key) as folders:
      yield folders
    return
  with (
    writing.folder_aside(path) as content,
    tempfile.TemporaryDirectory(dir=content.parent) as needed,
  ):
    yield content, pathlib.Path(needed)


def _shard_folders(content: pathlib.Path, shards: int) -> list[pathlib.Path]:
  return [content / tokens.folder_name(number) for number in range(shards)]


def _make_shards(
  collection: records.Collection,
  bad_records: records.BadRecords,
  content: pathlib.Path,
  needed: pathlib.Path,
  shards: int,
  workers: Workers | None,
  recipe: shard_lib.Recipe,
) -> dict[str, Any]:
  """Makes the folders of the shards in `content`.

  Returns:
    The fields of meta.json that say what was read.
  """
  parts = partition.parts_of(collection)
  jobs = partition.plan_jobs(parts)
  folders = [str(needed / f"{number:05}") for number in range(len(jobs))]
  files = {
    os.fspath(file): file
    for each in parts.values()
    for part in each
    for file in part.files
  }
  shard_folders = [str(folder) for folder in _shard_folders(content, shards)]
  if workers and workers.beam is not None:
    beam_runner.run(
      workers.open_collection,
      jobs,
      str(needed),
      recipe,
      shard_folders,
      workers.beam,
    )
  else:
    open_collection, processes = lambda: (collection, bad_records), 1
    size = sum(map(os.path.getsize, files))
    if workers and collection.parts is not None and size >= _MIN_BYTES:
      open_collection, processes = workers.open_collection, workers.processes
    pool.run(
      partition.spill,
      [
        (open_collection, job, folder, shards)
        for job, folder in zip(jobs, folders, strict=True)
      ],
      processes,
      bars.bar(None, f"{collection.name}: reading", unit=" records"),
    )
  found = [partition.read_meta(folder) for folder in folders]
  for each in found:
    # Between its hash and its reading, a file may have changed.
    for name, sha256 in each["files"].items():
      if sha256:
        files[name].check(sha256)
  if not workers or workers.beam is None:
    size = sum(path.stat().st_size for path in needed.rglob("*.jsonl"))
    pool.run(
      shard_lib.make,
      [
        (recipe, folders, number, folder)
        for number, folder in enumerate(shard_folders)
      ],
      workers.processes if workers and size >= _MIN_BYTES else 1,
      bars.bar(
        None,
        f"{collection.name}: tokenizing",
        unit=" records",
        total=sum(sum(each["records"]) for each in found),
      ),
    )
  return {
    "bad_records": records.merge_bad(each["bad_records"] for each in found),
    "notes": [line for each in found for line in each["notes"]],
    "files": {
      name: file.sha256 or file.read_hash()
      for name, file in collection.files.items()
    },
    "report_groups": dict(collection.groups),
  }


def _join(
  content: pathlib.Path,
  shards: int,
  shuffle_seed: int | None,
  bad_records: records.BadRecords,
) -> dict[str, Any]:
  """Joins the shards and writes the arrays of all; returns their meta.json."""
  folders = _shard_folders(content, shards)
  read = [shard_lib.read_rows(folder) for folder in folders]
  joined = store_join.join(read, bad_records)
  first = store_index.write_texts(content, folders)
  streams = store_index.merge(joined.shards, first)
  if shuffle_seed is not None:
    streams["parallel"] = store_shuffling.shuffle(
      streams["parallel"],
      np.load(content / "sentence_text_hashes.npy", mmap_mode="r"),
      shuffle_seed,
    )
  for stream, (arrays, _) in streams.items():
    for name, values in arrays.items():
      np.save(content / f"{stream}_{name}.npy", values)
  known_offsets = streams["retrieval"].arrays["known_offsets"]
  described = {
    path.stem: shard_lib.describe_array(path)
    for path in sorted(content.glob("*.npy"))
  }
  for folder in folders:
    for name, array in shard_lib.read_meta(folder)["arrays"].items():
      described[f"{folder.name}/{name}"] = array
  return {
    "format": token_store.FORMAT,
    "languages": list(joined.languages),
    "max_positives": int(np.diff(known_offsets).max(initial=0)),
    "shuffled_by": shuffle_seed,
    "groups": {
      stream: [group._asdict() for group in found.groups]
      for stream, found in streams.items()
    },
    "dropped": joined.dropped,
    "truncation": _add_up([shard.truncation for shard in read]),
    "shards": shards,
    "arrays": described,
  }


def _add_up(
  truncation: Sequence[Mapping[str, Mapping[str, Sequence[int]]]],
) -> dict[str, dict[str, list[int]]]:
  """Adds up role to language to [strings cut, all strings] of all shards."""
  total = {role: {} for role in contract_lib.ROLES}
  for of_shard in truncation:
    for role, languages in of_shard.items():
      for language, (cut, count) in languages.items():
        found = total[role].setdefault(language, [0, 0])
        found[0] += cut
        found[1] += count
  return total


def _check_tokenizer(
  tokenizer: tokenizers.Tokenizer,
  contract: contract_lib.EncodingContract,
  pad_id: int,
) -> None:
  if contract_lib.fingerprint(tokenizer) != contract.tokenizer_fingerprint:
    raise ValueError("The encoding contract was made with another tokenizer.")
  if not 0 <= pad_id < tokenizer.get_vocab_size():
    raise ValueError(f"pad_id is {pad_id}; the tokenizer has no such token.")
