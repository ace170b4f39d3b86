"""Checks paths on a disk and URLs on object storage, before any work."""

import contextlib
import importlib.util
import os
import tempfile


def is_url(folder: str) -> bool:
  """Whether the folder is on object storage."""
  return "://" in folder


def absolute(folder: str) -> str:
  """Returns the folder as an absolute path; a URL stays a URL."""
  if is_url(folder):
    return folder.rstrip("/")
  return os.path.abspath(os.path.expanduser(folder))


def user_cache() -> str:
  """Returns the folder of this package in the user's cache."""
  cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return os.path.join(cache, "mlir_jax")


def check_packages(folder: str) -> None:
  """Raises ValueError if a package for object storage is missing."""
  if not folder.startswith("gs://"):
    return
  needed = {"google.cloud.storage": "google-cloud-storage"}  # For orbax.
  if not importlib.util.find_spec("tensorflow"):  # epath prefers tensorflow.
    needed["gcsfs"] = "gcsfs"
  for module, package in needed.items():
    try:
      importlib.import_module(module)
    except ImportError as error:
      raise ValueError(
        f"{folder}: {error}. Object storage needs it: pip install {package}."
      ) from error


def check_folder(folder: str, setting: str) -> str:
  """Checks that a path is a folder or can become one.

  Args:
    folder: An absolute path; a URL is not checked.
    setting: The flag or field with its value, for the message: "--output=a/b".

  Returns:
    The folder, or the nearest folder above it that exists.

  Raises:
    ValueError: if the path, or a path above it, is not a folder.
    OSError: if the path cannot be one, such as a name that is too long.
  """
  if is_url(folder):
    return folder
  with contextlib.suppress(FileNotFoundError, NotADirectoryError):
    os.stat(folder)
  while not os.path.lexists(folder):
    folder = os.path.dirname(folder)
  if not os.path.isdir(folder):
    raise ValueError(f"{setting}: {folder} is not a folder.")
  return folder


def check_output(folder: str, setting: str) -> None:
  """Checks that a program can write to a folder, before any work.

  Args:
    folder: The folder, from `absolute`. It need not exist.
    setting: As in `check_folder`.

  Raises:
    ValueError: if it cannot be a folder, if nothing can be written there, or if
      a package for object storage is missing.
  """
  if is_url(folder):
    check_packages(folder)
    return
  try:
    found = check_folder(folder, setting)
    with tempfile.TemporaryFile(dir=found):
      pass
  except OSError as error:
    raise ValueError(
      f"{setting}: nothing can be written there: {error.strerror}."
    ) from error
