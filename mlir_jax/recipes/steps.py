"""The steps of a recipe: programs that run one after the other, or are done."""

import dataclasses
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from mlir_jax import config as config_lib
from mlir_jax import workdir
from mlir_jax.recipes import recipe as recipe_lib
from mlir_jax.recipes import tables
from mlir_jax.storage import reading, writing

# In the folder of an evaluation: what was evaluated, and with which flags.
_RECORD = "reproduce.json"


@dataclasses.dataclass(frozen=True)
class Step:
  """A program with its flags.

  Attributes:
    arguments: The program and its flags, after `mlir-jax`.
    is_done: Whether its result is there already.
    finish: Is called when the program has ended well.
  """

  arguments: Sequence[str]
  is_done: Callable[[], bool] = lambda: False
  finish: Callable[[], None] = lambda: None

  def __str__(self):
    return shlex.join(["mlir-jax", *self.arguments])


@dataclasses.dataclass(frozen=True)
class Places:
  """Where a recipe works.

  Attributes:
    work: The folder of all its runs.
    data: The folder of its data.
    mirror: An address that replaces the public ones; it has a folder for each
      corpus. "" for none.
  """

  work: str
  data: str
  mirror: str = ""

  def run(self, seed: int) -> str:
    """Returns the folder of the run of a seed."""
    return f"{self.work}/seed-{seed}"

  def table(self, seed: int, table: str) -> str:
    """Returns the folder of a table of results."""
    name = f"evaluate-{table}"
    if table == recipe_lib.TRAINING:
      name = workdir.RESULTS
    return f"{self.run(seed)}/{name}"

  def fill(self, value: Any) -> Any:
    """Puts the folder of the data into a text; other values stay."""
    if not isinstance(value, str):
      return value
    return value.replace(recipe_lib.DATA, self.data)


def plan(
  recipe: recipe_lib.Recipe,
  config_name: str,
  config: Mapping[str, Any],
  changed: Mapping[str, Any],
  seeds: Sequence[int],
  places: Places,
) -> list[Step]:
  """Returns the steps of a recipe, in order.

  Args:
    recipe: The recipe.
    config_name: The config of the training, as for --config.
    config: The config with all changes but the seed, as a plain dict.
    changed: The fields in which it differs from the config of that name, to
      their values.
    seeds: A run is trained with each of them.
    places: Where.

  Raises:
    ValueError: if `mlir-jax download` has no such corpus or language.
  """
  steps = [
    _download(name, languages, places)
    for name, languages in recipe.data.items()
  ]
  for seed in seeds:
    of_seed = {**config, "seed": seed}
    steps.append(_train(config_name, of_seed, changed, places))
    steps += [
      _evaluate(name, flags, of_seed, places)
      for name, flags in recipe.evaluations.items()
    ]
  return steps


def _download(name: str, languages: Sequence[str], places: Places) -> Step:
  """Brings a corpus; it does little if the corpus is there already."""
  from mlir_jax.corpora import building, catalog, corpus

  building.plan(name, places.data, languages)  # It refuses a wrong name.
  arguments = ["download", name, f"--output={places.data}"]
  if languages:
    arguments.append(f"--languages={','.join(languages)}")
  if places.mirror:
    stem = name.partition(":")[0]
    mixed = isinstance(catalog.CORPORA[stem], corpus.Mixture)
    # The parts of a mixture have folders of their own.
    mirror = places.mirror.rstrip("/")
    arguments.append(f"--mirror={mirror if mixed else f'{mirror}/{stem}'}")
  return Step(arguments)


def _train(
  name: str,
  config: Mapping[str, Any],
  changed: Mapping[str, Any],
  places: Places,
) -> Step:
  """Trains a run, or goes on with it."""
  seed = config["seed"]
  flags = [
    f"--config.{field}={places.fill(value)}"
    for field, value in (*changed.items(), ("seed", seed))
  ]

  def is_done():
    kept = epath.Path(places.run(seed)) / workdir.CONFIG_FILE
    return (
      kept.exists()
      and _same(config, reading.read_json(kept))
      and tables.last_step(places.table(seed, recipe_lib.TRAINING))
      == config["train"]["steps"]
    )

  return Step(
    ["train", f"--config={name}", *flags, f"--workdir={places.run(seed)}"],
    is_done,
  )


def _evaluate(
  name: str, flags: Sequence[str], config: Mapping[str, Any], places: Places
) -> Step:
  """Evaluates a run; the folder of the table records what was evaluated."""
  seed = config["seed"]
  given = [places.fill(flag) for flag in flags]
  folder = places.table(seed, name)
  record = f"{folder}/{_RECORD}"

  def is_done():
    if tables.last_step(folder) is None:
      return False
    if not epath.Path(record).exists():
      # The user ran the printed command. A later training makes it out of date.
      training = places.table(seed, recipe_lib.TRAINING)
      return tables.written(folder) >= tables.written(training)
    kept = reading.read_json(record)
    return kept.get("flags") == given and _same(config, kept.get("config", {}))

  def finish():
    content = {"flags": given, "config": config}
    writing.write_aside(record, json.dumps(content, indent=2) + "\n")

  return Step(
    ["evaluate", f"--workdir={places.run(seed)}", *given, f"--output={folder}"],
    is_done,
    finish,
  )


def _same(config: Mapping[str, Any], kept: Mapping[str, Any]) -> bool:
  """Whether two configs train the same model."""
  return not workdir.differences(config, kept, config_lib.default().to_dict())


def run(step: Step) -> int:
  """Runs a step, which gets the signals that this program gets.

  So Ctrl-C lets the training save its state. `subprocess.run` would kill it.

  Returns:
    The program's exit status; 128 and more after a signal.
  """
  command = [sys.executable, "-m", "mlir_jax", *step.arguments]
  # In a group of its own, it does not get a signal of the terminal twice.
  process = subprocess.Popen(command, process_group=0)
  received = []

  def forward(number, _):
    received.append(number)
    process.send_signal(number)

  before = {
    number: signal.signal(number, forward)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
  }
  try:
    status = process.wait()
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  if received and not status:
    return 128 + received[-1]
  return status if status >= 0 else 128 - status
