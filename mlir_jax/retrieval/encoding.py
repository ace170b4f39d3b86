"""Encodes texts by the encoding contract; all vectors are made here."""

import collections
import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
import tqdm

from mlir_jax import bars, sharding
from mlir_jax import contract as contract_lib
from mlir_jax.batches import packing
from mlir_jax.models import architecture, encoder
from mlir_jax.models import rows as rows_lib
from mlir_jax.retrieval import row_batches

PyTree = Any
# The number of texts that are tokenized and packed at once: enough to fill the
# rows, and few enough to hold their tokens in memory.
WINDOW = 16_384
# The same limit in characters, for long texts; and the characters that the
# tokenizer gets at once. It takes about 100 bytes for each, also for those that
# it cuts off.
_WINDOW_CHARACTERS = 2**26
_TOKENIZER_CHARACTERS = 2**18
# The largest batch on a CPU, in texts of 64 tokens: so few that a core's caches
# hold what a layer computes. Each core encodes its own batch, because XLA does
# not split all operations of one batch over the cores.
_CPU_BATCH = 16


class TextEncoder:
  """Encodes texts in their roles on a mesh.

  Attributes:
    contract: The encoding contract; the tokenizer is checked against it.
    tokenizer: The contract's tokenizer.
    mesh: The mesh; batches are split over "data".
    truncation: Role to (texts cut, all texts), of the texts encoded so far.
    prompt: The name of the prompt of texts that are encoded without one; "" for
      their role's prefix.
  """

  def __init__(
    self,
    contract: contract_lib.EncodingContract,
    tokenizer: tokenizers.Tokenizer,
    embed: Callable[[PyTree, str, Any], list[jax.Array]],
    mesh: jax.sharding.Mesh,
    batch_size: int = 256,
    prompt: str = "",
  ):
    """Checks the tokenizer and jits the encoder.

    Args:
      contract: The encoding contract.
      tokenizer: The contract's tokenizer.
      embed: From `make_embed`.
      mesh: The mesh.
      batch_size: The number of texts of 64 tokens that are encoded at once;
        of other lengths, as many tokens. It is rounded up to a multiple of the
        devices along "data". On a CPU the batches are smaller.
      prompt: The encoder's `prompt`.

    Raises:
      ContractMismatchError: if the tokenizer is not the contract's.
      ValueError: if there is no such prompt.
    """
    contract.check_prompt(prompt)
    self.prompt = prompt
    check_tokenizer(contract, tokenizer, "the tokenizer")
    self.contract = contract
    self.tokenizer = tokenizer
    self.mesh = mesh
    self.truncation: dict[str, tuple[int, int]] = {}
    self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    self._tokenizer.no_padding()
    self._devices = mesh.shape[sharding.DATA]
    self._batch_size = -(-batch_size // self._devices) * self._devices
    self._threads = 1
    if mesh.size == 1 and mesh.devices.flat[0].platform == "cpu":
      self._threads = _cores()
      self._batch_size = min(self._batch_size, _CPU_BATCH)
    self._compiled: set[tuple[str, tuple[int, ...], int]] = set()
    self._embed = jax.jit(
      embed, static_argnums=1, out_shardings=sharding.replicated(mesh)
    )

  def with_contract(
    self,
    contract: contract_lib.EncodingContract,
    embed: Callable[[PyTree, str, Any], list[jax.Array]],
  ) -> "TextEncoder":
    """Returns the encoder of another contract with the same tokenizer.

    Args:
      contract: The contract.
      embed: From `make_embed`, of this contract.
    """
    return TextEncoder(
      contract, self.tokenizer, embed, self.mesh, self._batch_size, self.prompt
    )

  def encode(
    self,
    params: PyTree,
    role: str,
    texts: Sequence[str],
    titles: Sequence[str] | None = None,
    *,
    prompt: str | None = None,
    progress: str | None = None,
  ) -> np.ndarray:
    """Encodes texts; it holds all vectors, but only the tokens of a window.

    Args:
      params: The towers' parameters, on the mesh.
      role: "query", "passage" or "sentence".
      texts: The texts, without prefix. Texts that are too long are cut.
      titles: A title for each text, "" for none. Only passages have titles.
      prompt: The name of a prompt of the contract; "" for the role's prefix,
        None for the encoder's `prompt`.
      progress: Description of a progress bar; None for no bar.

    Returns:
      float32 [n, D], in the order of the texts.

    Raises:
      ValueError: if the role or the prompt is unknown, or the titles do not
        match.
      NonFiniteError: if a vector holds NaN or infinity.
    """
    tower = self.contract.role(role).tower
    if titles is not None and len(titles) != len(texts):
      raise ValueError(f"{len(titles)} titles for {len(texts)} texts.")
    vectors, done = None, 0
    for rows in self.encode_windows(
      params,
      role,
      texts,
      titles,
      prompt=prompt,
      progress=progress,
      total=len(texts),
    ):
      if vectors is None:
        vectors = np.empty((len(texts), rows.shape[1]), np.float32)
      vectors[done : done + len(rows)] = rows
      done += len(rows)
    if vectors is None:
      return np.empty((0, self._width(params, tower)), np.float32)
    return vectors

  def encode_windows(
    self,
    params: PyTree,
    role: str,
    texts: Iterable[str],
    titles: Iterable[str] | None = None,
    *,
    prompt: str | None = None,
    progress: str | None = None,
    total: int | None = None,
  ) -> Iterator[np.ndarray]:
    """Encodes any number of texts in bounded memory.

    Args:
      params: As in `encode`.
      role: As in `encode`.
      texts: As in `encode`.
      titles: As in `encode`.
      prompt: As in `encode`.
      progress: As in `encode`.
      total: The number of texts, for the bar; None if not known.

    Yields:
      float32 [m, D], the vectors of the next m texts.

    Raises:
      ValueError: if the role or the prompt is unknown, or the titles do not
        match.
      NonFiniteError: if a vector holds NaN or infinity.
    """
    name = self.prompt if prompt is None else prompt
    self.contract.prefix(role, name)  # It checks both names.
    titled = (
      zip(texts, itertools.repeat(""), strict=False)
      if titles is None
      else zip(texts, titles, strict=True)
    )
    rendered = (
      self.contract.render(role, text, title, name) for text, title in titled
    )
    with bars.bar(
      None,
      progress,
      unit="text",
      delay=5,
      total=total,
      disable=progress is None,
      leave=False,
    ) as bar:
      first = 0
      for window in _portions(rendered, WINDOW, _WINDOW_CHARACTERS):
        yield self._encode_window(params, role, window, first, bar)
        first += len(window)

  def _encode_window(
    self,
    params: PyTree,
    role: str,
    window: Sequence[str],
    first: int,
    bar: tqdm.tqdm,
  ) -> np.ndarray:
    """Encodes the texts of a window; float32 [n, D], in their order.

    Args:
      params: As in `encode`.
      role: As in `encode`.
      window: The rendered texts.
      first: The number of the first text, for messages.
      bar: Counts the encoded texts.
    """
    settings = self.contract.role(role)
    ids = self._tokenize(role, window)
    lengths = np.array([len(each) for each in ids], np.int64)
    vectors: Any = None  # Made when their width is known.

    def batches():
      for length, number in row_batches.pack(
        lengths,
        settings.max_length,
        self._batch_size,
        devices=self._devices,
        multiple=packing.multiple(self.mesh.devices.flat[0].platform),
      ):
        texts = number[number >= 0]
        rows, _, _ = packing.lay_out(
          number,
          length,
          np.concatenate([ids[text] for text in texts]),
          lengths[texts],
        )
        yield number, rows_lib.Rows(*rows, texts=number.shape[1])

    for number, output in self._embed_all(params, settings.tower, batches()):
      texts = number[number >= 0]
      output = np.asarray(jax.device_get(output))[number >= 0]
      check_finite(output, first + texts, role)
      if vectors is None:
        # A text without tokens is not encoded. Its vector stays 0.
        vectors = np.zeros((len(ids), output.shape[1]), np.float32)
      vectors[texts] = output
      bar.update(len(texts))
    if vectors is None:
      return np.zeros((len(ids), self._width(params, settings.tower)), "f")
    return vectors

  def _embed_all(
    self,
    params: PyTree,
    tower: str,
    batches: Iterable[tuple[np.ndarray, rows_lib.Rows]],
  ) -> Iterator[tuple[np.ndarray, jax.Array]]:
    """Yields (numbers, vectors [R, S, D]) of batches, in their order.

    While the caller reads the vectors of a batch, the next ones are computed.
    """
    waiting = collections.deque()
    with contextlib.ExitStack() as stack:
      pool = None
      if self._threads > 1:
        pool = futures.ThreadPoolExecutor(self._threads, "encode")
        stack.callback(pool.shutdown, cancel_futures=True)
      for number, rows in batches:
        shape = (tower, rows.ids.shape, rows.texts)
        if pool and shape in self._compiled:
          waiting.append((number, pool.submit(self._run, params, tower, rows)))
        else:  # Only one thread compiles.
          waiting.append((number, self._run(params, tower, rows)))
          self._compiled.add(shape)
        if len(waiting) > 2 * self._threads - 1:
          yield _result(*waiting.popleft())
      while waiting:
        yield _result(*waiting.popleft())

  def _run(self, params: PyTree, tower: str, rows: rows_lib.Rows) -> jax.Array:
    """Starts to encode a batch; [R, S, D]."""
    (output,) = self._embed(params, tower, (self._place(rows),))
    if self._threads > 1:
      # XLA computes what one thread starts in order, so a thread waits here.
      # Then the next batch goes to a free thread.
      output.block_until_ready()
    return output

  def _place(self, rows: rows_lib.Rows) -> rows_lib.Rows:
    """Puts rows on the mesh, split over "data"."""
    return jax.tree.map(
      lambda x: jax.make_array_from_callback(
        x.shape, sharding.over_data(self.mesh), lambda index: x[index]
      ),
      rows,
    )

  def _width(self, params: PyTree, tower: str) -> int:
    """Returns D without encoding anything."""
    none = jax.ShapeDtypeStruct((self._devices, 8), np.int32)
    rows = rows_lib.Rows(none, none, none)
    return self._embed.eval_shape(params, tower, (rows,))[0].shape[-1]

  def _tokenize(self, role: str, window: Sequence[str]) -> list[np.ndarray]:
    """Tokenizes texts, int32 [length] each, and counts those that it cuts."""
    longest = self.contract.role(role).max_length
    self._tokenizer.enable_truncation(longest)
    ids, cut = [], 0
    for texts in _portions(window, len(window), _TOKENIZER_CHARACTERS):
      for encoding in self._tokenizer.encode_batch_fast(texts):
        ids.append(np.array(encoding.ids, np.int32))
        cut += len(ids[-1]) == longest and bool(encoding.overflowing)
    before = self.truncation.get(role, (0, 0))
    self.truncation[role] = before[0] + cut, before[1] + len(ids)
    return ids

  def describe_truncation(
    self, before: Mapping[str, tuple[int, int]] | None = None
  ) -> str:
    """Says how many texts were cut, in one line for each role with cut texts.

    Args:
      before: An earlier copy of `truncation`; its counts are subtracted.
    """
    lines = []
    for role, counts in self.truncation.items():
      known = (before or {}).get(role, (0, 0))
      cut, texts = (now - then for now, then in zip(counts, known, strict=True))
      if cut:
        length = self.contract.role(role).max_length
        lines.append(
          f"{role} texts cut to {length} tokens: {cut:,} of {texts:,}"
          f" ({cut / texts:.1%})"
        )
    return "\n".join(lines)

  def with_params(self, params: PyTree) -> Callable[..., np.ndarray]:
    """Returns `embed(role, texts, titles=None)` for the evaluators."""

    def embed(role, texts, titles=None):
      return self.encode(params, role, texts, titles, progress=f"{role} texts")

    return embed


def _cores() -> int:
  """Returns the number of cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):  # Only on Linux.
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _result(number: np.ndarray, output: Any) -> tuple[np.ndarray, jax.Array]:
  """Waits for a batch that a thread encodes."""
  if isinstance(output, futures.Future):
    output = output.result()
  return number, output


def _portions(
  texts: Iterable[str], most: int, characters: int
) -> Iterator[list[str]]:
  """Yields lists of `most` texts, or of fewer if these have many characters."""
  portion, size = [], 0
  for text in texts:
    portion.append(text)
    size += len(text)
    if len(portion) >= most or size >= characters:
      yield portion
      portion, size = [], 0
  if portion:
    yield portion


def unit_length(vectors: np.ndarray) -> np.ndarray:
  """Returns vectors scaled to length 1, so that products are cosines."""
  lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
  # The vector of a text without tokens is 0, and stays so.
  return vectors / np.where(lengths > 0, lengths, 1)


class NonFiniteError(FloatingPointError):
  """Parameters or vectors that hold NaN or infinity.

  Attributes:
    text: The number of the vector's text, from 0; None for parameters.
  """

  text: int | None = None


def check_finite(vectors: np.ndarray, rows: np.ndarray, role: str) -> None:
  """Refuses vectors that hold NaN or infinity.

  Args:
    vectors: float32 [n, D].
    rows: int [n], the number of each vector's text, for the message.
    role: The role of the texts.

  Raises:
    NonFiniteError: with the number of a text, from 0.
  """
  finite = np.isfinite(vectors).all(axis=1)
  if not finite.all():
    text = int(rows[~finite].min())
    error = NonFiniteError(
      f"The vector of text {text} (from 0, in the role {role})"
      " holds NaN or infinity: the parameters are damaged or too large. Use"
      " another checkpoint, or model.dtype=float32."
    )
    error.text = text
    raise error


def check_finite_params(params: PyTree, where: str) -> None:
  """Refuses parameters that hold NaN or infinity.

  Args:
    params: The parameters, on their devices.
    where: The place that they were read from, for the message.

  Raises:
    NonFiniteError: with the name of each such parameter.
  """
  finite = jax.jit(
    lambda tree: jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree)
  )(params)
  bad = [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, is_finite in jax.tree_util.tree_leaves_with_path(finite)
    if not is_finite
  ]
  if bad:
    raise NonFiniteError(
      f"{where} holds NaN or infinity in {', '.join(bad)}: it is damaged, or"
      " its training failed. Use an older checkpoint."
    )


def check_lengths(
  encoder_config: architecture.EncoderConfig,
  contract: contract_lib.EncodingContract,
) -> None:
  """Raises ValueError if a role's max_length is too long for the encoder."""
  architecture.check_lengths(
    encoder_config,
    {name: contract.role(name).max_length for name in contract_lib.ROLES},
  )


def make_embed(
  encoder_config: architecture.EncoderConfig,
  contract: contract_lib.EncodingContract,
) -> Callable[..., list[jax.Array]]:
  """Makes the function that encodes rows by a contract.

  A token without a position of its own would get another token's vector, so
  the lengths are checked here, for all who encode.

  Returns:
    embed(params, tower, blocks of rows, token_vectors=None) -> [R, S, D]
    float32 for each block; see `encoder.embed`.

  Raises:
    ValueError: if a role's texts may have more tokens than the encoder takes,
      or vectors have fewer numbers than `truncate_dim`.
  """
  check_lengths(encoder_config, contract)
  contract.width(encoder_config.output_size)

  def embed(params, tower, texts, token_vectors=None):
    return encoder.embed(
      encoder_config,
      params,
      tower,
      texts,
      pooling=contract.pooling,
      normalize=contract.normalize,
      truncate_dim=contract.truncate_dim,
      token_vectors=token_vectors,
    )

  return embed


def check_tokenizer(
  contract: contract_lib.EncodingContract,
  tokenizer: tokenizers.Tokenizer,
  where: str,
) -> None:
  """Refuses a tokenizer that is not the contract's.

  Raises:
    ContractMismatchError: with the differences.
  """
  found = contract_lib.EncodingContract(
    **{
      **vars(contract),
      "tokenizer_fingerprint": contract_lib.fingerprint(tokenizer),
      "golden_ids": contract_lib.golden_ids(tokenizer),
    }
  )
  contract_lib.check_same(contract, found, where)
