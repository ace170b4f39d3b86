"""The collectives of a compiled step: their bytes, devices and runs."""

import dataclasses
import math
import re

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
    operand_bytes: Bytes that each device puts in.
    group_size: The number of devices that take part.
    loops: The turns of each loop around it, the outermost first.
  """

  kind: str
  name: str
  operand_bytes: int
  group_size: int
  loops: tuple[int, ...] = ()

  @property
  def runs(self) -> int:
    """How often a step runs it."""
    return math.prod(self.loops)

  @property
  def sent_bytes(self) -> int:
    """Bytes that each device sends in one run, by the best known algorithm.

    Of n devices, each sends its part n - 1 times in a gather, and n - 1 of n
    parts in a scatter. A reduction is both (Thakur et al. 2005).
    """
    n = self.group_size
    if self.kind == "collective-permute":
      return self.operand_bytes
    if self.kind == "all-gather":
      return self.operand_bytes * (n - 1)
    times = 2 if self.kind == "all-reduce" else 1
    return times * self.operand_bytes * (n - 1) // n


def find(text: str) -> list[Collective]:
  """Finds the collectives of a compiled program.

  A pair of "-start" and "-done" is one collective. All branches of a
  conditional count, so their sum is an upper bound.

  Args:
    text: The text of a compiled program.

  Raises:
    ValueError: if the number of turns of a loop around a collective is unknown.
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
          f"{collective.name} is in a loop, and the compiled text does not"
          " have its number of turns."
        )
      found.append(dataclasses.replace(collective, loops=around))
  return found


def _group_size(program: hlo.Program, instruction: hlo.Instruction) -> int:
  """Returns how many devices run a collective, from any form of the text."""
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
    f"The devices of {instruction.name} have an unknown form:"
    f" {attributes[:200]}"
  )


def _collective(
  program: hlo.Program,
  computation: hlo.Computation,
  instruction: hlo.Instruction,
) -> Collective | None:
  """Returns the collective that an instruction starts, if it starts one."""
  kind = instruction.opcode.removesuffix("-start")
  if kind not in KINDS:
    return None
  if is_woven(instruction):
    return None
  arrays = computation.instructions
  if kind == "all-reduce":
    # On a TPU, a fusion that keeps a slice of the sum is a reduce-scatter.
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
  """Whether an instruction continues a collective that has started before.

  A TPU weaves a long collective into the fusions that run at the same time, and
  each of them repeats it. The first one has no flag to wait for.
  """
  flags = re.search(
    r'"async_collective_fusion_config":\{"flag_start":"(-?\d+)"',
    instruction.attributes,
  )
  return flags is not None and int(flags.group(1)) >= 0
