"""Loads a retriever from a run's folder or from a model's folder."""

import contextlib
import dataclasses
import reprlib
import types
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import tokenizers
from etils import epath

from mlir_jax import contract as contract_lib
from mlir_jax import sharding, workdir
from mlir_jax.checkpoints import manager, metadata
from mlir_jax.data import token_store
from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.models import (
  architecture,
  layout,
  layout_files,
  pretrained,
  sealed,
)
from mlir_jax.models import encoder as encoder_lib
from mlir_jax.retrieval import encoding, prefixes
from mlir_jax.retrieval import index as index_lib
from mlir_jax.storage import copies, locations, reading

# For models without a title joiner; BEIR and mteb use a space, too.
_TITLE_JOINER = " "


@dataclasses.dataclass(frozen=True, repr=False)
class Model:
  """A retriever.

  Attributes:
    path: What it was loaded from.
    text_encoder: Encodes texts by the contract.
    encoder_config: The shape of the encoder.
    params: The towers' parameters, on the text encoder's mesh.
    similarity_fn_name: How vectors are compared, "cosine" or "dot". For vectors
      of unit length, both are the same.
    step: Steps that it was trained; None for a model that is not ours.
    description: The checkpoint's description; None if it was not loaded from a
      run.
    prefix_notes: Sentences for reports, on prefixes that are not the model's
      own.
    averaged: The steps of the checkpoints whose mean the parameters are; empty
      for one checkpoint.
  """

  path: str
  text_encoder: encoding.TextEncoder
  encoder_config: architecture.EncoderConfig
  params: Any
  similarity_fn_name: str
  step: int | None
  description: metadata.Description | None = None
  prefix_notes: tuple[str, ...] = ()
  averaged: tuple[int, ...] = ()

  @property
  def contract(self) -> contract_lib.EncodingContract:
    """How a text becomes a vector."""
    return self.text_encoder.contract

  @property
  def width(self) -> int:
    """The numbers of a vector."""
    return self.contract.width(self.encoder_config.output_size)

  def notes(self) -> list[str]:
    """Says in sentences what differs from a checkpoint as it was trained."""
    found = [*self.prefix_notes]
    if self.averaged:
      steps = ", ".join(f"{step:,}" for step in self.averaged)
      found.append(
        f"The parameters are the mean of those of the steps {steps}."
      )
    if size := self.contract.truncate_dim:
      found.append(f"Vectors are cut to their first {size} numbers.")
    return found

  def __repr__(self) -> str:
    """Returns one line, without the parameters, which would fill pages."""
    step = "" if self.step is None else f", step {self.step:,}"
    return (
      f"Model({self.path!r}{step}: {self.encoder_config.family},"
      f" {self.width} numbers a vector, {self.similarity_fn_name})"
    )

  def encode(
    self,
    texts: Iterable[str],
    role: str = "query",
    titles: Iterable[str] | None = None,
    progress: str | None = None,
    prompt: str | None = None,
  ) -> np.ndarray:
    """Encodes texts.

    If texts are cut, there is a `UserWarning`, and `text_encoder.truncation`
    counts them.

    Args:
      texts: Texts without prefix: a list, a tuple, an array, a column of a data
        frame, a generator. Texts that are too long are cut. White space around
        a text is removed.
      role: "query", "passage", or "sentence" for other texts.
      titles: A title for each passage, "" for none; only for passages.
      progress: Description of a progress bar; None for no bar.
      prompt: The name of one of `contract.prompts`: a source of the training
        data, whose prompts are used. The default is that of `load`; "" is the
        role's prefix.

    Returns:
      float32 [n, D], in the order of the texts.

    Raises:
      ValueError: if `texts` or `titles` is not a sequence of texts (the message
        names the first item that is not a text), the role or the prompt is
        unknown, there are more or fewer titles than texts, or this role's tower
        is missing.
    """
    texts = _list_texts(texts, "texts")
    self.check_role(role)
    if titles is not None:
      titles = _list_texts(titles, "titles")
      if role != "passage":
        raise ValueError(
          f"titles are given, but a text of the role {role!r} has none: give"
          " titles with the role 'passage' only."
        )
    before = dict(self.text_encoder.truncation)
    vectors = self.text_encoder.encode(
      self.params, role, texts, titles, prompt=prompt, progress=progress
    )
    if cut := self.text_encoder.describe_truncation(before):
      warnings.warn(cut, stacklevel=2)
    return vectors

  def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the model's similarity of all pairs: cosine or inner product.

    Args:
      a: [n, D] floats.
      b: [m, D] floats.

    Returns:
      float32 [n, m]. The cosine of a vector of zeros is 0.

    Raises:
      ValueError: if the shapes do not fit.
    """
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
      raise ValueError(
        f"The vectors have the shapes {list(a.shape)} and {list(b.shape)}; give"
        " [n, D] and [m, D], as `encode` returns them."
      )
    if self.similarity_fn_name == "cosine":
      a, b = encoding.unit_length(a), encoding.unit_length(b)
    return a @ b.T

  def search(
    self,
    queries: Iterable[str],
    passages: index_lib.Index | Mapping[str, str] | Iterable[str],
    k: int = 10,
    *,
    prompt: str | None = None,
    progress: str | None = None,
  ) -> tuple[np.ndarray, list[list[Any]]]:
    """Finds the best passages of each query, exactly.

    Args:
      queries: The queries, as `encode` takes texts.
      passages: An index of vectors that this model made, or id to passage, or
        passages. Passages are encoded at each call, so an index is better for
        many of them.
      k: The number of results; all passages if there are fewer.
      prompt: As in `encode`.
      progress: As in `encode`.

    Returns:
      scores: float32 [Q, min(k, n)], the model's similarity, descending.
      ids: For each query, the ids of the passages in this order; the places of
        passages without ids, from 0. The first one wins a tie of places, and
        the last id one of ids, as in trec_eval.

    Raises:
      ValueError: if there is no passage, `k` is not positive, or texts cannot
        be encoded; see `encode`.
      ContractMismatchError: if the passages of the index were encoded in
        another way.
    """
    if k < 1:
      raise ValueError(f"k is {k}; give at least 1.")
    model = self.with_inner_products()
    places = None
    if isinstance(passages, index_lib.Index):
      if passages.contract:
        contract_lib.check_role(
          self.contract, passages.contract, "passage", passages.path
        )
    else:
      if isinstance(passages, Mapping):
        ids = _list_texts(list(passages), "the ids of passages")
        texts = _list_texts(list(passages.values()), "passages")
      else:
        texts = _list_texts(passages, "passages")
        # An index has its ids in descending order.
        ids = [f"{place:020}" for place in reversed(range(len(texts)))]
        places = dict(zip(ids, range(len(ids)), strict=True))
      if not texts:
        raise ValueError("There are no passages.")
      passages = index_lib.Index(
        ids,
        model.encode(texts, "passage", prompt=prompt, progress=progress),
        model.text_encoder.mesh,
      )
    vectors = model.encode(queries, "query", prompt=prompt, progress=progress)
    scores, found = passages.search(vectors, k)
    if places is not None:
      found = [[places[each] for each in best] for best in found]
    return scores, found

  def with_inner_products(self) -> "Model":
    """Returns the model with vectors whose inner product is its similarity.

    Search compares by inner product. So vectors that are compared by cosine
    need unit length, even if the model's folder does not normalize them.
    """
    if self.similarity_fn_name == "dot" or self.contract.normalize:
      return self
    return self.with_contract(
      dataclasses.replace(self.contract, normalize=True)
    )

  def with_contract(self, contract: contract_lib.EncodingContract) -> "Model":
    """Returns the model with another contract of the same tokenizer."""
    if contract == self.contract:
      return self
    return dataclasses.replace(
      self,
      text_encoder=self.text_encoder.with_contract(
        contract, encoding.make_embed(self.encoder_config, contract)
      ),
    )

  def check_role(self, role: str) -> None:
    """Raises ValueError if there is no such role, or its tower is missing."""
    tower = self.contract.role(role).tower
    if not {"encoder", f"{tower}_encoder"} & self.params.keys():
      raise ValueError(
        f"{self.path} holds one of two towers, and the other tower encodes the"
        f" role {role!r}: load the folder {tower}/ of the same export, or the"
        " folder that holds both."
      )


def _list_texts(values: Iterable[str], name: str) -> list[str]:
  """Returns the values as a list, after a check that each one is a text.

  Args:
    values: The values.
    name: The argument's name, for messages.

  Raises:
    ValueError: if the values have no order, or are not a sequence of texts; the
      message names the first item that is not a text.
  """
  kind = type(values).__name__
  if isinstance(values, str):  # It is a sequence of letters.
    raise ValueError(f"{name} is one string; give a list: [{values!r}].")
  if isinstance(values, (Mapping, set, frozenset, bytes, bytearray)):
    raise ValueError(f"{name} is of the type {kind}; give a list of strings.")
  dimensions = getattr(values, "ndim", 1)  # Of an array, a data frame.
  if dimensions != 1:
    raise ValueError(
      f"{name} is of the type {kind} and has {dimensions} dimensions; give one"
      " row or column of it, or a list of strings."
    )
  if not isinstance(values, Iterable):
    raise ValueError(f"{name} is of the type {kind}; give a list of strings.")
  texts = list(values)
  for place, text in enumerate(texts):
    if not isinstance(text, str):
      raise ValueError(
        f"{name}[{place}] is {reprlib.repr(text)} of the type"
        f" {type(text).__name__}; give a string."
      )
    try:
      text.encode("utf-8")
    except UnicodeEncodeError as error:
      raise ValueError(
        f"{name}[{place}] is not Unicode text: character {error.start + 1} is"
        " half of a surrogate pair; repair or remove it."
      ) from None
  return texts


def load(
  path: str,
  checkpoint: str | int = "last",
  mesh: jax.sharding.Mesh | None = None,
  batch_size: int | None = None,
  revision: str = "",
  prompt: str = "",
  truncate_dim: int = 0,
  *,
  query_prefix: str | None = None,
  passage_prefix: str | None = None,
  sentence_prefix: str | None = None,
) -> Model:
  """Loads a retriever, onto any mesh.

  There is a `PrefixWarning` if a given prefix takes the place of one of the
  model, or if the model's family needs prefixes and nothing names them.

  Args:
    path: A run's folder (the --workdir), an export (of separate towers, the
      folder query/, passage/ or the one that holds both), any
      sentence-transformers folder, or the name of such a model on the
      Hugging Face hub.
    checkpoint: Of a run: "last", "best" on dev, the number of steps, or
      "average:N" for the mean of the parameters of the last N checkpoints.
    mesh: The devices: parameters are replicated, and batches are split over
      "data"; None for all devices.
    batch_size: Texts that are encoded at once; None for the run's
      eval.batch_size, or 256.
    revision: Of a hub name: branch, tag or commit.
    prompt: The name of the prompt that texts have, see `Model.encode`; "" for
      their role's prefix.
    truncate_dim: Vectors are cut to their first so many numbers; 0 for as many
      as the model's contract says.
    query_prefix: What precedes each query, such as "query: "; "" for nothing,
      None for what the model says.
    passage_prefix: The same of passages, before the title.
    sentence_prefix: The same of other texts.

  Raises:
    ValueError: if there is no such model, checkpoint or prompt, a prefix cannot
      be used, the folder does not say how it encodes or that is not supported,
      or a package for object storage is missing.
    ContractMismatchError: if the folder's files do not agree on the encoding
      contract; it names the field.
  """
  given = {
    "query": query_prefix,
    "passage": passage_prefix,
    "sentence": sentence_prefix,
  }
  locations.check_packages(path)
  folder = epath.Path(locations.absolute(path))
  if (folder / workdir.CHECKPOINTS).is_dir():
    if revision:
      raise ValueError(
        f"revision is {revision!r}, but {path} is a run's folder: give"
        " checkpoint."
      )
    return load_run(
      path, checkpoint, mesh, batch_size, prompt, truncate_dim, given
    )
  if (folder / workdir.TOKENIZER).exists():
    raise ValueError(
      f"{path} is a run's folder without checkpoints: train the run."
    )
  if checkpoint != "last":
    raise ValueError(
      f"checkpoint is {checkpoint!r}, but {path} is not a run's folder: leave"
      " checkpoint out."
    )
  name = str(folder) if folder.is_dir() else path
  mesh = sharding.make_mesh() if mesh is None else mesh
  return load_folder(
    name,
    mesh,
    batch_size,
    revision,
    prompt,
    truncate_dim=truncate_dim,
    given=given,
  )


def load_run(
  run_folder: str,
  which: str | int = "last",
  mesh: jax.sharding.Mesh | None = None,
  batch_size: int | None = None,
  prompt: str = "",
  truncate_dim: int = 0,
  given: prefixes.Given = types.MappingProxyType({}),
) -> Model:
  """Loads a checkpoint of a run: see `load`.

  Args:
    run_folder: The run's folder.
    which: The checkpoint.
    mesh: As in `load`, like `batch_size` and `prompt`.
    batch_size: Texts that are encoded at once.
    prompt: The name of a prompt.
    truncate_dim: As in `load`.
    given: The prefixes that are given, by their roles.

  Raises:
    ValueError: if there is no such run, checkpoint or prompt, or a prefix
      cannot be used.
    ContractMismatchError: if the run's files do not agree on the contract.
  """
  mesh = sharding.make_mesh() if mesh is None else mesh
  locations.check_packages(run_folder)
  folder = epath.Path(locations.absolute(run_folder))
  if not (folder / workdir.CHECKPOINTS).is_dir():
    raise ValueError(
      f"{run_folder} is not a run's folder: it has no {workdir.CHECKPOINTS}/."
    )
  with contextlib.closing(
    manager.Checkpoints(
      str(folder / workdir.CHECKPOINTS),
      read_only=True,
      # One of several processes may load it alone, onto its own devices.
      alone=jax.process_count() > 1 and not mesh.is_multi_process,
    )
  ) as checkpoints:
    steps = checkpoints.find_all(which)
    step = steps[-1]
    description = checkpoints.read_description(step)
    local = copies.local_copy(str(folder))
    copies.fetch(str(folder), local, workdir.TOKENIZER)
    tokenizer = tokenizer_lib.load(
      str((epath.Path(local) / workdir.TOKENIZER).parent)
    )
    check_run(folder, description.contract, tokenizer)
    where = f"step {step} in {checkpoints.directory}"
    # Before parameters are read.
    contract = prefixes.put(given, description.contract, tokenizer, prompt)
    encoder_config = architecture.of_checkpoint(description.encoder, where)
    try:
      towers = description.config["model"]["towers"]
      # An export has the head for masked language modelling, too.
      has_head = bool(description.config["batch"].get("masked"))
      size: int = batch_size or description.config["eval"]["batch_size"]
    except (KeyError, TypeError, AttributeError) as error:
      raise ValueError(
        f"The config of {where} is not a run's: {error!r}. {reading.RESTORE}"
      ) from error
    shapes = encoder_lib.abstract_params(encoder_config, towers, has_head)
    params = checkpoints.restore_mean(
      steps,
      sharding.abstract(
        shapes, jax.tree.map(lambda _: sharding.replicated(mesh), shapes)
      ),
    )
    encoding.check_finite_params(params, where)
  contract = _cut(contract, truncate_dim, encoder_config)
  try:
    embed = encoding.make_embed(encoder_config, contract)
  except ValueError as error:
    raise ValueError(f"{where}: {error} {reading.RESTORE}") from error
  _warn(prefixes.describe_replaced(description.contract, contract, run_folder))
  return Model(
    path=str(folder),
    text_encoder=encoding.TextEncoder(
      contract,
      tokenizer,
      embed,
      mesh,
      size,
      prompt,
    ),
    encoder_config=encoder_config,
    params=params,
    similarity_fn_name="cosine",
    step=step,
    description=description,
    averaged=tuple(steps) if len(steps) > 1 else (),
    prefix_notes=tuple(
      filter(None, [prefixes.describe_given(given, contract)])
    ),
  )


def _warn(message: str) -> None:
  """Warns the caller of `load`, in one of several processes."""
  if message and jax.process_index() == 0:
    # Above `load` and a function that it calls.
    warnings.warn(message, prefixes.PrefixWarning, stacklevel=4)


def _cut(
  contract: contract_lib.EncodingContract,
  truncate_dim: int,
  encoder_config: architecture.EncoderConfig,
) -> contract_lib.EncodingContract:
  """Returns a contract with another truncate_dim; 0 changes nothing.

  Raises:
    ValueError: if the vectors have fewer numbers.
  """
  if not truncate_dim:
    return contract
  size = contract.width(encoder_config.output_size)
  if not 1 <= truncate_dim <= size:
    raise ValueError(
      f"truncate_dim is {truncate_dim}, but the model's vectors have {size}"
      " numbers: give a number from 1 to this one."
    )
  return dataclasses.replace(contract, truncate_dim=truncate_dim)


def check_run(
  folder: epath.Path,
  contract: contract_lib.EncodingContract,
  tokenizer: tokenizers.Tokenizer,
) -> None:
  """Compares a checkpoint's contract with the other files of the run's folder.

  Args:
    folder: The run's folder. Its config and its token store may be missing:
      encoding does not need them.
    contract: The checkpoint's contract.
    tokenizer: The tokenizer in the folder.

  Raises:
    ContractMismatchError: naming the field and the file.
  """
  path = folder / workdir.CONFIG_FILE
  if path.exists():
    encoding_of_config = reading.read_json(path).get("encoding")
    try:
      said = contract_lib.PartialContract.from_dict(encoding_of_config)
    except ValueError as error:
      raise ValueError(f"{path}: {error} {reading.RESTORE}") from error
    # The checkpoint decides what the config leaves open.
    made = said.over(contract.partial()).complete(tokenizer)
    contract_lib.check_same(contract, made, f"{path} and {workdir.TOKENIZER}")
  path = folder / workdir.TOKEN_STORE / "meta.json"
  if path.exists():
    contract_lib.check_same(
      contract, token_store.read_contract(path), str(path)
    )


def load_folder(
  path: str,
  mesh: jax.sharding.Mesh,
  batch_size: int | None = None,
  revision: str = "",
  prompt: str = "",
  contract: contract_lib.EncodingContract | None = None,
  truncate_dim: int = 0,
  given: prefixes.Given = types.MappingProxyType({}),
) -> Model:
  """Loads an export or another sentence-transformers folder.

  Args:
    path: The folder, or the name of a model on the hub.
    mesh: As in `load`.
    batch_size: As in `load`.
    revision: As in `load`.
    prompt: As in `load`.
    contract: How texts become vectors, in place of what the folder says.
    truncate_dim: As in `load`.
    given: The prefixes that are given, by their roles.
  """
  root = pretrained.fetch(path, revision)
  folders = [root]
  if not (root / layout_files.MODULES).is_file():
    towers = [root / tower for tower in ("query", "passage")]
    towers = [f for f in towers if (f / layout_files.MODULES).is_file()]
    folders = towers or folders
  params, parts = {}, []
  for folder in folders:
    found = layout.read(folder)
    ours = found.ours or {"encoder": {}, "step": None}
    if folder != root and found.tower != folder.name:
      raise ValueError(
        f"{folder} is not the {folder.name} tower of an export: give the"
        " folder of one model."
      )
    tokenizer = tokenizer_lib.load(str(found.transformer))
    tokenizer_lib.check_as_transformers(str(found.transformer), tokenizer)
    encoder_config = pretrained.load_config(
      folder, ours["encoder"].get("dtype", "float32")
    )
    largest = tokenizer_lib.largest_id(tokenizer)
    if largest >= encoder_config.vocab_size:
      raise ValueError(
        f"{found.transformer / layout_files.TOKENIZER} has ids up to {largest},"
        f" but the model next to it has {encoder_config.vocab_size} tokens: the"
        f" tokenizer is of another model. {reading.RESTORE}"
      )
    if contract:
      encoding.check_tokenizer(contract, tokenizer, str(found.transformer))
    said = contract or _read_contract(found, tokenizer, given)
    name = "" if found.tower == "both" else f"{found.tower}_"
    _, params[f"{name}encoder"] = pretrained.load(
      str(folder),
      dtype=encoder_config.dtype,
      place=lambda _, array: jax.device_put(array, sharding.replicated(mesh)),
    )
    parts.append((said, encoder_config, ours["step"]))
    similarity = found.similarity
    missing, advice = prefixes.missing(found, given, path)
  own, encoder_config, step = parts[0]
  for other, *shape_and_step in parts[1:]:
    contract_lib.check_same(own, other, str(folders[1]))
    if shape_and_step != [encoder_config, step]:
      raise ValueError(
        f"{folders[0]} and {folders[1]} are not of one export: config.json or"
        f" the step in {sealed.FILE} differs."
      )
  used = prefixes.put(given, own, tokenizer, prompt)
  _warn(prefixes.describe_replaced(own, used, path))
  _warn(f"{missing} {advice}".strip())
  used = _cut(used, truncate_dim, encoder_config)
  return Model(
    path=path,
    text_encoder=encoding.TextEncoder(
      used,
      tokenizer,
      encoding.make_embed(encoder_config, used),
      mesh,
      batch_size or 256,
      prompt,
    ),
    encoder_config=encoder_config,
    params=params,
    similarity_fn_name=similarity,
    step=step,
    prefix_notes=tuple(
      filter(None, (prefixes.describe_given(given, used), missing))
    ),
  )


def _read_contract(
  found: layout.Layout, tokenizer: tokenizers.Tokenizer, given: prefixes.Given
) -> contract_lib.EncodingContract:
  """Returns the encoding contract of a folder.

  A given prefix closes what the folder leaves open. It replaces nothing.

  Raises:
    ContractMismatchError: if the tokenizer is not the export's.
    ValueError: if the folder does not say how it encodes.
  """
  if found.ours:
    contract = contract_lib.EncodingContract.from_dict(found.ours["contract"])
    encoding.check_tokenizer(contract, tokenizer, str(found.transformer))
    return contract
  if not found.known:
    raise ValueError(
      f"{found.folder} has no {layout_files.MODULES}, which says how a text"
      " becomes one vector: give a sentence-transformers folder, or train this"
      " model (model.pretrained) and give the run's folder."
    )
  closed = found.encoding.over(prefixes.partial(given))
  undecided = {
    field.partition(".")[0]: reason
    for field, reason in found.undecided.items()
    if closed.role(field.partition(".")[0]).prefix is None
  }
  if undecided:
    flags = ", ".join(f"--{role}_prefix" for role in undecided)
    reasons = "\n  ".join(undecided.values())
    raise ValueError(
      f"{found.folder} does not say how the texts of each role are encoded."
      f" Give {flags} (in Python, arguments of these names), or train it with a"
      f" config that sets these fields:\n  {reasons}"
    )
  default = contract_lib.PartialContract(title_joiner=_TITLE_JOINER)
  return closed.over(default).complete(tokenizer)
