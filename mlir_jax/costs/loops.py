"""How often each computation of a compiled step runs: turns of its loops."""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mlir_jax.costs import hlo


def executed(
  program: hlo.Program,
) -> Iterator[tuple[hlo.Computation, tuple[int | None, ...]]]:
  """Yields each computation once per call, with the turns of its loops.

  The functions that a reduction, sort or scatter applies to elements are left
  out.

  Yields:
    The computation, and the number of turns of each loop around it, the
    outermost first; None for an unknown number.
  """

  def walk(name, bound, loops):
    computation = program.computations[name]
    yield computation, loops
    for instruction in computation.instructions.values():
      if instruction.opcode == "while":
        turns, inner = _loop(program, computation, instruction, bound)
        for part in ("body", "condition"):
          called = hlo.attribute(instruction, part)
          yield from walk(called, inner, (*loops, turns))
        continue
      for called in hlo.called(instruction):
        operands = functools.partial(
          _operand, program, computation, instruction, bound
        )
        yield from walk(called, operands, loops)

  yield from walk(program.entry, lambda _: None, ())


class _Affine(NamedTuple):
  """An integer within a loop: an element of the loop's state plus a constant.

  Attributes:
    element: Number of the element; None if the integer is a constant.
    offset: The constant.
  """

  element: int | None
  offset: int


# An integer, a tuple as a function of the index, or None if unknown.
_Value = _Affine | Callable[[int], Any] | None
# The parameter of a computation as a function of its number.
_Bound = Callable[[int], _Value]


def _operand(
  program: hlo.Program,
  computation: hlo.Computation,
  instruction: hlo.Instruction,
  bound: _Bound,
  number: int,
) -> _Value:
  """Returns the value of an instruction's operand."""
  name = instruction.operands[number]
  return _value(program, computation, name, bound)


def _value(
  program: hlo.Program, computation: hlo.Computation, name: str, bound: _Bound
) -> _Value:
  """Returns the result of an instruction, if loop counters can need it."""
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
        return whole(int(hlo.attribute(instruction, "index")))
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
      (called,) = hlo.called(instruction)
      inner = program.computations[called]
      return _value(program, inner, inner.root, operand)
  return None


def _comparison(
  program: hlo.Program, computation: hlo.Computation, bound: _Bound
) -> tuple[str, _Value, _Value] | None:
  """Returns the comparison in a loop's condition: direction and two sides."""
  root = computation.instructions[computation.root]
  operand = functools.partial(_operand, program, computation, root, bound)
  if root.opcode == "compare":
    return hlo.attribute(root, "direction"), operand(0), operand(1)
  if root.opcode in ("fusion", "call"):
    (called,) = hlo.called(root)
    return _comparison(program, program.computations[called], operand)
  return None


def _loop(
  program: hlo.Program,
  computation: hlo.Computation,
  instruction: hlo.Instruction,
  bound: _Bound,
) -> tuple[int | None, _Bound]:
  """Returns the number of turns of a loop, and its body's known parameters.

  For most platforms the compiler writes the number into the text. Else it is
  derived from the counter: an element of the state that starts at a constant;
  each turn adds a constant, until the element passes a constant.
  """
  condition, body = (
    program.computations[hlo.attribute(instruction, part)]
    for part in ("condition", "body")
  )

  def itself(element):
    return _Affine(element, 0)

  before = _operand(program, computation, instruction, bound, 0)
  unchanged = _value(program, body, body.root, lambda _: itself)

  def first(element):  # The value before the first turn, if constant.
    value = before(element) if callable(before) else None
    known = isinstance(value, _Affine) and value.element is None
    return value if known else None

  def state(element):  # Elements that no turn changes have their value.
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
  """Returns the turns of a loop that goes on while `left DIRECTION right`.

  `first` and `after` give an element of the loop's state before the first turn
  and after any turn. Directions other than LT, LE, GT and GE give None.
  """
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
    return None  # The counter runs away from the end: no turn, or no end.
  if direction in ("LE", "GE"):
    distance += 1
  return max(0, -(-distance // stride))
