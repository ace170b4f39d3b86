"""The measure that selects is the one that the config names."""

import pytest

from mlir_jax.evals import report, selection

RESULTS = {
  "dev/en/mrr@100": 0.2,
  "dev/en/ndcg@10": 0.4,
  "dev/ja/mrr@100": 0.6,
  "dev/ja/ndcg@10": 0.8,
  "test/ja/mrr@100": 1.0,
  "gap/rivers": 1.0,
}


@pytest.mark.parametrize(
  "text, value, languages",
  [
    ("dev/en/mrr@100", 0.2, ["en"]),
    ("dev/jpn/ndcg@10", 0.8, ["ja"]),
    ("dev/en/mrr@100, dev/ja/ndcg@10", 0.5, ["en", "ja"]),
    ("dev/*/mrr@100", 0.4, ["en", "ja"]),
    ("dev/en/RR@100,dev/ja/nDCG@10", 0.5, ["en", "ja"]),
  ],
)
def test_the_mean_of_the_named_measures_selects(text, value, languages):
  chosen = selection.parse(text)
  chosen.check({"en", "ja"})
  assert chosen.value(RESULTS) == pytest.approx(value)
  assert chosen.languages({"en", "ja"}) == languages
  assert chosen.value({"test/en/mrr@100": 1.0}) is None
  sentence = chosen.describe({"en", "ja"})
  assert ("are not zero-shot" in sentence) == (languages != ["en"])


@pytest.mark.parametrize(
  "text",
  [
    *("", "mrr@100", "dev/en", "dev/en/mmr@10", "test/en/mrr@100"),
    *("dev/E/mrr@100", "dev/en/mrr@100,", "dev/en/mrr@100,dev/eng/mrr@100"),
  ],
)
def test_another_form_is_refused(text):
  with pytest.raises(ValueError, match=r"^eval\.selection is "):
    selection.parse(text)


def test_a_language_without_a_dev_set_is_refused():
  with pytest.raises(ValueError, match="ja has no dev set; dev sets are in en"):
    selection.parse("dev/ja/mrr@100").check({"en"})
  with pytest.raises(ValueError, match="dev sets are in no language"):
    selection.parse("dev/ja/mrr@100").check(())
  # Without any dev set, the default selects nothing.
  selection.DEFAULT.check(())
  assert "No dev set" in selection.DEFAULT.describe(())


def test_languages_with_pairs_are_a_group_of_their_own():
  groups = {"en": "English", "de": "with parallel text", "ja": "without"}
  assert list(report.with_pairs(groups, ["ja", "en", "fi"]).items()) == [
    ("en", "English"),
    ("fi", report.WITH_PAIRS),
    ("ja", report.WITH_PAIRS),
    ("de", "with parallel text"),
  ]
  assert report.with_pairs(groups, ["en"]) == groups
