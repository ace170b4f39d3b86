"""The systems of one table that are no models: BM25, runs, the user's, fusions.

The models come first in the table. A fusion reads the TREC runs of the two
systems that it fuses, so these have their columns before.
"""

from collections.abc import Iterator, Sequence

from mlir_jax.data import records
from mlir_jax.evals import board, fusion, own_systems, systems
from mlir_jax.evals import options as options_lib


class Lineup:
  """The systems that a command names, in addition to models.

  Attributes:
    notes: Lines that say what each system is, after `add`.
  """

  def __init__(self, options: options_lib.Options, models: Sequence[str]):
    """Imports the user's systems and checks all names.

    Args:
      options: They name the systems.
      models: The names of the models.

    Raises:
      ValueError: if there is no system at all, a name is used twice or cannot
        be a folder's, a system cannot be imported, or there is nothing to fuse.
    """
    self.notes: list[str] = []
    self._options = options
    self._models = list(models)
    self._user = own_systems.find(options.systems)
    self._runs: dict[str, systems.System] = {}
    self._has_bm25 = options.bm25 or options.hybrid
    others = [*models, *options.runs, *options.systems]
    if not (others or self._has_bm25):
      raise ValueError(
        "There is nothing to evaluate: give --workdir, --model, --bm25, --run"
        " or --system."
      )
    if options.hybrid and not others:
      raise ValueError(
        "--hybrid fuses BM25 with other systems: name a model, --run or"
        " --system, too."
      )
    _check_names([*others, *[systems.BM25] * self._has_bm25])

  def __bool__(self) -> bool:
    """Whether there is any."""
    return bool(self._has_bm25 or self._options.runs or self._options.systems)

  def find_runs(self, tests: Sequence[records.RetrievalTest]) -> None:
    """Finds the files of TREC runs, before any work.

    Raises:
      ValueError: if there are none.
    """
    self._runs = {
      name: systems.TrecRuns(path, tests)
      for name, path in self._options.runs.items()
    }

  def add(
    self,
    table: board.Board,
    tests: Sequence[records.RetrievalTest],
    top_k: int,
  ) -> list[str]:
    """Measures the systems; the columns of the models must be there.

    Args:
      table: Receives the columns.
      tests: All tests.
      top_k: Passages retrieved per query.

    Returns:
      The names of all columns in their order.
    """
    base = {**self._runs, **self._user}
    if self._has_bm25:
      base[systems.BM25] = systems.Bm25()
    self.notes += self._describe()
    for name, system in base.items():
      print(f"Evaluating {name}.", flush=True)
      table.add(name, system)
    names = [*self._models, *base]
    if self._options.hybrid:
      for name, system in self._fusions(table, tests, top_k, list(names)):
        print(f"Evaluating {name}.", flush=True)
        table.add(name, system)
        names.append(name)
    return names

  def _describe(self) -> Iterator[str]:
    """Says what each system but the fusions is."""
    for name, path in self._options.runs.items():
      yield f"{name} is the TREC runs of {path}."
    for name, target in self._options.systems.items():
      yield f"{name} is {target}."
    if self._has_bm25:
      yield (
        f"{systems.BM25} is BM25 (k1 = 1.5, b = 0.75) over words; of scripts"
        " without spaces, over pairs of characters."
      )

  def _fusions(
    self,
    table: board.Board,
    tests: Sequence[records.RetrievalTest],
    top_k: int,
    names: Sequence[str],
  ) -> Iterator[tuple[str, systems.System]]:
    """Yields each fusion with its name, and notes what it is."""
    for name in names:
      if name == systems.BM25:
        continue
      pair = f"{name}+{systems.BM25}"
      parts = table.runs(name), table.runs(systems.BM25)
      yield f"{pair}.{systems.RRF}", systems.Fused(parts)
      scaled = systems.MinMax(*parts, tests, top_k)
      if scaled.weights:
        yield f"{pair}.{systems.MIN_MAX}", scaled
      self.notes.append(f"{pair}.{systems.MIN_MAX}: {scaled.describe(name)}")
    self.notes.append(
      f"….{systems.RRF} is reciprocal rank fusion, k = {fusion.K}."
      f" ….{systems.MIN_MAX} is the weighted sum of scores, which are scaled to"
      " 0 … 1 for each query."
    )


def _check_names(names: Sequence[str]) -> None:
  """Refuses names that are used twice or cannot be a folder's."""
  for place, name in enumerate(names):
    if not systems.NAME.fullmatch(name):
      raise ValueError(
        f"The name {name!r} of a system must hold letters, digits and any of"
        " _ . + - only."
      )
    if name in names[:place]:
      raise ValueError(
        f"Two systems have the name {name!r}: give one of them another name,"
        " NAME=…"
      )
