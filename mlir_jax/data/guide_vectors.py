"""Opens a guide's vectors of the questions and passages of a token store.

A guide is a frozen retriever: see `losses.guide`. Its vectors are in a folder
next to the token store: .npy files, which are read through memory maps, and
meta.json. Each role (query, passage) has the texts that the retrieval stream
has in it:

  {role}_hashes    uint64 [T]       the texts' hashes, ascending
  {role}_rows      int64 [T]        the row of each text's vector
  {role}_vectors   float16 [T, G]   of unit length; 0 for a text without tokens
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlir_jax.batches import identity
from mlir_jax.storage import digests, reading

ROLES = ("query", "passage")
META = "meta.json"
FORMAT = 1

_MEND = "Delete the folder; the next start computes the vectors again."


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GuideVectors:
  """The open vectors of a guide.

  Attributes:
    path: The folder.
    meta: The content of meta.json: see `guide_writer`.
    arrays: Name to memory-mapped array; the module's docstring lists them.
  """

  path: pathlib.Path
  meta: Mapping[str, Any]
  arrays: Mapping[str, np.ndarray]

  @classmethod
  def open(cls, path: str | os.PathLike) -> "GuideVectors":
    """Opens a folder and checks that it is whole; see `digests.check`.

    Raises:
      UnreadableError: if a file is missing, has changed, or is from another
        version.
    """
    path = pathlib.Path(path)
    meta = read_meta(path)
    digests.check(path, meta["files"], _MEND)
    arrays = {
      f"{role}_{name}": np.load(
        path / f"{role}_{name}.npy", mmap_mode="r", allow_pickle=False
      ).view(np.ndarray)  # The indexing of np.memmap is slow.
      for role in ROLES
      for name in ("hashes", "rows", "vectors")
    }
    return cls(path, meta, arrays)

  @property
  def guide(self) -> Mapping[str, Any]:
    """The guide's description, for the provenance of a run."""
    return self.meta["guide"]

  @property
  def width(self) -> int:
    """G, the numbers of a vector."""
    return self.arrays["query_vectors"].shape[1]

  def find(self, role: str, hashes: np.ndarray) -> np.ndarray:
    """Returns the vectors of some texts.

    Args:
      role: "query" or "passage".
      hashes: uint64 [...], texts that the retrieval stream has in this role, or
        `identity.NONE`.

    Returns:
      float16 [..., G], 0 for `identity.NONE`.

    Raises:
      ValueError: if a text has no vector.
    """
    known = self.arrays[f"{role}_hashes"]
    place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    is_text = hashes != identity.NONE
    if (is_text & (known[place] != hashes)).any():
      raise ValueError(
        f"Some texts of the role {role} have no vector in {self.path}: it is of"
        f" another token store. {_MEND}"
      )
    rows = self.arrays[f"{role}_rows"][place]
    vectors = self.arrays[f"{role}_vectors"][np.where(is_text, rows, 0)]
    return np.where(is_text[..., None], vectors, np.float16(0))

  def summary(self) -> str:
    """Describes the vectors in one line."""
    counts = " and ".join(
      f"{len(self.arrays[f'{role}_hashes']):,} of the role {role}"
      for role in ROLES
    )
    return f"guide {named(self.guide)}: vectors of {self.width}, {counts}"


def read_meta(path: pathlib.Path) -> dict[str, Any]:
  """Reads the meta.json of a folder of vectors.

  Raises:
    UnreadableError: if it cannot be read or is from another version.
  """
  file = path / META
  meta = reading.read_json(file, mend=_MEND)
  if meta.get("format") != FORMAT or meta.get("sha256") != _seal(meta):
    raise reading.UnreadableError(
      f"{file} has changed or is from another version of mlir_jax (format"
      f" {meta.get('format')!r}; this one reads {FORMAT}). {_MEND}"
    )
  return meta


def sealed(meta: Mapping[str, Any]) -> dict[str, Any]:
  """Adds a hash of all fields to the metadata."""
  return {**meta, "sha256": _seal(meta)}


def _seal(meta: Mapping[str, Any]) -> str:
  return digests.of_value({k: meta[k] for k in meta if k != "sha256"})


def named(guide: Mapping[str, Any]) -> str:
  """Returns the name of a described guide, with its step or commit."""
  if guide["step"] is not None:
    return f"{guide['name']} (step {guide['step']:,})"
  return guide["name"] + (f" ({guide['commit']})" if guide["commit"] else "")


def describe(guide: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
  """Says in one sentence what a guide masks in a run, for report and card.

  Args:
    guide: The guide's description.
    settings: The part `loss.ir` of the run's config.
  """
  margins = [
    f"{kind} margin {value:g}"
    for kind in ("absolute", "relative")
    if (value := settings[f"guide_{kind}_margin"])
  ]
  return (
    f"Guide: {named(guide)}. A passage that it finds closer to a question than"
    " the question's own positive was no negative of the question"
    f" ({' and '.join(margins) or 'no margin'})."
  )
