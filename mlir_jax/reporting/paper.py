"""Writes the report for a paper: tables in Markdown, with figures as PNG."""

from collections.abc import Iterator

from mlir_jax.evals import plot
from mlir_jax.reporting import content as content_lib
from mlir_jax.reporting import explanations, figures, page, tables
from mlir_jax.storage import writing

MARKDOWN = "report.md"
_NOTE = (
  "± is a 95 % interval over seeds (Student's t); [ ] is a 95 % interval of"
  " the bootstrap over queries. A mean is over the languages that have a value"
  " in all runs.\n"
)


def write(content: content_lib.Content, folder: str) -> list[str]:
  """Writes the figures, then report.md, which shows them.

  Args:
    content: What the report says.
    folder: The folder; it is made if missing. Files of the same names are
      replaced.

  Returns:
    The names of the files.
  """
  names, parts = [], [f"# {tables.escape(content.title)}\n"]
  for part in _parts(content):
    if isinstance(part, str):
      parts.append(part)
    elif isinstance(part, tables.Table):
      parts.append(f"**{tables.escape(part.title)}**\n")
      parts.append(tables.to_markdown(part))
    else:
      # The names of two diagnostics may differ in their signs alone.
      name = part.name
      if name in names:
        name = f"{len(names)}-{name}"
      plot.save(part.drawn, f"{folder}/{name}")
      names.append(name)
      parts.append(f"![{tables.escape(part.caption)}]({name})\n")
  writing.write_aside(f"{folder}/{MARKDOWN}", "\n".join(parts))
  return [*names, MARKDOWN]


def _parts(
  content: content_lib.Content,
) -> Iterator[str | tables.Table | figures.Figure]:
  """Yields what the file shows, in order."""
  if content.summary:
    yield "## Summary\n"
    yield content.summary
    yield _NOTE
  if content.config:
    yield "## Configuration\n"
    yield from content.config
  main = [panel for panel in content.panels if panel.is_main]
  if main:
    yield "## Learning curves\n"
    yield figures.of_curves(main, content.variants)
  if content.scores:
    yield "## Languages\n"
    for measure, table in content.languages.items():
      yield figures.of_languages(content.variants, content.scores, measure)
      yield table
  if content.extra:
    yield content.extra
  if content.diagnostics or any(content.sorted):
    yield "## Diagnostics\n"
  if content.diagnostics:
    yield content.diagnostics
  yield from content.by_language
  for name, values in content.sorted.distributions.items():
    yield figures.of_distributions(name, values)
  for name, values in content.sorted.samples.items():
    yield figures.of_samples(name, values)
  for name, values in content.sorted.matrices.items():
    yield figures.of_matrices(name, values)
  if content.maps:
    yield "## Map of vectors\n"
    yield figures.of_maps(content.maps)
    for each in content.maps:
      yield f"- {tables.escape(f'{each.model}: {each.map.method}')}\n"
  if content.tests:
    yield "## Queries\n\n✓ is judged relevant.\n"
  for test, (_, queries) in content.tests.items():
    yield f"### {tables.escape(test)}\n"
    for query in queries:
      yield from _lines_of(query)
  if content.notes or content.shared:
    yield "## Notes\n"
    yield "\n".join(f"- {tables.escape(note)}" for note in content.notes) + "\n"
  if content.shared:
    yield content.shared


def _lines_of(query: explanations.Query) -> Iterator[str]:
  """Yields a query, and the passages that each model has found."""
  yield f"**{tables.escape(query.text)}**\n"
  for found in query.found:
    yield f"{tables.escape(found.model)}\n"
    yield "\n".join(map(_line_of, found.results)) + "\n"


def _line_of(result: explanations.Result) -> str:
  """Returns a passage as an item of a list."""
  passage = result.passage
  text = " – ".join(filter(None, (passage.title, passage.text)))
  if len(text) > page.CHARACTERS:
    text = f"{text[: page.CHARACTERS]}…"
  mark = "✓ " if result.is_relevant else ""
  rank = f"{result.rank}." if result.rank else "further down"
  score = f"({passage.score:.4f})" if passage.score is not None else ""
  if passage.score is None:
    rank = "not found"
  return f"- {mark}{rank} {score} {tables.escape(text)}"
