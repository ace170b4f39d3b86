"""Makes a collection from the package descriptions of a Debian release.

A package has a short description, which is a line, and a long one. Volunteers
translate both. The short one is the query of the long one:

- ir/ has the English pairs;
- parallel/ has short descriptions in English and in `PARALLEL`;
- mono/ has sentences and paragraphs in `MONOLINGUAL`;
- eval/ asks for long descriptions by the short ones, in each language. English
  also has a dev split.

A hash of its name puts a package into train, dev or test. So no passage of a
test was trained on, in any language. Of packages whose descriptions begin in
the same way, one is kept. Test packages that nobody asks for are distractors.

A description is named by its MD5, as Debian names it. Debian writes it in
`dists/RELEASE/main/i18n/Translation-XX`, in stanzas: Package, Description-md5,
and Description-XX, whose first line is the short description.
"""

import bz2
import dataclasses
import gzip
import hashlib
import io
import lzma
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mlir_jax.corpora import corpus, damage, downloads, layout
from mlir_jax.data import records

PARALLEL = ("da", "de", "fr", "it")
MONOLINGUAL = ("es", "ru", "pt", "cs", "zh")
LANGUAGES = ("en", *PARALLEL, *MONOLINGUAL)
# A codename or a suite; another one gives other counts.
RELEASES = ("bookworm", "trixie", "forky", "sid", "stable", "testing")
# Debian's names of a language; the first translation of a package is taken.
_SHEETS = {"pt": ("pt_BR", "pt"), "zh": ("zh_CN",)}

# Of 100 packages. The rest is the test's.
_TRAIN_SHARE = 57
_DEV_SHARE = 3
_MAX_QUERIES = {"dev": 300, "test": 500}
_MAX_PASSAGES = 6000
_MAX_PARALLEL = 12_000  # Of a language pair.

_MIN_WORDS = 3  # Of an English short description.
_MIN_CHARACTERS = 100  # Of an English long one.
# Of a translated long one: Chinese needs fewer characters.
_MIN_TRANSLATED = 60
# Descriptions that begin with the same characters are of sister packages.
_OPENING = 120

_OPEN: Mapping[str, Callable[[pathlib.Path], Any]] = {
  ".xz": lzma.open,
  ".bz2": bz2.open,
  ".gz": gzip.open,
}


@dataclasses.dataclass(frozen=True)
class Description:
  """A package's description in one language.

  Attributes:
    md5: Of the English description; a translation has it, too.
    short: A line.
    paragraphs: Of the long description, a line each.
  """

  package: str
  md5: str
  short: str
  paragraphs: tuple[str, ...]

  @property
  def text(self) -> str:
    """The long description, in one line."""
    return " ".join(self.paragraphs)

  @property
  def passage(self) -> records.Passage:
    """The long description as a passage."""
    return records.Passage(
      self.text, self.package, f"{self.package}#{self.md5[:8]}"
    )


def list_files(
  request: corpus.Request, folder: pathlib.Path
) -> Iterator[downloads.File]:
  """Yields the release's list of files, then the translations.

  Sizes and checksums are those of the list. Without it, as before the first
  download, the names end in what Debian uses today.
  """
  base = f"{request.base}/dists/{request.variant}"
  yield downloads.File(f"{base}/Release", f"{request.variant}/Release")
  path = folder / request.variant / "Release"
  listed = read_release(path) if path.exists() else {}
  for language in _with_english(request.languages):
    for sheet in _SHEETS.get(language, (language,)):
      stem = f"main/i18n/Translation-{sheet}"
      usual = f"{stem}{'.xz' if language == 'en' else '.bz2'}"
      names = [name for name in (f"{stem}{e}" for e in _OPEN) if name in listed]
      if listed and not names:
        raise ValueError(f"{path}: the release has no file {stem}.")
      name = names[0] if names else usual
      size, sha256 = listed.get(name, (None, ""))
      yield downloads.File(
        f"{base}/{name}",
        f"{request.variant}/{name.rpartition('/')[2]}",
        size,
        sha256,
      )


