"""Finds the collection that a run reads, by its name."""

import os

from mlir_jax import extensions
from mlir_jax.data import records
from mlir_jax.data.collections import pair_files
from mlir_jax.storage import locations

NAMES = ("cldr", "folder")


def load(
  name: str,
  root: str = "",
  bad_records: records.BadRecords | None = None,
  tatoeba_root: str = "",
  *,
  require_pairs: bool = True,
  prefix: str = "data.",
  pairs: pair_files.Settings = pair_files.DEFAULTS,
) -> records.Collection:
  """Loads a collection.

  Args:
    name: "cldr", the embedded names; "folder", files under `root`; or
      "MODULE:FUNCTION", the user's own function (root, bad_records) ->
      Collection. This command line must name the function.
    root: The folder of the files; "~" is the user's home.
    bad_records: Receives records that cannot be used.
    tatoeba_root: A folder of translation tests, named as in LASER; "" for none.
    require_pairs: Whether a folder without question-passage pairs is an error.
      Evaluating needs only tests.
    prefix: What precedes the settings' names in messages: "data." for fields
      ("data.root"), "--" for flags ("--root").
    pairs: What the config says about the pairs of a folder.

  Raises:
    ValueError: if there is no such collection, or its folder cannot be used.
  """
  bad_records = bad_records or records.BadRecords()
  for setting, folder in (("root", root), ("tatoeba_root", tatoeba_root)):
    if locations.is_url(str(folder)):
      raise ValueError(
        f"{prefix}{setting}={folder} is a URL, but collections are read from a"
        " disk: copy the folder to a disk and give its path. (A --workdir may"
        " be on object storage.)"
      )
  if name == "cldr":
    from mlir_jax.data.collections import cldr

    if root or tatoeba_root:
      raise ValueError(
        f"{prefix}root and {prefix}tatoeba_root need {prefix}collection=folder:"
        " the collection 'cldr' reads no files."
      )
    return cldr.load()
  if name == "folder":
    from mlir_jax.data.collections import folder

    if not root:
      raise ValueError(
        f"{prefix}collection is 'folder', but {prefix}root is empty: give the"
        " folder."
      )
    return folder.load(
      os.path.expanduser(root),
      bad_records,
      os.path.expanduser(tatoeba_root),
      require_pairs=require_pairs,
      prefix=prefix,
      pairs=pairs,
    )
  if extensions.is_target(name):
    collection = extensions.load(name, f"{prefix}collection")(
      os.path.expanduser(root), bad_records
    )
    if not isinstance(collection, records.Collection):
      raise ValueError(
        f"{prefix}collection is {name!r}, which returns"
        f" {type(collection).__name__}; it must return"
        " mlir_jax.data.records.Collection."
      )
    return collection
  raise ValueError(f"{prefix}collection is {name!r}; use one of {NAMES}.")
