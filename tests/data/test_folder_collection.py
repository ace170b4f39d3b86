"""A folder of the user's files is a collection, or the error says why not."""

import gzip
import json
import os
import shutil
import socket

import pytest

from mlir_jax.data import collections, records
from mlir_jax.data.collections import folder


def _pairs(question):
  return json.dumps(
    [{"question": question, "positive_ctxs": [{"text": f"on {question}"}]}]
  )


FILES = {
  "ir/b.json": _pairs("b"),
  "ir/a.jsonl.gz": _pairs("a"),
  "parallel/news.en-de.en": "one\n",
  "parallel/news.en-de.de.gz": "eins\n",
  "parallel/old.news.fr-swa.fr": "un\n",
  "parallel/old.news.fr-swa.swa": "moja\n",
  "mono/web.pt_BR.txt": "um\n",
  "mono/web.de.txt": "zwei\n",
}
for _language in ("en", "de", "fi"):
  FILES |= {
    f"eval/{_language}/collection/docs.jsonl.gz": json.dumps(
      {"id": "d", "contents": f"in {_language}"}
    ),
    f"eval/{_language}/topic.test.tsv": "q\tquery\n",
    f"eval/{_language}/qrels.test.txt": "q Q0 d 1\n",
  }
FILES |= {
  "eval/en/topic.dev.tsv.gz": "v\tdev query\n",
  "eval/en/qrels.dev.txt": "v Q0 d 1\n",
}


@pytest.fixture
def root(tmp_path):
  for name, text in FILES.items():
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
  return tmp_path / "mine"


def _load(root, tatoeba_root=""):
  return folder.load(root, records.BadRecords("error"), tatoeba_root)


def test_every_file_is_read_in_the_order_of_names(root):
  collection = _load(root)
  assert collection.name == "mine"
  for _ in range(2):  # Each call starts a fresh pass.
    assert [r.question for r in collection.retrieval()] == ["a", "b"]
    assert list(collection.parallel()) == [
      records.ParallelRecord("one", "eins", "en", "de"),
      records.ParallelRecord("un", "moja", "fr", "sw"),
    ]
    assert list(collection.monolingual()) == [
      records.MonolingualRecord("zwei", "de"),
      records.MonolingualRecord("um", "pt"),
    ]
    assert [(test.language, test.split) for test in collection.tests()] == [
      ("de", "test"),
      ("en", "dev"),
      ("en", "test"),
      ("fi", "test"),
    ]
  assert collection.translation_tests() == ()


def test_groups_say_which_languages_have_parallel_text(root, tmp_path):
  tatoeba = tmp_path / "tatoeba"
  tatoeba.mkdir()
  for name in ("tatoeba.jpn-eng.jpn", "tatoeba.jpn-eng.eng"):
    (tatoeba / name).write_text("x\n")
  assert list(_load(root, tatoeba).groups.items()) == [
    ("en", "English"),
    ("de", "with parallel text"),
    ("fr", "with parallel text"),
    ("sw", "with parallel text"),
    ("fi", "without parallel text"),
    ("ja", "without parallel text"),
    ("pt", "without parallel text"),
  ]


def test_nothing_is_read_before_it_is_asked_for(root):
  (root / "ir/b.json").write_text("no JSON")
  (root / "mono/web.de.txt").write_text("")
  collection = _load(root)
  assert len(list(collection.parallel())) == 2
  with pytest.raises(records.RecordError, match=r"b\.json:1"):
    list(collection.retrieval())


def test_pairs_alone_are_a_collection(root):
  for name in ("parallel", "mono", "eval"):
    shutil.rmtree(root / name)
  collection = _load(root)
  assert len(list(collection.retrieval())) == 2
  assert list(collection.parallel()) == list(collection.monolingual()) == []
  assert collection.tests() == ()
  assert collection.groups == {"en": "English"}


def test_tests_alone_are_enough_for_evaluating(root, tmp_path):
  for name in ("ir", "parallel", "mono"):
    shutil.rmtree(root / name)
  with pytest.raises(
    ValueError, match=r"data\.root=.*there is no file in ir/ \(.* batch\.retr"
  ):
    _load(root)
  bad = records.BadRecords("error")
  collection = folder.load(root, bad, require_pairs=False)
  assert len(collection.tests()) == 4
  assert list(collection.retrieval()) == []
  loaded = collections.load("folder", str(root), bad, require_pairs=False)
  assert len(loaded.tests()) == 4
  (tmp_path / "empty").mkdir()
  for missing, message in (
    ("empty", "there is no file in ir/, parallel/, mono/ and eval/."),
    ("missing", "there is no such folder."),
  ):
    with pytest.raises(ValueError, match=f"^--root=.*{missing}: {message}"):
      collections.load(
        "folder",
        str(tmp_path / missing),
        bad,
        require_pairs=False,
        prefix="--",
      )
  with pytest.raises(ValueError, match="there is no such folder"):
    folder.load("", bad)  # Not the working directory.


