"""Pretrained weights: safetensors to parameters and back, tensor by tensor."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import huggingface_hub
import numpy as np
import safetensors
from flax import traverse_util

from mlir_jax import bars
from mlir_jax.models import architecture, encoder, families, layout
from mlir_jax.storage import copies as copies_lib
from mlir_jax.storage import locations, reading

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"

# What is fetched from the hub: weights, settings and tokenizer; no pickles.
_HUB_FILES = (
  *(_WEIGHTS, "model-*-of-*.safetensors"),
  # Modules of sentence-transformers, and the towers of an export.
  *(f"{folder}/*model*.safetensors" for folder in ("query", "passage")),
  "[0-9]_*/model*.safetensors",
  # A * matches folders, too.
  *("*.json", "*vocab.txt", "*merges.txt", "*.model"),
)

# Stored types whose values float32 holds exactly.
_STORED_DTYPES = ("F32", "F16", "BF16")

# Rows of a table that are read at once.
_ROWS = 16_384

# (path of a parameter, its array) -> what stands in the tree.
Place = Callable[[str, np.ndarray], Any]


class _Tensor(NamedTuple):
  """A tensor in a file.

  Attributes:
    path: The file.
    stored: Its name there.
    shape: Its shape.
    dtype: What it is stored as, in the words of safetensors.
  """

  path: pathlib.Path
  stored: str
  shape: list[int]
  dtype: str


class WeightsError(ValueError):
  """Weights that cannot be used; the message names each tensor."""


def _shapes(tree: Mapping) -> dict[str, tuple[int, ...]]:
  """The shape of each parameter, by its path in the tree."""
  by_path: Any = traverse_util.flatten_dict(tree, sep="/")
  return {path: leaf.shape for path, leaf in by_path.items()}


def _tensor_shape(
  shape: tuple[int, ...], change: str, config: architecture.EncoderConfig
) -> list[int]:
  """The shape in the file of a parameter of a shape."""
  if change == "transposed":
    return list(shape[::-1])
  return [config.vocab_size, *shape[1:]] if change == "padded" else list(shape)


def _to_tensor(
  array: np.ndarray, change: str, config: architecture.EncoderConfig
) -> np.ndarray:
  if change == "transposed":
    return np.ascontiguousarray(array.T)
  return array[: config.vocab_size] if change == "padded" else array


def _read(tensor: _Tensor, change: str, shape: tuple[int, ...]) -> np.ndarray:
  """A tensor as a float32 parameter of a shape.

  The file is opened for it alone: what was read of a mapped file counts as
  this process's memory until it is closed.
  """
  with safetensors.safe_open(tensor.path, "numpy") as file:
    if change == "transposed":
      array = file.get_tensor(tensor.stored).astype(np.float32, copy=False)
      _check_finite(array, tensor)
      return np.ascontiguousarray(array.T)
    rows = file.get_slice(tensor.stored)
    array = np.zeros(shape, np.float32)
    for start in range(0, tensor.shape[0], _ROWS):
      stop = min(start + _ROWS, tensor.shape[0])
      array[start:stop] = rows[start:stop]
      _check_finite(array[start:stop], tensor)
    return array


def _check_finite(array: np.ndarray, tensor: _Tensor) -> None:
  if not np.isfinite(array).all():
    raise WeightsError(
      f"{tensor.path}: {tensor.stored} holds numbers that are not finite (NaN"
      " or infinity): the file is damaged, or the model's training failed."
      f" {reading.RESTORE}"
    )


def fetch(name_or_path: str, revision: str = "") -> pathlib.Path:
  """The folder of a pretrained model, downloaded if it is a hub name.

  Args:
    name_or_path: A local folder, one on object storage (gs://), or a name on
      the Hugging Face hub.
    revision: Branch, tag or commit of a hub name; "" for its main branch.

  Returns:
    The folder on a disk; of a URL or a hub name its weights as safetensors,
    settings and tokenizer, and nothing else.

  Raises:
    WeightsError: if there is no such folder and the hub does not give it.
  """
  is_url = locations.is_url(name_or_path)
  if is_url or pathlib.Path(name_or_path).is_dir():
    if revision:
      raise WeightsError(
        f"The revision is {revision!r}, but {name_or_path} is a folder, not a"
        " name on the hub: leave it empty."
      )
    if is_url:
      return pathlib.Path(copies_lib.copy_folder(name_or_path, _HUB_FILES))
    return pathlib.Path(name_or_path)
  if pathlib.Path(name_or_path).is_absolute():
    raise WeightsError(f"There is no folder {name_or_path}.")
  try:
    folder = huggingface_hub.snapshot_download(
      name_or_path,
      revision=revision or None,
      allow_patterns=list(_HUB_FILES),
    )
  except (OSError, ValueError) as error:
    raise WeightsError(
      f"The model {name_or_path!r} is not a folder here, and the hub does not"
      f" give it: {error}"
    ) from error
  return pathlib.Path(folder)


def commit(folder: pathlib.Path) -> str:
  """The commit of a folder from the hub; "" of any other."""
  return folder.name if folder.parent.name == "snapshots" else ""


def _read_config(
  folder: pathlib.Path, dtype: str
) -> architecture.EncoderConfig:
  try:
    return architecture.read(folder / _CONFIG, dtype)
  except ValueError as error:
    raise WeightsError(str(error)) from error


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  if (folder / _WEIGHTS).exists():
    return [folder / _WEIGHTS]
  if not (folder / _INDEX).exists():
    raise WeightsError(
      f"{folder} has neither {_WEIGHTS} nor {_INDEX}. Pickles"
      " (pytorch_model.bin) are never loaded, since loading one can run any"
      " code. Where you trust it, convert it once with PyTorch:"
      " transformers.AutoModel.from_pretrained(FOLDER)"
      ".save_pretrained(NEW_FOLDER)."
    )
  index = layout.read_json(folder / _INDEX).get("weight_map")
  if not isinstance(index, dict) or not index:
    raise WeightsError(f"{folder / _INDEX} has no weight_map.")
  try:
    paths = {
      reading.inside(folder, name, folder / _INDEX) for name in index.values()
    }
  except reading.UnreadableError as error:
    raise WeightsError(str(error)) from error
  if absent := sorted(path.name for path in paths if not path.is_file()):
    raise WeightsError(
      f"{folder / _INDEX} names {absent}, which are not files there."
    )
  return sorted(paths)


def _find(
  paths: list[pathlib.Path], names: families.Names
) -> dict[str, _Tensor]:
  """The tensors of some files, by their names without prefix."""
  tensors = {}
  for path in paths:
    try:
      reading.check_file(path)
      with safetensors.safe_open(path, "numpy") as file:
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        described = {
          name: (found[name].get_shape(), found[name].get_dtype())
          for name in found
        }
      with path.open("rb") as file:  # Of two equal names it sees the last.
        size = int.from_bytes(file.read(8), "little")
        reading.parse_json(file.read(size), f"The header of {path}")
    except reading.UnreadableError as error:
      raise WeightsError(str(error)) from error
    except (safetensors.SafetensorError, OSError) as error:
      raise WeightsError(
        f"{path} is not a safetensors file, or is cut: {error}."
        f" {reading.RESTORE}"
      ) from error
    for written, (shape, dtype) in described.items():
      name = written.removeprefix(names.prefix)
      for old, new in names.renamed:
        name = re.sub(old, new, name)
      if name in tensors:
        raise WeightsError(f"{path} holds {name} for a second time.")
      tensors[name] = _Tensor(path, written, shape, dtype)
  return tensors


def _check(
  part: "_Part",
  ignored: Sequence[str],
  config: architecture.EncoderConfig,
  where: pathlib.Path,
) -> None:
  """Raises WeightsError unless there is one tensor for each parameter."""
  tensors, rules, shapes = part
  problems = []
  for path, shape in shapes.items():
    tensor, change = rules[path]
    expected = _tensor_shape(shape, change, config)
    if tensor not in tensors:
      problems.append(f"{tensor} {expected} is missing")
      continue
    found = tensors[tensor]
    if found.shape != expected:
      problems.append(f"{tensor} has the shape {found.shape}, not {expected}")
    if found.dtype not in _STORED_DTYPES:
      problems.append(
        f"{tensor} is stored as {found.dtype}; of {_STORED_DTYPES} can be read"
      )
  known = {rules[path].tensor for path in shapes}
  for name, found in tensors.items():
    if name not in known and not any(
      re.fullmatch(pattern, name) for pattern in ignored
    ):
      problems.append(f"{name} {found.shape} is not a tensor of this model")
  if problems:
    raise WeightsError(
      f"The weights in {where} do not fit its config.json:\n  "
      + "\n  ".join(problems)
    )


def load_config(
  folder: pathlib.Path, dtype: str = "float32"
) -> architecture.EncoderConfig:
  """Reads the shape of a pretrained encoder, with its projection.

  Args:
    folder: In the layout of Hugging Face or sentence-transformers.
    dtype: Of activations.

  Raises:
    WeightsError: if the config is not supported.
    LayoutError: if the folder's modules are not.
  """
  found = layout.read(folder)
  config = _read_config(found.transformer, dtype)
  if not (projection := found.projection):
    layout.check_unchanged(found, config)
    return config
  if projection.in_features != config.hidden_size:
    raise WeightsError(
      f"{projection.weights} projects vectors of {projection.in_features}"
      f" numbers, but the encoder's have {config.hidden_size}."
    )
  config = dataclasses.replace(
    config,
    projection_size=projection.size,
    projection_bias=projection.bias,
    projection_activation=projection.activation,
  )
  layout.check_unchanged(found, config)
  return config


def load(
  name_or_path: str,
  revision: str = "",
  dtype: str = "float32",
  place: Place | None = None,
) -> tuple[architecture.EncoderConfig, dict]:
  """Reads a pretrained encoder, tensor by tensor.

  Args:
    name_or_path: A local folder in the layout of Hugging Face or
      sentence-transformers, or a hub name.
    revision: Of a hub name; "" for its main branch.
    dtype: Of activations: "float32" or "bfloat16".
    place: Called with each parameter's path ("embeddings/token") and array as
      soon as it is read; what it returns stands in the tree. Putting each on
      its devices, it keeps one tensor at a time in the host's memory.

  Returns:
    Its config, and the parameters of one encoder: float32, NumPy arrays
    unless placed, with the token table padded by rows of zeros.

  Raises:
    WeightsError: if the model cannot be found, its config is not
      supported, or a tensor is missing, unexpected or misshapen.
    LayoutError: if what the folder says of pooling and the like is not
      supported.
  """
  folder = fetch(name_or_path, revision)
  config = load_config(folder, dtype)
  layout.check_weights(layout.read(folder))
  params = {}
  for part in _encoder_parts(folder, config):
    params |= _read_part(part, place)
  return config, traverse_util.unflatten_dict(params, sep="/")


def load_masked_lm(
  name_or_path: str, revision: str = "", place: Place | None = None
) -> dict | None:
  """Reads a pretrained model's head for masked language modelling.

  Args:
    name_or_path: As in `load`, like the others.
    revision: Of a hub name.
    place: Called with each parameter's path and array.

  Returns:
    The head's parameters; None if the weights have none of its tensors.

  Raises:
    WeightsError: if some of its tensors are missing or misshapen, or it has
      a token table of its own.
  """
  part = _head_part(fetch(name_or_path, revision))
  if part is None:
    return None
  return traverse_util.unflatten_dict(_read_part(part, place), sep="/")


def check(folder: pathlib.Path, with_head: bool = False) -> None:
  """Checks that a folder can be loaded, without reading its weights.

  Args:
    folder: From `fetch`.
    with_head: Whether the head for masked language modelling shall be, too.

  Raises:
    WeightsError, LayoutError: as `load` and `load_masked_lm` raise them.
  """
  _encoder_parts(folder, load_config(folder))
  if with_head:
    _head_part(folder)


class _Part(NamedTuple):
  """Tensors that have been found to fit some parameters.

  Attributes:
    tensors: By name.
    rules: The parameters' rules, by path.
    shapes: The parameters' shapes, by path.
  """

  tensors: Mapping[str, _Tensor]
  rules: Mapping[str, families.Rule]
  shapes: Mapping[str, tuple[int, ...]]


def _encoder_parts(
  folder: pathlib.Path, config: architecture.EncoderConfig
) -> list[_Part]:
  """Finds an encoder and its projection, or raises WeightsError."""
  found = layout.read(folder)
  names = families.NAMES[config.family]
  tensors = _find(_weight_files(found.transformer), names)
  if config.num_layers > len(tensors):  # Each has some; 10,000 take minutes.
    raise WeightsError(
      f"{found.transformer / _CONFIG} says {config.num_layers:,} layers, but"
      f" the weights beside it hold {len(tensors):,} tensors."
    )
  shapes = _shapes(encoder.abstract_params(config, "tied")["encoder"])
  of_projection = {
    path: shapes.pop(path)
    for path in list(shapes)
    if path.startswith(f"{encoder.PROJECTION}/")
  }
  part = _Part(tensors, families.encoder_rules(config), shapes)
  # What belongs to a head is read with it alone.
  ignored = names.dropped + families.head_patterns(config)
  _check(part, ignored, config, found.transformer)
  if not of_projection:
    return [part]
  assert found.projection is not None  # The config has its size from there.
  path = found.projection.weights
  projection = _Part(
    _find([path], families.PROJECTION),
    families.PROJECTION_RULES,
    of_projection,
  )
  _check(projection, (), config, path.parent)
  return [part, projection]


def _head_part(folder: pathlib.Path) -> _Part | None:
  """Finds a head that shares the token table, or raises WeightsError."""
  folder = layout.read(folder).transformer
  config = _read_config(folder, "float32")
  names = families.NAMES[config.family]
  tensors = _find(_weight_files(folder), names)
  rules = families.head_rules(config)
  # Either copy of the bias will do, as it does for transformers.
  biases = [name for name in names.token_bias if name in tensors]
  if biases:
    tensors[rules["token_bias"].tensor] = tensors[biases[0]]
  if not any(rule.tensor in tensors for rule in rules.values()):
    return None
  shapes = _shapes(
    encoder.abstract_params(config, "tied", True)[encoder.MASKED_LM]
  )
  part = _Part(tensors, rules, shapes)
  _check(part, (".*",), config, folder)
  table = families.encoder_rules(config)["embeddings/token"].tensor
  copies = [(name, table) for name in names.table_copies if name in tensors]
  hf = layout.read_json(folder / _CONFIG)
  if hf.get("tie_word_embeddings") is False and not copies:
    raise WeightsError(
      f"{folder / _CONFIG}: tie_word_embeddings is False, and the weights have"
      f" no {names.table_copies[0]}."
    )
  for copy, original in [*copies, *((name, biases[0]) for name in biases[1:])]:
    if not _equal(tensors[copy], tensors[original]):
      raise WeightsError(
        f"{copy} in {folder} is not {original}; only a head that shares the"
        " encoder's token table and has one bias can be read."
      )
  return part


def _equal(one: _Tensor, other: _Tensor) -> bool:
  """Whether two tensors hold the same."""
  if one.shape != other.shape:
    return False
  with (
    safetensors.safe_open(one.path, "numpy") as file,
    safetensors.safe_open(other.path, "numpy") as other_file,
  ):
    rows, other_rows = (
      file.get_slice(one.stored),
      other_file.get_slice(other.stored),
    )
    spans = [
      slice(start, min(start + _ROWS, one.shape[0]))
      for start in range(0, one.shape[0], _ROWS)
    ]
    return all(np.array_equal(rows[s], other_rows[s]) for s in spans)


def _read_part(part: _Part, place: Place | None) -> dict[str, Any]:
  """Reads tensors one by one, as parameters by path."""
  params = {}
  for path, shape in bars.bar(
    part.shapes.items(), "Reading weights", unit="tensor", delay=2
  ):
    tensor, change = part.rules[path]
    array = _read(part.tensors[tensor], change, shape)
    params[path] = place(path, array) if place else array
  return params


def to_hf(
  params: Mapping,
  config: architecture.EncoderConfig,
  head: Mapping | None = None,
) -> dict[str, np.ndarray]:
  """The tensors of a Hugging Face model: what `load` reads back.

  Args:
    params: One encoder's parameters; a projection is left out, as it is no
      part of such a model: see `projection_to_hf`.
    config: Its config.
    head: Of masked language modelling, if it goes along.

  Returns:
    Tensors by name, without the padding of the token table; without prefix,
    or, with a head, named as in the family's model with a head.
  """
  tensors = _to_tensors(params, families.encoder_rules(config), config)
  if head is None:
    return tensors
  prefix = families.NAMES[config.family].prefix
  tensors = {prefix + name: tensor for name, tensor in tensors.items()}
  return tensors | _to_tensors(head, families.head_rules(config), config)


def projection_to_hf(
  projection: Mapping, config: architecture.EncoderConfig
) -> dict[str, np.ndarray]:
  """The tensors of sentence-transformers' Dense module."""
  return _to_tensors(
    projection, families.PROJECTION_RULES, config, "projection/"
  )


def _to_tensors(params, rules, config, prefix="") -> dict[str, np.ndarray]:
  arrays = traverse_util.flatten_dict(params, sep="/")
  return {
    rule.tensor: _to_tensor(
      np.asarray(arrays[path.removeprefix(prefix)]), rule.change, config
    )
    for path, rule in rules.items()
    if path.removeprefix(prefix) in arrays
  }
