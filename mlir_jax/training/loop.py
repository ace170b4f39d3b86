"""The loop around the step: it reports, evaluates, saves, and stops in time."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from mlir_jax.hosts import multihost
from mlir_jax.training import progress as progress_lib
from mlir_jax.training import step as step_lib
from mlir_jax.training import stopping as stopping_lib


class NonFiniteError(FloatingPointError):
  """Too many steps in a row had numbers that were not finite."""


def is_evaluated(taken: int, last_step: int, eval_every: int) -> bool:
  """Whether the dev set is evaluated after so many steps."""
  return bool(eval_every) and (taken % eval_every == 0 or taken == last_step)


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
  stop: stopping_lib.StopSignal,
  log_every: int,
  eval_every: int,
  checkpoint_every: int,
  max_nonfinite_steps: int,
  check_saved: Callable[[], None] = lambda: None,
) -> step_lib.TrainState:
  """Takes steps until the batches end.

  A stop before the first step ends the run at once; once there are steps to
  save it waits for the step that is being taken, and breaks an evaluation off.

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
      set or it was broken off; it writes what else it finds.
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
  waiting = saved = None
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
        if name == "skipped_in_a_row"
        or (name.endswith(_WITHOUT_NEGATIVES) and not told)
      }
      metrics = jax.device_get(watched)
    if not told and (line := _without_negatives(taken, metrics)):
      told = True
      progress.say(line)
    skipped = metrics["skipped_in_a_row"]
    if skipped >= min(max_nonfinite_steps, last_step):
      raise NonFiniteError(
        f"{skipped} steps in a row up to step {taken} had a loss or gradient"
        " that was not finite, and were skipped: lower optim.learning_rate, set"
        " or lower optim.clip_norm, or use model.dtype=float32,"
        + (
          f" and go on from the checkpoint of step {saved}, the last one, which"
          f" is whole, with --from_step={saved}."
          if saved
          else " and start again: there is no checkpoint yet."
        )
      )

  with jax.transfer_guard("disallow"):
    first = True
    for step, batch in batches:
      batch = place(batch)
      # The first may have to be compiled, which takes some longer than others.
      multihost.report("starting" if first else multihost.STEP, step)
      if first:
        saved = step  # It was restored, or 0.
      state, metrics = train_step(state, batch)
      if first:
        stop.save_first()
      first = False
      report()  # Of the step before: the device has this one to work on.
      check_saved()
      taken = step + 1
      waiting = taken, metrics
      progress.advance()

      last = taken == last_step
      stopping = stop.reached(taken)  # Once: the signal may come any time.
      evaluate = is_evaluated(taken, last_step, eval_every) and not stopping
      if evaluate or last or stopping or taken % checkpoint_every == 0:
        report()
        multihost.report("evaluating" if evaluate else "saving")
        with jax.transfer_guard("allow"):
          dev = evaluate_dev(state, taken) if evaluate else None
          multihost.report("saving")
          save(taken, state, dev)
          saved = taken
          progress.keep()
        multihost.report(multihost.STEP, step)  # The next batch may hang.
        if not multihost.joined():  # It may have come while evaluating.
          stopping = stopping or stop.requested
      if stopping:
        progress.say(
          f"Asked to stop, and saved at step {taken:,}; the same command goes"
          " on."
        )
        raise stopping_lib.Preempted(stop.status, together=True)
  return state
