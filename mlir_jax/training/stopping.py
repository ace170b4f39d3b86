"""SIGTERM and Ctrl-C end a run within seconds, at any moment, with a status.

The exception of a signal handler may be lost: if the handler runs in a callback
(JAX has one for the garbage collector), Python prints the exception and drops
it. Also, no handler runs while the main thread is in compiled code. So a thread
watches for signals, too. The system sends it each signal through a socket,
whatever the main thread does. If the main thread does not end the run in a few
seconds, the thread ends it. No file is then half written, since all files are
written aside and renamed.

While there are unsaved steps, nothing is raised: the loop asks after each step,
saves, and stops.
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

# This exit status says: saved, start me again (EX_TEMPFAIL of sysexits.h).
EXIT_PREEMPTED = 75
# The exit status of Ctrl-C in shells. No launcher starts the run again.
EXIT_INTERRUPTED = 128 + signal.SIGINT

_STATUS: Mapping[int, int] = {
  signal.SIGTERM: EXIT_PREEMPTED,
  signal.SIGINT: EXIT_INTERRUPTED,
}

# The main thread must end the run within this many seconds.
GRACE = 5.0
_CHECK_SECONDS = 0.5

_open_fd = -1  # Signals reach the thread through it; -1 without a thread.


def _after_fork() -> None:
  """A forked child, such as a worker, must not send its signals to the run."""
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
  """While this context is open, SIGTERM and SIGINT ask the run to stop.

  Python runs handlers only in the main thread. If a program opens this context
  in another thread, the program's own handlers stay. An interactive session,
  such as a notebook, is never ended: it holds more than the run.

  Attributes:
    requested: Whether a signal came.
    status: The exit status, which says which signal came first.
  """

  def __init__(self):
    self.requested = False
    self.status = EXIT_PREEMPTED
    self._unsaved = False  # Whether there are steps to save.
    self._raises = True  # Whether a signal raises at once.
    self._raised = None  # A weak reference to the last exception.
    self._interrupts = 0
    self._before = {}

  def __enter__(self) -> "StopSignal":
    self._main = threading.get_ident()
    self._is_active = threading.current_thread() is threading.main_thread()
    if not self._is_active:
      return self
    self._may_end = not hasattr(sys, "ps1")  # IPython sets it, too.
    self._reading, self._writing = socket.socketpair()
    self._reading.settimeout(_CHECK_SECONDS)
    self._writing.setblocking(False)
    self._closed = False
    self._thread = threading.Thread(
      target=self._watch, name="stop", daemon=True
    )
    self._thread.start()
    global _open_fd
    _open_fd = self._writing.fileno()
    self._fd_before = signal.set_wakeup_fd(_open_fd, warn_on_full_buffer=False)
    self._before = {
      number: signal.signal(number, self._receive) for number in _STATUS
    }
    self._hook_before, sys.unraisablehook = sys.unraisablehook, self._on_dropped
    return self

  def __exit__(self, kind, error, _):
    if not self._is_active:
      return
    # The thread ends first: it may send a signal, which our handlers must get.
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
    """From now on there are unsaved steps: a signal raises nothing."""
    self._unsaved, self._raises = True, False
    if self.requested and (multihost := _joined()):
      multihost.ask_to_stop()  # The exception of the signal was lost.

  def saved(self) -> None:
    """All steps are saved: from now on a signal ends the run at once.

    Raises:
      Preempted: if a signal came before.
    """
    self._unsaved, self._raises = False, True
    if self.requested:
      raise Preempted(self.status)

  @contextlib.contextmanager
  def interruptible(self):
    """Within this context, a signal ends the work; what follows is still done.

    With several processes, the work is finished: none may leave it while the
    others wait for it.
    """
    if _joined():
      yield
      return
    before, self._raises = self._raises, True
    with contextlib.suppress(Preempted):
      yield
    self._raises = before

  def reached(self, step: int) -> bool:
    """Whether to save and stop after this step; all processes get one answer.

    A single process stops when it was asked to. Several processes agree on a
    step, soon after one of them was asked. Each must call this once after every
    step.
    """
    if multihost := _joined():
      return multihost.reached_stop(step)
    return self.requested

  def _receive(self, number, _):
    self._note(number)
    if self._raises:
      raise self._stopped()

  def _on_dropped(self, dropped) -> None:
    """Python calls it with an exception that it drops.

    It does not print a `Preempted`: the thread has it raised again.
    """
    if not isinstance(dropped.exc_value, Preempted):
      self._hook_before(dropped)

  def _stopped(self) -> Preempted:
    # A variable of the handler's frame must not hold the exception: the
    # exception holds the frame, so it would never be freed.
    stopped = Preempted(self.status)
    self._raised = weakref.ref(stopped)
    return stopped

  def _note(self, number: int) -> None:
    """Notes a signal; both threads may call it."""
    if self.requested:
      return
    self.status = _STATUS[number]
    self.requested = True
    if self._unsaved and (multihost := _joined()):
      multihost.ask_to_stop()

  def _watch(self) -> None:
    """The thread: it notes each signal, and ends the run when it is late."""
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
      if self._interrupts > 1 and self._may_end:
        self._end("interrupted twice")
      if not self.requested:
        continue
      if self._unsaved:
        deadline = None
      elif deadline is None:
        deadline = time.monotonic() + GRACE
      elif time.monotonic() > deadline and self._may_end:
        self._end("asked to stop")
      if self._raises and self._raised and not self._raised():
        # Nothing holds the exception any more: it was lost. Run the handler
        # again.
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
  """Returns `multihost` if this is one of several processes, else None."""
  # A process that joins others has imported it. An import here takes seconds.
  multihost = sys.modules.get("mlir_jax.hosts.multihost")
  joined = getattr(multihost, "joined", None)  # None while it is imported.
  return multihost if joined and joined() else None
