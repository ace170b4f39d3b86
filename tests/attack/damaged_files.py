"""Each file of a run is damaged, then read by each main that reads it."""

import atexit
import contextlib
import dataclasses
import fcntl
import functools
import itertools
import json
import os
import pathlib
import pickle
import resource
import shutil
import signal
import struct
import tempfile
from collections.abc import Callable, Iterator
from unittest import mock

import conftest  # noqa: F401  Offline, on the CPU, before jax is imported.
import jax
import light_step
import numpy as np
import safetensors.numpy
import tiny
from attack import scoreboard

import mlir_jax
from mlir_jax import evaluate as evaluate_main
from mlir_jax import export as export_main
from mlir_jax import lock as lock_lib
from mlir_jax import sharding
from mlir_jax.models import sealed
from mlir_jax.retrieval import encoding, line_vectors, runs
from mlir_jax.storage import full_disk, writing
from mlir_jax.training import build
from mlir_jax.training import run as run_lib

TEXTS = ["apple river", "stone", "cloud garden window"]
TITLES = ["paper", "", "silver music"]
STEPS = 4
FULL = ("Free some space",)
TOKENIZER = "tokenizer/tokenizer.json"
DESCRIPTION = f"checkpoints/{STEPS}/description/metadata"
LFS = (
  "version https://git-lfs.github.com/spec/v1\n"
  f"oid sha256:{'0' * 64}\nsize 12345\n"
)


@functools.cache
def session() -> pathlib.Path:
  """A folder that all cases share; it is removed when the process ends."""
  folder = tempfile.mkdtemp(prefix="mlir_jax_attack_")
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return pathlib.Path(folder)


# Equal encoders share their compiled program.
make_embed = functools.cache(encoding.make_embed)


def one_device(data=-1, model=1, devices=None, make=sharding.make_mesh):
  return make(data, model, devices or jax.devices()[:1])


@contextlib.contextmanager
def light() -> Iterator[None]:
  """In the block, a damaged file cannot make anything compile again."""
  cache = {"XDG_CACHE_HOME": str(session() / "cache")}
  with (
    mock.patch.dict(os.environ, cache),  # It remembers what was checked.
    mock.patch.object(sharding, "make_mesh", one_device),
    mock.patch.object(build, "jit_step", light_step.make),
    mock.patch.object(encoding, "make_embed", make_embed),
  ):
    yield


def make_config(seed: int = 0):
  c = tiny.make_config(tiny_data())
  c.batch.masked = 0
  c.loss.masked_lm.weight = 0.0
  c.train.steps = STEPS
  c.eval.every = 2
  c.encoding.title_joiner = " | "  # Other models have another joiner.
  # Otherwise each copy of the workdir would have them.
  c.train.compilation_cache = ""
  c.seed = seed
  return c


@functools.cache
def tiny_data() -> pathlib.Path:
  folder = tiny.write_folder(session() / "data", pairs=60)
  shutil.rmtree(folder / "eval/de")  # Each test costs each resume a moment.
  return folder


@functools.cache
def whole(seed: int = 0) -> pathlib.Path:
  """The workdir of a run that has ended."""
  folder = session() / f"run-{seed}"
  run_lib.train(make_config(seed), str(folder))
  return folder


@functools.cache
def whole_export() -> pathlib.Path:
  folder = session() / "export"
  export_main.export(str(whole()), "last", str(folder))
  return folder


def encode(folder: pathlib.Path, checkpoint="last") -> np.ndarray:
  model = mlir_jax.load(str(folder), checkpoint, batch_size=4)
  return model.encode(TEXTS, role="passage", titles=TITLES)


@functools.cache
def vectors(checkpoint="last") -> np.ndarray:
  return encode(whole(), checkpoint)


def expect_vectors(folder: pathlib.Path, checkpoint="last", right=None) -> None:
  ours = encode(folder, checkpoint)
  right = vectors() if right is None else right
  if ours.shape != right.shape:
    scoreboard.expect(False, f"vectors of the shape {ours.shape}")
  apart = np.abs(ours - right).max()
  scoreboard.expect(apart <= 1e-6, f"vectors differ by {apart:.3g}")


# --- How files are damaged. ---


def flip(path):
  """Flips one bit in the middle."""
  content = bytearray(path.read_bytes())
  # The numbers of an array begin after its header.
  first = 128 if path.suffix == ".npy" else 0
  content[first + (len(content) - first) // 2] ^= 4
  path.write_bytes(bytes(content))


def cut(path):
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2])


def empty(path):
  path.write_bytes(b"")


def missing(path):
  shutil.rmtree(path) if path.is_dir() else path.unlink()


def deep(path):
  path.write_text('{"a":' * 100_000)


def not_utf8(path):
  path.write_bytes(path.read_bytes().replace(b'"', b'"\xff', 1))


