"""The loop around the step: it reports, evaluates, saves, and stops in time."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from mlir_jax.hosts import multihost
from mlir_jax.training import progress as progress_lib
from mlir_jax.training import step as step_lib
from mlir_jax.training import stopping, timetable


class NonFiniteError(FloatingPointError):
  """Too many steps in a row had numbers that were not finite."""


# The metrics that count queries or sentences without negatives end like this.
_WITHOUT_NEGATIVES = "_without_negatives"


def train_loop(
  train_step: Callable,
  state: step_lib.TrainState,
  batches: Iterable[tuple[int, Any]],
  times: timetable.Timetable,
  *,
  progress: progress_lib.Progress,
  save: Callable[[int, step_lib.TrainState, float | None], None],
  evaluate_dev: Callable[[step_lib.TrainState, int], float | None],
  stop: stopping.StopSignal,
  check_saved: Callable[[], None] = lambda: None,
) -> step_lib.TrainState:
  """Takes steps until the batches end.

  A stop signal before the first step ends the run at once. Later, the loop
  finishes the step, breaks off an evaluation, saves, and then ends the run.

  The loop never waits for the device: it fetches the metrics of a step after
  the next step was dispatched. Before a save it writes all metrics. So a run
  that is killed at any moment has one line for each step.

  Args:
    train_step: (state, batch) -> (state, metrics), jitted; it may donate.
    state: The state before the first batch.
    batches: (step, batch on the devices), in order.
    times: When to log, evaluate, save and fail.
    progress: Writes the metrics.
    save: Saves (steps taken, state, dev metric or None).
    evaluate_dev: (state, steps taken) -> dev metric. It is None if there is no
      dev set or a stop signal broke the evaluation off. The function writes
      all other results itself.
    stop: The stop signal; the loop looks at it after each step.
    check_saved: Raises if a save in the background failed. The loop calls it
      after each step.

  Returns:
    The state after the last batch.

  Raises:
    Preempted: after saving, if a stop was requested.
    NonFiniteError: if too many steps in a row were skipped.
  """
  late = _LateMetrics(times, progress)
  saved = 0
  with jax.transfer_guard("disallow"):
    first = True
    for step, batch in batches:
      # The first step may have to be compiled, which takes longer.
      multihost.report("starting" if first else multihost.STEP, step)
      if first:
        saved = step  # The state was restored from this step, or it is 0.
      state, metrics = train_step(state, batch)
      if first:
        stop.save_first()
      first = False
      late.report(saved)  # The step before; the device is busy with this one.
      check_saved()
      taken = step + 1
      late.add(taken, metrics)
      progress.advance()

      # Ask once: the signal may come at any time.
      stops = stop.reached(taken)
      evaluates = times.evaluates(taken) and not stops
      if stops or times.saves(taken):
        late.report(saved)
        multihost.report("evaluating" if evaluates else "saving")
        with jax.transfer_guard("allow"):
          dev = evaluate_dev(state, taken) if evaluates else None
          multihost.report("saving")
          save(taken, state, dev)
          saved = taken
          progress.keep()
        multihost.report(multihost.STEP, step)  # The next batch may hang.
        if not multihost.joined():
          # The signal may have come during the evaluation.
          stops = stops or stop.requested
      if stops:
        progress.say(
          f"Asked to stop, and saved at step {taken:,}; the same command goes"
          " on."
        )
        raise stopping.Preempted(stop.status, together=True)
  return state


class _LateMetrics:
  """Keeps the metrics of a step until the next step was dispatched."""

  def __init__(
    self, times: timetable.Timetable, progress: progress_lib.Progress
  ):
    self._times = times
    self._progress = progress
    self._waiting = None
    self._warned = False  # Of queries or sentences without negatives.

  def add(self, taken: int, metrics: Mapping[str, Any]) -> None:
    """Keeps the metrics of a step, which are still on the device."""
    self._waiting = taken, metrics

  def report(self, saved: int) -> None:
    """Fetches, checks and logs the metrics that were added last, once.

    Args:
      saved: The step of the last checkpoint, 0 without one; for the error.

    Raises:
      NonFiniteError: if too many steps in a row were skipped.
    """
    if self._waiting is None:
      return
    taken, metrics = self._waiting
    self._waiting = None
    if self._times.logs(taken):
      metrics = jax.device_get(metrics)
      self._progress.train(taken, metrics)
    else:
      metrics = jax.device_get(
        {name: metrics[name] for name in metrics if self._is_watched(name)}
      )
    if not self._warned and (line := _describe_idle(taken, metrics)):
      self._warned = True
      self._progress.say(line)
    skipped = metrics["skipped_in_a_row"]
    if self._times.fails(skipped):
      raise NonFiniteError(
        f"{skipped} steps in a row up to step {taken} had a loss or gradient"
        " that was not finite, and were skipped: lower optim.learning_rate, set"
        " or lower optim.clip_norm, or use model.dtype=float32,"
        + (
          f" and go on from the last checkpoint with --from_step={saved}."
          if saved
          else " and start again: there is no checkpoint yet."
        )
      )

  def _is_watched(self, name: str) -> bool:
    """Whether this metric is fetched at each step."""
    return name == "skipped_in_a_row" or (
      name.endswith(_WITHOUT_NEGATIVES) and not self._warned
    )


def _describe_idle(taken: int, metrics: Mapping[str, Any]) -> str:
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
