"""Builds the token store of a collection, whole or not at all."""

import json
import os
import pathlib

import numpy as np
import tokenizers

from mlir_jax import bars
from mlir_jax import contract as contract_lib
from mlir_jax.data import records, store_arrays, store_join, token_store
from mlir_jax.storage import digests, writing


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

  The store is whole or not there: see `writing.folder_aside`. Rows are grouped
  by language and source; within a group they keep the collection's order.

  Two texts are the same if the tokens of their stripped bodies (title, joiner
  and text) are equal, before prefix, special tokens and truncation. So "Oslo"
  and full-width "Oslo" are the same if the tokenizer gives both the same
  tokens. They then have one text hash. Texts that become equal in a role when
  they are cut have one sequence hash there: see `batches.identity`.

  Left out and counted: parallel pairs with identical sides, repeated
  parallel pairs of one language pair (in either direction), hard negatives
  without text, and hard negatives that are encoded like a positive of their
  question in any row (FlagEmbedding#850). The sides of a parallel pair are
  sorted by language.

  A passage id does not identify a text, because many files count from 0
  (DPR#243). An id with two texts in one file is an error, or is counted.

  Args:
    path: The store's folder; it may not exist.
    collection: The collection.
    contract: The encoding contract; it was made with `tokenizer`.
    tokenizer: The tokenizer.
    pad_id: The id with which sequences will be padded.
    shuffle_parallel: Control experiment: within each language pair, every
      sentence gets a partner that is not its translation.
    seed: Seed of that shuffling; not used otherwise.
    source: The collection's fingerprint.
    bad_records: Receives the collection's bad records. Earlier counts are
      dropped, because a tokenizer may have read the same streams. The counts of
      this build are stored, then dropped. Its policy holds for passage ids with
      two texts, too.

  Returns:
    The open store.

  Raises:
    FileExistsError: if `path` exists.
    ValueError: if the contract was made with another tokenizer, a record cannot
      be used, or a language pair has too few pairs to be shuffled.
    RecordError: for a passage id with two texts; it names both places.
  """
  path = pathlib.Path(path)
  if path.exists():
    raise FileExistsError(
      f"{path} exists: open it with TokenStore.open, or delete it."
    )
  _check_tokenizer(tokenizer, contract, pad_id)
  bad_records = bad_records or records.BadRecords()
  bad_records.drain()
  meta = {}
  try:
    with writing.folder_aside(path) as aside:
      shuffle_seed = seed if shuffle_parallel else None
      meta = _write(
        aside, collection, contract, tokenizer, shuffle_seed, bad_records
      )
      meta["pad_id"] = pad_id
      meta["source"] = source
      meta["bad_records"] = bad_records.drain()
      meta = token_store.sealed(meta)
      (aside / "meta.json").write_text(
        json.dumps(meta, indent=2, ensure_ascii=False), encoding="utf-8"
      )
  except writing.TakenError:
    # Another process may have built the same store in the meantime.
    built = token_store.TokenStore.open(path)
    if built.fingerprint != meta["fingerprint"]:
      raise
    return built
  return token_store.TokenStore.open(path, just_built=True)


def _check_tokenizer(
  tokenizer: tokenizers.Tokenizer,
  contract: contract_lib.EncodingContract,
  pad_id: int,
) -> None:
  if contract_lib.fingerprint(tokenizer) != contract.tokenizer_fingerprint:
    raise ValueError("The encoding contract was made with another tokenizer.")
  if not 0 <= pad_id < tokenizer.get_vocab_size():
    raise ValueError(f"pad_id is {pad_id}; the tokenizer has no such token.")


def _write(
  folder: pathlib.Path,
  collection: records.Collection,
  contract: contract_lib.EncodingContract,
  tokenizer: tokenizers.Tokenizer,
  shuffle_seed: int | None,
  bad_records: records.BadRecords,
) -> dict:
  """Writes all arrays; returns what meta.json says of them."""

  def read_stream(stream: str):
    return bars.bar(
      getattr(collection, stream)(),
      f"{collection.name}: tokenizing {stream}",
      unit=" rows",
    )

  shard = store_arrays.read_shard(
    folder, *map(read_stream, token_store.STREAMS), contract, tokenizer
  )
  joined = store_join.join([shard], bad_records, shuffle_seed)
  (streams,) = joined.shards
  for stream, (arrays, _) in streams.items():
    for name, values in arrays.items():
      np.save(folder / f"{stream}_{name}.npy", values)
  known_offsets = streams["retrieval"].arrays["known_offsets"]
  return {
    "format": token_store.FORMAT,
    "collection": collection.name,
    "contract": contract.to_dict(),
    "languages": list(joined.languages),
    "max_positives": int(np.diff(known_offsets).max(initial=0)),
    "shuffled_by": shuffle_seed,
    "groups": {
      stream: [group._asdict() for group in found.groups]
      for stream, found in streams.items()
    },
    "dropped": joined.dropped,
    "truncation": shard.truncation,
    "arrays": {
      file.stem: _description(file) for file in sorted(folder.glob("*.npy"))
    },
  }


def _description(file: pathlib.Path) -> dict:
  values = np.load(file, mmap_mode="r")
  return {
    "dtype": str(values.dtype),
    "shape": list(values.shape),
    "sha256": digests.of_file(file),
  }
