"""The folders of the model that a run starts from: a run, or an export.

A checkpoint of another run is written like an export, but without the check by
sentence-transformers, into the folder of the run that starts from it. So all
pretrained models are read in one way. If the start is killed, the next start
finds the same model, even if the other run has gone on or is deleted.
"""

import hashlib
import pathlib

import jax
from etils import epath

from mlir_jax import sharding, workdir
from mlir_jax.checkpoints import manager
from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.hub import folder as folder_lib
from mlir_jax.models import layout, layout_files, sealed
from mlir_jax.retrieval import model
from mlir_jax.storage import copies, locations, writing

# In the workdir: the checkpoints of other runs.
FOLDER = "pretrained"


def is_run(name: str) -> bool:
  """Returns whether this is the folder of a run with a checkpoint."""
  return workdir.is_trained(epath.Path(locations.absolute(name)))


def load_run(run: str, which: str, mesh: jax.sharding.Mesh) -> model.Model:
  """Loads a checkpoint of another run.

  Args:
    run: The other run's folder.
    which: "best", "last", or a step; "" for the best one, or the last one if
      none was evaluated.
    mesh: The devices.

  Raises:
    ValueError: if there is no such checkpoint, or it is damaged.
  """
  try:
    return model.load_run(run, which or "best", mesh)
  except manager.NotEvaluatedError:
    if which:
      raise
    return model.load_run(run, "last", mesh)


def of_run(run: str, which: str, local: str) -> tuple[pathlib.Path, int]:
  """Writes a run's checkpoint as a model's folder, once.

  Args:
    run: The other run's folder.
    which: As in `load_run`.
    local: The local copy of the workdir of the run that starts.

  Returns:
    The folder, and the step.

  Raises:
    ValueError: if there is no such checkpoint, or it is damaged.
  """
  if which.startswith(manager.AVERAGE):
    raise ValueError(
      f"model.revision is {which!r}, but a run starts from one checkpoint:"
      f" export the mean (mlir_jax.export --checkpoint={which}), and give its"
      " folder in model.pretrained."
    )
  name = hashlib.sha256(locations.absolute(run).encode()).hexdigest()[:8]
  targets = pathlib.Path(local) / FOLDER
  target = targets / f"{name}-step-{which}"
  if which.isdecimal() and target.is_dir():
    return target, int(which)
  mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
  loaded = load_run(run, which, mesh)
  # `load_run` always gives both.
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
    # Another process of this machine may have been faster.
    if not target.is_dir():
      raise
  return target, loaded.step


def towers(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the folder of each tower: {"both"}, or {"query", "passage"}.

  Args:
    folder: A model's folder, or an export of separate towers.

  Raises:
    ValueError: if it is one of two towers, or the two are not of one export.
  """
  parts = {name: folder / name for name in ("query", "passage")}
  if (folder / layout_files.MODULES).is_file() or not all(
    (part / layout_files.MODULES).is_file() for part in parts.values()
  ):
    tower = layout.read(folder).tower
    if tower != "both":
      raise ValueError(
        f"{folder} is the {tower} tower of an export: give the folder that"
        " holds both towers."
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
        f" {field} in {sealed.FILE} differs."
      )
  return parts


def read(folder: pathlib.Path) -> layout.Layout:
  """Reads how a model encodes. Both towers of an export say the same."""
  return layout.read(next(iter(towers(folder).values())))
