"""How the other processes call process 0 at the roll call."""

import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mlir_jax.hosts import addresses, links, run_secret


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
  """Calls process 0, and waits until all processes have come.

  Args:
    coordinator: "HOST:PORT" of process 0.
    processes: The number of processes.
    process: The number of this process.
    name: The name of this machine.
    seconds: How long it waits for process 0.
    secret: From `run_secret.read`.
    insecure: Whether no secret is needed on a network.

  Returns:
    The link to process 0.

  Raises:
    LostError: if process 0 does not answer in time, or something else answers.
    ValueError: if a secret is missing, or process 0 refuses this process.
  """
  host, port = addresses.split(coordinator)
  deadline = time.monotonic() + seconds
  while True:
    try:
      found = addresses.resolve(host, port)
      flag = f"--coordinator={coordinator}"
      key = run_secret.key(secret, insecure, flag, found)
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
  # Process 0 answers when all have come, or when it has waited long enough. It
  # may have begun to wait later than this process.
  answer = _first_message(
    link, time.monotonic() + seconds + 10, processes, coordinator
  )
  if answer["kind"] == "end":
    lost = answer["status"] == links.EXIT_LOST
    raise (links.LostError if lost else ValueError)(answer["text"])
  link.admit(0, answer["name"])
  return link


def _connect(found: Sequence[addresses.Address]) -> socket.socket:
  """Connects to the first address that answers; OSError if none does."""
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
  """Reads `size` bytes, or fewer if they do not begin as `start` does."""
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
  """Proves to process 0 that this process knows the secret, and vice versa.

  Raises:
    OSError: if the other side closes the connection, or takes too long.
    LostError: if the other side is not process 0.
  """
  deadline = time.monotonic() + links.HANDSHAKE_SECONDS
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
        f" the same {run_secret.VARIABLE} or {run_secret.FILE_VARIABLE}."
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
  """Returns the first message of process 0: a welcome or its end."""
  link.max_bytes = links.MAX_BYTES  # It has proved who it is.
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
