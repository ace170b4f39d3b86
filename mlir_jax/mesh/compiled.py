"""What a compiled step costs, read from the compiler's own text.

`cost_analysis()` counts the body of a loop once (jax#18672), and a collective
inside a loop stands once in the text and runs at every turn. So each is
counted here with the number of turns that its loops take. The text is
`jax.stages.Compiled.as_text()`: optimized HLO, as CPU, GPU and TPU print it.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]")
_CALLED = re.compile(
  r"\b(?:calls|called_computations|branch_computations|true_computation"
  r"|false_computation)=(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_BITS = re.compile(r"[a-z]+(\d+)")


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


def collectives(text: str) -> list[Collective]:
  """Finds the collectives of a compiled program.

  One that starts and ends apart is one. Each branch of a conditional counts,
  so the sum over them is an upper bound.

  Args:
    text: Of a compiled program.

  Raises:
    ValueError: if a loop around one takes an unknown number of turns.
  """
  program = _parse(text)
  found = []
  for computation, loops in _executed(program):
    for instruction in computation.instructions.values():
      collective = _collective(program, computation, instruction)
      if not collective:
        continue
      if None in loops:
        raise ValueError(
          f"{collective.name} runs in a loop whose number of turns the"
          " compiled text does not tell."
        )
      found.append(dataclasses.replace(collective, loops=loops))
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


def memory_traffic(text: str) -> int:
  """The bytes that a step reads from and writes to a device's main memory.

  Each kernel of the compiled program reads its operands and writes its results
  once, as often as its loops turn; of a table that it gathers from, or a buffer
  that it updates a part of, that part alone. What lies in a TPU's on-chip
  memory is left out. Matrices that do not fit there are read more often, so
  this is a lower bound.

  Args:
    text: Of a compiled program.

  Raises:
    ValueError: if a loop takes an unknown number of turns.
  """
  program = _parse(text)
  total = 0
  for computation, loops in _executed(program):
    if computation.name in program.fused:
      continue  # Its caller's, as a whole.
    turns = [count for count in loops if count is not None]
    if len(turns) < len(loops):
      raise ValueError(
        f"{computation.name} is in a loop whose number of turns the compiled"
        " text does not tell."
      )
    once = sum(
      _traffic(program, computation, instruction)
      for instruction in computation.instructions.values()
    )
    total += math.prod(turns) * once
  return total


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
  """The bytes that a program takes of each device's memory.

  Args:
    compiled: For any platform.

  Returns:
    "arguments", "outputs", "aliased" (outputs that lie where donated
    arguments lay), "temporaries", "program", and their "total", in which
    what is aliased counts once. A TPU's temporaries hold those in its on-chip
    memory, too (at most 128 MiB). XLA's own peak is left out: on a TPU it
    leaves out arguments that are not donated.
  """
  stats = compiled.memory_analysis()
  assert stats is not None  # XLA gives it for each of its platforms.
  parts = {
    "arguments": stats.argument_size_in_bytes,
    "outputs": stats.output_size_in_bytes,
    "aliased": stats.alias_size_in_bytes,
    "temporaries": stats.temp_size_in_bytes,
    "program": stats.generated_code_size_in_bytes,
  }
  return parts | {"total": sum(parts.values()) - 2 * parts["aliased"]}


# --- The text. ---


class _Instruction(NamedTuple):
  """A line of the text: `NAME = SHAPE OPCODE(OPERANDS), ATTRIBUTES`."""

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  inside: str  # Of the parentheses: a constant's value, a parameter's number.
  attributes: str


class _Computation(NamedTuple):
  """A function of the text."""

  name: str
  instructions: Mapping[str, _Instruction]
  root: str


class _Program(NamedTuple):
  """A module.

  Attributes:
    computations: Its functions.
    entry: Where it starts.
    fused: The functions that are fusions.
    devices: How many it runs on.
  """

  computations: Mapping[str, _Computation]
  entry: str
  fused: frozenset[str]
  devices: int


def _closing(line: str, start: int) -> int:
  """Where the parenthesis that opens at `start` closes."""
  depth = 0
  for match in re.compile(r"[()]").finditer(line, start):
    depth += 1 if match.group() == "(" else -1
    if not depth:
      return match.start()
  raise ValueError(f"A parenthesis stays open in {line[:200]!r}.")


def _instruction(line: str, name: str, start: int) -> _Instruction:
  if line[start] == "(":
    end = _closing(line, start) + 1
  else:
    end = line.index(" ", start)
  opens = line.index("(", end)
  closes = _closing(line, opens)
  inside = line[opens + 1 : closes]
  return _Instruction(
    name=name,
    shape=line[start:end],
    opcode=line[end + 1 : opens],
    operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
    inside=inside,
    attributes=line[closes + 1 :],
  )


@functools.lru_cache(maxsize=1)
def _parse(text: str) -> _Program:
  computations, entry = {}, ""
  name, instructions, root = "", {}, ""
  for line in text.splitlines():
    if match := _INSTRUCTION.match(line):
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
      computations[name] = _Computation(name, instructions, root)
      name = ""
  if not entry:
    raise ValueError("This is no text of a compiled program: it has no ENTRY.")
  fused = {
    called
    for computation in computations.values()
    for instruction in computation.instructions.values()
    if instruction.opcode == "fusion"
    for called in _called(instruction)
  }
  header = text[: text.index("\n")]
  counts = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", header)
  devices = math.prod(int(count) for count in counts)
  return _Program(computations, entry, frozenset(fused), devices)


def _bytes(shape: str) -> int:
  """Bytes of an array or of a tuple of arrays, without padding to tiles."""
  total = 0
  for dtype, dimensions in _ARRAY.findall(shape):
    bits = _BITS.match(dtype)
    width = int(bits.group(1)) if bits else 8 * (dtype == "pred")
    sizes = [int(size.lstrip("<=")) for size in dimensions.split(",") if size]
    total += -(-math.prod(sizes) * width // 8)
  return total


def _group_size(program: _Program, instruction: _Instruction) -> int:
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
  program: _Program, computation: _Computation, instruction: _Instruction
) -> Collective | None:
  """The collective that an instruction is, if it starts one."""
  kind = instruction.opcode.removesuffix("-start")
  if kind not in KINDS:
    return None
  if _is_woven(instruction):
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
    operand_bytes=sum(_bytes(arrays[o].shape) for o in instruction.operands),
    group_size=_group_size(program, instruction),
  )


def _is_woven(instruction: _Instruction) -> bool:
  """Whether a collective goes on here that has started before.

  A TPU weaves a long one into the fusions that run beside it, and each of
  them repeats it; the first has no flags to wait for.
  """
  flags = re.search(
    r'"async_collective_fusion_config":\{"flag_start":"(-?\d+)"',
    instruction.attributes,
  )
  return flags is not None and int(flags.group(1)) >= 0


def _executed(
  program: _Program,
) -> Iterator[tuple[_Computation, tuple[int | None, ...]]]:
  """The computations, each as often as it is called, with their loops.

  What is only applied to elements (of a reduction, a sort, a scatter) is
  left out.
  """

  def walk(name, bound, loops):
    computation = program.computations[name]
    yield computation, loops
    for instruction in computation.instructions.values():
      if instruction.opcode == "while":
        turns, inner = _loop(program, computation, instruction, bound)
        for part in ("body", "condition"):
          called = _attribute(instruction, part)
          yield from walk(called, inner, (*loops, turns))
        continue
      for called in _called(instruction):
        operands = functools.partial(
          _operand, program, computation, instruction, bound
        )
        yield from walk(called, operands, loops)

  yield from walk(program.entry, lambda _: None, ())


def _attribute(instruction: _Instruction, name: str) -> str:
  found = re.search(rf"\b{name}=%?([\w.\-]+)", instruction.attributes)
  assert found  # Each of its opcode has it.
  return found.group(1)


def _called(instruction: _Instruction) -> list[str]:
  """The computations that an instruction runs once."""
  if instruction.opcode == "call":
    return [_attribute(instruction, "to_apply")]
  if instruction.opcode in ("async-update", "async-done"):
    return []  # Its start has run it.
  found = _CALLED.findall(instruction.attributes)
  return [
    name.strip().lstrip("%")
    for several, one in found
    for name in (several.split(",") if several else [one])
  ]


# --- What a kernel reads and writes. ---

# They move nothing, or what they call does.
_FREE = frozenset(
  (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
    *("while", "call", "conditional", "after-all", "optimization-barrier"),
    *("partition-id", "replica-id"),
    *("async-start", "async-update", "async-done"),
  )
)


def _arrays(shape: str) -> list[str]:
  """The arrays of a shape, each with its layout."""
  return re.findall(r"[a-z]\w*\[[\d,<=]*\](?:\{[^}]*\})?", shape)


def _placed(shape: str) -> list[int]:
  """Bytes of each array of a shape; 0 if a TPU's on-chip memory holds it.

  A layout names that memory as a space, S(n); the main memory is S(0).
  """
  return [
    0 if re.search(r"S\([1-9]", array) else _bytes(array)
    for array in _arrays(shape)
  ]


def _traffic(
  program: _Program, computation: _Computation, instruction: _Instruction
) -> int:
  """The bytes of main memory that one run of a kernel moves."""
  arrays = computation.instructions
  opcode = instruction.opcode
  if (
    opcode in _FREE
    or _is_woven(instruction)
    or 'custom_call_target="AllocateBuffer"' in instruction.attributes
  ):
    return 0
  written = _placed(instruction.shape)
  if opcode.endswith("-done"):
    if opcode.removesuffix("-done") in KINDS:
      return sum(written)
    # A copy, or a slice: as much is read as there is in the end.
    source = arrays[arrays[instruction.operands[0]].operands[0]]
    read = any(_placed(source.shape)) * _bytes(instruction.shape)
    return read + sum(written)
  if opcode.endswith("-start"):
    if opcode.removesuffix("-start") not in KINDS:
      return 0
    written = []
  moved = 0
  if opcode == "fusion":
    (called,) = _called(instruction)
    fused = program.computations[called]
    given = _results(program, fused)
    moved += sum(
      min(size, part) for size, part in zip(written, given, strict=True)
    )
  elif written:
    moved += min(sum(written), _changed(arrays, instruction))
  for number, name in enumerate(instruction.operands):
    if size := sum(_placed(arrays[name].shape)):
      moved += min(size, _used(program, computation, instruction, number))
  return moved


def _changed(arrays: Mapping[str, _Instruction], instruction) -> int:
  """The bytes that an instruction writes: of an update in place, its part."""
  if instruction.opcode == "dynamic-update-slice":
    return _bytes(arrays[instruction.operands[1]].shape)
  if instruction.opcode == "scatter":
    return _bytes(arrays[instruction.operands[-1]].shape)
  return _bytes(instruction.shape)


def _results(program: _Program, fused: _Computation) -> list[int]:
  """The bytes that a fusion writes of each of its results."""
  arrays = fused.instructions

  def written(instruction):
    if instruction.opcode == "bitcast":
      return written(arrays[instruction.operands[0]])
    if instruction.opcode == "parameter":
      return [0 for _ in _placed(instruction.shape)]  # Passed through.
    if instruction.opcode == "tuple":
      return [
        size for name in instruction.operands for size in written(arrays[name])
      ]
    if instruction.opcode == "fusion":
      (called,) = _called(instruction)
      return _results(program, program.computations[called])
    if _is_woven(instruction):
      return [0 for _ in _placed(instruction.shape)]
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
      return [_changed(arrays, instruction)]
    return [_bytes(a) for a in _arrays(instruction.shape)]

  return written(arrays[fused.root])


def _used(
  program: _Program,
  computation: _Computation,
  instruction: _Instruction,
  number: int,
) -> int:
  """The bytes that an instruction reads of one of its operands."""
  arrays = computation.instructions
  opcode = instruction.opcode
  if opcode == "tuple" or _is_woven(instruction):
    return 0
  if number == 0:
    if opcode in ("dynamic-slice", "slice", "gather"):
      return _bytes(instruction.shape)
    if opcode == "dynamic-update-slice":
      return 0
    if opcode == "scatter":
      return _changed(arrays, instruction)
  if opcode == "fusion":
    (called,) = _called(instruction)
    fused = program.computations[called]
    parameter = next(
      inner.name
      for inner in fused.instructions.values()
      if inner.opcode == "parameter" and int(inner.inside) == number
    )
    return _used_inside(program, fused, parameter)
  return _bytes(arrays[instruction.operands[number]].shape)


def _used_inside(program: _Program, fused: _Computation, name: str) -> int:
  """The bytes that a fusion reads of one of its arrays."""
  total = 0
  for user in fused.instructions.values():
    for number, operand in enumerate(user.operands):
      if operand != name:
        continue
      if user.opcode == "bitcast":
        total += _used_inside(program, fused, user.name)
      else:
        total += _used(program, fused, user, number)
  return min(total, _bytes(fused.instructions[name].shape))


# --- How many turns a loop takes. ---


class _Affine(NamedTuple):
  """An integer of a loop's turn: an element of its state, plus a constant.

  Attributes:
    element: Which element; None for a constant.
    offset: What is added.
  """

  element: int | None
  offset: int


# A number, a tuple (index -> its element), or None where it is not known.
_Value = _Affine | Callable[[int], Any] | None
# The parameters of a computation, by number.
_Bound = Callable[[int], _Value]


def _operand(
  program: _Program,
  computation: _Computation,
  instruction: _Instruction,
  bound: _Bound,
  number: int,
) -> _Value:
  """The value of an instruction's operand."""
  name = instruction.operands[number]
  return _value(program, computation, name, bound)


