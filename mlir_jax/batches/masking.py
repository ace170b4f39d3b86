"""Hides words of a text for masked language modelling, by (seed, position)."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tokenizers

from mlir_jax.batches import sampling
from mlir_jax.data import tokenizer as tokenizer_lib

KINDS = ("word", "span")

# In tokens. Under XLM-R's tokenizer, 93 % (Telugu, Finnish, Bengali) to over
# 99 % of the words between spaces in NTREX-128 are no longer. What is longer
# is mostly a clause of a script without spaces, of which a whole one would be
# hidden at once: such words are cut into pieces as long as a word is on
# average (1.4 to 2.3 tokens there).
LONGEST_WORD = 4
PIECE = 2

# Of the words (or spans) that are chosen, the shares that become masks and
# random tokens; the rest stays as it is (Devlin et al. 2019, section 3.1).
MASKED_SHARE = 0.8
RANDOM_SHARE = 0.1

# In words: a geometric distribution, cut off and scaled to 1 (Joshi et al.
# 2020, section 3.1). Its mean is 3.8.
SPAN_P = 0.2
LONGEST_SPAN = 10

# Sorts behind every other key.
_LAST = np.uint64(2**64 - 1)


def max_targets(rate: float, length: np.ndarray | int) -> np.ndarray:
  """K: the most targets that a text of so many tokens gets; int64.

  There is room for its share of them and a piece of a word more, and for any
  word. It rises with the length, so a row has room whatever its text is padded
  to.

  Args:
    rate: The share of tokens that become targets.
    length: In tokens.
  """
  share = np.ceil(rate * np.asarray(length)).astype(np.int64)
  return np.maximum(LONGEST_WORD, share + PIECE)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Masker:
  """Chooses a text's targets and hides them; made by `make_masker`.

  Targets are whole words: a word of which a part is left gives the rest away.
  For the same reason a word becomes masks, random tokens or itself as a whole
  (BERT's code decides that for each token, SpanBERT's for each span).

  kind "word" chooses words at random. kind "span" cuts the text into spans of
  random lengths and chooses among these; the last one is cut where the share
  is reached. SpanBERT draws spans until there are enough, which may overlap,
  and hides the first words of a text less often.

  Attributes:
    kind: "word" or "span".
    rate: The share of a text's maskable tokens that become targets.
    mask_id: The mask token's id.
    maskable: bool [V], which tokens may be hidden, or be put where another
      was: no special tokens, and not the unknown one, as what it stands for
      cannot be told.
    begins_word: bool [V], which tokens begin a word.
    prefix_length: Tokens in front of every text, which are no part of it.
  """

  kind: str
  rate: float
  mask_id: int
  maskable: np.ndarray
  begins_word: np.ndarray
  prefix_length: int = 0

  @functools.cached_property
  def _replacements(self) -> np.ndarray:
    """The tokens that random ones are drawn from; int32."""
    return np.flatnonzero(self.maskable).astype(np.int32)

  def max_targets(self, length: np.ndarray | int) -> np.ndarray:
    """K: the most targets that a text of so many tokens gets; int64."""
    return max_targets(self.rate, length)

  def __call__(
    self, ids: np.ndarray, mask: np.ndarray, keys: np.ndarray
  ) -> dict:
    """Hides some words of each row.

    The expected number of a text's targets is its maskable tokens times the
    rate, with two exceptions: a text has at least the first word that is
    chosen (if it has any), which is more in texts of a few words; and a word
    that would end beyond the most targets of a text of that length (rounded up
    to a multiple of 8) is left out, which is less, by some 1 %.

    Args:
      ids: int32 [M, L].
      mask: bool [M, L]; False is padding.
      keys: uint64 [M], from `sampling.make_key`; a row's targets depend on
        its own key and tokens alone.

    Returns:
      ids: int32 [M, L], with words hidden
      mask: bool [M, L], as given
      positions: int32 [M, K], where the targets are, rising; 0 if not valid
      targets: int32 [M, K], the ids that were there; 0 if not valid
      valid: bool [M, K], False behind a row's last target
    """
    maskable = mask & self.maskable[ids]
    maskable[:, : self.prefix_length] = False
    words = _Words.find(maskable, self.begins_word[ids])
    unit, behind = words.number, np.zeros_like(mask)
    if self.kind == "span":
      unit, behind = _spans(words.number, keys)
    # The units are shuffled, and words taken from the front.
    order = sampling.make_key(keys[:, None], "order", unit)
    ranks = _ranks(np.where(maskable, order, _LAST), behind)
    limits = self.max_targets(-(-mask.sum(axis=1, keepdims=True) // 8) * 8)
    limits = np.minimum(limits, self.max_targets(ids.shape[1]))
    chosen = self._choose(
      maskable, ranks - words.offset, words.length, limits, keys
    )
    rows, places = np.nonzero(chosen)
    originals = ids[rows, places]
    hidden = ids.copy()
    hidden[rows, places] = self._replace(
      originals, keys[rows], unit[rows, places], places
    )
    amount = int(self.max_targets(ids.shape[1]))
    valid = np.arange(amount) < chosen.sum(axis=1, keepdims=True)
    positions, targets = np.zeros((2, len(ids), amount), np.int32)
    positions[valid] = places  # Both go row by row, from left to right.
    targets[valid] = originals
    return {
      "ids": hidden,
      "mask": mask,
      "positions": positions,
      "targets": targets,
      "valid": valid,
    }

  def _choose(
    self,
    maskable: np.ndarray,
    before: np.ndarray,
    lengths: np.ndarray,
    limits: np.ndarray,
    keys: np.ndarray,
  ) -> np.ndarray:
    """Which tokens become targets; bool [M, L].

    Args:
      maskable: bool [M, L].
      before: int64 [M, L], tokens that come before the token's word.
      lengths: int64 [M, L], tokens of the word.
      limits: int64 [M, 1], the most targets.
      keys: uint64 [M].
    """
    share = self.rate * maskable.sum(axis=1, keepdims=True)
    # The word in which the share is reached is taken with the probability
    # that makes the expected number of targets right.
    drawn = _uniform(sampling.make_key(keys[:, None], "last word"))
    return (
      maskable
      & ((before == 0) | (before + drawn * lengths < share))
      & (before + lengths <= limits)
    )

  def _replace(
    self,
    originals: np.ndarray,
    keys: np.ndarray,
    units: np.ndarray,
    places: np.ndarray,
  ) -> np.ndarray:
    """What stands where the targets were; int32 [n].

    Args:
      originals: int32 [n], the targets.
      keys: uint64 [n], of their rows.
      units: int64 [n], the numbers of their words or spans.
      places: int64 [n], where they are.
    """
    how = _uniform(sampling.make_key(keys, "replacement", units))
    drawn = sampling.make_key(keys, "token", places)
    count = np.uint64(len(self._replacements))
    return np.select(
      [how < MASKED_SHARE, how < MASKED_SHARE + RANDOM_SHARE],
      [np.int32(self.mask_id), self._replacements[drawn % count]],
      originals,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Words:
  """The words of some rows; int64 [M, L], for maskable tokens.

  Attributes:
    number: Of the word in its row, from 0.
    offset: Of the token in its word, from 0.
    length: Of the word, in tokens.
  """

  number: np.ndarray
  offset: np.ndarray
  length: np.ndarray

  @classmethod
  def find(cls, maskable: np.ndarray, begins: np.ndarray) -> "_Words":
    """Finds the words, and cuts those that are too long; both bool [M, L]."""
    after_other = np.ones_like(maskable)
    after_other[:, 1:] = ~maskable[:, :-1]
    begins = maskable & (begins | after_other)
    words = cls._between(maskable, begins)
    cuts = (words.length > LONGEST_WORD) & (words.offset % PIECE == 0)
    return cls._between(maskable, begins | (maskable & cuts))

  @classmethod
  def _between(cls, maskable: np.ndarray, begins: np.ndarray) -> "_Words":
    """The words that begin at these tokens and end before the next."""
    places = np.arange(maskable.shape[1])
    starts = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    number = np.cumsum(begins, axis=1)
    # Numbered through all rows; before a row's first word, length is unused.
    through = np.cumsum(begins).reshape(begins.shape)
    lengths = np.bincount(through[maskable], minlength=through[-1, -1] + 1)
    return cls(number - 1, places - starts, lengths[through])


def _spans(
  words: np.ndarray, keys: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Cuts each row's words into spans.

  They are laid from a word drawn at random to the end and on from the front.
  A span of which only the first words are taken would else favour those of
  the text.

  Args:
    words: int64 [M, L], the number of each token's word; -1 is none.
    keys: uint64 [M].

  Returns:
    int64 [M, L], the number of each token's span, and bool [M, L], which
    tokens come behind the others of their span, though they stand before.
  """
  rows, length = words.shape
  lengths = np.arange(1, LONGEST_SPAN + 1)
  shares = SPAN_P * (1 - SPAN_P) ** (lengths - 1)
  limits = np.cumsum(shares / shares.sum())[:-1]
  drawn = sampling.make_key(keys[:, None], "span", np.arange(length))
  starts = np.cumsum(1 + np.searchsorted(limits, _uniform(drawn)), axis=1)
  is_start = np.zeros((rows, length), bool)
  row, span = np.nonzero(starts < length)
  is_start[row, starts[row, span]] = True

  count = np.maximum(words.max(axis=1, keepdims=True) + 1, 1)
  drawn = sampling.make_key(keys[:, None], "first word")
  first = (drawn % count.astype(np.uint64)).astype(np.int64)
  spans = np.take_along_axis(
    np.cumsum(is_start, axis=1), (words - first) % count, axis=1
  )
  return spans, words < first


