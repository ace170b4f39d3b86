"""Loads the tokenizer of a pretrained model, or trains a new one."""

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

from mlir_jax import contract
from mlir_jax.data.sources import record_fields
from mlir_jax.storage import copies, locations, reading

# The id of a token is its place here. The ids are XLM-R's, except that the mask
# follows the others.
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

# Padding and mask tokens of the XLM-R and of the BERT family.
PAD_TOKENS = ("<pad>", "[PAD]")
MASK_TOKENS = ("<mask>", "[MASK]")

# Files from which a tokenizer is made if there is no tokenizer.json.
_VOCABULARIES = (
  *("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model"),
  *("tokenizer.model", "spm.model"),
)

# Texts that get other tokens if settings outside tokenizer.json change the
# tokenizer. They are checked in addition to the contract's golden texts.
_TEXTS_OF_SETTINGS = (
  "Mixed CASE, naïve Café 北京大学",
  "a <mask> b [MASK] c <s> d [SEP] e",
  " a  b\tc ",
)

# A trained tokenizer's scores (natural logarithms of probabilities) are rounded
# to so many decimals. The trainer adds in the order of a hash map, so scores
# differ by some 1e-11 between runs.
_SCORE_DECIMALS = 3

# The trainer keeps characters that it would otherwise drop. The score of each
# is the lowest score plus a multiple of this step, again in the order of a hash
# map.
_FLOOR_STEP = 1e-4


def load(path: str, revision: str = "") -> tokenizers.Tokenizer:
  """Loads a tokenizer, without padding and truncation.

  If there is a tokenizer.json, it is read unchanged. If not, transformers
  converts the files that are there (vocab.txt, sentencepiece.bpe.model). In
  both cases no code of the folder runs.

  Args:
    path: A folder here or on object storage (gs://), or a model's name on the
      Hugging Face hub.
    revision: The revision of a hub name; "" for its main branch.

  Raises:
    FileNotFoundError: if there is neither such a folder nor such a model, or
      it has no tokenizer.
    ValueError: if a file is damaged, or the tokenizer needs code of its own.
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
      # transformers would make a tokenizer of special tokens only.
      raise FileNotFoundError(
        f"There is no tokenizer in {path!r}: give a folder with a"
        f" tokenizer.json (or one of {', '.join(_VOCABULARIES)})."
      )
    tokenizer = _with_transformers(path).backend_tokenizer
  tokenizer.no_padding()
  tokenizer.no_truncation()
  return tokenizer


def largest_id(tokenizer: tokenizers.Tokenizer) -> int:
  """Returns the largest id that a text can have; a token table must hold it.

  It may be larger than the number of pieces. The special tokens around a text
  may have ids outside the vocabulary.
  """
  return max(*tokenizer.get_vocab().values(), *tokenizer.encode("").ids, 0)


def check_as_transformers(path: str, tokenizer: tokenizers.Tokenizer) -> None:
  """Refuses a folder whose tokenizer_config.json changes its tokenizer.

  By that file, transformers may lowercase, add prefix spaces or cut texts from
  the left, although tokenizer.json does not say so.

  Args:
    path: A folder.
    tokenizer: The tokenizer that `load` read from it.

  Raises:
    ValueError: if transformers makes other tokens; it names the file and the
      difference.
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
  texts = [*contract.GOLDEN_TEXTS, *_TEXTS_OF_SETTINGS]
  for text in texts:
    ids = theirs(text, truncation=False, verbose=False)["input_ids"]
    if ids != tokenizer.encode(text).ids:
      raise ValueError(
        f"{file}: transformers gives {text!r} other tokens than tokenizer.json"
        " does. Settings outside tokenizer.json (do_lower_case,"
        " add_prefix_space, split_special_tokens, tokenizer_class, ...) are not"
        " supported: save the tokenizer again with transformers, or remove the"
        " setting."
      )


def _read(file: str) -> tokenizers.Tokenizer:
  """Reads a tokenizer.json; raises ValueError if it is damaged."""
  reading.check_file(file)
  try:
    with _without_panics():
      tokenizer = tokenizers.Tokenizer.from_file(file)
      settings = tokenizer.truncation, tokenizer.padding
      tokenizer.no_padding()
      tokenizer.no_truncation()
      # Some damage shows only when a text is encoded.
      tokenizer.encode_batch(list(contract.GOLDEN_TEXTS))
  except Exception as error:  # The library raises no narrower type.
    raise ValueError(
      f"{file} is not a tokenizer that the library tokenizers"
      f" {tokenizers.__version__} reads: {error}. {reading.RESTORE}"
    ) from error
  for name, setting in zip(("truncation", "padding"), settings, strict=True):
    if setting and setting["direction"] != "right":
      raise ValueError(
        f"{file}: {name}.direction is {setting['direction']!r}; only 'right' is"
        " supported."
      )
  return tokenizer