def _value(
  program: _Program, computation: _Computation, name: str, bound: _Bound
) -> _Value:
  """What an instruction computes, as far as loop counters need it."""
  instruction = computation.instructions[name]
  operand = functools.partial(
    _operand, program, computation, instruction, bound
  )
  match instruction.opcode:
    case "constant":
      if re.fullmatch(r"-?\d+", instruction.inside):
        return _Affine(None, int(instruction.inside))
    case "parameter":
      return bound(int(instruction.inside))
    case "tuple":
      return operand
    case "get-tuple-element":
      whole = operand(0)
      if callable(whole):
        return whole(int(_attribute(instruction, "index")))
    case "copy" | "bitcast" | "convert" | "copy-start" | "copy-done":
      return operand(0)
    case "add" | "subtract" if re.match(r"[su]\d+\[\]", instruction.shape):
      sign = 1 if instruction.opcode == "add" else -1
      first, second = operand(0), operand(1)
      if isinstance(first, _Affine) and isinstance(second, _Affine):
        offset = first.offset + sign * second.offset
        if second.element is None:
          return _Affine(first.element, offset)
        if first.element is None and sign == 1:
          return _Affine(second.element, offset)
    case "fusion" | "call":
      (called,) = _called(instruction)
      inner = program.computations[called]
      return _value(program, inner, inner.root, operand)
  return None


