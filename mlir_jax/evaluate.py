"""Evaluates a model: the table of all languages.

python -m mlir_jax.evaluate --workdir=W --checkpoint=best

The tests are those of the collection that the run was trained on, or of
another one: --collection=folder --root=FOLDER. Languages stand in the groups
that they had in training, whatever the collection of the tests has of them.
A model that was not trained here is evaluated with --model and --output; its
languages have no groups. Several processes (--distributed) share the encoding
and the search; all need the tests.
"""

from collections.abc import Mapping
from typing import Any

from absl import flags

from mlir_jax import command_line, extensions, process_flags, shared_flags
from mlir_jax.data import records


def evaluate(
  source: str,
  checkpoint: str = "last",
  *,
  collection: str = "",
  root: str = "",
  tatoeba_root: str = "",
  output: str = "",
  on_bad_record: str = "error",
) -> str:
  """Evaluates a model and writes results, TREC runs and report.

  Args:
    source: A run's folder, or what else `mlir_jax.load` takes.
    checkpoint: Of a run.
    collection: The collection of the tests; "" for the run's, or "folder". A
      collection of the user, "MODULE:FUNCTION", must be named here.
    root: The collection's folder; "" for the run's.
    tatoeba_root: A folder of translation tests; "" for the run's, if the
      tests are the run's.
    output: Where results go; "" for a folder in the run's.
    on_bad_record: What to do with bad records of the tests.

  Returns:
    The report.

  Raises:
    ValueError: if there is no such model, the tests cannot be read, there are
      none, or the results cannot be written.
  """
  from mlir_jax.batches import drawing
  from mlir_jax.data import collections
  from mlir_jax.evals import ranking, suite
  from mlir_jax.hosts import multihost
  from mlir_jax.retrieval import model
  from mlir_jax.storage import locations

  if output and multihost.is_first():
    locations.check_output(locations.absolute(output), f"--output={output}")
  bad_records = records.BadRecords(on_bad_record, "--on_bad_record")
  loaded = model.load(source, checkpoint)
  description = loaded.description
  given = bool(collection or root or tatoeba_root)
  if not description and not (given and output):
    raise ValueError(
      f"{source} is not a run of this program: give its tests with --root or"
      " --collection, and the folder of the results with --output."
    )
  config = description.config if description else {}
  data = config.get("data", {})
  if not given:
    root, tatoeba_root = data["root"], data["tatoeba_root"]
  named = collection  # The code that this command line names.
  collection = collection or data.get("collection", "folder")
  if extensions.is_target(collection) and collection != named:
    raise ValueError(
      f"{source} was trained on the collection {collection}, whose code is"
      " imported only where the command names it: repeat"
      f" --collection={collection}, or give another one."
    )
  if collection == data.get("collection"):
    root = root or data["root"]
  if collection == "folder" and not root:
    raise ValueError("--collection=folder needs --root=FOLDER.")
  trained_on, groups = None, {}
  if description:
    trained_on = _find_trained_on(config, named)
    groups = find_groups(description.provenance, trained_on)
    if not (given or trained_on):
      raise ValueError("Give the tests: --collection and --root.")
  tested = collections.load(
    collection,
    root,
    bad_records,
    tatoeba_root,
    require_pairs=False,
    prefix="--",
  )
  if not output:
    output = f"{loaded.path}/evaluate-{tested.name}-{checkpoint}"
    if multihost.is_first():
      locations.check_output(output, f"{output} (give another --output)")
  tests = tested.tests()
  translation_tests = tested.translation_tests()
  if not tests and not translation_tests:
    raise ValueError(f"--root={root}: there are no tests, which are in eval/.")
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
  )
  evaluation.table(loaded.params, loaded.step or 0)
  return evaluation.report()


def _find_trained_on(
  config: Mapping[str, Any], named: str
) -> records.Collection | None:
  """The collection that a run was trained on; None if it is gone.

  Args:
    config: The run's config.
    named: The collection that this command line names, if any: its code alone
      is imported.
  """
  from mlir_jax.data import collections

  data = config["data"]
  if extensions.is_target(data["collection"]) and data["collection"] != named:
    print(
      "Shared texts are not counted: the run's collection,"
      f" {data['collection']}, is code that this command does not name."
    )
    return None
  try:
    return collections.load(
      data["collection"],
      data["root"],
      # Those that training refused or skipped are not counted here, either.
      records.BadRecords("skip"),
      data["tatoeba_root"],
      require_pairs=bool(config["batch"]["retrieval"]),
    )
  except (ValueError, OSError) as error:
    print(f"Shared texts are not counted, the run's data are gone: {error}")
    return None


def find_groups(
  provenance: Mapping[str, Any], trained_on: records.Collection | None
) -> Mapping[str, str]:
  """Language to its group in training; empty if it is not known.

  Args:
    provenance: Of the checkpoint.
    trained_on: The collection that it was trained on, if it is there.
  """
  if (groups := provenance.get("groups")) is not None:
    return groups
  if trained_on:  # Of a version that did not record them.
    return trained_on.groups
  print(
    "Which languages training had is not recorded, and its data are gone: the"
    " report has one mean of all languages."
  )
  return {}


def main():
  """Evaluates by the flags."""
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
    "checkpoint", "last", 'Of a run: "last", "best" by English dev, or a step.'
  )
  _COLLECTION = flags.DEFINE_string(
    "collection",
    "",
    "Another collection than the run's: cldr, folder or MODULE:FUNCTION.",
  )
  _ROOT = shared_flags.define_path("root", "The collection's folder.")
  _TATOEBA_ROOT = shared_flags.define_path(
    "tatoeba_root", "A folder of LASER's Tatoeba files."
  )
  _OUTPUT = shared_flags.define_path(
    "output", "Where results go; by default in the workdir."
  )
  _ON_BAD_RECORD = flags.DEFINE_enum(
    "on_bad_record",
    "error",
    ("error", "skip"),
    "What to do with bad records of the tests: stop, or skip and count them.",
  )
  process_flags.define()
  command_line.start(main, required=())
