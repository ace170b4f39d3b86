"""This process as a member of a run: its meetings with the other processes."""

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from mlir_jax.hosts import calling, links, roll_call, watchdog

# Limits of the message that says how processes differ.
MAX_SHOWN_LINES = 50
MAX_SHOWN_CHARACTERS = 300  # Of a name or a value.


class Member:
  """This process as one of several in a run.

  Attributes:
    process: The number of this process.
    processes: The number of processes.
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
    """Holds the roll call; returns when all processes are connected.

    Args:
      coordinator: "HOST:PORT" of process 0.
      processes: The number of processes.
      process: The number of this process, from 0.
      check_in_seconds: How long process 0 waits for the others at the roll call
        and at a check-in.
      silent_seconds: See `hosts.watchdog`.
      secret: The run's secret, from `run_secret.read`.
      insecure: Whether no secret is needed on a network.
      bind: The address at which process 0 listens; None for the coordinator's.

    Raises:
      LostError: if a process does not come in time.
      ValueError: if the number of a process, or its number of processes, does
        not fit, or a secret is needed.
    """
    self.process = process
    self.processes = processes
    self._host = socket.gethostname()
    self._check_in_seconds = check_in_seconds
    self._silent_seconds = silent_seconds
    self._changed = threading.Condition()
    # What came to a meeting: its name to the process to its items.
    self._came: dict[str, dict[int, Mapping[str, Any]]] = {}
    self._brought: set[str] = set()  # Meetings that this process came to.
    settings = {
      "seconds": check_in_seconds,
      "secret": secret,
      "insecure": insecure,
    }
    self._links: dict[int, links.Link] = {}
    if process:
      self._links[0] = calling.call(
        coordinator, processes, process, self._host, **settings
      )
    else:
      for link in roll_call.listen(
        coordinator, processes, self._host, bind=bind, **settings
      ):
        assert link.number is not None  # It was in the hello.
        self._links[link.number] = link
    self._watchdog = watchdog.Watchdog(
      process, self._host, self._links, silent_seconds, self._receive
    )
    self._watchdog.start()

  def report(self, phase: str, step: int = -1) -> None:
    """Sets what the other processes hear; `step` only between steps."""
    self._watchdog.report(phase, step)

  def check_in(self, name: str, items: Mapping[str, Any]) -> None:
    """Holds a meeting for which process 0 waits `check_in_seconds`."""
    self.meet(name, items, self._check_in_seconds)

  def meet(
    self, name: str, items: Mapping[str, Any], max_seconds: float
  ) -> None:
    """Waits for all processes and compares their items.

    Args:
      name: The name of the meeting, which is held once.
      items: Names to values that JSON can hold; all processes must have the
        same ones.
      max_seconds: How long process 0 waits for the others.

    Raises:
      LostError: if a process does not come in time; it names it.
      ValueError: if items differ; it names them, with both values.
    """
    # As the others receive them. JSON has no number for NaN, so it is text.
    items = json.loads(json.dumps(items), parse_constant=str)
    if self.process:
      self._brought.add(name)
      self._links[0].send({"kind": "meet", "name": name, "items": items})
      self._await(f"agreed {name}", {0}, None)
      return
    missing = self._await(name, set(self._links), max_seconds)
    if missing:
      where = "; ".join(
        f"{self._links[n]}, {watchdog.describe_state(self._links[n].state)}"
        for n in sorted(missing)
      )
      raise links.LostError(
        f"not all of {self.processes} processes came to the check-in"
        f" ({name}) within {max_seconds:g} s (hosts.check_in_seconds) of"
        f" process 0. Missing: {where}."
      )
    self._compare(items, self._came.get(name, {}))
    self._watchdog.send_all({"kind": "agreed", "name": name})

  def _compare(
    self, items: Mapping[str, Any], others: Mapping[int, Mapping[str, Any]]
  ) -> None:
    """Raises ValueError if items of other processes differ from process 0's."""
    differing: dict[tuple[str, str], list[str]] = {}
    for number, theirs in sorted(others.items()):
      for item in sorted(items.keys() | theirs.keys()):
        if items.get(item) != theirs.get(item):
          value = repr(theirs.get(item))
          differing.setdefault((item, value), []).append(
            str(self._links[number])
          )
    if not differing:
      return
    lines = [
      f"  {_shortened(links.printable(item))}:"
      f" {_shortened(repr(items.get(item)))} in process 0 ({self._host}),"
      f" {_shortened(value)} in {', '.join(processes)}"
      for (item, value), processes in sorted(differing.items())
    ]
    if len(lines) > MAX_SHOWN_LINES:
      lines[MAX_SHOWN_LINES:] = [f"  and {len(lines) - MAX_SHOWN_LINES} more."]
    raise ValueError(
      "The processes of this run differ; start all of them with the same"
      " code, config and data:\n" + "\n".join(lines)
    )

  @contextlib.contextmanager
  def first(self, name: str) -> Iterator[None]:
    """Within this context process 0 is alone; the others enter after it."""
    if self.process:
      print(f"Waiting for {self._links[0]}: {name}.", file=sys.stderr)
      self._await(f"passed {name}", {0}, None)
    yield
    if not self.process:
      self._watchdog.send_all({"kind": "passed", "name": name})

  def fail(self, status: int, text: str) -> NoReturn:
    """Ends this process, whose error was printed, and the others with it."""
    self._watchdog.fail(status, text)

  def leave(self) -> None:
    """Waits until all processes have come to the end, then disconnects."""
    self.report("waiting for the others to end")
    self.meet("end", {}, float("inf"))
    self._watchdog.close()
    for link in self._links.values():
      link.connection.close()

  def await_verdict(self) -> None:
    """Gives the watchdog time to find out whether another process died."""
    self.report("failed")
    time.sleep(min(self._silent_seconds, 10.0))

  def _receive(self, link: links.Link, message: Mapping[str, Any]) -> None:
    """Takes a message of a meeting; the watchdog's thread calls it."""
    kind, name = message["kind"], message["name"]
    if kind == "agreed" and name not in self._brought:
      raise links.DamagedError(f"{name!r} was not asked for")
    if kind != "meet":
      name = f"{kind} {name}"
    link.ended = name in ("end", "agreed end")
    assert link.number is not None  # It is known since the roll call.
    with self._changed:
      came = self._came.setdefault(name, {})
      came[link.number] = message.get("items", {})
      self._changed.notify_all()

  def _await(
    self, name: str, numbers: set[int], max_seconds: float | None
  ) -> set[int]:
    """Waits for messages of this name; returns who did not send one."""
    deadline = time.monotonic() + (max_seconds or float("inf"))

    def missing():
      return numbers - self._came.get(name, {}).keys()

    with self._changed:
      while missing() and time.monotonic() < deadline:
        self._changed.wait(0.5)  # Signals are handled in between.
      return missing()


def _shortened(text: str) -> str:
  if len(text) <= MAX_SHOWN_CHARACTERS:
    return text
  return f"{text[:MAX_SHOWN_CHARACTERS]}... ({len(text)} characters)"
