"""Tries settings and command lines that make no sense, on every field."""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
import tiny
from attack import mains, scoreboard

import mlir_jax
from mlir_jax import config as config_lib
from mlir_jax.training import run

Case = scoreboard.Case

REFUSED = "Refused before anything is read or written; the field is named."
NAN, INF = float("nan"), float("inf")

# --- Values, field by field: in process, as a config file sets them. ---

# Values for whole numbers, in addition to -5, 2**63 and True.
WHOLE = {
  "seed": [],
  "data.prefetch": [],
  "tokenizer.vocab_size": [0, 4],  # Four are special tokens.
  "encoding.query.max_length": [0, 2, 17],  # 2 special tokens; 16 positions.
  "encoding.passage.max_length": [0, 2, 17],
  "encoding.sentence.max_length": [0, 2, 17],
  "model.hidden_size": [0],
  "model.num_layers": [],
  "model.num_heads": [0],
  "model.intermediate_size": [0],
  "model.max_positions": [0],
  "model.projection_size": [],
  "batch.retrieval": [],
  "batch.hard_negatives": [],
  "batch.parallel": [],
  "batch.monolingual": [],
  "batch.masked": [],
  "batch.chunk_rows": [],
  "batch.row_length": [],
  "mesh.data": [0],
  "mesh.model": [0],
  "train.steps": [0],
  "train.log_every": [0],
  "train.checkpoint_every": [0],
  "train.keep": [0],
  "train.max_nonfinite_steps": [0],
  "eval.every": [],
  "eval.batch_size": [0],
  "eval.top_k": [0],
}
# Values for numbers, in addition to NaN, both infinities, -1 and 1e30.
REAL = {
  "data.masking.rate": [0.0, 1.5],
  "model.dropout": [1.0],
  "model.attention_dropout": [1.0],
  "loss.ir.weight": [],
  "loss.ir.temperature": [0.0, 1e-30],  # Cosines / 1e-30 are infinite.
  "loss.semantic.weight": [],
  "loss.semantic.temperature": [0.0, 1e-30],
  "loss.language.weight": [],
  "loss.language.temperature": [0.0, 1e-30],
  "loss.language.parallel": [],
  "loss.language.passages": [],
  "loss.language.monolingual": [],
  "loss.masked_lm.weight": [],
  "optim.learning_rate": [],
  "optim.final_fraction": [1.5],  # The learning rate would grow.
  "optim.b1": [1.0, 1.5],
  "optim.b2": [1.0, 1.5],
  "optim.eps": [
    0.0,
    1e-50,
  ],  # In float32 it is 0: 0 / 0 for a weight that is not used.
  "optim.weight_decay": [],
  "optim.clip_norm": [1e-50],
  "hosts.check_in_seconds": [0.0],
  "hosts.silent_seconds": [0.0],
}
CHOICES = {
  "data.collection": "Folder",
  "data.on_bad_record": "ignore",
  "data.masking.kind": "words",
  "data.reader": "tfdata",
  "encoding.pooling": "max",
  "model.towers": "shared",
  "model.dtype": "float16",
  "model.remat": "full",
  "model.attention": "flash",
  "optim.decay": "exponential",
}

# Fields that do not fit together: name -> (fields, text in the error).
TOGETHER = {
  "no pairs for the IR loss": ({"batch.retrieval": 0}, "batch.retrieval"),
  "no negatives": ({"batch.retrieval": 1}, "batch.retrieval"),
  "no translations": ({"batch.parallel": 0}, "batch.parallel"),
  "no translations for the language loss": (
    {"batch.parallel": 0, "loss.semantic.weight": 0.0},
    "batch.parallel",
  ),
  "no third sentences": ({"batch.monolingual": 0}, "batch.monolingual"),
  "no third points at all": (
    {
      "loss.language.parallel": 0.0,
      "loss.language.passages": 0.0,
      "loss.language.monolingual": 0.0,
      "batch.monolingual": 0,
    },
    "loss.language",
  ),
  "no masked sentences": ({"batch.masked": 0}, "batch.masked"),
  "one translation has no negatives": (
    {"batch.parallel": 1, "loss.language.weight": 0.0, "batch.monolingual": 0},
    "batch.parallel",
  ),
  "no loss": (
    {
      "loss.ir.weight": 0.0,
      "loss.semantic.weight": 0.0,
      "loss.language.weight": 0.0,
      "loss.masked_lm.weight": 0.0,
    },
    "weight",
  ),
  "no batch": (
    {
      "batch.retrieval": 0,
      "batch.parallel": 0,
      "batch.monolingual": 0,
      "batch.masked": 0,
      "loss.ir.weight": 0.0,
      "loss.semantic.weight": 0.0,
      "loss.language.weight": 0.0,
      "loss.masked_lm.weight": 0.0,
    },
    "weight",
  ),
  "a chunk that does not divide": ({"batch.chunk_rows": 7}, "batch.chunk_rows"),
  "a mesh of other devices": ({"mesh.data": 7}, "mesh"),
  "a model axis of other devices": ({"mesh.model": 7}, "mesh.model"),
  "heads that do not divide": ({"model.num_heads": 3}, "model.num_heads"),
  "texts beyond the positions": (
    {"model.max_positions": 8},
    "max_positions",
  ),
  "warm-up beyond the run": ({"optim.warmup_steps": 9}, "warmup_steps"),
  "fewer results than the measures need": ({"eval.top_k": 99}, "eval.top_k"),
  "vectors of any length": ({"encoding.normalize": False}, "normalize"),
  "cudnn in float32": (
    {"model.attention": "cudnn", "model.attention_dropout": 0.0},
    "model.attention",
  ),
  "cudnn with dropout": (
    {"model.attention": "cudnn", "model.dtype": "bfloat16"},
    "model.attention",
  ),
  "cudnn on a CPU": (
    {
      "model.attention": "cudnn",
      "model.dtype": "bfloat16",
      "model.attention_dropout": 0.0,
    },
    "model.attention",
  ),
  "a root for cldr": ({"data.collection": "cldr"}, "data.root"),
  "a revision of nothing": ({"model.revision": "main"}, "model.revision"),
  "a prefix of spaces": (
    {"encoding.query.prefix": "   "},
    "encoding.query.prefix",
  ),
  "a prefix with a zero byte": (
    {"encoding.passage.prefix": "passage\0: "},
    "encoding.passage.prefix",
  ),
  "a prefix that is not Unicode": (
    {"encoding.sentence.prefix": "\udcff: "},
    "encoding.sentence.prefix",
  ),
  "a joiner that is not Unicode": (
    {"encoding.title_joiner": "\udcff"},
    "encoding.title_joiner",
  ),
}

