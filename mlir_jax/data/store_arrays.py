"""Turns the records of a shard into arrays.

A shard is made from its own records alone: it knows no number of another shard.
Its rows name a text by the text's index in a role of the shard. What depends on
other shards is found later by the texts' hashes: see `store_join`.
"""

import array
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from mlir_jax import contract as contract_lib
from mlir_jax.batches import identity
from mlir_jax.data import records, store_texts
from mlir_jax.data.sources import record_fields


class ShardRows(NamedTuple):
  """The rows of a stream of a shard, in the order of their records.

  Attributes:
    arrays: Name to array. "groups" is in all streams: each row's index in
      `groups`, int32 [R].
    groups: The language (or language pair) and the source of each group.
    files: The names of the records' files; only of the stream "retrieval".
    dropped: The reason for leaving something out to its count.
  """

  arrays: Mapping[str, np.ndarray]
  groups: tuple[tuple[str, str], ...]
  files: tuple[str, ...]
  dropped: Mapping[str, int]


class Shard(NamedTuple):
  """What a shard says to the join of all shards; its tokens are in files.

  Attributes:
    streams: Stream to its rows.
    languages: The languages, by their numbers in the shard's arrays.
    hashes: Role to the hashes of its texts.
    truncation: Role to language to [strings cut, all strings].
  """

  streams: Mapping[str, ShardRows]
  languages: tuple[str, ...]
  hashes: Mapping[str, store_texts.Hashes]
  truncation: Mapping[str, Mapping[str, list[int]]]


def read_shard(
  folder: pathlib.Path,
  retrieval: Iterable[records.RetrievalRecord],
  parallel: Iterable[records.ParallelRecord],
  monolingual: Iterable[records.MonolingualRecord],
  contract: contract_lib.EncodingContract,
  tokenizer: str,
) -> Shard:
  """Reads the records of a shard and writes the arrays of its texts.

  Args:
    folder: The shard's folder, which exists.
    retrieval: The shard's question-passage pairs.
    parallel: Its translations.
    monolingual: Its plain sentences.
    contract: The encoding contract.
    tokenizer: The tokenizer's JSON.

  Raises:
    ValueError: if a record cannot be used.
  """
  texts = store_texts.ShardTexts(folder, contract, tokenizer)
  languages = store_texts.Numbering()
  streams = {
    "retrieval": read_retrieval(retrieval, contract, texts, languages),
    "parallel": read_parallel(parallel, contract, texts, languages),
    "monolingual": read_monolingual(monolingual, contract, texts, languages),
  }
  hashes, truncation = texts.finish()
  return Shard(streams, tuple(languages), hashes, truncation)


def read_retrieval(
  rows: Iterable[records.RetrievalRecord],
  contract: contract_lib.EncodingContract,
  texts: store_texts.ShardTexts,
  languages: store_texts.Numbering,
) -> ShardRows:
  """Reads the question-passage pairs.

  Args:
    rows: The records.
    contract: The encoding contract.
    texts: Tokenizes the texts.
    languages: Numbers the languages.

  Returns:
    The rows. Their arrays are:
      queries            int32 [R]      texts of the role "query"
      places             int64 [R, 3]   file (-1 for none), line, record number
      positives          int32 [*]      texts of the role "passage"
      positive_ids       int32 [*]      their passage ids, -1 for none
      positive_scores    float32 [*]    a teacher's scores, NaN for none
      positive_offsets   int64 [R + 1]
      negatives, negative_ids, negative_scores, negative_offsets: the same, of
        hard negatives
      id_hashes          uint64 [I]     of each file and passage id
      id_names           uint8 [*]      the passage ids, in UTF-8
      id_offsets         int64 [I + 1]

  Raises:
    RecordError: if a question has a prompt, but the contract has a prefix.
  """
  groups, files = store_texts.Numbering(), store_texts.Numbering()
  passage_ids = store_texts.Numbering()  # Of (file, id).
  queries, codes = array.array("i"), array.array("i")
  places = array.array("q")  # File, line and number in turn.
  # Text and passage id in turn; and the number of passages of each row.
  positives, positive_counts = array.array("i"), array.array("i")
  negatives, negative_counts = array.array("i"), array.array("i")
  scores = {"positive": array.array("f"), "negative": array.array("f")}
  without_text = 0
  for record in rows:
    if not record.positives:
      raise ValueError(f"The question {record.question!r} has no positive.")
    language, place = record.language, record.place
    query_prefix = _query_prefix(record, contract)
    passage_prefix = contract.prefix_of_source("passage", record.source_name)
    body = contract.body(record.question)
    queries.append(texts.add("query", body, language, query_prefix))
    _ = languages[language]  # Numbers it.
    codes.append(groups[language, record.source_name])
    places.extend(
      (files[place.file], place.line, place.number) if place else (-1, 0, 0)
    )
    hard_negatives = with_text(record.hard_negatives)
    without_text += len(record.hard_negatives) - len(hard_negatives)
    for kind, passages, values, counts in (
      ("positive", record.positives, positives, positive_counts),
      ("negative", hard_negatives, negatives, negative_counts),
    ):
      for passage in passages:
        body = contract.body(passage.text, passage.title)
        name = passage.passage_id
        values.extend(
          (
            texts.add("passage", body, language, passage_prefix),
            passage_ids[place.file, name] if place and name else -1,
          )
        )
        score = passage.score
        scores[kind].append(math.nan if score is None else score)
      counts.append(len(passages))

  arrays = {
    "groups": np.array(codes, np.int32),
    "queries": np.array(queries, np.int32),
    "places": np.array(places, np.int64).reshape(-1, 3),
  }
  for kind, values, counts in (
    ("positive", positives, positive_counts),
    ("negative", negatives, negative_counts),
  ):
    passages, ids = np.array(values, np.int32).reshape(-1, 2).T
    arrays[f"{kind}s"] = np.ascontiguousarray(passages)
    arrays[f"{kind}_ids"] = np.ascontiguousarray(ids)
    arrays[f"{kind}_scores"] = np.array(scores[kind], np.float32)
    arrays[f"{kind}_offsets"] = store_texts.row_offsets(counts)
  return ShardRows(
    arrays | _id_arrays(passage_ids),
    tuple(groups),
    tuple(files),
    {"hard negatives without text": without_text},
  )


