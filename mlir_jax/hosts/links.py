"""Messages between the processes of a run: signed, in order, of known form.

Only a process that knows the run's secret can speak. Each side proves that it
knows the secret with a keyed hash (HMAC-SHA256) over random numbers of both
sides; the secret itself is never sent. Process 0 speaks first (sizes in bytes):

  process 0: `BANNER`, its random number (32)
  caller:    its random number (32), HMAC(secret, "caller", both numbers) (32)
  process 0: HMAC(secret, "process 0", both numbers) (32), or 32 zeros if the
             caller has a different secret

Then each side sends frames: the length of the JSON (4), the JSON, and its
signature (32), the HMAC over the frame's number (from 0), the length and the
JSON. The key of each direction is an HMAC of the secret over both random
numbers, so a recorded message has no value on another connection. The messages
are signed, not encrypted: anybody who listens to the network can read them.
"""

import contextlib
import hmac
import json
import math
import secrets
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

# Exit statuses.
EXIT_LOST = 69  # A process is lost (EX_UNAVAILABLE of sysexits.h).
EXIT_REFUSED = 2  # A setting is wrong.

BANNER = b"mlir_jax roll call 1\n"
HANDSHAKE_SECONDS = 10.0  # Each side must prove its secret within this time.
SIZE = 32  # Bytes of a random number, and of a signature.
ANOTHER_SECRET = bytes(SIZE)

MAX_PROCESSES = 2**20
MAX_NAME = 255  # Characters.
MAX_TEXT = 2**16  # Characters.
MAX_HELLO_BYTES = 2**12  # Of a first message.
MAX_BYTES = 2**24  # Of any other message: a check-in may compare many files.
MAX_DEPTH = 8  # Of lists in lists, in an item.


class LostError(RuntimeError):
  """Another process is missing."""


class DamagedError(Exception):
  """A connection carries something that no process of this run sends."""


def printable(text: str, breaks: bool = False) -> str:
  r"""Returns the text with its control characters escaped, as in "\x1b".

  Args:
    text: A text that another process sent.
    breaks: Whether line breaks stay.
  """
  return "".join(
    c
    if c.isprintable() or (breaks and c == "\n")
    else c.encode("unicode_escape").decode("ascii")
    for c in text
  )


def _sign(key: bytes, *parts: bytes) -> bytes:
  return hmac.digest(key, b"".join(parts), "sha256")


def random_number() -> bytes:
  """Makes a random number that is used once."""
  return secrets.token_bytes(SIZE)


def proof(key: bytes, side: bytes, ours: bytes, callers: bytes) -> bytes:
  """Returns the keyed hash that proves that a side knows the secret.

  Args:
    key: The secret.
    side: b"caller" or b"process 0".
    ours: The random number of process 0.
    callers: The random number of the caller.
  """
  return _sign(key, BANNER, b"proof of ", side, ours, callers)


def is_same(one: bytes, other: bytes) -> bool:
  """Compares signatures; the time it takes reveals nothing of them."""
  return hmac.compare_digest(one, other)


# --- The forms of messages. ---


def _is_whole(low: int, high: int) -> Callable[[Any], bool]:
  return lambda value: type(value) is int and low <= value <= high


def _is_text(max_length: int) -> Callable[[Any], bool]:
  return lambda value: isinstance(value, str) and len(value) <= max_length


def _is_plain(value: Any, depth: int = MAX_DEPTH) -> bool:
  if isinstance(value, float):
    return math.isfinite(value)
  if isinstance(value, dict):
    value = list(value.values())
  if isinstance(value, list):
    return depth > 0 and all(_is_plain(part, depth - 1) for part in value)
  return value is None or isinstance(value, str | int)


_NAME = {"name": _is_text(MAX_NAME)}
_FIELDS = {
  # At the roll call: a caller; the answer of process 0 when all have come.
  "hello": {
    "process": _is_whole(1, MAX_PROCESSES),
    "processes": _is_whole(2, MAX_PROCESSES),
    **_NAME,
  },
  "welcome": _NAME,
  # Every beat: where the process is.
  "at": {"phase": _is_text(MAX_NAME), "step": _is_whole(-1, 2**63)},
  # How a process ended without the others. The status is never 0: a process
  # that ends well waits for the others.
  "end": {"status": _is_whole(1, 255), "text": _is_text(MAX_TEXT)},
  # A check-in, and the answers of process 0.
  "meet": _NAME
  | {"items": lambda value: isinstance(value, dict) and _is_plain(value)},
  "agreed": _NAME,
  "passed": _NAME,
}
FROM_CALLERS = frozenset({"hello", "at", "end", "meet"})
FROM_PROCESS_0 = frozenset({"welcome", "at", "end", "agreed", "passed"})


def _problem(message: Any, kinds: Iterable[str]) -> str:
  """Says what is wrong with a message; "" if nothing is."""
  if not isinstance(message, dict):
    return "it is not an object"
  kind = message.get("kind")
  if not isinstance(kind, str) or kind not in kinds:
    return f"its kind is {str(kind)[:40]!r}"
  fields = _FIELDS[kind]
  if message.keys() != fields.keys() | {"kind"}:
    return f"{kind}: its fields are not {', '.join(fields)}"
  for field, is_right in fields.items():
    if not is_right(message[field]):
      return f"{kind}.{field} is out of range or of another type"
  return ""


