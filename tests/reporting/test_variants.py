"""Runs are grouped by what changes their results; curves are averaged."""

import dataclasses

import pytest

from mlir_jax import config, workdir
from mlir_jax.reporting import curves, folders, variants

DEFAULTS = workdir.flatten(config.default().to_dict())
RUN = folders.Run("/r", "run", "", DEFAULTS, [], [], {}, {}, [], "2026-01-01")


def _run(name, **changes):
  fields = {name.replace("__", "."): value for name, value in changes.items()}
  return dataclasses.replace(
    RUN, path=f"/runs/{name}", name=name, config=DEFAULTS | fields
  )


def test_runs_that_differ_in_seed_and_speed_alone_are_one_variant():
  found = variants.group(
    [
      _run("all-seed1", seed=1),
      _run("ir-1", seed=1, loss__semantic__weight=0.0),
      _run("all-seed2", seed=2, mesh__fsdp=True, train__log_every=5),
      _run("other-data", seed=3, data__root="/other"),
      _run("again", seed=2),
      dataclasses.replace(RUN, name="no config", config={}),
      dataclasses.replace(RUN, name="also none", path="/s", config={}),
    ],
    DEFAULTS,
  )
  assert [(each.name, len(each.runs)) for each in found] == [
    ("all", 2),
    ("ir-1", 1),
    ("other-data", 1),
    ("again", 1),  # The seed 2 is there already.
    ("no config", 1),
    ("also none", 1),
  ]


def test_a_config_of_an_earlier_version_has_todays_defaults():
  old = {name: DEFAULTS[name] for name in DEFAULTS if name != "model.remat"}
  earlier = dataclasses.replace(RUN, name="a-1", config=old | {"seed": 1})
  found = variants.group([earlier, _run("a-2", seed=2)], DEFAULTS)
  assert [each.name for each in found] == ["a"]
  assert not variants.differing_fields(found, DEFAULTS)
  assert variants.changed_fields(found, DEFAULTS) == {"seed": ["0", "1, 2"]}


def _log(values):
  return [
    {"step": step, "kind": "train", "loss/total": value, "skipped": 0.0}
    for step, value in values.items()
  ]


def test_a_curve_is_the_mean_at_the_steps_that_all_seeds_have():
  runs = (
    dataclasses.replace(RUN, metrics=_log({1: 1.0, 2: 2.0, 3: None, 4: 9.0})),
    dataclasses.replace(RUN, metrics=_log({1: 3.0, 2: 4.0, 3: 1.0})),
  )
  panels, constant = curves.collect([variants.Variant("a", runs)])
  assert constant == {"skipped": 0.0}
  ((curve,),) = (panel.curves for panel in panels)
  assert list(curve.steps) == [1, 2, 3]
  first, second, third = curve.values
  assert (first.value, second.value, third) == (2.0, 3.0, None)
  # Student's t for 2 values a and b: half is 12.706 |a - b| / 2.
  assert first.interval.high - 2 == pytest.approx(12.7062, abs=1e-4)


def test_a_long_curve_is_thinned_and_keeps_its_ends():
  run = dataclasses.replace(
    RUN, metrics=_log({step: step / 7 for step in range(1, 100_001)})
  )
  panels, _ = curves.collect([variants.Variant("a", (run,))])
  steps = panels[0].curves[0].steps
  assert len(steps) <= curves.POINTS + 1
  assert (steps[0], steps[-1]) == (1, 100_000)
