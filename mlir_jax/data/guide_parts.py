"""Keeps the parts of a frozen model's vectors, and joins them in the end.

Each part is a file of its own, written aside, then renamed. So a run that is
killed goes on at the first part that is missing.
"""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from mlir_jax.data import guide_vectors
from mlir_jax.storage import copies, digests, reading, writing

_SETTINGS = "settings.json"


def fetch(kind: guide_vectors.Kind, folder: str, local: str) -> None:
  """Makes the local copy of the vectors equal to those in the run's folder."""
  if folder == local:
    return
  theirs, ours = (epath.Path(root) / kind.name for root in (folder, local))
  metas = [path / guide_vectors.META for path in (theirs, ours)]
  known = [path.read_bytes() if path.exists() else None for path in metas]
  if known[0] != known[1]:
    ours.rmtree(missing_ok=True)
    if known[0]:
      print(f"Copying {theirs} to {ours}.")
      copies.fetch_folder(folder, local, kind.name)


class Parts:
  """The folder of the vectors' parts, here and on object storage.

  A part has the vectors of consecutive texts of a role, in the order of their
  first occurrence in the collection: float16 [n, G].
  """

  def __init__(self, kind: guide_vectors.Kind, folder: str, local: str):
    self._folder, self._local = folder, local
    # It is next to the folder of the vectors.
    self._name = f"{kind.name}-parts"
    self._path = pathlib.Path(local) / self._name
    self._settings: dict[str, Any] = {}
    self._made = {role: [] for role in kind.roles}

  def begin(self, settings: dict[str, Any]) -> None:
    """Keeps the parts that were made with these settings; removes others."""
    self._settings = settings
    copies.fetch(self._folder, self._local, f"{self._name}/{_SETTINGS}")
    path = self._path / _SETTINGS
    with contextlib.suppress(reading.UnreadableError):
      if reading.read_json(path) == settings:
        return
    self.remove()
    writing.write_aside(str(path), json.dumps(settings, indent=2) + "\n")
    copies.upload(self._folder, self._local, f"{self._name}/{_SETTINGS}")

  def add(self, role: str, size: int, encode: Callable[[], np.ndarray]) -> bool:
    """Adds the next part of a role; makes it if it is not there.

    Args:
      role: The role.
      size: The number of texts.
      encode: Returns their vectors, float32 [size, G], of any length.

    Returns:
      Whether the part was there.
    """
    name = f"{role}-{len(self._made[role]):06d}.npy"
    path = self._path / name
    self._made[role].append(path)
    if not path.exists():
      copies.fetch(self._folder, self._local, f"{self._name}/{name}")
    # A disk may lose the end of a file when its machine loses power.
    with contextlib.suppress(FileNotFoundError, ValueError, EOFError):
      if len(np.load(path, mmap_mode="r", allow_pickle=False)) == size:
        return True
    vectors = encode()
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.where(lengths > 0, lengths, 1)
    with writing.writing_aside(str(path)) as file:
      np.save(file, vectors.astype(np.float16), allow_pickle=False)
    copies.upload(self._folder, self._local, f"{self._name}/{name}")
    return False

  def join(
    self,
    path: pathlib.Path,
    texts: Mapping[str, tuple[np.ndarray, np.ndarray]],
  ) -> None:
    """Writes the folder of the vectors, whole or not at all.

    Args:
      path: The folder.
      texts: Role to the hashes and the rows of its texts; see `guide_vectors`.
    """
    with writing.folder_aside(path) as aside:
      for role, made in self._made.items():
        hashes, rows = texts[role]
        np.save(aside / f"{role}_hashes.npy", hashes)
        np.save(aside / f"{role}_rows.npy", rows)
        width = np.load(made[0], mmap_mode="r").shape[1]
        joined = np.lib.format.open_memmap(
          aside / f"{role}_vectors.npy",
          mode="w+",
          dtype=np.float16,
          shape=(len(rows), width),
        )
        done = 0
        for part in map(np.load, made):
          joined[done : done + len(part)] = part
          done += len(part)
        joined.flush()
      files = sorted(aside.glob("*.npy"))
      meta = self._settings | {
        "files": {file.name: digests.of_file(file) for file in files}
      }
      (aside / guide_vectors.META).write_text(
        json.dumps(guide_vectors.sealed(meta), indent=2) + "\n", "utf-8"
      )

  def remove(self) -> None:
    """Removes all parts."""
    shutil.rmtree(self._path, ignore_errors=True)
    if self._folder != self._local:
      (epath.Path(self._folder) / self._name).rmtree(missing_ok=True)
