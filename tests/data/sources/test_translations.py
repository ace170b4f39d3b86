"""Translations are read from every form that a file of pairs may have."""

import json

import pyarrow as pa
import pytest
import source_files
from pyarrow import parquet

from mlir_jax.data import records
from mlir_jax.data.collections import folder

PAIRS = [("A house.", "Ein Haus."), ('Say "hi", now', "Sag „hi“, jetzt")]


def _collection(root, margin=0.0, policy="error"):
  bad = records.BadRecords(policy)
  loaded = folder.load(root, bad, require_pairs=False, margin=margin)
  return loaded, bad


def _read(root, **settings):
  """Returns (English, German) of each pair, and the notes."""
  loaded, _ = _collection(root, **settings)
  pairs = [
    tuple(
      text
      for _, text in sorted(
        (
          (pair.source_language, pair.source),
          (pair.target_language, pair.target),
        ),
        reverse=True,
      )
    )
    for pair in loaded.parallel()
  ]
  return pairs, "\n".join(loaded.notes())


def _jsonl(*objects):
  return "".join(json.dumps(each) + "\n" for each in objects)


def _csv(header, separator):
  quoted = [
    separator.join('"' + text.replace('"', '""') + '"' for text in row)
    for row in [header, *PAIRS]
  ]
  return "\n".join(quoted) + "\n"


NAMED = [{"english": en, "non_english": de} for en, de in PAIRS]


@pytest.mark.parametrize(
  "name, content, kind",
  [
    ("a.en-de.tsv.gz", "".join(f"{en}\t{de}\n" for en, de in PAIRS),
     "rows of en and de"),
    ("a.de-en.tsv", "".join(f"1.05\t{de}\t{en}\n" for en, de in PAIRS),
     "WikiMatrix rows of a margin, de and en"),
    ("talks-en-de-train.tsv", "".join(f"{en}\t{de}\n" for en, de in PAIRS),
     "rows of en and de"),
    ("en-de.jsonl", _jsonl(*NAMED), "fields english, non_english:"),
    ("a.de-en.json", json.dumps([each | {"id": 7} for each in NAMED]),
     "fields non_english, english (not read: 'id'):"),
    ("a.en-de.csv", _csv(("english", "non_english"), ","), "non_english:"),
    ("a.de-en.tsv", _csv(("english", "non_english"), "\t"), "non_english,"),
    ("a.deu-eng.tsv", _csv(("en", "de"), "\t"), "fields de, en:"),
    ("a.en-de.jsonl",
     _jsonl(*({"source": en, "target": de, "margin": 1.2}
              for en, de in PAIRS)), "fields source, target, margin:"),
    ("a.de-en.jsonl",
     _jsonl(*({"translation": {"eng_Latn": en, "deu_Latn": de}}
              for en, de in PAIRS)),
     "fields translation.deu_Latn, translation.eng_Latn:"),
  ],
)  # fmt: skip
def test_a_form_is_recognized_by_name_and_first_record(
  tmp_path, name, content, kind
):
  source_files.write(tmp_path / "parallel" / name, content)
  pairs, notes = _read(tmp_path, margin=1.04)
  assert pairs == PAIRS
  assert kind in notes and f"parallel/{name}" in notes


def test_parquet_is_read(tmp_path):
  (tmp_path / "parallel").mkdir()
  table = pa.Table.from_pylist(NAMED)
  parquet.write_table(table, tmp_path / "parallel/a.en-de.parquet")
  assert _read(tmp_path)[0] == PAIRS


def test_a_margin_below_the_least_is_cut_and_counted(tmp_path):
  path = source_files.write(
    tmp_path / "parallel/WikiMatrix.de-en.tsv.gz",
    "1.21\teins\tone\n1.04\tzwei\ttwo\n1.03\tdrei\tthree\n",
  )
  loaded, bad = _collection(tmp_path, 1.04)
  assert [pair.target for pair in loaded.parallel()] == ["one", "two"]
  (what,) = bad.removed
  assert "margin below 1.04 (data.cleaning.margin)" in what
  assert bad.removed[what] == [1, str(path)]
  assert len(_read(tmp_path)[0]) == 3
  with pytest.raises(records.RecordError, match=r"lower\s+data\.cleaning"):
    _read(tmp_path, margin=2.0)


@pytest.mark.parametrize(
  "name, content",
  [
    ("a.en-de.tsv", "one\ttwo\tthree\n"),
    ("a.en-de.tsv", "one\n"),
    ("a.en-de.jsonl", '{"anchor": "a", "positive": "b"}\n'),
    ("a.de-fr.jsonl", '{"english": "a", "non_english": "b"}\n'),
    ("a.en-de.csv", "A house.,Ein Haus.\nb,c\n"),
    ("a.en-de.txt", "one\n"),
    ("a.en.tsv", "one\ttwo\n"),
  ],
)
def test_an_unknown_form_is_refused_with_an_example_of_each(
  tmp_path, name, content
):
  source_files.write(tmp_path / "parallel" / name, content)
  with pytest.raises(ValueError, match="Translations are in one of") as error:
    _read(tmp_path, policy="skip")
  message = str(error.value)
  assert name in message
  for example in ("Moses", "WikiMatrix", "non_english", "<tuv", "newstest2019"):
    assert example in message


