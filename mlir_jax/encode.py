"""Encodes text files: one text per line in, one vector per line out.

python -m mlir_jax.encode --model=W --role=query --output=vectors.npy texts.txt

Files are UTF-8, plain or ending in .gz, read one after the other; "-" is the
standard input. An empty line is a text, too: row n of the output, a float32
array [lines, width], is the vector of line n. Files and output may be on
object storage (gs://). A file of JSON lines or a table is refused, since its
syntax would be encoded, unless --plain_text is given.

Several processes (--distributed) share the encoding; all read the files, and
process 0 writes.
"""

import contextlib
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from absl import flags
from etils import epath

from mlir_jax import bars, command_line, process_flags, shared_flags
from mlir_jax import contract as contract_lib
from mlir_jax.data import records
from mlir_jax.data.sources import text_lines
from mlir_jax.storage import locations, writing

_STDIN = "/dev/stdin"

# Names of files whose lines hold more than a text.
_NOT_PLAIN = (".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".tsv")


class _Refused(records.BadRecords):
  """Stops at a bad line; a skipped one would move the rows behind it."""

  def __init__(self, name: str):
    super().__init__()
    self._name = name  # As the user gave it.

  def report(self, path: str, line: int, field: str, problem: str) -> None:
    raise records.RecordError(f"{self._name}:{line}: {field}: {problem}.")


def check_plain(path: str, line: str | None = None) -> None:
  """Refuses a file whose lines hold the syntax of a format.

  Args:
    path: The file's name.
    line: Its first line, which may show it, too.

  Raises:
    ValueError: if it is not plain text by its name or its first line.
  """
  suffix = os.path.splitext(path.removesuffix(".gz"))[1].lower()
  sign = f"its name ends in {suffix}" if suffix in _NOT_PLAIN else ""
  if line is not None and line.startswith(("{", "[{")):
    with contextlib.suppress(ValueError, RecursionError):
      json.loads(line)
      sign = "its first line is JSON"
  if sign:
    raise ValueError(
      f"{path} is not plain text: {sign}, and each line would be encoded with"
      " its syntax. Write one text a line to a .txt file, or give --plain_text"
      " to encode the lines as they are."
    )


def read_texts(
  paths: Sequence[str],
  plain_text: bool = False,
  copies: Mapping[str, str] | None = None,
) -> Iterator[str]:
  """The lines of files, one after the other, empty ones too.

  Args:
    paths: The files; "-" is the standard input.
    plain_text: Whether a line of JSON is a text, too.
    copies: Where a file of this name is read from, if elsewhere.

  Raises:
    RecordError: for a line that is not UTF-8, with its file and number.
    ValueError: if a file is not plain text.
  """
  for path in paths:
    local = _STDIN if path == "-" else (copies or {}).get(path, path)
    for number, text in text_lines.read_lines(local, _Refused(path)):
      assert text is not None  # `_Refused` skips no line.
      if number == 1 and not plain_text:
        check_plain(path, text)
      yield text


@contextlib.contextmanager
def copies_on_disk(paths: Sequence[str]) -> Iterator[dict[str, str]]:
  """Copies files from object storage for a while; yields URL to copy."""
  with tempfile.TemporaryDirectory() as folder:
    copies = {}
    for number, path in enumerate(paths):
      if locations.is_url(path) and path not in copies:
        copies[path] = f"{folder}/{number}-{path.rpartition('/')[2]}"
        with (
          epath.Path(path).open("rb") as source,
          open(copies[path], "wb") as target,
        ):
          shutil.copyfileobj(source, target)
    yield copies


@contextlib.contextmanager
def write_rows(path: str) -> Iterator:
  """Opens a .npy file that grows by rows, written aside and then renamed.

  Yields:
    append(rows) -> shape so far, for float32 [n, D] arrays of one D.

  Raises:
    ValueError: for rows that are not finite, or of another D.
  """
  shape = ()

  def write_header(file):
    # NumPy leaves room for the number of rows to grow.
    np.lib.format.write_array_header_1_0(
      file, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )

  with writing.writing_aside(path) as file:

    def append(rows):
      nonlocal shape
      if not shape:
        shape = (0, rows.shape[1])
        write_header(file)
      if rows.shape[1:] != shape[1:] or not np.isfinite(rows).all():
        raise ValueError(
          f"{path} is not written: the vectors behind row {shape[0]} are not"
          f" finite, or have not {shape[1]} numbers each."
        )
      file.write(np.ascontiguousarray(rows, "<f4").data)
      shape = (shape[0] + len(rows), shape[1])
      return shape

    yield append
    file.seek(0)
    write_header(file)


def encode_files(
  embed: Callable[[Iterable[str]], Iterator[np.ndarray]],
  paths: Sequence[str],
  output: str,
  description: str = "texts",
  writes: bool = True,
  plain_text: bool = False,
) -> tuple[int, int]:
  """Encodes the lines of files into a .npy file, in bounded memory.

  Args:
    embed: Any number of texts to float32 [m, D], of some after the other.
    paths: Text files, read one after the other; "-" is the standard input.
      They and the output may be URLs.
    output: The .npy file.
    description: Of the progress bar.
    writes: Whether this process writes; of several only one does.
    plain_text: Whether files are read that do not look like plain text.

  Returns:
    The shape of the float32 array written.

  Raises:
    ValueError: if there is no text, a line is not UTF-8, or a file is not
      plain text.
  """
  if not plain_text:
    for path in paths:
      check_plain(path)
  total = shape = None
  rows_written = contextlib.nullcontext(np.shape)
  with copies_on_disk(paths) as copies:
    if "-" not in paths:  # Read once before, so that a bad line shows at once.
      total = sum(1 for _ in read_texts(paths, plain_text, copies))
    with (
      write_rows(output) if writes else rows_written as append,
      bars.bar(None, description, unit="text", total=total) as bar,
    ):
      for rows in embed(read_texts(paths, plain_text, copies)):
        shape = append(rows)
        bar.update(len(rows))
      if shape is None:
        raise ValueError(f"There are no texts in {', '.join(paths)}.")
  return shape


def _check_paths(paths: Sequence[str], output: str) -> None:
  """Refuses files that are not there, and an output that is no new file.

  Args:
    paths: The files of texts, from `locations.absolute`, or "-".
    output: The output, likewise.

  Raises:
    ValueError: naming the path.
    FileNotFoundError: if a file is not there.
  """
  locations.check_packages(output)
  if not output or epath.Path(output).is_dir():
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
      else os.path.isfile(path)  # Not a pipe: files are read twice.
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
  """The bytes of a file."""
  if locations.is_url(path):
    return epath.Path(path).stat().length
  return os.path.getsize(path)  # epath's stat needs the owner's name.


def main(paths: Sequence[str]):
  """Encodes files by the flags."""
  process_flags.join()
  from mlir_jax.hosts import multihost
  from mlir_jax.retrieval import model as model_lib

  if not paths:
    raise ValueError('Give the files of texts, or "-" for the standard input.')
  paths = [path if path == "-" else locations.absolute(path) for path in paths]
  output = locations.absolute(_OUTPUT.value) if _OUTPUT.value else ""
  _check_paths(paths, output)
  if multihost.is_first():
    locations.check_output(os.path.dirname(output), f"--output={output}")
  if multihost.joined() and "-" in paths:
    raise ValueError(
      "Several processes cannot share the standard input: give files."
    )
  multihost.check_in(
    "files", {path: _size(path) for path in paths if path != "-"}
  )
  model = model_lib.load(
    _MODEL.value,
    _CHECKPOINT.value,
    batch_size=_BATCH_SIZE.value,
    revision=_REVISION.value,
  )
  role = _ROLE.value
  model.check_role(role)
  shape = encode_files(
    functools.partial(model.text_encoder.encode_windows, model.params, role),
    paths,
    output,
    f"{role} texts",
    multihost.is_first(),
    _PLAIN_TEXT.value,
  )
  settings = model.contract.role(role)
  if cut := model.text_encoder.describe_truncation():
    print(cut)
  print(
    f"Wrote {output}: float32 {list(shape)}, encoded as {role}:"
    f" prefix={settings.prefix!r}, max_length={settings.max_length},"
    f" pooling={model.contract.pooling},"
    f" normalize={model.contract.normalize}."
  )


if __name__ == "__main__":
  _MODEL = shared_flags.define_path(
    "model",
    "A run's folder, an export, a sentence-transformers folder or a name on"
    " the Hugging Face hub.",
  )
  _ROLE: flags.FlagHolder = flags.DEFINE_enum(
    "role", None, contract_lib.ROLES, "What the texts are."
  )
  _OUTPUT = shared_flags.define_path("output", "The .npy file to write.")
  _CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "last", 'Of a run: "last", "best" by English dev, or a step.'
  )
  _REVISION = flags.DEFINE_string(
    "revision", "", "Of a hub name: branch, tag or commit."
  )
  _BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    None,
    "Texts encoded at once.",
    lower_bound=1,
    upper_bound=1_000_000,
  )
  _PLAIN_TEXT = flags.DEFINE_bool(
    "plain_text",
    False,
    "Each line is a text as it stands, even if a file's name or its first line"
    " says that it is JSON or a table.",
  )
  process_flags.define()
  command_line.start(
    main, required=("model", "role", "output"), takes_files=True
  )