def _ranks(values: np.ndarray, behind: np.ndarray) -> np.ndarray:
  """Each token's place in its row if sorted by value, behind and place.

  Args:
    values: uint64 [M, L], of which the lower bits are not looked at.
    behind: bool [M, L].

  Returns:
    int64 [M, L].
  """
  length = values.shape[1]
  bits = np.uint64(length.bit_length() + 1)
  places = np.arange(length) + length * behind
  # Unlike a stable sort, one of different values is vectorized.
  order = np.argsort(
    (values >> bits << bits) | places.astype(np.uint64), axis=1
  )
  ranks = np.empty_like(order)
  np.put_along_axis(ranks, order, np.arange(length)[None], axis=1)
  return ranks


def _uniform(keys: np.ndarray) -> np.ndarray:
  """Keys as float64 in [0, 1)."""
  return (keys >> np.uint64(11)) * 2.0**-53


def make_masker(
  tokenizer: tokenizers.Tokenizer, kind: str, rate: float, prefix: str = ""
) -> Masker:
  """Makes a masker for the texts of a tokenizer.

  Args:
    tokenizer: The tokenizer.
    kind: "word" or "span".
    rate: The share of a text's tokens that become targets.
    prefix: What stands before every text, and is not to be learned.

  Raises:
    ValueError: if the tokenizer has no mask token, or does not tell where
      words begin.
  """
  mask_id = tokenizer_lib.mask_id(tokenizer)
  definition = json.loads(tokenizer.to_str())
  begins = _find_beginnings(definition)
  vocabulary = tokenizer.get_vocab()
  maskable, begins_word = np.zeros((2, max(vocabulary.values()) + 1), bool)
  for token, token_id in vocabulary.items():
    maskable[token_id] = True
    begins_word[token_id] = begins(token)
  maskable[_special_ids(tokenizer, definition["model"])] = False
  return Masker(
    kind,
    rate,
    mask_id,
    maskable,
    begins_word,
    _count_prefix(tokenizer, prefix),
  )


