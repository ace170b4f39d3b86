"""Makes a collection from LibreOffice's help, as Debian packages it.

The package libreoffice-help-XX has the help in a language: a page of HTML for
each topic, at the same path in all languages. Its heading is the query of its
text. A paragraph has the same id in all languages, so paragraphs are aligned
with their English ones:

- ir/ has the English pairs: a page's heading, and the beginning of its text;
- parallel/ has paragraphs in English and in each language;
- mono/ has the paragraphs of `MONOLINGUAL`;
- eval/ asks for texts by headings. English also has a dev split.

A hash of its path puts a page into train, dev, test or the distractors. A
training paragraph that is in a page of the tests, too, is left out. A page that
is not translated has English paragraphs: such pages and paragraphs are left
out.
"""

import hashlib
import html.parser
import io
import lzma
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from mlir_jax import bars
from mlir_jax.corpora import corpus, damage, debian, downloads, layout
from mlir_jax.data import records
from mlir_jax.storage import reading

LANGUAGES = ("en", "cs", "de", "el", "es", "fr", "hi", "it", "nl", "ru", "sv")
LANGUAGES += ("tr", "zh")
MONOLINGUAL = ("cs", "nl", "sv", "tr")
# Debian's codes of a language.
_CODES = {"en": "en-us", "zh": "zh-cn"}

# Of 100 pages: up to which number a page is of the split.
_SHARES = {"train": 47, "dev": 52, "test": 80, "distractors": 100}
_MIN_QUERIES = 200  # A language with fewer has no test.
_MAX_PARALLEL = 12_000  # Of a language.
_MAX_LINES = 15_000
_MAX_WORDS = 150  # Of a passage.
_MAX_CHARACTERS = 1000  # Of one in Chinese, which has no spaces.
_MIN_CHARACTERS = {"zh": 40}  # Of a passage in another language: 100.
_MIN_WORDS = 3  # Of an English paragraph that is aligned.
# The share of a page's paragraphs that must be translated.
_MIN_TRANSLATED = 0.7

_PAGE = re.compile(r".*/help/[^/]+/text/(.+)\.html")
_AR_MAGIC = b"!<arch>\n"
# A name, four numbers and the size in bytes.
_AR_HEADER = re.compile(rb"([ -~]{16})[ -~]{32}([0-9]{1,10}) *`\n")


class Page(NamedTuple):
  """A page of the help.

  Attributes:
    title: Its heading.
    paragraphs: Id to text, in the page's order, without the heading.
  """

  title: str
  paragraphs: Mapping[str, str]

  def text(self) -> str:
    """Returns the beginning of the page's text, in one line."""
    words = " ".join(self.paragraphs.values()).split()[:_MAX_WORDS]
    return " ".join(words)[:_MAX_CHARACTERS]


def list_files(
  request: corpus.Request, folder: pathlib.Path
) -> Iterator[downloads.File]:
  """Yields the release's lists, then a package for each language."""
  release = request.variant
  listed_at = f"{request.base}/dists/{release}"
  name = "main/binary-amd64/Packages.xz"
  yield downloads.File(f"{listed_at}/Release", f"{release}/Release")
  path = folder / release / "Release"
  size, sha256 = None, ""
  if path.exists():
    size, sha256 = debian.read_release(path).get(name, (None, ""))
  packages = f"{release}/Packages.xz"
  yield downloads.File(f"{listed_at}/{name}", packages, size, sha256)
  path = folder / packages
  found = _read_packages(path) if path.exists() else {}
  for language in dict.fromkeys(("en", *request.languages)):
    package = _package(language)
    if found and package not in found:
      raise ValueError(f"{path}: the release has no package {package}.")
    fields = found.get(package, {"Filename": f"pool/…/{package}_….deb"})
    yield downloads.File(
      f"{request.base}/{fields['Filename']}",
      f"{release}/{package}.deb",
      int(fields["Size"]) if "Size" in fields else None,
      fields.get("SHA256", ""),
    )


