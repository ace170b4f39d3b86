"""SIGTERM and Ctrl-C end a run within seconds, at any moment, with a status.

What a signal's handler raises may be lost: Python prints and drops it where
the handler happens to run in a callback (JAX has one for the garbage
collector). And no handler runs while the main thread is in compiled code. So a
thread looks after it. The system tells the thread of each signal through a
socket, whatever the main thread does. If the main thread has not ended the run
in a few seconds the thread does. Nothing is half written then, since
everything is written aside and renamed.

While there are steps that are not saved yet, nothing is raised: the loop asks
after each step, saves, and stops.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from typing import NoReturn

# The exit status that says: saved, start me again (BSD's EX_TEMPFAIL).
EXIT_PREEMPTED = 75
# Of Ctrl-C, as shells have it: no launcher starts the run again.
EXIT_INTERRUPTED = 128 + signal.SIGINT

_STATUS: Mapping[int, int] = {
  signal.SIGTERM: EXIT_PREEMPTED,
  signal.SIGINT: EXIT_INTERRUPTED,
}

# Seconds in which the main thread must have ended the run.
GRACE = 5.0
_LOOK_EVERY = 0.5

_open_fd = -1  # Through which signals reach the thread, while there is one.


def _after_fork() -> None:
  """The signals of a forked child, such as a worker, are not the run's."""
  before = signal.set_wakeup_fd(-1)
  if before != _open_fd:
    signal.set_wakeup_fd(before)


os.register_at_fork(after_in_child=_after_fork)


class Preempted(SystemExit):
  """The run was asked to stop, and can be started again.

  Attributes:
    together: Whether all processes of the run stop here, after saving.
  """

  def __init__(self, status: int = EXIT_PREEMPTED, together: bool = False):
    super().__init__(status)
    self.together = together


class StopSignal:
  """SIGTERM and SIGINT as a wish to stop, while this context is open.

  Python runs handlers in the main thread only. Where a program opens this
  context in another thread, that program's own handlers stay. An interactive
  session, such as a notebook, is never ended: it holds more than the run.

  Attributes:
    requested: Whether one of them came.
    status: The exit status that says which one came first.
  """

  def __init__(self):
    self.requested = False
    self.status = EXIT_PREEMPTED
    self._unsaved = False  # Whether there are steps to save.
    self._raises = True  # Whether a signal raises at once.
    self._raised = None  # A weak reference to what was raised last.
    self._interrupts = 0
    self._before = {}

  def __enter__(self) -> "StopSignal":
    self._main = threading.get_ident()
    self._looks = threading.current_thread() is threading.main_thread()
    if not self._looks:
      return self
    self._ends = not hasattr(sys, "ps1")  # IPython sets it, too.
    self._reading, self._writing = socket.socketpair()
    self._reading.settimeout(_LOOK_EVERY)
    self._writing.setblocking(False)
    self._closed = False
    self._thread = threading.Thread(
      target=self._look_after, name="stop", daemon=True
    )
    self._thread.start()
    global _open_fd
    _open_fd = self._writing.fileno()
    self._fd_before = signal.set_wakeup_fd(_open_fd, warn_on_full_buffer=False)
    self._before = {
      number: signal.signal(number, self._receive) for number in _STATUS
    }
    self._hook_before, sys.unraisablehook = sys.unraisablehook, self._dropped
    return self

  def __exit__(self, kind, error, _):
    if not self._looks:
      return
    # The thread ends first: it may send a signal, which is for our handlers.
    signal.set_wakeup_fd(self._fd_before)
    self._closed = True
    self._writing.close()
    self._thread.join()
    self._reading.close()
    sys.unraisablehook = self._hook_before
    for number, handler in self._before.items():
      signal.signal(number, handler)
    if isinstance(error, Preempted) and not error.together:
      print(f"Asked to stop ({self._name()}).", file=sys.stderr)

  def save_first(self) -> None:
    """From here on there are steps to save: nothing is raised, nor in haste."""
    self._unsaved, self._raises = True, False
    if self.requested and (multihost := _joined()):
      multihost.ask_to_stop()  # What the signal raised was lost.

  def saved(self) -> None:
    """All is saved: from here on a signal ends the run at once.

    Raises:
      Preempted: if one came before.
    """
    self._unsaved, self._raises = False, True
    if self.requested:
      raise Preempted(self.status)

  @contextlib.contextmanager
  def breaking_off(self):
    """Within this context a signal breaks work off; what follows is done.

    Of several processes none may leave what the others wait for: there the
    work is finished.
    """
    if _joined():
      yield
      return
    before, self._raises = self._raises, True
    with contextlib.suppress(Preempted):
      yield
    self._raises = before

  def reached(self, step: int) -> bool:
    """Whether to save and stop after this step, the same in all processes.

    One that is alone stops when it was asked to. Several stop after a step
    that they agree on, soon after one of them was asked; each must ask this
    once after every step.
    """
    if multihost := _joined():
      return multihost.reached_stop(step)
    return self.requested

  def _receive(self, number, _):
    self._note(number)
    if self._raises:
      raise self._stopped()

  def _dropped(self, dropped) -> None:
    """Python calls it with what it drops; a stop is raised again, silently."""
    if not isinstance(dropped.exc_value, Preempted):
      self._hook_before(dropped)

  def _stopped(self) -> Preempted:
    # No variable of the handler's frame holds it, which it would hold in turn.
    stopped = Preempted(self.status)
    self._raised = weakref.ref(stopped)
    return stopped

  def _note(self, number: int) -> None:
    """Takes note of a signal; both threads may."""
    if self.requested:
      return
    self.status = _STATUS[number]
    self.requested = True
    if self._unsaved and (multihost := _joined()):
      multihost.ask_to_stop()

  def _look_after(self) -> None:
    """What the thread does."""
    deadline = None
    while not self._closed:
      try:
        numbers = self._reading.recv(64)
      except TimeoutError:
        numbers = b""
      for number in numbers:
        if number in _STATUS:
          self._note(number)
      self._interrupts += numbers.count(signal.SIGINT)
      if self._interrupts > 1 and self._ends:
        self._end("interrupted twice")
      if not self.requested:
        continue
      if self._unsaved:
        deadline = None
      elif deadline is None:
        deadline = time.monotonic() + GRACE
      elif time.monotonic() > deadline and self._ends:
        self._end("asked to stop")
      if self._raises and self._raised and not self._raised():
        # It was lost: nothing holds it any more. The handler runs again.
        self._raised = None
        signal.pthread_kill(self._main, signal.SIGTERM)

  def _end(self, reason: str) -> NoReturn:
    """Ends the process, whatever its main thread does."""
    os.write(2, f"\nEnding at once: {reason} ({self._name()}).\n".encode())
    if multihost := _joined():
      multihost.fail(self.status, f"it was {reason}")
    flushing = threading.Thread(target=sys.stdout.flush, daemon=True)
    flushing.start()
    flushing.join(1.0)
    os._exit(self.status)

  def _name(self) -> str:
    return "Ctrl-C" if self.status == EXIT_INTERRUPTED else "SIGTERM"


def _joined():
  """`multihost`, if this is one of several processes; else None."""
  # Imported by whoever joins: before that it would take seconds.
  multihost = sys.modules.get("mlir_jax.hosts.multihost")
  joined = getattr(multihost, "joined", None)  # None while it is imported.
  return multihost if joined and joined() else None
