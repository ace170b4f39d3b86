"""Makes the tables of docs/study.md from the results."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mlir_jax.reporting import estimates
from study import cells as cells_lib

Records = Mapping[str, Sequence[Mapping[str, Any]]]  # Of each cell.

NOT_RUN = "not run yet"
_NONE = "–"
_GAIN = "pooled, gain over IR alone"
LANGUAGES = ("en", *cells_lib.FOUR, *cells_lib.THREE, *cells_lib.NEVER)
GROUPS = {
  "de es ru zh": cells_lib.FOUR,
  "el hi tr": cells_lib.THREE,
  "ar th vi": cells_lib.NEVER,
}

# The ranges are over the trainings that the paper compares.
_PUBLISHED = (
  (
    "XLM-R, translated retrieval data in nine languages",
    "79.2–79.8",
    "67.4–70.5",
    "54.7–59.3",
    "410–287",
  ),
  ("LaBSE", "80.8", "75.2", "65.2", "262"),
)


def value(record: Mapping[str, Any], name: str) -> float | None:
  """Returns a result; "pooled/A B" is the mean over the languages A and B.

  Returns:
    None if the record lacks it, or lacks one of its languages.
  """
  kind, _, rest = name.partition("/")
  found = record["results"]
  if rest in GROUPS:
    each = [found.get(f"{kind}/{language}") for language in GROUPS[rest]]
    return None if None in each else float(np.mean(each))
  return found.get(name)


def estimate(
  records: Sequence[Mapping[str, Any]], name: str
) -> estimates.Estimate | None:
  """Estimates the mean of a result over the seeds; None without any."""
  values = [value(record, name) for record in records]
  known = [each for each in values if each is not None]
  return estimates.over_seeds(known) if known else None


def percent(records: Sequence[Mapping[str, Any]], name: str) -> str:
  """Writes a share, × 100: "45.1 ± 0.3"."""
  return estimates.to_text(estimate(records, name))


def gain(
  records: Sequence[Mapping[str, Any]],
  baseline: Sequence[Mapping[str, Any]],
  name: str,
) -> str:
  """Writes the mean difference from a baseline, × 100: "+4.1 ± 0.3".

  The difference is taken for each seed that both have, and the interval is
  Student's t over these differences.
  """
  before = {record["seed"]: value(record, name) for record in baseline}
  pairs = [
    (value(record, name), before.get(record["seed"])) for record in records
  ]
  found = [
    now - then for now, then in pairs if now is not None and then is not None
  ]
  if not found:
    return _NONE
  text = estimates.to_text(estimates.over_seeds(found))
  return text if text.startswith("-") else f"+{text}"


def ranks(records: Sequence[Mapping[str, Any]], name: str) -> str:
  """Writes a number of ranks: "2,367 ± 80"."""
  found = estimate(records, name)
  if found is None:
    return _NONE
  if found.interval is None:
    return f"{found.value:,.0f}"
  half = (found.interval.high - found.interval.low) / 2
  return f"{found.value:,.0f} ± {half:,.0f}"


_COLUMNS: Mapping[str, Callable[[Sequence[Mapping[str, Any]]], str]] = {
  "seeds": lambda found: str(len(found)),
  "NQ dev": lambda found: percent(found, "nq/dev/mrr@100"),
  "NQ test": lambda found: percent(found, "nq/test/mrr@100"),
  "mono": lambda found: percent(found, "mono"),
  "cross": lambda found: percent(found, "cross"),
  "pooled": lambda found: percent(found, "pooled"),
  **{
    f"pooled, {group}": lambda found, group=group: percent(
      found, f"pooled/{group}"
    )
    for group in GROUPS
  },
  "rank distance": lambda found: ranks(found, "rank_distance"),
  "rank distance, ar th vi": lambda found: ranks(
    found, "rank_distance/ar th vi"
  ),
}
_COSTS: Mapping[str, Callable[[Sequence[Mapping[str, Any]]], str]] = {
  "steps": lambda found: f"{found[0]['steps']:,}",
  "thousand tokens": lambda found: f"{_mean(found, 'tokens') / 1000:,.0f}",
  "minutes": lambda found: _minutes(found),
}


def axis(records: Records, name: str) -> str:
  """Makes the table of an axis."""
  columns = {**_COLUMNS, **(_COSTS if name in ("centre", "peers") else {})}
  names = [*columns, _GAIN]
  rows = []
  for cell in cells_lib.of_axis(name):
    found = records.get(cell.name, ())
    cells = [column(found) for column in columns.values()] if found else []
    if found:
      alone = cells_lib.IR_ALONE[cell.start]
      cells.append(gain(found, records.get(alone, ()), "pooled"))
    rows.append([f"`{cell.name}`: {cell.about}", *(cells or _empty(names))])
  return markdown(["cell", *names], rows)


def languages(records: Records, kind: str, name: str) -> str:
  """Makes a table of each language's questions, for the cells of an axis.

  Args:
    records: The results.
    kind: "mono", "pooled" or "rank_distance".
    name: The axis.
  """
  write = ranks if kind == "rank_distance" else percent
  rows = []
  for cell in cells_lib.of_axis(name):
    found = records.get(cell.name, ())
    values = _empty(LANGUAGES)
    if found:
      values = [write(found, f"{kind}/{language}") for language in LANGUAGES]
    with_pairs = cell.languages if cell.pairs else ()
    rows.append(
      [
        f"`{cell.name}`",
        *(
          f"**{text}**" if found and language in with_pairs else text
          for language, text in zip(LANGUAGES, values, strict=True)
        ),
      ]
    )
  return markdown(["cell", *LANGUAGES], rows)


def published() -> str:
  """Makes the table of others' results."""
  rows = [[*row, "Elmahdy et al. (2024)"] for row in _PUBLISHED]
  columns = ["model", "mono", "cross", "pooled", "rank distance", "source"]
  return markdown(columns, rows)


