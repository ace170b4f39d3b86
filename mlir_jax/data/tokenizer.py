"""Loads a pretrained model's tokenizer, or trains one on the spot."""

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import tokenizers
from absl import logging
from tokenizers import (
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

from mlir_jax import contract as contract_lib
from mlir_jax.data.sources import record_fields
from mlir_jax.storage import copies, locations, reading

# Their ids are their places: XLM-R's, with the mask drawn to the front.
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

# Padding and mask tokens of the XLM-R and of the BERT family.
PAD_TOKENS = ("<pad>", "[PAD]")
MASK_TOKENS = ("<mask>", "[MASK]")

# What a tokenizer may be made of, where there is no tokenizer.json.
_VOCABULARIES = (
  *("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model"),
  *("tokenizer.model", "spm.model"),
)

# Beside the contract's golden texts: what settings beside a tokenizer.json
# treat otherwise.
_TELLING_TEXTS = (
  "Mixed CASE, naïve Café 北京大学",
  "a <mask> b [MASK] c <s> d [SEP] e",
  " a  b\tc ",
)

# Of a trained tokenizer's scores (natural logarithms of probabilities). The
# trainer adds in the order of a hash map, which moves them by some 1e-11
# from run to run.
_SCORE_DECIMALS = 3

# The trainer ranks characters that it would rather have dropped by adding
# this much each to the lowest score, again in the order of a hash map.
_FLOOR_STEP = 1e-4


def load(path: str, revision: str = "") -> tokenizers.Tokenizer:
  """Loads a tokenizer, without padding and truncation.

  Where there is a tokenizer.json it is read as it stands; otherwise
  transformers converts what there is (vocab.txt, sentencepiece.bpe.model). No
  code of the folder runs in either case.

  Args:
    path: A folder, one on object storage (gs://), or a model's name on the
      Hugging Face hub.
    revision: Of a hub name; "" for its main branch.

  Raises:
    FileNotFoundError: if there is neither such a folder nor such a model, or
      no tokenizer in it.
    ValueError: if its file is damaged, or it asks for code of its own.
  """
  if locations.is_url(path):
    path = copies.copy_folder(path, ("*.json", *_VOCABULARIES))
  file = _definition_file(path, revision)
  if file is not None:
    tokenizer = _read(file)
  else:
    if not os.path.isdir(path):
      path = _fetch_vocabulary(path, revision)
    if not any(
      os.path.isfile(os.path.join(path, name)) for name in _VOCABULARIES
    ):
      # transformers would make up one of special tokens alone.
      raise FileNotFoundError(
        f"There is no tokenizer in {path!r}: give a folder with a"
        f" tokenizer.json (or one of {', '.join(_VOCABULARIES)})."
      )
    tokenizer = _with_transformers(path).backend_tokenizer
  tokenizer.no_padding()
  tokenizer.no_truncation()
  return tokenizer


def largest_id(tokenizer: tokenizers.Tokenizer) -> int:
  """The largest id of a text's tokens: what a token table must hold.

  It may lie beyond the number of pieces, and the tokens around a text have
  ids of their own.
  """
  return max(*tokenizer.get_vocab().values(), *tokenizer.encode("").ids, 0)


def check_as_transformers(path: str, tokenizer: tokenizers.Tokenizer) -> None:
  """Refuses a folder whose tokenizer_config.json changes its tokenizer.

  transformers, and whoever encoded with it, may lowercase, add prefix spaces
  or cut texts from the left where tokenizer.json says nothing of it.

  Args:
    path: A folder.
    tokenizer: What `load` read from it.

  Raises:
    ValueError: naming the file, and what differs.
  """
  file = os.path.join(path, "tokenizer_config.json")
  if not os.path.isfile(file):
    return
  theirs = _with_transformers(path)
  for side in ("truncation_side", "padding_side"):
    if getattr(theirs, side) != "right":
      raise ValueError(
        f"{file}: {side} is {getattr(theirs, side)!r} (here, or in"
        " tokenizer.json); only 'right' is supported."
      )
  texts = [*contract_lib.GOLDEN_TEXTS, *_TELLING_TEXTS]
  for text in texts:
    ids = theirs(text, truncation=False, verbose=False)["input_ids"]
    if ids != tokenizer.encode(text).ids:
      raise ValueError(
        f"{file}: transformers cuts {text!r} otherwise than tokenizer.json"
        " says. What it sets beside that (do_lower_case, add_prefix_space,"
        " split_special_tokens, tokenizer_class, ...) is not supported: save"
        " the tokenizer anew with transformers, or remove the setting."
      )


def _read(file: str) -> tokenizers.Tokenizer:
  """Reads a tokenizer.json; ValueError if it is not one."""
  reading.check_file(file)
  try:
    with _without_panics():
      tokenizer = tokenizers.Tokenizer.from_file(file)
      tokenizer.no_padding()
      tokenizer.no_truncation()
      # Some damage shows with the first text alone.
      tokenizer.encode_batch(list(contract_lib.GOLDEN_TEXTS))
    return tokenizer
  except Exception as error:  # The library raises nothing more special.
    raise ValueError(
      f"{file} is not a tokenizer that tokenizers {tokenizers.__version__}"
      f" reads: {error}. {reading.RESTORE}"
    ) from error


@contextlib.contextmanager
def _without_panics() -> Iterator[None]:
  """Makes a panic in the library's Rust code a RuntimeError, of one line.

  Rust writes a panic, with its stack, to the standard error by itself.
  """
  error_stream = os.dup(2)
  with open(os.devnull, "wb") as nowhere:
    os.dup2(nowhere.fileno(), 2)
  try:
    yield
  except BaseException as error:
    if type(error).__name__ != "PanicException":  # It is no Exception.
      raise
    raise RuntimeError(str(error)) from error
  finally:
    os.dup2(error_stream, 2)
    os.close(error_stream)


def _with_transformers(path: str) -> Any:
  """A folder's tokenizer as transformers makes it.

  It never runs code of the folder: a folder that asks for it is refused
  before transformers sees it, and transformers is told not to.

  Raises:
    ValueError: naming the file.
  """
  for name in (
    *("tokenizer_config.json", "config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
  ):
    file = pathlib.Path(path) / name
    if file.exists() and (code := reading.read_json(file).get("auto_map")):
      raise ValueError(
        f"{file}: auto_map is {code!r}: this tokenizer wants to run code of its"
        " own, which is never run. Use a model without such code."
      )
  for name in _VOCABULARIES:
    if (file := pathlib.Path(path) / name).exists():
      reading.check_file(file)
  import transformers

  try:
    return transformers.AutoTokenizer.from_pretrained(
      path, local_files_only=True, trust_remote_code=False
    )
  except Exception as error:  # Of a damaged file it raises anything.
    raise ValueError(
      f"transformers cannot read the tokenizer in {path} (tokenizer.json,"
      " tokenizer_config.json and config.json):"
      f" {type(error).__name__}: {error}. {reading.RESTORE}"
    ) from error


def _fetch_vocabulary(name: str, revision: str) -> str:
  """The folder of what a model on the hub has of a tokenizer."""
  import huggingface_hub

  try:
    return huggingface_hub.snapshot_download(
      name,
      revision=revision or None,
      allow_patterns=[*_VOCABULARIES, "merges.txt", "*.json"],
    )
  except (OSError, ValueError) as error:
    raise FileNotFoundError(
      f"There is no tokenizer in {name!r}: give a folder with a"
      f" tokenizer.json. ({error})"
    ) from error


def _definition_file(path: str, revision: str) -> str | None:
  """The path of tokenizer.json, fetched if need be; None if there is none."""
  if os.path.isdir(path):
    file = os.path.join(path, "tokenizer.json")
    return file if os.path.lexists(file) else None
  import huggingface_hub
  from huggingface_hub import errors

  try:
    return huggingface_hub.hf_hub_download(
      path, "tokenizer.json", revision=revision or None
    )
  except errors.LocalEntryNotFoundError as e:
    # Off line; whether the model has the file is not known.
    raise FileNotFoundError(
      f"{path!r} is not a folder here, and the model of that name could not be"
      f" fetched from the hub. ({e})"
    ) from e
  except errors.EntryNotFoundError:
    return None
  except (errors.HfHubHTTPError, errors.HFValidationError) as e:
    raise FileNotFoundError(
      f"{path!r} is neither a folder here nor a model on the hub. ({e})"
    ) from e


def pad_id(tokenizer: tokenizers.Tokenizer) -> int:
  """The id of the padding token; ValueError if there is none."""
  for token in PAD_TOKENS:
    if (token_id := tokenizer.token_to_id(token)) is not None:
      return token_id
  raise ValueError(
    f"The tokenizer has no padding token: none of {PAD_TOKENS} is in its"
    " vocabulary. Add one to tokenizer.json."
  )


def mask_id(tokenizer: tokenizers.Tokenizer) -> int:
  """The id of the mask token; ValueError if there is none.

  It must be a special token: of another one, the ids may occur in texts.
  """
  special = {
    token.content: token_id
    for token_id, token in tokenizer.get_added_tokens_decoder().items()
    if token.special
  }
  for token in MASK_TOKENS:
    if token in special:
      return special[token]
  raise ValueError(
    f"The tokenizer has no mask token: none of {MASK_TOKENS} is a special"
    " token of it. Set batch.masked=0 and loss.masked_lm.weight=0, or use the"
    " tokenizer.json of a model that was trained with one."
  )


def train(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
  """Trains a Unigram tokenizer (Kudo 2018) with XLM-R's special tokens.

  The same texts give the same tokenizer: the trainer's scores, which differ
  from run to run in their last digits, are rounded and its pieces sorted.

  Texts with a literal special token are left out, and counted in the log:
  learning one as an ordinary piece moves the special ids.

  Args:
    texts: The texts, e.g. every text of the three streams.
    vocab_size: Pieces at most, special tokens included. Few texts may not
      hold that many.

  Returns:
    The tokenizer; it puts a text between <s> and </s>.

  Raises:
    ValueError: if there is no text, or vocab_size is too small to hold the
      texts' characters.
  """
  special = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
  usable, left_out = [], 0
  for text in texts:
    if special.search(text):
      left_out += 1
    elif record_fields.strip(text):
      usable.append(text)
  if not usable:
    raise ValueError("There is no text to train a tokenizer on.")
  if left_out:
    logging.warning(
      "Tokenizer training left out %d texts that contain one of %s.",
      left_out,
      ", ".join(SPECIAL_TOKENS),
    )

  trained = _untrained(models.Unigram())
  trainer = trainers.UnigramTrainer(
    vocab_size=vocab_size,
    special_tokens=list(SPECIAL_TOKENS),
    unk_token="<unk>",
    show_progress=False,
  )
  try:
    trained.train_from_iterator(usable, trainer)
  except Exception as e:  # The library raises nothing more special.
    raise ValueError(
      f"tokenizer.vocab_size={vocab_size}: training failed ({e}); a larger one"
      " may hold every character of the texts."
    ) from e
  pieces = json.loads(trained.to_str())["model"]["vocab"]

  tokenizer = _untrained(
    models.Unigram(_settled(pieces), unk_id=SPECIAL_TOKENS.index("<unk>"))
  )
  tokenizer.add_special_tokens(
    [tokenizers.AddedToken(t, special=True) for t in SPECIAL_TOKENS]
  )
  ids = tuple(tokenizer.token_to_id(token) for token in SPECIAL_TOKENS)
  if ids != tuple(range(len(SPECIAL_TOKENS))):
    raise AssertionError(f"{SPECIAL_TOKENS} have the ids {ids}.")
  tokenizer.post_processor = processors.TemplateProcessing(
    single="<s> $A </s>",
    pair="<s> $A </s> </s> $B </s>",
    special_tokens=[("<s>", 0), ("</s>", 2)],
  )
  return tokenizer


def _untrained(model: models.Model) -> tokenizers.Tokenizer:
  """A tokenizer with sentencepiece's nmt_nfkc-like cutting into words."""
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.normalizer = normalizers.Sequence(
    [
      normalizers.Nmt(),
      normalizers.NFKC(),
      normalizers.Replace(tokenizers.Regex(" {2,}"), " "),
      normalizers.Strip(),
    ]
  )
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
  tokenizer.decoder = decoders.Metaspace()
  return tokenizer


def _settled(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
  """Takes out of the pieces what differs between two trainings.

  Args:
    pieces: (piece, score), the special tokens first.

  Returns:
    The same pieces; the special tokens first, then by score and text.
  """
  count = len(SPECIAL_TOKENS)
  characters = sum(len(piece) == 1 for piece, _ in pieces[count:])
  floor = min(score for _, score in pieces[count:])
  near = floor + characters * _FLOOR_STEP
  scores = {
    piece: round(
      floor if len(piece) == 1 and score < near else score, _SCORE_DECIMALS
    )
    for piece, score in pieces[count:]
  }
  ordinary = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
  return [(token, 0.0) for token in SPECIAL_TOKENS] + ordinary
