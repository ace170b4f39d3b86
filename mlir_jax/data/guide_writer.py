"""Computes the vectors of a frozen model, once for a run.

The model is a guide or a teacher: see `guide_vectors.Kind`. It reads texts of
the collection, with its own tokenizer and its own contract. Texts that are the
same in the token store have one vector: that of their first occurrence.
"""

import pathlib
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import tokenizers
from etils import epath

from mlir_jax import bars, sharding
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
  """A run's guide or teacher: it finds the run's vectors, or computes them."""

  def __init__(
    self,
    kind: guide_vectors.Kind,
    name: str,
    revision: str,
    folder: str,
    local: str,
    *,
    language: str = "",
    load: Callable[[jax.sharding.Mesh], model_lib.Model] | None = None,
  ):
    """Finds the vectors; if there are none, loads the model.

    So a model that cannot be loaded is found before texts are tokenized. If the
    vectors are there, the model itself is not read, and may be gone.

    Args:
      kind: What the vectors are for.
      name: A run's folder, or any other model that `retrieval.model` loads.
      revision: As model.revision in the config.
      folder: The run's folder.
      local: The local copy of that folder.
      language: The language of the sentences that a teacher reads.
      load: Loads the model in another way than by its name.

    Raises:
      ValueError: if the model cannot be loaded, or does not encode all roles of
        the kind.
    """
    self._kind, self._load = kind, load
    self._asked = {"name": name, "revision": revision}
    if language:
      self._asked["language"] = language
    self._folder, self._local = folder, local
    self._path = pathlib.Path(local) / kind.name
    guide_parts.fetch(kind, folder, local)
    self._meta = None
    if self._path.is_dir():
      self._meta = guide_vectors.read_meta(self._path)
    self._loaded = None if self._is_asked() else self._load_model()

  def _load_model(self) -> "_Loaded":
    """Loads the model onto the devices of this process."""
    name, revision = self._asked["name"], self._asked["revision"]
    return _load(self._kind, name, revision, self._load)

  def _is_asked(self) -> bool:
    """Whether there are vectors of this model."""
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

    Vectors of another model or of another store are replaced. A run with a
    checkpoint cannot change its models: see `workdir.differences`.

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
    parts = guide_parts.Parts(self._kind, self._folder, self._local)
    kept = self._meta if self._is_asked() else None
    if kept and kept["store"] == store.fingerprint:
      parts.remove()  # A kill may have left them.
      return guide_vectors.GuideVectors.open(self._kind, self._path)
    loaded = self._loaded or self._load_model()
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
    texts = _compute(
      parts,
      loaded.model,
      self._texts(store, collection),
      tokenizer,
      f"Encoding with the {self._kind.name}",
    )
    bad_records.drain()
    del loaded
    if self._meta:
      print(
        f"{self._path} has the vectors of another {self._kind.name} or store:"
        " replaced."
      )
      shutil.rmtree(self._path)
    parts.join(self._path, texts)
    if self._folder != self._local:
      url = f"{self._folder}/{self._kind.name}"
      epath.Path(url).rmtree(missing_ok=True)
      copies.upload_folder(str(self._path), url, guide_vectors.META)
    parts.remove()
    return guide_vectors.GuideVectors.open(self._kind, self._path)

  def _texts(
    self, store: token_store.TokenStore, collection: records.Collection
  ) -> "_Texts":
    """Returns the texts that the model reads.

    Raises:
      ValueError: if a teacher has nothing to read.
    """
    if self._kind == guide_vectors.GUIDE:
      return _Texts(
        {
          role: store.arrays[f"{role}_text_hashes"] for role in self._kind.roles
        },
        lambda: _read_retrieval(collection, store),
        all_known=True,
      )
    language = self._asked["language"]
    known = store.languages
    number = guide_vectors.language_number(known, language)
    sides = guide_vectors.sides_to_read(
      store.arrays["parallel_languages"], number
    )
    if not (sides >= 0).any():
      pairs = ", ".join(store.language_rows("parallel")) or "none"
      raise ValueError(
        f"loss.distillation.language is {language!r}, but no translation has a"
        f" side in it (languages of the pairs: {pairs}): set another language."
      )
    rows = np.flatnonzero(sides >= 0)
    texts = store.arrays["parallel_texts"][rows, sides[rows]]
    return _Texts(
      {"sentence": store.text_hashes("sentence", texts)},
      lambda: _read_parallel(collection, store, language),
      # The store leaves out pairs that are repeated or have two equal sides.
      all_known=False,
    )


