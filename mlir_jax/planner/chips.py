"""The rates of TPU chips from their maker's tables: the planner's rooflines."""

import dataclasses
import math
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Chip:
  """A generation of TPUs; the numbers are of one chip.

  Attributes:
    flops: bfloat16 operations/s of the matrix units.
    memory: Bytes of HBM.
    bandwidth: Bytes/s from and to HBM.
    link: Bytes/s sent over one link to a neighbour. The tables give the sum
      over all links, often of both directions.
    ring_from: An axis of this length, or a multiple of it, is a ring, where a
      chip has two links. A shorter axis is a line.
    options: Options of `topologies.get_topology_desc`; for v4 they make two
      cores one device.
  """

  flops: float
  memory: int
  bandwidth: float
  link: float
  ring_from: int
  options: tuple[tuple[str, str], ...] = ()

  def sends(self, axes: Sequence[int]) -> float:
    """Returns the bytes/s that a chip sends to its neighbours in a slice.

    Args:
      axes: Chips along each axis of the slice.
    """
    links = sum(
      2 if axis % self.ring_from == 0 else 1 for axis in axes if axis > 1
    )
    return links * self.link


# Peak, HBM and interconnect: docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e
# (2026). Which axes are rings: "How to Scale Your Model", part 2
# (jax-ml.github.io/scaling-book/tpus).
CHIPS = {
  # 275 TFLOP/s, 32 GiB, 1,200 GB/s; 6 links of 50 GB/s a direction, which
  # adds up to the page's 1.1 PB/s of 4,096 chips.
  "v4": Chip(
    275e12, 32 * 2**30, 1200e9, 50e9, 4, (("chip_config_name", "megacore"),)
  ),
  # 197 TFLOP/s, 16 GB, 819 GB/s; 400 GB/s both ways over 4 ports.
  "v5e": Chip(197e12, 16 * 2**30, 819e9, 50e9, 16),
  # 459 TFLOP/s, 95 GB, 2,765 GB/s; 1,200 GB/s both ways over 6 links.
  "v5p": Chip(459e12, 95 * 2**30, 2765e9, 100e9, 4),
  # 918 TFLOP/s, 32 GB, 1,638 GB/s; 800 GB/s both ways over 4 ports.
  "v6e": Chip(918e12, 32 * 2**30, 1638e9, 100e9, 16),
}


def parse(topology: str) -> tuple[Chip, tuple[int, ...]]:
  """Returns the chips of a slice "v5e:4x4", and their number along each axis.

  Raises:
    ValueError: if the generation or the shape does not exist.
  """
  name, _, shape = topology.partition(":")
  if name not in CHIPS:
    raise ValueError(
      f"--topology={topology}: the known chips are {', '.join(CHIPS)}; give"
      " one of them and a shape, such as v5e:4x4 or v5p:4x4x4."
    )
  # A pod of v5e or v6e is 16 x 16. Pods of the others have three axes.
  flat = CHIPS[name].ring_from == 16
  parts = shape.split("x")
  axes = [int(part) for part in parts if part.isdecimal() and int(part)]
  beyond = flat and (
    sum(axis > 1 for axis in axes) > 2 or any(axis > 16 for axis in axes)
  )
  if len(axes) < len(parts) or beyond:
    raise ValueError(
      f"--topology={topology}: {shape!r} is not the shape of a slice; give"
      + (f" {name}:4x4, up to 16x16." if flat else f" {name}:4x4x4.")
    )
  return CHIPS[name], tuple(axes)


def count(axes: Sequence[int]) -> int:
  """Returns how many chips a slice has."""
  return math.prod(axes)
