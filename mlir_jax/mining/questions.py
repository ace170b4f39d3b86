"""Holds the questions, and the passages from which negatives are mined.

A passage is identified by its text, not by its id: two ids, spellings, forms of
an accent or numbers of spaces make no difference (`terms.normalize`). A title
may also be the beginning of the text.
"""

import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Sequence

from mlir_jax.data import records
from mlir_jax.retrieval import terms


def key(text: str) -> int:
  """Returns 64 bits that equal texts share, and hardly ever two others do."""
  content = terms.normalize(text).encode("utf-8")
  return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


def join(passage: records.Passage) -> str:
  """Returns the title and the text of a passage as one text."""
  return f"{passage.title} {passage.text}" if passage.title else passage.text


class Corpus:
  """Passages, each of which has a row; a passage that is there keeps its row.

  Attributes:
    passages: The passages in the order of their rows.
    repeated: The number of passages that were there already.
  """

  def __init__(self, passages: Iterable[records.Passage] = ()):
    self.passages: list[records.Passage] = []
    self.repeated = 0
    self._rows: dict[int, int] = {}  # By the key of title and text.
    self._keys: list[tuple[int, int]] = []
    self._spelled: dict[int, str] = {}
    for passage in passages:
      self.add(passage)

  def add(self, passage: records.Passage) -> int:
    """Adds a passage, unless it is there; returns its row."""
    whole = key(join(passage))
    row = self._rows.setdefault(whole, len(self.passages))
    if row < len(self.passages):
      self.repeated += 1
      return row
    self.passages.append(passage)
    self._keys.append((whole, key(passage.text) if passage.title else whole))
    return row

  def keys(self, row: int) -> tuple[int, int]:
    """Returns the keys of a passage: with its title, and without it."""
    return self._keys[row]

  def holds(self, row: int, answers: Collection[str]) -> bool:
    """Returns whether a passage contains an answer, from `terms.spell`."""
    if not answers:
      return False
    if row not in self._spelled:
      self._spelled[row] = terms.spell(join(self.passages[row]))
    return any(answer in self._spelled[row] for answer in answers)


@dataclasses.dataclass
class Question:
  """A question with all that is known of it, from all of its records.

  Attributes:
    text: The question, as its first record writes it.
    positives: The rows of its positives in the corpus, each once.
    negatives: The rows of the hard negatives that it has already.
    answers: Its answers, from `terms.spell`.
  """

  text: str
  positives: list[int] = dataclasses.field(default_factory=list)
  negatives: set[int] = dataclasses.field(default_factory=set)
  answers: set[str] = dataclasses.field(default_factory=set)


class Questions:
  """The questions of all records; equal texts are one question."""

  def __init__(self, corpus: Corpus):
    self.corpus = corpus
    self._questions: dict[int, Question] = {}
    self._numbers: dict[int, int] = {}

  def add(
    self,
    text: str,
    positives: Iterable[records.Passage],
    negatives: Iterable[records.Passage] = (),
    answers: Iterable[str] = (),
    known: bool = True,
  ) -> None:
    """Adds a record; its passages become part of the corpus.

    Args:
      text: The question.
      positives: The passages that answer it.
      negatives: The hard negatives that it has already.
      answers: Texts that answer it. A passage that contains one is no negative.
        An answer without a letter or a digit is ignored.
      known: Whether its hard negatives stay, so that they are not mined again.
    """
    identity = key(text)
    self._numbers.setdefault(identity, len(self._numbers))
    question = self._questions.setdefault(identity, Question(text))
    for passage in positives:
      row = self.corpus.add(passage)
      if row not in question.positives:
        question.positives.append(row)
    rows = {self.corpus.add(passage) for passage in negatives}
    question.negatives |= rows if known else set()
    question.answers |= {terms.spell(answer) for answer in answers} - {""}

  def number(self, text: str) -> int:
    """Returns the number of a question in `all`, from 0."""
    return self._numbers[key(text)]

  def all(self) -> Sequence[Question]:
    """Returns the questions, in the order in which they were added."""
    return list(self._questions.values())
