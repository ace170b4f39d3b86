"""A run goes on from a named checkpoint, with changed settings."""

import json
import pathlib
import shutil
import types

import numpy as np
import pytest
import tiny

from mlir_jax import config, workdir
from mlir_jax.checkpoints import damage, manager
from mlir_jax.training import progress, resume, run


def make_config(root, **changes):
  c = tiny.make_config(root)
  tiny.train_pairs_alone(c)
  c.optim.decay = "constant"
  c.eval.every = 0
  c.train.steps = 6
  c.train.keep = 3
  c.update_from_flattened_dict(changes)
  return c


def losses(folder):
  """Returns the loss of each step, in the order of the file."""
  return [
    (record["step"], record["loss/total"])
    for record in progress.read_metrics(str(folder))
  ]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return tiny.write_folder(tmp_path_factory.mktemp("collection"))


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory, one_device):
  """A run of 6 steps, with the checkpoints 2, 4 and 6."""
  folder = tmp_path_factory.mktemp("runs") / "finished"
  run.train(make_config(root), str(folder))
  return folder


def flip(folder):
  """Changes a bit of the largest file, which holds the arrays."""
  path = max(folder.glob("state/**/d/*"), key=lambda path: path.stat().st_size)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 4
  path.write_bytes(content)
  return path


@pytest.mark.slow
def test_it_goes_on_from_a_named_checkpoint(root, finished, tmp_path, capsys):
  folder = tmp_path / "run"
  shutil.copytree(finished, folder)
  damaged = flip(folder / "checkpoints/6")
  with pytest.raises(damage.DamagedError, match="--from_step=4") as error:
    run.train(make_config(root), str(folder))
  assert f"step 6 is damaged: {damaged} has changed" in str(error.value)
  assert "\n" not in str(error.value)

  changes = {"optim.learning_rate": 1e-4, "optim.clip_norm": 0.0}
  changed = make_config(root, **changes)
  with pytest.raises(ValueError, match=r"learning_rate.*\n.*--from_step=N"):
    run.train(changed, str(folder))
  assert workdir.read_history(str(folder)) == []
  run.train(changed, str(folder), from_step=4)

  after, before = losses(folder), losses(finished)
  assert [step for step, _ in after] == [1, 2, 3, 4, 5, 6]
  assert after[:5] == before[:5]  # The first step from there, too.
  assert after[5] != before[5]
  (record,) = workdir.read_history(str(folder))
  assert record["step"] == 4
  assert record["changed"] == {
    "optim.clip_norm": [1.0, 0.0],
    "optim.learning_rate": [1e-3, 1e-4],
  }
  checkpoints = manager.Checkpoints(f"{folder}/checkpoints", read_only=True)
  assert checkpoints.read_description(6).provenance["history"] == [record]
  checkpoints.close()
  assert (folder / "checkpoints-damaged/6").is_dir()
  kept = json.loads((folder / "config.json").read_text())
  assert kept["optim"]["learning_rate"] == 1e-4

  # A launcher repeats the same command.
  capsys.readouterr()
  run.train(changed, str(folder), from_step=4)
  assert "Going on from step 6" in capsys.readouterr().out
  assert losses(folder) == after
  with pytest.raises(ValueError, match="learning_rate"):
    run.train(make_config(root), str(folder))


@pytest.mark.slow
def test_more_steps_at_a_constant_rate_equal_a_longer_run(
  root, finished, tmp_path
):
  folder = str(tmp_path / "run")
  run.train(make_config(root, **{"train.steps": 4}), folder)
  run.train(make_config(root), folder)
  assert losses(folder) == losses(finished)
  (record,) = workdir.read_history(folder)
  assert record["changed"] == {"train.steps": [4, 6]}
  with pytest.raises(ValueError, match=r"train\.steps: 4 here, 6 there"):
    run.train(make_config(root, **{"train.steps": 4}), folder)


@pytest.mark.slow
def test_a_run_goes_on_with_its_layers_in_a_scan(root, tmp_path, one_device):
  folder, scanned = tmp_path / "separate", tmp_path / "scanned"
  run.train(make_config(root, **{"model.num_layers": 2}), str(folder))
  shutil.copytree(folder, scanned)
  changes = {"model.num_layers": 2, "model.scan_layers": True}
  run.train(make_config(root, **changes), str(scanned), from_step=4)
  np.testing.assert_allclose(losses(scanned), losses(folder), rtol=1e-5)
  # Both last checkpoints have the same arrays.
  arrays = [
    json.loads((each / "checkpoints/6/state/_METADATA").read_text())
    for each in (folder, scanned)
  ]
  assert arrays[0] == arrays[1]


def test_without_its_config_a_run_is_compared_with_its_checkpoint(
  root, finished, tmp_path
):
  folder = tmp_path / "run"
  shutil.copytree(finished, folder)
  config = pathlib.Path(folder / "config.json")
  other = make_config(root, seed=1)
  config.unlink()
  with pytest.raises(ValueError, match=r"config\.seed: 1 here, 0 there"):
    run.train(other, str(folder))
  # The same if the file is there, but from another run.
  config.write_text(json.dumps(other.to_dict()))
  with pytest.raises(ValueError, match=r"step 6 .*\n.*seed: 1 here, 0 there"):
    run.train(other, str(folder))


class Trained:
  """Checkpoints whose steps were trained with different learning rates."""

  directory = "checkpoints"

  def __init__(self, root, rates):
    self.rates, self._root = rates, root

  def last_step(self):
    return max(self.rates)

  def find(self, step):
    return step

  def read_description(self, step):
    c = make_config(self._root, **{"optim.learning_rate": self.rates[step]})
    return types.SimpleNamespace(config=c.to_dict())

  def remove_after(self, step):
    later = [other for other in self.rates if other > step]
    self.rates = {s: rate for s, rate in self.rates.items() if s <= step}
    return later


def test_a_run_that_went_back_before_a_change_can_start_again(tmp_path):
  """The first start from there was killed before it saved anything."""
  c = make_config(tmp_path, **{"optim.learning_rate": 0.5})
  checkpoints = Trained(tmp_path, {2: 0.25, 4: 0.25, 6: 0.5})
  (tmp_path / "config.json").write_text(json.dumps(c.to_dict()))
  record = {"step": 4, "from_step": True, "removed": []}
  record["changed"] = {"optim.learning_rate": [0.25, 0.5]}
  (tmp_path / "history.jsonl").write_text(json.dumps(record) + "\n")

  values, defaults = c.to_dict(), config.default().to_dict()
  for _ in range(2):
    begin = resume.choose(values, defaults, str(tmp_path), checkpoints, 2)
    resume.go_on(begin, values, str(tmp_path), checkpoints)
    assert begin.step == 2
  _, record = workdir.read_history(str(tmp_path))
  assert record["changed"] == {"optim.learning_rate": [0.25, 0.5]}
  assert record["removed"] == [4, 6]
