"""The evaluations of a training run: dev often, the table twice.

Checkpoints are selected on the dev sets that `selection` names, English dev
alone by default. All other tests are used only for the table, before the first
step and after the last.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from mlir_jax.data import records
from mlir_jax.evals import (
  bitext,
  evaluators,
  overlap,
  plot,
  protocol_data,
  protocols,
  ranking,
  rendering,
  report,
)
from mlir_jax.evals import selection as selection_lib
from mlir_jax.hosts import multihost
from mlir_jax.retrieval import encoding
from mlir_jax.storage import writing


def sample_passages(
  test: records.RetrievalTest, count: int
) -> records.RetrievalTest:
  """Returns a test with fewer passages: the judged ones and a sample.

  The sample has the lowest hashes of ids, so it is the same in every evaluation
  and training run, for any order of the corpus.

  Args:
    test: The test.
    count: Passages to keep, the judged ones included. If more are judged, all
      of these are kept.
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
  """The evaluations of one training run, or of one model."""

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
    extra: Mapping[str, evaluators.Evaluator] | None = None,
    chosen_protocols: Mapping[str, protocol_data.Protocol] | None = None,
    mining_tests: Sequence[records.MiningTest] = (),
    selection: selection_lib.Selection = selection_lib.DEFAULT,
    notes: Sequence[str] = (),
  ):
    """Prepares the evaluations.

    Args:
      tests: The retrieval tests.
      translation_tests: The translation tests.
      groups: Language to its group in the report; empty for no groups.
      text_encoder: Encodes the texts.
      folder: The folder of results, TREC runs and report.
      top_k: Passages retrieved per query.
      trained_on: The collection that the model was trained on. Its texts that
        are in tests are counted in the report; None leaves the count out.
      streams: The streams that training read of that collection.
      dev_passages: Passages that `dev` searches, see `sample_passages`; 0 for
        all.
      extra: The user's evaluators by name.
      chosen_protocols: The protocols of the table by name; see `protocols`.
      mining_tests: The tests of bitext mining, which protocols read.
      selection: Says which dev sets select the best checkpoint.
      notes: Lines for the report, which follow those of the tests.
    """
    self._selection = selection
    self._tests = tests
    self._translation_tests = translation_tests
    self._groups = groups
    self._encoder = text_encoder
    self._folder = epath.Path(folder)
    self._top_k = top_k
    self._trained_on = trained_on
    self._streams = streams
    self._extra = dict(extra or {})
    self._protocols = dict(chosen_protocols or {})
    self._protocol_data = protocol_data.Data(
      tests, translation_tests, mining_tests
    )
    self._notes = ranking.describe_unfindable(tests)
    self._notes += notes
    self._dev = [
      test
      for test in tests
      if test.split == "dev" and selection.reads(test.language)
    ]
    if dev_passages:
      whole = sum(len(test.passages) for test in self._dev)
      self._dev = [sample_passages(test, dev_passages) for test in self._dev]
      kept = sum(len(test.passages) for test in self._dev)
      if kept < whole:
        self._notes.append(
          f"While training, dev is searched in {kept:,} of its"
          f" {whole:,} passages (eval.dev_passages): the judged ones and a"
          " sample. The values in the table are of all passages."
        )

  @property
  def selects(self) -> bool:
    """Whether there is a dev set to select the best checkpoint with."""
    return bool(self._dev)

  def selected(self, results: Mapping[str, float]) -> float | None:
    """Returns the value that selects, of results of `dev`; None without one."""
    return self._selection.value(results)

  def dev(self, params: Any) -> dict[str, float]:
    """Evaluates the dev sets that select, and calls the user's evaluators.

    Args:
      params: The towers' parameters.

    Returns:
      {"dev/en/mrr@100": value, ...} if there is a dev set, and
      {"EVALUATOR/METRIC": value, ...}.
    """
    embed = self._encoder.with_params(params)
    results = dict(
      ranking.evaluate(embed, self._dev, self._encoder.mesh, top_k=self._top_k)
    )
    return results | self._call_evaluators(embed)

  def notes(self) -> str:
    """Returns what a reader of the values must know, in lines."""
    return "\n".join(self._notes)

  def table(self, params: Any, step: int) -> dict[str, float]:
    """Evaluates everything and writes the results and the TREC runs.

    It prints how many texts were cut.

    Args:
      params: The towers' parameters.
      step: Steps taken; the file of the results is step-STEP.json.

    Returns:
      {"test/de/mrr@100": value, "tatoeba/de-en/accuracy": value,
      "EVALUATOR/METRIC": value, ...}.
    """
    embed = self._encoder.with_params(params)
    if self._protocols:  # They encode the same texts again.
      embed = protocols.remember(embed)
    mesh = self._encoder.mesh
    # All processes encode and search; the first one writes.
    writes = multihost.is_first()
    trec_folder = str(self._folder / f"step-{step}") if writes else None
    before = dict(self._encoder.truncation)
    results = dict(
      ranking.evaluate(
        embed, self._tests, mesh, top_k=self._top_k, trec_folder=trec_folder
      )
    )
    results |= bitext.evaluate(embed, self._translation_tests, mesh)
    results |= self._call_evaluators(embed)
    outcome = protocols.run(self._protocols, embed, self._protocol_data, mesh)
    results |= outcome.results
    if cut := self._encoder.describe_truncation(before):
      print(cut)
    if writes:
      outcome.write(str(self._folder / f"step-{step}"))
      writing.write_aside(
        str(self._folder / f"step-{step}.json"),
        json.dumps(results, indent=2) + "\n",
      )
    return results

  def _call_evaluators(
    self, embed: Callable[..., np.ndarray]
  ) -> dict[str, float]:
    """Calls the user's evaluators: {"EVALUATOR/METRIC": value, ...}."""
    return {
      f"{name}/{metric}": value
      for name, evaluator in self._extra.items()
      for metric, value in evaluator(embed).items()
    }

  def report(self) -> str:
    """Writes the report of all results in the folder, with a plot.

    If the training files are gone or have changed, shared texts cannot be
    counted; a note says so.

    Returns:
      The report as text; "" in all processes but the first.
    """
    if not multihost.is_first():
      return ""
    by_step = {}
    for path in self._folder.glob("step-*.json"):
      step = path.stem.removeprefix("step-")
      if step.isdecimal():  # Another name is a file of the user.
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
        # The results may have taken days: report them without this count.
        notes.append(f"Texts shared with training are not counted: {error}")
    return rendering.write(
      columns, self._groups, str(self._folder), shared=shared, notes=notes
    )


def one_line(results: Mapping[str, float]) -> str:
  """Formats results as one line, to print above the progress bar."""
  return ", ".join(f"{name} {value:.3f}" for name, value in results.items())
