"""What TPU chips can do, by their makers' tables: the planner's rooflines."""

import dataclasses
import math
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Chip:
  """A generation of TPUs; the numbers are of one chip.

  Attributes:
    flops: bfloat16 operations/s of its matrix units.
    memory: Bytes of HBM.
    bandwidth: Bytes/s from and to HBM.
    link: Bytes/s that it sends over one link to a neighbour. The tables give
      the sum over all links, often of both directions.
    ring_from: An axis of a slice so long, or a multiple of it, is closed to a
      ring, in which a chip has two links; a shorter one is a line.
    options: Of `topologies.get_topology_desc`: two cores are one device.
  """

  flops: float
  memory: int
  bandwidth: float
  link: float
  ring_from: int
  options: tuple[tuple[str, str], ...] = ()

  def sends(self, axes: Sequence[int]) -> float:
    """Bytes/s that a chip sends to its neighbours in a slice of a shape.

    Args:
      axes: Chips along each axis.
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
  """A slice by its name, "v5e:4x4": its chips, and how many along each axis.

  Raises:
    ValueError: if there is no such generation, or the shape is none.
  """
  name, _, shape = topology.partition(":")
  if name not in CHIPS:
    raise ValueError(
      f"--topology={topology}: the chips known are {', '.join(CHIPS)}; give"
      " one and a shape, as v5e:4x4 or v5p:4x4x4."
    )
  # A pod of v5e or v6e is 16 x 16; those of the others are put together.
  flat = CHIPS[name].ring_from == 16
  parts = shape.split("x")
  axes = [int(part) for part in parts if part.isdecimal() and int(part)]
  beyond = flat and (
    sum(axis > 1 for axis in axes) > 2 or any(axis > 16 for axis in axes)
  )
  if len(axes) < len(parts) or beyond:
    raise ValueError(
      f"--topology={topology}: {shape!r} is no shape of a slice; write"
      + (f" {name}:4x4, to 16x16." if flat else f" {name}:4x4x4.")
    )
  return CHIPS[name], tuple(axes)


def count(axes: Sequence[int]) -> int:
  """Chips in a slice of a shape."""
  return math.prod(axes)
