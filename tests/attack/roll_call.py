"""Strangers, liars and a man in the middle at the roll call, on loopback."""

import contextlib
import functools
import hmac
import io
import json
import multiprocessing
import os
import pathlib
import random
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator

from attack import scoreboard

from mlir_jax.hosts import calling, links, roll_call, run_secret

KEY = b"a secret of the attack's own run"
OTHER_KEY = b"another secret, of another run's"
ESCAPE = "\x1b[31mred\x07\x9b2J\r\u202e"
# A terminal would obey these. (The log itself has newlines and tabs.)
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
SECONDS = 2.5  # How long the real processes wait for each other.


# --- The real processes -------------------------------------------------------


def take_part(process, processes, port, key, log, seconds):
  """Is a real process of a run without any work; then exits."""
  from mlir_jax.hosts import member

  links.HANDSHAKE_SECONDS = seconds  # So that an attack is quick.
  file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
  os.dup2(file, 1)
  os.dup2(file, 2)
  try:
    run = member.Member(
      f"127.0.0.1:{port}",
      processes,
      process,
      check_in_seconds=seconds,
      silent_seconds=seconds,
      secret=key,
    )
    run.meet("settings", {"config": "the same"}, seconds)
    run.leave()
  except ValueError as error:
    print(f"refused: {error}", file=sys.stderr, flush=True)
    os._exit(2)
  except links.LostError as error:
    print(f"lost: {error}", file=sys.stderr, flush=True)
    os._exit(links.EXIT_LOST)
  sys.stderr.flush()
  os._exit(0)


def starter():
  """Returns a context that starts such a process within milliseconds."""
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["mlir_jax.hosts.multihost"])
  return context


def free_port() -> int:
  with socket.socket() as at:
    at.bind(("127.0.0.1", 0))
    return at.getsockname()[1]


class Meeting:
  """A run of real processes on loopback; they end with the block."""

  def __init__(
    self, folder: pathlib.Path, processes: int = 2, seconds: float = SECONDS
  ):
    self.folder = folder
    self.seconds = seconds
    self.processes = processes
    self.port = free_port()
    self.started = {}
    self.strangers = contextlib.ExitStack()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.strangers.close()
    for process in self.started.values():
      process.kill()
      process.join()

  def start(self, process: int, port: int | None = None, key: bytes = KEY):
    self.started[process] = starter().Process(
      target=take_part,
      args=(
        *(process, self.processes, port or self.port, key),
        *(str(self.log(process)), self.seconds),
      ),
    )
    self.started[process].start()

  def log(self, process: int) -> pathlib.Path:
    return self.folder / f"process-{process}.log"

  def connect(self) -> socket.socket:
    """Connects a stranger to process 0."""
    return self.strangers.enter_context(connected(self.port))

  def ends(self, seconds: float = 4 * SECONDS) -> dict[int, int | None]:
    """Waits for the ends; checks what was printed.

    Returns:
      Process to exit status.
    """
    until = time.monotonic() + seconds
    for process in self.started.values():
      process.join(max(0.0, until - time.monotonic()))
    statuses = {n: p.exitcode for n, p in self.started.items()}
    for process, status in statuses.items():
      if status is None:
        raise scoreboard.HungError(f"process {process} did not end")
      check_printed(self.log(process).read_bytes().decode("utf-8", "replace"))
    return statuses

  def check_done(self):
    """Checks that the real processes have met, and all ended with 0."""
    statuses = self.ends()
    scoreboard.expect(
      len(statuses) == self.processes and set(statuses.values()) == {0},
      f"{statuses}: {self.said()}",
    )

  def check_lost(self):
    """Checks that each real process ended with 2 or 69, and said why."""
    statuses = self.ends()
    for process, status in statuses.items():
      said = self.log(process).read_text("utf-8")
      scoreboard.expect(status in (2, 69) and said.strip(), (statuses, said))

  def said(self) -> str:
    return " | ".join(self.log(n).read_text("utf-8") for n in self.started)


def check_printed(text: str) -> None:
  """Raises if a text was printed raw, or has no known writer."""
  if "Traceback" in text:
    raise RuntimeError(text)
  found = RAW.search(text)
  scoreboard.expect(not found, f"printed raw: {text[:2000]!r}")
  scoreboard.expect(len(text) < 100_000, f"{len(text)} characters printed")


def connected(port: int) -> socket.socket:
  """Connects as soon as somebody listens there."""
  until = time.monotonic() + 10
  while True:
    try:
      return socket.create_connection(("127.0.0.1", port), timeout=10)
    except ConnectionRefusedError:
      if time.monotonic() > until:
        raise
      time.sleep(0.02)


# --- What an attacker can say -------------------------------------------------


def read(connection: socket.socket, size: int) -> bytes:
  found = b""
  while len(found) < size:
    more = connection.recv(size - len(found))
    if not more:
      raise ConnectionError("closed")
    found += more
  return found


class Caller:
  """A caller that knows the secret, and sends anything."""

  def __init__(self, connection: socket.socket, key: bytes = KEY):
    self.connection = connection
    ours = read(connection, len(links.BANNER) + links.SIZE)[-links.SIZE :]
    callers = b"\x07" * links.SIZE
    connection.sendall(callers + links.proof(key, b"caller", ours, callers))
    read(connection, links.SIZE)
    # Only the link's key is used, since the link checks what it sends.
    link = links.Link(connection, key, ours, callers, is_caller=True)
    self.key = link._send_key
    self.sent = 0

  def frame(self, body: bytes, length: int | None = None) -> bytes:
    """Returns a frame with a good signature."""
    size = struct.pack(">I", len(body) if length is None else length)
    number = struct.pack(">Q", self.sent)
    self.sent += 1
    return size + body + hmac.digest(self.key, number + size + body, "sha256")

  def say(self, body: bytes | object, length: int | None = None) -> None:
    if not isinstance(body, bytes):
      body = json.dumps(body).encode()
    with contextlib.suppress(OSError):
      self.connection.sendall(self.frame(body, length))

  def hello(self, number: int = 1, processes: int = 2) -> None:
    self.say(HELLO | {"process": number, "processes": processes})


