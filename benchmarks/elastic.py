"""Shows that a run survives the loss of any of its processes at any step.

python benchmarks/elastic.py --trials=20 --seed=0

It trains a small model with `launch/local.sh -n 4 -d 8`, undisturbed. Then it
trains once more for each trial; at a random step, one of the four processes is
killed (SIGKILL) or stopped (SIGSTOP). Each time

- the other three must end within LIMIT seconds and name the lost process;
- the launcher must continue with two processes to the end of the run, and leave
  no process;
- each step's losses must equal the undisturbed ones to LOSS_TOLERANCE, and the
  dev metric to DEV_TOLERANCE.

It prints a line per trial, and ends with status 1 if a trial failed.
"""

import argparse
import dataclasses
import gzip
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROCESSES, DEVICES, SURVIVORS = 4, 8, 2
STEPS = 40
DEV_METRIC = "dev/en/mrr@100"
LOSS_TOLERANCE = 1e-3
DEV_TOLERANCE = 0.002
SILENT = 10  # Seconds after which a silent process is lost.
LIMIT = 2 * SILENT  # Seconds within which the other processes must end.
HANGING = 5  # Seconds that the launcher waits for a process that hangs.

SETTINGS = {
  "data.collection": "folder",
  "data.reader": "in_process",
  "tokenizer.vocab_size": 300,
  "encoding.query.max_length": 16,
  "encoding.passage.max_length": 16,
  "encoding.sentence.max_length": 16,
  "model.hidden_size": 32,
  "model.num_layers": 1,
  "model.num_heads": 2,
  "model.intermediate_size": 64,
  "model.max_positions": 16,
  "model.dropout": 0.1,
  "batch.retrieval": 32,
  "batch.parallel": 16,
  "batch.monolingual": 16,
  "optim.warmup_steps": 5,
  "train.steps": STEPS,
  "train.log_every": 1,
  "train.checkpoint_every": 5,
  "train.self_check": False,
  "eval.every": STEPS // 2,
  "eval.at_start": False,
  "hosts.silent_seconds": SILENT,
}
ONE_LOSS = {
  "batch.parallel": 0,
  "batch.monolingual": 0,
  "loss.semantic.weight": 0.0,
  "loss.language.weight": 0.0,
}


class FailedError(Exception):
  """A trial failed; the message says why."""


def write_collection(root: pathlib.Path, facts: int = 240) -> None:
  """Writes invented facts in English, with translations and tests."""
  generator = random.Random(0)
  syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
  words = ["".join(generator.choices(syllables, k=3)) for _ in range(300)]

  def phrases(length):
    return [" ".join(generator.sample(words, length)) for _ in range(facts)]

  def write(name, lines):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
      file.writelines(f"{line}\n" for line in lines)

  questions, answers, sentences = phrases(3), phrases(6), phrases(5)
  # A question and its passage share a word, so the model can learn some.
  passages = [
    f"{question.split()[0]} {answer}"
    for question, answer in zip(questions, answers, strict=True)
  ]
  write(
    "ir/train.json",
    [
      json.dumps(
        [
          {
            "question": question,
            "positive_ctxs": [{"title": "", "text": passage}],
            "hard_negative_ctxs": [],
          }
          for question, passage in zip(questions, passages, strict=True)
        ]
      )
    ],
  )
  write("parallel/made.en-de.en", sentences)
  write("parallel/made.en-de.de", [sentence[::-1] for sentence in sentences])
  write("mono/made.fi.txt", [phrase[::-1] for phrase in phrases(5)])
  write(
    "eval/en/collection/docs.jsonl.gz",
    [
      json.dumps({"id": f"d{n}", "contents": f"\n\n{passage}"})
      for n, passage in enumerate(passages)
    ],
  )
  for split in ("dev", "test"):
    write(
      f"eval/en/topic.{split}.tsv",
      [f"q{n}\t{question}" for n, question in enumerate(questions)],
    )
    write(
      f"eval/en/qrels.{split}.txt", [f"q{n} Q0 d{n} 1" for n in range(facts)]
    )