def test_the_fingerprint_is_of_the_training_files_in_any_folder(root, tmp_path):
  before = _load(root).fingerprint()
  assert _load(root).fingerprint() == before
  assert _load(shutil.copytree(root, tmp_path / "moved")).fingerprint() == (
    before
  )
  (root / "eval/de/topic.test.tsv").write_text("q\tanother query\n")
  assert _load(root).fingerprint() == before
  found = {before}
  for name, text in (
    ("ir/b.json", _pairs("c")),
    ("parallel/old.news.fr-swa.swa", "mbili\n"),
    ("mono/web.de.txt", "drei\n"),
    ("mono/more.de.txt", "vier\n"),
  ):
    (root / name).write_text(text)
    found.add(_load(root).fingerprint())
  (root / "mono/more.de.txt").rename(root / "mono/more.it.txt")
  found.add(_load(root).fingerprint())
  assert len(found) == 6


def test_the_error_for_another_layout_shows_the_layout(root, tmp_path):
  shutil.rmtree(root / "ir")
  for wrong in (root, tmp_path / "missing", ""):
    with pytest.raises(ValueError, match=r"data\.root") as error:
      _load(wrong)
    assert folder.LAYOUT in str(error.value)


@pytest.mark.parametrize(
  "name, problem",
  [
    ("ir/c.xls", r"c\.xls is not named as the layout says"),
    ("parallel/notes.txt", r"notes\.txt is not named as the layout says"),
    ("parallel/a.en-de.fr", r"a\.en-de\.fr is not named as the layout says"),
    ("mono/german.txt", r"german\.txt is not named as the layout says"),
    ("parallel/a.en-it.it.gz", r"a\.en-it\.it\.gz lacks its other side"),
    ("parallel/a.en-en.en", r"a\.en-en\.en lacks its other side"),
    ("mono/web.de.txt.gz", r"both web\.de\.txt and web\.de\.txt\.gz"),
    (
      "eval/de/topic.dev.tsv.gz",
      r"topic\.dev\.tsv\.gz: eval\.selection does not",
    ),
    ("eval/german/topic.test.tsv", "not named with a language code"),
    ("eval/deu/topic.test.tsv", r"eval/de and .*eval/deu are both in 'de'"),
    ("eval/notes.txt", r"eval/notes\.txt is not named as the layout says"),
    ("eval/de/topic.tset.tsv", r"topic\.tset\.tsv is not named as the layout"),
    (
      "eval/de/collection/more.jsonl",
      r"more\.jsonl is not named as the layout",
    ),
    ("parallel/a.zh_CN-zh_TW.zh_CN", r"a\.zh_CN-zh_TW\.zh_CN lacks its other"),
    ("Mono/web.fi.txt", "mine/Mono is not named as the layout says"),
    ("train.json", r"mine/train\.json is not named as the layout says"),
    ("ir/part2/train.json", "ir/part2 is a folder, and folders are not read"),
    ("mono/README/a.fi.txt", "mono/README is a folder, and folders"),
    ("eval/de/more/a.txt", "eval/de/more is a folder, and folders"),
  ],
)
def test_a_misplaced_file_is_an_error_before_anything_is_read(
  root, name, problem
):
  path = root / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("x\n")
  with pytest.raises(ValueError, match=problem):
    _load(root)


@pytest.mark.parametrize(
  "place",
  ["ir/x.json", "parallel/x", "mono/x.fi.txt", "eval/fr", "eval/de/x", "mine"],
)
def test_what_is_neither_a_file_nor_a_folder_is_refused_by_name(root, place):
  path = root / place
  os.symlink("gone", path)
  with pytest.raises(ValueError, match=f"{place} is a link to gone, which"):
    _load(root)
  path.unlink()
  os.symlink(path, path)
  with pytest.raises(ValueError, match=f"{place} is a link to {path}, which"):
    _load(root)
  path.unlink()
  os.mkfifo(path)
  with pytest.raises(ValueError, match=f"{place} is neither a file nor"):
    _load(root)
  path.unlink()
  with (
    socket.socket(socket.AF_UNIX) as listening,
    pytest.MonkeyPatch.context() as m,
  ):
    m.chdir(path.parent)
    listening.bind(path.name)
    with pytest.raises(ValueError, match=f"{place} is neither a file nor"):
      _load(root)


@pytest.mark.parametrize(
  "name", [b"ir/a\nb.json", b"mono/\x1b[2J.fi.txt", b"\xff", b"eval/\xff"]
)
def test_a_name_that_cannot_be_printed_is_refused_in_one_line(root, name):
  with open(os.fsencode(root) + b"/" + name, "wb") as file:
    file.write(b"a\n")
  with pytest.raises(ValueError, match="rename it") as error:
    _load(root)
  assert str(error.value).isprintable()


