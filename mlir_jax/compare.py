"""Compares two systems: differences, intervals, p-values for each language.

python -m mlir_jax.compare --output=FOLDER W1 W2
python -m mlir_jax.compare RESULTS/a RESULTS/b
python -m mlir_jax.compare a.trec b.trec --qrels=qrels.test.txt

A system is the folder of a run (its last results are compared, or those of
--step), the folder of a column that evaluation or training has written (it
holds queries.jsonl), or a TREC run. TREC runs need judgements: --qrels for the
file of one test, or --root for folders that hold SPLIT.LANGUAGE.trec.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from mlir_jax.command_line import program, shared_flags
from mlir_jax.data import records

if TYPE_CHECKING:  # It imports JAX.
  from mlir_jax.evals import measures as measures_lib

_ONE_TEST = "test/qrels"


def compare(
  paths: Sequence[str],
  *,
  step: int | None = None,
  qrels: str = "",
  root: str = "",
  measures: str = "",
  output: str = "",
) -> str:
  """Compares two systems.

  Args:
    paths: Two systems, see above.
    step: The step of a run; None for the last one with results.
    qrels: The judgements of TREC runs.
    root: The folder of a collection, whose tests TREC runs are of.
    measures: For TREC runs, names of measures in addition to the default ones.
    output: The folder of compare.txt, compare.md and compare.json; "" to write
      none.

  Returns:
    The tables as text.

  Raises:
    ValueError: if a system is not found, or cannot be compared to the other.
  """
  from mlir_jax.evals import comparison
  from mlir_jax.storage import locations, writing

  if len(paths) != 2:
    raise ValueError(f"Give two systems to compare, not {len(paths)}.")
  if output:
    locations.check_output(locations.absolute(output), f"--output={output}")
  if qrels and root:
    raise ValueError("Give either --qrels or --root.")
  names, folders = _names(paths), list(paths)
  if qrels or root:
    values = _measure(paths, qrels, root, measures)
  else:
    if measures:
      raise ValueError("--measures needs TREC runs, with --qrels or --root.")
    folders = [_find(path, step) for path in paths]
    values = [_read(folder) for folder in folders]
  found = comparison.Comparison(names, values[0], values[1])
  found.notes += [
    f"{name} is {folder}." for name, folder in zip(names, folders, strict=True)
  ]
  text = comparison.to_text(found)
  for ending, content in (
    ("txt", text),
    ("md", comparison.to_markdown(found)),
    ("json", comparison.to_json(found)),
  ):
    if output:
      writing.write_aside(os.path.join(output, f"compare.{ending}"), content)
  return text


def _names(paths: Sequence[str]) -> tuple[str, str]:
  """Returns the shortest ends of two paths that differ."""
  first, second = (path.rstrip("/").split("/") for path in paths)
  for count in range(1, max(len(first), len(second)) + 1):
    names = "/".join(first[-count:]), "/".join(second[-count:])
    if names[0] != names[1]:
      return names
  raise ValueError(f"{paths[0]} is given twice.")


def _find(path: str, step: int | None) -> Any:
  """Returns the folder of a column.

  Args:
    path: A run's folder, or the folder of a column.
    step: As in `compare`.

  Raises:
    ValueError: if there is none.
  """
  from etils import epath

  from mlir_jax import workdir
  from mlir_jax.evals import columns
  from mlir_jax.storage import locations

  folder = epath.Path(locations.absolute(path))
  if not folder.exists():
    raise ValueError(f"{path}: there is no such folder.")
  if not folder.is_dir():
    raise ValueError(f"{path} is a file: a TREC run needs --qrels or --root.")
  if (folder / columns.QUERIES).exists():
    return folder
  results = folder / workdir.RESULTS
  steps = {}
  for each in results.glob("step-*.json"):
    number, column = each.stem.removeprefix("step-"), results / each.stem
    if number.isdecimal() and (column / columns.QUERIES).exists():
      steps[int(number)] = column
  if not steps:
    raise ValueError(
      f"{path} holds no {columns.QUERIES}, and no results of a run that have"
      " it: evaluate it again with mlir_jax.evaluate, and give the folder of a"
      " column of its results."
    )
  if step is not None and step not in steps:
    raise ValueError(
      f"--step={step}: {results} has results of the steps"
      f" {', '.join(map(str, sorted(steps)))}."
    )
  return steps[max(steps) if step is None else step]


def _read(folder: Any) -> dict[str, dict[str, Any]]:
  """Reads the values of a column's queries.

  Raises:
    ValueError: if there are none.
  """
  from mlir_jax.evals import columns

  values = columns.read_queries(folder)
  if not values:
    raise ValueError(f"{folder / columns.QUERIES} holds no judged query.")
  return values


def _measure(
  paths: Sequence[str], qrels: str, root: str, names: str
) -> list[dict[str, "measures_lib.Values"]]:
  """Measures TREC runs; the arguments are those of `compare`."""
  from mlir_jax.evals import measures

  chosen = measures.with_default(measures.parse_list(names, "--measures"))
  if qrels:
    return [_measure_file(path, qrels, chosen) for path in paths]
  tests = _read_tests(root)
  return [_measure_folder(path, tests, chosen) for path in paths]


def _measure_file(
  path: str, qrels: str, chosen: "Sequence[measures_lib.Measure]"
) -> dict[str, "measures_lib.Values"]:
  """Measures the file of a TREC run."""
  from mlir_jax.data.sources import trec
  from mlir_jax.evals import measures
  from mlir_jax.retrieval import runs

  bad_records = records.BadRecords("error", "--on_bad_record")
  judged, _ = trec.read_qrels(qrels, None, bad_records)
  return {
    _ONE_TEST: measures.per_query(chosen, judged, runs.read_run(path)),
  }


def _read_tests(root: str) -> tuple[records.RetrievalTest, ...]:
  from mlir_jax.data import collections

  return collections.load(
    "folder",
    root,
    require_pairs=False,
    prefix="--",
    selects=lambda language: True,
  ).tests()


def _measure_folder(
  path: str,
  tests: Sequence[records.RetrievalTest],
  chosen: "Sequence[measures_lib.Measure]",
) -> dict[str, Any]:
  """Measures the TREC runs of a folder, or the one of a file."""
  from mlir_jax.evals import ranking, systems

  depth = 10**9  # A run is compared as it is.
  values = ranking.run_system(
    systems.TrecRuns(path, tests), tests, chosen, top_k=depth
  )
  return {test: of_test for test, of_test in values.items() if of_test}


def main(files: list[str]) -> None:
  """Compares as the flags say."""
  print(
    compare(
      files,
      step=_STEP.value,
      qrels=_QRELS.value or "",
      root=_ROOT.value or "",
      measures=_MEASURES.value,
      output=_OUTPUT.value or "",
    )
  )


if __name__ == "__main__":
  _STEP = flags.DEFINE_integer(
    "step", None, "The step of runs; by default their last one with results."
  )
  _QRELS = shared_flags.define_path(
    "qrels", "The judgements of two TREC runs, in TREC's or BEIR's columns."
  )
  _ROOT = shared_flags.define_path(
    "root", "The folder of a collection, which judges folders of TREC runs."
  )
  _MEASURES = flags.DEFINE_string(
    "measures",
    "",
    "Further measures of TREC runs, with commas between them: nDCG@20,AP.",
  )
  _OUTPUT = shared_flags.define_path(
    "output", "The folder of compare.txt, compare.md and compare.json."
  )
  program.start(main, required=(), takes_files=True)
