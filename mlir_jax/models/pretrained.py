"""Loads a pretrained model: finds its folder, its shape and its weights."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import huggingface_hub
from flax import traverse_util

from mlir_jax.models import (
  architecture,
  encoder,
  families,
  hf_config,
  layout,
  layout_files,
  sealed,
  weights,
)
from mlir_jax.storage import copies, locations

# The files that are fetched: weights, settings and tokenizer; no pickles.
_FETCHED = (
  *(layout_files.WEIGHTS, "model-*-of-*.safetensors"),
  # Modules of sentence-transformers, and the towers of an export.
  *(f"{folder}/*model*.safetensors" for folder in ("query", "passage")),
  "[0-9]_*/model*.safetensors",
  # A * matches folders, too.
  *("*.json", "*vocab.txt", "*merges.txt", "*.model"),
)


def fetch(name_or_path: str, revision: str = "") -> pathlib.Path:
  """Returns the folder of a pretrained model, downloaded if necessary.

  Args:
    name_or_path: A local folder, a folder on object storage (gs://), or a name
      on the Hugging Face hub.
    revision: Branch, tag or commit of a hub name; "" for its main branch.

  Returns:
    The folder on a disk. A downloaded folder has safetensors weights, settings
    and tokenizer, and nothing else.

  Raises:
    WeightsError: if there is no such folder, and the hub has no such model.
  """
  is_url = locations.is_url(name_or_path)
  if is_url or pathlib.Path(name_or_path).is_dir():
    if revision:
      raise weights.WeightsError(
        f"The revision is {revision!r}, but {name_or_path} is a folder, not a"
        " name on the hub: leave the revision empty."
      )
    if is_url:
      return pathlib.Path(copies.copy_folder(name_or_path, _FETCHED))
    return pathlib.Path(name_or_path)
  if pathlib.Path(name_or_path).is_absolute():
    raise weights.WeightsError(f"There is no folder {name_or_path}.")
  try:
    folder = huggingface_hub.snapshot_download(
      name_or_path,
      revision=revision or None,
      allow_patterns=list(_FETCHED),
    )
  except (OSError, ValueError) as error:
    raise weights.WeightsError(
      f"The model {name_or_path!r} is not a folder on this machine, and it"
      f" cannot be fetched from the hub: {error}"
    ) from error
  return pathlib.Path(folder)


def commit(folder: pathlib.Path) -> str:
  """Returns the commit of a folder from the hub; "" for any other folder."""
  return folder.name if folder.parent.name == "snapshots" else ""


def _read_config(
  folder: pathlib.Path, dtype: str
) -> architecture.EncoderConfig:
  try:
    return hf_config.read(folder / layout_files.CONFIG, dtype)
  except ValueError as error:
    raise weights.WeightsError(str(error)) from error


def load_config(
  folder: pathlib.Path, dtype: str = "float32"
) -> architecture.EncoderConfig:
  """Reads the shape of a pretrained encoder, with its projection.

  Args:
    folder: In the layout of Hugging Face or sentence-transformers.
    dtype: Of activations.

  Raises:
    WeightsError: if the config is not supported.
    LayoutError: if the folder's modules are not supported.
    SealError: if the folder is an export whose settings were changed.
  """
  found = layout.read(folder)
  config = _read_config(found.transformer, dtype)
  if projection := found.projection:
    if projection.in_features != config.hidden_size:
      raise weights.WeightsError(
        f"{projection.weights} projects vectors of {projection.in_features}"
        f" numbers, but the encoder's vectors have {config.hidden_size}."
      )
    config = dataclasses.replace(
      config,
      projection_size=projection.size,
      projection_bias=projection.bias,
      projection_activation=projection.activation,
    )
  if found.ours:
    sealed.check_encoder(found.ours, found.transformer, config)
  return config


def load(
  name_or_path: str,
  revision: str = "",
  dtype: str = "float32",
  place: weights.Place | None = None,
) -> tuple[architecture.EncoderConfig, dict]:
  """Reads a pretrained encoder, tensor by tensor.

  Args:
    name_or_path: A local folder in the layout of Hugging Face or
      sentence-transformers, or a hub name.
    revision: Of a hub name; "" for its main branch.
    dtype: Of activations: "float32" or "bfloat16".
    place: Receives each parameter's path ("embeddings/token") and array as
      soon as it is read, and returns the leaf of the tree. If it puts the array
      on devices, the host's memory holds one tensor at a time.

  Returns:
    Its config, and the parameters of one encoder: float32, NumPy arrays
    without `place`; rows of zeros pad the token table.

  Raises:
    WeightsError: if the model cannot be found, its config is not
      supported, or a tensor is missing, unexpected or of another shape.
    LayoutError: if a module or a setting of the folder is not supported.
    SealError: if the folder is an export that was changed.
  """
  folder = fetch(name_or_path, revision)
  config = load_config(folder, dtype)
  if ours := layout.read(folder).ours:
    sealed.check_weights(ours, folder)
  params = {}
  for part in _encoder_parts(folder, config):
    params |= weights.read(part, place)
  return config, traverse_util.unflatten_dict(params, sep="/")


def load_masked_lm(
  name_or_path: str, revision: str = "", place: weights.Place | None = None
) -> dict | None:
  """Reads a pretrained model's head for masked language modelling.

  Args:
    name_or_path: As in `load`, like the other arguments.
    revision: Of a hub name.
    place: Receives each parameter's path and array.

  Returns:
    The head's parameters; None if the weights have none of its tensors.

  Raises:
    WeightsError: if some of its tensors are missing or of another shape, or
      the head has its own token table.
  """
  part = _head_part(fetch(name_or_path, revision))
  if part is None:
    return None
  return traverse_util.unflatten_dict(weights.read(part, place), sep="/")


def check(folder: pathlib.Path, with_head: bool = False) -> None:
  """Checks that a folder can be loaded, without reading its weights.

  Args:
    folder: From `fetch`.
    with_head: Whether to check the head for masked language modelling, too.

  Raises:
    WeightsError, LayoutError, SealError: as `load` and `load_masked_lm` do.
  """
  _encoder_parts(folder, load_config(folder))
  if with_head:
    _head_part(folder)


def _shapes(tree: Mapping) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each parameter, by its path in the tree."""
  by_path: Any = traverse_util.flatten_dict(tree, sep="/")
  return {path: leaf.shape for path, leaf in by_path.items()}


def _encoder_parts(
  folder: pathlib.Path, config: architecture.EncoderConfig
) -> list[weights.Part]:
  """Finds the tensors of an encoder and its projection; or WeightsError."""
  found = layout.read(folder)
  names = families.NAMES[config.family]
  tensors = weights.find(weights.files_of(found.transformer), names)
  # Each layer has some tensors. Without this, 10,000 layers take minutes.
  if config.num_layers > len(tensors):
    raise weights.WeightsError(
      f"{found.transformer / layout_files.CONFIG} says {config.num_layers:,}"
      f" layers, but the weights next to it hold {len(tensors):,} tensors."
    )
  shapes = _shapes(encoder.abstract_params(config, "tied")["encoder"])
  of_projection = {
    path: shapes.pop(path)
    for path in list(shapes)
    if path.startswith(f"{encoder.PROJECTION}/")
  }
  part = weights.Part(tensors, families.encoder_rules(config), shapes)
  # `load_masked_lm` reads the head.
  ignored = names.dropped + families.head_patterns(config)
  weights.check(part, ignored, config, found.transformer)
  if not of_projection:
    return [part]
  assert found.projection is not None  # `load_config` has read it.
  path = found.projection.weights
  projection = weights.Part(
    weights.find([path], families.PROJECTION),
    families.PROJECTION_RULES,
    of_projection,
  )
  weights.check(projection, (), config, path.parent)
  return [part, projection]


def _head_part(folder: pathlib.Path) -> weights.Part | None:
  """Finds the tensors of a head that shares the token table.

  Returns:
    None if there is no head.

  Raises:
    WeightsError: if a tensor is missing, or the head has its own table.
  """
  folder = layout.read(folder).transformer
  config = _read_config(folder, "float32")
  names = families.NAMES[config.family]
  tensors = weights.find(weights.files_of(folder), names)
  rules = families.head_rules(config)
  # transformers, too, reads either copy of the bias.
  biases = [name for name in names.token_bias if name in tensors]
  if biases:
    tensors[rules["token_bias"].tensor] = tensors[biases[0]]
  if not any(rule.tensor in tensors for rule in rules.values()):
    return None
  shapes = _shapes(
    encoder.abstract_params(config, "tied", True)[encoder.MASKED_LM]
  )
  part = weights.Part(tensors, rules, shapes)
  weights.check(part, (".*",), config, folder)
  table = families.encoder_rules(config)["embeddings/token"].tensor
  equal = [(name, table) for name in names.table_copies if name in tensors]
  hf = layout.read_json(folder / layout_files.CONFIG)
  if hf.get("tie_word_embeddings") is False and not equal:
    raise weights.WeightsError(
      f"{folder / layout_files.CONFIG}: tie_word_embeddings is False, and the"
      f" weights have no {names.table_copies[0]}."
    )
  equal += [(name, biases[0]) for name in biases[1:]]
  for copy, original in equal:
    if not weights.are_equal(tensors[copy], tensors[original]):
      raise weights.WeightsError(
        f"{copy} in {folder} is not equal to {original}; only a head that"
        " shares the encoder's token table and has one bias can be read."
      )
  return part