def start(folder: pathlib.Path, collection: pathlib.Path) -> subprocess.Popen:
  """Starts the launcher; its output is written to FOLDER.log."""
  flags = {"data.root": collection, **SETTINGS}
  config = collection.parent / "own.py"
  config.write_text(
    "from mlir_jax import config\n\n\ndef get_config():\n"
    "  return config.default()\n"
  )
  with folder.with_suffix(".log").open("w") as log:
    return subprocess.Popen(
      [
        *(ROOT / "launch" / "local.sh", "-n", str(PROCESSES)),
        *("-d", str(DEVICES), "-w", str(HANGING), "--"),
        *(f"--config={config}", f"--workdir={folder}"),
        *(f"--config.{name}={value}" for name, value in flags.items()),
      ],
      stdout=log,
      stderr=subprocess.STDOUT,
      cwd=ROOT,
      env=os.environ
      | {
        "PYTHON": sys.executable,
        "JAX_PLATFORMS": "cpu",
      },
    )


def find_trainers(folder: pathlib.Path) -> dict[int, int]:
  """Returns the processes that train in a folder: number to pid."""
  found = {}
  for path in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      arguments = (path / "cmdline").read_text().split("\0")
    except OSError:  # The process has ended.
      continue
    if f"--workdir={folder}" in arguments and "mlir_jax.train" in arguments:
      for argument in arguments:
        if argument.startswith("--process="):
          found[int(argument.partition("=")[2])] = int(path.name)
  return found


def read_metrics(folder: pathlib.Path, kind: str) -> list[dict]:
  """Returns the complete lines of metrics.jsonl of a kind: "train", "eval"."""
  path = folder / "metrics.jsonl"
  text = path.read_text() if path.exists() else ""
  records = [json.loads(line) for line in text.splitlines(True) if "\n" in line]
  return [record for record in records if record["kind"] == kind]


def wait_for_step(
  launcher: subprocess.Popen, folder: pathlib.Path, step: int
) -> None:
  """Waits until metrics.jsonl shows that many steps."""
  while not any(r["step"] >= step for r in read_metrics(folder, "train")):
    if launcher.poll() is not None:
      raise FailedError(f"the run ended before step {step}")
    time.sleep(0.02)


def wait_for_others(
  folder: pathlib.Path, victim: int, pids: dict[int, int]
) -> float:
  """Waits until the other processes have ended; returns the seconds."""
  began = time.monotonic()
  others = {pid for number, pid in pids.items() if number != victim}
  while others & set(find_trainers(folder).values()):
    if time.monotonic() - began > LIMIT:
      raise FailedError(f"the others did not end within {LIMIT} s")
    time.sleep(0.05)
  return time.monotonic() - began


def check_logs(folder: pathlib.Path, victim: int) -> None:
  """Checks that the others named the victim, and that two continued."""
  for number in range(PROCESSES):
    text = (folder / f"logs/attempt-1/process-{number}.log").read_text()
    named = re.search(rf"process {victim} \(\S+\) (is gone|was silent)", text)
    if number != victim and not named:
      raise FailedError(f"process {number} did not name process {victim}")
  if f"going on with {SURVIVORS}" not in folder.with_suffix(".log").read_text():
    raise FailedError(f"the launcher did not go on with {SURVIVORS} processes")
  attempts = len(list((folder / "logs").iterdir()))
  logs = len(list((folder / "logs/attempt-2").iterdir()))
  if (attempts, logs) != (2, SURVIVORS):
    raise FailedError(f"{attempts} attempts, of {logs} processes in the second")


@dataclasses.dataclass
class Differences:
  """The largest differences from the undisturbed run, in losses and dev."""

  loss: float
  dev: float


