"""Groups runs that differ only in the seed, and says how the others differ."""

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlir_jax import workdir
from mlir_jax.reporting import folders

SEED = "seed"
# Runs of one variant may differ in what does not change the result. They read
# the same data.
_OF_DATA = ("data.root", "data.tatoeba_root")


@dataclasses.dataclass(frozen=True)
class Variant:
  """Runs that differ only in the seed.

  Attributes:
    name: What the reader sees.
    runs: A run for each seed.
  """

  name: str
  runs: tuple[folders.Run, ...]

  @property
  def title(self) -> str:
    """The name, with the number of seeds if there are several."""
    count = len(self.runs)
    return f"{self.name} ({count} seeds)" if count > 1 else self.name

  @property
  def first(self) -> folders.Run:
    """The run that shows what cannot be averaged: maps and queries."""
    return self.runs[0]


def group(
  runs: Sequence[folders.Run], defaults: Mapping[str, Any]
) -> list[Variant]:
  """Groups runs that differ only in the seed, in the order of the runs.

  Args:
    runs: The runs. A run without a config is a variant of its own. So is a
      second run with the same seed: it adds nothing to an interval over seeds.
    defaults: Field to value, for fields that an older config does not have.
  """
  found: dict[str, list[folders.Run]] = {}
  for run in runs:
    key = _experiment(run, defaults)
    members = found.get(key, [])
    if not run.config or _seed(run) in map(_seed, members):
      key = f"{key} {run.name}"  # No other run has this name.
    found.setdefault(key, []).append(run)
  names = [_name(members) for members in found.values()]
  return [
    Variant(
      # Two variants may have the same beginning.
      name if names.count(name) == 1 else " + ".join(r.name for r in members),
      tuple(members),
    )
    for name, members in zip(names, found.values(), strict=True)
  ]


def _seed(run: folders.Run) -> Any:
  return run.config.get(SEED, 0)


def _experiment(run: folders.Run, defaults: Mapping[str, Any]) -> str:
  """Returns what runs of one variant have in common, as text."""
  # `differences` leaves out fields that may change when a run resumes.
  changed = workdir.differences(run.config, {}, {})
  kept = {name: run.config.get(name) for name in (*changed, *_OF_DATA)}
  values = {
    name: value
    for name, value in kept.items()
    if name != SEED and value != defaults.get(name)
  }
  folder = "" if not run.config else _folder_in_run(run)
  return json.dumps([folder, values], sort_keys=True)


def _folder_in_run(run: folders.Run) -> str:
  """Returns "evaluate-…" for an evaluation of a run, "" for a run."""
  name = os.path.basename(run.path)
  return name if name.startswith("evaluate-") and not run.metrics else ""


def _name(members: Sequence[folders.Run]) -> str:
  """Names a variant by what the names of its runs begin with."""
  names = [run.name for run in members]
  if len(names) == 1:
    return names[0]
  columns = zip(*names, strict=False)
  same = itertools.takewhile(lambda signs: len(set(signs)) == 1, columns)
  common = "".join(signs[0] for signs in same)
  # "all-seed" of "all-seed0" and "all-seed1" is "all".
  return re.sub("([-_./](seed|s))?[-_.=/ ]*$", "", common) or " + ".join(names)


def differing_fields(
  variants: Sequence[Variant], defaults: Mapping[str, Any]
) -> dict[str, list[str]]:
  """Returns each field that differs between variants, to its values as text.

  Args:
    variants: The variants. One without a config has "–".
    defaults: Field to value, for fields that an older config does not have.
  """
  values = _values(variants, defaults)
  known = [n for n, variant in enumerate(variants) if variant.first.config]
  return {
    field: texts
    for field, texts in values.items()
    if len({texts[number] for number in known}) > 1
  }


def changed_fields(
  variants: Sequence[Variant], defaults: Mapping[str, Any]
) -> dict[str, list[str]]:
  """Returns each field that is not the default: the default, then the values.

  See `differing_fields`.
  """
  return {
    field: [to_text(defaults.get(field)), *texts]
    for field, texts in _values(variants, defaults).items()
    if set(texts) - {to_text(defaults.get(field)), "–"}
  }


def _values(
  variants: Sequence[Variant], defaults: Mapping[str, Any]
) -> dict[str, list[str]]:
  """Returns field to the text of each variant's values."""
  configs = [variant.first.config for variant in variants]
  fields = {field for config in configs for field in config}
  order = [field for field in defaults if field in fields]
  return {
    field: [_text_of(variant, field, defaults) for variant in variants]
    for field in (*order, *sorted(fields - set(order)))
  }


def _text_of(variant: Variant, field: str, defaults: Mapping[str, Any]) -> str:
  """Writes the values that a field has in the runs of a variant."""
  if not variant.first.config:
    return "–"
  texts = [
    to_text(run.config.get(field, defaults.get(field))) for run in variant.runs
  ]
  return ", ".join(dict.fromkeys(texts))


def to_text(value: Any) -> str:
  """Writes the value of a field: a text stays as it is."""
  if isinstance(value, str):
    return value or '""'
  return json.dumps(value, ensure_ascii=False)
