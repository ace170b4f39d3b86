"""Makes the quick start's collection from names and facts of the Unicode CLDR.

The names of territories, languages, currencies and cities were written by
speakers of each language. They come with the Babel library; nothing is
downloaded. The facts are the same in every language: the languages,
currencies and cities of a territory, and the territories of a language, a
currency and a city. A question is the name of an entity. A passage holds the
names of the entities to which one relation leads:

  query    Finland
  passage  Finnish · English · Swedish · German · Skolt Sami

Only English has question-passage pairs. So the collection measures how facts
that are learned in English transfer to other languages, through names that are
translated one by one (`PARALLEL`) or only seen (`SAME_SCRIPT`, `OWN_SCRIPT`).
Rules:

- Each name is in the language's own sheet. These are left out and counted:
  codes in place of names, names that are missing and would be filled in from
  English or the root sheet, and names that an earlier entity of the language
  has, too.
- A passage never contains its question's name, in upper or lower case: such
  answers are left out. Lists longer than `MAX_NAMES` are cut into even parts,
  with a passage for each. A passage of a single name would be the text of
  another question, so the first language and currency of its territory are
  added. A passage that still has a single name is left out.
- Equal texts are one passage, which is relevant for every question that it
  answers: Russia's cities share one.
- A tenth of the English passages, chosen by a hash of their ids, is in no pair:
  the English "dev" split asks for them. They can be answered, because training
  holds many of these facts in the other direction (a currency's territory, a
  territory's currency). The "test" splits, English too, ask in each language
  for the facts of training, and hold no dev passage.
"""

import collections
import functools
import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import babel
from babel import core, localedata

from mlir_jax.data import records

# Languages with translated names; languages without pairs, whose script English
# or one of the former uses; and languages without pairs in a script of their
# own: the negative control.
PARALLEL = ("de", "fr", "es", "ru", "ar", "ja")
SAME_SCRIPT = ("fi", "id", "sw", "hu")
OWN_SCRIPT = ("ko", "te", "th", "bn")
LANGUAGES = ("en", *PARALLEL, *SAME_SCRIPT, *OWN_SCRIPT)
GROUPS = {
  "en": "English",
  **dict.fromkeys(PARALLEL, "with parallel names"),
  **dict.fromkeys(SAME_SCRIPT, "monolingual names, same script"),
  **dict.fromkeys(OWN_SCRIPT, "monolingual names, own script"),
}

SEPARATOR = " · "  # No name contains it.
MAX_NAMES = 8  # In a passage.
# A language that is not official in a territory counts from this percentage of
# the inhabitants.
MIN_PERCENT_SPEAKERS = 1.0
DEV_SHARE = 10  # One passage in so many is in dev.
# Entities that the tests ask for. Each language asks for those that it names.
MAX_TEST_QUERIES = 500

# The prefixes of the Unicode names of a script's letters; others have LATIN.
_LETTERS = {
  "ru": ("CYRILLIC",),
  "ar": ("ARABIC",),
  "ja": ("HIRAGANA", "KATAKANA", "CJK"),
  "ko": ("HANGUL",),
  "te": ("TELUGU",),
  "th": ("THAI",),
  "bn": ("BENGALI",),
}
_SHEETS = {
  "territory": "territories",
  "language": "languages",
  "currency": "currency_names",
}
# CLDR's codes for "unknown", "several", "none" and for tests.
_PLACEHOLDERS = frozenset(
  ("ZZ", "XA", "XB", "und", "mul", "mis", "zxx", "XXX", "XTS")
)


class _Fact(NamedTuple):
  """One relation of an entity, or a part of it. Entities have their ids."""

  entity: str
  answers: tuple[str, ...]


class _Sheet(NamedTuple):
  """The names and passages of one language.

  Attributes:
    names: Entity id ("territory/CH") to its name.
    passages: Passage id ("territory/CH/languages") to its text, in the order
      of ids. Equal texts are not merged yet.
    dropped: The reason for leaving something out to its count.
  """

  names: Mapping[str, str]
  passages: Mapping[str, str]
  dropped: Mapping[str, int]


def load() -> records.Collection:
  """Returns the collection; its order is the same on every machine."""
  return records.Collection(
    name="cldr",
    retrieval=_retrieval,
    parallel=_parallel,
    monolingual=_monolingual,
    tests=_tests,
    translation_tests=tuple,
    groups=GROUPS,
    sources=lambda: [""],
    fingerprint=_fingerprint,
    notes=_notes,
  )


def drop_counts() -> dict[str, dict[str, int]]:
  """Counts what was left out: language to reason to count.

  "answers with the question's name" counts names in passages, "passages of
  fewer than two names" counts passages that were left out, and "passages equal
  to another" counts passages that were merged.
  """
  return {language: dict(_sheet(language).dropped) for language in LANGUAGES}


