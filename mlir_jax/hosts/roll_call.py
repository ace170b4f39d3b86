"""The roll call: process 0 waits at an address until all others have called.

It listens at the coordinator's address and nowhere else. A caller has a few
seconds to prove that it knows the run's secret and to send its number.
Otherwise process 0 turns it away: it cannot end the run or delay the others.
"""

import collections
import contextlib
import errno
import selectors
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlir_jax.hosts import addresses, links, run_secret

MAX_WAITING = 128  # Callers that have not yet said who they are.
MIN_BACKLOG = 128  # Connections that the system holds until we accept them.
MAX_PRINTED = 5  # Callers that are printed when they are turned away.


class _TurnedAwayError(Exception):
  """A caller is turned away; the message says why."""


class _Caller:
  """A connection whose other side has not yet said who it is."""

  def __init__(self, connection: socket.socket, address: tuple, key: bytes):
    self.connection = connection
    self.address = address
    self.deadline = time.monotonic() + links.HANDSHAKE_SECONDS
    self._key = key
    self._number = links.random_number()
    self._buffer = b""
    self.link: links.Link | None = None
    connection.setblocking(False)
    self._send(links.BANNER + self._number)

  def _send(self, data: bytes) -> None:
    # There is always room for so few bytes, unless the other side is gone.
    try:
      sent = self.connection.send(data)
    except OSError as error:
      raise _TurnedAwayError(f"nothing can be sent to it: {error}") from error
    if sent < len(data):
      raise _TurnedAwayError("nothing can be sent to it")

  def read(self) -> Mapping[str, Any] | None:
    """Reads what has come; returns the hello, or None while it is not whole."""
    if self.link:
      messages = self.link.receive()
      if messages is None:
        raise _TurnedAwayError("it closed the connection")
      try:
        hello = next(iter(messages), None)
      except links.DamagedError as error:
        raise _TurnedAwayError(str(error)) from error
      if hello and hello["kind"] != "hello":
        raise _TurnedAwayError("it did not say its number")
      return hello
    wanted = 2 * links.SIZE
    try:
      data = self.connection.recv(wanted - len(self._buffer))
    except BlockingIOError:
      return None
    except OSError as error:
      raise _TurnedAwayError(str(error)) from error
    if not data:
      raise _TurnedAwayError("it closed the connection")
    self._buffer += data
    if len(self._buffer) < wanted:
      return None
    number, theirs = self._buffer[: links.SIZE], self._buffer[links.SIZE :]
    expected = links.proof(self._key, b"caller", self._number, number)
    if not links.is_same(theirs, expected):
      self._send(links.ANOTHER_SECRET)
      raise _TurnedAwayError("it does not know the secret of this run")
    self._send(links.proof(self._key, b"process 0", self._number, number))
    self.link = links.Link(
      self.connection, self._key, self._number, number, is_caller=False
    )
    return None


class _Door:
  """The listening sockets, with the callers that have not said who they are."""

  def __init__(self, listeners: Sequence[socket.socket], key: bytes):
    self._key = key
    self._selector = selectors.DefaultSelector()
    self._waiting: collections.OrderedDict[_Caller, None] = (
      collections.OrderedDict()
    )
    self._turned_away = 0
    self._last = ""  # The last caller that was turned away, and why.
    for listener in listeners:
      listener.setblocking(False)
      self._selector.register(listener, selectors.EVENT_READ, None)

  def wait(self, deadline: float) -> list[tuple[links.Link, Mapping[str, Any]]]:
    """Waits until something comes; returns the callers that sent a hello."""
    first = next(iter(self._waiting), None)  # It has the least time left.
    until = min(deadline, first.deadline) if first else deadline
    ready = self._selector.select(max(until - time.monotonic(), 0.0))
    came = []
    for key, _ in ready:
      caller = key.data
      if caller is None:
        assert isinstance(key.fileobj, socket.socket)  # A listener.
        self._accept(key.fileobj)
      elif caller in self._waiting:
        try:
          hello = caller.read()
        except _TurnedAwayError as error:
          self._turn_away(caller, str(error))
          continue
        if hello:
          self._forget(caller)
          came.append((caller.link, hello))
    now = time.monotonic()
    for caller in list(self._waiting):
      if caller.deadline > now:
        break
      self._turn_away(
        caller, f"it did not say who it is within {links.HANDSHAKE_SECONDS:g} s"
      )
    return came

  def close(self) -> None:
    """Closes the connections of waiting callers."""
    for caller in list(self._waiting):
      self._forget(caller)
      caller.connection.close()
    self._selector.close()

  def _accept(self, listener: socket.socket) -> None:
    if len(self._waiting) >= MAX_WAITING:
      # A process of the run needs only milliseconds. It will call again.
      self._turn_away(next(iter(self._waiting)), "too many are waiting")
    try:
      connection, address = listener.accept()
    except BlockingIOError:
      return
    except OSError:  # The caller is gone, or we have too many open files.
      if self._waiting:
        self._turn_away(next(iter(self._waiting)), "too many are waiting")
      time.sleep(0.01)
      return
    try:
      caller = _Caller(connection, address, self._key)
    except _TurnedAwayError as error:
      connection.close()
      self._report(address, str(error))
      return
    self._waiting[caller] = None
    self._selector.register(connection, selectors.EVENT_READ, caller)

  def _forget(self, caller: _Caller) -> None:
    del self._waiting[caller]
    self._selector.unregister(caller.connection)

  def _turn_away(self, caller: _Caller, reason: str) -> None:
    self._forget(caller)
    caller.connection.close()
    self._report(caller.address, reason)

  def _report(self, address: tuple, reason: str) -> None:
    self._turned_away += 1
    self._last = f"{links.printable(str(address[0]))}: {reason}"
    if self._turned_away <= MAX_PRINTED:
      print(f"Turned away a caller from {self._last}.", file=sys.stderr)

  def summary(self) -> str:
    """Says how many callers were turned away; "" if none was."""
    if not self._turned_away:
      return ""
    return f" Callers turned away: {self._turned_away}, last {self._last}."