def digits(path):
  text = path.read_text().strip()
  path.write_text('{"extra": ' + "9" * 5000 + "," + text[1:])


def double_key(path):
  text = path.read_text().strip()
  key = next(iter(json.loads(text)))
  path.write_text('{"' + key + '": "another",' + text[1:])


def lfs(path):
  path.write_text(LFS)


def another_type(path):
  path.write_text('["a", 5]')


def a_folder(path):
  path.unlink()
  path.mkdir()


def a_dangling_link(path):
  path.unlink()
  path.symlink_to("nowhere")


JSON_DAMAGE = {
  function.__name__.replace("_", " "): function
  for function in (
    cut,
    empty,
    deep,
    not_utf8,
    digits,
    double_key,
    lfs,
    another_type,
    a_folder,
    a_dangling_link,
  )
}


def edits(**fields) -> Callable:
  """Sets fields of a JSON file; "a.b" is b in a."""

  def damage(path):
    value = json.loads(path.read_text())
    for name, new in fields.items():
      *outer, last = name.split("__")
      part = value
      for key in outer:
        part = part[key]
      part[last] = new
    path.write_text(json.dumps(value))

  return damage


def contract_edits(**fields) -> Callable:
  """Sets fields of the contract in a checkpoint's description."""

  def damage(path):
    value = json.loads(path.read_text())
    is_text = isinstance(value["contract"], str)
    contract = value["contract"]
    contract = json.loads(contract) if is_text else contract
    for name, new in fields.items():
      role, _, field = name.rpartition("__")
      (contract[role] if role else contract)[field] = new
    value["contract"] = json.dumps(contract) if is_text else contract
    path.write_text(json.dumps(value))

  return damage


# --- The readers. ---


def by_load(folder):
  expect_vectors(folder)


def by_load_of_the_first(folder):
  """Reads the older checkpoint, which is whole."""
  expect_vectors(folder, 2, vectors(2))


def by_load_of_the_best(folder):
  """The last checkpoint is damaged, so the other one may be the best."""
  model = mlir_jax.load(str(folder), "best")
  right = vectors(model.step)
  expect_vectors(folder, model.step, right)


def by_resume(folder):
  """Goes on after the last step: nothing may change."""
  run_lib.train(make_config(), str(folder))
  expect_vectors(folder)


def by_going_on(folder):
  """The last checkpoint is gone: steps 3 and 4 are taken again."""
  last = folder / f"checkpoints/{STEPS}"
  if last.exists():
    shutil.rmtree(last)
  run_lib.train(make_config(), str(folder))
  expect_vectors(folder)


def by_going_back(folder):
  """Does what the message about a damaged checkpoint says."""
  run_lib.train(make_config(), str(folder), from_step=2)
  expect_vectors(folder)


def by_evaluate(folder):
  output = folder.parent / "evaluated"
  evaluate_main.evaluate(str(folder), output=str(output))
  made = sorted(output.rglob("*.json"))
  scoreboard.expect(bool(made), "no results")


def by_export(folder):
  output = folder.parent / "export"
  try:
    export_main.export(str(folder), "last", str(output))
  except Exception:
    scoreboard.expect(not output.exists(), "refused, but there is an export")
    raise
  expect_vectors(output)
  card, right = (
    (path / "README.md").read_text() for path in (output, whole_export())
  )
  scoreboard.expect(card == right, "the model card is another")


READERS = {
  "load": by_load,
  "load of the first": by_load_of_the_first,
  "load of the best": by_load_of_the_best,
  "resume": by_resume,
  "going on": by_going_on,
  "going back": by_going_back,
  "evaluate": by_evaluate,
  "export": by_export,
}
REFUSED_OR_SAME = (
  "It is refused, with the file's name; or the result is the undamaged one."
)
REFUSED = "It is refused, with the file's name."


@dataclasses.dataclass(frozen=True)
class Damage:
  """A damaged file of a workdir or an export.

  Attributes:
    file: The path in the folder.
    kind: The damage, in words.
    do: Damages the file at the path that it receives.
    readers: Which of `READERS` try it.
    names: What a refusal must contain; by default the file's name.
    refuse: Whether only a refusal is right. By default, the undamaged result is
      right, too.
    same: Whether only the undamaged result is right.
    of: Returns the folder to copy.
  """

  file: str
  kind: str
  do: Callable
  readers: tuple[str, ...] = ("load",)
  names: tuple[str, ...] | None = None
  refuse: bool = False
  same: bool = False
  of: Callable = whole


def attack(damage: Damage, reader: str, folder: pathlib.Path) -> None:
  copy = folder / "copy"
  with light():
    shutil.copytree(damage.of(), copy)
    damage.do(copy / damage.file)
    try:
      READERS[reader](copy)
    except (ValueError, OSError) as error:
      scoreboard.expect(not damage.same, f"refused: {error}")
      raise
  scoreboard.expect(not damage.refuse, "accepted")


