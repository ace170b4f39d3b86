"""A store is built in shards: by any processes, with equal bytes."""

import functools
import itertools
import os
import pathlib
import re
import signal

import numpy as np
import pytest
import tiny

from mlir_jax import bars
from mlir_jax.data import (
  collections,
  preparation,
  records,
  store_writer,
)
from mlir_jax.data.shards import partition, pool, tokens


def open_folder(root, policy="error"):
  bad_records = records.BadRecords(policy)
  return collections.load("folder", root, bad_records), bad_records


@functools.cache
def recipe(root):
  """A tokenizer and a contract for a folder."""
  from mlir_jax.data import tokenizer as tokenizer_lib

  collection, _ = open_folder(root)
  tokenizer = tokenizer_lib.train(preparation.training_texts(collection), 200)
  contract = preparation.resolve_encoding(tiny.make_config(root), None)
  return tokenizer, contract.complete(tokenizer)


def build(
  root, path, shards=3, processes=1, policy="error", key="made", beam=None
):
  tokenizer, contract = recipe(root)
  collection, bad_records = open_folder(root, policy)
  return store_writer.build(
    path,
    collection,
    contract,
    tokenizer,
    pad_id=0,
    shuffle_parallel=False,
    seed=0,
    source=collection.fingerprint(),
    bad_records=bad_records,
    shards=shards,
    workers=store_writer.Workers(
      functools.partial(open_folder, root, policy), processes, key, beam
    ),
  )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return str(tiny.write_folder(tmp_path_factory.mktemp("data") / "data"))


def content(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in pathlib.Path(folder).rglob("*")
    if path.is_file()
  }


def rows(store):
  """All rows as texts' hashes, and the tokens, in an order of their own."""
  arrays = store.arrays
  queries = store.text_hashes("query", arrays["retrieval_queries"]).tolist()
  found = []
  for row, query in enumerate(queries):
    passages = []
    for kind in ("positive", "negative"):
      start, stop = arrays[f"retrieval_{kind}_offsets"][row : row + 2]
      texts = arrays[f"retrieval_{kind}s"][start:stop]
      passages.append(store.text_hashes("passage", texts).tolist())
    question = arrays["retrieval_questions"][row]
    start, stop = arrays["retrieval_known_offsets"][question : question + 2]
    passages.append(sorted(arrays["retrieval_known"][start:stop].tolist()))
    found.append((query, passages))
  sentences = [
    (
      store.text_hashes("sentence", arrays[f"{stream}_texts"][row]).tolist(),
      np.array(store.languages)[arrays[f"{stream}_languages"][row]].tolist(),
    )
    for stream in ("parallel", "monolingual")
    for row in range(store.rows(stream))
  ]
  tokens = set()
  for role in ("query", "passage", "sentence"):
    texts = np.arange(len(store.arrays[f"{role}_text_hashes"]))
    ids, mask = store.sequences(role, texts, 256)
    hashes = store.text_hashes(role, texts).tolist()
    for key, text, inside in zip(hashes, ids, mask, strict=True):
      tokens.add((role, key, tuple(text[inside].tolist())))
  return sorted(found), sorted(map(str, sentences)), tokens


def test_rows_do_not_depend_on_the_number_of_shards(root, tmp_path):
  one = build(root, tmp_path / "one", shards=1)
  many = build(root, tmp_path / "many", shards=5)
  assert rows(one) == rows(many)
  for stream in records.STREAMS:
    assert one.groups(stream) == many.groups(stream)
  assert (one.dropped, one.meta["notes"]) == (many.dropped, many.meta["notes"])
  # More shards than records of some language: some are empty.
  assert rows(build(root, tmp_path / "most", shards=40)) == rows(one)


@pytest.mark.slow
def test_a_store_has_the_same_bytes_for_any_number_of_processes(
  root, tmp_path, monkeypatch
):
  build(root, tmp_path / "one")
  monkeypatch.setattr(store_writer, "_MIN_BYTES", 0)
  build(root, tmp_path / "two", processes=2)
  assert content(tmp_path / "one") == content(tmp_path / "two")


@pytest.mark.slow
def test_a_workers_error_is_that_of_one_process(tmp_path, monkeypatch):
  root = tiny.write_folder(tmp_path / "data")
  build(str(root), tmp_path / "good")  # Makes the recipe.
  for name in ("mono/made.fi.txt", "parallel/made.en-de.de"):
    with open(root / name, "ab") as file:
      file.write(b"\xff\n")
  with open(root / "parallel/made.en-de.en", "a") as file:
    file.write("a sentence\n")
  with pytest.raises(records.RecordError) as one:
    build(str(root), tmp_path / "one")
  monkeypatch.setattr(store_writer, "_MIN_BYTES", 0)
  with pytest.raises(records.RecordError) as two:
    build(str(root), tmp_path / "two", processes=2)
  assert str(one.value) == str(two.value)
  assert "made.en-de.de:121: " in str(one.value)
  skipped = build(str(root), tmp_path / "2", processes=2, policy="skip")
  monkeypatch.undo()
  assert skipped.meta["bad_records"]["count"] == 2
  build(str(root), tmp_path / "1", policy="skip")
  assert content(tmp_path / "1") == content(tmp_path / "2")


