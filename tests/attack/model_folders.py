"""Attacks with a model folder that is damaged, strange or hostile."""

import atexit
import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import conftest  # noqa: F401  Offline, on the CPU, before jax is imported.
import hf_models
import jax
import numpy as np
import safetensors.numpy
import sentence_models
import tiny
import torch
from attack import scoreboard

import mlir_jax
from mlir_jax import sharding
from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.training import run

# Short and lower case; a case may have its own texts.
TEXTS = ["apple river", "stone", "cloud garden window"]
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SETTINGS = "config_sentence_transformers.json"
LENGTHS = "sentence_bert_config.json"
POOLING = "1_Pooling/config.json"
FAMILIES = {
  "bert": {},
  "xlm-roberta": {"pad_token_id": 1},  # The tokenizer's.
  "modernbert": {
    "pad_token_id": 1,
    "cls_token_id": 0,
    "bos_token_id": 0,
  },
}


@functools.cache
def session() -> pathlib.Path:
  """Makes a folder for what all cases share, until the process ends."""
  folder = tempfile.mkdtemp(prefix="mlir_jax_attack_")
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return pathlib.Path(folder)


@functools.cache
def whole(family: str) -> pathlib.Path:
  """Makes an undamaged sentence-transformers folder of a family."""
  import sentence_transformers
  from sentence_transformers.sentence_transformer import modules

  plain = session() / f"{family}-plain"
  tokenizer = tokenizer_lib.train(tiny.WORDS, 120)
  hf_models.random_model(
    plain,
    family,
    vocab_size=tokenizer.get_vocab_size(),
    **FAMILIES[family],
  )
  hf_models.save_tokenizer(tokenizer, plain)
  transformer = modules.Transformer(str(plain), **hf_models.UNTRUSTED)
  transformer.max_seq_length = sentence_models.LENGTH
  folder = session() / family
  sentence_transformers.SentenceTransformer(
    modules=[transformer, modules.Pooling(24, "mean"), modules.Normalize()],
    device="cpu",
    trust_remote_code=False,
    prompts=sentence_models.PROMPTS,
    default_prompt_name="sentence",
  ).save(str(folder), create_model_card=False)
  # Older folders have the length here; both words are read.
  edit(folder / LENGTHS, max_seq_length=sentence_models.LENGTH)
  return folder


@functools.cache
def data() -> pathlib.Path:
  return tiny.write_folder(session() / "data", pairs=40)


def encode(folder: pathlib.Path, texts=TEXTS) -> np.ndarray:
  mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
  model = mlir_jax.load(str(folder), mesh=mesh, batch_size=4)
  return model.encode(texts, role="query")


@functools.cache
def vectors(family: str) -> np.ndarray:
  return encode(whole(family))


def oracle(folder: pathlib.Path, texts=TEXTS) -> np.ndarray:
  """Encodes with sentence-transformers, without the folder's code."""
  import sentence_transformers

  model = sentence_transformers.SentenceTransformer(
    str(folder), device="cpu", trust_remote_code=False
  )
  return model.encode(texts, prompt_name="query")


def train(folder: pathlib.Path, workdir: pathlib.Path) -> dict:
  """Trains a step from the folder."""
  c = tiny.make_config(data())
  c.model.pretrained = str(folder)
  c.batch.masked = 0
  c.loss.masked_lm.weight = 0.0
  c.train.steps = 1
  c.optim.warmup_steps = 0
  c.eval.every = 0
  return run.train(c, str(workdir))


# --- How files are damaged. ---


def read(path: pathlib.Path):
  return json.loads(path.read_text())


def write(path: pathlib.Path, value) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value, indent=2))


def edit(path: pathlib.Path, **fields) -> None:
  write(path, read(path) | fields)


def sets(file: str, **fields) -> Callable:
  return lambda folder: edit(folder / file, **fields)


def drops(file: str, field: str) -> Callable:
  def damage(folder):
    value = read(folder / file)
    del value[field]
    write(folder / file, value)

  return damage


def puts(file: str, value) -> Callable:
  return lambda folder: write(folder / file, value)


def changes(file: str, change: Callable) -> Callable:
  """Changes a file's JSON by a function, in place."""

  def damage(folder):
    value = read(folder / file)
    change(value)
    write(folder / file, value)

  return damage


def tensors(change: Callable) -> Callable:
  """Changes the weights' dict of arrays by a function, in place."""

  def damage(folder):
    arrays = safetensors.numpy.load_file(folder / WEIGHTS)
    change(arrays)
    safetensors.numpy.save_file(arrays, folder / WEIGHTS)

  return damage


def torch_tensors(dtype: torch.dtype) -> Callable:
  def damage(folder):
    import safetensors.torch

    arrays = safetensors.torch.load_file(folder / WEIGHTS)
    safetensors.torch.save_file(
      {name: array.to(dtype) for name, array in arrays.items()},
      folder / WEIGHTS,
    )

  return damage


def split_header(path: pathlib.Path) -> tuple[dict, bytes]:
  content = path.read_bytes()
  (size,) = struct.unpack("<Q", content[:8])
  return json.loads(content[8 : 8 + size]), content[8 + size :]


def put_header(path: pathlib.Path, header: str, rest: bytes) -> None:
  text = header.encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + rest)


def header(change: Callable) -> Callable:
  """Changes the header of the weights' file by a function, in place."""

  def damage(folder):
    value, rest = split_header(folder / WEIGHTS)
    change(value)
    put_header(folder / WEIGHTS, json.dumps(value), rest)

  return damage


def a_tensor(header_or_arrays: dict, ends: str = "query.weight") -> str:
  return next(
    name
    for name in sorted(header_or_arrays)
    if name.endswith((ends, "Wqkv.weight"))
  )


def shards(change: Callable) -> Callable:
  """Splits the weights in two files with an index, and changes the index."""

  def damage(folder):
    arrays = safetensors.numpy.load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(arrays)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2])):
      file = f"model-0000{number + 1}-of-00002.safetensors"
      safetensors.numpy.save_file({n: arrays[n] for n in part}, folder / file)
      weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    replaced = change(folder, index)
    write(folder / INDEX, index if replaced is None else replaced)

  return damage


