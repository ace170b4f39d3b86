"""A --workdir on object storage: whole objects, and a copy on each machine."""

import functools
import io
import pathlib
import runpy
import shutil
import signal
import sys

import numpy as np
import object_store
import pytest
import sentence_models
import tiny
from absl import flags

import mlir_jax
from mlir_jax import encode, evaluate, workdir
from mlir_jax.checkpoints import damage, listing, manager
from mlir_jax.data import (
  collections,
  guide_writer,
  preparation,
  token_store,
  tokenizer,
)
from mlir_jax.models import pretrained
from mlir_jax.planner import backbones, rows
from mlir_jax.retrieval import line_vectors
from mlir_jax.storage import copies, locations, writing
from mlir_jax.training import checks, progress, run, stopping

URL = "gs://bucket/run"


@pytest.fixture
def store(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)  # A URL that is used as a path would be here.
  yield object_store.serve(monkeypatch)
  assert not (tmp_path / "gs:").exists()


def make_config(root, local_dir):
  c = tiny.make_config(root)
  c.hosts.local_dir = str(local_dir)
  return c


def prepare(c):
  check = functools.partial(checks.check_fits, c, URL)
  return preparation.prepare(c, URL, check)


def names(store):
  return {name.removeprefix(f"{URL}/") for name in store.objects}


def test_a_file_on_object_storage_is_written_in_one_piece(store):
  writing.write_aside(f"{URL}/results/step-8.json", "{}")
  writing.write_aside(f"{URL}/results/report.png", b"\x89PNG")
  assert store.objects == {
    f"{URL}/results/step-8.json": b"{}",
    f"{URL}/results/report.png": b"\x89PNG",
  }


