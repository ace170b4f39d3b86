"""Reads question-passage pairs for mining, and writes them with negatives.

Files are read twice, so that memory holds the passages, but no whole records.
"""

import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mlir_jax import bars
from mlir_jax.data import records
from mlir_jax.data.collections import eval_files, layout, pair_files
from mlir_jax.data.sources import (
  beir,
  containers,
  files,
  mr_tydi,
  record_fields,
  text_lines,
)
from mlir_jax.data.sources.pairs import (
  base,
  judged_pairs,
  passages_by_id,
  reading,
  registry,
)
from mlir_jax.mining import questions as questions_lib

# In DPR's and Tevatron's files: texts that answer the question.
_ANSWERS = "answers"

# Containers that cannot hold every passage: a line end, or a text as the id
# where a column has numbers.
_NOT_ANY_TEXT = ("tsv", "parquet")
_TRIED = 0.5  # A score that is no whole number.

PairsFile = reading.PairFile | judged_pairs.JudgedPairs


def _find_judged(
  path: pathlib.Path, language: str, names: layout.Names
) -> judged_pairs.JudgedPairs:
  """Finds the split train of a data set with judgements.

  Args:
    path: A folder that is a data set of BEIR, or that is or holds a data set of
      Mr. TyDi or MIRACL as released.
    language: The language of a data set of BEIR.
    names: Reads the names of files.

  Raises:
    ValueError: if there is none, or there are several.
  """
  if beir.is_there(path):
    if "train" not in (splits := beir.locate(path)):
      raise ValueError(f"--input={path}: qrels/ has no split train.")
    return judged_pairs.JudgedPairs(splits["train"], language)
  folders = [path.absolute()]
  if not eval_files.is_released(folders[0].name):
    children = sorted(path.absolute().iterdir())
    folders = [each for each in children if eval_files.is_released(each.name)]
  found = [
    tests
    for folder in folders
    for tests in eval_files.find_released(folder, names)
  ]
  trained = [tests for tests in found if tests.train]
  if found and not trained:
    raise ValueError(f"--input={path}: {found[0].path} has no split train.")
  if len(trained) > 1:
    shown = ", ".join(tests.path.name for tests in trained)
    raise ValueError(
      f"--input={path} holds several data sets, {shown}. Give one of them: an"
      " id of a passage means nothing in another data set."
    )
  if not trained or not trained[0].train:
    raise ValueError(
      f"--input={path}: there is no file in {path / 'ir'}. Give a file of"
      " pairs, a folder that holds ir/, or a data set of BEIR, Mr. TyDi or"
      " MIRACL that has a split train."
    )
  return judged_pairs.JudgedPairs(trained[0].train, trained[0].language)


