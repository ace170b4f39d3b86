"""Finds the texts of an index again, where they were encoded from."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mlir_jax import bars
from mlir_jax.data import id_sources, records
from mlir_jax.data.sources import xquad_r
from mlir_jax.retrieval import line_vectors, passage_texts, vector_folder
from mlir_jax.storage import locations

# Loads a collection: (name, root, sets).
Load = Callable[[str, str, Sequence[str]], records.Collection]


@contextlib.contextmanager
def find(
  passages: vector_folder.VectorFolder,
  load: Load,
  *,
  files: Sequence[str] = (),
  collection: records.Collection | None = None,
) -> Iterator[tuple[passage_texts.Texts, list[str]]]:
  """Reads the texts of an index into a temporary file.

  They are in `files` or in `collection`, if one is given; else where the
  manifest says. A text that is not there is missing in the result.

  Args:
    passages: The index.
    load: Loads the collection that the manifest names.
    files: The files of the texts, if they are elsewhere now.
    collection: The collection of the texts, if it is elsewhere now.

  Yields:
    Id to text, and sentences about what was not found or has changed.

  Raises:
    ValueError, OSError: if `files` or `collection` cannot be read.
  """
  with contextlib.ExitStack() as stack:
    try:
      sources = stack.enter_context(_sources(passages, load, files, collection))
      texts = stack.enter_context(_read(passages, sources))
    except (ValueError, OSError, ImportError) as error:
      if files or collection:
        raise
      yield (
        {},
        [
          f"Passages are shown by their ids alone: {error} Give --corpus or"
          " --root."
        ],
      )
      return
    yield texts, _changes(passages, sources)


@contextlib.contextmanager
def _sources(
  passages: vector_folder.VectorFolder,
  load: Load,
  files: Sequence[str],
  collection: records.Collection | None,
) -> Iterator[list[id_sources.Source]]:
  """Yields the sources of the texts."""
  said: Mapping[str, Any] = passages.manifest.get("read_from") or {}
  role = passages.role or "passage"
  if not (files or collection):
    if not said:
      raise ValueError(f"{passages.path} does not say where its texts are.")
    files = said.get("files", ())
    for path in files:
      if not locations.is_url(path) and not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {path}.")
    if not files:
      collection = load(said["collection"], said["root"], said["sets"])
  if collection:
    yield id_sources.from_tests(
      collection,
      role,
      split=said.get("split", "test"),
      languages=said.get("languages", ()),
      language_in_ids=said.get("language_in_ids", False),
    )
    return
  formats = {
    source["name"]: source["format"]
    for source in passages.manifest.get("sources", ())
  }
  with line_vectors.copies_on_disk(files) as copies:
    yield [
      source
      for path in files
      for source in id_sources.from_files(
        [path], role, formats.get(os.path.basename(path)), copies
      )
    ]


def _read(
  passages: vector_folder.VectorFolder,
  sources: Sequence[id_sources.Source],
) -> passage_texts.OnDisk:
  """Reads all texts; bad records were left out when they were encoded."""

  def texts() -> Iterator[tuple[str, passage_texts.PassageText]]:
    bad_records = records.BadRecords("skip")
    for source in sources:
      language = _language(source)
      for text_id, text, title, _ in source.read(bad_records):
        yield (
          text_id,
          passage_texts.PassageText(text_id, language, title, text),
        )

  return passage_texts.OnDisk(
    bars.bar(
      texts(),
      "Reading the texts",
      unit="text",
      total=len(passages.ids),
      delay=2,
      leave=False,
    )
  )


def _language(source: id_sources.Source) -> str:
  """Returns the language that a source's name says; "" if it says none."""
  if source.format == "test":  # COLLECTION/SPLIT/LANGUAGE
    return source.name.rpartition("/")[2]
  if source.format == "xquad_r":
    match = xquad_r.NAME.fullmatch(pathlib.Path(source.name).name)
    return match[1] if match else ""
  return ""


def _changes(
  passages: vector_folder.VectorFolder,
  sources: Sequence[id_sources.Source],
) -> list[str]:
  """Says which sources have changed since they were encoded."""
  hashes = {source["sha256"] for source in passages.manifest.get("sources", ())}
  changed = [each.name for each in sources if each.sha256() not in hashes]
  if not (hashes and changed):
    return []
  return [
    f"{', '.join(changed)} changed after it was encoded: a text that is shown"
    " may not be the one that was found."
  ]