def test_a_folder_on_object_storage_has_one_place_on_a_machine(
  monkeypatch, tmp_path
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  one = copies.local_copy(locations.absolute("gs://bucket/run"))
  assert one == copies.local_copy(locations.absolute("gs://bucket/run/"))
  assert one != copies.local_copy("gs://bucket/other")
  assert pathlib.Path(one).is_relative_to(tmp_path)
  assert copies.local_copy("gs://bucket/run", "here") == str(
    pathlib.Path("here").absolute()
  )
  assert copies.local_copy("/a/disk", "here") == "/a/disk"


def test_a_machine_copies_what_another_one_prepared(
  store, tmp_path, monkeypatch
):
  root = tiny.write_folder(tmp_path / "data")
  first = prepare(make_config(root, tmp_path / "first"))
  assert {"config.json", workdir.TOKENIZER, "tokens/meta.json"} <= names(store)
  monkeypatch.setattr(
    preparation.store_writer,
    "build",
    lambda *_, **__: pytest.fail("built anew"),
  )
  second = prepare(make_config(root, tmp_path / "second"))
  assert second.store.path == tmp_path / "second" / "tokens"
  assert second.store.fingerprint == first.store.fingerprint
  assert second.contract == first.contract
  # The files of another run are replaced.
  (tmp_path / "second" / "tokens" / "meta.json").write_text("{}")
  (tmp_path / "second" / workdir.TOKENIZER).write_text("{}")
  again = prepare(make_config(root, tmp_path / "second"))
  assert again.store.fingerprint == first.store.fingerprint


def test_a_machine_goes_on_with_the_guides_vectors_of_another_one(
  store, tmp_path, monkeypatch
):
  """The first machine is lost before all parts of the vectors are there."""
  root = tiny.write_folder(tmp_path / "data")
  sentence_models.save(tmp_path / "guide")
  monkeypatch.setattr(guide_writer, "_TEXTS", 50)
  encoded, encode_part = [], guide_writer._encode

  def encode(*args):
    if len(encoded) == 2:
      raise ConnectionError
    encoded.append(args)
    return encode_part(*args)

  def start(machine):
    c = make_config(root, tmp_path / machine)
    c.loss.ir.guide = str(tmp_path / "guide")
    return prepare(c).guide

  with monkeypatch.context() as patch, pytest.raises(ConnectionError):
    patch.setattr(guide_writer, "_encode", encode)
    start("first")
  assert len([name for name in names(store) if "guide-parts/" in name]) == 3
  encoded.clear()
  monkeypatch.setattr(
    guide_writer,
    "_encode",
    lambda *args: encoded.append(args) or encode_part(*args),
  )
  second = start("second")
  assert len(encoded) == 2 * 3 - 2  # Of 120 questions and 120 passages.
  assert not [name for name in names(store) if "guide-parts/" in name]
  shutil.rmtree(tmp_path / "guide")
  third = start("third")
  assert third.path == tmp_path / "third" / "guide"
  assert third.meta == second.meta


def test_a_store_that_arrives_damaged_is_refused(store, tmp_path):
  root = tiny.write_folder(tmp_path / "data")
  prepare(make_config(root, tmp_path / "first"))

  def damage_array(name):
    content = store.objects[f"{URL}/tokens/{name}.npy"]
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    store.objects[f"{URL}/tokens/{name}.npy"] = flipped

  number = store_shard_with_tokens(tmp_path / "first" / "tokens")
  damage_array(f"{number:05}/query_tokens")
  second = prepare(make_config(root, tmp_path / "second"))
  with pytest.raises(token_store.TokenStoreError, match="query_tokens"):
    second.store.tokens["query"].shard(number)
  damage_array("query_offsets")
  with pytest.raises(token_store.TokenStoreError, match="query_offsets"):
    prepare(make_config(root, tmp_path / "third"))


def store_shard_with_tokens(path):
  """The number of a shard that has questions."""
  arrays = token_store.TokenStore.open(path).meta["arrays"]
  return next(
    number
    for number in range(100)
    if arrays[f"{number:05}/query_tokens"]["shape"] != [0]
  )


def test_a_machine_copies_a_shard_when_it_first_reads_it(store, tmp_path):
  root = tiny.write_folder(tmp_path / "data")
  first = prepare(make_config(root, tmp_path / "first")).store
  second = prepare(make_config(root, tmp_path / "second")).store
  copied = tmp_path / "second/tokens"
  assert not list(copied.rglob("*_tokens.npy"))
  texts = np.arange(1)
  ids, _ = second.sequences("passage", texts, 64)
  np.testing.assert_array_equal(ids, first.sequences("passage", texts, 64)[0])
  assert len(list(copied.rglob("*_tokens.npy"))) == 1
  # The next start goes on with what is there.
  again = prepare(make_config(root, tmp_path / "second")).store
  np.testing.assert_array_equal(again.sequences("passage", texts, 64)[0], ids)


def test_a_storage_that_does_not_answer_is_not_damage(
  store, tmp_path, monkeypatch
):
  """If the run went back to an older checkpoint, it would remove this one."""

  def restore(*_, **__):
    raise ConnectionError("reset by peer")

  monkeypatch.setattr(manager.ocp.JsonCheckpointHandler, "restore", restore)
  with pytest.raises(damage.DamagedError, match="start the same command"):
    manager.read_description(f"{URL}/checkpoints", 4)


def test_a_step_whose_save_was_killed_is_not_a_checkpoint(store):
  """On object storage, its folder has its name from the beginning."""
  folder = f"{URL}/checkpoints"
  store.objects[f"{folder}/4/description/metadata"] = b"{}"
  assert listing.steps(folder) == []
  with pytest.raises(ValueError, match="no whole checkpoint"):
    manager.read_config(folder)
  store.objects[f"{folder}/4/commit_success.txt"] = b""
  assert listing.steps(folder) == [4]


def test_a_store_that_was_not_uploaded_whole_is_built_again(store, tmp_path):
  root = tiny.write_folder(tmp_path / "data")
  first = prepare(make_config(root, tmp_path / "first"))
  del store.objects[f"{URL}/tokens/meta.json"]  # It is written last.
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
  # The run is killed here, after a save at step 2. The disk is lost.
  log = open_log(2, tmp_path / "second")
  log.train(3, {"loss/total": 30.0})
  log.close()
  found = progress.read_metrics(URL)
  assert [r["loss/total"] for r in found] == [1.0, 2.0, 30.0]
  assert any(name.startswith("tensorboard/") for name in names(store))


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_run_on_object_storage_goes_on_on_another_machine(
  store, tmp_path, monkeypatch, capsys
):
  root = tiny.write_folder(tmp_path / "data")

  def train(local_dir):
    c = make_config(root, tmp_path / local_dir)
    tiny.train_pairs_alone(c)
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


CONFIG = """
import sys
sys.path.insert(0, {tests!r})
import tiny
def get_config():
  c = tiny.make_config({root!r})
  c.hosts.local_dir = {local!r}
  tiny.train_pairs_alone(c)
  c.train.steps = 2
  return c
"""


def call(monkeypatch, name, *arguments):
  """Runs a main in this process, which has the store; it must succeed."""
  before, handler = set(flags.FLAGS), signal.getsignal(signal.SIGTERM)
  monkeypatch.setattr(sys, "argv", [name, *arguments])
  try:
    with pytest.raises(SystemExit) as ended:
      runpy.run_module(f"mlir_jax.{name}", run_name="__main__")
    assert not ended.value.code
  finally:
    signal.signal(signal.SIGTERM, handler)
    for flag in set(flags.FLAGS) - before:
      delattr(flags.FLAGS, flag)
    flags.FLAGS.unparse_flags()


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
@pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")
def test_every_main_reads_and_writes_object_storage(
  store, tmp_path, monkeypatch, capsys
):
  """tensorpack#1317: a URL used as a path becomes gs:/, a local folder."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  root = tiny.write_folder(tmp_path / "data")
  config = tmp_path / "own.py"
  config.write_text(
    CONFIG.format(
      tests=str(pathlib.Path(tiny.__file__).parent),
      root=str(root),
      local=str(tmp_path / "local"),
    )
  )
  before = {path.name for path in tmp_path.iterdir()} | {"local", "cache"}
  run_main = functools.partial(call, monkeypatch)
  run_main("prepare", f"--config={config}", f"--workdir={URL}")
  assert "tokens/meta.json" in names(store)
  run_main("train", f"--config={config}", f"--workdir={URL}/")
  run_main("evaluate", f"--workdir={URL}")
  assert {"evaluate-data-last/step-2.json", "evaluate-data-last/report.md"} <= (
    names(store)
  )
  run_main("export", f"--workdir={URL}", "--output=gs://bucket/export")
  assert "Wrote step 2 to gs://bucket/export:" in capsys.readouterr().out
  assert "gs://bucket/export/modules.json" in store.objects
  assert "# export" in store.objects["gs://bucket/export/README.md"].decode()
  store.objects["gs://bucket/texts.txt"] = b"river stone\napple\n"
  for model in (URL, "gs://bucket/export"):
    run_main(
      *("encode", f"--model={model}", "--role=query"),
      *("--output=gs://bucket/out/v.npy", "gs://bucket/texts.txt"),
    )
    printed = capsys.readouterr().out
    assert "Wrote gs://bucket/out/v.npy: float32 [2, 32]" in printed
    content = store.objects.pop("gs://bucket/out/v.npy")
    loaded = mlir_jax.load(model)
    np.testing.assert_allclose(
      np.load(io.BytesIO(content)),
      loaded.encode(["river stone", "apple"]),
      atol=1e-6,
    )
  assert rows.open_store(URL).rows("retrieval") == 120
  assert {path.name for path in tmp_path.iterdir()} == before
  with pytest.raises(AssertionError):  # Exit code 2.
    run_main("export", f"--workdir={URL}", "--output=gs://bucket/export")
  assert "--output=gs://bucket/export exists" in capsys.readouterr().err


def test_the_copy_of_a_model_on_object_storage_is_kept_up_to_date(
  store, tmp_path, monkeypatch
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  url = "gs://bucket/model"
  sentence_models.save(tmp_path / "model")

  def put(path):
    for file in path.rglob("*"):
      if file.is_file():
        name = file.relative_to(path).as_posix()
        store.objects[f"{url}/{name}"] = file.read_bytes()

  put(tmp_path / "model")
  store.objects[f"{url}/pytorch_model.bin"] = b"a pickle"
  copy = pretrained.fetch(url)
  assert not (copy / "pytorch_model.bin").exists()  # As in a copy from the hub.
  expected = mlir_jax.load(str(tmp_path / "model")).encode(["apple", "river"])
  found = mlir_jax.load(f"{url}/").encode(["apple", "river"])
  np.testing.assert_array_equal(found, expected)
  assert tokenizer.load(url).get_vocab() == (
    tokenizer.load(str(tmp_path / "model")).get_vocab()
  )
  c = tiny.make_config(tmp_path)
  c.model.pretrained = url
  assert backbones.encoder_config(c).hidden_size == 24
  # Other weights of the same size, and a file that is gone.
  name = f"{url}/model.safetensors"
  store.objects[name] = bytes(len(store.objects[name]))
  del store.objects[f"{url}/config_sentence_transformers.json"]
  copy = pretrained.fetch(url)
  assert (copy / "model.safetensors").read_bytes() == store.objects[name]
  assert not (copy / "config_sentence_transformers.json").exists()
  with pytest.raises(ValueError, match="no folder gs://bucket/none"):
    mlir_jax.load("gs://bucket/none")
  with pytest.raises(ValueError, match="leave the revision empty"):
    pretrained.fetch(url, "main")


def test_a_folder_that_cannot_be_uploaded_whole_leaves_nothing(
  store, tmp_path, monkeypatch
):
  for name in ("modules.json", "a.json", "passage/modules.json", "z/z.json"):
    path = tmp_path / "folder" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(name)
  url = "gs://bucket/folder"
  copies.upload_folder(str(tmp_path / "folder"), url, "modules.json")
  written = [name.removeprefix(f"{url}/") for name in store.objects]
  assert written == [
    *("a.json", "z/z.json"),
    *("modules.json", "passage/modules.json"),
  ]
  store.objects.clear()
  opened = store.open

  def fail(path, mode):
    if path.endswith("z.json"):
      raise OSError("no space")
    return opened(path, mode)

  monkeypatch.setattr(store, "open", fail)
  with pytest.raises(OSError, match="no space"):
    copies.upload_folder(str(tmp_path / "folder"), url, "modules.json")
  assert not store.objects


def test_an_upload_that_was_killed_is_made_again(store, tmp_path, monkeypatch):
  folder, url = tmp_path / "folder", "gs://bucket/folder"
  folder.mkdir()
  for name in ("docid", "index"):
    (folder / name).write_text(name)

  def kill(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(store, "remove", lambda path: None)
    patched.setattr(copies.shutil, "copyfileobj", kill)
    with pytest.raises(KeyboardInterrupt):
      copies.upload_folder(str(folder), url, "index")
  assert set(store.objects) == {f"{url}/.uploading", f"{url}/docid"}
  copies.check_free(url, "--output")
  store.objects[f"{url}/own.txt"] = b"of the user"
  with pytest.raises(ValueError, match="--output exists: give another"):
    copies.check_free(url, "--output")
  del store.objects[f"{url}/own.txt"]
  (folder / "docid").rename(folder / "ids")
  copies.upload_folder(str(folder), url, "index")
  assert set(store.objects) == {f"{url}/ids", f"{url}/index"}
  with pytest.raises(ValueError, match="--output exists"):
    copies.check_free(url, "--output")


def test_texts_and_vectors_may_be_on_object_storage(store, tmp_path):
  def embed(texts):
    yield np.array([[len(text)] for text in texts], np.float32)

  url, output = "gs://bucket/texts.txt", "gs://bucket/v.npy"
  store.objects[url] = b"a\nbb\n\n"
  assert line_vectors.encode_files(embed, [url], output) == (3, 1)
  found = np.load(io.BytesIO(store.objects[output]))
  assert found[:, 0].tolist() == [1, 2, 0]
  before = dict(store.objects)
  store.objects[url] = b"a\nb\xff\n"
  with pytest.raises(ValueError, match=r"^gs://bucket/texts\.txt:2: text: is"):
    line_vectors.encode_files(embed, [url], output)
  assert store.objects[output] == before[output]


def put(store, folder, url):
  for path in folder.rglob("*"):
    if path.is_file():
      name = path.relative_to(folder).as_posix()
      store.objects[f"{url}/{name}"] = path.read_bytes()


def test_a_pod_reads_the_collection_from_object_storage(
  store, tmp_path, monkeypatch, capsys
):
  """One machine prepares its own files; a host has none of them."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  root = tiny.write_folder(tmp_path / "mine")
  prepared = prepare(make_config(root, tmp_path / "first"))
  put(store, root, "gs://bucket/data/mine")
  shutil.rmtree(root)
  host = prepare(make_config("gs://bucket/data/mine", tmp_path / "second"))
  assert "data.root: copying what is new in gs://bucket/data/mine to" in (
    capsys.readouterr().out
  )
  assert host.collection.name == "mine"
  assert host.store.fingerprint == prepared.store.fingerprint
  assert [test.queries for test in host.tests] == [
    test.queries for test in prepared.tests
  ]
  # A file that is gone there is not read from the copy.
  capsys.readouterr()
  del store.objects["gs://bucket/data/mine/mono/made.fi.txt"]
  prepare(make_config("gs://bucket/data/mine", tmp_path / "second"))
  assert "training files are gone, 1 of 4 (mono/made.fi.txt)" in (
    capsys.readouterr().out
  )
  store.objects["gs://bucket/data/mine/mono/made.fi.txt"] = b"others\n"
  with pytest.raises(ValueError, match=r"built: files under data\.root="):
    prepare(make_config("gs://bucket/data/mine", tmp_path / "second"))


def test_a_collection_that_is_not_on_object_storage_is_named(store):
  for name in ("root", "tatoeba_root"):
    for url, says in (
      ("s3://bucket/data", "only gs://BUCKET/FOLDER is supported"),
      ("gs://bucket/missing", "There is no folder gs://bucket/missing"),
    ):
      given = {"root": str(tiny.write_folder(pathlib.Path("d")))} | {name: url}
      with pytest.raises(ValueError, match=rf"^data\.{name}={url}: .*{says}"):
        collections.load("folder", **given)


def test_a_missing_package_for_object_storage_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
  with pytest.raises(ValueError, match="pip install google-cloud-storage"):
    locations.check_packages(URL)
  # Refused before anything is read or encoded.
  c = tiny.make_config("data")
  c.model.pretrained = URL
  for start_of_main in (
    lambda: mlir_jax.load(URL),
    lambda: evaluate.evaluate("model", root="data", output=URL),
    lambda: encode._check_paths([], f"{URL}/v.npy"),
    lambda: preparation.fetch_backbone(c, "run"),
  ):
    with pytest.raises(ValueError, match="pip install google-cloud-storage"):
      start_of_main()
  locations.check_packages("/a/disk")
