"""All that a report says; the page and the paper show it in their ways."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mlir_jax.reporting import curves, explanations, tables
from mlir_jax.reporting import diagnostics as diagnostics_lib
from mlir_jax.reporting import scores as scores_lib
from mlir_jax.reporting import variants as variants_lib


@dataclasses.dataclass(frozen=True)
class Content:
  """What a report says.

  Attributes:
    variants: The variants that it compares.
    title: Their names.
    day: When the newest results were written (UTC), "2026-11-30".
    config: Tables of the fields that differ.
    panels: The learning curves.
    constant: Metric to its value, of those that never changed.
    scores: The results; None if there are none.
    summary: The means over groups of languages, of the main measure.
    languages: Measure to the table of its values by language.
    extra: The metrics of the user's evaluators.
    diagnostics: The diagnostics that are numbers.
    by_language: The diagnostics with a number for each language.
    sorted: The other diagnostics.
    maps: The maps of vectors, with their names.
    tests: Test to its language and its queries.
    shared: The texts of tests that training saw.
    notes: Sentences on how values were measured.
  """

  variants: Sequence[variants_lib.Variant]
  title: str
  day: str
  config: Sequence[tables.Table]
  panels: Sequence[curves.Panel]
  constant: Mapping[str, float | None]
  scores: scores_lib.Scores | None
  summary: tables.Table | None
  languages: Mapping[str, tables.Table]
  extra: tables.Table | None
  diagnostics: tables.Table | None
  by_language: Sequence[tables.Table]
  sorted: diagnostics_lib.Sorted
  maps: Sequence[explanations.NamedMap]
  tests: Mapping[str, explanations.Test]
  shared: tables.Table | None
  notes: Sequence[str]


def gather(
  found: Sequence[variants_lib.Variant], defaults: Mapping[str, Any]
) -> Content:
  """Gathers what a report says of variants.

  Args:
    found: The variants.
    defaults: Field to value of a config without changes.
  """
  panels, constant = curves.collect(found)
  collected = scores_lib.collect(found)
  others = diagnostics_lib.sort(explanations.models(found))
  measures = collected.measures if collected else ()
  runs = [run for variant in found for run in variant.runs]
  return Content(
    variants=found,
    title=", ".join(variant.name for variant in found),
    day=max(run.day for run in runs),
    config=tables.of_config(found, defaults),
    panels=panels,
    constant=constant,
    scores=collected if measures else None,
    summary=tables.of_groups(found, collected, measures[0])
    if collected and measures
    else None,
    languages={
      measure: tables.of_languages(found, collected, measure)
      for measure in measures
      if collected
    },
    extra=tables.of_extra(found, collected) if collected else None,
    diagnostics=tables.of_diagnostics(found),
    by_language=[
      tables.of_by_language(name, values)
      for name, values in others.by_language.items()
    ],
    sorted=others,
    maps=explanations.maps(found),
    tests=explanations.tests(found),
    shared=tables.of_shared(found),
    notes=tuple(dict.fromkeys(note for run in runs for note in run.notes)),
  )
