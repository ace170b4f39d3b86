"""A run goes on when a process is lost; the script that measures it can fail.

The script is benchmarks/elastic.py. Here it runs one trial; by default, twenty.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[1] / "benchmarks/elastic.py"


@pytest.fixture(scope="module")
def elastic():
  specification = importlib.util.spec_from_file_location("elastic", SCRIPT)
  module = importlib.util.module_from_spec(specification)
  sys.modules["elastic"] = module  # Its dataclasses look there.
  specification.loader.exec_module(module)
  return module


@pytest.mark.slow
def test_two_go_on_when_the_first_of_four_is_killed(tmp_path):
  """Seed 23 draws SIGKILL to process 0, to which the others are connected."""
  done = subprocess.run(
    [sys.executable, SCRIPT, "--trials=1", "--seed=23", "--fast"],
    capture_output=True,
    text=True,
    timeout=540,
    env=os.environ | {"TMPDIR": str(tmp_path)},
  )
  logs = [path.read_text()[-3000:] for path in tmp_path.rglob("*.log")]
  assert done.returncode == 0, "\n".join([done.stdout, done.stderr, *logs])
  assert "SIGKILL to process 0" in done.stdout
  assert "1 of 1 trials passed" in done.stdout
  assert not list(tmp_path.iterdir())


def write_run(elastic, folder, change=lambda record: record):
  """A finished run's metrics, some of them changed."""
  records = [
    {"step": step, "kind": "train", "loss/total": 1 / step, "loss/ir": 0.5}
    for step in range(1, elastic.STEPS + 1)
  ] + [
    {"step": step, "kind": "eval", elastic.DEV_METRIC: 0.5}
    for step in (elastic.STEPS // 2, elastic.STEPS)
  ]
  folder.mkdir()
  lines = [json.dumps(change(record)) for record in records]
  (folder / "metrics.jsonl").write_text("\n".join(filter(None, lines)) + "\n")
  return folder


@pytest.mark.parametrize(
  "changed, says",
  [
    ({"kind": "train", "step": 30, "loss/ir": 0.502}, "loss/ir at step 30"),
    ({"kind": "train", "step": 7, "loss/ir": float("nan")}, "loss/ir at step"),
    ({"kind": "eval", "step": 40, "dev/en/mrr@100": 0.503}, "dev/en/mrr@100"),
    ({"kind": "train", "step": 8, "loss/ir": 0.5, "repeat": 9}, "of train"),
  ],
)
def test_a_run_that_went_on_differently_is_found(
  elastic, tmp_path, changed, says
):
  repeat = changed.pop("repeat", None)

  def change(record):
    if (record["kind"], record["step"]) == (changed["kind"], changed["step"]):
      return record | changed | ({"step": repeat} if repeat else {})
    return record

  undisturbed = write_run(elastic, tmp_path / "undisturbed")
  same = elastic.compare(undisturbed, undisturbed)
  assert (same.loss, same.dev) == (0, 0)
  other = write_run(elastic, tmp_path / "other", change)
  with pytest.raises(elastic.FailedError, match=says):
    elastic.compare(other, undisturbed)


def test_a_survivor_that_names_nobody_is_found(elastic, tmp_path):
  folder = tmp_path / "run"
  for attempt, processes in ((1, 4), (2, 2)):
    (folder / f"logs/attempt-{attempt}").mkdir(parents=True)
    for number in range(processes):
      log = folder / f"logs/attempt-{attempt}/process-{number}.log"
      log.write_text(f"process {number}: process 1 (here) is gone: ...\n")
  launcher = folder.with_suffix(".log")
  launcher.write_text("1 died of 4: going on with 2\n")
  elastic.check_logs(folder, victim=1)
  with pytest.raises(elastic.FailedError, match="did not name process 2"):
    elastic.check_logs(folder, victim=2)
  (folder / "logs/attempt-3").mkdir()
  with pytest.raises(elastic.FailedError, match="3 attempts"):
    elastic.check_logs(folder, victim=1)
  launcher.write_text("1 died of 4: going on with 1\n")
  with pytest.raises(elastic.FailedError, match="did not go on with 2"):
    elastic.check_logs(folder, victim=1)
