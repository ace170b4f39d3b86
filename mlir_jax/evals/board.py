"""Measures systems on the same tests: a column of the table for each."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from etils import epath

from mlir_jax.data import records
from mlir_jax.evals import (
  columns,
  measures,
  plot,
  ranking,
  rendering,
  report,
  systems,
)
from mlir_jax.hosts import multihost


class Board:
  """The columns of one table, in a folder."""

  def __init__(
    self,
    tests: Sequence[records.RetrievalTest],
    folder: str,
    groups: Mapping[str, str],
    *,
    top_k: int = measures.DEPTH,
    chosen: Sequence[measures.Measure] = measures.DEFAULT,
    intervals: bool = False,
    setting: str = "eval.top_k",
  ):
    """Prepares the table.

    Args:
      tests: The retrieval tests.
      folder: The folder of results, TREC runs and report.
      groups: Language to its group in the report; empty for no groups.
      top_k: Passages retrieved per query.
      chosen: The measures.
      intervals: Whether the table shows 95 % intervals.
      setting: The field or flag of `top_k`, for messages.

    Raises:
      ValueError: if `top_k` is too low for a measure.
    """
    measures.check_depth(chosen, top_k, setting)
    self._tests = tests
    self._folder = epath.Path(folder)
    self._groups = groups
    self._top_k = top_k
    self._chosen = chosen
    self._intervals = intervals

  def add(
    self,
    name: str,
    system: systems.System,
    others: Callable[[str], Mapping[str, float]] = lambda folder: {},
  ) -> dict[str, float]:
    """Measures a system and writes its column; see `columns`.

    All processes encode and search; the first one writes.

    Args:
      name: The name of the column.
      system: The system.
      others: Returns further results of the column; it may write files in the
        folder that it gets.

    Returns:
      {"test/de/mrr@100": value, ...}, and those of `others`.
    """
    writes = multihost.is_first()
    column = columns.Column(self._folder, name)
    values = ranking.run_system(
      system,
      self._tests,
      self._chosen,
      top_k=self._top_k,
      trec_folder=column.trec_folder if writes else None,
      tag=name,
      look=column.look,
    )
    results = {
      **ranking.results(values, self._chosen),
      **others(column.trec_folder),
    }
    if writes:
      column.write(results, values)
    return results

  def runs(self, name: str) -> systems.System:
    """Returns a system that reads the TREC runs of a column."""
    return systems.TrecRuns(str(self._folder / name))

  def report(
    self,
    names: Iterable[str] = (),
    *,
    count_shared: Callable[[], report.Shared] | None = None,
    notes: Sequence[str] = (),
  ) -> str:
    """Writes the report with a plot: columns of steps, then those of names.

    Args:
      names: The columns that are no step of a run.
      count_shared: Counts the texts that training saw; None leaves it out. If
        the training files are gone or have changed, a note says so.
      notes: Lines below the table.

    Returns:
      The report as text.
    """
    folders = {}
    for path in self._folder.glob("step-*.json"):
      step = path.stem.removeprefix("step-")
      if step.isdecimal():  # Another name is a file of the user.
        folders[int(step)] = path.stem
    labels = {f"step {step:,}": folders[step] for step in sorted(folders)}
    labels |= {name: name for name in names if name not in labels.values()}
    found = {
      label: report.read_results(self._folder / f"{name}.json")
      for label, name in labels.items()
    }
    if not any(found.values()):
      if not self._tests:
        return "There are no tests, so there is nothing to report."
      return "\n".join(
        [
          f"No test has judgements. The TREC runs are in {self._folder}.",
          *notes,
        ]
      )
    queries = {
      label: columns.read_queries(self._folder / name)
      for label, name in labels.items()
    }
    plot.plot(found, self._groups, self._folder / "report.png")
    shared, notes = None, list(notes)
    if count_shared:
      try:
        shared = count_shared()
      except (ValueError, OSError) as error:
        # The results may have taken days: report them without this count.
        notes.append(f"Texts shared with training are not counted: {error}")
    return rendering.write(
      found,
      self._groups,
      str(self._folder),
      shared=shared,
      notes=notes,
      queries=queries,
      intervals=self._intervals,
    )
