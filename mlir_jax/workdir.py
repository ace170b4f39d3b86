"""The run's folder: what stands in it, and that it is of one experiment.

It may stand on object storage (gs://bucket/run), which writes whole objects,
and neither appends, renames nor maps into memory. What needs one of these
lives in a local copy of the folder on each machine, and is brought and kept
by `fetch` and `keep`.
"""

import contextlib
import fnmatch
import hashlib
import importlib.util
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from etils import epath

from mlir_jax import stored

# What stands in it.
CONFIG_FILE = "config.json"
BACKBONE = "backbone.json"
TOKENIZER = "tokenizer/tokenizer.json"
TOKEN_STORE = "tokens"
CHECKPOINTS = "checkpoints"
RESULTS = "results"

HISTORY = "history.jsonl"

# These may change between the starts of one run: they decide where and how it
# is computed and shown, not what.
CHANGEABLE_ON_RESUME = (
  "batch.buckets",
  "batch.chunk",
  "data.on_bad_record",
  "data.prefetch",
  "data.reader",
  "data.root",
  "data.tatoeba_root",
  # Not eval.dev_passages: the best checkpoint is chosen among values of one
  # scale.
  "eval.at_start",
  "eval.batch_size",
  "eval.every",
  "eval.extra.",
  "eval.top_k",
  "hosts.",
  "mesh.",
  "model.attention",
  "model.remat",
  "train.checkpoint_every",
  "train.compilation_cache",
  "train.keep",
  "train.log_every",
  "train.max_nonfinite_steps",
  "train.self_check",
)

# These may change where a run goes on from a checkpoint that was named
# (--from_step); the change stands in its history.
CHANGEABLE_FROM_STEP = ("model.dtype", "optim.", "train.steps")

# Before the first checkpoint these alone have left anything in the folder:
# the tokenizer and the token store, which has a contract of its own.
PREPARED = ("data.", "model.pretrained", "model.revision", "seed", "tokenizer.")
NOT_PREPARED = ("data.language_temperature", "data.masking.")


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


def local_copy(folder: str, local_dir: str = "") -> str:
  """Where this machine has what must be on a disk of the run's folder.

  Args:
    folder: The run's folder, from `absolute`.
    local_dir: For the copy of a folder on object storage; "" for one in the
      user's cache that is named by the URL's hash.

  Returns:
    An absolute path: the folder itself, if it is on a disk.
  """
  if not is_url(folder):
    return folder
  if local_dir:
    return absolute(local_dir)
  cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  name = hashlib.sha256(folder.encode()).hexdigest()[:16]
  return os.path.join(cache, "mlir_jax", name)


def fetch(folder: str, local: str, name: str) -> None:
  """Brings a file of the run's folder, or none, to the local copy of it."""
  theirs, ours = epath.Path(folder) / name, epath.Path(local) / name
  if folder == local:
    return
  if not theirs.exists():
    ours.unlink(missing_ok=True)
    return
  content = theirs.read_bytes()
  if ours.exists() and ours.read_bytes() == content:
    return
  ours.parent.mkdir(parents=True, exist_ok=True)
  # Other processes of this machine may do the same at the same time.
  with tempfile.TemporaryDirectory(dir=ours.parent) as aside:
    (epath.Path(aside) / ours.name).write_bytes(content)
    (epath.Path(aside) / ours.name).replace(ours)


def fetch_folder(folder: str, local: str, name: str) -> None:
  """Brings a folder in the run's folder to the local copy, whole or not."""
  target = epath.Path(local) / name
  target.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=target.parent) as aside:
    copy = epath.Path(aside) / "copy"
    copy.mkdir()
    for path in (epath.Path(folder) / name).iterdir():
      path.copy(copy / path.name)
    try:
      copy.rename(target)
    except OSError:
      if not target.exists():  # Else another process here was faster.
        raise


