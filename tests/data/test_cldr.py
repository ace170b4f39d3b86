"""The embedded collection keeps what its docstring promises."""

import collections
import dataclasses
import functools
import hashlib
import json
import operator
import os
import re
import subprocess
import sys

import pytest
from babel import localedata

from mlir_jax.data.collections import cldr

# The code checks scripts in another way: by the names of letters.
SCRIPTS = {
  "ru": "[\u0400-\u04ff]",
  "ar": "[\u0600-\u06ff]",
  "ja": "[\u3040-\u30ff\u4e00-\u9fff]",
  "ko": "[\uac00-\ud7af]",
  "te": "[\u0c00-\u0c7f]",
  "th": "[\u0e00-\u0e7f]",
  "bn": "[\u0980-\u09ff]",
}
COLLECTION = cldr.load()


TESTS = COLLECTION.tests()


def select(split="test"):
  return [test for test in TESTS if test.split == split]


@functools.cache
def names_by_language():
  """Every name that any stream or query holds."""
  names = collections.defaultdict(set)
  for record in COLLECTION.parallel():
    names[record.source_language].add(record.source)
    names[record.target_language].add(record.target)
  for record in COLLECTION.monolingual():
    names[record.language].add(record.text)
  for test in TESTS:
    names[test.language].update(test.queries.values())
  return names


def digest() -> str:
  """A hash of everything that the collection yields, in its order."""
  everything = [
    *map(dataclasses.astuple, COLLECTION.retrieval()),
    *map(dataclasses.astuple, COLLECTION.parallel()),
    *map(dataclasses.astuple, COLLECTION.monolingual()),
    *map(dataclasses.astuple, COLLECTION.tests()),
  ]
  return hashlib.sha256(json.dumps(everything).encode()).hexdigest()


def test_no_passage_holds_the_name_of_its_question():
  for record in COLLECTION.retrieval():
    for passage in record.positives:
      assert record.question.casefold() not in passage.text.casefold()
  for test in TESTS:
    texts = {passage.passage_id: passage.text for passage in test.passages}
    for query_id, judged in test.qrels.items():
      name = test.queries[query_id].casefold()
      for passage_id in judged:
        assert name not in texts[passage_id].casefold()


def test_every_passage_holds_two_names_to_eight():
  for test in TESTS:
    for passage in test.passages:
      names = passage.text.split(cldr.SEPARATOR)
      assert 2 <= len(set(names)) == len(names) <= cldr.MAX_NAMES


def test_no_name_is_a_code():
  english = localedata.load("en")
  codes = {*english["territories"], *english["currency_names"]}
  for names in names_by_language().values():
    assert not codes & names
    assert not [name for name in names if name.isdigit()]
  # A language's code can be another's name: "ga" is Irish, and Ga in Spanish.
  for language in cldr.LANGUAGES:
    for entity, name in cldr._sheet(language).names.items():
      assert name != entity.partition("/")[2]


@pytest.mark.parametrize("language", SCRIPTS)
def test_no_english_stands_in_where_the_script_is_another(language):
  names = names_by_language()[language]
  assert len(names) > 1000
  for name in names:
    assert re.search(SCRIPTS[language], name), name


@pytest.mark.parametrize("language", ["de", "fr", "es", *cldr.SAME_SCRIPT])
def test_latin_names_are_from_the_languages_own_sheet(language):
  sheet = localedata.load(language)
  own = {
    *sheet["territories"].values(),
    *sheet["languages"].values(),
    *sheet["currency_names"].values(),
    *(zone.get("city") for zone in sheet["time_zones"].values()),
  }
  root = {
    zone.get("city") for zone in localedata.load("root")["time_zones"].values()
  }
  cities = {
    name
    for test in select()
    if test.language == language
    for query_id, name in test.queries.items()
    if query_id.startswith("city/")
  }
  assert names_by_language()[language] <= own
  assert cities and not cities & root
  # No entry of these languages names it: the zone's id would be its name.
  assert "Berlin" not in names_by_language()[language]


