"""Each corpus becomes a collection that is read whole, from stand-in sources.

The sources are laid out exactly as the public ones.
"""

import bz2
import errno
import gzip
import hashlib
import io
import json
import lzma
import pathlib
import tarfile

import file_server
import object_store
import pytest

from mlir_jax.corpora import (
  building,
  damage,
  debian,
  libreoffice,
  nq,
  transfer,
  translations,
  xquadr,
)
from mlir_jax.data import languages, records
from mlir_jax.data.collections import folder

WORDS = ("search", "sound", "image", "network", "kernel", "letter", "garden")


@pytest.fixture
def site(monkeypatch):
  monkeypatch.setattr(transfer, "WAIT_SECONDS", 0.0)
  for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
    monkeypatch.delenv(variable, raising=False)
  with file_server.serving() as site:
    yield site


def bring(name, output, site, languages=()):
  """Brings a corpus; returns the collection and the notes."""
  planned = building.plan(name, str(output), languages, site.url)
  notes = building.bring(planned)
  return planned.folder, notes


def load(root: pathlib.Path, require_pairs: bool = True):
  bad = records.BadRecords("error")
  return folder.load(root, bad, require_pairs=require_pairs)


def by_name(collection):
  return {(test.language, test.split): test for test in collection.tests()}


# --- Debian.


def stanza(number: int, language: str) -> str:
  """A package's stanza in a Translation file."""
  english = f"tool number {number} for {WORDS[number % 7]} and more"
  opening = f"Package {number} is about {WORDS[number % 7]}."
  tail = (
    "\n It has what one needs, and it runs on all machines, large or small."
  )
  md5 = hashlib.md5(f"{english}\n {opening}{tail}".encode()).hexdigest()
  short, text = english, f"{opening}{tail}\n .\n A second paragraph {number}."
  if language != "en":
    short, text = f"{short} ({language})", f"{text} ({language})"
  return (
    f"Package: tool-{number}\nDescription-md5: {md5}\n"
    f"Description-{language}: {short}\n {text}\n\n"
  )


@pytest.fixture
def archive(site):
  """A Debian archive of 300 packages; German has 200, Chinese 100."""
  base = "main/i18n/Translation"
  listed = {}
  for name, count in (("en", 300), ("de", 200), ("zh_CN", 100)):
    language = name
    text = "".join(stanza(n, language) for n in range(count))
    if name == "en":  # A sister package, whose description begins as another's.
      text += (
        stanza(1, "en")
        .replace("tool-1", "tool-1-doc")
        .replace("small.", "small. These are the documents.")
      )
    packed = (
      (f"{base}-{name}.xz", lzma.compress(text.encode()))
      if name == "en"
      else (f"{base}-{name}.bz2", bz2.compress(text.encode()))
    )
    site.files[f"/dists/bookworm/{packed[0]}"] = packed[1]
    listed[packed[0]] = packed[1]
  release = "Origin: Debian\nMD5Sum:\n 00 1 main/x\nSHA256:\n"
  for name, content in listed.items():
    release += (
      f" {hashlib.sha256(content).hexdigest()} {len(content):>8} {name}\n"
    )
  site.files["/dists/bookworm/Release"] = release.encode()
  return site


def test_debian_becomes_a_collection_without_tests_in_training(
  archive, tmp_path
):
  root, _ = bring("debian", tmp_path, archive, ["de", "zh"])
  collection = load(root)
  pairs = list(collection.retrieval())
  tests = by_name(collection)
  assert set(tests) == {
    ("en", "dev"),
    ("en", "test"),
    ("de", "test"),
    ("zh", "test"),
  }
  english = tests["en", "test"]
  # Each package is in training or in the test collection; its sister is gone.
  assert len(pairs) + len(english.passages) == 300
  assert len(english.queries) > 50 and len(tests["en", "dev"].queries) > 2
  # The same package has the same query id in all languages.
  for query_id, query in tests["de", "test"].queries.items():
    assert query == f"{english.queries[query_id]} (de)"
    (passage_id,) = tests["de", "test"].qrels[query_id]
    assert passage_id in english.qrels[query_id]
  tested = {passage.title for passage in english.passages}
  assert all(pair.positives[0].title not in tested for pair in pairs)
  number = next(iter(tests["zh", "test"].passages)).title.removeprefix("tool-")
  assert f"A second paragraph {number}. (zh_CN)" in (
    next(iter(tests["zh", "test"].passages)).text
  )
  parallel = list(collection.parallel())
  assert {f"{p.source} (de)" == p.target for p in parallel} == {True}
  lines = [record.text for record in collection.monolingual()]
  assert len(lines) == len(set(lines)) > 100
  assert not any("(de)" in line for line in lines)
  assert collection.groups == {
    "en": "English",
    "de": "with parallel text",
    "zh": "without parallel text",
  }