def test_a_home_is_expanded(root, monkeypatch):
  monkeypatch.setenv("HOME", str(root.parent))
  loaded = collections.load("folder", f"~/{root.name}")
  assert [record.question for record in loaded.retrieval()] == ["a", "b"]


def test_a_part_that_is_a_file_is_refused(root):
  shutil.rmtree(root / "mono")
  (root / "mono").write_text("x\n")
  with pytest.raises(ValueError, match="mono should be a folder, but it is"):
    _load(root)
  (root / "mono").unlink()
  shutil.rmtree(root / "eval/de/collection")
  (root / "eval/de/collection").write_text("x\n")
  with pytest.raises(ValueError, match="collection should be a folder"):
    _load(root)


def test_companions_are_not_read_but_listed(root):
  notes = _load(root).notes()
  assert notes[-1] == "Language codes read as others: pt_BR as pt, swa as sw"
  assert not any(note.startswith("Not read") for note in notes)
  assert "Read as tests, Mr. TyDi: de, en, fi" in notes
  companions = [
    ".git/config",
    "LICENSE",
    "README.md",
    "pool/qrels.txt",
    "ir/.DS_Store",
    "parallel/news.en-de.ids",
    "parallel/news.en-de.xml.gz",
    "eval/README",
    "eval/de/topic.train.tsv",
    "eval/de/qrels.train.txt.gz",
    "eval/de/collection/readme.txt",
  ]
  for name in companions:
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text("x\n")
  collection = _load(root)
  assert len(list(collection.parallel())) == 2
  *_, note, _ = collection.notes()
  listed = note.removeprefix("Not read: ").split(", ")
  assert sorted(listed) == sorted(
    {".git", "pool", *companions} - {".git/config", "pool/qrels.txt"}
  )


def test_records_have_the_name_of_their_source(root):
  for name, text in (
    ("ir/nq.v2.ja.jsonl", _pairs("c")),
    ("parallel/TED-en-de-train.tsv", "two\tzwei\n"),
    ("parallel/wiki.en-de.tsv", "three\tdrei\n"),
    ("parallel/en-fi.tsv", "four\tneljä\n"),
    ("parallel/newstest2019-src.eng.txt", "five\n"),
    ("parallel/newstest2019-ref.fin.txt", "viisi\n"),
    ("mono/fin_news_2023_10K-sentences.txt", "1\tyksi\n"),
  ):
    (root / name).write_text(text, encoding="utf-8")
  released = root / "mrtydi-v1.1-swahili"
  shutil.copytree(root / "eval" / "fi", released)
  for split in ("topic", "qrels"):
    train = released / f"{split}.train.{'tsv' if split == 'topic' else 'txt'}"
    shutil.copy(train.with_name(train.name.replace("train", "test")), train)
  collection = _load(root)

  def sources(stream):
    return [record.source_name for record in getattr(collection, stream)()]

  # Released folders of all languages are one source.
  assert sources("retrieval") == ["a", "b", "nq.v2", "mrtydi"]
  assert {*sources("retrieval"), *sources("parallel")} < {*collection.sources()}
  assert sources("parallel") == [
    "TED",
    "",  # en-fi.tsv
    "news",
    "newstest2019",
    "old.news",
    "wiki",
  ]
  assert sources("monolingual") == ["news_2023_10K", "web", "web"]


def test_files_of_one_language_are_merged(root):
  for name, text in (
    ("mono/a.zh_TW.txt", "one\n"),
    ("mono/b.zho_Hans.txt", "two\n"),
    ("parallel/a.eng-deu.eng", "three\n"),
    ("parallel/a.eng-deu.deu", "drei\n"),
    ("parallel/b.en-zh-Hant.en", "four\n"),
    ("parallel/b.en-zh-Hant.zh-Hant", "four\n"),
  ):
    (root / name).write_text(text)
  collection = _load(root)
  languages = [record.language for record in collection.monolingual()]
  assert languages == ["zh", "zh", "de", "pt"]
  pairs = [
    (p.source_language, p.target_language) for p in collection.parallel()
  ]
  assert pairs == [("en", "de"), ("en", "zh"), ("en", "de"), ("fr", "sw")]
  assert "zh" in collection.groups and "zho_Hans" not in collection.groups
  for side in ("zh_CN", "zh_TW"):
    (root / f"parallel/c.zh_CN-zh_TW.{side}").write_text("x\n")
  with pytest.raises(ValueError, match="are both in 'zh'"):
    _load(root)


