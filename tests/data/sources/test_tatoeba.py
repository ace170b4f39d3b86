"""Translation tests are found by their names."""

import pytest
import source_files

from mlir_jax.data import records
from mlir_jax.data.sources import tatoeba


def test_tatoeba_languages_get_two_letter_codes_where_there_are_any(tmp_path):
  for code in ("deu", "cmn", "swh", "tgl", "dtp", "kzj", "ang"):
    source_files.write(
      tmp_path / f"tatoeba.{code}-eng.{code}", f"{code} 1\n{code} 2\n"
    )
    source_files.write(tmp_path / f"tatoeba.{code}-eng.eng", "one\ntwo\n")
  source_files.write(tmp_path / "LICENSE", "CC BY 2.0 FR\n")
  tests = tatoeba.read_all(tmp_path, source_files.strict())
  assert [test.source_language for test in tests] == [
    "ang", "de", "dtp", "kzj", "sw", "tl", "zh",
  ]  # fmt: skip
  assert tests[1] == records.TranslationTest(
    source_language="de",
    target_language="en",
    sources=("deu 1", "deu 2"),
    targets=("one", "two"),
  )


@pytest.mark.parametrize(
  "names, problem",
  [
    ((), "holds no files like"),
    (("tatoeba.deu-eng.deu",), "lacks the other side of deu-eng"),
    (("tatoeba.deu-eng.fra",), "is not named like"),
    (("tatoeba.ara-eng.ara", "tatoeba.ara-eng.eng",
      "tatoeba.arb-eng.arb", "tatoeba.arb-eng.eng"), "both in 'ar'"),
  ],
)  # fmt: skip
def test_a_folder_that_is_not_tatoebas_is_an_error(tmp_path, names, problem):
  for name in names:
    source_files.write(tmp_path / name, "x\n")
  with pytest.raises(ValueError, match=problem):
    tatoeba.read_all(tmp_path, source_files.strict())
  with pytest.raises(ValueError, match="no such folder"):
    tatoeba.read_all(tmp_path / "missing", source_files.strict())
