"""Tokenizes the texts of a shard of a token store, each once per role."""

import array
import functools
import hashlib
import operator
import pathlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
import tokenizers

from mlir_jax import contract as contract_lib
from mlir_jax.batches import identity

# Characters of the texts that are tokenized together: some 10,000 passages. A
# number of texts would not bound memory, because a text can be a book.
_CHUNK_CHARACTERS = 4_000_000


class Numbering(dict):
  """Numbers keys in the order in which they are first looked up."""

  def __missing__(self, key):
    self[key] = number = len(self)
    return number


def row_offsets(lengths) -> np.ndarray:
  """Returns the offsets of ragged rows of these lengths; int64 [rows + 1]."""
  return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


class Hashes(NamedTuple):
  """The hashes of a role's texts; see `batches.identity`.

  Attributes:
    text: Of the tokens of each stripped body, before prefix, special tokens and
      cutting; uint64 [T]. Equal texts have one hash in all roles and shards.
    sequence: Of those tokens that are left when the text is cut after the
      role's prefix, uint64 [T]. Equal texts have one in this role, and so do
      texts that become equal when they are cut. A prompt in place of the prefix
      changes nothing: a question's positive stays a positive where its source
      has a prompt.
  """

  text: np.ndarray
  sequence: np.ndarray


@functools.lru_cache(
  maxsize=4
)  # Three roles cut their texts; bodies are not cut.
def parse_tokenizer(
  tokenizer: str, max_length: int | None = None
) -> tokenizers.Tokenizer:
  """Makes a tokenizer that does not pad.

  A large one takes a second, so it is kept for the next shard.

  Args:
    tokenizer: The tokenizer's JSON.
    max_length: The tokens of a text at most; None does not cut.
  """
  made = tokenizers.Tokenizer.from_str(tokenizer)
  made.no_padding()
  made.no_truncation()
  if max_length is not None:
    made.enable_truncation(max_length, direction="right")
  return made


class ShardTexts:
  """Gives the texts of a shard an index in each role; writes their tokens."""

  def __init__(
    self,
    folder: pathlib.Path,
    contract: contract_lib.EncodingContract,
    tokenizer: str,
  ):
    """Makes the files of the roles.

    Args:
      folder: Where to write.
      contract: The encoding contract.
      tokenizer: The tokenizer's JSON.
    """
    self._roles = {
      name: _RoleTexts(folder, name, contract.role(name), tokenizer)
      for name in contract_lib.ROLES
    }

  def add(self, role: str, body: str, language: str, prefix: str) -> int:
    """Adds a text to a role.

    Args:
      role: The role that the text will be encoded in.
      body: The text, with its title.
      language: The text's language, for the count of cut texts.
      prefix: What precedes the text when it is encoded.

    Returns:
      The text's index in the role. Equal strings with equal prefixes have one
      index. Different ones have different indices, even if their tokens are
      equal.
    """
    return self._roles[role].add(body.strip(), language, prefix)

  def finish(self) -> tuple[dict[str, Hashes], dict]:
    """Tokenizes the waiting texts and writes the arrays of each role.

    Returns:
      Role to the hashes of its texts; and role to language to [strings cut, all
      strings].
    """
    hashes = {name: role.finish() for name, role in self._roles.items()}
    return hashes, {name: role.truncation for name, role in self._roles.items()}


