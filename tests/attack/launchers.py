"""Hostile names and numbers in all input of the launchers' shells."""

import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import yaml
from attack import scoreboard

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
FAKES = ROOT / "tests" / "fakes"
RUN = "touch EXECUTED"

# A shell may read these as more than a number.
NUMBERS = {
  "an array's index": f"HOME[$({RUN})0]",
  "a substitution": f"$({RUN})",
  "backticks": f"`{RUN}`",
  "a second command": f"1;{RUN}",
  "a second line": f"1\n{RUN}\n",
  "a trailing newline": "1\n",
  "a blank": "1 2",
  "a quote": "1'",
  "a double quote": '1"',
  "a glob": "*",
  "-1": "-1",
  "a flag": "--help",
  "08": "08",
  "5,000 digits": "1" * 5000,
  "nothing": "",
  "a fraction": "1.5",
  "hexadecimal": "0x10",
  "an Arabic digit": "\u0663",
  "a name": "PATH",
  "an assignment": "x=1",
}
# A shell may read these as more than a name. None has a "/".
NAMES = {
  "an array's index": f"a[$({RUN})0]",
  "a substitution": f"$({RUN})",
  "backticks": f"`{RUN}`",
  "a second command": f"a; {RUN} #",
  "a second line": f"a\n{RUN}\nb",
  "a trailing newline": "a\n",
  "blanks": " a  b ",
  "quotes": "a'b\"c",
  "quotes that close": f"a'; {RUN}; '\"; {RUN}; \"",
  "a glob": "*?[a-z]{1,2}",
  "a leading -": "-rf",
  "a tilde": "~",
  "a backslash": "a\\",
  "08": "08",
  "200 digits": "1" * 200,
  "an expansion": "${HOME:=x}!!",
  "a percent sign": "a%t%N",
  "an equals sign": "a=b",
}


# Arithmetic reads these names as something else, or not at all.
TO_ARITHMETIC = (
  "an array's index",
  "a second line",
  "08",
  "200 digits",
  "a leading -",
  "a glob",
)


# --- Starting them ------------------------------------------------------------


def environment(folder: pathlib.Path, plan: str, **variables: str) -> dict:
  kept = {
    name: value
    for name, value in os.environ.items()
    if name != "CUDA_VISIBLE_DEVICES"
    and not name.startswith(("SLURM_", "MLIR_JAX_"))
  }
  mine = {
    "PYTHON": str(FAKES / "trainer.py"),
    "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
    "FAKE_PLAN": plan,
    "FAKE_CLOUD": str(folder),
    "FAKE_BUCKET": str(folder),
    "JAX_PLATFORMS": "cpu",
  }
  return kept | mine | variables


def command(folder: pathlib.Path, name: str, lines: str) -> None:
  """A command that the launcher finds first."""
  (folder / "bin").mkdir(exist_ok=True)
  (folder / "bin" / name).write_text(f"#!/bin/sh\n{lines}\n")
  (folder / "bin" / name).chmod(0o755)


def fake(name: str) -> str:
  return f'exec "{sys.executable}" "{FAKES / name}.py" "$@"'


def run(
  folder: pathlib.Path, words: list, plan: str = "0", **variables: str
) -> subprocess.CompletedProcess:
  """Runs a launcher in this folder to its end."""
  return subprocess.run(
    words,
    capture_output=True,
    text=True,
    errors="backslashreplace",
    timeout=20,
    cwd=folder,
    env=environment(folder, plan, **variables),
  )


def local(folder, *flags, arguments=("--workdir=w",), plan="0", **variables):
  words = [LAUNCH / "local.sh", *(flags or ("-n", "1")), "--", *arguments]
  return run(folder, words, plan, **variables)


def slurm(folder, arguments=("--workdir=w",), plan="0", **variables):
  command(folder, "srun", fake("srun"))
  command(folder, "scontrol", 'echo "$@" >>queue')
  mine = {
    "SLURM_JOB_ID": "17",
    "SLURM_NTASKS": "1",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_GPUS_ON_NODE": "1",
    "SLURM_CPUS_PER_TASK": "8",
    "SLURM_JOB_NODELIST": "node7",
  }
  words = [LAUNCH / "slurm.sh", *arguments]
  return run(folder, words, plan, **mine | variables)


