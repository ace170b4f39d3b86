"""Counts what a guide masks in batches, and what its mask adds to a step.

python benchmarks/guide.py --workdir=W

W is the folder of a prepared run with a guide (loss.ir.guide). The masks are
those of the run's batches, for some margins. A step is a whole training step of
the run's model, with and without the guide, in turn: the script prints medians
of the CPU time of the process, which other processes disturb less than the
clock.
"""

import argparse
import functools
import json
import pathlib
import statistics
import time

import jax
import ml_collections
import numpy as np

from mlir_jax import config as config_lib
from mlir_jax import sharding, workdir
from mlir_jax.batches import reader
from mlir_jax.data import preparation
from mlir_jax.losses import ir
from mlir_jax.models import encoder
from mlir_jax.training import build, checks, initial_state, step

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
          1.0,
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


def make_step(config, prepared, folder, mesh):
  """Returns the jitted step, and its state."""
  schedule, optimizer = build.make_optimizer(config)
  backbone = preparation.fetch_backbone(config, folder)
  shape = initial_state.initial_config(
    config.model, prepared.tokenizer, backbone
  )
  params = encoder.init_params(shape, config.model.towers, jax.random.key(0))
  state = step.init_state(params, optimizer)
  shardings = sharding.state_shardings(state, mesh, config.mesh.fsdp)
  jitted = build.jit_step(
    config, prepared.contract, schedule, optimizer, mesh, shardings, shape
  )
  return jitted, jax.device_put(state, shardings)


def main():
  """Counts and times, as the flags say."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--batches", type=int, default=30)
  parser.add_argument("--turns", type=int, default=9)
  settings = parser.parse_args()
  folder = str(pathlib.Path(settings.workdir).resolve())
  kept = (pathlib.Path(folder) / workdir.CONFIG_FILE).read_text("utf-8")
  config = config_lib.default()
  with config.ignore_type():
    config.update(ml_collections.ConfigDict(json.loads(kept)))
  check = functools.partial(checks.check_fits, config, folder)
  prepared = preparation.prepare(config, folder, check)
  mesh = sharding.make_mesh()
  plans = build.make_plans(config, prepared.store, mesh).plans
  count(prepared, config, plans, settings.batches)

  plain = config.copy_and_resolve_references()
  plain.loss.ir.guide = ""
  sides, times = {}, {}
  for name, each, guide in (
    ("without", plain, None),
    ("with", config, prepared.guide),
  ):
    batch = reader.batch_of_step(
      prepared.store, build.batch_spec(each), plans, 0, 1.0, 0, guide=guide
    )
    jitted, state = make_step(each, prepared, folder, mesh)
    sides[name] = jitted, state, sharding.place_batch(batch, mesh)
    times[name] = []
  for turn in range(settings.turns + 1):
    for name, (jitted, state, batch) in sides.items():
      started = time.process_time()
      state, _ = jax.block_until_ready(jitted(state, batch))
      sides[name] = jitted, state, batch
      if turn:  # The first turn compiles.
        times[name].append(time.process_time() - started)
  for name, found in times.items():
    quarters = statistics.quantiles(found, n=4)
    print(
      f"step {name} a guide: {quarters[1]:.3f} s of CPU"
      f" ({quarters[0]:.3f} to {quarters[2]:.3f})"
    )


if __name__ == "__main__":
  main()