def copy_folder(url: str, patterns: Sequence[str]) -> str:
  """Copies a folder of files that others wrote from object storage.

  Args:
    url: The folder's URL.
    patterns: Of the files to copy, by their names within the folder; a *
      matches folders, too.

  Returns:
    The copy on this machine. What was copied before and has not changed is
    not copied again; what is gone there is gone here.

  Raises:
    ValueError: if there is no such folder, or a package is missing.
  """
  check_packages(url)
  folder, local = epath.Path(url), epath.Path(local_copy(absolute(url)))
  if not folder.is_dir():
    raise ValueError(f"There is no folder {url}.")
  theirs = set(_find(folder, patterns))
  for name in sorted(theirs):
    path, ours = folder / name, local / name
    found = path.stat()
    # Not every storage says when an object was written: 0.
    state = (found.length, found.mtime)
    if found.mtime and ours.exists() and state == _state(ours):
      continue
    with writing_aside(str(ours)) as file, path.open("rb") as source:
      shutil.copyfileobj(source, file)
    os.utime(ours, (found.mtime, found.mtime))
  for name in set(_find(local, patterns)) - theirs:
    (local / name).unlink(missing_ok=True)
  return str(local)


def _state(path: epath.Path) -> tuple[int, int]:
  """Size in bytes and time in seconds of a file on a disk."""
  found = os.stat(path)
  return found.st_size, int(found.st_mtime)


def _find(
  folder: epath.Path, patterns: Sequence[str], prefix: str = ""
) -> Iterator[str]:
  """Names of files in a folder and its folders that one of them matches."""
  if not folder.exists():
    return
  for path in folder.iterdir():
    name = f"{prefix}{path.name}"
    if path.is_dir():
      yield from _find(path, patterns, f"{name}/")
    elif any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
      yield name


def keep_folder(local: str, url: str, last: str) -> None:
  """Takes a new folder from a disk to object storage.

  Args:
    local: The folder.
    url: Where to.
    last: Name of the files without which the folder is not one: they are
      written when all others are. After an error nothing stands there.
  """
  names = sorted(_find(epath.Path(local), ["*"]))
  names.sort(key=lambda name: name.rpartition("/")[2] == last)
  try:
    for name in names:
      with (
        open(f"{local}/{name}", "rb") as source,
        epath.Path(f"{url}/{name}").open("wb") as target,
      ):
        shutil.copyfileobj(source, target)
  except BaseException:
    for name in names:
      epath.Path(f"{url}/{name}").unlink(missing_ok=True)
    raise


def keep(folder: str, local: str, *names: str) -> None:
  """Takes files of the local copy to the run's folder, in this order."""
  if folder != local:
    for name in names:
      write_aside(f"{folder}/{name}", (epath.Path(local) / name).read_bytes())


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