class _RoleTexts:
  """Tokenizes the texts of one role in chunks, into the role's arrays.

  Attributes:
    truncation: Language to [strings cut, all strings].
  """

  def __init__(self, folder, name, role, tokenizer):
    self._base = folder / name
    self._tokenizer = parse_tokenizer(tokenizer)
    self._cutting = parse_tokenizer(tokenizer, role.max_length)
    # The tokens that the prefix and the special tokens leave for a body.
    taken = len(self._tokenizer.encode(role.prefix).ids)
    self._room = max(role.max_length - taken, 0)
    # Keyed by digests: the texts themselves would fill the memory.
    self._indices = Numbering()
    self._lengths = array.array("i")
    self._text_hashes = array.array("Q")
    self._sequence_hashes = array.array("Q")
    self.truncation = {}
    self._waiting = []  # (prefix, body, language)
    self._waiting_characters = 0
    self._tokens_file = f"{self._base}_tokens.npy"
    with open(self._tokens_file, "wb") as file:
      _write_header(file, 0)

  def add(self, body: str, language: str, prefix: str) -> int:
    """Returns the index of a text; adds the text if it is new."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (prefix, body):
      encoded = part.encode()
      digest.update(b"%d " % len(encoded))  # Keeps both apart.
      digest.update(encoded)
    digest = digest.digest()
    known = len(self._indices)
    index = self._indices[digest]
    if index == known:
      self._waiting.append((prefix, body, language))
      self._waiting_characters += len(body)
      if self._waiting_characters >= _CHUNK_CHARACTERS:
        self._flush()
    return index

  def _encode(self, prefixes: list[str], bodies: list[str]) -> Iterator[tuple]:
    """Yields each body's tokens without prefix and cut, and its encoding."""
    plain = self._tokenizer.encode_batch_fast(bodies, add_special_tokens=False)
    if any(prefixes):
      encodings = self._cutting.encode_batch_fast(
        list(map(operator.add, prefixes, bodies))
      )
    else:  # The same as encoding the text again.
      encodings = map(self._cutting.post_process, plain)
    for body, encoding in zip(plain, encodings, strict=True):
      yield array.array("i", body.ids), encoding

  def _flush(self) -> None:
    """Tokenizes the waiting texts and appends their tokens to the file."""
    if not self._waiting:
      return
    prefixes, bodies, _ = map(list, zip(*self._waiting, strict=True))
    encoded = self._encode(prefixes, bodies)
    with open(self._tokens_file, "ab") as file:
      for (prefix, body, language), (body_ids, encoding) in zip(
        self._waiting, encoded, strict=True
      ):
        ids = array.array("i", encoding.ids)
        if not ids:
          raise ValueError(
            f"The tokenizer makes no tokens of {prefix + body!r}; it"
            " should add special tokens (its post_processor)."
          )
        ids.tofile(file)
        self._text_hashes.append(identity.hash_of(body_ids))
        self._sequence_hashes.append(identity.hash_of(body_ids[: self._room]))
        self._lengths.append(len(ids))
        counts = self.truncation.setdefault(language, [0, 0])
        counts[0] += bool(encoding.overflowing)
        counts[1] += 1
    self._waiting.clear()
    self._waiting_characters = 0

  def finish(self) -> Hashes:
    """Tokenizes the waiting texts and writes all arrays of the role."""
    self._flush()
    offsets = row_offsets(self._lengths)
    with open(self._tokens_file, "r+b") as file:
      # numpy leaves room in a header for its first dimension to grow.
      _write_header(file, int(offsets[-1]))
    hashes = Hashes(
      np.array(self._text_hashes, np.uint64),
      np.array(self._sequence_hashes, np.uint64),
    )
    np.save(f"{self._base}_offsets.npy", offsets)
    np.save(f"{self._base}_text_hashes.npy", hashes.text)
    np.save(f"{self._base}_sequence_hashes.npy", hashes.sequence)
    return hashes


def hash_bodies(
  tokenizer: tokenizers.Tokenizer, bodies: Sequence[str]
) -> list[int]:
  """Returns the text hashes of bodies; see `Hashes`.

  Args:
    tokenizer: From `parse_tokenizer`; it does not cut.
    bodies: Texts with their titles.
  """
  return [
    identity.hash_of(array.array("i", encoding.ids))
    for encoding in tokenizer.encode_batch_fast(
      [body.strip() for body in bodies], add_special_tokens=False
    )
  ]


def _write_header(file: BinaryIO, length: int) -> None:
  """Writes the .npy header of a one-dimensional int32 array."""
  np.lib.format.write_array_header_1_0(
    file,
    {
      "descr": np.dtype(np.int32).str,
      "fortran_order": False,
      "shape": (length,),
    },
  )
