"""One training run: prepare, build or resume, take the steps, report."""

import contextlib
import functools
from collections.abc import Callable, Generator
from typing import Any

import jax
import ml_collections

from mlir_jax import config as config_lib
from mlir_jax import config_checks, lock, sharding, workdir
from mlir_jax.checkpoints import damage, manager, metadata
from mlir_jax.data import preparation
from mlir_jax.evals import suite
from mlir_jax.hosts import multihost
from mlir_jax.storage import locations
from mlir_jax.training import (
  build,
  checks,
  compiled_step,
  loop,
  profiling,
  progress,
  resume,
  selfcheck,
  step,
  stopping,
  timetable,
)


def train(
  config: ml_collections.ConfigDict,
  folder: str,
  profile: bool = False,
  *,
  from_step: int | None = None,
  stop: stopping.StopSignal | None = None,
) -> dict[str, float]:
  """Trains, or goes on training, until `train.steps` steps are taken.

  Args:
    config: From `config.default` and a config file. The fields that it leaves
      out of a user's losses are added.
    folder: The run's folder: checkpoints, metrics, results.
    profile: Whether to write a trace of some steps.
    from_step: The checkpoint to go back to; None for the last one.
    stop: A stop signal that is already open; None to open a new one.

  Returns:
    The final results, {"test/de/mrr@100": value}, as in the report.

  Raises:
    ValueError: if a setting cannot be used, it names the field; or if another
      run holds the folder.
    stopping.Preempted: if the run was asked to stop, after saving.
    loop.NonFiniteError: if too many steps in a row were not finite.
  """
  folder = locations.absolute(folder)
  locations.check_packages(folder)
  config_checks.complete(config)
  checks.check_settings(config)
  compiled_step.keep_compiled(config.train.compilation_cache, folder)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.model)
  checks.check_mesh(config, mesh)
  with contextlib.ExitStack() as held:
    stop = stop or held.enter_context(stopping.StopSignal())
    if multihost.is_first():  # It holds the folder for all processes.
      held.enter_context(lock.hold(folder))
    prepared = preparation.prepare_together(
      config,
      folder,
      functools.partial(checks.check_fits, config, folder),
      from_step,
    )
    with contextlib.closing(
      _open_checkpoints(folder, config.train.keep, from_step)
    ) as checkpoints:
      state, evaluation = _train(
        config, folder, mesh, prepared, checkpoints, from_step, stop, profile
      )
    # Closing has saved everything. Only then the table is made.
    stop.saved()
    multihost.report("evaluating")
    results = evaluation.table(state.params, config.train.steps)
  print(evaluation.report())
  return results


def _open_checkpoints(
  folder: str, keep: int, from_step: int | None
) -> manager.Checkpoints:
  """Opens the run's checkpoints, with damaged later ones set aside.

  Args:
    folder: The run's folder.
    keep: How many of the last checkpoints to keep.
    from_step: The step that --from_step names, or None.
  """
  directory = f"{folder}/{workdir.CHECKPOINTS}"
  if from_step is not None:
    with multihost.first("it looks for damaged checkpoints"):
      if multihost.is_first():
        damage.move_away(directory, from_step)
  return manager.Checkpoints(directory, keep)


def _train(
  config: ml_collections.ConfigDict,
  folder: str,
  mesh: jax.sharding.Mesh,
  prepared: preparation.Prepared,
  checkpoints: manager.Checkpoints,
  from_step: int | None,
  stop: stopping.StopSignal,
  profile: bool,
) -> tuple[step.TrainState, suite.Suite]:
  """Builds the parts of a run and takes its steps.

  Returns:
    The state after the last step, and the run's evaluations.
  """
  plans = build.make_plans(config, prepared.store, mesh)
  print(plans)
  masker = build.make_masker(config, prepared)
  schedule, optimizer = build.make_optimizer(config)
  values = config.to_dict()
  begin = resume.choose(
    values, config_lib.default().to_dict(), folder, checkpoints, from_step
  )
  encoder_config, state, shardings = build.start_state(
    config, prepared, optimizer, mesh, checkpoints, folder, begin
  )
  first_step = int(state.step)
  evaluation = build.make_suite(config, prepared, encoder_config, mesh, folder)
  if notes := evaluation.notes():
    print(notes)
  if config.train.self_check:
    print(selfcheck.check(encoder_config, prepared.contract, mesh))
  jitted = build.jit_step(
    config, prepared.contract, schedule, optimizer, mesh, shardings,
    encoder_config,
  )  # fmt: skip
  train_step = build.compile_step(
    config, prepared, encoder_config, jitted, state, plans, mesh
  )
  if config.eval.at_start and not first_step:
    evaluation.table(state.params, 0)
  history = resume.go_on(begin, values, folder, checkpoints)
  description = build.make_description(
    config, prepared, encoder_config, folder, history
  )
  batches = build.make_batches(
    config, prepared, plans, masker, mesh, first_step
  )
  with contextlib.ExitStack() as stack:
    if profile:
      train_step = stack.enter_context(
        profiling.traced(train_step, f"{folder}/profile", first_step)
      )
    state = take_steps(
      train_step,
      state,
      batches,
      build.make_timetable(config),
      log=build.make_progress(config, folder, first_step),
      checkpoints=checkpoints,
      description=description,
      evaluation=evaluation,
      stop=stop,
    )
  return state, evaluation


def take_steps(
  train_step: Callable,
  state: step.TrainState,
  batches: Generator[tuple[int, Any]],
  times: timetable.Timetable,
  *,
  log: progress.Progress,
  checkpoints: manager.Checkpoints,
  description: metadata.Description,
  evaluation: suite.Suite,
  stop: stopping.StopSignal,
) -> step.TrainState:
  """Takes the steps that are left, with a progress bar and a log.

  Args:
    train_step: (state, batch) -> (state, metrics).
    state: The state before the first of the batches.
    batches: (step, batch on the devices), in order; closed at the end.
    times: When to log, evaluate, save and fail.
    log: Receives metrics and lines; closed at the end.
    checkpoints: The run's checkpoints.
    description: What each checkpoint stores next to the arrays.
    evaluation: Its dev results are logged and select the best checkpoint.
    stop: The stop signal.

  Returns:
    The state after the last step.
  """

  def save(taken, state, dev):
    checkpoints.save(taken, state, description, dev)

  def evaluate_dev(state, taken):
    results = {}
    with stop.interruptible():
      # The signal may have come after the loop asked for it.
      if multihost.joined() or not stop.requested:
        results = evaluation.dev(state.params)
    # A library may have lost the stop signal, so the results may be wrong.
    # Only a process that runs alone breaks an evaluation off.
    if not results or (stop.requested and not multihost.joined()):
      return None
    log.evaluation(taken, results)
    log.say(f"Step {taken:,}: {suite.one_line(results)}")
    return evaluation.selected(results)

  with contextlib.closing(log), contextlib.closing(batches):
    taken = int(state.step)
    if (
      taken
      and times.evaluates(taken)
      and not checkpoints.evaluated(taken)
      and evaluation.selects
    ):  # A stop signal broke the evaluation of this checkpoint off.
      dev = evaluate_dev(state, taken)
      stop.saved()
      if dev is not None:
        checkpoints.add_metric(taken, dev)
    return loop.train_loop(
      train_step,
      state,
      batches,
      times,
      progress=log,
      save=save,
      evaluate_dev=evaluate_dev,
      stop=stop,
      check_saved=checkpoints.check_saved,
    )
