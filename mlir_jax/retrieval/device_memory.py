"""Says how many bytes of passages each device can hold."""

import os
import re

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

# The rest is for scores, parameters, and the next passages from the disk.
_SHARE = 0.5


def for_passages(mesh: Mesh) -> int:
  """Returns the bytes that passages may take on each device of a mesh.

  Devices say how much memory is free. CPU devices share what the system has
  left. Several processes take the least of their numbers.
  """
  ours = [
    device
    for device in mesh.devices.flat
    if device.process_index == jax.process_index()
  ]
  free = min(map(_free_on, ours))
  if ours[0].platform == "cpu":
    free //= len(ours)
  if mesh.is_multi_process:
    # In MiB, because JAX makes 32 bits of a number of 64.
    all_free = multihost_utils.process_allgather(np.int32(free >> 20))
    free = int(np.min(all_free)) << 20
  return int(free * _SHARE)


def _free_on(device) -> int:
  statistics = device.memory_stats() or {}
  if "bytes_limit" in statistics:
    return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
  return _free_of_system()


def _free_of_system() -> int:
  """Returns the bytes of memory that this machine can still give."""
  try:
    with open("/proc/meminfo", encoding="ascii") as file:
      found = re.search(r"^MemAvailable:\s*(\d+) kB", file.read(), re.MULTILINE)
    if found:
      return int(found[1]) << 10
  except OSError:  # Not Linux.
    pass
  return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
