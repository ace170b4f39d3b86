"""Attacks the readers with bad files. None may be read wrongly in silence."""

import bz2
import contextlib
import dataclasses
import functools
import gzip
import io
import itertools
import json
import lzma
import os
import pathlib
import socket
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from attack import scoreboard

from mlir_jax import contract as contracts
from mlir_jax.data import (
  collections,
  preparation,
  records,
  store_writer,
  tokenizer,
)
from mlir_jax.data.collections import folder as folder_collection
from mlir_jax.evals import ranking
from mlir_jax.retrieval import line_vectors, runs

TEXTS = ("Käse eins", "Brücke zwei", "Straße drei", "Äpfel vier")
BAD = 1  # The record that is damaged, of four.
LFS_POINTER = (
  b"version https://git-lfs.github.com/spec/v1\n"
  b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
  b"\nsize 12345\n"
)


@dataclasses.dataclass(frozen=True)
class Result:
  """The values that a reader made of a file's records, and its counts."""

  values: list
  count: int
  notes: str = ""


def load(folder: pathlib.Path, policy: str, tatoeba: bool = False):
  """Returns the collection of a case's folder, and its bad records."""
  bad = records.BadRecords(policy)
  root = str(folder / "tatoeba") if tatoeba else ""
  return collections.load("folder", str(folder / "data"), bad, root), bad


def write(path: pathlib.Path, data: bytes | str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data.encode() if isinstance(data, str) else data)


# --- The readers, each with a good file of four records. ---


def escape_json(text: str) -> bytes:
  """Encodes a text for the place between the quotes of a JSON string."""
  quoted = json.dumps(text, ensure_ascii=False)[1:-1]
  return quoted.encode("utf-8", "surrogatepass")


def escape_line(text: str) -> bytes:
  return text.encode("utf-8", "surrogatepass")


def question_record(number: int, raw: bytes) -> bytes:
  return (
    b'{"question": "%s", "positive_ctxs": [{"title": "T", "text": "good %d",'
    b' "passage_id": "p%d"}], "hard_negative_ctxs": []}'
  ) % (raw, number, number)


def positive_record(number: int, raw: bytes) -> bytes:
  return (
    b'{"question": "asked %d", "positive_ctxs": [{"title": "T", "text": "%s"}]}'
  ) % (number, raw)


def title_record(number: int, raw: bytes) -> bytes:
  return (
    b'{"question": "asked %d", "positive_ctxs": [{"title": "%s", "text":'
    b' "good %d"}]}'
  ) % (number, raw, number)


def negative_record(number: int, raw: bytes) -> bytes:
  return (
    b'{"question": "asked %d", "positive_ctxs": [{"title": "T", "text":'
    b' "good"}], "hard_negative_ctxs": [{"title": "", "text": "%s"}]}'
  ) % (number, raw)


def flag_record(number: int, raw: bytes) -> bytes:
  return b'{"query": "asked %d", "pos": ["%s"], "neg": []}' % (number, raw)


def tevatron_record(number: int, raw: bytes) -> bytes:
  return (
    b'{"query_id": "%d", "query": "%s", "positive_passages": [{"docid": "1",'
    b' "text": "good"}]}'
  ) % (number, raw)


def row_record(number: int, raw: bytes) -> bytes:
  return b"asked %d\t%s" % (number, raw)


def document_record(number: int, raw: bytes) -> bytes:
  return b'{"id": "d%d", "contents": "T\\n\\n%s"}' % (number, raw)


def pair_record(number: int, raw: bytes) -> bytes:
  return b"%s\tother %d" % (raw, number)


def named_pair_record(number: int, raw: bytes) -> bytes:
  return b'{"english": "%s", "non_english": "other %d"}' % (raw, number)


def text_record(number: int, raw: bytes) -> bytes:
  return b'{"number": %d, "text": "%s"}' % (number, raw)


def corpus_record(number: int, raw: bytes) -> bytes:
  return b'{"_id": "d%d", "title": "T", "text": "%s"}' % (number, raw)


def query_record(number: int, raw: bytes) -> bytes:
  return b'{"_id": "q%d", "text": "%s"}' % (number, raw)


def topic_record(number: int, raw: bytes) -> bytes:
  return b"q%d\t%s" % (number, raw)


def judgement_record(number: int, raw: bytes) -> bytes:
  del raw
  return b"q%d Q0 d%d 1" % (number, number)


def run_record(number: int, raw: bytes) -> bytes:
  del raw
  return b"q%d Q0 d%d 1 0.5 tag" % (number, number)


def line_record(number: int, raw: bytes) -> bytes:
  del number
  return raw


def read_retrieval(pick, folder, policy) -> Result:
  collection, bad = load(folder, policy)
  values = [pick(record) for record in collection.retrieval()]
  return Result(values, bad.count)


def read_negatives(folder, policy) -> Result:
  collection, bad = load(folder, policy)
  read = list(collection.retrieval())
  questions = [record.question for record in read]
  scoreboard.expect(
    questions == [f"asked {number}" for number in range(4)], questions
  )
  # A reader may keep an empty text: the token store drops it.
  values = [p.text for record in read for p in record.hard_negatives if p.text]
  return Result(values, bad.count)


def read_parallel(side, folder, policy) -> Result:
  collection, bad = load(folder, policy)
  pairs = [(r.source, r.target) for r in collection.parallel()]
  check_aligned(pairs, side)
  return Result([pair[side] for pair in pairs], bad.count)


def check_aligned(pairs, side) -> None:
  """Checks that each damaged sentence has its own translation."""
  for pair in pairs:
    if pair[side] in TEXTS:
      number = TEXTS.index(pair[side])
      scoreboard.expect(pair[1 - side] == f"other {number}", pairs)


def read_mono(folder, policy) -> Result:
  collection, bad = load(folder, policy)
  return Result([r.text for r in collection.monolingual()], bad.count)


def read_tatoeba(side, folder, policy) -> Result:
  collection, bad = load(folder, policy, tatoeba=True)
  (test,) = collection.translation_tests()
  pairs = list(zip(test.sources, test.targets, strict=True))
  check_aligned(pairs, side)
  return Result([pair[side] for pair in pairs], bad.count)


def read_test(pick, folder, policy) -> Result:
  collection, bad = load(folder, policy)
  (test,) = collection.tests()
  return Result(pick(test), bad.count, "\n".join(printed_about(test)))


def printed_about(test) -> list[str]:
  """Returns the lines that are printed about a test before it is used."""
  return [*test.notes, *ranking.describe_unfindable([test])]


def judgements_of(test) -> list:
  return [
    (query, passage, grade)
    for query, grades in test.qrels.items()
    for passage, grade in grades.items()
  ]


def read_to_encode(folder, policy) -> Result:
  del policy  # Each line is a row, so none may be skipped.
  (path,) = folder.glob("texts.txt*")
  return Result(list(line_vectors.read_texts([str(path)])), 0)


def read_run(folder, policy) -> Result:
  del policy  # A run is complete or refused.
  run = runs.read_run(folder / "run.trec")
  return Result([(q, p, s) for q in run for p, s in run[q].items()], 0)


@dataclasses.dataclass(frozen=True)
class Reader:
  """A file of four records, and the function that reads it.

  Attributes:
    name: Names the file and the field that is damaged.
    path: The file, below the case's folder.
    record: (number, raw text) -> a record's bytes.
    read: (folder, policy) -> result.
    escape: Encodes a text for its field.
    frame: The bytes before, between and after the records.
    others: The other files, path to content.
    values: The right values.
    empty: What a text without a visible character is: "bad", "dropped", "kept"
      or "no title".
    strict: The reader has no policy "skip".
  """

  name: str
  path: str
  record: Callable[[int, bytes], bytes]
  read: Callable[[pathlib.Path, str], Result]
  escape: Callable[[str], bytes] = escape_line
  frame: tuple[bytes, bytes, bytes] = (b"", b"\n", b"\n")
  others: tuple[tuple[str, bytes], ...] = ()
  values: tuple = TEXTS
  empty: str = "bad"
  strict: bool = False

  def records(self) -> list[bytes]:
    return [self.record(n, self.escape(text)) for n, text in enumerate(TEXTS)]

  def content(self, lines: Sequence[bytes] | None = None) -> bytes:
    before, between, after = self.frame
    lines = self.records() if lines is None else lines
    return before + between.join(lines) + after

  def line(self, number: int) -> int:
    return 1 + self.frame[0].count(b"\n") + number

  def prepare(self, folder: pathlib.Path) -> pathlib.Path:
    """Writes the other files; returns the path of the file to damage."""
    others = {"data/ir/other.json": GOOD_PAIRS} | dict(self.others)
    if self.path.startswith("data/ir/"):
      del others["data/ir/other.json"]
    for path, content in others.items():
      write(folder / path, content)
    path = folder / self.path
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


GOOD_PAIRS = (
  b'[{"question": "asked", "positive_ctxs": [{"title": "", "text": "good"}]}]'
)
ARRAY = (b"[\n", b",\n", b"\n]\n")
DOCUMENTS = b"\n".join(document_record(n, b"good") for n in range(4)) + b"\n"
TOPICS = b"\n".join(topic_record(n, b"good") for n in range(4)) + b"\n"
JUDGED = b"\n".join(judgement_record(n, b"") for n in range(4)) + b"\n"
CORPUS = b"\n".join(corpus_record(n, b"good") for n in range(4)) + b"\n"
QUERIES = b"\n".join(query_record(n, b"good") for n in range(4)) + b"\n"
OTHER_SIDE = b"".join(b"other %d\n" % number for number in range(4))
EVAL = "data/eval/en/"


def _readers() -> dict[str, Reader]:
  question = functools.partial(read_retrieval, lambda r: r.question)
  positive = functools.partial(read_retrieval, lambda r: r.positives[0].text)
  documents, topics, judged = (
    (EVAL + "collection/docs.jsonl", DOCUMENTS),
    (EVAL + "topic.test.tsv", TOPICS),
    (EVAL + "qrels.test.txt", JUDGED),
  )
  judgements = tuple((f"q{n}", f"d{n}", 1) for n in range(4))
  made = [
    Reader(
      "dpr array question",
      "data/ir/a.json",
      question_record,
      question,
      escape_json,
      ARRAY,
    ),
    Reader(
      "dpr lines question",
      "data/ir/a.json",
      question_record,
      question,
      escape_json,
    ),
    Reader(
      "dpr array positive",
      "data/ir/a.json",
      positive_record,
      positive,
      escape_json,
      ARRAY,
    ),
    Reader(
      "dpr array title",
      "data/ir/a.json",
      title_record,
      functools.partial(read_retrieval, lambda r: r.positives[0].title),
      escape_json,
      ARRAY,
      empty="no title",
    ),
    Reader(
      "dpr lines negative",
      "data/ir/a.json",
      negative_record,
      read_negatives,
      escape_json,
      empty="dropped",
    ),
    Reader(
      "flag lines positive",
      "data/ir/a.jsonl",
      flag_record,
      positive,
      escape_json,
    ),
    Reader(
      "tevatron lines query",
      "data/ir/a.jsonl",
      tevatron_record,
      question,
      escape_json,
    ),
    Reader(
      "columns rows positive",
      "data/ir/a.tsv",
      row_record,
      positive,
      frame=(b"anchor\tpositive\n", b"\n", b"\n"),
    ),
    Reader(
      "mono",
      "data/mono/a.fi.txt",
      line_record,
      read_mono,
      empty="dropped",
    ),
    Reader(
      "moses source",
      "data/parallel/a.en-de.en",
      line_record,
      functools.partial(read_parallel, 0),
      others=(("data/parallel/a.en-de.de", OTHER_SIDE),),
    ),
    Reader(
      "moses target",
      "data/parallel/a.en-de.de",
      line_record,
      functools.partial(read_parallel, 1),
      others=(("data/parallel/a.en-de.en", OTHER_SIDE),),
    ),
    Reader(
      "rows of translations",
      "data/parallel/a.en-de.tsv",
      pair_record,
      functools.partial(read_parallel, 0),
    ),
    Reader(
      "records of translations",
      "data/parallel/a.en-de.jsonl",
      named_pair_record,
      functools.partial(read_parallel, 0),
      escape_json,
    ),
    Reader(
      "records of texts",
      "data/mono/a.fi.jsonl",
      text_record,
      read_mono,
      escape_json,
    ),
    Reader(
      "corpus",
      EVAL + "corpus.jsonl",
      corpus_record,
      functools.partial(read_test, lambda t: [p.text for p in t.passages]),
      escape_json,
      others=(
        (EVAL + "queries.jsonl", QUERIES),
        (EVAL + "qrels/test.tsv", JUDGED),
      ),
    ),
    Reader(
      "queries",
      EVAL + "queries.jsonl",
      query_record,
      functools.partial(read_test, lambda t: list(t.queries.values())),
      escape_json,
      others=(
        (EVAL + "corpus.jsonl", CORPUS),
        (EVAL + "qrels/test.tsv", JUDGED),
      ),
    ),
    Reader(
      "tatoeba source",
      "tatoeba/tatoeba.deu-eng.deu",
      line_record,
      functools.partial(read_tatoeba, 0),
      others=(("tatoeba/tatoeba.deu-eng.eng", OTHER_SIDE),),
    ),
    Reader(
      "tatoeba english",
      "tatoeba/tatoeba.deu-eng.eng",
      line_record,
      functools.partial(read_tatoeba, 1),
      others=(("tatoeba/tatoeba.deu-eng.deu", OTHER_SIDE),),
    ),
    Reader(
      "docs",
      documents[0],
      document_record,
      functools.partial(read_test, lambda t: [p.text for p in t.passages]),
      escape_json,
      others=(topics, judged),
    ),
    Reader(
      "topic",
      topics[0],
      topic_record,
      functools.partial(read_test, lambda t: list(t.queries.values())),
      others=(documents, judged),
    ),
    Reader(
      "qrels",
      judged[0],
      judgement_record,
      functools.partial(read_test, judgements_of),
      others=(documents, topics),
      values=judgements,
    ),
    Reader(
      "encode",
      "texts.txt",
      line_record,
      read_to_encode,
      empty="kept",
      strict=True,
    ),
    Reader(
      "run",
      "run.trec",
      run_record,
      read_run,
      values=tuple((f"q{n}", f"d{n}", 0.5) for n in range(4)),
      strict=True,
    ),
  ]
  return {reader.name: reader for reader in made}


