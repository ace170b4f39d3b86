"""Writes a folder of vectors shard by shard; a killed process goes on.

Each shard is two files, written aside and then renamed. Then unfinished.json
names them, with their SHA-256. At the end manifest.json takes its place: until
then nobody reads the folder. This needs neither a rename of the folder nor an
append, so it is the same on object storage.
"""

import contextlib
import fnmatch
import hashlib
import io
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from mlir_jax import lock, workdir
from mlir_jax.retrieval import vector_folder
from mlir_jax.storage import digests, locations, reading, writing

_SHOWN = 10  # Differences in an error.
_ASIDE = ".*.tmp"  # The names of `writing.writing_aside`.


class Writer:
  """A folder that is being written; see `opened`.

  Attributes:
    folder: The folder.
    shards: What is known of each whole shard.
    complete: Whether all shards were there when it was opened.
  """

  def __init__(
    self, folder: str, settings: Mapping[str, Any], notes: Mapping[str, Any]
  ):
    self.folder = folder
    self.shards: list[dict[str, Any]] = []
    self.complete = False
    self._settings = json.loads(json.dumps(settings))  # As it is read again.
    self._notes = dict(notes)

  @property
  def dtype(self) -> str:
    """The type of the numbers."""
    return self._settings["dtype"]

  @property
  def rows(self) -> int:
    """The number of vectors in the whole shards."""
    return sum(shard["rows"] for shard in self.shards)

  @property
  def cut(self) -> int:
    """The number of texts in the whole shards that were cut."""
    return sum(shard["cut"] for shard in self.shards)

  @property
  def shape(self) -> tuple[int, int]:
    """(N, D) of the whole shards."""
    return self.rows, self.shards[0]["width"] if self.shards else 0

  def add(self, vectors: np.ndarray, ids: Sequence[str], cut: int) -> None:
    """Writes the next shard.

    Args:
      vectors: float32 [n, D]; all shards have the same D.
      ids: The ids, n, without white space.
      cut: How many of the texts were cut.

    Raises:
      ValueError: if the vectors are not finite, too large for the type, or
        of another shape. Then the shard is not written.
    """
    number, dtype = len(self.shards), self.dtype
    with np.errstate(over="ignore"):
      stored = np.ascontiguousarray(vectors, np.dtype(dtype).newbyteorder("<"))
    width = self.shards[0]["width"] if self.shards else vectors.shape[1]
    problem = ""
    if stored.shape != (len(ids), width):
      problem = f"have the shape {stored.shape}, not {(len(ids), width)}"
    elif bad := np.flatnonzero(~np.isfinite(stored).all(axis=1)).tolist():
      problem = f"are not finite in {dtype}, first that of the id {ids[bad[0]]}"
      if np.isfinite(vectors[bad[0]]).all():
        problem += f" (its largest number is {np.abs(vectors[bad[0]]).max():g})"
    if problem:
      raise ValueError(
        f"{self.folder}: shard {number} is not written: its vectors {problem}."
      )
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
      header, np.lib.format.header_data_from_array_1_0(stored)
    )
    text = "".join(f"{each}\n" for each in ids).encode()
    shard = {
      "rows": len(ids),
      "width": width,
      "cut": cut,
      "ids": self._write(vector_folder.ids_name(number), text),
      "vectors": self._write(
        vector_folder.vectors_name(number), header.getvalue(), stored.data
      ),
    }
    self.shards.append(shard)
    self._store(vector_folder.UNFINISHED, self._state())

  def finish(self) -> None:
    """Writes the manifest: from now on the folder can be read.

    Raises:
      ValueError: if there is no vector.
    """
    if not self.shards:
      raise ValueError(f"{self.folder}: there is no text to encode.")
    count, width = self.shape
    numbers = {"count": count, "width": width, "cut": self.cut}
    self._store(
      vector_folder.MANIFEST,
      {**numbers, **self._settings, **self._notes, "shards": self.shards},
    )
    self._remove(vector_folder.UNFINISHED)
    self.complete = True

  def _path(self, name: str) -> epath.Path:
    return epath.Path(self.folder) / name

  def _remove(self, name: str) -> None:
    self._path(name).unlink(missing_ok=True)

  def _write(self, name: str, *parts) -> dict[str, Any]:
    """Writes a file; returns its size and SHA-256, of what it should hold."""
    digest, size = hashlib.sha256(), 0
    with writing.writing_aside(f"{self.folder}/{name}") as file:
      for part in parts:
        view = memoryview(part).cast("B")
        digest.update(view)
        size += file.write(view)
    return {"bytes": size, "sha256": digest.hexdigest()}

  def _state(self) -> dict[str, Any]:
    return {"settings": self._settings, "shards": self.shards}

  def _store(self, name: str, content: Mapping[str, Any]) -> None:
    """Writes a JSON file that shows any later change of it."""
    sealed = vector_folder.seal({"format": vector_folder.FORMAT, **content})
    text = json.dumps(sealed, indent=1, ensure_ascii=False)
    writing.write_aside(f"{self.folder}/{name}", f"{text}\n")

  def start(self) -> None:
    """Finds what an earlier process has left, or begins a new folder.

    Raises:
      ValueError: if the folder holds something else, or vectors of another
        model, source or setting.
    """
    for name in (vector_folder.MANIFEST, vector_folder.UNFINISHED):
      if self._path(name).exists():
        found = vector_folder.read_sealed(self._path(name))
        break
    else:
      self._remove_asides()
      self._store(vector_folder.UNFINISHED, self._state())
      return
    before = found if name == vector_folder.MANIFEST else found.get("settings")
    if not isinstance(before, dict) or not vector_folder.are_shards(
      found.get("shards")
    ):
      raise reading.UnreadableError(
        f"{self._path(name)} lacks settings or shards. {vector_folder.MEND}"
      )
    self._check_same({key: before.get(key) for key in self._settings})
    if name == vector_folder.MANIFEST:
      self.shards, self.complete = found["shards"], True
      self._remove(vector_folder.UNFINISHED)
      return
    self._remove_asides()
    self.shards = list(self._whole_shards(found["shards"]))

  def _check_same(self, before: Mapping[str, Any]) -> None:
    """Refuses a folder of other settings; it names each difference."""
    ours, theirs = _named(self._settings), _named(before)
    different = [
      f"  {name}: {_shown(ours.get(name))} now,"
      f" {_shown(theirs.get(name))} there"
      for name in {**ours, **theirs}
      if ours.get(name) != theirs.get(name)
    ]
    if different:
      lines = "\n".join(different[:_SHOWN])
      raise ValueError(
        f"{self.folder} holds vectors of other texts, or of another model or"
        f" setting:\n{lines}\nGive another folder, or repeat the command that"
        " began it."
      )

  def _remove_asides(self) -> None:
    """Removes the files that a killed process was writing."""
    if not locations.is_url(self.folder):
      for path in pathlib.Path(self.folder).glob(_ASIDE):
        path.unlink(missing_ok=True)

  def _whole_shards(self, shards) -> Iterator[dict[str, Any]]:
    """Yields the shards up to the first one that is not whole.

    A disk may lose what was written shortly before its machine lost power.
    Object storage holds an object whole or not at all, so that the sizes are
    enough there.
    """
    for number, shard in enumerate(shards):
      for name, expected in (
        (vector_folder.ids_name(number), shard["ids"]),
        (vector_folder.vectors_name(number), shard["vectors"]),
      ):
        path = self._path(name)
        is_whole = path.exists() and path.stat().length == expected["bytes"]
        if is_whole and not locations.is_url(self.folder):
          is_whole = digests.of_file(path) == expected["sha256"]
        if not is_whole:
          print(
            f"{path} is missing or damaged: the texts from shard {number} on"
            " are encoded again."
          )
          return
      yield shard


