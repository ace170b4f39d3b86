"""Finds the files of question-passage pairs that are mined."""

import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mlir_jax import bars
from mlir_jax.data import records
from mlir_jax.data.collections import eval_files, layout, pair_files
from mlir_jax.data.sources import (
  beir,
  containers,
  files,
  mr_tydi,
  text_lines,
)
from mlir_jax.data.sources.pairs import (
  judged_pairs,
  passages_by_id,
  reading,
  registry,
)

PairsFile = reading.PairFile | judged_pairs.JudgedPairs

# In DPR's and Tevatron's files: texts that answer the question.
ANSWERS = "answers"


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
        file.seen.unused.discard(ANSWERS)  # Training does not use them.
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