def unlisted(do: Callable) -> Callable:
  """Also removes the list of the checkpoint's files.

  Checkpoints of older versions and on object storage have no list.
  """

  def damage(path):
    for checkpoint in path.parents:
      (checkpoint / "files.json").unlink(missing_ok=True)
    do(path)

  return damage


# --- The cases. ---


def configs() -> Iterator[Damage]:
  """config.json of a workdir, which says what the run is."""
  for kind, do in JSON_DAMAGE.items():
    yield Damage("config.json", kind, do, ("resume",))
  for kind in ("cut", "deep", "not utf8"):
    yield Damage("config.json", kind, JSON_DAMAGE[kind], ("load",))
  yield Damage("config.json", "missing", missing, ("load", "resume"), same=True)

  def missing_and_cut(path):
    missing(path)
    cut(path.parent / DESCRIPTION)

  yield Damage(
    "config.json",
    "missing, and the last checkpoint is damaged",
    missing_and_cut,
    ("resume",),
    (f"--from_step={STEPS - 2}",),
    refuse=True,
  )
  yield Damage(
    "config.json",
    "missing, and the last checkpoint is damaged",
    missing_and_cut,
    ("going back",),
    same=True,
  )
  for name, new in {
    "seed": 1,
    "optim__learning_rate": 0.5,
    "model__num_heads": 4,
    "seed ": 5,
    "train": None,
    "optim__b1": "0.9",
  }.items():
    yield Damage(
      "config.json",
      f"{name} = {new}",
      edits(**{name: new}),
      ("resume",),
      # Nobody knows whether the file or the command is wrong.
      ("config.", name.rpartition("__")[2].strip()),
      refuse=True,
    )
  for field in ("pooling", "normalize"):
    yield Damage(
      "config.json",
      f"another {field}",
      edits(**{f"encoding__{field}": "cls" if field == "pooling" else False}),
      ("load",),
      (field,),
    )

  def without(path):
    missing(path)
    # The checkpoint says what the run is, and it is another experiment.
    shutil.rmtree(path.parent)
    shutil.copytree(whole(1), path.parent)
    missing(path.parent / "config.json")

  yield Damage(
    "config.json",
    "missing, and the run has another seed",
    without,
    ("resume",),
    ("seed",),
    refuse=True,
  )


def logs() -> Iterator[Damage]:
  """metrics.jsonl and other files that grow."""
  for kind, do in {
    "a bad byte": lambda path: path.write_bytes(
      path.read_bytes().replace(b"{", b"{\xff", 1)
    ),
    "a last line that is cut": lambda path: path.write_bytes(
      path.read_bytes()[:-20]
    ),
    "missing": missing,
    "a list for a line": lambda path: path.write_text(
      "[1]\n" + path.read_text()
    ),
    "a deep line": lambda path: path.write_text("[" * 100_000 + "\n"),
    "5,000 digits": lambda path: path.write_text(
      '{"step": ' + "9" * 5000 + "}\n"
    ),
    "a folder": a_folder,
    "NUL": lambda path: path.write_bytes(b"\0" * 200),
  }.items():
    yield Damage("metrics.jsonl", kind, do, ("resume",))
  line = {"step": STEPS, "from_step": True, "changed": {}, "removed": []}
  for kind, text in {
    "a cut line": json.dumps(line)[:-9] + "\n",
    "a list for a line": "[1]\n",
    "a step that is a text": json.dumps(line | {"step": "4"}) + "\n",
    "without what changed": '{"step": 4, "from_step": true}\n',
    "a change that is a text": json.dumps(line | {"changed": "x"}) + "\n",
    "without from_step": f'{{"step": {STEPS}, "changed": {{}}}}\n',
  }.items():
    yield Damage(
      "history.jsonl",
      kind,
      lambda path, text=text: path.write_text(text),
      ("going back" if kind == "without from_step" else "resume",),
      refuse=True,
    )
  results = f"results/step-{STEPS}.json"
  yield Damage(results, "cut", cut, ("resume", "export"))
  yield Damage(results, "another type", another_type, ("export",))
  yield Damage(results, "a folder", a_folder, ("export",))
  for new in ("high", [1], {"a": 1}):
    yield Damage(
      results,
      f"a value that is {new}",
      edits(**{"test/en/mrr@100": new}),
      ("export",),
      refuse=True,
    )
  yield Damage("results/report.json", "cut", cut, ("export",))
  yield Damage("results/report.json", "a folder", a_folder, ("export",))
  for name, new in {
    "rows": {"a": 1},
    "rows ": 5,
    "shared_with_training": 5,
  }.items():
    yield Damage(
      "results/report.json",
      f"{name} is {new}",
      edits(**{name: new}),
      ("export",),
    )
  yield Damage(
    "results",
    "a file of the user next to them",
    lambda path: (path / "step-final.json").write_text("{}"),
    ("resume",),
    same=True,
  )
  yield Damage(
    "results",
    "an older table whose values are texts",
    lambda path: (path / "step-0.json").write_text('{"test/en/mrr@100": "x"}'),
    ("resume",),
    ("step-0.json",),
  )
  yield Damage(
    "results",
    "missing, as is tensorboard",
    lambda path: (missing(path), missing(path.with_name("tensorboard"))),
    ("resume",),
    same=True,
  )


