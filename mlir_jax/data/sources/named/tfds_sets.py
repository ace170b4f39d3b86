"""Reads the examples of TensorFlow Datasets, by name or from a folder."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from mlir_jax.data.sources.named import setting as setting_lib


def _plain(value: Any, feature: Any) -> Any:
  """Returns a value as JSON would have it: texts, numbers, lists, objects.

  Args:
    value: As the library gives it. A sequence of objects is an object of
      sequences there.
    feature: What the library says of it; None if it says nothing.
  """
  if isinstance(value, bytes):
    # A reader finds bytes that are not UTF-8, and names the field.
    return value.decode("utf-8", "surrogateescape")
  inner = getattr(feature, "feature", None)  # Of a sequence.
  if isinstance(value, dict):
    fields = inner if inner is not None else feature
    found = {
      name: _plain(each, None if fields is None else fields[name])
      for name, each in value.items()
    }
    if inner is None:
      return found
    return [
      dict(zip(found, row, strict=True))
      for row in zip(*found.values(), strict=True)
    ]
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, list):
    return [_plain(each, inner) for each in value]
  if isinstance(value, float) and value == (stored := np.float32(value)):
    # The library stores 32 bits. The fewest digits that mean this number are
    # those of the source: 1.04, and not 1.0399999618.
    return float(str(stored))
  return value


def _examples(setting: setting_lib.Setting) -> tuple[Any, Any]:
  """Returns the library's examples of a split, and what it says of them."""
  import tensorflow_datasets  # Here, because it takes a second.

  tfds: Any = tensorflow_datasets  # Its decorators hide its signatures.

  import mlir_jax.tfds  # noqa: F401 It registers.

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
    return builder.as_data_source(setting.split), builder.info.features
  examples = builder.as_dataset(split=setting.split, shuffle_files=False)
  return tfds.as_numpy(examples), builder.info.features


def read(setting: setting_lib.Setting) -> Iterator[dict[str, Any]]:
  """Yields the examples of a split: feature to value, as JSON would have it.

  Files of array records need no tensorflow; others do.

  Raises:
    ValueError: if the library cannot load the data set; it names the field.
  """
  try:
    examples, features = _examples(setting)
  except Exception as error:  # The library has many kinds.
    raise setting_lib.failure(setting, error) from error
  for example in examples:
    yield _plain(example, features)
