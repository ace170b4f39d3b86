"""Evaluates a checkpoint: the table of all languages.

python -m mlir_jax.evaluate --workdir=W --checkpoint=best

The tests are those of the collection that it was trained on, or of another
one: --collection=folder --root=FOLDER.
"""

from absl import flags

from mlir_jax import command_line


def main():
  """Evaluates by the flags."""
  from mlir_jax.data import collections, records
  from mlir_jax.evals import suite
  from mlir_jax.mesh import sharding
  from mlir_jax.retrieval import model

  loaded = model.load(_WORKDIR.value, _CHECKPOINT.value, sharding.make_mesh())
  data = loaded.description.config["data"]
  bad_records = records.BadRecords(data["on_bad_record"])
  if _COLLECTION.value:
    collection = collections.load(
      _COLLECTION.value, _ROOT.value, bad_records, _TATOEBA_ROOT.value
    )
  else:
    collection = collections.load(
      data["collection"],
      _ROOT.value or data["root"],
      bad_records,
      _TATOEBA_ROOT.value or data["tatoeba_root"],
    )
  tests = collection.tests()
  print(bad_records.summary())
  evaluation = suite.Suite(
    collection,
    tests,
    loaded.text_encoder,
    _OUTPUT.value or f"{_WORKDIR.value}/evaluate-{_CHECKPOINT.value}",
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
  _ROOT = flags.DEFINE_string("root", "", "The collection's folder.")
  _TATOEBA_ROOT = flags.DEFINE_string(
    "tatoeba_root", "", "A folder of LASER's Tatoeba files."
  )
  _OUTPUT = flags.DEFINE_string(
    "output", "", "Where results go; by default in the workdir."
  )
  command_line.run(main, required=("workdir",))
