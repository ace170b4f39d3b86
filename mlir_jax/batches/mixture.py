"""Chooses the rows of each step: how sources and languages share the rows.

Rows are in groups, a group for each source and language. A mixture gives every
group a share of a stream's positions:

- If no source of the stream has a weight, all rows are one pool. A language has
  a share ~ size ** (1 / temperature), and its rows come equally often.
- If a source has a weight, the sources share the positions by weight, 1 where
  none is given. Inside a source, languages are smoothed in the same way.

A weight of 0 leaves a source out. Shares become whole numbers of positions, so
the rows of any step are a function of the seed and the step.
"""

import functools
from typing import NamedTuple

import numpy as np

from mlir_jax.batches import sampling
from mlir_jax.data import token_store

# The streams of which a batch may have one source: their texts are each other's
# negatives.
_OF_ONE_SOURCE = ("retrieval", "parallel")


class Mixture(NamedTuple):
  """How the rows of a batch are chosen.

  Attributes:
    temperature: A language is drawn with a probability ~ size ** (1 /
      temperature).
    weights: Pairs of a source's name and its weight, at least 0.
    one_source: Whether the question-passage pairs of a batch are from one
      source, and its translations, too.
  """

  temperature: float = 1.0
  weights: tuple[tuple[str, float], ...] = ()
  one_source: bool = False


class _Pools(NamedTuple):
  """Sets of rows; each of them is drawn in epochs of its own.

  Attributes:
    sizes: int64 [P], rows of each pool.
    weights: float64 [P], proportional to the pools' shares.
    first: int64 [K], where ranges of rows begin in all pools' rows, one pool
      after the other.
    start: int64 [K], where these ranges begin in the store.
  """

  sizes: np.ndarray
  weights: np.ndarray
  first: np.ndarray
  start: np.ndarray

  def rows(self, numbers: np.ndarray) -> np.ndarray:
    """Returns rows of the store for numbers from `sampling.draw`."""
    place = np.searchsorted(self.first, numbers, side="right") - 1
    return self.start[place] + numbers - self.first[place]


Groups = tuple[token_store.Group, ...]


def _weights(groups: Groups, mixture: Mixture) -> dict[str, float]:
  """Returns the weight of each source that has rows; empty for one pool.

  A source that is left out is not there, or has the weight 0.
  """
  given = dict(mixture.weights)
  found = {group.source: given.get(group.source, 1.0) for group in groups}
  if any(given.get(source, 0) > 0 for source in found):
    return found
  return {}


def _used(groups: Groups, mixture: Mixture) -> list[int]:
  """Returns the numbers of the groups that are not left out."""
  left_out = {source for source, weight in mixture.weights if not weight}
  return [i for i, group in enumerate(groups) if group.source not in left_out]


def shares(groups: Groups, mixture: Mixture) -> np.ndarray:
  """Returns the share of a stream's positions of each group; float64 [G].

  Args:
    groups: The groups of the stream, from the store.
    mixture: The mixture.

  Raises:
    ValueError: if no row is left.
  """
  used = _used(groups, mixture)
  if not used:
    raise ValueError(
      "data.sources leaves out all sources of a stream (weight=0)."
    )
  found = np.zeros(len(groups))
  weights = _weights(groups, mixture)
  # The name by which groups are put together: a source, or a language.
  names = [groups[i].source if weights else groups[i].language for i in used]
  for name in dict.fromkeys(names):
    inside = [i for i, other in zip(used, names, strict=True) if other == name]
    rows = np.array([groups[i].rows for i in inside])
    if weights:
      of_group = sampling.smoothed(rows, mixture.temperature)
      found[inside] = weights[name] * of_group / of_group.sum()
    else:
      found[inside] = rows / rows.sum()
  if not weights:
    languages = token_store.language_rows(groups[i] for i in used)
    smoothed = sampling.smoothed([*languages.values()], mixture.temperature)
    for i, name in zip(used, names, strict=True):
      found[i] *= smoothed[list(languages).index(name)]
  return found / found.sum()


@functools.lru_cache(maxsize=64)
def _pools(groups: Groups, mixture: Mixture, source: str | None) -> _Pools:
  """Returns the pools of a stream, or those of one of its sources."""
  rows = np.array([group.rows for group in groups], np.int64)
  starts = np.cumsum(rows) - rows
  used = [
    i
    for i in _used(groups, mixture)
    if source is None or groups[i].source == source
  ]
  if source is None and not _weights(groups, mixture):
    # Groups of a language follow each other in the store.
    languages = token_store.language_rows(groups[i] for i in used)
    sizes = np.array([*languages.values()], np.int64)
    weights = sampling.smoothed(sizes, mixture.temperature)
  else:
    sizes = rows[used]
    weights = shares(groups, mixture)[used]
  first = np.cumsum(rows[used]) - rows[used]
  return _Pools(sizes, weights, first, starts[used])