READERS = _readers()
# Readers of a text that can be damaged; and one reader for each kind of file.
TEXT_READERS = [r for n, r in READERS.items() if n not in ("qrels", "run")]
FILE_READERS = [
  READERS[name]
  for name in (
    "dpr array question",
    "dpr lines question",
    "columns rows positive",
    "mono",
    "moses source",
    "moses target",
    "rows of translations",
    "records of texts",
    "tatoeba english",
    "docs",
    "queries",
    "topic",
    "qrels",
    "encode",
    "run",
  )
]


# --- What is right. ---


def plain(value: Any) -> Any:
  """Puts single spaces between words, whatever white space is there."""
  return " ".join(value.split()) if isinstance(value, str) else value


def check_values(result: Result, values: Sequence, count: int) -> None:
  seen = [plain(value) for value in result.values]
  wanted = [plain(value) for value in values]
  scoreboard.expect(
    seen == wanted and result.count == count,
    f"read {seen[:6]} with {result.count} bad; right is {wanted[:6]} with"
    f" {count} bad",
  )


def read_skipping(read, folder) -> Result:
  """Reads under the policy "skip", where no error is right."""
  try:
    return read(folder, "skip")
  except ValueError as error:
    if isinstance(error, UnicodeError):
      raise
    raise scoreboard.WrongResultError(f"skip refuses: {error}") from error


def refuse_both(read, folder) -> None:
  """Checks that both policies refuse, and raises the error of "error"."""
  try:
    result = read(folder, "skip")
  except UnicodeError:
    raise
  except (ValueError, OSError):
    result = read(folder, "error")
  raise scoreboard.WrongResultError(f"accepted: {str(result)[:200]}")


def accepts(attack):
  """Wraps an attack for which an error is wrong."""

  @functools.wraps(attack)
  def accepted(folder):
    try:
      attack(folder)
    except UnicodeError:
      raise
    except (ValueError, OSError) as error:
      raise scoreboard.WrongResultError(f"refused: {error}") from error

  return accepted


def without(values: Sequence, number: int = BAD) -> list:
  return [*values[:number], *values[number + 1 :]]


def file_case(name, reader, damage, right, values=None, path=None):
  """A case of a whole file.

  Args:
    name: The kind of damage.
    reader: The reader.
    damage: (reader, path) -> the file's bytes, or None if it writes the file
      itself.
    right: "refused" under both policies, "read" as `values`, or "either".
    values: The right values; None for the reader's own.
    path: An ending that is added to the file's name.
  """

  def attack(folder):
    target = reader.prepare(folder)
    if path:
      target = target.with_name(target.name + path)
    damaged = damage(reader, target)
    if damaged is not None:
      target.write_bytes(damaged)
    wanted = reader.values if values is None else values
    if right == "refused":
      refuse_both(reader.read, folder)
    elif right == "read":
      check_values(read_skipping(reader.read, folder), wanted, 0)
      check_values(reader.read(folder, "error"), wanted, 0)
    else:
      check_values(reader.read(folder, "error"), wanted, 0)

  # The message may name the link or the folder, or a side's pair.
  return scoreboard.Case(
    f"{reader.name}/{name}",
    {"refused": "refused under both policies, naming the file"}.get(
      right, f"{right}: all records"
    ),
    accepts(attack) if right == "read" else attack,
    (pathlib.Path(reader.path).name,),
  )


def record_case(name, reader, bad_record, right="bad", value=None, names=()):
  """A case of one record among three good ones.

  Args:
    name: The kind of damage.
    reader: The reader.
    bad_record: The record's bytes.
    right: "bad": under "error" refused with file and line, under "skip" skipped
      and counted; "read": read as `value`; "dropped": not a record and not
      counted; "either": bad, or read as `value`.
    value: The record's right value.
    names: What an error must name in addition to file and line.
  """

  def attack(folder):
    target = reader.prepare(folder)
    lines = reader.records()
    lines[BAD] = bad_record
    target.write_bytes(reader.content(lines))
    whole = list(reader.values)
    whole[BAD] = value if value is not None else whole[BAD]
    if right == "read":
      check_values(reader.read(folder, "error"), whole, 0)
    elif right == "dropped":
      check_values(reader.read(folder, "error"), without(whole), 0)
    else:
      if not reader.strict:
        result = read_skipping(reader.read, folder)
        if right == "either" and not result.count:
          check_values(result, whole, 0)
        else:
          check_values(result, without(whole), 1)
      result = reader.read(folder, "error")
      scoreboard.expect(right == "either", f"accepted: {result}"[:300])
      check_values(result, whole, 0)

  line = f"{pathlib.Path(reader.path).name}:{reader.line(BAD)}"
  return scoreboard.Case(
    f"{reader.name}/{name}",
    f"{right}: {value!r}"[:200],
    accepts(attack) if right in ("read", "dropped") else attack,
    () if right in ("read", "dropped") else (line, *names),
  )


# --- One text among others. ---


def text_cases() -> Iterator[scoreboard.Case]:
  separators = "kaksi\v\f\x1c\x1d\x1e\x1fkolme"
  unicode_separators = "kaksi\x85\u2028\u2029kolme"
  invisible = {
    "zero-width spaces": "\u200b\u200b",
    "a soft hyphen and joiners": "\u00ad\u2060\u200d",
    "fillers": "\u3164\u115f\uffa0",
    "tags and selectors": "\U000e0041\ufe0f\U000e0100",
    "controls": "\x07\x1b",
    "white space of Unicode": "\u00a0\u3000\u2003\u1680",
    "direction marks": "\u202e\u2066\u200f",
  }
  bad_bytes = {
    "Latin-1": "Käse".encode("latin-1"),
    "a lone surrogate": b"a \xed\xa0\x80 b",
    "surrogates of CESU-8": b"a \xed\xa0\xbd\xed\xb8\x80 b",
    "an overlong NUL": b"a \xc0\x80 b",
    "beyond Unicode": b"a \xf4\x90\x80\x80 b",
    "a cut character": "Straß".encode()[:-1],
    "NUL": b"a\x00b",
    "a lone CR": b"kaksi\rkolme",
  }
  for reader in TEXT_READERS:

    def case(name, raw, right, value=None, reader=reader):
      return record_case(
        name, reader, reader.record(BAD, raw), right, value, ()
      )

    yield case(
      "separators of ASCII", reader.escape(separators), "read", separators
    )
    yield case(
      "separators of Unicode",
      reader.escape(unicode_separators),
      "read",
      unicode_separators,
    )
    for name, text in invisible.items():
      if reader.name in ("docs", "corpus"):
        # A document of a title alone is its title.
        yield case(f"invisible: {name}", reader.escape(text), "read", "T")
        continue
      if reader.empty == "kept":  # A row for each line.
        yield case(f"invisible: {name}", reader.escape(text), "read", "")
        continue
      if name == "white space of Unicode" or reader.empty != "no title":
        right, value = reader.empty, None
        if right == "no title":
          right, value = "read", ""
        yield case(f"invisible: {name}", reader.escape(text), right, value)
    for name, raw in bad_bytes.items():
      if reader.name == "dpr lines negative":
        continue  # The whole line is bad, as in the cases above.
      if reader.frame == ARRAY and name in ("NUL", "a lone CR"):
        # This is not JSON: the array cannot be read after it.
        lines = reader.records()
        lines[BAD] = reader.record(BAD, raw)
        yield file_case(
          name,
          reader,
          lambda reader, path, lines=lines: reader.content(lines),
          "refused",
        )
        continue
      yield case(name, raw, "bad")
    if reader.escape is escape_json:
      yield case("an escaped lone CR", b"kaksi\\rkolme", "read", "kaksi kolme")
      yield case("an escaped NUL", b"a\\u0000b", "bad")
      yield case("an escaped surrogate", b"a \\ud800 b", "bad")
      yield case("surrogates in the wrong order", b"\\ude00\\ud83d", "bad")
      yield case("an escaped pair", b"\\ud83d\\ude00", "read", "😀")


# --- Whole files: encodings, gzip, kinds of files. ---


def recoded(encoding):
  return lambda reader, path: reader.content().decode().encode(encoding)


def changed(change):
  return lambda reader, path: change(reader.content())


def flip(data: bytes, place: float) -> bytes:
  changed = bytearray(data)
  changed[int(len(data) * place)] ^= 0x10
  return bytes(changed)


def zipped(data: bytes) -> bytes:
  made = io.BytesIO()
  with zipfile.ZipFile(made, "w") as archive:
    archive.writestr("a", data)
  return made.getvalue()


def make_loop(reader, path):
  path.symlink_to(path.name)


def make_dangling(reader, path):
  path.symlink_to("nowhere")


def make_link_to_device(reader, path):
  path.symlink_to(os.devnull)


def make_failing_disk(reader, path):
  # It can be opened like a regular file, but its first byte cannot be read.
  path.symlink_to("/proc/self/mem")


def make_folder(reader, path):
  path.mkdir()


def make_link_to_folder(reader, path):
  folder = path.parents[len(pathlib.Path(reader.path).parts) - 1] / "elsewhere"
  folder.mkdir()
  path.symlink_to(folder)


def make_pipe(reader, path):
  os.mkfifo(path)


def make_socket(reader, path):
  # The path of a socket may not be long, so a relative path is used.
  with socket.socket(socket.AF_UNIX) as bound, contextlib.chdir(path.parent):
    bound.bind(path.name)


def make_link(reader, path):
  folder = path.parents[len(pathlib.Path(reader.path).parts) - 1] / "elsewhere"
  folder.mkdir()
  (folder / "blob").write_bytes(reader.content())
  path.symlink_to(folder / "blob")


def encoding_cases() -> Iterator[scoreboard.Case]:
  for reader in FILE_READERS:
    for name, damage in {
      "UTF-16 with a mark": recoded("utf-16"),
      "UTF-16LE without a mark": recoded("utf-16-le"),
      "UTF-16BE without a mark": recoded("utf-16-be"),
      "UTF-32 with a mark": recoded("utf-32"),
      "a Git LFS pointer": lambda reader, path: LFS_POINTER,
      "empty": lambda reader, path: b"",
      "blank lines alone": lambda reader, path: b"\n \n\t\n",
      "zeros alone": lambda reader, path: b"\0" * 4096,
      "random bytes": lambda reader, path: bytes(range(128, 256)) * 4,
      "HTML": lambda reader, path: b"<html>404</html>\n",
    }.items():
      # A line of HTML is a valid sentence.
      if name == "HTML" and reader.name in ("mono", "encode"):
        continue
      # Each line is a text, a blank line too.
      if reader.name == "encode" and name in ("empty", "blank lines alone"):
        rows = [""] * damage(reader, None).count(b"\n")
        yield file_case(name, reader, damage, "read", rows)
        continue
      # A run in which nothing was found is an empty file.
      if name in ("empty", "blank lines alone") and reader.name == "run":
        yield file_case(name, reader, damage, "read", ())
        continue
      yield file_case(name, reader, damage, "refused")
    for name, damage in {
      "a mark in front": lambda r, p: b"\xef\xbb\xbf" + r.content(),
      "CRLF": changed(lambda data: data.replace(b"\n", b"\r\n")),
      "CR and CRLF, of a double conversion": changed(
        lambda data: data.replace(b"\n", b"\r\r\n")
      ),
      "no last line end": changed(bytes.rstrip),
      "blank lines at the end": changed(lambda data: data + b"\n \n\r\n"),
    }.items():
      wanted = None
      if reader.name == "encode" and name == "blank lines at the end":
        wanted = [*TEXTS, "", "", ""]
      yield file_case(name, reader, damage, "read", wanted)
    yield file_case(
      "CR alone ends lines",
      reader,
      changed(lambda data: data.replace(b"\n", b"\r")),
      "either" if reader.frame == ARRAY else "refused",
    )
    if reader.frame != ARRAY:
      marked = reader.records()
      marked[BAD] = b"\xef\xbb\xbf" + marked[BAD]
      yield file_case(
        "a mark before a later line",
        reader,
        lambda reader, path, marked=marked: reader.content(marked),
        "either",
      )
      yield zeros_at_end(reader)
    if reader.name in ("dpr array question", "mono", "docs"):
      yield many_zeros(reader)


def many_zeros(reader):
  """A file with zeros after its content, as interrupted downloads have."""

  def attack(folder):
    path = reader.prepare(folder)
    path.write_bytes(reader.content())
    os.truncate(path, 64 << 20)
    try:
      result = reader.read(folder, "skip")
    except UnicodeError:
      raise
    except ValueError:
      pass
    else:
      check_values(result, reader.values, 1)
    result = reader.read(folder, "error")
    scoreboard.expect(False, f"accepted: {result}"[:300])

  return scoreboard.Case(
    f"{reader.name}/64 MB of zeros at the end",
    "refused soon, or one bad line",
    attack,
    (pathlib.Path(reader.path).name,),
    seconds=120,
  )


