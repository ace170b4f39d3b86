"""At the roll call, only the processes of the run are admitted."""

import contextlib
import json
import os
import socket
import threading
import time

import pytest

from mlir_jax.hosts import addresses, calling, links, roll_call, run_secret

SECRET = b"a secret of enough bytes"
LIMIT = 60  # Seconds; far more than a test takes.


def free_port():
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    return found.getsockname()[1]


class Started:
  """A function in a thread; gives its result, or raises its exception."""

  def __init__(self, function, *arguments, **settings):
    self._result = self._error = None

    def run():
      try:
        self._result = function(*arguments, **settings)
      except BaseException as error:
        self._error = error

    self.thread = threading.Thread(target=run, daemon=True)
    self.thread.start()

  def result(self):
    self.thread.join(LIMIT)
    assert not self.thread.is_alive(), "it hangs"
    if self._error:
      raise self._error
    return self._result


def hub(port, processes=3, **settings):
  """Starts process 0; returns when it listens."""
  settings = {"seconds": LIMIT, "secret": SECRET} | settings
  started = Started(
    roll_call.listen, f"127.0.0.1:{port}", processes, "here", **settings
  )
  connected(port).close()
  return started


def caller(port, process, processes=3, **settings):
  settings = {"seconds": LIMIT, "secret": SECRET} | settings
  return Started(
    *(calling.call, f"127.0.0.1:{port}", processes, process, "there"),
    **settings,
  )


def connected(port, host="127.0.0.1"):
  until = time.monotonic() + LIMIT
  while True:
    try:
      return socket.create_connection((host, port), 5)
    except ConnectionRefusedError:
      assert time.monotonic() < until
      time.sleep(0.02)


def hello(port, number, key=SECRET, **changes):
  """Sends the hello of a process; returns its link without waiting."""
  link = calling._introduce(connected(port), "there", key)
  said = {"process": number, "processes": 3, "name": "there"} | changes
  link.send({"kind": "hello", **said})
  return link


def record(port):
  """Opens a port that relays one connection, and records the caller's bytes."""
  sent = bytearray()
  server = socket.create_server(("127.0.0.1", 0))

  def copy(source, target, kept):
    with contextlib.suppress(OSError):
      while data := source.recv(2**16):
        kept += data
        target.sendall(data)
      target.shutdown(socket.SHUT_WR)

  def serve():
    with server:
      near, _ = server.accept()
    far = connected(port)
    threading.Thread(
      target=copy, args=(far, near, bytearray()), daemon=True
    ).start()
    copy(near, far, sent)

  threading.Thread(target=serve, daemon=True).start()
  return server.getsockname()[1], sent


def closed(connection):
  """Whether the other side closes the connection."""
  connection.settimeout(LIMIT)
  with contextlib.suppress(ConnectionResetError):
    while connection.recv(2**16):
      pass
  return True


GARBAGE = (
  b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + b"x" * 64,
  b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
  b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(60),
  b"Infinity\n" * 20,
  b"[" * 2000,
  b'{"process": 1, "processes": 3, "name": "there"}\n' * 2,
  b'{"end": [0, "bye"]}\n' * 5,
)


def test_garbage_does_not_end_the_roll_call_or_delay_the_others(
  monkeypatch, capsys
):
  monkeypatch.setattr(links, "HANDSHAKE_SECONDS", 2.0)
  port = free_port()
  # Record what a process of an earlier run sends.
  earlier = hub(port, processes=2)
  between, recorded = record(port)
  link = caller(between, 1, processes=2).result()
  earlier.result()[0].connection.close()
  link.connection.close()
  assert len(recorded) > 2 * links.SIZE

  listening = hub(port)
  strangers = []
  for data in (*GARBAGE, os.urandom(5000), bytes(recorded), b"", b"\0" * 63):
    strangers.append(connected(port))
    # Process 0 may have turned it away already.
    with contextlib.suppress(OSError):
      strangers[-1].sendall(data)
  slow, stop = connected(port), threading.Event()

  def drip():
    with contextlib.suppress(OSError):
      while not stop.wait(0.2):
        slow.sendall(b"x")

  dripping = Started(drip)
  liar = caller(port, 1, secret=b"another secret of enough bytes")
  with pytest.raises(links.LostError, match="has another secret"):
    liar.result()
  # Wrong first messages of a caller that knows the secret.
  for wrong in ({"process": 0}, {"process": 2.0}, {"name": "x" * 5000}):
    strangers.append(hello(port, 1, **wrong).connection)
  since = time.monotonic()
  ours = [caller(port, number) for number in (1, 2)]
  found = listening.result()
  assert time.monotonic() - since < 20
  assert sorted(link.number for link in found) == [1, 2]
  assert [one.result().host for one in ours] == ["here", "here"]
  stop.set()
  dripping.result()
  assert all(closed(stranger) for stranger in strangers)
  assert "Turned away a caller from 127.0.0.1" in capsys.readouterr().err


