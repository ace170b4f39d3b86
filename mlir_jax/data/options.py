"""Reads options KEY=VALUE, of which the config's settings of data consist."""

from collections.abc import Iterable, Sequence


def read(
  field: str, options: Iterable[str], keys: Sequence[str], example: str = ""
) -> dict[str, str]:
  """Returns the values of some options by their keys.

  Args:
    field: The config's field, for messages.
    options: Texts like "weight=2". A value may be empty.
    keys: The keys that there are.
    example: Right options, for messages; "" for none.

  Raises:
    ValueError: for another key, one that is there twice, or an option without
      "="; it names the field.
  """
  given: dict[str, str] = {}
  for option in options:
    key, equals, text = option.partition("=")
    if key not in keys or not equals or key in given:
      like = f", like {example}" if example else "."
      raise ValueError(
        f"{field}: {option!r} is not KEY=VALUE, with a KEY of"
        f" {', '.join(keys)} that is there once{like}"
      )
    given[key] = text
  return given
