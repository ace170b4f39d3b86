"""Finds the collection that a run reads, by its name."""

import dataclasses
import os
import types
from collections.abc import Callable, Mapping
from typing import Any

from mlir_jax import extensions
from mlir_jax.data import cleaning, records
from mlir_jax.data.collections import layout, pair_files
from mlir_jax.storage import copies, locations

NAMES = ("cldr", "folder", "sets")


def load(
  name: str,
  root: str = "",
  bad_records: records.BadRecords | None = None,
  tatoeba_root: str = "",
  *,
  require_pairs: bool = True,
  prefix: str = "data.",
  pairs: pair_files.Settings = pair_files.DEFAULTS,
  sets: Mapping[str, str] = types.MappingProxyType({}),
  rules: cleaning.Rules = cleaning.DEFAULTS,
  selects: Callable[[str], bool] = layout.is_english,
) -> records.Collection:
  """Loads a collection.

  Args:
    name: "cldr", the embedded names; "folder", files under `root`; "sets", only
      those of the argument `sets`; or "MODULE:FUNCTION", the user's own
      function (root, bad_records) -> Collection. This command line must name
      the function.
    root: The folder of the files; "~" is the user's home. A folder on object
      storage (gs://) is copied to this machine, without what did not change
      since the last copy.
    bad_records: Receives records that cannot be used.
    tatoeba_root: A folder of translation tests, named as in LASER; "" for none.
      It may be on object storage, too.
    require_pairs: Whether a folder without question-passage pairs is an error.
      Evaluating needs only tests.
    prefix: What precedes the settings' names in messages: "data." for fields
      ("data.root"), "--" for flags ("--root").
    pairs: What the config says about the pairs of a folder.
    sets: Data sets that are added: name to "LIBRARY:NAME KEY=VALUE …", see
      `named_sets.find`.
    rules: Which translations are kept.
    selects: Whether the dev set of a language selects the model; see
      eval.selection.

  Raises:
    ValueError: if there is no such collection, or its folder cannot be used.
  """
  from mlir_jax.data.collections import named_sets

  bad_records = bad_records or records.BadRecords()
  found = named_sets.find(
    sets,
    pairs,
    rules.margin,
    selects,
    "data.sets." if prefix == "data." else "--set=",
  )
  has_pairs = any(each.setting.stream == "retrieval" for each in found)
  collection = _load(
    name,
    root,
    bad_records,
    tatoeba_root,
    require_pairs=require_pairs and not has_pairs,
    prefix=prefix,
    pairs=pairs,
    margin=rules.margin,
    selects=selects,
  )
  collection = named_sets.added(collection, found, bad_records)
  return cleaning.cleaned(collection, rules, bad_records)


def open_for_training(
  data: Mapping[str, Any],
) -> tuple[records.Collection, records.BadRecords]:
  """Opens a collection in another process, to read its training files.

  Args:
    data: The config's group `data`, a plain dict; `load` has accepted it.

  Returns:
    The collection, and what receives its bad records.
  """
  bad_records = records.BadRecords(data["on_bad_record"])
  collection = load(
    data["collection"],
    data["root"],
    bad_records,
    require_pairs=False,
    pairs=pair_files.Settings.of_config(data),
    sets=data["sets"],
    rules=cleaning.Rules.of_config(data),
    selects=lambda language: True,
  )
  return collection, bad_records


def _load(
  name: str,
  root: str,
  bad_records: records.BadRecords,
  tatoeba_root: str,
  *,
  require_pairs: bool,
  prefix: str,
  pairs: pair_files.Settings,
  margin: float,
  selects: Callable[[str], bool],
) -> records.Collection:
  """Loads a collection without more data sets; see `load`."""
  if name == "cldr":
    from mlir_jax.data.collections import cldr

    _check_no_folder(name, root or tatoeba_root, prefix)
    return cldr.load()
  if name == "sets":
    from mlir_jax.data.collections import named_sets

    _check_no_folder(name, root or tatoeba_root, prefix)
    if require_pairs:
      raise ValueError(
        f"{prefix}collection is 'sets', but no data set has question-passage"
        " pairs: add data.sets.NAME with stream=retrieval, or set"
        " batch.retrieval to 0."
      )
    return named_sets.empty()
  if name == "folder":
    from mlir_jax.data.collections import folder

    if not root:
      raise ValueError(
        f"{prefix}collection is 'folder', but {prefix}root is empty: give the"
        " folder."
      )
    collection = folder.load(
      on_disk(root, f"{prefix}root"),
      bad_records,
      on_disk(tatoeba_root, f"{prefix}tatoeba_root"),
      require_pairs=require_pairs,
      prefix=prefix,
      pairs=pairs,
      margin=margin,
      selects=selects,
    )
    if locations.is_url(str(root)):  # The copy has another name.
      name = os.path.basename(locations.absolute(str(root)))
      collection = dataclasses.replace(collection, name=name)
    return collection
  if extensions.is_target(name):
    collection = extensions.load(name, f"{prefix}collection")(
      on_disk(root, f"{prefix}root"), bad_records
    )
    if not isinstance(collection, records.Collection):
      raise ValueError(
        f"{prefix}collection is {name!r}, which returns"
        f" {type(collection).__name__}; it must return"
        " mlir_jax.data.records.Collection."
      )
    return collection
  raise ValueError(f"{prefix}collection is {name!r}; use one of {NAMES}.")


def on_disk(folder: str | os.PathLike, setting: str) -> str:
  """Returns the path of a folder, or of its copy if it is on object storage."""
  folder = os.path.expanduser(os.fspath(folder))
  if not locations.is_url(folder):
    return folder
  if not folder.startswith("gs://"):
    raise ValueError(
      f"{setting}={folder}: of URLs only gs://BUCKET/FOLDER is supported; or"
      " give a path."
    )
  local = copies.local_copy(locations.absolute(folder))
  print(f"{setting}: copying what is new in {folder} to {local}.")
  try:
    return copies.copy_folder(folder, ["*"])
  except ValueError as error:
    raise ValueError(f"{setting}={folder}: {error}") from error


def _check_no_folder(name: str, given: str, prefix: str) -> None:
  """Refuses a folder that a collection does not read."""
  if given:
    raise ValueError(
      f"{prefix}root and {prefix}tatoeba_root need {prefix}collection=folder:"
      f" the collection {name!r} reads no files."
    )
