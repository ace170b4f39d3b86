"""Puts the rows and texts of all shards into the arrays of a token store.

A shard numbers its texts and questions from 0. In the store, those of a shard
follow those of the shards before it.
"""

import operator
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from mlir_jax import contract as contract_lib
from mlir_jax.data import store_join, store_texts, token_store
from mlir_jax.data.shards import shard as shard_lib


def write_texts(
  folder: pathlib.Path, shards: Sequence[pathlib.Path]
) -> dict[str, np.ndarray]:
  """Writes the offsets and hashes of all texts; memory holds none of them.

  Args:
    folder: Where to write.
    shards: The folders of the shards.

  Returns:
    Role to the number that the first text of each shard has, int64 [shards].
  """
  first = {}
  for role in contract_lib.ROLES:
    parts = [shard_lib.text_array(each, f"{role}_offsets") for each in shards]
    # Each has one offset more than texts.
    ends = np.cumsum([len(part) - 1 for part in parts])
    first[role] = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    file = _new(folder / f"{role}_offsets.npy", np.int64, ends[-1] + 1)
    tokens = 0
    for start, part in zip(first[role], parts, strict=True):
      file[start : start + len(part)] = part + tokens
      tokens += part[-1]
    for kind in ("text", "sequence"):
      array = f"{role}_{kind}_hashes"
      file = _new(folder / f"{array}.npy", np.uint64, ends[-1])
      for start, each in zip(first[role], shards, strict=True):
        part = shard_lib.text_array(each, array)
        file[start : start + len(part)] = part
  return first


def _new(path: pathlib.Path, dtype: type, length: int) -> np.ndarray:
  """Makes the file of an array, which is written through memory."""
  if not length:  # No memory can be mapped.
    np.save(path, np.empty(0, dtype))
    return np.empty(0, dtype)
  return np.lib.format.open_memmap(path, "w+", dtype, (int(length),))


def merge(
  shards: Sequence[Mapping[str, store_join.StreamArrays]],
  first: Mapping[str, np.ndarray],
) -> dict[str, store_join.StreamArrays]:
  """Returns the arrays of each stream of the store.

  Args:
    shards: For each shard, stream to its arrays.
    first: From `write_texts`.
  """
  return {
    "retrieval": _merge_retrieval([s["retrieval"] for s in shards], first),
    "parallel": _merge_sentences([s["parallel"] for s in shards], first),
    "monolingual": _merge_sentences([s["monolingual"] for s in shards], first),
  }


def _order(
  shards: Sequence[store_join.StreamArrays],
) -> tuple[np.ndarray, tuple[token_store.Group, ...]]:
  """Returns the order that puts the rows of a group together; and the groups.

  Within a group the order is that of the shards.
  """
  key = operator.attrgetter("language", "source")
  names = sorted({key(group) for each in shards for group in each.groups})
  codes = [
    np.full(group.rows, names.index(key(group)))
    for each in shards
    for group in each.groups
  ]
  codes = np.concatenate([np.empty(0, np.int64), *codes])
  counts = np.bincount(codes, minlength=len(names)).tolist()
  groups = [
    token_store.Group(source, language, count)
    for (language, source), count in zip(names, counts, strict=True)
  ]
  return np.argsort(codes, kind="stable"), tuple(groups)


def _numbered(parts: Sequence[np.ndarray], first: np.ndarray) -> np.ndarray:
  """Joins numbers of shards: each counts from the first of its shard."""
  joined = np.concatenate(
    [part + start for part, start in zip(parts, first, strict=True)]
  )
  fits = joined.max(initial=0) < 2**31
  return joined.astype(np.int32 if fits else np.int64)


def _offsets(parts: Sequence[np.ndarray]) -> np.ndarray:
  """Joins the offsets of ragged rows."""
  return store_texts.row_offsets(np.concatenate([np.diff(p) for p in parts]))


def _merge_retrieval(
  shards: Sequence[store_join.StreamArrays], first: Mapping[str, np.ndarray]
) -> store_join.StreamArrays:
  def of(name: str) -> list[np.ndarray]:
    return [each.arrays[name] for each in shards]

  order, groups = _order(shards)
  questions = [len(offsets) - 1 for offsets in of("known_offsets")]
  arrays = {
    "queries": _numbered(of("queries"), first["query"])[order],
    "questions": _numbered(of("questions"), np.cumsum([0, *questions[:-1]]))[
      order
    ],
    "known": np.concatenate(of("known")),
    "known_offsets": _offsets(of("known_offsets")),
  }
  for kind in ("positive", "negative"):
    arrays[f"{kind}s"], arrays[f"{kind}_offsets"] = store_join.take_rows(
      _numbered(of(f"{kind}s"), first["passage"]),
      _offsets(of(f"{kind}_offsets")),
      order,
    )
  scores = {
    f"{kind}_scores": store_join.take_rows(
      np.concatenate(of(f"{kind}_scores")),
      _offsets(of(f"{kind}_offsets")),
      order,
    )[0]
    for kind in ("positive", "negative")
  }
  if not all(np.isnan(each).all() for each in scores.values()):
    arrays |= scores
  return store_join.StreamArrays(arrays, groups)


def _merge_sentences(
  shards: Sequence[store_join.StreamArrays], first: Mapping[str, np.ndarray]
) -> store_join.StreamArrays:
  order, groups = _order(shards)
  texts = _numbered([s.arrays["texts"] for s in shards], first["sentence"])
  languages = np.concatenate([s.arrays["languages"] for s in shards])
  return store_join.StreamArrays(
    {"texts": texts[order], "languages": languages[order]}, groups
  )