SLICE = {"name": "my-slice", "zone": "us-z"}
NEW = {"type": "v5litepod-8", "runtime": "v2-alpha-tpuv5-lite"}


def tpu_vm(
  folder,
  arguments=("--workdir=gs://bucket/run",),
  plan="0,0",
  gcloud="",
  more=(),
  trainer=None,
  **flags,
):
  """The launcher on two hosts.

  Args:
    folder: Where it is started, and the cloud.
    arguments: The trainer's.
    plan: How the trainers of the hosts end.
    gcloud: Lines of sh before the fake's.
    more: Other flags.
    trainer: A line of sh in the place of the fake trainer.
    **flags: The launcher's.
  """
  command(folder, "gcloud", f"{gcloud}\n{fake('gcloud')}")
  command(folder, "python3", trainer or fake("trainer"))
  command(folder, "sleep", "exec /bin/sleep 0.1")
  if "type" not in flags:
    (folder / "state").write_text("READY")
  flags = [f"--{name}={value}" for name, value in (SLICE | flags).items()]
  words = [LAUNCH / "tpu_vm.sh", *flags, *more, "--", *arguments]
  return run(folder, words, plan)


def calls(workdir: pathlib.Path) -> list[dict]:
  """Returns the calls of the trainer."""
  path = workdir / "calls.jsonl"
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().splitlines()]


def check_ran(
  ended: subprocess.CompletedProcess,
  workdir: pathlib.Path,
  arguments: tuple[str, ...],
  processes: int = 1,
  names: tuple[str, ...] = (),
) -> list[dict]:
  """Checks that it was refused, or the trainer had just these arguments."""
  scoreboard.check_ended(ended, names)
  found = calls(workdir)
  scoreboard.expect(found, f"the trainer did not run: {ended.stderr[-500:]}")
  last = max(call["attempt"] for call in found)
  scoreboard.expect(
    sum(call["attempt"] == last for call in found) == processes, found
  )
  for call in found:
    given = tuple(call["arguments"][-len(arguments) :])
    scoreboard.expect(given == arguments, call["arguments"])
  return found


def refused(start: Callable, names: tuple[str, ...] = ()) -> Callable:
  """An attack that must be refused."""

  def attack(folder):
    ended = start(folder)
    scoreboard.check_ended(ended, names)
    scoreboard.expect(False, f"accepted: {ended.stderr[-500:]}")

  return attack


# --- local.sh -----------------------------------------------------------------


