"""Vectors with their ids are written shard by shard, and read whole or not."""

import contextlib
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import object_store
import pytest

from mlir_jax import export, lock
from mlir_jax.data import id_sources, records, unique_ids
from mlir_jax.retrieval import (
  collection_encoding,
  encoding,
  vector_folder,
  vector_writer,
)
from mlir_jax.storage import full_disk, reading

SHARD = 3
CONTRACT = {
  "pooling": "mean",
  "normalize": False,
  "title_joiner": " | ",
  **{
    role: {"prefix": "", "max_length": 8, "tower": "passage"}
    for role in ("query", "passage", "sentence")
  },
  "tokenizer_fingerprint": "",
  "golden_ids": [],
  "prompts": {},
}
SETTINGS = {
  "role": "passage",
  "prompt": "",
  "dtype": "float32",
  "similarity": "dot",
  "contract": CONTRACT,
  "model": {"fingerprint": "0"},
}


def write_docs(path, count=8, length=None):
  lines = (
    json.dumps({"id": f"d{n}", "contents": f"T{n}\n\n{'x' * (length or n)}y"})
    for n in range(count)
  )
  path.write_text("".join(f"{line}\n" for line in lines))
  return path


def embed(texts, titles, **_):
  """A model's substitute: the lengths of a text and its title, and 0.5."""
  for text, title in zip(texts, titles, strict=True):
    yield np.array([[len(text), len(title), 0.5]], np.float32)


def encode(docs, folder, embed=embed, **settings):
  sources = id_sources.from_files([str(docs)], "passage")
  bad_records = records.BadRecords()
  count = id_sources.check(sources, "passage", bad_records)
  described = [source.describe() for source in sources]
  settings = SETTINGS | {"sources": described} | settings
  with vector_writer.opened(str(folder), settings, {}) as writer:
    if not writer.complete:
      collection_encoding.encode(
        embed,
        id_sources.read_all(sources, bad_records),
        count,
        done=writer.rows,
        add=lambda vectors, ids: writer.add(vectors, ids, 1),
        role="passage",
        shard=SHARD,
      )
      writer.finish()
  return writer


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def docs(tmp_path):
  return write_docs(tmp_path / "docs.jsonl")


@pytest.fixture
def folder(docs, tmp_path):
  encode(docs, tmp_path / "index")
  return tmp_path / "index"


def test_what_was_written_is_read_in_the_order_of_the_file(folder):
  found = vector_folder.read(folder)
  assert list(found.ids) == [f"d{n}" for n in range(8)]
  assert found.ids[-1] == "d7" and found.ids[2:4] == ["d2", "d3"]
  assert found.shape == (8, 3)
  assert [block.shape for block in found.blocks] == [(3, 3), (3, 3), (2, 3)]
  assert all(isinstance(block, np.memmap) for block in found.blocks)
  rows = np.concatenate(found.blocks[:])
  expected = [[n + 1, 2, 0.5] for n in range(8)]  # Titles are apart.
  np.testing.assert_array_equal(rows, expected)
  assert (found.similarity, found.role) == ("dot", "passage")
  assert found.contract and found.contract.title_joiner == " | "
  assert found.manifest["cut"] == 3  # One in each shard.
  assert not (folder / lock.FILE).exists()


def test_float16_is_half_the_size_and_refuses_what_it_cannot_hold(
  docs, folder, tmp_path
):
  encode(docs, tmp_path / "half", dtype="float16")
  half, whole = (
    vector_folder.read(each).blocks[0] for each in (tmp_path / "half", folder)
  )
  assert half.dtype == np.float16
  np.testing.assert_array_equal(half, whole)

  def large(texts, titles, **bar):
    for rows in embed(texts, titles, **bar):
      yield rows * 70_000

  with pytest.raises(ValueError, match=r"float16, first that of the id d0 \("):
    encode(docs, tmp_path / "large", large, dtype="float16")


