"""Reproduces a recipe: downloads, trains, evaluates, says pass or fail.

python -m mlir_jax.reproduce quickstart --workdir=W
python -m mlir_jax.reproduce --list

A recipe is a shipped one, or a file of your own (docs/recipes.md). Its scores
are compared in each language. The exit status is 0 if all scores that the
recipe declares are within their tolerance, 1 if one is not, and 3 if the recipe
declares none ("not run"). The same command goes on where it stopped. Fields of
the config may change: --config.loss.semantic.weight=0. On a pod, run the
commands that --dry_run prints; then this program compares the scores.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from mlir_jax.command_line import program, shared_flags
from mlir_jax.recipes import finding, judging, recipe, rendering, steps, tables

FILE = "reproduce.json"
# The exit status by the verdict; 2 is that of a refusal.
STATUS = {
  judging.Verdict.PASS: 0,
  judging.Verdict.FAIL: 1,
  judging.Verdict.NOT_RUN: 3,
}


class Request:
  """What the command line asks for, before its flags are parsed.

  Attributes:
    found: The recipe; None without one.
    config: The config of the training, as for --config.
  """

  def __init__(self):
    self.found: finding.Found | None = None
    self.config = ""

  def expand(self, arguments: list[str]) -> list[str]:
    """Puts the config and the settings of the recipe before the other flags.

    Args:
      arguments: The command line. Its first argument names the recipe.

    Raises:
      ValueError: if there is no such recipe.
    """
    given = flags.FLAGS.read_flags_from_files(arguments, force_gnu=False)
    if not given or given[0].startswith("-"):
      return given
    self.found = finding.find(given[0])
    self.config = self.found.config
    others = []
    for argument in given[1:]:
      name, equals, value = argument.partition("=")
      if name in ("--config", "-config"):
        if not equals:
          raise ValueError("Write --config=NAME, with an equals sign.")
        self.config = value
      else:
        others.append(argument)
    settings = self.found.recipe.settings.items()
    return [
      given[0],
      f"--config={self.config}",
      *(f"--config.{field}={value}" for field, value in settings),
      *others,
    ]


def changed_fields(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields in which a config differs from the file of its name.

  Args:
    name: The config's name or path.
    config: Field to value: "optim.learning_rate" to 1e-3.
  """
  from mlir_jax import config_checks, config_files, workdir

  base = config_files.load(name)
  config_checks.complete(base)
  config_checks.expand_paths(base)
  before = workdir.flatten(base.to_dict())
  missing = object()
  return {
    field: value
    for field, value in config.items()
    if before.get(field, missing) != value
  }


def reproduce(
  found: finding.Found,
  config_name: str,
  config: Mapping[str, Any],
  places: steps.Places,
  seeds: Sequence[int] = (),
  *,
  dry_run: bool = False,
  propose: bool = False,
) -> int:
  """Runs what is missing of a recipe, and judges its scores.

  Args:
    found: The recipe.
    config_name: The config of the training, as for --config.
    config: The config with the settings of the recipe and the changes of the
      user, as a plain dict.
    places: Where the runs and the data are.
    seeds: The seeds; () for those of the recipe.
    dry_run: Whether to print the steps alone.
    propose: Whether to print the measured scores as Python.

  Returns:
    The exit status.

  Raises:
    ValueError: if the recipe, a seed or a place cannot be used.
  """
  from etils import epath

  from mlir_jax import workdir

  wanted = found.recipe
  seeds = seeds or wanted.seeds
  recipe.check_seeds(seeds, "--seeds")
  if propose and len(seeds) < judging.MIN_SEEDS:
    raise ValueError(
      f"--propose needs the spread of {judging.MIN_SEEDS} seeds or more: give"
      " --seeds=0,1,2."
    )
  changed = changed_fields(config_name, workdir.flatten(config))
  if "seed" in changed:
    raise ValueError("--config.seed: give --seeds.")
  own = _changes_of_user(found, config_name, changed)
  planned = steps.plan(
    wanted, config_name, _fill(config, places), changed, seeds, places
  )
  if dry_run:
    for step in planned:
      print(f"{step}{'  # It is done.' if step.is_done() else ''}")
    return 0
  _check_places(wanted, places)
  _print_start(found, seeds, own)
  # A verdict of before must not stay if a step fails.
  epath.Path(f"{places.work}/{FILE}").unlink(missing_ok=True)
  if status := _run(planned):
    return status
  names = dict.fromkeys(scores.table for scores in wanted.scores)
  measured = {
    seed: {name: tables.read(places.table(seed, name))[1] for name in names}
    for seed in seeds
  }
  rows = judging.judge(wanted, measured)
  _write(found, seeds, own, rows, places)
  _print_end(wanted, seeds, own, rows)
  if propose:
    print("Scores for the file of the recipe:")
    for scores in wanted.scores:
      print(judging.propose(scores, _rows_of(scores, rows)))
  print(rendering.sentence(rows))
  return STATUS[judging.overall(rows)]


def _run(planned: Sequence[steps.Step]) -> int:
  """Runs each step that is not done, and returns the first failed status."""
  for number, step in enumerate(planned, start=1):
    place = f"Step {number} of {len(planned)}"
    if step.is_done():
      print(f"{place} is done: {step}", flush=True)
      continue
    print(f"{place}: {step}", flush=True)
    if status := steps.run(step):
      print(
        f"{place} ended with status {status}. The same command goes on from"
        " there.",
        file=sys.stderr,
      )
      return status
    step.finish()
  return 0