def build(
  request: corpus.Request, raw: pathlib.Path, folder: pathlib.Path
) -> list[str]:
  """Writes the collection; see `corpus.Corpus`."""
  raw = raw / request.variant
  english = _unique(read_pages(raw / f"{_package('en')}.deb"))
  ids = _number(english)
  train = [name for name in english if _split(name) == "train"]
  notes = []
  tested = _write_test(folder, "en", english, ids, notes)
  translated = {}
  for language in request.languages:
    if language == "en":
      continue
    pages = read_pages(raw / f"{_package(language)}.deb")
    translated[language] = {
      name: _translation(english[name], pages[name])
      for name in english
      if name in pages
    }
    tested |= _write_test(folder, language, translated[language], ids, notes)

  pairs = [
    (english[name].title, records.Passage(english[name].text(), "", name))
    for name in train
    if _is_whole(english[name], "en")
  ]
  count = layout.write_pairs(folder, "libreoffice", pairs)
  notes.append(f"ir: {count:,} pairs")
  for language, pages in translated.items():
    aligned = dict.fromkeys(
      (source, target)
      for name in train
      if name in pages
      for key, target in pages[name].paragraphs.items()
      if len((source := english[name].paragraphs[key]).split()) >= _MIN_WORDS
      and tested.isdisjoint({layout.same(source), layout.same(target)})
    )
    count = layout.write_parallel(
      folder, "libreoffice", ("en", language), list(aligned)[:_MAX_PARALLEL]
    )
    notes.append(f"parallel/en-{language}: {count:,} pairs")
    if language in MONOLINGUAL:
      lines = dict.fromkeys(
        text
        for name in train
        if name in pages
        for text in pages[name].paragraphs.values()
        if layout.same(text) not in tested
      )
      count = layout.write_monolingual(
        folder, "libreoffice", language, list(lines)[:_MAX_LINES]
      )
      notes.append(f"mono/{language}: {count:,} lines")
  return notes


def read_pages(path: pathlib.Path) -> dict[str, Page]:
  """Reads the pages of a package.

  Args:
    path: A .deb: an ar archive with data.tar, compressed.

  Returns:
    The path of a page below text/, without .html, to the page; in the order of
    the paths. Pages without a heading are left out.

  Raises:
    UnreadableError: if the file is damaged.
  """
  pages = {}
  data = io.BytesIO(_read_data(path))
  with damage.open_tar(path, data) as archive:
    for member in bars.bar(archive, path.name, unit="file", delay=2):
      match = _PAGE.fullmatch(member.name)
      if match and member.isfile():
        file = archive.extractfile(member)
        assert file  # Since it is a file.
        parser = _PageParser()
        parser.feed(file.read().decode("utf-8"))
        if page := parser.page():
          pages[match[1]] = page
  return dict(sorted(pages.items()))


class _PageParser(html.parser.HTMLParser):
  """Collects the heading and the paragraphs of a page."""

  _VOID = ("br", "img", "input", "link", "meta", "hr", "area", "col", "wbr")

  def __init__(self):
    super().__init__()
    self._texts: dict[str, list[str]] = {}
    self._heading = ""
    self._key = ""  # Of the paragraph that is open.
    self._tag = ""  # Its tag.
    self._skipped = 0  # Tags that are open in a part that is left out.

  def handle_starttag(self, tag, attrs):
    """Opens a paragraph, or a part that is left out."""
    if tag in self._VOID:
      return
    named = dict(attrs)
    if self._skipped:
      self._skipped += 1
    elif self._key and named.get("class") == "MAC":
      self._skipped = 1  # The keys of another system.
    key = named.get("id") or ""
    if key.startswith(("par_id", "hd_id")):
      self._key, self._tag, self._skipped = key, tag, 0
      self._texts[key] = []
      if tag == "h1" and not self._heading:
        self._heading = key

  def handle_endtag(self, tag):
    """Closes a paragraph, or a part that is left out."""
    if self._skipped:
      self._skipped -= 1
    elif tag == self._tag:
      self._key = self._tag = ""

  def handle_data(self, data):
    """Adds text to the paragraph that is open."""
    if self._key and not self._skipped:
      self._texts[self._key].append(data)

  def page(self) -> Page | None:
    """Returns the page; None if it has no heading."""
    texts = {
      key: text
      for key, parts in self._texts.items()
      if (text := layout.one_line("".join(parts)))
    }
    title = texts.pop(self._heading, "")
    return Page(title, texts) if title else None


