"""Hashes are the same in NumPy and JAX, and none of them is `NONE`."""

import hashlib

import jax.numpy as jnp
import numpy as np

from mlir_jax.batches import identity

# The halves are equal in pairs, and each is -1 somewhere.
HASHES = np.array(
  [[0, 1, 2**32], [2**32 + 1, 2**32 - 1, 2**64 - 2**32]], np.uint64
)


def test_hashes_of_a_batch_are_equal_where_those_of_the_store_are():
  values = HASHES.ravel()
  halves = identity.split(HASHES)
  assert halves.shape == (2, 3, 2)
  assert halves.dtype == np.int32
  halves = halves.reshape(-1, 2)
  for array in (np.asarray, jnp.asarray):
    found = identity.equal(array(halves)[:, None], array(halves))
    np.testing.assert_array_equal(found, values[:, None] == values)
    assert identity.is_text(array(halves)).all()
  none = identity.split(identity.NONE)
  assert none.tolist() == [-1, -1]
  assert not identity.is_text(none)
  # A part of an array is split like the array.
  np.testing.assert_array_equal(
    identity.split(HASHES[:, ::2]), identity.split(HASHES)[:, ::2]
  )


def test_a_hash_is_blake2b_and_never_none(monkeypatch):
  right = hashlib.blake2b(b"tokens", digest_size=8).digest()
  assert identity.hash_of(b"tokens") == int.from_bytes(right, "little")

  class Largest:
    def digest(self):
      return b"\xff" * 8

  monkeypatch.setattr(hashlib, "blake2b", lambda *_, **__: Largest())
  assert identity.hash_of(b"tokens") == 2**64 - 2
