"""Traces a few training steps, for TensorBoard, XProf or Perfetto."""

import contextlib
from collections.abc import Callable, Iterator

import jax

# The first steps warm up: caches fill, and the host runs ahead of the device.
_BEFORE = 3
_STEPS = 5


@contextlib.contextmanager
def traced(
  train_step: Callable,
  folder: str,
  first: int = 0,
  say: Callable[[str], None] = print,
) -> Iterator[Callable]:
  """Wraps the train step so that some of its calls are traced.

  Args:
    train_step: (state, batch) -> (state, metrics).
    folder: The folder of the trace.
    first: The number of the step that is taken first.
    say: Prints where the trace is.

  Yields:
    The wrapped function. A traced call waits for the device, so that the trace
    is complete. If the run ends early, the trace is shorter or missing.
  """
  calls = 0
  running = False

  def stop():
    nonlocal running
    running = False
    jax.profiler.stop_trace()
    if calls > _BEFORE:
      say(f"A trace of {calls - _BEFORE} steps is in {folder}.")

  def step(state, batch):
    nonlocal calls, running
    if calls == _BEFORE:
      jax.block_until_ready(state)  # Earlier steps are not in the trace.
      jax.profiler.start_trace(folder)
      running = True
    with jax.profiler.StepTraceAnnotation("train", step_num=first + calls):
      results = train_step(state, batch)
      if running:
        jax.block_until_ready(results)
    calls += 1
    if calls == _BEFORE + _STEPS:
      stop()
    return results

  try:
    yield step
  finally:
    if running:
      stop()