def zeros_at_end(reader):
  """A crash may leave zeros in a file: a line of zeros is a bad line."""

  def attack(folder):
    reader.prepare(folder).write_bytes(reader.content() + b"\0" * 512)
    try:
      result = reader.read(folder, "skip")
    except UnicodeError:
      raise
    except ValueError:
      pass  # The whole file may be refused, as a run is.
    else:
      check_values(result, reader.values, 1)
    result = reader.read(folder, "error")
    scoreboard.expect(False, f"accepted: {result}"[:300])

  return scoreboard.Case(
    f"{reader.name}/zeros at the end",
    "refused, or one bad line",
    attack,
    (pathlib.Path(reader.path).name,),
  )


def gzip_cases() -> Iterator[scoreboard.Case]:
  pack = functools.partial(gzip.compress, mtime=0)

  def cut_at(place):
    return changed(lambda data: pack(data)[: int(len(pack(data)) * place)])

  for reader in FILE_READERS:
    if reader.name == "run":
      yield file_case(
        "gzip under a plain name", reader, changed(pack), "refused"
      )
      continue
    half = len(reader.content()) // 2
    for name, damage in {
      "plain text named .gz": changed(bytes),
      "gzip cut in its middle": cut_at(0.5),
      "gzip without its checksum": changed(lambda data: pack(data)[:-8]),
      "gzip with a wrong checksum": changed(
        lambda data: flip(pack(data), (len(pack(data)) - 7) / len(pack(data)))
      ),
      "gzip with a wrong size": changed(
        lambda data: flip(pack(data), (len(pack(data)) - 2) / len(pack(data)))
      ),
      "gzip with a flipped bit": changed(lambda data: flip(pack(data), 0.5)),
      "gzip twice": changed(lambda data: pack(pack(data))),
      "gzip of nothing": changed(lambda data: pack(b"")),
      "nothing named .gz": changed(lambda data: b""),
      "bzip2 named .gz": changed(bz2.compress),
      "xz named .gz": changed(lzma.compress),
      "zip named .gz": changed(zipped),
      "an LFS pointer named .gz": changed(lambda data: LFS_POINTER),
      "text behind gzip": changed(lambda data: pack(data) + b"more\n"),
    }.items():
      if reader.name == "encode" and "nothing" in name:
        yield file_case(name, reader, damage, "read", (), path=".gz")
        continue
      yield file_case(name, reader, damage, "refused", path=".gz")
    for name, damage in {
      "gzip in two members": changed(
        lambda data, half=half: pack(data[:half]) + pack(data[half:])
      ),
      "zeros behind gzip": changed(lambda data: pack(data) + b"\0" * 64),
    }.items():
      yield file_case(name, reader, damage, "read", path=".gz")
    for name, damage in {
      "gzip under a plain name": changed(pack),
      "bzip2 under a plain name": changed(bz2.compress),
      "zip under a plain name": changed(zipped),
    }.items():
      yield file_case(name, reader, damage, "refused")

    def both(reader, path):
      path.with_name(path.name + ".gz").write_bytes(pack(reader.content()))
      return reader.content()

    if reader.name != "encode":  # It receives the file's name.
      yield file_case("both plain and .gz", reader, both, "refused")


_DEVICES = ("a pipe", "a link to a device")


def kind_cases() -> Iterator[scoreboard.Case]:
  for reader in FILE_READERS:
    for name, damage in {
      "a link to itself": make_loop,
      "a dangling link": make_dangling,
      "a folder": make_folder,
      "a link to a folder": make_link_to_folder,
      "a pipe": make_pipe,
      "a link to a device": make_link_to_device,
      "a socket": make_socket,
      "on a disk that fails": make_failing_disk,
    }.items():
      # The user names these files: a pipe of the shell and an empty file are
      # valid.
      if name not in _DEVICES or reader.name not in ("run", "encode"):
        yield file_case(name, reader, damage, "refused")
    yield file_case("a link to a file", reader, make_link, "read")
    yield unreadable(reader)


@contextlib.contextmanager
def as_nobody(folder: pathlib.Path) -> Iterator[None]:
  """Runs the block as another user, because root may read every file."""
  is_root = os.geteuid() == 0
  folder.chmod(0o755)
  if is_root:
    os.seteuid(65534)
  try:
    yield
  finally:
    if is_root:
      os.seteuid(0)


def unreadable(reader):
  def attack(folder):
    path = reader.prepare(folder)
    path.write_bytes(reader.content())
    reader.read(folder, "error")  # So that root does all late imports.
    path.chmod(0)
    with as_nobody(folder):
      refuse_both(reader.read, folder)

  return scoreboard.Case(
    f"{reader.name}/unreadable",
    "refused under both policies, naming the file",
    attack,
    (pathlib.Path(reader.path).name,),
  )


# --- JSON. ---


def json_cases() -> Iterator[scoreboard.Case]:
  nested = b"[" * 100_000 + b"]" * 100_000
  digits = b"9" * 5000
  for name in ("dpr array question", "dpr lines question", "docs"):
    reader = READERS[name]
    good = reader.records()[BAD]
    text = b"contents" if name == "docs" else b"question"
    quoted = b'"' + reader.escape(TEXTS[BAD]) + b'"'
    if name == "docs":
      quoted = b'"T\\n\\n' + reader.escape(TEXTS[BAD]) + b'"'
    is_array = reader.frame == ARRAY

    def extra(value, good=good):
      return b'{"extra": ' + value + b", " + good[1:]

    def with_text(value, good=good, quoted=quoted):
      assert quoted in good
      return good.replace(quoted, value)

    # Values: the record is bad, but its end is clear.
    for kind, value in {
      "NaN": b"NaN",
      "Infinity": b"-Infinity",
      "null": b"null",
      "true": b"true",
      "a number": b"12",
      "a long number": digits,
      "a huge exponent": b"1e999",
      "a list": b'["a"]',
      "an object": b'{"text": "a"}',
      "deep nesting": nested,
      "an empty text": b'""',
    }.items():
      if kind == "deep nesting":
        # No field of the record can be read, and nothing after it in an array.
        yield nested_case(f"text is {kind}", reader, with_text(value))
        continue
      yield record_case(
        f"text is {kind}", reader, with_text(value), names=(text.decode(),)
      )
    for kind, value in {
      "null": b"null",
      "a number": b"7",
      "a text": b'"a"',
      "a list": b"[]",
      "an empty object": b"{}",
      "true": b"true",
      "NaN": b"NaN",
      "JSON in a JSON string": json.dumps(good.decode()).encode(),
      "the record in a list": b"[" + good + b"]",
    }.items():
      yield record_case(f"record is {kind}", reader, value)
    yield record_case(
      "text given twice",
      reader,
      b'{"%s": "another", %s' % (text, good[1:]),
      names=(text.decode(),),
    )
    yield record_case(
      "text given twice, the key escaped once",
      reader,
      b'{"\\u00%02x%s": "another", %s' % (text[0], text[1:], good[1:]),
      names=(text.decode(),),
    )
    yield record_case(
      "text under a key in capitals",
      reader,
      good.replace(text, text.upper()),
      names=(text.decode(),),
    )
    # Fields that are not read may hold anything.
    for kind, value in {
      "NaN": b"NaN",
      "Infinity": b"Infinity",
      "a long number": digits,
      "a huge exponent": b"-1e999",
      "deep nesting": nested,
      "a key twice": b'{"a": 1, "a": 2}',
      "a lone surrogate": b'"\\udc80"',
    }.items():
      if kind == "deep nesting":
        yield nested_case(f"an extra field is {kind}", reader, extra(value))
        continue
      yield record_case(
        f"an extra field is {kind}", reader, extra(value), "either"
      )
    # Syntax: in an array all that follows is lost, in lines only this record.
    for kind, value in {
      "a comma at its end": good[:-1] + b",}",
      "single quotes": good.replace(b'"', b"'"),
      "a comment": good[:-1] + b" /* why */}",
      "Python's True": extra(b"True"),
      "a bad escape": with_text(b'"\\x41"'),
      "a cut escape": with_text(b'"\\u12"'),
      "a raw tab": with_text(b'"a\tb"'),
      "cut": good[:-9],
      "no quotes at a key": good.replace(b'"' + text + b'"', text),
      "a bracket too many": good + b"}",
      "a leading zero": extra(b"012"),
      "two in one place": good + good,
      "a word behind it": good + b" x",
    }.items():
      if is_array:
        lines = reader.records()
        lines[BAD] = value
        yield file_case(
          f"record has {kind}",
          reader,
          lambda reader, path, lines=lines: reader.content(lines),
          "refused",
        )
      else:
        yield record_case(f"record has {kind}", reader, value)


def nested_case(name, reader, value):
  if reader.frame != ARRAY:
    return record_case(name, reader, value)
  lines = reader.records()
  lines[BAD] = value
  return file_case(
    name, reader, lambda reader, path: reader.content(lines), "refused"
  )


