"""Sorts the values of diagnostics.json by how they can be shown.

A value has its name's folder: "languages/passages/cosines" is in
"languages/passages", as is "languages/passages/languages", which names the rows
and columns of matrices there. "X_edges" are the edges of the bins that "X_own"
counts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

LANGUAGES = "languages"
EDGES = "_edges"
# A list of so few numbers is shown as numbers.
FEW = 5


class Model(NamedTuple):
  """Diagnostics of a model.

  Attributes:
    variant: The number of the variant.
    name: The name of the run and the step.
    before: Whether it is from before training.
    values: Name to value, as diagnostics.json has them.
  """

  variant: int
  name: str
  before: bool
  values: Mapping[str, Any]


class Matrix(NamedTuple):
  """A value for each pair of languages; None where there is none."""

  model: Model
  languages: Sequence[str]
  values: Sequence[Sequence[float | None]]


class ByLanguage(NamedTuple):
  """A value for each language."""

  model: Model
  values: Mapping[str, float]


class Distribution(NamedTuple):
  """How often values occur.

  Attributes:
    model: The model.
    edges: The edges of the bins, one more than shares.
    shares: The share of the values that is in each bin.
  """

  model: Model
  edges: Sequence[float]
  shares: Sequence[float]


class Samples(NamedTuple):
  """Values that are not sorted into bins."""

  model: Model
  values: Sequence[float]


class Sorted(NamedTuple):
  """The diagnostics of all models that are no single numbers, by name."""

  matrices: Mapping[str, Sequence[Matrix]]
  by_language: Mapping[str, Sequence[ByLanguage]]
  distributions: Mapping[str, Sequence[Distribution]]
  samples: Mapping[str, Sequence[Samples]]


def sort(models: Sequence[Model]) -> Sorted:
  """Sorts the diagnostics of models; texts and other values are left out."""
  found = Sorted({}, {}, {}, {})
  for model in models:
    for name, value in model.values.items():
      languages = _languages_of(model.values, name)
      last = name.rpartition("/")[2]
      if last == LANGUAGES or last.endswith(EDGES):
        continue
      if edges := _edges_of(model, name, value):
        total = sum(value) or 1
        shares = [count / total for count in value]
        _add(found.distributions, name, Distribution(model, edges, shares))
      elif languages and _is_matrix(value, len(languages)):
        rows = [row or [None] * len(languages) for row in value]
        _add(found.matrices, name, Matrix(model, languages, rows))
      elif are_numbers(value) and len(value) == len(languages):
        values = dict(zip(languages, value, strict=True))
        _add(found.by_language, name, ByLanguage(model, values))
      elif are_numbers(value) and len(value) > FEW:
        _add(found.samples, name, Samples(model, value))
  return found


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
  """Returns the diagnostics that are numbers, also those of short lists."""
  found = {}
  for name, value in values.items():
    if is_number(value):
      found[name] = float(value)
    elif (
      are_numbers(value)
      and len(value) <= FEW
      and not name.endswith(EDGES)
      and len(value) != len(_languages_of(values, name))
    ):
      for number, each in enumerate(value, start=1):
        found[f"{name} ({number})"] = float(each)
  return found


def range_of(found: Sequence[Distribution]) -> tuple[float, float]:
  """Returns the ends of the bins that hold values in any model."""
  low = min(
    (
      edge
      for each in found
      for edge, share in zip(each.edges, each.shares, strict=False)
      if share
    ),
    default=0.0,
  )
  high = max(
    (
      edge
      for each in found
      for edge, share in zip(each.edges[1:], each.shares, strict=True)
      if share
    ),
    default=1.0,
  )
  return low, high


def ends_of(found: Sequence[Matrix]) -> tuple[float, float]:
  """Returns the least and the greatest value of matrices."""
  values = [
    value
    for each in found
    for row in each.values
    for value in row
    if value is not None
  ]
  return min(values, default=0.0), max(values, default=1.0)


def is_number(value: Any) -> TypeGuard[float]:
  """Whether a value of JSON is a number."""
  return type(value) in (int, float)


def are_numbers(value: Any) -> TypeGuard[list[float]]:
  """Whether a value of JSON is a list of numbers, with one at least."""
  return isinstance(value, list) and bool(value) and all(map(is_number, value))


def _edges_of(model: Model, name: str, value: Any) -> Sequence[float] | None:
  """Returns the edges of the bins in which a value counts, if it does."""
  if not are_numbers(value):
    return None
  for other, edges in model.values.items():
    if (
      other.endswith(EDGES)
      and name.startswith(f"{other.removesuffix(EDGES)}_")
      and are_numbers(edges)
      and len(edges) == len(value) + 1
    ):
      return edges
  return None


def _languages_of(values: Mapping[str, Any], name: str) -> list[str]:
  """Returns the languages in the folder of a name; none if it has none."""
  folder, slash, _ = name.rpartition("/")
  found = values.get(f"{folder}{slash}{LANGUAGES}")
  if isinstance(found, list) and all(isinstance(each, str) for each in found):
    return found
  return []


def _is_matrix(value: Any, size: int) -> bool:
  """Whether a value is a matrix; a row or a value in it may be None."""
  return (
    isinstance(value, list)
    and len(value) == size
    and any(row is not None for row in value)
    and all(
      row is None
      or (
        isinstance(row, list)
        and len(row) == size
        and all(each is None or is_number(each) for each in row)
      )
      for row in value
    )
  )


def _add(found: Any, name: str, value: Any) -> None:
  found.setdefault(name, []).append(value)