def _fingerprint() -> str:
  """Hashes the data's release and Babel's, which may change the data's form."""
  release = f"CLDR {core.get_global('cldr')['version']}"
  text = f"{release}, Babel {babel.__version__}"
  return hashlib.sha256(text.encode()).hexdigest()


def _notes() -> tuple[str, ...]:
  """Sums `drop_counts` over all languages; returns a line for each reason."""
  totals = sum(
    map(collections.Counter, drop_counts().values()), collections.Counter()
  )
  return tuple(
    f"CLDR, left out: {reason} {count:,}"
    for reason, count in sorted(totals.items())
  )


def _is_code(name: str, code: str) -> bool:
  return name == code or name.isdigit()


def _own_names(language: str) -> tuple[dict[str, str], collections.Counter]:
  """Reads a language's own names.

  Returns:
    Entity id to name; and the counts of names that were left out, by reason.
  """
  # Do not use merge_inherited=False: Babel caches both forms under one key.
  # Merged data inherit only from the root sheet, never from English.
  sheet, root, english = map(localedata.load, (language, "root", "en"))
  territories = core.get_global("territory_languages")
  candidates = [
    (f"{kind}/{code}", code, sheet[field].get(code), root[field].get(code))
    for kind, field in _SHEETS.items()
    for code in sorted(english[field])
    if code not in _PLACEHOLDERS
  ]
  for zone, territory in sorted(core.get_global("zone_territories").items()):
    if territory not in territories:
      continue
    name, inherited = (
      data["time_zones"].get(zone, {}).get("city") for data in (sheet, root)
    )
    if language == "en":
      # UTS #35: a city without an entry is named after its zone's English id.
      name = name or zone.rpartition("/")[2].replace("_", " ")
      inherited = None
    candidates.append((f"city/{zone}", zone, name, inherited))

  names = {}
  dropped = collections.Counter()
  taken = set()
  letters = _LETTERS.get(language, ("LATIN",))
  for entity, code, name, inherited in candidates:
    if name and _is_code(name, code):
      dropped["codes in place of names"] += 1
    elif (
      not name
      or name == inherited
      or not any(unicodedata.name(c, "").startswith(letters) for c in name)
    ):
      dropped["names missing (English or root would stand in)"] += 1
    elif name in taken:
      dropped["names of another entity"] += 1
    else:
      taken.add(name)
      names[entity] = name
  return names, dropped


@functools.cache
def _relations() -> Mapping[str, Mapping[str, tuple[str, ...]]]:
  """Returns entity id to relation to the entities to which it leads."""
  spoken = core.get_global("territory_languages")
  tender = core.get_global("territory_currencies")
  related = collections.defaultdict(lambda: collections.defaultdict(list))
  for code in sorted(spoken):
    territory = f"territory/{code}"
    languages = sorted(
      spoken[code].items(), key=lambda item: -item[1]["population_percent"]
    )
    # "zh_Hant" is Chinese, too: another script is not another language.
    for language in dict.fromkeys(
      tag.partition("_")[0]
      for tag, use in languages
      if use["official_status"]
      or use["population_percent"] >= MIN_PERCENT_SPEAKERS
    ):
      related[territory]["languages"].append(f"language/{language}")
      related[f"language/{language}"]["territories"].append(territory)
    for currency, _, end, is_tender in tender.get(code, ()):
      if is_tender and end is None:
        related[territory]["currencies"].append(f"currency/{currency}")
        related[f"currency/{currency}"]["territories"].append(territory)
  for zone, code in sorted(core.get_global("zone_territories").items()):
    if code in spoken:
      related[f"territory/{code}"]["cities"].append(f"city/{zone}")
      related[f"city/{zone}"]["territory"].append(f"territory/{code}")
  return {
    entity: {relation: tuple(found) for relation, found in relations.items()}
    for entity, relations in related.items()
  }


