"""Reads the examples of Hugging Face data sets, by name or from a folder."""

import os
from collections.abc import Iterator
from typing import Any

from mlir_jax.data.sources.named import setting as setting_lib

_ROWS = 1000  # Rows that are decoded at a time.
# In a folder that `save_to_disk` wrote.
_SAVED = ("dataset_dict.json", "state.json")


def _load(setting: setting_lib.Setting) -> Any:
  import datasets  # Here, because it is an extra.

  folder = os.path.expanduser(setting.name)
  if any(os.path.exists(os.path.join(folder, name)) for name in _SAVED):
    found = datasets.load_from_disk(folder)
    if isinstance(found, datasets.DatasetDict):
      return found[setting.split]
    return found
  return datasets.load_dataset(
    folder if os.path.isdir(folder) else setting.name,
    setting.config or None,
    split=setting.split,
    revision=setting.revision or None,
  )


def read(setting: setting_lib.Setting) -> Iterator[dict[str, Any]]:
  """Yields the examples of a split as they are: column to value.

  The library maps its files into memory, so the memory is small.

  Raises:
    ValueError: if the library cannot load the data set; it names the field.
  """
  try:
    dataset = _load(setting)
  except Exception as error:  # The library has many kinds.
    raise setting_lib.failure(setting, error) from error
  for columns in dataset.iter(_ROWS):
    names = list(columns)
    for row in zip(*columns.values(), strict=True):
      yield dict(zip(names, row, strict=True))