HELLO = {"kind": "hello", "process": 1, "processes": 2, "name": "vm"}
AT = {"kind": "at", "phase": "starting", "step": -1}
MEET = {"kind": "meet", "name": "settings", "items": {"config": "the same"}}
END = {"kind": "end", "status": 2, "text": "bye"}
DEEP = b"[" * 2000
LONG_NUMBER = b"1" * 5000


def bent(message: dict, field: str, value: str) -> bytes:
  """Returns the message's JSON with a field replaced by this JSON."""
  body = json.dumps(message | {field: "@"})
  return body.replace('"@"', value).encode("utf-8", "surrogatepass")


# No field of a message may have these values, whatever its type.
WRONG_VALUES = {
  "null": "null",
  "a list": "[0]",
  "a dictionary": '{"a": 1}',
  "Infinity": "Infinity",
  "NaN": "NaN",
  "true": "true",
  "a float": "1.0",
  "1e999": "1e999",
  "5,000 digits": "1" * 5000,
  "2,000 brackets": "[" * 2000 + "]" * 2000,
}


# --- Strangers, who do not know the secret ------------------------------------


def payloads() -> dict[str, bytes]:
  """Yields what strangers send at once."""
  noise = random.Random(0).randbytes(4096)
  zeros = bytes(links.SIZE)
  return {
    "nothing": b"",
    "random bytes": noise,
    "a megabyte": noise * 256,
    "HTTP": b"GET /\x1b[2J HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a TLS hello": bytes.fromhex("16030100c8010000c40303") + noise[:192],
    "an SSH banner": b"SSH-2.0-OpenSSH_9.6\r\n",
    "Infinity": b"Infinity\n",
    "2,000 brackets": DEEP + b"\n",
    "an end without proof": b'{"end": [0, "bye"]}\n',
    "a JSON hello without proof": json.dumps(HELLO).encode() + b"\n",
    "control characters": ESCAPE.encode() * 20,
    "not UTF-8": b"\xff\xfe\xed\xa0\x80" * 50,
    "lines without end": b"\n" * 5000,
    "a proof of zeros": zeros + zeros,
    "a proof of zeros, then an end": zeros
    + zeros
    + struct.pack(">I", 20)
    + b'{"end": [0, "bye"]}\n'
    + zeros,
    "half a proof": noise[:40],
    "the banner itself": links.BANNER + noise[:32],
    "a frame of 4 GiB": struct.pack(">I", 2**32 - 1) + noise[:100],
  }


def send(payload: bytes, connection: socket.socket) -> None:
  with contextlib.suppress(OSError):
    connection.sendall(payload)


def send_and_reset(connection: socket.socket) -> None:
  """Ends the connection with RST, not FIN."""
  send(b"x" * 40, connection)
  connection.setsockopt(
    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
  )
  connection.close()


def send_and_shut(connection: socket.socket) -> None:
  """Closes its own direction, and keeps the other one open."""
  send(b"x" * 40, connection)
  connection.shutdown(socket.SHUT_WR)


def prove(key: bytes, connection: socket.socket) -> None:
  """Proves that it knows another secret."""
  Caller(connection, key).hello()


def reflect(connection: socket.socket) -> None:
  """Sends the bytes of process 0 back."""
  ours = read(connection, len(links.BANNER) + links.SIZE)
  send(ours[-links.SIZE :] * 2, connection)


def reflect_from_another(connection: socket.socket, port: int) -> None:
  """Uses the proof of process 0 from another connection."""
  other = connected(port)
  with other:
    ours = read(other, len(links.BANNER) + links.SIZE)[-links.SIZE :]
    read(connection, len(links.BANNER) + links.SIZE)
    send(ours + ours, connection)
    send(ours + ours, other)
    connection.settimeout(1)
    with contextlib.suppress(OSError):
      read(connection, links.SIZE)


# --- In this process: the roll call alone -------------------------------------


class RollCall:
  """Process 0 of two, in a thread; the other is the real process 1."""

  def __init__(self, key: bytes | None = KEY):
    self.port = free_port()
    self.key = key
    self.result = None
    self.printed = io.StringIO()
    self.strangers = contextlib.ExitStack()
    self.thread = threading.Thread(target=self._listen, daemon=True)

  def _listen(self):
    try:
      self.result = roll_call.listen(
        f"127.0.0.1:{self.port}", 2, "zero", seconds=SECONDS, secret=self.key
      )
    except BaseException as error:
      self.result = error

  def __enter__(self):
    self.strangers.enter_context(contextlib.redirect_stderr(self.printed))
    self.strangers.enter_context(contextlib.redirect_stdout(self.printed))
    self.thread.start()
    return self

  def __exit__(self, *_):
    self.thread.join(2 * SECONDS)
    self.strangers.close()
    if isinstance(self.result, list):
      for link in self.result:
        link.connection.close()

  def connect(self) -> socket.socket:
    return self.strangers.enter_context(connected(self.port))

  def check_joined(self) -> None:
    """Checks that process 1 is admitted, and nobody else."""
    begun = time.monotonic()
    try:
      link = calling.call(
        *(f"127.0.0.1:{self.port}", 2, 1, "one"),
        seconds=SECONDS,
        secret=self.key,
      )
    except links.LostError as error:
      link = error
    self.thread.join(2 * SECONDS)
    check_printed(self.printed.getvalue())
    for said in (self.result, link):
      if isinstance(said, links.LostError):
        raise scoreboard.WrongResultError(str(said))
      if isinstance(said, BaseException):
        check_printed(str(said))
        raise said
    link.connection.close()
    found = [(link.number, link.host) for link in self.result]
    scoreboard.expect(found == [(1, "one")], found)
    took = time.monotonic() - begun
    scoreboard.expect(took < SECONDS, f"joined after {took:.1f} s")


