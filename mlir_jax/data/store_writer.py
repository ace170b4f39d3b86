"""Builds a token store: a collection, tokenized once, written whole."""

import array
import contextlib
import fcntl
import glob
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator
from typing import BinaryIO, TextIO

import numpy as np
import tokenizers

from mlir_jax import bars
from mlir_jax import contract as contract_lib
from mlir_jax.data import records, store_arrays, token_store
from mlir_jax.storage import digests as digests_lib

# Texts waiting to be tokenized together: some 10,000 passages. A count of
# texts would not bound memory, as a text can be a book.
_CHUNK_CHARACTERS = 4_000_000


def build(
  path: str | os.PathLike,
  collection: records.Collection,
  contract: contract_lib.EncodingContract,
  tokenizer: tokenizers.Tokenizer,
  pad_id: int,
  *,
  shuffle_parallel: bool,
  seed: int,
  source: str,
  bad_records: records.BadRecords | None = None,
) -> token_store.TokenStore:
  """Tokenizes a collection's three streams into a store.

  It is written to `path`.tmp-… and renamed when it is complete; such folders
  that killed builds have left are removed first. Rows stand grouped by
  language, in the collection's order.

  Texts are the same text if the tokens of their stripped bodies (title,
  joiner and text) are equal, before prefix, special tokens and truncation;
  so "Oslo" and full-width "Oslo" are, where the tokenizer makes them one.
  Texts of one role that are encoded alike, as they differ only in what was
  cut, share a sequence.

  Left out and counted: parallel pairs with identical sides, repeated
  parallel pairs of one language pair (in either direction), hard negatives
  without text, and hard negatives that are encoded like a positive of their
  question in any row (FlagEmbedding#850). Of a parallel pair, the language
  that sorts first stands first.

  A passage id identifies nothing, since many files count from 0 (DPR#243).
  One that has two texts in one file is an error, or is counted.

  Args:
    path: Where the store shall be; nothing may be there.
    collection: What is tokenized.
    contract: Says how; made with `tokenizer`.
    tokenizer: The tokenizer.
    pad_id: What sequences will be padded with.
    shuffle_parallel: Control experiment: within each language pair, every
      sentence gets a partner that is not its translation.
    seed: Of that shuffling; not used otherwise.
    source: The collection's fingerprint.
    bad_records: What the collection tells of bad records. What it has counted
      before is forgotten, as a tokenizer may have read the same streams; what
      it counts here is kept in the store, and drained. Its policy is also that
      for passage ids with two texts.

  Returns:
    The store, open.

  Raises:
    FileExistsError: if there is something at `path`.
    ValueError: if the contract is another tokenizer's, a record cannot be
      used, or a language pair has too few pairs to be shuffled.
    RecordError: for a passage id with two texts, naming both places.
  """
  path = pathlib.Path(path)
  if path.exists():
    raise FileExistsError(
      f"{path} exists: open it with TokenStore.open, or delete it."
    )
  _check_tokenizer(tokenizer, contract, pad_id)
  bad_records = bad_records or records.BadRecords()
  bad_records.drain()
  path.parent.mkdir(parents=True, exist_ok=True)
  _sweep(path)
  with _folder_aside(path) as (aside, meta_file):
    shuffle_seed = seed if shuffle_parallel else None
    meta = _write(
      aside, collection, contract, tokenizer, shuffle_seed, bad_records
    )
    meta["pad_id"] = pad_id
    meta["source"] = source
    meta["bad_records"] = bad_records.drain()
    meta = token_store.sealed(meta)
    json.dump(meta, meta_file, indent=2, ensure_ascii=False)
    meta_file.flush()
    ours = _publish(aside, path, meta["fingerprint"])
  return token_store.TokenStore.open(path, just_built=ours)


