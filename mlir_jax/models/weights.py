"""The tensors of safetensors files, read as parameters and written back."""

import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import safetensors
from flax import traverse_util

from mlir_jax import bars
from mlir_jax.models import architecture, families, layout_files
from mlir_jax.storage import reading

INDEX = "model.safetensors.index.json"

# The types whose values float32 holds exactly.
_STORED_DTYPES = ("F32", "F16", "BF16")

# Rows of a table that are read at a time.
_ROWS = 16_384

# Receives the path and the array of a parameter; returns the tree's leaf.
Place = Callable[[str, np.ndarray], Any]


class WeightsError(ValueError):
  """Weights that cannot be used; the message names each tensor."""


class Tensor(NamedTuple):
  """A tensor in a file.

  Attributes:
    path: The file.
    stored: Its name there.
    shape: Its shape.
    dtype: Its type in the file, in the words of safetensors.
  """

  path: pathlib.Path
  stored: str
  shape: list[int]
  dtype: str


class Part(NamedTuple):
  """Some parameters, with the tensors that they are read from.

  Attributes:
    tensors: By name.
    rules: The rule of each parameter, by its path in the tree.
    shapes: The shape of each parameter, by its path.
  """

  tensors: Mapping[str, Tensor]
  rules: Mapping[str, families.Rule]
  shapes: Mapping[str, tuple[int, ...]]


def _tensor_shape(
  shape: tuple[int, ...], change: str, config: architecture.EncoderConfig
) -> list[int]:
  """Returns the shape in the file of a parameter of a shape."""
  if change == "transposed":
    return list(shape[::-1])
  return [config.vocab_size, *shape[1:]] if change == "padded" else list(shape)


def _to_tensor(
  array: np.ndarray, change: str, config: architecture.EncoderConfig
) -> np.ndarray:
  if change == "transposed":
    return np.ascontiguousarray(array.T)
  return array[: config.vocab_size] if change == "padded" else array


def _read_tensor(
  tensor: Tensor, change: str, shape: tuple[int, ...]
) -> np.ndarray:
  """Reads a tensor as a float32 parameter of a shape.

  The file is opened for each tensor: all that was read from a mapped file
  counts as memory of this process until the file is closed.
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


def _check_finite(array: np.ndarray, tensor: Tensor) -> None:
  if not np.isfinite(array).all():
    raise WeightsError(
      f"{tensor.path}: {tensor.stored} holds numbers that are not finite (NaN"
      " or infinity): the file is damaged, or the model's training failed."
      f" {reading.RESTORE}"
    )


def files_of(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns a model's files of weights; WeightsError if there are none."""
  if (folder / layout_files.WEIGHTS).exists():
    return [folder / layout_files.WEIGHTS]
  if not (folder / INDEX).exists():
    raise WeightsError(
      f"{folder} has neither {layout_files.WEIGHTS} nor {INDEX}. Pickles"
      " (pytorch_model.bin) are never loaded, since loading one can run any"
      " code. If you trust the model, convert it once with PyTorch:"
      " transformers.AutoModel.from_pretrained(FOLDER)"
      ".save_pretrained(NEW_FOLDER)."
    )
  try:
    index = reading.read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not index:
      raise WeightsError(f"{folder / INDEX} has no weight_map.")
    paths = {
      reading.inside(folder, name, folder / INDEX) for name in index.values()
    }
  except reading.UnreadableError as error:
    raise WeightsError(str(error)) from error
  if absent := sorted(path.name for path in paths if not path.is_file()):
    raise WeightsError(
      f"{folder / INDEX} names {absent}, which are not files in the folder."
    )
  return sorted(paths)


def find(paths: list[pathlib.Path], names: families.Names) -> dict[str, Tensor]:
  """Returns the tensors of some files, by their names without prefix.

  Raises:
    WeightsError: if a file is damaged, or holds a tensor twice.
  """
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
      # safetensors keeps the last of two equal names; this refuses them.
      with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        reading.parse_json(file.read(size), f"The header of {path}")
    except reading.UnreadableError as error:
      raise WeightsError(str(error)) from error
    except (safetensors.SafetensorError, OSError) as error:
      raise WeightsError(
        f"{path} is not a safetensors file, or is not complete: {error}."
        f" {reading.RESTORE}"
      ) from error
    for written, (shape, dtype) in described.items():
      name = written.removeprefix(names.prefix)
      for old, new in names.renamed:
        name = re.sub(old, new, name)
      if name in tensors:
        raise WeightsError(f"{path} holds {name} twice.")
      tensors[name] = Tensor(path, written, shape, dtype)
  return tensors


def check(
  part: Part,
  ignored: Sequence[str],
  config: architecture.EncoderConfig,
  where: pathlib.Path,
) -> None:
  """Checks that there is one tensor for each parameter, and no other.

  Args:
    part: Parameters and tensors.
    ignored: Regular expressions of tensors that are not read.
    config: The encoder's.
    where: The folder, for messages.

  Raises:
    WeightsError: naming each tensor that does not fit.
  """
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
        f"{tensor} is stored as {found.dtype}; only {_STORED_DTYPES} can be"
        " read"
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


def are_equal(one: Tensor, other: Tensor) -> bool:
  """Returns whether two tensors hold the same numbers."""
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


def read(part: Part, place: Place | None) -> dict[str, Any]:
  """Reads the parameters of a part one by one, by path."""
  params = {}
  for path, shape in bars.bar(
    part.shapes.items(), "Reading weights", unit="tensor", delay=2
  ):
    tensor, change = part.rules[path]
    array = _read_tensor(part.tensors[tensor], change, shape)
    params[path] = place(path, array) if place else array
  return params


def to_hf(
  params: Mapping,
  config: architecture.EncoderConfig,
  head: Mapping | None = None,
) -> dict[str, np.ndarray]:
  """Returns the tensors of a Hugging Face model, for `pretrained.load`.

  Args:
    params: One encoder's parameters. A projection is left out, since such a
      model has none: see `projection_to_hf`.
    config: Its config.
    head: The head for masked language modelling, if it is written, too.

  Returns:
    Tensors by name, without the padding of the token table. The names have the
    prefix of the family's model with a head if there is a head, else none.
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
  """Returns the tensors of sentence-transformers' Dense module."""
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
