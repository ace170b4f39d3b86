"""Finds a recipe by its name or path, and lists the shipped recipes."""

import dataclasses
import os
import pathlib
import runpy

from mlir_jax import config_files
from mlir_jax.recipes import recipe as recipe_lib


@dataclasses.dataclass(frozen=True)
class Found:
  """A recipe with its file.

  Attributes:
    name: Its name, that of the file.
    path: The file.
    summary: The first line of the file.
    config: The config of the training, as for --config.
    recipe: The recipe.
  """

  name: str
  path: str
  summary: str
  config: str
  recipe: recipe_lib.Recipe


def find(name: str) -> Found:
  """Finds a recipe.

  Args:
    name: A shipped recipe's bare name ("quickstart") or a path to a file.

  Raises:
    ValueError: if there is no such recipe, or if its file fails; it names the
      file and, where it is known, the line.
  """
  if name.endswith(".py") or "/" in name:
    path = os.path.expanduser(name)
    if not os.path.isfile(path):
      raise ValueError(f"{name}: there is no file {path}.")
    return _load(path, os.path.abspath(path))
  files = _shipped_files()
  if name not in files:
    raise ValueError(
      f"{name}: no recipe has this name.{config_files.suggest(name, files)}"
      f" There are {', '.join(each.name for each in shipped())}; or give a path"
      " to a .py file."
    )
  return _load(str(files[name]), name)


def shipped() -> list[Found]:
  """Returns the shipped recipes, by name."""
  return [
    _load(str(path), name)
    for name, path in sorted(_shipped_files().items())
    if _defines_recipe(path)
  ]


def to_text(found: list[Found]) -> str:
  """Lists recipes: the name, what it reproduces, hardware and time."""
  width = max(len(each.name) for each in found)
  lines = []
  for each in found:
    values = [
      value
      for scores in each.recipe.scores
      for value in scores.expected.values()
    ]
    measured = sum(value is not None for value in values)
    declared = f"{measured} scores" if measured else "not run"
    lines += [
      f"{each.name:<{width}}  {each.summary}",
      f"{'':<{width}}  {declared}; {each.recipe.hardware}; {each.recipe.time}",
    ]
  return "\n".join(lines)


def _shipped_files() -> dict[str, pathlib.Path]:
  return {
    path.stem: path
    for folder in reversed(config_files.folders())
    for path in folder.glob("recipes/*.py")
    if path.stem != "__init__"
  }


def _defines_recipe(path: pathlib.Path) -> bool:
  """Whether a file of configs/recipes is a recipe; it may be a config alone."""
  return "\nRECIPE = " in path.read_text(encoding="utf-8")


def _load(path: str, config: str) -> Found:
  """Loads the file of a recipe.

  Args:
    path: The file.
    config: The config that the file itself is, as for --config.

  Raises:
    ValueError: if the file fails; it names the file and the line.
  """
  with config_files.errors_named(path):
    content = runpy.run_path(path)
    found = content.get("RECIPE")
    if not isinstance(found, recipe_lib.Recipe):
      raise ValueError(
        "the file defines no RECIPE, an object of"
        " mlir_jax.recipes.recipe.Recipe."
      )
    summary = (content.get("__doc__") or "").strip().partition("\n")[0]
    if not summary:
      raise ValueError("the file's first line must say what it reproduces.")
    if not found.config and "get_config" not in content:
      raise ValueError(
        "RECIPE names no config, and the file defines no function get_config."
      )
  return Found(
    name=pathlib.Path(path).stem,
    path=os.path.abspath(path),
    summary=summary,
    config=found.config or config,
    recipe=found,
  )