def test_a_name_means_one_entity_of_its_language():
  for language in cldr.LANGUAGES:
    counts = collections.Counter()
    for record in COLLECTION.monolingual():
      counts[record.text] += record.language == language
    for record in COLLECTION.parallel():
      counts[record.target] += record.target_language == language
    assert max(counts.values()) <= 1
  for test in TESTS:
    assert len(set(test.queries.values())) == len(test.queries)


def test_only_english_has_retrieval_pairs():
  assert {record.language for record in COLLECTION.retrieval()} == {"en"}


def test_only_english_has_a_dev_split():
  assert [test.language for test in select("dev")] == ["en"]


def test_monolingual_languages_have_no_translations():
  monolingual = {record.language for record in COLLECTION.monolingual()}
  pairs = {
    (record.source_language, record.target_language)
    for record in COLLECTION.parallel()
  }
  assert monolingual == {*cldr.SAME_SCRIPT, *cldr.OWN_SCRIPT}
  assert pairs == {("en", language) for language in cldr.PARALLEL}


def test_translations_name_the_same_entity():
  pairs = {
    (record.source, record.target)
    for record in COLLECTION.parallel()
    if record.target_language == "de"
  }
  assert {
    ("Switzerland", "Schweiz"),
    ("German", "Deutsch"),
    ("Swiss Franc", "Schweizer Franken"),
    ("Zurich", "Zürich"),
  } <= pairs


def test_the_docstrings_example_is_in_the_collection():
  sheet = cldr._sheet("en")
  name = sheet.names["territory/FI"]
  text = sheet.passages["territory/FI/languages"]
  assert f"query    {name}\n  passage  {text}\n" in cldr.__doc__


def test_the_dev_passages_are_in_no_pair_and_no_test():
  (dev,) = select("dev")
  texts = {passage.passage_id: passage.text for passage in dev.passages}
  held_out = {texts[p] for judged in dev.qrels.values() for p in judged}
  trained = {p.text for r in COLLECTION.retrieval() for p in r.positives}
  assert len(held_out) > 80
  assert not held_out & trained
  (english,) = (test for test in select() if test.language == "en")
  assert not held_out & {passage.text for passage in english.passages}
  ids = {p for judged in dev.qrels.values() for p in judged}
  for test in select():
    assert not ids & {passage.passage_id for passage in test.passages}


def test_what_training_shows_of_a_dev_question_is_not_searched():
  (dev,) = select("dev")
  searched = {passage.text for passage in dev.passages}
  asked = set(dev.queries.values())
  for record in COLLECTION.retrieval():
    if record.question in asked:
      assert not searched & {passage.text for passage in record.positives}


def test_the_english_test_asks_for_all_that_training_shows_of_a_question():
  positives = collections.defaultdict(set)
  for record in COLLECTION.retrieval():
    positives[record.question].update(p.text for p in record.positives)
  (english,) = (test for test in select() if test.language == "en")
  texts = {passage.passage_id: passage.text for passage in english.passages}
  for query_id, judged in english.qrels.items():
    relevant = {texts[passage_id] for passage_id in judged}
    assert relevant == positives[english.queries[query_id]]


def test_every_language_asks_for_the_same_facts():
  (english,) = (test for test in select() if test.language == "en")
  assert len(english.queries) == cldr.MAX_TEST_QUERIES
  for test in select():
    assert test.queries.keys() <= english.queries.keys()
    assert len(test.queries) > 250
  assert {test.language for test in select()} == set(cldr.LANGUAGES)


def test_ids_and_texts_are_unique_and_every_judgement_has_its_passage():
  for test in TESTS:
    ids = [passage.passage_id for passage in test.passages]
    texts = {passage.text for passage in test.passages}
    assert len(ids) == len(set(ids)) == len(texts)
    assert test.queries.keys() == test.qrels.keys()
    for query_id, judged in test.qrels.items():
      assert judged and judged.keys() <= set(ids)
      assert set(judged.values()) == {1}
      assert not set(query_id) & set(" \t\n")


