"""The watchdog finds out that another process of the run died or hangs.

It is a thread of each process. It reads all messages of the other processes,
and it sends its own phase and step every `beat` seconds, whatever the main
thread does. So preparing, compiling, evaluating and saving may take any time.

It calls another process lost in three cases. A slow process is never lost.

- Its connection closed before it said that it ended: it died.
- No message came from it for `silent_seconds`: it was stopped, or its machine
  or its network is gone.
- Its thread is alive, but it has been between the same two steps for
  `silent_seconds`, and another process has begun a later step. That step cannot
  end without it: its main thread hangs.

If all processes wait at the same step, the watchdog calls none of them stuck.
Then a device or the network is the reason, and the runtime has its own time
limits for these.

Only time in which the watchdog itself runs counts. After its own process was
stopped, it accuses nobody. Process 0 judges all processes, itself too; the
others judge process 0. A process that finds another one lost, or hears it from
process 0, prints its name and ends at once with `EXIT_LOST`.
"""

import os
import selectors
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from mlir_jax.hosts import links

STEP = "step"  # The phase of a process that is taking steps.


class Watchdog:
  """Watches the other processes of a run, and ends this one with them."""

  def __init__(
    self,
    process: int,
    host: str,
    links_of: Mapping[int, links.Link],
    silent_seconds: float,
    receive: Callable[[links.Link, Mapping[str, Any]], None],
  ):
    """Prepares the thread; `start` starts it.

    Args:
      process: The number of this process.
      host: The name of this machine.
      links_of: The links by the number of the other process.
      silent_seconds: How long another process may be silent or stuck.
      receive: The thread calls it with each message of a meeting. It raises
        `links.DamagedError` for a wrong one.
    """
    self._process = process
    self._host = host
    self._links = links_of
    self._silent_seconds = silent_seconds
    self._beat = min(1.0, silent_seconds / 10)
    self._receive = receive
    self._state = ("starting", -1)
    self._seconds_behind: dict[int, float] = {}
    self._ending = threading.Lock()
    self._closing = False
    self._thread = threading.Thread(
      target=self._watch_or_fail, name="watchdog", daemon=True
    )

  # --- The main thread calls these. ---

  def start(self) -> None:
    """Starts the thread."""
    self._thread.start()

  def report(self, phase: str, step: int = -1) -> None:
    """Sets what the other processes hear; `step` only between steps."""
    self._state = (phase, step)

  def send_all(self, message: Mapping[str, Any]) -> None:
    """Sends a message over all links."""
    for link in self._links.values():
      link.send(message)

  def fail(self, status: int, text: str) -> NoReturn:
    """Ends this process, whose error was printed, and the others with it."""
    with self._ending:
      self._closing = True
      if self._process:
        end = links.end(status, text)
        self._links[0].send(end)
      else:
        end = _end_of(self._process, self._host, status, text)
        self.send_all(end)
      # A launcher takes 0 for the end of the whole run; see `links.end`.
      _exit(end["status"])

  def close(self) -> None:
    """Ends the thread."""
    self._closing = True
    self._thread.join()

  # --- The thread. ---

  def _watch_or_fail(self) -> None:
    try:
      self._watch()
    except BaseException as error:  # Unwatched, the run might hang for ever.
      traceback.print_exc()
      self.fail(1, f"its watchdog failed: {error}")

  def _watch(self) -> None:
    with selectors.DefaultSelector() as selector:
      for link in self._links.values():
        selector.register(link.connection, selectors.EVENT_READ, link)
        # These messages came together with the answer to the roll call.
        self._handle_all(selector, link, link.take())
      ticked = time.monotonic()
      due = 0.0
      while not self._closing:
        for key, _ in selector.select(self._beat / 2):
          self._handle_all(selector, key.data, key.data.receive())
        now = time.monotonic()
        # Without the time in which this process itself was stopped.
        passed = min(now - ticked, 2 * self._beat)
        ticked = now
        self._judge(passed)
        due -= passed
        if due <= 0:
          due = self._beat
          phase, step = self._state
          self.send_all({"kind": "at", "phase": phase, "step": step})

  def _handle_all(
    self,
    selector: selectors.BaseSelector,
    link: links.Link,
    messages: Iterable[Mapping[str, Any]] | None,
  ) -> None:
    """Handles the messages of a link; None says that it was closed."""
    try:
      if messages is not None:
        for message in messages:
          # Only a signed message shows that the process lives, not any byte.
          link.quiet = 0.0
          self._handle(link, message)
        return
      problem = "its connection closed"
    except links.DamagedError as error:
      problem = f"its connection is damaged, {error}"
    selector.unregister(link.connection)
    if not link.ended and not self._closing:
      self._lost(f"{link} is gone: {problem} ({describe_state(link.state)})")

  def _handle(self, link: links.Link, message: Mapping[str, Any]) -> None:
    match message["kind"]:
      case "at":
        link.state = (message["phase"], message["step"])
      case "end":
        link.ended = True
        if link.number:
          message = _end_of(
            link.number, link.host, message["status"], message["text"]
          )
          for other in self._links.values():
            if other is not link:
              other.send(message)
        self._stop(message["status"], message["text"])
      case "meet" | "agreed" | "passed":
        self._receive(link, message)
      case kind:  # A message of the roll call, which is over.
        raise links.DamagedError(f"{kind!r} came in the middle of the run")

  def _judge(self, passed: float) -> None:
    """Ends this process if another one is silent or stuck.

    Args:
      passed: Seconds since the last call.
    """
    for link in self._links.values():
      link.quiet += passed
      if link.quiet > self._silent_seconds and not link.ended:
        self._lost(
          f"{link} was silent for {link.quiet:.0f} s"
          f" ({describe_state(link.state)})"
        )
    if self._process:
      return
    states = {number: link.state for number, link in self._links.items()}
    states[0] = self._state
    furthest = max(step for _, step in states.values())
    for number, (phase, step) in states.items():
      # The last state of a silent process is old. The silence rule above
      # handles it, so do not also call it stuck.
      if number and self._links[number].quiet >= 3 * self._beat:
        continue
      is_behind = phase == STEP and step < furthest
      self._seconds_behind[number] = (
        self._seconds_behind.get(number, 0.0) + passed if is_behind else 0.0
      )
      seconds = self._seconds_behind[number]
      if seconds > self._silent_seconds:
        host = self._links[number].host if number else self._host
        self._lost(
          f"process {number} ({host}) is stuck: it has not gone beyond step"
          f" {step} for {seconds:.0f} s, while others wait for it at step"
          f" {furthest}"
        )

  def _lost(self, text: str) -> None:
    """Ends all processes, because one is lost."""
    text = (
      f"{text}. Nothing new was saved; start again, and the run goes on from"
      " its last checkpoint."
    )
    if not self._process:
      self.send_all(links.end(links.EXIT_LOST, text))
    self._stop(links.EXIT_LOST, text)

  def _stop(self, status: int, text: str) -> None:
    """Ends this process, because another one ended."""
    if self._ending.acquire(blocking=False):
      os.write(2, f"\nprocess {self._process}: {text}\n".encode())
      _exit(status)


def describe_state(state: tuple[str, int]) -> str:
  """Says where a process was, from its phase and step."""
  phase, step = state
  return f"last known at step {step}" if phase == STEP else f"last seen {phase}"


def _end_of(
  process: int, host: str, status: int, text: str
) -> Mapping[str, Any]:
  """The message that this process ended, with its name."""
  return links.end(status, f"process {process} ({host}) ended: {text}")


def _exit(status: int) -> NoReturn:
  """Ends this process now, whatever its threads wait for."""
  flushing = threading.Thread(target=sys.stdout.flush, daemon=True)
  flushing.start()
  flushing.join(1.0)
  os._exit(status)
