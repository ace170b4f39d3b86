"""A run of several processes whose steps cost nothing, with mishaps on order.

python tests/light_run.py MOMENT PROCESS MISHAP FLAGS: at that moment ("join",
"prepare" or the number of a step) the process of that number ("all" for each)
has the mishap: "SIGKILL" or another signal, "hang", "fault", "refuse", "store"
or "config" (another than the others'), "slow" or "none".
"""

import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
from absl import flags

from mlir_jax import config, sharding
from mlir_jax.command_line import process_flags, program
from mlir_jax.hosts import multihost
from mlir_jax.training import loop, stopping, timetable

MOMENT, WHO, MISHAP = sys.argv[1:4]
STEPS = 60


class Log:
  """Takes the place of `progress.Progress`."""

  def train(self, taken, metrics):
    pass

  def advance(self):
    pass

  def keep(self):
    pass

  def say(self, text):
    print(text, flush=True)


def mishap(moment):
  if str(moment) != MOMENT or flags.FLAGS.process != int(WHO):
    return ""
  print(f"Now: {MISHAP}.", file=sys.stderr, flush=True)
  if MISHAP.startswith("SIG"):
    os.kill(os.getpid(), getattr(signal, MISHAP))
  elif MISHAP == "hang":
    time.sleep(1000)
  elif MISHAP == "slow":
    time.sleep(1.5 * flags.FLAGS.silent_seconds)
  elif MISHAP == "fault":
    raise KeyError("a fault")
  elif MISHAP == "refuse":
    sharding.make_mesh(data=3)  # Raises ValueError.
  return MISHAP


def main():
  c = config.default()
  c.hosts.check_in_seconds = flags.FLAGS.check_in_seconds
  c.hosts.silent_seconds = flags.FLAGS.silent_seconds
  if mishap("join") == "config":
    c.optim.learning_rate = 0.5
  process_flags.join(c)
  with stopping.StopSignal() as stop:
    multihost.report("preparing")
    with multihost.first("it prepares"):
      store = f"a store{' of its own' if mishap('prepare') == 'store' else ''}"
    multihost.check_in("prepared", {"token store": store})
    mesh = sharding.make_mesh()
    whole = sharding.replicated(mesh)
    rows = jax.make_array_from_callback(
      (24,), sharding.over_data(mesh), lambda index: jnp.ones(24)[index]
    )

    @jax.jit
    def step(state, batch):
      total = jax.lax.with_sharding_constraint(batch, whole).sum()
      return state + total, {"skipped_in_a_row": jnp.int32(0)}

    def batches():
      for number in range(STEPS):
        time.sleep(0.05)
        mishap(number)
        yield number, rows

    print("Steps are taken.")
    loop.train_loop(
      step,
      jax.device_put(jnp.float32(0), whole),
      batches(),
      timetable.Timetable(
        STEPS,
        log_every=STEPS,
        eval_every=0,
        save_every=STEPS,
        max_nonfinite_steps=1,
      ),
      progress=Log(),
      save=lambda taken, *_: print(f"Saved {taken}.", file=sys.stderr),
      evaluate_dev=lambda *_: None,
      stop=stop,
    )


if __name__ == "__main__":
  del sys.argv[1:4]
  flags.DEFINE_float("check_in_seconds", 60.0, "As hosts.check_in_seconds.")
  flags.DEFINE_float("silent_seconds", 4.0, "As hosts.silent_seconds.")
  process_flags.define()
  program.start(main, required=())