def held(text: bytes, folder: pathlib.Path) -> None:
  """Another run uses the folder, and its lock has this text."""
  copy = pathlib.Path(shutil.copytree(whole(), folder / "copy"))
  path = copy / lock_lib.FILE
  path.write_bytes(text)
  with open(path, "r+b") as file, light():
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
      run_lib.train(make_config(), str(copy))
    except ValueError as error:
      scoreboard.expect(str(error).isprintable(), f"not one line: {error!r}")
      scoreboard.expect(len(str(error)) < 3000, "a very long line")
      raise
  scoreboard.expect(False, "accepted")


def locks() -> Iterator[scoreboard.Case]:
  """The lock of a run that goes on; its text says which run it is."""
  whose = {"pid": 1, "host": "h", "since": "now"}
  for kind, text in {
    "deep": b"[" * 100_000,
    "not UTF-8": b"\xff\x00",
    "a list": b"[1]",
    "5,000 digits": b'{"pid": ' + b"9" * 5000 + b"}",
    "colours and lines": json.dumps(whose | {"host": "\x1b[31m\n\n"}).encode(),
    "a long name": json.dumps(whose | {"host": "h" * 100_000}).encode(),
  }.items():
    yield scoreboard.Case(
      f"held/{lock_lib.FILE}: {kind}",
      REFUSED,
      functools.partial(held, text),
      ("copy", "--workdir"),
    )


def tokenizers() -> Iterator[Damage]:
  """The tokenizer of a run."""
  for kind, do in JSON_DAMAGE.items():
    readers = ("load", "resume") if kind == "cut" else ("load",)
    yield Damage(TOKENIZER, kind, do, readers, ("tokenizer",), refuse=True)
  yield Damage(TOKENIZER, "missing", missing, ("load",), refuse=True)
  yield Damage(
    TOKENIZER,
    "two pieces swapped",
    lambda path: path.write_text(
      path.read_text().replace('"▁a', '"▁ZZ', 1)
      if '"▁a' in path.read_text()
      else path.read_text().replace('"a', '"ZZ', 1)
    ),
    ("load", "resume", "export"),
    ("tokenizer",),
    refuse=True,
  )


def stores() -> Iterator[Damage]:
  """The token store, which only training reads."""
  meta = "tokens/meta.json"
  # A store that cannot be read may be built again, if it is then the same.
  for kind, do in JSON_DAMAGE.items():
    yield Damage(
      meta, kind, do, ("going on",) if kind == "cut" else ("resume",)
    )
  yield Damage(meta, "cut", cut, ("load",))
  yield Damage(meta, "missing", missing, ("load", "resume"))
  yield Damage(meta, "another format", edits(format=99), ("resume",))
  yield Damage(meta, "without hashes", edits(arrays={}), ("resume",))
  yield Damage("tokens", "missing", missing, ("load", "going on"), same=True)
  for name in ("00000/query_tokens", "query_offsets", "parallel_texts"):
    yield Damage(f"tokens/{name}.npy", "a flipped bit", flip, ("going on",))
  array = "tokens/00000/sentence_tokens.npy"
  for kind, do in {
    "cut": cut,
    "cut by a number": lambda path: path.write_bytes(path.read_bytes()[:-4]),
    "empty": empty,
    "missing": missing,
    "a folder": a_folder,
    "lfs": lfs,
    "another dtype": lambda path: np.save(path, np.load(path).astype("f4")),
    "another shape": lambda path: np.save(path, np.load(path)[None]),
    "swapped with another": lambda path: shutil.copy(
      path.with_name("query_tokens.npy"), path
    ),
    "a pickle": lambda path: np.save(
      path,
      np.array([Touch(path.parents[3] / scoreboard.MARKER)], object),
      allow_pickle=True,
    ),
    "only a pickle": lambda path: path.write_bytes(
      pickle.dumps(Touch(path.parents[3] / scoreboard.MARKER))
    ),
    "a header that is code": lambda path: path.write_bytes(
      npy_header("__import__('os').mkdir('EXECUTED')")
    ),
    "a header of a huge shape": lambda path: path.write_bytes(
      npy_header(
        "{'descr': '<i4', 'fortran_order': False, 'shape': (10**15,), }"
      )
    ),
  }.items():
    yield Damage(array, kind, do, ("going on",))
  yield Damage(
    "tokens/query_offsets.npy",
    "offsets behind the end",
    lambda path: np.save(path, np.load(path) * 1000),
    ("going on",),
  )


