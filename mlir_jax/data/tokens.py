"""The token store: every text of a collection, tokenized once, in arrays.

A folder of .npy files, read through memory maps, and meta.json. Rows name
texts by their ids; each role (query, passage, sentence) has the tokens of
the texts that appear in it:

  {role}_tokens      int32 [all tokens]  sequences end to end
  {role}_offsets     int64 [S + 1]       where each starts
  {role}_sequences   int32 [texts]       text id -> sequence, -1 for none
  retrieval_queries             int32 [R]     text ids
  retrieval_positives           int32 [*, 2]  text id, passage id
  retrieval_positive_offsets    int64 [R + 1]
  retrieval_negatives           int32 [*, 2]  hard negatives
  retrieval_negative_offsets    int64 [R + 1]
  retrieval_questions           int32 [R]     which distinct question
  retrieval_known               int32 [*, 2]  all positives of a question
  retrieval_known_offsets       int64 [Q + 1]
  parallel_texts, parallel_languages          int32 [N, 2]
  monolingual_texts, monolingual_languages    int32 [M]
"""

import array
import contextlib
import dataclasses
import fcntl
import glob
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, TextIO

import numpy as np
import tokenizers
import tqdm

from mlir_jax import contract as contract_lib
from mlir_jax.data import records, sampling

STREAMS = ("retrieval", "parallel", "monolingual")
FORMAT = 2

# Texts waiting to be tokenized together: some 10,000 passages. A count of
# texts would not bound memory, as a text can be a book.
_CHUNK_CHARACTERS = 4_000_000