# Paths: name -> (field, value, text in the error).
PATHS = {
  "no root": ("data.root", "", "data.root"),
  "a root of spaces": ("data.root", "  ", "data.root"),
  "a missing root": ("data.root", "{folder}/none", "none"),
  "a root that is a file": ("data.root", "{folder}/file", "file"),
  "a root that leads nowhere": ("data.root", "{folder}/dangling", "dangling"),
  "a root with a zero byte": ("data.root", "{folder}\0", "data.root"),
  "a root that is not Unicode": ("data.root", "\udcff/no", "data.root"),
  "a root on the web": ("data.root", "https://127.0.0.1/x", "data.root"),
  "a root of an unknown user": ("data.root", "~no_such_user/x", "no_such_user"),
  "missing Tatoeba": ("data.tatoeba_root", "{folder}/none", "none"),
  "Tatoeba that is a file": ("data.tatoeba_root", "{folder}/file", "file"),
  "an empty Tatoeba": ("data.tatoeba_root", "{folder}/empty", "empty"),
  "a missing tokenizer": ("tokenizer.path", "{folder}/none", "none"),
  "a tokenizer that is a file": ("tokenizer.path", "{folder}/file", "file"),
  "an empty tokenizer": ("tokenizer.path", "{folder}/empty", "empty"),
  "a missing model": ("model.pretrained", "{folder}/none", "none"),
  "a model that is a file": ("model.pretrained", "{folder}/file", "file"),
  "an empty model": ("model.pretrained", "{folder}/empty", "empty"),
  "a model that leads nowhere": (
    "model.pretrained",
    "{folder}/dangling",
    "dangling",
  ),
  "a model of the hub without a network": (
    "model.pretrained",
    "nobody/nothing",
    "nobody/nothing",
  ),
  "a model with a hub's bad name": ("model.pretrained", "a b/c d/e", "a b/c d"),
  "a model of spaces": ("model.pretrained", "  ", "'  '"),
  "compiled programs in a file": (
    "train.compilation_cache",
    "{folder}/file",
    "train.compilation_cache",
  ),
  "compiled programs below a file": (
    "train.compilation_cache",
    "{folder}/file/x",
    "train.compilation_cache",
  ),
}


@functools.cache
def shared() -> pathlib.Path:
  """Returns a folder of files that cases read but do not change."""
  return pathlib.Path(_kept_folder().name)


@functools.cache
def _kept_folder() -> tempfile.TemporaryDirectory:
  return tempfile.TemporaryDirectory(prefix="mlir_jax_attack_")


@functools.cache
def collection() -> pathlib.Path:
  """Makes a tiny collection."""
  return tiny.write_folder(shared() / "collection")


@functools.cache
def training_files() -> pathlib.Path:
  """Makes a collection without tests."""
  folder = shared() / "training"
  folder.mkdir()
  (folder / "ir").symlink_to(collection() / "ir")
  return folder


def furnish(folder: pathlib.Path) -> None:
  """Makes the files and folders that the cases' paths name."""
  (folder / "empty").mkdir()
  (folder / "file").write_text("A text.\n")
  (folder / "dangling").symlink_to(folder / "nowhere")


def filled(value: object, folder: pathlib.Path) -> object:
  if isinstance(value, str):
    return value.replace("{folder}", str(folder))
  return value


def check_untouched(workdir: pathlib.Path, nothing: bool = True) -> None:
  """Checks that a refused run left nothing, or no checkpoint and no tokens."""
  left = [path.name for path in workdir.rglob("*")] if workdir.is_dir() else []
  if not nothing:
    left = [name for name in left if name in ("checkpoints", "tokens")]
  left = [name for name in left if name != "run.lock"]
  scoreboard.expect(not left, f"refused, but the workdir has {left[:5]}")


def refused(
  fields: Mapping[str, object],
  root: pathlib.Path | None = None,
  reads: bool = False,
) -> Callable[[pathlib.Path], None]:
  """Returns an attack that trains with these fields.

  Args:
    fields: Name -> value; {folder} is replaced by the case's folder.
    root: The collection; None for an empty folder, so that accepted settings
      soon end in an error at the data.
    reads: Whether the error appears only after files are read.
  """

  def attack(folder: pathlib.Path) -> None:
    furnish(folder)
    c = tiny.make_config(root or folder / "empty")
    for name, value in fields.items():
      *sections, field = name.split(".")
      section = c
      for part in sections:
        section = section[part]
      setattr(section, field, filled(value, folder))
    try:
      run.train(c, str(folder / "w"))
    except (ValueError, OSError) as error:
      if "there is no ir/" in str(error) and not reads:
        raise scoreboard.WrongResultError(f"accepted; later: {error}") from None
      check_untouched(folder / "w", nothing=not reads)
      raise
    raise scoreboard.WrongResultError("accepted, and trained")

  return attack


def field_cases() -> Iterator[Case]:
  """Yields each field with each kind of wrong value."""

  def case(name, value):
    text = repr(value) if abs(value) < 2**60 or value != value else f"{value:g}"
    return Case(f"{name}={text}", REFUSED, refused({name: value}), (f"{name}",))

  for name, more in WHOLE.items():
    for value in (-5, 2**63, True, *more):
      # In Python True is 1; from a user it is a mistake.
      yield case(name, value)
  for name, more in REAL.items():
    for value in (NAN, INF, -INF, -1.0, 1e30, *more):
      yield case(name, value)
  for value in (NAN, 0.0, -1.0):
    # A large temperature is fine: languages are then drawn uniformly.
    yield case("data.language_temperature", value)
  yield case("optim.warmup_steps", -5)
  yield case("optim.warmup_steps", 2**63)
  for name, word in CHOICES.items():
    for value in (word, ""):
      yield Case(f"{name}={value!r}", REFUSED, refused({name: value}), (name,))
  for name, (fields, named) in TOGETHER.items():
    yield Case(f"together/{name}", REFUSED, refused(fields), (named,))
  yield Case(
    "together/a prefix that fills the query",
    "Refused once the tokenizer is known: no text would be left.",
    refused(
      {"encoding.query.prefix": "apple river stone " * 9},
      collection(),
      reads=True,
    ),
    ("encoding.query",),
  )
  for name, (field, value, named) in PATHS.items():
    root = None if field == "data.root" else collection()
    yield Case(
      f"path/{name}",
      "Refused by the path or the field; nothing is written.",
      refused({field: value}, root, reads=True),
      (named,),
    )


# --- Command lines: in processes. ---

CONFIG = """
import pathlib
import tiny
from mlir_jax import config

def get_config(root):
  c = tiny.make_config(pathlib.Path(root))
  {line}
  return c
"""


