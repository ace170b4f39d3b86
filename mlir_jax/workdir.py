"""The run's folder, which belongs to one experiment.

The folder may be on object storage (gs://bucket/run). That writes whole
objects: it cannot append to a file, rename it or map it into memory. Files that
need this are in a local copy of the folder on each machine; see
`storage.copies`.
"""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from mlir_jax.checkpoints import listing
from mlir_jax.storage import reading, writing

# The files and folders in it.
CONFIG_FILE = "config.json"
BACKBONE = "backbone.json"
TOKENIZER = "tokenizer/tokenizer.json"
TOKEN_STORE = "tokens"
GUIDE = "guide"
TEACHER = "teacher"
CHECKPOINTS = "checkpoints"
RESULTS = "results"
HISTORY = "history.jsonl"

# These may change between the starts of one run. They decide where and how it
# computes, and what it prints, but not what it computes.
CHANGEABLE_ON_RESUME = (
  "batch.buckets",  # Of runs from before texts were packed, like the next.
  "batch.chunk",
  "batch.chunk_rows",
  "batch.row_length",
  "data.on_bad_record",
  "data.prefetch",
  "data.reader",
  "data.root",
  "data.tatoeba_root",
  # Not eval.dev_passages: the values that choose the best checkpoint must have
  # one scale.
  "eval.at_start",
  "eval.batch_size",
  "eval.diagnostics_root",
  "eval.every",
  "eval.extra.",
  "eval.measures",
  "eval.protocols.",
  "eval.top_k",
  "hosts.",
  "mesh.",
  "model.attention",
  "model.remat",
  "model.scan_layers",
  "train.checkpoint_every",
  "train.compilation_cache",
  "train.keep",
  "train.log_every",
  "train.max_nonfinite_steps",
  "train.self_check",
)

# These may also change when the user names a checkpoint to go on from
# (--from_step). The change is written to the run's history.
CHANGEABLE_FROM_STEP = ("model.dtype", "optim.", "train.steps")

# Before the first checkpoint, the folder has the tokenizer and the token store,
# which has its own contract. Only these fields have an effect on them.
PREPARED = ("data.", "model.pretrained", "model.revision", "seed", "tokenizer.")
# The store's contract has the prompts of data.sources.
NOT_PREPARED = ("data.language_temperature", "data.masking.", "data.sources.")


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
  """Returns a nested dict as {"a.b": value}."""
  if not isinstance(tree, Mapping):
    return {prefix[:-1]: tree}
  return {
    name: value
    for key, subtree in tree.items()
    for name, value in flatten(subtree, f"{prefix}{key}.").items()
  }


def _is_among(name: str, fields: tuple[str, ...]) -> bool:
  """Whether a field is one of `fields`, or in one of their groups ("eval.")."""
  groups = tuple(field for field in fields if field.endswith("."))
  return name in fields or name.startswith(groups)


def evaluated(checkpoint: str | int, truncate_dim: int = 0) -> str:
  """Returns what a folder of results says of the parameters and vectors.

  It is the end of the folder's name, "evaluate-COLLECTION-CHECKPOINT".

  Args:
    checkpoint: The checkpoint, as the user named it: "best", "average:3".
    truncate_dim: The numbers to which vectors were cut; 0 for all.
  """
  cut = f"_first_{truncate_dim}" if truncate_dim else ""
  return f"{checkpoint}{cut}".replace(":", "_")


def is_evaluated(folder: str, what: str) -> bool:
  """Whether the folder of this name has such results.

  Args:
    folder: The name of a folder of results.
    what: From `evaluated`. "" is any one checkpoint, with whole vectors.
  """
  found = folder.rpartition("-")[2]
  if what and not what.startswith("_"):
    return found == what
  changed = found.startswith("average_")
  parameters, cut, size = found.partition("_first_")
  return not changed and f"{cut}{size}" == what and bool(parameters)


def is_trained(folder: epath.Path) -> bool:
  """Whether a run has a checkpoint."""
  return bool(listing.steps(folder / CHECKPOINTS))


def read_history(workdir: str) -> list[dict[str, Any]]:
  """Reads at which checkpoints a run went on with other settings, in order.

  Returns:
    Records {"time", "step", "from_step": whether the user named the step,
    "changed": {field: [before, after]}, "removed": steps of later checkpoints}.

  Raises:
    UnreadableError: if a line is damaged; it names the file and the line.
  """
  path = epath.Path(workdir) / HISTORY
  history = reading.read_json_lines(path)
  for number, record in enumerate(history, start=1):
    changed = record.get("changed")
    good = {
      "from_step": isinstance(record.get("from_step"), bool),
      "changed": isinstance(changed, dict)
      and all(isinstance(v, list) and len(v) == 2 for v in changed.values()),
    }
    for field in good:
      if not good[field]:
        raise reading.UnreadableError(
          f"{path}:{number}: {field} is {record.get(field)!r}."
          f" {reading.RESTORE}"
        )
  return history


