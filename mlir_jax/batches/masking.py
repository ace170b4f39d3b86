"""Hides words of texts for masked language modelling, by (seed, position)."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tokenizers

from mlir_jax.batches import sampling
from mlir_jax.data import tokenizer as tokenizer_lib

KINDS = ("word", "span")

# In tokens. With XLM-R's tokenizer, 93 % (Telugu, Finnish, Bengali) to over
# 99 % of the words between spaces in NTREX-128 are at most this long. Longer
# "words" are mostly clauses in a script without spaces, and hiding a whole
# clause is too much. So they are cut into pieces of about the mean length of a
# word (1.4 to 2.3 tokens there).
LONGEST_WORD = 4
PIECE = 2

# The shares of the chosen words (or spans) that become masks and random tokens;
# the others stay unchanged (Devlin et al. 2019, section 3.1).
MASKED_SHARE = 0.8
RANDOM_SHARE = 0.1

# The length of a span, in words, has a geometric distribution that is cut off
# and scaled to 1 (Joshi et al. 2020, section 3.1). Its mean is 3.8.
SPAN_P = 0.2
LONGEST_SPAN = 10

# Sorts after every other key.
_LAST = np.uint64(2**64 - 1)


def max_targets(rate: float, length: np.ndarray | int) -> np.ndarray:
  """Returns K, the largest number of targets of a text; int64.

  It is the text's share of targets and one more piece of a word, and it is at
  least the length of the longest word. It grows with the length, so a row has
  enough room when its text is padded.

  Args:
    rate: The share of tokens that become targets.
    length: Tokens of the text.
  """
  share = np.ceil(rate * np.asarray(length)).astype(np.int64)
  return np.maximum(LONGEST_WORD, share + PIECE)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Masker:
  """Chooses a text's targets and hides them; made by `make_masker`.

  Targets are whole words, because the visible part of a word gives its hidden
  part away. For the same reason all tokens of a word are replaced in the same
  way: by masks, by random tokens, or not at all. (BERT's code decides this for
  each token, SpanBERT's code for each span.)

  The kind "word" chooses words at random. The kind "span" cuts the text into
  spans of random lengths and chooses spans at random; it cuts the last one
  where the share is reached. SpanBERT instead draws spans, which may overlap,
  until there are enough. It hides the first words of a text less often.

  Attributes:
    kind: "word" or "span".
    rate: The share of a text's maskable tokens that become targets.
    mask_id: The mask token's id.
    maskable: bool [V], the tokens that may be hidden or replace a hidden token.
      Special tokens may not. Nor may the unknown token, because it can mean any
      word.
    begins_word: bool [V], the tokens that begin a word.
    prefix_length: Tokens before the text itself, which are never hidden.
  """

  kind: str
  rate: float
  mask_id: int
  maskable: np.ndarray
  begins_word: np.ndarray
  prefix_length: int = 0

  @functools.cached_property
  def _replacements(self) -> np.ndarray:
    """The ids from which random tokens are drawn; int32."""
    return np.flatnonzero(self.maskable).astype(np.int32)

  def max_targets(self, length: np.ndarray | int) -> np.ndarray:
    """Returns K, the largest number of targets of a text; int64."""
    return max_targets(self.rate, length)

  def __call__(
    self, ids: np.ndarray, mask: np.ndarray, keys: np.ndarray
  ) -> dict:
    """Hides some words of each text.

    The expected number of a text's targets is its number of maskable tokens
    times the rate, with two exceptions. The first chosen word is always hidden,
    so texts of few words have more targets. A word that would exceed the
    largest number of targets for a text's length (rounded up to a multiple of
    8) is not hidden, which loses about 1 % of the targets.

    Args:
      ids: int32 [M, L], a text in each row.
      mask: bool [M, L]; False is padding.
      keys: uint64 [M], from `sampling.make_key`. A text's targets depend only
        on its own key and tokens.

    Returns:
      ids: int32 [M, L], with hidden words
      mask: bool [M, L], unchanged
      positions: int32 [M, K], the targets' indices, ascending; 0 if not valid
      targets: int32 [M, K], the original ids; 0 if not valid
      valid: bool [M, K], False after a text's last target
    """
    maskable = mask & self.maskable[ids]
    maskable[:, : self.prefix_length] = False
    words = _Words.find(maskable, self.begins_word[ids])
    unit, behind = words.number, np.zeros_like(mask)
    if self.kind == "span":
      unit, behind = _spans(words.number, keys)
    # Shuffle the units; `_choose` takes words from the front.
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
    positions[valid] = places  # Both are in row order, from left to right.
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
    """Returns which tokens become targets; bool [M, L].

    Args:
      maskable: bool [M, L].
      before: int64 [M, L], the number of tokens before the token's word in the
        shuffled order.
      lengths: int64 [M, L], tokens of the word.
      limits: int64 [M, 1], the largest number of targets.
      keys: uint64 [M].
    """
    share = self.rate * maskable.sum(axis=1, keepdims=True)
    # The share is reached inside one word. Take it with the probability that
    # makes the expected number of targets equal to the share.
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
    """Returns the ids that replace the targets; int32 [n].

    Args:
      originals: int32 [n], the targets.
      keys: uint64 [n], the keys of their texts.
      units: int64 [n], the numbers of their words or spans.
      places: int64 [n], their indices in the text.
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
  """The word of each maskable token; all arrays are int64 [M, L].

  Attributes:
    number: The word's number in its row, from 0.
    offset: The token's index in the word, from 0.
    length: The word's length in tokens.
  """

  number: np.ndarray
  offset: np.ndarray
  length: np.ndarray

  @classmethod
  def find(cls, maskable: np.ndarray, begins: np.ndarray) -> "_Words":
    """Finds the words and cuts long ones; the arguments are bool [M, L]."""
    after_other = np.ones_like(maskable)
    after_other[:, 1:] = ~maskable[:, :-1]
    begins = maskable & (begins | after_other)
    words = cls._between(maskable, begins)
    cuts = (words.length > LONGEST_WORD) & (words.offset % PIECE == 0)
    return cls._between(maskable, begins | (maskable & cuts))

  @classmethod
  def _between(cls, maskable: np.ndarray, begins: np.ndarray) -> "_Words":
    """Returns the words that begin at these tokens and end before the next."""
    places = np.arange(maskable.shape[1])
    starts = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    number = np.cumsum(begins, axis=1)
    # Word numbers over all rows. Before a row's first word, length is unused.
    through = np.cumsum(begins).reshape(begins.shape)
    lengths = np.bincount(through[maskable], minlength=through[-1, -1] + 1)
    return cls(number - 1, places - starts, lengths[through])


