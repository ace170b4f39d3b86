"""mlir_jax.json: what an export is, with hashes that show any change of it."""

import pathlib
from collections.abc import Mapping
from typing import Any

from mlir_jax import contract as contract_lib
from mlir_jax.models import architecture, layout_files
from mlir_jax.storage import digests, reading

FILE = "mlir_jax.json"
_CHANGED = (
  "Restore the export from a copy, or export it again. If you want the change,"
  f" delete {FILE}: the folder is then read like any other model's."
)


class SealError(ValueError):
  """An export that is damaged or was changed; the message names the file."""


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what mlir_jax.json holds, with a hash of all of it."""
  values = {name: content[name] for name in content if name != "fingerprint"}
  return {**values, "fingerprint": digests.of_value(values)}


def read(
  folder: pathlib.Path,
  encoding: contract_lib.PartialContract,
  tower: str | None,
) -> dict[str, Any]:
  """Reads mlir_jax.json, and compares the other files with its contract.

  Args:
    folder: The export.
    encoding: What the other files say.
    tower: The tower that they name, if any.

  Returns:
    "contract", "tower", "encoder", "provenance", "step", "weights" (the
    SHA-256 of each file of weights) and "fingerprint" (of all this).

  Raises:
    SealError: if the file is damaged or was changed.
    ContractMismatchError: if the other files were changed.
  """
  path = folder / FILE
  try:
    ours = reading.read_json(path)
  except reading.UnreadableError as error:
    raise SealError(str(error)) from error
  try:
    contract = contract_lib.EncodingContract.from_dict(ours.get("contract"))
  except ValueError as error:
    raise SealError(f"{path}: {error} {reading.RESTORE}") from error
  if ours.get("tower") not in layout_files.TOWERS:
    raise SealError(
      f"{path}: tower is {ours.get('tower')!r}; it is one of"
      f" {layout_files.TOWERS}."
    )
  if not isinstance(ours.get("encoder"), dict) or "step" not in ours:
    raise SealError(f"{path} lacks encoder or step. {reading.RESTORE}")
  # Older exports have the tower and the title joiner in mlir_jax.json alone.
  if tower not in (None, ours["tower"]):
    raise SealError(
      f"{path}: tower is {ours['tower']!r}, but {layout_files.MODEL} in the"
      f" same folder says {tower!r}. {reading.RESTORE}"
    )
  joiner = contract_lib.PartialContract(
    title_joiner=contract.title_joiner,
    prompts=contract.prompts,
    truncate_dim=0,  # A folder of whole vectors does not say it.
  )
  contract_lib.check_same(
    contract.partial(), encoding.over(joiner), f"the files next to {path}"
  )
  # Older exports have no hash of mlir_jax.json.
  expected = seal(ours)["fingerprint"]
  if ours.get("fingerprint", expected) != expected:
    raise SealError(f"{path} has changed since it was written. {_CHANGED}")
  return ours


def check_encoder(
  ours: Mapping[str, Any],
  transformer: pathlib.Path,
  config: architecture.EncoderConfig,
) -> None:
  """Checks that config.json and the modules are as they were written.

  Args:
    ours: From `read`.
    transformer: The folder with config.json.
    config: The encoder with its projection, as the folder says now.

  Raises:
    SealError: naming each field that differs.
  """
  written = ours["encoder"]
  shape = architecture.shape_of(config)
  shape["layer_types"] = list(shape["layer_types"])  # As JSON has it.
  changed = [
    f"{name} is {value!r}, and it was written with {written[name]!r}"
    for name, value in shape.items()
    # config.json does not say the type of the activations.
    if name != "dtype" and name in written and written[name] != value
  ]
  if changed:
    raise SealError(
      f"{transformer / layout_files.CONFIG} or that of a module has changed"
      f" since the export: {'; '.join(changed)}. {_CHANGED}"
    )


def check_weights(ours: Mapping[str, Any], folder: pathlib.Path) -> None:
  """Checks that an export's weights are as they were written.

  Raises:
    SealError: naming the file.
  """
  try:
    digests.check(folder, ours.get("weights", {}), _CHANGED)
  except reading.UnreadableError as error:
    raise SealError(str(error)) from error
