"""What a killed mining run leaves is used again, or refused."""

import numpy as np
import pytest

from mlir_jax.mining import progress


def test_a_portion_is_made_once_even_if_its_file_was_damaged(tmp_path):
  output, made = tmp_path / "out.json", []

  def make():
    made.append(1)
    return {"rows": np.arange(3)}

  with (
    pytest.raises(KeyboardInterrupt),
    progress.opened(output, {"depth": 3}) as kept,
  ):
    kept.arrays("a", make)
    raise KeyboardInterrupt
  path = kept.path / "a.npz"
  path.write_bytes(path.read_bytes()[:-30])
  with (
    pytest.raises(KeyboardInterrupt),
    progress.opened(output, {"depth": 3}) as kept,
  ):
    assert kept.arrays("a", make)["rows"].tolist() == [0, 1, 2]
    assert len(made) == 2 and not kept.kept
    raise KeyboardInterrupt
  with progress.opened(output, {"depth": 3}) as kept:
    kept.arrays("a", make)
    assert kept.kept == 1 and len(made) == 2
    with (
      pytest.raises(ValueError, match="Another process mines"),
      progress.opened(output, {"depth": 3}),
    ):
      pass
  assert not list(tmp_path.iterdir())


def test_portions_of_other_settings_are_refused(tmp_path):
  output = tmp_path / "out"
  with pytest.raises(KeyboardInterrupt), progress.opened(output, {"depth": 3}):
    raise KeyboardInterrupt
  with (
    pytest.raises(ValueError, match=r"out\.mining .*other settings.*\(depth\)"),
    progress.opened(output, {"depth": 4}),
  ):
    pass
  assert [path.name for path in tmp_path.iterdir()] == [".out.mining"]