LFS = (
  "version https://git-lfs.github.com/spec/v1\n"
  f"oid sha256:{'0' * 64}\nsize 12345\n"
)


def cut(path):
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2])


def double_key(path):
  """Adds the first key a second time, with another value."""
  text = path.read_text().strip()
  if text.startswith("["):
    text = text.replace('"path": ""', '"path": "elsewhere", "path": ""', 1)
  else:
    key = next(iter(json.loads(text)))
    text = '{"' + key + '": "another",' + text[1:]
  path.write_text(text)


def add_number(path, number):
  """Adds a number, spelled like this, in a field that is never read."""
  text = path.read_text().strip()
  if text.startswith("["):
    text = text.replace('"idx": 0', f'"idx": {number}', 1)
  else:
    text = '{"extra_number": ' + number + "," + text[1:]
  path.write_text(text)


def in_place_of(make: Callable) -> Callable:
  def damage(path):
    path.unlink()
    make(path)

  return damage


def not_utf8(path):
  path.write_bytes(path.read_bytes().replace(b'"', b'"\xff', 1))


# Damage of any JSON file. A damaged file is refused even if it is not needed.
FILE_DAMAGE = {
  "cut": cut,
  "empty": lambda path: path.write_bytes(b""),
  "double key": double_key,
  "5,000 digits": lambda path: add_number(path, "9" * 5000),
  "NaN": lambda path: add_number(path, "NaN"),
  "deep": lambda path: path.write_text("[" * 100_000),
  "not UTF-8": not_utf8,
  "a Git LFS pointer": lambda path: path.write_text(LFS),
  "another type": lambda path: path.write_text('"a word"'),
  "a folder": in_place_of(lambda path: path.mkdir()),
  "a dangling link": in_place_of(lambda path: path.symlink_to("nowhere")),
}
JSON_FILES = (
  "config.json",
  "modules.json",
  "tokenizer.json",
  "tokenizer_config.json",
  LENGTHS,
  SETTINGS,
  POOLING,
)


# --- The cases. ---


@dataclasses.dataclass(frozen=True)
class Damage:
  """A damaged folder.

  Attributes:
    name: Of the case.
    do: Receives the copy of the folder.
    names: What a refusal must contain.
    family: Of the folder.
    refuse: Whether only a refusal is right. If not, the undamaged vectors, to
      `tolerance`, are right, too.
    same: Whether only the undamaged vectors are right.
    by_oracle: Whether the vectors of sentence-transformers are right, too.
    tolerance: Largest difference of the vectors.
    trains: Whether a training from the folder is tried, too.
  """

  name: str
  do: Callable
  names: tuple[str, ...] = ()
  family: str = "bert"
  refuse: bool = False
  same: bool = False
  by_oracle: bool = False
  tolerance: float = 1e-5
  trains: bool = False
  texts: tuple[str, ...] = tuple(TEXTS)


def judge_load(damage: Damage, folder: pathlib.Path) -> None:
  copy = folder / "model"
  shutil.copytree(whole(damage.family), copy)
  damage.do(copy)
  with consent():
    try:
      ours = encode(copy, list(damage.texts))
    except (ValueError, OSError) as error:
      scoreboard.expect(not damage.same, f"refused: {error}")
      raise
  scoreboard.expect(not damage.refuse, f"accepted: {ours.shape}")
  if damage.texts == tuple(TEXTS):
    right = vectors(damage.family)
  else:
    right = oracle(copy, list(damage.texts))
  apart = np.abs(ours - right).max() if ours.shape == right.shape else np.inf
  if not apart <= damage.tolerance and damage.by_oracle:
    right = oracle(copy, list(damage.texts))
    apart = np.abs(ours - right).max()
  scoreboard.expect(apart <= damage.tolerance, f"vectors differ by {apart:.3g}")


def judge_train(damage: Damage, folder: pathlib.Path) -> None:
  copy = folder / "model"
  shutil.copytree(whole(damage.family), copy)
  damage.do(copy)
  with consent():
    train(copy, folder / "workdir")
  scoreboard.expect(not damage.refuse, "trained from it")


@contextlib.contextmanager
def consent() -> Iterator[None]:
  """Answers yes to every question on the standard input."""
  before, sys.stdin = sys.stdin, io.StringIO("yes\ny\n" * 50)
  try:
    yield
  finally:
    sys.stdin = before


def files() -> Iterator[Damage]:
  """Yields each JSON file of a folder, damaged in each way."""
  for file in JSON_FILES:
    for kind, damage in FILE_DAMAGE.items():
      yield Damage(
        f"{file}: {kind}",
        lambda folder, file=file, damage=damage: damage(folder / file),
        (pathlib.Path(file).name,),
        # A field that we never read may have any number.
        refuse=kind not in ("NaN", "5,000 digits"),
        trains=kind in ("cut", "deep", "double key")
        and file not in (LENGTHS, POOLING),
      )
  for file in ("config.json", "tokenizer.json", POOLING):
    yield Damage(
      f"{file}: missing",
      lambda folder, file=file: (folder / file).unlink(),
      (file,),
      refuse=True,
      trains=file != POOLING,
    )
  for file in ("modules.json", "tokenizer_config.json", LENGTHS):
    yield Damage(
      f"{file}: missing",
      lambda folder, file=file: (folder / file).unlink(),
      (file,),
    )
  # Older folders do not have it: they have no prompts.
  yield Damage(
    f"{SETTINGS}: missing",
    lambda folder: (folder / SETTINGS).unlink(),
    (SETTINGS,),
    by_oracle=True,
    texts=("apple river", "stone"),
  )


def is_shape(value) -> bool:
  """Returns whether a field of another model could have the value."""
  return type(value) is int and value in (0, 1, 3, *range(22, 59), 10**12)


