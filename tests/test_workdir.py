"""The run's folder is one place and belongs to one experiment."""

import json
import os

import pytest

from mlir_jax import workdir
from mlir_jax.storage import locations


def test_a_folder_is_one_place_however_it_is_written(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path), {})
  monkeypatch.chdir(tmp_path)
  assert locations.absolute("~/run") == locations.absolute("run")
  assert os.path.isabs(locations.absolute("run"))
  assert locations.absolute("gs://bucket/run/") == "gs://bucket/run"


@pytest.mark.parametrize(
  ("path", "message"),
  [
    ("file", "file is not a folder"),
    ("file/deep/x", "file is not a folder"),
    ("dangling/x", "dangling is not a folder"),
    ("x" * 300, "nothing can be written there: File name too long"),
    ("/proc/none", "nothing can be written there: "),
  ],
)
def test_a_folder_that_cannot_be_written_in_is_refused(path, message, tmp_path):
  (tmp_path / "file").touch()
  (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
  path = os.path.join(tmp_path, path)
  with pytest.raises(ValueError) as error:
    locations.check_output(path, "--output=x")
  assert str(error.value).startswith("--output=x: ")
  assert message in str(error.value)


def test_checking_a_folder_leaves_nothing_in_it(tmp_path):
  for path in (tmp_path, tmp_path / "new/deep"):
    locations.check_output(str(path), "--output=x")
    assert locations.check_folder(str(path), "--output=x") == str(tmp_path)
  assert not list(tmp_path.iterdir())


def test_a_config_may_change_where_it_changes_no_result(tmp_path):
  evaluation = {"every": 5, "dev_passages": 0}
  config = {"seed": 0, "eval": evaluation, "train": {"steps": 3}}
  workdir.claim(config, str(tmp_path), {})
  (tmp_path / "checkpoints" / "2").mkdir(parents=True)
  other = evaluation | {"every": 7}
  workdir.claim(config | {"eval": other}, str(tmp_path), {})
  # The values that choose the best checkpoint must have one scale.
  other = evaluation | {"dev_passages": 9}
  for step in (None, 2):
    with pytest.raises(ValueError, match=r"eval\.dev_passages: 9 here, 0 ther"):
      workdir.claim(config | {"eval": other}, str(tmp_path), {}, step)
  with pytest.raises(ValueError, match=r"config\.seed: 1 here, 0 there"):
    workdir.claim(config | {"seed": 1}, str(tmp_path), {}, from_step=2)


def test_the_error_says_what_a_change_on_resume_needs(tmp_path):
  config = {
    "seed": 0,
    "optim": {"decay": "cosine", "learning_rate": 1.0},
    "train": {"steps": 3},
  }

  def claim(from_step=None, **changes):
    changed = {**config, **changes}
    workdir.claim(changed, str(tmp_path), {}, from_step)

  claim()
  with pytest.raises(ValueError, match="has no checkpoint"):
    claim(from_step=2)
  (tmp_path / "checkpoints" / "2").mkdir(parents=True)
  for step in (-1, 3):
    with pytest.raises(ValueError, match=rf"=-?{abs(step)}: .* it has \[2\]"):
      claim(from_step=step)
  claim(from_step=2)
  history = {"step": 1, "from_step": True, "changed": {}}
  (tmp_path / workdir.HISTORY).write_text(json.dumps(history) + "\n")
  claim(from_step=1)  # It is gone, but the run has gone on from it.
  lower = {"decay": "cosine", "learning_rate": 0.1}
  with pytest.raises(
    ValueError, match=r"learning_rate: 0\.1 here, 1\.0 there\n.*--from_step=N"
  ):
    claim(optim=lower)
  claim(from_step=2, optim=lower)
  # The schedule ends at the last step.
  with pytest.raises(ValueError, match=r"train\.steps: 4 here, 3 there"):
    claim(train={"steps": 4})
  claim(from_step=2, train={"steps": 4})
  constant = {"decay": "constant", "learning_rate": 1.0}
  (tmp_path / "config.json").write_text(
    json.dumps(config | {"optim": constant})
  )
  claim(train={"steps": 4}, optim=constant)
  with pytest.raises(ValueError, match=r"train\.steps: 2 here, 3 there"):
    claim(train={"steps": 2}, optim=constant)


@pytest.mark.parametrize("content", [b"", b'{"seed"', b"\xff{}", b"[1]"])
def test_a_damaged_config_is_named(content, tmp_path):
  (tmp_path / "checkpoints" / "2").mkdir(parents=True)
  (tmp_path / "config.json").write_bytes(content)
  with pytest.raises(ValueError, match=r"config\.json cannot be read") as error:
    workdir.claim({"seed": 0}, str(tmp_path), {})
  assert "\n" not in str(error.value)


def test_an_empty_folder_takes_another_config(tmp_path):
  workdir.claim({"seed": 0}, str(tmp_path), {})
  workdir.claim({"seed": 1}, str(tmp_path), {})
  (tmp_path / "tokens").mkdir()
  with pytest.raises(ValueError, match=r"config\.seed: 0 here, 1 there"):
    workdir.claim({"seed": 0}, str(tmp_path), {})


def test_before_any_checkpoint_only_the_data_settings_are_fixed(tmp_path):
  config = {"data": {"masking": {"rate": 0.0}, "collection": "cldr"}}
  mended = {"data": {"masking": {"rate": 0.1}, "collection": "cldr"}}
  other = {"data": {"masking": {"rate": 0.1}, "collection": "folder"}}
  workdir.claim(config, str(tmp_path), {})
  (tmp_path / "tokens").mkdir()
  workdir.claim(mended, str(tmp_path), {})
  with pytest.raises(ValueError, match=r"config\.data\.collection"):
    workdir.claim(other, str(tmp_path), {})
  (tmp_path / "checkpoints" / "2").mkdir(parents=True)
  with pytest.raises(ValueError, match=r"config\.data\.masking\.rate"):
    workdir.claim(config, str(tmp_path), {})


def test_a_config_from_before_a_field_has_its_default(tmp_path):
  workdir.claim({"seed": 0}, str(tmp_path), {})
  (tmp_path / "checkpoints" / "2").mkdir(parents=True)
  new = {"seed": 0, "model": {"projection_size": 0}}
  workdir.claim(new, str(tmp_path), new)
  with pytest.raises(ValueError, match="projection_size: 0 here, None there"):
    workdir.claim(new, str(tmp_path), {})


def test_the_dropout_of_attention_may_not_change_but_its_kernel_may(tmp_path):
  kept = {"model": {"attention": "xla", "attention_dropout": 0.1}}
  workdir.claim(kept, str(tmp_path), {})
  (tmp_path / "checkpoints" / "2").mkdir(parents=True)
  fused = {"model": {"attention": "cudnn", "attention_dropout": 0.1}}
  workdir.claim(fused, str(tmp_path), {})
  other = {"model": {"attention": "xla", "attention_dropout": 0.0}}
  with pytest.raises(ValueError, match=r"config\.model\.attention_dropout"):
    workdir.claim(other, str(tmp_path), {})
