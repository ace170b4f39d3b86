"""Records of each stream to the token store's arrays, grouped by language.

Which texts are the same is known when all are tokenized. So each stream is
read first, its texts under provisional numbers, and makes its arrays then.
"""

import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mlir_jax.batches import sampling
from mlir_jax.data import records
from mlir_jax.data.sources import record_fields

# Arrays by name, rows of each group, and counts of what was left out.
Made = tuple[dict[str, np.ndarray], dict[str, int], dict[str, int]]


class Identities(NamedTuple):
  """Which texts are the same.

  Attributes:
    text: Provisional number to text id, int32: equal for equal texts.
    sequences: Role to int32 [texts], text id to the number of its sequence:
      equal for what is encoded alike; -1 where the role lacks the text.
  """

  text: np.ndarray
  sequences: Mapping[str, np.ndarray]


class Numbering(dict):
  """Numbers keys in the order in which they are first looked up."""

  def __missing__(self, key):
    self[key] = number = len(self)
    return number


def row_offsets(lengths) -> np.ndarray:
  """Where ragged rows of these lengths start; int64 [rows + 1]."""
  return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _take_rows(values, offsets, order) -> tuple[np.ndarray, np.ndarray]:
  """Ragged rows in another order: their values and offsets."""
  lengths = np.diff(offsets)[order]
  new_offsets = row_offsets(lengths)
  shift = np.repeat(offsets[:-1][order] - new_offsets[:-1], lengths)
  return values[np.arange(len(shift)) + shift], new_offsets


def _group(codes, names: Sequence[str]) -> tuple[np.ndarray, dict[str, int]]:
  """Groups rows by name.

  Args:
    codes: int [n], indices into `names`.
    names: The groups' names.

  Returns:
    The order that puts rows of a group together, groups sorted by name, and
    the number of rows of each group.
  """
  by_name = sorted(range(len(names)), key=names.__getitem__)
  rank = np.argsort(by_name)
  codes = np.array(codes, np.int64)
  counts = np.bincount(codes, minlength=len(names))
  groups = {names[i]: int(counts[i]) for i in by_name if counts[i]}
  return np.argsort(rank[codes], kind="stable"), groups


def read_retrieval(
  rows: Iterable[records.RetrievalRecord],
  contract,
  encoder,
  languages: Numbering,
  bad_records: records.BadRecords,
) -> Callable[[Identities], Made]:
  """Reads the question-passage pairs.

  Args:
    rows: The records.
    contract: The encoding contract.
    encoder: Numbers texts and encodes them.
    languages: Numbers languages.
    bad_records: Says whether a passage id with two texts is an error.

  Returns:
    What makes the arrays. It raises RecordError for a passage id with two
    texts, if the policy is "error".
  """
  passage_ids = Numbering()  # Of (file, id).
  queries, codes = array.array("i"), array.array("i")
  places = array.array("q")  # Line and number by turns.
  # Provisional text and passage id by turns, and how many passages each row
  # has.
  positives, positive_counts = array.array("i"), array.array("i")
  negatives, negative_counts = array.array("i"), array.array("i")
  without_text = 0
  for record in rows:
    if not record.positives:
      raise ValueError(f"The question {record.question!r} has no positive.")
    language, place = record.language, record.place
    body = contract.body(record.question)
    queries.append(encoder.text("query", body, language))
    codes.append(languages[language])
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
            encoder.text("passage", body, language),
            passage_ids[place.file, name] if place and name else -1,
          )
        )
      counts.append(len(passages))

  def make(identities: Identities) -> Made:
    ragged = []
    for values, counts in (
      (positives, positive_counts),
      (negatives, negative_counts),
    ):
      values = np.array(values, np.int32).reshape(-1, 2)
      values[:, 0] = identities.text[values[:, 0]]
      ragged.append((values, row_offsets(counts)))
    clashes = _find_clashes(ragged)
    if len(clashes) and bad_records.policy == "error":
      _refuse(clashes[0], list(passage_ids), places, bad_records)

    order, groups = _group(codes, list(languages))
    arrays = _retrieval_arrays(
      identities.text[np.array(queries, np.int32)][order],
      *(_take_rows(values[:, 0], offsets, order) for values, offsets in ragged),
      sequence=identities.sequences["passage"],
    )
    dropped = len(negatives) // 2 - len(arrays["negatives"])
    return (
      arrays,
      groups,
      {
        "hard negatives without text": without_text,
        "hard negatives that are positives": dropped,
        "passage ids that have two texts": len(clashes),
      },
    )

  return make