def shapes() -> Iterator[Damage]:
  """Yields wrong fields of config.json that shape the encoder."""
  heads, wide = "num_attention_heads", "hidden_size"
  values = {
    wide: (10**12, -1, 0, 1.5, "24", True, None, [24], 48),
    heads: (10**12, -3, 0, 5, "3", True, None),
    "num_hidden_layers": (10**12, -1, 0, 1, 3, "2", 2.5),
    "intermediate_size": (10**12, -1, 41, None),
    "vocab_size": (10**12, 0, 56, 58, "57"),
    "max_position_embeddings": (10**12, 0, 22, 24, "23"),
    "type_vocab_size": (0, -1, 3, 10**12, "2"),
    "layer_norm_eps": (-1.0, "1e-12", None, 10**12, [], True),
    "pad_token_id": (-1, 57, 10**12, 1.5, "1", [1]),
    "hidden_act": ("evil", "", None, 5, ["gelu"], {"name": "gelu"}),
    "position_embedding_type": ("relative_key", "unknown", 5),
    "model_type": ("t5", "unknown", "", None, 5, ["bert"], "../bert"),
    "initializer_range": ("0.02", -1, None),
    "is_decoder": (True, "yes"),
    "add_cross_attention": (True,),
  }
  for field, wrong in values.items():
    for value in wrong:
      # A field that only training uses, or nothing, may be ignored.
      may_pass = field == "initializer_range" or (field, value) in (
        ("pad_token_id", -1),
        ("add_cross_attention", True),
      )
      yield Damage(
        f"config.json: {field} = {value!r}",
        sets("config.json", **{field: value}),
        # If the weights have another shape, the tensor is named.
        ("model",) if is_shape(value) else ("config.json", field),
        refuse=not may_pass,
        trains=value in (10**12, "unknown") and field != "initializer_range",
      )
  for field in ("hidden_size", "num_attention_heads", "model_type"):
    # The defaults of transformers are not this folder's values.
    yield Damage(
      f"config.json: without {field}",
      drops("config.json", field),
      ("config.json", field),
      refuse=True,
    )
  yield Damage(
    "config.json: layer_norm_eps = NaN",
    lambda folder: (folder / "config.json").write_text(
      (folder / "config.json").read_text().replace("1e-12", "NaN")
    ),
    ("config.json",),
    refuse=True,
  )
  for value in (57, -1, 10**12, "1", None, 2):
    yield Damage(
      f"xlm-roberta: config.json: pad_token_id = {value!r}",
      sets("config.json", pad_token_id=value),
      ("config.json",),
      family="xlm-roberta",
      refuse=value != 2,
      by_oracle=True,
    )
  yield Damage(
    "xlm-roberta: config.json: fewer positions than the pad id takes",
    sets("config.json", pad_token_id=25),
    ("config.json",),
    family="xlm-roberta",
    refuse=True,
  )
  modern = {
    "local_attention": (0, -1, 1.5, "6", None, 10**12),
    "layer_types": (
      ["full_attention"],
      ["evil"] * 3,
      "full_attention",
      [],
      [1, 2, 3],
    ),
    "rope_parameters": (
      {},
      [],
      {"full_attention": {"rope_theta": 0.0, "rope_type": "default"}},
      {
        kind: {"rope_theta": 500.0, "rope_type": "yarn", "factor": 4.0}
        for kind in ("full_attention", "sliding_attention")
      },
      {
        kind: {"rope_theta": "500", "rope_type": "default"}
        for kind in ("full_attention", "sliding_attention")
      },
      {
        kind: {"rope_theta": -500.0, "rope_type": "default"}
        for kind in ("full_attention", "sliding_attention")
      },
    ),
    "norm_eps": (-1.0, "1e-5", None),
    "attention_bias": (True, "no"),
    "norm_bias": (True,),
    "mlp_bias": (True,),
    "hidden_activation": ("evil", None, 5),
    "num_hidden_layers": (2, 4),
    "num_attention_heads": (24, 5),  # An odd head cannot be rotated.
  }
  for field, wrong in modern.items():
    for value in wrong:
      yield Damage(
        f"modernbert: config.json: {field} = {str(value)[:60]!r}",
        sets("config.json", **{field: value}),
        ("config.json",),
        family="modernbert",
        # Without rope_parameters, transformers has its own defaults.
        refuse=value not in (10**12, 0, {}),
        by_oracle=True,
      )


