"""Several processes in one run: roll call, check-in, watchdog, preemption.

Process 0 is the hub. At the roll call it listens where JAX's coordinator will
listen, and every other process connects to it (`hosts.roll_call`); these
connections stay open to the end of the run, beside JAX's own. JAX's cannot do
their work: it aborts a process whose peer is missing or died, without naming
it. Over them go, as signed messages (`hosts.links`),

- what the processes compare at a check-in;
- every `beat` seconds each process' phase and step, from a thread of its own;
- how a process ended, if it ended otherwise than together with the others.

When the watchdog calls a process lost (a slow process never is):

- its connection closed before it said that it ended: it died, at once;
- or no message came from it for `silent_seconds`: it was stopped, or its
  machine or network is gone. Its thread beats whatever its main thread does:
  preparing, compiling, evaluating and saving may take as long as they will;
- or, with its thread alive, it has stood between two steps for
  `silent_seconds` while another process began a later step, which cannot
  finish without it: its main thread hangs.

Where all wait for one another at the same step nobody is called stuck: then
it is a device, or the network, of which the runtime has its own time limits.
Time counts only while the judge runs itself: after a stop of its own it
accuses nobody. Process 0 judges the others (and whether it hangs itself), the
others judge process 0. A process that finds another lost, or hears it from
process 0, prints who it was and ends at once, with `EXIT_LOST`, whatever its
main thread waits for.

A process that fails says so before it ends; the others end with its status.

What is private of JAX is used here alone: its cluster detection, to find out
who process 0 is before JAX connects to it, and its handler of SIGTERM.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

from mlir_jax.hosts import cluster, links, member, roll_call

EXIT_LOST = links.EXIT_LOST
LostError = links.LostError


class _Numbered:
  """Standard error of a process that is not the first: numbered lines.

  Progress bars, which return to the start of their line, are left out.
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


# --- The run that this process is part of, if any. ---

_run: member.Member | None = None
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
  """Joins the run's other processes; before anything else asks for devices.

  Args:
    coordinator: As in `address`, like the next two.
    processes: How many.
    process: Which one.
    check_in_seconds: How long a process may be awaited at a check-in.
    silent_seconds: How long one may be silent before it is called lost.
    items: What must be the same in all, name to value: config, versions, code.
    insecure: Whether it goes without a secret on a network.
    bind: The address at which process 0 listens; None for the coordinator's.

  Raises:
    LostError: if a process does not come in time; it names it.
    ValueError: if one is different; it names what differs. If a secret is
      missing, short, or in a file that others can read.
  """
  global _run, _notify_jax
  coordinator, processes, process, devices = cluster.address(
    coordinator, processes, process
  )
  secret = links.secret(os.environ)
  roll_call.warn_if_insecure(secret, insecure)
  if process:
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = _Numbered(sys.stderr, process)
  run = member.Member(
    coordinator,
    processes,
    process,
    check_in_seconds=check_in_seconds,
    silent_seconds=silent_seconds,
    secret=secret,
    insecure=insecure,
    bind=bind,
  )
  _run = run
  run.meet("start", items, check_in_seconds)
  libc_signal = ctypes.CDLL(None).signal
  libc_signal.restype = ctypes.c_void_p
  libc_signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
  # A dead process 0 makes JAX abort the others; they shall speak first. libc's
  # sleep, as the handler of SIGABRT, sleeps as many seconds as the signal's
  # number says (6), only in the thread that aborts; then it aborts.
  libc_signal(
    signal.SIGABRT, ctypes.cast(ctypes.CDLL(None).sleep, ctypes.c_void_p)
  )
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(
    coordinator,
    processes,
    process,
    devices,
    # It was asked above; asked again, it would give a process that was told
    # all of it one GPU, by its number on the node.
    cluster_detection_method="deactivate",
    initialization_timeout=int(check_in_seconds) + 1,
    # JAX's own choice is all addresses of the machine.
    coordinator_bind_address=roll_call.bind_address(coordinator, bind),
    # The watchdog speaks first; and whoever writes the report is waited for.
    heartbeat_timeout_seconds=int(10 * silent_seconds) + 100,
    shutdown_timeout_seconds=3600,
  )
  # JAX has put its handler of SIGTERM in the place of Python's, which stays
  # in charge and calls it when the run can stop.
  handler = libc_signal(signal.SIGTERM, ctypes.c_void_p(1))  # SIG_IGN.
  signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
  _notify_jax = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
  jax.devices()


def joined() -> bool:
  """Whether this process is one of several."""
  return _run is not None


def is_first() -> bool:
  """Whether this process writes for all: the only one, or process 0."""
  return _run is None or _run.process == 0


def report(phase: str, step: int = -1) -> None:
  """Tells the watchdogs where this process is.

  Args:
    phase: `STEP` between steps, where a process that falls behind hangs; or
      anything that may take long: "compiling".
    step: The step that begins.
  """
  if _run:
    _run.report(phase, step)


def first(name: str) -> "contextlib.AbstractContextManager[None]":
  """A context that process 0 leaves before the others enter it."""
  if not _run:
    return contextlib.nullcontext()
  return _run.first(name)


def check_in(name: str, items: Mapping[str, Any]) -> None:
  """Compares what must be the same in all processes.

  Args:
    name: Of the check-in.
    items: Names to values that JSON can hold.

  Raises:
    LostError: if a process does not come in time; it names it.
    ValueError: naming what differs, in which process, and both values.
  """
  if _run:
    _run.meet(name, items, _run._check_in_seconds)


def ask_to_stop() -> None:
  """Tells all processes that this one is to stop."""
  assert _notify_jax is not None  # `join` has set it.
  _notify_jax(signal.SIGTERM)


def reached_stop(step: int) -> bool:
  """Whether all stop after this step; all must ask after every step."""
  return multihost_utils.reached_preemption_sync_point(step)


def leave() -> None:
  """Ends this process' part when all have come to the end."""
  global _run
  if _run:
    _run.leave()
    jax.distributed.shutdown()
    _run = None


def await_verdict() -> None:
  """After an error: ends this process if another one's death was the cause."""
  if _run:
    _run.await_verdict()


def fail(status: int, text: str) -> None:
  """Ends this process and, with its status and text, all others."""
  if _run:
    _run.fail(status, text)
