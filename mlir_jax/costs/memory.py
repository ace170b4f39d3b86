"""The memory of a compiled step: what it takes, and what it moves."""

import math
import re
from collections.abc import Mapping

import jax

from mlir_jax.costs import collectives, hlo, loops


def traffic(text: str) -> int:
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
  program = hlo.parse(text)
  total = 0
  for computation, around in loops.executed(program):
    if computation.name in program.fused:
      continue  # Its caller's, as a whole.
    turns = [count for count in around if count is not None]
    if len(turns) < len(around):
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


def of_program(compiled: jax.stages.Compiled) -> dict[str, int]:
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
    0 if re.search(r"S\([1-9]", array) else hlo.size(array)
    for array in _arrays(shape)
  ]


def _traffic(
  program: hlo.Program,
  computation: hlo.Computation,
  instruction: hlo.Instruction,
) -> int:
  """The bytes of main memory that one run of a kernel moves."""
  arrays = computation.instructions
  opcode = instruction.opcode
  if (
    opcode in _FREE
    or collectives.is_woven(instruction)
    or 'custom_call_target="AllocateBuffer"' in instruction.attributes
  ):
    return 0
  written = _placed(instruction.shape)
  if opcode.endswith("-done"):
    if opcode.removesuffix("-done") in collectives.KINDS:
      return sum(written)
    # A copy, or a slice: as much is read as there is in the end.
    source = arrays[arrays[instruction.operands[0]].operands[0]]
    read = any(_placed(source.shape)) * hlo.size(instruction.shape)
    return read + sum(written)
  if opcode.endswith("-start"):
    if opcode.removesuffix("-start") not in collectives.KINDS:
      return 0
    written = []
  moved = 0
  if opcode == "fusion":
    (called,) = hlo.called(instruction)
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


def _changed(arrays: Mapping[str, hlo.Instruction], instruction) -> int:
  """The bytes that an instruction writes: of an update in place, its part."""
  if instruction.opcode == "dynamic-update-slice":
    return hlo.size(arrays[instruction.operands[1]].shape)
  if instruction.opcode == "scatter":
    return hlo.size(arrays[instruction.operands[-1]].shape)
  return hlo.size(instruction.shape)


def _results(program: hlo.Program, fused: hlo.Computation) -> list[int]:
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
      (called,) = hlo.called(instruction)
      return _results(program, program.computations[called])
    if collectives.is_woven(instruction):
      return [0 for _ in _placed(instruction.shape)]
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
      return [_changed(arrays, instruction)]
    return [hlo.size(a) for a in _arrays(instruction.shape)]

  return written(arrays[fused.root])


def _used(
  program: hlo.Program,
  computation: hlo.Computation,
  instruction: hlo.Instruction,
  number: int,
) -> int:
  """The bytes that an instruction reads of one of its operands."""
  arrays = computation.instructions
  opcode = instruction.opcode
  if opcode == "tuple" or collectives.is_woven(instruction):
    return 0
  if number == 0:
    if opcode in ("dynamic-slice", "slice", "gather"):
      return hlo.size(instruction.shape)
    if opcode == "dynamic-update-slice":
      return 0
    if opcode == "scatter":
      return _changed(arrays, instruction)
  if opcode == "fusion":
    (called,) = hlo.called(instruction)
    fused = program.computations[called]
    parameter = next(
      inner.name
      for inner in fused.instructions.values()
      if inner.opcode == "parameter" and int(inner.inside) == number
    )
    return _used_inside(program, fused, parameter)
  return hlo.size(arrays[instruction.operands[number]].shape)


def _used_inside(
  program: hlo.Program, fused: hlo.Computation, name: str
) -> int:
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
  return min(total, hlo.size(fused.instructions[name].shape))