def weights() -> Iterator[Damage]:
  """Yields weights that are damaged, missing, or not numbers."""

  def refused(name, do, *names, **more):
    # If a tensor does not fit, the folder and the tensor are named.
    return Damage(
      f"weights: {name}",
      do,
      names or ("model",),
      **({"refuse": True} | more),
    )

  def at(path, change):
    return lambda folder: change(folder / path)

  def reshape(arrays, shape_of):
    name = a_tensor(arrays)
    arrays[name] = shape_of(arrays[name])

  for family in FAMILIES:
    yield refused(
      f"{family}: one is missing",
      tensors(lambda arrays: arrays.pop(a_tensor(arrays))),
      "weight",
      family=family,
      trains=True,
    )
    yield refused(
      f"{family}: another shape",
      tensors(lambda arrays: reshape(arrays, lambda x: x[:-1].copy())),
      "weight",
      family=family,
      trains=True,
    )
    yield refused(
      f"{family}: NaN",
      tensors(lambda arrays: reshape(arrays, lambda x: x * np.nan)),
      "weight",
      family=family,
      trains=family == "bert",
    )
    yield Damage(
      f"weights: {family}: float16",
      torch_tensors(torch.float16),
      family=family,
      same=True,
      tolerance=1e-2,
    )
  yield Damage(
    "weights: bfloat16",
    torch_tensors(torch.bfloat16),
    same=True,
    tolerance=5e-2,
  )
  yield Damage("weights: float64", torch_tensors(torch.float64), ("weight",))
  yield refused("int8", torch_tensors(torch.int8), "weight", trains=True)
  yield refused("float8", torch_tensors(torch.float8_e4m3fn), "weight")
  yield refused("bool", torch_tensors(torch.bool), "weight")
  yield refused(
    "one infinity in a bias",
    tensors(
      lambda arrays: arrays[a_tensor(arrays, "query.bias")].__setitem__(
        0, -np.inf
      )
    ),
    "query.bias",
  )
  yield refused(
    "a float16 of which one is NaN",
    tensors(
      lambda arrays: arrays.update(
        {
          name: np.where(
            np.arange(array.size).reshape(array.shape) == 3, np.nan, array
          ).astype(np.float16)
          for name, array in arrays.items()
        }
      )
    ),
  )
  yield refused(
    "a table without its last rows",
    tensors(
      lambda arrays: arrays.update(
        {
          name: array[:-5].copy()
          for name, array in arrays.items()
          if name.endswith("word_embeddings.weight")
        }
      )
    ),
    "word_embeddings.weight",
  )
  yield refused(
    "a third axis",
    tensors(lambda arrays: reshape(arrays, lambda x: x[None].copy())),
    "query.weight",
  )
  yield refused(
    "a bias in the place of a matrix",
    tensors(lambda arrays: reshape(arrays, lambda x: x[0].copy())),
    "query.weight",
  )
  yield refused(
    "an adapter beside a layer",
    tensors(
      lambda arrays: arrays.update(
        {
          "encoder.layer.0.attention.self.query.lora_A.weight": np.ones(
            (4, 24), np.float32
          )
        }
      )
    ),
    "lora_A",
  )
  yield refused(
    "a layer that the config does not count",
    tensors(
      lambda arrays: arrays.update(
        {
          name.replace("layer.1.", "layer.2."): array
          for name, array in list(arrays.items())
          if "layer.1." in name
        }
      )
    ),
    "layer.2",
  )
  yield Damage(
    "weights: a pooler and a head that nobody reads",
    tensors(
      lambda arrays: arrays.update(
        {
          "pooler.dense.weight": np.ones((24, 24), np.float32),
          "cls.seq_relationship.weight": np.ones((2, 24), np.float32),
        }
      )
    ),
    (WEIGHTS,),
  )
  yield refused(
    "names of another model",
    tensors(
      lambda arrays: [
        arrays.update({f"model.{name}": arrays.pop(name)})
        for name in list(arrays)
      ]
    ),
  )
  yield refused(
    "no tensor at all", lambda f: safetensors.numpy.save_file({}, f / WEIGHTS)
  )
  yield refused("cut", at(WEIGHTS, cut), trains=True)
  yield refused(
    "cut by a byte",
    at(WEIGHTS, lambda path: path.write_bytes(path.read_bytes()[:-1])),
  )
  yield refused(
    "a byte too many",
    at(WEIGHTS, lambda path: path.write_bytes(path.read_bytes() + b"\0")),
  )
  yield refused("empty", at(WEIGHTS, lambda path: path.write_bytes(b"")))
  yield refused(
    "Git LFS", at(WEIGHTS, lambda path: path.write_text(LFS)), trains=True
  )
  yield refused("a folder", at(WEIGHTS, in_place_of(lambda path: path.mkdir())))
  yield refused(
    "a dangling link",
    at(WEIGHTS, in_place_of(lambda path: path.symlink_to("nowhere"))),
  )
  yield refused(
    "a header of 2**62 bytes",
    at(
      WEIGHTS,
      lambda path: path.write_bytes(
        struct.pack("<Q", 2**62) + path.read_bytes()[8:]
      ),
    ),
  )
  yield refused(
    "a header that is not JSON",
    at(WEIGHTS, lambda path: put_header(path, "{not json", b"")),
  )
  yield refused(
    "a deep header",
    at(WEIGHTS, lambda path: put_header(path, '{"a":' * 50_000, b"")),
  )
  yield refused(
    "a header that is a list",
    at(WEIGHTS, lambda path: put_header(path, "[]", b"")),
  )
  yield refused(
    "offsets behind the end",
    header(lambda h: h[a_tensor(h)].update(data_offsets=[0, 10**15])),
  )
  yield refused(
    "offsets below 0",
    header(lambda h: h[a_tensor(h)].update(data_offsets=[-2304, 0])),
  )
  yield refused(
    "two tensors in one place",
    header(
      lambda h: h[a_tensor(h)].update(
        data_offsets=h[a_tensor(h, "key.weight")]["data_offsets"]
      )
    ),
  )
  yield refused(
    "a shape of 10**30",
    header(lambda h: h[a_tensor(h)].update(shape=[10**30, 24])),
  )
  yield refused(
    "a shape below 0", header(lambda h: h[a_tensor(h)].update(shape=[-24, -24]))
  )
  yield refused(
    "an unknown dtype", header(lambda h: h[a_tensor(h)].update(dtype="F7"))
  )
  yield refused("no dtype", header(lambda h: h[a_tensor(h)].pop("dtype")))

  def twice(path):
    value, rest = split_header(path)
    name = a_tensor(value)
    other = value[a_tensor(value, "key.weight")]
    text = json.dumps(value)
    put_header(
      path, '{"' + name + '": ' + json.dumps(other) + "," + text[1:], rest
    )

  yield refused("a tensor named twice", at(WEIGHTS, twice))