def _check_tokenizer(
  tokenizer: tokenizers.Tokenizer,
  contract: contract_lib.EncodingContract,
  pad_id: int,
) -> None:
  if contract_lib.fingerprint(tokenizer) != contract.tokenizer_fingerprint:
    raise ValueError("The encoding contract was made with another tokenizer.")
  if not 0 <= pad_id < tokenizer.get_vocab_size():
    raise ValueError(f"pad_id is {pad_id}; the tokenizer has no such token.")


@contextlib.contextmanager
def _folder_aside(
  path: pathlib.Path,
) -> Iterator[tuple[pathlib.Path, TextIO]]:
  """A new folder beside the path, and its meta.json, open for writing.

  The file stays locked until the end of the block or of the process, which
  tells a build that is running from one that was killed. The folder is
  removed at the end of the block, unless it was renamed.
  """
  aside, file = _make_folder(path)
  try:
    with file:
      yield aside, file
  finally:
    shutil.rmtree(aside, ignore_errors=True)


def _make_folder(path: pathlib.Path) -> tuple[pathlib.Path, TextIO]:
  """Makes what `_folder_aside` gives."""
  while True:
    aside = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    aside.mkdir()
    # Until it is locked, another build may sweep it away; then again.
    with contextlib.suppress(FileNotFoundError):
      file = open(aside / "meta.json", "w", encoding="utf-8")  # noqa: SIM115
      # Where the file system has no locks, nobody can sweep it away.
      with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)
      if (aside / "meta.json").exists():
        return aside, file
      file.close()


def _sweep(path: pathlib.Path) -> None:
  """Removes what killed builds have left beside the path."""
  for aside in path.parent.glob(f"{glob.escape(path.name)}.tmp-*"):
    # Locked, without locks, or just renamed: not left by a killed build.
    with contextlib.suppress(OSError):
      aside.rmdir()  # Killed before it had a file.
    with (
      contextlib.suppress(OSError),
      open(aside / "meta.json", "r+") as file,
    ):
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      shutil.rmtree(aside, ignore_errors=True)


def _publish(aside: pathlib.Path, path: pathlib.Path, fingerprint: str) -> bool:
  """Renames a complete store to its path; whether this one stands there."""
  try:
    os.rename(aside, path)
    return True
  except OSError:
    # Another process may have built the same store in the meantime.
    if (
      not path.exists()
      or token_store.TokenStore.open(path).fingerprint != fingerprint
    ):
      raise
    return False


def _write(
  folder: pathlib.Path,
  collection: records.Collection,
  contract: contract_lib.EncodingContract,
  tokenizer: tokenizers.Tokenizer,
  shuffle_seed: int | None,
  bad_records: records.BadRecords,
) -> dict:
  """Writes all arrays into a folder; returns meta, but for the pad id."""

  def progress(stream: str):
    return bars.bar(
      getattr(collection, stream)(),
      f"{collection.name}: tokenizing {stream}",
      unit=" rows",
    )

  languages = store_arrays.Numbering()
  encoder = _Encoder(folder, contract, tokenizer)
  read = {
    "retrieval": store_arrays.read_retrieval(
      progress("retrieval"), contract, encoder, languages, bad_records
    ),
    "parallel": store_arrays.read_parallel(
      progress("parallel"), encoder, languages, shuffle_seed
    ),
    "monolingual": store_arrays.read_monolingual(
      progress("monolingual"), encoder, languages
    ),
  }
  identities, truncation = encoder.finish()
  groups, dropped, max_positives = {}, {}, 0
  for stream, make in read.items():
    arrays, groups[stream], stream_dropped = make(identities)
    dropped |= stream_dropped
    for name, values in arrays.items():
      np.save(folder / f"{stream}_{name}.npy", values)
    if stream == "retrieval":
      max_positives = int(np.diff(arrays["known_offsets"]).max(initial=0))
  return {
    "format": token_store.FORMAT,
    "collection": collection.name,
    "contract": contract.to_dict(),
    "languages": list(languages),
    "max_positives": max_positives,
    "shuffled_by": shuffle_seed,
    "groups": groups,
    "dropped": dropped,
    "truncation": truncation,
    "arrays": {
      file.stem: _description(file) for file in sorted(folder.glob("*.npy"))
    },
  }