def turned_away(stranger: Callable, folder: pathlib.Path) -> None:
  """The stranger comes first; process 1 must still join."""
  del folder
  with RollCall() as meeting:
    stranger(meeting.connect())
    time.sleep(0.05)
    meeting.check_joined()


def liar(bodies: list, folder: pathlib.Path) -> None:
  """A caller with the secret sends these as its first messages."""

  def say(connection):
    caller = Caller(connection)
    for body in bodies:
      caller.say(body)

  turned_away(say, folder)


def stranger_cases() -> Iterator[scoreboard.Case]:
  right = "process 1 joins as if the stranger had not come"
  for name, payload in payloads().items():
    attack = functools.partial(turned_away, functools.partial(send, payload))
    yield scoreboard.Case(f"stranger/{name}", right, attack)
  for name, stranger in {
    "resets": send_and_reset,
    "shuts one direction": send_and_shut,
    "another secret": functools.partial(prove, OTHER_KEY),
    "an empty secret": functools.partial(prove, b""),
    "reflects the challenge": reflect,
  }.items():
    attack = functools.partial(turned_away, stranger)
    yield scoreboard.Case(f"stranger/{name}", right, attack)

  def from_another(folder):
    del folder
    with RollCall() as meeting:
      reflect_from_another(meeting.connect(), meeting.port)
      meeting.check_joined()

  yield scoreboard.Case("stranger/reflects from another", right, from_another)


def liar_cases() -> Iterator[scoreboard.Case]:
  """First messages of a caller that knows the secret, but is damaged."""
  right = "it is turned away, and process 1 joins; or the number is refused"
  kinds = {
    **{
      f"process is {name}": [bent(HELLO, "process", value)]
      for name, value in WRONG_VALUES.items()
    },
    "process is a string": [HELLO | {"process": "1"}],
    "process is missing": [{"kind": "hello", "processes": 2, "name": "vm"}],
    "process is -1": [HELLO | {"process": -1}],
    "process is 0": [HELLO | {"process": 0}],
    "process is 2 of 2": [HELLO | {"process": 2}],
    "process is 10**30": [HELLO | {"process": 10**30}],
    "processes is 3": [HELLO | {"processes": 3}],
    "processes is true": [HELLO | {"process": 1, "processes": True}],
    "processes is a float": [HELLO | {"processes": 2.0}],
    "processes is 10**30": [HELLO | {"processes": 10**30}],
    "name is a number": [HELLO | {"name": 5}],
    "name is null": [HELLO | {"name": None}],
    "name is long": [HELLO | {"name": "x" * 3000}],
    "a field more": [HELLO | {"more": 1}],
    "a field twice": [
      b'{"kind": "hello", "process": 7, ' + json.dumps(HELLO).encode()[1:]
    ],
    "kind is a list": [bent(HELLO, "kind", "[]")],
    "kind is a dictionary": [bent(HELLO, "kind", "{}")],
    "kind is null": [HELLO | {"kind": None}],
    "kind is unknown": [HELLO | {"kind": "exec"}],
    "a list": [["hello", 1, 2, "vm"]],
    "a number": [1],
    "null": [None],
    "a string": ["hello"],
    "Infinity": [b"Infinity"],
    "2,000 brackets": [DEEP + b"]" * 2000],
    "2,000 brackets without end": [DEEP],
    "5,000 digits": [LONG_NUMBER],
    "no JSON": [b"hello"],
    "an empty frame": [b""],
    "not UTF-8": [b'{"kind": "hello\xff"}'],
    "UTF-16": [json.dumps(HELLO).encode("utf-16")],
    "the end first": [END],
    "the end first with 0": [END | {"status": 0}],
    "a meeting first": [MEET],
    "process 0's word": [{"kind": "welcome", "name": "vm"}],
    "a hello of 5,000 bytes": [HELLO | {"name": "x" * 5000}],
  }
  for name, bodies in kinds.items():
    attack = functools.partial(liar, bodies)
    yield scoreboard.Case(f"liar/{name}", right, attack, ("process",))

  def framed(make):
    def attack(folder):
      turned_away(lambda connection: make(Caller(connection)), folder)

    return attack

  def bad_signature(caller):
    frame = bytearray(caller.frame(json.dumps(HELLO).encode()))
    frame[-1] ^= 1
    send(bytes(frame), caller.connection)

  def later_number(caller):
    caller.sent = 1
    caller.hello()

  def cut(caller):
    send(caller.frame(json.dumps(HELLO).encode())[:30], caller.connection)

  for name, make in {
    "length 2**32 - 1": lambda caller: caller.say(HELLO, 2**32 - 1),
    "length 2**31": lambda caller: caller.say(HELLO, 2**31),
    "length one more": lambda caller: caller.say(HELLO, 62),
    "length one less": lambda caller: caller.say(HELLO, 60),
    "a wrong signature": bad_signature,
    "the number of a later frame": later_number,
    "a cut frame": cut,
  }.items():
    yield scoreboard.Case(f"liar/{name}", right, framed(make))

  def name_in_terminal(folder):
    """Its number is refused; the message has its name."""
    liar([HELLO | {"processes": 3, "name": f"{ESCAPE}\ud800"}], folder)

  yield scoreboard.Case(
    "liar/control characters in its name", right, name_in_terminal
  )


