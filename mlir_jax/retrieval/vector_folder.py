"""Reads a folder of vectors with their ids, whole or not at all.

`python -m mlir_jax.encode` writes such a folder:
  manifest.json       what the vectors are, and the SHA-256 of each file; it is
                      written last
  vectors-00000.npy   [n, D] float32 or float16
  ids-00000.txt       n lines, an id on each

The sizes of all files and the content of the ids are checked when the folder is
opened. The vectors of a shard are checked when they are first used: a large
folder is then read no more than necessary. The user's cache remembers checked
files, so that the next program does not read them twice.

The layouts of pyserini are read, too. They say no contract and have no
checksums, and their vectors are compared by inner product.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from mlir_jax import contract as contract_lib
from mlir_jax.storage import copies, digests, locations, reading

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
FORMAT = "mlir_jax vectors 1"
DTYPES = ("float32", "float16")
MEND = "Restore the folder from a copy, or encode the texts again."

_PICKLES = (".pkl", ".pickle", ".pt")
# What is copied from object storage.
_PATTERNS = (
  *(MANIFEST, UNFINISHED, "vectors-*.npy", "ids-*.txt"),
  *("index", "docid", "*.jsonl"),
)


def vectors_name(shard: int) -> str:
  """Returns the name of the file of a shard's vectors."""
  return f"vectors-{shard:05}.npy"


def ids_name(shard: int) -> str:
  """Returns the name of the file of a shard's ids."""
  return f"ids-{shard:05}.txt"


class Ids(Sequence[str]):
  """Texts' ids as UTF-8: an id takes 8 bytes and its own."""

  def __init__(self, lines: Sequence[bytes]):
    """Takes files of ids: each id ends with a newline."""
    self._text = b"".join(lines)
    ends = np.flatnonzero(np.frombuffer(self._text, np.uint8) == ord("\n"))
    self._starts = np.concatenate([[0], ends + 1])

  def __len__(self) -> int:
    return len(self._starts) - 1

  @overload
  def __getitem__(self, index: int) -> str: ...

  @overload
  def __getitem__(self, index: slice) -> list[str]: ...

  def __getitem__(self, index):
    if isinstance(index, slice):
      return [self[row] for row in range(*index.indices(len(self)))]
    row = range(len(self))[index]  # It checks the index.
    start, end = self._starts[row], self._starts[row + 1] - 1
    return self._text[start:end].decode()

  def __iter__(self) -> Iterator[str]:
    for row in range(len(self)):
      yield self[row]


class Blocks(Sequence[np.ndarray]):
  """The vectors of shards; each one is opened when it is first used."""

  def __init__(self, count: int, open_block: Callable[[int], np.ndarray]):
    """Takes the number of shards, and what opens one of them."""
    self._open = open_block
    self._blocks: list[np.ndarray | None] = [None] * count

  def __len__(self) -> int:
    return len(self._blocks)

  @overload
  def __getitem__(self, index: int) -> np.ndarray: ...

  @overload
  def __getitem__(self, index: slice) -> list[np.ndarray]: ...

  def __getitem__(self, index):
    if isinstance(index, slice):
      return [self[shard] for shard in range(*index.indices(len(self)))]
    shard = range(len(self))[index]
    block = self._blocks[shard]
    if block is None:
      block = self._blocks[shard] = self._open(shard)
    return block


@dataclasses.dataclass(frozen=True)
class VectorFolder:
  """Vectors with their ids.

  Attributes:
    path: The folder.
    ids: The ids, each one once, in the order of the rows.
    shape: (N, D).
    blocks: The vectors, [n, D] each, float32 or float16, in the order of the
      ids. They are memory-mapped, but those of pyserini's JSON are in memory.
    similarity: How vectors are compared, "cosine" or "dot".
    contract: How the texts were encoded; None if the folder is pyserini's.
    role: The role of the texts; "" if the folder is pyserini's.
    model: The "name" and the "fingerprint" of the model; empty if the folder is
      pyserini's.
    manifest: All that manifest.json says; empty if the folder is pyserini's.
  """

  path: str
  ids: Sequence[str]
  shape: tuple[int, int]
  blocks: Sequence[np.ndarray]
  similarity: str
  contract: contract_lib.EncodingContract | None
  role: str = ""
  model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  manifest: Mapping[str, Any] = dataclasses.field(
    default_factory=dict, repr=False
  )

  def float32_blocks(self) -> Iterator[np.ndarray]:
    """Yields float32 [n, D] whose inner products are the similarities.

    Vectors that are compared by cosine have unit length then.
    """
    scaled = self.similarity == "cosine" and not (
      self.contract and self.contract.normalize
    )
    for block in self.blocks:
      rows = np.asarray(block, np.float32)
      if scaled:
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(lengths, lengths, 1)
      yield rows


