"""This process as a member of a run of several: meetings and the watchdog."""

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from mlir_jax.hosts import links, roll_call

STEP = "step"  # The phase of a process that is taking steps.
# What a message about differing processes has at most.
MAX_SHOWN_LINES = 50  # Lines.
MAX_SHOWN_CHARACTERS = 300  # Characters of a name or a value.


class Member:
  """This process' part in a run of several.

  Attributes:
    process: The number of this process.
    processes: How many there are.
  """

  def __init__(
    self,
    coordinator: str,
    processes: int,
    process: int,
    *,
    check_in_seconds: float,
    silent_seconds: float,
    secret: bytes | None = None,
    insecure: bool = False,
    bind: str | None = None,
  ):
    """Calls the roll: returns when all processes are connected.

    Args:
      coordinator: "HOST:PORT" of process 0.
      processes: How many there are.
      process: The number of this one.
      check_in_seconds: How long a process may be awaited at a check-in.
      silent_seconds: How long one may be silent.
      secret: What all processes know, from `links.secret`.
      insecure: Whether it goes without a secret where others could call.
      bind: Where process 0 listens, if not at the coordinator's address.

    Raises:
      LostError: if a process does not come in time.
      ValueError: if another one's number or count does not fit, or a secret is
        needed.
    """
    self.process = process
    self.processes = processes
    self._name = socket.gethostname()
    self._check_in_seconds = check_in_seconds
    self._silent_seconds = silent_seconds
    self._beat = min(1.0, silent_seconds / 10)
    self._state = ("starting", -1)
    self._behind: dict[int, float] = {}
    self._messages = threading.Condition()
    self._came: dict[str, dict[int, Mapping[str, Any]]] = {}
    self._brought: set[str] = set()  # Meetings that this process came to.
    self._ending = threading.Lock()
    self._closing = False
    come = {
      "seconds": check_in_seconds,
      "secret": secret,
      "insecure": insecure,
    }
    self._links: dict[int, links.Link] = {}
    if process:
      self._links[0] = roll_call.call(
        coordinator, processes, process, self._name, **come
      )
    else:
      for link in roll_call.listen(
        coordinator, processes, self._name, bind=bind, **come
      ):
        assert link.number is not None  # It has said it.
        self._links[link.number] = link
    self._thread = threading.Thread(
      target=self._watch_or_fail, name="watchdog", daemon=True
    )
    self._thread.start()

  # --- What the main thread asks for. ---

  def report(self, phase: str, step: int = -1) -> None:
    """Tells the others where this process is; `step` only between steps."""
    self._state = (phase, step)

  def meet(self, name: str, items: Mapping[str, Any], limit: float) -> None:
    """Waits for all processes and compares what each brings.

    Args:
      name: Of the meeting; each is held once.
      items: Names to values that JSON can hold; all must be equal.
      limit: Seconds that process 0 waits for the others.

    Raises:
      LostError: if one does not come in time.
      ValueError: naming what differs, with both values.
    """
    # As the others receive them; what JSON has no number for is text.
    items = json.loads(json.dumps(items), parse_constant=str)
    if self.process:
      self._brought.add(name)
      self._links[0].send({"kind": "meet", "name": name, "items": items})
      self._await(f"agreed {name}", {0}, None)
      return
    others = set(self._links)
    missing = self._await(name, others, limit)
    if missing:
      where = "; ".join(
        f"{self._links[n]}, {_where(self._links[n].state)}"
        for n in sorted(missing)
      )
      raise links.LostError(
        f"not all of {self.processes} processes came to the check-in"
        f" ({name}) within {limit:g} s (hosts.check_in_seconds) of process 0."
        f" Missing: {where}."
      )
    differing: dict[tuple[str, str], list[str]] = {}
    for number, theirs in sorted(self._came.get(name, {}).items()):
      for item in sorted(items.keys() | theirs.keys()):
        if items.get(item) != theirs.get(item):
          value = repr(theirs.get(item))
          differing.setdefault((item, value), []).append(
            str(self._links[number])
          )
    if differing:
      lines = [
        f"  {_shortened(links.printable(item))}:"
        f" {_shortened(repr(items.get(item)))} in process 0 ({self._name}),"
        f" {_shortened(value)} in {', '.join(others)}"
        for (item, value), others in sorted(differing.items())
      ]
      if len(lines) > MAX_SHOWN_LINES:
        lines[MAX_SHOWN_LINES:] = [
          f"  and {len(lines) - MAX_SHOWN_LINES} more."
        ]
      raise ValueError(
        "The processes of this run differ; start all of them with the same"
        " code, config and data:\n" + "\n".join(lines)
      )
    self._tell({"kind": "agreed", "name": name})

  def first(self, name: str) -> "contextlib.AbstractContextManager[None]":
    """Within this context process 0 is alone; the others enter after it."""

    @contextlib.contextmanager
    def alone():
      if self.process:
        print(f"Waiting for {self._links[0]}: {name}.", file=sys.stderr)
        self._await(f"passed {name}", {0}, None)
      yield
      if not self.process:
        self._tell({"kind": "passed", "name": name})

    return alone()

  def fail(self, status: int, text: str) -> NoReturn:
    """Ends this process, whose error was printed, and the others with it."""
    with self._ending:
      self._closing = True
      if self.process:
        end = links.end(status, text)
        self._links[0].send(end)
      else:
        end = _named(status, text, self.process, self._name)
        self._tell(end)
      # A launcher takes 0 for the end of the whole run; see `links.end`.
      _exit(end["status"])

  def leave(self) -> None:
    """Waits until all have come to the end, and lets go of the others."""
    self.report("waiting for the others to end")
    self.meet("end", {}, float("inf"))
    self._closing = True
    self._thread.join()
    for link in self._links.values():
      link.connection.close()

  def await_verdict(self) -> None:
    """Gives the watchdog the time to find out whether another one died."""
    self.report("failed")
    time.sleep(min(self._silent_seconds, 10.0))

  def _tell(self, message: Mapping[str, Any]) -> None:
    for link in self._links.values():
      link.send(message)

  def _await(
    self, name: str, numbers: set[int], limit: float | None
  ) -> set[int]:
    """Waits for messages of that name; returns who did not send one."""
    deadline = time.monotonic() + (limit or float("inf"))

    def missing():
      return numbers - self._came.get(name, {}).keys()

    with self._messages:
      while missing() and time.monotonic() < deadline:
        self._messages.wait(0.5)  # Awake for signals.
      return missing()

  # --- The watchdog's thread. ---

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
        # What came along with the answer to the roll call.
        self._go_through(selector, link, link.take())
      ticked = time.monotonic()
      due = 0.0
      while not self._closing:
        for key, _ in selector.select(self._beat / 2):
          self._go_through(selector, key.data, key.data.receive())
        now = time.monotonic()
        # Not the time in which this process itself was stopped.
        passed = min(now - ticked, 2 * self._beat)
        ticked = now
        self._judge(passed)
        due -= passed
        if due <= 0:
          due = self._beat
          phase, step = self._state
          self._tell({"kind": "at", "phase": phase, "step": step})

  def _go_through(
    self,
    selector: selectors.BaseSelector,
    link: links.Link,
    messages: Iterable[Mapping[str, Any]] | None,
  ) -> None:
    """Handles what came over a link; None: it was closed."""
    try:
      if messages is not None:
        for message in messages:
          # Only what is signed shows that it lives, not any byte.
          link.quiet = 0.0
          self._handle(link, message)
        return
      problem = "its connection closed"
    except links.DamagedError as error:
      problem = f"its connection is damaged, {error}"
    selector.unregister(link.connection)
    if not link.ended and not self._closing:
      self._lost(f"{link} is gone: {problem} ({_where(link.state)})")

  def _handle(self, link: links.Link, message: Mapping[str, Any]) -> None:
    match message["kind"]:
      case "at":
        link.state = (message["phase"], message["step"])
      case "end":
        link.ended = True
        if link.number:
          message = _named(
            message["status"], message["text"], link.number, link.host
          )
          for other in self._links.values():
            if other is not link:
              other.send(message)
        self._stop(message["status"], message["text"])
      case "meet" | "agreed" | "passed" as kind:
        name = message["name"]
        if kind == "agreed" and name not in self._brought:
          raise links.DamagedError(f"{name!r} was not asked for")
        if kind != "meet":
          name = f"{kind} {name}"
        link.ended = name in ("end", "agreed end")
        assert link.number is not None  # It was said at the roll call.
        with self._messages:
          came = self._came.setdefault(name, {})
          came[link.number] = message.get("items", {})
          self._messages.notify_all()
      case kind:  # Of the roll call, which is over.
        raise links.DamagedError(f"{kind!r} came in the middle of the run")

  def _judge(self, passed: float) -> None:
    for link in self._links.values():
      link.quiet += passed
      if link.quiet > self._silent_seconds and not link.ended:
        self._lost(
          f"{link} was silent for {link.quiet:.0f} s ({_where(link.state)})"
        )
    if self.process:
      return
    states = {number: link.state for number, link in self._links.items()}
    states[0] = self._state
    furthest = max(step for _, step in states.values())
    for number, (phase, step) in states.items():
      # Of a silent process the last state is old: it is lost by its silence.
      if number and self._links[number].quiet >= 3 * self._beat:
        continue
      waited_for = phase == STEP and step < furthest
      self._behind[number] = (
        self._behind.get(number, 0.0) + passed if waited_for else 0.0
      )
      if self._behind[number] > self._silent_seconds:
        name = self._links[number].host if number else self._name
        self._lost(
          f"process {number} ({name}) is stuck: it has not gone beyond step"
          f" {step} for {self._behind[number]:.0f} s, while others wait for"
          f" it at step {furthest}"
        )

  def _lost(self, text: str) -> None:
    text = (
      f"{text}. Nothing new was saved; start again, and the run goes on from"
      " its last checkpoint."
    )
    if not self.process:
      self._tell(links.end(links.EXIT_LOST, text))
    self._stop(links.EXIT_LOST, text)

  def _stop(self, status: int, text: str) -> None:
    """Ends this process because of another one."""
    if self._ending.acquire(blocking=False):
      os.write(2, f"\nprocess {self.process}: {text}\n".encode())
      _exit(status)


def _shortened(text: str) -> str:
  if len(text) <= MAX_SHOWN_CHARACTERS:
    return text
  return f"{text[:MAX_SHOWN_CHARACTERS]}... ({len(text)} characters)"


def _where(state: tuple[str, int]) -> str:
  phase, step = state
  return f"last known at step {step}" if phase == STEP else f"last seen {phase}"


def _named(status: int, text: str, number: int, host: str) -> Mapping[str, Any]:
  return links.end(status, f"process {number} ({host}) ended: {text}")


def _exit(status: int) -> NoReturn:
  """Ends the process now, whatever its threads wait for."""
  flushing = threading.Thread(target=sys.stdout.flush, daemon=True)
  flushing.start()
  flushing.join(1.0)
  os._exit(status)