class Touch:
  """A pickle of it makes a folder when it is read."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return (os.mkdir, (self.path,))


def npy_header(text: str) -> bytes:
  padded = text.encode().ljust(117) + b"\n"
  return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded


def checkpoints() -> Iterator[Damage]:
  """Checkpoints: the description, the arrays, and orbax's own files."""
  last = f"checkpoints/{STEPS}"
  step = (str(STEPS),)
  for kind, do in JSON_DAMAGE.items():
    readers = ("load", "resume") if kind == "cut" else ("load",)
    yield Damage(DESCRIPTION, kind, do, readers, step, refuse=True)
    yield Damage(f"{last}/files.json", kind, do, ("load",), step)
    if kind not in ("lfs", "a dangling link"):
      yield Damage(
        DESCRIPTION,
        f"{kind}, without the list",
        unlisted(do),
        ("load",),
        step,
        # The second of the two keys is the right one, and counts.
        refuse=kind != "double key",
      )
  yield Damage(
    DESCRIPTION, "cut", cut, ("load of the first", "going back"), same=True
  )
  yield Damage(f"{last}/files.json", "missing", missing, ("load",), same=True)
  for kind, listed in {
    "numbers for files": {"description/metadata": 5},
    "another size": {"description/metadata": [5, "0" * 64]},
    "a size that is a text": {"description/metadata": ["a", "0" * 64]},
    "a hash that is a number": {"state/_METADATA": [1, 5]},
  }.items():
    yield Damage(
      f"{last}/files.json",
      kind,
      lambda path, listed=listed: path.write_text(json.dumps(listed)),
      ("load",),
      step,
      refuse=True,
    )
  for name, new in {
    "num_heads": 4,
    "hidden_act": "relu",
    "layer_norm_eps": 0.1,
    "family": "roberta",
    "pad_token_id": 2,
    "dtype": "bfloat16",
    "hidden_size": 10**12,
    "num_layers": 0,
    "num_heads ": 2,
    "max_positions": "16",
    "vocab_size": None,
  }.items():
    yield Damage(
      DESCRIPTION,
      f"{name} = {new}, without the list",
      unlisted(edits(**{f"encoder__{name}": new})),
      ("load", "export", "evaluate") if name == "num_heads" else ("load",),
      step,
      refuse=True,
    )
    # Early descriptions also have no hash.
    if name not in ("layer_norm_eps", "hidden_act", "num_heads", "dtype"):
      yield Damage(
        DESCRIPTION,
        f"{name} = {new}, without list and hash",
        unlisted(edits(**{f"encoder__{name}": new, "fingerprint": None})),
        ("load",),
        step,
      )
  for name, new in {
    "config": {},
    "config ": 5,
    "config__model": 5,
    "encoder": [],
    "provenance": None,
  }.items():
    yield Damage(
      DESCRIPTION,
      f"{name} is {new}, without list and hash",
      unlisted(edits(**{name: new, "fingerprint": None})),
      ("load",),
      step,
      refuse=True,
    )
  yield Damage(
    DESCRIPTION,
    "without the data's hash, without list and hash",
    unlisted(edits(provenance={}, fingerprint=None)),
    ("resume",),
    step,
    refuse=True,
  )
  for name, new in {
    "pooling": "cls",
    "normalize": False,
    "passage__prefix": "apple ",
    "passage__max_length": 4,
    "title_joiner": "",
    "passage__tower": "evil",
    "golden_ids": [],
    "tokenizer_fingerprint": "0",
  }.items():
    yield Damage(
      DESCRIPTION,
      f"contract: {name} = {new}",
      unlisted(contract_edits(**{name: new})),
      ("load",),
      (),
      refuse=True,
    )
  yield Damage(
    DESCRIPTION,
    "of other data",
    unlisted(edits(provenance__token_store="0" * 64)),
    ("resume",),
    (),
    refuse=True,
  )
  arrays = [
    path.relative_to(whole())
    for path in sorted((whole() / last / "state").rglob("*"))
    if path.is_file() and path.parent.name == "d"
  ]
  largest = sorted(arrays, key=lambda path: -(whole() / path).stat().st_size)
  # A file with numbers, and a file with the tree of their names.
  for number, path in enumerate((largest[0], largest[-1])):
    yield Damage(
      str(path),
      f"{number}: a flipped bit",
      flip,
      ("load", "resume") if number == 0 else ("load",),
      step,
      refuse=True,
    )
  for kind, do in {"cut": cut, "empty": empty, "missing": missing}.items():
    readers = ("load", "resume", "going back") if kind == "cut" else ("load",)
    for reader in readers:
      yield Damage(
        str(largest[0]),
        f"largest: {kind}",
        do,
        (reader,),
        step,
        refuse=reader != "going back",
        same=reader == "going back",
      )
    yield Damage(
      str(largest[0]),
      f"largest: {kind}, without the list",
      unlisted(do),
      ("load",),
      step,
      refuse=True,
    )
  yield Damage(f"{last}/state/d", "missing", missing, ("load", "resume"), step)
  for file in (
    "state/_METADATA",
    "state/_sharding",
    "state/manifest.ocdbt",
    "state/ocdbt.process_0/manifest.ocdbt",
    "state/array_metadatas/process_0",
    "_CHECKPOINT_METADATA",
  ):
    for kind, do in {"cut": cut, "missing": missing}.items():
      yield Damage(f"{last}/{file}", kind, do, ("load",), step)
    yield Damage(
      f"{last}/{file}",
      "cut, without the list",
      unlisted(cut),
      ("load",),
      step,
    )
  for folder in ("state", "description"):
    yield Damage(f"{last}/{folder}", "missing", missing, ("load",), step)
    yield Damage(
      f"{last}/{folder}",
      "missing, without the list",
      unlisted(missing),
      ("load",),
      step,
    )
  metrics = f"{last}/metrics/metrics"
  yield Damage(metrics, "cut", cut, ("load", "resume"), step)
  yield Damage(metrics, "cut", cut, ("going back",), same=True)
  for number in ("0.99", "0.0"):
    yield Damage(
      metrics,
      f"dev is {number}",
      lambda path, number=number: path.write_text(f'{{"dev": {number}}}'),
      ("load of the best",),
      step,
      refuse=True,
    )
  for kind, text in {
    "NaN": '{"dev": NaN}',
    "a text": '{"dev": "high"}',
    "empty": "{}",
    "a list": "[1]",
  }.items():
    yield Damage(
      metrics,
      f"{kind}, without the list",
      unlisted(lambda path, text=text: path.write_text(text)),
      ("load of the best",),
      step,
    )
  for kind, do in {
    "empty": lambda path: (missing(path), path.mkdir()),
    "a file": lambda path: (missing(path), path.write_text("text")),
  }.items():
    yield Damage(last, kind, do, ("load", "resume"), step, refuse=True)
    yield Damage(last, kind, do, ("going back",), same=True)

  def of_another_run(path):
    missing(path)
    shutil.copytree(whole(1) / last, path)

  # It has another seed: its parameters are not those of this run.
  yield Damage(
    last, "another run's", of_another_run, ("resume",), (), refuse=True
  )

  def arrays_of_another_run(path):
    missing(path / "state")
    shutil.copytree(whole(1) / last / "state", path / "state")

  yield Damage(
    last, "another run's arrays", arrays_of_another_run, refuse=True, names=step
  )

  def arrays_of_another_step(path):
    missing(path / "state")
    shutil.copytree(path.parent / "2" / "state", path / "state")

  yield Damage(
    last,
    "another step's arrays",
    arrays_of_another_step,
    ("load", "resume"),
    step,
    refuse=True,
  )
  yield Damage("checkpoints", "missing", missing, ("load",), refuse=True)
  yield Damage(
    "checkpoints",
    "a stray file, a folder, and a step that orbax left half written",
    lambda path: (
      (path / "notes.txt").write_text("text"),
      (path / "notes").mkdir(),
      (path / "8.orbax-checkpoint-tmp").mkdir(),
    ),
    ("load", "resume"),
    same=True,
  )
  yield Damage(
    "checkpoints",
    "a number that is not a step",
    lambda path: (path / "99999999999999999999").mkdir(),
    ("load", "resume"),
    ("99999999999999999999",),
  )


