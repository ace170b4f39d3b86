"""Paths on a disk and URLs on object storage, checked before any work."""

import contextlib
import importlib.util
import os
import tempfile


def is_url(folder: str) -> bool:
  """Whether the folder is on object storage."""
  return "://" in folder


def absolute(folder: str) -> str:
  """The folder as an absolute path, or as the URL that it is."""
  if is_url(folder):
    return folder.rstrip("/")
  return os.path.abspath(os.path.expanduser(folder))


def check_packages(folder: str) -> None:
  """Raises ValueError if what it takes to write to the folder is missing."""
  if not folder.startswith("gs://"):
    return
  needed = {"google.cloud.storage": "google-cloud-storage"}  # Of orbax.
  if not importlib.util.find_spec("tensorflow"):  # epath takes it, or else:
    needed["gcsfs"] = "gcsfs"
  for module, package in needed.items():
    try:
      importlib.import_module(module)
    except ImportError as error:
      raise ValueError(
        f"{folder}: {error}. Object storage needs it: pip install {package}."
      ) from error


def check_folder(folder: str, setting: str) -> str:
  """Refuses a folder that is not one, and cannot become one.

  Args:
    folder: An absolute path; a URL is not looked at.
    setting: What says it and its value, for the message: "--output=a/b".

  Returns:
    The folder, or the nearest one above it that exists.

  Raises:
    ValueError: if the path, or one above it, is not a folder.
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
  """Refuses a folder in which nothing can be written, before any work.

  Args:
    folder: Where something will be written, from `absolute`. It need not exist.
    setting: As in `check_folder`.

  Raises:
    ValueError: if it is not a folder and cannot become one, if nothing can be
      written there, or if a package for object storage is missing.
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
