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
    ("he", "he iw heb"),
    ("sw", "sw swh swa"),
    ("yue", "yue yue_Hant"),
    ("dtp", "dtp"),
    ("kzj", "kzj"),  # Tatoeba has tests in both.
  ],
)
def test_a_language_has_one_code(code, names):
  assert {languages.code(name) for name in names.split()} == {code}


@pytest.mark.parametrize("name", ["german", "d", "DE", "de_", "", "de.txt"])
def test_what_is_not_a_code_is_refused(name):
  with pytest.raises(ValueError, match="is not a language code"):
    languages.code(name)
