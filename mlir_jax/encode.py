"""Encodes texts: a collection becomes a folder of vectors with their ids.

python -m mlir_jax.encode --model=W --role=passage --output=FOLDER docs.jsonl

Files hold a text with its id in each record: docs.jsonl, corpus.jsonl, topics
and others (--format). Titles are joined to their texts by the contract. The
folder holds shards of vectors and ids, and manifest.json. If the command is
killed, the same command goes on at the last whole shard. --root encodes the
tests of a collection in place of files.

python -m mlir_jax.encode --model=W --role=query --output=vectors.npy texts.txt

An output whose name ends in .npy is a float32 array [lines, width] of plain
text: row n is the vector of line n. An empty line is a text, too. "-" is the
standard input. A file of JSON lines or a table is refused, because its syntax
would be encoded; --plain_text encodes it as it is.

Files are UTF-8, plain or .gz, and are read one after the other. Files and
output may be on object storage (gs://). Several processes (--distributed) share
the encoding. All of them read the files; process 0 writes.
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags
from etils import epath

from mlir_jax import contract
from mlir_jax.command_line import process_flags, program, shared_flags
from mlir_jax.data import records
from mlir_jax.data.sources import id_texts
from mlir_jax.retrieval import line_vectors, vector_folder
from mlir_jax.storage import locations

if TYPE_CHECKING:
  from mlir_jax.data import id_sources
  from mlir_jax.retrieval import model as model_lib

# An output of this name is an array of plain text.
_ARRAY = ".npy"


def _check_paths(paths: Sequence[str], output: str) -> None:
  """Checks that the files exist, and that the output is another path.

  Args:
    paths: The files of texts, from `locations.absolute`, or "-".
    output: The output, from `locations.absolute`.

  Raises:
    ValueError: if a path cannot be used; the message names it.
    FileNotFoundError: if a file is missing.
  """
  locations.check_packages(output)
  if output.endswith(_ARRAY) and epath.Path(output).is_dir():
    raise ValueError(
      f"--output={output} is not a file: name the .npy to write."
    )
  for path in paths:
    if path == "-":
      continue
    locations.check_packages(path)
    is_file = (
      epath.Path(path).is_file()
      if locations.is_url(path)
      else os.path.isfile(path)  # A pipe cannot be read twice.
    )
    if not is_file:
      raise FileNotFoundError(
        f'There is no file {path} (a pipe is read as "-", the standard input).'
      )
    if path == output or (
      not locations.is_url(path)
      and os.path.realpath(path) == os.path.realpath(output)
    ):
      raise ValueError(f"--output={output} is one of the files of texts.")


def _size(path: str) -> int:
  """Returns the size of a file in bytes."""
  if locations.is_url(path):
    return epath.Path(path).stat().length
  # `stat` of epath would fail if the file's owner has no name.
  return os.path.getsize(path)


def _is_one_of_several() -> bool:
  """Whether this process is one of several."""
  from mlir_jax.hosts import multihost

  return multihost.joined()


def _check_flags(paths: Sequence[str], output: str) -> None:
  """Checks that the flags go together.

  Raises:
    ValueError: naming a flag.
  """
  tests = _ROOT.value or _COLLECTION.value or _SET.value
  if not paths and not tests:
    raise ValueError(
      'Give the files of texts ("-" for the standard input of plain text), or a'
      " collection with --root."
    )
  if paths and tests:
    raise ValueError(
      f"Give either files ({paths[0]}) or a collection (--root, --collection,"
      " --set)."
    )
  if not tests and (
    _LANGUAGE.value or _LANGUAGE_IN_IDS.value or _SPLIT.value != "test"
  ):
    raise ValueError(
      "--language, --split and --language_in_ids need a collection: give"
      " --root."
    )
  if _is_one_of_several() and "-" in paths:
    raise ValueError(
      "Several processes cannot share the standard input: give files."
    )
  if not output:
    raise ValueError("--output is empty: name a folder, or the .npy to write.")
  if not output.endswith(_ARRAY):
    if "-" in paths:
      raise ValueError(
        f"--output={output} is a folder, whose texts are read twice: give files"
        " in place of the standard input, or an output that ends in .npy."
      )
    if _PLAIN_TEXT.value and _FORMAT.value not in (None, "lines"):
      raise ValueError("Give either --plain_text or --format.")
    return
  for flag, is_given in (
    (_FORMAT, _FORMAT.value not in (None, "lines")),
    (_DTYPE, _DTYPE.value != "float32"),
    (_ROOT, tests),
    (_ON_BAD_RECORD, _ON_BAD_RECORD.value != "error"),
  ):
    if is_given:
      raise ValueError(
        f"--output={output} is an array of plain text, and --{flag.name} needs"
        " a folder: let the output not end in .npy."
      )


def main(paths: Sequence[str]):
  """Encodes files or a collection as the flags say."""
  process_flags.join()
  from mlir_jax.hosts import multihost
  from mlir_jax.retrieval import vector_writer

  paths = [path if path == "-" else locations.absolute(path) for path in paths]
  output = locations.absolute(_OUTPUT.value) if _OUTPUT.value else ""
  _check_flags(paths, output)
  _check_paths(paths, output)
  is_array = output.endswith(_ARRAY)
  if multihost.is_first():
    folder = os.path.dirname(output) if is_array else output
    locations.check_output(folder, f"--output={output}")
    if not is_array:
      vector_writer.check_free(output)
  multihost.check_in(
    "files", {path: _size(path) for path in paths if path != "-"}
  )
  if is_array:
    model = _load()
    written = _write_array(model, paths, output)
  else:
    model, written = _write_folder(paths, output)
  role = _ROLE.value
  settings = model.contract.role(role)
  print(
    f"{written}, encoded as {role}:"
    f" prefix={model.contract.prefix(role, _PROMPT.value)!r},"
    f" max_length={settings.max_length},"
    f" pooling={model.contract.pooling},"
    f" normalize={model.contract.normalize}."
  )


def _load() -> "model_lib.Model":
  """Loads the model that the flags name, and checks the role."""
  from mlir_jax.retrieval import model as model_lib

  model = model_lib.load(
    _MODEL.value,
    _CHECKPOINT.value,
    batch_size=_BATCH_SIZE.value,
    revision=_REVISION.value,
    prompt=_PROMPT.value,
    truncate_dim=_TRUNCATE_DIM.value,
    **shared_flags.prefixes(),
  )
  model.check_role(_ROLE.value)
  return model


def _write_array(
  model: "model_lib.Model", paths: Sequence[str], output: str
) -> str:
  """Encodes plain text into one array; returns what was written, in words."""
  from mlir_jax.hosts import multihost

  role = _ROLE.value
  shape = line_vectors.encode_files(
    functools.partial(model.text_encoder.encode_windows, model.params, role),
    paths,
    output,
    f"{role} texts",
    multihost.is_first(),
    _PLAIN_TEXT.value or _FORMAT.value == "lines",
  )
  if cut := model.text_encoder.describe_truncation():
    print(cut)
  return f"Wrote {output}: float32 {list(shape)}"


@contextlib.contextmanager
def _sources(
  paths: Sequence[str], bad_records: records.BadRecords
) -> Iterator[list["id_sources.Source"]]:
  """Finds the texts; files on object storage are copied to this machine."""
  from mlir_jax.data import collections, id_sources

  role = _ROLE.value
  if paths:
    chosen = "lines" if _PLAIN_TEXT.value else _FORMAT.value
    with line_vectors.copies_on_disk(paths) as copies:
      yield id_sources.from_files(paths, role, chosen, copies)
    return
  sets = shared_flags.parse_named(
    "--set", _SET.value, "sw=ir_datasets:mr-tydi/sw/test"
  )
  collection = collections.load(
    _COLLECTION.value or ("folder" if _ROOT.value else "sets"),
    _ROOT.value or "",
    bad_records,
    require_pairs=False,
    prefix="--",
    sets=sets,
    selects=lambda language: True,  # Nothing is selected here.
  )
  yield id_sources.from_tests(
    collection,
    role,
    split=_SPLIT.value,
    languages=_LANGUAGE.value,
    language_in_ids=_LANGUAGE_IN_IDS.value,
  )


def _read_from(paths: Sequence[str]) -> dict[str, Any]:
  """Returns what the manifest says about where the texts are."""
  if paths:
    return {"files": list(paths)}
  return {
    "collection": _COLLECTION.value or ("folder" if _ROOT.value else "sets"),
    "root": locations.absolute(_ROOT.value) if _ROOT.value else "",
    "sets": list(_SET.value),
    "split": _SPLIT.value,
    "languages": list(_LANGUAGE.value),
    "language_in_ids": _LANGUAGE_IN_IDS.value,
  }


def _write_folder(
  paths: Sequence[str], output: str
) -> tuple["model_lib.Model", str]:
  """Encodes texts with ids into a folder; returns the model and what it did."""
  from mlir_jax.data import id_sources
  from mlir_jax.hosts import multihost
  from mlir_jax.retrieval import collection_encoding

  bad_records = records.BadRecords(_ON_BAD_RECORD.value, "--on_bad_record")
  with _sources(paths, bad_records) as sources:
    count = id_sources.check(sources, _ROLE.value, bad_records)
    if bad_records.count:
      print(records.describe_bad("source", bad_records.drain()))
    described = [source.describe() for source in sources]
    multihost.check_in("texts", {"count": count, "sources": described})
    model = _load()
    return model, collection_encoding.write(
      model,
      _ROLE.value,
      id_sources.read_all(sources, bad_records),
      count,
      output,
      sources=described,
      read_from=_read_from(paths),
      dtype=_DTYPE.value,
      is_first=multihost.is_first(),
      agree=multihost.of_first,
    )


if __name__ == "__main__":
  _MODEL = shared_flags.define_path(
    "model",
    "A run's folder, an export, a sentence-transformers folder or a name on"
    " the Hugging Face hub.",
  )
  _ROLE: flags.FlagHolder = flags.DEFINE_enum(
    "role", None, contract.ROLES, "What the texts are encoded as."
  )
  _OUTPUT = shared_flags.define_path(
    "output", "The folder to write; or the .npy file, for plain text."
  )
  _CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    "last",
    shared_flags.CHECKPOINT_HELP,
  )
  _REVISION = shared_flags.define_revision()
  _PROMPT = shared_flags.define_prompt()
  shared_flags.define_prefixes()
  _TRUNCATE_DIM = shared_flags.define_truncate_dim()
  _BATCH_SIZE = shared_flags.define_batch_size()
  _PLAIN_TEXT = flags.DEFINE_bool(
    "plain_text",
    False,
    "Encode each line as it is, even if the file's name or first line shows"
    " JSON or a table.",
  )
  _FORMAT = flags.DEFINE_enum(
    "format",
    None,
    id_texts.FORMATS,
    "What the files hold: records (an id and a text in each), numbered (records"
    " without ids), topics (id, tab, query), xquad_r, or lines (plain text,"
    " whose ids are the numbers of the lines). By default, a file's name and"
    " first record tell it.",
  )
  _DTYPE = flags.DEFINE_enum(
    "dtype", "float32", vector_folder.DTYPES, "The numbers in the folder."
  )
  _ON_BAD_RECORD = flags.DEFINE_enum(
    "on_bad_record",
    "error",
    ("error", "skip"),
    "What to do with bad records: stop, or skip and count them.",
  )
  _ROOT = shared_flags.define_path(
    "root", "In place of files: the folder of a collection with tests."
  )
  _COLLECTION = flags.DEFINE_string(
    "collection", "", "The collection: cldr, folder, sets or MODULE:FUNCTION."
  )
  _SET = shared_flags.define_set()
  _LANGUAGE = flags.DEFINE_list(
    "language",
    [],
    "The languages of the collection's tests, such as de,fr; by default all.",
  )
  _SPLIT = flags.DEFINE_enum(
    "split", "test", ("test", "dev"), "The split of the collection's tests."
  )
  _LANGUAGE_IN_IDS = flags.DEFINE_bool(
    "language_in_ids",
    False,
    "Whether the ids of a collection become LANGUAGE/ID, because its tests have"
    " the same ids in several languages.",
  )
  process_flags.define()
  program.start(main, required=("model", "role", "output"), takes_files=True)
