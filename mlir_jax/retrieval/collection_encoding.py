"""Encodes texts with ids into a folder of vectors, in bounded memory."""

import contextlib
import functools
import itertools
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mlir_jax import bars
from mlir_jax.data import records
from mlir_jax.data.sources import id_texts
from mlir_jax.retrieval import encoding, fingerprints, vector_writer
from mlir_jax.retrieval import model as model_lib

# Texts of a shard: those that are sorted by their lengths and encoded together.
# A killed process loses no more than one shard.
SHARD = encoding.WINDOW


class Embed(Protocol):
  """Encodes some texts; `TextEncoder.encode_windows` for a model and a role."""

  def __call__(
    self,
    texts: Iterable[str],
    titles: Iterable[str] | None,
    *,
    progress: str,
    total: int,
  ) -> Iterator[np.ndarray]:
    """Yields float32 [m, D].

    Args:
      texts: The texts.
      titles: A title for each, "" for none; None for a role without titles.
      progress: Description of a progress bar.
      total: The number of texts, for the bar.
    """
    ...


def encode(
  embed: Embed,
  texts: Iterable[id_texts.IdText],
  count: int,
  *,
  done: int,
  add: Callable[[np.ndarray, list[str]], object],
  role: str,
  shard: int = SHARD,
) -> None:
  """Encodes texts, shard by shard.

  Memory holds the texts of one window and the vectors of one shard.

  Args:
    embed: Encodes texts.
    texts: All texts, in their order.
    count: Their number.
    done: How many of them were encoded before; whole shards.
    add: Receives the vectors of a shard, float32 [n, D], and the ids.
    role: Their role.
    shard: The number of texts of a shard.

  Raises:
    RecordError: if there are more or fewer texts than `count`.
    NonFiniteError: if a vector holds NaN or infinity; it names the text.
  """
  texts = iter(texts)
  for _ in itertools.islice(texts, done):
    pass
  shards, seen = -(-count // shard), done
  with bars.bar(
    None, f"{role} texts", unit="text", total=count, initial=done
  ) as bar:
    for start in range(done, count, shard):
      total = min(shard, count - start)
      some = _Some(itertools.islice(texts, total))
      progress = f"shard {start // shard + 1} of {shards}"
      titles = some.titles() if role == "passage" else None
      try:
        vectors = list(
          embed(some.texts(), titles, progress=progress, total=total)
        )
      except encoding.NonFiniteError as error:
        if error.text is None:
          raise
        place, text_id = some.places[error.text], some.ids[error.text]
        raise encoding.NonFiniteError(
          f"{place} (id {text_id!r}): {error}"
        ) from error
      if not vectors:
        break
      add(np.concatenate(vectors), some.ids)
      seen += len(some.ids)
      bar.update(len(some.ids))
  # The end of a file shows whether it is the one that was checked.
  seen += sum(1 for _ in texts)
  if seen != count:
    raise records.RecordError(
      f"There were {count:,} texts, and there are {seen:,} when they are"
      " encoded: start again when nothing writes to the files."
    )


def write(
  model: model_lib.Model,
  role: str,
  texts: Iterable[id_texts.IdText],
  count: int,
  output: str,
  *,
  sources: Sequence[Mapping[str, str]] = (),
  read_from: Mapping[str, Any] = types.MappingProxyType({}),
  dtype: str = "float32",
  is_first: bool = True,
  agree: Callable[[int], int] = int,
  shard: int = SHARD,
) -> str:
  """Encodes texts into a folder; what a killed process left is kept.

  Args:
    model: The model; its text encoder has the prompt.
    role: The role of the texts.
    texts: All texts; ids are unique.
    count: Their number.
    output: The folder, from `locations.absolute`.
    sources: What the manifest says of the texts, with their hashes.
    read_from: Where they are on this machine, see `index_texts.find`.
    dtype: One of `vector_folder.DTYPES`.
    is_first: Whether this process writes. All of several processes call this.
    agree: Returns the number that the first process has.
    shard: The number of texts of a shard.

  Returns:
    What was written, in words; and how many texts were cut.

  Raises:
    ValueError: if the folder cannot be written, see `vector_writer.opened`.
    RecordError, NonFiniteError: as `encode`.
  """
  encoder = model.text_encoder
  settings = {
    "role": role,
    "prompt": encoder.prompt,
    "dtype": dtype,
    "similarity": model.similarity_fn_name,
    "contract": model.contract.to_dict(),
    "model": {"fingerprint": fingerprints.of_model(model)},
    "sources": list(sources),
    "texts": count,
    "shard": shard,
  }
  notes = {
    "model_name": model.path,
    "model_step": model.step,
    "read_from": dict(read_from),
  }

  embed = functools.partial(encoder.encode_windows, model.params, role)
  with contextlib.ExitStack() as stack:
    writer = None
    if is_first:
      writer = stack.enter_context(
        vector_writer.opened(output, settings, notes)
      )
      if writer.complete:
        print(f"{output} is complete: nothing is encoded.")
      elif writer.rows:
        print(f"Going on after {writer.rows:,} of {count:,} texts.")
    if agree(writer.complete if writer else 0):
      return _describe(writer, role, model) if writer else ""
    done = agree(writer.rows if writer else 0)
    counted = encoder.truncation.get(role, (0, 0))[0]

    def add(vectors: np.ndarray, ids: Sequence[str]) -> None:
      nonlocal counted
      before, counted = counted, encoder.truncation[role][0]
      if writer:
        writer.add(vectors, ids, counted - before)

    encode(embed, texts, count, done=done, add=add, role=role, shard=shard)
    if not writer:
      return ""
    writer.finish()
    return _describe(writer, role, model)


def _describe(
  writer: vector_writer.Writer, role: str, model: model_lib.Model
) -> str:
  """Says what was written, and how many texts were cut."""
  count, shards = writer.shape[0], len(writer.shards)
  line = (
    f"Wrote {writer.folder}: {writer.dtype} {list(writer.shape)} with ids, in"
    f" {shards} shard{'s' if shards > 1 else ''}"
  )
  if writer.cut:
    length = model.contract.role(role).max_length
    line = (
      f"{role} texts cut to {length} tokens: {writer.cut:,} of {count:,}"
      f" ({writer.cut / count:.1%})\n{line}"
    )
  return line


class _Some:
  """Some texts, of which the ids and the places are kept.

  Attributes:
    ids: The ids of the texts that were taken.
    places: Their places.
  """

  def __init__(self, texts: Iterable[id_texts.IdText]):
    self.ids: list[str] = []
    self.places: list[str] = []
    # The encoder takes a text, then its title, so little waits here.
    self._for_texts, self._for_titles = itertools.tee(self._noted(texts))

  def _noted(self, texts):
    for text in texts:
      self.ids.append(text.text_id)
      self.places.append(text.place)
      yield text

  def texts(self) -> Iterator[str]:
    """Yields the texts."""
    return (text.text for text in self._for_texts)

  def titles(self) -> Iterator[str]:
    """Yields the titles; "" for none."""
    return (text.title for text in self._for_titles)