def differences(
  config: Mapping[str, Any],
  kept: Mapping[str, Any],
  defaults: Mapping[str, Any],
) -> dict[str, list[Any]]:
  """Compares a run's config with that of an earlier start.

  Args:
    config: The run's config, as a plain dict.
    kept: The config of an earlier start.
    defaults: A config without changes, for fields that did not exist when
      `kept` was written.

  Returns:
    Each field that differs, to [kept value, value]. Fields that may change on
    resume are left out.
  """
  ours = flatten(config)
  theirs = flatten(defaults) | flatten(kept)
  return {
    name: [theirs.get(name), ours.get(name)]
    for name in sorted(ours.keys() | theirs.keys())
    if ours.get(name) != theirs.get(name)
    and not _is_among(name, CHANGEABLE_ON_RESUME)
  }


def refuse_changes(
  config: Mapping[str, Any],
  changed: Mapping[str, list[Any]],
  where: str,
  from_step: int | None,
) -> None:
  """Refuses changes with which a run cannot go on.

  Args:
    config: The run's config, as a plain dict.
    changed: From `differences`.
    where: The place of the earlier config, for the message.
    from_step: The step that the user named to go on from, or None.

  Raises:
    ValueError: if there are any; it names each field, and what to do.
  """
  refused = {
    name: values
    for name, values in changed.items()
    if not (
      _is_among(name, CHANGEABLE_FROM_STEP)
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
  if all(_is_among(name, CHANGEABLE_FROM_STEP) for name in refused):
    hints.append(
      "These may change if you name a checkpoint to go on from: add"
      " --from_step=N."
    )
    if "train.steps" in refused:
      hints.append(
        "(With optim.decay='constant', more train.steps need no --from_step:"
        " the learning rates of the steps already taken stay the same.)"
      )
  if flags := _flags_of_losses(refused):
    hints.append(
      "It was trained with losses that this command does not name. Their code"
      f" is not imported. To go on with them, repeat: {flags}"
    )
  raise ValueError(
    f"{where} holds a run with another config; give another --workdir, or the"
    " same values:\n" + "\n".join([*lines, *hints])
  )


def _flags_of_losses(refused: Mapping[str, list[Any]]) -> str:
  """Returns the flags for a user's losses that only the kept config names."""
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
  """Whether `train.steps` grows and the learning rates so far stay the same."""
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
  """Writes the config to the workdir, or compares it with the one there.

  `training.resume` writes the changes of a run that goes on from a checkpoint.

  Args:
    config: The run's config, as a plain dict.
    workdir: The run's folder; made if missing.
    defaults: As in `differences`.
    from_step: The step that the user named to go on from, or None.

  Raises:
    ValueError: if the workdir belongs to another experiment; it names each
      field. Also if there is no checkpoint of `from_step`.
  """
  folder = epath.Path(workdir)
  path = folder / CONFIG_FILE
  steps = listing.steps(folder / CHECKPOINTS)
  prepared = any((folder / name).exists() for name in (TOKENIZER, TOKEN_STORE))
  if steps:
    # The run may have gone on from this checkpoint and removed it since. Then
    # the same command goes on.
    if from_step not in (None, *steps) and not any(
      record["from_step"] and record["step"] == from_step
      for record in read_history(workdir)
    ):
      raise ValueError(
        f"--from_step={from_step}: {folder / CHECKPOINTS} has no checkpoint of"
        f" this step; it has {steps}."
      )
    if not path.exists():
      from mlir_jax.checkpoints import manager  # It imports orbax: slow.

      step, kept = manager.read_config(str(folder / CHECKPOINTS), from_step)
      print(f"{path} is missing: the checkpoint of step {step} has its values.")
      writing.write_aside(str(path), json.dumps(kept, indent=2) + "\n")
    changed = differences(config, reading.read_json(path), defaults)
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
        config, reading.read_json(path), defaults
      ).items()
      if _is_among(name, PREPARED) and not _is_among(name, NOT_PREPARED)
    }
    refuse_changes(config, changed, workdir, None)
  text = json.dumps(config, indent=2) + "\n"
  # Several processes call this, one after the other.
  if not path.exists() or path.read_bytes() != text.encode():
    writing.write_aside(str(path), text)