def _package(language: str) -> str:
  return f"libreoffice-help-{_CODES.get(language, language)}"


def _read_packages(path: pathlib.Path) -> dict[str, dict[str, str]]:
  """Reads where the packages of the help are: package to fields."""
  found: dict[str, dict[str, str]] = {}
  fields: dict[str, str] = {}
  with (
    damage.naming(path),
    lzma.open(path, "rt", encoding="utf-8") as file,
  ):
    for line in file:
      name, _, value = line.partition(": ")
      if name == "Package":
        fields = {}
        if value.startswith("libreoffice-help-"):
          found[value.strip()] = fields
      elif name in ("Filename", "Size", "SHA256"):
        fields[name] = value.strip()
  return found


def _read_data(path: pathlib.Path) -> bytes:
  """Returns data.tar of a .deb, still compressed (deb(5), ar(5))."""
  content = path.read_bytes()
  place = len(_AR_MAGIC)
  while content.startswith(_AR_MAGIC) and (
    header := _AR_HEADER.match(content, place)
  ):
    name, size = header[1], int(header[2])
    place = header.end()
    if name.startswith(b"data.tar"):
      return content[place : place + size]
    place += size + size % 2
  raise reading.UnreadableError(
    f"{path} is not a Debian package, or has no data.tar. {damage.MEND}"
  )


def _unique(pages: Mapping[str, Page]) -> dict[str, Page]:
  """Returns the pages whose heading and text no page before has."""
  kept, seen = {}, set()
  for name, page in pages.items():
    keys = {
      ("title", layout.same(page.title)),
      ("text", layout.same(page.text())),
    }
    if seen.isdisjoint(keys):
      seen |= keys
      kept[name] = page
  return kept


def _split(name: str) -> str:
  number = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) % 100
  return next(split for split, end in _SHARES.items() if number < end)


def _number(english: Mapping[str, Page]) -> dict[str, str]:
  """Returns the query ids of the dev and test pages, alike in all languages."""
  counts = {"dev": 0, "test": 0}
  ids = {}
  for name in english:
    if (split := _split(name)) in counts:
      ids[name] = f"{split}{counts[split]}"
      counts[split] += 1
  return ids


def _translation(english: Page, page: Page) -> Page:
  """Returns what is translated of a page; "" for its heading if it is not."""
  translated = {
    key: text
    for key, text in page.paragraphs.items()
    if key in english.paragraphs
    and layout.same(text) != layout.same(english.paragraphs[key])
  }
  is_whole = layout.same(page.title) != layout.same(english.title) and len(
    translated
  ) >= _MIN_TRANSLATED * len(page.paragraphs)
  return Page(page.title if is_whole else "", translated)


def _is_whole(page: Page, language: str) -> bool:
  """Whether a page has a heading and enough text to be a passage."""
  minimum = _MIN_CHARACTERS.get(language, 100)
  return bool(page.title) and len(page.text()) >= minimum


def _write_test(
  folder: pathlib.Path,
  language: str,
  pages: Mapping[str, Page],
  ids: Mapping[str, str],
  notes: list[str],
) -> set[str]:
  """Writes the test of a language, if it is large enough.

  Returns:
    All headings and paragraphs of the pages outside of training, as
    `layout.same` makes them.
  """
  outside = {n: page for n, page in pages.items() if _split(n) != "train"}
  whole = {n: page for n, page in outside.items() if _is_whole(page, language)}
  queries: dict[str, list[layout.Query]] = {}
  for split in ("dev", "test") if language == "en" else ("test",):
    queries[split] = [
      layout.Query(ids[name], page.title, (name,))
      for name, page in whole.items()
      if _split(name) == split
    ]
  if language == "en" or len(queries["test"]) >= _MIN_QUERIES:
    count = layout.write_test(
      folder,
      language,
      [records.Passage(page.text(), "", name) for name, page in whole.items()],
      queries,
    )
    sizes = ", ".join(f"{len(of)} {s} queries" for s, of in queries.items())
    notes.append(f"eval/{language}: {count:,} passages, {sizes}")
  else:
    notes.append(
      f"no test in {language}: only {len(queries['test'])} pages are translated"
    )
  return {
    layout.same(text)
    for page in outside.values()
    for text in (page.title, *page.paragraphs.values())
    if text
  }
