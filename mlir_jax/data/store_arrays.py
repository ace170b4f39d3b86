"""Turns the records of each stream into the token store's arrays.

Which texts are the same is known only when all texts are tokenized. So each
`read_…` function reads a stream, under the texts' provisional numbers, and
returns a function that makes the stream's arrays later, grouped by language and
source.
"""

import array
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mlir_jax import contract as contract_lib
from mlir_jax.batches import sampling
from mlir_jax.data import records, store_texts, token_store
from mlir_jax.data.sources import record_fields


class StreamArrays(NamedTuple):
  """The arrays of a stream.

  Attributes:
    arrays: Name, without the stream's, to array.
    groups: The groups of rows, in order.
    dropped: The reason for leaving something out to its count.
  """

  arrays: Mapping[str, np.ndarray]
  groups: tuple[token_store.Group, ...]
  dropped: Mapping[str, int]


def _take_rows(values, offsets, order) -> tuple[np.ndarray, np.ndarray]:
  """Puts ragged rows in another order; returns their values and offsets."""
  lengths = np.diff(offsets)[order]
  new_offsets = store_texts.row_offsets(lengths)
  shift = np.repeat(offsets[:-1][order] - new_offsets[:-1], lengths)
  return values[np.arange(len(shift)) + shift], new_offsets


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


def read_retrieval(
  rows: Iterable[records.RetrievalRecord],
  contract: contract_lib.EncodingContract,
  texts: store_texts.StoreTexts,
  languages: store_texts.Numbering,
  bad_records: records.BadRecords,
) -> Callable[[store_texts.Identities], StreamArrays]:
  """Reads the question-passage pairs.

  Args:
    rows: The records.
    contract: The encoding contract.
    texts: Numbers the texts and tokenizes them.
    languages: Numbers the languages.
    bad_records: Its policy says whether a passage id with two texts is an
      error.

  Returns:
    The function that makes the arrays. It raises RecordError for a passage id
    with two texts, if the policy is "error".

  Raises:
    RecordError: if a question has a prompt, but the contract has a prefix.
  """
  passage_ids = store_texts.Numbering()  # Of (file, id).
  names = store_texts.Numbering()  # Of (language, source).
  queries, codes = array.array("i"), array.array("i")
  places = array.array("q")  # Line and number in turn.
  # Provisional text and passage id in turn; and the number of passages of each
  # row.
  positives, positive_counts = array.array("i"), array.array("i")
  negatives, negative_counts = array.array("i"), array.array("i")
  without_text = 0
  for record in rows:
    if not record.positives:
      raise ValueError(f"The question {record.question!r} has no positive.")
    language, place = record.language, record.place
    body = _prompt(record, contract) + contract.body(record.question)
    queries.append(texts.add("query", body, language))
    _ = languages[language]  # Numbers it.
    codes.append(names[language, record.source_name])
    places.extend((place.line, place.number) if place else (0, 0))
    with_text = [
      p for p in record.hard_negatives if record_fields.strip(p.text)
    ]
    without_text += len(record.hard_negatives) - len(with_text)
    for passages, values, counts in (
      (record.positives, positives, positive_counts),
      (with_text, negatives, negative_counts),
    ):
      for passage in passages:
        body = contract.body(passage.text, passage.title)
        name = passage.passage_id
        values.extend(
          (
            texts.add("passage", body, language),
            passage_ids[place.file, name] if place and name else -1,
          )
        )
      counts.append(len(passages))

  def make_arrays(identities: store_texts.Identities) -> StreamArrays:
    ragged = []
    for values, counts in (
      (positives, positive_counts),
      (negatives, negative_counts),
    ):
      values = np.array(values, np.int32).reshape(-1, 2)
      values[:, 0] = identities.text[values[:, 0]]
      ragged.append((values, store_texts.row_offsets(counts)))
    clashes = _find_clashes(ragged)
    if len(clashes) and bad_records.policy == "error":
      _report_clash(clashes[0], list(passage_ids), places, bad_records)

    order, groups = _group(codes, list(names))
    arrays = _retrieval_arrays(
      identities.text[np.array(queries, np.int32)][order],
      *(_take_rows(values[:, 0], offsets, order) for values, offsets in ragged),
      sequence=identities.sequences["passage"],
    )
    dropped = len(negatives) // 2 - len(arrays["negatives"])
    return StreamArrays(
      arrays,
      groups,
      {
        "hard negatives without text": without_text,
        "hard negatives that are positives": dropped,
        "passage ids that have two texts": len(clashes),
      },
    )

  return make_arrays


