"""The roll call: process 0 waits at an address until all others have called.

It listens at the coordinator's address and nowhere else. Whoever connects has
a few seconds to prove that it knows the run's secret and to say its number;
else it is turned away, and neither ends the run nor keeps others waiting.
"""

import collections
import contextlib
import errno
import ipaddress
import selectors
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlir_jax.hosts import links

HANDSHAKE_SECONDS = 10.0  # In which a caller must say who it is.
MOST_WAITING = 128  # Callers that have not yet said who they are.
QUEUE = 128  # Connections that the system holds until they are accepted.
MOST_TOLD = 5  # Callers that are printed when they are turned away.

BIND_FLAG = "--coordinator_bind_address"


def split(coordinator: str) -> tuple[str, int]:
  """The host and the port of "HOST:PORT"; an IPv6 host without its brackets.

  Raises:
    ValueError: naming the flag.
  """
  host, _, port = coordinator.rpartition(":")
  if host.startswith("[") and host.endswith("]"):
    host = host[1:-1]
  is_number = port.isascii() and port.isdigit() and len(port) < 6
  if not _is_host(host) or not is_number or not 0 < int(port) < 2**16:
    raise ValueError(
      f"--coordinator={links.printable(coordinator)}: give HOST:PORT."
    )
  return host, int(port)


def _is_host(text: str) -> bool:
  # The system reads a name up to its NUL, and "" as all addresses.
  is_short = 0 < len(text) <= links.LONGEST_NAME
  return is_short and text.isprintable() and not set(text) & set(" []/")


def bind_address(coordinator: str, bind: str | None) -> str:
  """Where process 0 listens, as JAX takes it: "HOST:PORT".

  Raises:
    ValueError: naming the flag that is wrong.
  """
  _, port = split(coordinator)
  if bind is None:
    return coordinator
  if not _is_host(bind):
    raise ValueError(
      f"{BIND_FLAG}={links.printable(bind)}: give an address of this machine."
    )
  return f"[{bind}]:{port}" if ":" in bind else f"{bind}:{port}"


def _resolve(host: str, port: int) -> list[tuple[int, tuple]]:
  """The (family, socket address) pairs of a name; OSError if it has none."""
  try:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
  except UnicodeError as error:
    raise OSError(f"{host!r} is not the name of a machine") from error
  return list(dict.fromkeys((family, at) for family, _, _, _, at in found))


def _is_loopback(address: tuple) -> bool:
  ip = ipaddress.ip_address(address[0].partition("%")[0])
  return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def _key(
  secret: bytes | None,
  insecure: bool,
  flag: str,
  found: Iterable[tuple[int, tuple]],
) -> bytes:
  """The key of the roll call; without a secret, one that anybody knows.

  Args:
    secret: If there is one.
    insecure: Whether none is needed.
    flag: What gave the addresses, as "--flag=value".
    found: The addresses.

  Raises:
    ValueError: if a secret is needed and there is none.
  """
  if secret is not None:
    return secret
  if insecure or all(_is_loopback(address) for _, address in found):
    return b""
  raise ValueError(
    f"{flag} is an address that other machines can reach, and there is no"
    f" secret. Give all processes the same one in {links.SECRET}, or in a file"
    f" of mode 600 that {links.SECRET_FILE} names (e.g. of `openssl rand -hex"
    " 32`); the launchers do so. On a network that nobody else can reach"
    " --insecure_check_in goes without."
  )


def warn_if_insecure(secret: bytes | None, insecure: bool) -> None:
  """Warns where --insecure_check_in makes a difference."""
  if insecure and secret is None:
    print(
      "Warning: --insecure_check_in: whoever reaches the coordinator's address"
      " can take part in this run, or end it.",
      file=sys.stderr,
    )


# --- Process 0. ---


class _TurnedAwayError(Exception):
  """Why a caller is turned away."""


