"""One code for each language, whatever a corpus calls it."""

import re

from babel import core

# A code of two or three letters; script, region or variant may follow.
PATTERN = r"[a-z]{2,3}(?:[-_@][A-Za-z0-9]+)*"

# Where the usual code in corpora is not the one that CLDR prefers.
_USUAL = {
  **dict.fromkeys(("fil", "tgl", "tl"), "tl"),
  **dict.fromkeys(("nb", "nob", "nor"), "no"),
}


def code(name: str) -> str:
  """The code that all readers use for a language.

  It is the two-letter code where there is one, else the three-letter code.
  Script, region and variant are dropped: texts are grouped by language.
  "eng", "eng_Latn" and "en-GB" are "en", "cmn" and "zh_TW" are "zh". CLDR says
  which three-letter codes have two letters.

  Args:
    name: A code in the form of `PATTERN`.

  Raises:
    ValueError: if it is not in this form.
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
  # Not from three letters to three: Tatoeba has tests in both dtp and kzj.
  return alias if len(alias) == 2 else language