def _description(file: pathlib.Path) -> dict:
  values = np.load(file, mmap_mode="r")
  return {
    "dtype": str(values.dtype),
    "shape": list(values.shape),
    "sha256": digests_lib.of_file(file),
  }


class _Digests:
  """The digests of numbered token sequences, to find those that are equal."""

  _BYTES = 16

  def __init__(self):
    self._digests = bytearray()  # An object each would fill the memory.

  def set(self, number: int, tokens_of_it: array.array) -> None:
    """Keeps the digest of a sequence."""
    start, size = self._BYTES * number, self._BYTES
    self._digests.extend(bytes(max(start + size - len(self._digests), 0)))
    self._digests[start : start + size] = hashlib.blake2b(
      tokens_of_it, digest_size=size
    ).digest()

  def first_equal(self) -> np.ndarray:
    """The first number that has the same digest, of each number; int64."""
    digests = np.frombuffer(self._digests, f"S{self._BYTES}")
    _, first, inverse = np.unique(
      digests, return_index=True, return_inverse=True
    )
    return first[inverse]


class _Encoder:
  """Numbers texts and encodes each once per role it appears in.

  A text's number is provisional: it is that of its string. Texts whose tokens
  are equal are found when all are tokenized.
  """

  def __init__(self, folder, contract, tokenizer):
    # Keyed by a digest: the texts themselves would fill the memory.
    self._texts = store_arrays.Numbering()
    self._bodies = _Digests()  # Of provisional texts.
    self._roles = {
      name: _RoleEncoder(
        folder, name, contract.role(name), tokenizer, self._bodies
      )
      for name in contract_lib.ROLES
    }

  def text(self, role: str, body: str, language: str) -> int:
    """The provisional number of a body, which will be encoded in this role."""
    body = body.strip()
    text = self._texts[hashlib.blake2b(body.encode(), digest_size=16).digest()]
    self._roles[role].add(text, body, language)
    return text

  def finish(self) -> tuple[store_arrays.Identities, dict]:
    """Writes what is left.

    Returns:
      Which texts are the same; and role to language to [cut, all strings].
    """
    truncation = {name: role.flush() for name, role in self._roles.items()}
    # Dense, in the order in which the texts came.
    ids, text = np.unique(self._bodies.first_equal(), return_inverse=True)
    text = text.astype(np.int32)
    sequences = {
      name: role.finish(text, len(ids)) for name, role in self._roles.items()
    }
    return store_arrays.Identities(text, sequences), truncation


class _RoleEncoder:
  """Encodes the texts of one role, a chunk at a time, into its arrays."""

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
    self._encoded = _Digests()  # Of sequences.
    self._added = 0
    self._lengths = array.array("i")
    self._truncation = {}  # Language to [strings cut, all strings].
    self._waiting = []  # (provisional text, body, language)
    self._waiting_characters = 0
    self._tokens_file = f"{self._base}_tokens.npy"
    with open(self._tokens_file, "wb") as file:
      _write_header(file, 0)

  def add(self, text: int, body: str, language: str) -> None:
    """Sees to it that the text of that number is encoded, once."""
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
    """Each body's tokens before prefix and cutting, and its encoding."""
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
    """Encodes what is waiting.

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
    """Writes what leads from texts to tokens, when nothing is waiting.

    Args:
      text: Provisional text to text id, int32.
      texts: How many texts there are, in all roles together.

    Returns:
      Text id to sequence, int32 [texts]; -1 where the role lacks the text.
      Of sequences with equal tokens, the first stands for all.
    """
    offsets = store_arrays.row_offsets(self._lengths)
    with open(self._tokens_file, "r+b") as file:
      # numpy leaves room in a header for its first dimension to grow.
      _write_header(file, int(offsets[-1]))
    np.save(f"{self._base}_offsets.npy", offsets)
    found = np.array(self._sequences, np.int32)
    # Backwards, as the last that is assigned stays: of equal texts, the first.
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