def indexes() -> Iterator[Damage]:
  """Yields damaged indexes of weights in several files."""

  def refused(name, change, *names, **more):
    return Damage(
      f"index: {name}",
      shards(change),
      names or (INDEX,),
      **({"refuse": True} | more),
    )

  def point(to):
    def change(folder, index):
      outside = folder.parent / "outside.safetensors"
      shutil.copy(folder / "model-00001-of-00002.safetensors", outside)
      first = "model-00001-of-00002.safetensors"
      (folder / first).unlink()
      file = to(folder)
      for name, value in index["weight_map"].items():
        if value == first:
          index["weight_map"][name] = file

    return change

  yield Damage("index: whole", shards(lambda *_: None), same=True)
  yield refused("../", point(lambda _: "../outside.safetensors"), trains=True)
  yield refused(
    "an absolute path", point(lambda f: str(f.parent / "outside.safetensors"))
  )
  yield refused("a name with NUL", point(lambda _: "a\0b.safetensors"))
  yield refused("a number for a name", point(lambda _: 5))
  yield refused("an empty name", point(lambda _: ""))
  yield refused("a folder for a name", point(lambda _: "1_Pooling"))
  yield refused("a pickle for a name", point(lambda _: "pytorch_model.bin"))
  yield refused(
    "a file that is not there",
    point(lambda _: "b.safetensors"),
    INDEX,
    "b.safetensors",
  )

  def linked(folder):
    (folder / "link.safetensors").symlink_to("../outside.safetensors")
    return "link.safetensors"

  yield refused("a link that leaves the folder", point(linked))
  yield refused(
    "no weight_map", lambda f, index: index.pop("weight_map") and None
  )
  yield refused("a list", lambda f, index: index.update(weight_map=["a"]))
  yield refused("no names", lambda f, index: index["weight_map"].clear())
  yield refused("null", lambda f, index: index.update(weight_map=None))
  yield refused(
    "a tensor that its file lacks",
    lambda f, index: index["weight_map"].update(
      {
        name: file.replace("00001-", "00002-")
        for name, file in index["weight_map"].items()
      }
    ),
    "is missing",
  )
  yield refused(
    "a tensor left out",
    lambda f, index: (
      index["weight_map"].pop(a_tensor(index["weight_map"])) and None
    ),
    "query.weight",
    refuse=False,  # All that the files hold is read, as transformers does.
  )
  for kind, damage in FILE_DAMAGE.items():
    if kind not in ("NaN", "5,000 digits"):
      yield Damage(
        f"index: {kind}",
        lambda folder, damage=damage: (
          shards(lambda *_: None)(folder),
          damage(folder / INDEX),
        ),
        (INDEX,),
        refuse=True,
      )
  yield Damage(
    "index: cut second file",
    shards(lambda f, _: cut(f / "model-00002-of-00002.safetensors")),
    ("model-00002-of-00002.safetensors",),
    refuse=True,
  )


