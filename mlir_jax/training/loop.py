"""The loop around the step: it reports, evaluates, saves, and stops in time."""

import contextlib
import signal
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from mlir_jax.mesh import multihost
from mlir_jax.training import progress as progress_lib
from mlir_jax.training import step as step_lib

# The exit status that says: saved, start me again (BSD's EX_TEMPFAIL).
EXIT_PREEMPTED = 75


class Preempted(SystemExit):
  """The run was asked to stop, and can be started again.

  Attributes:
    together: Whether all processes of the run stop here, after saving.
  """

  def __init__(self, together: bool = False):
    super().__init__(EXIT_PREEMPTED)
    self.together = together


class NonFiniteError(FloatingPointError):
  """Too many steps in a row had numbers that were not finite."""


class StopSignal:
  """SIGTERM as a wish to stop, while this context is open.

  While steps are taken it is remembered, until the loop comes to a place
  where it can save; at other times the run ends at once, since what was
  saved last is whole.

  Attributes:
    requested: Whether SIGTERM came while steps were taken.
  """

  def __init__(self):
    self.requested = False
    self._waits = False
    self._before = None

  def __enter__(self) -> "StopSignal":
    self._before = signal.signal(signal.SIGTERM, self._receive)
    return self

  def __exit__(self, *_):
    signal.signal(signal.SIGTERM, self._before)

  @contextlib.contextmanager
  def remembered(self):
    """Within this context SIGTERM is remembered."""
    self._waits = True
    try:
      yield
    finally:
      self._waits = False

  def reached(self, step: int) -> bool:
    """Whether to save and stop after this step, the same in all processes.

    One that is alone stops when it was asked to. Several stop after a step
    that they agree on, soon after one of them was asked; each must ask this
    once after every step.
    """
    if multihost.joined():
      return multihost.reached_stop(step)
    return self.requested

  def _receive(self, *_):
    if not self._waits:
      raise Preempted
    self.requested = True
    if multihost.joined():
      multihost.ask_to_stop()


# How metrics end that count what a contrastive loss teaches nothing.
_WITHOUT_NEGATIVES = "_without_negatives"


def _without_negatives(taken: int, metrics: Mapping[str, Any]) -> str:
  """A line on queries or sentences without negatives; "" if there are none."""
  counts = [
    f"{name}={int(value)}"
    for name, value in metrics.items()
    if name.endswith(_WITHOUT_NEGATIVES) and value
  ]
  if not counts:
    return ""
  return (
    f"Step {taken:,}: {', '.join(counts)}. All other texts of the batch are"
    " equal to their positives or answer the same question, so these learn"
    " nothing from this loss. If metrics.jsonl shows many of them, look for"
    " repeated texts, or raise the batch size. (This line comes once.)"
  )


def train_loop(
  train_step: Callable,
  state: step_lib.TrainState,
  batches: Iterable[tuple[int, Any]],
  *,
  place: Callable[[Any], Any],
  last_step: int,
  progress: progress_lib.Progress,
  save: Callable[[int, step_lib.TrainState, float | None], None],
  evaluate_dev: Callable[[step_lib.TrainState, int], float | None],
  stop: StopSignal,
  log_every: int,
  eval_every: int,
  checkpoint_every: int,
  max_nonfinite_steps: int,
  check_saved: Callable[[], None] = lambda: None,
) -> step_lib.TrainState:
  """Takes steps until the batches end.

  The device is never waited for: the metrics of a step are fetched after the
  next one was dispatched. Before a save they are all written, so that a run
  killed at any moment finds each step's line once.

  Args:
    train_step: (state, batch) -> (state, metrics), jitted; it may donate.
    state: Before the first batch.
    batches: (step, host batch) in order.
    place: Puts a host batch on the devices.
    last_step: Steps of the whole run; it is saved, evaluated or not.
    progress: Where metrics go.
    save: (steps taken, state, dev metric or None).
    evaluate_dev: (state, steps taken) -> dev metric, None if there is no dev
      set; it writes what else it finds.
    stop: Asked after each step.
    log_every: Steps between lines of metrics.
    eval_every: Steps between dev evaluations; 0 for none.
    checkpoint_every: Steps between saves.
    max_nonfinite_steps: Skipped steps in a row that stop the run; so does a
      run that skipped all of its steps.
    check_saved: Raises if a save in the background failed; asked each step.

  Returns:
    The state after the last batch.

  Raises:
    Preempted: after saving, if a stop was requested.
    NonFiniteError: if too many steps in a row were skipped.
  """
  waiting = None
  told = False

  def report():
    nonlocal waiting, told
    if waiting is None:
      return
    taken, metrics = waiting
    waiting = None
    if taken % log_every == 0 or taken == last_step:
      metrics = jax.device_get(metrics)
      progress.train(taken, metrics)
    else:
      watched = {
        name: metrics[name]
        for name in metrics
        if name == "skipped_in_a_row" or name.endswith(_WITHOUT_NEGATIVES)
      }
      metrics = jax.device_get(watched)
    if not told and (line := _without_negatives(taken, metrics)):
      told = True
      progress.say(line)
    skipped = metrics["skipped_in_a_row"]
    if skipped >= min(max_nonfinite_steps, last_step):
      raise NonFiniteError(
        f"{skipped} steps in a row up to step {taken} had a loss, gradient or"
        " update that was not finite, and were skipped. The last checkpoint is"
        " whole; lower optim.learning_rate, set optim.clip_norm, or use"
        " model.dtype=float32."
      )

  with stop.remembered(), jax.transfer_guard("disallow"):
    first = True
    for step, batch in batches:
      batch = place(batch)
      # The first may have to be compiled, which takes some longer than others.
      multihost.report("starting" if first else multihost.STEP, step)
      first = False
      state, metrics = train_step(state, batch)
      report()  # Of the step before: the device has this one to work on.
      check_saved()
      taken = step + 1
      waiting = taken, metrics
      progress.advance()

      last = taken == last_step
      evaluate = eval_every and (taken % eval_every == 0 or last)
      stopping = stop.reached(taken)  # Once: the signal may come any time.
      if evaluate or last or stopping or taken % checkpoint_every == 0:
        report()
        multihost.report("evaluating" if evaluate else "saving")
        with jax.transfer_guard("allow"):
          dev = evaluate_dev(state, taken) if evaluate else None
          multihost.report("saving")
          save(taken, state, dev)
          progress.keep()
        multihost.report(multihost.STEP, step)  # The next batch may hang.
        if not multihost.joined():  # It may have come while evaluating.
          stopping = stopping or stop.requested
      if stopping:
        progress.say(
          f"Stopped by SIGTERM and saved at step {taken:,}; the same command"
          " goes on."
        )
        raise Preempted(together=True)
  return state
