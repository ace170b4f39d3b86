"""Answers your queries with the best passages, in any language.

python -m mlir_jax.ask --model=W --root=FOLDER

Type a query, and see the best passages of all languages with their scores;
Ctrl-D ends. --root is a collection with tests, as evaluate reads it; its
passages are encoded into memory. --index is a folder that encode wrote, or
pyserini; its model and its texts are found where it names them:

python -m mlir_jax.ask --index=FOLDER

Queries may also be arguments, or lines of the standard input:

python -m mlir_jax.ask --index=FOLDER --json "capital of Peru"

With --json, each query gives one line: {"query": …, "results": [{"rank", "id",
"language", "score", "title", "text"}, …]}. All else is on the standard error.
"""

import contextlib
import itertools
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from absl import flags

from mlir_jax import extensions
from mlir_jax.command_line import index_flags, program, shared_flags
from mlir_jax.data import records
from mlir_jax.storage import locations

if TYPE_CHECKING:
  from mlir_jax.retrieval import answers

_BATCH = 64  # Queries that are encoded together, if they are there.
_WIDEST = 100  # Columns of text that are easy to read.
_STOPPED = 130  # The exit status after Ctrl-C, as in a shell.


def _is_conversation() -> bool:
  """Whether a user types queries and sees the answers."""
  return bool(sys.stdin and sys.stdin.isatty() and sys.stdout.isatty())


def _say(line: str) -> None:
  """Prints a line that is no answer."""
  if line:
    print(line, file=sys.stderr if _JSON.value else sys.stdout, flush=True)


def _load_collection(
  name: str, root: str, sets: Sequence[str]
) -> records.Collection:
  """Loads the collection whose texts are searched, or shown.

  Raises:
    ValueError: if there is no such collection; or if it is the user's code, and
      this command does not name it.
  """
  from mlir_jax.data import collections

  if extensions.is_target(name) and name != _COLLECTION.value:
    raise ValueError(
      f"the collection {name} is code, which is imported only if the command"
      f" names it: give --collection={name}."
    )
  return collections.load(
    name,
    root,
    records.BadRecords(_ON_BAD_RECORD.value, "--on_bad_record"),
    require_pairs=False,
    prefix="--",
    sets=shared_flags.parse_named(
      "--set", sets, "sw=ir_datasets:mr-tydi/sw/test"
    ),
    selects=lambda language: True,  # Nothing is selected here.
  )


def _given_collection() -> records.Collection | None:
  """Loads the collection that the flags name; None if they name none."""
  if not (_ROOT.value or _COLLECTION.value or _SET.value):
    return None
  return _load_collection(
    _COLLECTION.value or ("folder" if _ROOT.value else "sets"),
    _ROOT.value or "",
    _SET.value,
  )


def _choose_tests(
  collection: records.Collection,
) -> list[records.RetrievalTest]:
  """Returns the tests whose passages are searched."""
  tests = collection.tests()
  there = sorted({test.language for test in tests})
  missing = sorted({*_LANGUAGE.value} - {*there})
  if missing or not there:
    named = f" in {', '.join(missing)}" if there else ""
    raise ValueError(
      f"{_ROOT.value or collection.name} has no tests{named}, whose passages"
      f" would be searched. Its languages are: {', '.join(there) or 'none'}."
    )
  chosen = _LANGUAGE.value or there
  return [test for test in tests if test.language in chosen]


@contextlib.contextmanager
def _open_collection() -> Iterator["answers.Answerer"]:
  """Loads the model and encodes the passages of a collection."""
  collection = _given_collection()
  assert collection  # The flags were checked.
  tests = _choose_tests(collection)  # Before the model, which takes seconds.
  from mlir_jax.retrieval import answers
  from mlir_jax.retrieval import model as model_lib

  values = flags.FLAGS
  model = model_lib.load(
    _MODEL.value,
    values.checkpoint or "last",
    batch_size=values.batch_size,
    revision=values.revision,
    prompt=values.prompt or "",
    **shared_flags.prefixes(),
  )
  model.check_role("query")
  model.check_role("passage")
  answerer = answers.of_tests(model, tests)
  _say(answerer.model.text_encoder.describe_truncation())
  languages = ", ".join(sorted({test.language for test in tests}))
  _say(f"{answerer.size:,} passages in {languages}, encoded by {model.path}.")
  yield answerer


@contextlib.contextmanager
def _open_index() -> Iterator["answers.Answerer"]:
  """Loads an index, its model and its texts."""
  from mlir_jax.retrieval import answers, index_texts, vector_folder

  passages = vector_folder.read(_INDEX.value)
  with index_texts.find(
    passages,
    _load_collection,
    files=[locations.absolute(path) for path in _CORPUS.value],
    collection=_given_collection(),
  ) as (texts, notes):
    model = index_flags.load_model(passages, _MODEL.value)
    model.check_role("query")
    index = index_flags.load_index(passages, model)
    for note in notes:
      _say(note)
    answerer = answers.Answerer(model, index, texts)
    _say(
      f"{answerer.size:,} passages of {passages.path}, asked by {model.path}."
    )
    yield answerer


def _answer(answerer: "answers.Answerer", queries: Sequence[str]) -> None:
  """Prints the answers to some queries."""
  encoder = answerer.model.text_encoder
  before = dict(encoder.truncation)
  found = answerer.answer(queries, _K.value)
  _say(encoder.describe_truncation(before))
  for query, best in zip(queries, found, strict=True):
    if _JSON.value:
      print(_as_json(query, best), flush=True)
    else:
      _show(query, best)


