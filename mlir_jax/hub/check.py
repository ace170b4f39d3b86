"""Checks that sentence-transformers gets the run's vectors from an export.

No other module imports torch and sentence-transformers.
"""

import contextlib
import dataclasses
import importlib.util
import pathlib
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tokenizers

from mlir_jax import contract as contract_lib
from mlir_jax import sharding
from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.hub import folder as folder_lib
from mlir_jax.models import (
  architecture,
  hf_config,
  layout,
  layout_files,
  sealed,
)
from mlir_jax.retrieval import encoding

# The largest difference of a number in a vector, relative to the vector's
# length if that is more than 1. Sums of float32 in another order differ by
# about as much.
TOLERANCE = 1e-5

# One sentence in 16 scripts: the river flows through the old town.
SENTENCES = (
  "The river flows through the old town.",
  "Река течёт через старый город.",
  "Το ποτάμι διασχίζει την παλιά πόλη.",
  "يمر النهر عبر المدينة القديمة.",
  "הנהר זורם דרך העיר העתיקה.",
  "नदी पुराने शहर से होकर बहती है।",
  "নদীটি পুরোনো শহরের মধ্য দিয়ে বয়ে যায়।",
  "ஆறு பழைய நகரத்தின் வழியாகப் பாய்கிறது.",
  "నది పాత నగరం గుండా ప్రవహిస్తుంది.",
  "แม่น้ำไหลผ่านเมืองเก่า",
  "강은 구시가지를 가로질러 흐른다.",
  "河流穿过老城。",
  "かわは ふるい まちを ながれる。",
  "მდინარე ძველ ქალაქში მიედინება.",
  "Գետը հոսում է հին քաղաքի միջով։",
  "ወንዙ በአሮጌው ከተማ ውስጥ ያልፋል።",
)
_TITLE = "Große Flüsse"

_BATCH_TOKENS = 4096

_PACKAGES = ("sentence_transformers", "torch")


class CheckError(ValueError):
  """Others do not get the run's vectors from an export."""


@dataclasses.dataclass(frozen=True)
class Checked:
  """The result of a check.

  Attributes:
    difference: The largest difference, measured like `TOLERANCE`.
    texts: Number of texts that were encoded, over all roles.
    version: Of sentence-transformers.
  """

  difference: float
  texts: int
  version: str


def require() -> None:
  """Raises ImportError if a package that the check needs is missing."""
  absent = [name for name in _PACKAGES if not importlib.util.find_spec(name)]
  if absent:
    raise ImportError(
      f"The check of an export needs {' and '.join(absent)}: pip install"
      ' "mlir_jax[export]".'
    )


