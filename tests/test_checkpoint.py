"""A checkpoint is saved, restored and refused as promised."""

import contextlib
import dataclasses
import errno
import os
import pathlib
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging

from mlir_jax import contract as contract_lib
from mlir_jax import sharding
from mlir_jax.checkpoints import damage, listing, manager, metadata
from mlir_jax.storage import digests
from mlir_jax.training import step

ROLE = contract_lib.Role("", 8, "query")
DESCRIPTION = metadata.Description(
  config={"seed": 0},
  contract=contract_lib.EncodingContract(
    "mean", True, " ", ROLE, ROLE, ROLE, "abc", ((1, 2), (3,))
  ),
  encoder={"hidden_size": 16},
  provenance={"commit": ""},
)


def make_state(mesh, fsdp):
  params = {
    "table": jnp.arange(512.0).reshape(32, 16),
    "bias": jnp.arange(3.0),
  }

  def init(params):
    return step.init_state(params, optax.adamw(1e-3))

  shardings = sharding.state_shardings(jax.eval_shape(init, params), mesh, fsdp)
  return jax.jit(init, out_shardings=shardings)(params), shardings


@pytest.mark.parametrize("first,second", [(8, 1), (1, 8)])
def test_a_checkpoint_restores_on_another_number_of_devices(
  first, second, tmp_path
):
  devices = jax.devices()
  state, _ = make_state(sharding.make_mesh(devices=devices[:first]), fsdp=True)
  with_moments = state.replace(
    opt_state=jax.tree.map(lambda x: x + 1, state.opt_state)
  )
  checkpoints = manager.Checkpoints(str(tmp_path))
  checkpoints.save(3, with_moments, DESCRIPTION)
  checkpoints.wait()
  target, shardings = make_state(
    sharding.make_mesh(devices=devices[:second]), fsdp=True
  )
  restored = checkpoints.restore(3, sharding.abstract(target, shardings))
  jax.tree.map(np.testing.assert_array_equal, restored, with_moments)
  assert len(restored.params["table"].sharding.device_set) == second
  assert jax.tree.structure(restored) == jax.tree.structure(with_moments)
  params = checkpoints.restore_params(
    3, sharding.abstract(target.params, shardings.params)
  )
  jax.tree.map(np.testing.assert_array_equal, params, with_moments.params)
  checkpoints.close()


def test_the_mean_of_the_last_checkpoints_is_that_of_their_parameters(
  tmp_path,
):
  state, shardings = make_state(sharding.make_mesh(), fsdp=True)
  description = dataclasses.replace(
    DESCRIPTION, config={"seed": 0, "train": {"keep": 3}}
  )
  checkpoints = manager.Checkpoints(str(tmp_path), keep=3)
  for taken, factor, dev in ((1, 50.0, 0.9), (2, 1.0, 0.1), (3, 2.0, 0.2)):
    params = jax.tree.map(lambda x, f=factor: f * x, state.params)
    checkpoints.save(taken, state.replace(params=params), description, dev)
  params = jax.tree.map(lambda x: 6 * x, state.params)
  checkpoints.save(4, state.replace(params=params), description)
  checkpoints.wait()
  target = sharding.abstract(state.params, shardings.params)
  # The best one is kept, too, but it is not one of the last three.
  assert checkpoints.find("best") == 1
  steps = checkpoints.find_all("average:3")
  assert steps == [2, 3, 4]
  mean = checkpoints.restore_mean(steps, target)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, 3 * y, rtol=1e-6),
    mean,
    state.params,
  )
  assert checkpoints.find_all("last") == [4]
  jax.tree.map(
    np.testing.assert_array_equal,
    checkpoints.restore_mean([4], target),
    params,
  )
  with pytest.raises(ValueError, match=r"needs the last 4 .*keeps 3"):
    checkpoints.find_all("average:4")
  for wrong in ("average:1", "average:", "average:x"):
    with pytest.raises(ValueError, match="where N is 2 or more"):
      checkpoints.find_all(wrong)
  checkpoints.close()