def module_lists() -> Iterator[Damage]:
  """Yields damaged modules, poolings, lengths and prompts."""

  def refused(name, do, *names, **more):
    return Damage(
      f"modules: {name}",
      do,
      names or ("modules.json",),
      **({"refuse": True} | more),
    )

  def module(number, **fields):
    return changes("modules.json", lambda value: value[number].update(fields))

  def add(kind, path, place=None, files=()):
    def damage(folder):
      value = read(folder / "modules.json")
      entry = {"name": str(len(value)), "path": path, "type": kind}
      value.insert(len(value) if place is None else place, entry)
      for number, each in enumerate(value):
        each["idx"] = number
      write(folder / "modules.json", value)
      for name, content in files:
        write(folder / path / name, content)

    return damage

  def outside(to):
    def damage(folder):
      shutil.move(folder / "1_Pooling", folder.parent / "elsewhere")
      changes("modules.json", lambda value: value[1].update(path=to(folder)))(
        folder
      )

    return damage

  yield refused("../", outside(lambda _: "../elsewhere"), trains=True)
  yield refused(
    "an absolute path", outside(lambda f: str(f.parent / "elsewhere"))
  )
  yield refused(
    "first module elsewhere",
    lambda folder: (
      shutil.copytree(folder, folder.parent / "other"),
      module(0, path="../other")(folder),
    ),
  )
  yield refused("a path that is a number", module(1, path=1))
  yield refused("a path that is null", module(1, path=None))
  yield refused("a path with NUL", module(1, path="a\0b"))
  yield refused(
    "a path that is a file", module(1, path="config.json"), "config"
  )
  yield refused(
    "a path that is not there", module(1, path="7_Pooling"), "7_Pooling"
  )
  yield refused("no type", changes("modules.json", lambda v: v[1].pop("type")))
  yield refused("a type that is a list", module(1, type=["a"]))
  yield refused("an unknown type", module(1, type="sentence_transformers.Evil"))
  yield refused(
    "an entry that is a word",
    changes("modules.json", lambda v: v.__setitem__(1, "Pooling")),
  )
  yield refused("an empty list", puts("modules.json", []))
  yield refused("an object", puts("modules.json", {"0": {}}))
  yield refused("no pooling", changes("modules.json", lambda v: v.pop(1)))
  yield refused("no transformer", changes("modules.json", lambda v: v.pop(0)))
  yield refused(
    "pooling twice", add("sentence_transformers.models.Pooling", "1_Pooling")
  )
  yield refused(
    "normalized before the pooling",
    changes("modules.json", lambda v: v.insert(1, v.pop(2))),
  )
  yield refused(
    "a CNN",
    add(
      "sentence_transformers.models.CNN",
      "3_CNN",
      1,
      [("config.json", {"in_word_embedding_dimension": 24})],
    ),
    trains=True,
  )
  yield refused(
    "an LSTM", add("sentence_transformers.models.LSTM", "3_LSTM", 1)
  )
  yield refused(
    "dropout",
    add(
      "sentence_transformers.models.Dropout",
      "3_Dropout",
      2,
      [("config.json", {"dropout": 0.5})],
    ),
  )
  dense = {
    "in_features": 24,
    "out_features": 8,
    "bias": True,
    "activation_function": "torch.nn.modules.linear.Identity",
  }

  def projection(arrays=None, **fields):
    def damage(folder):
      add(
        "sentence_transformers.models.Dense",
        "3_Dense",
        2,
        [("config.json", dense | fields)],
      )(folder)
      saved = arrays or {
        "linear.weight": np.ones((8, 24), np.float32),
        "linear.bias": np.ones(8, np.float32),
      }
      safetensors.numpy.save_file(saved, folder / "3_Dense" / WEIGHTS)

    return damage

  yield refused(
    "dense: a class of its own",
    projection(activation_function="evil.Evil"),
    "activation_function",
    trains=True,
  )
  yield refused(
    "dense: no such class",
    projection(activation_function="torch.nn.modules.activation.Evil"),
    "activation_function",
  )
  yield refused("dense: another width", projection(out_features=9), "3_Dense")
  yield refused("dense: other input", projection(in_features=23), "3_Dense")
  yield refused(
    "dense: a width of 10**12", projection(out_features=10**12), "3_Dense"
  )
  yield refused(
    "dense: a width that is a word",
    projection(out_features="8"),
    "out_features",
  )
  yield refused(
    "dense: bias says no, file says yes", projection(bias=False), "bias"
  )
  yield refused(
    "dense: no bias in the file",
    projection({"linear.weight": np.ones((8, 24), np.float32)}),
    "linear.bias",
  )
  yield refused(
    "dense: NaN",
    projection(
      {
        "linear.weight": np.full((8, 24), np.nan, np.float32),
        "linear.bias": np.ones(8, np.float32),
      }
    ),
    "linear.weight",
  )
  yield refused(
    "dense: no weights",
    lambda folder: (
      projection()(folder),
      (folder / "3_Dense" / WEIGHTS).unlink(),
    ),
    "3_Dense",
  )
  yield refused(
    "dense: its config missing",
    lambda folder: (
      projection()(folder),
      (folder / "3_Dense/config.json").unlink(),
    ),
    "3_Dense",
  )

  pooling = functools.partial(sets, POOLING)
  for value in ("evil", "", None, 5, ["mean", "cls"], "max", "lasttoken "):
    yield refused(
      f"pooling_mode = {value!r}",
      pooling(pooling_mode=value),
      "pooling_mode",
      trains=value == "evil",
    )
  yield refused(
    "a width that is not the model's",
    pooling(embedding_dimension=25),
    "embedding_dimension",
    refuse=False,  # The vectors do not depend on it.
  )
  yield refused(
    "a pooling field that nobody knows",
    pooling(pooling_mode_evil_tokens=True),
    "pooling_mode_evil_tokens",
  )
  yield refused(
    "the prompt is left out", pooling(include_prompt=False), "include_prompt"
  )
  yield refused(
    "the prompt is left out, maybe",
    pooling(include_prompt="no"),
    "include_prompt",
  )
  old = {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True}
  yield Damage("modules: pooling in old words", puts(POOLING, old), same=True)
  for more in (
    {"pooling_mode_cls_token": True},
    {"pooling_mode_mean_tokens": False},
    {"pooling_mode_mean_tokens": "true"},
    {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True},
    {"pooling_mode": "cls"},
  ):
    yield refused(
      f"pooling in old words: {more}", puts(POOLING, old | more), POOLING
    )

  for value in (-1, 0, 1, 1.5, "20", 10**12, True, [20]):
    # 3: <s>, a piece and </s>.
    yield Damage(
      f"lengths: max_seq_length = {value!r}",
      lambda folder, value=value: (
        edit(folder / LENGTHS, max_seq_length=value),
        edit(folder / "tokenizer_config.json", model_max_length=value),
      ),
      ("max_seq_length",) if value != 10**12 else ("length",),
      refuse=value != 10**12,
      by_oracle=True,
    )
  yield Damage(
    "lengths: do_lower_case",
    sets(LENGTHS, do_lower_case=True),
    (LENGTHS, "do_lower_case"),
    by_oracle=True,
    texts=("Apple RIVER", "Stone"),
  )
  for value in ("huge", -5, 1.5, [20]):
    yield Damage(
      f"lengths: model_max_length = {value!r}",
      lambda folder, value=value: (
        edit(folder / "tokenizer_config.json", model_max_length=value),
        drops(LENGTHS, "max_seq_length")(folder),
      ),
      ("tokenizer_config.json", "model_max_length"),
      refuse=True,
    )

  for name, value in {
    "a list": ["query: "],
    "a word": "query: ",
    "a number": 5,
    "null inside": {"query": None},
    "a number inside": {"query": 5},
    "a list inside": {"query": ["a"]},
    "half of a character": {"query": "\ud800"},
  }.items():
    yield Damage(
      f"prompts: {name}",
      sets(SETTINGS, prompts=value, default_prompt_name=None),
      (SETTINGS,) if "half" in name else (SETTINGS, "prompts"),
      refuse=name != "null inside",
      by_oracle=True,  # sentence-transformers reads null as no prompt.
      trains=name == "a list",
    )
  for value in ("nobody", 5, ["query"]):
    yield Damage(
      f"prompts: default_prompt_name = {value!r}",
      sets(SETTINGS, default_prompt_name=value),
      (SETTINGS, "default_prompt_name"),
      refuse=True,
    )
  for value in ("evil", 5, ["cosine"], "manhattan"):
    yield Damage(
      f"prompts: similarity_fn_name = {value!r}",
      sets(SETTINGS, similarity_fn_name=value),
      (SETTINGS, "similarity_fn_name"),
      refuse=True,
    )
  yield Damage(
    "prompts: a model of another kind",
    sets(SETTINGS, model_type="SparseEncoder"),
    (SETTINGS, "model_type"),
    refuse=True,
  )