def test_equal_texts_are_relevant_for_all_their_questions():
  (english,) = (test for test in select() if test.language == "en")
  (shared,) = (
    passage.passage_id
    for passage in english.passages
    if passage.text == "Russia · Russian · Russian Ruble"
  )
  asking = {q for q, judged in english.qrels.items() if shared in judged}
  assert len(asking) > 5
  assert {query_id.partition("/")[0] for query_id in asking} >= {"city"}


def test_every_language_has_a_group():
  assert set(COLLECTION.groups) == set(cldr.LANGUAGES)
  assert len(set(COLLECTION.groups.values())) == 4


def test_what_was_left_out_is_counted():
  counts = cldr.drop_counts()
  assert list(counts) == list(cldr.LANGUAGES)
  missing = "names missing (English or root would stand in)"
  assert counts["sw"][missing] > 700  # Few cities, no former currencies.
  assert missing not in counts["en"]
  # In Finnish a language has its country's name, without the capital letter.
  own = "answers with the question's name"
  assert counts["fi"][own] > counts["en"][own] > 100
  counts["en"].clear()
  assert cldr.drop_counts()["en"]


def test_another_process_makes_the_same_collection():
  # Strings have other hashes there, so an order by hash would differ.
  code = (
    f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r});"
    " import test_cldr; print(test_cldr.digest())"
  )
  environment = os.environ | {"PYTHONHASHSEED": "7"}
  environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
  other = subprocess.run(
    [sys.executable, "-c", code],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  assert other.stdout.strip() == digest()


def test_the_notes_say_what_was_left_out_of_all_languages():
  counts = cldr.drop_counts().values()
  notes = COLLECTION.notes()
  assert len(notes) == len(set().union(*counts))
  for reason in ("names of another entity", "passages equal to another"):
    total = sum(found.get(reason, 0) for found in counts)
    assert f"CLDR, left out: {reason} {total:,}" in notes


def test_the_fingerprint_is_of_the_release(monkeypatch):
  before = COLLECTION.fingerprint()
  assert cldr.load().fingerprint() == before
  monkeypatch.setattr(cldr.babel, "__version__", "0")
  assert COLLECTION.fingerprint() != before


@pytest.mark.slow
def test_the_tensorflow_dataset_holds_the_same_records(tmp_path):
  from mlir_jax.tfds import cldr as cldr_tfds

  def read(name):
    builder = cldr_tfds.MlirJaxCldr(
      config=name, data_dir=tmp_path, file_format="array_record"
    )
    builder.download_and_prepare()
    return {
      split: [
        tuple(
          value.decode() if isinstance(value, bytes) else int(value)
          for value in (example[field] for field in fields[name])
        )
        for example in source
      ]
      for split, source in builder.as_data_source().items()
    }

  fields = cldr_tfds._FIELDS
  assert read("retrieval") == {
    "train": [
      (r.question, p.passage_id, p.text, r.language)
      for r in COLLECTION.retrieval()
      for p in r.positives
    ]
  }
  for stream in ("parallel", "monolingual"):
    values = operator.attrgetter(*fields[stream])
    assert read(stream) == {
      "train": list(map(values, getattr(COLLECTION, stream)()))
    }
  tests = {f"{t.split}_{t.language}": t for t in COLLECTION.tests()}
  assert read("passages") == {
    split: [(p.passage_id, p.text) for p in test.passages]
    for split, test in tests.items()
  }
  assert read("queries") == {
    split: list(test.queries.items()) for split, test in tests.items()
  }
  assert read("qrels") == {
    split: [
      (query_id, passage_id, relevance)
      for query_id, judged in test.qrels.items()
      for passage_id, relevance in judged.items()
    ]
    for split, test in tests.items()
  }