class _Loaded(NamedTuple):
  """A frozen model, and its commit on the hub, "" for none."""

  model: model_lib.Model
  commit: str


def _load(
  kind: guide_vectors.Kind,
  name: str,
  revision: str,
  load: Callable[[jax.sharding.Mesh], model_lib.Model] | None,
) -> _Loaded:
  """Loads a frozen model; the arguments are those of `Guide`."""
  mesh = sharding.make_mesh(devices=jax.local_devices())
  try:
    if load:
      loaded = load(mesh)
      commit = pretrained.commit(pathlib.Path(loaded.path))
    elif warm_start.is_run(name):
      loaded, commit = warm_start.load_run(name, revision, mesh), ""
    else:
      with warnings.catch_warnings():
        # It names flags, which training does not have.
        warnings.simplefilter("ignore", prefixes.PrefixWarning)
        loaded = model_lib.load(name, mesh=mesh, revision=revision)
      commit = pretrained.commit(pretrained.fetch(loaded.path, revision))
    for role in kind.roles:
      loaded.check_role(role)
  except ValueError as error:
    raise ValueError(f"{kind.field}={name}: {error}") from error
  for note in loaded.prefix_notes:
    print(
      f"{kind.field}={name}: {note} Write them as the prompts 'query' and"
      f" 'document' into {layout_files.MODEL} of a copy of its folder."
    )
  return _Loaded(loaded, commit)


class _Text(NamedTuple):
  """A text that a model reads.

  Attributes:
    role: Its role.
    text: The text.
    title: Its title, "" for none.
    body: What identifies it in the token store.
  """

  role: str
  text: str
  title: str
  body: str


class _Texts(NamedTuple):
  """All texts that a model reads.

  Attributes:
    hashes: Role to the hashes of its texts in the store, uint64 [n].
    read: Yields the texts, in the order of the collection, with repeated ones.
    all_known: Whether `read` yields no text that is not in `hashes`.
  """

  hashes: Mapping[str, np.ndarray]
  read: Callable[[], Iterator[_Text]]
  all_known: bool


def _read_parallel(
  collection: records.Collection,
  store: token_store.TokenStore,
  language: str,
) -> Iterator[_Text]:
  """Yields the sides of translations that are in a language, in order."""
  for record in collection.parallel():
    for text, of_text in (
      (record.source, record.source_language),
      (record.target, record.target_language),
    ):
      if of_text == language:
        yield _Text("sentence", text, "", store.contract.body(text))


def _read_retrieval(
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

  def __init__(self, hashes: np.ndarray, all_known: bool):
    self._all_known = all_known
    self.hashes = np.unique(hashes)
    self.rows = np.full(len(self.hashes), -1, np.int64)
    self.found = 0

  def is_new(self, text: int) -> bool:
    """Gives a text a row, and returns True, if it is there the first time.

    Raises:
      ValueError: if the text is not among the hashes, and all are known.
    """
    place = int(np.searchsorted(self.hashes, np.uint64(text)))
    if place == len(self.hashes) or int(self.hashes[place]) != text:
      if self._all_known:
        raise ValueError(_CHANGED)
      return False
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
  read: _Texts,
  tokenizer: tokenizers.Tokenizer,
  description: str,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Computes the parts that are missing, in one pass over the collection.

  It holds the texts of a part of each role, and 16 bytes for each text.

  Args:
    parts: Keeps the parts.
    model: Encodes the texts.
    read: The texts.
    tokenizer: The run's tokenizer.
    description: That of the progress bar.

  Returns:
    Role to the hashes and the rows of its texts.
  """
  rows = {
    role: _Rows(hashes, read.all_known) for role, hashes in read.hashes.items()
  }
  waiting: dict[str, list[_Text]] = {role: [] for role in rows}
  characters = dict.fromkeys(rows, 0)
  plain = store_texts.parse_tokenizer(tokenizer.to_str())
  with bars.bar(
    None,
    description,
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

    for portion in _portions(read.read(), _HASHED):
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
    print(f"{description}: {cut}")
  return {role: (each.hashes, each.rows) for role, each in rows.items()}


def _encode(
  model: model_lib.Model,
  role: str,
  texts: Sequence[_Text],
  advance: Callable[[int], object],
) -> np.ndarray:
  """Returns the model's vectors of texts, float32 [n, G].

  Args:
    model: The frozen model.
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
