"""Runs the commands of a cell, which get the signals that the study gets."""

import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence


class CommandError(Exception):
  """A command failed; the message has the end of its output."""


class StoppedError(Exception):
  """A signal ended the study; `status` is the exit status."""

  def __init__(self, status: int):
    super().__init__(f"stopped with status {status}")
    self.status = status


def python(arguments: Sequence[str | pathlib.Path], log: pathlib.Path) -> None:
  """Runs a Python command; its output is added to a file.

  So SIGTERM and Ctrl-C let a training save its state.

  Args:
    arguments: Of the interpreter.
    log: The file.

  Raises:
    CommandError: if the command fails.
    StoppedError: if a signal came.
  """
  command = [sys.executable, *map(str, arguments)]
  log.parent.mkdir(parents=True, exist_ok=True)
  with log.open("a", encoding="utf-8") as output:
    output.write(f"$ {' '.join(command)}\n")
    output.flush()
    # In a group of its own, it does not get a signal of the terminal twice.
    process = subprocess.Popen(
      command, stdout=output, stderr=subprocess.STDOUT, process_group=0
    )
    received: list[int] = []

    def forward(number, _):
      received.append(number)
      process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
      status = process.wait()
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)
  if received:
    raise StoppedError(128 + received[-1])
  if status:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    end = "\n".join(lines[-15:])
    raise CommandError(
      f"{' '.join(command)}\nended with status {status}. The end of {log}:\n"
      f"{end}"
    )
