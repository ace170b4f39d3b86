"""Pretrained weights: safetensors to parameters and back, by one table."""

import contextlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import huggingface_hub
import numpy as np
import safetensors
import tqdm
from flax import traverse_util

from mlir_jax.models import encoder

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"

# What is fetched from the hub: weights, settings and tokenizer; no pickles.
_HUB_FILES = (
  *(_WEIGHTS, "model-*-of-*.safetensors"),
  *("*.json", "vocab.txt", "*.model"),
)

# Stored types whose values float32 holds exactly.
_STORED_DTYPES = ("F32", "F16", "BF16")

# Per kind of module: its tensor, our parameter, what lies between them.
_KINDS = {
  "tokens": (("weight", "", "padded"),),
  "table": (("weight", "", "same"),),
  "norm": (("weight", "/scale", "same"), ("bias", "/bias", "same")),
  "dense": (("weight", "/kernel", "transposed"), ("bias", "/bias", "same")),
}


class _Family(NamedTuple):
  """How the files of a family name what they hold.

  Attributes:
    prefix: Stands before every name in some files.
    renamed: Regular expressions of old names, and what replaces them.
    dropped: Regular expressions of tensors that an encoder has no use for.
    layer: Stands before the names of a layer, whose number is {}.
    modules: A module in the file, ours, and its kind.
    layer_modules: The same in each layer.
  """

  prefix: str
  renamed: tuple[tuple[str, str], ...]
  dropped: tuple[str, ...]
  layer: str
  modules: tuple[tuple[str, str, str], ...]
  layer_modules: tuple[tuple[str, str, str], ...]


