"""Encodes with an export as others will, and compares with the run.

The only importer of torch and sentence-transformers: what was written is
loaded by them, and must give the run's vectors.
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
from mlir_jax.models import architecture as architecture_lib
from mlir_jax.models import layout
from mlir_jax.retrieval import encoding

# Of each number of a vector, relative to the vector's length if that is more
# than 1: what float32 sums in another order may differ by.
TOLERANCE = 1e-5

# One sentence, that the river flows through the old town, in 16 scripts.
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
  """An export that does not give the run's vectors."""


@dataclasses.dataclass(frozen=True)
class Checked:
  """What the check found.

  Attributes:
    difference: The largest, as `TOLERANCE` is measured.
    texts: How many were encoded, over all roles.
    version: Of sentence-transformers.
  """

  difference: float
  texts: int
  version: str


def require() -> None:
  """Raises ImportError unless all that the check needs is installed."""
  absent = [name for name in _PACKAGES if not importlib.util.find_spec(name)]
  if absent:
    raise ImportError(
      f"An export is checked with {' and '.join(absent)}, which is not"
      ' installed: pip install "mlir_jax[export]".'
    )


def check(
  folder: pathlib.Path,
  params: Mapping,
  config: architecture_lib.EncoderConfig,
  contract: contract_lib.EncodingContract,
  tokenizer: tokenizers.Tokenizer,
  tower: str,
) -> Checked:
  """Compares an export with what it was made of.

  Args:
    folder: The export.
    params: The run's.
    config: The encoder's.
    contract: The export's.
    tokenizer: The run's.
    tower: "both", or the one that the folder holds.

  Raises:
    CheckError: if it is not the same; it names what differs.
    LayoutError: if the folder cannot be read back; and
    ContractMismatchError: if it says something else.
  """
  found = layout.read(folder).ours
  assert found is not None  # `folder.write` has written it.
  contract_lib.check_same(
    contract,
    contract_lib.EncodingContract.from_values(found["contract"]),
    str(folder / layout.OURS),
  )
  with _quiet():
    _check_tokenizer(folder, contract)
    _check_weights(folder, config)
    return _check_vectors(folder, params, config, contract, tokenizer, tower)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silences transformers' reports: what they warn of is checked here."""
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
    contract, tokenizer_lib.load(str(folder)), str(folder / "tokenizer.json")
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(
    folder, local_files_only=True, trust_remote_code=False
  )
  ids = contract_lib.golden_ids(tokenizer.backend_tokenizer)
  if ids != contract.golden_ids:
    raise CheckError(
      "transformers' AutoTokenizer cuts texts otherwise than the run's"
      " tokenizer does."
    )


def _check_weights(
  folder: pathlib.Path, config: architecture_lib.EncoderConfig
) -> None:
  """Loads the weights with transformers: none may be drawn anew."""
  import transformers

  loaders: list[Any] = [transformers.AutoModel]
  written = transformers.AutoConfig.from_pretrained(
    folder, local_files_only=True, trust_remote_code=False
  ).architectures
  assert written is not None  # By `folder.write`.
  (architecture,) = written
  if architecture == architecture_lib.FAMILIES[config.family].masked_lm:
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
        f" {sorted(info['missing_keys'])} in {layout.WEIGHTS}, and another"
        f" shape of {sorted(info['mismatched_keys'])}."
      )


def _check_vectors(
  folder, params, config, contract, tokenizer, tower
) -> Checked:
  import sentence_transformers

  # Padded batches, but no more than fits where texts may be very long.
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
    # Else a GPU or TPU multiplies with fewer digits.
    with jax.default_matmul_precision("highest"):
      expected = ours.encode(params, role, texts, titles)
    found = encoders[role](
      bodies, batch_size=batch_size, show_progress_bar=False
    )
    if found.shape != expected.shape:
      raise CheckError(
        f"In the role {role}, sentence-transformers gives vectors of"
        f" {found.shape[1]} numbers instead of {expected.shape[1]}."
      )
    lengths = np.linalg.norm(expected, axis=1)
    differences = np.abs(found - expected).max(axis=1) / np.maximum(1, lengths)
    # The largest, or one that is no number.
    worst = int(np.argmax(np.nan_to_num(differences, nan=np.inf)))
    if not differences[worst] <= TOLERANCE:
      raise CheckError(
        f"In the role {role}, sentence-transformers encodes"
        f" {textwrap.shorten(bodies[worst], 60)!r} otherwise than the run: a"
        f" number differs by {differences[worst]:.2g}, and {TOLERANCE:.0e} is"
        " allowed."
      )
    difference = max(difference, float(differences[worst]))
    count += len(texts)
  return Checked(difference, count, sentence_transformers.__version__)


def _texts(max_length: int) -> tuple[list[str], list[str]]:
  """Texts and titles: all scripts, an empty one, one too long, one titled."""
  every = " ".join(SENTENCES)
  too_long = every * (1 + max_length // len(every.split()))
  texts = [*SENTENCES, "", too_long, SENTENCES[0]]
  titles = [""] * (len(texts) - 1) + [_TITLE]
  return texts, titles
