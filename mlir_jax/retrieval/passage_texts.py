"""Finds the texts of passages by their ids, in memory or on the disk."""

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class PassageText(NamedTuple):
  """What is shown of a passage.

  Attributes:
    passage_id: Its id where it comes from.
    language: Its language's code; "" if it is not known.
    title: Its title; "" for none.
    text: Its text; None if it is gone.
  """

  passage_id: str
  language: str
  title: str
  text: str | None


class OnDisk:
  """Texts in a temporary file, so that memory does not grow with them.

  It is a context manager, which removes the file.
  """

  def __init__(self, texts: Iterable[tuple[str, PassageText]]):
    """Writes the texts.

    Args:
      texts: Each key, once, with the text.
    """
    self._folder = tempfile.TemporaryDirectory(prefix="mlir_jax-texts-")
    path = os.path.join(self._folder.name, "texts.sqlite")
    self._file = sqlite3.connect(path)
    try:
      # The file is gone after a crash, so nothing needs to be safe from one.
      self._file.execute("PRAGMA journal_mode = OFF")
      self._file.execute("PRAGMA synchronous = OFF")
      self._file.execute(
        "CREATE TABLE texts (key TEXT PRIMARY KEY, passage_id TEXT,"
        " language TEXT, title TEXT, text TEXT) WITHOUT ROWID"
      )
      with self._file:
        self._file.executemany(
          "INSERT OR REPLACE INTO texts VALUES (?, ?, ?, ?, ?)",
          ((key, *text) for key, text in texts),
        )
    except BaseException:
      self.close()
      raise

  def __enter__(self) -> "OnDisk":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Removes the file."""
    with contextlib.closing(self._file):
      pass
    self._folder.cleanup()

  def __getitem__(self, key: str) -> PassageText:
    row = self._file.execute(
      "SELECT passage_id, language, title, text FROM texts WHERE key = ?",
      (key,),
    ).fetchone()
    if row is None:
      raise KeyError(key)
    return PassageText(*row)


Texts = Mapping[str, PassageText] | OnDisk


def find(texts: Texts, key: str) -> PassageText:
  """Returns the passage of a key; without a text if there is no such key."""
  try:
    return texts[key]
  except KeyError:
    return PassageText(key, "", "", None)
