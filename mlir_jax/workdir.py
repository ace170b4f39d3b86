"""The run's folder: what stands in it, and that it is of one experiment.

It may stand on object storage (gs://bucket/run), which writes whole objects,
and neither appends, renames nor maps into memory. What needs one of these
lives in a local copy of the folder on each machine, and is brought and kept
by `fetch` and `keep`.
"""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from mlir_jax.checkpoints import listing
from mlir_jax.storage import reading, writing

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


def is_trained(folder: epath.Path) -> bool:
  """Whether a run has a checkpoint."""
  return bool(listing.steps(folder / CHECKPOINTS))


def read_history(workdir: str) -> list[dict[str, Any]]:
  """From which checkpoints a run went on with other settings, in order.

  Returns:
    {"time", "step", "from_step": whether it was named, "changed": {field:
    [before, after]}, "removed": steps of later checkpoints} each.

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
  steps = listing.steps(folder / CHECKPOINTS)
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
      if _stands_in(name, PREPARED) and not _stands_in(name, NOT_PREPARED)
    }
    refuse_changes(config, changed, workdir, None)
  text = json.dumps(config, indent=2) + "\n"
  # Several processes claim it, one behind the other.
  if not path.exists() or path.read_bytes() != text.encode():
    writing.write_aside(str(path), text)