def check(
  folder: pathlib.Path,
  params: Mapping,
  config: architecture.EncoderConfig,
  contract: contract_lib.EncodingContract,
  tokenizer: tokenizers.Tokenizer,
  tower: str,
) -> Checked:
  """Compares an export with the run's parameters, contract and tokenizer.

  Args:
    folder: The export.
    params: The run's.
    config: The encoder's.
    contract: The export's.
    tokenizer: The run's.
    tower: "both", or the tower in the folder.

  Raises:
    CheckError: if they are not the same; it names what differs.
    LayoutError, SealError: if the folder cannot be read.
    ContractMismatchError: if the folder has another contract.
  """
  found = layout.read(folder).ours
  assert found is not None  # `folder.write` has written it.
  contract_lib.check_same(
    contract,
    contract_lib.EncodingContract.from_dict(found["contract"]),
    str(folder / sealed.FILE),
  )
  with _quiet():
    _check_tokenizer(folder, contract)
    _check_weights(folder, config)
    return _check_vectors(folder, params, config, contract, tokenizer, tower)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silences transformers, whose warnings are errors of the check."""
  from transformers.utils import logging

  verbosity = logging.get_verbosity()
  had_bars = logging.is_progress_bar_enabled()
  logging.set_verbosity_error()
  logging.disable_progress_bar()
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)
    if had_bars:
      logging.enable_progress_bar()


def _check_tokenizer(
  folder: pathlib.Path, contract: contract_lib.EncodingContract
) -> None:
  import transformers

  encoding.check_tokenizer(
    contract,
    tokenizer_lib.load(str(folder)),
    str(folder / layout_files.TOKENIZER),
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(
    folder, local_files_only=True, trust_remote_code=False
  )
  ids = contract_lib.golden_ids(tokenizer.backend_tokenizer)
  if ids != contract.golden_ids:
    raise CheckError(
      "transformers' AutoTokenizer does not cut texts like the run's tokenizer."
    )


def _check_weights(
  folder: pathlib.Path, config: architecture.EncoderConfig
) -> None:
  """Checks that transformers finds every weight, and draws none at random."""
  import transformers

  loaders: list[Any] = [transformers.AutoModel]
  written = transformers.AutoConfig.from_pretrained(
    folder, local_files_only=True, trust_remote_code=False
  ).architectures
  assert written is not None  # `folder.write` has written it.
  if written == [hf_config.WORDS[config.family].masked_lm]:
    loaders.append(transformers.AutoModelForMaskedLM)
  for loader in loaders:
    _, info = loader.from_pretrained(
      folder,
      output_loading_info=True,
      local_files_only=True,
      trust_remote_code=False,
    )
    if info["missing_keys"] or info["mismatched_keys"]:
      raise CheckError(
        f"transformers' {loader.__name__} finds no"
        f" {sorted(info['missing_keys'])} in {layout_files.WEIGHTS}, and"
        f" another shape of {sorted(info['mismatched_keys'])}."
      )


def _check_vectors(
  folder, params, config, contract, tokenizer, tower
) -> Checked:
  import sentence_transformers

  # Fewer texts at a time if they may be very long: batches are padded.
  batch_size = max(1, _BATCH_TOKENS // contract.sentence.max_length)
  ours = encoding.TextEncoder(
    contract,
    tokenizer,
    encoding.make_embed(config, contract),
    sharding.make_mesh(),
    batch_size,
  )
  theirs = sentence_transformers.SentenceTransformer(
    str(folder),
    device="cpu",
    local_files_only=True,
    trust_remote_code=False,
  )
  encoders = {
    "query": theirs.encode_query,
    "passage": theirs.encode_document,
    "sentence": theirs.encode,
  }
  difference, count = 0.0, 0
  for role in folder_lib.roles(contract, tower):
    texts, titles = _texts(contract.role(role).max_length)
    bodies = [
      contract.body(text, title)
      for text, title in zip(texts, titles, strict=True)
    ]
    # By default, a GPU or TPU multiplies with fewer digits.
    with jax.default_matmul_precision("highest"):
      expected = ours.encode(params, role, texts, titles)
    found = encoders[role](
      bodies,
      batch_size=batch_size,
      show_progress_bar=False,
      # It cuts vectors of unit length, and does not scale them again.
      normalize_embeddings=bool(contract.truncate_dim) and contract.normalize,
    )
    if found.shape != expected.shape:
      raise CheckError(
        f"In the role {role}, sentence-transformers gives vectors of"
        f" {found.shape[1]} numbers instead of {expected.shape[1]}."
      )
    lengths = np.linalg.norm(expected, axis=1)
    differences = np.abs(found - expected).max(axis=1) / np.maximum(1, lengths)
    # The largest difference; NaN counts as the largest.
    worst = int(np.argmax(np.nan_to_num(differences, nan=np.inf)))
    if not differences[worst] <= TOLERANCE:
      raise CheckError(
        f"In the role {role}, sentence-transformers does not encode"
        f" {textwrap.shorten(bodies[worst], 60)!r} like the run: a number"
        f" differs by {differences[worst]:.2g}, and {TOLERANCE:.0e} is allowed."
      )
    difference = max(difference, float(differences[worst]))
    count += len(texts)
  return Checked(difference, count, sentence_transformers.__version__)


def _texts(max_length: int) -> tuple[list[str], list[str]]:
  """Returns texts and titles.

  There is a text of each script, an empty one, one that is too long, and one
  with a title.
  """
  every = " ".join(SENTENCES)
  too_long = every * (1 + max_length // len(every.split()))
  texts = [*SENTENCES, "", too_long, SENTENCES[0]]
  titles = [""] * (len(texts) - 1) + [_TITLE]
  return texts, titles