def test_one_byte_at_a_time_is_turned_away_in_time(monkeypatch):
  monkeypatch.setattr(links, "HANDSHAKE_SECONDS", 1.0)
  port = free_port()
  listening = hub(port)
  slow = connected(port)
  since = time.monotonic()
  with contextlib.suppress(OSError):
    while time.monotonic() < since + LIMIT:
      slow.sendall(b"x")
      time.sleep(0.1)
  assert time.monotonic() - since < 20
  # Process 0 may be as slow: callers give up and call again.
  with socket.create_server(("127.0.0.1", 0)) as server:

    def serve():
      connection, _ = server.accept()
      with connection, contextlib.suppress(OSError):
        for byte in links.BANNER * 20:
          connection.sendall(bytes([byte]))
          time.sleep(0.1)

    Started(serve)
    with pytest.raises(links.LostError, match="did not answer within"):
      caller(server.getsockname()[1], 1, seconds=0.5).result()
  for number in (1, 2):
    hello(port, number)
  listening.result()


def test_a_crowd_that_says_nothing_does_not_keep_a_process_out(monkeypatch):
  monkeypatch.setattr(roll_call, "MAX_WAITING", 4)
  port = free_port()
  listening = hub(port, processes=2)
  crowd = [connected(port) for _ in range(20)]
  since = time.monotonic()
  caller(port, 1, processes=2).result()
  assert time.monotonic() - since < links.HANDSHAKE_SECONDS
  (link,) = listening.result()
  assert link.number == 1
  assert all(closed(one) for one in crowd)


def test_something_else_that_answers_is_not_taken_for_process_0():
  for answer, message in (
    (b"220 mail.example ready\r\n", "is not process 0"),
    (b"[1, 2]\n", "is not process 0"),
    (b'{"name": "here"}\n', "is not process 0"),
    (b"\x1b[2J\n", r"is not process 0, .*\\x1b\[2J"),
    # It does not know the secret.
    (links.BANNER + bytes(range(64)), "does not know the secret"),
  ):
    with socket.create_server(("127.0.0.1", 0)) as server:

      def serve(server=server, answer=answer):
        connection, _ = server.accept()
        with connection:
          connection.sendall(answer)
          connection.recv(1000)

      Started(serve)
      with pytest.raises(links.LostError, match=message):
        caller(server.getsockname()[1], 1).result()


def test_a_process_that_died_at_the_roll_call_may_come_again():
  port = free_port()
  listening = hub(port)
  hello(port, 1).connection.close()
  first, _ = hello(port, 1), hello(port, 2)
  found = listening.result()
  assert sorted(link.number for link in found) == [1, 2]
  assert next(iter(first.receive())) == {"kind": "welcome", "name": "here"}


@pytest.mark.parametrize(
  "process, processes, message",
  [
    (1, 3, r"process 1 \(there\) and process 1 \(there\) have the same number"),
    (2, 4, r"process 2 \(there\) was started with --processes=4, process 0"),
  ],
)
def test_processes_that_do_not_fit_are_named_to_all(
  process, processes, message
):
  port = free_port()
  listening = hub(port)
  ours = [caller(port, 1)]
  time.sleep(0.2)
  ours.append(caller(port, process, processes))
  for started in (listening, *ours):
    with pytest.raises(ValueError, match=message):
      started.result()


