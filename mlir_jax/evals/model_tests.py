"""Measures a model by all that is not a search for passages of a test."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jax.sharding import Mesh

from mlir_jax.data import records
from mlir_jax.evals import bitext, evaluators, protocols
from mlir_jax.evals.protocols import protocol_data
from mlir_jax.hosts import multihost


@dataclasses.dataclass(frozen=True)
class ModelTests:
  """What a model is measured on, besides the retrieval tests.

  Attributes:
    translation_tests: The translation tests.
    extra: The user's evaluators by name.
    chosen: The protocols by name, from `protocols.find`.
    data: The tests that protocols read.
  """

  translation_tests: Sequence[records.TranslationTest] = ()
  extra: Mapping[str, evaluators.Evaluator] = dataclasses.field(
    default_factory=dict
  )
  chosen: Mapping[str, protocol_data.Protocol] = dataclasses.field(
    default_factory=dict
  )
  data: protocol_data.Data = dataclasses.field(
    default_factory=protocol_data.Data
  )

  def embedding(
    self, embed: Callable[..., np.ndarray]
  ) -> Callable[..., np.ndarray]:
    """Returns `embed`, which keeps vectors if protocols need them again."""
    return protocols.remember(embed) if self.chosen else embed

  def measure(
    self, embed: Callable[..., np.ndarray], mesh: Mesh, folder: str = ""
  ) -> dict[str, float]:
    """Measures a model.

    Args:
      embed: `embed(role, texts, titles=None)`, float32 [n, D] of n texts.
      mesh: Its axis "data" splits what is searched.
      folder: Where the diagnostics of protocols are written; "" for nowhere. Of
        several processes, the first one writes.

    Returns:
      {"tatoeba/de-en/accuracy": value, "EVALUATOR/METRIC": value,
      "PROTOCOL-POOL/de/MEASURE": value, ...}.
    """
    results = dict(bitext.evaluate(embed, self.translation_tests, mesh))
    for name, evaluator in self.extra.items():
      for metric, value in evaluator(embed).items():
        results[f"{name}/{metric}"] = value
    outcome = protocols.run(self.chosen, embed, self.data, mesh)
    if folder and multihost.is_first():
      outcome.write(folder)
    return results | outcome.results
