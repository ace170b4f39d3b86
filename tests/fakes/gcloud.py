#!/usr/bin/env python3
"""Stands in for gcloud, so that launch/tpu_vm.sh can be tested.

Its cloud is the folder FAKE_CLOUD: "state" holds that of its one slice,
"my-slice" of two hosts, whose homes are host-0 and host-1; buckets are folders,
too. What it was asked stands in gcloud.txt. A host whose trainer is killed
takes the slice with it, as a preemption does.
"""

import os
import pathlib
import subprocess
import sys

CLOUD = pathlib.Path(os.environ["FAKE_CLOUD"])
STATE = CLOUD / "state"
HOSTS = 2


def main():
  with (CLOUD / "gcloud.txt").open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\n")
  words = [word for word in sys.argv[1:] if not word.startswith("--")]
  flags = dict(
    word[2:].partition("=")[::2]
    for word in sys.argv[1:]
    if word.startswith("--")
  )
  if words[:2] == ["storage", "ls"]:
    for path in (CLOUD / words[2].removeprefix("gs://")).glob("*"):
      print(f"{words[2]}{path.name}/")
    return
  compute, tpus, group, verb, name = words
  assert (compute, tpus, name) == ("compute", "tpus", "my-slice")
  assert flags["zone"] == "us-z"
  match group, verb:
    case "queued-resources", "create":
      assert flags["accelerator-type"] == "v5litepod-8"
      assert flags["runtime-version"] == "v2-alpha-tpuv5-lite"
      assert flags["node-id"] == name
      assert "spot" in flags
      STATE.write_text("READY")
    case "queued-resources", "delete":
      assert "force" in flags
      assert "quiet" in flags
      STATE.unlink()
    case "tpu-vm", "ssh":
      sys.exit(ssh(flags["worker"], flags["command"]))
    case _, "describe":
      if not STATE.exists():
        sys.exit("NOT_FOUND")
      ready = STATE.read_text() == "READY"
      print(
        {
          "value(state)": STATE.read_text(),
          "value(networkEndpoints.len())": HOSTS,
          "value(state.state)": "ACTIVE" if ready else "SUSPENDED",
        }[flags["format"]]
      )
    case _:
      sys.exit(f"unknown: {words}")


def ssh(worker, command):
  processes = []
  for host in range(HOSTS) if worker == "all" else [int(worker)]:
    home = CLOUD / f"host-{host}"
    home.mkdir(exist_ok=True)
    processes.append(
      subprocess.Popen(
        ["bash", "-c", command],
        cwd=home,
        env=os.environ | {"HOME": str(home), "SLURM_PROCID": str(host)},
      )
    )
  statuses = [process.wait() for process in processes]
  # setsid --wait gives the bare number of a signal.
  if "mlir_jax.train --distributed" in command and {-9, 9} & set(statuses):
    if os.environ.get("FAKE_PREEMPTS"):
      STATE.write_text("PREEMPTED")
    return 255
  return next(filter(None, statuses), 0)


if __name__ == "__main__":
  main()
