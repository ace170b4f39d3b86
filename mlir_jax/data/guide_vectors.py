"""Opens the vectors that a frozen model gives to texts of a token store.

A frozen model is a guide (see `losses.guide`) or a teacher (see
`losses.distillation`); `KINDS` says which texts it reads. Its vectors are in a
folder next to the token store: .npy files, which are read through memory maps,
and meta.json. Each role has the texts that the model reads in it:

  {role}_hashes    uint64 [T]       the texts' hashes, ascending
  {role}_rows      int64 [T]        the row of each text's vector
  {role}_vectors   float16 [T, G]   of unit length; 0 for a text without tokens
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlir_jax import workdir
from mlir_jax.batches import identity
from mlir_jax.storage import digests, reading

META = "meta.json"
FORMAT = 1

_MEND = "Delete the folder; the next start computes the vectors again."


class Kind(NamedTuple):
  """A use of a frozen model in a run.

  Attributes:
    name: "guide" or "teacher". It is the name of the vectors' folder, too.
    field: The config's field that names the model, for messages.
    roles: The roles in which the model reads texts.
  """

  name: str
  field: str
  roles: tuple[str, ...]


# A guide reads the whole retrieval stream. A teacher reads one side of each
# translation.
GUIDE = Kind(workdir.GUIDE, "loss.ir.guide", ("query", "passage"))
TEACHER = Kind(workdir.TEACHER, "loss.distillation.teacher", ("sentence",))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GuideVectors:
  """The open vectors of a guide or a teacher.

  Attributes:
    kind: `GUIDE` or `TEACHER`.
    path: The folder.
    meta: The content of meta.json: see `guide_writer`.
    arrays: Name to memory-mapped array; the module's docstring lists them.
  """

  kind: Kind
  path: pathlib.Path
  meta: Mapping[str, Any]
  arrays: Mapping[str, np.ndarray]

  @classmethod
  def open(cls, kind: Kind, path: str | os.PathLike) -> "GuideVectors":
    """Opens a folder and checks that it is whole; see `digests.check`.

    Args:
      kind: `GUIDE` or `TEACHER`.
      path: The folder.

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
      for role in kind.roles
      for name in ("hashes", "rows", "vectors")
    }
    return cls(kind, path, meta, arrays)

  @property
  def guide(self) -> Mapping[str, Any]:
    """The model's description, for the provenance of a run."""
    return self.meta["guide"]

  @property
  def width(self) -> int:
    """G, the numbers of a vector."""
    return self.arrays[f"{self.kind.roles[0]}_vectors"].shape[1]

  def find(self, role: str, hashes: np.ndarray) -> np.ndarray:
    """Returns the vectors of some texts.

    Args:
      role: One of the kind's roles.
      hashes: uint64 [...], texts that the model has read in this role, or
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
      for role in self.kind.roles
    )
    name = f"{self.kind.name} {named(self.guide)}"
    return f"{name}: vectors of {self.width}, {counts}"


def sides_to_read(languages: np.ndarray, language: int) -> np.ndarray:
  """Returns which side of each translation a teacher reads.

  Args:
    languages: The numbers of the languages of both sides, int [N, 2].
    language: The number of the language that the teacher reads; -1 if no text
      is in it.

  Returns:
    int64 [N]: 0 or 1; -1 if no side is in this language. If both sides are in
    it, it is the first one.
  """
  is_read = languages == language
  return np.where(is_read.any(axis=1), is_read.argmax(axis=1), -1)


def language_number(languages: Sequence[str], language: str) -> int:
  """Returns the number of a language in a store; -1 if it is not there."""
  return languages.index(language) if language in languages else -1


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
  """Returns the name of a described model, with its step or commit."""
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


def describe_teacher(teacher: Mapping[str, Any]) -> str:
  """Says in one sentence what a run learned from a teacher."""
  return (
    f"Teacher: {named(teacher)}. Both sentences of a translation learned the"
    f" vector that it gives to the sentence in {teacher['language']!r}."
  )


def describe_all(
  provenance: Mapping[str, Any], losses: Mapping[str, Any]
) -> list[str]:
  """Returns a sentence on each frozen model of a run, for report and card.

  Args:
    provenance: The run's provenance; "guide" and "teacher" may be missing.
    losses: The part `loss` of the run's config.
  """
  found = []
  if guide := provenance.get(GUIDE.name):
    found.append(describe(guide, losses["ir"]))
  if teacher := provenance.get(TEACHER.name):
    found.append(describe_teacher(teacher))
  return found