# Starts processes that are killed before one of their renames. It forks them,
# because importing the package takes longer than the rest.
KILLED = """
import os, signal, sys
sys.path[:0] = {paths!r}
import test_vector_folder as test
for after in {all_after!r}:
  child = os.fork()
  if child:
    _, status = os.waitpid(child, 0)
    assert status == signal.SIGKILL, status
    continue
  rename, count = os.replace, 0
  def counted(source, target):
    global count
    if count == after:
      os.kill(os.getpid(), signal.SIGKILL)
    count += 1
    rename(source, target)
  os.replace = counted
  test.encode({docs!r}, "{folder}-%d" % after)
  os._exit(1)
"""


@pytest.mark.slow
def test_a_killed_process_goes_on_and_the_folder_is_the_same(
  docs, folder, tmp_path
):
  here = pathlib.Path(__file__).parent
  # The texts in whole shards after so many renames: the first state, then ids,
  # vectors and the state of each of three shards, then the manifest.
  whole = {0: 0, 1: 0, 2: 0, 3: 0, 4: 3, 6: 3, 9: 6, 10: 8}
  code = KILLED.format(
    paths=[str(here), str(here.parent)],
    all_after=list(whole),
    docs=str(docs),
    folder=str(tmp_path / "killed"),
  )
  subprocess.run(
    [sys.executable, "-W", "ignore", "-c", code], timeout=600, check=True
  )
  encoded = []

  def counted(texts, titles, **bar):
    for rows in embed(texts, titles, **bar):
      encoded.append(len(rows))
      yield rows

  for after, kept in whole.items():
    killed = tmp_path / f"killed-{after}"
    says = r"is not whole.*same command again" if after else "holds no vectors"
    with pytest.raises(ValueError, match=says):
      vector_folder.read(killed)
    encoded.clear()
    encode(docs, killed, counted)
    assert sum(encoded) == 8 - kept
    assert contents(killed) == contents(folder)
  encoded.clear()
  assert encode(docs, killed, counted).complete
  assert not encoded
  assert contents(killed) == contents(folder)


def test_a_shard_that_the_disk_has_lost_is_encoded_again(
  docs, folder, tmp_path, capsys
):
  """Power was lost: the last bytes of a shard are zeros."""
  calls = []

  def stopped(texts, titles, **bar):
    calls.append(bar["progress"])
    if bar["progress"] == "shard 3 of 3" and len(calls) == 3:
      raise KeyboardInterrupt
    return embed(texts, titles, **bar)

  other = tmp_path / "other"
  with pytest.raises(KeyboardInterrupt):
    encode(docs, other, stopped)
  path = other / "vectors-00001.npy"
  path.write_bytes(path.read_bytes()[:-8] + bytes(8))
  encode(docs, other, stopped)
  assert "vectors-00001.npy is missing or damaged" in capsys.readouterr().out
  assert calls[3:] == ["shard 2 of 3", "shard 3 of 3"]
  assert contents(other) == contents(folder)


@pytest.mark.parametrize(
  "name, change, says",
  [
    ("vectors-00001.npy", lambda c: c[:-1] + bytes([c[-1] ^ 1]), "SHA-256"),
    ("vectors-00002.npy", lambda c: c[:-1], "bytes, but it was written with"),
    ("ids-00000.txt", lambda c: c.replace(b"d1", b"d9"), "SHA-256 differs"),
    ("ids-00002.txt", lambda c: b"", "it is empty"),
    ("ids-00002.txt", None, "does not exist"),
    (
      "manifest.json",
      lambda c: c.replace(b'"dot"', b'"cosine"'),
      "has changed",
    ),
    ("manifest.json", lambda c: c[:-9], "it is not JSON"),
  ],
)
def test_damage_is_one_error_that_names_the_file(folder, name, change, says):
  path = folder / name
  if change:
    path.write_bytes(change(path.read_bytes()))
  else:
    path.unlink()
  with pytest.raises(reading.UnreadableError, match=says) as error:
    # A shard is checked when it is first used.
    _ = vector_folder.read(folder).blocks[:]
  assert str(path) in str(error.value)


