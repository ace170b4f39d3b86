"""Runs programs in forks of one process, so that an attack starts many.

Importing JAX takes seconds, and a refusal takes milliseconds. The process that
forks never uses a device, so its forks may use one.
"""

import atexit
import functools
import json
import os
import pathlib
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Mapping, Sequence

import jax
from attack import scoreboard

DEVICES = 2
LIMIT = 120  # Seconds; others may use the machine, too.


def _environment() -> dict[str, str]:
  tests = pathlib.Path(__file__).resolve().parents[1]
  return os.environ | {
    "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}",
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(DEVICES),
    # A step is compiled in a fraction of the time.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "HF_HUB_OFFLINE": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TOKENIZERS_PARALLELISM": "false",
  }


@functools.cache
def _server() -> subprocess.Popen:
  server = subprocess.Popen(
    [sys.executable, "-m", "attack.mains"],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    env=_environment(),
  )
  atexit.register(server.communicate)
  return server


def run(
  main: str,
  arguments: Sequence[str],
  folder: pathlib.Path,
  *,
  environment: Mapping[str, str] | None = None,
  seconds: int = LIMIT,
) -> subprocess.CompletedProcess:
  """Runs `python -m mlir_jax.MAIN ARGUMENTS` in a folder.

  Args:
    main: "train", "encode", ....
    arguments: Its arguments.
    folder: The working directory.
    environment: Variables that are added.
    seconds: The time limit; less than that of the case.

  Returns:
    The exit status and the output as text.

  Raises:
    scoreboard.HungError: if it does not end in time; it is killed.
  """
  server = _server()
  task = {
    "main": main,
    "arguments": list(arguments),
    "folder": str(folder),
    "environment": dict(environment or {}),
    "seconds": seconds,
  }
  print(json.dumps(task), file=server.stdin, flush=True)
  answer = json.loads(server.stdout.readline())
  if answer["returncode"] is None:
    raise scoreboard.HungError
  return subprocess.CompletedProcess([main, *arguments], **answer)


def _become(task: dict, streams: Mapping[str, int]) -> None:
  """Turns this fork into the program; it never returns."""
  code = 1
  try:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(streams["stdout"], 1)
    os.dup2(streams["stderr"], 2)
    os.chdir(task["folder"])
    os.environ.update(task["environment"])
    if platforms := task["environment"].get("JAX_PLATFORMS"):
      jax.config.update("jax_platforms", platforms)  # It was read on import.
    sys.argv = [task["main"], *task["arguments"]]
    try:
      runpy.run_module(
        f"mlir_jax.{task['main']}", run_name="__main__", alter_sys=True
      )
      code = 0
    except SystemExit as error:
      code = error.code
      if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    except BaseException:
      traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
  finally:
    os._exit(code or 0)


def _serve() -> None:
  """Reads tasks from standard input and answers how each program ended."""
  # The programs import these modules. A program itself is imported once only,
  # since it defines flags.
  for name in ("training.run", "retrieval.model", "command_line.program"):
    __import__(f"mlir_jax.{name}")
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  for line in sys.stdin:
    task = json.loads(line)
    with tempfile.TemporaryDirectory() as folder:
      streams = {
        name: os.open(f"{folder}/{name}", os.O_RDWR | os.O_CREAT)
        for name in ("stdout", "stderr")
      }
      with warnings.catch_warnings(action="ignore"):  # JAX warns of forks.
        process = os.fork()
      if not process:
        _become(task, streams)
      ended = os.pidfd_open(process)
      if not select.select([ended], [], [], task["seconds"])[0]:
        os.kill(process, signal.SIGKILL)
        answer = {"returncode": None}
        os.waitpid(process, 0)
      else:
        _, status = os.waitpid(process, 0)
        answer = {"returncode": os.waitstatus_to_exitcode(status)}
      os.close(ended)
      for name, stream in streams.items():
        os.close(stream)
        written = pathlib.Path(folder, name).read_bytes()
        answer[name] = written.decode(errors="backslashreplace")
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
  _serve()
