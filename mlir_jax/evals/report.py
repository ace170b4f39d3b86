"""One table of all results, a row per language: text, Markdown, JSON.

Results are {name: value} with names as the evaluators give them; a column is
such a set of results under a name, e.g. "step 0". A language's group says what
training had of it, and means are taken over groups: it is the groups without
retrieval or parallel text that zero-shot transfer is judged by.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlir_jax.storage import reading

Columns = Mapping[str, Mapping[str, float]]
Shared = Mapping[str, Mapping[str, int]]

# In the order of the table; what others there are follows.
TITLES = {
  "mrr@100": "MRR@100",
  "ndcg@10": "nDCG@10",
  "r@100": "R@100",
  "success@1": "Success@1",
  "tatoeba to en": "Tatoeba → en",
  "tatoeba from en": "Tatoeba en →",
}
MAIN = "mrr@100"
ENGLISH = "en"
OTHER = "other languages"
ALL = "all languages"  # Where nothing is known of what training had of them.
ZERO_SHOT = "all but English"
MAKE_AGAIN = "Delete it, or make it again with mlir_jax.evaluate."


@dataclasses.dataclass(frozen=True)
class Row:
  """A language's values, or the means of several.

  Attributes:
    label: The language, with its split unless that is "test"; or "mean".
    group: Name of its group.
    languages: The language, or those that the mean is over: for a measure,
      those of them that have a value in every column.
    split: "test", or "dev".
    values: Measure to a value per column; None where there is none.
  """

  label: str
  group: str
  languages: tuple[str, ...]
  split: str
  values: Mapping[str, tuple[float | None, ...]]


@dataclasses.dataclass(frozen=True)
class Table:
  """Results by language, group, measure and column.

  Attributes:
    columns: Names of the columns, which each measure has.
    measures: Names of the measures.
    rows: The rows by group; of a group of several languages, the mean is the
      last. At the end stands the mean over all languages but English.
  """

  columns: tuple[str, ...]
  measures: tuple[str, ...]
  rows: tuple[Row, ...]


def read_results(path: str | os.PathLike) -> dict[str, float]:
  """Results as `suite.Suite.table` wrote them: name to value.

  Raises:
    UnreadableError: if the file is damaged; it names the file and the result.
  """
  results = reading.read_json(path, mend=MAKE_AGAIN)
  for name, value in results.items():
    problem = ""
    try:
      parse(name)
    except ValueError as error:
      problem = str(error)
    if type(value) not in (int, float):
      problem = f"{name} is {value!r}, not a number."
    if problem:
      raise reading.UnreadableError(f"{path}: {problem} {MAKE_AGAIN}")
  return results


def parse(name: str) -> tuple[str, str, str]:
  """Split, language and measure of a result's name.

  "test/de/mrr@100" gives ("test", "de", "mrr@100"), "tatoeba/de-en/accuracy"
  ("test", "de", "tatoeba to en"): a row is about the language that is not
  English.

  Raises:
    ValueError: if the name has not these parts.
  """
  parts = name.split("/")
  if len(parts) == 3 and parts[0] in ("test", "dev"):
    return parts[0], parts[1], parts[2]
  if len(parts) == 3 and parts[0] == "tatoeba":
    source, _, target = parts[1].partition("-")
    if source == ENGLISH:
      return "test", target, f"tatoeba from {source}"
    return "test", source, f"tatoeba to {target}"
  raise ValueError(
    f"The result {name!r} has no place in the table; names are like"
    " test/de/mrr@100 or tatoeba/de-en/accuracy."
  )


def _means(
  rows: Sequence[Row], measures: Sequence[str]
) -> dict[str, tuple[float | None, ...]]:
  """Per measure, means over the rows that have a value in every column."""
  means = {}
  for measure in measures:
    values = [row.values[measure] for row in rows]
    complete: list[Any] = [row for row in values if None not in row]
    means[measure] = (
      tuple(float(mean) for mean in np.mean(complete, axis=0))
      if complete
      else (None,) * len(values[0])
    )
  return means


def make_table(columns: Columns, groups: Mapping[str, str]) -> Table:
  """Orders results by language and group, and takes the means.

  Args:
    columns: Column name to results.
    groups: Language to group, both in the order of the table. Languages that
      it lacks come last. If it is empty, there is one group of all languages,
      and one mean.

  Raises:
    ValueError: if a result's name cannot be read, or there are none.
  """
  if not any(columns.values()):
    raise ValueError("There are no results to report; evaluate first.")
  places = {}
  for results in columns.values():
    for name in results:
      split, language, measure = parse(name)
      places.setdefault((language, split), {})[measure] = name
  found = dict.fromkeys(name for row in places.values() for name in row)
  measures = [name for name in TITLES if name in found]
  measures += [name for name in found if name not in TITLES]

  is_grouped = bool(set(groups.values()) - {ALL})
  grouped = {group: [] for group in groups.values()}
  languages = dict.fromkeys(
    [*groups, *sorted(language for language, _ in places)]
  )
  for language in languages:
    for split in ("dev", "test"):
      if (language, split) not in places:
        continue
      names = places[language, split]
      group = groups.get(language, OTHER if is_grouped else ALL)
      grouped.setdefault(group, []).append(
        Row(
          label=language if split == "test" else f"{language} ({split})",
          group=group,
          languages=(language,),
          split=split,
          values={
            measure: tuple(
              results.get(names.get(measure)) for results in columns.values()
            )
            for measure in measures
          },
        )
      )

  def mean(rows, group):
    return Row(
      label="mean",
      group=group,
      languages=tuple(row.languages[0] for row in rows),
      split="test",
      values=_means(rows, measures),
    )

  rows, zero_shot = [], []
  for group, members in grouped.items():
    tested = [row for row in members if row.split == "test"]
    zero_shot += [row for row in tested if row.languages != (ENGLISH,)]
    rows += members
    if len(tested) > 1:
      rows.append(mean(tested, group))
  if is_grouped and len(zero_shot) > 1:
    rows.append(mean(zero_shot, ZERO_SHOT))
  return Table(tuple(columns), tuple(measures), tuple(rows))
