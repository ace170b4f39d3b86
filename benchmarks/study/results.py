"""The results of the study: a line for each cell and seed."""

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlir_jax.storage import reading, writing
from study import cells as cells_lib

FILE = pathlib.Path(__file__).with_suffix(".jsonl")
_DIGITS = 5

# What the two collections of tests are called in results.
_OF_NQ = {
  f"{split}/en/{measure}": f"nq/{split}/{measure}"
  for split in ("dev", "test")
  for measure in ("mrr@100", "r@100")
}
_KINDS = ("mono", "cross", "pooled", "alone")


def of_tables(
  nq: Mapping[str, float], xquadr: Mapping[str, float]
) -> dict[str, float]:
  """Returns the values that the study keeps of two tables.

  Args:
    nq: Results of a model on English NQ, as evaluate writes them.
    xquadr: Results on XQuAD-R, with the protocol `lareqa`; or with "ap" alone,
      for a system that is no model.

  Returns:
    "nq/dev/mrr@100" and so on; "mono", "cross", "pooled" and "alone" (mean
    average precision) and "rank_distance" over all questions, and "mono/de" and
    so on for the questions of a language.
  """
  found = {new: nq[old] for old, new in _OF_NQ.items() if old in nq}
  for name, value in xquadr.items():
    pool, _, rest = name.partition("/")
    if pool == "lareqa":
      kind, _, measure = rest.partition("/")
      if kind in _KINDS and measure == "map":
        found[kind] = value
      elif kind == "rank_distance":
        found[rest] = value
    elif pool.removeprefix("lareqa-") in _KINDS and pool != rest:
      language, _, measure = rest.partition("/")
      if measure == "map":
        found[f"{pool.removeprefix('lareqa-')}/{language}"] = value
    elif (
      pool == "test"
      and rest.endswith("/ap")
      and "lareqa/mono/map" not in (xquadr)
    ):
      found[f"mono/{rest.removesuffix('/ap')}"] = value
  alone = [value for name, value in found.items() if name.startswith("mono/")]
  if "mono" not in found and alone:
    found["mono"] = sum(alone) / len(alone)
  return {name: round(value, _DIGITS) for name, value in sorted(found.items())}


def key(record: Mapping[str, Any]) -> tuple[str, int]:
  """Returns the cell and the seed of a record."""
  return record["cell"], record["seed"]


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads the lines of a file of results; none if there is no such file.

  Raises:
    UnreadableError: if a line is damaged.
  """
  if not path.exists():
    return []
  lines = reading.read_bytes(path).splitlines()
  return [
    reading.parse_json(line, f"{path}:{number}")
    for number, line in enumerate(lines, start=1)
  ]


def write(path: pathlib.Path, records: Iterable[Mapping[str, Any]]) -> None:
  """Writes lines, sorted by cell and seed."""
  lines = [
    json.dumps(record, sort_keys=True) + "\n"
    for record in sorted(records, key=key)
  ]
  writing.write_aside(str(path), "".join(lines))


def merge(
  old: Iterable[Mapping[str, Any]], new: Iterable[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
  """Returns all records; a new one replaces the old one of its cell and seed.

  Records of a trial, which has settings of its own, are left out.
  """
  merged = {key(record): record for record in old}
  merged |= {
    key(record): record for record in new if not record["settings"]["extra"]
  }
  return list(merged.values())


def sort_out(
  records: Iterable[Mapping[str, Any]],
) -> tuple[dict[str, list[Mapping[str, Any]]], list[str]]:
  """Returns the records of each cell, and notes on those that do not count.

  A record counts if its settings are those that the cell has now.
  """
  cells = cells_lib.by_name()
  found: dict[str, list[Mapping[str, Any]]] = {}
  notes = []
  for record in records:
    cell = cells.get(record["cell"])
    changed = [] if cell is None else differences(record, settings(cell, {}))
    if cell and not changed:
      found.setdefault(cell.name, []).append(record)
    else:
      why = f"other settings ({', '.join(changed)})" if cell else "no such cell"
      notes.append(f"{record['cell']}, seed {record['seed']}: {why}")
  return found, notes


def settings(cell: cells_lib.Cell, extra: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what the results of a cell depend on, as JSON has it.

  Args:
    cell: The cell.
    extra: Fields of the config that the command line sets for all cells.
  """
  return {
    "overrides": dict(cell.overrides),
    "pairs": cell.pairs,
    "languages": list(cell.languages) if cell.pairs else [],
    "source": cell.source,
    "as_questions": cell.as_questions,
    "plain": list(cell.plain),
    "start": cell.start,
    "recipe": cell.recipe,
    "extra": dict(extra),
  }


def differences(
  record: Mapping[str, Any], wanted: Mapping[str, Any]
) -> list[str]:
  """Returns the settings of a record that differ from others."""
  names: Sequence[str] = sorted({*record["settings"], *wanted})
  return [n for n in names if record["settings"].get(n) != wanted.get(n)]