def test_streams_and_fingerprint_are_of_the_same_bytes(root):
  """A file that changes is refused, whichever of them was first."""
  for name, stream in (
    ("ir/b.json", "retrieval"),
    ("parallel/news.en-de.de.gz", "parallel"),
    ("mono/web.de.txt", "monolingual"),
  ):
    path = root / name
    before = path.read_bytes()
    after = before.replace(b"b", b"c").replace(b"zwei", b"drei")
    if path.suffix == ".gz":
      after = gzip.compress(b"zwei\n")
    assert after != before
    for first in ("fingerprint", stream):
      collection = _load(root)
      list(getattr(collection, first)())
      path.write_bytes(after)
      for again in ("fingerprint", stream):
        with pytest.raises(records.RecordError, match=f"{name} has changed"):
          list(getattr(collection, again)())
      path.write_bytes(before)
      list(getattr(collection, stream)())


@pytest.mark.parametrize(
  "name, problem",
  [
    ("eval/de/qrels.test.txt", r"neither qrels\.test\.txt nor"),
    ("eval/fi/collection/docs.jsonl.gz", r"neither docs\.jsonl nor"),
    ("eval/en/topic.dev.tsv.gz", r"neither topic\.dev\.tsv nor"),
  ],
)
def test_a_test_that_lacks_a_file_is_an_error_before_anything_is_read(
  root, name, problem
):
  (root / name).unlink()
  with pytest.raises(FileNotFoundError, match=problem):
    _load(root)


# The result of each shared case of faults: the rows of the three streams and
# the queries, or the error's message.
CASES = {
  "blank_last_line": (16, 0, 0, 0),
  "invisible": (0, 0, 2, 0),
  "lfs_pointers": r"x\.en-de\.en is a Git LFS pointer",
  "lone_cr": r"a\.fi\.txt:1: text: holds a carriage return",
  "subfolder": "ir/part2 is a folder",
  "eval/blank_lines": (0, 0, 0, 1),
  "eval/crlf_title": (0, 0, 0, 1),
  "eval/judged_but_missing": (0, 0, 0, 2),
  "eval/query_without_judgement": (0, 0, 0, 2),
  "eval/tsv_header": (0, 0, 0, 1),
}


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize("name", CASES)
def test_the_shared_cases_of_faults_are_read_or_refused(shared, name, policy):
  def read():
    bad = records.BadRecords(policy)
    path = shared / "cases/faults" / name
    collection = folder.load(path, bad, require_pairs=False)
    streams = collection.retrieval, collection.parallel, collection.monolingual
    rows = tuple(len(list(stream())) for stream in streams)
    tests = collection.tests()
    assert not bad.count
    assert {test.passages[0].title for test in tests} <= {"Norway"}
    return *rows, sum(len(test.queries) for test in tests)

  if isinstance(CASES[name], str):
    with pytest.raises(ValueError, match=CASES[name]):
      read()
  else:
    assert read() == CASES[name]


def test_the_real_debian_collection_is_read_whole(shared):
  bad = records.BadRecords("skip")
  collection = folder.load(shared / "data/debian", bad, shared / "data/tatoeba")
  assert collection.name == "debian"
  pairs = list(collection.retrieval())
  assert len(pairs) == 21_966
  assert all(len(p.positives) == 1 and p.positives[0].title for p in pairs)

  parallel = [p.target_language for p in collection.parallel()]
  assert {code: parallel.count(code) for code in set(parallel)} == {
    "da": 12_000, "de": 3_328, "fr": 6_189, "it": 12_000,
  }  # fmt: skip
  monolingual = [m.language for m in collection.monolingual()]
  assert {code: monolingual.count(code) for code in set(monolingual)} == {
    "es": 826, "ru": 1_666, "pt": 5_457, "cs": 1_004, "zh": 331,
  }  # fmt: skip
  assert bad.count == 0

  tests = {(test.language, test.split): test for test in collection.tests()}
  assert {key: len(test.queries) for key, test in tests.items()} == {
    ("en", "dev"): 300,
    **{(code, "test"): 500 for code in
       ("en", "da", "de", "fr", "it", "es", "ru", "pt", "cs")},
    ("zh", "test"): 295,  # Of 296: one query is empty.
  }  # fmt: skip
  assert bad.count == 1  # The empty query.
  assert "topic.test.tsv.gz:78: query: is missing" in bad.first[0]
  sizes = [len(test.passages) for test in tests.values()]
  assert (min(sizes), max(sizes)) == (373, 6_000)
  for test in tests.values():
    assert all(len(judged) == 1 for judged in test.qrels.values())

  assert {
    test.source_language: len(test.sources)
    for test in collection.translation_tests()
  } == dict.fromkeys(
    ("cs", "zh", "da", "de", "fr", "it", "pt", "ru", "es"), 1_000
  )
  assert list(collection.groups.values()) == (
    ["English"] + ["with parallel text"] * 4 + ["without parallel text"] * 5
  )
