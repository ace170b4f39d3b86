"""Sets the C library's allocator for programs that compute on the CPU.

XLA requests a step's memory at once and frees it after the step. glibc gives
such memory back to the system, and the system clears it for the next step.
"""

import ctypes
import glob
import os
import resource
import sys

# Of glibc's malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
_ARENA_MAX = -8
# Of Linux's mman.h.
_HUGE_PAGES = 14

_HUGE_PAGE = 2**21

# The files of NVIDIA, AMD and TPU devices, and of GPUs under WSL.
_ACCELERATORS = (
  *("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg"),
  *("/dev/accel[0-9]*", "/dev/vfio/[0-9]*"),
)


def keep_freed_memory() -> bool:
  """Makes this process keep the memory that it frees, in huge pages.

  It changes nothing unless the system is Linux with glibc and JAX will use the
  CPU, or if the user has set the allocator. It must run before much memory is
  requested.

  Returns:
    Whether it has changed the allocator.
  """
  if _is_set() or not _computes_on_cpu():
    return False
  libc = _glibc()
  if not libc:
    return False
  # No block gets a mapping of its own, which ends when the block is freed, and
  # the end of the heap is not given back. All threads share this heap: in the
  # heaps of other threads, a block of 64 MB always gets a mapping.
  for setting, value in (
    (_MMAP_MAX, 0),
    (_TRIM_THRESHOLD, -1),
    (_ARENA_MAX, 1),
  ):
    if not libc.mallopt(setting, value):
      return False
  _use_huge_pages(libc)
  return True


def _is_set() -> bool:
  """Whether the user has set the allocator, or replaced it."""
  return any(
    name in ("GLIBC_TUNABLES", "LD_PRELOAD") or name.startswith("MALLOC_")
    for name in os.environ
  )


def _computes_on_cpu() -> bool:
  """Whether JAX will compute on the CPU, without starting JAX."""
  platforms = os.environ.get("JAX_PLATFORMS", "")
  if platforms:
    return platforms.split(",")[0] == "cpu"
  return not any(map(glob.glob, _ACCELERATORS))


def _glibc() -> ctypes.CDLL | None:
  """Returns the C library, if it is glibc."""
  if sys.platform != "linux":
    return None
  libc = ctypes.CDLL(None)
  if not hasattr(libc, "gnu_get_libc_version"):
    return None
  libc.malloc.argtypes = [ctypes.c_size_t]
  libc.malloc.restype = ctypes.c_void_p
  libc.free.argtypes = [ctypes.c_void_p]
  libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
  return libc


def _use_huge_pages(libc: ctypes.CDLL) -> None:
  """Lets the heap grow, and asks for huge pages in its new part.

  The part takes no memory before it is used. `mallopt` has no such setting.
  """
  if _reserving_costs():
    return
  size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
  start = libc.malloc(size)
  if not start:
    return
  first = -(-start // _HUGE_PAGE) * _HUGE_PAGE
  last = (start + size) // _HUGE_PAGE * _HUGE_PAGE
  libc.madvise(first, last - first, _HUGE_PAGES)
  libc.free(start)  # It stays in the heap: see above.


def _reserving_costs() -> bool:
  """Whether memory counts for a limit before it is used."""
  limits = resource.RLIMIT_AS, resource.RLIMIT_DATA
  if any(resource.getrlimit(n)[0] != resource.RLIM_INFINITY for n in limits):
    return True
  try:
    with open("/proc/sys/vm/overcommit_memory", encoding="ascii") as file:
      return file.read().strip() == "2"
  except OSError:
    return True
