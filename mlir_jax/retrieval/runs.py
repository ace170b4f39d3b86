"""TREC runs: the results of a search, in files that other tools read.

A run is {query id: {passage id: score}}. A line of its file is
`query Q0 passage rank score tag`. The passages of a query are ranked by score
and then by id, both descending. trec_eval ranks them in this order and ignores
the ranks in the file.
"""

import math
import os
import re
from collections.abc import Mapping

import numpy as np
from etils import epath

from mlir_jax.data.sources import files, record_fields, text_lines
from mlir_jax.storage import writing

Run = Mapping[str, Mapping[str, float]]

# ASCII only: float() also reads "1_0" and the digits of any script.
_SCORE = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def ranked(scores: Mapping[str, float]) -> list[tuple[str, float]]:
  """Returns passages and scores in trec_eval's order of float32 scores."""
  return sorted(
    scores.items(),
    key=lambda item: (np.float32(item[1]), item[0]),
    reverse=True,
  )


def write_run(path: str | os.PathLike, run: Run, tag: str = "mlir_jax") -> None:
  """Writes the file of a run, whole or not at all.

  Args:
    path: The file; its folder is made if missing.
    run: The run. Scores are written with 9 significant digits, which identify
      a float32. A query without passages has no line.
    tag: The name of the run, written in each line.

  Raises:
    ValueError: if an id or the tag is empty or has white space, or a score is
      not finite.
  """
  lines = []
  for query_id, scores in run.items():
    for rank, (passage_id, score) in enumerate(ranked(scores), start=1):
      for name in (query_id, passage_id, tag):
        if name.split() != [name]:
          raise ValueError(
            f"{name!r} cannot be written to a run file: ids and tags must not"
            " be empty or have white space."
          )
      if not math.isfinite(score):
        raise ValueError(
          f"The score of query {query_id!r} and passage {passage_id!r} is"
          f" {score}; scores must be finite."
        )
      lines.append(f"{query_id} Q0 {passage_id} {rank} {score:.9g} {tag}\n")
  writing.write_aside(os.fspath(path), "".join(lines))


def read_run(path: str | os.PathLike) -> dict[str, dict[str, float]]:
  """Reads the file of a run.

  Args:
    path: The file. Its ranks and the order of its lines are ignored.

  Raises:
    ValueError: if a line is bad; the message has file, line and field.
  """
  run = {}
  with files.naming(path):
    content = epath.Path(path).read_bytes()
  for number, line in enumerate(content.split(b"\n"), start=1):
    where = f"{os.fspath(path)}:{number}"
    try:
      text = text_lines.parse_line(line)
    except record_fields.FieldError as error:
      raise ValueError(f"{where}: {error}.") from None
    if not text:
      continue
    fields = text.split()
    if len(fields) != 6:
      raise ValueError(
        f"{where}: {len(fields)} fields; a run's line has 6: query Q0 passage"
        " rank score tag."
      )
    query_id, _, passage_id, _, text, _ = fields
    score = float(text) if _SCORE.fullmatch(text) else math.nan
    if not abs(score) <= _FLOAT32_MAX:
      raise ValueError(
        f"{where}: score: {record_fields.show(text)} is not a finite float32"
        " number."
      )
    scores = run.setdefault(query_id, {})
    if passage_id in scores:
      raise ValueError(
        f"{where}: passage: {passage_id!r} occurs twice for query"
        f" {query_id!r}; remove one of the lines."
      )
    scores[passage_id] = score
  return run
