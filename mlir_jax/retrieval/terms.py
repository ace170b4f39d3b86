"""Cuts texts into the terms that BM25 counts, and says which texts are equal.

A text is normalized first: compatibility forms (NFKC), case folding and single
spaces. So "Ｆｕｌｌ　width", "full  width" and "Full width" are one text, and
composed and decomposed accents are equal.
"""

import functools
import re
import sys
import unicodedata
from collections.abc import Callable

import tokenizers

# Blocks of scripts that do not write spaces between words: Thai, Lao, Tibetan,
# Burmese, Khmer, kana, Han. Hangul writes spaces, but joins particles to words.
_UNSPACED = (
  "\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007"
  "\u3031-\u3035\u3041-\u318f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf"
  "\u4e00-\u9fff\ua960-\ua97f\uaa60-\uaa7f\uac00-\ud7ff\uf900-\ufaff"
  "\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)

# Returns the terms of a text, in its order.
Analyzer = Callable[[str], list[str]]


def normalize(text: str) -> str:
  """Returns a text in one form of case, width, accents and spaces."""
  # Folding may decompose a letter, so the text is composed again.
  folded = unicodedata.normalize("NFKC", text).casefold()
  return " ".join(unicodedata.normalize("NFKC", folded).split())


@functools.cache
def _runs() -> re.Pattern:
  r"""Matches runs of letters, marks and digits, of one kind of script each.

  Python's \w lacks marks: it would cut a word of Hindi at each vowel sign.
  """
  marks = "".join(
    chr(code)
    for code in range(sys.maxunicode + 1)
    if unicodedata.category(chr(code)).startswith("M")
  )
  marks = re.sub(f"[{_UNSPACED}]", "", marks)
  return re.compile(f"[{_UNSPACED}]+|(?:[^\\W_{_UNSPACED}]|[{marks}])+")


@functools.cache
def _is_unspaced() -> Callable[[str], object]:
  return re.compile(f"[{_UNSPACED}]").match


def words(text: str) -> list[str]:
  """Returns the words; of scripts without spaces, pairs of characters.

  Pairs of characters are the terms of Lucene's CJKAnalyzer, too.
  """
  terms = []
  for run in _runs().findall(normalize(text)):
    if len(run) > 2 and _is_unspaced()(run):
      terms += [run[i : i + 2] for i in range(len(run) - 1)]
    else:
      terms.append(run)
  return terms


def subwords(tokenizer: tokenizers.Tokenizer) -> Analyzer:
  """Returns an analyzer that cuts texts into the tokens of a tokenizer."""
  whole = tokenizers.Tokenizer.from_str(tokenizer.to_str())
  whole.no_truncation()
  whole.no_padding()

  def analyze(text: str) -> list[str]:
    return whole.encode(normalize(text), add_special_tokens=False).tokens

  return analyze


def spell(text: str) -> str:
  """Spells a text so that `in` finds whole words of it.

  Words, and characters of scripts without spaces, have a space on both sides.
  """
  spelled = []
  for run in _runs().findall(normalize(text)):
    spelled += list(run) if _is_unspaced()(run) else [run]
  return f" {' '.join(spelled)} " if spelled else ""
