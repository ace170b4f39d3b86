"""Finds an id that occurs twice, in memory that does not grow with the ids."""

import tempfile
from collections.abc import Iterable, Iterator

import numpy as np

# Hashes that are sorted at once; 8 bytes each.
_SORTED = 1 << 22
_WRITTEN = 1 << 16
# Repeated hashes that are returned; one is enough for an error.
_RETURNED = 1000


class Hashes:
  """Keeps a hash of each id on the disk: 8 bytes for each.

  Python chooses other hashes in each process, so nobody can prepare ids that
  have the same hash.
  """

  def __init__(self):
    self.count = 0
    self._file = tempfile.TemporaryFile()  # noqa: SIM115
    self._waiting: list[int] = []

  def __enter__(self) -> "Hashes":
    return self

  def __exit__(self, *_) -> None:
    self._file.close()

  def add(self, text_id: str) -> None:
    """Adds an id."""
    self.count += 1
    self._waiting.append(hash(text_id))
    if len(self._waiting) >= _WRITTEN:
      self._write()

  def _write(self) -> None:
    self._file.write(np.array(self._waiting, np.int64).tobytes())
    self._waiting = []

  def _read(self) -> Iterator[np.ndarray]:
    """Yields all hashes, a few at a time."""
    self._file.seek(0)
    while content := self._file.read(8 * _WRITTEN):
      yield np.frombuffer(content, np.int64)

  def repeated(self) -> set[int]:
    """Returns hashes that were added more than once; not all if many were."""
    self._write()
    parts = -(-self.count // _SORTED)
    found: set[int] = set()
    for part in range(parts):
      chosen = np.concatenate(
        [hashes[hashes % parts == part] for hashes in self._read()]
      )
      chosen.sort()
      twice = chosen[1:][chosen[1:] == chosen[:-1]]
      found.update(twice[:_RETURNED].tolist())
      if found:
        break
    return found


def first_repeat(
  named: Iterable[tuple[str, str]], repeated: set[int]
) -> tuple[str, str, str] | None:
  """Finds the first id that occurs for the second time.

  Args:
    named: Each id and its place, in the order in which they were added.
    repeated: From `Hashes.repeated`, not empty.

  Returns:
    The id, its first place and its second one; None if only hashes are equal.
  """
  first: dict[str, str] = {}
  for text_id, place in named:
    if hash(text_id) not in repeated:
      continue
    if text_id in first:
      return text_id, first[text_id], place
    first[text_id] = place
  return None