def _as_json(query: str, best: Sequence["answers.Answer"]) -> str:
  results = [
    {
      "rank": rank,
      "id": passage.passage_id,
      "language": passage.language,
      "score": score,
      "title": passage.title,
      "text": passage.text,
    }
    for rank, (score, passage) in enumerate(best, start=1)
  ]
  line = {"query": query, "results": results}
  return json.dumps(line, ensure_ascii=False)


def _show(query: str, best: Sequence["answers.Answer"]) -> None:
  from mlir_jax.command_line import answer_lines

  if not _is_conversation():
    print(f"> {answer_lines.clean(query)}")
  columns = min(shutil.get_terminal_size().columns, _WIDEST)
  print("\n".join(answer_lines.lay_out(best, columns)), end="\n\n", flush=True)


def _check(query: str, place: str) -> str:
  """Returns a query without white space around it; refuses broken text."""
  try:
    query.encode("utf-8")
  except UnicodeEncodeError:
    raise ValueError(f"{place} is not UTF-8.") from None
  return query.strip()


def _lines() -> Iterator[str]:
  """Yields the lines of the standard input that are not blank."""
  for number, line in enumerate(sys.stdin.buffer, start=1):
    place = f"Line {number} of the standard input"
    text = line.decode(
      "utf-8-sig" if number == 1 else "utf-8", "surrogateescape"
    )
    if query := _check(text, place):
      yield query


def _batches(queries: Iterable[str]) -> Iterator[list[str]]:
  """Yields queries in batches, if none of them has to be waited for."""
  are_there = isinstance(queries, list) or stat.S_ISREG(
    os.fstat(sys.stdin.fileno()).st_mode
  )
  queries, size = iter(queries), _BATCH if are_there else 1
  while batch := list(itertools.islice(queries, size)):
    yield batch


def _converse(answerer: "answers.Answerer") -> None:
  """Answers what the user types, until Ctrl-D."""
  with contextlib.suppress(ImportError):  # Windows has none.
    import readline  # noqa: F401  # `input` then edits and remembers lines.
  _say("Type a query; Ctrl-D ends.")
  while True:
    try:
      query = _check(input("> "), "The query")
      if query:
        _answer(answerer, [query])
    except EOFError:
      print()
      return
    except ValueError as error:  # The next query may be better.
      _say(str(error))


def _check_flags() -> None:
  """Raises ValueError if the flags do not go together."""
  has_collection = _ROOT.value or _COLLECTION.value or _SET.value
  if not (_INDEX.value or has_collection):
    raise ValueError("Give the passages: --root=FOLDER or --index=FOLDER.")
  if not (_INDEX.value or _MODEL.value):
    raise ValueError("--root needs --model.")
  if _CORPUS.value and not _INDEX.value:
    raise ValueError(
      "--corpus names the texts of an index: give --index, or --root."
    )
  if _CORPUS.value and has_collection:
    raise ValueError("Give the texts of the index by --corpus or by --root.")
  if index_flags.is_precision_given() and not _INDEX.value:
    raise ValueError("--precision needs --index.")
  if _LANGUAGE.value and _INDEX.value:
    raise ValueError("--language needs --root without --index.")


def main(queries: Sequence[str]):
  """Answers queries as the flags say."""
  _check_flags()
  given = [
    _check(query, f"Query {number}")
    for number, query in enumerate(queries, start=1)
  ]
  if "" in given:
    raise ValueError(f"Query {given.index('') + 1} is empty.")
  if not given and sys.stdin is None:
    raise ValueError("There is neither a query nor a standard input.")
  try:
    with _open_index() if _INDEX.value else _open_collection() as answerer:
      if not given and _is_conversation():
        _converse(answerer)
        return
      for batch in _batches(given or _lines()):
        _answer(answerer, batch)
  except KeyboardInterrupt:
    print(file=sys.stderr)
    sys.exit(_STOPPED)


if __name__ == "__main__":
  _MODEL = shared_flags.define_path(
    "model",
    "A run's folder, an export, a sentence-transformers folder or a name on"
    " the Hugging Face hub. By default the model that --index names.",
  )
  _ROOT = shared_flags.define_path(
    "root",
    "The folder of a collection; the passages of its tests are searched. With"
    " --index, only the texts are read from it.",
  )
  _INDEX = shared_flags.define_path(
    "index", "A folder of passages' vectors, of encode or pyserini."
  )
  _CORPUS = flags.DEFINE_multi_string(
    "corpus",
    [],
    "A file of the texts of --index, if they are not where they were encoded"
    " from; may be repeated.",
  )
  _K = flags.DEFINE_integer(
    "k", 5, "The number of passages for each query.", lower_bound=1
  )
  _JSON = flags.DEFINE_bool(
    "json", False, "Whether each query gives a line of JSON, for scripts."
  )
  _LANGUAGE = flags.DEFINE_list(
    "language", [], "The languages of passages, such as de,fr; by default all."
  )
  _COLLECTION = flags.DEFINE_string(
    "collection", "", "The collection: cldr, folder, sets or MODULE:FUNCTION."
  )
  _SET = shared_flags.define_set()
  _ON_BAD_RECORD = flags.DEFINE_enum(
    "on_bad_record",
    "error",
    ("error", "skip"),
    "What to do with bad records: stop, or skip and count them.",
  )
  index_flags.define()
  program.start(main, required=(), takes_texts=True)
