"""Says which prefixes each model of a table has, as the user gives them."""

from collections.abc import Collection, Mapping, Sequence

from mlir_jax.evals import systems

# "query_prefix" and so on to the prefix of all models, or to that of each model
# by its name; None if it is not given.
Given = Mapping[str, str | Mapping[str, str] | None]


def parse(
  flag: str, values: Sequence[str] | None, models: Collection[str]
) -> dict[str, str]:
  """Returns the prefix of each model that is given one.

  The value NAME=PREFIX is of one model. Any other value is of all models that
  have none of their own. The text before the first "=" decides: it is a name if
  it has no space and no other sign that a name cannot have.

  Args:
    flag: The flag, for messages: "--query_prefix".
    values: Its values; None if it is not given.
    models: The names of all models.

  Raises:
    ValueError: if there is no such model, a model is given two prefixes, or
      there is no model at all.
  """
  if values is None:
    return {}
  if not models:
    raise ValueError(f"{flag} needs --model or --workdir.")
  own: dict[str, str] = {}
  of_all: list[str] = []
  for value in values:
    name, equals, prefix = value.partition("=")
    if not (equals and systems.NAME.fullmatch(name)):
      of_all.append(value)
      continue
    if name not in models:
      raise ValueError(
        f"{flag}={value}: there is no model {name!r}; there are"
        f" {', '.join(models)}. If this is the whole prefix, name its model,"
        f" too: {flag}={next(iter(models))}={value}."
      )
    if name in own:
      raise ValueError(f"{flag}={value}: {name} is given two prefixes.")
    own[name] = prefix
  if len(of_all) > 1:
    raise ValueError(
      f"{flag} is given as {of_all[0]!r} and as {of_all[1]!r}, both for all"
      " models: name a model with NAME=PREFIX."
    )
  return dict.fromkeys(models, of_all[0]) | own if of_all else own


def of_model(given: Given, name: str) -> dict[str, str | None]:
  """Returns the prefixes of a model as `mlir_jax.load` takes them."""
  return {
    argument: prefix
    if isinstance(prefix, str) or prefix is None
    else prefix.get(name)
    for argument, prefix in given.items()
  }


def check(given: Given, models: Collection[str]) -> None:
  """Raises ValueError if a prefix is of a model that is not there."""
  for argument, prefix in given.items():
    names = prefix if isinstance(prefix, Mapping) else ()
    for name in names:
      if name not in models:
        raise ValueError(
          f"{argument}: there is no model {name!r}; there are"
          f" {', '.join(models) or 'none'}."
        )
