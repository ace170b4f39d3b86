"""A file is read if it is what its name says, and has not changed."""

import bz2
import errno
import gzip
import hashlib
import io
import lzma
import zipfile

import pytest
import source_files

from mlir_jax.data import records
from mlir_jax.data.sources import (
  files,
  json_stream,
  plain_text,
  text_lines,
)


@pytest.mark.parametrize(
  "damage",
  [
    lambda data: data[:-12],
    lambda data: data[:-4],
    lambda data: data[:40] + b"plain text",
    lambda data: data + b"plain text",
  ],
)
def test_damaged_gzip_data_is_an_error_whatever_the_policy(tmp_path, damage):
  path = tmp_path / "a.txt.gz"
  path.write_bytes(damage(gzip.compress(b"some text\n" * 1000)))
  with pytest.raises(records.RecordError, match=r"a\.txt\.gz: the gzip data"):
    list(text_lines.read_lines(path, source_files.skipping()))


def test_an_error_of_the_disk_names_the_file(tmp_path, monkeypatch):
  class FailingFile(io.FileIO):
    def readinto(self, buffer):
      raise OSError(errno.EIO, "Input/output error")

  path = source_files.write(tmp_path / "a.txt", "one\n")
  monkeypatch.setattr(
    files, "open", lambda path, *_, **__: FailingFile(path), raising=False
  )
  for read in (
    lambda: list(text_lines.read_lines(path, source_files.skipping())),
    files.UnchangedFile(path).read_hash,
  ):
    with pytest.raises(OSError, match=r"error: '\S*a\.txt'"):
      read()


def test_a_file_plain_and_gzipped_is_refused(tmp_path):
  source_files.write(tmp_path / "a.txt", "x\n")
  source_files.write(tmp_path / "a.txt.gz", "x\n")
  with pytest.raises(ValueError, match=r"both a\.txt and a\.txt\.gz"):
    files.list_files(tmp_path)


def _zipped(data):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:
    archive.writestr("a.txt", data)
  return buffer.getvalue()


LFS_POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 12345
"""


@pytest.mark.parametrize(
  "name, data, problem",
  [
    ("a.txt", LFS_POINTER, "is a Git LFS pointer"),
    ("a.txt.gz", LFS_POINTER, "is a Git LFS pointer"),
    ("a.txt", gzip.compress(b"x\n"), "is gzipped: add"),
    ("a.txt.gz", b"x\n", "is not gzipped"),
    ("a.txt.gz", gzip.compress(gzip.compress(b"x\n")), "is gzipped twice"),
    ("a.txt", _zipped(b"x\n"), "is a zip archive"),
    ("a.txt.gz", gzip.compress(_zipped(b"x\n")), "is a zip archive"),
    ("a.txt", lzma.compress(b"x\n"), "is an xz file"),
    ("a.txt", bz2.compress(b"x\n"), "is a bzip2 file"),
    ("a.txt", "x\n".encode("utf-16"), "is UTF-16 text"),
  ],
  # Compressed data holds the time, but each process must give a test the same
  # name.
  ids=lambda value: "data" if isinstance(value, bytes) else None,
)
def test_a_file_that_is_not_what_its_name_says_is_refused(
  tmp_path, name, data, problem
):
  path = tmp_path / name
  path.write_bytes(data)
  bad = source_files.skipping()
  for read in (
    json_stream.read_values(path, bad),
    plain_text.read(path, "fi", bad),
  ):
    with pytest.raises(ValueError, match=f"{name} {problem}"):
      list(read)
  assert not bad.count


@pytest.mark.parametrize(
  "change",
  [
    lambda path: path.write_bytes(b"other\n" * 100),
    lambda path: path.write_bytes(path.read_bytes().replace(b"0", b"1")),
    lambda path: path.write_bytes(path.read_bytes() + b"one more\n"),
  ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_file_that_changes_is_refused_when_its_end_is_read(
  tmp_path, monkeypatch, name, change
):
  monkeypatch.setattr(files, "_BUFFER_BYTES", 64)
  text = "".join(
    f"{hashlib.sha256(b'%d' % n).hexdigest()}\n" for n in range(9_000)
  )
  path = source_files.write(tmp_path / name, text)
  file = files.UnchangedFile(path)
  before = file.read_hash()
  assert len(list(text_lines.read_lines(file, source_files.strict()))) == 9_000
  assert file.read_hash() == before
  reading = text_lines.read_lines(file, source_files.strict())
  assert next(reading) == (1, text[:64])
  change(path)
  with pytest.raises(records.RecordError):  # Cut, or not the same.
    list(reading)
  if name == "a.txt":
    with pytest.raises(records.RecordError, match="has changed since it was"):
      list(text_lines.read_lines(file, source_files.skipping()))
  with pytest.raises(records.RecordError, match="has changed since it was"):
    file.read_hash()