@pytest.mark.parametrize(
  "name, bad_line, field",
  [
    ("a.en-de.tsv", "x\n", "columns: are 1, not 2"),
    ("a.en-de.tsv", "x\t\u200b\n", "columns: are 1, not 2|de: is empty"),
    ("a.en-de.tsv", "x\ty\tz\n", "columns: are 3, not 2"),
    ("a.en-de.tsv", b"x\t\xff\n", "text: is not UTF-8"),
    ("a.en-de.tsv", "x\ry\tz\n", "text: holds a carriage return"),
    ("w.en-de.tsv", "nan\tx\ty\n", "margin: 'nan' is not a number"),
    ("m.en-de.jsonl", '{"source": "x", "target": "y", "margin": 1e999}\n',
     "margin: is inf"),
    ("a.en-de.jsonl", '{"english": "x"}\n', "non_english: is missing"),
    ("a.en-de.jsonl", '{"english": 3, "non_english": "y"}\n',
     "english: is a number"),
    ("a.en-de.jsonl", "{\n", "is not JSON"),
  ],
)  # fmt: skip
def test_a_bad_pair_is_named_and_skipped_alone(tmp_path, name, bad_line, field):
  good = {
    "a.en-de.tsv": ["one\teins\n", "two\tzwei\n"],
    "w.en-de.tsv": ["1.1\tone\teins\n", "1.1\ttwo\tzwei\n"],
    "m.en-de.jsonl": [
      _jsonl({"source": "one", "target": "eins", "margin": 1.1}),
      _jsonl({"source": "two", "target": "zwei", "margin": 10**400}),
    ],
    "a.en-de.jsonl": [
      _jsonl({"english": "one", "non_english": "eins"}),
      _jsonl({"english": "two", "non_english": "zwei"}),
    ],
  }[name]
  bad = bad_line if isinstance(bad_line, bytes) else bad_line.encode()
  content = good[0].encode() + bad + good[1].encode()
  source_files.write(tmp_path / "parallel" / name, content)
  with pytest.raises(records.RecordError, match=rf"{name}:2: .*({field})"):
    _read(tmp_path)
  loaded, counted = _collection(tmp_path, policy="skip")
  assert [pair.source for pair in loaded.parallel()] == ["one", "two"]
  assert counted.count == 1


@pytest.mark.parametrize(
  "name, problem",
  [
    ("a.en-eng.tsv", "a pair is of two"),
    ("a.en-pt-br.tsv", "write pt_br for Brazil"),
    ("a.zh_TW.tsv", "a pair is of two"),
    ("newstest2019-ref.deu.txt", "which needs newstest2019-src"),
  ],
)
def test_a_name_that_is_no_pair_of_languages_is_refused(
  tmp_path, name, problem
):
  source_files.write(tmp_path / "parallel" / name, "x\ty\n")
  with pytest.raises(ValueError, match=problem):
    _collection(tmp_path)


def test_ntrex_and_tatoeba_are_read_under_their_own_names(tmp_path):
  for name, text in {
    "newstest2019-src.eng.txt.gz": "A house.\nA tree.\n",
    "newstest2019-ref.deu.txt": "Ein Haus.\nEin Baum.\n",
    "newstest2019-ref.zho-TW.txt": "房子。\n樹。\n",
    "newstest2019-ref.eng-GB.txt": "A house.\nA tree.\n",
    "newstest2019-ref-2.spa.txt": "Una casa.\nUn árbol.\n",
    "LANGUAGES.tsv": "deu\tGerman\n",
    "tatoeba.fra-eng.fra": "Une maison.\n",
    "tatoeba.fra-eng.eng": "A house.\n",
  }.items():
    source_files.write(tmp_path / "parallel" / name, text)
  loaded, _ = _collection(tmp_path)
  assert [
    (pair.source_language, pair.target_language, pair.target)
    for pair in loaded.parallel()
  ] == [
    ("en", "de", "Ein Haus."),
    ("en", "de", "Ein Baum."),
    ("en", "zh", "房子。"),
    ("en", "zh", "樹。"),
    ("fr", "en", "A house."),
  ]
  notes = "\n".join(loaded.notes())
  for name in (
    "LANGUAGES.tsv",
    "newstest2019-ref.eng-GB",
    "newstest2019-ref-2",
  ):
    assert f"parallel/{name}" in notes.partition("Not read: ")[2]
  loaded.fingerprint()  # The English file is in two sources.


def test_the_real_ntrex_is_read(shared, tmp_path):
  (tmp_path / "parallel").symlink_to(shared / "data/ntrex")
  loaded, _ = _collection(tmp_path)
  counts = {}
  for pair in loaded.parallel():
    assert pair.source_language == "en"
    language = pair.target_language
    counts[language] = counts.get(language, 0) + 1
  assert counts == dict.fromkeys(
    ("ar", "bn", "de", "es", "fi", "fr", "id", "ja", "ko", "ru", "sw", "te",
     "th", "zh"), 1_997
  )  # fmt: skip