def test_a_manifest_with_wrong_values_is_refused(folder):
  """Its hash is right: it was made by hand."""
  path = folder / "manifest.json"
  good = json.loads(path.read_text())
  for name, value in {
    "count": 7,
    "width": True,
    "shards": [{**good["shards"][0], "rows": "3"}],
    "contract": {},
    "dtype": "object",
    "format": "other",
  }.items():
    path.write_text(json.dumps(vector_folder.seal(good | {name: value})))
    with pytest.raises(reading.UnreadableError, match=str(path)):
      vector_folder.read(folder)


def test_a_vector_that_is_not_finite_is_not_written(docs, tmp_path):
  def broken(texts, titles, **bar):
    for rows in embed(texts, titles, **bar):
      yield rows / (rows[0, 0] != 5)

  with (
    np.errstate(all="ignore"),
    pytest.raises(ValueError, match=r"shard 1 is not written.*the id d4"),
  ):
    encode(docs, tmp_path / "index", broken)
  # The next start goes on after the first shard.
  assert encode(docs, tmp_path / "index").rows == 8


def test_the_text_of_a_broken_vector_is_named(docs, tmp_path):
  def broken(texts, titles, **bar):
    rows = list(embed(texts, titles, **bar))
    if bar["progress"] == "shard 2 of 3":
      error = encoding.NonFiniteError("The vector holds NaN.")
      error.text = 1
      raise error
    return iter(rows)

  with pytest.raises(
    encoding.NonFiniteError, match=r"docs\.jsonl:5 \(id 'd4'\): The vector"
  ):
    encode(docs, tmp_path / "index", broken)


def test_a_full_disk_keeps_the_whole_shards(docs, folder, tmp_path):
  other = tmp_path / "other"
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)

  def limited(texts, titles, **bar):
    if bar["progress"] == "shard 2 of 3":
      resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    return embed(texts, titles, **bar)

  try:
    with pytest.raises(OSError) as error:
      encode(docs, other, limited)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert full_disk.find(error.value)
  assert "vectors-00000.npy" in os.listdir(other)
  assert not [name for name in os.listdir(other) if name.endswith(".tmp")]
  encode(docs, other)
  assert contents(other) == contents(folder)


def test_memory_does_not_grow_with_the_corpus(tmp_path, monkeypatch):
  monkeypatch.setattr(sys.modules[__name__], "SHARD", 500)
  monkeypatch.setattr(unique_ids, "_SORTED", 500)
  monkeypatch.setattr(unique_ids, "_WRITTEN", 500)

  def wide(texts, titles, **_):
    rows = [[len(text)] for text, _ in zip(texts, titles, strict=True)]
    yield np.repeat(np.array(rows, np.float32), 500, axis=1)

  peaks = []  # Of files that are larger than the buffer of a reader.
  for count in (1000, 4000):
    docs = write_docs(tmp_path / "docs.jsonl", count, length=2000)
    tracemalloc.start()
    encode(docs, tmp_path / f"index-{count}", wide)
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  assert peaks[0] > 500 * 500 * 4  # The vectors of a shard.
  assert peaks[1] < 1.1 * peaks[0]


def test_another_model_source_or_setting_is_refused_with_what_differs(
  docs, folder, tmp_path
):
  unfinished = tmp_path / "unfinished"
  shutil.copytree(folder, unfinished)
  manifest = json.loads((unfinished / "manifest.json").read_text())
  (unfinished / "manifest.json").unlink()
  state = {"format": manifest["format"], "shards": manifest["shards"][:1]}
  state["settings"] = SETTINGS | {"sources": manifest["sources"]}
  (unfinished / "unfinished.json").write_text(
    json.dumps(vector_folder.seal(state))
  )
  for where in (folder, unfinished):
    before = contents(where)
    with pytest.raises(ValueError, match=r"model\.fingerprint: '1' now, '0'"):
      encode(docs, where, model={"fingerprint": "1"})
    with pytest.raises(
      ValueError, match=r"\n  dtype: 'float16' now, 'float32'"
    ):
      encode(docs, where, dtype="float16")
    other = write_docs(tmp_path / "docs.jsonl", 9)
    with pytest.raises(ValueError, match=r"\n  sources\.1\.sha256: "):
      encode(other, where)
    write_docs(docs)
    assert contents(where) == before
  assert encode(docs, unfinished).rows == 8
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine/a.txt").write_text("a")
  with pytest.raises(ValueError, match=r"holds other files \(a\.txt\)"):
    encode(docs, tmp_path / "mine")
  assert os.listdir(tmp_path / "mine") == ["a.txt"]
  with (
    lock.hold(str(tmp_path / "used")),
    pytest.raises(ValueError, match="give another --output"),
  ):
    encode(docs, tmp_path / "used")


