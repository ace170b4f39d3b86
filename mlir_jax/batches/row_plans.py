"""Chooses the rows of a run's batches: few shapes that hold every step.

The texts of a step are a function of the seed and the step, so the lengths of
later steps are known before the first one. The rows are chosen for them.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mlir_jax.batches import batch as batch_lib
from mlir_jax.batches import drawing, masking, packing
from mlir_jax.costs import flops
from mlir_jax.data import token_store

# Group to the blocks of its rows, the longest first.
Plan = Mapping[str, tuple[packing.Block, ...]]

# The choice reads the lengths of _SCANNED texts, and packs _PACKED texts.
_SCANNED = 2**19
_PACKED = 2**17
# A further block or plan must save at least this share to pay for its
# compilation.
_MIN_SAVING = 0.02
# Compiling a plan takes about as long as this number of steps.
_COMPILATION = 30
_MAX_PLANS = 3
# Several plans save far less than this share of the cost of one plan.
_MOST_SAVED = 0.2
# Candidates for smaller plans: each holds all steps except the heaviest, which
# make up this share.
_LEVELS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)


@dataclasses.dataclass(frozen=True)
class Plans:
  """The shapes of a run's batches; a step uses the first that holds its texts.

  Attributes:
    plans: The smallest first.
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

  def __str__(self) -> str:
    """Describes the usual rows and the share of padding."""
    lines = []
    usual = self.plans[-2] if self.last_resort else self.plans[-1]
    for group, blocks in usual.items():
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


