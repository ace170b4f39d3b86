"""Holds what a protocol measures on: the tests of a collection."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from mlir_jax.data import records

# embed(role, texts, titles=None) -> float32 [n, D].
Embed = Callable[..., np.ndarray]


@dataclasses.dataclass(frozen=True)
class Data:
  """The tests that protocols read.

  Attributes:
    tests: The retrieval tests, of all splits.
    translation_tests: The translation tests.
    mining_tests: The tests of bitext mining.
  """

  tests: Sequence[records.RetrievalTest] = ()
  translation_tests: Sequence[records.TranslationTest] = ()
  mining_tests: Sequence[records.MiningTest] = ()


# A protocol returns results by name; see `protocols.run`.
Protocol = Callable[[Embed, Data, Mesh], Mapping[str, Any]]
