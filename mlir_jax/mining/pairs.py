"""Reads question-passage pairs for mining, and writes them with negatives.

Files are read twice, so that memory holds the passages, but no whole records.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlir_jax import bars
from mlir_jax.data import records
from mlir_jax.data.sources import containers, record_fields
from mlir_jax.data.sources.pairs import base, judged_pairs
from mlir_jax.mining import questions as questions_lib
from mlir_jax.mining import source as source_lib

# Containers that cannot hold every passage: a line end, or a text as the id
# where a column has numbers.
_NOT_ANY_TEXT = ("tsv", "parquet")
_TRIED = 0.5  # A score that is no whole number.


def read(
  source: source_lib.Source,
  corpus: questions_lib.Corpus,
  bad_records: records.BadRecords,
  *,
  own: int,
  replace: bool,
  with_scores: bool,
  prefix: str | None = None,
) -> questions_lib.Questions:
  """Reads the questions; their passages are added to the corpus.

  Args:
    source: The files.
    corpus: Gets the passages.
    bad_records: Receives bad records. Those that are skipped are not written.
    own: The number of passages that are from `Source.passages`. They are the
      first ones of the corpus. The ids of others mean nothing in the files.
    replace: Whether mined negatives take the place of those that are there.
    with_scores: Whether negatives are written with their scores.
    prefix: What a model puts before each question; None for no model.

  Raises:
    RecordError: for a bad record, if the policy is "error". Also for a record
      that cannot hold negatives, or has another prompt than the model.
    ValueError: if a record cannot be written again, or if pairs refer to
      passages by id and the corpus has others.
  """
  questions = questions_lib.Questions(corpus)
  formats = [file.recognize(bad_records) for file in source.files]
  score = [_TRIED] if with_scores else None

  def tried(
    file: source_lib.PairsFile, format_: base.PairFormat
  ) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Adds the records to the questions; yields each with a hard negative."""
    for raw, record in bars.bar(
      file.read_pairs(bad_records), "Reading", unit="pair"
    ):
      try:
        # The positive's id is of the kind that the file has.
        value = add(format_, raw, record.positives[:1], score, replace)
        answers = _answers(raw)
        _check_prompt(record.prompt, prefix)
      except ValueError as error:
        hint = (
          " (--output_scores writes them.)" if "scores" in str(error) else ""
        )
        raise records.RecordError(f"{record.place}: {error}{hint}") from error
      questions.add(
        record.question,
        record.positives,
        # The passage "" takes the place of a hard negative without text.
        [passage for passage in record.hard_negatives if passage.text],
        answers,
        known=not replace,
      )
      yield record.place, value

  for file, format_ in zip(source.files, formats, strict=True):
    # What cannot be written is an error now, and not after the search.
    file.check(tried(file, format_))
  by_id = any(format_.by_id for format_ in formats)
  if by_id and (others := len(corpus.passages) - own):
    raise ValueError(
      f"--input={source.path} refers to passages by id, but {others:,} other"
      " passages would be candidates, and their ids may be those of different"
      " passages there. Leave out --corpus, and mine files with whole passages"
      " alone."
    )
  return questions


def check_passages(
  source: source_lib.Source,
  corpus: questions_lib.Corpus,
  *,
  replace: bool,
  with_scores: bool,
) -> None:
  """Checks that each file can hold each passage as a hard negative.

  Args:
    source: The files; `read` has read them.
    corpus: The passages.
    replace: As in `read`.
    with_scores: As in `read`.

  Raises:
    ValueError: if a file cannot; it names the file and the passage.
  """
  unseen = records.BadRecords("skip")  # `read` has reported the bad ones.
  for file in source.files:
    if isinstance(file, judged_pairs.JudgedPairs):
      continue
    if containers.kind(file.path) not in _NOT_ANY_TEXT:
      continue
    format_ = file.recognize(unseen)
    raw = next(file.read_pairs(unseen)).raw
    score = [_TRIED] if with_scores else None
    file.check(
      (
        f"{file.path}: with the hard negative {record_fields.show(each.text)}",
        add(format_, raw, [each], score, replace),
      )
      for each in bars.bar(
        corpus.passages, "Checking the passages", unit="passage", leave=False
      )
    )


def add(
  format_: base.PairFormat,
  raw: Mapping[str, Any],
  passages: Sequence[records.Passage],
  scores: Sequence[float] | None,
  replace: bool,
) -> dict[str, Any]:
  """Adds negatives to a record of a file; see `PairFormat.with_negatives`."""
  if replace:
    raw = format_.without_negatives(raw)
  return format_.with_negatives(raw, passages, scores)


def _check_prompt(prompt: str | None, prefix: str | None) -> None:
  """Raises ValueError if a question has another prompt than the model's."""
  if prefix is not None and prompt not in (None, prefix):
    raise ValueError(
      f"the question has the prompt {prompt!r}, but the model encodes queries"
      f" with {prefix!r}. --prompt names another prompt of the model;"
      " --prompts=ignore leaves those of the questions out."
    )


def _answers(raw: Mapping[str, Any]) -> list[str]:
  """Returns the answers of a record; a blank one is left out.

  Raises:
    FieldError: if they are not a list of texts.
  """
  name = source_lib.ANSWERS
  answers = raw.get(name)
  if isinstance(answers, str):  # A cell of a table.
    answers = [answers]
  if not isinstance(answers, list | None):
    raise record_fields.FieldError(
      name,
      f"is {record_fields.json_type(answers)}; give a list of texts",
    )
  found = (
    record_fields.optional(record_fields.check_text, answer, f"{name}[{i}]")
    for i, answer in enumerate(answers or ())
  )
  return [answer for answer in found if answer]


def write(
  source: source_lib.Source,
  targets: Sequence[pathlib.Path],
  questions: questions_lib.Questions,
  negatives: Sequence[tuple[Sequence[int], Sequence[float]]],
  bad_records: records.BadRecords,
  *,
  replace: bool,
  with_scores: bool,
) -> None:
  """Writes each file with the mined negatives.

  Args:
    source: The files.
    targets: The new file of each.
    questions: From `read`.
    negatives: For each question the rows of its negatives, and their scores.
    bad_records: As in `read`.
    replace: As in `read`.
    with_scores: As in `read`.
  """
  passages = questions.corpus.passages

  def changed(file: source_lib.PairsFile) -> Iterator[dict[str, Any]]:
    format_ = file.recognize(bad_records)
    for pair in file.read_pairs(bad_records):
      rows, scores = negatives[questions.number(pair.record.question)]
      yield add(
        format_,
        pair.raw,
        [passages[row] for row in rows],
        list(scores) if with_scores else None,
        replace,
      )

  for file, target in zip(source.files, targets, strict=True):
    total = file.seen.count if file.seen else None
    with bars.bar(
      changed(file), f"Writing {target.name}", unit="pair", total=total
    ) as bar:
      file.write(target, bar)