class TokenStoreError(ValueError):
  """A token store that cannot be used; the message names the file."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TokenStore:
  """An open token store.

  Attributes:
    path: The folder.
    meta: meta.json.
    contract: The encoding contract that the texts were tokenized by.
    arrays: Name to memory-mapped array; the module's docstring lists them.
  """

  path: pathlib.Path
  meta: Mapping
  contract: contract_lib.EncodingContract
  arrays: Mapping[str, np.ndarray]

  @classmethod
  def open(
    cls, path: str | os.PathLike, *, verify: bool = False
  ) -> "TokenStore":
    """Opens a store, checking that it is whole.

    Args:
      path: The folder.
      verify: Whether every array is read and its hash compared; otherwise
        meta.json's hash and the arrays' types and sizes are.

    Raises:
      FileNotFoundError: if there is no store.
      TokenStoreError: if it is not as it was built.
    """
    path = pathlib.Path(path)
    file = path / "meta.json"
    if not file.is_file():
      raise FileNotFoundError(f"There is no token store at {path}.")
    try:
      meta = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as e:
      raise TokenStoreError(f"{file}: not JSON ({e}); {_REBUILD}") from e
    if meta.get("format") != FORMAT:
      raise TokenStoreError(
        f"{file}: format {meta.get('format')!r}, this version reads {FORMAT};"
        f" {_REBUILD}"
      )
    if meta["fingerprint"] != _fingerprint(meta):
      raise TokenStoreError(f"{file}: changed since it was built; {_REBUILD}")
    arrays = {
      name: _open_array(path / f"{name}.npy", expected, verify)
      for name, expected in meta["arrays"].items()
    }
    contract = contract_lib.EncodingContract.from_json(
      json.dumps(meta["contract"])
    )
    return cls(path, meta, contract, arrays)

  @property
  def fingerprint(self) -> str:
    """SHA-256 of the whole content: equal stores have equal ones.

    Where it comes from, `source` and the bad records, does not count.
    """
    return self.meta["fingerprint"]

  @property
  def source(self) -> str:
    """The fingerprint of the collection that it was built from."""
    return self.meta["source"]

  @property
  def pad_id(self) -> int:
    """What sequences are padded with."""
    return self.meta["pad_id"]

  @property
  def languages(self) -> tuple[str, ...]:
    """The languages that the arrays' language numbers stand for."""
    return tuple(self.meta["languages"])

  @property
  def max_positives(self) -> int:
    """The most known positives that a question has."""
    return self.meta["max_positives"]

  @property
  def truncation(self) -> Mapping[str, Mapping[str, Sequence[int]]]:
    """Role to language to (texts cut, all texts), each text counted once.

    A text that stands in several languages counts for the first of them.
    """
    return self.meta["truncation"]

  @property
  def dropped(self) -> Mapping[str, int]:
    """What was left out, and how often."""
    return self.meta["dropped"]

  def groups(self, stream: str) -> Mapping[str, int]:
    """A stream's languages (or language pairs) and their rows, in order."""
    return self.meta["groups"][stream]

  def rows(self, stream: str) -> int:
    """How many rows a stream has."""
    return sum(self.groups(stream).values())

  def lengths(self, role: str) -> np.ndarray:
    """The number of tokens of each sequence of a role; int64 [S]."""
    return np.diff(self.arrays[f"{role}_offsets"])

  def sequences(
    self, role: str, texts: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """The padded tokens of some texts.

    Args:
      role: The role that they are encoded in.
      texts: int [...], text ids that appear in that role; -1 gives padding
        alone.

    Returns:
      ids: int32 [..., max_length of the role].
      mask: bool, the same shape; False is padding.

    Raises:
      ValueError: if a text does not appear in that role.
    """
    offsets = self.arrays[f"{role}_offsets"]
    tokens = self.arrays[f"{role}_tokens"]
    sequence = self.arrays[f"{role}_sequences"][texts]
    if ((sequence < 0) & (texts >= 0)).any():
      raise ValueError(f"Some of these texts do not appear in the role {role}.")
    starts = offsets[sequence]
    lengths = np.where(texts < 0, 0, offsets[sequence + 1] - starts)
    places = np.arange(self.contract.role(role).max_length)
    mask = places < lengths[..., None]
    ids = tokens[np.where(mask, starts[..., None] + places, 0)]
    return np.where(mask, ids, np.int32(self.pad_id)), mask

  def summary(self) -> str:
    """What the store holds, what was left out and what was cut, in lines."""
    lines = []
    for stream in STREAMS:
      groups = ", ".join(f"{g} {n:,}" for g, n in self.groups(stream).items())
      lines.append(f"{stream}: {self.rows(stream):,} rows ({groups or 'none'})")
    lines.append(f"hard negatives: {len(self.arrays['retrieval_negatives']):,}")
    if self.meta["shuffled_by"] is not None:
      lines.append("parallel pairs are shuffled: a control experiment")
    for what, count in self.dropped.items():
      lines.append(f"dropped {what}: {count:,}")
    lines.append(records.describe_bad("training", self.meta["bad_records"]))
    for role, languages in self.truncation.items():
      shares = ", ".join(
        f"{language} {cut / total:.1%}"
        for language, (cut, total) in languages.items()
      )
      if shares:
        length = self.contract.role(role).max_length
        lines.append(f"{role} texts cut to {length} tokens: {shares}")
    return "\n".join(lines)


# Not content: the same texts may be read from other files.
_PROVENANCE = ("source", "bad_records")
_REBUILD = "delete the folder, and it will be built anew."


def _open_array(path: pathlib.Path, expected: Mapping, verify: bool):
  try:
    found = np.load(path, mmap_mode="r", allow_pickle=False)
  except (OSError, ValueError) as e:
    raise TokenStoreError(f"{path}: unreadable ({e}); {_REBUILD}") from e
  if [str(found.dtype), list(found.shape)] != [
    expected["dtype"],
    expected["shape"],
  ]:
    raise TokenStoreError(
      f"{path}: holds {found.dtype} {found.shape} instead of"
      f" {expected['dtype']} {tuple(expected['shape'])}; {_REBUILD}"
    )
  if verify and _file_hash(path) != expected["sha256"]:
    raise TokenStoreError(f"{path}: changed since it was built; {_REBUILD}")
  return found.view(np.ndarray)  # np.memmap's own indexing is slow.


def _file_hash(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _fingerprint(meta: Mapping) -> str:
  left_out = ("fingerprint", *_PROVENANCE)
  content = {name: meta[name] for name in meta if name not in left_out}
  text = json.dumps(content, sort_keys=True, ensure_ascii=False)
  return hashlib.sha256(text.encode()).hexdigest()


def build(
  path: str | os.PathLike,
  collection: records.Collection,
  contract: contract_lib.EncodingContract,
  tokenizer: tokenizers.Tokenizer,
  pad_id: int,
  *,
  shuffle_parallel: bool,
  seed: int,
  source: str,
  bad_records: records.BadRecords | None = None,
) -> TokenStore:
  """Tokenizes a collection's three streams into a store.

  It is written to `path`.tmp-… and renamed when it is complete; such folders
  that killed builds have left are removed first. Texts are the same text if
  their stripped bodies (title, joiner and text) are equal. Rows stand grouped
  by language, in the collection's order.

  Left out and counted: parallel pairs with identical sides, repeated
  parallel pairs of one language pair (in either direction), and hard
  negatives that are a positive of their question in any row
  (FlagEmbedding#850). Of a parallel pair, the language that sorts first
  stands first.

  Args:
    path: Where the store shall be; nothing may be there.
    collection: What is tokenized.
    contract: Says how; made with `tokenizer`.
    tokenizer: The tokenizer.
    pad_id: What sequences will be padded with.
    shuffle_parallel: Control experiment: within each language pair, every
      sentence gets a partner that is not its translation.
    seed: Of that shuffling; not used otherwise.
    source: The collection's fingerprint.
    bad_records: What the collection tells of bad records. What it has counted
      before is forgotten, as a tokenizer may have read the same streams; what
      it counts here is kept in the store, and drained.

  Returns:
    The store, open.

  Raises:
    FileExistsError: if there is something at `path`.
    ValueError: if the contract is another tokenizer's, a record cannot be
      used, or a language pair has too few pairs to be shuffled.
  """
  path = pathlib.Path(path)
  if path.exists():
    raise FileExistsError(
      f"{path} exists: open it with TokenStore.open, or delete it."
    )
  _check_tokenizer(tokenizer, contract, pad_id)
  bad_records = bad_records or records.BadRecords()
  bad_records.drain()
  path.parent.mkdir(parents=True, exist_ok=True)
  _sweep(path)
  with _folder_aside(path) as (aside, meta_file):
    shuffle_seed = seed if shuffle_parallel else None
    meta = _write(aside, collection, contract, tokenizer, shuffle_seed)
    meta["pad_id"] = pad_id
    meta["source"] = source
    meta["bad_records"] = bad_records.drain()
    meta["fingerprint"] = _fingerprint(meta)
    json.dump(meta, meta_file, indent=2, ensure_ascii=False)
    meta_file.flush()
    _publish(aside, path, meta["fingerprint"])
  return TokenStore.open(path)


def _check_tokenizer(
  tokenizer: tokenizers.Tokenizer,
  contract: contract_lib.EncodingContract,
  pad_id: int,
) -> None:
  if contract_lib.fingerprint(tokenizer) != contract.tokenizer_fingerprint:
    raise ValueError("The encoding contract was made with another tokenizer.")
  if not 0 <= pad_id < tokenizer.get_vocab_size():
    raise ValueError(f"pad_id is {pad_id}; the tokenizer has no such token.")


@contextlib.contextmanager
def _folder_aside(
  path: pathlib.Path,
) -> Iterator[tuple[pathlib.Path, TextIO]]:
  """A new folder beside the path, and its meta.json, open for writing.

  The file stays locked until the end of the block or of the process, which
  tells a build that is running from one that was killed. The folder is
  removed at the end of the block, unless it was renamed.
  """
  aside, file = _make_folder(path)
  try:
    with file:
      yield aside, file
  finally:
    shutil.rmtree(aside, ignore_errors=True)


def _make_folder(path: pathlib.Path) -> tuple[pathlib.Path, TextIO]:
  """Makes what `_folder_aside` gives."""
  while True:
    aside = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    aside.mkdir()
    # Until it is locked, another build may sweep it away; then again.
    with contextlib.suppress(FileNotFoundError):
      file = open(aside / "meta.json", "w", encoding="utf-8")  # noqa: SIM115
      # Where the file system has no locks, nobody can sweep it away.
      with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)
      if (aside / "meta.json").exists():
        return aside, file
      file.close()


def _sweep(path: pathlib.Path) -> None:
  """Removes what killed builds have left beside the path."""
  for aside in path.parent.glob(f"{glob.escape(path.name)}.tmp-*"):
    # Locked, without locks, or just renamed: not left by a killed build.
    with contextlib.suppress(OSError):
      aside.rmdir()  # Killed before it had a file.
    with (
      contextlib.suppress(OSError),
      open(aside / "meta.json", "r+") as file,
    ):
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      shutil.rmtree(aside, ignore_errors=True)


def _publish(aside: pathlib.Path, path: pathlib.Path, fingerprint: str) -> None:
  """Renames a complete store to its path."""
  try:
    os.rename(aside, path)
  except OSError:
    # Another process may have built the same store in the meantime.
    if not path.exists() or TokenStore.open(path).fingerprint != fingerprint:
      raise


def _write(
  folder: pathlib.Path,
  collection: records.Collection,
  contract: contract_lib.EncodingContract,
  tokenizer: tokenizers.Tokenizer,
  shuffle_seed: int | None,
) -> dict:
  """Writes all arrays into a folder; returns meta, but for the pad id."""

  def progress(stream: str):
    return tqdm.tqdm(
      getattr(collection, stream)(),
      desc=f"{collection.name}: tokenizing {stream}",
      unit=" rows",
    )

  languages = _Numbering()
  encoder = _Encoder(folder, contract, tokenizer)
  read = {
    "retrieval": _read_retrieval(
      progress("retrieval"), contract, encoder, languages
    ),
    "parallel": _read_parallel(
      progress("parallel"), encoder, languages, shuffle_seed
    ),
    "monolingual": _read_monolingual(
      progress("monolingual"), encoder, languages
    ),
  }
  truncation = encoder.finish()
  groups, dropped = {}, {}
  for stream, (arrays, stream_groups, stream_dropped) in read.items():
    groups[stream] = stream_groups
    dropped |= stream_dropped
    for name, values in arrays.items():
      np.save(folder / f"{stream}_{name}.npy", values)
  known = read["retrieval"][0]["known_offsets"]
  return {
    "format": FORMAT,
    "collection": collection.name,
    "contract": dataclasses.asdict(contract),
    "languages": list(languages),
    "max_positives": int(np.diff(known).max(initial=0)),
    "shuffled_by": shuffle_seed,
    "groups": groups,
    "dropped": dropped,
    "truncation": truncation,
    "arrays": {
      file.stem: _description(file) for file in sorted(folder.glob("*.npy"))
    },
  }


def _description(file: pathlib.Path) -> dict:
  values = np.load(file, mmap_mode="r")
  return {
    "dtype": str(values.dtype),
    "shape": list(values.shape),
    "sha256": _file_hash(file),
  }


class _Numbering(dict):
  """Numbers keys in the order in which they are first looked up."""

  def __missing__(self, key):
    self[key] = number = len(self)
    return number


class _Encoder:
  """Numbers texts and encodes each once per role it appears in."""

  def __init__(self, folder, contract, tokenizer):
    # Keyed by a digest: the texts themselves would fill the memory.
    self._texts = _Numbering()
    self._roles = {
      name: _RoleEncoder(folder, name, contract.role(name), tokenizer)
      for name in contract_lib.ROLES
    }

  def text(self, role: str, body: str, language: str) -> int:
    """The text id of a body, which will be encoded in this role."""
    body = body.strip()
    text = self._texts[hashlib.blake2b(body.encode(), digest_size=16).digest()]
    self._roles[role].add(text, body, language)
    return text

  def finish(self) -> dict:
    """Writes what is left; returns role to language to [cut, all texts]."""
    texts = len(self._texts)
    return {name: role.finish(texts) for name, role in self._roles.items()}


class _RoleEncoder:
  """Encodes the texts of one role, a chunk at a time, into its arrays."""

  def __init__(self, folder, name, role, tokenizer):
    self._base = folder / name
    self._prefix = role.prefix
    self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    self._tokenizer.no_padding()
    self._tokenizer.enable_truncation(role.max_length, direction="right")
    self._sequences = array.array("i")  # Text id to sequence, or -1.
    self._added = 0
    self._lengths = array.array("i")
    self._truncation = {}  # Language to [texts cut, all texts].
    self._waiting = []  # (text with prefix, language)
    self._waiting_characters = 0
    self._tokens_file = f"{self._base}_tokens.npy"
    with open(self._tokens_file, "wb") as file:
      _write_header(file, 0)

  def add(self, text: int, body: str, language: str) -> None:
    """Sees to it that the text of that id is encoded, once."""
    self._reach(text + 1)
    if self._sequences[text] >= 0:
      return
    self._sequences[text] = self._added
    self._added += 1
    self._waiting.append((self._prefix + body, language))
    self._waiting_characters += len(body)
    if self._waiting_characters >= _CHUNK_CHARACTERS:
      self._flush()

  def _reach(self, texts: int) -> None:
    """Extends the table of sequences to so many texts."""
    missing = texts - len(self._sequences)
    self._sequences.extend(itertools.repeat(-1, missing))

  def _flush(self) -> None:
    """Encodes what is waiting."""
    encodings = self._tokenizer.encode_batch_fast([t for t, _ in self._waiting])
    with open(self._tokens_file, "ab") as file:
      for (text, language), encoding in zip(
        self._waiting, encodings, strict=True
      ):
        ids = array.array("i", encoding.ids)
        if not ids:
          raise ValueError(
            f"The tokenizer makes no tokens of {text!r}; it should add"
            " special tokens (its post_processor)."
          )
        ids.tofile(file)
        self._lengths.append(len(ids))
        counts = self._truncation.setdefault(language, [0, 0])
        counts[0] += bool(encoding.overflowing)
        counts[1] += 1
    self._waiting.clear()
    self._waiting_characters = 0

  def finish(self, texts: int) -> dict:
    """Writes what is left, for so many texts in all roles together.

    Returns:
      Language to [texts cut, all texts].
    """
    self._flush()
    self._reach(texts)
    offsets = _offsets(self._lengths)
    with open(self._tokens_file, "r+b") as file:
      # numpy leaves room in a header for its first dimension to grow.
      _write_header(file, int(offsets[-1]))
    np.save(f"{self._base}_offsets.npy", offsets)
    np.save(f"{self._base}_sequences.npy", np.array(self._sequences, np.int32))
    return self._truncation


def _write_header(file: BinaryIO, length: int) -> None:
  """Writes the .npy header of a one-dimensional int32 array."""
  np.lib.format.write_array_header_1_0(
    file,
    {
      "descr": np.dtype(np.int32).str,
      "fortran_order": False,
      "shape": (length,),
    },
  )


def _offsets(lengths) -> np.ndarray:
  """Where ragged rows of these lengths start; int64 [rows + 1]."""
  return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _take_rows(values, offsets, order) -> tuple[np.ndarray, np.ndarray]:
  """Ragged rows in another order: their values and offsets."""
  lengths = np.diff(offsets)[order]
  new_offsets = _offsets(lengths)
  shift = np.repeat(offsets[:-1][order] - new_offsets[:-1], lengths)
  return values[np.arange(len(shift)) + shift], new_offsets


def _group(codes, names: Sequence[str]) -> tuple[np.ndarray, dict[str, int]]:
  """Groups rows by name.

  Args:
    codes: int [n], indices into `names`.
    names: The groups' names.

  Returns:
    The order that puts rows of a group together, groups sorted by name, and
    the number of rows of each group.
  """
  by_name = sorted(range(len(names)), key=names.__getitem__)
  rank = np.argsort(by_name)
  codes = np.array(codes, np.int64)
  counts = np.bincount(codes, minlength=len(names))
  groups = {names[i]: int(counts[i]) for i in by_name if counts[i]}
  return np.argsort(rank[codes], kind="stable"), groups


def _read_retrieval(rows, contract, encoder, languages):
  """Reads the question-passage pairs: arrays, groups, dropped counts."""
  passage_ids = _Numbering()
  queries, codes = array.array("i"), array.array("i")
  # Text id and passage id by turns, and how many passages each row has.
  positives, positive_counts = array.array("i"), array.array("i")
  negatives, negative_counts = array.array("i"), array.array("i")
  for record in rows:
    if not record.positives:
      raise ValueError(f"The question {record.question!r} has no positive.")
    language = record.language
    body = contract.body(record.question)
    queries.append(encoder.text("query", body, language))
    codes.append(languages[language])
    for passages, values, counts in (
      (record.positives, positives, positive_counts),
      (record.hard_negatives, negatives, negative_counts),
    ):
      for passage in passages:
        body = contract.body(passage.text, passage.title)
        values.append(encoder.text("passage", body, language))
        name = passage.passage_id
        values.append(passage_ids[name] if name else -1)
      counts.append(len(passages))

  order, groups = _group(codes, list(languages))
  arrays = _retrieval_arrays(
    np.array(queries, np.int32)[order],
    *(
      _take_rows(
        np.array(values, np.int32).reshape(-1, 2), _offsets(counts), order
      )
      for values, counts in (
        (positives, positive_counts),
        (negatives, negative_counts),
      )
    ),
  )
  dropped = len(negatives) // 2 - len(arrays["negatives"])
  return arrays, groups, {"hard negatives that are positives": dropped}


def _retrieval_arrays(queries, positives, negatives):
  """The retrieval arrays by name, without negatives that are positives.

  Args:
    queries: int32 [R], text ids.
    positives: Ragged rows as `_take_rows` gives them: int32 [*, 2], text id
      and passage id, and int64 [R + 1].
    negatives: The same of the hard negatives.
  """
  positives, positive_offsets = positives
  negatives, negative_offsets = negatives
  # Every row of a question knows the positives of all of its rows.
  distinct, questions = np.unique(queries, return_inverse=True)
  owners = np.repeat(questions, np.diff(positive_offsets))
  known = np.unique(np.column_stack([owners, positives]), axis=0)
  known_offsets = np.searchsorted(known[:, 0], np.arange(len(distinct) + 1))

  rows = np.repeat(np.arange(len(queries)), np.diff(negative_offsets))
  kept = ~_are_known(known, questions[rows], negatives)
  return {
    "queries": queries,
    "positives": positives,
    "positive_offsets": positive_offsets,
    "negatives": negatives[kept],
    "negative_offsets": _offsets(
      np.bincount(rows[kept], minlength=len(queries))
    ),
    "questions": questions.astype(np.int32),
    "known": known[:, 1:].astype(np.int32),
    "known_offsets": known_offsets.astype(np.int64),
  }


def _are_known(known, questions, passages) -> np.ndarray:
  """Which passages are a positive of their question, by text or by id.

  Args:
    known: int [*, 3], each question's positives: question, text id,
      passage id.
    questions: int [n].
    passages: int32 [n, 2], text id and passage id, -1 for none.

  Returns:
    bool [n].
  """
  are_known = np.zeros(len(passages), bool)
  for column in (0, 1):
    ids, known_ids = passages[:, column], known[:, 1 + column]
    span = 1 + max(ids.max(initial=-1), known_ids.max(initial=-1)).astype(
      np.int64
    )
    named = known_ids >= 0
    are_known |= (ids >= 0) & np.isin(
      questions * span + ids, known[named, 0] * span + known_ids[named]
    )
  return are_known


def _read_parallel(rows, encoder, languages, shuffle_seed):
  """Reads the translations: arrays, groups, dropped counts."""
  pairs = _Numbering()  # Of languages, by name.
  codes, sides = array.array("i"), array.array("i")
  identical = 0
  for record in rows:
    if record.source.strip() == record.target.strip():
      identical += 1
      continue
    codes.append(
      pairs["-".join(sorted((record.source_language, record.target_language)))]
    )
    first, second = sorted(
      [
        (language, encoder.text("sentence", text, language))
        for text, language in (
          (record.source, record.source_language),
          (record.target, record.target_language),
        )
      ]
    )
    sides.extend(
      (first[1], second[1], languages[first[0]], languages[second[0]])
    )

  sides = np.array(sides, np.int32).reshape(-1, 4)
  _, first_places = np.unique(sides, axis=0, return_index=True)
  first_places.sort()
  order, groups = _group(np.array(codes, np.int32)[first_places], list(pairs))
  repeated = len(sides) - len(order)
  sides = sides[first_places][order]
  texts = np.ascontiguousarray(sides[:, :2])
  if shuffle_seed is not None:
    start = 0
    for name, size in groups.items():
      group = texts[start : start + size]
      group[:, 1] = _mispair(group, name, shuffle_seed)
      start += size
  arrays = {"texts": texts, "languages": np.ascontiguousarray(sides[:, 2:])}
  dropped = {
    "parallel pairs with identical sides": identical,
    "repeated parallel pairs": repeated,
  }
  return arrays, groups, dropped


def _mispair(texts: np.ndarray, name: str, seed: int) -> np.ndarray:
  """Permutes the second sides of some pairs so that no pair stays right.

  Args:
    texts: int32 [n, 2], the text ids of one language pair.
    name: The language pair.
    seed: Determines the permutation.

  Returns:
    int32 [n]: the second sides. None forms a pair that is among `texts`, or
    one of two identical sides.

  Raises:
    ValueError: if no such permutation is found.
  """
  size = len(texts)

  def permutation(length: int, turn: int) -> np.ndarray:
    key = sampling.make_key(seed, "shuffle parallel", name, turn)
    return sampling.permute(np.arange(length), size, key)

  # One cycle through all pairs has no fixed point. But a sentence may stand
  # in several pairs, so some need to be swapped on.
  cycle = permutation(size, 0)
  first, second = texts[:, 0].astype(np.int64), np.empty(size, np.int64)
  second[cycle] = texts[np.roll(cycle, 1), 1]
  span = texts.max() + 1
  right_pairs = first * span + texts[:, 1]
  for turn in range(1, 101):
    right = np.flatnonzero(
      np.isin(first * span + second, right_pairs) | (first == second)
    )
    if not right.size:
      return second.astype(np.int32)
    for a, b in zip(right, permutation(right.size, turn), strict=True):
      second[[a, b]] = second[[b, a]]
  raise ValueError(
    f"The {size} pairs of {name} are too few, or too alike, to be shuffled"
    " so that none stays right; leave this language pair out."
  )


def _read_monolingual(rows, encoder, languages):
  """Reads the plain sentences: arrays, groups, dropped counts."""
  texts, codes = array.array("i"), array.array("i")
  for record in rows:
    texts.append(encoder.text("sentence", record.text, record.language))
    codes.append(languages[record.language])
  order, groups = _group(codes, list(languages))
  arrays = {
    "texts": np.array(texts, np.int32)[order],
    "languages": np.array(codes, np.int32)[order],
  }
  return arrays, groups, {}