def tokenizers() -> Iterator[Damage]:
  """Yields tokenizers that are damaged or of another model."""
  file = "tokenizer.json"

  def refused(name, do, *names, **more):
    return Damage(
      f"tokenizer: {name}", do, names or (file,), **({"refuse": True} | more)
    )

  def model(change):
    return changes(file, lambda value: change(value["model"]))

  yield refused(
    "more pieces than the table has",
    model(lambda m: m["vocab"].extend([[f"▁more{n}", -9.0] for n in range(9)])),
    "tokenizer",
    trains=True,
  )
  yield refused(
    "an added token behind the table",
    changes(
      file,
      lambda v: v["added_tokens"].append(
        v["added_tokens"][0] | {"id": 57, "content": "<more>"}
      ),
    ),
  )
  yield refused(
    "a piece twice",
    model(lambda m: m["vocab"].insert(9, list(m["vocab"][9]))),
  )
  yield refused("no pieces", model(lambda m: m["vocab"].clear()))
  yield refused(
    "a score that is a word",
    model(lambda m: m["vocab"].__setitem__(9, ["a", "b"])),
  )
  yield refused("an unknown kind", model(lambda m: m.update(type="Evil")))
  yield refused(
    "unk_id behind the pieces", model(lambda m: m.update(unk_id=999))
  )
  yield refused(
    "no padding token",
    changes(
      file,
      lambda v: v.update(
        added_tokens=[t for t in v["added_tokens"] if t["content"] != "<pad>"]
      ),
    ),
    refuse=False,  # tokenizer_config.json names it.
  )
  yield Damage(
    "tokenizer: cuts and pads by itself",
    changes(
      file,
      lambda v: v.update(
        truncation={
          "direction": "Left",
          "max_length": 4,
          "stride": 0,
          "strategy": "LongestFirst",
        },
        padding={
          "strategy": {"Fixed": 9},
          "direction": "Left",
          "pad_to_multiple_of": None,
          "pad_id": 3,
          "pad_type_id": 0,
          "pad_token": "<unk>",
        },
      ),
    ),
    (file,),
    by_oracle=True,
  )
  yield Damage(
    "tokenizer: no special tokens around a text",
    changes(file, lambda v: v.update(post_processor=None)),
    (file,),
    by_oracle=True,
  )
  yield Damage(
    "tokenizer: special tokens behind the table",
    changes(
      file,
      lambda v: (
        [
          t.update(ids=[999])
          for t in v["post_processor"].get("special_tokens", {}).values()
        ]
        or v["post_processor"].update(cls=["<s>", 999])
      ),
    ),
    (file,),
    refuse=True,
  )
  yield refused(
    "pads with a token that it lacks",
    sets("tokenizer_config.json", pad_token="<nobody>"),
    "tokenizer_config.json",
    "pad_token",
    refuse=False,  # Padding is masked, whatever its id.
  )
  yield refused(
    "pads with a number",
    sets("tokenizer_config.json", pad_token=5),
    "tokenizer_config.json",
    "pad_token",
  )
  yield refused(
    "pads with another word than the model",
    sets("tokenizer_config.json", pad_token="</s>"),
    "pad",
    refuse=False,  # Padding is masked, whatever its id.
  )
  yield refused(
    "only a sentencepiece file",
    lambda folder: (folder / file).rename(folder / "sentencepiece.bpe.model"),
    "tokenizer",
  )
  yield refused(
    "of another model",
    lambda folder: tokenizer_lib.train(
      ["other words entirely", "of a larger set", *map(chr, range(65, 200))],
      400,
    ).save(str(folder / file)),
  )


CODE = """import pathlib
pathlib.Path({marker!r}).touch()
import torch
import transformers

class Config(transformers.BertConfig):
  model_type = "evil"

class Model(transformers.BertModel):
  config_class = Config

class Tokenizer(transformers.PreTrainedTokenizerFast):
  pass

class Evil(torch.nn.Module):
  pass
"""


