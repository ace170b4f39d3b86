"""Tokenizes the texts of a token store, each once per role.

Texts with equal tokens are one text, but that is known only when all texts are
tokenized. Until then a text has a provisional number, which is that of its
string.
"""

import array
import hashlib
import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO, NamedTuple

import numpy as np
import tokenizers

from mlir_jax import contract as contract_lib

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


class Identities(NamedTuple):
  """Which texts are the same.

  Attributes:
    text: Provisional number to text id, int32; equal texts have one id.
    sequences: Role to int32 [texts], text id to the number of its token
      sequence in that role; -1 if the text does not appear in the role. Texts
      that are encoded alike have one sequence.
  """

  text: np.ndarray
  sequences: Mapping[str, np.ndarray]


class _Digests:
  """Keeps digests of numbered token sequences, to find equal sequences."""

  _BYTES = 16

  def __init__(self):
    # One bytes object per sequence would fill the memory.
    self._digests = bytearray()

  def set(self, number: int, sequence: array.array) -> None:
    """Keeps the digest of a sequence."""
    start, size = self._BYTES * number, self._BYTES
    self._digests.extend(bytes(max(start + size - len(self._digests), 0)))
    self._digests[start : start + size] = hashlib.blake2b(
      sequence, digest_size=size
    ).digest()

  def first_equal(self) -> np.ndarray:
    """Returns, for each number, the first with the same digest; int64."""
    digests = np.frombuffer(self._digests, f"S{self._BYTES}")
    _, first, inverse = np.unique(
      digests, return_index=True, return_inverse=True
    )
    return first[inverse]


class StoreTexts:
  """Numbers the texts of a store and writes the tokens of each role."""

  def __init__(
    self,
    folder: pathlib.Path,
    contract: contract_lib.EncodingContract,
    tokenizer: tokenizers.Tokenizer,
  ):
    # Keyed by digests: the texts themselves would fill the memory.
    self._numbers = Numbering()
    self._bodies = _Digests()  # Of provisional texts.
    self._roles = {
      name: _RoleTexts(
        folder, name, contract.role(name), tokenizer, self._bodies
      )
      for name in contract_lib.ROLES
    }

  def add(self, role: str, body: str, language: str) -> int:
    """Adds a text to a role.

    Args:
      role: The role that the text will be encoded in.
      body: The text, with its title.
      language: The text's language, for the count of cut texts.

    Returns:
      The text's provisional number, which it has in all roles.
    """
    body = body.strip()
    digest = hashlib.blake2b(body.encode(), digest_size=16).digest()
    text = self._numbers[digest]
    self._roles[role].add(text, body, language)
    return text

  def finish(self) -> tuple[Identities, dict]:
    """Tokenizes the waiting texts and writes the arrays of each role.

    Returns:
      Which texts are the same; and role to language to [strings cut, all
      strings].
    """
    truncation = {name: role.flush() for name, role in self._roles.items()}
    # Text ids have no gaps, and the order in which the texts were added.
    ids, text = np.unique(self._bodies.first_equal(), return_inverse=True)
    text = text.astype(np.int32)
    sequences = {
      name: role.finish(text, len(ids)) for name, role in self._roles.items()
    }
    return Identities(text, sequences), truncation


class _RoleTexts:
  """Tokenizes the texts of one role in chunks, into the role's arrays."""

  def __init__(self, folder, name, role, tokenizer, bodies):
    self._base = folder / name
    self._prefix = role.prefix
    self._bodies = bodies
    self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    self._tokenizer.no_padding()
    self._tokenizer.no_truncation()
    self._cutting = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
    self._cutting.enable_truncation(role.max_length, direction="right")
    self._sequences = array.array("i")  # Provisional text to sequence, or -1.
    self._encoded = _Digests()  # Of sequences, after prefix and cutting.
    self._added = 0
    self._lengths = array.array("i")
    self._truncation = {}  # Language to [strings cut, all strings].
    self._waiting = []  # (provisional text, body, language)
    self._waiting_characters = 0
    self._tokens_file = f"{self._base}_tokens.npy"
    with open(self._tokens_file, "wb") as file:
      _write_header(file, 0)

  def add(self, text: int, body: str, language: str) -> None:
    """Adds the text of a provisional number, unless it is here already."""
    missing = text + 1 - len(self._sequences)
    self._sequences.extend(itertools.repeat(-1, missing))
    if self._sequences[text] >= 0:
      return
    self._sequences[text] = self._added
    self._added += 1
    self._waiting.append((text, body, language))
    self._waiting_characters += len(body)
    if self._waiting_characters >= _CHUNK_CHARACTERS:
      self.flush()

  def _encode(self, bodies: list[str]) -> Iterator[tuple]:
    """Yields each body's tokens without prefix and cut, and its encoding."""
    plain = self._tokenizer.encode_batch_fast(bodies, add_special_tokens=False)
    if self._prefix:
      encodings = self._cutting.encode_batch_fast(
        [self._prefix + body for body in bodies]
      )
    else:  # The same as encoding the text again.
      encodings = map(self._cutting.post_process, plain)
    for body, encoding in zip(plain, encodings, strict=True):
      yield array.array("i", body.ids), encoding

  def flush(self) -> dict:
    """Tokenizes the waiting texts and appends their tokens to the file.

    Returns:
      Language to [strings cut, all strings], so far.
    """
    encoded = self._encode([body for _, body, _ in self._waiting])
    with open(self._tokens_file, "ab") as file:
      for (text, body, language), (body_ids, encoding) in zip(
        self._waiting, encoded, strict=True
      ):
        ids = array.array("i", encoding.ids)
        if not ids:
          raise ValueError(
            f"The tokenizer makes no tokens of {self._prefix + body!r}; it"
            " should add special tokens (its post_processor)."
          )
        ids.tofile(file)
        self._bodies.set(text, body_ids)
        self._encoded.set(len(self._lengths), ids)
        self._lengths.append(len(ids))
        counts = self._truncation.setdefault(language, [0, 0])
        counts[0] += bool(encoding.overflowing)
        counts[1] += 1
    self._waiting.clear()
    self._waiting_characters = 0
    return self._truncation

  def finish(self, text: np.ndarray, texts: int) -> np.ndarray:
    """Writes the arrays that lead from text ids to tokens, after `flush`.

    Args:
      text: Provisional number to text id, int32.
      texts: The number of texts, in all roles together.

    Returns:
      Text id to sequence, int32 [texts]; -1 if the text does not appear in this
      role. Of several sequences with equal tokens, all texts have the first.
    """
    offsets = row_offsets(self._lengths)
    with open(self._tokens_file, "r+b") as file:
      # numpy leaves room in a header for its first dimension to grow.
      _write_header(file, int(offsets[-1]))
    np.save(f"{self._base}_offsets.npy", offsets)
    found = np.array(self._sequences, np.int32)
    # Backwards: the last assignment stays, and so equal texts get the first.
    numbers = np.flatnonzero(found >= 0)[::-1]
    sequences = np.full(texts, -1, np.int32)
    sequences[text[numbers]] = self._encoded.first_equal()[found[numbers]]
    np.save(f"{self._base}_sequences.npy", sequences)
    return sequences


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
