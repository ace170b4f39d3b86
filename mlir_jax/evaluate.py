"""Evaluates a model: the table of all languages.

python -m mlir_jax.evaluate --workdir=W --checkpoint=best

The tests come from the collection that the run was trained on, or from another
one: --collection=folder --root=FOLDER. A language keeps the group that it had
in training, whatever collection the tests come from. A model that was not
trained here is evaluated with --model and --output; its languages have no
groups. Several processes (--distributed) share the encoding and the search;
each of them needs the tests.
"""

import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from absl import flags

from mlir_jax import extensions
from mlir_jax.command_line import process_flags, program, shared_flags
from mlir_jax.data import records


class _Tests(NamedTuple):
  """Where the tests come from: the arguments of `evaluate` with these names."""

  collection: str
  root: str
  tatoeba_root: str
  sets: Mapping[str, str]


def evaluate(
  source: str,
  checkpoint: str = "last",
  *,
  collection: str = "",
  root: str = "",
  tatoeba_root: str = "",
  sets: Mapping[str, str] = types.MappingProxyType({}),
  output: str = "",
  on_bad_record: str = "error",
  extra: Mapping[str, str] = types.MappingProxyType({}),
  prompt: str = "",
  truncate_dim: int = 0,
) -> str:
  """Evaluates a model and writes results, TREC runs and report.

  Args:
    source: A run's folder, or any other model that `mlir_jax.load` takes.
    checkpoint: The checkpoint of a run.
    collection: The collection of the tests. "" is the run's collection, or
      "folder" if the model is not a run. A collection of the user,
      "MODULE:FUNCTION", must be named here.
    root: The collection's folder; "" for the run's root.
    tatoeba_root: A folder of translation tests; "" for the run's, if no other
      tests are given.
    sets: Tests that a library finds by name: name to "LIBRARY:NAME …", as in
      the config's data.sets. The run's sets, if no tests are given.
    output: The folder of the results; "" for a new folder in the run's folder.
    on_bad_record: What to do with bad records of the tests: "error" or "skip".
    extra: Evaluators of the user: name to "MODULE:FUNCTION".
    prompt: The name of a prompt that the model was trained with; "" for the
      prefix of each role.
    truncate_dim: Vectors are cut to their first so many numbers; 0 for as many
      as the model's contract says.

  Returns:
    The report as text.

  Raises:
    ValueError: if the model or the prompt is not found, the tests are missing
      or cannot be read, an evaluator is not found, or the results cannot be
      written.
  """
  from mlir_jax import workdir
  from mlir_jax.batches import drawing
  from mlir_jax.data import collections
  from mlir_jax.evals import evaluators, ranking, suite
  from mlir_jax.hosts import multihost
  from mlir_jax.retrieval import model
  from mlir_jax.storage import locations

  if output and multihost.is_first():
    locations.check_output(locations.absolute(output), f"--output={output}")
  bad_records = records.BadRecords(on_bad_record, "--on_bad_record")
  found_evaluators = evaluators.find(extra, "--evaluator=")
  loaded = model.load(
    source, checkpoint, prompt=prompt, truncate_dim=truncate_dim
  )
  description = loaded.description
  given = _Tests(collection, root, tatoeba_root, sets)
  if not description and not (any(given) and output):
    raise ValueError(
      f"{source} is not a run of this program: give its tests with --root or"
      " --collection, and the folder of the results with --output."
    )
  config = description.config if description else {}
  chosen = _choose_tests(given, config.get("data", {}), source)
  trained_on, groups, notes = None, {}, []
  if description:
    notes = _notes(config, description.provenance)
    trained_on = _find_trained_on(config, given.collection)
    groups = find_groups(description.provenance, trained_on)
    if not (any(given) or trained_on):
      raise ValueError("Give the tests: --collection and --root.")
  tested = collections.load(
    chosen.collection,
    chosen.root,
    bad_records,
    chosen.tatoeba_root,
    require_pairs=False,
    prefix="--",
    sets=chosen.sets,
    selects=lambda language: True,  # Nothing is selected here.
  )
  if not output:
    name = f"{tested.name}+{prompt}" if prompt else tested.name
    output = (
      f"{loaded.path}/evaluate-{name.replace('/', '_')}"
      f"-{workdir.evaluated(checkpoint, truncate_dim)}"
    )
    if multihost.is_first():
      locations.check_output(output, f"{output} (give another --output)")
  tests = tested.tests()
  translation_tests = tested.translation_tests()
  if not tests and not translation_tests:
    raise ValueError(
      f"--root={chosen.root}: there are no tests; put them in eval/, or name"
      " them with --set."
    )
  test_notes = [note for test in tests for note in test.notes]
  for note in (*tested.notes(), *test_notes):
    print(note)
  print(records.describe_bad("test", bad_records.drain()))
  evaluation = suite.Suite(
    tests,
    translation_tests,
    groups,
    loaded.text_encoder,
    output,
    top_k=config["eval"]["top_k"] if config else ranking.DEPTH,
    trained_on=trained_on,
    streams=drawing.streams_read(config["batch"]) if config else (),
    extra=found_evaluators,
    notes=[
      *notes,
      *([f"Texts had the prompts of {prompt!r}."] if prompt else ()),
      *loaded.notes(),
    ],
  )
  evaluation.table(loaded.params, loaded.step or 0)
  return evaluation.report()