# --- Slow and many ------------------------------------------------------------


def drip(connection: socket.socket, words: bytes, over: threading.Event):
  """Sends a byte every 0.3 s."""
  for position in range(len(words)):
    if over.wait(0.3):
      return
    try:
      connection.sendall(words[position : position + 1])
    except OSError:
      return


def crowd(folder: pathlib.Path, make: Callable, count: int) -> None:
  """This many strangers are connected, and stay, when process 1 comes."""
  with Meeting(folder) as meeting:
    meeting.start(0)
    over = threading.Event()
    threads = []
    try:
      for _ in range(count):
        connection = meeting.connect()
        job = make(connection, over)
        if job:
          threads.append(threading.Thread(target=job))
          threads[-1].start()
      meeting.start(1)
      meeting.check_done()
    finally:
      over.set()
      for thread in threads:
        thread.join()


def crowd_cases() -> Iterator[scoreboard.Case]:
  right = "the real processes meet and end with 0, in their time"

  def slow(connection, over):
    return lambda: drip(connection, b"x" * 64, over)

  def slow_proof(connection, over):
    noise = random.Random(1).randbytes(64)
    return lambda: drip(connection, noise, over)

  def idle(connection, over):
    del connection, over

  def half_open(connection, over):
    del over
    send(b"x" * 20, connection)

  for name, make, count in (
    ("8 send a byte every 0.3 s", slow, 8),
    ("8 send noise every 0.3 s", slow_proof, 8),
    ("200 are idle", idle, 200),
    ("200 stop within their proof", half_open, 200),
  ):
    attack = functools.partial(crowd, make=make, count=count)
    yield scoreboard.Case(f"crowd/{name}", right, attack)

  def always_new(folder):
    """A stranger that calls again until the run ends."""
    with Meeting(folder) as meeting:
      meeting.start(0)
      meeting.connect()
      over = threading.Event()

      def come():
        at = ("127.0.0.1", meeting.port)
        while not over.wait(0.005):
          with contextlib.suppress(OSError):
            meeting.strangers.enter_context(socket.create_connection(at))

      thread = threading.Thread(target=come)
      thread.start()
      try:
        meeting.start(1)
        meeting.check_done()
      finally:
        over.set()
        thread.join()

  yield scoreboard.Case("crowd/it comes 200 times a second", right, always_new)

  def all_kinds(folder):
    """All payloads, one after another, at one real run."""
    with Meeting(folder) as meeting:
      meeting.start(0)
      for payload in payloads().values():
        send(payload, meeting.connect())
      meeting.start(1)
      meeting.check_done()

  yield scoreboard.Case("crowd/all kinds of strangers", right, all_kinds)

  def after_roll_call(folder):
    """Strangers come when all are there and JAX's port is not open yet."""
    with Meeting(folder, 3) as meeting:
      for process in range(3):
        meeting.start(process)
      until = time.monotonic() + 1.5
      while time.monotonic() < until:
        with contextlib.suppress(OSError):
          send(
            b"x" * 100, socket.create_connection(("127.0.0.1", meeting.port))
          )
        time.sleep(0.01)
      meeting.check_done()

  yield scoreboard.Case("crowd/strangers come later", right, after_roll_call)


# --- Process 1 is damaged, or is not who it says ------------------------------


def damaged(folder: pathlib.Path, act: Callable[[Caller], object]) -> None:
  """Process 1 of 3 joins, then does this; the others must end and say so."""
  with Meeting(folder, 3) as meeting:
    meeting.start(0)
    caller = Caller(meeting.connect())
    caller.hello(1, 3)
    meeting.start(2)
    read(caller.connection, 4)  # The welcome: all have come.
    act(caller)
    meeting.check_lost()


