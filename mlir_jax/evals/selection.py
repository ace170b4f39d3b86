"""The measure that selects the best checkpoint, from results on dev sets.

By default it is one of English dev, so that no other language has a part in the
training (zero-shot). Another one is set by name: "dev/ja/ndcg@10". Several with
"," between them, or "*" for all languages with a dev set, mean their mean.
"""

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from mlir_jax.data import languages
from mlir_jax.evals import measures as measures_lib

FIELD = "eval.selection"
ALL = "*"
_ENGLISH = "en"


class Measure(NamedTuple):
  """A measure of a dev set: its language, or `ALL`, and its name."""

  language: str
  name: str


class Selection(NamedTuple):
  """The measures of which the mean selects.

  Attributes:
    text: The value of `FIELD`.
    measures: The measures.
  """

  text: str
  measures: tuple[Measure, ...]

  @property
  def chosen(self) -> list[measures_lib.Measure]:
    """What computes the measures."""
    return [measures_lib.parse(each.name, FIELD) for each in self.measures]

  def reads(self, language: str) -> bool:
    """Whether the dev set of a language has a part in the selection."""
    return any(each.language in (ALL, language) for each in self.measures)

  def languages(self, there: Collection[str]) -> list[str]:
    """Returns the languages that select, of those with a dev set."""
    return sorted(language for language in there if self.reads(language))

  def check(self, there: Collection[str]) -> None:
    """Checks that each language has a dev set, if there is any dev set.

    Args:
      there: The languages with a dev set.

    Raises:
      ValueError: if a language has none.
    """
    lacking = sorted({each.language for each in self.measures} - {ALL, *there})
    if lacking and (there or lacking != [_ENGLISH]):
      raise ValueError(
        f"{FIELD} is {self.text!r}, but {lacking[0]} has no dev set; dev sets"
        f" are in {', '.join(sorted(there)) or 'no language'}."
      )

  def value(self, results: Mapping[str, float]) -> float | None:
    """Returns the mean of the measures; None if there are none of dev.

    Args:
      results: {"dev/en/mrr@100": value, ...}
    """
    of_dev = {
      tuple(name.split("/")[1:]): value
      for name, value in results.items()
      if name.startswith("dev/")
    }
    found = [
      value
      for measure in self.measures
      for (language, name), value in of_dev.items()
      if name == measure.name and measure.language in (ALL, language)
    ]
    return sum(found) / len(found) if found else None

  def describe(self, there: Collection[str]) -> str:
    """Says in a sentence which rule chooses the best checkpoint."""
    chosen = self.languages(there)
    if not chosen:
      return "No dev set selects a checkpoint."
    if chosen == [_ENGLISH]:
      return (
        f"The best checkpoint is the best one by {self.text}: English alone"
        " selects, so other languages are zero-shot."
      )
    return (
      f"The best checkpoint is the best one by {self.text}: dev sets in"
      f" {', '.join(chosen)} select, so these languages are not zero-shot."
    )


def parse(text: str) -> Selection:
  """Reads the value of `FIELD`.

  Raises:
    ValueError: if it has another form, or a measure does not exist.
  """
  measures = []
  for part in text.split(","):
    match = re.fullmatch(rf"dev/(\*|{languages.PATTERN})/(.+)", part.strip())
    if not match:
      raise ValueError(
        f"{FIELD} is {text!r}; it must be dev/LANGUAGE/MEASURE, such as"
        ' "dev/en/mrr@100", or several of these with "," between them, whose'
        ' mean selects. LANGUAGE may be "*", for all with a dev set.'
      )
    language = match[1]
    name = measures_lib.parse(match[2], f"{FIELD} is {text!r}").name
    measures.append(
      Measure(ALL if language == ALL else languages.code(language), name)
    )
  if len(set(measures)) < len(measures):
    raise ValueError(f"{FIELD} is {text!r}, which names a measure twice.")
  return Selection(text, tuple(measures))


DEFAULT = parse("dev/en/mrr@100")