@functools.cache
def tiny_config(line: str = "pass") -> pathlib.Path:
  """Writes a config file; its argument is the collection's folder."""
  number = len(list(shared().glob("config_*.py")))
  path = shared() / f"config_{number}.py"
  path.write_text(CONFIG.format(line=line))
  return path


def call(
  main: str,
  arguments: Sequence[str],
  folder: pathlib.Path,
  names: Sequence[str] = (),
  **options,
) -> None:
  """Runs a program; a refusal must be one line and leave nothing."""
  ended = mains.run(main, arguments, folder, **options)
  if not ended.returncode:
    return
  if "there is no ir/" in ended.stderr and not any(
    name.endswith(("empty", "none")) for name in names
  ):
    raise scoreboard.WrongResultError(f"accepted; later: {ended.stderr}")
  check_untouched(folder / "w")
  try:
    scoreboard.check_ended(ended, names)
  except ValueError:
    first, *others = ended.stderr.rstrip().splitlines()
    # More lines may show the fields that differ, or the layout of a folder.
    if not first.startswith(f"mlir-jax {main}: ") or len(others) > 40:
      raise RuntimeError(
        f"not one line of the main's: {ended.stderr}"
      ) from None
    raise


def command(
  name: str,
  main: str,
  arguments: Sequence[str],
  names: Sequence[str] = (),
  prepare: Callable[[pathlib.Path], object] = furnish,
  right: str = "Exit status 2 and one line; nothing is written.",
  **options,
) -> Case:
  """Returns a case of a command line that must be refused.

  Args:
    name: The name of the case, after that of the program.
    main: The program.
    arguments: {folder} and {root} are replaced.
    names: Texts that the line must contain.
    prepare: Makes the input.
    right: The right behaviour, in words.
    **options: Options of `mains.run`.
  """

  def attack(folder: pathlib.Path) -> None:
    prepare(folder)
    root = str(collection())
    given = [filled(a, folder).replace("{root}", root) for a in arguments]
    call(main, given, folder, [filled(n, folder) for n in names], **options)
    raise scoreboard.WrongResultError("exit status 0")

  return Case(f"{main}/{name}", right, attack, (), mains.LIMIT + 30)


def trained(
  name: str,
  arguments: Sequence[str],
  check: Callable[[pathlib.Path], object],
  right: str,
  *,
  main: str = "prepare",
  prepare: Callable[[pathlib.Path], object] = furnish,
  environment: Mapping[str, str] | None = None,
) -> Case:
  """Returns a case of a command line that must have its effect."""

  def attack(folder: pathlib.Path) -> None:
    prepare(folder)
    root = str(collection())
    given = [filled(a, folder).replace("{root}", root) for a in arguments]
    words = {k: filled(v, folder) for k, v in (environment or {}).items()}
    ended = mains.run(main, given, folder, environment=words)
    scoreboard.expect(not ended.returncode, ended.stderr[-300:])
    check(folder)

  return Case(f"{main}/{name}", right, attack, (), mains.LIMIT + 30)


def base(*more: str, line: str = "pass", empty: bool = True) -> list[str]:
  """Returns the flags of a run on an empty folder, or on the collection."""
  root = "{folder}/empty" if empty else "{root}"
  return [f"--config={tiny_config(line)}:{root}", "--workdir={folder}/w", *more]


def config_file(text: str | bytes) -> Callable[[pathlib.Path], None]:
  def prepare(folder: pathlib.Path) -> None:
    furnish(folder)
    content = text if isinstance(text, bytes) else text.encode()
    (folder / "bad.py").write_bytes(content)

  return prepare


def pipe(folder: pathlib.Path) -> None:
  os.mkfifo(folder / "bad.py")


def dangling_config(folder: pathlib.Path) -> None:
  (folder / "bad.py").symlink_to(folder / "nowhere.py")


def folder_config(folder: pathlib.Path) -> None:
  (folder / "bad.py").mkdir()


def in_config(body: str) -> str:
  """Returns a config file for an empty folder, with some more code."""
  return (
    "import pathlib\nfrom mlir_jax import config\n\ndef get_config():\n"
    "  c = config.default()\n"
    "  c.data.collection = 'folder'\n"
    "  c.data.root = str(pathlib.Path('empty').resolve())\n"
    f"  {body}\n  return c\n"
  )


CONFIG_FILES = {
  "is empty": ("", ()),
  "is not Python": ("this is not Python\n", ("bad.py",)),
  "is a JSON file": ('{"train": {"steps": 5}}\n', ("bad.py",)),
  "is binary": (bytes(range(256)), ("bad.py",)),
  "is UTF-16": ("def get_config(): pass\n".encode("utf-16"), ("bad.py",)),
  "raises": ("raise KeyError('no')\n", ("bad.py",)),
  "ends with status 0": ("raise SystemExit(0)\n", ("bad.py",)),
  "imports what is missing": ("import no_such_module\n", ("no_such_module",)),
  "has no get_config": ("x = 1\n", ("bad.py", "get_config")),
  "has a get_config that is not a function": (
    "get_config = 3\n",
    ("bad.py",),
  ),
  "has a get_config that asks for more": (
    "def get_config(one, two): pass\n",
    ("bad.py", "get_config"),
  ),
  "recurses for ever": (
    "def get_config(): return get_config()\n",
    ("bad.py",),
  ),
  "ends in get_config": (
    "def get_config(): raise SystemExit(0)\n",
    ("bad.py",),
  ),
  "returns nothing": ("def get_config(): pass\n", ("bad.py", "get_config")),
  "returns a dict": ("def get_config(): return {'seed': 0}\n", ("bad.py",)),
  "returns other settings": (
    "import ml_collections\n\ndef get_config():\n"
    "  return ml_collections.ConfigDict({'learning_rate': 1.0})\n",
    ("mlir_jax.config.default()",),
  ),
  "adds a field": (
    in_config("c.unlock(); c.optim.unlock(); c.optim.momentum = 0.9"),
    ("momentum",),
  ),
  "adds a section": (
    in_config("c.unlock(); c.wandb = {'project': 'x'}"),
    ("wandb",),
  ),
  "deletes a field": (
    in_config("c.optim.unlock(); del c.optim.clip_norm"),
    ("clip_norm",),
  ),
  "misspells a field": (in_config("c.optim.lr = 1e-3"), ("lr",)),
  "sets a word for a number": (
    in_config("c.train.steps = 'ten'"),
    ("steps",),
  ),
  "sets a number for a word": (in_config("c.model.dtype = 16"), ("dtype",)),
  "sets a list": (in_config("c.optim.b1 = [0.9]"), ("b1",)),
  "sets None": (in_config("c.train.steps = None"), ("train.steps",)),
  "sets a section to None": (in_config("c.optim = None"), ("optim",)),
  "sets a number beyond float": (
    in_config("c.optim.learning_rate = 10**400"),
    ("bad.py:8",),
  ),
  "ignores types": (
    in_config("with c.train.ignore_type(): c.train.steps = 'ten'"),
    ("train.steps",),
  ),
  "ignores the type of a choice": (
    in_config("with c.model.ignore_type(): c.model.dtype = ['bfloat16']"),
    ("model.dtype",),
  ),
}