def check_free(folder: str) -> None:
  """Refuses a folder with files that are not of a folder of vectors.

  Raises:
    ValueError: naming some of the files.
  """
  path = epath.Path(folder)
  names = {each.name for each in path.iterdir()} if path.is_dir() else set()
  if names & {vector_folder.MANIFEST, vector_folder.UNFINISHED}:
    return
  others = sorted(
    name
    for name in names - {lock.FILE}
    if not fnmatch.fnmatchcase(name, _ASIDE)  # Of a process that was killed.
  )
  if others:
    raise ValueError(
      f"{folder} holds other files ({', '.join(others[:3])}): give a new"
      " folder."
    )


def _named(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Returns each setting by its name, with those of each source."""
  sources = settings.get("sources")
  if isinstance(sources, list):
    numbered = {str(n): source for n, source in enumerate(sources, start=1)}
    settings = {**settings, "sources": numbered}
  return workdir.flatten(settings)


def _shown(value: Any) -> str:
  text = repr(value)
  return text if len(text) < 100 else f"{text[:97]}…"


@contextlib.contextmanager
def opened(
  folder: str, settings: Mapping[str, Any], notes: Mapping[str, Any]
) -> Iterator[Writer]:
  """Opens a folder to write vectors into it.

  Args:
    folder: The folder, on a disk or on object storage; made if missing.
    settings: All that decides the vectors, in JSON's types; with "dtype". A
      folder that was begun with other settings is refused.
    notes: What the manifest says, too.

  Yields:
    The writer, which knows the whole shards that are there.

  Raises:
    ValueError: if another process writes to the folder, or as `Writer.start`.
  """
  check_free(folder)
  with lock.hold(folder, setting="--output"):
    writer = Writer(folder, settings, notes)
    try:
      writer.start()
      yield writer
    finally:
      if not locations.is_url(folder):
        # While it is held: a process that comes later makes another file.
        (epath.Path(folder) / lock.FILE).unlink(missing_ok=True)
  if writer.complete:  # On object storage the lease is an object.
    (epath.Path(folder) / lock.FILE).unlink(missing_ok=True)