@functools.cache
def _facts() -> Mapping[str, _Fact]:
  """Returns passage id to fact, in the order of ids."""
  facts = {}
  for entity, relations in _relations().items():
    for relation, answers in relations.items():
      parts = -(-len(answers) // MAX_NAMES)
      for part in range(parts):
        name = f"{entity}/{relation}" + (f"/{part}" if parts > 1 else "")
        start, end = (len(answers) * edge // parts for edge in (part, part + 1))
        facts[name] = _Fact(entity, answers[start:end])
  return dict(sorted(facts.items()))


@functools.cache
def _sheet(language: str) -> _Sheet:
  """Makes the names and passages of a language."""
  names, dropped = _own_names(language)
  passages = {}
  for passage_id, fact in _facts().items():
    if fact.entity not in names:
      continue
    question = names[fact.entity].casefold()

    def nameable(entities: Iterable[str], question=question) -> list[str]:
      return [
        entity
        for entity in entities
        if entity in names and question not in names[entity].casefold()
      ]

    answers = nameable(fact.answers)
    dropped["answers with the question's name"] += sum(
      answer in names for answer in fact.answers
    ) - len(answers)
    if len(answers) == 1:
      is_territory = fact.entity.startswith("territory/")
      about = _relations()[fact.entity if is_territory else answers[0]]
      context = [
        entity
        for relation in ("languages", "currencies")
        for entity in about.get(relation, ())[:1]
      ]
      answers += [e for e in nameable(context) if e not in answers]
    if len(answers) < 2:
      dropped["passages of fewer than two names"] += 1
    else:
      passages[passage_id] = SEPARATOR.join(names[e] for e in answers)
  merged = len(passages) - len(set(passages.values()))
  dropped["passages equal to another"] += merged
  return _Sheet(names, passages, dropped)


def _hash(text: str) -> int:
  """Returns a number that is the same on every machine and in every process."""
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _first_ids(
  passages: Mapping[str, str], passage_ids: Iterable[str]
) -> dict[str, str]:
  """Returns each text of the passages to the first id that has it."""
  first = {}
  for passage_id in passage_ids:
    first.setdefault(passages[passage_id], passage_id)
  return first


@functools.cache
def _split_english() -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Returns the ids of the English passages of training, and of dev."""
  passages = _sheet("en").passages
  # Split by the first id of the text, so that equal texts are on one side.
  first = _first_ids(passages, passages)
  split = ([], [])
  for passage_id, text in passages.items():
    split[_hash(first[text]) % DEV_SHARE == 0].append(passage_id)
  trained, dev = split
  return tuple(trained), tuple(dev)


def _retrieval() -> Iterator[records.RetrievalRecord]:
  names, passages, _ = _sheet("en")
  trained, _ = _split_english()
  first = _first_ids(passages, trained)
  for passage_id in trained:
    text = passages[passage_id]
    yield records.RetrievalRecord(
      question=names[_facts()[passage_id].entity],
      positives=(records.Passage(text, passage_id=first[text]),),
      language="en",
    )


def _parallel() -> Iterator[records.ParallelRecord]:
  english = _sheet("en").names
  for language in PARALLEL:
    for entity, name in _sheet(language).names.items():
      if entity in english:
        yield records.ParallelRecord(english[entity], name, "en", language)


def _monolingual() -> Iterator[records.MonolingualRecord]:
  for language in (*SAME_SCRIPT, *OWN_SCRIPT):
    for name in _sheet(language).names.values():
      yield records.MonolingualRecord(name, language)


def _make_test(
  language: str, split: str, asked: Iterable[str], corpus: Iterable[str]
) -> records.RetrievalTest:
  """Makes a test.

  Args:
    language: The test's language.
    split: "test" or "dev".
    asked: Ids of the passages whose entities are the queries.
    corpus: Ids of the passages to search.

  Returns:
    The test. A passage of the corpus is relevant for a query if it has the text
    of any fact about the query's entity. Facts outside `asked` count, too.
  """
  names, passages, _ = _sheet(language)
  facts = _facts()
  first = _first_ids(passages, corpus)
  entities = {facts[passage_id].entity for passage_id in asked}
  qrels = {entity: {} for entity in sorted(entities)}
  for passage_id, text in passages.items():
    entity = facts[passage_id].entity
    if entity in entities and text in first:
      qrels[entity][first[text]] = 1
  return records.RetrievalTest(
    language=language,
    split=split,
    passages=tuple(
      records.Passage(text, passage_id=passage_id)
      for text, passage_id in first.items()
    ),
    queries={entity: names[entity] for entity in qrels},
    qrels=qrels,
  )


def _make_dev() -> records.RetrievalTest:
  """Makes the English dev split.

  Its corpus lacks the answers to dev questions that training holds. They would
  be right, but the split asks for other ones.
  """
  passages = _sheet("en").passages
  trained, dev = _split_english()
  facts = _facts()
  asked = {facts[passage_id].entity for passage_id in dev}
  known = {passages[p] for p in trained if facts[p].entity in asked}
  distractors = [p for p in trained if passages[p] not in known]
  return _make_test("en", "dev", dev, sorted((*dev, *distractors)))


def _tests() -> tuple[records.RetrievalTest, ...]:
  trained, _ = _split_english()
  facts = _facts()
  entities = sorted({facts[p].entity for p in trained}, key=_hash)
  chosen = set(entities[:MAX_TEST_QUERIES])
  tests = [_make_dev()]
  for language in LANGUAGES:
    passages = _sheet(language).passages
    corpus = [p for p in trained if p in passages]
    asked = [p for p in corpus if facts[p].entity in chosen]
    tests.append(_make_test(language, "test", asked, corpus))
  return tuple(tests)
