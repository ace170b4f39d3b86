"""Adds data sets that a library finds by name to a collection."""

import dataclasses
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mlir_jax.data import languages, records
from mlir_jax.data.collections import fingerprints, layout, pair_files
from mlir_jax.data.sources import (
  containers,
  text_records,
  translation_records,
  translations,
)
from mlir_jax.data.sources.named import hub_sets, judged_sets, tfds_sets
from mlir_jax.data.sources.named import setting as setting_lib
from mlir_jax.data.sources.pairs import reading, registry

_READERS = {"datasets": hub_sets.read, "tfds": tfds_sets.read}


@dataclasses.dataclass(frozen=True)
class NamedSet:
  """A data set, as a part of a collection.

  Attributes:
    setting: What the config says.
    languages: The languages of its texts.
    read: Yields the records of its stream, or the test.
    notes: Returns lines that say what it was read as.
    name: The name in the config, which is that of the source.
  """

  setting: setting_lib.Setting
  languages: tuple[str, ...]
  read: Callable[[records.BadRecords], Iterator[Any]]
  notes: Callable[[], Sequence[str]] = tuple
  name: str = ""


def _values(
  setting: setting_lib.Setting,
) -> Iterator[tuple[records.Place, dict[str, Any]]]:
  """Yields the place and the fields of each example of a data set."""
  examples = _READERS[setting.library](setting)
  for number, example in enumerate(examples, start=1):
    yield records.Place(setting.place, number, number), example


class _Pairs(reading.PairFile):
  """The question-passage pairs of a data set, in any format of pairs."""

  def __init__(self, setting: setting_lib.Setting, settings, formats):
    named = setting.languages
    super().__init__(
      pathlib.Path(setting.place),
      language=(*named, languages.code(settings.language))[0],
      is_named=bool(named),
      formats=formats,
      format_name=settings.format,
      use_prompts=settings.prompts == "use",
    )
    self._setting = setting

  def _read_values(
    self, bad_records: records.BadRecords
  ) -> Iterator[tuple[records.Place, Any]]:
    del bad_records  # The library decodes all examples.
    return _values(self._setting)

  def notes(self) -> list[str]:
    """Describes the last whole pass."""
    lines = self.seen.describe(self._setting.place) if self.seen else []
    return [records.printable(line) for line in lines]


def _pairs(
  setting: setting_lib.Setting, settings: pair_files.Settings
) -> NamedSet:
  pairs = _Pairs(setting, settings, registry.find(settings.formats))
  found = setting.languages or (languages.code(settings.language),)
  return NamedSet(setting, found, pairs.read, pairs.notes)


def _parallel(setting: setting_lib.Setting, margin: float) -> NamedSet:
  codes = setting.languages[0], setting.languages[1]
  kinds: dict[str, None] = {}  # Of the last pass.

  def read(bad_records: records.BadRecords):
    own = records.BadRecordsOfFile(bad_records)
    margins = translations.Margins(margin, setting.place, bad_records)
    values = _values(setting)
    first = next(values, None)
    if not first:
      raise records.RecordError(f"{setting.place} holds no example.")
    form = translation_records.form_of(*first, codes)
    kinds[form.kind] = None
    pairs = containers.parse_all(
      itertools.chain([first], values),
      setting.place,
      own,
      lambda value: form.parse(value, margins),
    )
    return translations.kept(pairs, setting.place)

  return NamedSet(
    setting,
    codes,
    read,
    lambda: [f"{setting.place}: {kind}" for kind in kinds],
  )


def _monolingual(setting: setting_lib.Setting) -> NamedSet:
  (language,) = setting.languages

  def read(bad_records: records.BadRecords):
    return containers.parse_all(
      _values(setting),
      setting.place,
      records.BadRecordsOfFile(bad_records),
      lambda value: text_records.parse(value, language),
    )

  return NamedSet(
    setting,
    setting.languages,
    read,
    lambda: [f'{setting.place}: the texts of the field "text"'],
  )


def _judged(
  setting: setting_lib.Setting, selects: Callable[[str], bool]
) -> NamedSet:
  found = judged_sets.JudgedSet(setting)
  language = found.language
  is_dev = setting.stream == "test" and setting.split == "dev"
  if is_dev and not selects(language):
    raise ValueError(
      f"{setting.field}: eval.selection does not name this dev split. A dev"
      " split selects the model, so its language would not be zero-shot. Set"
      f" eval.selection, such as dev/{language}/mrr@100, if that is meant."
    )

  def read(bad_records: records.BadRecords):
    if setting.stream == "test":
      return iter([found.read_test(bad_records)])
    return found.read_pairs(bad_records)

  return NamedSet(
    setting,
    (language,),
    read,
    lambda: [
      f"{setting.place}: read as {setting.stream}, {language}"
      + ", without judgements" * found.hidden
    ],
  )


