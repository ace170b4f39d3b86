"""What is evaluated, and when: English dev while training, the table around it.

Models are selected on the English dev set alone; the tests in other languages
are seen in the table before the first step and after the last, and nowhere
else.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from mlir_jax.data import records
from mlir_jax.evals import bitext, overlap, plot, ranking, rendering, report
from mlir_jax.hosts import multihost
from mlir_jax.retrieval import encoding
from mlir_jax.storage import writing

SELECTION = "dev/en/mrr@100"
# embed(role, texts, titles=None) -> float32 [n, D]; returns metrics by name.
Evaluator = Callable[[Callable[..., np.ndarray]], Mapping[str, float]]


def sample_passages(
  test: records.RetrievalTest, count: int
) -> records.RetrievalTest:
  """A test of fewer passages: those that are judged, and some of the others.

  The others are those whose ids have the lowest hashes: the same ones in
  every evaluation and run, whatever the order of the corpus.

  Args:
    test: The test.
    count: Passages to keep, judged ones included, which stay in any case.
  """
  judged = set().union(*test.qrels.values())
  others = sorted(
    (
      hashlib.sha256(passage.passage_id.encode()).digest(),
      passage.passage_id,
    )
    for passage in test.passages
    if passage.passage_id not in judged
  )
  kept = len(test.passages) - len(others)
  sampled = {name for _, name in others[: max(0, count - kept)]}
  return dataclasses.replace(
    test,
    passages=tuple(
      passage
      for passage in test.passages
      if passage.passage_id in judged or passage.passage_id in sampled
    ),
  )


class Suite:
  """The evaluations of one run."""

  def __init__(
    self,
    tests: Sequence[records.RetrievalTest],
    translation_tests: Sequence[records.TranslationTest],
    groups: Mapping[str, str],
    text_encoder: encoding.TextEncoder,
    folder: str,
    *,
    top_k: int = ranking.DEPTH,
    trained_on: records.Collection | None = None,
    streams: Sequence[str] = (),
    dev_passages: int = 0,
    extra: Mapping[str, Evaluator] | None = None,
  ):
    """Keeps what the evaluations need.

    Args:
      tests: The retrieval tests.
      translation_tests: The translation tests.
      groups: Language to its group in the report; empty for no groups.
      text_encoder: Encodes the texts.
      folder: Where results, runs and the report go.
      top_k: Passages retrieved per query.
      trained_on: What the model was trained on, for the report's count of
        shared texts; None leaves the count out.
      streams: The streams of it that took part.
      dev_passages: Passages that `dev` searches, see `sample_passages`; 0 for
        all.
      extra: Evaluators of the user by name; `dev` asks them, too.
    """
    self._tests = tests
    self._translation_tests = translation_tests
    self._groups = groups
    self._encoder = text_encoder
    self._folder = epath.Path(folder)
    self._top_k = top_k
    self._trained_on = trained_on
    self._streams = streams
    self._extra = dict(extra or {})
    self._notes = ranking.describe_unfindable(tests)
    self._dev = [test for test in tests if test.split == "dev"]
    if dev_passages:
      whole = sum(len(test.passages) for test in self._dev)
      self._dev = [sample_passages(test, dev_passages) for test in self._dev]
      kept = sum(len(test.passages) for test in self._dev)
      if kept < whole:
        self._notes.append(
          f"While training, dev is searched in {kept:,} of its"
          f" {whole:,} passages (eval.dev_passages): the judged ones and a"
          " sample. The values in the table are of all."
        )

  @property
  def selects(self) -> bool:
    """Whether there is a dev set, which chooses the best checkpoint."""
    return bool(self._dev)

  def dev(self, params: Any) -> dict[str, float]:
    """Evaluates the English dev set, and by the user's evaluators.

    Args:
      params: The towers' parameters.

    Returns:
      {"dev/en/mrr@100": value, ...}, if there is a dev set; and
      {"NAME/METRIC": value} of the user's evaluators.
    """
    embed = self._encoder.with_params(params)
    results = dict(
      ranking.evaluate(embed, self._dev, self._encoder.mesh, top_k=self._top_k)
    )
    for name, evaluate in self._extra.items():
      found = evaluate(embed)
      results |= {f"{name}/{key}": float(found[key]) for key in found}
    return results

  def notes(self) -> str:
    """How values are measured where it is not as expected, in lines."""
    return "\n".join(self._notes)

  def table(self, params: Any, step: int) -> dict[str, float]:
    """Evaluates everything and keeps the results and the TREC runs.

    It prints how many texts were cut.

    Args:
      params: The towers' parameters.
      step: Steps taken, the results' name.

    Returns:
      {"test/de/mrr@100": value, "tatoeba/de-en/accuracy": value, ...}.
    """
    embed = self._encoder.with_params(params)
    mesh = self._encoder.mesh
    # One host writes; all take part in encoding and searching.
    writes = multihost.is_first()
    run_dir = str(self._folder / f"step-{step}") if writes else None
    before = dict(self._encoder.truncation)
    results = dict(
      ranking.evaluate(
        embed, self._tests, mesh, top_k=self._top_k, run_dir=run_dir
      )
    )
    results |= bitext.evaluate(embed, self._translation_tests, mesh)
    if cut := self._encoder.describe_truncation(before):
      print(cut)
    if writes:
      writing.write_aside(
        str(self._folder / f"step-{step}.json"),
        json.dumps(results, indent=2) + "\n",
      )
    return results

  def report(self) -> str:
    """Writes the report of all tables in the folder, with a plot.

    Where the training texts cannot be read any more, as their files are gone or
    have changed, a note says so in place of the count of shared texts.

    Returns:
      The report as text; "" in a process that writes none.
    """
    if not multihost.is_first():
      return ""
    by_step = {}
    for path in self._folder.glob("step-*.json"):
      step = path.stem.removeprefix("step-")
      if step.isdecimal():  # Else it is the user's.
        by_step[int(step)] = report.read_results(path)
    columns = {f"step {step:,}": by_step[step] for step in sorted(by_step)}
    if not any(columns.values()):
      return "There are no tests, so there is nothing to report."
    plot.plot(columns, self._groups, self._folder / "report.png")
    shared, notes = None, list(self._notes)
    if self._trained_on:
      try:
        shared = overlap.count_shared_texts(
          self._trained_on, self._tests, self._encoder.contract, self._streams
        )
      except (ValueError, OSError) as error:
        # The results are there, after days perhaps; only this count is not.
        notes.append(f"Texts shared with training are not counted: {error}")
    return rendering.write(
      columns, self._groups, str(self._folder), shared=shared, notes=notes
    )


def one_line(results: Mapping[str, float]) -> str:
  """Results in a line, for above the progress bar."""
  return ", ".join(f"{name} {value:.3f}" for name, value in results.items())