def test_a_collection_is_built_once_and_the_same_everywhere(archive, tmp_path):
  first, _ = bring("debian", tmp_path / "a", archive, ["de"])
  second, _ = bring("debian", tmp_path / "b", archive, ["de"])
  files = {
    path.relative_to(first): path.read_bytes() for path in first.rglob("*.gz")
  }
  assert len(files) == 11
  assert all((second / name).read_bytes() == files[name] for name in files)
  asked = len(archive.asked)
  _, notes = bring("debian", tmp_path / "a", archive, ["de"])
  assert "is there already" in notes[0]
  assert len(archive.asked) == asked
  with pytest.raises(ValueError, match="was built with other languages"):
    bring("debian", tmp_path / "a", archive, ["zh"])


def test_a_file_that_the_release_does_not_list_stops_the_build(
  archive, tmp_path
):
  path = "/dists/bookworm/main/i18n/Translation-de.bz2"
  archive.files[path] = bz2.compress(b"another")
  with pytest.raises(ValueError, match="its publisher lists"):
    bring("debian", tmp_path, archive, ["de"])
  assert not (tmp_path / "debian").exists()


@pytest.mark.parametrize(
  "text, message",
  [
    ("Package: a\nDescription-en: b\n c\n\n", "f:1: the stanza has no field D"),
    ("\nPackage: a\nnonsense\n", "f:3: 'nonsense' is not FIELD: VALUE"),
  ],
)
def test_a_bad_stanza_names_its_line(text, message):
  with pytest.raises(ValueError, match=message):
    list(debian.read_descriptions(io.StringIO(text), "f"))


# --- LibreOffice's help.


def help_page(number: int, language: str) -> str:
  """A page of the help, as LibreOffice makes it; every tenth is English."""
  mark = "" if language == "en-US" or number % 10 == 0 else f" ({language})"
  text = f"Paragraph {number} tells how one uses it{mark}. " * 4
  return (
    '<!DOCTYPE html>\n<html><head><meta charset="UTF-8"><title>T</title></head>'
    f'<body><h1 id="hd_id1{number}" dir="auto">Heading &amp; {number}{mark}'
    "</h1>"
    f'<p id="par_id2{number}" class="paragraph" dir="auto">{text}'
    '<img src="a.svg" alt="x"><span class="switchinline"><span hidden="true"'
    ' class="MAC">Command</span><span hidden="true">Ctrl</span></span></p>'
    f'<div class="note"><p id="par_id3">See also: more{mark}</p></div>'
    "<p>Without an id.</p></body></html>"
  )


