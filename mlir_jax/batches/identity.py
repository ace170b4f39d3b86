"""Says which texts are the same, by a 64-bit hash of their tokens.

A hash needs no numbering of all texts, so the parts of a token store can be
made independently. It is BLAKE2b with 64 bits. Two different texts with one
hash count as the same text, and nothing shows it. Among n texts, the
probability of any such collision is about n^2 / 2^65: 3e-6 for ten million
texts, 3e-2 for a billion.

The store and the reader have hashes as uint64. JAX has no uint64 without x64,
so a batch has the two halves of a hash in a last axis of size 2, int32.
"""

import hashlib
from typing import Any

import numpy as np

# Stands for no text. In a batch, both halves are -1.
NONE = np.uint64(2**64 - 1)


def hash_of(content: Any) -> int:
  """Returns the hash of some bytes, from 0 to 2^64 - 2.

  Args:
    content: A bytes-like object.
  """
  digest = hashlib.blake2b(content, digest_size=8).digest()
  # The value of NONE is reserved: it becomes the largest other one.
  return min(int.from_bytes(digest, "little"), int(NONE) - 1)


def split(hashes: np.ndarray) -> np.ndarray:
  """Returns the halves of hashes: uint64 [...] -> int32 [..., 2]."""
  hashes = np.asarray(hashes, "<u8")
  return hashes.reshape(-1).view("<i4").reshape(*hashes.shape, 2)


def equal(one: Any, other: Any) -> Any:
  """Compares hashes of a batch: int32 [..., 2] with [..., 2] -> bool [...].

  The arguments are broadcast, as in `equal(hashes[:, None], hashes)` for all
  pairs. They are NumPy or JAX arrays.
  """
  return (one[..., 0] == other[..., 0]) & (one[..., 1] == other[..., 1])


def is_text(hashes: Any) -> Any:
  """Returns where hashes of a batch are not `NONE`: int32 [..., 2] -> bool."""
  return (hashes[..., 0] != -1) | (hashes[..., 1] != -1)