def local_cases() -> Iterator[scoreboard.Case]:
  right = "it is refused, and the flag is named"
  for flag in ("-n", "-d", "-w", "-r"):
    for kind, value in NUMBERS.items():
      flags = (flag, value) if flag == "-n" else ("-n", "1", flag, value)
      start = functools.partial(_local_with, flags)
      yield scoreboard.Case(
        f"local {flag}/{kind}", right, refused(start, (flag,))
      )

  right = "the trainer has the argument to the letter, or it is refused"
  for kind, name in NAMES.items():

    def workdir(folder, name=name):
      arguments = (f"--config={name}", f"--workdir={folder / name}", name)
      check_ran(local(folder, arguments=arguments), folder / name, arguments)
      logs = folder / name / "logs" / "attempt-1" / "process-0.log"
      scoreboard.expect(logs.is_file(), "the log is elsewhere")

    def relative(folder, name=name):
      arguments = ("--config=x", f"--workdir={name}")
      check_ran(local(folder, arguments=arguments), folder / name, arguments)

    def checkpoint(folder, name=name):
      (folder / "w" / "checkpoints" / name).mkdir(parents=True)
      ended = local(folder, plan="75;save5:75;0")
      check_ran(ended, folder / "w", ("--workdir=w",))

    def attempt(folder, name=name):
      (folder / "w" / "logs" / f"attempt-{name}").mkdir(parents=True)
      (folder / "w" / "logs" / "attempt-1").mkdir(parents=True)
      old = folder / "w" / "logs" / "attempt-1" / "process-0.log"
      old.write_text("old")
      check_ran(local(folder), folder / "w", ("--workdir=w",))
      scoreboard.expect(old.read_text() == "old", "an old log is lost")

    yield scoreboard.Case(f"local workdir/{kind}", right, workdir)
    if kind in ("a leading -", "a tilde", "08", "a second line"):
      yield scoreboard.Case(f"local relative workdir/{kind}", right, relative)
    if kind in TO_ARITHMETIC:
      yield scoreboard.Case(
        f"local checkpoint/{kind}", "the name is passed over", checkpoint
      )
      yield scoreboard.Case(
        f"local attempt/{kind}", "no earlier log is lost", attempt
      )

  for variable in (
    "CUDA_VISIBLE_DEVICES",
    "JAX_PLATFORMS",
    "JAX_NUM_CPU_DEVICES",
    "MLIR_JAX_SECRET",
    "MLIR_JAX_SECRET_FILE",
    "CDPATH",
    "TMPDIR",
    "HOME",
  ):
    for kind in ("an array's index", "a second line"):
      yield scoreboard.Case(
        f"local {variable}/{kind}",
        "it is not run; it is refused, or the trainer runs",
        functools.partial(_local_variable, variable, NAMES[kind]),
      )

  for kind in ("an array's index", "a second line", "08", "-1", "nothing"):

    def smi(folder, value=NUMBERS[kind]):
      (folder / "said").write_text(value)
      command(folder, "nvidia-smi", f"cat '{folder}/said'")
      ended = local(folder, JAX_PLATFORMS="")
      check_ran(ended, folder / "w", ("--workdir=w",))

    yield scoreboard.Case(
      f"local nvidia-smi/{kind}",
      "what it prints is not run, and the trainer runs",
      smi,
    )

  def python_with_blanks(folder):
    home = folder / "my 'python' $(touch EXECUTED)"
    home.mkdir()
    shutil.copy(FAKES / "trainer.py", home)
    ended = local(folder, PYTHON=str(home / "trainer.py"))
    check_ran(ended, folder / "w", ("--workdir=w",))

  def python_with_commands(folder):
    ended = local(folder, PYTHON=f"{FAKES / 'trainer.py'}; {RUN}")
    scoreboard.expect(ended.returncode, "accepted")
    scoreboard.expect(not calls(folder / "w"), "the trainer ran")

  def launcher_elsewhere(folder):
    home = folder / "a '\"; touch EXECUTED #$(touch EXECUTED)\nb"
    home.mkdir()
    shutil.copy(LAUNCH / "local.sh", home)
    words = [home / "local.sh", "-n", "1", "--", "--workdir=w"]
    check_ran(run(folder, words), folder / "w", ("--workdir=w",))

  yield scoreboard.Case("local PYTHON/blanks", right, python_with_blanks)
  yield scoreboard.Case(
    "local PYTHON/a second command",
    "it is a name, not a line: no such command",
    python_with_commands,
  )
  yield scoreboard.Case("local folder/hostile", right, launcher_elsewhere)

  for kind, arguments, where in flags_of_workdir("", "v", "w"):

    def which(folder, arguments=arguments, where=where):
      ended = local(folder, arguments=arguments)
      scoreboard.check_ended(ended, ("workdir",))
      scoreboard.expect(where, f"accepted: {ended.stderr}")
      log = folder / where / "logs" / "attempt-1" / "process-0.log"
      scoreboard.expect(log.is_file(), f"no {log.name} in {where}")

    yield scoreboard.Case(f"local workdir flag/{kind}", SAME_WORKDIR, which)


SAME_WORKDIR = "launcher and trainer mean the same workdir, or it is refused"


