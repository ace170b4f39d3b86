"""Encodes text files: one text per line in, one vector per line out.

python -m mlir_jax.encode --model=W --role=query --output=vectors.npy texts.txt

Files are UTF-8, plain or .gz, and are read one after the other; "-" is the
standard input. The output is a float32 array [lines, width]: row n is the
vector of line n. An empty line is a text, too. Files and output may be on
object storage (gs://). A file of JSON lines or a table is refused, because its
syntax would be encoded; --plain_text encodes it as it is.

Several processes (--distributed) share the encoding. All of them read the
files; process 0 writes.
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

from mlir_jax import bars, contract
from mlir_jax.command_line import process_flags, program, shared_flags
from mlir_jax.data import records
from mlir_jax.data.sources import text_lines
from mlir_jax.storage import locations, writing

_STDIN = "/dev/stdin"

# Endings of files whose lines are not plain text.
_NOT_PLAIN = (".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".tsv")


class _NoBadLines(records.BadRecords):
  """Stops at a bad line: without that line, later rows would move."""

  def __init__(self, name: str):
    super().__init__()
    self._name = name  # The file as the user named it.

  def report(self, path: str, line: int, field: str, problem: str) -> None:
    raise records.RecordError(f"{self._name}:{line}: {field}: {problem}.")


def check_plain(path: str, line: str | None = None) -> None:
  """Refuses a file that is not plain text, by its name and first line.

  Args:
    path: The file's name.
    line: Its first line; None to check only the name.

  Raises:
    ValueError: if the lines have the syntax of a format.
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
      " its syntax. Write one text per line to a .txt file, or give"
      " --plain_text to encode the lines as they are."
    )


def read_texts(
  paths: Sequence[str],
  plain_text: bool = False,
  copies: Mapping[str, str] | None = None,
) -> Iterator[str]:
  """Yields the lines of files, including empty lines.

  Args:
    paths: The files; "-" is the standard input.
    plain_text: Whether lines of JSON are texts, too.
    copies: Name of a file to the copy that is read in its place.

  Raises:
    RecordError: if a line is not UTF-8; the message has the file and the line.
    ValueError: if a file is not plain text.
  """
  for path in paths:
    local = _STDIN if path == "-" else (copies or {}).get(path, path)
    for number, text in text_lines.read_lines(local, _NoBadLines(path)):
      assert text is not None  # `_NoBadLines` skips no line.
      if number == 1 and not plain_text:
        check_plain(path, text)
      yield text


@contextlib.contextmanager
def copies_on_disk(paths: Sequence[str]) -> Iterator[dict[str, str]]:
  """Makes temporary copies of files on object storage; yields URL to copy."""
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
  """Opens a .npy file that grows by rows; it appears whole or not at all.

  Yields:
    append(rows) -> shape so far; rows are float32 [n, D] with the same D.

  Raises:
    ValueError: if rows are not finite or have another D.
  """
  shape = ()

  def write_header(file):
    # NumPy's header has room for a larger number of rows.
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
          f"{path} is not written: the vectors after row {shape[0]} are not"
          f" finite or do not have {shape[1]} numbers each."
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
    embed: Takes any number of texts; yields float32 [m, D] for m at a time.
    paths: Text files; "-" is the standard input. They may be URLs.
    output: The .npy file; it may be a URL.
    description: The text of the progress bar.
    writes: Whether this process writes; only one of several may write.
    plain_text: Whether to encode files that do not look like plain text.

  Returns:
    The shape of the float32 array.

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
    # Read everything once first, because a bad line should stop at once.
    if "-" not in paths:
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
  """Checks that the files exist, and that the output is another file.

  Args:
    paths: The files of texts, from `locations.absolute`, or "-".
    output: The output, from `locations.absolute`.

  Raises:
    ValueError: if a path cannot be used; the message names it.
    FileNotFoundError: if a file is missing.
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


def main(paths: Sequence[str]):
  """Encodes files as the flags say."""
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
    prompt=_PROMPT.value,
    truncate_dim=_TRUNCATE_DIM.value,
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
    f" prefix={model.contract.prefix(role, _PROMPT.value)!r},"
    f" max_length={settings.max_length},"
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
    "role", None, contract.ROLES, "What the texts are encoded as."
  )
  _OUTPUT = shared_flags.define_path("output", "The .npy file to write.")
  _CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    "last",
    shared_flags.CHECKPOINT_HELP,
  )
  _REVISION = flags.DEFINE_string(
    "revision", "", "The branch, tag or commit of a name on the hub."
  )
  _PROMPT = shared_flags.define_prompt()
  _TRUNCATE_DIM = shared_flags.define_truncate_dim()
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
    "Encode each line as it is, even if the file's name or first line shows"
    " JSON or a table.",
  )
  process_flags.define()
  program.start(main, required=("model", "role", "output"), takes_files=True)
