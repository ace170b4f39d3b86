"""Computes a guide's vectors of the retrieval stream, once for a run.

The guide reads the texts of the collection, with its own tokenizer and its own
contract. Texts that are the same in the token store have one vector: that of
their first occurrence.
"""

import pathlib
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
import tokenizers
from etils import epath

from mlir_jax import bars, sharding, workdir
from mlir_jax.data import (
  guide_parts,
  guide_vectors,
  records,
  store_arrays,
  store_texts,
  token_store,
)
from mlir_jax.hub import warm_start
from mlir_jax.models import layout_files, pretrained
from mlir_jax.retrieval import fingerprints, prefixes
from mlir_jax.retrieval import model as model_lib
from mlir_jax.storage import copies

# A part has so many texts. It ends earlier when they have so many characters,
# because a text can be a book.
_TEXTS = 16_384
_CHARACTERS = 2**26
# Texts after which the progress bar moves.
_ENCODED = 2048
# Characters of the texts that are hashed together.
_HASHED = 4_000_000


class Guide:
  """A run's guide: it finds the vectors that a run has, or computes them."""

  def __init__(self, name: str, revision: str, folder: str, local: str):
    """Finds the vectors; if there are none, loads the guide.

    So a guide that cannot be loaded is found before texts are tokenized. If the
    vectors are there, the guide itself is not read, and may be gone.

    Args:
      name: A run's folder, or any other model that `retrieval.model` loads.
      revision: As model.revision in the config.
      folder: The run's folder.
      local: The local copy of that folder.

    Raises:
      ValueError: if the guide cannot be loaded, or does not encode both queries
        and passages.
    """
    self._asked = {"name": name, "revision": revision}
    self._folder, self._local = folder, local
    self._path = pathlib.Path(local) / workdir.GUIDE
    guide_parts.fetch(folder, local)
    self._meta = None
    if self._path.is_dir():
      self._meta = guide_vectors.read_meta(self._path)
    self._loaded = None if self._is_asked() else _load(name, revision)

  def _is_asked(self) -> bool:
    """Whether there are vectors of this guide."""
    return bool(self._meta) and (
      self._asked.items() <= self._meta["guide"].items()
    )

  def vectors(
    self,
    store: token_store.TokenStore,
    collection: records.Collection,
    tokenizer: tokenizers.Tokenizer,
    bad_records: records.BadRecords,
  ) -> guide_vectors.GuideVectors:
    """Opens the vectors; computes them if there are none of this store.

    Vectors of another guide or of another store are replaced. A run with a
    checkpoint cannot change its guide: see `workdir.differences`.

    Args:
      store: The run's token store.
      collection: The collection that it was built from.
      tokenizer: The run's tokenizer.
      bad_records: Receives the collection's bad records. They are dropped: the
        build of the token store has counted them.

    Raises:
      ValueError: if the files of the collection have changed.
      NonFiniteError: if a vector holds NaN or infinity.
    """
    parts = guide_parts.Parts(self._folder, self._local)
    kept = self._meta if self._is_asked() else None
    if kept and kept["store"] == store.fingerprint:
      parts.remove()  # A kill may have left them.
      return guide_vectors.GuideVectors.open(self._path)
    loaded = self._loaded or _load(**self._asked)
    self._loaded = None  # Its memory is needed for training.
    parts.begin(
      {
        "format": guide_vectors.FORMAT,
        "store": store.fingerprint,
        "texts of a part": _TEXTS,
        "guide": self._asked
        | {
          "commit": loaded.commit,
          "step": loaded.model.step,
          "fingerprint": fingerprints.of_model(loaded.model),
        },
      }
    )
    texts = _compute(parts, loaded.model, store, collection, tokenizer)
    bad_records.drain()
    del loaded
    if self._meta:
      print(
        f"{self._path} has the vectors of another guide or store: replaced."
      )
      shutil.rmtree(self._path)
    parts.join(self._path, texts)
    if self._folder != self._local:
      url = f"{self._folder}/{workdir.GUIDE}"
      epath.Path(url).rmtree(missing_ok=True)
      copies.upload_folder(str(self._path), url, guide_vectors.META)
    parts.remove()
    return guide_vectors.GuideVectors.open(self._path)


class _Loaded(NamedTuple):
  """A guide, and its commit on the hub, "" for none."""

  model: model_lib.Model
  commit: str


def _load(name: str, revision: str) -> _Loaded:
  """Loads a guide onto the devices of this process."""
  mesh = sharding.make_mesh(devices=jax.local_devices())
  try:
    if warm_start.is_run(name):
      loaded, commit = warm_start.load_run(name, revision, mesh), ""
    else:
      with warnings.catch_warnings():
        # It names flags, which training does not have.
        warnings.simplefilter("ignore", prefixes.PrefixWarning)
        loaded = model_lib.load(name, mesh=mesh, revision=revision)
      commit = pretrained.commit(pretrained.fetch(loaded.path, revision))
    for role in guide_vectors.ROLES:
      loaded.check_role(role)
  except ValueError as error:
    raise ValueError(f"loss.ir.guide={name}: {error}") from error
  for note in loaded.notes:
    print(
      f"loss.ir.guide={name}: {note} Write them as the prompts 'query' and"
      f" 'document' into {layout_files.MODEL} of a copy of its folder."
    )
  return _Loaded(loaded, commit)