def flags_of_workdir(
  root: str, one: str, other: str
) -> Iterator[tuple[str, tuple[str, ...], str]]:
  """Yields ways to give the workdir, and the workdir that the trainer uses."""
  one, other = f"{root}{one}", f"{root}{other}"
  yield "none", ("--config=x",), ""
  yield "empty", ("--workdir=",), ""
  yield "two", (f"--workdir={one}", f"--workdir={other}"), other
  yield "two words", ("--workdir", other), other
  yield "two ways", (f"--workdir={one}", "--workdir", other), other
  yield "one dash", (f"--workdir={one}", f"-workdir={other}"), other
  yield "another flag", (f"--workdirs={one}", f"--workdir={other}"), other
  yield "behind --", (f"--workdir={other}", "--", f"--workdir={one}"), other
  yield "only behind --", ("--", f"--workdir={one}"), ""


def _local_with(flags, folder):
  return local(folder, *flags)


def _local_variable(variable, value, folder):
  ended = local(folder, **{variable: value})
  found = check_ran(ended, folder / "w", ("--workdir=w",))
  if variable.startswith("MLIR_JAX_SECRET"):
    secret, mode = found[0]["secret"]
    scoreboard.expect(
      mode is None and secret and len(secret) == 64, f"secret {secret!r}"
    )


# --- slurm.sh -----------------------------------------------------------------


def slurm_cases() -> Iterator[scoreboard.Case]:
  right = "it is not run; it is refused, or the trainer runs"
  for variable in (
    "SLURM_JOB_ID",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_GPUS_ON_NODE",
    "SLURM_CPUS_PER_TASK",
    "SLURM_JOB_NODELIST",
    "SLURM_RESTART_COUNT",
    "SLURM_SUBMIT_DIR",
    "MLIR_JAX_SECRET",
  ):
    for kind, value in NUMBERS.items():

      def of_variable(folder, variable=variable, value=value):
        ended = slurm(folder, **{variable: value})
        found = check_ran(ended, folder / "w", ("--workdir=w",))
        if variable == "MLIR_JAX_SECRET":
          secret, _ = found[0]["secret"]
          scoreboard.expect(len(secret or "") == 64, f"secret {secret!r}")

      # Each starts processes; the kinds that are not numbers are alike.
      if variable == "SLURM_RESTART_COUNT" or kind in (
        "an array's index",
        "a second line",
        "08",
        "5,000 digits",
      ):
        yield scoreboard.Case(f"slurm {variable}/{kind}", right, of_variable)

  right = "the trainer has the argument to the letter, or it is refused"
  for kind, name in NAMES.items():

    def workdir(folder, name=name):
      arguments = (f"--config={name}", f"--workdir={folder / name}", name)
      check_ran(slurm(folder, arguments), folder / name, arguments)

    def checkpoint(folder, name=name):
      (folder / "w" / "checkpoints" / name).mkdir(parents=True)
      ended = slurm(folder, plan="75")
      check_ran(ended, folder / "w", ("--workdir=w",))
      scoreboard.expect(
        (folder / "queue").read_text() == "requeue 17\n", "not queued again"
      )

    yield scoreboard.Case(f"slurm workdir/{kind}", right, workdir)
    if kind in TO_ARITHMETIC:
      yield scoreboard.Case(
        f"slurm checkpoint/{kind}", "the name is passed over", checkpoint
      )

  for kind, value in NUMBERS.items():

    def stalled(folder, value=value):
      (folder / "w" / "logs").mkdir(parents=True)
      (folder / "w" / "logs" / "slurm-17-stalled").write_text(value)
      ended = slurm(folder, plan="75", SLURM_RESTART_COUNT="1")
      # The first start of the fake's plan is its attempt 0.
      check_ran(ended, folder / "w", ("--workdir=w",))

    yield scoreboard.Case(
      f"slurm stalled file/{kind}",
      "its content is not run; the count begins again, or is refused",
      stalled,
    )

  def scontrol_fails(folder):
    command(folder, "srun", fake("srun"))
    words = [LAUNCH / "slurm.sh", "--workdir=w"]
    command(folder, "scontrol", "echo '$(touch EXECUTED)' >&2; exit 1")
    ended = run(
      *(folder, words, "75"),
      SLURM_JOB_ID="17",
      SLURM_NTASKS="1",
      SLURM_NTASKS_PER_NODE="1",
      SLURM_CPUS_PER_TASK="1",
      SLURM_JOB_NODELIST="node7",
    )
    scoreboard.expect(ended.returncode, "it says that all is well")

  def link_in_logs(folder):
    """Others may write to a shared folder: a log must not go elsewhere."""
    (folder / "w" / "logs").mkdir(parents=True)
    (folder / "precious").write_text("kept")
    (folder / "w" / "logs" / "slurm-17-stalled").symlink_to(folder / "precious")
    check_ran(slurm(folder, plan="75"), folder / "w", ("--workdir=w",))
    kept = (folder / "precious").read_text()
    scoreboard.expect(kept == "kept", f"it was overwritten: {kept!r}")

  yield scoreboard.Case(
    "slurm scontrol/fails", "the job ends as failed", scontrol_fails
  )
  yield scoreboard.Case(
    "slurm stalled file/a link", "the link is not followed", link_in_logs
  )
  for kind, arguments, where in flags_of_workdir("", "v", "w"):

    def which(folder, arguments=arguments, where=where):
      ended = slurm(folder, arguments)
      scoreboard.check_ended(ended, ("workdir",))
      logs = folder / where / "logs" / "slurm-17-attempt-1"
      scoreboard.expect(where and logs.is_dir(), f"accepted: {ended.stderr}")

    yield scoreboard.Case(f"slurm workdir flag/{kind}", SAME_WORKDIR, which)