def config_cases() -> Iterator[Case]:
  """Yields wrong names, paths and contents of config files."""
  for name, (text, names) in CONFIG_FILES.items():
    yield command(
      f"a config file that {name}",
      "train",
      ["--config=bad.py", "--workdir={folder}/w"],
      names,
      config_file(text),
    )
  places = {
    "a pipe": pipe,
    "a dangling link": dangling_config,
    "a folder": folder_config,
  }
  for name, prepare in places.items():
    yield command(
      f"a config file that is {name}",
      "train",
      ["--config=bad.py", "--workdir={folder}/w"],
      ("bad.py",),
      prepare,
    )
  values = {
    "nothing": "",
    "spaces": "  ",
    "a colon": ":",
    "an unknown name": "quikstart",
    "a module of Python": "json",
    "a module of the package": "mlir_jax.config",
    "an unknown variant": "quickstart:unknown",
    "two variants": "quickstart:smoke:ir",
    "the package's file": "__init__",
    "a folder": "{folder}/empty",
    "a missing file": "{folder}/none.py",
    "an address": "http://127.0.0.1:9/config.py",
    "nothing before .py": ".py",
    "a file without .py": "{folder}/file",
    "another user's home": "~no_such_user/c.py",
    "not Unicode": "\udcff.py",
    "a very long name": "x" * 300,
  }
  for name, value in values.items():
    names = ("--config",)
    if name in ("an unknown variant", "two variants", "a file without .py"):
      names = (value.removeprefix("{folder}"),)
    yield command(
      f"--config is {name}",
      "train",
      [f"--config={value}", "--workdir={folder}/w"],
      names,
    )
  yield command(
    "a config that takes no variant",
    "prepare",
    ["--config=bad.py:smoke", "--workdir={folder}/w"],
    ("bad.py",),
    config_file(in_config("pass")),
  )


# Texts of flags that are not values of a field's type.
NOT_WHOLE = ("ten", "", "1.5", "nan", "[1]", "1e3", "None")
NOT_REAL = ("fast", "", "[0.1]", "0,1", "1/2", "None")
NOT_BOOL = ("maybe", "", "2", "None", "-1")


def flag_cases() -> Iterator[Case]:
  """Yields each field with a value of another type, and other wrong flags."""
  flat = dict(_leaves(config_lib.default()))
  counts = dict.fromkeys(("int", "float", "bool"), 0)
  for name, kind in flat.items():
    values = {"int": NOT_WHOLE, "float": NOT_REAL, "bool": NOT_BOOL}.get(kind)
    if values is None:
      continue
    value = values[counts[kind] % len(values)]
    counts[kind] += 1
    yield command(
      f"--config.{name}={value}",
      "train",
      base(f"--config.{name}={value}"),
      (name,),
    )
  digits = "1" + "0" * 5000
  more = {
    "a number of 5,001 digits": (f"--config.train.steps={digits}", "steps"),
    "a large number of 5,001 digits": (
      f"--config.optim.clip_norm={digits}",
      "clip_norm",
    ),
    "1e400": ("--config.optim.learning_rate=1e400", "optim.learning_rate"),
    "an unknown field": ("--config.optim.lr=1", "lr"),
    "an unknown section": ("--config.optimizer.b1=0.9", "optimizer"),
    "a section": ("--config.optim=adam", "optim"),
    "a field of a field": ("--config.optim.b1.x=1", "optim.b1"),
    "a field without a name": ("--config.=1", "--config."),
    "a method of the config": ("--config.lock=1", "lock"),
    "an underscored name": ("--config.__class__=1", "__class__"),
    "None for what is None until set": (
      "--config.encoding.pooling=None",
      "encoding.pooling",
    ),
    "None for a choice": ("--config.model.dtype=None", "model.dtype"),
    "a word with a space": ("--config.model.dtype=float32 ", "model.dtype"),
    "a flag that is not": ("--work_dir=x", "work_dir"),
    "an abbreviated flag": ("--workdi=x", "workdi"),
    "an argument": ("steps=5", "steps=5"),
    "a field without dashes": ("config.train.steps=5", "config.train.steps"),
    "a missing flagfile": ("--flagfile={folder}/none", "none"),
    "a flagfile that is a folder": ("--flagfile={folder}/empty", "empty"),
    "--profile of no kind": ("--profile=maybe", "profile"),
    "--distributed without a coordinator": ("--distributed", "distributed"),
    "--processes without --distributed": ("--processes=2", "processes"),
    "--processes=x": ("--processes=x", "processes"),
    "bytes in a prefix": (
      "--config.encoding.query.prefix=\udcff",
      "encoding.query.prefix",
    ),
  }
  for name, (flag, named) in more.items():
    yield command(name, "train", base(flag), (named,))
  yield command(
    "a batch that does not divide over the devices",
    "train",
    base("--config.batch.retrieval=15"),
    ("batch.retrieval",),
  )
  yield command(
    "a field before the config",
    "train",
    ["--config.train.steps=-3", *base()],
    ("train.steps",),
  )
  for main in ("prepare", "plan"):
    extra = ["--topology=v5e:2x2"] if main == "plan" else []
    for field, value in (
      ("optim.clip_norm", "-1"),
      ("model.dtype", "float16"),
      ("train.steps", "nan"),
      ("batch.parallel", "0"),
    ):
      yield command(
        f"--config.{field}={value}",
        main,
        [
          f"--config={tiny_config()}:{{folder}}/empty",
          f"--config.{field}={value}",
          *extra,
          *(["--workdir={folder}/w"] if main == "prepare" else []),
        ],
        (field,),
      )
  processes = {
    "a process beyond the processes": ("--processes=2", "--process=2"),
    "a negative process": ("--processes=2", "--process=-1"),
    "no process": ("--processes=0", "--process=0"),
    "processes without a number": ("--processes=2",),
  }
  for name, flags in processes.items():
    yield command(
      name,
      "train",
      base("--distributed", "--coordinator=127.0.0.1:9", *flags),
      ("--process",),
    )
  for address in (
    "",
    "nowhere",
    "127.0.0.1",
    "127.0.0.1:x",
    "127.0.0.1:0",
    "127.0.0.1:70000",
    ":1234",
    "http://127.0.0.1:1234",
  ):
    yield command(
      f"--coordinator={address}",
      "train",
      base(
        "--distributed",
        "--processes=2",
        "--process=0",
        f"--coordinator={address}",
      ),
      ("--coordinator",),
    )
  yield command(
    "a coordinator's port that is taken",
    "train",
    base(
      "--distributed",
      "--processes=2",
      "--process=0",
      f"--coordinator={taken()}",
    ),
    ("--coordinator",),
  )


