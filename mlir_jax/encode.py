"""Encodes text files: one text per line in, one vector per line out.

python -m mlir_jax.encode --model=W --role=query --output=vectors.npy texts.txt

Files are UTF-8, plain or ending in .gz, read one after the other; "-" is the
standard input. An empty line is a text, too: row n of the output, a float32
array [lines, width], is the vector of line n.

Several processes (--distributed) share the encoding; all read the files, and
process 0 writes.
"""

import contextlib
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tqdm
from absl import flags

from mlir_jax import command_line, workdir
from mlir_jax import contract as contract_lib
from mlir_jax.data import records
from mlir_jax.data.sources import files as files_lib

# Texts that are tokenized and sorted by length at once: enough to fill the
# batches evenly, few enough to hold their tokens in memory.
CHUNK = 16_384

_STDIN = "/dev/stdin"


class _Refused(records.BadRecords):
  """Stops at a bad line; a skipped one would move the rows behind it."""

  def report(self, path: str, line: int, field: str, problem: str) -> None:
    raise records.RecordError(f"{path}:{line}: {field}: {problem}.")


def read_texts(paths: Sequence[str]) -> Iterator[str]:
  """The lines of files, one after the other, empty ones too.

  Raises:
    RecordError: for a line that is not UTF-8, with its file and number.
  """
  for path in paths:
    path = _STDIN if path == "-" else path
    for _, text in files_lib.read_lines(path, _Refused()):
      yield text


@contextlib.contextmanager
def write_rows(path: str) -> Iterator:
  """Opens a .npy file that grows by rows, written aside and then renamed.

  Yields:
    append(rows) -> shape so far, for float32 [n, D] arrays of one D.
  """
  shape = ()

  def write_header(file):
    # NumPy leaves room for the number of rows to grow.
    np.lib.format.write_array_header_1_0(
      file, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )

  with workdir.writing_aside(path) as file:

    def append(rows):
      nonlocal shape
      if not shape:
        shape = (0, rows.shape[1])
        write_header(file)
      file.write(np.ascontiguousarray(rows, "<f4").data)
      shape = (shape[0] + len(rows), shape[1])
      return shape

    yield append
    file.seek(0)
    write_header(file)


def encode_files(
  embed: Callable[[Sequence[str]], np.ndarray],
  paths: Sequence[str],
  output: str,
  description: str = "texts",
  writes: bool = True,
) -> tuple[int, int]:
  """Encodes the lines of files into a .npy file, in bounded memory.

  Args:
    embed: Texts to float32 [n, D].
    paths: Text files, read one after the other; "-" is the standard input.
    output: The .npy file.
    description: Of the progress bar.
    writes: Whether this process writes; of several only one does.

  Returns:
    The shape of the float32 array written.

  Raises:
    ValueError: if there is no text, or a line is not UTF-8.
  """
  total = shape = None
  if "-" not in paths:  # Read once before, so that a bad line shows at once.
    total = sum(1 for _ in read_texts(paths))
  texts = read_texts(paths)
  rows = contextlib.nullcontext(np.shape)
  with (
    write_rows(output) if writes else rows as append,
    tqdm.tqdm(total=total, desc=description, unit="text") as bar,
  ):
    while chunk := list(itertools.islice(texts, CHUNK)):
      shape = append(embed(chunk))
      bar.update(len(chunk))
    if shape is None:
      raise ValueError(f"There are no texts in {', '.join(paths)}.")
  return shape


def main(paths: Sequence[str]):
  """Encodes files by the flags."""
  command_line.join_processes()
  from mlir_jax.mesh import multihost
  from mlir_jax.retrieval import model as model_lib

  if not paths:
    raise ValueError('Give the files of texts, or "-" for the standard input.')
  output = _OUTPUT.value
  if not output or os.path.isdir(output):
    raise ValueError(f"--output={output} is no file: name the .npy to write.")
  for path in paths:
    if path != "-" and not os.path.isfile(path):
      raise FileNotFoundError(
        f'There is no file {path} (a pipe is read as "-", the standard input).'
      )
    if os.path.realpath(path) == os.path.realpath(output):
      raise ValueError(f"--output={output} is one of the files of texts.")
  for folder in pathlib.Path(output).absolute().parents:
    if folder.exists() and not folder.is_dir():
      raise ValueError(f"--output={output}: {folder} is a file, no folder.")
  if multihost.joined() and "-" in paths:
    raise ValueError("Several processes read files, no standard input.")
  multihost.check_in(
    "files", {path: os.path.getsize(path) for path in paths if path != "-"}
  )
  model = model_lib.load(
    _MODEL.value,
    _CHECKPOINT.value,
    batch_size=_BATCH_SIZE.value,
    revision=_REVISION.value,
  )
  role = _ROLE.value
  shape = encode_files(
    functools.partial(model.encode, role=role),
    paths,
    _OUTPUT.value,
    f"{role} texts",
    multihost.is_first(),
  )
  settings = model.contract.role(role)
  print(
    f"Wrote {_OUTPUT.value}: float32 {list(shape)}, encoded as {role}:"
    f" prefix={settings.prefix!r}, max_length={settings.max_length},"
    f" pooling={model.contract.pooling},"
    f" normalize={model.contract.normalize}."
  )


if __name__ == "__main__":
  _MODEL = command_line.define_path(
    "model",
    "A run's folder, an export, a sentence-transformers folder or a name on"
    " the Hugging Face hub.",
  )
  _ROLE = flags.DEFINE_enum(
    "role", None, contract_lib.ROLES, "What the texts are."
  )
  _OUTPUT = command_line.define_path("output", "The .npy file to write.")
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
  command_line.define_processes()
  command_line.run(main, required=("model", "role", "output"), takes_files=True)
