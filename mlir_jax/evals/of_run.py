"""What a run knows of its evaluation: its tests, its groups, its training."""

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mlir_jax import extensions
from mlir_jax.checkpoints import metadata
from mlir_jax.data import (
  cleaning,
  collections,
  guide_vectors,
  records,
  source_settings,
)
from mlir_jax.data.collections import pair_files
from mlir_jax.evals import selection


class Tests(NamedTuple):
  """Where tests come from.

  Attributes:
    collection: A collection's name or "MODULE:FUNCTION"; "" for the run's.
    root: The collection's folder; "" for the run's.
    tatoeba_root: A folder of translation tests; "" for none.
    sets: Tests that a library finds by name.
  """

  collection: str = ""
  root: str = ""
  tatoeba_root: str = ""
  sets: Mapping[str, str] = types.MappingProxyType({})


class Known(NamedTuple):
  """What a run knows; all fields are empty if the model is not a run.

  Attributes:
    config: The run's config.
    notes: Sentences on the training, for the report.
    groups: Each language's group in training.
    trained_on: The collection that it was trained on, unless that is gone.
  """

  config: Mapping[str, Any] = types.MappingProxyType({})
  notes: Sequence[str] = ()
  groups: Mapping[str, str] = types.MappingProxyType({})
  trained_on: records.Collection | None = None


def known(description: metadata.Description, given: Tests) -> Known:
  """Returns what a run knows.

  Args:
    description: The description of its checkpoint.
    given: The tests that the command line gives.

  Raises:
    ValueError: if neither the run nor the command line has tests.
  """
  config, provenance = description.config, description.provenance
  trained_on = find_trained_on(config, given.collection)
  if not (any(given) or trained_on):
    raise ValueError("Give the tests: --collection and --root.")
  return Known(
    config,
    notes(config, provenance),
    find_groups(provenance, trained_on),
    trained_on,
  )


def choose_tests(given: Tests, data: Mapping[str, Any], source: str) -> Tests:
  """Takes from the run's config what the command line does not give.

  Args:
    given: From the command line.
    data: The group `data` of the run's config; empty if there is no run.
    source: The run's folder, for messages.

  Raises:
    ValueError: if the run's collection is code that the command does not name,
      or the folder of the tests is missing.
  """
  if given.sets and not any(given[:3]):
    return given._replace(collection="sets")
  collection = given.collection or data.get("collection", "folder")
  if extensions.is_target(collection) and collection != given.collection:
    raise ValueError(
      f"{source} was trained on the collection {collection}. Its code is"
      " imported only if the command names it: repeat"
      f" --collection={collection}, or give another collection."
    )
  root, tatoeba_root, sets = given.root, given.tatoeba_root, given.sets
  if not any(given):
    tatoeba_root, sets = data["tatoeba_root"], data.get("sets", {})
  if collection == data.get("collection"):
    root = root or data["root"]
  if collection == "folder" and not root:
    raise ValueError("--collection=folder needs --root=FOLDER.")
  return Tests(collection, root, tatoeba_root, sets)


def notes(
  config: Mapping[str, Any], provenance: Mapping[str, Any]
) -> list[str]:
  """Returns sentences on the training; an older run has none."""
  said = [provenance["selection"]] if provenance.get("selection") else []
  return [*said, *guide_vectors.describe_all(provenance, config["loss"])]


def find_trained_on(
  config: Mapping[str, Any], named: str
) -> records.Collection | None:
  """Returns the collection that a run was trained on; None if it is gone.

  Args:
    config: The run's config.
    named: The collection that this command line names, or "". No other code of
      a user is imported.
  """
  data = config["data"]
  if data.get("formats"):
    print(
      "Shared texts are not counted: the run's pairs have formats of their own,"
      f" {', '.join(data['formats'].values())}, and this command names no code"
      " for them."
    )
    return None
  if extensions.is_target(data["collection"]) and data["collection"] != named:
    print(
      "Shared texts are not counted: this command does not name the run's"
      f" collection, {data['collection']}."
    )
    return None
  try:
    found = collections.load(
      data["collection"],
      data["root"],
      # Training did not read bad records, so they are not counted.
      records.BadRecords("skip"),
      data["tatoeba_root"],
      require_pairs=bool(config["batch"]["retrieval"]),
      pairs=pair_files.Settings.of_config(data),
      sets=data.get("sets", {}),
      rules=cleaning.Rules.of_config(data),
      selects=_selects(config),
    )
    # An older config has no such settings.
    settings = source_settings.find(data.get("sources", {}))
    return source_settings.trained_on(found, settings)
  except (ValueError, OSError) as error:
    print(f"Shared texts are not counted; the run's data are gone: {error}")
    return None


def _selects(config: Mapping[str, Any]) -> Callable[[str], bool]:
  """Returns whether the dev set of a language selected the checkpoint.

  Args:
    config: The run's config; an older one names no selection.
  """
  text = config["eval"].get("selection", selection.DEFAULT.text)
  return selection.parse(text).reads


def find_groups(
  provenance: Mapping[str, Any], trained_on: records.Collection | None
) -> Mapping[str, str]:
  """Returns each language's group in training; empty if they are unknown.

  Args:
    provenance: `Description.provenance` of the checkpoint.
    trained_on: The collection that it was trained on, unless that is gone.
  """
  if (groups := provenance.get("groups")) is not None:
    return groups
  if trained_on:  # Older versions did not record the groups.
    return trained_on.groups
  print(
    "The languages of training were not recorded, and its data are gone: the"
    " report has one mean of all languages."
  )
  return {}
