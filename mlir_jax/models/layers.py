"""Runs an encoder's layers: each one by itself, or many as a scan.

XLA compiles each layer that it sees. In a scan, it sees the layer once, with
the parameters of all its turns stacked in one array.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from mlir_jax.models import architecture, blocks
from mlir_jax.models import rows as rows_lib

# In a tower's parameters: the stacked parameters of the layers in a scan.
STACKED = "layers"

_POLICIES = jax.checkpoint_policies
# What a layer keeps for the backward pass. "none" would keep everything.
_KEPT = {
  "dots": _POLICIES.dots_with_no_batch_dims_saveable,
  "layer": _POLICIES.nothing_saveable,
}
# Of separate layers, XLA computes the cheap values again where this is better
# than to keep them. It cannot do this from one loop to another, so a scan does.
_KEPT_IN_SCAN = _KEPT | {"none": _POLICIES.dots_saveable}


class Scan(NamedTuple):
  """Which layers run in a scan.

  Attributes:
    first: Number of the first of them.
    period: The number of layers in a turn.
    turns: The number of turns, at least 2.
  """

  first: int
  period: int
  turns: int

  def numbers(self, place: int) -> range:
    """Returns the numbers of the layers that have a place in the turns."""
    start = self.first + place
    return range(start, start + self.turns * self.period, self.period)

  @property
  def names(self) -> list[str]:
    """The names of the stacks: of the layers of the first turn."""
    return [name_of(self.first + place) for place in range(self.period)]


def name_of(number: int) -> str:
  """Returns the name of a layer's parameters."""
  return f"layer_{number}"


@functools.lru_cache
def find(kinds: Sequence[str]) -> Scan | None:
  """Returns the scan that leaves the fewest layers to compile.

  Args:
    kinds: As `EncoderConfig.layer_kinds`, a tuple.

  Returns:
    The scan; None if no kinds repeat.
  """
  best, fewest = None, len(kinds)
  for period in range(1, len(kinds) // 2 + 1):
    for first in range(len(kinds) - 2 * period + 1):
      turn = kinds[first : first + period]
      end = first + period
      while kinds[end : end + period] == turn:
        end += period
      turns = (end - first) // period
      left = len(kinds) - (turns - 1) * period
      if left < fewest:
        best, fewest = Scan(first, period, turns), left
  return best


def stack(
  config: architecture.EncoderConfig,
  tower: Mapping,
  join: Callable[..., Any],
) -> dict:
  """Stacks the parameters of the layers that run in a scan.

  A step does this at its start. The state has each layer by itself, so that
  checkpoints, exports and the optimizer do not depend on the scan. This costs a
  copy of the layers' parameters and one of their gradients, but under FSDP only
  of a device's part: for two XLM-R large on 16 chips, 151 MB each.

  Args:
    config: The encoder's.
    tower: Its parameters, or a tree like them.
    join: Makes a leaf of the turns' leaves.

  Returns:
    The tower with `STACKED` instead of these layers: a tree for each name of
    `Scan.names`. Without a scan, the tower as it is.
  """
  scan = find(config.layer_kinds)
  if not config.scan_layers or scan is None:
    return dict(tower)
  rest = dict(tower)
  stacks = {}
  for place, name in enumerate(scan.names):
    layers = [rest.pop(name_of(number)) for number in scan.numbers(place)]
    stacks[name] = jax.tree.map(join, *layers)
  return rest | {STACKED: stacks}


def run(
  encoder: nn.Module,
  config: architecture.EncoderConfig,
  layer: type[nn.Module],
  fields: Callable[[int], Mapping],
  hidden: jax.Array,
  texts: Sequence[rows_lib.Rows],
) -> jax.Array:
  """Runs all layers; call it in the encoder's module.

  The layers whose parameters are stacked run in a scan.

  Args:
    encoder: The module.
    config: The encoder's.
    layer: The class of its layers.
    fields: The fields of a layer, as a function of its number.
    hidden: [N, hidden], the states of all tokens.
    texts: Their rows.

  Returns:
    [N, hidden].
  """
  separate = layer
  if config.remat in _KEPT:
    separate = nn.remat(layer, policy=_KEPT[config.remat])
  scan = None
  if encoder.has_variable("params", STACKED):
    scan = find(config.layer_kinds)
  number = 0
  while number < config.num_layers:
    if scan and number == scan.first:
      modules = {
        name: layer(**fields(scan.first + place), parent=None)
        for place, name in enumerate(scan.names)
      }
      stacks = encoder.get_variable("params", STACKED)
      hidden = _scan(config, scan, modules, stacks, hidden, texts)
      number += scan.period * scan.turns
    else:
      module = separate(**fields(number), name=name_of(number))
      hidden = module(hidden, texts)
      number += 1
  return hidden


def _scan(
  config: architecture.EncoderConfig,
  scan: Scan,
  modules: Mapping[str, nn.Module],
  stacks: Mapping[str, Any],
  hidden: jax.Array,
  texts: Sequence[rows_lib.Rows],
) -> jax.Array:
  """Runs the layers of a scan; `modules` are the layers of a turn."""

  def apply(name, variables, hidden):
    return modules[name].apply(variables, hidden, texts)

  def turn(hidden, variables):
    for name in scan.names:
      again = jax.checkpoint(
        functools.partial(apply, name),
        policy=_KEPT_IN_SCAN[config.remat],
        prevent_cse=False,  # In a scan, nothing is common to both passes.
      )
      hidden = again(variables[name], hidden)
    return hidden, None

  variables = {}
  for place, name in enumerate(scan.names):
    salts = _salts(
      modules[name], scan.numbers(place), stacks[name], hidden, texts
    )
    variables[name] = {"params": stacks[name]} | salts
  return jax.lax.scan(turn, hidden, variables)[0]


def _salts(
  module: nn.Module,
  numbers: Sequence[int],
  stacked: Any,
  hidden: jax.Array,
  texts: Sequence[rows_lib.Rows],
) -> dict:
  """Returns the salts of dropout that separate layers would have.

  Args:
    module: A layer.
    numbers: The numbers of the layers that it computes.
    stacked: Their parameters.
    hidden: As in `run`.
    texts: As in `run`.

  Returns:
    {`blocks.SALTS`: uint32 [layers] for each dropout}; {} without dropout.
  """

  def find_salts(stacked):
    one = jax.tree.map(lambda leaf: leaf[0], stacked)
    return module.apply({"params": one}, hidden, texts, mutable=[blocks.SALTS])[
      1
    ]

  found = traverse_util.flatten_dict(jax.eval_shape(find_salts, stacked))
  # A path has the collection first and the variable last.
  salts = {
    path: [blocks.salt((name_of(number), *path[1:-1])) for number in numbers]
    for path in found
  }
  return traverse_util.unflatten_dict(
    {path: np.array(each, np.uint32) for path, each in salts.items()}
  )
