"""Gives each language one code, whatever a corpus calls it."""

import functools
import re
from collections.abc import Mapping

import babel
from babel import core

# Two or three letters; a script, region or variant may follow.
PATTERN = r"[a-z]{2,3}(?:[-_@][A-Za-z0-9]+)*"
# Several codes with hyphens between them; `split` says where each one ends.
SEVERAL = r"[a-z]{2,3}(?:[-_@][A-Za-z0-9]+)+"

# Languages whose usual code in corpora differs from CLDR's, and languages
# that CLDR does not count as a part of a larger one (Pashto, Quechua).
_USUAL = {
  **dict.fromkeys(("fil", "tgl", "tl"), "tl"),
  **dict.fromkeys(("nb", "nob", "nor"), "no"),
  "pbt": "ps",
  "quy": "qu",
}
# Names in corpora that differ from CLDR's.
_NAMES = {"bengali": "bn", "farsi": "fa", "filipino": "tl"}


def code(name: str) -> str:
  """Returns the code that all readers use for a language.

  It is the two-letter code if there is one, else the three-letter code. CLDR
  says which languages have both. Script, region and variant are dropped,
  because texts are grouped by language. So "eng", "eng_Latn" and "en-GB" become
  "en"; "cmn" and "zh_TW" become "zh".

  Raises:
    ValueError: if the name does not match `PATTERN`.
  """
  if not re.fullmatch(PATTERN, name):
    raise ValueError(
      f"{name!r} is not a language code like en, deu, zh_TW or eng_Latn."
    )
  language = re.split("[-_@]", name)[0]
  if language in _USUAL:
    return _USUAL[language]
  alias = core.get_global("language_aliases").get(language, language)
  alias = alias.split("_")[0]
  # A three-letter code stays: CLDR would merge dtp and kzj, but Tatoeba has
  # tests in both.
  return alias if len(alias) == 2 else language


def code_of_tag(tag: str) -> str:
  """Returns the `code` of a tag in any case, such as XML's "EN-us"."""
  language, *rest = re.split("(?=[-_@])", tag.strip(), maxsplit=1)
  return code(language.lower() + "".join(rest))


@functools.cache
def _codes_by_name() -> Mapping[str, str]:
  """Returns the English name of a language, in small letters, to its code."""
  names = babel.Locale("en").languages
  found = {
    name.lower(): code(language)
    for language, name in reversed(list(names.items()))
    if re.fullmatch("[a-z]{2,3}", language)
  }
  return found | _NAMES


def code_of_name(name: str) -> str:
  """Returns the code of a language by its English name, such as "arabic".

  Raises:
    ValueError: if there is no such language.
  """
  found = _codes_by_name().get(name.lower())
  if not found:
    raise ValueError(f"{name!r} is not the English name of a language.")
  return found


def split(names: str) -> list[str]:
  """Splits codes that have hyphens between them.

  After a hyphen, two or three small letters begin a new code. Anything else
  (Hant, TW, 419) belongs to the code before it. So "zh-Hant-en" is "zh-Hant"
  and "en", and "pt-br" is two languages: write "pt_br" for one.
  """
  return re.split(r"-(?=[a-z]{2,3}(?![A-Za-z0-9]))", names)


def is_known(name: str) -> bool:
  """Whether a part of a file's name is a language, in CLDR's list.

  A script (Hant), a region (TW, 419) or a variant (@latin) may follow. So
  "train" and "no_copies" are none.
  """
  language, *rest = re.split("(?=[-_@])", name, maxsplit=1)
  known = babel.Locale("en").languages.keys() | set(
    core.get_global("language_aliases")
  )
  return language in known and bool(
    re.fullmatch(
      r"([-_][A-Z][a-z]{3})?([-_]([A-Z]{2}|[0-9]{3}))?(@[a-z]+)?", "".join(rest)
    )
  )