class Source:
  """Files of pairs, and the passages that they refer to.

  Attributes:
    path: The file, or the folder that holds ir/.
    files: The files in the order in which they are read.
  """

  def __init__(
    self,
    path: pathlib.Path,
    settings: pair_files.Settings = pair_files.DEFAULTS,
  ):
    """Finds the files.

    Args:
      path: A file of pairs; or a folder as the collection "folder" reads it, of
        which ir/ (and corpus/ for pairs by id) is read, or the split train of
        BEIR, Mr. TyDi or MIRACL.
      settings: What the flags say about the pairs.

    Raises:
      ValueError: if there are no such files, or a setting cannot be used.
    """
    self.path = path
    self.files: Sequence[PairsFile]
    names = layout.Names()
    if not path.exists():
      raise ValueError(f"--input={path}: there is no such file or folder.")
    if path.is_dir():
      self._passages = pair_files.find_corpus(path / "corpus", names)
      self.files = pair_files.find(
        path / "ir", names, settings, self._passages, "--"
      )
      if not self.files:
        language = pair_files.default_language(settings, "--")
        self.files = [_find_judged(path, language, names)]
      return
    containers.kind(path)
    formats = registry.find(settings.formats, "--")
    pair_files.check_format(settings.format, formats, "--")
    # The pairs of ROOT/ir may refer to ROOT/corpus.
    root = path.absolute().parent.parent
    self._passages = (
      pair_files.find_corpus(root / "corpus", names)
      if path.absolute().parent.name == "ir"
      else None
    )
    self.files = [
      reading.PairFile(
        files.UnchangedFile(path),
        language=pair_files.default_language(settings, "--"),
        formats=formats,
        format_name=settings.format,
        corpus=self._passages,
        use_prompts=settings.prompts == "use",
        prefix="--",
      )
    ]

  def hashes(self) -> dict[str, str]:
    """Returns the SHA-256 of each file that is read, by its path."""
    paths = dict.fromkeys(path for file in self.files for path in file.files)
    return {
      os.path.relpath(path, self.path): path.read_hash()
      for path in bars.bar(paths, "Hashing the files", unit="file", leave=False)
    }

  def passages(
    self, bad_records: records.BadRecords
  ) -> Iterator[records.Passage]:
    """Yields the passages to which the pairs refer by id; there may be none."""
    if self._passages:
      self._passages.read(bad_records)
      yield from self._passages
    for file in self.files:
      if isinstance(file, judged_pairs.JudgedPairs):
        yield from file.passages(bad_records)

  def targets(
    self, folder: pathlib.Path, output: pathlib.Path
  ) -> list[pathlib.Path]:
    """Returns a path in a folder for each file's successor.

    Args:
      folder: The folder.
      output: The name that a single file, or the folder, will have.

    Raises:
      ValueError: if a single file's new name is that of another container.
    """
    if self.path.is_dir():
      return [folder / pathlib.Path(file.path).name for file in self.files]
    if containers.kind(output) != containers.kind(self.path):
      raise ValueError(
        f"--output={output} should end in .{containers.kind(self.path)}, as the"
        " input does."
      )
    return [folder / output.name]

  def describe(self) -> list[str]:
    """Describes in lines what the last pass over each file has found."""
    root = self.path if self.path.is_dir() else self.path.parent
    for file in self.files:
      if file.seen:
        file.seen.unused.discard(_ANSWERS)  # Training does not use them.
    return [line for file in self.files for line in file.describe(root)]


def read_passages(
  path: files.UnchangedFile, bad_records: records.BadRecords
) -> Iterable[records.Passage]:
  """Reads a file of passages: Mr. TyDi's docs.jsonl, or BEIR's or Tevatron's.

  Raises:
    RecordError: for a bad passage, if the policy is "error"; under any policy
      if no passage can be used.
  """
  _, first = next(containers.read(path, records.BadRecords("skip")), (0, {}))
  if isinstance(first, Mapping) and "contents" in first:
    return text_lines.read_records(
      path, bad_records, lambda line, _: mr_tydi.parse_passage(line)
    )
  found = passages_by_id.CorpusFiles([path])
  found.read(bad_records)
  return found


def read(
  source: Source,
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
    file: PairsFile, format_: base.PairFormat
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
  source: Source,
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
      f" with the prefix {prefix!r}. --prompts=ignore leaves prompts out."
    )


def _answers(raw: Mapping[str, Any]) -> list[str]:
  """Returns the answers of a record; a blank one is left out.

  Raises:
    FieldError: if they are not a list of texts.
  """
  answers = raw.get(_ANSWERS)
  if isinstance(answers, str):  # A cell of a table.
    answers = [answers]
  if not isinstance(answers, list | None):
    raise record_fields.FieldError(
      _ANSWERS, f"is {record_fields.json_type(answers)}; give a list of texts"
    )
  found = (
    record_fields.optional(record_fields.check_text, answer, f"{_ANSWERS}[{i}]")
    for i, answer in enumerate(answers or ())
  )
  return [answer for answer in found if answer]


def write(
  source: Source,
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

  def changed(file: PairsFile) -> Iterator[dict[str, Any]]:
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
