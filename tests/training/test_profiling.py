"""A trace covers some steps, and every end of the run closes it."""

import jax
import pytest

from mlir_jax.training import profiling


def count(state, batch):
  return jax.numpy.add(state, batch), {}


@pytest.mark.parametrize(("steps", "traced"), [(2, 0), (5, 2), (12, 5)])
def test_some_steps_are_traced(tmp_path, steps, traced):
  said = []
  with profiling.traced(count, str(tmp_path), say=said.append) as step:
    state = 0
    for _ in range(steps):
      state, _ = step(state, 1)
  assert int(state) == steps
  files = list(tmp_path.rglob("*.xplane.pb"))
  assert len(files) == len(said) == bool(traced)
  if traced:
    assert f"{traced} steps" in said[0]


def test_a_run_that_fails_leaves_no_trace_running(tmp_path):
  with (
    pytest.raises(RuntimeError, match="no more"),
    profiling.traced(count, str(tmp_path)) as step,
  ):
    for _ in range(4):
      step(0, 1)
    raise RuntimeError("no more")
  jax.profiler.start_trace(str(tmp_path / "next"))
  jax.profiler.stop_trace()