def _id_arrays(
  passage_ids: Iterable[tuple[str, str]],
) -> dict[str, np.ndarray]:
  """Returns the arrays of passage ids of `read_retrieval`; from (file, id)."""
  hashes, names, lengths = array.array("Q"), bytearray(), array.array("q")
  for file, name in passage_ids:
    encoded = name.encode(errors="surrogatepass")
    of_file = file.encode(errors="surrogatepass")
    # The length keeps a file and an id apart.
    hashes.append(
      identity.hash_of(b"%d %b%b" % (len(of_file), of_file, encoded))
    )
    names += encoded
    lengths.append(len(encoded))
  return {
    "id_hashes": np.array(hashes, np.uint64),
    "id_names": np.frombuffer(bytes(names), np.uint8),
    "id_offsets": store_texts.row_offsets(lengths),
  }


def with_text(
  passages: Iterable[records.Passage],
) -> list[records.Passage]:
  """Returns the hard negatives that the store takes: those that have a text."""
  return [each for each in passages if record_fields.strip(each.text)]


def _query_prefix(
  record: records.RetrievalRecord, contract: contract_lib.EncodingContract
) -> str:
  """Returns what precedes a question: its own prompt, or that of its source.

  A question's own prompt takes the place of its source's.

  Raises:
    RecordError: if its own prompt differs from the prefix of all queries.
  """
  prefix = contract.prefix_of_source("query", record.source_name)
  if record.prompt is None:
    return prefix
  has_prompt = "query" in contract.prompts.get(record.source_name, {})
  if prefix and record.prompt != prefix and not has_prompt:
    where = f"{record.place}, " if record.place else ""
    raise records.RecordError(
      f"{where}prompt: {record.prompt!r} differs from encoding.query.prefix,"
      f" {prefix!r}: set encoding.query.prefix='' to let each question have its"
      " prompt, or data.prompts=ignore to let all have the prefix."
    )
  return record.prompt


def read_parallel(
  rows: Iterable[records.ParallelRecord],
  contract: contract_lib.EncodingContract,
  texts: store_texts.ShardTexts,
  languages: store_texts.Numbering,
) -> ShardRows:
  """Reads the translations.

  Args:
    rows: The records.
    contract: The encoding contract.
    texts: Tokenizes the texts.
    languages: Numbers the languages.

  Returns:
    The rows. Their arrays are "texts", int32 [R, 2], of the role "sentence",
    and "languages", int32 [R, 2]. The sides of a pair are sorted by language.
  """
  groups = store_texts.Numbering()
  codes, sides = array.array("i"), array.array("i")
  identical = 0
  for record in rows:
    if record.source.strip() == record.target.strip():
      identical += 1  # Not worth tokenizing.
      continue
    pair = "-".join(sorted((record.source_language, record.target_language)))
    codes.append(groups[pair, record.source_name])
    prefix = contract.prefix_of_source("sentence", record.source_name)
    first, second = sorted(
      [
        (language, texts.add("sentence", text, language, prefix))
        for text, language in (
          (record.source, record.source_language),
          (record.target, record.target_language),
        )
      ]
    )
    sides.extend(
      (first[1], second[1], languages[first[0]], languages[second[0]])
    )
  found = np.array(sides, np.int32).reshape(-1, 4)
  return ShardRows(
    {
      "groups": np.array(codes, np.int32),
      "texts": np.ascontiguousarray(found[:, :2]),
      "languages": np.ascontiguousarray(found[:, 2:]),
    },
    tuple(groups),
    (),
    {"parallel pairs with identical sides": identical},
  )


def read_monolingual(
  rows: Iterable[records.MonolingualRecord],
  contract: contract_lib.EncodingContract,
  texts: store_texts.ShardTexts,
  languages: store_texts.Numbering,
) -> ShardRows:
  """Reads the plain sentences.

  Args:
    rows: The records.
    contract: The encoding contract.
    texts: Tokenizes the texts.
    languages: Numbers the languages.

  Returns:
    The rows. Their arrays are "texts", int32 [R], of the role "sentence", and
    "languages", int32 [R].
  """
  groups = store_texts.Numbering()
  sentences, codes = array.array("i"), array.array("i")
  numbers = array.array("i")
  for record in rows:
    prefix = contract.prefix_of_source("sentence", record.source_name)
    sentences.append(
      texts.add("sentence", record.text, record.language, prefix)
    )
    numbers.append(languages[record.language])
    codes.append(groups[record.language, record.source_name])
  arrays = {
    "groups": np.array(codes, np.int32),
    "texts": np.array(sentences, np.int32),
    "languages": np.array(numbers, np.int32),
  }
  return ShardRows(arrays, tuple(groups), (), {})