def source_shares(groups: Groups, mixture: Mixture) -> dict[str, float]:
  """Returns the share of positions of each source; 0 if it is left out."""
  found: dict[str, float] = {}
  for group, share in zip(groups, shares(groups, mixture), strict=True):
    found[group.source] = found.get(group.source, 0.0) + float(share)
  return found


@functools.lru_cache(maxsize=64)
def _alternating(
  stream: str, groups: Groups, mixture: Mixture
) -> tuple[tuple[str, ...], tuple[int, ...]]:
  """Returns the sources of which batches of a stream are, with their quotas.

  There are none if batches are mixed: all do, if there is one source.
  """
  if not mixture.one_source or stream not in _OF_ONE_SOURCE:
    return (), ()
  found = source_shares(groups, mixture)
  found = {source: share for source, share in found.items() if share}
  if len(found) < 2:
    return (), ()
  quota = sampling.quotas(np.array([*found.values()]))
  return tuple(found), tuple(quota.tolist())


def check(
  stream: str, groups: Groups, mixture: Mixture, size: int, where: str
) -> None:
  """Refuses a mixture that does not fit a stream's rows.

  Args:
    stream: The stream of the batch.
    groups: The groups of its rows.
    mixture: The mixture.
    size: Rows of a batch.
    where: The token store, for the message.

  Raises:
    ValueError: if all sources are left out, or a batch of one source would
      have rows twice.
  """
  if not _used(groups, mixture):
    raise ValueError(
      f"batch.{stream} is {size}, but data.sources gives all sources of"
      f" {where} for it the weight 0: give one a weight, or set"
      f" batch.{stream}=0."
    )
  sources, _ = _alternating(stream, groups, mixture)
  for source in sources:
    rows = sum(group.rows for group in groups if group.source == source)
    if rows < size:
      raise ValueError(
        f"batch.mixing is 'one_source' and batch.{stream} is {size}, but the"
        f" source {source!r} has only {rows:,} rows in {where}: a batch would"
        " have rows twice. Lower the batch, give the source's files the name of"
        " another source, leave it out (data.sources, weight=0), or set"
        " batch.mixing='mixed'."
      )


def sources_of_steps(
  stream: str,
  groups: Groups,
  mixture: Mixture,
  seed: int,
  steps: np.ndarray,
) -> np.ndarray:
  """Returns the number of the source of each step's batch; int64 [n].

  All are 0 if the batches of the stream are mixed.
  """
  return _find_sources(stream, groups, mixture, seed, steps)[0]


def _find_sources(stream, groups, mixture, seed, steps):
  """Returns the source of each step, and how many steps it had before."""
  steps = np.asarray(steps, np.int64)
  sources, quota = _alternating(stream, groups, mixture)
  if not sources:
    return np.zeros_like(steps), steps
  return sampling.alternate(steps, seed, stream, quota)


def draw(
  stream: str,
  groups: Groups,
  mixture: Mixture,
  seed: int,
  size: int,
  first: int,
  count: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the rows of a stream's batches.

  Args:
    stream: The stream of the batch. It has an order of its own.
    groups: The groups of its rows, in the order of the store.
    mixture: The mixture.
    seed: The run's seed.
    size: Rows of a batch.
    first: The first step.
    count: The number of steps.

  Returns:
    rows: int64 [count * size], the rows of the first step, then the others.
    epochs: int64 [count * size], how often the row was read before.
  """
  sources, _ = _alternating(stream, groups, mixture)
  if not sources:
    pools = _pools(groups, mixture, None)
    rows, epochs = sampling.draw(
      first * size + np.arange(count * size),
      seed,
      stream,
      pools.sizes,
      pools.weights,
    )
    return pools.rows(rows), epochs
  source, turn = _find_sources(
    stream, groups, mixture, seed, first + np.arange(count)
  )
  rows, epochs = np.empty((2, count, size), np.int64)
  for number in np.unique(source).tolist():
    here = source == number
    pools = _pools(groups, mixture, sources[number])
    drawn, epochs[here] = sampling.draw(
      turn[here][:, None] * size + np.arange(size),
      seed,
      f"{stream} of {sources[number]}",
      pools.sizes,
      pools.weights,
    )
    rows[here] = pools.rows(drawn)
  return rows.ravel(), epochs.ravel()