@functools.cache
def _listener() -> socket.socket:
  listener = socket.socket()
  listener.bind(("127.0.0.1", 0))
  listener.listen()
  return listener


def taken() -> str:
  """Returns an address on which another program listens."""
  return "{}:{}".format(*_listener().getsockname())


def _leaves(section, prefix: str = "") -> Iterator[tuple[str, str]]:
  """Yields (field, name of its type) of all fields."""
  for name in section:
    kind = section.get_type(name)
    if kind.__name__ == "ConfigDict":
      yield from _leaves(section[name], f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", kind.__name__


WORKDIRS = {
  "nothing": "",
  "spaces": "  ",
  "a file": "{folder}/file",
  "inside a file": "{folder}/file/w",
  "a link that leads nowhere": "{folder}/dangling",
  "a device": "/dev/null",
  "where nothing can be made": "/proc/mlir_jax",
  "a very long name": "{folder}/" + "x" * 300,
  "a bucket without a name": "gs://",
  "a bucket with one slash": "gs:/bucket/run",
  "another store": "s3://bucket/run",
  "an address": "https://127.0.0.1/run",
  "another user's home": "~no_such_user/run",
  "not Unicode": "{folder}/\udcff",
  "with a line break": "{folder}/a\nb",
}


def workdir_cases() -> Iterator[Case]:
  for name, value in WORKDIRS.items():
    for main in (
      ("train", "prepare") if name in ("nothing", "a file") else ("train",)
    ):
      yield command(
        f"--workdir is {name}",
        main,
        [
          f"--config={tiny_config()}:{{root}}",
          f"--workdir={value}",
          "--config.train.steps=2",
        ],
        ("workdir",) if name in ("nothing", "spaces") else (),
      )
  yield command("no flag at all", "train", [], ("--config",))
  yield command(
    "no --workdir",
    "train",
    ["--config=quickstart:smoke"],
    ("--workdir",),
  )
  yield command("no --config", "train", ["--workdir={folder}/w"], ("--config",))
  yield command(
    "--config without a value",
    "train",
    ["--workdir={folder}/w", "--config"],
    ("config",),
  )
  yield command(
    "--workdir without a value",
    "train",
    ["--config=quickstart:smoke", "--workdir"],
    ("workdir",),
  )
  yield command(
    "a value on its own that is a flag",
    "train",
    ["--workdir", "--config=quickstart:smoke"],
    ("--config",),
  )


# --- Right command lines, and their effect. ---


def stored(folder: pathlib.Path, *path: str) -> object:
  value = json.loads((folder / "w" / "config.json").read_text())
  for key in path:
    value = value[key]
  return value


def right_cases() -> Iterator[Case]:
  def the_last_wins(folder):
    scoreboard.expect(
      stored(folder, "train", "steps") == 5, stored(folder, "train", "steps")
    )
    scoreboard.expect(not (folder / "other").exists(), "--workdir=other, too")

  yield trained(
    "flags given twice",
    [
      *base("--config.train.steps=-1", "--config.train.steps=5", empty=False),
      "--workdir={folder}/other",
      "--workdir={folder}/w",
    ],
    the_last_wins,
    "The last one counts, as on any command line.",
  )

  def home(folder):
    scoreboard.expect((folder / "home/w/config.json").is_file(), "no ~/w")
    scoreboard.expect(not (folder / "~").exists(), "a folder ~ was made")

  def furnish_home(folder):
    furnish(folder)
    (folder / "home").mkdir()
    (folder / "home/data").symlink_to(collection())
    shutil.copy(tiny_config(), folder / "home/mine.py")

  yield trained(
    "~ in --config, --workdir and data.root",
    ["--config=~/mine.py:~/data", "--workdir=~/w"],
    home,
    "~ is the user's home.",
    prepare=furnish_home,
    environment={"HOME": "{folder}/home"},
  )

  def separate(folder):
    scoreboard.expect(
      stored(folder, "train", "steps") == 5
      and stored(folder, "train", "self_check") is False,
      stored(folder, "train"),
    )

  yield trained(
    "values as arguments of their own",
    [
      *("--config", f"{tiny_config()}:{{root}}"),
      *("--workdir", "{folder}/w"),
      *("--config.train.steps", "5"),
      "--config.train.self_check=false",
    ],
    separate,
    "A flag's value may be the next argument.",
  )

  def streams_stay(folder):
    scoreboard.expect(
      stored(folder, "batch", "parallel") == 16
      and stored(folder, "loss", "semantic", "weight") == 0.0,
      stored(folder, "loss"),
    )
    scoreboard.expect(
      list((folder / "w/tokens").glob("parallel_*.npy")), "no parallel text"
    )

  yield trained(
    "a stream whose loss has weight 0",
    base(
      "--config.loss.semantic.weight=0",
      "--config.loss.language.weight=0",
      empty=False,
    ),
    streams_stay,
    "Accepted: the loss is only measured, so its stream is read.",
  )

  def after_a_refusal(folder):
    furnish(folder)
    for root in ("{folder}/none", "{root}"):
      arguments = [
        f"--config={tiny_config()}:{root}".replace("{root}", str(collection())),
        f"--workdir={folder}/w",
      ]
      arguments = [filled(argument, folder) for argument in arguments]
      ended = mains.run("prepare", arguments, folder)
      if "none" in root:
        scoreboard.expect(ended.returncode == 2, ended.stderr[-300:])
    scoreboard.expect(not ended.returncode, ended.stderr[-300:])

  yield Case(
    "prepare/a workdir after a refusal",
    "A refusal does not claim the workdir: the corrected command runs.",
    after_a_refusal,
  )


# --- Environment variables that JAX reads. ---

ENVIRONMENTS = {
  "JAX_NUM_CPU_DEVICES": ("0", "abc", "-3"),
  "JAX_PLATFORMS": ("abacus",),
  "JAX_COMPILATION_CACHE_DIR": ("{folder}/file", "{folder}/file/x"),
}


def environment_cases() -> Iterator[Case]:
  for variable, values in ENVIRONMENTS.items():
    for value in values:

      def attack(folder, variable=variable, value=value):
        furnish(folder)
        arguments = [filled(argument, folder) for argument in base()]
        ended = mains.run(
          "train",
          arguments,
          folder,
          environment={variable: filled(value, folder)},
        )
        check_untouched(folder / "w")
        scoreboard.check_ended(ended, [variable])
        raise scoreboard.WrongResultError("exit status 0")

      yield Case(
        f"train/{variable}={value}",
        "Exit status 2 and a line that names the variable.",
        attack,
        (),
        mains.LIMIT + 30,
      )


# --- The other programs, on a run of four steps. ---


# Only the IR loss, in one shape, so that it compiles fast.
LEAN = (
  "c.batch.parallel = c.batch.monolingual = c.batch.masked = 0;"
  " c.loss.semantic.weight = c.loss.language.weight = 0.0;"
  " c.loss.masked_lm.weight = 0.0; c.eval.every = 0"
)
RUN_LIMIT = 400  # Seconds.


@functools.cache
def _trained() -> tuple[pathlib.Path, str]:
  """Trains a run of four steps; returns its folder and why it failed."""
  folder = shared() / "run"
  try:
    ended = mains.run(
      "train",
      [
        f"--config={tiny_config(LEAN)}:{collection()}",
        f"--workdir={folder}",
        "--config.train.steps=4",
      ],
      shared(),
      seconds=RUN_LIMIT,
    )
  except scoreboard.HungError:
    return folder, f"no end within {RUN_LIMIT} s"
  return folder, ended.stderr[-500:] if ended.returncode else ""


def trained_run() -> pathlib.Path:
  """Returns a run of four steps that no case changes; trained once."""
  folder, failed = _trained()
  if failed:
    raise RuntimeError(f"The run failed: {failed}")
  return folder


NO_CHECKPOINTS = (
  "",
  "first",
  "-1",
  "1.5",
  "99",
  "1" + "0" * 400,
  "../2",
  "nan",
)


def main_cases() -> Iterator[Case]:
  """Yields wrong flags of evaluate, encode, export and plan."""

  def on_run(name, main, arguments, names=(), prepare=furnish):
    def attack(folder):
      prepare(folder)
      replaced = [
        filled(argument, folder).replace("{run}", str(trained_run()))
        for argument in arguments
      ]
      before = _files(trained_run())
      try:
        call(main, replaced, folder, names)
      finally:
        scoreboard.expect(
          _files(trained_run()) == before, "the run's folder changed"
        )
      raise scoreboard.WrongResultError("exit status 0")

    return Case(
      f"{main}/{name}",
      "Exit status 2 and one line; the run is as it was.",
      attack,
      seconds=RUN_LIMIT + mains.LIMIT,
    )

  outputs = {
    "evaluate": [],
    "export": ["--output={folder}/w"],
    "encode": ["--output={folder}/w", "--role=query", "{folder}/file"],
  }
  for main, extra in outputs.items():
    run_flag = "--model" if main == "encode" else "--workdir"
    values = NO_CHECKPOINTS if main == "evaluate" else NO_CHECKPOINTS[:5]
    for value in values:
      yield on_run(
        f"--checkpoint={value[:9]}",
        main,
        [f"{run_flag}={{run}}", f"--checkpoint={value}", *extra],
        ("checkpoint",),
      )
    folders = {
      "nothing": "",
      "a missing folder": "{folder}/none/none/none",
      "an empty folder": "{folder}/empty",
      "a file": "{folder}/file",
      "a link that leads nowhere": "{folder}/dangling",
    }
    for name, value in folders.items():
      yield on_run(
        f"{run_flag} is {name}",
        main,
        [f"{run_flag}={value}", *extra],
        (run_flag,)
        if name == "nothing"
        else ("empty",) * (value[-5:] == "empty"),
      )
    yield on_run(f"no {run_flag}", main, extra, (run_flag,))
    yield on_run(
      "a flag of another main",
      main,
      [f"{run_flag}={{run}}", *extra, "--topology=v5e:2x2"],
      ("topology",),
    )

  def occupied(folder):
    furnish(folder)
    (folder / "full").mkdir()
    (folder / "full/mine.txt").write_text("Mine.\n")

  run_flag = "--workdir={run}"
  evaluate = {
    "an unknown collection": (("--collection=mirac",), "collection"),
    "a missing root": (
      ("--collection=folder", "--root={folder}/none"),
      "--root=",
    ),
    "a root for cldr": (
      ("--collection=cldr", "--root={folder}/empty"),
      "root",
    ),
    "missing Tatoeba": (
      ("--tatoeba_root={folder}/none",),
      "--tatoeba_root=",
    ),
    "an output that is a file": (("--output={folder}/file",), "file"),
    "an output inside a file": (("--output={folder}/file/x",), "--output"),
    "an output where nothing can be made": (("--output=/proc/x",), "--output"),
    "an output of a very long name": (
      ("--output={folder}/" + "x" * 300,),
      "--output",
    ),
    "a root laid out otherwise": (
      ("--collection=folder", "--root={folder}/full"),
      "--root=",
    ),
    "an empty root": (
      ("--collection=folder", "--root={folder}/empty"),
      "--root=",
    ),
    "a root without tests": (
      ("--collection=folder", f"--root={training_files()}"),
      "--root=",
    ),
    "a root on object storage": (
      ("--collection=folder", "--root=gs://bucket/data"),
      "--root=",
    ),
    "an empty Tatoeba": (
      ("--tatoeba_root={folder}/empty",),
      "--tatoeba_root=",
    ),
    "an argument": (("texts.txt",), "texts.txt"),
    "an unknown way with bad records": (
      ("--on_bad_record=ignore",),
      "on_bad_record",
    ),
  }
  for name, (flags, named) in evaluate.items():
    yield on_run(name, "evaluate", [run_flag, *flags], (named,), occupied)

  encode = ["--model={run}", "--role=query", "--output={folder}/w"]
  texts = "{folder}/file"
  encodings = {
    "no files": (encode, ""),
    "a missing file": ([*encode, "{folder}/none"], "none"),
    "a folder of texts": ([*encode, "{folder}/empty"], "empty"),
    "a dangling text": ([*encode, "{folder}/dangling"], "dangling"),
    "an unknown role": ([*encode, "--role=document", texts], "role"),
    "no role": ([encode[0], encode[2], texts], "role"),
    "a batch of none": ([*encode, "--batch_size=0", texts], "batch_size"),
    "a negative batch": ([*encode, "--batch_size=-1", texts], "batch_size"),
    "a batch that is not a number": (
      [*encode, "--batch_size=many", texts],
      "batch_size",
    ),
    "a batch beyond memory": (
      [*encode, f"--batch_size={2**63}", texts],
      "batch_size",
    ),
    "no output": ([*encode[:2], texts], "output"),
    "an output without a name": ([*encode, "--output=", texts], "output"),
    "an output that is a folder of other files": (
      [*encode, "--output={folder}", texts],
      "holds other files",
    ),
    "an output inside a file": (
      [*encode, "--output={folder}/file/x.npy", texts],
      "file",
    ),
    "an output over its input": (
      [*encode, "--output={folder}/file", texts],
      "file",
    ),
    "a revision of a folder": (
      [*encode, "--revision=main", texts],
      "revision",
    ),
  }
  for name, (arguments, named) in encodings.items():
    yield on_run(name, "encode", arguments, (named,))

  exports = {
    "an output that is a file": (("--output={folder}/file",), "file"),
    "an output that is in use": (("--output={folder}/full",), "full"),
    "an output without a name": (("--output=",), "output"),
    "an output inside a file": (("--output={folder}/file/x",), "file"),
    "no output": ((), "output"),
    "the run as output": (("--output={run}",), "run"),
    "a name with a line break": (
      ("--output={folder}/w", "--name=a\nlicense: none"),
      "--name",
    ),
  }
  for name, (flags, named) in exports.items():
    yield on_run(name, "export", [run_flag, *flags], (named,), occupied)

  plan = [f"--config={tiny_config()}:{{root}}", "--topology=v5e:2x2"]
  plans = {
    "no topology": (plan[:1], "topology"),
    "an empty topology": ([plan[0], "--topology="], "topology"),
    "an unknown chip": ([plan[0], "--topology=v9z:2x2"], "topology"),
    "a shape of words": ([plan[0], "--topology=v5e:axb"], "topology"),
    "a shape of nothing": ([plan[0], "--topology=v5e:0x0"], "topology"),
    "a shape of millions": (
      [plan[0], "--topology=v5e:99999x99999"],
      "topology",
    ),
    "a batch that is not a number": ([*plan, "--batch=many"], "batch"),
    "a batch of none": ([*plan, "--batch=0"], "batch"),
    "a negative batch": ([*plan, "--batch=-8"], "batch"),
    "an empty batch in the list": ([*plan, "--batch=8,,16"], "batch"),
    "a negative chunk": ([*plan, "--chunk=-4"], "chunk"),
    "a chunk that is not a number": ([*plan, "--chunk=4.5"], "chunk"),
    "an unknown sharding": ([*plan, "--sharding=zero3"], "sharding"),
    "no sharding": ([*plan, "--sharding="], "sharding"),
    "a missing encoder": ([*plan, "--encoder={folder}/none"], "none"),
    "an encoder that is not JSON": ([*plan, "--encoder={folder}/file"], "file"),
    "an encoder that is a folder, for a model from scratch": (
      [*plan, "--encoder={folder}/empty"],
      "empty",
    ),
    "an output that is a folder": ([*plan, "--output={folder}/empty"], "empty"),
    "an output inside a file": (
      [*plan, "--output={folder}/file/x.json"],
      "--output",
    ),
    "a workdir that is not prepared": (
      [*plan, "--workdir={folder}/empty"],
      "empty",
    ),
    "a missing workdir": ([*plan, "--workdir={folder}/none"], "none"),
  }
  for name, (arguments, named) in plans.items():
    yield command(name, "plan", arguments, (named,))

  again = [f"--config={tiny_config(LEAN)}:{{root}}", "--workdir={run}"]
  again = [argument.replace("{root}", str(collection())) for argument in again]
  same = [*again, "--config.train.steps=4"]
  resumes = {
    "another seed": ([*same, "--config.seed=1"], "seed"),
    "another width": ([*same, "--config.model.hidden_size=64"], "hidden_size"),
    "fewer steps than taken": ([*again, "--config.train.steps=2"], "steps"),
    "--from_step=abc": ([*same, "--from_step=abc"], "from_step"),
    "--from_step=-1": ([*same, "--from_step=-1"], "--from_step=-1"),
    "--from_step of no checkpoint": (
      [*same, "--from_step=3"],
      "has no checkpoint",
    ),
    "--from_step beyond the run": (
      [*same, "--from_step=99"],
      "has no checkpoint",
    ),
    "--from_step=10**400": (
      [*same, "--from_step=1" + "0" * 400],
      "has no checkpoint",
    ),
    "--from_step without a value": ([*same, "--from_step="], "from_step"),
  }
  for name, (arguments, named) in resumes.items():
    yield on_run(f"resume with {name}", "train", arguments, (named,))
  yield command(
    "--from_step of a new run",
    "train",
    base("--from_step=2", empty=False),
    ("from_step",),
  )


def _files(folder: pathlib.Path) -> dict[str, int]:
  """Returns each file's size, without the files that every start writes."""
  return {
    str(path.relative_to(folder)): path.stat().st_size
    for path in sorted(folder.rglob("*"))
    if path.is_file()
    and "compiled" not in path.parts
    and path.name != "run.lock"  # It names the last process that held it.
  }


# --- Runs that fail. ---


def write_bert(folder: pathlib.Path, scale: float) -> pathlib.Path:
  """Writes a BERT of one layer in the hub's layout, with scaled weights."""
  import tokenizers
  from safetensors import numpy as safetensors

  width, words = 32, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *tiny.WORDS]
  folder.mkdir()
  generator = np.random.default_rng(0)
  weights = {
    "embeddings.word_embeddings.weight": (len(words), width),
    "embeddings.position_embeddings.weight": (16, width),
    "embeddings.token_type_embeddings.weight": (2, width),
    "embeddings.LayerNorm": None,
    "encoder.layer.0.attention.self.query": (width, width),
    "encoder.layer.0.attention.self.key": (width, width),
    "encoder.layer.0.attention.self.value": (width, width),
    "encoder.layer.0.attention.output.dense": (width, width),
    "encoder.layer.0.attention.output.LayerNorm": None,
    "encoder.layer.0.intermediate.dense": (width, width),
    "encoder.layer.0.output.dense": (width, width),
    "encoder.layer.0.output.LayerNorm": None,
  }
  arrays = {}
  for name, shape in weights.items():
    if shape is None:
      arrays[f"{name}.weight"] = np.ones(width, np.float32)
      arrays[f"{name}.bias"] = np.zeros(width, np.float32)
      continue
    values = generator.normal(size=shape).astype(np.float32)
    if name.endswith(".weight"):
      arrays[name] = values * np.float32(0.02)
    else:
      arrays[f"{name}.weight"] = values * np.float32(scale)
      arrays[f"{name}.bias"] = np.zeros(shape[0], np.float32)
  safetensors.save_file(arrays, folder / "model.safetensors")
  (folder / "config.json").write_text(
    json.dumps(
      {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": len(words),
        "hidden_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": width,
        "max_position_embeddings": 16,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
      }
    )
  )
  vocabulary = {word: number for number, word in enumerate(words)}
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]")
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
  )
  tokenizer.add_special_tokens(words[:5])
  tokenizer.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(
    json.dumps(
      {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
      }
    )
  )
  return folder