def build(
  request: corpus.Request, raw: pathlib.Path, folder: pathlib.Path
) -> list[str]:
  """Writes the collection; see `corpus.Corpus`."""
  raw = raw / request.variant
  english = _select(_read_language(raw, "en"))
  translated = {
    language: _translations(_read_language(raw, language), english)
    for language in request.languages
    if language != "en"
  }
  train = [each for each in english if _split(each) == "train"]
  notes = []

  tested = set()  # Texts of the tests, which training must not hold.
  drawn = _draw_queries(english, translated)
  for language in ("en", *translated):
    found = english if language == "en" else translated[language].values()
    passages, queries = _make_test(language, list(found), drawn)
    tested |= {layout.same(p.text) for p in passages}
    tested |= {layout.same(q.text) for of in queries.values() for q in of}
    layout.write_test(folder, language, passages, queries)
    counts = ", ".join(f"{len(of)} {s} queries" for s, of in queries.items())
    notes.append(f"eval/{language}: {len(passages):,} passages, {counts}")

  pairs = [
    (each.short, each.passage)
    for each in train
    if layout.same(each.short) not in tested
  ]
  notes.append(f"ir: {layout.write_pairs(folder, 'debian', pairs):,} pairs")
  for language, found in translated.items():
    of_train = [(each, found[each.md5]) for each in train if each.md5 in found]
    if language in PARALLEL:
      sentences = _translated_lines(of_train, tested)
      count = layout.write_parallel(
        folder, "debian", ("en", language), sentences[:_MAX_PARALLEL]
      )
      notes.append(f"parallel/en-{language}: {count:,} pairs")
    else:
      lines = _lines((translation for _, translation in of_train), tested)
      count = layout.write_monolingual(folder, "debian", language, lines)
      notes.append(f"mono/{language}: {count:,} lines")
  return notes


def read_descriptions(
  lines: Iterable[str], where: str
) -> Iterator[Description]:
  """Reads the stanzas of a Translation file.

  Args:
    lines: The lines, with or without the newline.
    where: The file, for messages.

  Raises:
    ValueError: if a stanza lacks a field, or a line is none of its format; it
      names the file and the line.
  """
  fields: dict[str, str] = {}
  paragraphs: list[list[str]] = []
  started = 0

  def finish() -> Description:
    for name in ("Package", "Description-md5", "Description"):
      if name not in fields:
        raise ValueError(
          f"{where}:{started}: the stanza has no field {name}. {damage.MEND}"
        )
    return Description(
      fields["Package"],
      fields["Description-md5"],
      layout.one_line(fields["Description"]),
      tuple(
        line for part in paragraphs if (line := layout.one_line(" ".join(part)))
      ),
    )

  for number, line in enumerate(lines, start=1):
    line = line.rstrip("\n")
    if not line.strip():
      if fields:
        yield finish()
      fields, paragraphs = {}, []
    elif line.startswith(" "):
      if line.strip() == ".":
        paragraphs.append([])
      elif paragraphs:
        paragraphs[-1].append(line)
    else:
      name, colon, value = line.partition(":")
      if not colon:
        raise ValueError(
          f"{where}:{number}: {line[:40]!r} is not FIELD: VALUE. {damage.MEND}"
        )
      started = started if fields else number
      if re.fullmatch(r"Description-(?!md5$).+", name):
        name, paragraphs = "Description", [[]]
      fields[name] = value.strip()
  if fields:
    yield finish()


def read_release(path: pathlib.Path) -> dict[str, tuple[int, str]]:
  """Reads a release's list: name to size in bytes and SHA-256."""
  listed, inside = {}, False
  with damage.naming(path):
    text = path.read_text(encoding="utf-8")
  for line in text.splitlines():
    if not line.startswith(" "):
      inside = line.startswith("SHA256:")
    elif inside and len(parts := line.split()) == 3 and parts[1].isdecimal():
      listed[parts[2]] = int(parts[1]), parts[0]
  if not listed:
    raise ValueError(
      f"{path} lists no files below SHA256: it is not a Debian release."
      f" {damage.MEND}"
    )
  return listed


def _with_english(languages: Sequence[str]) -> list[str]:
  return list(dict.fromkeys(("en", *languages)))


