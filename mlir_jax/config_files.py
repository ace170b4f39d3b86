"""Loads a config by name or path: it runs the file's `get_config`."""

import contextlib
import difflib
import importlib.resources
import os
import pathlib
import runpy
import traceback
from collections.abc import Iterable, Iterator

import ml_collections


def folders() -> list[pathlib.Path]:
  """Returns the folders of shipped configs: in the wheel or in a clone."""
  package = pathlib.Path(str(importlib.resources.files("mlir_jax")))
  folders = [package / "configs", package.parent / "configs"]
  return [folder for folder in folders if folder.is_dir()]


def suggest(name: str, known: Iterable[str]) -> str:
  """Returns " Did you mean …?" with the most similar known name, or ""."""
  close = difflib.get_close_matches(name, list(known), n=1)
  return f" Did you mean {close[0]}?" if close else ""


def shipped() -> dict[str, pathlib.Path]:
  """Returns the shipped configs, bare name to path.

  A recipe may have the name of the config that it trains. The name is then that
  of the config.
  """
  return {
    path.stem: path
    for folder in reversed(folders())
    for pattern in ("recipes/*.py", "*.py")
    for path in sorted(folder.glob(pattern))
    if path.stem != "__init__"
  }


def load(name: str) -> ml_collections.ConfigDict:
  """Loads a config by name or path, as --config does.

  Args:
    name: See `resolve`.

  Raises:
    ValueError: if there is no such config, or if its file fails; it names the
      file and, where it is known, the line.
  """
  path, _, argument = resolve(name).partition(":")
  with errors_named(path):
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
      raise ValueError("the file defines no function get_config.")
    config = get_config(*[argument] if argument else [])
    if not isinstance(config, ml_collections.ConfigDict):
      raise ValueError(
        f"get_config returns {type(config).__name__}; it must return what"
        " mlir_jax.config.default() returns, with your values."
      )
  return config


@contextlib.contextmanager
def errors_named(path: str) -> Iterator[None]:
  """Within this context, an error of a user's file names the file and the line.

  Raises:
    ValueError: in place of the error.
  """
  try:
    yield
  # SystemExit, too: it would end the program without an error.
  except (Exception, SystemExit) as error:
    raise ValueError(
      f"{_place(error, path)}: {type(error).__name__}: {one_line(error)}"
    ) from error


def _place(error: BaseException, path: str) -> str:
  """Returns where a file raised an error: "own.py:12", or the file alone."""
  lines: list[int | None] = [
    line
    for frame, line in traceback.walk_tb(error.__traceback__)
    if frame.f_code.co_filename == path
  ]
  if isinstance(error, SyntaxError) and error.filename == path:
    lines.append(error.lineno)
  return f"{path}:{lines[-1]}" if lines else path


def one_line(error: BaseException) -> str:
  """Returns an error's message in one line; some libraries write several."""
  text = str(error)
  if isinstance(error, AttributeError | KeyError):  # It may be quoted.
    text = text.strip("'\"").replace("\\n", " ").replace("\\'", "'")
  text = " ".join(text.split())
  return text if len(text) <= 800 else f"{text[:400]} ... {text[-400:]}"


def resolve(name: str) -> str:
  """Turns a config's name or path into a path.

  Args:
    name: A shipped config's bare name ("quickstart") or a path to a config
      file; either may be followed by ":" and an argument for `get_config`.

  Returns:
    The path, with the argument.

  Raises:
    ValueError: if there is no such config; it lists the shipped ones.
  """
  stem, colon, argument = name.partition(":")
  if not name:
    raise ValueError("--config is empty: give a config's name or path.")
  if stem.endswith(".py") or "/" in stem:
    stem = os.path.expanduser(stem)
    if not pathlib.Path(stem).is_file():
      raise ValueError(f"--config={name}: there is no file {stem}.")
    return f"{stem}{colon}{argument}"
  known = shipped()
  if stem not in known:
    raise ValueError(
      f"--config={name}: no config has this name.{suggest(stem, known)}"
      f" Shipped: {', '.join(sorted(known))}; or give a path to a .py file."
    )
  return f"{known[stem]}{colon}{argument}"
