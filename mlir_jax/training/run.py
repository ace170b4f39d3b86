"""One training run: prepare, build or resume, take the steps, report."""

import contextlib
import functools
from collections.abc import Callable, Generator
from typing import Any

import ml_collections

from mlir_jax import config as run_config
from mlir_jax import lock, sharding, workdir
from mlir_jax.batches import reader, shapes
from mlir_jax.checkpoints import damage, manager
from mlir_jax.data import preparation
from mlir_jax.evals import suite
from mlir_jax.hosts import multihost
from mlir_jax.retrieval import encoding
from mlir_jax.storage import locations
from mlir_jax.training import (
  build,
  checks,
  compiled_step,
  initial_state,
  loop,
  profiling,
  progress,
  resume,
  selfcheck,
  step,
  stopping,
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
    config: From `config.default` and a config file. Losses of the user get the
      fields that it leaves out.
    folder: The run's folder: checkpoints, metrics, results.
    profile: Whether to write a trace of some steps.
    from_step: The checkpoint to go back to; None for the last one.
    stop: What looks for signals already; None for one of its own.

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
  run_config.complete(config)
  checks.check_settings(config)
  compiled_step.keep_compiled(config.train.compilation_cache, folder)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.model)
  checks.check_mesh(config, mesh)
  schedule, optimizer = build.make_optimizer(config)
  spec = build.batch_spec(config)
  with contextlib.ExitStack() as held:
    stop = stop or held.enter_context(stopping.StopSignal())
    if multihost.is_first():  # For all; they follow it into the folder.
      held.enter_context(lock.hold(folder))
    prepared = preparation.prepare_together(
      config,
      folder,
      functools.partial(initial_state.check_fits, config, folder),
      from_step,
    )
    plans = build.make_plans(config, prepared.store, mesh)
    print(shapes.describe(plans[0]))
    masker = build.make_masker(config, prepared)
    directory = f"{folder}/{workdir.CHECKPOINTS}"
    if from_step is not None:
      with multihost.first("it looks for damaged checkpoints"):
        if multihost.is_first():
          damage.move_away(directory, from_step)
    with contextlib.closing(
      manager.Checkpoints(directory, config.train.keep)
    ) as checkpoints:
      begin = resume.choose(config, folder, checkpoints, from_step)
      encoder_config, state, shardings = initial_state.start_state(
        config, prepared, optimizer, mesh, checkpoints, folder, begin
      )
      embed = encoding.make_embed(encoder_config, prepared.contract)
      evaluation = build.make_suite(config, prepared, embed, mesh, folder)
      if notes := evaluation.notes():
        print(notes)
      if config.train.self_check:
        print(selfcheck.check(encoder_config, prepared.contract, mesh))
      train_step = compiled_step.CompiledStep(
        build.jit_step(
          config, prepared.contract, schedule, optimizer, mesh, shardings,
          encoder_config,
        ),
        state,
        [
          compiled_step.abstract_batch(
            spec, plan, mesh,
            positives=prepared.store.max_positives,
            max_targets=masker and masker.max_targets,
          )
          for plan in plans
        ],
      )  # fmt: skip
      operations = compiled_step.step_flops(config, encoder_config, plans[0])
      print(f"A step takes {operations} over {mesh.size} devices.")
      if config.eval.at_start and not int(state.step):
        evaluation.table(state.params, 0)
      history = resume.go_on(begin, config, folder, checkpoints)
      description = build.describe(
        config, prepared, encoder_config, folder, history
      )

      def place(batch):
        return sharding.place_batch(batch, mesh)

      def save(taken, state, dev):
        checkpoints.save(taken, state, description, dev)

      kind = reader.choose(config.data.reader)
      print(f"Batches: {reader.KINDS[kind]} (data.reader={kind}).")
      batches = reader.batches(
        kind,
        prepared.store,
        spec,
        plans,
        seed=config.seed,
        temperature=config.data.language_temperature,
        start=int(state.step),
        stop=config.train.steps,
        host_rows=functools.partial(sharding.host_rows, mesh),
        prefetch=config.data.prefetch,
        masker=masker,
      )
      with contextlib.ExitStack() as stack:
        if profile:
          train_step = stack.enter_context(
            profiling.traced(train_step, f"{folder}/profile", int(state.step))
          )
        state = take_steps(
          config, folder, train_step, state, batches, place, save, evaluation,
          stop, checkpoints,
        )  # fmt: skip
    # Closed, hence saved, before the table is made.
    stop.saved()
    multihost.report("evaluating")
    results = evaluation.table(state.params, config.train.steps)
  print(evaluation.report())
  return results


def take_steps(
  config: ml_collections.ConfigDict,
  folder: str,
  train_step: Callable,
  state: step.TrainState,
  batches: Generator[tuple[int, Any]],
  place: Callable,
  save: Callable,
  evaluation: suite.Suite,
  stop: stopping.StopSignal,
  checkpoints: manager.Checkpoints,
) -> step.TrainState:
  """Takes the steps that are left, with a progress bar and a log.

  Args:
    config: The run's config.
    folder: The run's folder.
    train_step: As in `loop.train_loop`, like the next two.
    state: Before the first of the batches.
    batches: (step, host batch), in order.
    place: Puts a host batch on the devices.
    save: (steps taken, state, dev metric or None).
    evaluation: Its dev results are logged and select the best checkpoint.
    stop: Asked after each step.
    checkpoints: The run's.

  Returns:
    The state after the last step.
  """
  log = progress.Progress(
    folder,
    first_step=int(state.step),
    last_step=config.train.steps,
    sequences_per_step=sequences_per_step(config.batch),
    local_dir=config.hosts.local_dir,
  )

  def evaluate_dev(state, taken):
    results = {}
    with stop.interruptible():
      # It may have come just before, while the step was waited for.
      if multihost.joined() or not stop.requested:
        results = evaluation.dev(state.params)
    # A stop may have been lost on its way through what was called: what came
    # of it is not trusted. Several processes are never broken off.
    if not results or (stop.requested and not multihost.joined()):
      return None
    log.evaluation(taken, results)
    log.say(f"Step {taken:,}: {suite.one_line(results)}")
    return results.get(suite.SELECTION)

  with contextlib.closing(log), contextlib.closing(batches):
    taken = int(state.step)
    if (
      taken
      and loop.is_evaluated(taken, config.train.steps, config.eval.every)
      and not checkpoints.evaluated(taken)
      and evaluation.selects
    ):  # It was broken off by a stop.
      dev = evaluate_dev(state, taken)
      stop.saved()
      if dev is not None:
        checkpoints.add_metric(taken, dev)
    return loop.train_loop(
      train_step,
      state,
      batches,
      place=place,
      last_step=config.train.steps,
      progress=log,
      save=save,
      evaluate_dev=evaluate_dev,
      stop=stop,
      log_every=config.train.log_every,
      eval_every=config.eval.every,
      checkpoint_every=config.train.checkpoint_every,
      max_nonfinite_steps=config.train.max_nonfinite_steps,
      check_saved=checkpoints.check_saved,
    )


def sequences_per_step(batch: ml_collections.ConfigDict) -> int:
  """How many texts a step encodes."""
  pairs = batch.retrieval * (2 + batch.hard_negatives)
  return pairs + 2 * batch.parallel + batch.monolingual + batch.masked