def make_plans(
  store: token_store.TokenStore,
  spec: batch_lib.BatchSpec,
  seed: int,
  temperature: float,
  steps: int,
  *,
  chunk_rows: int = 0,
  row_length: int = 0,
  devices: int = 1,
  multiple: int = packing.MULTIPLE,
  mask_rate: float = 0.0,
) -> Plans:
  """Chooses the rows of a run's batches.

  The choice is a function of the arguments, so all hosts choose the same.

  Args:
    store: The token store.
    spec: Global batch sizes.
    seed: The run's seed.
    temperature: As in `drawing.draw`.
    steps: Steps of the whole run.
    chunk_rows: Rows of a chunk, over all devices; 0 for no chunks.
    row_length: Tokens of a row; 0 to choose.
    devices: The number of devices over which the rows are split.
    multiple: Row lengths are multiples of this.
    mask_rate: The share of hidden tokens in masked texts.

  Raises:
    ValueError: if the store lacks a stream, or a row is too short.
  """
  drawing.check(store, spec)
  total = sum(spec.texts().values())
  count = min(steps, max(1, _SCANNED // total // 8))
  portions = -(-steps // count)
  firsts = _spread(portions, 8)
  drawn = [
    drawing.lengths_of_steps(
      store, spec, seed, temperature, int(first) * count, count
    )
    for first in firsts
  ]
  lengths = {
    # The last portion may continue after the run's last step.
    group: np.concatenate([each[group] for each in drawn])[:steps]
    for group in spec.texts()
  }
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
  )


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
  """
  needs = {
    group: targets(mask_rate, longest[group]) if group == "masked" else None
    for group in lengths
  }
  tokens = np.sum([each.sum(axis=1) for each in lengths.values()], axis=0)
  texts = sum(of_group.shape[1] for of_group in lengths.values())
  heaviest = np.argsort(-tokens, kind="stable")
  amount = max(8, _PACKED // texts)
  # A sample of all steps, and the heaviest ones, which decide about the size.
  typical = heaviest[_spread(len(heaviest), amount)]
  heavy = heaviest[:amount]
  shapes = {
    group: _choose_lengths(
      of_group[heaviest[_spread(len(heaviest), 4)]],
      longest[group],
      row_length=row_length,
      multiple=multiple,
      need=needs[group],
      quantum=devices * (2 if chunk_rows else 1),
    )
    for group, of_group in lengths.items()
  }

  def enough(steps, headroom=0.0):
    """Returns a plan for some steps, with room for a share of more tokens."""
    return {
      group: _rounded(
        _count_rows(
          lengths[group][steps], shapes[group], needs[group], headroom
        ),
        chunk_rows,
        devices,
      )
      for group in lengths
    }

  is_exact = amount >= len(heaviest) == steps
  # One in 30,000 normally distributed numbers is larger. Rounded, because the
  # last bit differs between machines.
  likely = np.round(tokens.mean() + 4 * tokens.std(), 6)
  headroom = 0.0 if is_exact else max(0.0, likely / tokens.max() - 1)
  plans, computed = _levels(
    typical,
    enough,
    enough(heavy, headroom),
    lambda plan, step: all(
      packing.fits(lengths[group][step], plan[group], needs[group])
      for group in lengths
    ),
    steps,
  )
  if not is_exact:
    plans.append(
      {
        group: _rounded(
          [shapes[group][0]._replace(rows=of_group.shape[1])],
          chunk_rows,
          devices,
        )
        for group, of_group in lengths.items()
      }
    )
  return Plans(
    tuple(plans),
    not is_exact,
    {group: _count(of_group[typical]) for group, of_group in lengths.items()},
    computed,
  )


def _spread(size: int, amount: int) -> np.ndarray:
  """Returns at most `amount` evenly spaced numbers from 0 to size - 1."""
  return np.unique(np.linspace(0, size - 1, amount).astype(int))


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


def _rounded(
  blocks: Sequence[packing.Block], chunk_rows: int, devices: int
) -> tuple[packing.Block, ...]:
  """Rounds each block's rows up to equal parts for devices and chunks."""
  blocks = [block for block in blocks if block.rows]

  def split(parts):
    quantum = parts * devices
    return tuple(
      block._replace(rows=-(-block.rows // quantum) * quantum)
      for block in blocks
    )

  if not chunk_rows:
    return split(1)
  parts = 2  # See `chunking.count_parts`.
  while packing.tokens(split(parts)) > parts * chunk_rows * blocks[0].length:
    parts += 1
    if parts * devices > sum(block.rows for block in blocks):
      return split(parts)  # One row each: no smaller chunk is possible.
  # With one or two more parts, less rounding may be necessary.
  return min(map(split, range(parts, parts + 3)), key=packing.tokens)


def _choose_lengths(
  lengths: np.ndarray,
  longest: int,
  *,
  row_length: int,
  multiple: int,
  need: np.ndarray | None,
  quantum: int,
) -> tuple[packing.Block, ...]:
  """Chooses the row lengths that cost least for some steps, int [S, T].

  The result says nothing about the numbers of rows.
  """

  def up(length):
    return max(multiple, -(-int(length) // multiple) * multiple)

  if row_length and row_length < longest:
    raise ValueError(
      f"batch.row_length is {row_length}, but there are texts of {longest}"
      f" tokens: set it to {up(longest)} or more, or to 0."
    )
  whole = up(longest)
  candidates = {(row_length,)} if row_length else {
    *((up(whole * factor),) for factor in (1, 1.25, 1.5, 2, 3, 4)),
    *((whole, up(whole / part)) for part in (2, 3, 4, 6, 8)),
    *((up(whole * 1.5), up(whole / part)) for part in (1, 2, 4)),
    *((whole, up(whole / part), up(whole / part**2)) for part in (2, 3, 4)),
  }  # fmt: skip
  best, least = (), np.inf
  for candidate in sorted(candidates, key=lambda c: (len(c), c)):
    if any(b >= a for a, b in itertools.pairwise(candidate)):
      continue
    blocks = tuple(
      packing.Block(0, length, *_capacity(lengths, length, need))
      for length in candidate
    )
    counted = _count_rows(lengths, blocks, need)
    amount = packing.cost(
      [b._replace(rows=-(-b.rows // quantum) * quantum) for b in counted]
    )
    if amount < least * (1 - _MIN_SAVING * (len(candidate) > len(best))):
      best, least = blocks, amount
  return best


def _capacity(
  lengths: np.ndarray, length: int, need: np.ndarray | None
) -> tuple[int, int]:
  """Returns the largest numbers of texts and of hidden tokens in a row."""
  fitting = lengths[(lengths > 0) & (lengths <= length)]
  if not fitting.size:
    fitting = np.array([length])
  texts = int(np.ceil(2 * length / fitting.mean()))
  if need is None:
    return texts, 0
  share = need[fitting].sum() / fitting.sum()
  return texts, max(int(need[-1]), int(np.ceil(1.15 * share * length)))


def _count_rows(
  lengths: np.ndarray,
  blocks: Sequence[packing.Block],
  need: np.ndarray | None,
  headroom: float = 0.0,
) -> list[packing.Block]:
  """Returns the blocks with enough rows for each of some steps.

  Args:
    lengths: int [S, T], tokens of the texts of the steps.
    blocks: The blocks; their numbers of rows are ignored.
    need: The argument `targets` of `packing.pack`.
    headroom: The share of additional rows, for steps with more tokens.
  """
  counted = [block._replace(rows=0) for block in blocks]
  for number, block in enumerate(counted):
    # The rows of earlier blocks are fixed. Later blocks have none yet, so this
    # one takes only texts that are too long for the next; the last takes the
    # rest.
    of_steps = [
      packing.rows_needed(step, counted, need)[number] for step in lengths
    ]
    rows = max(of_steps)
    counted[number] = block._replace(rows=int(np.ceil(rows * (1 + headroom))))
  if not packing.tokens(counted):
    counted[-1] = counted[-1]._replace(rows=1)
  return counted


def _levels(
  typical: np.ndarray,
  enough: Callable[[np.ndarray], Plan],
  largest: Plan,
  fits: Callable[[Plan, int], bool],
  steps: int,
) -> tuple[list[Plan], float]:
  """Chooses one plan, or a few if steps differ so much that these cost less.

  Args:
    typical: Some steps, the heaviest first.
    enough: Makes a plan for some steps.
    largest: The plan that holds all expected steps.
    fits: Returns whether a plan holds a step.
    steps: Steps of the run.

  Returns:
    The plans, the smallest first, and the mean number of tokens that a step
    computes.
  """
  candidates = [largest]
  if _MOST_SAVED * steps > _COMPILATION:
    for share in _LEVELS:
      plan = enough(typical[int(share * len(typical)) :])
      if plan not in candidates:
        candidates.append(plan)
  costs = np.array([sum(map(packing.cost, p.values())) for p in candidates])
  holds = np.array(
    [[fits(plan, step) for step in typical] for plan in candidates[1:]]
  ).reshape(-1, len(typical))
  holds = np.concatenate([np.ones((1, len(typical)), bool), holds])

  def first_fit(chosen, values):
    """Returns the mean cost of steps in the smallest plans that hold them."""
    found = np.where(holds[chosen], values[chosen][:, None], np.inf)
    return found.min(axis=0).mean()

  chosen = [0]
  for count in range(1, _MAX_PLANS):
    several = min(
      (
        [0, *some]
        for some in itertools.combinations(range(1, len(candidates)), count)
      ),
      key=lambda some: first_fit(some, costs),
      default=chosen,
    )
    saved = 1 - first_fit(several, costs) / first_fit(chosen, costs)
    if saved > max(_MIN_SAVING, _COMPILATION / steps):
      chosen = several
  chosen.sort(key=costs.__getitem__)
  tokens = np.array(
    [sum(map(packing.tokens, plan.values())) for plan in candidates]
  )
  # The reader uses the first plan that fits.
  first = holds[chosen].argmax(axis=0)
  computed = float(tokens[chosen][first].mean())
  return [candidates[n] for n in chosen], computed