def _find_clashes(passages) -> np.ndarray:
  """The passage ids that have two texts in one file.

  Args:
    passages: Ragged rows of positives and of hard negatives: int32 [*, 2],
      text id and passage id, -1 for none; and int64 [R + 1].

  Returns:
    int64 [n, 3], in the order of the second rows: the passage id, the first
    row that has it, and the first that has it with another text.
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


def _refuse(
  clash: np.ndarray,
  passage_ids: Sequence[tuple[str, str]],
  places: Sequence[int],
  bad_records: records.BadRecords,
) -> None:
  """Reports a passage id that has two texts: see `_find_clashes`."""
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
  """The retrieval arrays by name, without negatives that are positives.

  Args:
    queries: int32 [R], text ids.
    positives: Ragged rows as `_take_rows` gives them: int32 [*], text ids,
      and int64 [R + 1].
    negatives: The same of the hard negatives.
    sequence: Text id to passage sequence.
  """
  positives, positive_offsets = positives
  negatives, negative_offsets = negatives
  # Every row of a question knows the positives of all of its rows. Questions
  # that are merely cut alike are not one: there may be very many of them.
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
    "negative_offsets": row_offsets(
      np.bincount(rows[kept], minlength=len(queries))
    ),
    "questions": questions.astype(np.int32),
    "known": known[:, 1].astype(np.int32),
    "known_offsets": known_offsets.astype(np.int64),
  }


def read_parallel(
  rows: Iterable[records.ParallelRecord],
  encoder,
  languages: Numbering,
  shuffle_seed: int | None,
) -> Callable[[Identities], Made]:
  """Reads the translations; returns what makes the arrays."""
  pairs = Numbering()  # Of languages, by name.
  codes, sides = array.array("i"), array.array("i")
  identical = 0
  for record in rows:
    if record.source.strip() == record.target.strip():
      identical += 1  # Not worth tokenizing.
      continue
    codes.append(
      pairs["-".join(sorted((record.source_language, record.target_language)))]
    )
    first, second = sorted(
      [
        (language, encoder.text("sentence", text, language))
        for text, language in (
          (record.source, record.source_language),
          (record.target, record.target_language),
        )
      ]
    )
    sides.extend(
      (first[1], second[1], languages[first[0]], languages[second[0]])
    )

  def make(identities: Identities) -> Made:
    found = np.array(sides, np.int32).reshape(-1, 4)
    found[:, :2] = identities.text[found[:, :2]]
    one_language = found[:, 2] == found[:, 3]
    found[one_language, :2] = np.sort(found[one_language, :2], axis=1)
    differ = np.flatnonzero(found[:, 0] != found[:, 1])
    _, first_places = np.unique(found[differ], axis=0, return_index=True)
    first_places = differ[np.sort(first_places)]
    order, groups = _group(np.array(codes, np.int32)[first_places], list(pairs))
    distinct = found[first_places][order]
    texts = np.ascontiguousarray(distinct[:, :2])
    if shuffle_seed is not None:
      start = 0
      for name, size in groups.items():
        group = texts[start : start + size]
        group[:, 1] = _mispair(group, name, shuffle_seed)
        start += size
    arrays = {
      "texts": texts,
      "languages": np.ascontiguousarray(distinct[:, 2:]),
    }
    return (
      arrays,
      groups,
      {
        "parallel pairs with identical sides": (
          identical + len(found) - len(differ)
        ),
        "repeated parallel pairs": len(differ) - len(distinct),
      },
    )

  return make


def _mispair(texts: np.ndarray, name: str, seed: int) -> np.ndarray:
  """Permutes the second sides of some pairs so that no pair stays right.

  Args:
    texts: int32 [n, 2], the text ids of one language pair.
    name: The language pair.
    seed: Determines the permutation.

  Returns:
    int32 [n]: the second sides. None forms a pair that is among `texts`, or
    one of two identical sides.

  Raises:
    ValueError: if no such permutation is found.
  """
  size = len(texts)

  def permutation(length: int, turn: int) -> np.ndarray:
    key = sampling.make_key(seed, "shuffle parallel", name, turn)
    return sampling.permute(np.arange(length), size, key)

  # One cycle through all pairs has no fixed point. But a sentence may stand
  # in several pairs, so some need to be swapped on.
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
    " so that none stays right; leave this language pair out."
  )


def read_monolingual(
  rows: Iterable[records.MonolingualRecord], encoder, languages: Numbering
) -> Callable[[Identities], Made]:
  """Reads the plain sentences; returns what makes the arrays."""
  texts, codes = array.array("i"), array.array("i")
  for record in rows:
    texts.append(encoder.text("sentence", record.text, record.language))
    codes.append(languages[record.language])

  def make(identities: Identities) -> Made:
    order, groups = _group(codes, list(languages))
    arrays = {
      "texts": identities.text[np.array(texts, np.int32)][order],
      "languages": np.array(codes, np.int32)[order],
    }
    return arrays, groups, {}

  return make