@contextlib.contextmanager
def _without_panics() -> Iterator[None]:
  """Turns a panic in the library's Rust code into a RuntimeError of one line.

  Rust itself writes a panic and its stack to the standard error, so that is
  closed meanwhile.
  """
  error_stream = os.dup(2)
  with open(os.devnull, "wb") as nowhere:
    os.dup2(nowhere.fileno(), 2)
  try:
    yield
  except BaseException as error:
    # PanicException is a subclass of BaseException only.
    if type(error).__name__ != "PanicException":
      raise
    raise RuntimeError(str(error)) from error
  finally:
    os.dup2(error_stream, 2)
    os.close(error_stream)


def _with_transformers(path: str) -> Any:
  """Loads a folder's tokenizer with transformers.

  Code of the folder never runs: a folder that asks for it is refused here, and
  `trust_remote_code` is False.

  Raises:
    ValueError: if a file is damaged or names code; it names the file.
  """
  for name in (
    *("tokenizer_config.json", "config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
  ):
    file = pathlib.Path(path) / name
    if file.exists() and (code := reading.read_json(file).get("auto_map")):
      raise ValueError(
        f"{file}: auto_map is {code!r}: this tokenizer needs code of its own,"
        " which is never run. Use a model without such code."
      )
  for name in _VOCABULARIES:
    if (file := pathlib.Path(path) / name).exists():
      reading.check_file(file)
  import transformers

  try:
    return transformers.AutoTokenizer.from_pretrained(
      path, local_files_only=True, trust_remote_code=False
    )
  except Exception as error:  # A damaged file raises any type.
    raise ValueError(
      f"transformers cannot read the tokenizer in {path} (tokenizer.json,"
      " tokenizer_config.json and config.json):"
      f" {type(error).__name__}: {error}. {reading.RESTORE}"
    ) from error


def _fetch_vocabulary(name: str, revision: str) -> str:
  """Fetches the tokenizer's files of a model on the hub; returns the folder."""
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
  """Returns the path of tokenizer.json, or None; fetches it from the hub."""
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
    # Off line, it is not known whether the model has the file.
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
  """Returns the id of the padding token; raises ValueError if there is none."""
  for token in PAD_TOKENS:
    if (token_id := tokenizer.token_to_id(token)) is not None:
      return token_id
  raise ValueError(
    f"The tokenizer has no padding token: none of {PAD_TOKENS} is in its"
    " vocabulary. Add one to tokenizer.json."
  )


def mask_id(tokenizer: tokenizers.Tokenizer) -> int:
  """Returns the id of the mask token; raises ValueError if there is none.

  It must be a special token: texts may contain the id of any other token.
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
    f"The tokenizer has no mask token: none of {MASK_TOKENS} is one of its"
    " special tokens. Set batch.masked=0 and loss.masked_lm.weight=0, or use"
    " the tokenizer.json of a model that was trained with one."
  )


def train(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
  """Trains a Unigram tokenizer (Kudo 2018) with XLM-R's special tokens.

  The same texts give the same tokenizer: the trainer's scores, whose last
  digits differ between runs, are rounded, and its pieces are sorted.

  Texts with a literal special token are left out, and counted in the log. The
  trainer would learn the token as an ordinary piece and move the special ids.

  Args:
    texts: The texts, e.g. every text of the three streams.
    vocab_size: The largest number of pieces, with special tokens. There may be
      fewer if there is little text.

  Returns:
    The tokenizer; it puts a text between <s> and </s>.

  Raises:
    ValueError: if there is no text, or vocab_size is too small to hold the
      texts' characters.
  """
  usable = _usable_texts(texts)
  trained = _untrained(models.Unigram())
  trainer = trainers.UnigramTrainer(
    vocab_size=vocab_size,
    special_tokens=list(SPECIAL_TOKENS),
    unk_token="<unk>",
    show_progress=False,
  )
  try:
    trained.train_from_iterator(usable, trainer)
  except Exception as e:  # The library raises no narrower type.
    raise ValueError(
      f"tokenizer.vocab_size={vocab_size}: training failed ({e}); a larger"
      " vocabulary may hold every character of the texts."
    ) from e
  pieces = json.loads(trained.to_str())["model"]["vocab"]

  tokenizer = _untrained(
    models.Unigram(_reproducible(pieces), unk_id=SPECIAL_TOKENS.index("<unk>"))
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


def _usable_texts(texts: Iterable[str]) -> list[str]:
  """Returns the texts that a tokenizer can be trained on; logs the others."""
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
  return usable


def _untrained(model: models.Model) -> tokenizers.Tokenizer:
  """Returns a tokenizer that splits words like sentencepiece's nmt_nfkc."""
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


def _reproducible(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
  """Removes the differences between two trainings from the pieces.

  Args:
    pieces: (piece, score), the special tokens first.

  Returns:
    The same pieces with rounded scores: the special tokens first, then sorted
    by score and text.
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
