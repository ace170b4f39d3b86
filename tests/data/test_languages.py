"""Every reader uses the same code for a language."""

import pytest

from mlir_jax.data import languages


@pytest.mark.parametrize(
  "code, names",
  [
    ("en", "en eng eng_Latn en-GB"),
    ("de", "de deu ger de_CH"),
    ("zh", "zh cmn zho zh_TW zh-Hant zh_Hans_CN"),
    ("es", "es spa es_419"),
    ("sr", "sr srp sr@latin srp_Cyrl"),
    ("no", "no nb nob nb_NO"),
    ("tl", "tl tgl fil"),
    ("ps", "ps pus pbt_Arab"),
    ("he", "he iw heb"),
    ("sw", "sw swh swa"),
    ("yue", "yue yue_Hant"),
    ("dtp", "dtp"),
    ("kzj", "kzj"),  # Tatoeba has tests in both.
  ],
)
def test_a_language_has_one_code(code, names):
  assert {languages.code(name) for name in names.split()} == {code}


def test_names_and_tags_have_the_same_code():
  for name, code in (("arabic", "ar"), ("Bengali", "bn"), ("swahili", "sw")):
    assert languages.code_of_name(name) == code
  with pytest.raises(ValueError, match="is not the English name"):
    languages.code_of_name("klingonese")
  tags = {"EN-us": "en", "zh-Hant": "zh", "SRP-Latn": "sr"}
  assert {tag: languages.code_of_tag(tag) for tag in tags} == tags


@pytest.mark.parametrize(
  "names, codes",
  [
    ("en-de", "en de"),
    ("zh-Hant-en", "zh-Hant en"),
    ("eng_Latn-zh_TW", "eng_Latn zh_TW"),
    ("en-es_419-sr@latin", "en es_419 sr@latin"),
    ("en-pt-br", "en pt br"),
    ("ckb-Arab-en-US", "ckb-Arab en-US"),
  ],
)
def test_codes_are_split_where_a_new_language_begins(names, codes):
  assert languages.split(names) == codes.split()


@pytest.mark.parametrize("name", ["german", "d", "DE", "de_", "", "de.txt"])
def test_what_is_not_a_code_is_refused(name):
  with pytest.raises(ValueError, match="is not a language code"):
    languages.code(name)