class _Text(NamedTuple):
  """A text of the retrieval stream.

  Attributes:
    role: "query" or "passage".
    text: The text.
    title: Its title, "" for none.
    body: What identifies it in the token store.
  """

  role: str
  text: str
  title: str
  body: str


def _read(
  collection: records.Collection, store: token_store.TokenStore
) -> Iterator[_Text]:
  """Yields the texts of the retrieval stream, in order, with repeated ones."""
  contract = store.contract
  for record in collection.retrieval():
    body = contract.body(record.question)
    yield _Text("query", record.question, "", body)
    negatives = store_arrays.with_text(record.hard_negatives)
    for passage in (*record.positives, *negatives):
      body = contract.body(passage.text, passage.title)
      yield _Text("passage", passage.text, passage.title, body)


def _portions(texts: Iterable[_Text], characters: int) -> Iterator[list[_Text]]:
  """Yields lists of texts with so many characters, the last with fewer."""
  portion, size = [], 0
  for text in texts:
    portion.append(text)
    size += len(text.body)
    if size >= characters:
      yield portion
      portion, size = [], 0
  if portion:
    yield portion


class _Rows:
  """Gives each text of a role a row, in the order of first occurrence.

  Attributes:
    hashes: The hashes of the role's texts in the store, uint64 [T], ascending.
    rows: int64 [T], the text's row; -1 if it has none yet.
    found: The number of texts that have a row.
  """

  def __init__(self, hashes: np.ndarray):
    self.hashes = np.unique(hashes)
    self.rows = np.full(len(self.hashes), -1, np.int64)
    self.found = 0

  def is_new(self, text: int) -> bool:
    """Gives a text a row, and returns True, if it is there the first time.

    Raises:
      ValueError: if the store does not have the text.
    """
    place = int(np.searchsorted(self.hashes, np.uint64(text)))
    if place == len(self.hashes) or int(self.hashes[place]) != text:
      raise ValueError(_CHANGED)
    if self.rows[place] >= 0:
      return False
    self.rows[place] = self.found
    self.found += 1
    return True


_CHANGED = (
  "The token store does not have the texts of the collection: its files have"
  " changed since. Restore them, or start in another --workdir."
)


def _compute(
  parts: guide_parts.Parts,
  model: model_lib.Model,
  store: token_store.TokenStore,
  collection: records.Collection,
  tokenizer: tokenizers.Tokenizer,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Computes the parts that are missing, in one pass over the collection.

  It holds the texts of a part of each role, and 16 bytes for each text.

  Returns:
    Role to the hashes and the rows of its texts.
  """
  rows = {
    role: _Rows(store.arrays[f"{role}_text_hashes"])
    for role in guide_vectors.ROLES
  }
  waiting: dict[str, list[_Text]] = {role: [] for role in rows}
  characters = dict.fromkeys(rows, 0)
  plain = store_texts.parse_tokenizer(tokenizer.to_str())
  with bars.bar(
    None,
    "Encoding with the guide",
    unit=" texts",
    total=sum(len(each.hashes) for each in rows.values()),
  ) as bar:

    def end_part(role: str) -> None:
      texts = waiting[role]
      waiting[role], characters[role] = [], 0
      if parts.add(
        role, len(texts), lambda: _encode(model, role, texts, bar.update)
      ):
        bar.initial += len(texts)  # The rate does not count them.
        bar.update(len(texts))

    for portion in _portions(_read(collection, store), _HASHED):
      hashes = store_texts.hash_bodies(plain, [text.body for text in portion])
      for text, found in zip(portion, hashes, strict=True):
        role = text.role
        if not rows[role].is_new(found):
          continue
        waiting[role].append(text)
        characters[role] += len(text.body)
        if len(waiting[role]) == _TEXTS or characters[role] >= _CHARACTERS:
          end_part(role)
    for role in rows:
      if waiting[role]:
        end_part(role)
  if any(each.found < len(each.hashes) for each in rows.values()):
    raise ValueError(_CHANGED)
  if cut := model.text_encoder.describe_truncation():
    print(f"By the guide: {cut}")
  return {role: (each.hashes, each.rows) for role, each in rows.items()}


def _encode(
  model: model_lib.Model,
  role: str,
  texts: Sequence[_Text],
  advance: Callable[[int], object],
) -> np.ndarray:
  """Returns the guide's vectors of texts, float32 [n, G].

  Args:
    model: The guide.
    role: The role.
    texts: The texts.
    advance: Moves the progress bar by a number of texts.
  """
  vectors = []
  for first in range(0, len(texts), _ENCODED):
    some = texts[first : first + _ENCODED]
    titles = [text.title for text in some] if role == "passage" else None
    vectors.append(
      model.text_encoder.encode(
        model.params, role, [text.text for text in some], titles
      )
    )
    advance(len(some))
  return np.concatenate(vectors)
