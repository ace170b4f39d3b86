#!/usr/bin/env python3
"""Stands in for gcloud, so that launchers and launch/README.md can be tested.

Its cloud is the folder FAKE_CLOUD: "state" holds the state of its one slice of
two hosts, whose homes are host-0 and host-1; buckets are folders, too. What it
was asked is in gcloud.txt. FAKE_SLICE has the name and the zone of the slice. A
host whose trainer is killed takes the slice with it, as a preemption does.
"""

import os
import pathlib
import shutil
import subprocess
import sys

CLOUD = pathlib.Path(os.environ["FAKE_CLOUD"])
STATE = CLOUD / "state"
HOSTS = 2

# What else launch/README.md asks for, as gcloud's manual has it: a word in
# capitals is an argument, and the flags are those that are needed.
USAGES = """
auth login
auth application-default login
auth configure-docker HOST --quiet
config set project PROJECT
services enable SERVICE SERVICE SERVICE
services enable SERVICE SERVICE
projects describe PROJECT --format
storage buckets create URL --location --uniform-bucket-level-access
storage buckets add-iam-policy-binding URL --role --member
storage rsync FOLDER URL --recursive
artifacts repositories create NAME --repository-format --location
artifacts repositories add-iam-policy-binding NAME --location --role --member
container clusters create NAME --location --num-nodes --machine-type
  --workload-pool
container clusters get-credentials NAME --location
container node-pools create NAME --cluster --location --num-nodes --machine-type
  --tpu-topology --spot
"""


def check_usage(words, flags):
  """Ends with an error if gcloud has no such command with these flags."""
  for usage in USAGES.replace("\n ", "").strip().splitlines():
    known = [word for word in usage.split() if not word.startswith("--")]
    needed = {word[2:] for word in usage.split() if word.startswith("--")}
    if len(known) == len(words) and all(
      given and (name.isupper() or name == given)
      for name, given in zip(known, words, strict=True)
    ):
      assert flags.keys() == needed, (words, flags)
      return
  sys.exit(f"unknown: {words}")


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
  if words[:2] != ["compute", "tpus"]:
    check_usage(words, flags)
    if words[:2] == ["storage", "rsync"]:
      shutil.copytree(words[2], CLOUD / words[3].removeprefix("gs://"))
    if words[0] == "projects":
      print(1234567)
    return
  group, verb, *copied, name = words[2:]
  wanted = os.environ.get("FAKE_SLICE", "my-slice us-z")
  assert f"{name.rstrip(':')} {flags['zone']}" == wanted
  match group, verb:
    case "queued-resources", "create":
      assert flags["accelerator-type"].startswith("v5litepod-")
      assert flags["runtime-version"] == "v2-alpha-tpuv5-lite"
      assert flags["node-id"] == name
      assert "spot" in flags
      STATE.write_text("READY")
    case "queued-resources", "delete":
      assert "force" in flags
      assert "quiet" in flags
      STATE.unlink()
    case "tpu-vm", "scp":
      assert name.endswith(":") and flags["worker"] == "all"
      for host in range(HOSTS):
        home = CLOUD / f"host-{host}"
        home.mkdir(exist_ok=True)
        for path in copied:
          shutil.copy(path, home)
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