def damaged_cases() -> Iterator[scoreboard.Case]:
  right = "nobody believes it: the others end with 2 or 69, in one line"
  bodies = {
    "an end with 0": END | {"status": 0},
    "an end with true": END | {"status": True},
    "an end with 256": END | {"status": 256},
    "an end with -1": END | {"status": -1},
    "an end with 2**64": END | {"status": 2**64},
    "an end with 0.0": END | {"status": 0.0},
    "an end with a string": END | {"status": "0"},
    "an end with null": END | {"status": None},
    "an end without text": {"kind": "end", "status": 2},
    "an end with a number as text": END | {"text": 5},
    "an end with control characters": END | {"text": ESCAPE},
    "an end of many lines": END | {"text": "a\n" * 30_000},
    "an end of 5 MB": END | {"text": "a" * 5_000_000},
    "an old end": {"end": [0, "bye"]},
    "a phase with control characters": AT | {"phase": ESCAPE},
    "a phase that is a list": AT | {"phase": ["step"]},
    "a phase of 1 MB": AT | {"phase": "x" * 1_000_000},
    "a step that is Infinity": bent(AT, "step", "Infinity"),
    "a step that is true": AT | {"phase": "step", "step": True},
    "a step of 5,000 digits": bent(AT, "step", "1" * 5000),
    "a step that is a list": AT | {"step": [1]},
    "a meeting of another name": MEET | {"name": ESCAPE},
    "a meeting whose items are a list": MEET | {"items": ["config"]},
    "a meeting whose items are null": MEET | {"items": None},
    "a meeting with control characters": MEET
    | {"items": {"config": ESCAPE * 3}},
    "a meeting with control characters in a key": MEET
    | {"items": {ESCAPE: 1, "config": "the same"}},
    "a meeting with another type": MEET | {"items": {"config": [1, None]}},
    "a meeting with half a surrogate pair": bent(
      MEET, "items", '{"config": "\\ud800"}'
    ),
    "a meeting with NaN": bent(MEET, "items", '{"config": NaN}'),
    "a meeting of 20,000 items": MEET
    | {"items": {f"file {n}": "x" * 40 for n in range(20_000)}},
    "a meeting with 5,000 digits": bent(
      MEET, "items", f'{{"config": {"1" * 5000}}}'
    ),
    "a meeting of 2,000 brackets": bent(MEET, "items", "[" * 2000 + "]" * 2000),
    "a meeting of 1 MB": MEET | {"items": {"config": "x" * 1_000_000}},
    "a second hello, as process 2": HELLO | {"process": 2, "processes": 3},
    "what process 0 says": {"kind": "agreed", "name": "settings"},
    "a kind that is a list": bent(AT, "kind", "[]"),
    "an unknown kind": {"kind": "exec", "text": "touch EXECUTED"},
    "no JSON": b"\xff\x00",
    "2,000 brackets": DEEP,
    "an empty frame": b"",
  }
  for name, body in bodies.items():

    def attack(folder, body=body):
      damaged(folder, lambda caller: caller.say(body))

    yield scoreboard.Case(f"damaged/{name}", right, attack)

  def huge(caller):
    size = struct.pack(">I", 2**32 - 1)
    send(size + bytes(2_000_000), caller.connection)

  def too_long(caller):
    send(struct.pack(">I", links.MAX_BYTES + 1), caller.connection)

  def cut(caller):
    send(caller.frame(json.dumps(MEET).encode())[:20], caller.connection)

  def replay(caller):
    frame = caller.frame(json.dumps(AT).encode())
    send(frame + frame, caller.connection)

  def reflect_frame(caller):
    caller.connection.settimeout(2)
    rest = struct.unpack(">I", b"\0\0\0\x21")[0] + links.SIZE
    with contextlib.suppress(OSError):
      read(caller.connection, rest)
    frame = caller.connection.recv(4096)
    send(frame, caller.connection)

  def never_whole(caller):
    """Single bytes of a frame that never ends do not count as life."""
    send(struct.pack(">I", 1000), caller.connection)
    drip(caller.connection, bytes(100), threading.Event())

  for name, act in {
    "a frame of 4 GiB": huge,
    "a frame one byte too long": too_long,
    "a cut frame, then nothing": cut,
    "a frame twice": replay,
    "process 0's frame sent back": reflect_frame,
    "it agrees and is silent": lambda caller: caller.say(MEET),
    "it is at the end at once": lambda caller: caller.say(
      MEET | {"name": "end", "items": {}}
    ),
    "a byte every 0.3 s of a frame": never_whole,
    "it closes": lambda caller: caller.connection.close(),
    "it resets": lambda caller: send_and_reset(caller.connection),
  }.items():
    attack = functools.partial(damaged, act=act)
    yield scoreboard.Case(f"damaged/{name}", right, attack)

  def claimed_twice(folder):
    """Both know the secret; one of them was started by mistake."""
    with Meeting(folder, 3) as meeting:
      meeting.start(0)
      Caller(meeting.connect()).hello(1, 3)
      time.sleep(0.2)
      meeting.start(1)  # Process 2 is still to come.
      statuses = meeting.ends()
      scoreboard.expect(statuses[0] == 2, (statuses, meeting.said()))
      scoreboard.expect(0 not in statuses.values(), statuses)
      if "process 1" not in meeting.log(0).read_text():
        raise RuntimeError(f"does not name process 1: {meeting.said()}")

  yield scoreboard.Case(
    "damaged/two claim one number",
    "process 0 refuses the start with 2, and names the number",
    claimed_twice,
  )


# --- A man in the middle ------------------------------------------------------


class Relay:
  """Sits between process 1 and process 0; `bend` changes what passes.

  Attributes:
    heard: What passed, by side.
  """

  def __init__(self, port: int, bend: Callable[[str, int, bytes], bytes]):
    self.port = port
    self.bend = bend
    self.heard = {"caller": b"", "process 0": b""}
    self.server = socket.create_server(("127.0.0.1", 0))
    self.threads = []
    self.over = threading.Event()
    self._start(self._accept)

  def _start(self, job, *arguments):
    thread = threading.Thread(target=job, args=arguments, daemon=True)
    self.threads.append(thread)
    thread.start()

  def __enter__(self):
    return self.server.getsockname()[1]

  def __exit__(self, *_):
    self.over.set()
    self.server.close()

  def _accept(self):
    self.server.settimeout(30)
    with contextlib.suppress(OSError):
      while not self.over.is_set():
        caller, _ = self.server.accept()
        process_0 = connected(self.port)
        caller.settimeout(None)
        process_0.settimeout(None)
        self._start(self._pump, "caller", caller, process_0)
        self._start(self._pump, "process 0", process_0, caller)

  def _pump(self, side, source, sink):
    position = 0
    with contextlib.suppress(OSError):
      while found := source.recv(65536):
        self.heard[side] += found
        sink.sendall(self.bend(side, position, found))
        position += len(found)
    with contextlib.suppress(OSError):
      sink.shutdown(socket.SHUT_WR)