def test_parts_that_share_a_file_are_one_job():
  def part(*names):
    return records.Part(tuple(map(pathlib.Path, names)), lambda _: iter(()))

  parts = {
    "retrieval": [part("a", "corpus"), part("b"), part("c", "corpus")],
    "parallel": [part("src", "de"), part("en", "fr"), part("src", "fr")],
    "monolingual": [part("d")],
  }
  assert partition.plan_jobs(parts) == [
    [("retrieval", 0), ("retrieval", 2)],
    [("retrieval", 1)],
    [("parallel", 0), ("parallel", 1), ("parallel", 2)],
    [("monolingual", 0)],
  ]


def test_records_are_spilled_and_read_unchanged(tmp_path):
  place = records.Place("a\nb.jsonl", 3, 2)
  passages = (records.Passage("a\u2028\n\x00b", 'a "title"', "id"),)
  made = {
    "retrieval": [
      records.RetrievalRecord("q", passages, passages, "fi", place, "p", "s"),
      records.RetrievalRecord("q", passages),
    ],
    "parallel": [records.ParallelRecord("a", "ä", "en", "de", "s")],
    "monolingual": [records.MonolingualRecord("𝄞", "fi")],
  }
  collection = records.Collection(
    "made",
    *(lambda stream=stream: made[stream] for stream in records.STREAMS),
    *(tuple, tuple, {}, str, tuple),
  )
  jobs = partition.plan_jobs(partition.parts_of(collection))
  folders = [str(tmp_path / str(i)) for i in range(len(jobs))]
  for job, folder in zip(jobs, folders, strict=True):
    partition.spill(
      lambda: (collection, records.BadRecords()),
      *(job, folder, 1),
      progress=lambda _: None,
    )
  for stream, expected in made.items():
    found = list(partition.read_shard(folders, stream, 0))
    assert found == expected
    assert [r.source_name for r in found] == [r.source_name for r in expected]
  first = next(partition.read_shard(folders, "retrieval", 0))
  assert first.place == place


def test_records_are_spread_evenly_over_shards():
  spread = [partition.shard_of("parallel", 0, n, 7) for n in range(7000)]
  counts = np.bincount(spread)
  assert counts.min() > 850 and counts.max() < 1150
  other = [partition.shard_of("parallel", 1, n, 7) for n in range(7000)]
  assert spread != other


def anonymous_bytes():
  """The memory of this process that no file backs."""
  status = pathlib.Path("/proc/self/status").read_text()
  return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])


def test_memory_stays_flat_while_all_tokens_are_read(tmp_path):
  """A store may be larger than the memory."""
  sizes = [12_000_000, 0, 13_000_000]  # 100 MB.
  for number, size in enumerate(sizes):
    np.save(tmp_path / f"{number}.npy", np.arange(size, dtype=np.int32))
  found = tokens.ShardedTokens(
    sizes, lambda number: np.load(tmp_path / f"{number}.npy", mmap_mode="r")
  )
  mask = np.ones((1000, 100), bool)
  before = anonymous_bytes()
  total = 0
  for start in range(0, len(found), mask.size):
    starts = np.arange(start, start + mask.size, mask.shape[1])
    total += int(found.take(starts, mask).sum(dtype=np.int64))
  assert total == sum(size * (size - 1) // 2 for size in sizes)
  assert anonymous_bytes() - before < 20e6


def _work(number, *, progress):
  progress(1)
  if number == 3:
    os.kill(os.getpid(), signal.SIGKILL)
  return number


@pytest.mark.slow
def test_a_killed_worker_is_an_error_that_says_what_to_do():
  with pytest.raises(MemoryError, match="--workers=1"):
    pool.run(_work, [(n,) for n in range(6)], 2, bars.bar(unit="job"))


def build_killed(root, path, moves, after):
  """Builds in a fork that is killed when it renames for the n-th time.

  Args:
    root: The collection.
    path: The store.
    moves: n.
    after: Whether it is killed after it has renamed, or before.

  Returns:
    Whether it was killed.
  """
  child = os.fork()
  if child:
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status < 0
  os.environ["TOKENIZERS_PARALLELISM"] = "false"  # A fork has one thread.
  done = []

  def killing(move, *paths):
    if str(paths[0]).endswith(".npy"):  # In a folder that has no name yet.
      move(*paths)
      return
    done.append(paths)
    if len(done) < moves or after:
      move(*paths)
    if len(done) == moves:
      os.kill(os.getpid(), signal.SIGKILL)

  for name in ("rename", "replace"):
    setattr(os, name, functools.partial(killing, getattr(os, name)))
  try:
    build(root, path, shards=6)
    os._exit(0)
  finally:
    os._exit(1)


@pytest.mark.slow
def test_a_build_that_is_killed_at_any_place_goes_on_with_equal_bytes(
  root, tmp_path
):
  expected = build(root, tmp_path / "whole", shards=6)
  store = tmp_path / "store"
  kills = 0
  # A file that is read takes two: its meta.json, then its folder.
  places = itertools.cycle([(1, False), (1, True), (2, False), (2, True)])
  while not store.exists():
    kills += build_killed(root, store, *next(places))
  assert kills >= 20
  assert content(store) == content(expected.path)
  # Only the folder of the last kill is left, without what was needed.
  left = {each.name for each in tmp_path.iterdir()} - {"whole", "store"}
  assert left <= {".store.unfinished"}
  assert not list(tmp_path.glob(".store.unfinished/needed/*"))