def read(path: str | os.PathLike) -> VectorFolder:
  """Opens a folder of vectors; see the module for what is checked when.

  Args:
    path: A folder that `encode` wrote, or one in a layout of pyserini: `index`
      and `docid` (which needs faiss-cpu), or files of JSON lines. A folder on
      object storage (gs://) is first copied to this machine.

  Raises:
    UnreadableError: if a file is missing, damaged or was changed; it names the
      file. Vectors raise it when they are first used.
    ValueError: if the path is no such folder, or a package is missing.
  """
  name = locations.absolute(os.fspath(path))
  _check_no_pickle(name)
  local = pathlib.Path(name)
  if locations.is_url(name):
    local = pathlib.Path(copies.copy_folder(name, _PATTERNS))
  if not local.is_dir():
    raise ValueError(
      f"{name} is not a folder of vectors: give one that mlir_jax.encode or"
      " pyserini wrote."
    )
  if (local / MANIFEST).exists():
    return _read_ours(name, local)
  if (local / UNFINISHED).exists():
    raise ValueError(
      f"{name} is not whole: its encoding was stopped. Start the same command"
      " again; it goes on from there."
    )
  if (local / "index").exists() and (local / "docid").exists():
    from mlir_jax.retrieval import faiss_layout

    return _of_pyserini(name, *faiss_layout.read(local))
  if any(local.glob("*.jsonl")):
    from mlir_jax.retrieval import pyserini_layout

    return _of_pyserini(name, *pyserini_layout.read(local))
  pickles = [each for each in local.iterdir() if each.suffix in _PICKLES]
  _check_no_pickle(str(pickles[0]) if pickles else "")
  raise ValueError(
    f"{name} holds no vectors: there is neither {MANIFEST} nor pyserini's index"
    " and docid, or its embeddings.jsonl."
  )


def _check_no_pickle(path: str) -> None:
  """Refuses a file of Tevatron's vectors."""
  if path.endswith(_PICKLES):
    raise ValueError(
      f"{path} is a pickle, as Tevatron writes vectors. Reading a pickle runs"
      " the code in it, so it is never read here. If you trust the file, let"
      " pyserini or Faiss write the vectors as index and docid."
    )


