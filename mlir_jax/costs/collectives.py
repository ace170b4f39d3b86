"""The collectives of a compiled step: what each device sends, how often."""

import dataclasses
import math
import re
from typing import NamedTuple

from mlir_jax.costs import hlo, loops

KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of a compiled program.

  Attributes:
    kind: One of `KINDS`.
    name: Its name in the text.
    operand_bytes: What each device gives.
    group_size: Among how many devices.
    loops: How many turns each loop around it takes, the outermost first.
  """

  kind: str
  name: str
  operand_bytes: int
  group_size: int
  loops: tuple[int, ...] = ()

  @property
  def runs(self) -> int:
    """How many times a step runs it."""
    return math.prod(self.loops)

  @property
  def result_bytes(self) -> int:
    """What each device gets from one run."""
    if self.kind == "all-gather":
      return self.operand_bytes * self.group_size
    if self.kind == "reduce-scatter":
      return self.operand_bytes // self.group_size
    return self.operand_bytes

  @property
  def sent_bytes(self) -> int:
    """What each device sends in one run, by the best algorithms there are.

    Of n devices, a gather sends each one's part to n - 1 others, a scatter
    n - 1 parts of n, and a reduction is both (Thakur et al. 2005).
    """
    n = self.group_size
    if self.kind == "collective-permute":
      return self.operand_bytes
    if self.kind == "all-gather":
      return self.operand_bytes * (n - 1)
    times = 2 if self.kind == "all-reduce" else 1
    return times * self.operand_bytes * (n - 1) // n


class Total(NamedTuple):
  """All collectives of a kind.

  Attributes:
    count: How many a step runs.
    sent_bytes: What each device sends in a step.
  """

  count: int
  sent_bytes: int


def find(text: str) -> list[Collective]:
  """Finds the collectives of a compiled program.

  One that starts and ends apart is one. Each branch of a conditional counts,
  so the sum over them is an upper bound.

  Args:
    text: Of a compiled program.

  Raises:
    ValueError: if a loop around one takes an unknown number of turns.
  """
  program = hlo.parse(text)
  found = []
  for computation, around in loops.executed(program):
    for instruction in computation.instructions.values():
      collective = _collective(program, computation, instruction)
      if not collective:
        continue
      if None in around:
        raise ValueError(
          f"{collective.name} runs in a loop whose number of turns the"
          " compiled text does not tell."
        )
      found.append(dataclasses.replace(collective, loops=around))
  return found


def totals(found: list[Collective]) -> dict[str, Total]:
  """Kind to its collectives' number and bytes; only kinds that there are."""
  return {
    kind: Total(
      sum(c.runs for c in found if c.kind == kind),
      sum(c.runs * c.sent_bytes for c in found if c.kind == kind),
    )
    for kind in KINDS
    if any(c.kind == kind for c in found)
  }


def _group_size(program: hlo.Program, instruction: hlo.Instruction) -> int:
  """Among how many devices a collective runs; each form that there is."""
  attributes = instruction.attributes
  if pairs := re.search(r"source_target_pairs=\{([{}\d,]*)\}", attributes):
    return len(set(re.findall(r"\d+", pairs.group(1))))
  if groups := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
    return len(groups.group(1).split(","))
  if groups := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
    return int(groups.group(1))
  if groups := re.search(
    r"replica_groups=@?mesh\[([^\]]*)\] \{([^}]*)\}", attributes
  ):
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", groups.group(1)))
    return math.prod(
      int(part or sizes[axis])
      for axis, part in re.findall(
        r"'([^']+)'(?::\(\d+\)(\d+))?", groups.group(2)
      )
    )
  if "replica_groups={}" in attributes:
    return program.devices
  raise ValueError(
    f"The devices of {instruction.name} are written in an unknown form:"
    f" {attributes[:200]}"
  )


def _collective(
  program: hlo.Program,
  computation: hlo.Computation,
  instruction: hlo.Instruction,
) -> Collective | None:
  """The collective that an instruction is, if it starts one."""
  kind = instruction.opcode.removesuffix("-start")
  if kind not in KINDS:
    return None
  if is_woven(instruction):
    return None
  arrays = computation.instructions
  if kind == "all-reduce":
    # A TPU's reduce-scatter: a fusion that keeps a slice of the sum.
    users = [a for a in arrays.values() if instruction.name in a.operands]
    sliced = users and all(user.opcode == "dynamic-slice" for user in users)
    if sliced and computation.name in program.fused:
      kind = "reduce-scatter"
  return Collective(
    kind=kind,
    name=instruction.name,
    operand_bytes=sum(hlo.size(arrays[o].shape) for o in instruction.operands),
    group_size=_group_size(program, instruction),
  )


def is_woven(instruction: hlo.Instruction) -> bool:
  """Whether a collective goes on here that has started before.

  A TPU weaves a long one into the fusions that run beside it, and each of
  them repeats it; the first has no flags to wait for.
  """
  flags = re.search(
    r'"async_collective_fusion_config":\{"flag_start":"(-?\d+)"',
    instruction.attributes,
  )
  return flags is not None and int(flags.group(1)) >= 0
