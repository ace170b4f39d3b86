"""Translations that are probably wrong are left out, each with its reason."""

import dataclasses

import pytest

from mlir_jax import config
from mlir_jax.data import cleaning, collections, records

PAIRS = [
  ("The house is red.", "Das Haus ist rot."),
  ("Yes.", "Das ist eine sehr lange Antwort auf diese Frage."),
  ("Open the file README now", "Open the FILE readme NOW!"),
  ("No.", "Nein."),
]


def _clean(bad=None, **rules):
  pairs = [records.ParallelRecord(*pair, "en", "de") for pair in PAIRS]
  kept = cleaning.clean(
    pairs, cleaning.Rules(**rules), bad or records.BadRecords(), "mine"
  )
  return [PAIRS.index((pair.source, pair.target)) for pair in kept]


def test_the_defaults_keep_all_and_are_those_of_the_config():
  assert _clean() == [0, 1, 2, 3]
  data = config.default().to_dict()["data"]
  assert cleaning.Rules.of_config(data) == cleaning.DEFAULTS
  assert data["cleaning"] == dataclasses.asdict(cleaning.DEFAULTS)


def test_each_rule_leaves_out_its_pairs_and_counts_them():
  bad = records.BadRecords()
  assert _clean(bad, length_ratio=4.0, shared_words=0.9) == [0, 3]
  counts = {
    what.partition("data.cleaning.")[2]: (count, first)
    for what, (count, first) in bad.drain()["removed"].items()
  }
  assert counts.keys() == {"length_ratio)", "shared_words)"}
  count, first = counts["length_ratio)"]
  assert count == 1 and first.startswith("mine, en-de: 'Yes.' = 'Das ist")


def test_a_collection_is_cleaned_at_each_pass():
  bad = records.BadRecords()
  whole = list(collections.load("cldr").parallel())
  loaded = collections.load(
    "cldr", bad_records=bad, rules=cleaning.Rules(shared_words=0.4)
  )
  cleaned = list(loaded.parallel())
  assert list(loaded.parallel()) == cleaned
  ((count, _),) = bad.drain()["removed"].values()
  assert count == 2 * (len(whole) - len(cleaned)) > 0
  assert collections.load("cldr").fingerprint() == loaded.fingerprint()


def test_a_missing_library_is_refused_before_anything_is_read(monkeypatch):
  monkeypatch.setattr(cleaning.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"wrong_language needs py3langid"):
    collections.load("cldr", rules=cleaning.Rules(wrong_language=0.5))


def test_a_side_in_another_language_is_left_out():
  pytest.importorskip("py3langid")
  pairs = [
    ("The house stands on a hill above the town.",
     "Das Haus steht auf einem Hügel über der Stadt.", "de"),
    ("The house stands on a hill above the town.",
     "La maison se trouve sur une colline au-dessus de la ville.", "de"),
    ("Numbers", "12 34", "de"),
    ("The house stands on a hill.", "It is the same in this one.", "tlh"),
  ]  # fmt: skip
  kept = cleaning.clean(
    [records.ParallelRecord(a, b, "en", code) for a, b, code in pairs],
    cleaning.Rules(wrong_language=0.8),
    records.BadRecords(),
    "mine",
  )
  assert [pair.target for pair in kept] == [
    pairs[0][1], pairs[2][1], pairs[3][1]
  ]  # fmt: skip
