"""The evaluations of a training run: dev often, the table twice.

Checkpoints are selected on the dev sets that `selection` names, English dev
alone by default. All other tests are used only for the table, before the first
step and after the last.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from mlir_jax.data import records
from mlir_jax.evals import (
  board,
  evaluators,
  measures,
  model_tests,
  overlap,
  ranking,
  systems,
)
from mlir_jax.evals import selection as selection_lib
from mlir_jax.evals.protocols import protocol_data
from mlir_jax.hosts import multihost
from mlir_jax.retrieval import encoding


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
  """The evaluations of one training run."""

  def __init__(
    self,
    tests: Sequence[records.RetrievalTest],
    translation_tests: Sequence[records.TranslationTest],
    groups: Mapping[str, str],
    text_encoder: encoding.TextEncoder,
    folder: str,
    *,
    top_k: int = measures.DEPTH,
    trained_on: records.Collection | None = None,
    streams: Sequence[str] = (),
    dev_passages: int = 0,
    extra: Mapping[str, evaluators.Evaluator] | None = None,
    chosen_protocols: Mapping[str, protocol_data.Protocol] | None = None,
    mining_tests: Sequence[records.MiningTest] = (),
    selection: selection_lib.Selection = selection_lib.DEFAULT,
    chosen: Sequence[measures.Measure] = (),
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
      chosen: Measures in addition to the default ones.
      notes: Lines for the report, which follow those of the tests.

    Raises:
      ValueError: if `top_k` is too low for a measure.
    """
    self._selection = selection
    self._tests = tests
    self._translation_tests = translation_tests
    self._encoder = text_encoder
    self._top_k = top_k
    self._chosen = measures.with_default([*chosen, *selection.chosen])
    self._board = board.Board(
      tests, folder, groups, top_k=top_k, chosen=self._chosen
    )
    self._count_shared = None
    if trained_on:
      self._count_shared = functools.partial(
        overlap.count_shared_texts,
        trained_on,
        tests,
        text_encoder.contract,
        streams,
      )
    self._model_tests = model_tests.ModelTests(
      translation_tests,
      extra or {},
      chosen_protocols or {},
      protocol_data.Data(tests, translation_tests, mining_tests),
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
    mesh = self._encoder.mesh
    results = ranking.evaluate(
      embed, self._dev, mesh, top_k=self._top_k, chosen=self._chosen
    )
    of_extra = model_tests.ModelTests(extra=self._model_tests.extra)
    return dict(results) | of_extra.measure(embed, mesh)

  def notes(self) -> str:
    """Returns what a reader of the values must know, in lines."""
    return "\n".join(self._notes)

  def table(self, params: Any, step: int) -> dict[str, float]:
    """Evaluates everything and writes the column of a step; see `columns`.

    It prints how many texts were cut.

    Args:
      params: The towers' parameters.
      step: Steps taken; the column's name is step-STEP.

    Returns:
      {"test/de/mrr@100": value, "tatoeba/de-en/accuracy": value,
      "EVALUATOR/METRIC": value, ...}.
    """
    found = self._model_tests
    embed = found.embedding(self._encoder.with_params(params))
    mesh = self._encoder.mesh
    before = dict(self._encoder.truncation)
    results = self._board.add(
      f"step-{step}",
      systems.Dense(embed, mesh),
      lambda folder: found.measure(embed, mesh, folder),
    )
    if cut := self._encoder.describe_truncation(before):
      print(cut)
    return results

  def report(self) -> str:
    """Writes the report of all steps in the folder; see `board.Board.report`.

    Returns:
      The report as text; "" in all processes but the first.
    """
    if not multihost.is_first():
      return ""
    return self._board.report(
      count_shared=self._count_shared, notes=self._notes
    )


def one_line(results: Mapping[str, float]) -> str:
  """Formats results as one line, to print above the progress bar."""
  return ", ".join(f"{name} {value:.3f}" for name, value in results.items())
