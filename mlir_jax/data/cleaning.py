"""Leaves out translations that are probably wrong, and counts them."""

import dataclasses
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from mlir_jax.data import languages, records
from mlir_jax.data.sources import record_fields

_WORD = re.compile(r"\w+")

# Languages that py3langid tells apart and that many corpora do not. A text of
# one is no wrong text of another.
_ALIKE = (
  frozenset(("ar", "ary", "arz")),
  frozenset(("zh", "wuu", "yue")),
  frozenset(("no", "nn")),
  frozenset(("bs", "hr", "sr")),
  frozenset(("id", "ms")),
)


@dataclasses.dataclass(frozen=True)
class Rules:
  """Which translations are kept: the fields of the config's data.cleaning.

  Attributes:
    margin: The lowest margin score that is kept, where a file says it.
    length_ratio: The greatest ratio of the longer side to the shorter one, in
      characters; 0 for any.
    shared_words: The greatest share of the words of the side with fewer words
      that are in the other side, too.
    wrong_language: A pair is left out if a side is in another language with at
      least this probability; 0 keeps all.
  """

  margin: float = 1.04
  length_ratio: float = 0.0
  shared_words: float = 1.0
  wrong_language: float = 0.0

  @classmethod
  def of_config(cls, data: Mapping[str, Any]) -> "Rules":
    """Returns the rules of a config's group `data`, a plain dict.

    The config of an older run has no rules: it kept all pairs.
    """
    return cls(**data.get("cleaning", {"margin": 0.0}))


DEFAULTS = Rules()


def _length_ratio(pair: records.ParallelRecord) -> float:
  shorter, longer = sorted(map(len, (pair.source, pair.target)))
  return longer / shorter


def _shared_words(pair: records.ParallelRecord) -> float:
  """Returns the share of one side's words that are in the other; 0 to 1."""
  fewer, more = sorted(
    (
      set(_WORD.findall(text.casefold())) for text in (pair.source, pair.target)
    ),
    key=len,
  )
  return len(fewer & more) / len(fewer) if fewer else 0.0


class _Identifier:
  """Tells the language of a text, with py3langid."""

  def __init__(self):
    # An extra.
    from py3langid import langid  # pyright: ignore[reportMissingImports]

    self._identifier = langid.LanguageIdentifier.from_model_file(
      langid.MODEL_FILE, norm_probs=True
    )
    self._known = {
      languages.code(label)
      for label in self._identifier.labels
      if re.fullmatch(languages.PATTERN, label)
    }

  def is_wrong(self, text: str, language: str, probability: float) -> bool:
    """Returns whether a text is in another language.

    A text is never wrong in a language that the library does not know, nor if
    it is no text of a language (numbers, names of files).
    """
    if language not in self._known:
      return False
    label, certainty = self._identifier.classify(text)
    if label == "zxx" or certainty < probability:
      return False
    found = languages.code(label)
    return found != language and not any(
      {found, language} <= alike for alike in _ALIKE
    )


def check_installed(rules: Rules) -> None:
  """Refuses a rule whose library is not installed.

  Raises:
    ValueError: if it is not.
  """
  if rules.wrong_language and not importlib.util.find_spec("py3langid"):
    raise ValueError(
      "data.cleaning.wrong_language needs py3langid, which is not installed:"
      " pip install 'mlir_jax[langid]', or set it to 0."
    )


def _faults(
  rules: Rules,
) -> dict[str, Callable[[records.ParallelRecord], bool]]:
  """Returns what is left out, for the count, to its test. Cheap tests first."""
  faults = {}
  if rules.length_ratio:
    faults[
      f"pairs with one side over {rules.length_ratio:g} times as long"
      " (data.cleaning.length_ratio)"
    ] = lambda pair: _length_ratio(pair) > rules.length_ratio
  if rules.shared_words < 1:
    faults[
      f"pairs that share over {rules.shared_words:g} of their words"
      " (data.cleaning.shared_words)"
    ] = lambda pair: _shared_words(pair) > rules.shared_words
  if rules.wrong_language:
    identifier = _Identifier()
    faults[
      "pairs with a side in another language (data.cleaning.wrong_language)"
    ] = lambda pair: any(
      identifier.is_wrong(text, language, rules.wrong_language)
      for text, language in (
        (pair.source, pair.source_language),
        (pair.target, pair.target_language),
      )
    )
  return faults


def clean(
  pairs: Iterable[records.ParallelRecord],
  rules: Rules,
  bad_records: records.BadRecords,
  name: str,
) -> Iterator[records.ParallelRecord]:
  """Yields the pairs that the rules keep, but for the margin.

  A reader sees the margin, and cuts by it; see `translations.Margins`. The
  token store leaves out identical sides and copies of a pair.

  Args:
    pairs: The translations.
    rules: The rules.
    bad_records: Counts the pairs that are left out, by reason.
    name: The name of the collection, for the first example.
  """
  faults = _faults(rules)
  for pair in pairs:
    reason = next((what for what, has in faults.items() if has(pair)), None)
    if not reason:
      yield pair
      continue
    shown = map(record_fields.show, (pair.source, pair.target))
    bad_records.count_removed(
      f"{name}, {pair.source_language}-{pair.target_language}:"
      f" {' = '.join(shown)}",
      reason,
    )


def cleaned(
  collection: records.Collection, rules: Rules, bad_records: records.BadRecords
) -> records.Collection:
  """Returns a collection with cleaned translations.

  Raises:
    ValueError: as `check_installed` does.
  """
  check_installed(rules)
  if rules == Rules(margin=rules.margin):
    return collection
  parts = collection.parts
  if parts is not None:
    cleaned_parts = [
      dataclasses.replace(
        part,
        read=lambda bad_records, read=part.read: clean(
          read(bad_records), rules, bad_records, collection.name
        ),
      )
      for part in parts.get("parallel", ())
    ]
    parts = {**parts, "parallel": cleaned_parts}
  return dataclasses.replace(
    collection,
    parallel=lambda: clean(
      collection.parallel(), rules, bad_records, collection.name
    ),
    parts=parts,
  )