_FAMILIES = {
  "bert": _Family(
    prefix="bert.",
    # The names of TensorFlow's layer norms, in BERT's own files.
    renamed=((r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
    dropped=(r"pooler\..+", r"cls\..+", r"embeddings\.position_ids"),
    layer="encoder.layer.{}.",
    modules=(
      ("embeddings.word_embeddings", "embeddings/token", "tokens"),
      ("embeddings.position_embeddings", "embeddings/position", "table"),
      ("embeddings.token_type_embeddings", "embeddings/type", "table"),
      ("embeddings.LayerNorm", "embeddings/norm", "norm"),
    ),
    layer_modules=(
      ("attention.self.query", "attention/query", "dense"),
      ("attention.self.key", "attention/key", "dense"),
      ("attention.self.value", "attention/value", "dense"),
      ("attention.output.dense", "attention/output", "dense"),
      ("attention.output.LayerNorm", "attention_norm", "norm"),
      ("intermediate.dense", "intermediate", "dense"),
      ("output.dense", "output", "dense"),
      ("output.LayerNorm", "output_norm", "norm"),
    ),
  ),
}


class _Rule(NamedTuple):
  """Where a parameter stands in a file.

  Attributes:
    tensor: Its name there, without prefix.
    change: "same", "transposed", or "padded": our rows go beyond the
      vocabulary, with zeros.
  """

  tensor: str
  change: str


class WeightsError(ValueError):
  """Weights that cannot be used; the message names each tensor."""


def _rules(config: encoder.EncoderConfig) -> dict[str, _Rule]:
  """The rule of each parameter, by its path in the encoder's tree."""
  family = _FAMILIES[config.family]
  modules = list(family.modules)
  for i in range(config.num_layers):
    modules += [
      (family.layer.format(i) + theirs, f"layer_{i}/{ours}", kind)
      for theirs, ours, kind in family.layer_modules
    ]
  return {
    ours + parameter: _Rule(f"{theirs}.{tensor}", change)
    for theirs, ours, kind in modules
    for tensor, parameter, change in _KINDS[kind]
  }


def _shapes(config: encoder.EncoderConfig) -> dict[str, tuple[int, ...]]:
  """The shape of each parameter, by its path in the encoder's tree."""
  params = encoder.abstract_params(config, "tied")["encoder"]
  return {
    path: leaf.shape
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items()
  }


def _to_tensor(
  array: np.ndarray, change: str, config: encoder.EncoderConfig
) -> np.ndarray:
  if change == "transposed":
    return array.T
  return array[: config.vocab_size] if change == "padded" else array


def _to_parameter(
  array: np.ndarray, change: str, config: encoder.EncoderConfig
) -> np.ndarray:
  array = array.astype(np.float32, copy=False)
  if change == "transposed":
    return np.ascontiguousarray(array.T)
  if change == "padded":
    padded = np.zeros((config.padded_vocab_size, array.shape[1]), np.float32)
    padded[: config.vocab_size] = array
    return padded
  return array


def fetch(name_or_path: str, revision: str = "") -> pathlib.Path:
  """The folder of a pretrained model, downloaded if it is a hub name.

  Args:
    name_or_path: A local folder, or a name on the Hugging Face hub.
    revision: Branch, tag or commit of a hub name; "" for its main branch.

  Returns:
    The folder; of a hub name its weights as safetensors, settings and
    tokenizer, and nothing else.

  Raises:
    WeightsError: if there is no such folder and the hub does not give it.
  """
  if pathlib.Path(name_or_path).is_dir():
    if revision:
      raise WeightsError(
        f"model.revision is {revision!r}, but {name_or_path} is a folder"
        " here: leave it empty."
      )
    return pathlib.Path(name_or_path)
  try:
    folder = huggingface_hub.snapshot_download(
      name_or_path,
      revision=revision or None,
      allow_patterns=list(_HUB_FILES),
    )
  except (OSError, ValueError) as error:
    raise WeightsError(
      f"model.pretrained={name_or_path!r} is no folder here, and the hub"
      f" does not give it: {error}"
    ) from error
  return pathlib.Path(folder)


def _read_config(folder: pathlib.Path, dtype: str) -> encoder.EncoderConfig:
  path = folder / "config.json"
  if not path.is_file():
    raise WeightsError(f"{folder} has no config.json.")
  try:
    return encoder.EncoderConfig.from_hf(json.loads(path.read_text()), dtype)
  except ValueError as error:
    raise WeightsError(f"{path}: {error}") from error


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  if (folder / _WEIGHTS).is_file():
    return [folder / _WEIGHTS]
  if not (folder / _INDEX).is_file():
    raise WeightsError(
      f"{folder} has neither {_WEIGHTS} nor {_INDEX}. Pickles"
      " (pytorch_model.bin) are never loaded, since loading one can run any"
      " code. Where you trust it, convert it once with PyTorch:"
      " transformers.AutoModel.from_pretrained(FOLDER)"
      ".save_pretrained(NEW_FOLDER)."
    )
  index = json.loads((folder / _INDEX).read_text())
  paths = [folder / name for name in sorted(set(index["weight_map"].values()))]
  if absent := [path.name for path in paths if not path.is_file()]:
    raise WeightsError(f"{folder / _INDEX} names {absent}, which are absent.")
  return paths


@contextlib.contextmanager
def _open(paths: list[pathlib.Path], family: _Family) -> Iterator[dict]:
  """Maps the tensors' names, without prefix, to (open file, name in it)."""
  with contextlib.ExitStack() as stack:
    tensors = {}
    for path in paths:
      try:
        file = stack.enter_context(safetensors.safe_open(path, "numpy"))
      except safetensors.SafetensorError as error:
        raise WeightsError(f"{path} is not a safetensors file: {error}") from (
          error
        )
      for stored in file.keys():  # noqa: SIM118, not a mapping.
        name = stored.removeprefix(family.prefix)
        for old, new in family.renamed:
          name = re.sub(old, new, name)
        if name in tensors:
          raise WeightsError(f"{path} holds {name} for a second time.")
        tensors[name] = file, stored
    yield tensors


def _check(tensors: Mapping, config: encoder.EncoderConfig, where: str):
  """Raises WeightsError unless there is one tensor for each parameter."""
  family = _FAMILIES[config.family]
  problems = []
  rules = _rules(config)
  for path, shape in _shapes(config).items():
    tensor, change = rules[path]
    # An array of this shape that takes no memory.
    parameter = np.broadcast_to(np.float32(0), shape)
    expected = list(_to_tensor(parameter, change, config).shape)
    if tensor not in tensors:
      problems.append(f"{tensor} {expected} is missing")
      continue
    file, stored = tensors[tensor]
    found = file.get_slice(stored)
    if found.get_shape() != expected:
      problems.append(
        f"{tensor} has the shape {found.get_shape()}, not {expected}"
      )
    if found.get_dtype() not in _STORED_DTYPES:
      problems.append(
        f"{tensor} is stored as {found.get_dtype()}; of {_STORED_DTYPES}"
        " can be read"
      )
  known = {rule.tensor for rule in rules.values()}
  for name, (file, stored) in tensors.items():
    if name not in known and not any(
      re.fullmatch(pattern, name) for pattern in family.dropped
    ):
      shape = file.get_slice(stored).get_shape()
      problems.append(f"{name} {shape} is not a tensor of this model")
  if problems:
    raise WeightsError(
      f"The weights in {where} do not fit its config.json:\n  "
      + "\n  ".join(problems)
    )


def load(
  name_or_path: str, revision: str = "", dtype: str = "float32"
) -> tuple[encoder.EncoderConfig, dict]:
  """Reads a pretrained encoder, tensor by tensor.

  Args:
    name_or_path: A local folder in the Hugging Face layout, or a hub name.
    revision: Of a hub name; "" for its main branch.
    dtype: Of activations: "float32" or "bfloat16".

  Returns:
    Its config, and the parameters of one encoder: float32 NumPy arrays, with
    the token table padded by rows of zeros.

  Raises:
    WeightsError: if the model cannot be found, its config cannot be
      honoured, or a tensor is missing, unexpected or misshapen.
  """
  folder = fetch(name_or_path, revision)
  config = _read_config(folder, dtype)
  params = {}
  with _open(_weight_files(folder), _FAMILIES[config.family]) as tensors:
    _check(tensors, config, str(folder))
    for path, (tensor, change) in tqdm.tqdm(
      _rules(config).items(), "Reading weights", unit="tensor", delay=2
    ):
      file, stored = tensors[tensor]
      params[path] = _to_parameter(file.get_tensor(stored), change, config)
  return config, traverse_util.unflatten_dict(params, sep="/")


def to_hf(
  params: Mapping, config: encoder.EncoderConfig
) -> dict[str, np.ndarray]:
  """The tensors of a Hugging Face model: what `load` reads back.

  Args:
    params: One encoder's parameters.
    config: Its config.

  Returns:
    Tensors by name, without prefix, and without the padding of the token
    table.
  """
  arrays = traverse_util.flatten_dict(params, sep="/")
  return {
    tensor: np.ascontiguousarray(
      _to_tensor(np.asarray(arrays[path]), change, config)
    )
    for path, (tensor, change) in _rules(config).items()
  }
