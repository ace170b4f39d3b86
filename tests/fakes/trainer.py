#!/usr/bin/env python3
"""Stands in for `python -m mlir_jax.train`, so that launchers can be tested.

It obeys the same flags and ends as the variable FAKE_PLAN says: attempts
parted by ";", the processes of an attempt by ",". "75" is an exit status,
"kill" a death by SIGKILL, "hang" cannot be terminated, "wait" saves and ends
with 75 when terminated; "save5:" before any of these leaves a checkpoint of
step 5 first. How it was called stands in WORKDIR/calls.jsonl. Where no flag
numbers it, SLURM_PROCID does; FAKE_BUCKET is the folder that gs:// stands for.
"""

import json
import os
import pathlib
import signal
import sys
import time

VARIABLES = (
  "CUDA_VISIBLE_DEVICES",
  "JAX_NUM_CPU_DEVICES",
  "MLIR_JAX_SECRET",
  "MLIR_JAX_SECRET_FILE",
)


def starts(workdir, process):
  path = workdir / f"starts-{process}"
  return len(path.read_text()) if path.exists() else 0


def secret():
  """The run's secret, and the mode of its file, if it is in one."""
  path = os.environ.get("MLIR_JAX_SECRET_FILE")
  if not path:
    return os.environ.get("MLIR_JAX_SECRET"), None
  return pathlib.Path(path).read_text(), os.stat(path).st_mode & 0o777


def main():
  assert sys.argv[1:3] == ["-m", "mlir_jax.train"], sys.argv
  flags = dict(
    argument.lstrip("-").partition("=")[::2] for argument in sys.argv[3:]
  )
  bucket = os.environ.get("FAKE_BUCKET")
  workdir = pathlib.Path(flags["workdir"].replace("gs:/", str(bucket)))
  process = int(flags.get("process") or os.environ.get("SLURM_PROCID", 0))
  workdir.mkdir(parents=True, exist_ok=True)
  attempt = starts(workdir, process)
  (workdir / f"starts-{process}").write_text("x" * (attempt + 1))
  call = {
    "attempt": attempt,
    "process": process,
    "pid": os.getpid(),
    "interpreter": os.environ.get("FAKE_INTERPRETER"),
    "arguments": sys.argv[3:],
    "secret": secret(),
    "environment": {name: os.environ.get(name) for name in VARIABLES},
  }
  with (workdir / "calls.jsonl").open("a") as file:
    file.write(json.dumps(call) + "\n")
  print(f"Attempt {attempt} of process {process}", flush=True)

  plan = os.environ["FAKE_PLAN"].split(";")[attempt].split(",")
  # None ends before all have come.
  while any(starts(workdir, n) <= attempt for n in range(len(plan))):
    time.sleep(0.02)
  saved, _, end = plan[process].rpartition(":")
  if saved:
    step = saved.removeprefix("save")
    (workdir / "checkpoints" / step).mkdir(parents=True, exist_ok=True)
  if end == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
  if end == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (workdir / f"waits-{process}").touch()
  if end == "hang":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (workdir / f"waits-{process}").touch()
  if end in ("wait", "hang"):
    time.sleep(120)
  sys.exit(int(end))


if __name__ == "__main__":
  main()
