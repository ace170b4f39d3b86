"""The watchdog ends a process when another one is lost, and names that one."""

import socket
import types

import pytest

from mlir_jax.hosts import links, watchdog


def test_a_process_that_hangs_is_named_even_if_its_beats_falter():
  link = types.SimpleNamespace(
    number=1, host="there", quiet=0.0, state=(watchdog.STEP, 8), ended=False
  )
  dog = watchdog.Watchdog(0, "here", {1: link}, 10.0, print)
  dog.report(watchdog.STEP, 9)
  lost = []
  dog._lost = lost.append
  for tick in range(15):
    link.quiet = 3.0 if tick == 6 else 0.0
    dog._judge(1.0)
  assert lost
  assert "process 1 (there) is stuck" in lost[0]


def watched(monkeypatch):
  """Returns process 0's watchdog, process 1's link, and the exit statuses."""
  ends = socket.socketpair()
  numbers = links.random_number(), links.random_number()
  theirs, ours = (
    links.Link(end, b"", *numbers, is_caller=end is ends[0]) for end in ends
  )
  ours.admit(1, "there")
  dog = watchdog.Watchdog(0, "here", {1: ours}, 60.0, print)
  ended = []

  def end(status):
    ended.append(status)
    dog._closing = True

  monkeypatch.setattr(watchdog, "_exit", end)
  return dog, theirs, ended


@pytest.mark.parametrize(
  "message, reason",
  [
    (b"\0\0\0\x02{}" + bytes(32), "the signature of a message is wrong"),
    (b"\xff\xff\xff\xff", "a message has 4294967295 bytes"),
    (
      {"kind": "hello", "process": 1, "processes": 2, "name": "x"},
      "'hello' came in the middle of the run",
    ),
    ({"kind": "end", "status": 0, "text": "bye"}, "end.status is out of range"),
  ],
)
def test_a_message_that_no_process_sends_ends_the_connection(
  monkeypatch, capfd, message, reason
):
  dog, theirs, ended = watched(monkeypatch)
  if isinstance(message, bytes):
    theirs.connection.sendall(message)
  else:
    theirs.send(message)
  dog._watch()
  assert ended == [links.EXIT_LOST]
  said = capfd.readouterr().err
  assert "process 1 (there) is gone: its connection is damaged, " in said
  assert reason in said


def test_a_process_that_leaves_with_0_does_not_end_the_run_with_0(monkeypatch):
  dog, theirs, ended = watched(monkeypatch)
  dog.fail(0, "bye")
  assert ended == [1]
  (message,) = theirs.receive()
  assert message["status"] == 1
