"""Opens the token store: every text of a collection, tokenized once.

The store is a folder of .npy files, which are read through memory maps, and
meta.json. It has shards, which were made independently. Each shard has a folder
with its tokens, such as 00003/query_tokens.npy. The other arrays are those of
all shards together.

Each role (query, passage, sentence) has the tokens of the texts that appear in
it. A row names a text by its index in the role. Several texts of a role may
have the same tokens. Two hashes say which texts are the same, see
`batches.identity`:

  {role}_tokens            int32 [all tokens]  the texts, one after another
  {role}_offsets           int64 [T + 1]       where each text starts
  {role}_text_hashes       uint64 [T]  of the tokens before prefix, special
                                       tokens and cutting; comparable in all
                                       roles
  {role}_sequence_hashes   uint64 [T]  of those of them that are left when the
                                       text is cut; comparable in this role
  retrieval_queries             int32 [R]     texts of the role query
  retrieval_positives           int32 [*]     texts of the role passage
  retrieval_positive_offsets    int64 [R + 1]
  retrieval_negatives           int32 [*]     hard negatives, of the same role
  retrieval_negative_offsets    int64 [R + 1]
  retrieval_positive_scores     float32 [*]   a teacher's scores, NaN for none;
  retrieval_negative_scores     float32 [*]   only if a passage has one
  retrieval_questions           int32 [R]     number of the distinct question
  retrieval_known               uint64 [*]    sequence hashes of all its
                                              positives
  retrieval_known_offsets       int64 [Q + 1]
  parallel_texts, parallel_languages          int32 [N, 2]  of the role sentence
  monolingual_texts, monolingual_languages    int32 [M]     of the role sentence
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlir_jax import contract as contract_lib
from mlir_jax.batches import identity
from mlir_jax.data import records
from mlir_jax.data.shards import tokens as tokens_lib
from mlir_jax.storage import copies, digests, reading

STREAMS = records.STREAMS
FORMAT = 7


class Group(NamedTuple):
  """Rows of a stream that are together: those of a source in a language.

  Attributes:
    source: The name of the source; "" for none.
    language: The language; of translations, the pair, such as "de-en".
    rows: Their number.
  """

  source: str
  language: str
  rows: int


def read_groups(values: Iterable[Mapping[str, Any]]) -> tuple[Group, ...]:
  """Reads the groups of a stream from meta.json."""
  return tuple(Group(**value) for value in values)


def language_rows(groups: Iterable[Group]) -> dict[str, int]:
  """Returns the rows of each language (or language pair), in their order."""
  rows: dict[str, int] = {}
  for group in groups:
    rows[group.language] = rows.get(group.language, 0) + group.rows
  return rows


class TokenStoreError(ValueError):
  """A token store cannot be used; the message names the file."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TokenStore:
  """An open token store.

  Attributes:
    path: The folder.
    meta: The content of meta.json.
    contract: The encoding contract with which the texts were tokenized.
    arrays: Name to memory-mapped array, but for tokens; the module's docstring
      lists them.
    remote: Where the tokens are that this machine has not read yet: a folder on
      object storage; "" if all are in `path`.
  """

  path: pathlib.Path
  meta: Mapping
  contract: contract_lib.EncodingContract
  arrays: Mapping[str, np.ndarray]
  remote: str = ""

  @classmethod
  def open(
    cls,
    path: str | os.PathLike,
    *,
    just_built: bool = False,
    remote: str = "",
  ) -> "TokenStore":
    """Opens a store and checks that it is whole.

    The hash of each array is compared once on a machine, see `digests.check`.

    Args:
      path: The folder.
      just_built: Whether this process has just hashed the arrays.
      remote: The store on object storage of which `path` is a copy. Tokens that
        are not in `path` are copied when they are first read.

    Raises:
      FileNotFoundError: if there is no store.
      TokenStoreError: if the store has changed since it was built.
    """
    path = pathlib.Path(path)
    file = path / "meta.json"
    if not file.is_file():
      raise FileNotFoundError(
        f"There is no token store at {path}: {file} is not a file. Delete the"
        " folder; the next start builds the store again."
      )
    meta = read_meta(file)
    if meta.get("format") != FORMAT:
      raise TokenStoreError(
        f"{file} is from another version of mlir_jax (format"
        f" {meta.get('format')!r}; this one reads {FORMAT}); {_REBUILD} A run"
        " that was trained on it needs another --workdir."
      )
    if meta != sealed(meta):
      raise TokenStoreError(
        f"{file} has changed since it was built; {_REBUILD}"
      )
    if not just_built:
      names = [
        name
        for name in meta["arrays"]
        if not (remote and "/" in name) or (path / f"{name}.npy").exists()
      ]
      _check_arrays(path, meta, names)
    arrays = {
      name: _open_array(path / f"{name}.npy")
      for name in meta["arrays"]
      if "/" not in name  # Not in the folder of a shard.
    }
    return cls(path, meta, read_contract(file), arrays, remote)

  @property
  def fingerprint(self) -> str:
    """SHA-256 of the whole content, without `source` and the bad records."""
    return self.meta["fingerprint"]

  @property
  def source(self) -> str:
    """The fingerprint of the collection that the store was built from."""
    return self.meta["source"]

  @property
  def pad_id(self) -> int:
    """The id with which sequences are padded."""
    return self.meta["pad_id"]

  @property
  def has_scores(self) -> bool:
    """Whether passages have a teacher's scores."""
    return "retrieval_positive_scores" in self.arrays

  @property
  def languages(self) -> tuple[str, ...]:
    """The languages, by their numbers in the arrays."""
    return tuple(self.meta["languages"])

  @property
  def max_positives(self) -> int:
    """The largest number of known positives of a question."""
    return self.meta["max_positives"]

  @property
  def truncation(self) -> Mapping[str, Mapping[str, Sequence[int]]]:
    """Role to language to (texts cut, all texts). Each string counts once.

    A text of several languages counts for the first of them.
    """
    return self.meta["truncation"]

  @property
  def dropped(self) -> Mapping[str, int]:
    """Reason for which records were left out to their number."""
    return self.meta["dropped"]

  def groups(self, stream: str) -> tuple[Group, ...]:
    """Returns the groups of a stream in the order of its rows.

    The groups of a language (or language pair) follow each other.
    """
    return read_groups(self.meta["groups"][stream])

  def rows(self, stream: str) -> int:
    """Returns the number of rows of a stream."""
    return sum(group.rows for group in self.groups(stream))

  def language_rows(self, stream: str) -> dict[str, int]:
    """Returns the rows of each language (or language pair), in their order."""
    return language_rows(self.groups(stream))

  def source_rows(self, stream: str) -> dict[str, int]:
    """Returns the rows of each source, sorted by their names."""
    rows: dict[str, int] = {}
    for group in sorted(self.groups(stream)):
      rows[group.source] = rows.get(group.source, 0) + group.rows
    return rows

  def lengths(self, role: str) -> np.ndarray:
    """Returns the number of tokens of each text of a role; int64 [T]."""
    return np.diff(self.arrays[f"{role}_offsets"])

  @functools.cached_property
  def padded_lengths(self) -> Mapping[str, int]:
    """Role to the length to which its texts are padded, in tokens.

    It is the length of the longest text, rounded up to a multiple of 8, but
    at most max_length: the same in every batch and on every host.
    """
    return {
      role: min(
        self.contract.role(role).max_length,
        -(-int(self.lengths(role).max(initial=1)) // 8) * 8,
      )
      for role in contract_lib.ROLES
    }

  def text_hashes(self, role: str, texts: np.ndarray) -> np.ndarray:
    """Returns hashes that are equal for equal texts in any roles.

    Args:
      role: The role of the texts.
      texts: int [...], texts of that role, or -1.

    Returns:
      uint64 [...], `identity.NONE` where the text is -1.
    """
    return self._hashes(f"{role}_text_hashes", texts)

  @functools.cached_property
  def tokens(self) -> Mapping[str, tokens_lib.ShardedTokens]:
    """Role to the tokens of all texts, one text after another; int32."""
    opened = {}
    for role in contract_lib.ROLES:
      names = [
        f"{tokens_lib.folder_name(number)}/{role}_tokens"
        for number in range(self.meta["shards"])
      ]
      opened[role] = tokens_lib.ShardedTokens(
        [self.meta["arrays"][name]["shape"][0] for name in names],
        lambda number, names=names: self._open_tokens(names[number]),
      )
    return opened

  def _open_tokens(self, name: str) -> np.ndarray:
    """Opens the tokens of a role and a shard; copies them first if needed."""
    file = self.path / f"{name}.npy"
    if self.remote and not file.exists():
      copies.fetch(self.remote, str(self.path), f"{name}.npy")
      _check_arrays(self.path, self.meta, [name])
    return _open_array(file)

  def sequence_hashes(self, role: str, texts: np.ndarray) -> np.ndarray:
    """Returns hashes that are equal for texts of the role that are cut alike.

    Args:
      role: The role of the texts.
      texts: int [...], texts of that role, or -1.

    Returns:
      uint64 [...], `identity.NONE` where the text is -1.
    """
    return self._hashes(f"{role}_sequence_hashes", texts)

  def _hashes(self, array: str, texts: np.ndarray) -> np.ndarray:
    return np.where(texts < 0, identity.NONE, self.arrays[array][texts])

  def text_lengths(self, role: str, texts: np.ndarray) -> np.ndarray:
    """Returns the numbers of tokens of some texts in a role.

    Args:
      role: The role of the texts.
      texts: int [...], texts of that role; -1 has no tokens.

    Returns:
      int64 [...].
    """
    _, lengths = self._find(role, texts)
    return lengths

  def sequences(
    self, role: str, texts: np.ndarray, length: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the padded tokens of some texts.

    Args:
      role: The role of the texts.
      texts: int [...], texts of that role; -1 gives only padding.
      length: The length to which they are padded, in tokens.

    Returns:
      ids: int32 [..., length].
      mask: bool, the same shape; False is padding.

    Raises:
      ValueError: if a text is longer.
    """
    starts, lengths = self._find(role, texts)
    if lengths.max(initial=0) > length:
      raise ValueError(
        f"A text of {lengths.max()} tokens cannot be padded to {length}."
      )
    places = np.arange(length)
    mask = places < lengths[..., None]
    ids = self.tokens[role].take(starts, mask)
    return np.where(mask, ids, np.int32(self.pad_id)), mask

  def _find(
    self, role: str, texts: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the tokens of some texts start, and their numbers."""
    offsets = self.arrays[f"{role}_offsets"]
    starts = offsets[texts]
    return starts, np.where(texts < 0, 0, offsets[texts + 1] - starts)

  def summary(self) -> str:
    """Describes in lines what the store holds, lacks and has cut."""
    lines = []
    for stream in STREAMS:
      languages = _list_counts(self.language_rows(stream))
      lines.append(f"{stream}: {self.rows(stream):,} rows ({languages})")
      sources = self.source_rows(stream)
      if sources.keys() > {""} or len(sources) > 1:
        named = {name or "(no name)": rows for name, rows in sources.items()}
        lines.append(f"{stream} by source: {_list_counts(named)}")
    lines.append(f"hard negatives: {len(self.arrays['retrieval_negatives']):,}")
    if self.has_scores:
      scored = sum(
        int(np.isfinite(self.arrays[f"retrieval_{kind}_scores"]).sum())
        for kind in ("positive", "negative")
      )
      lines.append(f"scores of a teacher: {scored:,}")
    if self.meta["shuffled_by"] is not None:
      lines.append("parallel pairs are shuffled: a control experiment")
    for what, count in self.dropped.items():
      lines.append(f"dropped {what}: {count:,}")
    lines.append(records.describe_bad("training", self.meta["bad_records"]))
    for role, languages in self.truncation.items():
      shares = ", ".join(
        f"{language} {cut / total:.1%}"
        for language, (cut, total) in languages.items()
      )
      if shares:
        length = self.contract.role(role).max_length
        lines.append(f"{role} texts cut to {length} tokens: {shares}")
    return "\n".join(lines)


def _list_counts(counts: Mapping[str, int]) -> str:
  listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
  return records.printable(listed or "none")


# These are not content: other files may hold the same texts.
_PROVENANCE = ("source", "bad_records", "notes", "files", "report_groups")
_REBUILD = (
  "delete the folder and prepare again (mlir_jax.prepare, or start the run)."
)


def read_meta(path: str | os.PathLike) -> dict:
  """Reads meta.json; raises TokenStoreError if it cannot be read."""
  try:
    return reading.read_json(path, mend=f"To mend it, {_REBUILD}")
  except reading.UnreadableError as error:
    raise TokenStoreError(str(error)) from error


def read_contract(path: str | os.PathLike) -> contract_lib.EncodingContract:
  """Reads the encoding contract from meta.json.

  Raises:
    TokenStoreError: if meta.json cannot be read or holds no valid contract.
  """
  try:
    return contract_lib.EncodingContract.from_dict(
      read_meta(path).get("contract")
    )
  except ValueError as error:
    raise TokenStoreError(f"{path}: {error} To mend it, {_REBUILD}") from error


def _check_arrays(
  path: pathlib.Path, meta: Mapping, names: Sequence[str]
) -> None:
  """Compares the files of arrays with their hashes, once on a machine."""
  hashes = {f"{name}.npy": meta["arrays"][name]["sha256"] for name in names}
  try:
    digests.check(path, hashes, f"To mend it, {_REBUILD}")
  except reading.UnreadableError as error:
    raise TokenStoreError(str(error)) from error


def _open_array(path: pathlib.Path) -> np.ndarray:
  """Maps an array into memory; its content was checked before."""
  found = np.load(path, mmap_mode="r", allow_pickle=False)
  return found.view(np.ndarray)  # np.memmap's own indexing is slow.


def sealed(meta: Mapping) -> dict:
  """Adds the store's fingerprint to the metadata, and a hash of all fields."""
  meta = {**meta, "fingerprint": _fingerprint(meta)}
  meta.pop("sha256", None)
  return {**meta, "sha256": digests.of_value(meta)}


def _fingerprint(meta: Mapping) -> str:
  """Returns SHA-256 of the metadata of the content, with the arrays' hashes."""
  left_out = ("fingerprint", "sha256", *_PROVENANCE)
  content = {name: meta[name] for name in meta if name not in left_out}
  text = json.dumps(content, sort_keys=True, ensure_ascii=False)
  return hashlib.sha256(text.encode()).hexdigest()