def find(
  sets: Mapping[str, str],
  pairs: pair_files.Settings = pair_files.DEFAULTS,
  margin: float = 0.0,
  selects: Callable[[str], bool] = layout.is_english,
  prefix: str = "data.sets.",
) -> list[NamedSet]:
  """Finds the data sets that a config names. They are read when needed.

  Args:
    sets: The config's data.sets: name to "LIBRARY:NAME KEY=VALUE …".
    pairs: What the config says about pairs.
    margin: The lowest margin of a translation that is kept, where an example
      says the margin.
    selects: Whether the dev set of a language selects the model.
    prefix: What precedes the names in messages.

  Raises:
    ValueError: if a setting cannot be used, its library is not installed, or
      ir_datasets has no such data set; it names the field.
  """
  found = []
  for name, value in sets.items():
    setting = setting_lib.parse(f"{prefix}{name}", value)
    setting_lib.check_installed(setting)
    if setting.library == "ir_datasets":
      found.append(_judged(setting, selects))
    elif setting.stream == "retrieval":
      found.append(_pairs(setting, pairs))
    elif setting.stream == "parallel":
      found.append(_parallel(setting, margin))
    else:
      found.append(_monolingual(setting))
    if setting.stream != "test":
      found[-1] = _with_source(name, found[-1])
  return found


def _with_source(name: str, named: NamedSet) -> NamedSet:
  """Returns a data set whose records have the name of their source."""
  return dataclasses.replace(
    named,
    name=name,
    read=lambda bad_records: records.of_source(name, named.read(bad_records)),
  )


def _hash(named: NamedSet) -> str:
  """Returns SHA-256 of all records of a data set, and of how it is read."""
  digest = hashlib.sha256(repr(named.setting[2:]).encode())
  for record in named.read(records.BadRecords("skip")):
    digest.update(repr(record).encode("utf-8", "backslashreplace"))
  return digest.hexdigest()


def _groups(
  groups: Mapping[str, str], sets: Sequence[NamedSet]
) -> dict[str, str]:
  """Adds the languages of data sets to a collection's groups."""
  merged = dict(groups)
  for named in sets:
    for language in named.languages:
      if named.setting.stream == "parallel" and language != "en":
        merged[language] = "with parallel text"
      merged.setdefault(
        language,
        "English" if language == "en" else "without parallel text",
      )
  return merged


def _sources(
  collection: records.Collection, sets: Sequence[NamedSet]
) -> list[str] | None:
  """Returns the sources of a collection and of data sets; None if unknown."""
  known = collection.sources()
  if known is None:
    return None
  own = (named.name for named in sets if named.setting.stream != "test")
  return [*known, *own]


def _tests(
  collection: records.Collection,
  sets: Sequence[NamedSet],
  bad_records: records.BadRecords,
) -> tuple[records.RetrievalTest, ...]:
  """Returns the tests of a collection and of data sets."""
  tests = list(collection.tests())
  places = {(test.split, test.language): collection.name for test in tests}
  for named in sets:
    for test in named.read(bad_records):
      key = test.split, test.language
      if key in places:
        raise ValueError(
          f"{places[key]} and {named.setting.field} are both a {test.split} set"
          f" in {test.language!r}; keep one."
        )
      places[key] = named.setting.field
      tests.append(test)
  return tuple(tests)


def added(
  collection: records.Collection,
  sets: Sequence[NamedSet],
  bad_records: records.BadRecords,
) -> records.Collection:
  """Returns a collection with more data sets.

  Args:
    collection: The collection.
    sets: From `find`.
    bad_records: Receives every bad record of the data sets.
  """
  if not sets:
    return collection

  def of(stream: str) -> list[NamedSet]:
    return [named for named in sets if named.setting.stream == stream]

  def parts_of(stream: str) -> list[records.Part]:
    # Without parts, one process reads all.
    parts = [records.Part((), lambda _: iter(getattr(collection, stream)()))]
    if collection.parts is not None:
      parts = collection.parts.get(stream, ())
    return [
      *parts,
      *(records.Part((), named.read, named.notes) for named in of(stream)),
    ]

  parts = {stream: parts_of(stream) for stream in records.STREAMS}

  def fingerprint() -> str:
    trained = [named for named in sets if named not in of("test")]
    hashes = {named.setting.field: _hash(named) for named in trained}
    return fingerprints.join(collection.fingerprint(), hashes)

  return dataclasses.replace(
    collection,
    **{
      stream: records.chained(each, bad_records)
      for stream, each in parts.items()
    },
    tests=lambda: _tests(collection, of("test"), bad_records),
    groups=_groups(collection.groups, sets),
    sources=lambda: _sources(collection, sets),
    fingerprint=fingerprint,
    notes=lambda: [
      *collection.notes(),
      *(line for named in sets for line in named.notes()),
    ],
    parts=None if collection.parts is None else parts,
  )


def empty() -> records.Collection:
  """Returns the collection "sets": it holds data.sets alone."""
  return records.Collection(
    name="sets",
    retrieval=tuple,
    parallel=tuple,
    monolingual=tuple,
    tests=tuple,
    translation_tests=tuple,
    groups={"en": "English"},
    fingerprint=lambda: hashlib.sha256().hexdigest(),
    notes=tuple,
    sources=list,
    parts={},
  )