def json_file_cases() -> Iterator[scoreboard.Case]:
  array = READERS["dpr array question"]
  for name, damage in {
    "text behind the array": changed(lambda data: data + b"more\n"),
    "a second array": changed(lambda data: data + data),
    "a record behind the array": changed(
      lambda data: data + array.records()[0]
    ),
    "no bracket at the end": changed(lambda data: data.rstrip()[:-1]),
    "cut in a record": changed(lambda data: data[: len(data) // 2]),
    "cut behind a comma": changed(lambda data: data[: data.rindex(b",\n") + 1]),
    "cut behind the first bracket": changed(lambda data: data[:1]),
    "a comma at the end": changed(lambda data: data.rstrip()[:-1] + b",]"),
    "two commas": changed(lambda data: data.replace(b",\n", b",,\n", 1)),
    "a comma in front": changed(lambda data: b"[," + data[1:]),
    "an empty array": changed(lambda data: b"[]"),
    "an array of nothing but null": changed(lambda data: b"[null, null]"),
    "an array in an array": changed(lambda data: b"[" + data + b"]"),
    "the array in a string": changed(
      lambda data: json.dumps(data.decode()).encode()
    ),
    "zeros at the end": changed(lambda data: data + b"\0" * 512),
    "a closing brace for a bracket": changed(
      lambda data: data.rstrip()[:-1] + b"}"
    ),
    "a page of nested brackets": changed(lambda data: b"[" * 200_000),
    "a number": changed(lambda data: b"12"),
    "null": changed(lambda data: b"null"),
  }.items():
    yield file_case(name, array, damage, "refused")
  for name, damage in {
    "no bracket in front": changed(lambda data: data[1:]),
    "the array in an object": changed(lambda data: b'{"data": ' + data + b"}"),
    "JavaScript": changed(lambda data: b"var pairs = " + data),
    "a comment in front": changed(lambda data: b"// pairs\n" + data),
  }.items():
    yield lines_case(name, array, damage)
  for name, damage in {
    "all in one line": changed(lambda data: data.replace(b"\n", b"")),
    "pretty-printed": changed(
      lambda data: json.dumps(json.loads(data), indent=2).encode()
    ),
    "all escaped": changed(lambda data: json.dumps(json.loads(data)).encode()),
    "blank lines in front": changed(lambda data: b"\n\r\n \t\n" + data),
    "white space everywhere": changed(
      lambda data: data.replace(b",", b"\n,\n\t ").replace(b":", b" \n: ")
    ),
  }.items():
    yield file_case(name, array, damage, "read")
  for reader in (READERS["dpr lines question"], READERS["docs"]):
    for name, damage in {
      "a comma behind each line": changed(
        lambda data: data.replace(b"}\n", b"},\n")
      ),
      "records over several lines": changed(
        lambda data: b"\n".join(
          json.dumps(json.loads(line), indent=2).encode()
          for line in data.splitlines()
        )
      ),
      "each line in a string": changed(
        lambda data: b"\n".join(
          json.dumps(line.decode()).encode() for line in data.splitlines()
        )
      ),
    }.items():
      yield file_case(name, reader, damage, "refused")
    yield file_case(
      "blank lines between",
      reader,
      changed(lambda data: data.replace(b"\n", b"\n\n \n")),
      "read",
    )
  yield file_case(
    "an array of documents",
    READERS["docs"],
    changed(lambda data: b"[" + data.strip().replace(b"\n", b",") + b"]"),
    "refused",
  )
  yield lines_case(
    "an array over lines",
    READERS["docs"],
    changed(lambda data: b"[\n" + data.strip().replace(b"\n", b",\n") + b"\n]"),
  )


def lines_case(name, reader, damage):
  """An array that is read as lines: each line without a record is counted."""

  def attack(folder):
    path = reader.prepare(folder)
    path.write_bytes(damage(reader, path))
    try:
      result = reader.read(folder, "skip")
    except UnicodeError:
      raise
    except ValueError:
      pass
    else:
      known = all(value in reader.values for value in result.values)
      lost = len(reader.values) - len(result.values)
      scoreboard.expect(known and result.count >= lost, result)
    result = reader.read(folder, "error")
    scoreboard.expect(False, f"accepted: {result}")

  return scoreboard.Case(
    f"{reader.name}/{name}",
    "refused; under skip, each lost record is counted, or it is refused",
    attack,
    (pathlib.Path(reader.path).name,),
  )


# --- DPR's fields. ---

GOOD_PASSAGE = {"title": "T", "text": "good one", "passage_id": "1"}


def read_whole(folder, policy) -> Result:
  collection, bad = load(folder, policy)
  values = [
    (
      record.question,
      tuple((p.title, p.text) for p in record.positives),
      tuple((p.title, p.text) for p in record.hard_negatives if p.text),
    )
    for record in collection.retrieval()
  ]
  return Result(values, bad.count)


def dpr_case(name, record, right, value=None, names=()):
  """A record among three good ones.

  Args:
    name: The kind of damage.
    record: The record, or its JSON.
    right: "bad", "read" or "either"; or "negative" or "positive" if only one
      passage is bad.
    value: The record's right value.
    names: What an error must name.
  """

  def attack(folder):
    lines = [
      {"question": text, "positive_ctxs": [{"title": "", "text": f"p {text}"}]}
      for text in TEXTS
    ]
    whole = [(text, (("", f"p {text}"),), ()) for text in TEXTS]
    lines = list(map(json.dumps, lines))
    lines[BAD] = record if isinstance(record, str) else json.dumps(record)
    write(folder / "data/ir/a.json", "\n".join(lines))
    if right == "bad":
      check_values(read_skipping(read_whole, folder), without(whole), 1)
      result = read_whole(folder, "error")
      scoreboard.expect(False, f"accepted: {result.values[BAD]}")
    whole[BAD] = value
    if right == "negative":
      check_values(read_skipping(read_whole, folder), whole, 1)
      result = read_whole(folder, "error")
      scoreboard.expect(False, f"accepted: {result.values[BAD]}")
    if right == "positive":
      # The good positive stays, or the record is skipped: one is counted.
      result = read_skipping(read_whole, folder)
      kept = whole if len(result.values) == 4 else without(whole)
      check_values(result, kept, 1)
      result = read_whole(folder, "error")
      scoreboard.expect(False, f"accepted: {result.values[BAD]}")
    check_values(read_whole(folder, "error"), whole, 0)

  return scoreboard.Case(
    f"dpr fields/{name}",
    f"{right}: {value}",
    accepts(attack) if right == "read" else attack,
    () if right == "read" else (f"a.json:{BAD + 1}", *names),
  )


def dpr_cases() -> Iterator[scoreboard.Case]:
  one = GOOD_PASSAGE
  good = ("asked", (("T", "good one"),), ())

  def record(positives=(one,), **fields):
    return {"question": "asked", "positive_ctxs": positives} | fields

  yield dpr_case(
    "no question", {"positive_ctxs": [one]}, "bad", names=("question",)
  )
  yield dpr_case(
    "no positives", {"question": "asked"}, "bad", names=("positive_ctxs",)
  )
  for kind, positives in {
    "null": None,
    "empty": [],
    "an object": one,
    "a text": "good one",
    "a number": 3,
    "a list of null": [None],
    "a list of texts": ["good one"],
    "a list of lists": [[one]],
    "a list of an empty object": [{}],
    "NaN": float("nan"),
    "a list of NaN": [float("nan")],
  }.items():
    yield dpr_case(
      f"positives are {kind}",
      record(positives),
      "bad",
      names=("positive_ctxs",),
    )
  for kind, passage in {
    "no text": {"title": "T"},
    "null as text": {"title": "T", "text": None},
    "an empty text": {"title": "T", "text": ""},
    "white space as text": {"title": "T", "text": "\n\t\u3000"},
    "an invisible text": {"title": "T", "text": "\u200b\ufeff"},
    "a number as text": {"title": "T", "text": 7},
    "a list as text": {"title": "T", "text": ["a", "b"]},
    "true as text": {"title": "T", "text": True},
    "a number as title": {"title": 7, "text": "a"},
    "a list as title": {"title": ["T"], "text": "a"},
    "false as title": {"title": False, "text": "a"},
    "an object as title": {"title": {}, "text": "a"},
    "a surrogate as title": {"title": "\ud800", "text": "a"},
    "contents for text": {"title": "T", "contents": "a"},
    "a list as id": {"title": "T", "text": "a", "passage_id": [1]},
    "an object as id": {"title": "T", "text": "a", "passage_id": {}},
    "true as id": {"title": "T", "text": "a", "passage_id": True},
    "a fraction as id": {"title": "T", "text": "a", "passage_id": 1.5},
    "a surrogate as id": {"title": "T", "text": "a", "passage_id": "\ud800"},
  }.items():
    yield dpr_case(
      f"the positive has {kind}",
      record([passage]),
      "bad",
      names=("positive_ctxs[0]",),
    )
  for kind, passage, value in (
    ("no title", {"text": "a"}, ("", "a")),
    ("null as title", {"title": None, "text": "a"}, ("", "a")),
    ("an empty title", {"title": "", "text": "a"}, ("", "a")),
    ("an invisible title", {"title": "\u200b", "text": "a"}, ("", "a")),
    ("a title of lines", {"title": " T\n", "text": "a"}, ("T", "a")),
    ("a number as id", one | {"passage_id": 7}, ("T", "good one")),
    ("null as id", one | {"passage_id": None}, ("T", "good one")),
    ("an empty id", one | {"passage_id": ""}, ("T", "good one")),
    ("a negative number as id", one | {"passage_id": -1}, ("T", "good one")),
    ("psg_id", {"title": "T", "text": "a", "psg_id": "9"}, ("T", "a")),
    ("two names of its id", one | {"psg_id": "other"}, ("T", "good one")),
    ("a score of NaN", one | {"score": float("nan")}, ("T", "good one")),
  ):
    yield dpr_case(
      f"the positive has {kind}",
      record([passage]),
      "either",
      ("asked", (value,), ()),
      names=("positive_ctxs[0]",),
    )
  for kind, passage in {
    "null": None,
    "empty": {"title": "T", "text": ""},
    "a text": "a",
    "a number as text": {"title": "T", "text": 7},
  }.items():
    yield dpr_case(
      f"the second positive is {kind}",
      record([one, passage]),
      "positive",
      good,
      names=("positive_ctxs[1]",),
    )
  yield dpr_case(
    "the first positive is bad, the second good",
    record([{"text": 7}, one]),
    "positive",
    good,
    names=("positive_ctxs[0]",),
  )
  yield dpr_case(
    "the question is among the answers, twice",
    record([one, one], answers=None, dataset=3, negative_ctxs="none"),
    "either",
    ("asked", (("T", "good one"),) * 2, ()),
  )
  # Negatives: a bad one does not cost the record.
  other = {"title": "N", "text": "wrong one"}
  kept = (("N", "wrong one"),)
  for kind, negative in {
    "a text": "wrong",
    "a number": 3,
    "true": True,
    "a list": [other],
    "an empty object": {},
    "a number as text": {"title": "N", "text": 7},
    "a list as text": {"title": "N", "text": ["w"]},
    "a number as title": {"title": 7, "text": "w"},
    "a surrogate as text": {"title": "N", "text": "\udfff"},
    "a fraction as id": {"title": "N", "text": "w", "passage_id": 0.5},
    "no text but contents": {"title": "N", "contents": "w"},
    "NaN": float("-inf"),
  }.items():
    for place, negatives in {
      "first": [negative, other],
      "last": [other, negative],
    }.items():
      if place == "last" and kind not in ("a text", "a number as text"):
        continue
      number = negatives.index(negative)
      yield dpr_case(
        f"the {place} negative is {kind}",
        record(hard_negative_ctxs=negatives),
        "negative",
        (*good[:2], kept),
        names=(f"hard_negative_ctxs[{number}]",),
      )
  for kind, negative in {
    "null": None,
    "null as text": {"title": "N", "text": None},
    "an empty text": {"title": "N", "text": ""},
    "an invisible text": {"title": "N", "text": "\u200b"},
  }.items():
    # A negative without text is dropped and counted by the token store.
    yield dpr_case(
      f"a negative has {kind}",
      record(hard_negative_ctxs=[negative, other]),
      "read",
      (*good[:2], kept),
    )
  for kind, negatives in {
    "a text": "wrong one",
    "an object": other,
    "a number": 3,
    "true": True,
    "false": False,
    "zero": 0,
    "NaN": float("nan"),
    "an empty text": "",
    "an empty object": {},
  }.items():
    yield dpr_case(
      f"negatives are {kind}",
      record(hard_negative_ctxs=negatives),
      "negative",
      good,
      names=("hard_negative_ctxs",),
    )
  twice = '{"text": "first", "text": "second"}'
  start = '{"question": "asked", "positive_ctxs": [%s], "hard_negative_ctxs": '
  yield dpr_case(
    "a negative's text is given twice",
    start % json.dumps(one) + f"[{json.dumps(other)}, {twice}]}}",
    "negative",
    (*good[:2], kept),
    names=("hard_negative_ctxs[1]",),
  )
  yield dpr_case(
    "a positive's text is given twice",
    start % twice + "[]}",
    "bad",
    names=("positive_ctxs[0]",),
  )
  # Finding it must not take quadratic time.
  keys = "".join(f'"{number}": 0, ' for number in range(100_000))
  yield dpr_case(
    "a key is given twice behind 100,000 others",
    f'{{{keys}"question": "asked", "question": "again"}}',
    "bad",
    names=("question",),
  )
  for kind, fields in {
    "null": {"hard_negative_ctxs": None},
    "empty": {"hard_negative_ctxs": []},
    "missing": {},
  }.items():
    yield dpr_case(f"negatives are {kind}", record(**fields), "read", good)


# --- Ids with two texts, in the token store. ---


@functools.cache
def make_contract():
  texts = [
    *TEXTS,
    "asked good wrong one two three",
    "abcdefghijklmnopqrstuvwxyz",
  ]
  trained = tokenizer.train(texts * 3, 120)
  roles = dict.fromkeys(contracts.ROLES, contracts.PartialRole("", 16))
  made = contracts.PartialContract(
    pooling="mean", normalize=True, title_joiner=" ", **roles
  ).complete(trained)
  return trained, made


def build(folder, policy) -> Result:
  trained, contract = make_contract()
  collection, bad = load(folder, policy)
  store = store_writer.build(
    folder / f"store-{policy}",
    collection,
    contract,
    trained,
    tokenizer.pad_id(trained),
    shuffle_parallel=False,
    seed=0,
    source=collection.fingerprint(),
    bad_records=bad,
  )
  rows = {s: store.rows(s) for s in ("retrieval", "parallel", "monolingual")}
  rows["negatives"] = len(store.arrays["retrieval_negatives"])
  return Result([rows], 0, store.summary())


def pair(question, text, number=None, negatives=(), title=""):
  passage = {"title": title, "text": text}
  if number is not None:
    passage["passage_id"] = number
  return {
    "question": question,
    "positive_ctxs": [passage],
    "hard_negative_ctxs": list(negatives),
  }


def store_case(name, right, rows, files, names=(), summary=""):
  """A case of a token store that is built.

  Args:
    name: The kind of damage.
    right: "refused" under "error" and kept under "skip", or "read".
    rows: The right numbers of rows under "skip", by stream.
    files: Path to content; a list is written as JSON lines.
    names: What the error must name.
    summary: What the store's summary must say.
  """

  def attack(folder):
    write(folder / "data/ir/other.json", GOOD_PAIRS)
    for path, content in files.items():
      if isinstance(content, list):
        content = "\n".join(map(json.dumps, content)) + "\n"
      write(folder / "data" / path, content)
    for policy in ("skip", "error"):
      if policy == "skip":
        result = read_skipping(build, folder)
      else:
        result = build(folder, policy)
        scoreboard.expect(right == "read", f"accepted: {result.values}")
      seen = {key: result.values[0][key] for key in rows}
      scoreboard.expect(seen == rows, f"{seen} for {rows}")
      scoreboard.expect(summary in result.notes, result.notes)

  return scoreboard.Case(
    f"store/{name}",
    right,
    accepts(attack) if right == "read" else attack,
    names,
  )


def store_cases() -> Iterator[scoreboard.Case]:
  yield store_case(
    "one id, two texts",
    "refused",
    {"retrieval": 3},
    {"ir/a.json": [pair("q a", "one", "p"), pair("q b", "two", "p")]},
    ("a.json:1", "a.json:2"),
    "dropped passage ids that have two texts: 1",
  )
  yield store_case(
    "one id, one text, two titles",
    "refused",
    {"retrieval": 3},
    {
      "ir/a.json": [
        pair("q a", "one", "p", title="x"),
        pair("q b", "one", "p", title="y"),
      ]
    },
    ("a.json:1", "a.json:2"),
  )
  yield store_case(
    "a positive's and a negative's id are one",
    "refused",
    {"retrieval": 3, "negatives": 1},
    {
      "ir/a.json": [
        pair("q a", "one", "p"),
        pair(
          "q b",
          "two",
          "r",
          [{"title": "", "text": "three", "passage_id": "p"}],
        ),
      ]
    },
    ("a.json:1", "a.json:2"),
  )
  yield store_case(
    "the id 7 and the id '7'",
    "refused",
    {"retrieval": 3},
    {"ir/a.json": [pair("q a", "one", 7), pair("q b", "two", "7")]},
    ("a.json:1", "a.json:2"),
  )
  yield store_case(
    "one id in two files",
    "read",
    {"retrieval": 3},
    {
      "ir/a.json": [pair("q a", "one", "p")],
      "ir/b.json": [pair("q b", "two", "p")],
    },
  )
  yield store_case(
    "one id, one text",
    "read",
    {"retrieval": 3},
    {"ir/a.json": [pair("q a", "one", "p"), pair("q b", "one ", "p")]},
  )
  yield store_case(
    "no ids",
    "read",
    {"retrieval": 3},
    {"ir/a.json": [pair("q a", "one", ""), pair("q b", "two", "")]},
  )
  yield store_case(
    "negatives without text",
    "read",
    {"retrieval": 2, "negatives": 1},
    {
      "ir/a.json": [
        pair(
          "q a",
          "one",
          "p",
          [None, {"title": "T", "text": " "}, {"title": "", "text": "three"}],
        )
      ]
    },
    summary="dropped hard negatives without text: 2",
  )
  yield store_case(
    "a negative that is the positive",
    "read",
    {"retrieval": 2, "negatives": 0},
    {
      "ir/a.json": [
        pair("q a", "one two", "p", [{"title": "one", "text": "two"}])
      ]
    },
    summary="dropped hard negatives that are positives: 1",
  )
  yield store_case(
    "a negative that is another row's positive of the question",
    "read",
    {"retrieval": 3, "negatives": 0},
    {
      "ir/a.json": [
        pair("q a", "one", "p"),
        pair("q a", "two", "r", [{"title": "", "text": "one"}]),
      ]
    },
    summary="dropped hard negatives that are positives: 1",
  )
  yield store_case(
    "bad records of all streams",
    "refused",
    {"retrieval": 2, "parallel": 1, "monolingual": 1},
    {
      "ir/a.json": [pair("q a", "one", "p"), {"question": "q b"}],
      "parallel/a.en-de.en": "one\n\n",
      "parallel/a.en-de.de": "eins\nzwei\n",
      "mono/a.fi.txt": "yksi\nkak\rsi\n",
    },
    ("a.json:2",),
    "bad training records skipped: 3",
  )
  yield store_case(
    "translations that are copies",
    "read",
    {"parallel": 1},
    {
      "parallel/a.en-de.en": "one\ntwo\n",
      "parallel/a.en-de.de": "one\nzwei\n",
    },
    summary="dropped parallel pairs with identical sides: 1",
  )


# --- Aligned files: line counts, blank lines, numbers. ---


def pairs_of(folder, policy, kind):
  collection, bad = load(folder, policy, tatoeba=kind == "tatoeba")
  if kind == "moses":
    pairs = [(r.source, r.target) for r in collection.parallel()]
  else:
    (test,) = collection.translation_tests()
    pairs = list(zip(test.sources, test.targets, strict=True))
  return Result(pairs, bad.count)


ALIGNED = {
  "moses": ("data/parallel/a.de-en.de", "data/parallel/a.de-en.en"),
  "tatoeba": ("tatoeba/tatoeba.deu-eng.deu", "tatoeba/tatoeba.deu-eng.eng"),
}


def aligned_case(kind, name, sides, right, values=(), names=()):
  """Two files; right is "refused", "read", or the number of bad records."""

  def attack(folder):
    write(folder / "data/ir/other.json", GOOD_PAIRS)
    for path, side in zip(ALIGNED[kind], sides, strict=True):
      write(folder / path, side)
    read = functools.partial(pairs_of, kind=kind)
    if right == "refused":
      refuse_both(read, folder)
    check_values(
      read_skipping(read, folder), values, 0 if right == "read" else right
    )
    result = read(folder, "error")
    scoreboard.expect(right == "read", f"accepted: {result.values}")
    check_values(result, values, 0)

  file = pathlib.Path(ALIGNED[kind][0]).name.removesuffix("de")[:6]
  return scoreboard.Case(
    f"{kind}/{name}",
    f"{right}: {values}",
    accepts(attack) if right == "read" else attack,
    (file, *names),
  )


def aligned_cases() -> Iterator[scoreboard.Case]:
  for kind in ALIGNED:
    case = functools.partial(aligned_case, kind)
    yield case("one line more", ("a\nb\n", "A\nB\nC\n"), "refused")
    yield case("one line less", ("a\nb\nc\n", "A\nB\n"), "refused")
    yield case(
      "one line more behind blank lines", ("a\n\n\n", "A\n\n\nD\n"), "refused"
    )
    yield case("one side empty", ("a\nb\n", ""), "refused")
    yield case("one side blank", ("a\nb\n", "\n\n"), "refused")
    yield case("both sides empty", ("", ""), "refused")
    yield case(
      "blank lines at the end of one",
      ("a\nb\n", "A\nB\n\n \n\n"),
      "read",
      [("a", "A"), ("b", "B")],
    )
    yield case(
      "blank lines at both ends",
      ("a\nb\n\n", "A\nB\n\n\n\n"),
      "read",
      [("a", "A"), ("b", "B")],
    )
    yield case(
      "a blank line in both",
      ("a\n\nc\n", "A\n \nC\n"),
      "read",
      [("a", "A"), ("c", "C")],
    )
    yield case(
      "a blank line in one",
      ("a\n\nc\n", "A\nB\nC\n"),
      1,
      [("a", "A"), ("c", "C")],
      (":2",),
    )
    yield case(
      "a bad line beside a blank one",
      (b"a\n\nc\n", b"A\n\xff\nC\n"),
      1,
      [("a", "A"), ("c", "C")],
      (":2",),
    )
    yield case(
      "bad lines beside each other",
      (b"a\n\xff\nc\n", b"A\n\xff\nC\n"),
      1,
      [("a", "A"), ("c", "C")],
      (":2",),
    )
    yield case(
      "a bad line each",
      (b"a\n\xff\nc\nd\n", b"A\nB\nx\ry\nD\n"),
      2,
      [("a", "A"), ("d", "D")],
      (":2",),
    )
    yield case(
      "a last bad line",
      (b"a\nb\n", b"A\n\xff"),
      1,
      [("a", "A")],
      (":2",),
    )
    yield case(
      "a tab within",
      ("a\tb\nc\n", "A B\nC\n"),
      "read",
      [("a\tb", "A B"), ("c", "C")],
    )
    yield case(
      "both numbered as by Leipzig",
      ("1\ta\n2\tb\n", "1\tA\n2\tB\n"),
      "read",
      [("a", "A"), ("b", "B")],
    )
    yield case(
      "a number and a tab in one line",
      ("a\n3\tb\n", "A\n3 B\n"),
      "read",
      [("a", "A"), ("3\tb", "3 B")],
    )
    yield case(
      "separators of lines for some programs in one",
      ("a\u2028b\nc\n", "A\x0cB\nC\n"),
      "read",
      [("a\u2028b", "A\fB"), ("c", "C")],
    )
    yield case(
      "lone CRs in one",
      (b"a\rb\nc\n", b"A\nC\n"),
      1,
      [("c", "C")],
      (":1",),
    )


# --- Plain text. ---


def mono_cases() -> Iterator[scoreboard.Case]:
  reader = READERS["mono"]
  long = "sana " * 400_000

  def case(name, content, right, values=None):
    return file_case(
      f"{name}", reader, lambda reader, path: content, right, values
    )

  yield case("a line of 2 MB", f"{long}\nb\n".encode(), "read", [long, "b"])
  yield case("numbered as by Leipzig", b"1\ta\n2\tb\n", "read", ["a", "b"])
  yield case(
    "a number and a tab in one line", b"a\n3\tb\n", "read", ["a", "3 b"]
  )
  yield case(
    "a number and a tab in the last line",
    b"1 a\n2\tb\n",
    "read",
    ["1 a", "2 b"],
  )
  yield case(
    "a number before an invisible sentence",
    b"1\ta\n2\t\xe2\x80\x8b\n",
    "read",
    ["a"],
  )
  yield case("numbers as text", b"1\n2 b\n", "read", ["1", "2 b"])
  yield case("blank lines part documents", b"a\n\nb\n\n", "read", ["a", "b"])
  yield case("one line, no line end", b"a", "read", ["a"])
  yield case("tabs", b"a\tb\n\tc\t\n", "read", ["a b", "c"])
  yield case("one line twice", b"a\na\n", "read", ["a", "a"])
  yield case(
    "JSON lines in a text file",
    b'{"text": "a"}\n{"text": "b"}\n',
    "either",
    ['{"text": "a"}', '{"text": "b"}'],
  )
  yield case("a million line ends", b"\n" * 1_000_000, "refused")
  yield dataclasses.replace(
    case(
      "a line of 64 MB that is invisible",
      b"a\n" + b"\x01" * (64 << 20),
      "read",
      ["a"],
    ),
    seconds=120,
  )
  yield case("bad lines alone", b"\xff\n\xfe\n\n", "refused")


# --- Mr. TyDi. ---


def read_all_of_test(folder, policy) -> Result:
  collection, bad = load(folder, policy)
  (test,) = collection.tests()
  passages = [(p.passage_id, p.title, p.text) for p in test.passages]
  values = [
    passages,
    list(test.queries.items()),
    # A query's judgements have no order.
    sorted(judgements_of(test)),
  ]
  notes = [*printed_about(test), *collection.notes()]
  return Result(values, bad.count, "\n".join(notes))


def eval_case(name, file, line, right, value=None, names=(), noted=""):
  """A line after the four good lines of a test's file.

  Args:
    name: The kind of damage.
    file: "docs", "topic" or "qrels".
    line: The line, or several lines.
    right: "bad", "read", "either" (bad or read) or "refused".
    value: The right records, if the line is read.
    names: What an error must name in addition to file and line.
    noted: What the test's notes must say, if the line is read.
  """
  reader = READERS[file]
  number = ("docs", "topic", "qrels").index(file)

  def attack(folder):
    target = reader.prepare(folder)
    data = line if isinstance(line, bytes) else line.encode()
    target.write_bytes(reader.content() + data + b"\n")
    good = [
      [(f"d{n}", "T", "good") for n in range(4)],
      [(f"q{n}", "good") for n in range(4)],
      [(f"q{n}", f"d{n}", 1) for n in range(4)],
    ]
    if file == "docs":
      good[0] = [(f"d{n}", "T", text) for n, text in enumerate(TEXTS)]
    if file == "topic":
      good[1] = [(f"q{n}", text) for n, text in enumerate(TEXTS)]
    if right == "refused":
      refuse_both(read_all_of_test, folder)
    whole = [list(values) for values in good]
    whole[number] += value or []
    whole[2].sort()
    skipped = read_skipping(read_all_of_test, folder)
    if right == "read" or (right == "either" and not skipped.count):
      check_values(skipped, whole, 0)
      scoreboard.expect(noted in skipped.notes, f"notes: {skipped.notes!r}")
    else:
      check_values(skipped, good, 1)
    result = read_all_of_test(folder, "error")
    scoreboard.expect(right != "bad", f"accepted: {result.values[number][4:]}")
    check_values(result, whole, 0)

  name_of_file = pathlib.Path(reader.path).name
  place = name_of_file if right == "refused" else f"{name_of_file}:5"
  return scoreboard.Case(
    f"{file}/{name}",
    f"{right}: {value}",
    accepts(attack) if right == "read" else attack,
    (place, *names),
  )


def document_cases() -> Iterator[scoreboard.Case]:
  def case(name, record, right, value=None, names=(), noted=""):
    line = record if isinstance(record, str) else json.dumps(record)
    return eval_case(name, "docs", line, right, value, names, noted)

  for kind, contents, value in (
    ("no title", "text", ("", "text")),
    ("a title and a text", "T\n\ntext", ("T", "text")),
    ("a title by CRLF", "T\r\n\r\ntext", ("T", "text")),
    ("an empty title", "\n\ntext", ("", "text")),
    ("a blank line with spaces", "T\n \ntext", ("T", "text")),
    ("two blank lines", "T\n\none\n\ntwo", ("T", "one\n\ntwo")),
    ("a single line end", "one\ntwo", ("", "one\ntwo")),
    ("white space around", "  T \n\n text\n\n", ("T", "text")),
    ("an invisible title", "\u200b\n\ntext", ("", "text")),
    ("three line ends", "T\n\n\ntext", ("T", "text")),
  ):
    yield (
      case(
        f"contents with {kind}",
        {"id": "new", "contents": contents},
        "read",
        [("new", *map(plain, value))] if kind != "two blank lines" else None,
      )
      if kind not in ("two blank lines", "a single line end")
      else case_of_text(kind, contents, value)
    )
  for kind, contents in {
    "a title alone": "T\n\n",
    "white space": " \n\n ",
    "invisible characters": "\u200b\u2060",
  }.items():
    yield case(
      f"contents of {kind}",
      {"id": "new", "contents": contents},
      "either" if kind == "a title alone" else "bad",
      [("new", "", "T")],
      ("contents",),
    )
  yield case("no contents", {"id": "new"}, "bad", names=("contents",))
  yield case("no id", {"contents": "text"}, "bad", names=("id",))
  for kind, number, right, value in (
    ("null", None, "bad", ""),
    ("a fraction", 1.5, "bad", ""),
    ("a whole float", 1.0, "bad", ""),
    ("true", True, "bad", ""),
    ("a list", ["a"], "bad", ""),
    ("an object", {}, "bad", ""),
    ("empty", "", "bad", ""),
    ("white space", " ", "bad", ""),
    ("invisible", "\u200b", "bad", ""),
    ("with a space", "a b", "bad", ""),
    ("with a tab", "a\tb", "bad", ""),
    ("with a no-break space", "a\u00a0b", "bad", ""),
    ("with a line end", "a\nb", "bad", ""),
    ("with a NUL", "a\0b", "bad", ""),
    ("a lone surrogate", "\ud800", "bad", ""),
    ("a number", 7, "read", "7"),
    ("a long number", 10**30, "read", str(10**30)),
    ("with white space around", " new ", "either", "new"),
    ("of another script", "Ü#1", "read", "Ü#1"),
  ):
    yield case(
      f"id is {kind}",
      {"id": number, "contents": "text"},
      right,
      [(value, "", "text")],
      ("id",),
    )
  yield case(
    "an id twice, one text",
    {"id": "d0", "contents": f"T\n\n{TEXTS[0]}"},
    "bad",
    names=("d0",),
  )
  yield case(
    "an id twice, two texts",
    {"id": "d0", "contents": "text"},
    "bad",
    names=("d0",),
  )
  yield case(
    "a field that is not read",
    {"id": "new", "contents": "text", "paragraph": 3},
    "read",
    [("new", "", "text")],
  )
  yield case(
    "a title of its own",
    {"id": "new", "title": "T", "contents": "text"},
    "either",
    [("new", "T", "text")],
    ("title",),
  )
  yield case(
    "an empty title of its own",
    {"id": "new", "title": "", "contents": "text"},
    "either",
    [("new", "", "text")],
    ("title",),
  )
  yield case(
    "BEIR's names", {"_id": "new", "title": "T", "text": "text"}, "bad"
  )
  yield case(
    "id given twice", '{"id": "new", "id": "other", "contents": "t"}', "bad"
  )


def case_of_text(kind, contents, value):
  """A case of contents with line ends: `plain` does not look into tuples."""

  def attack(folder):
    reader = READERS["docs"]
    line = json.dumps({"id": "new", "contents": contents}).encode()
    reader.prepare(folder).write_bytes(reader.content() + line + b"\n")
    result = read_all_of_test(folder, "error")
    identity, title, text = result.values[0][-1]
    seen = (identity, title, plain(text))
    scoreboard.expect(seen == ("new", value[0], plain(value[1])), seen)

  return scoreboard.Case(
    f"docs/contents with {kind}", str(value), accepts(attack)
  )


def topic_cases() -> Iterator[scoreboard.Case]:
  case = functools.partial(eval_case, file="topic")
  new = [("q9", "query")]
  for kind, line, right, value in (
    ("no tab", "q9", "bad", None),
    ("spaces for the tab", "q9    query", "bad", None),
    ("no id", "\tquery", "bad", None),
    ("no query", "q9\t", "bad", None),
    ("an invisible query", "q9\t\u200b", "bad", None),
    ("an invisible id", "\u200b\tquery", "bad", None),
    ("a third column", "q9\tquery\tmore", "bad", None),
    ("an empty third column", "q9\tquery\t", "either", new),
    ("an empty column between", "q9\t\tquery", "bad", None),
    ("a space in the id", "q 9\tquery", "bad", None),
    ("a no-break space in the id", "q\u00a09\tquery", "bad", None),
    ("an id twice, one query", f"q0\t{TEXTS[0]}", "bad", None),
    ("an id twice, two queries", "q0\tquery", "bad", None),
    ("a comma for the tab", "q9,query", "bad", None),
    ("white space around", " q9 \t query ", "read", new),
    ("quotes", 'q9\t"query"', "read", [("q9", '"query"')]),
    ("an open quote", 'q9\t"query', "read", [("q9", '"query')]),
    ("a blank line", " \t ", "read", []),
    ("a header at the end", "query-id\ttext", "either", [("query-id", "text")]),
    ("JSON", '{"_id": "q9", "text": "query"}', "bad", None),
  ):
    yield case(kind, line=line, right=right, value=value)
  for kind, header in {
    "BEIR": "query-id\ttext",
    "words": "id\tquery",
    "capitals": "QID\tQuery",
    "hidden by a comment sign": "#qid\tquery",
  }.items():
    yield header_case("topic", kind, header)


def header_case(file, kind, header):
  """A case of a header: it may be refused or recognised, but is no record."""
  reader = READERS[file]

  def attack(folder):
    target = reader.prepare(folder)
    target.write_bytes(header.encode() + b"\n" + reader.content())
    result = reader.read(folder, "error")
    # It may be read as a query without judgement, which no mean contains. The
    # notes say so.
    if "Queries without judgements" not in result.notes:
      check_values(result, reader.values, 0)

  return scoreboard.Case(
    f"{file}/a header of {kind}",
    "refused, or not a record, or noted",
    attack,
    (pathlib.Path(reader.path).name,),
  )


def judgement_cases() -> Iterator[scoreboard.Case]:
  case = functools.partial(eval_case, file="qrels")

  def graded(grade):
    return [("q0", "d1", grade)]

  for kind, grade, right, value in (
    ("an underscore", "1_000", "bad", None),
    ("an Arabic digit", "١", "bad", None),
    ("a full-width digit", "１", "bad", None),
    ("a superscript", "²", "bad", None),
    ("a plus", "+1", "either", graded(1)),
    ("a fraction", "1.5", "bad", None),
    ("a whole float", "1.0", "either", graded(1)),
    ("an exponent", "1e0", "bad", None),
    ("a hexadecimal number", "0x1", "bad", None),
    ("a negative number", "-1", "either", graded(-1)),
    ("a double minus", "--1", "bad", None),
    ("the minus of typesetters", "−1", "bad", None),
    ("NaN", "nan", "bad", None),
    ("infinity", "inf", "bad", None),
    ("true", "true", "bad", None),
    ("zero", "0", "read", graded(0)),
    ("two", "2", "read", graded(2)),
    ("leading zeros", "001", "either", graded(1)),
    ("an int64 and one", str(2**63), "bad", None),
    ("5000 digits", "9" * 5000, "bad", None),
    ("a comma", "1,0", "bad", None),
    ("an invisible mark", "1\u200b", "bad", None),
  ):
    yield case(
      f"a grade with {kind}",
      line=f"q0 Q0 d1 {grade}",
      right=right,
      value=value,
    )
  for kind, line, right, value in (
    ("one column", "q0", "bad", None),
    ("two columns", "q0 d1", "bad", None),
    ("three columns", "q0 d1 1", "bad", None),
    ("five columns", "q0 Q0 d1 1 more", "bad", None),
    ("commas", "q0,Q0,d1,1", "bad", None),
    ("tabs", "q0\tQ0\td1\t1", "read", graded(1)),
    ("tabs and spaces", "q0\tQ0  d1 \t1 ", "read", graded(1)),
    ("an empty column by tabs", "q0\t\td1\t1", "either", graded(1)),
    ("another iteration", "q0 7 d1 1", "read", graded(1)),
    ("no-break spaces", "q0\u00a0Q0\u00a0d1\u00a01", "either", graded(1)),
    ("a blank line", " \t ", "read", []),
    ("a judgement twice", "q0 Q0 d0 1", "either", []),
    ("a judgement twice, other grades", "q0 Q0 d0 2", "bad", None),
    ("a judgement twice, one not relevant", "q0 Q0 d0 0", "bad", None),
    ("a comment", "# q0 Q0 d1", "bad", None),
  ):
    yield case(kind, line=line, right=right, value=value)
  yield case(
    "an unknown passage",
    line="q0 Q0 gone 1",
    right="read",
    value=[("q0", "gone", 1)],
    noted="not in the corpus count as not found: en 1 of 5",
  )
  yield case(
    "an unknown query",
    line="gone Q0 d1 1",
    right="read",
    value=[],
    noted="left out: 1",
  )
  yield case(
    "a query of other case",
    line="Q0 Q0 d1 1",
    right="read",
    noted="left out: 1",
  )
  for kind, header in {
    "four columns": "query-id iteration passage-id relevance",
    "BEIR over four columns": "query-id\tcorpus-id\tscore",
    "TREC": "qid\tQ0\tdocid\trel",
  }.items():
    yield header_case("qrels", kind, header)

  def whole(name, content, right, values=None):
    return file_case(
      name,
      READERS["qrels"],
      lambda reader, path: content.encode(),
      right,
      values,
    )

  yield whole(
    "BEIR",
    "query-id\tcorpus-id\tscore\nq0\td1\t1\n",
    "read",
    [("q0", "d1", 1)],
  )
  yield whole("BEIR without its header", "q0\td1\t1\nq1\td1\t1\n", "refused")
  yield whole("BEIR's header alone", "query-id\tcorpus-id\tscore\n", "refused")
  yield whole("columns in another order", "d0 Q0 q0 1\nd1 Q0 q1 1\n", "refused")
  yield whole("no relevant passage", "q0 Q0 d0 0\nq1 Q0 d1 -1\n", "refused")
  yield whole("only unknown passages", "q0 Q0 gone 1\n", "refused")
  yield whole("only unknown queries", "gone Q0 d0 1\n", "refused")
  yield whole(
    "one query judged of four", "q0 Q0 d0 1\n", "read", [("q0", "d0", 1)]
  )
  yield whole(
    "a run for judgements", "q0 Q0 d0 1 0.5 t\nq1 Q0 d1 1 0.4 t\n", "refused"
  )


# --- Runs. ---


def run_cases() -> Iterator[scoreboard.Case]:
  def case(name, line, right, values=()):
    def attack(folder):
      write(
        folder / "run.trec", READERS["run"].content() + line.encode() + b"\n"
      )
      result = read_run(folder, "error")
      scoreboard.expect(right == "read", f"accepted: {result.values[4:]}")
      check_values(result, [*READERS["run"].values, *values], 0)

    return scoreboard.Case(
      f"run/{name}",
      right,
      accepts(attack) if right == "read" else attack,
      () if right == "read" else ("run.trec:5",),
    )

  for kind, score in {
    "NaN": "nan",
    "infinity": "-inf",
    "an underscore": "1_0",
    "an Arabic digit": "١",
    "a word": "high",
    "a hexadecimal number": "0x1p3",
    "a comma": "0,5",
    "a huge exponent": "1e999",
    "more than float32 holds": "1e300",
  }.items():
    yield case(f"a score of {kind}", f"q0 Q0 d9 1 {score} tag", "refused")
  for kind, line in {
    "five columns": "q0 Q0 d9 1 0.5",
    "seven columns": "q0 Q0 d9 1 0.5 tag more",
    "one column": "q0",
    "a passage twice": "q0 Q0 d0 2 0.4 tag",
    "a header": "qid Q0 docno rank score tag",
    "a lone CR": "q9 Q0 d9 1 0.5 tag\rq8 Q0 d9 1 0.5 tag",
    "a NUL": "q9 Q0 d\x009 1 0.5 tag",
    "JSON": '{"q9": {"d9": 0.5}}',
  }.items():
    yield case(kind, line, "refused")
  yield case("a blank line", " ", "read")
  yield case(
    "ranks that lie", "q9 Q0 d9 1000000 0.5 t", "read", [("q9", "d9", 0.5)]
  )
  yield case("tabs", "q9\tQ0\td9\t1\t-2e-3\tt", "read", [("q9", "d9", -2e-3)])


# --- Names of files and folders. ---


def name_case(name, files, right, names=(), check=None, tatoeba=False):
  """A case of files' names, next to a good ir/other.json.

  Args:
    name: The kind of name.
    files: Path below the case's folder to content; None makes a folder.
    right: "refused" or "noted", or "read" as `check` says.
    names: What the error or the notes must name.
    check: The place in the result, and the right value there.
    tatoeba: Whether the folder tatoeba/ is read.
  """

  def read(folder, policy):
    collection, bad = load(folder, policy, tatoeba)
    count = len(list(collection.retrieval()))
    pairs = [
      (r.source_language, r.target_language) for r in collection.parallel()
    ]
    languages = [r.language for r in collection.monolingual()]
    tests = [(t.language, t.split) for t in collection.tests()]
    bitexts = [
      (t.source_language, t.target_language)
      for t in collection.translation_tests()
    ]
    notes = "\n".join(
      [*collection.notes(), *(n for t in collection.tests() for n in t.notes)]
    )
    return Result([count, pairs, languages, tests, bitexts], bad.count, notes)

  def attack(folder):
    write(folder / "data/ir/other.json", GOOD_PAIRS)
    for path, content in files.items():
      if content is None:
        (folder / path).mkdir(parents=True)
      else:
        write(folder / path, content)
    if right == "refused":
      refuse_both(read, folder)
    result = read(folder, "error")
    if right == "noted":
      # It may be refused, too; then the error must have the name.
      missing = [name for name in names if name not in result.notes]
      scoreboard.expect(not missing, f"not in the notes: {missing}")
    if check is not None:
      expected = [1, [], [], [], []]
      expected[check[0]] = check[1]
      scoreboard.expect(result.values == expected, result.values)

  return scoreboard.Case(
    f"names/{name}",
    right,
    accepts(attack) if right == "read" else attack,
    names,
  )


def eval_files(language="en", split="test", **replaced):
  base = f"data/eval/{language}/"
  files = {
    base + "collection/docs.jsonl": DOCUMENTS,
    base + f"topic.{split}.tsv": TOPICS,
    base + f"qrels.{split}.txt": JUDGED,
  }
  return files | {base + path: data for path, data in replaced.items()}


def name_cases() -> Iterator[scoreboard.Case]:
  line = b"a\n"
  nfd = unicodedata.normalize("NFD", "Käse")
  nfc = unicodedata.normalize("NFC", "Käse")
  # Pairs.
  for name in ("b.jsonl", "b.json", "b.fi.json"):
    yield name_case(
      f"ir/{name}", {f"data/ir/{name}": GOOD_PAIRS}, "read", (), (0, 2)
    )
    yield name_case(
      f"ir/{name}.gz",
      {f"data/ir/{name}.gz": gzip.compress(GOOD_PAIRS)},
      "read",
      (),
      (0, 2),
    )
  for name in (
    "a.csv",
    "a.txt",
    "a.JSON",
    "a.json.bz2",
    "a.json.part",
    "a.json~",
    "a.json.zip",
    "a.json.gz.gz",
    "a.json.GZ",
    "a",
  ):
    yield name_case(
      f"ir/{name}", {f"data/ir/{name}": GOOD_PAIRS}, "refused", (name,)
    )
  for kind, name in {
    "spaces": "a b  c.json",
    "NFD": nfd + ".json",
    "an emoji": "😀.json",
    "dots": "a.b..c.json",
    "a dash in front": "-rf.json",
    "shell characters": "$(true);&'.json",
    "a percent sign": "%s%n{0}.json",
  }.items():
    yield name_case(
      f"ir with {kind}", {f"data/ir/{name}": GOOD_PAIRS}, "read", (), (0, 2)
    )
  yield name_case(
    "ir in a subfolder",
    {"data/ir/more/a.json": GOOD_PAIRS},
    "refused",
    ("more",),
  )
  for kind, path in {
    "Mac's folder file": "data/.DS_Store",
    "a hidden file of pairs": "data/ir/.json",
    "Mac's shadow": "data/ir/._a.json",
    "a hidden folder": "data/ir/.cache/a.json",
    "README": "data/parallel/README.md",
    "LICENSE": "data/mono/LICENSE",
    "the ids of OPUS": "data/parallel/a.de-en.ids",
    "the XML of OPUS": "data/parallel/a.xml",
    "hidden beside passages": "data/eval/en/collection/.a",
    "hidden beside queries": "data/eval/en/.a",
    "the folder pool": "data/pool/qrels.txt",
    "a hidden language": "data/eval/.de/topic.test.tsv",
  }.items():
    files = {path: line}
    if "eval" in path:
      files |= eval_files()
    part = pathlib.Path(path).parts
    hidden = [p for p in part if p.startswith(".") or p == "pool"]
    yield name_case(
      f"not read: {kind}",
      files,
      "noted",
      (hidden[0] if hidden else part[-1],),
    )
  # The top folder.
  for name in (
    "Mono",
    "IR",
    "monolingual",
    "Parallel",
    "train",
    "evaluation",
    "__MACOSX",
    "ir ",
  ):
    yield name_case(
      f"top folder {name!r}",
      {f"data/{name}/a.fi.txt": line},
      "refused",
      (name,),
    )
  yield name_case(
    "a file in the top folder",
    {"data/a.json": GOOD_PAIRS},
    "refused",
    ("a.json",),
  )
  yield name_case("pool is a file", {"data/pool": line}, "refused", ("pool",))
  yield name_case(
    "pool in mono", {"data/mono/pool/a.fi.txt": line}, "refused", ("mono/pool",)
  )
  yield name_case(
    "parallel is a file", {"data/parallel": line}, "refused", ("parallel",)
  )
  yield name_case("mono is a file", {"data/mono": line}, "refused", ("mono",))
  yield name_case("eval is a file", {"data/eval": line}, "refused", ("eval",))
  # Translations.
  for kind, names in {
    "no second side": ("a.en-de.en",),
    "no first side": ("a.en-de.de",),
    "a third side": ("a.en-de.en", "a.en-de.de", "a.en-de.fr"),
    "sides of another pair": ("a.en-de.fr", "a.en-de.it"),
    "no pair in the name": ("a.en", "a.de"),
    "no languages": ("a.txt",),
    "no name": ("en-de.en", "en-de.de"),
    "one language twice": ("a.en-en.en",),
    "one language in two codes": ("a.en-eng.en", "a.en-eng.eng"),
    "two regions of one language": ("a.pt-pt_BR.pt", "a.pt-pt_BR.pt_BR"),
    "a word for a language": (
      "a.english-german.english",
      "a.english-german.german",
    ),
    "one letter": ("a.e-d.e", "a.e-d.d"),
    "digits": ("a.12-34.12", "a.12-34.34"),
    "a side in capitals": ("a.en-de.EN", "a.en-de.de"),
    "a side with .txt": ("a.en-de.en.txt", "a.en-de.de.txt"),
    "TSV": ("a.en-de.tsv",),
    "TMX": ("a.en-de.tmx",),
    "one name in NFC, one in NFD": (f"{nfc}.en-de.en", f"{nfd}.en-de.de"),
    "letters of another script": ("a.еn-de.еn", "a.еn-de.de"),
  }.items():
    yield name_case(
      f"parallel: {kind}",
      {f"data/parallel/{name}": line for name in names},
      "refused",
      ("parallel",),
    )
  for kind, names, languages in (
    ("dots", ("a.b.en-de.en", "a.b.en-de.de"), ("en", "de")),
    ("spaces", ("a b.en-de.en", "a b.en-de.de"), ("en", "de")),
    ("NFD", (f"{nfd}.en-de.en", f"{nfd}.en-de.de"), ("en", "de")),
    ("long codes", ("a.eng-deu.eng", "a.eng-deu.deu"), ("en", "de")),
    (
      "scripts",
      ("a.eng_Latn-zho_Hans.eng_Latn", "a.eng_Latn-zho_Hans.zho_Hans"),
      ("en", "zh"),
    ),
    ("regions", ("a.en-zh_CN.en", "a.en-zh_CN.zh_CN"), ("en", "zh")),
    ("a hyphen in a code", ("a.en-GB-de.en-GB", "a.en-GB-de.de"), ("en", "de")),
    (
      "a hyphen before a small region",
      ("a.en-pt-br.en", "a.en-pt-br.pt-br"),
      ("en", "pt"),
    ),
    (
      "a pair within the name",
      ("a.fr-it.en-de.en", "a.fr-it.en-de.de"),
      ("en", "de"),
    ),
  ):
    yield name_case(
      f"parallel with {kind}",
      {f"data/parallel/{name}": f"{name}\n".encode() for name in names},
      "read",
      ("parallel",),
      (1, [languages]),
    )
  # Plain text.
  for name in (
    "fi.txt",
    "a.txt",
    "a.fi",
    "a.fi.TXT",
    "a.fi.tsv",
    "a.fi.jsonl",
    "a.finnish.txt",
    "a.f.txt",
    "a.12.txt",
    "a..txt",
    "a.fi.txt.bz2",
    "a.fi .txt",
    "a.ﬁ.txt",
  ):
    yield name_case(
      f"mono/{name}", {f"data/mono/{name}": line}, "refused", (name,)
    )
  for name, language in (
    ("a.b c.fi.txt", "fi"),
    (f"{nfd}.fi.txt", "fi"),
    ("a.fin.txt", "fi"),
    ("a.fin_Latn.txt", "fi"),
    ("a.zh-Hant.txt", "zh"),
    ("a.es_419.txt", "es"),
    ("a.sr@latin.txt", "sr"),
    ("a.pt_BR.txt", "pt"),
    ("a.fi-SV.txt", "fi"),
    ("a.fi.txt.txt", "txt"),  # ISO 639-3: Citak.
    ("a.deu.de.txt", "de"),
  ):
    yield name_case(
      f"mono/{name} is {language}",
      {f"data/mono/{name}": line},
      "read",
      (),
      (2, [language]),
    )
  yield name_case(
    "mono in capitals",
    {"data/mono/a.FI.txt": line},
    "noted",
    ("FI",),
    (2, ["fi"]),
  )
  yield name_case(
    "mono: a folder", {"data/mono/fi/a.fi.txt": line}, "refused", ("mono/fi",)
  )
  # Tests.
  for language in ("english", "e", "12", "en.old", "en-", " en", "en de"):
    yield name_case(
      f"eval/{language!r}",
      eval_files(language),
      "refused",
      (f"eval/{language}",),
    )
  for kind, language, code in (
    ("three letters", "deu", "de"),
    ("a region", "zh_TW", "zh"),
    ("a script", "eng_Latn", "en"),
  ):
    yield name_case(
      f"eval with {kind}",
      eval_files(language),
      "read",
      (),
      (3, [(code, "test")]),
    )
  for missing in ("collection/docs.jsonl", "topic.test.tsv", "qrels.test.txt"):
    files = eval_files()
    del files[f"data/eval/en/{missing}"]
    yield name_case(
      f"eval without {missing}", files, "refused", (missing.split("/")[-1],)
    )
  for kind, path in {
    "an unknown split": "topic.validation.tsv",
    "judgements of an unknown split": "qrels.train.tsv",
    "queries in capitals": "Topic.test.tsv",
    "a run": "run.txt",
    "passages in parts": "collection/docs2.jsonl",
    "a second folder": "collection2/docs.jsonl",
    "a folder in the collection": "collection/a/docs2.jsonl",
    "bzip2": "topic.test.tsv.bz2",
  }.items():
    yield name_case(
      f"eval beside {kind}",
      eval_files(**{path: b"x"}),
      "refused",
      (path.removeprefix("collection/").split("/")[0],),
    )
  for split in ("train",):
    yield name_case(
      f"eval beside the split {split}",
      eval_files() | eval_files(split=split),
      "noted",
      (f"topic.{split}.tsv",),
    )
  yield name_case(
    "eval: a dev split of German",
    eval_files("de") | eval_files("de", "dev"),
    "noted",
    ("eval/de",),
  )
  yield name_case(
    "eval: dev without its judgements",
    eval_files(**{"topic.dev.tsv": TOPICS}),
    "refused",
    ("qrels.dev.txt",),
  )
  yield name_case(
    "eval: dev without its queries",
    eval_files(**{"qrels.dev.txt": JUDGED}),
    "refused",
    ("dev",),
  )
  yield name_case(
    "eval: one language twice",
    eval_files("en") | eval_files("eng"),
    "refused",
    ("eng",),
  )
  yield name_case(
    "eval: an empty folder", {"data/eval/de": None}, "refused", ("de",)
  )
  yield name_case(
    "eval: a file", {"data/eval/topic.test.tsv": TOPICS}, "refused", ("topic",)
  )
  yield name_case(
    "eval: no folder of a language",
    {
      "data/eval/collection/docs.jsonl": DOCUMENTS,
      "data/eval/topic.test.tsv": TOPICS,
      "data/eval/qrels.test.txt": JUDGED,
    },
    "refused",
    ("eval",),
  )
  # Tatoeba.
  base = "tatoeba/"
  for kind, names in {
    "no English side": ("tatoeba.deu-eng.deu",),
    "no other side": ("tatoeba.deu-eng.eng",),
    "English first": ("tatoeba.eng-deu.eng", "tatoeba.eng-deu.deu"),
    "two letters": ("tatoeba.de-en.de", "tatoeba.de-en.en"),
    "no English": ("tatoeba.deu-fra.deu", "tatoeba.deu-fra.fra"),
    "another name": ("flores.deu-eng.deu", "flores.deu-eng.eng"),
    "capitals": ("Tatoeba.deu-eng.deu", "Tatoeba.deu-eng.eng"),
    "an empty file alone": ("x",),
    "a side that is not of the pair": (
      "tatoeba.deu-eng.fra",
      "tatoeba.deu-eng.eng",
    ),
    "English with English": ("tatoeba.eng-eng.eng",),
    "Chinese twice": (
      "tatoeba.cmn-eng.cmn",
      "tatoeba.cmn-eng.eng",
      "tatoeba.zho-eng.zho",
      "tatoeba.zho-eng.eng",
    ),
  }.items():
    yield name_case(
      f"tatoeba: {kind}",
      {base + name: line for name in names},
      "refused",
      ("tatoeba",),
      tatoeba=True,
    )
  yield name_case(
    "tatoeba: README",
    {
      base + name: line
      for name in ("tatoeba.deu-eng.deu", "tatoeba.deu-eng.eng", "README.md")
    },
    "noted",
    ("README.md",),
    tatoeba=True,
  )
  yield name_case(
    "tatoeba: a folder among them",
    {
      base + name: line
      for name in ("tatoeba.deu-eng.deu", "tatoeba.deu-eng.eng", "more/x")
    },
    "refused",
    ("more",),
    tatoeba=True,
  )
  yield name_case(
    "tatoeba: empty", {"tatoeba": None}, "refused", ("tatoeba",), tatoeba=True
  )
  yield name_case("tatoeba: missing", {}, "refused", ("tatoeba",), tatoeba=True)
  yield name_case(
    "tatoeba: a file", {"tatoeba": line}, "refused", ("tatoeba",), tatoeba=True
  )


# --- The root, links of folders, names that cannot be printed. ---


def root_cases() -> Iterator[scoreboard.Case]:
  def load_root(root, tatoeba=""):
    bad = records.BadRecords("error")
    collection = collections.load("folder", root, bad, tatoeba)
    return [r.question for r in collection.retrieval()]

  def case(name, make, right, names=()):
    def attack(folder):
      write(folder / "data/ir/a.json", GOOD_PAIRS)
      made = make(folder)
      if right == "refused":
        scoreboard.expect(False, f"accepted: {load_root(str(made))}")
      scoreboard.expect(load_root(str(made)) == ["asked"], made)

    return scoreboard.Case(
      f"root/{name}",
      right,
      accepts(attack) if right == "read" else attack,
      names,
    )

  def linked(target):
    def make(folder):
      (folder / "link").symlink_to(target)
      return folder / "link"

    return make

  def at_home(folder):
    before = os.environ.get("HOME")
    os.environ["HOME"] = str(folder)
    try:
      scoreboard.expect(load_root("~/data") == ["asked"], "~")
    finally:
      if before is None:
        del os.environ["HOME"]
      else:
        os.environ["HOME"] = before
    return folder / "data"

  yield case("missing", lambda f: f / "none", "refused", ("none",))
  yield case("empty", lambda f: "", "refused", ("data.root",))
  yield case("a file", lambda f: f / "data/ir/a.json", "refused", ("a.json",))
  yield case("a NUL", lambda f: "a\0b", "refused", ("data.root",))
  yield case("a lone surrogate", lambda f: "a\udc80b", "refused")
  yield case("a long name", lambda f: f / ("x" * 300), "refused", ("xxx",))
  yield case("a dangling link", linked("none"), "refused", ("link",))
  yield case("a link to itself", linked("link"), "refused", ("link",))
  yield case("ir itself", lambda f: f / "data/ir", "refused", ("ir",))
  yield case("a link to a folder", linked("data"), "read")
  yield case(
    "a home of nobody", lambda f: "~nobody-has-this/x", "refused", ("~nobody",)
  )
  yield case("a slash at the end", lambda f: f"{f}/data/", "read")
  yield case("dots", lambda f: f"{f}/data/../data/.", "read")
  yield case("a home", at_home, "read")

  def of_folder(name, make, right, names):
    def attack(folder):
      write(folder / "data/ir/a.json", GOOD_PAIRS)
      make(folder)
      if right == "refused":
        refuse_both(read_everything, folder)
      result = read_everything(folder, "error")
      scoreboard.expect(result.values == [1, 1], result.values)

    return scoreboard.Case(
      f"root/{name}",
      right,
      accepts(attack) if right == "read" else attack,
      names,
    )

  def link_mono(target):
    def make(folder):
      write(folder / "elsewhere/a.fi.txt", "a\n")
      (folder / "data/mono").symlink_to(target)

    return make

  def pipe_at(path):
    def make(folder):
      (folder / path).parent.mkdir(parents=True, exist_ok=True)
      os.mkfifo(folder / path)

    return make

  def link_at(path, target):
    def make(folder):
      (folder / path).parent.mkdir(parents=True, exist_ok=True)
      (folder / path).symlink_to(target)

    return make

  yield from parts_cases()
  yield of_folder("mono is a link", link_mono("../elsewhere"), "read", ())
  for kind, make, name in (
    ("mono is a dangling link", link_mono("none"), "mono"),
    ("mono is a loop", link_mono("mono"), "mono"),
    ("mono is a pipe", pipe_at("data/mono"), "mono"),
    ("an unknown pipe", pipe_at("data/x"), "x"),
    ("an unknown dangling link", link_at("data/x", "none"), "x"),
    ("eval/de is a dangling link", link_at("data/eval/de", "none"), "de"),
    ("eval/de is a pipe", pipe_at("data/eval/de"), "de"),
    ("README is a dangling link", link_at("data/mono/README", "x"), "README"),
  ):
    yield of_folder(kind, make, "refused", (name,))

  # Such names may not reach the terminal unchanged.
  def unprintable(name, file_name, content, shown):
    def attack(folder):
      path = os.fsencode(folder / "data/ir") + b"/" + file_name
      (folder / "data/ir").mkdir(parents=True)
      with open(path, "wb") as file:
        file.write(content)
      try:
        read_everything(folder, "error")
      except (ValueError, OSError) as error:
        # Some messages show the layout, which has several lines.
        message = str(error).replace(f"\n{folder_collection.LAYOUT}", "")
        # Others show an example of each format, in lines of their own.
        lines = message.split("\n")
        scoreboard.expect(
          all(line.isprintable() for line in lines)
          and "Traceback" not in lines,
          repr(message),
        )
        raise
      scoreboard.expect(False, "accepted")

    return scoreboard.Case(f"root/{name}", "refused in one line", attack, shown)

  yield unprintable("a line end in a name", b"a\nb.json", b"[]", ("b.json",))
  yield unprintable(
    "an escape in a name", b"a\x1b[2Jb.json", b"[]", ("b.json",)
  )
  yield unprintable("a name not of UTF-8", b"a\xffb.json", b"[]", ("b.json",))
  yield unprintable("a bad name not of UTF-8", b"a\xff.txt", b"", ("txt",))
  yield unprintable("a bad name of lines", b"a\nb.txt", b"", ("b.txt",))
  for kind, text in {
    "an escape": "\x1b[2J\x1b]0;title\x07",
    "a line end": "a\nTraceback\n",
    "a direction mark": "\u202eabc\u2066",
    "a lone surrogate": "\udcff",
  }.items():
    yield unprintable(
      f"{kind} in a bad value",
      b"a.json",
      json.dumps([{text: text, "positive_ctxs": text}]).encode(),
      ("a.json",),
    )
  yield from collection_cases()
  yield bad_policy()
  yield bad_while_training("error")
  yield bad_while_training("skip")
  yield many_bad()


def parts_cases() -> Iterator[scoreboard.Case]:
  """Cases of parts that a collection lacks, in training and evaluating."""
  tests = eval_files()
  mono = {"data/mono/a.fi.txt": b"a\n"}
  hidden = {"data/ir/.a.json": GOOD_PAIRS}
  readme = {"data/ir/README.json.md": b"a"}

  def case(name, files, require_pairs, right):
    def attack(folder):
      (folder / "data").mkdir()
      for path, content in files.items():
        write(folder / path, content)
      collection = collections.load(
        "folder", str(folder / "data"), require_pairs=require_pairs
      )
      scoreboard.expect(right == "read", "accepted")
      scoreboard.expect(
        len(collection.tests()) == ("data/eval/en/topic.test.tsv" in files),
        "tests",
      )
      scoreboard.expect(not list(collection.retrieval()), "pairs")

    return scoreboard.Case(
      f"root/{name}",
      right,
      accepts(attack) if right == "read" else attack,
      () if right == "read" else ("data.root", "ir/"),
    )

  yield case("an empty folder, to train", {}, True, "refused")
  yield case("an empty folder, to evaluate", {}, False, "refused")
  yield case("tests alone, to train", tests, True, "refused")
  yield case("tests alone, to evaluate", tests, False, "read")
  yield case("no pairs but plain text, to train", mono, True, "refused")
  yield case("hidden pairs, to train", hidden, True, "refused")
  yield case("hidden pairs, to evaluate", hidden, False, "refused")
  yield case("README for pairs, to train", readme, True, "refused")


def read_everything(folder, policy) -> Result:
  collection, bad = load(folder, policy)
  pairs = len(list(collection.retrieval()))
  list(collection.parallel())
  sentences = len(list(collection.monolingual()))
  collection.tests()
  return Result([pairs, sentences], bad.count)


def collection_cases() -> Iterator[scoreboard.Case]:
  """Cases in which the folder of a test's passages is not a folder."""

  def case(name, make, right="refused"):
    def attack(folder):
      write(folder / "data/ir/a.json", GOOD_PAIRS)
      for path, content in eval_files().items():
        write(folder / path, content)
      passages = folder / "data/eval/en/collection"
      passages.rename(folder / "elsewhere")
      make(passages, folder)
      if right == "refused":
        refuse_both(read_everything, folder)
      read_everything(folder, "error")

    return scoreboard.Case(
      f"root/eval/en/collection is {name}",
      right,
      accepts(attack) if right == "read" else attack,
      ("eval/en/collection",),
    )

  yield case("missing", lambda path, folder: None)
  yield case("a file", lambda path, folder: path.touch())
  yield case("a pipe", lambda path, folder: os.mkfifo(path))
  yield case("a dangling link", lambda path, folder: path.symlink_to("none"))
  yield case("empty", lambda path, folder: path.mkdir())
  yield case(
    "a link to a folder",
    lambda path, folder: path.symlink_to(folder / "elsewhere"),
    "read",
  )


def bad_while_training(policy):
  """The tokenizer's Rust code makes the first pass and must pass errors on."""

  def attack(folder):
    write(folder / "data/ir/a.json", GOOD_PAIRS)
    write(folder / "data/mono/a.fi.txt", "yksi\nkak\rsi\nkolme\n")
    collection, bad = load(folder, policy)
    tokenizer.train(preparation.training_texts(collection), 100)
    scoreboard.expect(policy == "skip" and bad.count == 1, bad.count)

  return scoreboard.Case(
    f"policy/a bad line while a tokenizer is trained: {policy}",
    "refused, or counted",
    accepts(attack) if policy == "skip" else attack,
    ("a.fi.txt:2",),
  )


def bad_policy():
  def attack(folder):
    del folder
    scoreboard.expect(False, records.BadRecords("ignore"))

  return scoreboard.Case(
    "policy/an unknown policy", "refused", attack, ("ignore",)
  )


def many_bad():
  """Ten thousand bad lines are counted, and a few are shown."""

  def attack(folder):
    lines = "a\n" + "x\ry\n" * 10_000 + "b\n"
    write(folder / "data/ir/a.json", GOOD_PAIRS)
    write(folder / "data/mono/a.fi.txt", lines)
    collection, bad = load(folder, "skip")
    texts = [record.text for record in collection.monolingual()]
    drained = bad.drain()
    scoreboard.expect(texts == ["a", "b"], texts[:5])
    scoreboard.expect(drained["count"] == 10_000, drained["count"])
    scoreboard.expect(0 < len(drained["first"]) < 100, len(drained["first"]))
    scoreboard.expect("a.fi.txt:2" in str(drained["first"][0]), drained)
    scoreboard.expect(bad.drain()["count"] == 0, "drained once")
    for _ in range(2):  # Each pass counts them again.
      list(collection.monolingual())
    scoreboard.expect(bad.count == 20_000, bad.count)

  return scoreboard.Case("policy/many bad lines", "counted", accepts(attack))


# --- Files that change while they are read. ---

STREAMS = {
  "retrieval": ("data/ir/a.json", question_record),
  "parallel": ("data/parallel/a.en-de.en", line_record),
  "monolingual": ("data/mono/a.fi.txt", line_record),
}


def change_cases() -> Iterator[scoreboard.Case]:
  for stream, (path, record) in STREAMS.items():
    yield from changes_of(stream, path, record)


def changes_of(stream, path, record):
  # Larger than any buffer, so that a change comes in the middle.
  count = 60_000

  def content(word, size):
    return b"".join(
      record(n, b"%s %030d" % (word, n)) + b"\n" for n in range(size)
    )

  def prepare(folder, size=4):
    write(folder / "data/ir/a.json", GOOD_PAIRS)
    write(folder / "data/parallel/a.en-de.en", b"x\n" * size)
    write(folder / "data/parallel/a.en-de.de", b"y\n" * size)
    write(folder / "data/mono/a.fi.txt", b"x\n")
    write(folder / path, content(b"old", size))
    return load(folder, "error")[0], folder / path

  def rewrite(file):
    """Writes other bytes of the same size and time."""
    before = file.stat()
    file.write_bytes(file.read_bytes().replace(b"old", b"new"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

  def read(collection):
    return list(getattr(collection, stream)())

  def words(read_records):
    texts = [next(iter(dataclass_texts(record))) for record in read_records]
    return {text.split()[0] for text in texts}

  def case(name, attack, right="refused"):
    return scoreboard.Case(
      f"changes/{stream}: {name}",
      right,
      accepts(attack) if right == "read" else attack,
      (pathlib.Path(path).name,),
    )

  def between_passes(folder):
    collection, file = prepare(folder)
    read(collection)
    rewrite(file)
    scoreboard.expect(False, f"accepted: {words(read(collection))}")

  def behind_the_fingerprint(folder):
    collection, file = prepare(folder)
    collection.fingerprint()
    rewrite(file)
    scoreboard.expect(False, f"accepted: {words(read(collection))}")

  def before_the_fingerprint(folder):
    collection, file = prepare(folder)
    read(collection)
    rewrite(file)
    scoreboard.expect(False, f"accepted: {collection.fingerprint()}")

  def longer(folder):
    collection, file = prepare(folder)
    read(collection)
    with file.open("ab") as opened:
      opened.write(record(9, b"new 9") + b"\n")
    scoreboard.expect(False, f"accepted: {words(read(collection))}")

  def removed(folder):
    collection, file = prepare(folder)
    read(collection)
    file.unlink()
    scoreboard.expect(False, f"accepted: {words(read(collection))}")

  def to_a_folder(folder):
    collection, file = prepare(folder)
    read(collection)
    file.unlink()
    file.mkdir()
    scoreboard.expect(False, f"accepted: {words(read(collection))}")

  def within_a_pass(folder):
    collection, file = prepare(folder, count)
    collection.fingerprint()
    stream_of_records = iter(getattr(collection, stream)())
    seen = [next(stream_of_records)]
    rewrite(file)
    seen += stream_of_records
    scoreboard.expect(words(seen) == {b"old".decode()}, words(seen))

  def cut_within_a_pass(folder):
    collection, file = prepare(folder, count)
    stream_of_records = iter(getattr(collection, stream)())
    seen = [next(stream_of_records)]
    os.truncate(file, file.stat().st_size // 2)
    seen += stream_of_records
    # The hash is that of the records that were read, or there is an error.
    again = load(folder, "error")[0]
    scoreboard.expect(
      collection.fingerprint() == again.fingerprint()
      and len(seen) == len(read(again)),
      len(seen),
    )

  def first_pass_is_hashed(folder):
    collection, file = prepare(folder, count)
    stream_of_records = iter(getattr(collection, stream)())
    seen = [next(stream_of_records)]
    rewrite(file)
    seen += stream_of_records
    again = load(folder, "error")[0]
    same = collection.fingerprint() == again.fingerprint()
    scoreboard.expect(not same or words(seen) == {"new"}, words(seen))

  def half_a_pass(folder):
    collection, file = prepare(folder, count)
    stream_of_records = iter(getattr(collection, stream)())
    next(stream_of_records)
    del stream_of_records
    scoreboard.expect(len(read(collection)) == count, "another count")
    fingerprint = load(folder, "error")[0].fingerprint()
    scoreboard.expect(collection.fingerprint() == fingerprint, "fingerprint")
    del file

  def moved(folder):
    collection, file = prepare(folder)
    fingerprint = collection.fingerprint()
    (folder / "data").rename(folder / "moved")
    (folder / "moved").rename(folder / "data")
    scoreboard.expect(fingerprint == collection.fingerprint(), "fingerprint")
    scoreboard.expect(words(read(collection)) == {"old"}, "records")
    del file

  yield case("between two passes", between_passes)
  yield case("behind the fingerprint", behind_the_fingerprint)
  yield case("before the fingerprint", before_the_fingerprint)
  yield case("a line more", longer)
  yield case("removed", removed)
  yield case("to a folder", to_a_folder)
  yield case("within a pass", within_a_pass)
  yield case("within the first pass", first_pass_is_hashed)
  yield case("cut within the first pass", cut_within_a_pass)
  yield case("half a pass, then a whole one", half_a_pass, "read")
  yield case("moved and back", moved, "read")


def dataclass_texts(record) -> Iterator[str]:
  for field in dataclasses.fields(record):
    yield getattr(record, field.name)


def quiet(attack):
  """Wraps an attack to hide progress bars."""

  @functools.wraps(attack)
  def without_bars(folder):
    with contextlib.redirect_stderr(io.StringIO()):
      attack(folder)

  return without_bars


def cases() -> list[scoreboard.Case]:
  return [
    dataclasses.replace(case, attack=quiet(case.attack))
    for case in itertools.chain(
      text_cases(),
      encoding_cases(),
      gzip_cases(),
      kind_cases(),
      json_cases(),
      json_file_cases(),
      dpr_cases(),
      store_cases(),
      aligned_cases(),
      mono_cases(),
      document_cases(),
      topic_cases(),
      judgement_cases(),
      run_cases(),
      name_cases(),
      root_cases(),
      change_cases(),
    )
  ]


if __name__ == "__main__":
  scoreboard.main(cases())
