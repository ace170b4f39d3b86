"""Joins the shards of a token store by the hashes of their texts.

It finds what the records of one shard cannot say: all positives of a question,
hard negatives that are positives, repeated pairs and passage ids with two
texts. Then it makes the arrays of each shard, with the rows of a group
together.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mlir_jax.data import records, store_arrays, store_texts, token_store


class StreamArrays(NamedTuple):
  """The arrays of a stream of a shard in the token store.

  Attributes:
    arrays: Name, without the stream's, to array.
    groups: The groups of rows, in order.
  """

  arrays: Mapping[str, np.ndarray]
  groups: tuple[token_store.Group, ...]


class Joined(NamedTuple):
  """The token store's content without its texts.

  Attributes:
    shards: For each shard, stream to its arrays.
    languages: The languages, by their numbers in the arrays.
    dropped: The reason for leaving something out to its count.
  """

  shards: list[dict[str, StreamArrays]]
  languages: tuple[str, ...]
  dropped: dict[str, int]


def join(
  shards: Sequence[store_arrays.Shard], bad_records: records.BadRecords
) -> Joined:
  """Joins shards.

  Args:
    shards: The shards. Of equal pairs, the first is kept: the result depends
      on the order of the shards, but not on how they were built.
    bad_records: Its policy says whether a passage id with two texts is an
      error.

  Raises:
    RecordError: for a passage id with two texts, if the policy is "error".
  """
  languages, numbers = number_languages([shard.languages for shard in shards])
  clashes = find_clashes([_passages_with_ids(shard) for shard in shards])
  if len(clashes) and bad_records.policy == "error":
    _report_clash(clashes[0], shards, bad_records)
  known = find_known_positives([_retrieval_keys(shard) for shard in shards])
  pairs = [_pair_keys(*each) for each in zip(shards, numbers, strict=True)]
  kept, identical, repeated = find_kept_pairs(pairs)
  joined = []
  for i, shard in enumerate(shards):
    rows = shard.streams
    joined.append(
      {
        "retrieval": _arrange_retrieval(rows["retrieval"], known[i]),
        "parallel": _arrange_parallel(rows["parallel"], pairs[i], kept[i]),
        "monolingual": _arrange_monolingual(rows["monolingual"], numbers[i]),
      }
    )

  def count(stream: str, reason: str) -> int:
    return sum(shard.streams[stream].dropped[reason] for shard in shards)

  without_text = "hard negatives without text"
  same_sides = "parallel pairs with identical sides"
  return Joined(
    joined,
    languages,
    {
      without_text: count("retrieval", without_text),
      "hard negatives that are positives": sum(
        int((~each.kept).sum()) for each in known
      ),
      "passage ids that have two texts": len(clashes),
      same_sides: count("parallel", same_sides) + identical,
      "repeated parallel pairs": repeated,
    },
  )


def number_languages(
  languages: Sequence[Sequence[str]],
) -> tuple[tuple[str, ...], list[np.ndarray]]:
  """Numbers the languages of all shards.

  Args:
    languages: The languages of each shard, by their numbers in the shard.

  Returns:
    The languages by their new numbers; and for each shard the new number of
    each of its languages, int32 [L].
  """
  numbering = store_texts.Numbering()
  numbers = [
    np.array([numbering[code] for code in of_shard], np.int32)
    for of_shard in languages
  ]
  return tuple(numbering), numbers


# --- Positives and hard negatives. ---


class RetrievalKeys(NamedTuple):
  """The hashes by which the question-passage pairs of shards are joined.

  Attributes:
    questions: Text hashes, uint64 [R].
    positives: Sequence hashes of passages, uint64 [*].
    positive_offsets: int64 [R + 1].
    negatives: The same, of hard negatives.
    negative_offsets: int64 [R + 1].
  """

  questions: np.ndarray
  positives: np.ndarray
  positive_offsets: np.ndarray
  negatives: np.ndarray
  negative_offsets: np.ndarray


class KnownPositives(NamedTuple):
  """The positives of a shard's questions in all shards.

  Attributes:
    questions: Each row's question, int32 [R]: a number in the shard, by first
      appearance.
    known: Sequence hashes of the positives of each question, uint64 [*].
    offsets: int64 [Q + 1].
    kept: Whether a hard negative is no positive of its question, bool [*].
  """

  questions: np.ndarray
  known: np.ndarray
  offsets: np.ndarray
  kept: np.ndarray


def _retrieval_keys(shard: store_arrays.Shard) -> RetrievalKeys:
  arrays = shard.streams["retrieval"].arrays
  passages = shard.hashes["passage"].sequence
  return RetrievalKeys(
    shard.hashes["query"].text[arrays["queries"]],
    passages[arrays["positives"]],
    arrays["positive_offsets"],
    passages[arrays["negatives"]],
    arrays["negative_offsets"],
  )


def find_known_positives(
  shards: Sequence[RetrievalKeys],
) -> list[KnownPositives]:
  """Finds the positives of each question, and negatives that are positives.

  Every row of a question knows the positives of all its rows. Different
  questions that are equal only after cutting stay different: there may be very
  many of them.
  """
  _, question = np.unique(
    np.concatenate([keys.questions for keys in shards]), return_inverse=True
  )
  questions = _split(question, [len(keys.questions) for keys in shards])
  sequences, passage = np.unique(
    np.concatenate(
      [each for keys in shards for each in (keys.positives, keys.negatives)]
    ),
    return_inverse=True,
  )
  # A question and a sequence in one number.
  span = max(len(sequences), 1)
  passages = iter(
    _split(
      passage,
      [len(each) for s in shards for each in (s.positives, s.negatives)],
    )
  )
  positives, negatives = [], []
  for keys, of_rows in zip(shards, questions, strict=True):
    for found, offsets in (
      (positives, keys.positive_offsets),
      (negatives, keys.negative_offsets),
    ):
      owners = np.repeat(of_rows, np.diff(offsets))
      found.append(owners * span + next(passages))
  known = np.unique(np.concatenate(positives))
  joined = []
  for of_rows, of_shard in zip(questions, negatives, strict=True):
    distinct, first, local = np.unique(
      of_rows, return_index=True, return_inverse=True
    )
    order = np.argsort(first)  # Questions are numbered as they appear.
    local, distinct = np.argsort(order)[local], distinct[order]
    starts = np.searchsorted(known, distinct * span)
    ends = np.searchsorted(known, (distinct + 1) * span)
    offsets = store_texts.row_offsets(ends - starts)
    values = known[_ranges(starts, offsets)]
    joined.append(
      KnownPositives(
        local.astype(np.int32),
        sequences[values % span],
        offsets,
        ~np.isin(of_shard, known),
      )
    )
  return joined


def _split(values: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
  """Splits an array into parts of these sizes."""
  return np.split(values, np.cumsum(sizes)[:-1])


def _ranges(starts: np.ndarray, offsets: np.ndarray) -> np.ndarray:
  """Returns the places of ragged rows in their source; int64 [*].

  Args:
    starts: Where each row starts in its source, int64 [R].
    offsets: Where each row starts in the result, int64 [R + 1].
  """
  shift = np.repeat(starts - offsets[:-1], np.diff(offsets))
  return np.arange(len(shift)) + shift


# --- Passage ids. ---


class IdKeys(NamedTuple):
  """The passages of a shard that have an id.

  Attributes:
    ids: Hashes of file and passage id, uint64 [n].
    texts: Text hashes, uint64 [n].
    rows: The rows of the passages, int64 [n].
    numbers: The ids' numbers in the shard, int32 [n].
  """

  ids: np.ndarray
  texts: np.ndarray
  rows: np.ndarray
  numbers: np.ndarray


def _passages_with_ids(shard: store_arrays.Shard) -> IdKeys:
  arrays, hashes = shard.streams["retrieval"].arrays, shard.hashes["passage"]
  numbers, texts, rows = (
    np.concatenate(each)
    for each in zip(
      *(
        (
          arrays[f"{kind}_ids"],
          hashes.text[arrays[f"{kind}s"]],
          np.repeat(
            np.arange(len(arrays["queries"])),
            np.diff(arrays[f"{kind}_offsets"]),
          ),
        )
        for kind in ("positive", "negative")
      ),
      strict=True,
    )
  )
  has_id = numbers >= 0
  numbers = numbers[has_id]
  return IdKeys(
    arrays["id_hashes"][numbers], texts[has_id], rows[has_id], numbers
  )


def find_clashes(shards: Sequence[IdKeys]) -> np.ndarray:
  """Finds the passage ids that have two texts in one file.

  Returns:
    int64 [n, 5]: the shard and the row that have an id first; the shard and the
    row that have it first with another text; and the id's number in the latter
    shard. They are sorted by the last three.
  """
  ids, texts, rows, numbers = map(np.concatenate, zip(*shards, strict=True))
  shard = np.repeat(np.arange(len(shards)), [len(keys.ids) for keys in shards])
  order = np.lexsort((rows, shard, ids))
  ids, texts, rows = ids[order], texts[order], rows[order]
  numbers, shard = numbers[order], shard[order]
  _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
  first = first[inverse]
  other = np.flatnonzero(texts != texts[first])
  other = other[np.unique(ids[other], return_index=True)[1]]
  one = first[other]
  clashes = np.column_stack(
    [shard[one], rows[one], shard[other], rows[other], numbers[other]]
  ).astype(np.int64)
  return clashes[np.lexsort(clashes[:, :1:-1].T)]


def _report_clash(
  clash: np.ndarray,
  shards: Sequence[store_arrays.Shard],
  bad_records: records.BadRecords,
) -> None:
  """Reports a passage id that has two texts, from `find_clashes`."""
  *first, shard, row, number = clash.tolist()
  one, other = (
    _place(shards[shard].streams["retrieval"], row)
    for shard, row in (first, (shard, row))
  )
  arrays = shards[shard].streams["retrieval"].arrays
  start, stop = arrays["id_offsets"][number : number + 2]
  name = arrays["id_names"][start:stop].tobytes()
  where = "this record" if one == other else str(one)
  bad_records.report(
    other.file,
    other.line,
    f"record {other.number}, passage id",
    f"{name.decode(errors='surrogatepass')!r} is also the id of another text,"
    f" in {where}; give each text an id of its own, or none",
  )


def _place(rows: store_arrays.ShardRows, row: int) -> records.Place:
  """Returns the place of a row's record, which has one."""
  file, line, number = rows.arrays["places"][row].tolist()
  return records.Place(rows.files[file], line, number)


