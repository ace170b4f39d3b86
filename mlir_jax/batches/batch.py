"""The definition of a batch: its arrays, with their shapes and dtypes.

The reader fills it with NumPy arrays. The compilation of a step fills it with
`jax.ShapeDtypeStruct`s. The step receives arrays on the mesh. For JAX, a batch
is a tree of arrays.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import numpy as np

from mlir_jax.batches import packing

# A NumPy array in the reader, a JAX array in the step, or only a shape and a
# dtype. The code that uses a batch knows which of them it has.
Array = Any

STREAMS = ("retrieval", "parallel", "monolingual", "masked")


@dataclasses.dataclass(frozen=True)
class BatchSpec:
  """Global batch sizes, over all devices and hosts; 0 omits a stream.

  Attributes:
    retrieval: Question-passage pairs.
    hard_negatives: Per question.
    parallel: Sentence pairs.
    monolingual: Sentences.
    masked: Monolingual sentences with hidden words; drawn independently of
      `monolingual`.
    scores: Whether passages have a teacher's scores.
    tied: Whether one tower encodes all texts. If so, the queries belong to the
      group "passage".
  """

  retrieval: int
  hard_negatives: int
  parallel: int
  monolingual: int
  masked: int = 0
  tied: bool = True
  scores: bool = False

  def texts(self) -> dict[str, int]:
    """Maps each group that has texts to how many of them a step encodes."""
    passages = self.retrieval * (1 + self.hard_negatives)
    passages += 2 * self.parallel + self.monolingual
    counts = {
      "query": 0 if self.tied else self.retrieval,
      "passage": passages + (self.retrieval if self.tied else 0),
      "masked": self.masked,
    }
    return {group: count for group, count in counts.items() if count}

  def positives(self, most: int) -> int:
    """Returns P, how many known positives of a question a batch can hold.

    Args:
      most: The largest number of known positives of a question. All of them are
        different, so a batch holds at most one for each of its passages.
    """
    return min(most, self.retrieval * (1 + self.hard_negatives))


def _array(
  *shape: str | int, dtype: type = np.int32, optional: bool = False
) -> Any:
  """Returns a field for an array of this shape; letters are sizes."""
  metadata = {"shape": shape, "dtype": dtype}
  if optional:
    return dataclasses.field(default=None, metadata=metadata)
  return dataclasses.field(metadata=metadata)


@flax.struct.dataclass
class TextRows:
  """R rows of L tokens; each holds at most S texts, one after the other.

  Attributes:
    ids: Tokens.
    position: Each token's place in its text, from 0.
    segment: The number of its text in the row, from 1; 0 for padding.
    number: Each text's number in the step, which does not depend on the
      packing; -1 for no text.
  """

  ids: Array = _array("R", "L")
  position: Array = _array("R", "L")
  segment: Array = _array("R", "L")
  number: Array = _array("R", "S")


@flax.struct.dataclass
class MaskedRows(TextRows):
  """Rows of texts with hidden words, at most K hidden tokens in each row.

  Attributes:
    places: The hidden tokens' indices in the row, ascending; 0 if not valid.
    targets: The original tokens; 0 if not valid.
    valid: False after a row's last hidden token.
  """

  places: Array = _array("R", "K")
  targets: Array = _array("R", "K")
  valid: Array = _array("R", "K", dtype=np.bool_)


@flax.struct.dataclass
class Retrieval:
  """B question-passage pairs, each with C - 1 hard negatives.

  Attributes:
    query: Places of texts.
    query_text: Text hashes.
    query_sequence: Sequence hashes.
    passage: Places of texts; the positive first.
    passage_text: Text hashes.
    passage_sequence: Sequence hashes.
    passage_valid: False where hard negatives are missing.
    positive_sequence: Sequence hashes of the known positives that are in the
      batch, at most P, at the front.
    query_guide: The guide's vectors of the questions; None without a guide.
    passage_guide: The guide's vectors of the passages, 0 where hard negatives
      are missing; None without a guide.
    passage_score: A teacher's scores from the data, NaN where there is none;
      None if no loss reads them.
  """

  query: Array = _array("B")
  query_text: Array = _array("B", 2)
  query_sequence: Array = _array("B", 2)
  passage: Array = _array("B", "C")
  passage_text: Array = _array("B", "C", 2)
  passage_sequence: Array = _array("B", "C", 2)
  passage_valid: Array = _array("B", "C", dtype=np.bool_)
  positive_sequence: Array = _array("B", "P", 2)
  query_guide: Array | None = _array("B", "G", dtype=np.float16, optional=True)
  passage_guide: Array | None = _array(
    "B", "C", "G", dtype=np.float16, optional=True
  )
  passage_score: Array | None = _array(
    "B", "C", dtype=np.float32, optional=True
  )


@flax.struct.dataclass
class Parallel:
  """N sentences with their translations.

  Attributes:
    sentence: Places of texts.
    text: Text hashes.
    sequence: Sequence hashes.
    teacher: The vectors that a teacher gives to one side of each pair, 0 where
      it reads no side; None without a teacher.
  """

  sentence: Array = _array("N", 2)
  text: Array = _array("N", 2, 2)
  sequence: Array = _array("N", 2, 2)
  teacher: Array | None = _array("N", "T", dtype=np.float16, optional=True)


@flax.struct.dataclass
class Monolingual:
  """M sentences.

  Attributes:
    sentence: Places of texts.
    text: Text hashes.
    sequence: Sequence hashes.
  """

  sentence: Array = _array("M")
  text: Array = _array("M", 2)
  sequence: Array = _array("M", 2)


@flax.struct.dataclass
class Batch:
  """The data of a step. A stream that the batch does not have is None.

  A hash has two halves, in a last axis of size 2; compare hashes with
  `identity.equal`. Both halves are -1 for no text. Texts with the same text
  hash have the same words, in any role. Texts of one role with the same
  sequence hash have the same tokens, but for their prompts. The place of a text
  counts the places for texts in its tower's rows, one block after the other: it
  is the index of the text's vector.

  Attributes:
    texts: Tower ("passage", and "query" if queries have their own tower) to the
      blocks of its rows.
    retrieval: Question-passage pairs.
    parallel: Translations.
    monolingual: Sentences.
    masked: Blocks of rows of sentences with hidden words.
  """

  texts: Mapping[str, Sequence[TextRows]]
  retrieval: Retrieval | None = None
  parallel: Parallel | None = None
  monolingual: Monolingual | None = None
  masked: Sequence[MaskedRows] | None = None

  @property
  def streams(self) -> tuple[str, ...]:
    """The streams that the batch has."""
    return tuple(name for name in STREAMS if getattr(self, name) is not None)


class Widths(NamedTuple):
  """The sizes of the arrays that only some runs have; 0 for none.

  Attributes:
    guide: G, the numbers of a guide's vector.
    teacher: T, the numbers of a teacher's vector.
  """

  guide: int = 0
  teacher: int = 0


NO_WIDTHS = Widths()

# (shape, dtype) -> an array.
Create = Callable[[tuple[int, ...], type], Array]


def fill(
  kind: type, create: Create, without: Collection[str] = (), **sizes: int
) -> Any:
  """Returns one of the classes above; `create` makes each of its arrays.

  Args:
    kind: The class.
    create: Makes an array.
    without: The optional arrays that are left out.
    **sizes: The values of the letters in its shapes: B=16, C=3. An optional
      array is left out if the value of one of its letters is 0.
  """
  arrays = {}
  for field in dataclasses.fields(kind):
    shape = tuple(
      size if isinstance(size, int) else sizes[size]
      for size in field.metadata["shape"]
    )
    if field.default is dataclasses.MISSING or (
      all(shape) and field.name not in without
    ):
      arrays[field.name] = create(shape, field.metadata["dtype"])
  return kind(**arrays)


def make(
  spec: BatchSpec,
  plan: Mapping[str, Sequence[packing.Block]],
  create: Create,
  *,
  positives: int = 1,
  widths: Widths = NO_WIDTHS,
) -> Batch:
  """Returns a batch of the given sizes; `create` makes each of its arrays.

  Args:
    spec: Global batch sizes.
    plan: Group to the blocks of its rows.
    create: Makes an array.
    positives: P, from `BatchSpec.positives`.
    widths: The sizes of optional arrays.
  """
  streams = {}
  if size := spec.retrieval:
    columns = 1 + spec.hard_negatives
    streams["retrieval"] = fill(
      Retrieval,
      create,
      () if spec.scores else ("passage_score",),
      B=size,
      C=columns,
      P=positives,
      G=widths.guide,
    )
  if size := spec.parallel:
    streams["parallel"] = fill(Parallel, create, N=size, T=widths.teacher)
  if size := spec.monolingual:
    streams["monolingual"] = fill(Monolingual, create, M=size)

  def rows(kind, blocks):
    return tuple(
      fill(
        kind, create,
        R=block.rows, L=block.length, S=block.texts, K=block.targets,
      )
      for block in blocks
    )  # fmt: skip

  if spec.masked:
    streams["masked"] = rows(MaskedRows, plan["masked"])
  texts = {
    group: rows(TextRows, blocks)
    for group, blocks in plan.items()
    if group != "masked"
  }
  return Batch(texts=texts, **streams)
