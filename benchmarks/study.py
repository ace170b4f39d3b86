"""Studies how many translated sentences a language needs; see docs/study.md.

python benchmarks/study.py --data=DATA --model=E5 --output=OUT --dry_run
python benchmarks/study.py --data=DATA --model=E5 --output=OUT --seeds=3
python benchmarks/study.py --output=OUT --tables

English question-passage pairs and some translations train a retriever, which
searches in eleven languages. DATA is what `mlir-jax download nq libreoffice
tatoeba ntrex xquadr` writes. E5 is a start that benchmarks/study/start.py
makes. Each cell of the study (benchmarks/study/cells.py) is trained with each
seed. The same command goes on with a killed one: finished cells are skipped,
and a started training continues from its checkpoint.

--tables adds the finished cells of OUT to benchmarks/study/results.jsonl, and
makes the tables and figures of docs/study.md from this file alone.
--config.FIELD=VALUE sets a field for all cells, for a trial; its results are
not added.
"""

import argparse
import ast
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import tqdm
from study import cells as cells_lib
from study import commands, figures, results, running, tables

from mlir_jax.storage import reading, writing

DOCUMENT = pathlib.Path(__file__).resolve().parents[1] / "docs" / "study.md"
# Minutes of a job on two cores, before one of its kind is finished. The
# encoder that is trained from scratch takes half an hour more for each seed.
GUESSES = {"small": 9.0, "whole": 28.0, "mlm": 9.0}
_UNTRAINED = 4.0


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
  """Parses a command line; `extra` has the fields of --config.FIELD=VALUE."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--data", type=_path, help="the corpora")
  parser.add_argument("--model", type=_path, help="the start")
  parser.add_argument("--whole", type=_path, help="the start with all layers")
  parser.add_argument("--output", type=_path)
  parser.add_argument("--cells", default="", help="names: centre,ir")
  parser.add_argument(
    "--axis", default="", help=f"one of {', '.join(cells_lib.AXES)}"
  )
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument(
    "--minutes", type=float, help="start no cell after so many minutes"
  )
  parser.add_argument("--dry_run", action="store_true")
  parser.add_argument("--tables", action="store_true")
  arguments, rest = parser.parse_known_args(argv)
  arguments.extra = {}
  for flag in rest:
    match = re.fullmatch(r"--config\.([\w.]+)=(.*)", flag)
    if not match:
      parser.error(f"{flag} is not known; see --help.")
    arguments.extra[match[1]] = _value(match[2])
  if arguments.seeds < 1:
    parser.error("--seeds must be 1 or more.")
  needed = ["output"] if arguments.dry_run else ["data", "model", "output"]
  lacking = [f"--{n}" for n in needed if getattr(arguments, n) is None]
  if lacking and not arguments.tables:
    parser.error(f"Give {' and '.join(lacking)}.")
  return arguments


def _path(text: str) -> pathlib.Path:
  """Returns a path that a command in another folder understands, too."""
  return pathlib.Path(text).expanduser().absolute()


def _value(text: str) -> Any:
  """Returns the number or truth value that a text is, or the text."""
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return text


def jobs_of(cells: Sequence[cells_lib.Cell], seeds: int) -> list[running.Job]:
  """Returns the jobs: all cells with the first seed, then with the next."""
  return [
    running.Job(cell, seed)
    for seed in range(seeds)
    for cell in cells
    if not seed or cell.trained
  ]


def kind_of(job: running.Job) -> str:
  """Returns a name for the jobs that take as long as this one."""
  cell = job.cell
  side = "peer" if cell.recipe else "ours"
  return f"{cell.start} {side if cell.trained else 'untrained'}"


def minutes_of(
  job: running.Job, finished: Mapping[running.Job, Mapping[str, Any]]
) -> float:
  """Estimates the minutes of a job, from finished ones of its kind."""
  known = [
    sum(record["seconds"].values()) / 60
    for other, record in finished.items()
    if kind_of(other) == kind_of(job) and record["seconds"]
  ]
  if known:
    return statistics.mean(known)
  guess = GUESSES[job.cell.start]
  return guess if job.cell.trained else min(guess, _UNTRAINED)


def describe(
  jobs: Sequence[running.Job],
  finished: Mapping[running.Job, Mapping[str, Any]],
) -> str:
  """Lists the cells with their finished seeds, and the hours that are left."""
  seeds: dict[cells_lib.Cell, list[running.Job]] = {}
  for job in jobs:
    seeds.setdefault(job.cell, []).append(job)
  lines = []
  for cell, of_cell in seeds.items():
    done = sum(job in finished for job in of_cell)
    minutes = minutes_of(of_cell[0], finished)
    lines.append(
      f"{cell.name:17} {cell.axis:13} {done} of {len(of_cell)} done,"
      f" {minutes:3.0f} min each   {cell.about}"
    )
  left = [job for job in jobs if job not in finished]
  hours = sum(minutes_of(job, finished) for job in left) / 60
  known = {kind_of(job) for job, each in finished.items() if each["seconds"]}
  guessed = sorted({kind_of(job) for job in left} - known)
  how = "measured"
  if guessed:
    how = f"guessed for two cores, where nothing has run: {', '.join(guessed)}"
  lines.append(
    f"{len(jobs) - len(left)} of {len(jobs)} jobs are done. About"
    f" {hours:.1f} hours are left ({how})."
  )
  return "\n".join(lines)


def run(
  jobs: Sequence[running.Job],
  finished: dict[running.Job, Any],
  places: running.Places,
  extra: Mapping[str, Any],
  minutes: float | None,
) -> list[str]:
  """Runs the jobs that are not finished.

  Args:
    jobs: All jobs.
    finished: Job to record; it receives the new ones.
    places: The folders.
    extra: Fields that the command line sets for all cells.
    minutes: No job starts after so many minutes; None for no limit.

  Returns:
    A message for each job that failed.
  """
  running.check(places)
  for job in jobs:  # A wrong field is refused before anything runs.
    running.config_of(job.cell, extra)
  began, failed = time.monotonic(), []
  with tqdm.tqdm(
    total=len(jobs), initial=len(finished), unit="cell", smoothing=0
  ) as bar:
    for job in jobs:
      if job in finished:
        continue
      if minutes and time.monotonic() - began > 60 * minutes:
        bar.write(f"{minutes:g} minutes are over: no further cell starts.")
        break
      bar.set_description(job.name)
      try:
        finished[job] = running.run(job, places, extra)
        shown = finished[job]["results"]
        bar.write(
          f"{job.name}: "
          + ", ".join(
            f"{name} {shown[name]:.3f}"
            for name in ("nq/dev/mrr@100", "mono", "pooled", "rank_distance")
            if name in shown
          )
        )
      except (commands.CommandError, ValueError) as error:
        failed.append(f"{job.name}: {error}")
        bar.write(failed[-1])
      bar.update()
  return failed


def make_tables(
  output: pathlib.Path | None,
  file: pathlib.Path = results.FILE,
  document: pathlib.Path = DOCUMENT,
) -> list[str]:
  """Writes the results, and the tables and figures of the document.

  Args:
    output: The folder of a study, whose finished cells are added; None to use
      the file alone.
    file: The results of all finished cells.
    document: The document; its figures are in a folder of its name.

  Returns:
    Lines that say what is not in the tables, and why.
  """
  found = results.read(file)
  if output:
    paths = sorted((output / "results").glob("*.json"))
    found = results.merge(found, [reading.read_json(path) for path in paths])
    results.write(file, found)
  records, notes = results.sort_out(found)
  folder = document.with_suffix("")
  parts = {
    "status": tables.status(records, notes),
    **{axis: tables.axis(records, axis) for axis in cells_lib.AXES},
    **{
      f"{axis}-{kind}": tables.languages(records, kind, axis)
      for axis in ("pairs", "languages")
      for kind in ("mono", "pooled", "rank_distance")
    },
    "published": tables.published(),
  }
  for name, draw in (
    ("headline", figures.headline),
    ("frontier", figures.frontier),
  ):
    path = folder / f"{name}.png"
    parts[f"figure-{name}"] = (
      f"![{name}]({folder.name}/{path.name})"
      if draw(records, path)
      else f"The figure is {tables.NOT_RUN}."
    )
  text = tables.fill(document.read_text(encoding="utf-8"), parts)
  writing.write_aside(str(document), text)
  return notes


def main() -> int:
  """Runs the study as the command line says; returns the exit status."""
  arguments = parse_arguments(sys.argv[1:])
  if arguments.tables:
    for note in make_tables(arguments.output):
      print(f"Not in the tables: {note}")
    return 0
  jobs = jobs_of(
    cells_lib.choose(arguments.cells, arguments.axis), arguments.seeds
  )
  finished = {
    job: record
    for job in jobs
    if (record := running.read_finished(arguments.output, job, arguments.extra))
  }
  if arguments.dry_run:
    print(describe(jobs, finished))
    return 0
  if arguments.whole is None and any(j.cell.start == "whole" for j in jobs):
    print("The cells with all layers are left out: they need --whole.")
    jobs = [job for job in jobs if job.cell.start != "whole"]
    finished = {job: finished[job] for job in jobs if job in finished}
  places = running.Places(
    arguments.data, arguments.model, arguments.whole, arguments.output
  )
  try:
    failed = run(jobs, finished, places, arguments.extra, arguments.minutes)
  except commands.StoppedError as error:
    print("Stopped: the same command goes on.", file=sys.stderr)
    return error.status
  print(describe(jobs, finished))
  for message in failed:
    print(f"Failed: {message}", file=sys.stderr)
  return bool(failed)


if __name__ == "__main__":
  try:
    sys.exit(main())
  except ValueError as error:
    sys.exit(f"study: {error}")