def _no_constant(name: str) -> None:
  raise ValueError(f"{name} is not JSON")


def _object(fields: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(fields)
  if len(found) < len(fields):
    raise ValueError("a field is there twice")
  return found


def _parse(payload: bytes, kinds: Iterable[str]) -> Mapping[str, Any]:
  """Reads a message of one of the kinds; its texts are safe to print."""
  try:
    message = json.loads(
      payload.decode("utf-8"),
      parse_constant=_no_constant,
      object_pairs_hook=_object,
    )
    problem = _problem(message, kinds)
  except (ValueError, RecursionError) as error:
    problem = f"it is not JSON: {str(error)[:80]}"
  if problem:
    raise DamagedError(f"a message is wrong: {printable(problem)}")
  return {
    field: printable(value, breaks=field == "text")
    if isinstance(value, str)
    else value
    for field, value in message.items()
  }


def end(status: int, text: str) -> Mapping[str, Any]:
  """Makes the message that a process ended; its status is never 0."""
  return {
    "kind": "end",
    "status": status & 0xFF or 1,
    "text": text[: MAX_TEXT // 2],
  }


class Link:
  """The connection to another process, with what is known of that process.

  Attributes:
    number: The number of the other process; None until it has sent it.
    host: The name of its machine.
    connection: The socket.
    max_bytes: The largest message that it may send, in bytes.
    quiet: Seconds since its last message.
    state: Its phase, and the step that it has begun.
    ended: Whether it said that it has come to the end.
  """

  def __init__(
    self,
    connection: socket.socket,
    key: bytes,
    ours: bytes,
    callers: bytes,
    is_caller: bool,
  ):
    """Makes a link, after both sides have proved that they know the secret.

    Args:
      connection: The socket.
      key: The secret.
      ours: The random number of process 0.
      callers: The random number of the caller.
      is_caller: Whether this process is the caller.
    """
    self.number: int | None = None
    self.host = ""
    self.connection = connection
    self.max_bytes = MAX_HELLO_BYTES
    self.quiet = 0.0
    self.state: tuple[str, int] = ("starting", -1)
    self.ended = False
    keys = [
      _sign(key, BANNER, direction, ours, callers)
      for direction in (b"from the caller", b"from process 0")
    ]
    self._send_key, self._receive_key = keys if is_caller else keys[::-1]
    self._kinds = FROM_PROCESS_0 if is_caller else FROM_CALLERS
    self._sent = self._received = 0
    self._buffer = bytearray()
    self._broken = False
    self._lock = threading.Lock()

  def admit(self, number: int, host: str) -> None:
    """Records who the other process is; from now on it may send more."""
    self.number, self.host = number, host
    self.max_bytes = MAX_BYTES
    self.connection.settimeout(10.0)

  def send(self, message: Mapping[str, Any]) -> None:
    """Sends a message; if this fails, the watchdog finds it out.

    Raises:
      ValueError: if the message is longer than the other side accepts.
    """
    payload = json.dumps(message, allow_nan=False).encode("ascii")
    if len(payload) > MAX_BYTES:
      raise ValueError(
        f"What the processes compare ({message.get('name')}) is"
        f" {len(payload)} bytes long; at most {MAX_BYTES}."
      )
    with self._lock:
      frame = len(payload).to_bytes(4, "big") + payload
      signature = _sign(self._send_key, self._sent.to_bytes(8, "big"), frame)
      self._sent += 1
      if self._broken:
        return
      # If only a part was sent, the other side would read the next frame as
      # the rest of this one. So nothing more is sent.
      self._broken = True
      with contextlib.suppress(OSError):
        self.connection.sendall(frame + signature)
        self._broken = False

  def receive(self) -> Iterable[Mapping[str, Any]] | None:
    """Returns the messages that have come; None if the connection is closed.

    Raises:
      DamagedError: as `take`, while you iterate over the messages.
    """
    try:
      data = self.connection.recv(2**16)
    except (TimeoutError, BlockingIOError):
      return ()
    except OSError:
      data = b""
    if not data:
      return None
    self._buffer += data
    return self.take()

  def take(self) -> Iterator[Mapping[str, Any]]:
    """Yields the whole messages that were received and not yet taken.

    Raises:
      DamagedError: if a message is too long, is not signed by the other
        process, or has an unknown form.
    """
    while len(self._buffer) >= 4:
      length = int.from_bytes(self._buffer[:4], "big")
      if length > self.max_bytes:
        raise DamagedError(
          f"a message has {length} bytes; at most {self.max_bytes}"
        )
      if len(self._buffer) < 4 + length + SIZE:
        return
      frame = bytes(self._buffer[: 4 + length])
      signature = bytes(self._buffer[4 + length : 4 + length + SIZE])
      del self._buffer[: 4 + length + SIZE]
      number = self._received.to_bytes(8, "big")
      if not is_same(signature, _sign(self._receive_key, number, frame)):
        raise DamagedError("the signature of a message is wrong")
      self._received += 1
      yield _parse(frame[4:], self._kinds)

  def closed(self) -> bool:
    """Whether the other process closed the connection and left no message."""
    self.connection.settimeout(0.0)
    try:
      return not self.connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
      return False
    except OSError:
      return True
    finally:
      self.connection.settimeout(10.0)

  def __str__(self) -> str:
    return f"process {self.number} ({self.host})"
