"""Chooses the rows of a run's batches: few shapes that hold every step.

The texts of a step are a function of the seed and the step, so the lengths of
later steps are known before the first one. The rows are chosen for them.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from mlir_jax.batches import batch as batch_lib
from mlir_jax.batches import (
  drawing,
  masking,
  packing,
  plan_candidates,
  plan_sizes,
  row_lengths,
  sampling,
)
from mlir_jax.batches import mixture as mixture_lib
from mlir_jax.costs import flops
from mlir_jax.data import token_store

Plan = plan_candidates.Plan

# The choice reads the lengths of _SCANNED texts. It packs _PACKED texts a few
# times, or _FEWEST steps of large batches.
_SCANNED = 2**19
_PACKED = 2**16
_FEWEST = 32
# If each batch has one source, the choice reads at least so many steps of each.
_STEPS_OF_A_SOURCE = 8
# Compiling a plan takes about as long as training on this number of tokens on
# each device. An estimate for small encoders on CPUs, and for large ones on
# accelerators, which compile for minutes.
_COMPILATION_CPU = 100_000
_COMPILATION = 20_000_000
# A further plan must save its compilation, and at least this share.
_MIN_SAVING = 0.002
_MAX_PLANS = 12


@dataclasses.dataclass(frozen=True)
class Plans:
  """The shapes of a run's batches; a step uses the first that holds its texts.

  Attributes:
    plans: The cheapest first.
    last_resort: Whether the last plan is a last resort. Such a plan holds any
      texts, for steps that the choice did not examine.
    counts: Group to the mean counts of a step, without padding.
    computed: Mean number of tokens that a step computes, with padding.
  """

  plans: tuple[Plan, ...]
  last_resort: bool
  counts: Mapping[str, flops.Texts]
  computed: float

  @property
  def padding(self) -> float:
    """The share of padding in the tokens that steps compute."""
    real = sum(counts.tokens for counts in self.counts.values())
    return 1 - real / self.computed

  @property
  def usual(self) -> Plan:
    """The plan whose number of tokens is nearest to the mean."""

    def distance(plan):
      return abs(sum(map(packing.tokens, plan.values())) - self.computed)

    return min(self.plans, key=distance)

  def __str__(self) -> str:
    """Describes the usual rows and the share of padding."""
    lines = []
    for group, blocks in self.usual.items():
      rows = " + ".join(
        f"{block.rows:,} rows of {block.length}" for block in blocks
      )
      counts = self.counts[group]
      lines.append(
        f"{group}: {counts.texts:,.0f} texts of a step,"
        f" {counts.tokens:,.0f} tokens on average, in {rows}"
      )
    shapes = len(self.plans) - self.last_resort
    more = f" ({shapes} sizes of a step are compiled)" if shapes > 1 else ""
    lines.append(f"Padding: {self.padding:.1%} of the computed tokens{more}")
    return "\n".join(lines)


def compilation(platform: str) -> int:
  """Returns how many tokens a device trains on while a plan is compiled."""
  return _COMPILATION_CPU if platform == "cpu" else _COMPILATION


def make_plans(
  store: token_store.TokenStore,
  spec: batch_lib.BatchSpec,
  seed: int,
  mixture: mixture_lib.Mixture,
  steps: int,
  *,
  chunk_rows: int = 0,
  row_length: int = 0,
  devices: int = 1,
  multiple: int = packing.MULTIPLE,
  mask_rate: float = 0.0,
  compilation: int = _COMPILATION_CPU,
) -> Plans:
  """Chooses the rows of a run's batches.

  The choice is a function of the arguments, so all hosts choose the same.

  Args:
    store: The token store.
    spec: Global batch sizes.
    seed: The run's seed.
    mixture: As in `drawing.draw`.
    steps: Steps of the whole run.
    chunk_rows: Rows of a chunk, over all devices; 0 for no chunks.
    row_length: Tokens of a row; 0 to choose.
    devices: The number of devices over which the rows are split.
    multiple: Row lengths are multiples of this.
    mask_rate: The share of hidden tokens in masked texts.
    compilation: From `compilation`.

  Raises:
    ValueError: if the store lacks a stream, or a row is too short.
  """
  drawing.check(store, spec, mixture)
  total = sum(spec.texts().values())
  count = min(steps, max(1, _SCANNED // total // 8))
  portions = -(-steps // count)
  scanned = [
    (int(first) * count, count) for first in plan_candidates.spread(portions, 8)
  ]
  scanned += _rare_steps(store, spec, seed, mixture, steps, scanned)
  drawn = [
    drawing.lengths_of_steps(store, spec, seed, mixture, first, length)
    for first, length in scanned
  ]
  numbers = np.concatenate([np.arange(f, f + n) for f, n in scanned])
  # The last portion may continue after the run's last step.
  is_step = numbers < steps
  numbers = numbers[is_step]
  lengths = {
    group: np.concatenate([each[group] for each in drawn])[is_step]
    for group in spec.texts()
  }
  kinds = drawing.kinds_of_steps(store, spec, seed, mixture, numbers)
  roles = {
    "query": ["query"],
    "masked": ["sentence"],
    "passage": [
      *(["query"] if spec.tied and spec.retrieval else []),
      *(["passage"] if spec.retrieval else []),
      *(["sentence"] if spec.parallel or spec.monolingual else []),
    ],
  }
  return choose(
    lengths,
    {
      group: max(store.padded_lengths[role] for role in roles[group])
      for group in spec.texts()
    },
    steps,
    chunk_rows=chunk_rows,
    row_length=row_length,
    devices=devices,
    multiple=multiple,
    mask_rate=mask_rate,
    compilation=compilation,
    kinds=np.unique(kinds, axis=0, return_inverse=True)[1].ravel(),
  )


def _rare_steps(
  store: token_store.TokenStore,
  spec: batch_lib.BatchSpec,
  seed: int,
  mixture: mixture_lib.Mixture,
  steps: int,
  scanned: Sequence[tuple[int, int]],
) -> list[tuple[int, int]]:
  """Finds steps whose source is rare, so that their lengths are known, too.

  Args:
    store: As in `make_plans`.
    spec: As in `make_plans`.
    seed: As in `make_plans`.
    mixture: As in `make_plans`.
    steps: As in `make_plans`.
    scanned: Pairs of a first step and a number of steps, which are known.

  Returns:
    More such pairs, for each source that has less than `_STEPS_OF_A_SOURCE`
    steps in `scanned`.
  """
  if not mixture.one_source:
    return []
  # Sources alternate evenly, so each of them comes in the first block.
  numbers = np.arange(min(steps, sampling.BLOCK))
  kinds = drawing.kinds_of_steps(store, spec, seed, mixture, numbers)
  known = np.zeros(len(numbers), bool)
  for first, length in scanned:
    known[first : first + length] = True
  found = set()
  for of_stream in kinds.T:
    for source in np.unique(of_stream):
      places = np.flatnonzero(of_stream == source)
      missing = _STEPS_OF_A_SOURCE - int(known[places].sum())
      if missing > 0:
        found |= {*places[~known[places]][:missing].tolist()}
  return [(step, 1) for step in sorted(found)]


def choose(
  lengths: Mapping[str, np.ndarray],
  longest: Mapping[str, int],
  steps: int,
  *,
  chunk_rows: int = 0,
  row_length: int = 0,
  devices: int = 1,
  multiple: int = packing.MULTIPLE,
  mask_rate: float = 0.0,
  compilation: int = _COMPILATION_CPU,
  kinds: np.ndarray | None = None,
) -> Plans:
  """Chooses rows from the lengths of texts in some steps.

  Args:
    lengths: Group to the tokens of its texts in S steps, int [S, T].
    longest: Group to the largest possible length of its texts.
    steps: Steps of the whole run. If there are more than S, the texts of the
      others may be longer.
    chunk_rows: As in `make_plans`.
    row_length: As in `make_plans`.
    devices: As in `make_plans`.
    multiple: As in `make_plans`.
    mask_rate: As in `make_plans`.
    compilation: As in `make_plans`.
    kinds: int [S], steps with equal numbers have texts of the same sources;
      None if all steps do.
  """
  needs = {
    group: targets(mask_rate, longest[group]) if group == "masked" else None
    for group in lengths
  }
  tokens = np.sum([each.sum(axis=1) for each in lengths.values()], axis=0)
  texts = sum(of_group.shape[1] for of_group in lengths.values())
  heaviest = np.argsort(-tokens, kind="stable")
  amount = max(_FEWEST, _PACKED // texts)
  alike = heaviest[(len(heaviest) - 1) // 2 :][: max(1, min(4, 2048 // texts))]

  def of_steps(steps):
    return {group: of_group[steps] for group, of_group in lengths.items()}

  candidates = plan_candidates.Candidates(
    {
      group: row_lengths.choose(
        list(of_group),
        longest[group],
        row_length=row_length,
        multiple=multiple,
        targets=needs[group],
        quantum=devices * (2 if chunk_rows else 1),
      )
      for group, of_group in of_steps(alike).items()
    },
    needs,
    chunk_rows,
    devices,
  )
  is_exact = amount >= len(heaviest) == steps
  # The heaviest steps decide about the largest size.
  largest = candidates.largest(
    of_steps(heaviest[:amount]), 0.0 if is_exact else _headroom(tokens, kinds)
  )
  typical = heaviest[plan_candidates.spread(len(heaviest), amount)]
  price = compilation * devices / (steps * max(float(tokens.mean()), 1.0))
  plans = _choose_sizes(candidates, of_steps(typical), largest, price)
  # The share of padding is that of other steps, for which nothing was chosen.
  others = np.setdiff1d(heaviest, typical)
  checked = typical
  if len(others) >= len(typical):
    checked = others[plan_candidates.spread(len(others), amount)]
  computed = _computed(plans, of_steps(checked), needs)
  if not is_exact:
    plans.append(
      candidates.last_resort(
        {group: of_group.shape[1] for group, of_group in lengths.items()}
      )
    )
  return Plans(
    tuple(plans),
    not is_exact,
    {group: _count(of_group) for group, of_group in of_steps(checked).items()},
    computed,
  )


def _headroom(tokens: np.ndarray, kinds: np.ndarray | None) -> float:
  """Returns the share of tokens by which other steps may be heavier.

  Args:
    tokens: int [S], the tokens of known steps.
    kinds: As in `choose`.
  """
  if kinds is None:
    kinds = np.zeros(len(tokens), np.int64)
  likely = max(
    # One in 30,000 normally distributed numbers is larger. Rounded, because the
    # last bit differs between machines.
    float(np.round(of_kind.mean() + 4 * of_kind.std(), 6))
    for of_kind in (tokens[kinds == kind] for kind in np.unique(kinds))
  )
  return max(0.0, likely / tokens.max() - 1)


def _choose_sizes(
  candidates: plan_candidates.Candidates,
  lengths: Mapping[str, np.ndarray],
  largest: Plan,
  price: float,
) -> list[Plan]:
  """Returns the plans that are worth their compilation, the cheapest first.

  Args:
    candidates: Proposes plans.
    lengths: Group to the tokens of its texts, int [S, T]; the heaviest step
      first.
    largest: The plan that holds all expected steps; it is always chosen.
    price: The cost of compiling a plan, as a share of the run's cost.
  """
  steps = len(next(iter(lengths.values())))
  plans, holds = [largest], np.ones((1, steps), bool)
  # A run in which no plan can save its compilation has one.
  if price < 0.5 and steps > 1:
    smaller, holds_of_smaller = candidates.smaller(lengths, largest)
    plans += smaller
    holds = np.concatenate([holds, holds_of_smaller])
  chosen = plan_sizes.choose(
    np.array([plan_candidates.cost(plan) for plan in plans]),
    holds,
    _MAX_PLANS,
    lambda before, after: before - after > max(_MIN_SAVING, price) * before,
  )
  return [plans[index] for index in chosen]


def _computed(
  plans: Sequence[Plan],
  lengths: Mapping[str, np.ndarray],
  needs: Mapping[str, np.ndarray | None],
) -> float:
  """Returns the mean number of tokens that steps compute.

  Args:
    plans: The cheapest first. A step uses the first that fits, as in the
      reader.
    lengths: Group to the tokens of its texts, int [S, T].
    needs: Group to the argument `targets` of `packing.pack`.
  """
  sizes = [sum(map(packing.tokens, plan.values())) for plan in plans]
  computed = [
    next(
      size
      for size, plan in zip(sizes, plans, strict=True)
      if plan is plans[-1]
      or all(
        packing.fits(texts, plan[group], needs[group])
        for group, texts in zip(lengths, step, strict=True)
      )
    )
    for step in zip(*lengths.values(), strict=True)
  ]
  return float(np.mean(computed))


def _count(lengths: np.ndarray) -> flops.Texts:
  """Returns the mean counts of steps with these lengths, int [S, T]."""
  return flops.Texts(
    texts=float((lengths > 0).sum(axis=1).mean()),
    tokens=float(lengths.sum(axis=1).mean()),
    pairs=float((lengths.astype(np.int64) ** 2).sum(axis=1).mean()),
  )


def targets(rate: float, longest: int) -> np.ndarray:
  """Returns the largest numbers of targets of texts of 0, 1, ... tokens."""
  sizes = -(-np.arange(longest + 1) // 8) * 8
  return masking.max_targets(rate, sizes) * (sizes > 0)