def _prompt(
  record: records.RetrievalRecord, contract: contract_lib.EncodingContract
) -> str:
  """Returns a question's own prompt; "" if it is the prefix of queries.

  Raises:
    RecordError: if both would precede the question.
  """
  prefix = contract.query.prefix
  if record.prompt is None or record.prompt == prefix:
    return ""
  if prefix:
    where = f"{record.place}, " if record.place else ""
    raise records.RecordError(
      f"{where}prompt: {record.prompt!r} differs from encoding.query.prefix,"
      f" {prefix!r}: set encoding.query.prefix='' to let each question have its"
      " prompt, or data.prompts=ignore to let all have the prefix."
    )
  return record.prompt


def _find_clashes(passages) -> np.ndarray:
  """Finds the passage ids that have two texts in one file.

  Args:
    passages: Ragged rows of positives and of hard negatives. Their values are
      int32 [*, 2], text id and passage id (-1 for none); their offsets are
      int64 [R + 1].

  Returns:
    int64 [n, 3]: the passage id, the first row that has it, and the first row
    that has it with another text. They are sorted by the latter.
  """
  rows = np.concatenate(
    [
      np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
      for _, offsets in passages
    ]
  )
  text, ids = np.concatenate([values for values, _ in passages]).T
  order = np.lexsort((rows, ids))
  order = order[ids[order] >= 0]
  rows, text, ids = rows[order], text[order], ids[order]
  _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
  first = first[inverse]
  other = np.flatnonzero(text != text[first])
  other = other[np.unique(ids[other], return_index=True)[1]]
  clashes = np.column_stack([ids[other], rows[first[other]], rows[other]])
  return clashes[np.argsort(clashes[:, 2], kind="stable")]


def _report_clash(
  clash: np.ndarray,
  passage_ids: Sequence[tuple[str, str]],
  places: Sequence[int],
  bad_records: records.BadRecords,
) -> None:
  """Reports a passage id that has two texts, from `_find_clashes`."""
  number, first, second = clash.tolist()
  file, name = passage_ids[number]
  one, other = (
    records.Place(file, *places[2 * row : 2 * row + 2])
    for row in (first, second)
  )
  where = "this record" if one == other else str(one)
  bad_records.report(
    other.file,
    other.line,
    f"record {other.number}, passage id",
    f"{name!r} is also the id of another text, in {where}; give each text an"
    " id of its own, or none",
  )


def _retrieval_arrays(queries, positives, negatives, sequence):
  """Returns the retrieval arrays by name.

  Hard negatives that are positives of their question are left out.

  Args:
    queries: int32 [R], text ids.
    positives: Ragged rows from `_take_rows`: text ids, int32 [*], and offsets,
      int64 [R + 1].
    negatives: The hard negatives, in the same form.
    sequence: Text id to passage sequence, int32 [texts].
  """
  positives, positive_offsets = positives
  negatives, negative_offsets = negatives
  # Every row of a question knows the positives of all its rows. Different
  # questions that are equal only after cutting stay different: there may be
  # very many of them.
  distinct, questions = np.unique(queries, return_inverse=True)
  owners = np.repeat(questions, np.diff(positive_offsets))
  known = np.unique(np.column_stack([owners, sequence[positives]]), axis=0)
  known_offsets = np.searchsorted(known[:, 0], np.arange(len(distinct) + 1))

  rows = np.repeat(np.arange(len(queries)), np.diff(negative_offsets))
  span = 1 + int(sequence.max(initial=0))
  kept = ~np.isin(
    questions[rows] * span + sequence[negatives],
    known[:, 0] * span + known[:, 1],
  )
  return {
    "queries": queries,
    "positives": positives,
    "positive_offsets": positive_offsets,
    "negatives": negatives[kept],
    "negative_offsets": store_texts.row_offsets(
      np.bincount(rows[kept], minlength=len(queries))
    ),
    "questions": questions.astype(np.int32),
    "known": known[:, 1].astype(np.int32),
    "known_offsets": known_offsets.astype(np.int64),
  }


