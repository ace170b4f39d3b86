"""The promises of the loop, with a step and a log that only record calls."""

import signal
import subprocess
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest

from mlir_jax.checkpoints import manager
from mlir_jax.training import loop, progress, stopping, timetable
from mlir_jax.training import run as run_lib


class Log:
  """Replaces `progress.Progress`."""

  def __init__(self, events):
    self.events = events

  def train(self, taken, metrics):
    self.events.append(("metrics", taken))

  def advance(self):
    pass

  def keep(self):
    pass

  def close(self):
    pass

  def say(self, text):
    said = text.partition(" All ")[0] if text[:4] == "Step" else text.split()[0]
    self.events.append(("say", said))


def run(
  steps=6,
  first=0,
  stop=None,
  bad=(),
  stop_at_dev=False,
  without_negatives=(),
  events=None,
  check_saved=lambda: None,
  **settings,
):
  events = [] if events is None else events
  stop = stop or stopping.StopSignal()

  def train_step(state, batch):
    events.append(("step", batch))
    in_a_row = state["in_a_row"] + 1 if batch in bad else 0
    return {"in_a_row": in_a_row}, {
      "loss/total": np.float32(1),
      "skipped_in_a_row": np.int32(in_a_row),
      "ir/queries_without_negatives": np.int32(
        3 * (batch in without_negatives)
      ),
    }

  settings = {
    "log_every": 2,
    "eval_every": 4,
    "save_every": 3,
    "max_nonfinite_steps": 3,
  } | settings

  def save(taken, state, dev):
    events.append(("save", taken, dev))

  def evaluate_dev(state, taken):
    events.append(("dev", taken))
    stop.requested = stop.requested or stop_at_dev
    return taken / 10

  error = None
  try:
    loop.train_loop(
      train_step,
      {"in_a_row": 0},
      ((step, step) for step in range(first, steps)),
      timetable.Timetable(steps, **settings),
      progress=Log(events),
      save=save,
      evaluate_dev=evaluate_dev,
      stop=stop,
      check_saved=check_saved,
    )
  except (stopping.Preempted, loop.NonFiniteError) as raised:
    error = raised
  return events, error


def test_metrics_are_fetched_once_a_step_after_the_next_was_dispatched(
  monkeypatch,
):
  fetched = []
  monkeypatch.setattr(
    jax, "device_get", lambda value: fetched.append(value) or value
  )
  events, _ = run(steps=7, eval_every=0, save_every=100, log_every=2)
  assert len(fetched) == 7
  # All metrics at steps that are logged; else only those that are watched.
  assert ["loss/total" in value for value in fetched] == [
      False, True, False, True, False, True, True,
  ]  # fmt: skip
  assert events.index(("metrics", 2)) > events.index(("step", 2))
  assert events.index(("metrics", 2)) < events.index(("step", 3))


def test_metrics_are_written_before_the_save_of_the_same_step():
  events, _ = run(log_every=1)
  for taken in (3, 4, 6):
    save = next(e for e in events if e[0] == "save" and e[1] == taken)
    assert events.index(("metrics", taken)) < events.index(save)


def test_an_evaluated_state_is_saved_with_its_dev_metric():
  events, _ = run()
  assert [e for e in events if e[0] == "save"] == [
    ("save", 3, None),
    ("save", 4, 0.4),
    ("save", 6, 0.6),
  ]


def test_a_stop_saves_and_exits_75():
  stop = stopping.StopSignal()
  stop.requested = True
  events, error = run(stop=stop)
  assert events == [("step", 0), ("save", 1, None), ("say", "Asked")]
  assert isinstance(error, SystemExit)
  assert error.code == 75


@pytest.mark.parametrize(
  "number, status", [(signal.SIGTERM, 75), (signal.SIGINT, 130)]
)
def test_a_signal_waits_for_unsaved_steps_and_otherwise_ends_the_run(
  number, status
):
  before = signal.getsignal(number)
  with stopping.StopSignal() as stop:
    stop.save_first()
    signal.raise_signal(number)
    assert stop.requested
    with pytest.raises(stopping.Preempted) as stopped:
      stop.saved()
    assert stopped.value.code == status
  with stopping.StopSignal(), pytest.raises(stopping.Preempted) as stopped:
    signal.raise_signal(number)
  assert stopped.value.code == status
  assert signal.getsignal(number) is before


