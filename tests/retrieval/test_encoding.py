"""Texts are encoded in windows: the same vectors, in bounded memory."""

import os
import pathlib
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import mlir_jax
from mlir_jax import contract as contract_lib
from mlir_jax import sharding
from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.retrieval import encoding, row_batches

PACKAGE = pathlib.Path(mlir_jax.__file__).parents[1]


def make_encoder(max_length=8, batch_size=16, devices=None):
  """Encodes a text as its length and the sum of its tokens' numbers."""
  tokenizer = tokenizer_lib.train(tiny.WORDS, 120)
  contract = contract_lib.PartialContract(
    pooling="mean",
    normalize=True,
    title_joiner=" ",
    **dict.fromkeys(
      contract_lib.ROLES, contract_lib.PartialRole("", max_length)
    ),
  ).complete(tokenizer)

  def embed(params, tower, blocks):
    del params, tower
    (rows,) = blocks
    mine = rows.segment[:, None] == jnp.arange(1, rows.texts + 1)[:, None]
    sums = (rows.ids[:, None] * mine).sum(axis=-1)
    return [jnp.stack([mine.sum(axis=-1), sums], axis=-1).astype(jnp.float32)]

  return encoding.TextEncoder(
    contract,
    tokenizer,
    embed,
    sharding.make_mesh(devices=devices),
    batch_size,
  )


TEXTS = [" ".join(tiny.WORDS[n : n + 1 + n % 4]) for n in range(30)] * 5


def test_windows_give_the_vectors_of_one_whole(monkeypatch):
  encoder = make_encoder()
  titles = ["river" if n % 2 else "" for n in range(len(TEXTS))]
  whole = encoder.encode({}, "passage", TEXTS, titles)
  assert whole.shape == (150, 2) and whole.dtype == np.float32
  monkeypatch.setattr(encoding, "WINDOW", 40)
  np.testing.assert_array_equal(
    encoder.encode({}, "passage", TEXTS, titles), whole
  )
  windows = list(encoder.encode_windows({}, "passage", iter(TEXTS), titles))
  assert [len(rows) for rows in windows] == [40, 40, 40, 30]
  np.testing.assert_array_equal(np.concatenate(windows), whole)
  with pytest.raises(ValueError, match="zip"):
    list(encoder.encode_windows({}, "passage", iter(TEXTS), titles[1:]))


def test_each_core_encodes_its_own_batches_on_one_cpu_device(monkeypatch):
  whole = make_encoder().encode({}, "passage", TEXTS)
  monkeypatch.setattr(encoding, "_cores", lambda: 3)
  encoder = make_encoder(batch_size=2, devices=jax.devices()[:1])
  run, threads = encoder._run, set()

  def spy(*arguments):
    threads.add(threading.current_thread())
    return run(*arguments)

  monkeypatch.setattr(encoder, "_run", spy)
  for _ in range(3):
    found = encoder.encode({}, "passage", TEXTS)
    np.testing.assert_array_equal(found, whole)
  assert 2 <= len(threads) <= 1 + 3 * 3
  monkeypatch.setattr(encoder, "_embed", lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    encoder.encode({}, "passage", TEXTS)


def test_rows_are_nearly_full_and_of_few_shapes():
  random = np.random.default_rng(0)
  lengths = random.lognormal(3.9, 0.5, 10_000).clip(5, 128).astype(int)
  seen, computed, shapes = [], 0, set()
  for length, number in row_batches.pack(lengths, 128, 64):
    is_text = number >= 0
    of_rows = np.where(is_text, lengths[number], 0).sum(axis=1)
    assert (of_rows <= length).all()
    seen += number[is_text].tolist()
    computed += len(number) * length
    shapes.add((len(number), length))
  assert sorted(seen) == list(range(10_000))
  assert len(shapes) <= 4
  assert lengths.sum() > 0.97 * computed
  # Rows that no text fills are cut: most of these texts find no other.
  lengths = random.lognormal(4.4, 0.5, 10_000).clip(20, 128).astype(int)
  batches = list(row_batches.pack(lengths, 128, 64))
  assert lengths.sum() > 0.97 * sum(
    len(number) * length for length, number in batches
  )
  assert {length for length, _ in batches} == {128, 112}
  # A few short texts are not padded to a whole batch.
  ((length, number),) = row_batches.pack(np.array([9, 7]), 128, 64, devices=2)
  assert length == 32 and len(number) == 2


def test_texts_that_are_cut_are_counted():
  encoder = make_encoder(max_length=8)
  ids = encoder.encode({}, "sentence", ["apple"])
  room = 8 - 2  # Tokens beside the special ones.
  pieces = int(ids[0, 0]) - 2
  fits, too_long = "apple " * (room // pieces), "apple " * (room // pieces + 1)
  encoder.encode({}, "query", [fits, too_long, "apple", too_long])
  assert encoder.truncation == {"sentence": (0, 1), "query": (2, 4)}
  assert encoder.describe_truncation() == (
    "query texts cut to 8 tokens: 2 of 4 (50.0%)"
  )
  before = dict(encoder.truncation)
  encoder.encode({}, "query", ["apple", too_long, "apple"])
  assert encoder.describe_truncation(before) == (
    "query texts cut to 8 tokens: 1 of 3 (33.3%)"
  )


def test_no_texts_give_no_rows_of_the_same_width():
  encoder = make_encoder()
  assert encoder.encode({}, "query", []).shape == (0, 2)
  assert encoder.truncation == {}


GROWTH = """
import test_encoding
from mlir_jax.retrieval import encoding, row_batches

encoding.WINDOW = 64
encoder = test_encoding.make_encoder(max_length=16, batch_size=64)
text = "apple river stone " * 300  # Of its pieces most are cut off.
for count in (64, 128, 512):
  encoder.encode({}, "passage", [text] * count)
  with open("/proc/self/status") as status:
    (peak,) = (line.split()[1] for line in status if "VmHWM" in line)
  print(int(peak) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(
  not pathlib.Path("/proc/self/status").exists(), reason="needs Linux's /proc"
)
def test_memory_does_not_grow_with_the_texts():
  """sentence-transformers#1244: tokens of all, and of all that is cut off."""
  # The package comes from where this process found it, the helpers from here.
  here = pathlib.Path(__file__).parent
  paths = [PACKAGE, here.parent, here]
  done = subprocess.run(
    [sys.executable, "-c", GROWTH],
    capture_output=True,
    text=True,
    timeout=300,
    env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))},
  )
  assert done.returncode == 0, done.stderr
  _, few, many = map(int, done.stdout.split())
  # The tokens of 384 texts more take 240 MB.
  assert many - few < 40