def _comparison(
  program: _Program, computation: _Computation, bound: _Bound
) -> tuple[str, _Value, _Value] | None:
  """The comparison that a loop's condition is: direction and two sides."""
  root = computation.instructions[computation.root]
  operand = functools.partial(_operand, program, computation, root, bound)
  if root.opcode == "compare":
    return _attribute(root, "direction"), operand(0), operand(1)
  if root.opcode in ("fusion", "call"):
    (called,) = _called(root)
    return _comparison(program, program.computations[called], operand)
  return None


def _loop(
  program: _Program,
  computation: _Computation,
  instruction: _Instruction,
  bound: _Bound,
) -> tuple[int | None, _Bound]:
  """How many turns a loop takes, and what its body's parameter is known to be.

  The compiler writes the number down for most platforms. Otherwise it is that
  of a counter: an element of the state from a constant on, to which each turn
  adds a constant, until it passes a constant.
  """
  condition, body = (
    program.computations[_attribute(instruction, part)]
    for part in ("condition", "body")
  )

  def itself(element):
    return _Affine(element, 0)

  before = _operand(program, computation, instruction, bound, 0)
  unchanged = _value(program, body, body.root, lambda _: itself)

  def first(element):  # A constant, or None.
    value = before(element) if callable(before) else None
    known = isinstance(value, _Affine) and value.element is None
    return value if known else None

  def state(element):  # Constants by their value.
    kept = callable(unchanged) and unchanged(element) == itself(element)
    return (first(element) if kept else None) or itself(element)

  def constants(element):
    value = state(element)
    return value if value.element is None else None

  if known := re.search(
    r'"known_trip_count":\{"n":"(\d+)"', instruction.attributes
  ):
    return int(known.group(1)), lambda _: constants
  after = _value(program, body, body.root, lambda _: state)
  compared = _comparison(program, condition, lambda _: state)
  turns = None
  if compared and callable(after):
    turns = _turns(*compared, first, after)
  return turns, lambda _: constants


_MIRRORED = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE"}


def _turns(
  direction: str,
  left: _Value,
  right: _Value,
  first: Callable[[int], _Value],
  after: Callable[[int], _Value],
) -> int | None:
  """Turns of a loop that goes on while `left DIRECTION right`."""
  if not (isinstance(left, _Affine) and isinstance(right, _Affine)):
    return None
  if left.element is None:
    left, right, direction = right, left, _MIRRORED.get(direction, "")
  if left.element is None or right.element is not None:
    return None
  if direction not in _MIRRORED:
    return None
  start, next_one = first(left.element), after(left.element)
  if start is None or next_one is None or next_one.element != left.element:
    return None
  stride = next_one.offset
  distance = right.offset - left.offset - start.offset
  if direction in ("GT", "GE"):
    stride, distance = -stride, -distance
  if stride <= 0:
    return None  # It runs the other way: never, or for ever.
  if direction in ("LE", "GE"):
    distance += 1
  return max(0, -(-distance // stride))