# --- Translations. ---


class ParallelKeys(NamedTuple):
  """What identifies the translations of a shard.

  Attributes:
    texts: Text hashes, uint64 [N, 2].
    languages: Their languages' numbers in all shards, int32 [N, 2].
  """

  texts: np.ndarray
  languages: np.ndarray


def _pair_keys(shard: store_arrays.Shard, numbers: np.ndarray) -> ParallelKeys:
  arrays = shard.streams["parallel"].arrays
  return ParallelKeys(
    shard.hashes["sentence"].text[arrays["texts"]], numbers[arrays["languages"]]
  )


def find_kept_pairs(
  shards: Sequence[ParallelKeys],
) -> tuple[list[np.ndarray], int, int]:
  """Finds the pairs that differ in their sides and in the earlier pairs.

  Returns:
    For each shard, which of its pairs are kept, bool [N]; how many pairs have
    identical sides; and how many others are repeated, in either direction.
  """
  texts, languages = map(np.concatenate, zip(*shards, strict=True))
  texts = _in_order(texts, languages)
  differ = texts[:, 0] != texts[:, 1]
  # The sort is stable, so the first of equal pairs stays the first.
  order = np.lexsort((*texts.T, *languages.T))
  is_first = np.ones(len(order), bool)
  is_first[1:] = (texts[order[1:]] != texts[order[:-1]]).any(axis=1) | (
    languages[order[1:]] != languages[order[:-1]]
  ).any(axis=1)
  kept = np.zeros(len(order), bool)
  kept[order] = is_first
  kept &= differ
  return (
    _split(kept, [len(keys.texts) for keys in shards]),
    int((~differ).sum()),
    int((differ & ~kept).sum()),
  )


