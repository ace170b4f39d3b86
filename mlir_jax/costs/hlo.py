"""Reads the text of a compiled step: its computations and instructions.

The text is `jax.stages.Compiled.as_text()`: optimized HLO, as CPU, GPU and TPU
print it. The package reads the text because `cost_analysis()` counts the body
of a loop once (jax#18672), however often it runs.
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]")
_CALLED = re.compile(
  r"\b(?:calls|called_computations|branch_computations|true_computation"
  r"|false_computation)=(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_BITS = re.compile(r"[a-z]+(\d+)")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


class Instruction(NamedTuple):
  """A line of the text: `NAME = SHAPE OPCODE(INSIDE), ATTRIBUTES`.

  Attributes:
    operands: Names of the instructions whose results it takes.
    inside: All between the parentheses: of a constant its value, of a parameter
      its number.
  """

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  inside: str
  attributes: str


class Computation(NamedTuple):
  """A function of the text.

  Attributes:
    instructions: By their names.
    root: Name of the instruction that gives its result.
  """

  name: str
  instructions: Mapping[str, Instruction]
  root: str


class Program(NamedTuple):
  """A module of the text.

  Attributes:
    computations: Its functions by their names.
    entry: Name of the function that starts.
    fused: Names of the functions that are fusions.
    devices: The number of devices that it runs on.
  """

  computations: Mapping[str, Computation]
  entry: str
  fused: frozenset[str]
  devices: int


def _closing(line: str, start: int) -> int:
  """Returns the place where the parenthesis that opens at `start` closes."""
  depth = 0
  for match in re.compile(r"[()]").finditer(line, start):
    depth += 1 if match.group() == "(" else -1
    if not depth:
      return match.start()
  raise ValueError(f"A parenthesis stays open in {line[:200]!r}.")


def _is_open(line: str) -> bool:
  """Whether braces of an instruction's attributes close on a later line."""
  if line.count("{") == line.count("}"):
    return False
  bare = _STRING.sub("", line)
  return bare.count("{") > bare.count("}")


def _instruction(line: str, name: str, start: int) -> Instruction:
  if line[start] == "(":
    end = _closing(line, start) + 1
  else:
    end = line.index(" ", start)
  opens = line.index("(", end)
  closes = _closing(line, opens)
  inside = line[opens + 1 : closes]
  return Instruction(
    name=name,
    shape=line[start:end],
    opcode=line[end + 1 : opens],
    operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
    inside=inside,
    attributes=line[closes + 1 :],
  )


@functools.lru_cache(maxsize=1)
def parse(text: str) -> Program:
  """Reads the text of a compiled step; ValueError if it is not one."""
  computations, entry = {}, ""
  name, instructions, root = "", {}, ""
  lines = iter(text.splitlines())
  for line in lines:
    if match := _INSTRUCTION.match(line):
      while _is_open(line):  # The metadata of a Pallas kernel has line breaks.
        line += next(lines, "}")
      if not name:
        continue
      instruction = _instruction(line, match.group(2), match.end())
      instructions[instruction.name] = instruction
      if match.group(1):
        root = instruction.name
    elif match := _COMPUTATION.match(line):
      name, instructions, root = match.group(2), {}, ""
      if match.group(1):
        entry = name
    elif line.startswith("}") and name:
      computations[name] = Computation(name, instructions, root)
      name = ""
  if not entry:
    raise ValueError("This is not a compiled program: the text has no ENTRY.")
  fused = {
    name
    for computation in computations.values()
    for instruction in computation.instructions.values()
    if instruction.opcode == "fusion"
    for name in called(instruction)
  }
  header = text[: text.index("\n")]
  counts = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", header)
  devices = math.prod(int(count) for count in counts)
  return Program(computations, entry, frozenset(fused), devices)


def size(shape: str) -> int:
  """Returns the bytes of an array or a tuple, without padding to tiles."""
  total = 0
  for dtype, dimensions in _ARRAY.findall(shape):
    bits = _BITS.match(dtype)
    width = int(bits.group(1)) if bits else 8 * (dtype == "pred")
    sizes = [int(size.lstrip("<=")) for size in dimensions.split(",") if size]
    total += -(-math.prod(sizes) * width // 8)
  return total


def attribute(instruction: Instruction, name: str) -> str:
  """Returns the value of an attribute that every such opcode has."""
  found = re.search(rf"\b{name}=%?([\w.\-]+)", instruction.attributes)
  assert found
  return found.group(1)


def called(instruction: Instruction) -> list[str]:
  """Returns the names of the computations that an instruction runs once."""
  if instruction.opcode == "call":
    return [attribute(instruction, "to_apply")]
  if instruction.opcode in ("async-update", "async-done"):
    return []  # Its "async-start" has run them.
  found = _CALLED.findall(instruction.attributes)
  return [
    name.strip().lstrip("%")
    for several, one in found
    for name in (several.split(",") if several else [one])
  ]
