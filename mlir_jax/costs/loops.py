"""How often each computation of a compiled step runs."""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mlir_jax.costs import hlo


def executed(
  program: hlo.Program,
) -> Iterator[tuple[hlo.Computation, tuple[int | None, ...]]]:
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
          called = hlo.attribute(instruction, part)
          yield from walk(called, inner, (*loops, turns))
        continue
      for called in hlo.called(instruction):
        operands = functools.partial(
          _operand, program, computation, instruction, bound
        )
        yield from walk(called, operands, loops)

  yield from walk(program.entry, lambda _: None, ())


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
  program: hlo.Program,
  computation: hlo.Computation,
  instruction: hlo.Instruction,
  bound: _Bound,
  number: int,
) -> _Value:
  """The value of an instruction's operand."""
  name = instruction.operands[number]
  return _value(program, computation, name, bound)


def _value(
  program: hlo.Program, computation: hlo.Computation, name: str, bound: _Bound
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
  """The comparison that a loop's condition is: direction and two sides."""
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
  """How many turns a loop takes, and what its body's parameter is known to be.

  The compiler writes the number down for most platforms. Otherwise it is that
  of a counter: an element of the state from a constant on, to which each turn
  adds a constant, until it passes a constant.
  """
  condition, body = (
    program.computations[hlo.attribute(instruction, part)]
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