def in_the_middle(folder: pathlib.Path, bend: Callable, done: bool) -> None:
  """A run of two over a relay."""
  # Processes that cannot meet use all of their time.
  meeting = Meeting(folder, seconds=SECONDS if done else SECONDS / 2)
  with meeting, Relay(meeting.port, bend) as port:
    meeting.start(0)
    meeting.start(1, port)
    statuses = meeting.ends()
    scoreboard.expect(
      set(statuses.values()) <= ({0} if done else {2, 69}),
      (statuses, meeting.said()),
    )


# Offsets in the bytes of a side. The hello has 61 bytes of JSON.
HELLO_AT = 2 * links.SIZE
MEET_AT = HELLO_AT + 4 + 61 + links.SIZE
WELCOME_AT = len(links.BANNER) + 2 * links.SIZE
PLACES = {
  "the banner": ("process 0", 3),
  "process 0's number": ("process 0", len(links.BANNER) + 5),
  "process 0's proof": ("process 0", len(links.BANNER) + links.SIZE + 5),
  "the length of the welcome": ("process 0", WELCOME_AT + 3),
  "the welcome": ("process 0", WELCOME_AT + 4 + 12),
  "the signature of the welcome": ("process 0", WELCOME_AT + 4 + 33 + 9),
  "the caller's number": ("caller", 5),
  "the caller's proof": ("caller", links.SIZE + 5),
  "the length of the hello": ("caller", HELLO_AT + 3),
  "the number in the hello": ("caller", HELLO_AT + 4 + 29),
  "the signature of the hello": ("caller", HELLO_AT + 4 + 61 + 9),
  "the length of the meeting": ("caller", MEET_AT),
  "the meeting": ("caller", MEET_AT + 4 + 50),
  "the signature of the meeting": ("caller", MEET_AT + 4 + 70 + 20),
}


def middle_cases() -> Iterator[scoreboard.Case]:
  yield scoreboard.Case(
    "middle/nothing is changed",
    "the run is done: the attack's relay works",
    functools.partial(
      in_the_middle, bend=lambda side, position, words: words, done=True
    ),
  )
  for name, (side, place) in PLACES.items():

    def bend(from_side, position, words, side=side, place=place):
      at = place - position
      if from_side != side or not 0 <= at < len(words):
        return words
      changed = bytearray(words)
      changed[at] ^= 1
      return bytes(changed)

    yield scoreboard.Case(
      f"middle/one bit of {name}",
      "no process ends with 0, and each says why",
      functools.partial(in_the_middle, bend=bend, done=False),
    )

  def doubled(side, position, words):
    return words * 2 if side == "caller" and position >= MEET_AT else words

  def swallowed(side, position, words):
    return b"" if side == "caller" and position >= MEET_AT else words

  def inserted(side, position, words):
    more = b"x" if side == "process 0" and position >= WELCOME_AT else b""
    return more + words

  for name, bend in {
    "frames come twice": doubled,
    "frames of process 1 vanish": swallowed,
    "a byte more": inserted,
  }.items():
    yield scoreboard.Case(
      f"middle/{name}",
      "no process ends with 0, and each says why",
      functools.partial(in_the_middle, bend=bend, done=False),
    )

  def replay_to_process_0(folder):
    """Sends process 1's bytes of a good run to process 0 of the next."""
    said = record(folder)["caller"]
    with Meeting(folder / "second") as meeting:
      meeting.start(0)
      send(said, meeting.connect())
      meeting.start(1)
      meeting.check_done()

  yield scoreboard.Case(
    "middle/a recorded caller",
    "the recording is turned away; the run is done",
    replay_to_process_0,
  )

  def replay_to_process_1(folder):
    """Sends process 0's bytes of a good run to process 1 of the next."""
    said = record(folder)["process 0"]
    with Meeting(folder / "second") as meeting:
      serve(meeting, functools.partial(send, said))

  yield scoreboard.Case(
    "middle/a recorded process 0",
    "process 1 does not believe it, and ends with 2 or 69",
    replay_to_process_1,
  )


def record(folder: pathlib.Path) -> dict[str, bytes]:
  """Returns the bytes of both sides of a good run."""
  (folder / "first").mkdir()
  (folder / "second").mkdir()
  with Meeting(folder / "first") as meeting:
    relay = Relay(meeting.port, lambda side, position, words: words)
    with relay as port:
      meeting.start(0)
      meeting.start(1, port)
      meeting.check_done()
  return relay.heard


# --- Something else listens where process 0 should ----------------------------


def serve(meeting: Meeting, act: Callable[[socket.socket], object]) -> None:
  """A server in process 0's place: process 1 must end with 2 or 69."""
  over = threading.Event()
  server = socket.create_server(("127.0.0.1", meeting.port))
  server.settimeout(0.2)

  def answer(connection):
    with contextlib.suppress(OSError, ConnectionError):
      act(connection)
      over.wait(20)
    connection.close()

  def accept():
    while not over.is_set():
      with contextlib.suppress(OSError):
        connection, _ = server.accept()
        connection.settimeout(10)
        threading.Thread(target=answer, args=(connection,), daemon=True).start()

  thread = threading.Thread(target=accept)
  thread.start()
  try:
    meeting.start(1)
    meeting.check_lost()
  finally:
    over.set()
    thread.join()
    server.close()