def _choose_tests(
  given: _Tests, data: Mapping[str, Any], source: str
) -> _Tests:
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
  return _Tests(collection, root, tatoeba_root, sets)


def _notes(
  config: Mapping[str, Any], provenance: Mapping[str, Any]
) -> list[str]:
  """Returns sentences on the training; an older run has none."""
  from mlir_jax.data import guide_vectors

  notes = [provenance["selection"]] if provenance.get("selection") else []
  return [*notes, *guide_vectors.describe_all(provenance, config["loss"])]


def _find_trained_on(
  config: Mapping[str, Any], named: str
) -> records.Collection | None:
  """Returns the collection that a run was trained on; None if it is gone.

  Args:
    config: The run's config.
    named: The collection that this command line names, or "". No other code of
      a user is imported.
  """
  from mlir_jax.data import cleaning, collections, source_settings
  from mlir_jax.data.collections import pair_files

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
  from mlir_jax.evals import selection

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


def main():
  """Evaluates as the flags say."""
  process_flags.join()
  if bool(_WORKDIR.value) == bool(_MODEL.value):
    raise ValueError("Give either --workdir, a run's folder, or --model.")
  print(
    evaluate(
      _WORKDIR.value or _MODEL.value,
      _CHECKPOINT.value,
      collection=_COLLECTION.value,
      root=_ROOT.value or "",
      tatoeba_root=_TATOEBA_ROOT.value or "",
      output=_OUTPUT.value or "",
      on_bad_record=_ON_BAD_RECORD.value,
      prompt=_PROMPT.value,
      truncate_dim=_TRUNCATE_DIM.value,
      sets=shared_flags.parse_named(
        "--set", _SET.value, "sw=ir_datasets:mr-tydi/sw/test"
      ),
      extra=shared_flags.parse_named(
        "--evaluator", _EVALUATOR.value, "gap=my_project.evals:gap"
      ),
    )
  )


if __name__ == "__main__":
  _WORKDIR = shared_flags.define_workdir()
  _MODEL = flags.DEFINE_string(
    "model",
    "",
    "In place of a run: an export, a sentence-transformers folder or a name on"
    " the Hugging Face hub.",
  )
  _CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    "last",
    shared_flags.CHECKPOINT_HELP,
  )
  _PROMPT = shared_flags.define_prompt()
  _TRUNCATE_DIM = shared_flags.define_truncate_dim()
  _COLLECTION = flags.DEFINE_string(
    "collection",
    "",
    "Another collection than the run's: cldr, folder, sets or MODULE:FUNCTION.",
  )
  _SET = flags.DEFINE_multi_string(
    "set",
    [],
    "Tests that a library finds by name, NAME=ir_datasets:ID; may be repeated.",
  )
  _ROOT = shared_flags.define_path("root", "The collection's folder.")
  _TATOEBA_ROOT = shared_flags.define_path(
    "tatoeba_root", "A folder of LASER's Tatoeba files."
  )
  _OUTPUT = shared_flags.define_path(
    "output", "The folder of the results; by default in the workdir."
  )
  _ON_BAD_RECORD = flags.DEFINE_enum(
    "on_bad_record",
    "error",
    ("error", "skip"),
    "What to do with bad records of the tests: stop, or skip and count them.",
  )
  _EVALUATOR = flags.DEFINE_multi_string(
    "evaluator",
    [],
    "An evaluator of your own, NAME=MODULE:FUNCTION; may be repeated.",
  )
  process_flags.define()
  program.start(main, required=())
