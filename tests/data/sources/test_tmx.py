"""TMX is read as a stream, in any of its languages; attacks are refused."""

import itertools
import re
import tracemalloc

import pytest
import source_files

from mlir_jax.data import records
from mlir_jax.data.sources import tmx

HEAD = (
  '<?xml version="1.0" encoding="UTF-8"?>\n'
  '<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n'
  '<tmx version="1.4"><header srclang="*all*"/><body>\n'
)
TAIL = "</body></tmx>\n"


def _unit(**texts):
  return "".join(
    [
      "<tu>",
      *(
        f'<tuv xml:lang="{code.replace("_", "-")}"><seg>{text}</seg></tuv>'
        for code, text in texts.items()
      ),
      "</tu>\n",
    ]
  )


UNITS = [
  _unit(EN_us="A house.", de="Ein Haus.", fr="Une maison."),
  _unit(es="Hola", de="Hallo"),
  _unit(
    en='A <bpt i="1">&lt;b></bpt>big<ept i="1">&lt;/b></ept>\n  &amp; <hi>red'
    "</hi> tree<!-- no -->.",
    de="Ein Baum.",
  ),
]


def _read(path, *codes, policy="error"):
  bad = records.BadRecords(policy)
  pairs = [
    (pair.source_language, pair.source, pair.target_language, pair.target)
    for pair in tmx.read(path, codes, bad)
  ]
  return pairs, bad


def test_the_pairs_of_all_named_languages_are_read(tmp_path):
  path = source_files.write(
    tmp_path / "a.en-de-fr.tmx.gz", HEAD + "".join(UNITS) + TAIL
  )
  house = ("A house.", "Ein Haus.", "Une maison.")
  tree = ("en", "A big & red tree.", "de", "Ein Baum.")
  three = list(zip(("en", "de", "fr"), house, strict=True))
  pairs, bad = _read(path, "en", "de", "fr")
  assert pairs == [*(a + b for a, b in itertools.combinations(three, 2)), tree]
  assert bad.removed == {"units without two of en, de, fr": [1, str(path)]}
  pairs, bad = _read(path, "de", "en")
  assert pairs == [
    ("de", "Ein Haus.", "en", "A house."),
    ("de", "Ein Baum.", "en", "A big & red tree."),
  ]
  assert _read(path, "es", "de")[0] == [("es", "Hola", "de", "Hallo")]


def test_a_segment_without_text_is_named_and_skipped(tmp_path):
  path = source_files.write(
    tmp_path / "a.tmx",
    HEAD + UNITS[0] + _unit(en="\u200b", de="leer") + UNITS[2] + TAIL,
  )
  with pytest.raises(records.RecordError, match=r"a\.tmx:5: en: is empty"):
    _read(path, "en", "de")
  pairs, bad = _read(path, "en", "de", policy="skip")
  assert len(pairs) == 2 and bad.count == 1


LAUGHS = (
  '<!DOCTYPE tmx [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
)


@pytest.mark.parametrize(
  "content, problem",
  [
    (LAUGHS + "<tmx><body>" + _unit(en="&b;", de="x") + TAIL, "1: .*entity 'a"),
    ('<!DOCTYPE tmx [<!ENTITY a SYSTEM "file:///etc/passwd">]><tmx><body>'
     + _unit(en="&a;", de="x") + TAIL, "1: .*the entity 'a'"),
    (HEAD + _unit(en="&nbsp;a", de="x") + TAIL, "4: .*the entity 'nbsp'"),
    (HEAD + UNITS[0] + "<tu>", "5: is not XML: no element found"),
    (HEAD + UNITS[0] + "</tmx>" + TAIL, "5: is not XML: mismatched tag"),
    ("<html><body/></html>", "1: the file should begin with <tmx>"),
    ("", "is not XML"),
    ("\0", "is not XML"),
    ('<?xml version="1.0" encoding="no-such"?><tmx/>', "1: is not XML"),
    (HEAD + _unit(en="a" * 1_000_001, de="x") + TAIL, "more than 1,000,000"),
    (HEAD + TAIL, "holds no unit with two of the languages"),
    (HEAD + _unit(en="", de="x") + TAIL, "no record that can be used"),
  ],
)  # fmt: skip
def test_what_is_not_whole_and_harmless_is_refused(tmp_path, content, problem):
  path = source_files.write(tmp_path / "a.tmx", content)
  with pytest.raises(records.RecordError, match=problem) as error:
    _read(path, "en", "de", policy="skip")
  assert re.match(rf"{path}[: ]", str(error.value))


def test_memory_does_not_grow_with_the_file(tmp_path):
  path = tmp_path / "a.tmx"
  with path.open("w") as file:
    file.write(HEAD)
    for i in range(40_000):  # Some 5 MB.
      file.write(_unit(en=f"The house number {i}.", de=f"Haus Nummer {i}."))
    file.write(TAIL)
  next(tmx.read(path, ("en", "de"), records.BadRecords()))  # Babel's tables.
  tracemalloc.start()
  count = sum(1 for _ in tmx.read(path, ("en", "de"), records.BadRecords()))
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert count == 40_000
  assert peak < 2_500_000  # The buffer of a file has 1 MiB.