def _read_language(raw: pathlib.Path, language: str) -> list[Description]:
  """Reads all descriptions in a language, the first sheet of a package first.

  Sheets hold descriptions of other releases, too.
  """
  found: dict[str, Description] = {}
  for sheet in _SHEETS.get(language, (language,)):
    for ending, opener in _OPEN.items():
      path = raw / f"Translation-{sheet}{ending}"
      if not path.exists():
        continue
      with damage.naming(path), opener(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8")
        for each in read_descriptions(text, str(path)):
          found.setdefault(each.md5, each)
  return list(found.values())


def _select(english: Iterable[Description]) -> list[Description]:
  """Returns the descriptions that make pairs, in the order of their MD5."""
  selected, seen = [], set()
  for each in sorted(english, key=lambda each: each.md5):
    short, opening = layout.same(each.short), layout.same(each.text)[:_OPENING]
    if len(each.short.split()) < _MIN_WORDS or len(each.text) < _MIN_CHARACTERS:
      continue
    if seen.isdisjoint({(short,), opening}):
      seen |= {(short,), opening}
      selected.append(each)
  return selected


def _translations(
  found: Iterable[Description], english: Iterable[Description]
) -> dict[str, Description]:
  """Returns MD5 to translation, for the selected descriptions.

  A translation that repeats the English text, is empty or very short, or
  repeats another translation is left out.
  """
  of_english = {each.md5: each for each in english}
  by_md5 = {each.md5: each for each in found if each.md5 in of_english}
  kept, seen = {}, set()
  for md5, original in of_english.items():
    each = by_md5.get(md5)
    if not each or not each.short or len(each.text) < _MIN_TRANSLATED:
      continue
    short, text = layout.same(each.short), layout.same(each.text)
    if short == layout.same(original.short):
      continue
    if text != layout.same(original.text) and seen.isdisjoint({(short,), text}):
      seen |= {(short,), text}
      # A sheet may name another package with the same description.
      kept[md5] = dataclasses.replace(each, package=original.package)
  return kept


def _hash(each: Description) -> int:
  digest = hashlib.sha256(each.package.encode()).hexdigest()
  return int(digest[:16], 16)


def _split(each: Description) -> str:
  number = _hash(each) % 100
  if number < _TRAIN_SHARE:
    return "train"
  return "dev" if number < _TRAIN_SHARE + _DEV_SHARE else "test"


def _draw_queries(
  english: Sequence[Description],
  translated: Mapping[str, Mapping[str, Description]],
) -> dict[str, dict[str, dict[str, str]]]:
  """Draws the queries: language to split to MD5 to query id.

  Packages are taken in the order of their hashes, so the languages share most
  of them. A package has one id in all languages.
  """
  ordered = sorted(english, key=_hash)
  drawn: dict[str, dict[str, dict[str, str]]] = {}
  ids: dict[str, str] = {}
  counts = dict.fromkeys(_MAX_QUERIES, 0)
  for language in ("en", *translated):
    splits = ("dev", "test") if language == "en" else ("test",)
    drawn[language] = {split: {} for split in splits}
    for split, chosen in drawn[language].items():
      for each in ordered:
        if len(chosen) == _MAX_QUERIES[split]:
          break
        if _split(each) != split or (
          language != "en" and each.md5 not in translated[language]
        ):
          continue
        if each.md5 not in ids:
          ids[each.md5] = f"{split}{counts[split]}"
          counts[split] += 1
        chosen[each.md5] = ids[each.md5]
  return drawn


def _make_test(
  language: str,
  found: Sequence[Description],
  drawn: Mapping[str, Mapping[str, Mapping[str, str]]],
) -> tuple[list[records.Passage], dict[str, list[layout.Query]]]:
  """Makes a language's passages, in the order of their MD5, and queries."""
  wanted = {md5 for ids in drawn[language].values() for md5 in ids}
  others = sorted(
    (e for e in found if _split(e) != "train" and e.md5 not in wanted),
    key=_hash,
  )
  by_md5 = {each.md5: each for each in found}
  chosen = [by_md5[md5] for md5 in wanted] + others[
    : max(0, _MAX_PASSAGES - len(wanted))
  ]
  queries = {
    split: [
      layout.Query(
        query_id, by_md5[md5].short, (by_md5[md5].passage.passage_id,)
      )
      for md5, query_id in ids.items()
    ]
    for split, ids in drawn[language].items()
  }
  ordered = sorted(chosen, key=lambda each: each.md5)
  return [each.passage for each in ordered], queries


def _translated_lines(
  pairs: Iterable[tuple[Description, Description]], tested: set[str]
) -> list[tuple[str, str]]:
  """Returns short descriptions with their translations, without repeats."""
  sentences = dict.fromkeys(
    (original.short, translation.short) for original, translation in pairs
  )
  return [
    pair
    for pair in sentences
    if not any(layout.same(side) in tested for side in pair)
  ]


def _lines(found: Iterable[Description], tested: set[str]) -> list[str]:
  """Returns short descriptions and paragraphs, without repeats."""
  lines = dict.fromkeys(
    line for each in found for line in (each.short, *each.paragraphs)
  )
  return [line for line in lines if layout.same(line) not in tested]