def _in_order(texts: np.ndarray, languages: np.ndarray) -> np.ndarray:
  """Sorts the sides of pairs in one language; the arrays are [N, 2]."""
  one_language = languages[:, 0] == languages[:, 1]
  return np.where(one_language[:, None], np.sort(texts, axis=1), texts)


# --- The arrays of the store. ---


def _group(
  codes, names: Sequence[tuple[str, str]]
) -> tuple[np.ndarray, tuple[token_store.Group, ...]]:
  """Groups rows by language and source.

  Args:
    codes: int [n], indices into `names`.
    names: The language (or language pair) and the source of each group.

  Returns:
    The order in which the rows of each group are together and the groups are
    sorted by language, then by source; and the groups.
  """
  by_name = sorted(range(len(names)), key=names.__getitem__)
  rank = np.argsort(by_name)
  codes = np.array(codes, np.int64)
  counts = np.bincount(codes, minlength=len(names))
  groups = (
    token_store.Group(names[i][1], names[i][0], int(counts[i]))
    for i in by_name
    if counts[i]
  )
  return np.argsort(rank[codes], kind="stable"), tuple(groups)


def take_rows(values, offsets, order) -> tuple[np.ndarray, np.ndarray]:
  """Puts ragged rows in another order; returns their values and offsets."""
  new_offsets = store_texts.row_offsets(np.diff(offsets)[order])
  return values[_ranges(offsets[:-1][order], new_offsets)], new_offsets