class Touch:
  """Makes a folder when its pickle is read."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return (os.mkdir, (self.path,))


def plant(folder: pathlib.Path, *files: str) -> None:
  """Adds code and pickles that leave a marker next to the folder."""
  marker = folder.parent / scoreboard.MARKER
  for file in files:
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".py":
      path.write_text(CODE.format(marker=str(marker)))
    else:
      path.write_bytes(pickle.dumps(Touch(marker)))


AUTO_MAP = {
  "AutoConfig": "evil.Config",
  "AutoModel": "evil.Model",
  "AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"],
}


def hostile(folder: pathlib.Path, model_type: str) -> None:
  """Combines all ways in which a folder may ask to run its code."""
  plant(
    folder,
    "evil.py",
    "pytorch_model.bin",
    "1_Pooling/evil.py",
    "modeling_evil.py",
    "tokenizer.py",
  )
  edit(
    folder / "config.json",
    auto_map=AUTO_MAP,
    model_type=model_type,
    trust_remote_code=True,
  )
  edit(
    folder / "tokenizer_config.json",
    auto_map=AUTO_MAP,
    tokenizer_class="Tokenizer",
    trust_remote_code=True,
  )
  edit(folder / SETTINGS, trust_remote_code=True)


def code() -> Iterator[Damage]:
  """Yields folders with code; the scoreboard looks for its marker."""
  yield Damage(
    "code: auto_map of an unknown model",
    lambda folder: hostile(folder, "evil"),
    ("config.json", "model_type"),
    refuse=True,
    trains=True,
  )
  yield Damage(
    "code: auto_map of a known model",
    lambda folder: hostile(folder, "bert"),
    ("config.json",),
  )
  yield Damage(
    "code: a tokenizer of its own",
    lambda folder: (
      plant(folder, "evil.py"),
      edit(
        folder / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["evil.Tokenizer", None]},
      ),
    ),
    ("tokenizer_config.json",),
  )
  yield Damage(
    "code: a module of its own",
    lambda folder: (
      plant(folder, "evil.py"),
      changes("modules.json", lambda value: value[1].update(type="evil.Evil"))(
        folder
      ),
    ),
    ("modules.json", "evil.Evil"),
    refuse=True,
    trains=True,
  )
  yield Damage(
    "code: a module by a name that Python finds",
    lambda folder: changes(
      "modules.json", lambda value: value[1].update(type="antigravity.Pooling")
    )(folder),
    ("modules.json", "antigravity.Pooling"),
    refuse=True,
  )
  yield Damage(
    "code: a transformer module of its own",
    lambda folder: (
      plant(folder, "custom_st.py"),
      changes(
        "modules.json",
        lambda value: value[0].update(type="custom_st.Transformer"),
      )(folder),
    ),
    ("modules.json", "custom_st.Transformer"),
    refuse=True,
  )
  yield Damage(
    "code: a pickle in the place of safetensors",
    lambda folder: (
      (folder / WEIGHTS).unlink(),
      plant(folder, "pytorch_model.bin"),
    ),
    (WEIGHTS,),
    refuse=True,
    trains=True,
  )
  yield Damage(
    "code: a pickle named safetensors",
    lambda folder: plant(folder, WEIGHTS),
    (WEIGHTS,),
    refuse=True,
  )
  yield Damage(
    "code: a pickle beside safetensors",
    lambda folder: plant(
      folder, "pytorch_model.bin", "training_args.bin", "optimizer.pt"
    ),
    same=True,
  )
  yield Damage(
    "code: an index of pickles",
    lambda folder: (
      (folder / WEIGHTS).unlink(),
      plant(folder, "a.bin"),
      write(
        folder / "pytorch_model.bin.index.json", {"weight_map": {"a": "a.bin"}}
      ),
    ),
    (WEIGHTS,),
    refuse=True,
  )
  yield Damage(
    "code: a dense layer as a pickle",
    lambda folder: (
      changes(
        "modules.json",
        lambda value: value.insert(
          2,
          {
            "idx": 3,
            "name": "3",
            "path": "3_Dense",
            "type": "sentence_transformers.models.Dense",
          },
        ),
      )(folder),
      plant(folder, "3_Dense/pytorch_model.bin"),
      write(
        folder / "3_Dense/config.json",
        {
          "in_features": 24,
          "out_features": 8,
          "bias": True,
          "activation_function": "evil.Evil",
        },
      ),
    ),
    ("3_Dense",),
    refuse=True,
  )
  yield Damage(
    "code: an activation of its own",
    lambda folder: (
      plant(folder, "evil.py"),
      edit(folder / "config.json", hidden_act="evil.Evil"),
    ),
    ("config.json", "hidden_act"),
    refuse=True,
  )


def folders() -> Iterator[scoreboard.Case]:
  """Yields paths that are not a model's folder."""

  def case(name, make, *names):
    def attack(folder):
      with consent():
        ours = encode(make(folder))
      scoreboard.expect(False, f"accepted: {ours.shape}")

    return scoreboard.Case(
      f"load/folder: {name}", "It is refused, by name.", attack, names
    )

  def link(folder, to):
    (folder / "model").symlink_to(to)
    return folder / "model"

  def made(path, content=None):
    if content is None:
      path.mkdir()
    else:
      path.write_bytes(content)
    return path

  yield case("a file", lambda f: made(f / "model", b"text"), "model")
  yield case("the weights' file", lambda f: whole("bert") / WEIGHTS, WEIGHTS)
  yield case(
    "modules.json", lambda f: whole("bert") / "modules.json", "modules.json"
  )
  yield case("empty", lambda f: made(f / "model"), "model")
  yield case("a dangling link", lambda f: link(f, "nowhere"), "model")
  yield case("a link to itself", lambda f: link(f, "model"), "model")
  yield case("missing", lambda f: f / "not_there", "not_there")
  yield case("a part of it", lambda f: whole("bert") / "1_Pooling", "1_Pooling")
  yield case("a name of 5,000 letters", lambda f: f / ("a" * 5000))
  yield case("a name with NUL", lambda f: f"{f}/a\0b")
  yield case("a name that the hub cannot have", lambda f: "a b//c:d")
  yield case("no name", lambda f: "")


def in_the_hub_cache(folder: pathlib.Path) -> None:
  """Encodes with a folder of the hub's cache, whose files are links."""
  cache = folder / "models--a--b"
  snapshot = cache / "snapshots" / "abc"
  (cache / "blobs").mkdir(parents=True)
  for path in sorted(whole("bert").rglob("*")):
    name = path.relative_to(whole("bert"))
    if path.is_file():
      blob = cache / "blobs" / str(name).replace("/", "-")
      shutil.copy(path, blob)
      link = snapshot / name
      link.parent.mkdir(parents=True, exist_ok=True)
      link.symlink_to(os.path.relpath(blob, link.parent))
  apart = np.abs(encode(snapshot) - vectors("bert")).max()
  scoreboard.expect(apart == 0, f"vectors differ by {apart:.3g}")


def in_a_process(folder: pathlib.Path) -> None:
  """Runs `encode` with "yes" as the first text on the standard input."""
  copy = folder / "model"
  shutil.copytree(whole("bert"), copy)
  hostile(copy, "evil")
  output = folder / "vectors.npy"
  ended = subprocess.run(
    [
      sys.executable,
      "-m",
      "mlir_jax.encode",
      f"--model={copy}",
      "--role=query",
      f"--output={output}",
      "-",
    ],
    input="yes\nyes\n",
    capture_output=True,
    text=True,
    timeout=100,
  )
  scoreboard.check_ended(ended, ("config.json", "model_type"))
  scoreboard.expect(False, "accepted")


def damages() -> Iterator[Damage]:
  for kind in (code, files, shapes, weights, indexes, module_lists, tokenizers):
    yield from kind()


def cases() -> list[scoreboard.Case]:
  """Returns all cases: each with `load`, some with a training, too."""
  made = []
  for damage in damages():
    right = "It is refused, with file and field."
    if damage.same:
      right = "The vectors are those of the undamaged folder."
    elif not damage.refuse:
      right = f"{right[:-1]}; or its vectors are right."
    for reader, judge in (("load", judge_load), ("train", judge_train)):
      if reader == "load" or damage.trains:
        made.append(
          scoreboard.Case(
            f"{reader}/{damage.name}",
            right,
            functools.partial(judge, damage),
            damage.names,
          )
        )
  made += folders()
  made.append(
    scoreboard.Case(
      "load/folder: in the hub's cache",
      "The vectors are those of the folder.",
      in_the_hub_cache,
    )
  )
  made.append(
    scoreboard.Case(
      "encode/code: yes on the standard input",
      "It is refused by its model type, and nothing runs.",
      in_a_process,
      seconds=120,
    )
  )
  return made


if __name__ == "__main__":
  scoreboard.main(cases())