def test_missing_processes_and_the_last_stranger_are_named():
  port = free_port()
  listening = hub(port, seconds=1.0)
  ours = caller(port, 2)
  for started in (listening, ours):
    with pytest.raises(
      links.LostError,
      match=r"process 1 of 3 did not come .* there were processes 0, 2\. "
      r"Callers turned away: 1, last 127\.0\.0\.1: ",
    ):
      started.result()


def test_process_0_listens_only_at_its_address():
  port = free_port()
  listening = hub(port)
  for host in ("127.0.0.2", "::1"):
    with pytest.raises(OSError):
      socket.create_connection((host, port), 5)
  for number in (1, 2):
    hello(port, number)
  listening.result()
  # The coordinator's address is not an address of this machine.
  elsewhere = f"203.0.113.77:{port}"
  with pytest.raises(ValueError, match="--coordinator_bind_address"):
    roll_call.listen(elsewhere, 2, "here", seconds=LIMIT, secret=SECRET)
  listening = Started(
    *(roll_call.listen, elsewhere, 2, "here"),
    seconds=LIMIT,
    secret=SECRET,
    bind="127.0.0.1",
  )
  hello(port, 1, processes=2)
  listening.result()
  assert addresses.bind_address(elsewhere, "::1") == f"[::1]:{port}"
  assert addresses.bind_address(elsewhere, None) == elsewhere


@pytest.mark.parametrize("host", ["", "[::1", "a b", "127.0.0.1\0", "\x1b[2J"])
def test_a_bad_address_is_refused_and_not_printed_raw(host):
  for coordinator, bind, flag in (
    (f"{host}:1234", None, "--coordinator="),
    ("127.0.0.1:1234", host, f"{addresses.BIND_FLAG}="),
  ):
    with pytest.raises(ValueError, match=f"^{flag}") as refused:
      roll_call.listen(coordinator, 2, "here", seconds=LIMIT, bind=bind)
    assert str(refused.value).isprintable()


def test_a_warning_says_that_other_machines_do_not_reach_a_name(
  monkeypatch, capsys
):
  asked = socket.getaddrinfo
  monkeypatch.setattr(
    socket,
    "getaddrinfo",
    lambda _, *rest, **how: asked("127.0.0.1", *rest, **how),
  )
  with pytest.raises(links.LostError, match="--coordinator_bind_address"):
    roll_call.listen(f"node7:{free_port()}", 2, "here", seconds=0.1)
  assert "the address of node7 on this machine" in capsys.readouterr().err


def test_on_a_network_a_secret_is_needed(capsys):
  address = "203.0.113.77:1234"
  for start in (
    lambda: roll_call.listen(address, 2, "here", seconds=LIMIT),
    lambda: calling.call(address, 2, 1, "here", seconds=LIMIT),
    lambda: roll_call.listen(
      "127.0.0.1:1234", 2, "here", seconds=LIMIT, bind="0.0.0.0"
    ),
  ):
    with pytest.raises(ValueError, match=r"MLIR_JAX_SECRET.*insecure_check_in"):
      start()
  with pytest.raises(ValueError, match="coordinator_bind_address=0"):
    roll_call.listen("127.0.0.1:1234", 2, "here", seconds=LIMIT, bind="0.0.0.0")
  # With insecure=True, the next check refuses it.
  with pytest.raises(ValueError, match="not an address of this machine"):
    roll_call.listen(address, 2, "here", seconds=LIMIT, insecure=True)
  run_secret.warn_if_insecure(SECRET, True)
  run_secret.warn_if_insecure(None, False)
  assert not capsys.readouterr().err
  run_secret.warn_if_insecure(None, True)
  assert "Warning: --insecure_check_in" in capsys.readouterr().err


def test_on_one_machine_no_secret_is_needed():
  port = free_port()
  listening = hub(port, processes=2, secret=None)
  link = caller(port, 1, processes=2, secret=None).result()
  (other,) = listening.result()
  link.send({"kind": "meet", "name": "start", "items": {"a": 1.5}})
  (message,) = other.receive()
  assert message["items"] == {"a": 1.5}
  assert json.dumps(message)  # It holds only plain values.