# --- tpu_vm.sh ----------------------------------------------------------------


def tpu_cases() -> Iterator[scoreboard.Case]:
  right = "it is refused, and the flag is named"
  for flag in ("limit", "retries"):
    for kind, value in NUMBERS.items():
      start = functools.partial(tpu_vm, **{flag: value})
      yield scoreboard.Case(
        f"tpu_vm --{flag}/{kind}", right, refused(start, (flag,))
      )
  for flag in ("name", "zone", "type", "runtime"):
    for kind, value in (NAMES | {"nothing": "", "a comma": "a,b"}).items():
      flags = (NEW if flag in NEW else {}) | {flag: value}
      if flag in NEW:
        flags = NEW | {flag: value}
      start = functools.partial(tpu_vm, **flags)
      if kind in ("08", "200 digits", "an equals sign"):
        continue  # This is gcloud's task.
      yield scoreboard.Case(
        f"tpu_vm --{flag}/{kind}", right, refused(start, (flag,))
      )

  right = "the trainer has the argument to the letter, or it is refused"
  for kind, name in NAMES.items():
    if kind in ("200 digits", "a tilde", "an equals sign", "blanks"):
      continue  # Seconds each; these are tried among all names.

    def workdir(folder, name=name):
      arguments = ("--config=x", f"--workdir=gs://bucket/{name}")
      ended = tpu_vm(folder, arguments)
      check_ran(ended, folder / "bucket" / name, arguments, 2)

    def checkpoint(folder, name=name):
      (folder / "bucket" / "run" / "checkpoints" / name).mkdir(parents=True)
      ended = tpu_vm(folder, plan="75,75;0,0")
      arguments = ("--workdir=gs://bucket/run",)
      check_ran(ended, folder / "bucket" / "run", arguments, 2)

    yield scoreboard.Case(f"tpu_vm workdir/{kind}", right, workdir)
    if kind in TO_ARITHMETIC[:3]:
      yield scoreboard.Case(
        f"tpu_vm checkpoint/{kind}", "the name is passed over", checkpoint
      )

  def all_names(folder):
    given = (*NAMES.values(), *NUMBERS.values(), "--workdir=gs://bucket/run")
    ended = tpu_vm(folder, given)
    check_ran(ended, folder / "bucket" / "run", given, 2)

  yield scoreboard.Case("tpu_vm arguments/all names", right, all_names)

  arguments = ("--workdir=gs://bucket/run",)
  for kind in (
    *("an array's index", "a second line", "backticks", "-1", "08"),
    *("5,000 digits", "nothing", "a fraction", "a glob"),
  ):
    value = NUMBERS[kind]

    def hosts(folder, value=value):
      (folder / "said").write_text(value)
      says = 'case "$*" in *networkEndpoints*) cat "$FAKE_CLOUD/said"; exit;;'
      ended = tpu_vm(folder, gcloud=f"{says} esac")
      # Without an answer, the slice may be gone. The launcher tries 3 times.
      scoreboard.expect(
        ended.returncode == (2 if value else 69), ended.stderr[-300:]
      )

    def host_files(folder, value=value):
      for host in ("host-0", "host-1"):
        (folder / host).mkdir()
        (folder / host / ".mlir_jax.pid").write_text(value)
        (folder / host / ".mlir_jax.id").write_text(value)
      check_ran(tpu_vm(folder), folder / "bucket" / "run", arguments, 2)

    yield scoreboard.Case(
      f"tpu_vm number of hosts/{kind}",
      "what gcloud prints is not run; the launcher gives up",
      hosts,
    )
    if kind in ("an array's index", "a second line", "-1", "5,000 digits"):
      yield scoreboard.Case(
        f"tpu_vm file on a host/{kind}",
        "its content is not run; the run is done",
        host_files,
      )

  def state(folder):
    says = "case \"$*\" in *'value(state)'*) echo '$(touch EXECUTED)'; exit;;"
    ended = tpu_vm(folder, gcloud=f"{says} esac")
    scoreboard.expect(ended.returncode, "it says that all is well")

  def setup_once(folder):
    """--setup is a command: the user may write anything in it."""
    line = "printf '%s\\n' \"it's\" '$HOME' >'set up'; false || true"
    ended = tpu_vm(folder, setup=line)
    check_ran(ended, folder / "bucket" / "run", arguments, 2)
    said = (folder / "host-1" / "set up").read_text()
    scoreboard.expect(said == "it's\n$HOME\n", said)

  def setup_fails(folder):
    ended = tpu_vm(folder, setup="exit 7")
    scoreboard.expect(ended.returncode, "it says that all is well")
    scoreboard.expect(not calls(folder / "bucket" / "run"), "it ran")

  def link_on_host(folder):
    """A link at the path of the secret is not followed."""
    for host in ("host-0", "host-1"):
      (folder / host).mkdir()
      (folder / host / "precious").write_text("kept")
      (folder / host / ".mlir_jax.secret").symlink_to("precious")
    ended = tpu_vm(folder)
    found = check_ran(ended, folder / "bucket" / "run", arguments, 2)
    scoreboard.expect(
      (folder / "host-0" / "precious").read_text() == "kept", "overwritten"
    )
    scoreboard.expect(found[0]["secret"][1] == 0o600, found[0]["secret"])

  def readable_secret(folder):
    """A secret's file that others can read is not used again."""
    for host in ("host-0", "host-1"):
      (folder / host).mkdir()
      (folder / host / ".mlir_jax.secret").write_text("x" * 64)
      (folder / host / ".mlir_jax.secret").chmod(0o666)
    ended = tpu_vm(folder)
    found = check_ran(ended, folder / "bucket" / "run", arguments, 2)
    secret, mode = found[0]["secret"]
    scoreboard.expect(mode == 0o600 and secret != "x" * 64, (secret, mode))

  def secret_in_words(folder):
    """The secret is not on a command line, which all users of a host see."""
    ended = tpu_vm(folder)
    found = check_ran(ended, folder / "bucket" / "run", arguments, 2)
    secret, _ = found[0]["secret"]
    words = (folder / "gcloud.txt").read_text() + ended.stdout + ended.stderr
    scoreboard.expect(secret not in words, "the secret can be seen")

  for name, right, attack in (
    ("gcloud's state/hostile", "it is not run, and not ready", state),
    ("--setup/quotes", "it runs on each host as it is", setup_once),
    ("--setup/fails", "the run is not started", setup_fails),
    ("secret/a link", "the link is not followed", link_on_host),
    ("secret/others can read it", "it is made new, mode 600", readable_secret),
    ("secret/command lines", "it is in none", secret_in_words),
  ):
    yield scoreboard.Case(f"tpu_vm {name}", right, attack, seconds=30)

  for kind, given, where in flags_of_workdir("gs://bucket/", "v", "w"):

    def which(folder, given=given, where=where):
      ended = tpu_vm(folder, given, trainer="exit 0")
      scoreboard.check_ended(ended, ("workdir",))
      asked = (folder / "gcloud.txt").read_text()
      scoreboard.expect(f"storage ls {where}/" in asked, asked)

    yield scoreboard.Case(f"tpu_vm workdir flag/{kind}", SAME_WORKDIR, which)
  for kind, given in (
    ("a folder of this machine", ("--workdir=w",)),
    ("a bucket alone", ("--workdir=gs://",)),
  ):
    yield scoreboard.Case(
      f"tpu_vm workdir flag/{kind}",
      "it is refused, and the flag is named",
      refused(functools.partial(tpu_vm, arguments=given), ("workdir",)),
    )
  for kind, more in (
    ("an unknown flag", ("--nmae=x",)),
    ("a flag without its value", ("--limit",)),
    ("a word", ("WORD;$(touch EXECUTED)",)),
  ):
    named = more[0].partition("=")[0].partition(";")[0]
    yield scoreboard.Case(
      f"tpu_vm flags/{kind}",
      "it is refused, and the word is named",
      refused(functools.partial(tpu_vm, more=more), (named,)),
    )


