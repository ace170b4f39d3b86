"""What a table has besides models, and how it is measured."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Options:
  """Says which systems are added to models, and how all are measured.

  Attributes:
    bm25: Whether BM25 is a system of the table.
    hybrid: Whether BM25 is fused with each other system.
    runs: Name to the file of a TREC run, or to a folder of TREC runs.
    systems: Name to a system of the user, "MODULE:FUNCTION".
    protocols: Name to a protocol: one of `protocols.BUILT_IN`, or the user's
      "MODULE:FUNCTION".
    measures: Names of further measures, with commas between them.
    top_k: Passages retrieved per query; 0 for the run's, or 100.
    intervals: Whether the table shows 95 % intervals.
  """

  bm25: bool = False
  hybrid: bool = False
  runs: Mapping[str, str] = dataclasses.field(default_factory=dict)
  systems: Mapping[str, str] = dataclasses.field(default_factory=dict)
  protocols: Mapping[str, str] = dataclasses.field(default_factory=dict)
  measures: str = ""
  top_k: int = 0
  intervals: bool = False


DEFAULTS = Options()