def test_a_file_that_changes_between_the_passes_is_refused(docs, tmp_path):
  def changing(texts, titles, **bar):
    if bar["progress"] == "shard 1 of 3":
      docs.write_text(docs.read_text().replace("T7", "U7"))
    return embed(texts, titles, **bar)

  with pytest.raises(ValueError, match=r"docs\.jsonl has changed since"):
    encode(docs, tmp_path / "index", changing)
  assert not (tmp_path / "index/manifest.json").exists()


@contextlib.contextmanager
def as_stored(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.chdir(tmp_path)
  yield object_store.serve(monkeypatch)
  assert not (tmp_path / "gs:").exists()


def test_a_folder_may_be_on_object_storage(docs, folder, tmp_path, monkeypatch):
  url = "gs://bucket/index"

  def stopped(texts, titles, **bar):
    if bar["progress"] == "shard 3 of 3":
      raise KeyboardInterrupt
    return embed(texts, titles, **bar)

  with as_stored(monkeypatch, tmp_path) as store:
    with pytest.raises(KeyboardInterrupt):
      encode(docs, url, stopped)
    with pytest.raises(ValueError, match=f"^{url} is not whole"):
      vector_folder.read(url)
    encode(docs, url)
    stored = {name.rpartition("/")[2]: c for name, c in store.objects.items()}
    assert stored == contents(folder)
    found = vector_folder.read(url)
    assert found.path == url and list(found.ids)[-1] == "d7"
    np.testing.assert_array_equal(
      np.concatenate(found.blocks[:]),
      np.concatenate(vector_folder.read(folder).blocks[:]),
    )
    said = export.export_index(url, "pyserini", "gs://bucket/theirs")
    assert said == "Wrote 8 vectors and their ids to gs://bucket/theirs."
    assert list(vector_folder.read("gs://bucket/theirs").ids) == list(found.ids)
    with pytest.raises(ValueError, match=r"--output=gs://bucket/theirs exists"):
      export.export_index(url, "pyserini", "gs://bucket/theirs")
    content = store.objects[f"{url}/vectors-00000.npy"]
    store.objects[f"{url}/vectors-00000.npy"] = content[:-1] + b"x"
    with pytest.raises(reading.UnreadableError, match=r"vectors-00000\.npy"):
      _ = vector_folder.read(url).blocks[0]


def test_pyserinis_json_is_written_and_read(folder, tmp_path):
  ours = vector_folder.read(folder)
  export.export_index(str(folder), "pyserini", str(tmp_path / "json"))
  (path,) = (tmp_path / "json").iterdir()
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert lines[1] == {"id": "d1", "contents": "", "vector": [2, 2, 0.5]}
  theirs = vector_folder.read(tmp_path / "json")
  assert list(theirs.ids) == list(ours.ids) and theirs.shape == ours.shape
  assert theirs.contract is None and theirs.similarity == "dot"
  np.testing.assert_array_equal(
    np.concatenate(theirs.blocks[:]), np.concatenate(ours.blocks[:])
  )
  text = path.read_text()
  for bad, says in {
    '{"id": "d8", "vector": [1, 2]}': ":9: the vector has 2 numbers",
    '{"id": "d8", "vector": [1, 2, "3"]}': ":9: vector: is not a list of num",
    '{"id": "d8", "vector": [1, 2, 1e99]}': ":9: vector: is empty or too large",
    '{"id": "d8", "vector": [1, 2, NaN]}': ":9: vector: is not a list of num",
    '{"id": "d3", "vector": [1, 2, 3]}': "ids 4 and 9 are both 'd3'",
    '{"vector": [1, 2, 3]}': ":9: id: is missing; the fields are vector",
    "[1": ":9: record: is not JSON",
  }.items():
    path.write_text(f"{text}{bad}\n")
    with pytest.raises(reading.UnreadableError, match=says):
      vector_folder.read(tmp_path / "json")


def test_vectors_that_are_compared_by_cosine_leave_with_unit_length(
  docs, tmp_path
):
  encode(docs, tmp_path / "index", similarity="cosine")
  found = vector_folder.read(tmp_path / "index")
  rows = np.concatenate(list(found.float32_blocks()))
  np.testing.assert_allclose((rows**2).sum(axis=1), 1, rtol=1e-6)
  assert found.blocks[0][0, 0] == 1  # The folder has them as they are.


def test_a_faiss_index_is_written_and_read(folder, tmp_path):
  faiss = pytest.importorskip("faiss")
  ours = vector_folder.read(folder)
  export.export_index(str(folder), "faiss", str(tmp_path / "faiss"))
  index = faiss.read_index(str(tmp_path / "faiss/index"))
  assert isinstance(index, faiss.IndexFlatIP) and index.ntotal == 8
  query = np.array([[1, 0, 0]], np.float32)
  assert index.search(query, 2)[1].tolist() == [[7, 6]]
  theirs = vector_folder.read(tmp_path / "faiss")
  assert list(theirs.ids) == list(ours.ids) and theirs.shape == ours.shape
  np.testing.assert_array_equal(
    np.concatenate(theirs.blocks[:]), np.concatenate(ours.blocks[:])
  )
  path = tmp_path / "faiss/index"
  content = path.read_bytes()
  whole = faiss.IndexFlatIP(3)  # Its bytes are those that Faiss writes.
  whole.add(np.concatenate(list(ours.float32_blocks())))
  assert content == faiss.serialize_index(whole).tobytes()
  for bad in (content[:-5], b"junk" * 9):
    path.write_bytes(bad)
    with pytest.raises(reading.UnreadableError, match="not an index of Faiss"):
      vector_folder.read(tmp_path / "faiss")
  for other, says in (
    (faiss.IndexFlatL2(3), "another metric"),
    (faiss.IndexPQ(4, 2, 1), "of the kind IndexPQ"),
  ):
    faiss.write_index(other, str(path))
    with pytest.raises(ValueError, match=says):
      vector_folder.read(tmp_path / "faiss")
  path.write_bytes(content)
  (tmp_path / "faiss/docid").write_text("d0\nd1\n")
  with pytest.raises(reading.UnreadableError, match="8 vectors, but 2 ids"):
    vector_folder.read(tmp_path / "faiss")


def test_what_is_not_read_is_refused_with_the_reason(tmp_path, monkeypatch):
  (tmp_path / "tevatron").mkdir()
  (tmp_path / "tevatron/corpus.pkl").write_bytes(b"\x80\x04N.")
  for path in (tmp_path / "tevatron", tmp_path / "tevatron/corpus.pkl"):
    with pytest.raises(
      ValueError, match=r"corpus\.pkl is a pickle.*never read"
    ):
      vector_folder.read(path)
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="empty holds no vectors"):
    vector_folder.read(tmp_path / "empty")
  with pytest.raises(ValueError, match="none is not a folder"):
    vector_folder.read(tmp_path / "none")
  for name in ("index", "docid"):
    (tmp_path / "empty" / name).write_text("a")
  monkeypatch.setitem(sys.modules, "faiss", None)
  with pytest.raises(ImportError, match=r"mlir_jax\[faiss\]"):
    vector_folder.read(tmp_path / "empty")