def _arrange_retrieval(
  rows: store_arrays.ShardRows, known: KnownPositives
) -> StreamArrays:
  """Groups the rows; leaves out hard negatives that are positives."""
  arrays = rows.arrays
  order, groups = _group(arrays["groups"], rows.groups)
  positives, positive_offsets = take_rows(
    arrays["positives"], arrays["positive_offsets"], order
  )
  owners = np.repeat(np.arange(len(order)), np.diff(arrays["negative_offsets"]))
  left = np.bincount(owners[known.kept], minlength=len(order))
  negatives, negative_offsets = take_rows(
    arrays["negatives"][known.kept], store_texts.row_offsets(left), order
  )
  positive_scores, _ = take_rows(
    arrays["positive_scores"], arrays["positive_offsets"], order
  )
  negative_scores, _ = take_rows(
    arrays["negative_scores"][known.kept], store_texts.row_offsets(left), order
  )
  return StreamArrays(
    {
      "queries": arrays["queries"][order],
      "positives": positives,
      "positive_offsets": positive_offsets,
      "negatives": negatives,
      "negative_offsets": negative_offsets,
      "positive_scores": positive_scores,
      "negative_scores": negative_scores,
      "questions": known.questions[order],
      "known": known.known,
      "known_offsets": known.offsets,
    },
    groups,
  )


def _arrange_parallel(
  rows: store_arrays.ShardRows, keys: ParallelKeys, kept: np.ndarray
) -> StreamArrays:
  """Groups the kept pairs; `kept` is bool [N]."""
  place = np.flatnonzero(kept)
  order, groups = _group(rows.arrays["groups"][place], rows.groups)
  place = place[order]
  return StreamArrays(
    {"texts": rows.arrays["texts"][place], "languages": keys.languages[place]},
    groups,
  )


def _arrange_monolingual(
  rows: store_arrays.ShardRows, numbers: np.ndarray
) -> StreamArrays:
  """Groups the sentences.

  Args:
    rows: The rows.
    numbers: The numbers in all shards of the shard's languages.
  """
  order, groups = _group(rows.arrays["groups"], rows.groups)
  return StreamArrays(
    {
      "texts": rows.arrays["texts"][order],
      "languages": numbers[rows.arrays["languages"][order]],
    },
    groups,
  )