@contextlib.contextmanager
def writing_aside(path: str) -> Iterator[BinaryIO]:
  """Opens a file that gets its name once it is whole.

  On a disk it is written beside `path`, as .NAME.RANDOM.tmp, and renamed: of
  several writers the last one's file stays, whole. Nobody can foresee the name,
  and the file is a new one, so that no link leads elsewhere. What a killed
  process leaves has such a name. Object storage keeps no partial file: there
  the content waits in a temporary file.

  Args:
    path: The file, or its URL. Its folder is made if missing. After an error
      it is as it was before.

  Yields:
    The binary file, open for writing; it may seek.

  Raises:
    ValueError: if a folder, a device or a pipe stands at `path`.
  """
  if is_url(path):
    with tempfile.TemporaryFile() as file:
      yield file
      file.seek(0)
      with epath.Path(path).open("wb") as target:
        shutil.copyfileobj(file, target)
    return
  if os.path.exists(path) and not os.path.isfile(path):
    raise ValueError(f"{path} exists and is not a file: give another name.")
  folder, name = os.path.split(os.path.abspath(path))
  os.makedirs(folder, exist_ok=True)
  # A part of the name, since names have a longest length.
  aside = os.path.join(folder, f".{name[:40]}.{secrets.token_hex(8)}.tmp")
  try:
    # "x": it must be new. Its mode is as for any file, unlike tempfile's.
    with open(aside, "xb") as file:
      yield file
    os.replace(aside, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.unlink(aside)
    raise


def write_aside(path: str, content: str | bytes) -> None:
  """Writes a file whole or not at all, see `writing_aside`."""
  if isinstance(content, str):
    content = content.encode("utf-8")
  with writing_aside(path) as file:
    file.write(content)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
  """A nested dict as {"a.b": value}."""
  if not isinstance(tree, Mapping):
    return {prefix[:-1]: tree}
  return {
    name: value
    for key, subtree in tree.items()
    for name, value in flatten(subtree, f"{prefix}{key}.").items()
  }


def _stands_in(name: str, fields: tuple[str, ...]) -> bool:
  """Whether it is one of the fields, or of a group: "eval."."""
  groups = tuple(field for field in fields if field.endswith("."))
  return name in fields or name.startswith(groups)


def _steps(folder: epath.Path) -> list[int]:
  """The steps of a run's checkpoints, damaged ones too."""
  checkpoints = folder / CHECKPOINTS
  if not checkpoints.exists():
    return []
  names = [path.name for path in checkpoints.iterdir()]
  return sorted(int(name) for name in names if name.isdecimal())


def is_trained(folder: epath.Path) -> bool:
  """Whether a run has a checkpoint."""
  return bool(_steps(folder))


def read_history(workdir: str) -> list[dict[str, Any]]:
  """From which checkpoints a run went on with other settings, in order.

  Returns:
    {"time", "step", "from_step": whether it was named, "changed": {field:
    [before, after]}, "removed": steps of later checkpoints} each.

  Raises:
    UnreadableError: if a line is damaged; it names the file and the line.
  """
  path = epath.Path(workdir) / HISTORY
  history = stored.read_json_lines(path)
  for number, record in enumerate(history, start=1):
    changed = record.get("changed")
    good = {
      "from_step": isinstance(record.get("from_step"), bool),
      "changed": isinstance(changed, dict)
      and all(isinstance(v, list) and len(v) == 2 for v in changed.values()),
    }
    for field in good:
      if not good[field]:
        raise stored.UnreadableError(
          f"{path}:{number}: {field} is {record.get(field)!r}. {stored.RESTORE}"
        )
  return history


def differences(
  config: Mapping[str, Any],
  kept: Mapping[str, Any],
  defaults: Mapping[str, Any],
) -> dict[str, list[Any]]:
  """The fields in which a run's config differs from one that was kept.

  Args:
    config: The run's config, as a plain dict.
    kept: Of an earlier start.
    defaults: A config without changes: what a config that was kept before a
      field existed has for it.

  Returns:
    Field to [kept value, value], without those that may change on resume.
  """
  ours = flatten(config)
  theirs = flatten(defaults) | flatten(kept)
  return {
    name: [theirs.get(name), ours.get(name)]
    for name in sorted(ours.keys() | theirs.keys())
    if ours.get(name) != theirs.get(name)
    and not _stands_in(name, CHANGEABLE_ON_RESUME)
  }


def refuse_changes(
  config: Mapping[str, Any],
  changed: Mapping[str, list[Any]],
  where: str,
  from_step: int | None,
) -> None:
  """Refuses changes that a run cannot go on with.

  Args:
    config: The run's config, as a plain dict.
    changed: From `differences`.
    where: Where the earlier config was found.
    from_step: The checkpoint that was named to go on from, if one was.

  Raises:
    ValueError: naming each field, and what to do.
  """
  refused = {
    name: values
    for name, values in changed.items()
    if not (
      _stands_in(name, CHANGEABLE_FROM_STEP)
      if from_step is not None
      else name == "train.steps" and _may_grow(config, changed)
    )
  }
  if not refused:
    return
  lines = [
    f"  config.{name}: {ours!r} here, {theirs!r} there"
    for name, (theirs, ours) in refused.items()
  ]
  hints = []
  if all(_stands_in(name, CHANGEABLE_FROM_STEP) for name in refused):
    hints.append(
      "These may change from a checkpoint on that you name: add --from_step=N."
    )
    if "train.steps" in refused:
      hints.append(
        "(With optim.decay='constant' more train.steps need no --from_step:"
        " the learning rates of the steps already taken stay the same.)"
      )
  if flags := _flags_of_losses(refused):
    hints.append(
      "It was trained with losses that this command does not name, and their"
      f" code is not imported; to go on with them, repeat: {flags}"
    )
  raise ValueError(
    f"{where} holds a run with another config; give another --workdir, or the"
    " same values:\n" + "\n".join([*lines, *hints])
  )


def _flags_of_losses(refused: Mapping[str, list[Any]]) -> str:
  """The flags that name the losses of a user that only a kept config names."""
  missing = {
    name.rpartition(".")[0] + "."
    for name, (_, ours) in refused.items()
    if name.startswith("loss.extra.")
    and name.endswith(".target")
    and ours is None
  }
  return " ".join(
    f"--config.{name}={theirs}"
    for name, (theirs, _) in refused.items()
    if name.startswith(tuple(missing))
  )


def _may_grow(config: Mapping[str, Any], changed: Mapping) -> bool:
  """Whether `train.steps` grows and no learning rate so far would differ."""
  before, after = changed["train.steps"]
  return (
    isinstance(before, int)
    and after > before
    and config.get("optim", {}).get("decay") == "constant"
    and "optim.decay" not in changed
  )


def claim(
  config: Mapping[str, Any],
  workdir: str,
  defaults: Mapping[str, Any],
  from_step: int | None = None,
) -> None:
  """Keeps the config in the workdir, or compares it with the one there.

  What may change from a checkpoint on is kept once the run goes on from it:
  see `training.resume`.

  Args:
    config: The run's config, as a plain dict.
    workdir: The run's folder; made if missing.
    defaults: As in `differences`.
    from_step: The checkpoint that was named to go on from, if one was.

  Raises:
    ValueError: if the workdir is of another experiment, it names each field;
      or if the checkpoint that was named is not there.
  """
  folder = epath.Path(workdir)
  path = folder / CONFIG_FILE
  steps = _steps(folder)
  prepared = any((folder / name).exists() for name in (TOKENIZER, TOKEN_STORE))
  if steps:
    # It may be gone since the run went on from it: the same command goes on.
    if from_step not in (None, *steps) and not any(
      record["from_step"] and record["step"] == from_step
      for record in read_history(workdir)
    ):
      raise ValueError(
        f"--from_step={from_step}: {folder / CHECKPOINTS} has no checkpoint of"
        f" this step; it has {steps}."
      )
    if not path.exists():
      # Only here, for it imports orbax.
      from mlir_jax import checkpoint

      step, kept = checkpoint.read_config(str(folder / CHECKPOINTS), from_step)
      print(f"{path} is missing: the checkpoint of step {step} has its values.")
      write_aside(str(path), json.dumps(kept, indent=2) + "\n")
    changed = differences(config, stored.read_json(path), defaults)
    refuse_changes(config, changed, workdir, from_step)
    return
  if from_step is not None:
    raise ValueError(
      f"--from_step={from_step}: {workdir} has no checkpoint; leave it out."
    )
  if path.exists() and prepared:
    changed = {
      name: values
      for name, values in differences(
        config, stored.read_json(path), defaults
      ).items()
      if _stands_in(name, PREPARED) and not _stands_in(name, NOT_PREPARED)
    }
    refuse_changes(config, changed, workdir, None)
  text = json.dumps(config, indent=2) + "\n"
  # Several processes claim it, one behind the other.
  if not path.exists() or path.read_bytes() != text.encode():
    write_aside(str(path), text)
