"""A run, an export, or an export's two towers, as what a run starts from.

A run's checkpoint is written as an export is, without the check by
sentence-transformers, into the folder of the run that starts from it. So there
is one way to read a pretrained model, and a start that was killed finds the
same one again, whatever has become of the other run.
"""

import hashlib
import pathlib

import jax
from etils import epath

from mlir_jax import sharding, workdir
from mlir_jax.checkpoints import manager
from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.hub import folder as folder_lib
from mlir_jax.models import layout
from mlir_jax.retrieval import model
from mlir_jax.storage import copies, locations, writing

# In the workdir: what was written of other runs.
FOLDER = "pretrained"


def is_run(name: str) -> bool:
  """Whether `model.pretrained` is the folder of a run with a checkpoint."""
  return workdir.is_trained(epath.Path(locations.absolute(name)))


def of_run(run: str, which: str, local: str) -> tuple[pathlib.Path, int]:
  """Writes a run's checkpoint as a model's folder, once.

  Args:
    run: The run's folder.
    which: "best", "last", or a step; "" for the best one, or the last one if
      none was evaluated.
    local: The local copy of the workdir of the run that starts.

  Returns:
    The folder, and the step.

  Raises:
    ValueError: if there is no such checkpoint, or it is damaged.
  """
  name = hashlib.sha256(locations.absolute(run).encode()).hexdigest()[:8]
  targets = pathlib.Path(local) / FOLDER
  target = targets / f"{name}-step-{which}"
  if which.isdecimal() and target.is_dir():
    return target, int(which)
  mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
  try:
    loaded = model.load_run(run, which or "best", mesh)
  except manager.NotEvaluatedError:
    if which:
      raise
    loaded = model.load_run(run, "last", mesh)
  # Of a run there are both.
  assert loaded.step is not None and loaded.description is not None
  target = targets / f"{name}-step-{loaded.step}"
  if target.is_dir():
    return target, loaded.step
  tokenizer = epath.Path(copies.local_copy(loaded.path)) / workdir.TOKENIZER
  print(f"Starting from step {loaded.step} of {run}.")
  try:
    with writing.folder_aside(target) as aside:
      for subfolder, tower in folder_lib.towers(loaded.params).items():
        folder_lib.write(
          aside / subfolder,
          loaded.params,
          loaded.encoder_config,
          loaded.contract,
          tokenizer_lib.load(str(tokenizer.parent)),
          tower=tower,
          provenance=loaded.description.provenance,
          step=loaded.step,
        )
  except writing.TakenError:
    if not target.is_dir():  # Else another process of this machine was faster.
      raise
  return target, loaded.step


def towers(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """The folder of each tower: {"both"}, or {"query", "passage"}.

  Args:
    folder: A model's folder, or an export of separate towers.

  Raises:
    ValueError: if it is one of two towers, or two that are not of one export.
  """
  parts = {name: folder / name for name in ("query", "passage")}
  if (folder / layout.MODULES).is_file() or not all(
    (part / layout.MODULES).is_file() for part in parts.values()
  ):
    tower = layout.read(folder).tower
    if tower != "both":
      raise ValueError(
        f"{folder} is the {tower} tower of an export: give the folder"
        " that holds both towers."
      )
    return {"both": folder}
  found = {name: layout.read(part).ours or {} for name, part in parts.items()}
  for name, ours in found.items():
    if ours.get("tower") != name:
      raise ValueError(
        f"{parts[name]} is not the {name} tower of an export: give the folder"
        " of one model."
      )
  query, passage = found.values()
  for field in ("contract", "encoder", "step"):
    if query[field] != passage[field]:
      raise ValueError(
        f"{parts['query']} and {parts['passage']} are not of one export: the"
        f" {field} in {layout.OURS} differs."
      )
  return parts


def read(folder: pathlib.Path) -> layout.Layout:
  """What a model's folder says of how it encodes: the same of both towers."""
  return layout.read(next(iter(towers(folder).values())))
