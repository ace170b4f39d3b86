"""Runs, what a search returns, as the TREC files that other tools read.

A run is {query id: {passage id: score}}. In a file, a line is
`query Q0 passage rank score tag`; the passages of a query are ranked by score
and then by id, both descending, which is how trec_eval ranks them whatever
the ranks say.
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

# In ASCII; float() reads "1_0" and digits of any script, too.
_SCORE = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def ranked(scores: Mapping[str, float]) -> list[tuple[str, float]]:
  """Passages and their scores in the order of trec_eval: of float32 scores."""
  return sorted(
    scores.items(),
    key=lambda item: (np.float32(item[1]), item[0]),
    reverse=True,
  )


def write_run(path: str | os.PathLike, run: Run, tag: str = "mlir_jax") -> None:
  """Writes a run file, aside first: it is there whole or not at all.

  Args:
    path: The file; its folder is made if missing.
    run: The run. Scores are written with 9 significant digits, which identify
      a float32. Queries without passages leave no line.
    tag: The run's name, in each line.

  Raises:
    ValueError: if an id or the tag is empty or has white space in it, or a
      score is not finite.
  """
  lines = []
  for query_id, scores in run.items():
    for rank, (passage_id, score) in enumerate(ranked(scores), start=1):
      for name in (query_id, passage_id, tag):
        if name.split() != [name]:
          raise ValueError(
            f"{name!r} cannot stand in a run file: ids and tags must not be"
            " empty nor hold white space."
          )
      if not math.isfinite(score):
        raise ValueError(
          f"The score of query {query_id!r} and passage {passage_id!r} is"
          f" {score}; scores must be finite."
        )
      lines.append(f"{query_id} Q0 {passage_id} {rank} {score:.9g} {tag}\n")
  writing.write_aside(os.fspath(path), "".join(lines))


def read_run(path: str | os.PathLike) -> dict[str, dict[str, float]]:
  """Reads a run file.

  Args:
    path: The file. Its ranks and the order of its lines say nothing.

  Raises:
    ValueError: for a line that cannot be used, with file, line and field.
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
        f"{where}: passage: {passage_id!r} stands twice for query"
        f" {query_id!r}; remove one of the lines."
      )
    scores[passage_id] = score
  return run
