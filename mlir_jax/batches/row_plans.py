"""The rows of a run's batches: few shapes, chosen once, that hold every step.

Which texts a step reads is a function of the seed and the step, so the lengths
of coming steps are known before the first one. The rows are chosen for them.
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

# Texts whose lengths are looked at, and texts that are packed, to choose.
_SCANNED = 2**19
_PACKED = 2**17
# A block, or a plan, that saves less than this is not worth its compilation.
_MIN_SAVING = 0.02
# Compiling a plan takes as long as so many steps.
_COMPILATION = 30
_MAX_PLANS = 3


@dataclasses.dataclass(frozen=True)
class Plans:
  """The shapes that a run's batches may have; a step takes the first it fits.

  Attributes:
    plans: The smallest first.
    last_resort: If there is one, the last plan: it holds a step of any texts,
      and is for steps that were not looked at.
    counts: Group to what a step has of it on average, without padding.
    computed: Tokens that a step computes on average, with padding.
  """

  plans: tuple[Plan, ...]
  last_resort: bool
  counts: Mapping[str, flops.Texts]
  computed: float

  @property
  def padding(self) -> float:
    """The share of padding in what the steps compute."""
    real = sum(counts.tokens for counts in self.counts.values())
    return 1 - real / self.computed

  def __str__(self) -> str:
    """The usual rows in words, and the share of padding."""
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

  They are a function of the arguments, so all hosts choose the same.

  Args:
    store: The token store.
    spec: Global batch sizes.
    seed: The run's seed.
    temperature: Of the languages' mixture.
    steps: Of the whole run.
    chunk_rows: Rows encoded at once, over all devices; 0 for all of them.
    row_length: Tokens of a row; 0 to choose.
    devices: Over how many the rows are split.
    multiple: Of which row lengths are multiples.
    mask_rate: The share of tokens hidden in masked texts.

  Raises:
    ValueError: if the store lacks a stream, or a row is too short.
  """
  drawing.check(store, spec)
  total = sum(spec.texts().values())
  count = min(steps, max(1, _SCANNED // total // 8))
  blocks_of_steps = steps // count or 1
  firsts = np.unique(
    np.linspace(0, blocks_of_steps - 1, min(blocks_of_steps, 8)).astype(int)
  )
  drawn = [
    drawing.lengths_of_steps(
      store, spec, seed, temperature, int(first) * count, count
    )
    for first in firsts
  ]
  lengths = {
    group: np.concatenate([each[group] for each in drawn])
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
  """Chooses rows for steps of such lengths.

  Args:
    lengths: Group to the tokens of its texts in some steps, int [S, T].
    longest: Group to the length that no text of it exceeds.
    steps: Of the whole run; if they are more than S, others may be longer.
    chunk_rows: As in `make_plans`, like all that follow.
    row_length: Tokens of a row.
    devices: Over how many the rows are split.
    multiple: Of row lengths.
    mask_rate: Of masked texts.
  """
  needs = {
    group: targets(mask_rate, longest[group]) if group == "masked" else None
    for group in lengths
  }
  # The heaviest steps decide how many rows there are.
  tokens = sum(of_group.sum(axis=1) for of_group in lengths.values())
  texts = sum(of_group.shape[1] for of_group in lengths.values())
  heaviest = np.argsort(-np.asarray(tokens), kind="stable")
  shown = heaviest[:: max(1, len(heaviest) // 4)][:4]
  packed = heaviest[: max(4, _PACKED // texts)]
  shapes = {
    group: _choose_lengths(
      of_group[shown],
      longest[group],
      row_length=row_length,
      multiple=multiple,
      need=needs[group],
      quantum=devices * (2 if chunk_rows else 1),
    )
    for group, of_group in lengths.items()
  }
  fixed, flexible = {}, {}
  for group, of_group in lengths.items():
    fixed[group], flexible[group] = _count_rows(
      of_group[packed], shapes[group], needs[group]
    )
  is_exact = len(packed) == steps
  # The others may need more rows: four standard deviations, as of normal
  # numbers one in 30,000 has. Rounded, as its last bit differs by machine.
  if not is_exact:
    for group, rows in flexible.items():
      all_tokens = lengths[group].sum(axis=1)
      likely = all_tokens.mean() + 4 * all_tokens.std()
      scale = max(1.0, likely / max(all_tokens[packed].max(), 1))
      flexible[group] = np.append(rows, int(np.ceil(rows.max() * scale)))

  def plan_of(rows: Mapping[str, int]) -> Plan:
    return {
      group: _rounded(
        [
          *(
            block._replace(rows=count)
            for block, count in zip(blocks[:-1], fixed[group], strict=True)
          ),
          blocks[-1]._replace(rows=max(int(rows[group]), 1)),
        ],
        chunk_rows,
        devices,
      )
      for group, blocks in shapes.items()
    }

  share_packed = len(packed) / len(heaviest)
  plans, computed = _levels(flexible, plan_of, steps, share_packed)
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
    {group: _count(of_group) for group, of_group in lengths.items()},
    computed,
  )


def _count(lengths: np.ndarray) -> flops.Texts:
  """What a step of such lengths, int [S, T], has on average."""
  return flops.Texts(
    texts=float((lengths > 0).sum(axis=1).mean()),
    tokens=float(lengths.sum(axis=1).mean()),
    pairs=float((lengths.astype(np.int64) ** 2).sum(axis=1).mean()),
  )


def targets(rate: float, longest: int) -> np.ndarray:
  """The most hidden tokens of a text of 0, 1, ... tokens; int64."""
  sizes = -(-np.arange(longest + 1) // 8) * 8
  return masking.max_targets(rate, sizes) * (sizes > 0)


def _rounded(
  blocks: Sequence[packing.Block], chunk_rows: int, devices: int
) -> tuple[packing.Block, ...]:
  """The blocks with rows for each device, and for each chunk on it."""

  def split(parts):
    quantum = parts * devices
    return tuple(
      block._replace(rows=-(-block.rows // quantum) * quantum)
      for block in blocks
      if block.rows
    )

  if not chunk_rows:
    return split(1)
  parts = 2  # See `chunking.count_parts`.
  while packing.tokens(split(parts)) > parts * chunk_rows * blocks[0].length:
    parts += 1
    if parts * devices > sum(block.rows for block in blocks):
      break  # A row to each: no smaller chunk is possible.
  return split(parts)


def _choose_lengths(
  lengths: np.ndarray,
  longest: int,
  *,
  row_length: int,
  multiple: int,
  need: np.ndarray | None,
  quantum: int,
) -> tuple[packing.Block, ...]:
  """The lengths of the rows in which some steps, int [S, T], cost least.

  The rows' counts of the result mean nothing.
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
    fixed, flexible = _count_rows(lengths, blocks, need)
    rows = [-(-n // quantum) * quantum for n in (*fixed, flexible.max())]
    amount = packing.cost(
      [b._replace(rows=n) for b, n in zip(blocks, rows, strict=True)]
    )
    if amount < least * (1 - _MIN_SAVING * (len(candidate) > len(best))):
      best, least = blocks, amount
  return best


def _capacity(
  lengths: np.ndarray, length: int, need: np.ndarray | None
) -> tuple[int, int]:
  """The most texts and the most hidden tokens of a row of some length."""
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
) -> tuple[list[int], np.ndarray]:
  """How many rows some steps, int [S, T], need.

  Returns:
    For each block but the last, what the step needs that has most texts for
    it; and for each step the rows of the last block, int64 [S].
  """
  fixed = []
  for block, shorter in itertools.pairwise(blocks):
    long = (lengths > shorter.length).sum(axis=1)
    most = lengths[np.argsort(-long, kind="stable")[:4]]
    done = [
      each._replace(rows=rows)
      for each, rows in zip(blocks, fixed, strict=False)
    ]
    so_far = [*done, *blocks[len(done) :]]
    fixed.append(
      max(packing.rows_needed(step, so_far, need)[len(done)] for step in most)
    )
    del block
  final = [
    *(b._replace(rows=n) for b, n in zip(blocks, fixed, strict=False)),
    blocks[-1],
  ]
  flexible = [packing.rows_needed(step, final, need)[-1] for step in lengths]
  return fixed, np.array(flexible, np.int64)


def _levels(
  flexible: Mapping[str, np.ndarray],
  plan_of: Callable[[Mapping[str, int]], Plan],
  steps: int,
  share_packed: float,
) -> tuple[list[Plan], float]:
  """One plan for all steps, or a few if steps differ so much that it pays.

  Args:
    flexible: Group to the rows of its last block that some steps need.
    plan_of: Makes a plan with so many rows.
    steps: Of the run.
    share_packed: Which share of the steps looked at these are; they are the
      heaviest, so the others fit where the lightest of these does.

  Returns:
    The plans, the smallest first, and the tokens that a step computes, on
    average.
  """
  groups = list(flexible)
  needed = np.stack([flexible[group] for group in groups], axis=1)
  needed = needed[np.argsort(needed.sum(axis=1), kind="stable")]
  highest = np.maximum.accumulate(needed, axis=0)
  last = len(highest) - 1
  ends = np.unique(np.linspace(0, last, 25).astype(int))
  plans = [
    plan_of(dict(zip(groups, highest[end], strict=True))) for end in ends
  ]
  tokens = [
    sum(packing.tokens(blocks) for blocks in plan.values()) for plan in plans
  ]
  costs = [
    sum(packing.cost(blocks) for blocks in plan.values()) for plan in plans
  ]
  # The share of all steps that fit into each plan.
  fits = 1 - (1 - (ends + 1) / len(highest)) * share_packed

  def mean(values, chosen):
    shares = np.diff([0.0, *(fits[n] for n in chosen)])
    return sum(s * values[n] for s, n in zip(shares, chosen, strict=True))

  chosen = (len(ends) - 1,)
  for count in range(2, _MAX_PLANS + 1):
    several = min(
      (
        (*some, len(ends) - 1)
        for some in itertools.combinations(range(len(ends) - 1), count - 1)
      ),
      key=lambda some: mean(costs, some),
      default=chosen,
    )
    saved = 1 - mean(costs, several) / mean(costs, chosen)
    if saved > max(_MIN_SAVING, _COMPILATION / steps):
      chosen = several
  distinct = []
  for n in chosen:
    if plans[n] not in distinct:
      distinct.append(plans[n])
  return distinct, float(mean(tokens, chosen))
