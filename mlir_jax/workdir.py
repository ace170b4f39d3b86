"""The run's folder: what stands in it, and that it is of one experiment."""

import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

# What stands in it.
CONFIG_FILE = "config.json"
BACKBONE = "backbone.json"
TOKENIZER = "tokenizer/tokenizer.json"
TOKEN_STORE = "tokens"
CHECKPOINTS = "checkpoints"
RESULTS = "results"

# These may change between the starts of one run: they decide where and how it
# is computed and shown, not what.
FREE = (
  "data.on_bad_record",
  "data.prefetch",
  "data.reader",
  "data.root",
  "data.tatoeba_root",
  "eval.",
  "mesh.",
  "train.checkpoint_every",
  "train.keep",
  "train.log_every",
  "train.max_nonfinite_steps",
)

# Before the first checkpoint these alone have left anything in the folder:
# the tokenizer and the token store, which has a contract of its own.
PREPARED = ("data.", "model.pretrained", "model.revision", "seed", "tokenizer.")
NOT_PREPARED = ("data.language_temperature", "data.masking.")


def absolute(folder: str) -> str:
  """The folder as an absolute path.

  Raises:
    ValueError: for a URL (gs://...).
  """
  if "://" in folder:
    raise ValueError(
      f"--workdir={folder}: only local folders for now; train on a local disk"
      " and copy the folder."
    )
  return os.path.abspath(os.path.expanduser(folder))


def write_aside(path: str, content: str | bytes) -> None:
  """Writes a file whole or not at all: aside, then renamed."""
  aside = epath.Path(f"{path}.tmp")
  aside.parent.mkdir(parents=True, exist_ok=True)
  if isinstance(content, bytes):
    aside.write_bytes(content)
  else:
    aside.write_text(content)
  aside.replace(path)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
  """A nested dict as {"a.b": value}."""
  if not isinstance(tree, Mapping):
    return {prefix[:-1]: tree}
  return {
    name: value
    for key, subtree in tree.items()
    for name, value in flatten(subtree, f"{prefix}{key}.").items()
  }


def claim(
  config: Mapping[str, Any], workdir: str, defaults: Mapping[str, Any]
) -> None:
  """Keeps the config in the workdir, or compares it with the one there.

  Args:
    config: The run's config, as a plain dict.
    workdir: The run's folder; made if missing.
    defaults: The same of a config without changes: what a config that was
      kept before a field existed has for it.

  Raises:
    ValueError: if the workdir is of another experiment; it names each field.
  """
  folder = epath.Path(workdir)
  path = folder / CONFIG_FILE
  trained = (folder / CHECKPOINTS).exists()
  prepared = any((folder / name).exists() for name in (TOKENIZER, TOKEN_STORE))
  if path.exists() and (trained or prepared):
    ours = flatten(config)
    theirs = flatten(defaults) | flatten(json.loads(path.read_text()))
    changed = [
      f"  config.{name}: {ours.get(name)!r} here, {theirs.get(name)!r} there"
      for name in sorted(ours.keys() | theirs.keys())
      if ours.get(name) != theirs.get(name)
      and not name.startswith(FREE)
      and (trained or name.startswith(PREPARED))
      and (trained or not name.startswith(NOT_PREPARED))
    ]
    if changed:
      raise ValueError(
        f"{workdir} holds a run with another config; give another --workdir,"
        " or the same values:\n" + "\n".join(changed)
      )
    if trained:
      return
  write_aside(str(path), json.dumps(config, indent=2) + "\n")