def imposter_cases() -> Iterator[scoreboard.Case]:
  right = "process 1 ends with 2 or 69 in its time, and says why"

  def close(connection):
    connection.close()

  def slow(connection):
    drip(connection, links.BANNER + bytes(64), threading.Event())

  def reflects(connection):
    connection.sendall(links.BANNER + bytes(links.SIZE))
    words = read(connection, 2 * links.SIZE)
    connection.sendall(words[links.SIZE :])

  def denies(connection):
    connection.sendall(links.BANNER + bytes(links.SIZE))
    read(connection, 2 * links.SIZE)
    connection.sendall(links.ANOTHER_SECRET)

  def flood(connection):
    for _ in range(50):
      connection.sendall(b"x" * 1_000_000)

  def greet(*bodies):
    def act(connection):
      ours = b"\x03" * links.SIZE
      connection.sendall(links.BANNER + ours)
      callers = read(connection, 2 * links.SIZE)[: links.SIZE]
      connection.sendall(links.proof(KEY, b"process 0", ours, callers))
      caller = Caller.__new__(Caller)
      link = links.Link(connection, KEY, ours, callers, is_caller=False)
      caller.connection, caller.key, caller.sent = connection, link._send_key, 0
      for body in bodies:
        caller.say(body)

    return act

  welcome = {"kind": "welcome", "name": "zero"}
  agreed = {"kind": "agreed", "name": "settings"}
  for name, act in {
    "closes at once": close,
    "says nothing": lambda connection: None,
    "a byte every 0.3 s": slow,
    "HTTP": functools.partial(send, b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9),
    "control characters": functools.partial(send, ESCAPE.encode() * 30),
    "50 MB": flood,
    "sends the proof back": reflects,
    "says that the secret is another": denies,
    "knows the secret, and welcomes with an escape": greet(
      welcome | {"name": ESCAPE}
    ),
    "knows the secret, and ends with 0": greet(END | {"status": 0}),
    "knows the secret, and ends with 256": greet(END | {"status": 256}),
    "knows the secret, and welcomes then ends with 0": greet(
      welcome, END | {"status": 0}
    ),
    "knows the secret, and refuses with an escape": greet(
      END | {"text": ESCAPE}
    ),
    "knows the secret, and sends a list": greet(["welcome"]),
    "knows the secret, and sends 2,000 brackets": greet(DEEP),
    "knows the secret, and agrees before it welcomes": greet(agreed, agreed),
    "knows the secret, and agrees to another meeting": greet(
      welcome, agreed | {"name": ESCAPE}
    ),
    "knows the secret, and welcomes then is silent": greet(welcome),
    "knows the secret, and says too soon that all have ended": greet(
      welcome, agreed | {"name": "end"}
    ),
  }.items():

    def attack(folder, act=act):
      with Meeting(folder, seconds=SECONDS / 2) as meeting:
        serve(meeting, act)

    yield scoreboard.Case(f"imposter/{name}", right, attack)


# --- Secrets and addresses ----------------------------------------------------


def secret_cases() -> Iterator[scoreboard.Case]:
  good = "0123456789abcdef" * 4

  def from_file(content: bytes, mode: int):
    def attack(folder):
      path = folder / "secret"
      path.write_bytes(content)
      path.chmod(mode)
      found = run_secret.read({run_secret.FILE_VARIABLE: str(path)})
      scoreboard.expect(False, f"accepted as {found!r}")

    return attack

  for name, content, mode in (
    ("readable by all", good.encode(), 0o644),
    ("readable by the group", good.encode(), 0o640),
    ("writable by all", good.encode(), 0o602),
    ("short", b"0123456789abcde", 0o600),
    ("empty", b"", 0o600),
    ("nothing but white space", b" \n\t" * 40, 0o600),
    ("of 100 MB", b"x" * 100_000_000, 0o600),
  ):
    yield scoreboard.Case(
      f"secret/a file {name}",
      "it is refused, and the file is named",
      from_file(content, mode),
      ("secret",),
    )

  def missing(folder):
    found = run_secret.read({run_secret.FILE_VARIABLE: str(folder / "missing")})
    scoreboard.expect(False, found)

  def a_folder(folder):
    folder.chmod(0o700)
    scoreboard.expect(
      False, run_secret.read({run_secret.FILE_VARIABLE: str(folder)})
    )

  def a_pipe(folder):
    os.mkfifo(folder / "pipe", 0o600)
    found = run_secret.read({run_secret.FILE_VARIABLE: str(folder / "pipe")})
    scoreboard.expect(False, found)

  def endless(folder):
    del folder
    scoreboard.expect(
      False, run_secret.read({run_secret.FILE_VARIABLE: "/dev/zero"})
    )

  def nul_in_path(folder):
    found = run_secret.read({run_secret.FILE_VARIABLE: f"{folder}/a\0b"})
    scoreboard.expect(False, found)

  def both(folder):
    path = folder / "secret"
    path.write_text(good)
    path.chmod(0o600)
    found = run_secret.read(
      {run_secret.VARIABLE: "f" * 32, run_secret.FILE_VARIABLE: str(path)}
    )
    scoreboard.expect(False, f"took one of two: {found!r}")

  for name, attack, names in (
    ("a missing file", missing, ("missing",)),
    ("a folder", a_folder, (run_secret.FILE_VARIABLE,)),
    ("a pipe", a_pipe, ("pipe",)),
    ("/dev/zero", endless, ("/dev/zero",)),
    ("a NUL in the path", nul_in_path, (run_secret.FILE_VARIABLE,)),
    ("two that differ", both, (run_secret.VARIABLE,)),
  ):
    yield scoreboard.Case(
      f"secret/{name}", "it is refused and named", attack, names, seconds=10
    )

  def bytes_kept(folder):
    """A secret that is not UTF-8 is read as it is, or refused."""
    path = folder / "secret"
    path.write_bytes(bytes(range(128, 192)))
    path.chmod(0o600)
    found = run_secret.read({run_secret.FILE_VARIABLE: str(path)})
    scoreboard.expect(found == bytes(range(128, 192)), found)

  yield scoreboard.Case(
    "secret/a file of bytes", "its bytes, or a refusal", bytes_kept, ("secret",)
  )

  def short_in_environment(folder):
    del folder
    scoreboard.expect(False, run_secret.read({run_secret.VARIABLE: "short"}))

  yield scoreboard.Case(
    "secret/short in the environment",
    "it is refused, and the variable is named",
    short_in_environment,
    (run_secret.VARIABLE,),
  )

  def empty_in_environment(folder):
    del folder
    found = run_secret.read({run_secret.VARIABLE: ""})
    scoreboard.expect(found is None, found)

  yield scoreboard.Case(
    "secret/empty in the environment",
    "it is refused, or counts as none: never as a key",
    empty_in_environment,
    (run_secret.VARIABLE,),
  )