def status(records: Records, notes: Sequence[str]) -> str:
  """Says how much of the study has run."""
  trained = [cell for cell in cells_lib.CELLS if cell.trained]
  done = [cell for cell in trained if records.get(cell.name)]
  runs = sum(len(records.get(cell.name, ())) for cell in trained)
  lines = [
    f"{len(done)} of {len(trained)} trained cells have results, from {runs}"
    " trainings."
  ]
  lines += [f"- Left out: {note}." for note in notes]
  return "\n".join(lines)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Makes a table in Markdown."""
  lines = [columns, ["---"] * len(columns), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fill(text: str, parts: Mapping[str, str]) -> str:
  """Puts parts between their markers in a document.

  A part NAME is between the lines `<!-- study:NAME -->` and `<!-- /study -->`.

  Args:
    text: The document.
    parts: Name to text.

  Raises:
    ValueError: if a marker is missing, or the document has one without a part.
  """
  end = "<!-- /study -->"
  before, *sections = text.split("<!-- study:")
  written = [before]
  seen = set()
  for section in sections:
    name, found, rest = section.partition(" -->\n")
    _, closed, after = rest.partition(end)
    if not (found and closed and name in parts):
      raise ValueError(
        f"docs/study.md: the marker study:{name[:40]!r} has no part, or is not"
        f" closed with {end}."
      )
    seen.add(name)
    written.append(f"<!-- study:{name} -->\n{parts[name]}\n{end}{after}")
  if missing := parts.keys() - seen:
    raise ValueError(
      f"docs/study.md lacks the markers {', '.join(sorted(missing))}."
    )
  return "".join(written)


def _empty(columns):
  return [NOT_RUN] + [_NONE] * (len(columns) - 1)


def _mean(records, name):
  return float(np.mean([record[name] for record in records]))


def _minutes(records):
  found = [
    sum(record["seconds"].values()) / 60
    for record in records
    if record["seconds"]
  ]
  return f"{np.mean(found):,.0f}" if found else _NONE
