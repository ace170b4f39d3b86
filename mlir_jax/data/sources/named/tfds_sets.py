"""Reads the examples of TensorFlow Datasets, by name or from a folder."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from mlir_jax.data.sources.named import setting as setting_lib


def _plain(value: Any) -> Any:
  """Returns a feature as JSON would have it: texts, numbers, lists, objects."""
  if isinstance(value, bytes):
    # A reader finds bytes that are not UTF-8, and names the field.
    return value.decode("utf-8", "surrogateescape")
  if isinstance(value, dict):
    return {name: _plain(inner) for name, inner in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(inner) for inner in value]
  if isinstance(value, np.ndarray):
    return _plain(value.tolist())
  return value.item() if isinstance(value, np.generic) else value


def _examples(setting: setting_lib.Setting) -> Any:
  """Returns the library's examples of a split."""
  import tensorflow_datasets  # Here, because it takes a second.

  tfds: Any = tensorflow_datasets  # Its decorators hide its signatures.

  from mlir_jax.data.collections import cldr_tfds  # noqa: F401 It registers.

  folder = os.path.expanduser(setting.name)
  if os.path.isdir(folder):
    builder = tfds.builder_from_directory(folder)
  else:
    builder = tfds.builder(setting.name)
    if not builder.is_prepared():
      # It is read without tensorflow.
      builder = tfds.builder(setting.name, file_format="array_record")
      builder.download_and_prepare()
  file_format = builder.info.file_format
  if file_format and file_format.value == "array_record":
    return builder.as_data_source(setting.split)
  return tfds.as_numpy(
    builder.as_dataset(split=setting.split, shuffle_files=False)
  )


def read(setting: setting_lib.Setting) -> Iterator[dict[str, Any]]:
  """Yields the examples of a split: feature to value, as JSON would have it.

  Files of array records need no tensorflow; others do.

  Raises:
    ValueError: if the library cannot load the data set; it names the field.
  """
  try:
    examples = _examples(setting)
  except Exception as error:  # The library has many kinds.
    raise setting_lib.failure(setting, error) from error
  for example in examples:
    yield _plain(example)