def read_parallel(
  rows: Iterable[records.ParallelRecord],
  texts: store_texts.StoreTexts,
  languages: store_texts.Numbering,
  shuffle_seed: int | None,
) -> Callable[[store_texts.Identities], StreamArrays]:
  """Reads the translations.

  Args:
    rows: The records.
    texts: Numbers the texts and tokenizes them.
    languages: Numbers the languages.
    shuffle_seed: If given, every sentence gets a wrong partner, by this seed.

  Returns:
    The function that makes the arrays. It raises ValueError if the pairs of two
    languages cannot be shuffled.
  """
  pairs = store_texts.Numbering()  # Of (language pair, source).
  codes, sides = array.array("i"), array.array("i")
  identical = 0
  for record in rows:
    if record.source.strip() == record.target.strip():
      identical += 1  # Not worth tokenizing.
      continue
    pair = "-".join(sorted((record.source_language, record.target_language)))
    codes.append(pairs[pair, record.source_name])
    first, second = sorted(
      [
        (language, texts.add("sentence", text, language))
        for text, language in (
          (record.source, record.source_language),
          (record.target, record.target_language),
        )
      ]
    )
    sides.extend(
      (first[1], second[1], languages[first[0]], languages[second[0]])
    )

  def make_arrays(identities: store_texts.Identities) -> StreamArrays:
    found = np.array(sides, np.int32).reshape(-1, 4)
    found[:, :2] = identities.text[found[:, :2]]
    one_language = found[:, 2] == found[:, 3]
    found[one_language, :2] = np.sort(found[one_language, :2], axis=1)
    differ = np.flatnonzero(found[:, 0] != found[:, 1])
    _, first_places = np.unique(found[differ], axis=0, return_index=True)
    first_places = differ[np.sort(first_places)]
    order, groups = _group(np.array(codes, np.int32)[first_places], list(pairs))
    distinct = found[first_places][order]
    sentences = np.ascontiguousarray(distinct[:, :2])
    if shuffle_seed is not None:
      start = 0
      for name, of_pair in itertools.groupby(groups, lambda g: g.language):
        size = sum(group.rows for group in of_pair)
        rows_of_pair = sentences[start : start + size]
        rows_of_pair[:, 1] = _mispair(rows_of_pair, name, shuffle_seed)
        start += size
    arrays = {
      "texts": sentences,
      "languages": np.ascontiguousarray(distinct[:, 2:]),
    }
    return StreamArrays(
      arrays,
      groups,
      {
        "parallel pairs with identical sides": (
          identical + len(found) - len(differ)
        ),
        "repeated parallel pairs": len(differ) - len(distinct),
      },
    )

  return make_arrays


def _mispair(texts: np.ndarray, name: str, seed: int) -> np.ndarray:
  """Permutes the second sides of some pairs, so that every pair is wrong.

  Args:
    texts: int32 [n, 2], the text ids of one language pair.
    name: The language pair.
    seed: Determines the permutation.

  Returns:
    int32 [n]: the second sides. With its first side, none forms a pair of
    `texts` or a pair of two identical sides.

  Raises:
    ValueError: if no such permutation is found.
  """
  size = len(texts)

  def permutation(length: int, turn: int) -> np.ndarray:
    key = sampling.make_key(seed, "shuffle parallel", name, turn)
    return sampling.permute(np.arange(length), size, key)

  # One cycle through all pairs has no fixed point. But a sentence may be in
  # several pairs, so some pairs are still right, and are swapped again.
  cycle = permutation(size, 0)
  first, second = texts[:, 0].astype(np.int64), np.empty(size, np.int64)
  second[cycle] = texts[np.roll(cycle, 1), 1]
  span = texts.max() + 1
  right_pairs = first * span + texts[:, 1]
  for turn in range(1, 101):
    right = np.flatnonzero(
      np.isin(first * span + second, right_pairs) | (first == second)
    )
    if not right.size:
      return second.astype(np.int32)
    for a, b in zip(right, permutation(right.size, turn), strict=True):
      second[[a, b]] = second[[b, a]]
  raise ValueError(
    f"The {size} pairs of {name} are too few, or too alike, to be shuffled"
    " so that all are wrong; leave this language pair out."
  )


def read_monolingual(
  rows: Iterable[records.MonolingualRecord],
  texts: store_texts.StoreTexts,
  languages: store_texts.Numbering,
) -> Callable[[store_texts.Identities], StreamArrays]:
  """Reads the plain sentences; returns the function that makes the arrays."""
  names = store_texts.Numbering()  # Of (language, source).
  sentences, codes = array.array("i"), array.array("i")
  numbers = array.array("i")  # Of the languages.
  for record in rows:
    sentences.append(texts.add("sentence", record.text, record.language))
    numbers.append(languages[record.language])
    codes.append(names[record.language, record.source_name])

  def make_arrays(identities: store_texts.Identities) -> StreamArrays:
    order, groups = _group(codes, list(names))
    arrays = {
      "texts": identities.text[np.array(sentences, np.int32)][order],
      "languages": np.array(numbers, np.int32)[order],
    }
    return StreamArrays(arrays, groups, {})

  return make_arrays