def _changes_of_user(
  found: finding.Found, config_name: str, changed: Mapping[str, Any]
) -> list[str]:
  """Returns the flags that are not the recipe's own."""
  settings = found.recipe.settings
  own = [
    f"--config.{field}={value}"
    for field, value in changed.items()
    if str(settings.get(field)) != str(value)
  ]
  if config_name != found.config:
    own.insert(0, f"--config={config_name}")
  return own


def _fill(config: Mapping[str, Any], places: steps.Places) -> dict[str, Any]:
  return {
    name: _fill(value, places)
    if isinstance(value, Mapping)
    else places.fill(value)
    for name, value in config.items()
  }


def _rows_of(
  scores: recipe.Scores, rows: Sequence[judging.Row]
) -> list[judging.Row]:
  return [
    row
    for row in rows
    if (row.table, row.measure) == (scores.table, scores.measure)
    and row.name in scores.expected
  ]


def _check_places(wanted: recipe.Recipe, places: steps.Places) -> None:
  from mlir_jax.storage import locations

  locations.check_output(places.work, f"--workdir={places.work}")
  if wanted.data:
    locations.check_output(places.data, f"--data={places.data}")


def _describe_changes(own: Sequence[str]) -> str:
  return (
    f"Changed on the command line: {' '.join(own)}. So this is another"
    " experiment than the recipe's."
  )


def _print_start(
  found: finding.Found, seeds: Sequence[int], own: Sequence[str]
) -> None:
  print(f"{found.name}: {found.summary}")
  print(f"{found.recipe.hardware}; {found.recipe.time}.")
  print(f"Seeds: {', '.join(map(str, seeds))}.")
  if own:
    print(_describe_changes(own))


def _print_end(
  wanted: recipe.Recipe,
  seeds: Sequence[int],
  own: Sequence[str],
  rows: Sequence[judging.Row],
) -> None:
  print()
  if published := rendering.baselines(wanted.baselines):
    print(published)
  print(rendering.to_text(rows))
  if len(seeds) > 1:
    print(f"Measured values are means over the seeds {_listed(seeds)}.")
  for note in (*wanted.notes, *([_describe_changes(own)] if own else ())):
    print(note)


def _listed(seeds: Sequence[int]) -> str:
  return ", ".join(map(str, seeds))


def _write(
  found: finding.Found,
  seeds: Sequence[int],
  own: Sequence[str],
  rows: Sequence[judging.Row],
  places: steps.Places,
) -> None:
  """Writes the verdict to the workdir."""
  import mlir_jax
  from mlir_jax.storage import writing

  content = {
    "recipe": found.name,
    "path": found.path,
    "version": mlir_jax.__version__,
    "verdict": str(judging.overall(rows)),
    "seeds": list(seeds),
    "changed": list(own),
    "rows": rendering.to_json(rows),
    "notes": list(found.recipe.notes),
    "baselines": rendering.baselines_to_json(found.recipe.baselines),
  }
  writing.write_aside(
    f"{places.work}/{FILE}",
    json.dumps(content, indent=2, ensure_ascii=False) + "\n",
  )


def _parse_seeds(texts: Sequence[str]) -> list[int]:
  for text in texts:
    if not text.isdecimal():
      raise ValueError(
        f"--seeds={','.join(texts)}: give integers with commas between them,"
        " such as 0,1,2."
      )
  return [int(text) for text in texts]


def main(arguments: Sequence[str]):
  """Reproduces the recipe that the command line names."""
  from mlir_jax.storage import locations

  if _LIST.value or not (arguments or _WORKDIR.value):
    print(finding.to_text(finding.shipped()))
    return
  if not _REQUEST.found:
    raise ValueError(
      "The name or path of the recipe comes first: mlir-jax reproduce RECIPE"
      " --workdir=W. --list shows the recipes."
    )
  if len(arguments) > 1:
    raise ValueError(
      f"Unexpected {arguments[1]!r}: give one recipe; every other argument is a"
      " flag, --name=value."
    )
  if not _WORKDIR.value:
    raise ValueError("Give --workdir; --help shows an example.")
  mirror = _MIRROR.value
  if mirror and not mirror.startswith(("http://", "https://")):
    raise ValueError(f"--mirror={mirror}: give an http or https address.")
  status = reproduce(
    _REQUEST.found,
    _REQUEST.config,
    flags.FLAGS.config.to_dict(),
    steps.Places(
      locations.absolute(_WORKDIR.value),
      locations.absolute(_DATA.value or "data"),
      mirror,
    ),
    _parse_seeds(_SEEDS.value),
    dry_run=_DRY_RUN.value,
    propose=_PROPOSE.value,
  )
  sys.exit(status)


if __name__ == "__main__":
  _REQUEST = Request()
  shared_flags.define_config()
  _WORKDIR = shared_flags.define_path(
    "workdir", "The folder of all runs of the recipe, and of reproduce.json."
  )
  _DATA = shared_flags.define_path(
    "data", "The folder of the data; data, in the current folder, if unset."
  )
  _SEEDS = flags.DEFINE_list(
    "seeds", [], "The seeds, in place of the recipe's: 0,1,2."
  )
  _MIRROR = flags.DEFINE_string(
    "mirror",
    "",
    "An address with a folder for each corpus, in place of the public ones.",
  )
  _LIST = flags.DEFINE_bool("list", False, "Lists the recipes.")
  _DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Prints the steps; runs none of them."
  )
  _PROPOSE = flags.DEFINE_bool(
    "propose",
    False,
    "Also prints the measured scores as Python, for the file of a recipe, with"
    " a tolerance from the spread of the seeds.",
  )
  program.start(main, required=(), takes_files=True, expand=_REQUEST.expand)
