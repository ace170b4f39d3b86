"""Lists the formats of question-passage pairs, and chooses one for a record."""

import inspect
import json
import types
from collections.abc import Mapping
from typing import Any

from mlir_jax import extensions
from mlir_jax.data.sources.pairs import (
  base,
  columns,
  dpr,
  flag_embedding,
  tevatron,
  tevatron_by_id,
)

Formats = Mapping[str, base.PairFormat]

BUILT_IN: Formats = types.MappingProxyType(
  {
    each.name: each
    for each in (
      dpr.Dpr(),
      tevatron.Tevatron(),
      tevatron_by_id.TevatronById(),
      flag_embedding.FlagEmbedding(),
      columns.Columns(),
    )
  }
)


def find(targets: Mapping[str, str], prefix: str = "data.") -> Formats:
  """Returns our formats and those of the user, by name.

  Args:
    targets: The config's data.formats: name to "MODULE:CLASS".
    prefix: What precedes the settings' names in messages; see
      `collections.load`.

  Raises:
    ValueError: if a target cannot be imported or is not a format, or if its
      name is taken; it names the field.
  """
  formats = dict(BUILT_IN)
  for name, target in targets.items():
    field = f"{prefix}formats{'=' if prefix == '--' else '.'}{name}"
    if name in BUILT_IN:
      raise ValueError(f"{field}: give another name; {name} is a format.")
    found = extensions.load(target, field)
    if not (inspect.isclass(found) and issubclass(found, base.PairFormat)):
      raise ValueError(
        f"{field} is {target!r}, which is not a subclass of"
        " mlir_jax.data.sources.pairs.base.PairFormat."
      )
    try:
      formats[name] = found()
    except TypeError as error:
      raise ValueError(f"{field} is {target!r}: {error}.") from error
  return formats


def describe(formats: Formats) -> str:
  """Shows an example record of each format, in lines."""
  width = max(map(len, formats))
  return "\n".join(
    f"  {name:{width}}  {json.dumps(each.example, ensure_ascii=False)}"
    for name, each in formats.items()
  )


def recognize(record: Any, formats: Formats) -> list[str]:
  """Returns the names of the formats that a record may have."""
  if not isinstance(record, Mapping):
    return []
  return [name for name, each in formats.items() if each.recognizes(record)]
