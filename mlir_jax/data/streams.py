"""Records of each stream to the token store's arrays, grouped by language."""

import array
from collections.abc import Sequence

import numpy as np

from mlir_jax.data import sampling


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


def read_retrieval(rows, contract, encoder, languages):
  """Reads the question-passage pairs: arrays, groups, dropped counts."""
  passage_ids = Numbering()
  queries, codes = array.array("i"), array.array("i")
  # Text id and passage id by turns, and how many passages each row has.
  positives, positive_counts = array.array("i"), array.array("i")
  negatives, negative_counts = array.array("i"), array.array("i")
  for record in rows:
    if not record.positives:
      raise ValueError(f"The question {record.question!r} has no positive.")
    language = record.language
    body = contract.body(record.question)
    queries.append(encoder.text("query", body, language))
    codes.append(languages[language])
    for passages, values, counts in (
      (record.positives, positives, positive_counts),
      (record.hard_negatives, negatives, negative_counts),
    ):
      for passage in passages:
        body = contract.body(passage.text, passage.title)
        values.append(encoder.text("passage", body, language))
        name = passage.passage_id
        values.append(passage_ids[name] if name else -1)
      counts.append(len(passages))

  order, groups = _group(codes, list(languages))
  arrays = _retrieval_arrays(
    np.array(queries, np.int32)[order],
    *(
      _take_rows(
        np.array(values, np.int32).reshape(-1, 2), row_offsets(counts), order
      )
      for values, counts in (
        (positives, positive_counts),
        (negatives, negative_counts),
      )
    ),
  )
  dropped = len(negatives) // 2 - len(arrays["negatives"])
  return arrays, groups, {"hard negatives that are positives": dropped}


def _retrieval_arrays(queries, positives, negatives):
  """The retrieval arrays by name, without negatives that are positives.

  Args:
    queries: int32 [R], text ids.
    positives: Ragged rows as `_take_rows` gives them: int32 [*, 2], text id
      and passage id, and int64 [R + 1].
    negatives: The same of the hard negatives.
  """
  positives, positive_offsets = positives
  negatives, negative_offsets = negatives
  # Every row of a question knows the positives of all of its rows.
  distinct, questions = np.unique(queries, return_inverse=True)
  owners = np.repeat(questions, np.diff(positive_offsets))
  known = np.unique(np.column_stack([owners, positives]), axis=0)
  known_offsets = np.searchsorted(known[:, 0], np.arange(len(distinct) + 1))

  rows = np.repeat(np.arange(len(queries)), np.diff(negative_offsets))
  kept = ~_are_known(known, questions[rows], negatives)
  return {
    "queries": queries,
    "positives": positives,
    "positive_offsets": positive_offsets,
    "negatives": negatives[kept],
    "negative_offsets": row_offsets(
      np.bincount(rows[kept], minlength=len(queries))
    ),
    "questions": questions.astype(np.int32),
    "known": known[:, 1:].astype(np.int32),
    "known_offsets": known_offsets.astype(np.int64),
  }


def _are_known(known, questions, passages) -> np.ndarray:
  """Which passages are a positive of their question, by text or by id.

  Args:
    known: int [*, 3], each question's positives: question, text id,
      passage id.
    questions: int [n].
    passages: int32 [n, 2], text id and passage id, -1 for none.

  Returns:
    bool [n].
  """
  are_known = np.zeros(len(passages), bool)
  for column in (0, 1):
    ids, known_ids = passages[:, column], known[:, 1 + column]
    span = 1 + max(ids.max(initial=-1), known_ids.max(initial=-1)).astype(
      np.int64
    )
    named = known_ids >= 0
    are_known |= (ids >= 0) & np.isin(
      questions * span + ids, known[named, 0] * span + known_ids[named]
    )
  return are_known


def read_parallel(rows, encoder, languages, shuffle_seed):
  """Reads the translations: arrays, groups, dropped counts."""
  pairs = Numbering()  # Of languages, by name.
  codes, sides = array.array("i"), array.array("i")
  identical = 0
  for record in rows:
    if record.source.strip() == record.target.strip():
      identical += 1
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

  sides = np.array(sides, np.int32).reshape(-1, 4)
  _, first_places = np.unique(sides, axis=0, return_index=True)
  first_places.sort()
  order, groups = _group(np.array(codes, np.int32)[first_places], list(pairs))
  repeated = len(sides) - len(order)
  sides = sides[first_places][order]
  texts = np.ascontiguousarray(sides[:, :2])
  if shuffle_seed is not None:
    start = 0
    for name, size in groups.items():
      group = texts[start : start + size]
      group[:, 1] = _mispair(group, name, shuffle_seed)
      start += size
  arrays = {"texts": texts, "languages": np.ascontiguousarray(sides[:, 2:])}
  dropped = {
    "parallel pairs with identical sides": identical,
    "repeated parallel pairs": repeated,
  }
  return arrays, groups, dropped


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


def read_monolingual(rows, encoder, languages):
  """Reads the plain sentences: arrays, groups, dropped counts."""
  texts, codes = array.array("i"), array.array("i")
  for record in rows:
    texts.append(encoder.text("sentence", record.text, record.language))
    codes.append(languages[record.language])
  order, groups = _group(codes, list(languages))
  arrays = {
    "texts": np.array(texts, np.int32)[order],
    "languages": np.array(codes, np.int32)[order],
  }
  return arrays, groups, {}