class _Caller:
  """A connection whose other end has not yet said who it is."""

  def __init__(self, connection: socket.socket, address: tuple, key: bytes):
    self.connection = connection
    self.address = address
    self.deadline = time.monotonic() + HANDSHAKE_SECONDS
    self._key = key
    self._number = links.random_number()
    self._buffer = b""
    self.link: links.Link | None = None
    connection.setblocking(False)
    self._send(links.BANNER + self._number)

  def _send(self, data: bytes) -> None:
    # So few bytes always find room, unless the other end is gone.
    try:
      sent = self.connection.send(data)
    except OSError as error:
      raise _TurnedAwayError(f"nothing can be sent to it: {error}") from error
    if sent < len(data):
      raise _TurnedAwayError("nothing can be sent to it")

  def read(self) -> Mapping[str, Any] | None:
    """Reads what has come: the hello, or None while it is not whole."""
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
  """The listening sockets, and the callers that have not said who they are."""

  def __init__(self, listeners: Sequence[socket.socket], key: bytes):
    self._key = key
    self._selector = selectors.DefaultSelector()
    self._waiting: collections.OrderedDict[_Caller, None] = (
      collections.OrderedDict()
    )
    self._turned_away = 0
    self.last = ""  # Who was turned away, and why.
    for listener in listeners:
      listener.setblocking(False)
      self._selector.register(listener, selectors.EVENT_READ, None)

  def wait(self, deadline: float) -> list[tuple[links.Link, Mapping[str, Any]]]:
    """Waits until something comes; returns who has said who it is."""
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
        caller, f"it did not say who it is within {HANDSHAKE_SECONDS:g} s"
      )
    return came

  def close(self) -> None:
    """Closes what is waiting."""
    for caller in list(self._waiting):
      self._forget(caller)
      caller.connection.close()
    self._selector.close()

  def _accept(self, listener: socket.socket) -> None:
    if len(self._waiting) >= MOST_WAITING:
      # A process of the run needs milliseconds, and calls again.
      self._turn_away(next(iter(self._waiting)), "too many are waiting")
    try:
      connection, address = listener.accept()
    except BlockingIOError:
      return
    except OSError:  # It is gone, or this process has too many open files.
      if self._waiting:
        self._turn_away(next(iter(self._waiting)), "too many are waiting")
      time.sleep(0.01)
      return
    try:
      caller = _Caller(connection, address, self._key)
    except _TurnedAwayError as error:
      connection.close()
      self._tell(address, str(error))
      return
    self._waiting[caller] = None
    self._selector.register(connection, selectors.EVENT_READ, caller)

  def _forget(self, caller: _Caller) -> None:
    del self._waiting[caller]
    self._selector.unregister(caller.connection)

  def _turn_away(self, caller: _Caller, reason: str) -> None:
    self._forget(caller)
    caller.connection.close()
    self._tell(caller.address, reason)

  def _tell(self, address: tuple, reason: str) -> None:
    self._turned_away += 1
    self.last = f"{links.printable(str(address[0]))}: {reason}"
    if self._turned_away <= MOST_TOLD:
      print(f"Turned away a caller from {self.last}.", file=sys.stderr)

  def summary(self) -> str:
    """How many were turned away, for a message; "" if none was."""
    if not self._turned_away:
      return ""
    return f" Callers turned away: {self._turned_away}, last {self.last}."


def _open(
  flag: str, found: Sequence[tuple[int, tuple]], backlog: int
) -> list[socket.socket]:
  """Listens at all of the addresses that are this machine's.

  Args:
    flag: What gave the addresses, as "--flag=value".
    found: The addresses.
    backlog: Connections that the system holds until they are accepted.

  Raises:
    ValueError: if none is, or the port is in use.
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
      f"{flag}: {where} is not an address of this machine,"
      f" on which process 0 runs. Give {BIND_FLAG}=ADDRESS if it has another"
      f" one here ({absent})."
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
  """Process 0 waits for the others.

  Args:
    coordinator: "HOST:PORT"; it listens there alone.
    processes: How many there are.
    name: Of this machine.
    seconds: How long it waits for all.
    secret: From `links.secret`.
    insecure: Whether it goes without a secret where others could call.
    bind: The address to listen at, if it is not the coordinator's.

  Returns:
    The links to all others.

  Raises:
    LostError: if a process does not come in time; it names it.
    ValueError: if the address cannot be used, a secret is missing, or the
      number or the count of another process does not fit.
  """
  host, port = split(bind_address(coordinator, bind))
  flag = f"{BIND_FLAG}={bind}" if bind else f"--coordinator={coordinator}"
  deadline = time.monotonic() + seconds
  waits = False
  while True:
    try:
      found = _resolve(host, port)
      break
    except OSError as error:
      if bind or time.monotonic() > deadline:
        raise ValueError(f"{flag}: {error}") from error
      if not waits:  # The name of a new pod is known a little late.
        print(f"Waiting for an address of {host}: {error}", file=sys.stderr)
      waits = True
      time.sleep(0.5)
  key = _key(secret, insecure, flag, found)
  hidden = "" if bind else _hidden(host, found)
  if hidden:
    print(hidden, file=sys.stderr)
  came: dict[int, links.Link] = {}
  with contextlib.ExitStack() as stack:
    listeners = _open(flag, found, max(processes, QUEUE))
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
  """Takes a process into `came`; ValueError if it does not fit, told to all."""
  number = hello["process"]
  link.admit(number, hello["name"])
  if number in came and came[number].closed():
    came.pop(number).connection.close()  # It died, and was started again.
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


def _hidden(host: str, found: Sequence[tuple[int, tuple]]) -> str:
  """What to say if only this machine reaches a name that is not loopback's."""
  try:
    ipaddress.ip_address(host)
    return ""
  except ValueError:
    if host == "localhost" or not all(_is_loopback(at) for _, at in found):
      return ""
  return (
    f"Process 0 listens at {found[0][1][0]}, which this machine has for {host}:"
    f" other machines cannot reach it. If there are any, give {BIND_FLAG}."
  )