def test_the_last_ones_and_the_best_are_kept(tmp_path):
  state, _ = make_state(sharding.make_mesh(), fsdp=False)
  checkpoints = manager.Checkpoints(str(tmp_path), keep=2)
  for taken, dev in ((1, 0.2), (2, 0.9), (3, None), (4, 0.5), (5, None)):
    checkpoints.save(taken, state, DESCRIPTION, dev)
  checkpoints.wait()
  assert checkpoints.find("last") == 5
  assert checkpoints.find("best") == 2
  assert checkpoints.find("4") == 4
  with pytest.raises(ValueError, match=r"no checkpoint '3'.*\[2, 4, 5\]"):
    checkpoints.find("3")
  checkpoints.close()
  # Also after the folder was opened again.
  checkpoints = manager.Checkpoints(str(tmp_path), keep=2)
  assert checkpoints.find("best") == 2
  checkpoints.close()


def test_the_description_comes_back_as_it_was(tmp_path):
  state, _ = make_state(sharding.make_mesh(), fsdp=False)
  checkpoints = manager.Checkpoints(str(tmp_path))
  checkpoints.save(1, state, DESCRIPTION)
  checkpoints.wait()
  assert checkpoints.read_description(1) == DESCRIPTION
  checkpoints.close()


def test_a_donated_state_does_not_reach_into_its_checkpoint(tmp_path):
  state, shardings = make_state(sharding.make_mesh(), fsdp=False)
  expected = jax.tree.map(np.array, state)
  checkpoints = manager.Checkpoints(str(tmp_path))
  overwrite = jax.jit(
    lambda tree: jax.tree.map(lambda x: x * 0 - 7, tree), donate_argnums=0
  )
  checkpoints.save(1, state, DESCRIPTION)
  state = overwrite(state)
  jax.block_until_ready(state)
  checkpoints.wait()
  restored = checkpoints.restore(1, sharding.abstract(state, shardings))
  jax.tree.map(np.testing.assert_array_equal, restored, expected)
  checkpoints.close()


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
  state, _ = make_state(sharding.make_mesh(), fsdp=True)
  with contextlib.closing(manager.Checkpoints(str(tmp_path))) as checkpoints:
    checkpoints.save(3, state, DESCRIPTION)
    table = state.params["table"]
    for bad in (np.nan, np.inf):
      broken = jax.device_put(
        np.where(np.arange(16) == 5, bad, table), table.sharding
      )
      with pytest.raises(
        FloatingPointError,
        match=r"Step 4 is not saved: params/table held NaN.* of step 3\.",
      ):
        checkpoints.save(
          4, state.replace(params=state.params | {"table": broken}), DESCRIPTION
        )
    assert checkpoints.find("last") == 3


def test_a_save_that_fails_is_raised_once(tmp_path, monkeypatch, capfd):
  """`check_saved`, which does not wait, raises it; so does the next save."""
  state, _ = make_state(sharding.make_mesh(), fsdp=False)
  checkpoints = manager.Checkpoints(str(tmp_path))
  checkpoints.save(1, state, DESCRIPTION)
  checkpoints.check_saved(wait=True)
  started = threading.Event()

  def fail(*_, **__):
    started.wait()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  # Orbax renames the checkpoint in the background.
  monkeypatch.setattr(pathlib.Path, "rename", fail)
  monkeypatch.setattr(os, "rename", fail)
  checkpoints.save(2, state, DESCRIPTION)
  checkpoints.check_saved()  # The save goes on.
  started.set()
  message = r"step 2 .*No space left on device.* of step 1\."
  with pytest.raises(manager.SaveError, match=message):
    for _ in range(1000):
      checkpoints.check_saved()
      time.sleep(0.01)
  checkpoints.check_saved()  # It is raised once.
  checkpoints.save(3, state, DESCRIPTION)
  with pytest.raises(manager.SaveError, match="step 3 "):
    checkpoints.save(4, state, DESCRIPTION)
  checkpoints.close()
  assert "Traceback" not in capfd.readouterr().err


def test_evaluating_a_live_run_leaves_its_save_alone(tmp_path, caplog):
  state, _ = make_state(sharding.make_mesh(), fsdp=False)
  checkpoints = manager.Checkpoints(str(tmp_path))
  checkpoints.save(1, state, DESCRIPTION)
  checkpoints.close()
  being_saved = tmp_path / "2.orbax-checkpoint-tmp"
  being_saved.mkdir()
  reader = manager.Checkpoints(str(tmp_path), read_only=True)
  assert reader.find("last") == 1
  assert reader.read_description(1) == DESCRIPTION
  reader.close()
  assert being_saved.exists()
  # Orbax's warnings are left out, others are not.
  logging.warning("of something else")
  assert [record.message for record in caplog.records] == ["of something else"]
  # Before its next save, the run removes what a killed save left.
  checkpoints = manager.Checkpoints(str(tmp_path))
  checkpoints.save(2, state, DESCRIPTION)
  checkpoints.close()
  assert not being_saved.exists()