def _spans(
  words: np.ndarray, keys: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Cuts each row's words into spans.

  The spans begin at a random word, go to the end, and continue at the front.
  Otherwise the first words of a text would be hidden more often, because only
  the first words of the last span are taken.

  Args:
    words: int64 [M, L], the number of each token's word; -1 for none.
    keys: uint64 [M].

  Returns:
    int64 [M, L], the number of each token's span. And bool [M, L], True for the
    tokens before the random word: in a span that continues at the front, they
    come after its other tokens.
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
  """Returns each token's rank in its row, by value, then `behind`, then index.

  Args:
    values: uint64 [M, L]; the lowest bits are ignored.
    behind: bool [M, L].

  Returns:
    int64 [M, L].
  """
  length = values.shape[1]
  bits = np.uint64(length.bit_length() + 1)
  places = np.arange(length) + length * behind
  # The index makes all values different, so the sort need not be stable. NumPy
  # vectorizes only unstable sorts.
  order = np.argsort(
    (values >> bits << bits) | places.astype(np.uint64), axis=1
  )
  ranks = np.empty_like(order)
  np.put_along_axis(ranks, order, np.arange(length)[None], axis=1)
  return ranks


def _uniform(keys: np.ndarray) -> np.ndarray:
  """Returns the keys as float64 in [0, 1)."""
  return (keys >> np.uint64(11)) * 2.0**-53


def make_masker(
  tokenizer: tokenizers.Tokenizer, kind: str, rate: float, prefix: str = ""
) -> Masker:
  """Makes a masker for the texts of a tokenizer.

  Args:
    tokenizer: The tokenizer.
    kind: "word" or "span".
    rate: The share of a text's tokens that become targets.
    prefix: The prefix of every text, whose words are never hidden.

  Raises:
    ValueError: if the tokenizer has no mask token, or its definition does not
      show where words begin.
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
  """Returns the number of tokens of a prefix and special tokens before it."""
  if not prefix:
    return 0
  # White space at the prefix's end becomes a part of the text's first word.
  encoded = tokenizer.encode(prefix.rstrip())
  is_text = np.flatnonzero(np.array(encoded.special_tokens_mask) == 0)
  return int(is_text.max(initial=-1)) + 1


def _find_beginnings(definition: Mapping) -> Callable[[str], bool]:
  """Finds the rule by which tokens begin a word, in a tokenizer's JSON.

  Returns:
    (a token as written in the vocabulary) -> whether it begins a word.

  Raises:
    ValueError: if this kind of tokenizer is not supported.
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
  # A model with this suffix marks the ends of words instead.
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
  """Returns a step's symbols for white space; () if it has none."""
  match step:
    case {"type": "ByteLevel"}:
      return ("Ġ", "Ċ", "ĉ", "č")  # Space, line feed, tab, carriage return.
    case {"type": "Metaspace", "replacement": space}:
      return (space,)
    # Gemma's tokenizer does the same by a plain replacement.
    case {"type": "Replace", "pattern": {"String": space}, "content": " "}:
      return (space,)
  return ()


def _steps(part: Mapping | None) -> Iterator[Mapping]:
  """Yields the steps of a pre-tokenizer or decoder, also those in sequences."""
  if part is None:
    return
  if part["type"] == "Sequence":
    for step in part.get("pretokenizers") or part["decoders"]:
      yield from _steps(step)
  else:
    yield part


def _special_ids(tokenizer: tokenizers.Tokenizer, model: Mapping) -> list[int]:
  """Returns the ids of special tokens: added, around texts, and unknown."""
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
