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
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

from mlir_jax.hosts import links, roll_call

EXIT_LOST = links.EXIT_LOST
LostError = links.LostError


def address(
  coordinator: str | None, processes: int | None, process: int | None
) -> tuple[str, int, int, Sequence[int] | None]:
  """Where process 0 is, how many there are, and which one this is.

  Args:
    coordinator: "HOST:PORT" of process 0; None asks the cluster.
    processes: How many; None asks the cluster.
    process: The number of this one, from 0; None asks the cluster.

  Returns:
    The three, and the numbers of this machine's devices that are this
    process' own; None for all.

  Raises:
    ValueError: naming the flag.
  """
  from jax._src import clusters  # Private: there is no public way to ask.

  given = coordinator, processes, process
  devices = None
  if None in given:
    coordinator, processes, process, devices = (
      clusters.ClusterEnv.auto_detect_unset_distributed_params(
        *given, None, None, 300
      )
    )
  if coordinator is None or processes is None or process is None:
    flag = next(
      flag
      for flag, value in (
        ("coordinator", coordinator),
        ("processes", processes),
        ("process", process),
      )
      if value is None
    )
    raise ValueError(f"--distributed: the cluster does not say; give --{flag}.")
  roll_call.split(coordinator)
  if not 1 <= processes <= links.MOST_PROCESSES:
    raise ValueError(
      f"--processes={processes}: give 1 to {links.MOST_PROCESSES}."
    )
  if not 0 <= process < processes:
    raise ValueError(
      f"--process={process}: of --processes={processes} the numbers are 0 to"
      f" {processes - 1}."
    )
  return coordinator, processes, process, devices


STEP = "step"  # The phase of a process that is taking steps.
# What a message about differing processes has at most.
MOST_SHOWN = 50  # Lines.
LONGEST_SHOWN = 300  # Characters of a name or a value.


class Run:
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
      raise LostError(
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
      if len(lines) > MOST_SHOWN:
        lines[MOST_SHOWN:] = [f"  and {len(lines) - MOST_SHOWN} more."]
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
      self._tell(links.end(EXIT_LOST, text))
    self._stop(EXIT_LOST, text)

  def _stop(self, status: int, text: str) -> None:
    """Ends this process because of another one."""
    if self._ending.acquire(blocking=False):
      os.write(2, f"\nprocess {self.process}: {text}\n".encode())
      _exit(status)


def _shortened(text: str) -> str:
  if len(text) <= LONGEST_SHOWN:
    return text
  return f"{text[:LONGEST_SHOWN]}... ({len(text)} characters)"


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

_run: Run | None = None
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
  coordinator, processes, process, devices = address(
    coordinator, processes, process
  )
  secret = links.secret(os.environ)
  roll_call.warn_if_insecure(secret, insecure)
  if process:
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = _Numbered(sys.stderr, process)
  run = Run(
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