def compare(folder: pathlib.Path, undisturbed: pathlib.Path) -> Differences:
  """Compares each step's losses and each dev metric of two runs."""
  worst = {}
  for kind, steps, tolerance in (
    ("train", range(1, STEPS + 1), LOSS_TOLERANCE),
    ("eval", (STEPS // 2, STEPS), DEV_TOLERANCE),
  ):
    ours, theirs = (read_metrics(f, kind) for f in (folder, undisturbed))
    for records in (ours, theirs):
      if [record["step"] for record in records] != list(steps):
        raise FailedError(f"not every step has one line of {kind}")
    worst[kind] = 0.0
    for our, their in zip(ours, theirs, strict=True):
      for name, value in their.items():
        if not (name.startswith("loss/") or name == DEV_METRIC):
          continue
        difference = abs(our[name] - value)
        worst[kind] = max(worst[kind], difference)
        if not difference <= tolerance:
          raise FailedError(
            f"{name} at step {our['step']} is {our[name]:.6f}, undisturbed"
            f" {value:.6f}"
          )
  return Differences(worst["train"], worst["eval"])


def end(launcher: subprocess.Popen, folder: pathlib.Path) -> None:
  """Waits for the launcher, and checks that it leaves no process."""
  try:
    status = launcher.wait(timeout=300)
  except subprocess.TimeoutExpired:
    raise FailedError("the run did not end within 300 s") from None
  if status:
    raise FailedError(f"the launcher ended with status {status}")
  if left := find_trainers(folder):
    raise FailedError(f"processes were left: {left}")


def kill_all(launcher: subprocess.Popen, folder: pathlib.Path) -> None:
  """Kills the processes that a failed trial has left."""
  launcher.kill()
  launcher.wait()
  for pid in find_trainers(folder).values():
    os.kill(pid, signal.SIGKILL)


def run_trial(
  folder: pathlib.Path,
  undisturbed: pathlib.Path,
  collection: pathlib.Path,
  step: int,
  victim: int,
  sent: signal.Signals,
) -> str:
  """Sends a signal to one process after a step.

  Args:
    folder: The new run's folder.
    undisturbed: The folder of the run to compare with.
    collection: The folder of the training data.
    step: The number of steps before the signal.
    victim: The number of the process.
    sent: SIGKILL or SIGSTOP.

  Returns:
    The measurements as text.

  Raises:
    FailedError: if the trial fails.
  """
  launcher = start(folder, collection)
  try:
    wait_for_step(launcher, folder, step)
    pids = find_trainers(folder)
    if sorted(pids) != list(range(PROCESSES)):
      raise FailedError(f"only processes {sorted(pids)} run")
    os.kill(pids[victim], sent)
    seconds = wait_for_others(folder, victim, pids)
    end(launcher, folder)
    check_logs(folder, victim)
    found = compare(folder, undisturbed)
  finally:
    kill_all(launcher, folder)
  return (
    f"named in {seconds:4.1f} s, losses within {found.loss:.0e},"
    f" dev within {found.dev:.4f}"
  )


def main():
  """Runs the trials and prints their results."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--trials", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--fast", action="store_true", help="Train with one loss, which compiles"
    " in a third of the time."
  )  # fmt: skip
  arguments = parser.parse_args()
  if arguments.fast:
    SETTINGS.update(ONE_LOSS)
  generator = random.Random(arguments.seed)
  output = pathlib.Path(tempfile.mkdtemp(prefix="elastic-"))
  collection = output / "collection"
  write_collection(collection)
  began = time.monotonic()
  undisturbed = output / "undisturbed"
  launcher = start(undisturbed, collection)
  try:
    end(launcher, undisturbed)
  except FailedError as error:
    sys.exit(f"The undisturbed run failed: {error}; see {output}.")
  finally:
    kill_all(launcher, undisturbed)
  final = read_metrics(undisturbed, "eval")[-1][DEV_METRIC]
  print(
    f"Undisturbed: {STEPS} steps, {DEV_METRIC} {final:.4f};"
    f" {time.monotonic() - began:.0f} s",
    flush=True,
  )
  failed = 0
  for trial in range(1, arguments.trials + 1):
    step = generator.randrange(1, STEPS - 4)
    victim = generator.randrange(PROCESSES)
    sent = generator.choice([signal.SIGKILL, signal.SIGSTOP])
    folder = output / f"trial-{trial}"
    began = time.monotonic()
    try:
      found = run_trial(folder, undisturbed, collection, step, victim, sent)
      shutil.rmtree(folder)
    except FailedError as error:
      failed += 1
      found = f"FAILED: {error}; see {folder}"
    print(
      f"{trial:3}  {sent.name} to process {victim} at step {step:2}: {found};"
      f" {time.monotonic() - began:.0f} s",
      flush=True,
    )
  print(f"{arguments.trials - failed} of {arguments.trials} trials passed.")
  if failed:
    sys.exit(1)
  shutil.rmtree(output)


if __name__ == "__main__":
  main()
