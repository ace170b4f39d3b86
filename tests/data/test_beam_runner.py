"""Beam's own local runner makes the shards that a local build makes.

Beam needs an older protobuf than TensorFlow has here. Where it is not
installed, these tests are skipped.
"""

import pytest
import test_shards
import tiny

from mlir_jax.data import records
from mlir_jax.data.shards import beam_runner

pytest.importorskip(
  "apache_beam", reason="Apache Beam (the extra beam) is not installed."
)
pytestmark = [
  pytest.mark.slow,
  pytest.mark.filterwarnings("default::DeprecationWarning"),
]

# It runs the pipeline in this process.
LOCAL = "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner"


def test_beam_builds_the_bytes_of_a_local_build(tmp_path):
  root = str(tiny.write_folder(tmp_path / "data"))
  local = test_shards.build(root, tmp_path / "local", shards=40)
  test_shards.build(root, tmp_path / "beam", shards=40, beam=LOCAL)
  expected = test_shards.content(local.path)
  assert test_shards.content(tmp_path / "beam") == expected


def test_beam_reports_a_bad_record_and_counts_skipped_ones(tmp_path):
  root = str(tiny.write_folder(tmp_path / "data"))
  test_shards.recipe(root)
  with open(f"{root}/mono/made.fi.txt", "ab") as file:
    file.write(b"\xff\n")
  with pytest.raises(records.RecordError) as local:
    test_shards.build(root, tmp_path / "local")
  with pytest.raises(records.RecordError) as beam:
    test_shards.build(root, tmp_path / "beam", beam=LOCAL)
  assert str(local.value) == str(beam.value)
  options = {"policy": "skip", "key": "skip"}
  test_shards.build(root, tmp_path / "local", **options)
  test_shards.build(root, tmp_path / "beam", beam=LOCAL, **options)
  expected = test_shards.content(tmp_path / "local")
  assert test_shards.content(tmp_path / "beam") == expected


def test_beam_makes_only_the_shards_that_are_not_there(tmp_path, monkeypatch):
  root = str(tiny.write_folder(tmp_path / "data"))
  expected = test_shards.build(root, tmp_path / "local")
  made = []
  make = beam_runner.shard_lib.make

  def dying(recipe, folders, shard, folder, **options):
    made.append(shard)
    if len(made) == 2:
      raise RuntimeError("killed here")
    make(recipe, folders, shard, folder, **options)

  monkeypatch.setattr(beam_runner.shard_lib, "make", dying)
  with pytest.raises(Exception, match="killed here"):
    test_shards.build(root, tmp_path / "beam", beam=LOCAL)
  first = made[0]
  made.clear()
  monkeypatch.setattr(beam_runner.shard_lib, "make", make)
  test_shards.build(root, tmp_path / "beam", beam=LOCAL)
  assert first not in made
  content = test_shards.content(tmp_path / "beam")
  assert content == test_shards.content(expected.path)