def _missing(
  coordinator: str, processes: int, came: Iterable[int], seconds: float
) -> str:
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


# --- The others. ---


def call(
  coordinator: str,
  processes: int,
  process: int,
  name: str,
  *,
  seconds: float,
  secret: bytes | None = None,
  insecure: bool = False,
) -> links.Link:
  """The others call process 0, until it is there and all have come.

  Args:
    coordinator: "HOST:PORT" of process 0.
    processes: How many there are.
    process: The number of this one.
    name: Of this machine.
    seconds: How long process 0 is waited for.
    secret: From `links.secret`.
    insecure: Whether it goes without a secret to another machine.

  Returns:
    The link to process 0.

  Raises:
    LostError: if process 0 does not answer in time, or something else does.
    ValueError: if a secret is missing, or process 0 refuses this one.
  """
  host, port = split(coordinator)
  deadline = time.monotonic() + seconds
  while True:
    try:
      found = _resolve(host, port)
      key = _key(secret, insecure, f"--coordinator={coordinator}", found)
      link = _introduce(_connect(found), coordinator, key)
      break
    except OSError as error:
      if time.monotonic() > deadline:
        raise links.LostError(
          f"process 0 of {processes} (the coordinator, {coordinator}) did not"
          f" answer within {seconds:g} s (hosts.check_in_seconds): {error}."
        ) from error
      time.sleep(0.2)
  link.send(
    {"kind": "hello", "process": process, "processes": processes, "name": name}
  )
  # Process 0 answers when all have come, or it has waited long enough; it may
  # have begun to wait after this one.
  answer = _first_message(
    link, time.monotonic() + seconds + 10, processes, coordinator
  )
  if answer["kind"] == "end":
    lost = answer["status"] == links.EXIT_LOST
    raise (links.LostError if lost else ValueError)(answer["text"])
  link.admit(0, answer["name"])
  return link


def _connect(found: Sequence[tuple[int, tuple]]) -> socket.socket:
  """A connection to the first address that answers; OSError if none does."""
  problem: OSError = ConnectionError("there is no address")
  for family, address in found:
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.settimeout(5.0)
    try:
      connection.connect(address)
      return connection
    except OSError as error:
      connection.close()
      problem = error
  raise problem


def _receive(
  connection: socket.socket, size: int, deadline: float, start: bytes = b""
) -> bytes:
  """Reads so many bytes, or fewer if they do not begin as `start` does."""
  data = b""
  while len(data) < size and start.startswith(data[: len(start)]):
    connection.settimeout(max(deadline - time.monotonic(), 1e-3))
    received = connection.recv(size - len(data))
    if not received:
      raise ConnectionError("it closed the connection")
    data += received
  return data


def _introduce(
  connection: socket.socket, coordinator: str, key: bytes
) -> links.Link:
  """Proves to process 0 that this process knows the secret, and asks the same.

  Raises:
    OSError: if the other end goes, or takes too long.
    LostError: if it is not process 0.
  """
  deadline = time.monotonic() + HANDSHAKE_SECONDS
  try:
    banner = _receive(
      connection, len(links.BANNER) + links.SIZE, deadline, links.BANNER
    )
    if not banner.startswith(links.BANNER):
      raise links.LostError(
        f"what answers at {coordinator} (--coordinator) is not process 0, or"
        f" its roll call is over: {banner[:80]!r}."
      )
    theirs, ours = banner[len(links.BANNER) :], links.random_number()
    connection.sendall(ours + links.proof(key, b"caller", theirs, ours))
    answer = _receive(connection, links.SIZE, deadline)
    if links.is_same(answer, links.ANOTHER_SECRET):
      raise links.LostError(
        f"process 0 at {coordinator} has another secret: give all processes"
        f" the same {links.SECRET} or {links.SECRET_FILE}."
      )
    expected = links.proof(key, b"process 0", theirs, ours)
    if not links.is_same(answer, expected):
      raise links.LostError(
        f"what answers at {coordinator} (--coordinator) does not know the"
        " secret of this run."
      )
  except BaseException:
    connection.close()
    raise
  return links.Link(connection, key, theirs, ours, is_caller=True)


def _first_message(
  link: links.Link, deadline: float, processes: int, coordinator: str
) -> Mapping[str, Any]:
  """What process 0 says first: a welcome or its end."""
  link.longest = links.LONGEST  # It has shown who it is.
  reason = "it closed the connection"
  try:
    while (left := deadline - time.monotonic()) > 0:
      link.connection.settimeout(left)
      messages = link.receive()
      if messages is None:
        break
      answer = next(iter(messages), None)
      if answer and answer["kind"] in ("welcome", "end"):
        return answer
      if answer:
        reason = f"it said {answer['kind']!r} first"
        break
    else:
      reason = "it does not answer"
  except links.DamagedError as error:
    reason = str(error)
  link.connection.close()
  raise links.LostError(
    f"process 0 of {processes} (the coordinator, {coordinator}) is gone:"
    f" {reason}."
  )