def _open(
  flag: str, found: Sequence[addresses.Address], backlog: int
) -> list[socket.socket]:
  """Listens at those of the addresses that this machine has.

  Args:
    flag: The flag that gave the addresses, "--flag=value".
    found: The addresses.
    backlog: Connections that the system holds until we accept them.

  Raises:
    ValueError: if this machine has none of them, or the port is in use.
  """
  listeners = []
  absent = None
  for family, address in found:
    try:
      listeners.append(
        socket.create_server(address, family=family, backlog=backlog)
      )
    except OSError as error:
      if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        absent = error
        continue
      for listener in listeners:
        listener.close()
      raise ValueError(f"{flag}: {error}") from error
  if not listeners:
    where = ", ".join(address[0] for _, address in found)
    raise ValueError(
      f"{flag}: {where} is not an address of this machine, on which process 0"
      f" runs. If it has another address here, give"
      f" {addresses.BIND_FLAG}=ADDRESS ({absent})."
    )
  return listeners


def listen(
  coordinator: str,
  processes: int,
  name: str,
  *,
  seconds: float,
  secret: bytes | None = None,
  insecure: bool = False,
  bind: str | None = None,
) -> list[links.Link]:
  """Waits, as process 0, for the others.

  Args:
    coordinator: "HOST:PORT"; process 0 listens only there.
    processes: The number of processes.
    name: The name of this machine.
    seconds: How long it waits for all of them.
    secret: From `run_secret.read`.
    insecure: Whether no secret is needed on a network.
    bind: The address to listen at; None for the coordinator's.

  Returns:
    The links to all other processes.

  Raises:
    LostError: if a process does not come in time; it names it.
    ValueError: if the address cannot be used, a secret is missing, or the
      number of another process, or its number of processes, does not fit.
  """
  host, port = addresses.split(addresses.bind_address(coordinator, bind))
  flag = (
    f"{addresses.BIND_FLAG}={bind}" if bind else f"--coordinator={coordinator}"
  )
  deadline = time.monotonic() + seconds
  waits = False
  while True:
    try:
      found = addresses.resolve(host, port)
      break
    except OSError as error:
      if bind or time.monotonic() > deadline:
        raise ValueError(f"{flag}: {error}") from error
      if not waits:  # The network knows the name of a new pod a little late.
        print(f"Waiting for an address of {host}: {error}", file=sys.stderr)
      waits = True
      time.sleep(0.5)
  key = run_secret.key(secret, insecure, flag, found)
  hidden = "" if bind else addresses.hidden_name(host, found)
  if hidden:
    print(hidden, file=sys.stderr)
  came: dict[int, links.Link] = {}
  with contextlib.ExitStack() as stack:
    listeners = _open(flag, found, max(processes, MIN_BACKLOG))
    for listener in listeners:
      stack.enter_context(listener)
    door = stack.enter_context(contextlib.closing(_Door(listeners, key)))
    while len(came) < processes - 1:
      if time.monotonic() >= deadline:
        text = _missing(coordinator, processes, came, seconds) + door.summary()
        if hidden:
          text += f" {hidden}"
        for link in came.values():
          link.send(links.end(links.EXIT_LOST, text))
        raise links.LostError(text)
      for link, hello in door.wait(deadline):
        _admit(link, hello, processes, came)
  for link in came.values():
    link.send({"kind": "welcome", "name": name})
  return list(came.values())


def _admit(
  link: links.Link,
  hello: Mapping[str, Any],
  processes: int,
  came: dict[int, links.Link],
) -> None:
  """Adds a process to `came`.

  Raises:
    ValueError: if it does not fit; all processes that have come receive it.
  """
  number = hello["process"]
  link.admit(number, hello["name"])
  if number in came and came[number].closed():
    came.pop(number).connection.close()  # It died and was started again.
  problem = None
  if hello["processes"] != processes:
    problem = (
      f"{link} was started with --processes={hello['processes']}, process 0"
      f" with {processes}."
    )
  elif number >= processes:
    problem = (
      f"{link}: of --processes={processes} the numbers are 0 to"
      f" {processes - 1}."
    )
  elif number in came:
    problem = (
      f"{link} and {came[number]} have the same number; give each its own"
      " --process."
    )
  if problem:
    for other in [link, *came.values()]:
      other.send(links.end(links.EXIT_REFUSED, problem))
    raise ValueError(problem)
  came[number] = link


def _missing(
  coordinator: str, processes: int, came: Iterable[int], seconds: float
) -> str:
  """Names the processes that did not come."""
  came = sorted({0, *came})
  missing = sorted(set(range(processes)) - set(came))
  verb = "were" if len(came) > 1 else "was"
  return (
    f"{_numbers(missing)} of {processes} did not come to the roll call at"
    f" {coordinator} within {seconds:g} s (hosts.check_in_seconds); there"
    f" {verb} {_numbers(came)}."
  )


def _numbers(numbers: Sequence[int]) -> str:
  listed = ", ".join(map(str, numbers))
  return f"process{'es' * (len(numbers) > 1)} {listed}"
