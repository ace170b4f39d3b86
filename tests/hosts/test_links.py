"""Only signed messages of a known form are read; a bad secret is refused."""

import json
import os
import socket
import threading

import pytest

from mlir_jax.hosts import links, run_secret

KEY = b"a secret of enough bytes"


@pytest.fixture
def pair():
  """The two ends of a link: process 1's and process 0's."""
  ends = socket.socketpair()
  numbers = links.random_number(), links.random_number()
  caller = links.Link(ends[0], KEY, *numbers, is_caller=True)
  hub = links.Link(ends[1], KEY, *numbers, is_caller=False)
  caller.admit(0, "hub")
  hub.admit(1, "caller")
  yield caller, hub
  for end in ends:
    end.close()


def at(step):
  return {"kind": "at", "phase": "step", "step": step}


def test_messages_arrive_in_order_in_both_directions(pair):
  caller, hub = pair
  for step in range(3):
    caller.send(at(step))
    hub.send(at(10 + step))
  assert list(hub.receive()) == [at(0), at(1), at(2)]
  assert list(caller.receive()) == [at(10), at(11), at(12)]
  caller.connection.close()
  assert hub.receive() is None


def test_a_long_message_arrives_whole(pair):
  caller, hub = pair
  items = {f"file {n}": n for n in range(10_000)}
  hub.connection.settimeout(5.0)
  sent = {"kind": "meet", "name": "files", "items": items}
  threading.Thread(target=caller.send, args=(sent,), daemon=True).start()
  found = []
  while not found:
    found.extend(hub.receive())
  assert found == [sent]
  with pytest.raises(ValueError, match="files"):
    caller.send(sent | {"items": {"text": "x" * links.MAX_BYTES}})


def sign(link, payload):
  """Returns a whole, signed frame with these bytes instead of JSON."""
  frame = len(payload).to_bytes(4, "big") + payload
  number = link._sent.to_bytes(8, "big")
  return frame + links._sign(link._send_key, number, frame)


@pytest.mark.parametrize(
  "payload",
  [
    b"Infinity",
    b"[" * 2000,
    b"[1, 2]",
    b"{}",
    b"\xff\xfe",
    b"9" * 5000,
    b'{"end": [0, "bye"]}',
    b'{"kind": "end", "status": 0, "text": "bye"}',
    b'{"kind": "end", "status": true, "text": "bye"}',
    b'{"kind": "end", "status": 256, "text": "bye"}',
    b'{"kind": "end", "status": 2}',
    b'{"kind": "end", "status": 2, "text": ["bye"]}',
    b'{"kind": "at", "phase": "step", "step": 1e999}',
    b'{"kind": "at", "phase": "step", "step": -2}',
    b'{"kind": "at", "phase": "step", "step": 1, "more": 1}',
    b'{"kind": "at", "phase": "%s", "step": 1}' % (b"x" * 300),
    b'{"kind": "at", "phase": "step", "step": 1, "step": 2}',
    b'{"kind": ["at"]}',
    b'{"kind": "agreed", "name": "start"}',  # Process 0 says this.
    b'{"kind": "hello", "process": 0, "processes": 2, "name": "x"}',
    b'{"kind": "meet", "name": "start", "items": [1]}',
    b'{"kind": "meet", "name": "start", "items": {"a": NaN}}',
    b'{"kind": "meet", "name": "start", "items": {"a": 1e999}}',
    b'{"kind": "meet", "name": "start", "items": {"a": %s1%s}}'
    % (b"[" * 100, b"]" * 100),
  ],
)
def test_a_signed_message_of_an_unknown_form_is_not_read(pair, payload):
  caller, hub = pair
  caller.connection.sendall(sign(caller, payload))
  with pytest.raises(links.DamagedError):
    list(hub.receive())


def test_a_message_that_the_other_process_did_not_sign_is_not_read(pair):
  caller, hub = pair
  right = sign(caller, json.dumps(at(1)).encode())
  changed = bytearray(right)
  changed[20] ^= 1
  mirrored = sign(hub, json.dumps(at(1)).encode())
  too_long = (links.MAX_BYTES + 1).to_bytes(4, "big")  # Only the length.
  for sent in (right + right, right[:-1] + b"\0", changed, mirrored, too_long):
    caller.connection.sendall(sent)
    hub._received, hub._buffer = 0, bytearray()
    with pytest.raises(links.DamagedError):
      list(hub.receive())


def test_printed_text_of_another_process_has_no_control_characters(pair):
  caller, hub = pair
  text = "lines\nstay\r\x1b[2J\x9b\u202e\ud800 größe 日本"
  caller.send(links.end(2, text))
  caller.send({"kind": "at", "phase": "a\nb\x07", "step": 1})
  end, where = hub.receive()
  assert end["text"] == ("lines\nstay\\r\\x1b[2J\\x9b\\u202e\\ud800 größe 日本")
  assert where["phase"] == "a\\nb\\x07"


def test_no_process_ends_the_others_with_0():
  assert links.end(0, "bye")["status"] == 1
  assert links.end(-1, "bye")["status"] == 255
  assert links.end(75, "bye")["status"] == 75


@pytest.mark.parametrize(
  "content, mode, message",
  [
    (b"0123456789abcdef\n", 0o600, ""),
    (b"0123456789abcde\n", 0o600, "has 15 bytes; give at least 16"),
    (b"", 0o600, "has 0 bytes"),
    (b"x" * 5000, 0o600, "has more than 4096 bytes"),
    (b"0123456789abcdef", 0o640, "its mode is 640"),
    (b"0123456789abcdef", 0o604, "its mode is 604"),
  ],
)
def test_a_secret_is_long_and_in_a_private_file(
  tmp_path, content, mode, message
):
  path = tmp_path / "secret"
  path.write_bytes(content)
  path.chmod(mode)
  environment = {"MLIR_JAX_SECRET_FILE": str(path)}
  if not message:
    assert run_secret.read(environment) == b"0123456789abcdef"
    return
  with pytest.raises(ValueError, match=message) as error:
    run_secret.read(environment)
  assert str(path) in str(error.value)
  assert "0123456789abcde" not in str(error.value)


def test_a_bad_secret_is_refused(tmp_path):
  assert run_secret.read({}) is None
  assert run_secret.read({"MLIR_JAX_SECRET": "x" * 16}) == b"x" * 16
  os.mkfifo(tmp_path / "pipe", 0o600)
  for environment, message in (
    ({"MLIR_JAX_SECRET": ""}, "MLIR_JAX_SECRET has 0 bytes"),
    ({"MLIR_JAX_SECRET_FILE": str(tmp_path / "none")}, "No such file"),
    ({"MLIR_JAX_SECRET_FILE": str(tmp_path)}, "not a file|directory"),
    ({"MLIR_JAX_SECRET_FILE": str(tmp_path / "pipe")}, "not a file"),
    (
      {"MLIR_JAX_SECRET": "x" * 16, "MLIR_JAX_SECRET_FILE": "x"},
      "are both set",
    ),
  ):
    with pytest.raises(ValueError, match=message):
      run_secret.read(environment)
