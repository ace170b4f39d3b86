"""The batch, said once: its sizes, and every array with its shape and dtype.

The reader fills it with NumPy arrays, compiling with `jax.ShapeDtypeStruct`s,
and the step reads it as arrays on the mesh: it is a tree of arrays to JAX.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import numpy as np

from mlir_jax.batches import packing

# An array of NumPy in the reader, of JAX in the step, or its shape and dtype
# alone: whoever reads a batch knows which.
Array = Any

STREAMS = ("retrieval", "parallel", "monolingual", "masked")


@dataclasses.dataclass(frozen=True)
class BatchSpec:
  """Global batch sizes, over all devices and hosts; 0 leaves a stream out.

  Attributes:
    retrieval: Question-passage pairs.
    hard_negatives: Per question.
    parallel: Sentence pairs.
    monolingual: Sentences.
    masked: Monolingual sentences with words hidden, drawn on their own.
    tied: Whether one tower encodes all: queries then stand among passages.
  """

  retrieval: int
  hard_negatives: int
  parallel: int
  monolingual: int
  masked: int = 0
  tied: bool = True

  def texts(self) -> dict[str, int]:
    """Group to how many texts of it a step encodes, for those it has."""
    passages = self.retrieval * (1 + self.hard_negatives)
    passages += 2 * self.parallel + self.monolingual
    counts = {
      "query": 0 if self.tied else self.retrieval,
      "passage": passages + (self.retrieval if self.tied else 0),
      "masked": self.masked,
    }
    return {group: count for group, count in counts.items() if count}


def _array(*shape: str | int, dtype: type = np.int32) -> Any:
  """A field that is an array of this shape; letters are sizes."""
  return dataclasses.field(metadata={"shape": shape, "dtype": dtype})


@flax.struct.dataclass
class TextRows:
  """R rows of L tokens, with at most S texts one behind the other in each.

  Attributes:
    ids: Tokens.
    position: Each token's place in its text, from 0.
    segment: The number of its text in the row, from 1; 0 for padding.
    number: Each text's number in the step, whatever the rows; -1 for none.
  """

  ids: Array = _array("R", "L")
  position: Array = _array("R", "L")
  segment: Array = _array("R", "L")
  number: Array = _array("R", "S")


@flax.struct.dataclass
class MaskedRows(TextRows):
  """Rows of texts with words hidden, at most K tokens in each row.

  Attributes:
    places: Where in the row the hidden tokens are, rising; 0 if not valid.
    targets: What they were; 0 if not valid.
    valid: False behind a row's last hidden token.
  """

  places: Array = _array("R", "K")
  targets: Array = _array("R", "K")
  valid: Array = _array("R", "K", dtype=np.bool_)


@flax.struct.dataclass
class Retrieval:
  """B question-passage pairs, each with C - 1 hard negatives.

  Attributes:
    query: Places of texts.
    query_text: Text ids.
    query_sequence: Sequences.
    passage: Places of texts; the positive first.
    passage_text: Text ids.
    passage_sequence: Sequences.
    passage_valid: False where hard negatives are missing.
    positive_sequence: Of the known positives that are in the batch, at most P.
  """

  query: Array = _array("B")
  query_text: Array = _array("B")
  query_sequence: Array = _array("B")
  passage: Array = _array("B", "C")
  passage_text: Array = _array("B", "C")
  passage_sequence: Array = _array("B", "C")
  passage_valid: Array = _array("B", "C", dtype=np.bool_)
  positive_sequence: Array = _array("B", "P")


@flax.struct.dataclass
class Parallel:
  """N sentences with their translations.

  Attributes:
    sentence: Places of texts.
    text: Text ids.
    sequence: Sequences.
  """

  sentence: Array = _array("N", 2)
  text: Array = _array("N", 2)
  sequence: Array = _array("N", 2)


@flax.struct.dataclass
class Monolingual:
  """M sentences.

  Attributes:
    sentence: Places of texts.
    text: Text ids.
    sequence: Sequences.
  """

  sentence: Array = _array("M")
  text: Array = _array("M")
  sequence: Array = _array("M")


@flax.struct.dataclass
class Batch:
  """What a step reads. A stream that the batch does not have is None.

  Ids are int32; -1 is none. Texts with one text id have the same words, in
  whatever role; texts with one sequence are encoded alike, in one role. A row
  number is that of a tower's text in its buckets, one behind the other.

  Attributes:
    texts: Tower ("passage", and "query" if it is a tower of its own) to the
      buckets of its texts, the longest first.
    retrieval: Question-passage pairs.
    parallel: Translations.
    monolingual: Sentences.
    masked: Buckets of sentences with words hidden.
  """

  texts: Mapping[str, Sequence[TextRows]]
  retrieval: Retrieval | None = None
  parallel: Parallel | None = None
  monolingual: Monolingual | None = None
  masked: Sequence[MaskedRows] | None = None

  @property
  def streams(self) -> tuple[str, ...]:
    """The streams that it has."""
    return tuple(name for name in STREAMS if getattr(self, name) is not None)


# (shape, dtype) -> an array.
Create = Callable[[tuple[int, ...], type], Array]


def fill(kind: type, create: Create, **sizes: int) -> Any:
  """Makes one of the classes above, each of its arrays by `create`.

  Args:
    kind: The class.
    create: Makes an array.
    **sizes: The letters of its shapes: B=16, C=3.
  """
  return kind(
    **{
      field.name: create(
        tuple(
          size if isinstance(size, int) else sizes[size]
          for size in field.metadata["shape"]
        ),
        field.metadata["dtype"],
      )
      for field in dataclasses.fields(kind)
    }
  )


def make(
  spec: BatchSpec,
  plan: Mapping[str, Sequence[packing.Block]],
  create: Create,
  *,
  positives: int = 1,
) -> Batch:
  """Makes a batch of some sizes, each of its arrays by `create`.

  Args:
    spec: Global batch sizes.
    plan: Group to the blocks of its rows.
    create: Makes an array.
    positives: P, the most known positives of a question.
  """
  streams = {}
  if size := spec.retrieval:
    columns = 1 + spec.hard_negatives
    streams["retrieval"] = fill(
      Retrieval, create, B=size, C=columns, P=positives
    )
  if size := spec.parallel:
    streams["parallel"] = fill(Parallel, create, N=size)
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
