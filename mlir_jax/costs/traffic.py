"""The bytes that a compiled step moves from and to main memory."""

import math
import re
from collections.abc import Mapping

from mlir_jax.costs import collectives, hlo, loops

# These move nothing, or the computations that they call do.
_MOVE_NOTHING = frozenset(
  (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
    *("while", "call", "conditional", "after-all", "optimization-barrier"),
    *("partition-id", "replica-id"),
    *("async-start", "async-update", "async-done"),
  )
)


def count(text: str) -> int:
  """Returns the bytes that a step reads from and writes to main memory.

  Each kernel of the program reads its operands once and writes its results
  once, in each turn of its loops. Of a table that a kernel gathers from, or a
  buffer that it updates in part, only that part counts. Arrays in a TPU's
  on-chip memory do not count. Matrices that do not fit there are read more than
  once, so this is a lower bound.

  Args:
    text: The text of a compiled program.

  Raises:
    ValueError: if the number of turns of a loop is unknown.
  """
  program = hlo.parse(text)
  total = 0
  for computation, around in loops.executed(program):
    if computation.name in program.fused:
      continue  # The instruction that calls a fusion counts it as a whole.
    turns = [number for number in around if number is not None]
    if len(turns) < len(around):
      raise ValueError(
        f"{computation.name} is in a loop, and the compiled text does not have"
        " its number of turns."
      )
    once = sum(
      _moved(program, computation, instruction)
      for instruction in computation.instructions.values()
    )
    total += math.prod(turns) * once
  return total


def _moved(
  program: hlo.Program,
  computation: hlo.Computation,
  instruction: hlo.Instruction,
) -> int:
  """Returns the bytes of main memory that one run of a kernel moves."""
  arrays = computation.instructions
  opcode = instruction.opcode
  if (
    opcode in _MOVE_NOTHING
    or collectives.is_woven(instruction)
    or 'custom_call_target="AllocateBuffer"' in instruction.attributes
  ):
    return 0
  results = _in_main_memory(instruction.shape)
  if opcode.endswith("-done"):
    if opcode.removesuffix("-done") in collectives.KINDS:
      return sum(results)
    # A copy or a slice has read as many bytes as the result has.
    source = arrays[arrays[instruction.operands[0]].operands[0]]
    read = any(_in_main_memory(source.shape)) * hlo.size(instruction.shape)
    return read + sum(results)
  if opcode.endswith("-start"):
    if opcode.removesuffix("-start") not in collectives.KINDS:
      return 0
    results = []
  moved = 0
  if opcode == "fusion":
    (called,) = hlo.called(instruction)
    written = _written_by_fusion(program, program.computations[called])
    moved += sum(
      min(size, part) for size, part in zip(results, written, strict=True)
    )
  elif results:
    moved += min(sum(results), _written(arrays, instruction))
  for number, name in enumerate(instruction.operands):
    if size := sum(_in_main_memory(arrays[name].shape)):
      moved += min(size, _read(program, computation, instruction, number))
  return moved


def _arrays(shape: str) -> list[str]:
  """Returns the arrays of a shape, each with its layout."""
  return re.findall(r"[a-z]\w*\[[\d,<=]*\](?:\{[^}]*\})?", shape)


def _in_main_memory(shape: str) -> list[int]:
  """Returns the bytes of each array of a shape; 0 if it is on the chip.

  A layout names a TPU's on-chip memory as a space, S(n); main memory is S(0).
  """
  return [
    0 if re.search(r"S\([1-9]", array) else hlo.size(array)
    for array in _arrays(shape)
  ]


def _written(arrays: Mapping[str, hlo.Instruction], instruction) -> int:
  """Returns the bytes that an instruction writes.

  Of an update in place, only the part that changes counts.
  """
  if instruction.opcode == "dynamic-update-slice":
    return hlo.size(arrays[instruction.operands[1]].shape)
  if instruction.opcode == "scatter":
    return hlo.size(arrays[instruction.operands[-1]].shape)
  return hlo.size(instruction.shape)


def _written_by_fusion(
  program: hlo.Program, fused: hlo.Computation
) -> list[int]:
  """Returns the bytes that a fusion writes of each of its results."""
  arrays = fused.instructions

  def written(instruction):
    if instruction.opcode == "bitcast":
      return written(arrays[instruction.operands[0]])
    if instruction.opcode == "parameter":  # It is passed through.
      return [0 for _ in _in_main_memory(instruction.shape)]
    if instruction.opcode == "tuple":
      return [
        size for name in instruction.operands for size in written(arrays[name])
      ]
    if instruction.opcode == "fusion":
      (called,) = hlo.called(instruction)
      return _written_by_fusion(program, program.computations[called])
    if collectives.is_woven(instruction):
      return [0 for _ in _in_main_memory(instruction.shape)]
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
      return [_written(arrays, instruction)]
    return [hlo.size(array) for array in _arrays(instruction.shape)]

  return written(arrays[fused.root])


def _read(
  program: hlo.Program,
  computation: hlo.Computation,
  instruction: hlo.Instruction,
  number: int,
) -> int:
  """Returns the bytes that an instruction reads of the operand `number`."""
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
      return _written(arrays, instruction)
  if opcode == "fusion":
    (called,) = hlo.called(instruction)
    fused = program.computations[called]
    parameter = next(
      inner.name
      for inner in fused.instructions.values()
      if inner.opcode == "parameter" and int(inner.inside) == number
    )
    return _read_by_fusion(program, fused, parameter)
  return hlo.size(arrays[instruction.operands[number]].shape)


def _read_by_fusion(
  program: hlo.Program, fused: hlo.Computation, name: str
) -> int:
  """Returns the bytes that a fusion reads of one of its arrays."""
  total = 0
  for user in fused.instructions.values():
    for number, operand in enumerate(user.operands):
      if operand != name:
        continue
      if user.opcode == "bitcast":
        total += _read_by_fusion(program, fused, user.name)
      else:
        total += _read(program, fused, user, number)
  return min(total, hlo.size(fused.instructions[name].shape))