def deb(language: str) -> bytes:
  """A package of the help with 150 pages: an ar archive (deb(5))."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
    for number in range(150):
      content = help_page(number, language).encode()
      path = f"./usr/share/libreoffice/help/{language}/text/swriter/{number}"
      member = tarfile.TarInfo(f"{path}.html")
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  packed = b"!<arch>\n"
  for name, content in (
    ("debian-binary", b"2.0\n"),
    ("control.tar.xz", b"odd"),
    ("data.tar.xz", buffer.getvalue()),
  ):
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
    packed += header.encode() + content + b"\n" * (len(content) % 2)
  return packed


def test_libreoffice_aligns_what_is_translated(site, tmp_path, monkeypatch):
  monkeypatch.setattr(libreoffice, "_MIN_QUERIES", 10)
  packages = ""
  for code, language in (("en-us", "en-US"), ("cs", "cs")):
    name = f"libreoffice-help-{code}"
    content = deb(language)
    site.files[f"/pool/{name}_1_all.deb"] = content
    packages += (
      f"Package: {name}\nFilename: pool/{name}_1_all.deb\n"
      f"Size: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n\n"
    )
  packed = lzma.compress(packages.encode())
  name = "main/binary-amd64/Packages.xz"
  site.files[f"/dists/bookworm/{name}"] = packed
  site.files["/dists/bookworm/Release"] = (
    f"SHA256:\n {hashlib.sha256(packed).hexdigest()} {len(packed)} {name}\n"
  ).encode()
  root, _ = bring("libreoffice", tmp_path, site, ["en", "cs"])
  collection = load(root)
  pairs = list(collection.retrieval())
  tests = by_name(collection)
  assert len(pairs) + len(tests["en", "test"].passages) == 150
  text = pairs[0].positives[0].text
  assert pairs[0].question.startswith("Heading & ")
  assert text.endswith("Ctrl See also: more") and "Command" not in text
  # A page that is not translated is in no Czech test.
  czech = tests["cs", "test"]
  english = tests["en", "test"]
  assert len(czech.passages) < len(english.passages)
  assert all(query.endswith("(cs)") for query in czech.queries.values())
  parallel = list(collection.parallel())
  numbers = {pair.source.split()[1] for pair in parallel}
  assert len(numbers) == len(parallel) > 30
  assert not any(number.endswith("0") for number in numbers)
  # "See also" is in the tests, too.
  assert not any("See also" in pair.source for pair in parallel)
  trained = {pair.question.split()[-1] for pair in pairs}
  assert numbers <= trained


# --- XQuAD-R and Natural Questions.


def squad(language: str) -> dict:
  context = f"Snow is cold ({language}). Fire is hot ({language}). Bye."
  second = context.index("Fire")
  third = context.index("Bye")
  return {
    "version": "1.1",
    "data": [
      {
        "title": "Snow_and_fire",
        "paragraphs": [
          {
            "context": context,
            "sentence_breaks": [
              [0, second - 1],
              [second, third - 1],
              [third, len(context)],
            ],
            "sentences": [],
            "qas": [
              {
                "id": "q1",
                "question": f"What is hot ({language})?",
                "answers": [{"answer_start": second, "text": "Fire"}],
              }
            ],
          }
        ],
      }
    ],
  }


@pytest.mark.parametrize(
  "variant, passages, relevant",
  [("", 3, "a00p0s1.de"), (":paragraphs", 1, "a00p0.de")],
)
def test_xquadr_asks_for_the_sentence_in_which_the_answer_begins(
  site, tmp_path, variant, passages, relevant
):
  for language in ("de", "en"):
    site.files[
      f"/google-research-datasets/lareqa/master/xquad-r/{language}.json"
    ] = json.dumps(squad(language)).encode()
  root, _ = bring(f"xquadr{variant}", tmp_path, site, ["de", "en"])
  collection = load(root, require_pairs=False)
  test = by_name(collection)["de", "test"]
  assert len(test.passages) == passages
  assert test.queries == {"q1": "What is hot (de)?"}
  assert test.qrels == {"q1": {relevant: 1}}
  pool = gzip.decompress((root / "pool/qrels.txt.gz").read_bytes()).decode()
  assert pool == "".join(
    f"q1 Q0 {relevant[:-2]}{language} 1\n" for language in ("de", "en")
  )


def qed(number: int, kind: str = "single_sentence") -> str:
  return json.dumps(
    {
      "example_id": number,
      "title_text": f"Page {number // 2}",
      "question_text": f"who is number {number}",
      "paragraph_text": f"Number {number // 2} is `` it '' , they say ( no ) .",
      "annotation": {"explanation_type": kind},
    }
  )


def test_nq_keeps_the_answers_of_the_test_out_of_training(site, tmp_path):
  qed_base = "/google-research-datasets/QED/master/qed"
  # 20 and 21 share their paragraph; it is in the test.
  train = [*map(qed, range(1, 22)), qed(90, "none")]
  site.files[f"{qed_base}-train.jsonlines"] = "\n".join(train).encode()
  dev = "\n".join(map(qed, range(21, 41)))
  site.files[f"{qed_base}-dev.jsonlines"] = dev.encode()
  site.files["/google-research-datasets/lareqa/master/xquad-r/en.json"] = (
    json.dumps(squad("en")).encode()
  )
  long = "This is a paragraph that answers nothing here. " * 3
  planned = building.plan("nq", str(tmp_path), (), site.url)
  for file in planned.list_files():
    if "afriqa" in file.url:
      rows = [{"title": "Other", "context": f"{file.path} {long}"}]
      rows += [{"title": None, "context": None}]
      site.files[file.url.removeprefix(site.url)] = "\n".join(
        map(json.dumps, rows)
      ).encode()
  root, _ = bring("nq", tmp_path, site)
  collection = load(root)
  pairs = list(collection.retrieval())
  tests = by_name(collection)
  questions = {pair.question for pair in pairs}
  assert questions == {f"who is number {n}" for n in range(1, 20)}
  assert pairs[0].positives[0].text == 'Number 0 is "it", they say (no).'
  assert sum(len(test.queries) for test in tests.values()) == 20
  # Paragraphs of questions 21 to 40, and those of AfriQA's 21 files.
  assert len(tests["en", "test"].passages) == 11 + 21


# --- The mixture of hu2023, NTREX and Tatoeba.


def tar(members: dict[str, bytes]) -> bytes:
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
    for name, content in members.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return buffer.getvalue()


def add_hu2023(site: file_server.Site) -> None:
  """Adds what hu2023 needs for Finnish and Thai."""
  pairs = [
    {
      "dataset": "nq_train_psgs_w100",
      "question": f"where is {word}",
      "answers": [word],
      "positive_ctxs": [
        {
          "title": word.title(),
          "text": f"It is where {word} is.",
          "score": 1000,
          "title_score": 1,
          "passage_id": str(number),
        }
      ],
      "negative_ctxs": [],
      "hard_negative_ctxs": [
        {
          "title": "Nowhere",
          "text": f"It is not where {word} is.",
          "score": 10.5,
          "title_score": 0,
          "passage_id": str(100 + number),
        }
      ],
    }
    for number, word in enumerate(WORDS)
  ]
  site.files["/dpr_nq/biencoder-nq-train.json.gz"] = gzip.compress(
    json.dumps(pairs).encode()
  )
  lines = [f"1.2\tA {w} in English.\tYksi {w} suomeksi." for w in WORDS]
  lines += ["1.03\tToo far.\tLiian kaukana.", "no columns"]
  site.files["/wikimatrix/WikiMatrix.en-fi.tsv.gz"] = gzip.compress(
    "\n".join(lines).encode()
  )
  for language in ("finnish", "thai", "english"):
    name = f"mrtydi-v1.1-{language}"
    docs = "".join(
      json.dumps({"id": f"{n}#0", "contents": f"{w}\n\nOn {w} ({language})."})
      + "\n"
      for n, w in enumerate(WORDS)
    )
    members = {f"{name}/collection/docs.jsonl.gz": gzip.compress(docs.encode())}
    for split in ("train", "dev", "test"):
      members[f"{name}/topic.{split}.tsv"] = f"1\tsearch {split}?\n".encode()
      members[f"{name}/qrels.{split}.txt"] = b"1 Q0 0#0 1\n"
    members[f"{name}/ignored/../../topic.tsv"] = b"1\tall\n"
    site.files[f"/mrtydi/{name}.tar.gz"] = tar(members)


def test_hu2023_is_pairs_translations_and_tests_in_one_collection(
  site, tmp_path
):
  add_hu2023(site)
  root, notes = bring("hu2023", tmp_path, site, ["en", "fi", "th"])
  collection = load(root)
  pairs = list(collection.retrieval())
  assert len(pairs) == 7 and len(pairs[0].hard_negatives) == 1
  parallel = list(collection.parallel())
  assert (parallel[0].source_language, parallel[0].target_language) == (
    "en",
    "fi",
  )
  assert len(parallel) == 7
  assert "left out: 1 below the margin, 1 bad lines" in " ".join(notes)
  tests = by_name(collection)
  assert set(tests) == {
    ("en", "dev"),
    ("en", "test"),
    ("fi", "test"),
    ("th", "test"),
  }
  assert tests["fi", "test"].queries == {"1": "search test?"}
  assert not (tmp_path / "topic.tsv").exists()


def test_an_archive_that_lacks_a_file_is_refused_and_nothing_is_left(
  site, tmp_path
):
  site.files["/mrtydi-v1.1-thai.tar.gz"] = tar({"mrtydi-v1.1-thai/a": b"a"})
  with pytest.raises(ValueError, match=r"lacks collection/docs\.jsonl\.gz, q"):
    bring("mrtydi", tmp_path, site, ["th"])
  assert [path.name for path in tmp_path.iterdir()] == ["downloads"]


def test_ntrex_and_tatoeba_keep_their_lines_together(site, tmp_path):
  for part, text in (
    ("src.eng", "One.\nTwo.\n"),
    ("ref.zho-CN", "一。\n二。\n"),
  ):
    site.files[f"/newstest2019-{part}.txt"] = text.encode()
  root, _ = bring("ntrex", tmp_path, site, ["zho-CN"])
  pairs = list(load(root, require_pairs=False).parallel())
  assert [(p.source, p.target) for p in pairs] == [
    ("One.", "一。"),
    ("Two.", "二。"),
  ]
  assert pairs[0].target_language == "zh"

  # Two translations in one language, one of them with an empty line.
  site.files["/newstest2019-ref.spa.txt"] = b"Uno.\nDos.\n"
  site.files["/newstest2019-ref.spa-MX.txt"] = b"Uno, pues.\n\n"
  root, notes = bring("ntrex", tmp_path / "es", site, ["spa-MX", "spa"])
  pairs = list(load(root, require_pairs=False).parallel())
  assert sorted((p.source, p.target, p.target_language) for p in pairs) == [
    ("One.", "Uno, pues.", "es"),
    ("One.", "Uno.", "es"),
    ("Two.", "Dos.", "es"),
  ]
  assert notes[-1] == (
    "parallel/en-spa-MX: 1 pairs; left out: 1 with an empty side"
  )

  for side in ("deu", "eng"):
    site.files[f"/tatoeba.deu-eng.{side}"] = f"{side}\n".encode()
  root, _ = bring("tatoeba", tmp_path, site, ["deu"])
  collection = folder.load(
    tmp_path / "ntrex", records.BadRecords(), root, require_pairs=False
  )
  (test,) = collection.translation_tests()
  assert (test.sources, test.targets) == (("deu",), ("eng",))


def test_miracl_asks_its_dev_part_for_all_passages(site, tmp_path):
  judged = "/miracl/resolve/main/miracl-v1.0-yo"
  site.files[f"{judged}/topics/topics.miracl-v1.0-yo-dev.tsv"] = b"9#0\tki ni\n"
  site.files[f"{judged}/qrels/qrels.miracl-v1.0-yo-dev.tsv"] = (
    b"9#0\tQ0\t39#0\t1\n9#0\tQ0\t39#1\t0\n"
  )
  docs = [
    {"docid": f"39#{n}", "title": "Albedo", "text": f"Text\n\n{n}."}
    for n in range(3)
  ]
  docs.append({"docid": "40#0", "title": "", "text": " "})
  site.files[
    "/miracl-corpus/resolve/main/miracl-corpus-v1.0-yo/docs-0.jsonl.gz"
  ] = gzip.compress("\n".join(map(json.dumps, docs)).encode())
  root, notes = bring("miracl", tmp_path, site, ["yo"])
  assert "bad test records skipped: 1" in notes[1] and "docs-0" in notes[1]
  test = by_name(load(root, require_pairs=False))["yo", "test"]
  assert [passage.text for passage in test.passages] == [
    "Text 0.",
    "Text 1.",
    "Text 2.",
  ]
  assert test.qrels == {"9#0": {"39#0": 1, "39#1": 0}}


def test_msmarco_pairs_what_is_judged_and_asks_for_all_passages(site, tmp_path):
  tables = {
    "collection.tsv": "".join(f"{n}\tPassage {n}.\n" for n in range(5)),
    "queries.train.tsv": "7\twhat is 1\n8\tnot judged\n",
    "qrels.train.tsv": "7\t0\t1\t1\n7\t0\t2\t1\n",
    "queries.dev.small.tsv": "9\twhat is 3\n",
    "qrels.dev.small.tsv": "9\t0\t3\t1\n",
    "queries.eval.tsv": "10\tnobody knows\n",
  }
  packed = tar({f"./{name}": text.encode() for name, text in tables.items()})
  site.files["/collectionandqueries.tar.gz"] = packed
  root, _ = bring("msmarco", tmp_path, site)
  collection = load(root)
  pairs = [(r.question, r.positives[0].text) for r in collection.retrieval()]
  assert pairs == [("what is 1", "Passage 1."), ("what is 1", "Passage 2.")]
  test = by_name(collection)["en", "test"]
  assert (len(test.passages), test.qrels) == (5, {"9": {"3": 1}})

  tables["qrels.train.tsv"] += "8\t0\n"
  packed = tar({name: text.encode() for name, text in tables.items()})
  site.files["/collectionandqueries.tar.gz"] = packed
  with pytest.raises(ValueError, match=r"qrels\.train\.tsv:3 has 2 columns"):
    bring("msmarco", tmp_path / "bad", site)
  assert not (tmp_path / "bad" / "msmarco").exists()


# --- Damaged files.


def gzipped(text: str) -> bytes:
  """Text that does not become small, gzipped."""
  noise = "".join(hashlib.sha256(bytes([n])).hexdigest() for n in range(250))
  return gzip.compress(f"{text}{noise}\n".encode())


def cut(content: bytes) -> bytes:
  return content[: len(content) * 2 // 3]


def spoilt(content: bytes) -> bytes:
  middle = len(content) // 2
  return content[:middle] + bytes(200) + content[middle + 200 :]


@pytest.mark.parametrize("spoil", [cut, spoilt])
@pytest.mark.parametrize(
  "name, languages, path, content",
  [
    ("msmarco", (), "/collectionandqueries.tar.gz",
     tar({"collection.tsv": b"".join(b"%d\tText %d.\n" % (n, n * 7919)
                                     for n in range(2000))})),
    ("mrtydi", ["th"], "/mrtydi-v1.1-thai.tar.gz",
     tar({"t/collection/docs.jsonl.gz": gzipped("")})),
    ("wikimatrix", ["fi"], "/WikiMatrix.en-fi.tsv.gz",
     gzipped("1.2\tOne.\tYksi.\n" * 9)),
    ("miracl", ["yo"],
     "/miracl-corpus/resolve/main/miracl-corpus-v1.0-yo/docs-0.jsonl.gz",
     gzipped('{"docid": "1", "title": "", "text": "One."}\n' * 9)),
  ],
)  # fmt: skip
def test_a_damaged_file_is_named_and_nothing_is_built(
  site, tmp_path, name, languages, path, content, spoil
):
  judged = "/miracl/resolve/main/miracl-v1.0-yo"
  for kind in ("topics", "qrels"):
    site.files[f"{judged}/{kind}/{kind}.miracl-v1.0-yo-dev.tsv"] = b"1\t2\n"
  site.files[path] = spoil(content)
  with pytest.raises(ValueError) as caught:
    bring(name, tmp_path, site, languages)
  message = str(caught.value)
  assert path.rpartition("/")[2] in message, message
  assert "again" in message and "\n" not in message
  assert [path.name for path in tmp_path.iterdir()] == ["downloads"]


@pytest.mark.parametrize("spoil", [cut, spoilt])
def test_a_damaged_file_of_debian_is_named(tmp_path, spoil):
  text = "".join(stanza(n, "en") for n in range(2000)).encode()
  for ending, pack in ((".xz", lzma), (".bz2", bz2), (".gz", gzip)):
    path = tmp_path / f"Translation-en{ending}"
    path.write_bytes(spoil(pack.compress(text)))
    with pytest.raises(ValueError, match=rf"-en\{ending}.*again"):
      debian._read_language(tmp_path, "en")
    path.unlink()
  for content in (spoil(deb("de")), b"!<arch>\n", b"!<arch>\n" + b"x" * 99):
    path = tmp_path / "help.deb"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"help\.deb .*again"):
      libreoffice.read_pages(path)


def test_a_full_disk_is_not_called_a_damaged_archive():
  with (
    pytest.raises(OSError, match="No space") as caught,
    damage.naming("a.gz"),
  ):
    raise OSError(errno.ENOSPC, "No space left on device")
  assert not isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
  "content, problem",
  [
    (b'{"title": "T", "context": "C"}\n\xff\n', "cannot be read: 'utf-8'"),
    (b'{"title": "T", "context": 7}\n', r":1 is not a record with title, co"),
    (b'{"title": "T"}\n', r":1 is not a record with title, context \(KeyErr"),
  ],
)
def test_a_bad_line_of_a_distractor_is_named(tmp_path, content, problem):
  path = tmp_path / "gold_span_passages.afriqa.bem.en.dev.json"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=f"{path.name}{problem}| {problem}"):
    list(nq._read_distractors(tmp_path))


@pytest.mark.parametrize(
  "content, problem",
  [
    ({}, "data: is missing"),
    ({"data": [{"title": "T"}]}, r"data\[0\].paragraphs: is missing"),
    ({"data": [{"paragraphs": [{"context": "C"}]}]}, "sentence_breaks: is mis"),
  ],
)
def test_a_bad_file_of_xquad_is_named(tmp_path, content, problem):
  path = tmp_path / "de.json"
  path.write_text(json.dumps(content))
  with pytest.raises(ValueError, match=rf"de\.json:1: .*{problem}.*again\."):
    xquadr.read(path, "de", xquadr.SENTENCES)


# --- What a user may ask for.


def test_languages_in_another_order_are_the_same_request(tmp_path):
  first = building.plan("debian", str(tmp_path), ["zh", "de", "en"])
  second = building.plan("debian", str(tmp_path), ["en", "de", "zh", "de"])
  assert first == second


def test_hu2023_always_has_english_and_never_another_language(tmp_path):
  planned = building.plan("hu2023", str(tmp_path), ["fi", "sw"])
  assert {part.name: of.languages for part, of in planned.parts} == {
    "dpr_nq": ("en",),
    "wikimatrix": ("fi", "sw"),
    "mrtydi": ("en", "fi", "sw"),
  }
  with pytest.raises(
    ValueError, match=r"wikimatrix, .* has none of en, th; add"
  ):
    building.plan("hu2023", str(tmp_path), ["th", "en"])


def test_ntrex_has_all_languages_but_other_kinds_of_english():
  assert len(translations.NTREX) == len(set(translations.NTREX)) == 126
  codes = {languages.code(name) for name in translations.NTREX}
  assert "en" not in codes and len(codes) > 110


@pytest.mark.parametrize(
  "name, languages, message",
  [
    ("debain", (), "no corpus has this name; there are debian, li"),
    ("nq:large", (), "nq has no variant 'large'"),
    ("xquadr:x", (), "has no variant 'x'; there are xquadr:paragraphs"),
    ("xquadr", ("fr",), "--languages: xquadr has no 'fr'; it has ar, de"),
  ],
)
def test_what_is_not_there_is_refused_with_what_is(
  tmp_path, name, languages, message
):
  with pytest.raises(ValueError, match=message):
    building.plan(name, str(tmp_path), languages)


def test_a_collection_on_object_storage_is_whole(site, tmp_path, monkeypatch):
  store = object_store.serve(monkeypatch)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  site.files["/biencoder-nq-train.json.gz"] = gzip.compress(b"[]")
  building.bring(building.plan("dpr_nq", "gs://bucket/data", (), site.url))
  assert {name.removeprefix("gs://bucket/data/") for name in store.objects} == {
    "dpr_nq/ir/biencoder-nq-train.json.gz",
    "dpr_nq/README.md",
    "dpr_nq/.corpus.json",
  }


def test_a_folder_of_the_user_is_not_touched(archive, tmp_path):
  (tmp_path / "debian").mkdir()
  (tmp_path / "debian" / "mine.txt").write_text("mine")
  with pytest.raises(ValueError, match="this program did not make it"):
    bring("debian", tmp_path, archive, ["de"])
  assert not archive.asked


def test_wikimatrix_names_a_pair_in_alphabetical_order(tmp_path):
  planned = building.plan("wikimatrix", str(tmp_path), ["de", "fi"])
  assert [file.url.rpartition("/")[2] for file in planned.list_files()] == [
    "WikiMatrix.de-en.tsv.gz",
    "WikiMatrix.en-fi.tsv.gz",
  ]
  assert "th" not in translations.WIKIMATRIX


def test_a_missing_folder_of_a_corpus_says_which_command_makes_it(tmp_path):
  made_by = f"`mlir-jax download debian --output={tmp_path}` makes it"
  with pytest.raises(ValueError, match=made_by):
    load(tmp_path / "debian")