def test_the_best_needs_an_evaluation(tmp_path):
  state, _ = make_state(sharding.make_mesh(), fsdp=False)
  checkpoints = manager.Checkpoints(str(tmp_path))
  checkpoints.save(1, state, DESCRIPTION)
  checkpoints.wait()
  with pytest.raises(ValueError, match=r"evaluated on a dev set.*\[1\]"):
    checkpoints.find("best")
  checkpoints.close()


def flipped(content):
  middle = len(content) // 2
  return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


@pytest.mark.parametrize(
  "pattern, change, says",
  [
    # An array. Orbax does not see the damage.
    ("state/ocdbt*/d/*", flipped, "has changed since it was written"),
    ("state/_METADATA", lambda content: content[:9], r"has 9 bytes, not \d+"),
    ("state/manifest.ocdbt", None, "is missing"),
    ("description/metadata", flipped, "has changed since it was written"),
    ("files.json", lambda content: content[:9], "is not a list of files"),
  ],
)
def test_a_damaged_checkpoint_is_named_with_one_that_is_whole(
  pattern, change, says, tmp_path
):
  state, shardings = make_state(sharding.make_mesh(), fsdp=False)
  checkpoints = manager.Checkpoints(str(tmp_path))
  for taken in (1, 2):
    checkpoints.save(taken, state, DESCRIPTION)
  checkpoints.wait()
  path = max((tmp_path / "2").glob(pattern), key=lambda p: p.stat().st_size)
  if change:
    path.write_bytes(change(path.read_bytes()))
  else:
    path.unlink()
  whole = "The checkpoint of step 1 is whole: .*--from_step=1"
  said = f"step 2 is damaged: {path} {says}.*{whole}"
  target = sharding.abstract(state, shardings)
  readers = [lambda: checkpoints.restore(2, target)]
  if pattern.startswith("description"):  # Each checks only what it reads.
    readers.append(lambda: checkpoints.read_description(2))
  else:
    readers.append(lambda: checkpoints.restore_params(2, target.params))
  for read in readers:
    with pytest.raises(damage.DamagedError, match=said) as error:
      read()
    assert "\n" not in str(error.value)
  checkpoints.restore(1, target)
  checkpoints.close()


def test_orbax_cannot_open_a_folder_until_a_damaged_metric_is_moved_away(
  tmp_path,
):
  folder = tmp_path / "checkpoints"
  state, _ = make_state(sharding.make_mesh(), fsdp=False)
  checkpoints = manager.Checkpoints(str(folder))
  for taken in (1, 2):
    checkpoints.save(taken, state, DESCRIPTION, 0.5)
  checkpoints.close()
  (folder / "2/metrics/metrics").write_text('{"dev')
  with pytest.raises(damage.DamagedError, match=r"step 2.*metrics has 5"):
    manager.Checkpoints(str(folder))
  damage.move_away(str(folder), after=1)
  checkpoints = manager.Checkpoints(str(folder))
  assert checkpoints.last_step() == 1
  checkpoints.close()
  assert (tmp_path / "checkpoints-damaged/2/metrics/metrics").exists()


@pytest.mark.parametrize("empty", [True, False])
def test_something_that_is_not_a_checkpoint_is_named_and_moved_away(
  empty, tmp_path
):
  folder = tmp_path / "checkpoints"
  state, _ = make_state(sharding.make_mesh(), fsdp=False)
  with contextlib.closing(manager.Checkpoints(str(folder))) as checkpoints:
    checkpoints.save(1, state, DESCRIPTION)
  if empty:
    (folder / "2").mkdir()
  else:
    (folder / "2").write_text("text")
  with pytest.raises(damage.DamagedError, match=r"step 2 .*from_step=1"):
    manager.read_config(str(folder))
  for _ in range(2):  # The folder of damaged ones may have it already.
    damage.move_away(str(folder), after=1)
    assert listing.steps(folder) == [1]
    (folder / "2").write_text("text")