def exports() -> Iterator[Damage]:
  """Each file of an export."""

  def at(file, kind, do, **more):
    return Damage(file, f"export: {kind}", do, of=whole_export, **more)

  for file in (
    "config.json",
    "mlir_jax.json",
    "modules.json",
    "1_Pooling/config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
  ):
    for kind, do in {"cut": cut, "deep": deep, "a folder": a_folder}.items():
      yield at(file, kind, do)
  for file, fields in (
    ("config.json", {"num_attention_heads": 4}),
    ("config.json", {"hidden_act": "relu"}),
    ("config.json", {"layer_norm_eps": 0.1}),
    ("config.json", {"pad_token_id": 0}),
    ("mlir_jax.json", {"encoder__num_heads": 4}),
    ("mlir_jax.json", {"encoder__layer_norm_eps": 0.1}),
    ("mlir_jax.json", {"contract__pooling": "cls"}),
    ("mlir_jax.json", {"contract__passage__prefix": "apple "}),
    ("mlir_jax.json", {"tower": "query"}),
    ("mlir_jax.json", {"contract": 5}),
    ("config_sentence_transformers.json", {"mlir_jax": {"tower": "both"}}),
    ("config_sentence_transformers.json", {"mlir_jax": [5]}),
    ("1_Pooling/config.json", {"pooling_mode": "cls"}),
    ("sentence_bert_config.json", {"max_seq_length": 4}),
    (
      "config_sentence_transformers.json",
      {"prompts": {"passage": "apple ", "document": "apple "}},
    ),
  ):
    yield at(file, f"{fields}", edits(**fields), names=())
  yield at(
    "modules.json",
    "not normalized",
    lambda path: path.write_text(json.dumps(json.loads(path.read_text())[:2])),
    names=(),
  )
  # The other files of the folder say the same.
  yield at("mlir_jax.json", "missing", missing, same=True)

  def forged(**fields):
    """The file is changed, and so is its hash."""

    def damage(path):
      edits(**fields)(path)
      path.write_text(json.dumps(sealed.seal(json.loads(path.read_text()))))

    return damage

  for fields in (
    {"contract__title_joiner": " "},
    {"contract__passage__prefix": "apple "},
    {"tower": "query"},
    {"tower": "passage"},
  ):
    yield at(
      "mlir_jax.json",
      f"of another export: {fields}",
      forged(**fields),
      refuse=True,
    )

  yield at("README.md", "missing", missing, same=True)
  yield at("special_tokens_map.json", "missing", missing)
  weights = "model.safetensors"
  yield at(weights, "cut", cut)
  yield at(weights, "a flipped bit", flip)
  yield at(weights, "missing", missing)
  yield at(
    weights,
    "NaN",
    lambda path: safetensors.numpy.save_file(
      {
        name: np.where(
          np.arange(array.size).reshape(array.shape), array, np.nan
        ).astype(array.dtype)
        for name, array in safetensors.numpy.load_file(path).items()
      },
      path,
    ),
  )