def _count_prefix(tokenizer: tokenizers.Tokenizer, prefix: str) -> int:
  """The tokens of a prefix, with the special ones before it."""
  if not prefix:
    return 0
  # White space at its end goes to the text's first word.
  encoded = tokenizer.encode(prefix.rstrip())
  is_text = np.flatnonzero(np.array(encoded.special_tokens_mask) == 0)
  return int(is_text.max(initial=-1)) + 1


def _find_beginnings(definition: Mapping) -> Callable[[str], bool]:
  """Which tokens begin a word, from a tokenizer's definition as JSON.

  Returns:
    A function of a token as it stands in the vocabulary.

  Raises:
    ValueError: if the tokenizer is of a kind that is not known.
  """
  model = definition["model"]
  steps = [
    step
    for part in ("pre_tokenizer", "decoder")
    for step in _steps(definition[part])
  ]
  inside = model.get("continuing_subword_prefix")
  if model["type"] == "WordPiece" and inside:
    return lambda token: not token.startswith(inside)
  # A model with such a suffix says where words end instead.
  if not model.get("end_of_word_suffix"):
    for step in steps:
      if spaces := _spaces(step):
        return lambda token: token.startswith(spaces)
  raise ValueError(
    "data.masking: where words begin is not known for this tokenizer"
    f" (model {model['type']}; pre-tokenizer and decoder"
    f" {[step['type'] for step in steps]}). Known are WordPiece with a prefix"
    " inside words, Metaspace and ByteLevel: set batch.masked=0 and"
    " loss.masked_lm.weight=0, or use another tokenizer."
  )


def _spaces(step: Mapping) -> tuple[str, ...]:
  """What stands for white space in the tokens of a step; () if not known."""
  match step:
    case {"type": "ByteLevel"}:
      return ("Ġ", "Ċ", "ĉ", "č")  # Space, line feed, tab, carriage return.
    case {"type": "Metaspace", "replacement": space}:
      return (space,)
    # The same in Gemma's way, without a step of its own.
    case {"type": "Replace", "pattern": {"String": space}, "content": " "}:
      return (space,)
  return ()


def _steps(part: Mapping | None) -> Iterator[Mapping]:
  """The steps of a pre-tokenizer or decoder, sequences unfolded."""
  if part is None:
    return
  if part["type"] == "Sequence":
    for step in part.get("pretokenizers") or part["decoders"]:
      yield from _steps(step)
  else:
    yield part


def _special_ids(tokenizer: tokenizers.Tokenizer, model: Mapping) -> list[int]:
  """The ids of special tokens: added, put around texts, or for the unknown."""
  ids = [
    token_id
    for token_id, token in tokenizer.get_added_tokens_decoder().items()
    if token.special
  ]
  around = tokenizer.encode("")
  ids += [
    token_id
    for token_id, special in zip(
      around.ids, around.special_tokens_mask, strict=True
    )
    if special
  ]
  unknown = model.get("unk_id")
  if unknown is None and model.get("unk_token"):
    unknown = tokenizer.token_to_id(model["unk_token"])
  return ids if unknown is None else [*ids, unknown]