def _of_pyserini(
  path: str,
  ids: Sequence[str],
  shape: tuple[int, int],
  blocks: Sequence[np.ndarray],
) -> VectorFolder:
  """Makes the folder of another program's vectors."""
  if len(ids) != shape[0]:
    raise reading.UnreadableError(
      f"{path} has {shape[0]:,} vectors, but {len(ids):,} ids. {MEND}"
    )
  lines: dict[str, int] = {}
  for line, each in enumerate(ids, start=1):
    if len(each.split()) != 1:
      raise reading.UnreadableError(
        f"{path}: id {line} is {each!r}, which is empty or holds white space."
        f" {MEND}"
      )
    if each in lines:
      raise reading.UnreadableError(
        f"{path}: the ids {lines[each]} and {line} are both {each!r}; remove"
        " one of the vectors."
      )
    lines[each] = line
  return VectorFolder(path, ids, shape, blocks, "dot", None)


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the content of a manifest, with a hash that shows any change."""
  content = {name: values[name] for name in values if name != "fingerprint"}
  return {**content, "fingerprint": digests.of_value(content)}


def read_sealed(path: str | os.PathLike) -> dict[str, Any]:
  """Reads what `seal` returned; UnreadableError if it has changed."""
  content = reading.read_json(path, mend=MEND)
  if seal(content)["fingerprint"] != content.get("fingerprint"):
    raise reading.UnreadableError(
      f"{path} has changed since it was written. {MEND}"
    )
  if content.get("format") != FORMAT:
    raise reading.UnreadableError(
      f"{path}: format is {content.get('format')!r}; this version of mlir_jax"
      f" reads {FORMAT!r}."
    )
  return content


def _is_count(value: Any) -> bool:
  return type(value) is int and value > 0


def _is_file(value: Any) -> bool:
  return (
    isinstance(value, dict)
    and _is_count(value.get("bytes"))
    and isinstance(value.get("sha256"), str)
  )


def are_shards(value: Any) -> bool:
  """Whether a value describes shards, as `vector_writer` does."""
  return isinstance(value, list) and all(
    isinstance(shard, dict)
    and all(_is_count(shard.get(name)) for name in ("rows", "width"))
    and type(shard.get("cut")) is int
    and _is_file(shard.get("vectors"))
    and _is_file(shard.get("ids"))
    for shard in value
  )


def _problem(manifest: Mapping[str, Any]) -> str:
  """Names a field of a manifest that cannot be used; "" if there is none."""
  shards: Any = manifest.get("shards")
  good = {
    "count": _is_count(manifest.get("count")),
    "width": _is_count(manifest.get("width")),
    "dtype": manifest.get("dtype") in DTYPES,
    "similarity": manifest.get("similarity") in ("cosine", "dot"),
    "role": manifest.get("role") in contract_lib.ROLES,
    "model": isinstance(manifest.get("model"), dict),
    "shards": are_shards(shards)
    and sum(shard["rows"] for shard in shards) == manifest.get("count"),
  }
  return next((name for name, is_good in good.items() if not is_good), "")


def check_size(path: pathlib.Path, expected: Mapping[str, Any]) -> None:
  """Checks that a file is there with the size that it was written with."""
  reading.check_file(path, MEND)
  if (found := path.stat().st_size) != expected["bytes"]:
    raise reading.UnreadableError(
      f"{path} has {found:,} bytes, but it was written with"
      f" {expected['bytes']:,}. {MEND}"
    )


def _read_ours(name: str, folder: pathlib.Path) -> VectorFolder:
  """Reads a folder that `encode` wrote; `folder` is its copy on the disk."""
  path = folder / MANIFEST
  manifest = read_sealed(path)
  if problem := _problem(manifest):
    raise reading.UnreadableError(
      f"{path}: {problem} is missing or wrong. {MEND}"
    )
  try:
    contract = contract_lib.EncodingContract.from_dict(manifest.get("contract"))
  except ValueError as error:
    raise reading.UnreadableError(f"{path}: {error} {MEND}") from error
  shards = manifest["shards"]
  for number, shard in enumerate(shards):
    check_size(folder / ids_name(number), shard["ids"])
    check_size(folder / vectors_name(number), shard["vectors"])
  digests.check(
    folder,
    {ids_name(n): shard["ids"]["sha256"] for n, shard in enumerate(shards)},
    MEND,
  )
  lines = []
  for number, shard in enumerate(shards):
    lines.append((folder / ids_name(number)).read_bytes())
    count = 0
    with contextlib.suppress(UnicodeDecodeError):
      count = lines[-1].decode("utf-8").count("\n")
    if count != shard["rows"]:
      raise reading.UnreadableError(
        f"{folder / ids_name(number)} does not hold {shard['rows']} ids. {MEND}"
      )

  def open_block(number: int) -> np.ndarray:
    shard = shards[number]
    sha256 = shard["vectors"]["sha256"]
    digests.check(folder, {vectors_name(number): sha256}, MEND)
    path = folder / vectors_name(number)
    expected = (shard["rows"], manifest["width"]), manifest["dtype"]
    with contextlib.suppress(ValueError, EOFError):
      block = np.load(path, mmap_mode="r", allow_pickle=False)
      if (block.shape, block.dtype.name) == expected:
        return block
    raise reading.UnreadableError(
      f"{path} does not hold {expected[1]} {list(expected[0])}. {MEND}"
    )

  return VectorFolder(
    path=name,
    ids=Ids(lines),
    shape=(manifest["count"], manifest["width"]),
    blocks=Blocks(len(shards), open_block),
    similarity=manifest["similarity"],
    contract=contract,
    role=manifest["role"],
    model={"name": manifest.get("model_name"), **manifest["model"]},
    manifest=manifest,
  )