def address_cases() -> Iterator[scoreboard.Case]:
  def listens(coordinator, bind=None, key=None):
    def attack(folder):
      del folder
      found = roll_call.listen(
        coordinator.replace("PORT", str(free_port())),
        2,
        "zero",
        seconds=1,
        secret=key,
        bind=bind,
      )
      scoreboard.expect(False, found)

    return attack

  def calls(coordinator):
    def attack(folder):
      del folder
      found = calling.call(
        coordinator.replace("PORT", str(free_port())), 2, 1, "one", seconds=1
      )
      scoreboard.expect(False, found)

    return attack

  def numbers(processes, process):
    def attack(folder):
      del folder
      from mlir_jax.hosts import cluster

      found = cluster.address("127.0.0.1:8000", processes, process)
      scoreboard.expect(False, found)

    return attack

  for name, processes, process, flag in (
    ("no processes", 0, 0, "--processes"),
    ("fewer than none", -1, 0, "--processes"),
    ("more processes than a system has", 2**31, 0, "--processes"),
    ("more processes than it can count", 10**30, 1, "--processes"),
    ("a process below 0", 2, -1, "--process"),
    ("a process too many", 2, 2, "--process"),
  ):
    yield scoreboard.Case(
      f"address/{name}",
      "it is refused, and the flag is named",
      numbers(processes, process),
      (flag,),
    )

  # 192.0.2.0/24 and 2001:db8::/32 are reserved for examples.
  for name, attack, flag in (
    ("listens at a network's", listens("192.0.2.1:PORT"), "--coordinator="),
    ("listens at IPv6's", listens("[2001:db8::1]:PORT"), "--coordinator="),
    ("listens at all", listens("0.0.0.0:PORT"), "--coordinator="),
    ("listens at all by IPv6", listens("[::]:PORT"), "--coordinator="),
    ("bind to all", listens("127.0.0.1:PORT", "0.0.0.0"), "bind_address"),
    ("bind to all by IPv6", listens("127.0.0.1:PORT", "::"), "bind_address"),
    ("an empty bind", listens("127.0.0.1:PORT", ""), "bind_address"),
    ("a NUL in bind", listens("127.0.0.1:PORT", "::1\0"), "bind_address"),
    ("calls a network's", calls("192.0.2.1:PORT"), "--coordinator="),
    ("calls a bare number", calls("3221225985:PORT"), "--coordinator="),
  ):
    yield scoreboard.Case(
      f"address/no secret, {name}",
      "it is refused: a secret is needed, or the address cannot be used",
      attack,
      (flag,),
      seconds=10,
    )
  for name, coordinator in {
    "no port": "127.0.0.1",
    "an empty port": "127.0.0.1:",
    "an empty host": ":8000",
    "port 0": "127.0.0.1:0",
    "port -1": "127.0.0.1:-1",
    "port 65536": "127.0.0.1:65536",
    "a port of 5,000 digits": "127.0.0.1:" + "1" * 5000,
    "a port in Arabic digits": "127.0.0.1:\u0661\u0662\u0663\u0664\u0665",
    "a port with an underscore": "127.0.0.1:8_000",
    "a port with a blank": "127.0.0.1: 8000",
    "an escape as host": f"{ESCAPE}:8000",
    "a NUL in the host": "127.0.0.1\0:8000",
    "a host of 5,000 letters": "x" * 5000 + ":8000",
    "a label of 70 letters": "x" * 70 + ".invalid:8000",
    "an empty label": "a..invalid:8000",
    "an open bracket": "[::1:8000",
    "nothing": "",
    "a blank": " ",
  }.items():
    yield scoreboard.Case(
      f"address/{name}",
      "it is refused, and the flag is named",
      clean(listens(coordinator, key=KEY)),
      ("coordinator",),
      seconds=10,
    )


def clean(attack: Callable) -> Callable:
  """Returns the attack; its error must not have control characters."""

  def checked(folder):
    try:
      attack(folder)
    except ValueError as error:
      check_printed(str(error))
      raise

  return checked


def cases() -> list[scoreboard.Case]:
  """Yields all attacks."""
  return [
    *stranger_cases(),
    *liar_cases(),
    *crowd_cases(),
    *damaged_cases(),
    *middle_cases(),
    *imposter_cases(),
    *secret_cases(),
    *address_cases(),
  ]


if __name__ == "__main__":
  scoreboard.main(cases())