def test_from_step_reads_the_config_of_an_older_checkpoint(tmp_path):
  """A missing config.json and damage at once: --from_step helps with both."""
  state, _ = make_state(sharding.make_mesh(), fsdp=False)
  with contextlib.closing(manager.Checkpoints(str(tmp_path))) as checkpoints:
    for taken in (1, 2):
      checkpoints.save(
        taken, state, dataclasses.replace(DESCRIPTION, config={"seed": taken})
      )
  assert manager.read_config(str(tmp_path)) == (2, {"seed": 2})
  assert manager.read_config(str(tmp_path), 1) == (2, {"seed": 2})
  (tmp_path / "2/description/metadata").write_text("{")
  assert manager.read_config(str(tmp_path), 1) == (1, {"seed": 1})
  for from_step in (None, 2, 7):
    with pytest.raises(damage.DamagedError, match="--from_step=1"):
      manager.read_config(str(tmp_path), from_step)


def test_a_checkpoint_is_hashed_once_on_a_machine(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(digests, "_FRESH_SECONDS", -1e9)
  folder = tmp_path / "checkpoints"
  state, shardings = make_state(sharding.make_mesh(), fsdp=False)
  checkpoints = manager.Checkpoints(str(folder))
  checkpoints.save(1, state, DESCRIPTION, 0.5)
  checkpoints.wait()
  hashed = []
  digest = digests.of_file
  monkeypatch.setattr(
    digests, "of_file", lambda path: hashed.append(path) or digest(path)
  )

  def load():
    hashed.clear()
    checkpoints.read_description(1)
    checkpoints.restore_params(
      1, sharding.abstract(state.params, shardings.params)
    )
    return {str(path.relative_to(folder / "1")) for path in hashed}

  first = load()
  assert "description/metadata" in first and "state/_METADATA" in first
  assert not any(name.startswith("metrics") for name in first)  # Not read.
  assert load() == set()
  os.utime(folder / "1/state/_METADATA")
  assert load() == {"state/_METADATA"}
  checkpoints.close()


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(
  "text", ['{"dev": 0.9}', '{"dev": NaN}', '{"dev": "high"}', "{}", "[1]"]
)
def test_a_changed_metric_does_not_choose_the_best(listed, text, tmp_path):
  state, _ = make_state(sharding.make_mesh(), fsdp=False)
  checkpoints = manager.Checkpoints(str(tmp_path))
  for taken, dev in ((1, 0.5), (2, 0.4)):
    checkpoints.save(taken, state, DESCRIPTION, dev)
  checkpoints.wait()
  (tmp_path / "2/metrics/metrics").write_text(text)
  if not listed:
    (tmp_path / "2/files.json").unlink()
  if not listed and "0.9" in text:
    assert checkpoints.find("best") == 2  # A number like another.
  else:
    with pytest.raises(damage.DamagedError, match=r"2/metrics/metrics has"):
      checkpoints.find("best")
  checkpoints.close()


def test_a_metric_that_comes_later_counts(tmp_path):
  state, shardings = make_state(sharding.make_mesh(), fsdp=False)
  checkpoints = manager.Checkpoints(str(tmp_path), keep=1)
  checkpoints.save(1, state, DESCRIPTION)
  checkpoints.wait()
  assert not checkpoints.evaluated(1)
  checkpoints.add_metric(1, 0.7)
  checkpoints.save(2, state, DESCRIPTION, 0.5)
  checkpoints.save(3, state, DESCRIPTION)
  checkpoints.close()
  checkpoints = manager.Checkpoints(str(tmp_path), keep=1)
  assert checkpoints.find("best") == 1
  assert checkpoints.evaluated(1)
  checkpoints.restore(1, sharding.abstract(state, shardings))
  checkpoints.close()


def test_later_checkpoints_are_removed(tmp_path):
  state, _ = make_state(sharding.make_mesh(), fsdp=False)
  checkpoints = manager.Checkpoints(str(tmp_path), keep=3)
  for taken in (1, 2, 3):
    checkpoints.save(taken, state, DESCRIPTION)
  checkpoints.wait()
  assert checkpoints.remove_after(1) == [2, 3]
  assert checkpoints.last_step() == 1
  checkpoints.save(2, state, DESCRIPTION)
  checkpoints.close()
  assert listing.steps(tmp_path) == [1, 2]