def trec() -> Iterator[scoreboard.Case]:
  """Runs in TREC's format."""

  def case(name, content, names=("run.trec",), right=None):
    def attack(folder):
      path = folder / "run.trec"
      path.write_bytes(content)
      read = runs.read_run(path)
      if right is None:
        scoreboard.expect(False, f"accepted: {read}")
      scoreboard.expect(read == right, read)

    return scoreboard.Case(f"trec/{name}", REFUSED, attack, names)

  line = b"q1 Q0 d1 1 0.5 tag\n"
  yield case("whole", line, right={"q1": {"d1": 0.5}})
  yield case("Windows lines", line[:-1] + b"\r\n", right={"q1": {"d1": 0.5}})
  at = ("run.trec:2",)
  yield case("cut", line + line[:9], at)
  yield case("a score that is NaN", line + b"q1 Q0 d2 1 nan tag\n", at)
  yield case("an infinite score", line + b"q1 Q0 d2 1 inf tag\n", at)
  yield case("a score that is a word", line + b"q1 Q0 d2 1 high tag\n", at)
  yield case("a score of 1_0", line + b"q1 Q0 d2 1 1_0 tag\n", at)
  yield case("Arabic digits", line + "q1 Q0 d2 1 ١ tag\n".encode(), at)
  yield case("a passage twice", line + line, at)
  yield case("a field too many", line + b"q1 Q0 d2 1 0.5 tag more\n", at)
  yield case("not UTF-8", line + b"q\xff Q0 d2 1 0.5 tag\n", at)
  yield case("NUL", line + b"\0" * 50 + b"\n", at)
  yield case("Git LFS", LFS.encode())
  yield case("UTF-16", line.decode().encode("utf-16"))
  yield case(
    "a mark before the first id",
    "\ufeffq1 Q0 d1 1 0.5 tag\n".encode(),
    right={"q1": {"d1": 0.5}},
  )
  yield case("a score beyond float32", line + b"q1 Q0 d2 1 1e300 tag\n", at)