def wrong_run_config(root):
  c = tiny.make_config(root)
  c.batch.parallel = c.batch.monolingual = c.batch.masked = 0
  c.loss.semantic.weight = c.loss.language.weight = 0.0
  c.loss.masked_lm.weight = 0.0
  c.eval.every = 0
  return c


@contextlib.contextmanager
def fast_compilation() -> Iterator[None]:
  """Within this context XLA compiles in a fraction of the time."""
  name = "jax_disable_most_optimizations"
  before = jax.config.values[name]
  jax.config.update(name, True)
  try:
    yield
  finally:
    jax.config.update(name, before)


def check_all_saved_is_finite(run_folder: pathlib.Path) -> list[int]:
  """Checks that all numbers of checkpoints are finite; returns the steps."""
  directory = run_folder / "checkpoints"
  steps = sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())
  for step in steps:
    params = mlir_jax.load(str(run_folder), step).params
    scoreboard.expect(
      all(np.isfinite(array).all() for array in jax.tree.leaves(params)),
      f"the checkpoint of step {step} has numbers that are not finite",
    )
  return steps


def run_cases() -> Iterator[Case]:
  def explodes(folder):
    """Updates m / sqrt(v) have no bound: v forgets at once, m does not."""
    c = wrong_run_config(collection())
    c.optim.learning_rate = 10.0
    c.optim.b1, c.optim.b2, c.optim.eps = 0.99, 0.0, 1e-16
    c.optim.clip_norm = c.optim.weight_decay = 0.0
    c.optim.warmup_steps = 4
    c.optim.decay = "constant"
    c.train.steps = 60
    c.train.checkpoint_every = 1
    c.train.keep = 2
    c.train.max_nonfinite_steps = 3
    try:
      with fast_compilation():
        run.train(c, str(folder / "w"))
    except FloatingPointError as error:
      kept = check_all_saved_is_finite(folder / "w")
      scoreboard.expect(kept, "no checkpoint is left")
      scoreboard.expect(str(kept[-1]) in str(error), f"{kept}, {error}")
      model = mlir_jax.load(str(folder / "w"), "last")
      # The weights are finite. Vectors that are not finite must be refused.
      try:
        vectors = model.encode(["apple"], role="query")
        scoreboard.expect(np.isfinite(vectors).all(), "vectors are NaN")
      except (ValueError, ArithmeticError):
        pass
      raise
    raise scoreboard.WrongResultError("trained to the end")

  yield Case(
    "run/the largest learning rate explodes",
    "It ends with NonFiniteError, which names the last good checkpoint. All"
    " numbers of all checkpoints are finite.",
    explodes,
    ("checkpoint",),
    RUN_LIMIT,
  )

  def overflows(folder):
    """Finite weights whose first forward pass overflows."""
    c = wrong_run_config(collection())
    c.model.pretrained = str(write_bert(folder / "model", 1e37))
    c.train.steps = 3
    c.train.max_nonfinite_steps = 10
    try:
      with fast_compilation():
        run.train(c, str(folder / "w"))
    except FloatingPointError:
      checkpoints = folder / "w/checkpoints"
      names = (
        [p.name for p in checkpoints.iterdir()]
        if (checkpoints.is_dir())
        else []
      )
      scoreboard.expect("3" not in names, f"checkpoints: {names}")
      raise
    except ValueError as error:
      raise scoreboard.WrongResultError(f"not that: {error}") from None
    raise scoreboard.WrongResultError("exit status 0, no step was taken")

  yield Case(
    "run/fewer steps than max_nonfinite_steps, none of them finite",
    "It fails and keeps no checkpoint.",
    overflows,
    (),
    RUN_LIMIT,
  )

  for name, number in (("NaN", np.nan), ("infinity", np.inf)):

    def reads(folder, number=number):
      from safetensors import numpy as safetensors

      model = write_bert(folder / "model", 0.02)
      arrays = safetensors.load_file(model / "model.safetensors")
      arrays["encoder.layer.0.output.dense.weight"][3, 4] = number
      safetensors.save_file(arrays, model / "model.safetensors")
      c = wrong_run_config(collection())
      c.model.pretrained = str(model)
      try:
        run.train(c, str(folder / "w"))
      finally:
        kept = list((folder / "w").glob("checkpoints/*"))
        scoreboard.expect(not kept, kept)
      raise scoreboard.WrongResultError("trained")

    yield Case(
      f"run/{name} in the weights of the pretrained model",
      "Refused when it is read; the array or the file is named.",
      reads,
      ("model.safetensors",),
      RUN_LIMIT,
    )

  def too_long(folder):
    c = wrong_run_config(collection())
    c.model.pretrained = str(write_bert(folder / "model", 0.02))
    c.encoding.query.max_length = 17
    try:
      run.train(c, str(folder / "w"))
    finally:
      kept = list((folder / "w").glob("checkpoints/*"))
      scoreboard.expect(not kept, kept)
    raise scoreboard.WrongResultError("trained")

  yield Case(
    "run/texts beyond the pretrained model's positions",
    "Refused; the field is named.",
    too_long,
    ("encoding.query.max_length",),
  )

  def revision(folder):
    c = wrong_run_config(collection())
    c.model.pretrained = str(write_bert(folder / "model", 0.02))
    c.model.revision = "main"
    try:
      run.train(c, str(folder / "w"))
    except ValueError:
      check_untouched(folder / "w")
      raise
    raise scoreboard.WrongResultError("trained")

  yield Case(
    "run/a revision of a local folder",
    "Refused: a folder has no revisions.",
    revision,
    ("model.revision",),
    RUN_LIMIT,
  )


def cases() -> list[Case]:
  """Returns all cases, the fast ones first."""
  return [
    *field_cases(),
    *config_cases(),
    *flag_cases(),
    *workdir_cases(),
    *right_cases(),
    *environment_cases(),
    *main_cases(),
    *run_cases(),
  ]


if __name__ == "__main__":
  scoreboard.main(cases())
