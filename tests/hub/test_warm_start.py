"""A run starts from a run, an export, or an export of two towers."""

import contextlib
import functools
import sys

import jax
import numpy as np
import pytest
import tiny

from mlir_jax import sharding, workdir
from mlir_jax.checkpoints import damage, manager
from mlir_jax.data import preparation
from mlir_jax.hub import warm_start
from mlir_jax.models import encoder
from mlir_jax.training import build, checks, resume


def make_config(root, towers, **changes):
  c = tiny.make_config(root)
  c.model.towers = towers
  c.model.projection_size = 8
  c.encoding.query.prefix = "ask: "
  c.encoding.passage.max_length = 15
  c.encoding.pooling = "cls"
  c.update_from_flattened_dict(changes)
  return c


def from_it(root, pretrained, towers, **changes):
  """Returns a config that leaves all settings to the pretrained model."""
  c = make_config(root, towers, **{"model.pretrained": str(pretrained)})
  c.model.projection_size = 0
  c.encoding.update(
    tiny.make_config(root).encoding.copy_and_resolve_references()
  )
  for role in ("query", "passage", "sentence"):
    c.encoding[role].max_length = None
  c.update_from_flattened_dict(changes)
  return c


def begin(c, folder, save=False):
  """Returns the contract and the parameters before the first step.

  Args:
    c: The run's config.
    folder: Its folder.
    save: Whether to save them as step 1, with a changed query tower.
  """
  folder = str(folder)
  prepared = preparation.prepare(
    c, folder, functools.partial(checks.check_fits, c, folder)
  )
  _, optimizer = build.make_optimizer(c)
  with contextlib.closing(
    manager.Checkpoints(f"{folder}/{workdir.CHECKPOINTS}")
  ) as checkpoints:
    encoder_config, state, _ = build.start_state(
      c, prepared, optimizer, sharding.make_mesh(), checkpoints, folder,
      resume.Start(None),
    )  # fmt: skip
    if save:
      first = next(name for name in state.params if name != encoder.MASKED_LM)
      changed = jax.tree.map(lambda x: x * 2, state.params[first])
      state = state.replace(params={**state.params, first: changed})
      description = build.make_description(c, prepared, encoder_config, folder)
      checkpoints.save(1, state, description)
  return prepared.contract, jax.device_get(state.params)


@pytest.mark.slow
def test_separate_towers_start_a_run_with_separate_towers(
  tmp_path, monkeypatch
):
  for name in ("sentence_transformers", "torch"):
    monkeypatch.setitem(sys.modules, name, None)
  root = tiny.write_folder(tmp_path / "data")
  first = tmp_path / "first"
  contract, params = begin(make_config(root, "separate"), first, save=True)
  assert not np.array_equal(
    *(
      params[f"{tower}_encoder"]["projection"]["kernel"]
      for tower in ("query", "passage")
    )
  )
  second = tmp_path / "second"
  found = begin(from_it(root, first, "separate"), second)
  assert found[0] == contract
  jax.tree.map(np.testing.assert_array_equal, found[1], params)
  # The same command finds the same start after the other run has moved away.
  first.rename(tmp_path / "gone")
  found = begin(from_it(root, first, "separate"), second)
  jax.tree.map(np.testing.assert_array_equal, found[1], params)

  # The copy of the other run is an export of two towers.
  (folder,) = (second / warm_start.FOLDER).iterdir()
  found = begin(from_it(root, folder, "separate"), tmp_path / "third")
  assert found[0] == contract
  jax.tree.map(np.testing.assert_array_equal, found[1], params)
  with pytest.raises(ValueError, match="has two towers"):
    begin(from_it(root, folder, "tied"), tmp_path / "tied")
  with pytest.raises(ValueError, match="is the query tower of an export"):
    begin(from_it(root, folder / "query", "tied"), tmp_path / "one")
  (folder / "query" / "mlir_jax.json").write_text(
    (folder / "passage" / "mlir_jax.json").read_text()
  )
  with pytest.raises(
    ValueError, match=r"query/mlir_jax\.json: tower is 'passage'"
  ):
    begin(from_it(root, folder, "separate"), tmp_path / "twice")


def test_a_damaged_best_checkpoint_is_refused_not_replaced_by_the_last(
  tmp_path, monkeypatch
):
  def load_run(run, which, mesh):
    raise damage.DamagedError(f"{which} is damaged")

  monkeypatch.setattr(warm_start.model, "load_run", load_run)
  with pytest.raises(damage.DamagedError, match="best is damaged"):
    warm_start.of_run(str(tmp_path), "", str(tmp_path / "local"))


@pytest.mark.slow
def test_a_tied_model_starts_both_towers(tmp_path):
  root = tiny.write_folder(tmp_path / "data")
  first = tmp_path / "first"
  contract, params = begin(make_config(root, "tied"), first, save=True)
  found = begin(from_it(root, first, "separate"), tmp_path / "second")
  assert found[0] == contract
  for tower in ("query_encoder", "passage_encoder"):
    jax.tree.map(
      np.testing.assert_array_equal, found[1][tower], params["encoder"]
    )
  jax.tree.map(
    np.testing.assert_array_equal,
    found[1][encoder.MASKED_LM],
    params[encoder.MASKED_LM],
  )
