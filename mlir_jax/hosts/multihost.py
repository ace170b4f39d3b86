"""What a process calls to be one of several in a run.

Process 0 is the hub. At the roll call (`hosts.roll_call`) it listens where
JAX's coordinator will listen, and every other process connects to it. These
connections stay open to the end of the run, next to JAX's own. JAX's cannot
replace them: JAX aborts a process if another one is missing or died, without
naming it. The processes send signed messages (`hosts.links`) over them:

- what they compare at a check-in (`hosts.member`);
- their phase and step, by which each finds out that another one died or hangs
  (`hosts.watchdog`);
- how a process ended, if it did not end together with the others. A process
  that fails says so before it ends; the others end with its status.

With a single process, these functions do nothing.

Private parts of JAX are used in this folder alone: its handler of SIGTERM here,
and its cluster detection in `hosts.cluster`, which finds process 0 before JAX
connects to it.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mlir_jax.hosts import (
  addresses,
  cluster,
  links,
  member,
  run_secret,
  watchdog,
)

EXIT_LOST = links.EXIT_LOST
LostError = links.LostError
STEP = watchdog.STEP


class _NumberedLines:
  """Standard error of a process other than the first: numbered lines.

  It leaves out progress bars, which return to the start of their line.
  """

  def __init__(self, stream, process: int):
    self._stream = stream
    self._prefix = f"process {process}: "
    self._rest = ""

  def write(self, text: str) -> int:
    if "\r" not in text and "\x1b" not in text:
      *lines, self._rest = (self._rest + text).split("\n")
      for line in lines:
        if line.strip():
          self._stream.write(f"{self._prefix}{line}\n")
    return len(text)

  def __getattr__(self, name: str):
    return getattr(self._stream, name)


# This process as one of several; None if it is alone.
_member: member.Member | None = None
_notify_jax: Callable[[int], None] | None = None


def join(
  coordinator: str | None,
  processes: int | None,
  process: int | None,
  *,
  check_in_seconds: float,
  silent_seconds: float,
  items: Mapping[str, Any],
  insecure: bool = False,
  bind: str | None = None,
) -> None:
  """Joins the other processes of the run. Call it before JAX looks for devices.

  Args:
    coordinator: "HOST:PORT" of process 0; None asks the cluster, here and for
      the next two.
    processes: The number of processes.
    process: The number of this process, from 0.
    check_in_seconds: How long process 0 waits for the others at a check-in.
    silent_seconds: How long a process may be silent before it is called lost.
    items: What must be the same in all processes, name to value: config,
      versions, code.
    insecure: Whether no secret is needed on a network.
    bind: The address at which process 0 listens; None for the coordinator's.

  Raises:
    LostError: if a process does not come in time; it names it.
    ValueError: if a process differs; it names what differs. Also if a secret is
      missing, short, or in a file that others can read.
  """
  global _member, _notify_jax
  coordinator, processes, process, devices = cluster.address(
    coordinator, processes, process
  )
  secret = run_secret.read(os.environ)
  run_secret.warn_if_insecure(secret, insecure)
  if process:
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = _NumberedLines(sys.stderr, process)
  _member = member.Member(
    coordinator,
    processes,
    process,
    check_in_seconds=check_in_seconds,
    silent_seconds=silent_seconds,
    secret=secret,
    insecure=insecure,
    bind=bind,
  )
  _member.check_in("start", items)
  libc_signal = ctypes.CDLL(None).signal
  libc_signal.restype = ctypes.c_void_p
  libc_signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
  # When process 0 dies, JAX aborts the others. They must print their message
  # first. So libc's sleep is the handler of SIGABRT: only the thread that
  # aborts sleeps, as many seconds as the signal's number (6); then it aborts.
  libc_signal(
    signal.SIGABRT, ctypes.cast(ctypes.CDLL(None).sleep, ctypes.c_void_p)
  )
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(
    coordinator,
    processes,
    process,
    devices,
    # `cluster.address` has asked the cluster. If JAX asked it again, a process
    # whose flags say everything would get one GPU, by its number on the node.
    cluster_detection_method="deactivate",
    initialization_timeout=int(check_in_seconds) + 1,
    # By default JAX listens at all addresses of the machine.
    coordinator_bind_address=addresses.bind_address(coordinator, bind),
    # The watchdog must speak first. At the end, the others wait for the process
    # that writes the report.
    heartbeat_timeout_seconds=int(10 * silent_seconds) + 100,
    shutdown_timeout_seconds=3600,
  )
  # JAX has replaced Python's handler of SIGTERM by its own. Put Python's back;
  # `ask_to_stop` calls JAX's.
  handler = libc_signal(signal.SIGTERM, ctypes.c_void_p(1))  # SIG_IGN.
  signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
  _notify_jax = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
  jax.devices()


def joined() -> bool:
  """Whether this process is one of several."""
  return _member is not None


def is_first() -> bool:
  """Whether this process writes for all: it is alone, or it is process 0."""
  return _member is None or _member.process == 0


def report(phase: str, step: int = -1) -> None:
  """Tells the other processes where this one is.

  Args:
    phase: `STEP` between steps, where a process that falls behind hangs; or
      anything that may take long: "compiling".
    step: The step that begins.
  """
  if _member:
    _member.report(phase, step)


def first(name: str) -> "contextlib.AbstractContextManager[None]":
  """A context that process 0 leaves before the others enter it.

  Args:
    name: What process 0 does in it, for the message of the others: "it
      prepares the data".
  """
  if not _member:
    return contextlib.nullcontext()
  return _member.first(name)


def check_in(name: str, items: Mapping[str, Any]) -> None:
  """Compares what must be the same in all processes.

  Args:
    name: The name of the check-in, which is held once.
    items: Names to values that JSON can hold.

  Raises:
    LostError: if a process does not come in time; it names it.
    ValueError: if items differ; it names the item, the process and both values.
  """
  if _member:
    _member.check_in(name, items)


def of_first(number: int) -> int:
  """Returns the number that process 0 has, in all processes."""
  if not _member:
    return number
  return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def ask_to_stop() -> None:
  """Tells JAX, and so all processes, that this one wants to stop."""
  assert _notify_jax is not None  # `join` has set it.
  _notify_jax(signal.SIGTERM)


def reached_stop(step: int) -> bool:
  """Whether all processes stop after this step; all ask after every step."""
  return multihost_utils.reached_preemption_sync_point(step)


def leave() -> None:
  """Waits until all processes have come to the end, then disconnects."""
  global _member
  if _member:
    _member.leave()
    jax.distributed.shutdown()
    _member = None


def await_verdict() -> None:
  """After an error: ends this process if another one's death is the reason."""
  if _member:
    _member.await_verdict()


def fail(status: int, text: str) -> None:
  """Ends this process and, with its status and text, all others."""
  if _member:
    _member.fail(status, text)
