"""Evaluates a checkpoint: the table of all languages.

python -m mlir_jax.evaluate --workdir=W --checkpoint=best

The tests are those of the collection that it was trained on, or of another
one: --collection=folder --root=FOLDER. Several processes (--distributed) share
the encoding and the search; all need the tests.
"""

from absl import flags

from mlir_jax import command_line


def main():
  """Evaluates by the flags."""
  command_line.join_processes()
  from mlir_jax.data import collections, drawing, records
  from mlir_jax.evals import suite
  from mlir_jax.retrieval import model

  loaded = model.load_run(_WORKDIR.value, _CHECKPOINT.value)
  config = loaded.description.config
  data = config["data"]
  bad_records = records.BadRecords(data["on_bad_record"])
  trained_on = None
  try:
    trained_on = collections.load(
      data["collection"],
      data["root"],
      bad_records,
      data["tatoeba_root"],
      require_pairs=bool(config["batch"]["retrieval"]),
    )
  except (ValueError, OSError) as error:
    print(f"Shared texts are not counted, the run's data are gone: {error}")
  if _COLLECTION.value or _ROOT.value or _TATOEBA_ROOT.value:
    tested = collections.load(
      _COLLECTION.value or data["collection"],
      _ROOT.value or data["root"],
      bad_records,
      _TATOEBA_ROOT.value or "",
      require_pairs=False,
    )
  elif trained_on:
    tested = trained_on
  else:
    raise ValueError("Give the tests: --collection and --root.")
  tests = tested.tests()
  translation_tests = tested.translation_tests()
  test_notes = [note for test in tests for note in test.notes]
  for note in (*tested.notes(), *test_notes):
    print(note)
  print(records.describe_bad("test", bad_records.drain()))
  evaluation = suite.Suite(
    tests,
    translation_tests,
    tested.groups,
    loaded.text_encoder,
    _OUTPUT.value
    or f"{_WORKDIR.value}/evaluate-{tested.name}-{_CHECKPOINT.value}",
    top_k=config["eval"]["top_k"],
    trained_on=trained_on,
    streams=drawing.streams_read(config["batch"]),
  )
  evaluation.table(loaded.params, loaded.step)
  print(evaluation.report())


if __name__ == "__main__":
  _WORKDIR = command_line.define_workdir()
  _CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "last", '"last", "best" by English dev, or a step.'
  )
  _COLLECTION = flags.DEFINE_string(
    "collection", "", "Another collection than the run's: cldr or folder."
  )
  _ROOT = command_line.define_path("root", "The collection's folder.")
  _TATOEBA_ROOT = command_line.define_path(
    "tatoeba_root", "A folder of LASER's Tatoeba files."
  )
  _OUTPUT = command_line.define_path(
    "output", "Where results go; by default in the workdir."
  )
  command_line.define_processes()
  command_line.run(main, required=("workdir",))
