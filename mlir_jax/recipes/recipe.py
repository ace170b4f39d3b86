"""What a recipe declares: data, training, evaluations, the scores to expect.

A recipe is a Python file. Its first line says what it reproduces, and it
defines RECIPE, an object of the class `Recipe`.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

# The table of results that training itself writes, after its last step.
TRAINING = "training"
# In settings and flags it becomes the folder of the data, from --data.
DATA = "{data}"

_NAME = "[a-z][a-z0-9_]*"
# `reproduce` gives them itself.
_OWN_SETTINGS = ("seed",)
_OWN_FLAGS = ("workdir", "model", "output", "distributed")


@dataclasses.dataclass(frozen=True)
class Scores:
  """The expected values of one measure in one table of results.

  Attributes:
    measure: The measure, as report.json names it: "mrr@100",
      "lareqa-pool map".
    expected: Row to value. A row is a language ("de"), a language with its
      split ("en (dev)"), or the name of a group for the mean of the group. A
      value is a fraction, as in the files of results; None if nobody has
      measured it, which the table shows as "not run".
    tolerance: The greatest difference that passes, in either direction. It is
      needed where there is a value.
    table: `TRAINING`, or the name of an evaluation.
  """

  measure: str
  expected: Mapping[str, float | None]
  tolerance: float | None = None
  table: str = TRAINING

  def __post_init__(self):
    where = f"Scores({self.measure!r})"
    if not self.measure or not isinstance(self.measure, str):
      raise ValueError(f"{where}: name the measure, such as 'mrr@100'.")
    if not self.expected:
      raise ValueError(f"{where}: expected is empty; name the rows.")
    for row, value in self.expected.items():
      if value is not None and not _is_number(value):
        raise ValueError(
          f"{where}: expected[{row!r}] is {value!r}; give a finite number, or"
          " None if nobody has measured it."
        )
    if all(value is None for value in self.expected.values()):
      return
    tolerance = self.tolerance
    if tolerance is None or not _is_number(tolerance) or tolerance < 0:
      raise ValueError(
        f"{where}: tolerance is {tolerance!r}; give a number from 0."
      )


@dataclasses.dataclass(frozen=True)
class Baseline:
  """Published values of another system. They are shown and never judged.

  Attributes:
    system: The name of the system.
    source: Where the values are from: the document and its table.
    values: Measure to row to value, named as in `Scores`. The table adds the
      mean over the rows.
  """

  system: str
  source: str
  values: Mapping[str, Mapping[str, float]]

  def __post_init__(self):
    if not self.source:
      raise ValueError(
        f"Baseline({self.system!r}): name the document and its table in source."
      )
    for measure, rows in self.values.items():
      for row, value in rows.items():
        if not _is_number(value):
          raise ValueError(
            f"Baseline({self.system!r}): values[{measure!r}][{row!r}] is"
            f" {value!r}; give a finite number."
          )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """An experiment: `mlir-jax reproduce` runs it and judges its results.

  Attributes:
    config: The config of the training: a name or a path, as for --config. ""
      is the recipe's own file, which then defines get_config.
    data: The corpora that `mlir-jax download` brings, by their names there, to
      their languages; () for all languages. Empty if the data are embedded.
    settings: Fields of the config to values: {"data.root": "{data}/debian"}.
    evaluations: The evaluations after the training: name to the flags of
      `mlir-jax evaluate`. Training itself writes the table `TRAINING`.
    scores: The scores to expect.
    seeds: The seeds of the runs. A score is the mean over them.
    hardware: What the scores were measured on, or what the recipe needs.
    time: How long it takes on this hardware.
    notes: Sentences below the table, such as how the tolerance was chosen.
    baselines: Published values, for comparison.
  """

  scores: Sequence[Scores]
  hardware: str
  time: str
  config: str = ""
  data: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  evaluations: Mapping[str, Sequence[str]] = dataclasses.field(
    default_factory=dict
  )
  seeds: Sequence[int] = (0,)
  notes: Sequence[str] = ()
  baselines: Sequence[Baseline] = ()

  def __post_init__(self):
    for field in ("scores", "seeds", "notes", "baselines"):
      if isinstance(getattr(self, field), str):
        raise ValueError(f"{field} is a text; give a list.")
    for field in ("hardware", "time"):
      if not getattr(self, field):
        raise ValueError(f"{field} is empty; the list of recipes shows it.")
    if not self.scores:
      raise ValueError(
        "scores is empty; name the rows, with None where nobody has measured."
      )
    check_seeds(self.seeds, "seeds")
    for field in _OWN_SETTINGS:
      if field in self.settings:
        raise ValueError(f"settings names {field!r}: give it in seeds.")
    self._check_evaluations()
    seen = set()
    for scores in self.scores:
      if scores.table not in (TRAINING, *self.evaluations):
        raise ValueError(
          f"Scores({scores.measure!r}): there is no table {scores.table!r};"
          f" there are {', '.join([TRAINING, *self.evaluations])}."
        )
      for row in scores.expected:
        place = scores.table, scores.measure, row
        if place in seen:
          raise ValueError(f"scores has {' / '.join(place)} twice.")
        seen.add(place)

  def _check_evaluations(self) -> None:
    for name, flags in self.evaluations.items():
      if name == TRAINING or not re.fullmatch(_NAME, name):
        raise ValueError(
          f"evaluations: {name!r} cannot be a name; give small letters, digits"
          f" and _, and not {TRAINING!r}."
        )
      for flag in [flags] if isinstance(flags, str) else flags:
        if isinstance(flags, str) or not flag.startswith("--"):
          raise ValueError(
            f"evaluations[{name!r}] has {flag!r}; give a list of flags of"
            " mlir-jax evaluate, each as --NAME=VALUE."
          )
        if flag[2:].partition("=")[0] in _OWN_FLAGS:
          raise ValueError(
            f"evaluations[{name!r}] has {flag!r}, which reproduce gives itself;"
            " leave it out."
          )


def check_seeds(seeds: Sequence[int], setting: str) -> None:
  """Refuses seeds that are no integers from 0, or that are there twice.

  Args:
    seeds: The seeds.
    setting: Their field or flag, for the message.
  """
  for seed in seeds:
    if type(seed) is not int or not 0 <= seed < 2**32:
      raise ValueError(
        f"{setting}: {seed!r} is not an integer in [0, 4294967295]."
      )
  if not seeds:
    raise ValueError(f"{setting} is empty: give one seed or more, such as 0.")
  if len(set(seeds)) < len(seeds):
    raise ValueError(f"{setting}: a seed is there twice.")


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)