def outputs() -> Iterator[scoreboard.Case]:
  """Outputs that cannot be written, and vectors that must not be."""

  def embed(*values):
    """Writes one vector after the other, of these numbers in turn."""

    def rows(texts):
      for _, value in zip(texts, itertools.cycle(values), strict=False):
        yield np.atleast_2d(np.asarray(value, np.float32))

    return rows

  def case(name, do, names=(), right=REFUSED):
    return scoreboard.Case(f"output/{name}", right, do, names)

  def texts(folder, lines=3):
    path = folder / "texts.txt"
    path.write_text("apple river\n" * lines)
    return [str(path)]

  def write(folder, output, value=1.0, lines=3):
    """No half of a file may stay, whether it is refused or not."""
    before = sorted(folder.rglob("*"))
    try:
      line_vectors.encode_files(
        embed([value] * 8), texts(folder, lines), str(output)
      )
    except (ValueError, OSError):
      after = [path for path in folder.rglob("*") if path.name != "texts.txt"]
      scoreboard.expect(sorted(after) == before, f"left {after}")
      raise

  for word in ("nan", "inf"):

    def of_word(folder, word=word):
      write(folder, folder / "v.npy", float(word))
      scoreboard.expect(False, "written")

    yield case(f"vectors that are {word}", of_word)

  def over_a_folder(folder):
    (folder / "v.npy").mkdir()
    write(folder, folder / "v.npy")
    scoreboard.expect(False, "accepted")

  yield case("over a folder", over_a_folder, ("v.npy",))

  def through_a_file(folder):
    (folder / "a").write_text("text")
    write(folder, folder / "a" / "v.npy")
    scoreboard.expect(False, "accepted")

  yield case("below a file", through_a_file, ("/a",))

  def of_two_widths(folder):
    line_vectors.encode_files(
      embed([1.0] * 8, [1.0] * 9), texts(folder), str(folder / "v.npy")
    )
    scoreboard.expect(False, "accepted")

  yield case("two widths", of_two_widths)

  def over_a_link(folder):
    (folder / "other").write_text("text")
    (folder / "v.npy").symlink_to("other")
    write(folder, folder / "v.npy")
    scoreboard.expect(
      (folder / "other").read_text() == "text", "the link was followed"
    )
    scoreboard.expect(np.load(folder / "v.npy").shape == (3, 8), "wrong")

  yield case("over a link", over_a_link, right="The link is replaced.")

  def full_encode(folder):
    with disk_of(20_000):
      write(folder, folder / "v.npy", lines=10_000)
    scoreboard.expect(False, "accepted")

  yield case("encode on a full disk", full_encode, FULL)

  def full_export(folder):
    copy = whole_in(folder)
    with light(), disk_of(20_000):
      by_export(copy)
    scoreboard.expect(False, "accepted")

  yield case("export on a full disk", full_export, FULL)

  def full_run_file(folder):
    with disk_of(2_000):
      runs.write_run(
        folder / "a.trec",
        {"q": {f"d{n}": 1 / (n + 1) for n in range(1000)}},
      )
    scoreboard.expect(False, "accepted")

  yield case("a run on a full disk", full_run_file, FULL)

  def full_aside(folder):
    (folder / "a.json").write_text("old")
    with disk_of(2_000):
      try:
        writing.write_aside(str(folder / "a.json"), "x" * 10_000)
      finally:
        scoreboard.expect(
          (folder / "a.json").read_text() == "old", "the old file is gone"
        )
        scoreboard.expect(len(list(folder.iterdir())) == 1, "a part stays")
    scoreboard.expect(False, "accepted")

  yield case("a small file on a full disk", full_aside, FULL)

  for size, what in ((3_000, "tokens"), (40_000, "checkpoints")):

    def full_train(folder, size=size):
      with light(), disk_of(size):
        run_lib.train(make_config(), str(folder / "workdir"))
      scoreboard.expect(False, "accepted")

    yield case(
      f"training on a disk that is full at its {what}", full_train, FULL
    )

  def full_go_on(folder):
    copy = whole_in(folder)
    with light():
      try:
        with disk_of(40_000):
          by_going_on(copy)
        scoreboard.expect(False, "accepted")
      except (ValueError, OSError) as error:
        scoreboard.expect(FULL[0] in str(error), f"only: {error}")
      by_going_on(copy)

  yield case(
    "going on on a full disk, and when there is room again",
    full_go_on,
    right="The first run is refused; the second ends as if nothing happened.",
  )


def whole_in(folder: pathlib.Path) -> pathlib.Path:
  return pathlib.Path(shutil.copytree(whole(), folder / "copy"))


class disk_of:  # noqa: N801  Reads as a sentence.
  """In the block, files cannot grow beyond this many bytes."""

  def __init__(self, size):
    self.size = size

  def __enter__(self):
    self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.limits[1]))

  def __exit__(self, _, error, trace):
    del trace
    resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)
    signal.signal(signal.SIGXFSZ, self.handler)
    # The message of a main.
    if cause := full_disk.find(error):
      raise OSError(full_disk.message(cause)) from error


def damages() -> Iterator[Damage]:
  for kind in (configs, logs, tokenizers, stores, checkpoints, exports):
    yield from kind()


def cases() -> list[scoreboard.Case]:
  """Yields each damage with each of its readers; also runs and outputs."""
  made = []
  with light():
    all_damages = list(damages())
  for damage in all_damages:
    for reader in damage.readers:
      names = damage.names
      if names is None:
        names = (pathlib.Path(damage.file).name,)
      made.append(
        scoreboard.Case(
          f"{reader}/{damage.file}: {damage.kind}",
          REFUSED if damage.refuse else REFUSED_OR_SAME,
          functools.partial(attack, damage, reader),
          names,
          seconds=120,
        )
      )
  made += locks()
  made += trec()
  made += outputs()
  return made


if __name__ == "__main__":
  scoreboard.main(cases())
