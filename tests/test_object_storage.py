"""A --workdir on object storage: whole objects, and a copy on each machine."""

import functools
import pathlib
import sys

import object_store
import pytest
import tiny

from mlir_jax import workdir
from mlir_jax.data import preparation, tokens
from mlir_jax.training import progress, run, start, stopping

URL = "gs://bucket/run"


@pytest.fixture
def store(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)  # A URL taken for a path would appear here.
  yield object_store.serve(monkeypatch)
  assert not (tmp_path / "gs:").exists()


def make_config(root, local_dir):
  c = tiny.make_config(root)
  c.hosts.local_dir = str(local_dir)
  return c


def prepare(c):
  check = functools.partial(start.check_fits, c, URL)
  return preparation.prepare(c, URL, check)


def names(store):
  return {name.removeprefix(f"{URL}/") for name in store.objects}


def test_a_file_on_object_storage_is_written_at_once(store):
  workdir.write_aside(f"{URL}/results/step-8.json", "{}")
  workdir.write_aside(f"{URL}/results/report.png", b"\x89PNG")
  assert store.objects == {
    f"{URL}/results/step-8.json": b"{}",
    f"{URL}/results/report.png": b"\x89PNG",
  }


def test_a_folder_on_object_storage_has_one_place_on_a_machine(
  monkeypatch, tmp_path
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  one = workdir.local_copy(workdir.absolute("gs://bucket/run"))
  assert one == workdir.local_copy(workdir.absolute("gs://bucket/run/"))
  assert one != workdir.local_copy("gs://bucket/other")
  assert pathlib.Path(one).is_relative_to(tmp_path)
  assert workdir.local_copy("gs://bucket/run", "here") == str(
    pathlib.Path("here").absolute()
  )
  assert workdir.local_copy("/a/disk", "here") == "/a/disk"


def test_what_one_machine_prepared_another_copies(store, tmp_path, monkeypatch):
  root = tiny.write_folder(tmp_path / "data")
  first = prepare(make_config(root, tmp_path / "first"))
  assert {"config.json", workdir.TOKENIZER, "tokens/meta.json"} <= names(store)
  monkeypatch.setattr(
    preparation.tokenizing, "build", lambda *_, **__: pytest.fail("built anew")
  )
  second = prepare(make_config(root, tmp_path / "second"))
  assert second.store.path == tmp_path / "second" / "tokens"
  assert second.store.fingerprint == first.store.fingerprint
  assert second.contract == first.contract
  # Of another run; it gives way to this one's.
  (tmp_path / "second" / "tokens" / "meta.json").write_text("{}")
  (tmp_path / "second" / workdir.TOKENIZER).write_text("{}")
  again = prepare(make_config(root, tmp_path / "second"))
  assert again.store.fingerprint == first.store.fingerprint


def test_a_store_that_arrives_damaged_is_refused(store, tmp_path):
  root = tiny.write_folder(tmp_path / "data")
  prepare(make_config(root, tmp_path / "first"))
  name = f"{URL}/tokens/query_tokens.npy"
  content = store.objects[name]
  store.objects[name] = content[:-1] + bytes([content[-1] ^ 1])
  with pytest.raises(tokens.TokenStoreError, match="query_tokens"):
    prepare(make_config(root, tmp_path / "second"))


def test_a_store_that_was_not_kept_whole_is_built_anew(store, tmp_path):
  root = tiny.write_folder(tmp_path / "data")
  first = prepare(make_config(root, tmp_path / "first"))
  del store.objects[f"{URL}/tokens/meta.json"]  # Written last: killed before.
  again = prepare(make_config(root, tmp_path / "first"))
  assert again.store.fingerprint == first.store.fingerprint
  assert "tokens/meta.json" in names(store)


def open_log(first_step, local_dir):
  return progress.Progress(
    URL,
    first_step=first_step,
    last_step=10,
    sequences_per_step=4,
    local_dir=str(local_dir),
  )


def test_metrics_go_on_on_another_machine(store, tmp_path):
  log = open_log(0, tmp_path / "first")
  for taken in (1, 2, 3):
    log.train(taken, {"loss/total": float(taken)})
    if taken == 2:
      log.keep()
  assert [r["step"] for r in progress.read_metrics(URL)] == [1, 2]
  # Killed here, after a save at step 2; the disk is lost.
  log = open_log(2, tmp_path / "second")
  log.train(3, {"loss/total": 30.0})
  log.close()
  found = progress.read_metrics(URL)
  assert [r["loss/total"] for r in found] == [1.0, 2.0, 30.0]
  assert any(name.startswith("tensorboard/") for name in names(store))


@pytest.mark.slow
def test_a_run_on_object_storage_goes_on_on_another_machine(
  store, tmp_path, monkeypatch, capsys
):
  root = tiny.write_folder(tmp_path / "data")

  def train(local_dir):
    c = make_config(root, tmp_path / local_dir)
    c.batch.masked, c.loss.masked_lm.weight = 0, 0.0
    c.train.self_check = False
    c.train.steps = 4
    return run.train(c, URL)

  reached = stopping.StopSignal.reached
  monkeypatch.setattr(stopping.StopSignal, "reached", lambda _, step: step == 2)
  with pytest.raises(stopping.Preempted):
    train("first")
  assert [r["step"] for r in progress.read_metrics(URL)] == [1, 2]
  monkeypatch.setattr(stopping.StopSignal, "reached", reached)
  assert "checkpoints/2/commit_success.txt" in names(store)
  results = train("second")
  assert "Going on from step 2" in capsys.readouterr().out
  steps = [
    r["step"] for r in progress.read_metrics(URL) if r["kind"] == "train"
  ]
  assert steps == [1, 2, 3, 4]
  assert results
  assert {
    *("results/step-4.json", "results/report.txt", "results/report.png"),
    "results/step-4/test.en.trec",
  } <= names(store)


def test_what_is_missing_for_object_storage_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
  with pytest.raises(ValueError, match="pip install google-cloud-storage"):
    workdir.check_packages(URL)
  workdir.check_packages("/a/disk")