def test_a_stop_that_a_callback_swallowed_is_raised_again(capsys):
  """JAX has such a callback for the garbage collector."""

  class Swallows:
    def __del__(self):
      signal.raise_signal(signal.SIGTERM)

  with pytest.raises(stopping.Preempted), stopping.StopSignal():
    Swallows()
    time.sleep(stopping.GRACE)
  # So is a stop that breaks work off.
  with stopping.StopSignal() as stop:
    stop.save_first()
    with stop.interruptible():
      Swallows()
      time.sleep(stopping.GRACE)
      pytest.fail("not broken off")
    assert stop.requested
  assert "Exception ignored" not in capsys.readouterr().err


def test_in_another_thread_the_programs_handlers_stay():
  before = threading.active_count()
  entered = []

  def enter():
    with stopping.StopSignal() as stop:
      entered.append((stop.requested, signal.getsignal(signal.SIGTERM)))

  handler = signal.getsignal(signal.SIGTERM)
  thread = threading.Thread(target=enter)
  thread.start()
  thread.join()
  assert entered == [(False, handler)]
  assert threading.active_count() == before


def test_a_signal_to_a_forked_child_does_not_stop_the_run():
  script = (
    "import os, signal, time; from mlir_jax.training import stopping\n"
    "with stopping.StopSignal() as stop:\n"
    "  stop.save_first()\n"
    "  child = os.fork()\n"
    "  if not child:\n"
    "    signal.raise_signal(signal.SIGTERM)\n"
    "    os._exit(3)\n"
    "  assert os.waitpid(child, 0)[1] == 3 << 8\n"
    "  time.sleep(1)\n"
    "  assert not stop.requested\n"
  )
  assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_an_interactive_session_is_not_ended(monkeypatch):
  monkeypatch.setattr(sys, "ps1", "In: ", raising=False)
  monkeypatch.setattr(stopping, "GRACE", 0.1)
  ended = []
  monkeypatch.setattr(stopping.StopSignal, "_end", lambda *_: ended.append(1))
  with stopping.StopSignal() as stop:
    stop.save_first()
    for _ in range(2):
      signal.raise_signal(signal.SIGINT)
    stop._unsaved = False  # The main thread takes long to end the run.
    time.sleep(1.5)
    assert stop.requested
  assert not ended


def test_a_stop_that_was_lost_before_the_first_step_is_passed_on(monkeypatch):
  asked = []
  others = types.SimpleNamespace(ask_to_stop=lambda: asked.append(1))
  monkeypatch.setattr(stopping, "_joined", lambda: others)
  stop = stopping.StopSignal()
  stop.requested = True
  stop.save_first()
  assert asked == [1]