# --- gke_jobset.yaml ----------------------------------------------------------


def gke_cases() -> Iterator[scoreboard.Case]:
  text = (LAUNCH / "gke_jobset.yaml").read_text()
  fields = ("<SERVICE-ACCOUNT>", "<IMAGE>", "<CONFIG>", "<RUN>")
  values = {
    "a quote": "it's",
    "a colon": "a: b",
    "a comment": "a #b",
    "a flow list": "[a, {b: c}]",
    "an alias": "*a &b",
    "a tag": '!!python/object/apply:os.system ["touch EXECUTED"]',
    "a backslash": "a\\nb\\",
    "a template": "{{ a }} %d",
    "a block": "|-",
    "a number": "08",
    "a truth": "yes",
    "nothing at all": "~",
  }
  for kind, value in values.items():

    def fill(folder, value=value):
      del folder
      filled = text
      for field in fields:
        filled = filled.replace(field, value.replace("'", "''"))
      (job,) = yaml.safe_load_all(filled)
      (empty,) = yaml.safe_load_all(text)

      def replaced(node):
        if isinstance(node, dict):
          return {key: replaced(child) for key, child in node.items()}
        if isinstance(node, list):
          return [replaced(child) for child in node]
        for field in fields if isinstance(node, str) else ():
          node = node.replace(field, value)
        return node

      scoreboard.expect(job == replaced(empty), "it is more than one value")

    yield scoreboard.Case(
      f"gke filled in/{kind}", "each value stays one value", fill
    )

  def make_secret(folder):
    """Returns the first command in the file's head, as the user copies it."""
    (line,) = [
      line.removeprefix("#").strip()
      for line in text.splitlines()
      if "create secret" in line
    ]
    command(folder, "kubectl", 'echo "$@" >said; cat /dev/stdin >secret')
    ended = run(folder, ["bash", "-c", line])
    scoreboard.check_ended(ended)
    secret = (folder / "secret").read_bytes()
    scoreboard.expect(
      len(secret) == 64 and set(secret) <= set(b"0123456789abcdef"), secret
    )
    said = (folder / "said").read_text()
    scoreboard.expect(secret.decode() not in said, said)

  yield scoreboard.Case(
    "gke secret/as its head says",
    "64 digits, without a newline, and in no command line",
    make_secret,
  )

  def no_shell(folder):
    """No shell reads the filled-in values."""
    del folder
    job = yaml.safe_load(text)
    container = job["spec"]["replicatedJobs"][0]["template"]["spec"][
      "template"
    ]["spec"]["containers"][0]
    words = [*container["command"], *container.get("args", [])]
    scoreboard.expect(
      words[0] == "python" and "-c" not in words and "sh" not in words, words
    )

  yield scoreboard.Case("gke command/no shell", "python itself", no_shell)


def cases() -> list[scoreboard.Case]:
  """Yields all attacks."""
  return [*local_cases(), *slurm_cases(), *tpu_cases(), *gke_cases()]


if __name__ == "__main__":
  scoreboard.main(cases())
