#!/usr/bin/env python3
"""Stands in for srun, so that launch/slurm.sh can be tested.

It starts SLURM_NTASKS tasks on this machine, as if on node7, and reports their
ends as srun does: one line each, and the highest status.
"""

import os
import pathlib
import subprocess
import sys


def main():
  words = sys.argv[1:]
  flags = {}
  while words[0].startswith("--"):
    name, _, value = words.pop(0)[2:].partition("=")
    flags[name] = value
  assert flags["kill-on-bad-exit"] == "0"
  assert int(flags["wait"]) >= 300
  assert flags["cpus-per-task"] == os.environ["SLURM_CPUS_PER_TASK"]
  tasks = []
  for task in range(int(os.environ["SLURM_NTASKS"])):
    path = flags["output"].replace("%t", str(task)).replace("%N", "node7")
    with pathlib.Path(path).open("w") as log:
      tasks.append(
        subprocess.Popen(
          words,
          stdout=log,
          stderr=subprocess.STDOUT,
          env=os.environ | {"SLURM_PROCID": str(task)},
        )
      )
  statuses = [task.wait() for task in tasks]
  for task, status in enumerate(statuses):
    if status:
      print(
        f"srun: error: node7: task {task}: Exited with exit code {status}",
        file=sys.stderr,
      )
  sys.exit(max(statuses))


if __name__ == "__main__":
  main()