def test_a_run_whose_main_thread_hangs_is_ended():
  """It hangs in compiled code. A second Ctrl-C ends the run at once."""
  script = (
    "import sys, time, ctypes; from mlir_jax.training import stopping\n"
    "with stopping.StopSignal() as stop:\n"
    "  if sys.argv[1:]: stop.save_first()\n"
    "  print('here', flush=True)\n"
    "  ctypes.PyDLL(None).sleep(60) if not sys.argv[1:] else time.sleep(60)"
  )
  for signals, arguments, status in (
    ([signal.SIGTERM], [], 75),
    ([signal.SIGINT, signal.SIGINT], ["steps"], 130),
  ):
    process = subprocess.Popen(
      [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"here\n"
    started = time.monotonic()
    for number in signals:
      process.send_signal(number)
      time.sleep(0.1)
    assert process.wait(30) == status
    assert time.monotonic() - started < stopping.GRACE + 5


def test_a_stop_at_a_step_to_evaluate_saves_without_evaluating():
  stop = stopping.StopSignal()
  stop.requested, stop.status = True, 130
  events, error = run(first=3, stop=stop)
  assert [e for e in events if e[0] != "metrics"] == [
    ("step", 3),
    ("save", 4, None),
    ("say", "Asked"),
  ]
  assert error.code == 130


def test_a_stop_during_an_evaluation_takes_no_further_step():
  stop = stopping.StopSignal()
  events, error = run(stop=stop, stop_at_dev=True)
  assert isinstance(error, stopping.Preempted)
  assert events[-2:] == [("save", 4, 0.4), ("say", "Asked")]


def test_a_stop_just_before_an_evaluation_skips_it():
  """The signal comes after the loop asked for it."""

  class Late(stopping.StopSignal):
    def reached(self, step):
      self.requested = True
      return False

  class Evaluation:
    def dev(self, params):
      pytest.fail("evaluated")

  state = types.SimpleNamespace(step=1, params={})
  saved = []
  with pytest.raises(stopping.Preempted):
    run_lib.take_steps(
      lambda state, batch: (state, {"skipped_in_a_row": np.int32(0)}),
      state,
      (batch for batch in [(1, None)]),
      timetable.Timetable(4, 10, 2, 500, 10),
      log=Log([]),
      checkpoints=types.SimpleNamespace(
        save=lambda taken, state, description, dev: saved.append((taken, dev)),
        check_saved=lambda: None,
        evaluated=lambda _: True,
      ),
      description=None,
      evaluation=Evaluation(),
      stop=Late(),
    )
  assert saved == [(2, None)]


def test_many_nonfinite_steps_in_a_row_stop_the_run_with_a_message():
  _, error = run(steps=12, bad={2, 3, 5, 6, 7, 8})
  assert isinstance(error, loop.NonFiniteError)
  assert "up to step 8" in str(error)
  assert "--from_step=6" in str(error)  # Step 6 was saved; step 8 is not.
  assert "learning_rate" in str(error)


def test_the_first_step_with_queries_without_negatives_is_printed():
  events, _ = run(steps=6, without_negatives={2, 4}, log_every=100)
  said = [e for e in events if e[0] == "say"]
  assert said == [("say", "Step 3: ir/queries_without_negatives=3.")]
  assert events.index(said[0]) < events.index(("step", 4))
  assert not [e for e in run()[0] if e[0] == "say"]


def test_few_nonfinite_steps_in_a_row_do_not_stop_the_run():
  _, error = run(steps=12, bad={2, 3, 5, 6, 8, 9})
  assert error is None


def test_a_short_run_that_skipped_all_of_its_steps_fails_and_is_not_saved():
  events, error = run(steps=2, bad={0, 1}, eval_every=0)
  assert isinstance(error, loop.NonFiniteError)
  assert not [event for event in events if event[0] == "save"]
  _, error = run(steps=2, bad={1})
  assert error is None


def test_a_failed_save_is_raised_at_the_next_step():
  asked = []

  def check_saved():
    asked.append(None)
    if len(asked) == 5:
      raise manager.SaveError("the disk is full")

  events = []
  with pytest.raises(manager.SaveError):
    run(events=events, steps=20, save_every=3, check_saved=check_saved)
  assert events[-1] == ("step", 4)


def open_log(workdir, first_step):
  return progress.Progress(
    str(workdir),
    first_step=first_step,
    last_step=10,
    sequences_per_step=4,
    tensorboard=False,
  )


def test_a_resumed_log_has_each_step_once(tmp_path):
  log = open_log(tmp_path, 0)
  for taken in range(1, 6):
    log.train(taken, {"loss/total": float(taken)})
  log.evaluation(4, {"dev": 0.5})
  log.close()
  # The last line was cut short by a kill.
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 6, "ki')
  log = open_log(tmp_path, 4)
  log.train(5, {"loss/total": 50.0})
  log.close()
  records = progress.read_metrics(str(tmp_path))
  assert [(r["step"], r["kind"]) for r in records] == [
      (1, "train"), (2, "train"), (3, "train"), (4, "train"), (4, "eval"),
      (5, "train"),
  ]  # fmt: skip
  assert records[-1]["loss/total"] == 50.0


def test_a_number_that_is_not_finite_is_null(tmp_path):
  log = open_log(tmp_path, 0)
  log.train(1, {"loss/total": float("nan")})
  log.close()
  (record,) = progress.read_metrics(str(tmp_path))
  assert record["loss/total"] is None
