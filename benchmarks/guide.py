"""Counts what a guide masks in batches, and what its mask adds to a step.

python benchmarks/guide.py --workdir=W

W is the folder of a prepared run with a guide (loss.ir.guide). The masks are
those of the run's batches, for some margins. The loss, and the reading of a
batch, are timed with and without the guide, in turn. The script prints medians
and quartiles of the CPU time of the process, which other processes disturb less
than the clock.
"""

import argparse
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable

import jax
import ml_collections
import numpy as np

from mlir_jax import config as config_lib
from mlir_jax import sharding, workdir
from mlir_jax.batches import batch as batch_lib
from mlir_jax.batches import reader
from mlir_jax.data import preparation
from mlir_jax.losses import ir
from mlir_jax.training import build, checks

MARGINS = (0.0, 0.02, 0.05, 0.1)


def count(prepared, config, plans, steps: int) -> None:
  """Prints the means of the pairs that are masked in a batch."""
  random = np.random.default_rng(0)

  @functools.partial(jax.jit, static_argnums=1)
  def metrics_of(batch, margin):
    shape = batch.retrieval.passage.shape
    outputs = {
      "queries": jax.numpy.asarray(random.normal(size=(shape[0], 8))),
      "passages": jax.numpy.asarray(random.normal(size=(*shape, 8))),
    }
    loss = ir.IrLoss(guide="made", guide_absolute_margin=margin)
    return loss(outputs, batch, lambda x: x)[1]

  for margin in MARGINS:
    found = [
      jax.device_get(metrics_of(batch.replace(texts={}), margin))
      for batch in (
        reader.batch_of_step(
          prepared.store,
          build.batch_spec(config),
          plans,
          config.seed,
          build.make_mixture(config),
          number,
          guide=prepared.guide,
        )
        for number in range(steps)
      )
    ]
    by_guide = [float(each["masked_by_guide"]) for each in found]
    known = np.mean([each["masked"] for each in found])
    alone = np.mean([each["queries_without_negatives"] for each in found])
    size = config.batch.retrieval
    pairs = size * (size * (1 + config.batch.hard_negatives) - 1)
    print(
      f"margin {margin}: {np.mean(by_guide):.1f} of {pairs:,} pairs"
      f" ({np.mean(by_guide) / pairs:.2%}; {min(by_guide):.0f} to"
      f" {max(by_guide):.0f} in {steps} batches); known positives {known:.1f};"
      f" queries without negatives {alone:.1f}"
    )


def time_in_turn(sides: dict[str, Callable[[], object]], turns: int) -> None:
  """Prints the medians of the CPU time of some functions, called in turn."""
  times = {name: [] for name in sides}
  for turn in range(turns + 1):
    for name, side in sides.items():
      started = time.process_time()
      side()
      if turn:  # The first turn compiles.
        times[name].append(1000 * (time.process_time() - started))
  for name, found in times.items():
    low, middle, high = statistics.quantiles(found, n=4)
    print(f"{name}: {middle:.1f} ms of CPU ({low:.1f} to {high:.1f})")


def loss_of(size: int, width: int, guide_width: int) -> Callable[[], object]:
  """Returns the IR loss of a random batch, with its gradient."""
  random = np.random.default_rng(0)
  spec = batch_lib.BatchSpec(size, 0, 0, 0)
  batch = batch_lib.make(
    spec,
    {},
    lambda shape, dtype: jax.numpy.asarray(
      random.normal(size=shape) * 1000, dtype
    ),
    widths=batch_lib.Widths(guide=guide_width),
  )
  outputs = {
    "queries": jax.numpy.asarray(random.normal(size=(size, width)), "f"),
    "passages": jax.numpy.asarray(random.normal(size=(size, 1, width)), "f"),
  }
  loss = ir.IrLoss(guide="made" if guide_width else "")

  @jax.jit
  def compute(outputs, batch):
    return jax.value_and_grad(
      lambda outputs: loss(outputs, batch, lambda x: x), has_aux=True
    )(outputs)

  return lambda: jax.block_until_ready(compute(outputs, batch))


def main():
  """Counts and times, as the flags say."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--batches", type=int, default=30)
  parser.add_argument("--turns", type=int, default=9)
  parser.add_argument("--sizes", type=int, nargs="+", default=[64, 1024])
  settings = parser.parse_args()
  folder = str(pathlib.Path(settings.workdir).resolve())
  kept = (pathlib.Path(folder) / workdir.CONFIG_FILE).read_text("utf-8")
  config = config_lib.default()
  with config.ignore_type():
    config.update(ml_collections.ConfigDict(json.loads(kept)))
  check = functools.partial(checks.check_fits, config, folder)
  prepared = preparation.prepare(config, folder, check)
  assert prepared.guide, "The run has no guide."
  plans = build.make_plans(config, prepared.store, sharding.make_mesh()).plans
  count(prepared, config, plans, settings.batches)
  width = prepared.guide.width
  for size in settings.sizes:
    time_in_turn(
      {
        f"IR loss and gradient, {size} pairs, without a guide": loss_of(
          size, width, 0
        ),
        f"IR loss and gradient, {size} pairs, with a guide": loss_of(
          size, width, width
        ),
      },
      settings.turns,
    )
  number = iter(range(10**6))

  def read(guide):
    return lambda: reader.batch_of_step(
      prepared.store,
      build.batch_spec(config),
      plans,
      config.seed,
      build.make_mixture(config),
      next(number),
      guide=guide,
    )

  time_in_turn(
    {
      "reading a batch without a guide": read(None),
      "reading a batch with a guide": read(prepared.guide),
    },
    settings.turns,
  )


if __name__ == "__main__":
  main()
