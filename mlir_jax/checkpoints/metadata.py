"""The description that is saved with the arrays of a checkpoint."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mlir_jax import contract as contract_lib
from mlir_jax.storage import digests, reading


@dataclasses.dataclass(frozen=True)
class Description:
  """All that a program needs, besides the arrays, to encode with a checkpoint.

  Attributes:
    config: The run's config, as a plain dict.
    contract: The encoding contract.
    encoder: The encoder's shape: the fields of its config.
    provenance: Versions, commit, data fingerprints.
  """

  config: Mapping[str, Any]
  contract: contract_lib.EncodingContract
  encoder: Mapping[str, Any]
  provenance: Mapping[str, Any]

  def to_json(self) -> dict[str, Any]:
    """Returns a tree that JSON can hold, with its hash."""
    values = {
      "config": dict(self.config),
      "contract": self.contract.to_json(),
      "encoder": dict(self.encoder),
      "provenance": dict(self.provenance),
    }
    return {**values, "fingerprint": digests.of_value(values)}

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> "Description":
    """Reads what `to_json` returned.

    Raises:
      ValueError: if it has changed since, or a field is missing.
    """
    values = dict(values)
    # Early descriptions have no hash.
    written = values.pop("fingerprint", None)
    if written is not None and written != digests.of_value(values):
      raise ValueError(
        "it has changed since it was saved, so its vectors would differ."
        f" {reading.RESTORE}"
      )
    names = {field.name for field in dataclasses.fields(cls)}
    if values.keys() != names or not isinstance(values["contract"], str):
      raise ValueError(
        f"it holds {sorted(values)}, not {sorted(names)}. {reading.RESTORE}"
      )
    for name in names - {"contract"}:
      if not isinstance(values[name], Mapping):
        raise ValueError(f"{name} is {values[name]!r}. {reading.RESTORE}")
    contract = contract_lib.EncodingContract.from_json(values["contract"])
    return cls(**{**values, "contract": contract})
