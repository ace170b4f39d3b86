"""Counts the tokens that a training reads."""

import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from mlir_jax.data import records
from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.data.collections import folder as folder_lib


def expected(
  folder: pathlib.Path,
  tokenizer: str,
  roles: Mapping[str, tuple[str, int]],
  batch: Mapping[str, int],
  steps: int,
) -> int:
  """Returns how many tokens the steps of a training are expected to read.

  They are real tokens, without padding: the mean length of the texts, times
  their number. Rows of the retrieval stream are shared equally by its sources,
  and those of the others by their languages.

  Args:
    folder: The collection.
    tokenizer: A folder with tokenizer.json.
    roles: Role to its prefix and its largest length in tokens.
    batch: Stream ("retrieval", "parallel", "monolingual") to rows in a batch.
    steps: The number of steps.
  """
  encode = tokenizer_lib.load(tokenizer).encode_batch
  bad_records = records.BadRecords("error", "--data")
  collection = folder_lib.load(folder, bad_records)

  def length(role: str, texts: Iterable[str]) -> np.ndarray:
    prefix, longest = roles[role]
    found = encode([prefix + text for text in texts])
    return np.minimum([len(each.ids) for each in found], longest)

  groups: dict[str, dict[str, list[tuple[tuple[str, str], ...]]]] = {}

  def add(stream: str, group: str, *texts: tuple[str, str]) -> None:
    groups.setdefault(stream, {}).setdefault(group, []).append(texts)

  for row in collection.retrieval():
    passage = row.positives[0]
    text = f"{passage.title} {passage.text}".strip()
    add(
      "retrieval", row.source_name, ("query", row.question), ("passage", text)
    )
  for row in collection.parallel():
    texts = [("sentence", row.source), ("sentence", row.target)]
    add("parallel", f"{row.source_language}-{row.target_language}", *texts)
  for row in collection.monolingual():
    add("monolingual", row.language, ("sentence", row.text))

  total = 0.0
  for stream, of_stream in groups.items():
    means = []
    for rows in of_stream.values():
      columns = zip(*rows, strict=True)
      means.append(
        sum(
          length(column[0][0], [text for _, text in column]).mean()
          for column in columns
        )
      )
    total += batch.get(stream, 0) * float(np.mean(means))
  return round(steps * total)
