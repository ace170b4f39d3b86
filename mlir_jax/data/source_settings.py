"""Reads what the config says about sources of records: data.sources.NAME."""

import dataclasses
import math
import shlex
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mlir_jax import contract as contract_lib
from mlir_jax.data import options as options_lib
from mlir_jax.data import records

_PROMPTS = {"query_prompt": "query", "passage_prompt": "passage"}
_KEYS = ("weight", *_PROMPTS, "name")
_LARGEST = 1e6
_EXAMPLE = "weight=2 query_prompt='Represent this question: '"


class SourceSetting(NamedTuple):
  """What the config says about a source.

  Attributes:
    field: The config's field, for messages.
    name: The name of the source.
    weight: Its weight; 0 leaves it out, None if it is not given.
    prompts: Role to what precedes its texts in that role, in place of the
      role's prefix.
  """

  field: str
  name: str
  weight: float | None
  prompts: Mapping[str, str]


def parse(field: str, value: str) -> SourceSetting:
  """Reads a setting such as "weight=2 query_prompt='Represent…: '".

  Args:
    field: The config's field; its last part is the name of the source, unless
      the value has name=.
    value: KEY=VALUE, several with spaces between them. A value with spaces is
      in quotation marks.

  Raises:
    ValueError: if it cannot be used; it names the field.
  """
  try:
    options = shlex.split(value)
  except ValueError as error:  # A quotation mark lacks its partner.
    raise ValueError(
      f"{field} is {value!r}: {error}. Write it like {_EXAMPLE}"
    ) from None
  given = options_lib.read(field, options, _KEYS, _EXAMPLE)
  name = given.pop("name", field.rpartition(".")[2])
  if not given:
    raise ValueError(
      f"{field} is {value!r}; give a weight or a prompt, like {_EXAMPLE}"
    )
  prompts = {
    role: _check_prompt(field, key, given[key], name)
    for key, role in _PROMPTS.items()
    if key in given
  }
  weight = _weight(field, given["weight"]) if "weight" in given else None
  return SourceSetting(field, name, weight, prompts)


def _weight(field: str, text: str) -> float:
  try:
    weight = float(text)
  except ValueError:
    weight = math.nan
  if not (weight == 0 or 1 / _LARGEST <= weight <= _LARGEST):
    raise ValueError(
      f"{field}: weight is {text}; it must be a number from {1 / _LARGEST:g} to"
      f" {_LARGEST:g}, or 0 to leave the source out."
    )
  return weight


def _check_prompt(field: str, key: str, prompt: str, name: str) -> str:
  if prompt[:1].isspace():
    raise ValueError(
      f"{field}: {key} is {prompt!r}; it must not begin with white space. An"
      " empty one leaves out the prefix of the role."
    )
  if not name:
    raise ValueError(
      f"{field}: the source has no name, and a prompt has the name of its"
      " source: give its files a name."
    )
  return prompt


def find(sources: Mapping[str, str]) -> list[SourceSetting]:
  """Reads all settings of a config.

  Args:
    sources: The config's data.sources: name to setting.

  Raises:
    ValueError: if a setting cannot be used, two are for one source, or two
      prompts would have one name in an export; it names the field.
  """
  found: dict[str, SourceSetting] = {}
  for name, value in sources.items():
    setting = parse(f"data.sources.{name}", value)
    if setting.name in found:
      raise ValueError(
        f"{found[setting.name].field} and {setting.field} are both for the"
        f" source {setting.name!r}; keep one."
      )
    found[setting.name] = setting
  settings = [*found.values()]
  try:
    contract_lib.flat_prompts(prompts(settings))
  except ValueError as error:
    raise ValueError(f"data.sources: {error}") from None
  return settings


def weights(
  settings: Iterable[SourceSetting],
) -> tuple[tuple[str, float], ...]:
  """Returns pairs of name and weight of the sources that have one."""
  return tuple(
    sorted(
      (setting.name, setting.weight)
      for setting in settings
      if setting.weight is not None
    )
  )


def prompts(
  settings: Iterable[SourceSetting],
) -> dict[str, dict[str, str]]:
  """Returns the contract's prompts: source to role to prompt."""
  return {
    setting.name: dict(setting.prompts)
    for setting in sorted(settings, key=lambda setting: setting.name)
    if setting.prompts
  }


def left_out(settings: Iterable[SourceSetting]) -> set[str]:
  """Returns the names of the sources with the weight 0."""
  return {setting.name for setting in settings if setting.weight == 0}


def trained_on(
  collection: records.Collection, settings: Iterable[SourceSetting]
) -> records.Collection:
  """Returns a collection without the records of sources that are left out.

  Args:
    collection: The collection.
    settings: From `find`.
  """
  names = left_out(settings)
  if not names:
    return collection

  def without(stream):
    def read():
      return (each for each in stream() if each.source_name not in names)

    return read

  return dataclasses.replace(
    collection,
    **{name: without(getattr(collection, name)) for name in records.STREAMS},
    parts=None,
  )


def check_known(
  settings: Iterable[SourceSetting], known: Iterable[str]
) -> None:
  """Refuses settings of sources that there are not.

  Args:
    settings: From `find`.
    known: The names of the collection's sources.

  Raises:
    ValueError: if there is no such source; it lists those that there are.
  """
  names = sorted(set(known))
  for setting in settings:
    if setting.name not in names:
      listed = ", ".join(map(repr, names)) or "none"
      raise ValueError(
        f"{setting.field}: the training data have no source {setting.name!r}."
        f" The sources are: {listed}. (name=… names one whose name is not a"
        " word.)"
      )
