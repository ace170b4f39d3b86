"""Downloads a file over HTTP; after a break it goes on where it stopped."""

import codecs
import contextlib
import fcntl
import http.client
import json
import os
import pathlib
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import IO, Any

import tqdm

import mlir_jax
from mlir_jax import bars
from mlir_jax.storage import reading, writing

TRIES = 5  # Without a new byte.
# Before the second try; each further try waits twice as long.
WAIT_SECONDS = 1.0
_MAX_WAIT_SECONDS = 300  # If the server asks for more.
# Without an answer, or without a byte.
_TIMEOUT_SECONDS = 60.0
_BLOCK_BYTES = 2**20
# Servers answer so when they are busy.
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)

# The first bytes of a file, by the end of its name.
_STARTS = {
  ".gz": (b"\x1f\x8b",),
  ".tgz": (b"\x1f\x8b",),
  ".bz2": (b"BZh",),
  ".xz": (b"\xfd7zXZ\x00",),
  ".zip": (b"PK\x03\x04", b"PK\x05\x06"),
  ".deb": (b"!<arch>\n",),
  ".json": (b"{", b"["),
  ".jsonl": (b"{",),
  ".jsonlines": (b"{",),
}


class DownloadError(ValueError):
  """A file that could not be downloaded; the message says what to do."""


class _BreakError(Exception):
  """The connection failed; the next try may succeed.

  Attributes:
    wait: For how many seconds the server asks to wait.
  """

  def __init__(self, problem: object, wait: int = 0):
    super().__init__(problem)
    self.wait = wait


class _ChangedError(Exception):
  """The server has another file than the one of which a part is here."""


def download(
  url: str, file: IO[bytes], part: pathlib.Path, target: pathlib.Path
) -> None:
  """Downloads a file to `part`, from where an earlier call stopped.

  A server that cannot send a range, or whose file has changed in the meantime,
  sends the whole file again.

  Args:
    url: Its http or https address.
    file: The part, from `alone`.
    part: Where the bytes are collected. PART.json says of which version of the
      file they are. After an error, both stay for the next call.
    target: Where the file will be; for messages.

  Raises:
    DownloadError: if there is no answer, no such file, the connection breaks
      `TRIES` times without a new byte, or the content is not what the file's
      name says.
  """
  if not url.startswith(("http://", "https://")):
    raise DownloadError(f"{url}: only http and https addresses are supported.")
  version = _read_version(part)
  tries = 0
  with bars.bar(
    description=target.name, unit="B", unit_scale=True, unit_divisor=1024
  ) as bar:
    while True:
      before = file.seek(0, os.SEEK_END)
      try:
        _receive(url, file, version, part, bar)
        break
      except (_BreakError, _ChangedError) as error:
        if isinstance(error, _ChangedError):
          version = {}
          _empty(file)
        tries = 1 if file.seek(0, os.SEEK_END) > before else tries + 1
        if tries >= TRIES:
          raise DownloadError(_no_answer(url, target, error)) from error
        asked = error.wait if isinstance(error, _BreakError) else 0
        time.sleep(max(asked, WAIT_SECONDS * 2 ** (tries - 1)))
      except urllib.error.HTTPError as error:
        raise DownloadError(
          f"{url}: the server answers {error.code} {error.reason}. The file"
          f" may have moved, or need a login: {_by_hand(target)}"
        ) from error
  if problem := find_problem(part, target):
    discard(part)
    raise DownloadError(
      f"{url}: the server sends {problem}, not {target.name}."
      f" {_by_hand(target)}"
    )


def discard(part: pathlib.Path) -> None:
  """Removes a part and what is known of it."""
  part.unlink(missing_ok=True)
  _version_file(part).unlink(missing_ok=True)


@contextlib.contextmanager
def alone(part: pathlib.Path) -> Iterator[IO[bytes]]:
  """Opens a part for writing at its end; no other process may write it.

  Within this context the part may get its name: another process does not write
  to the file then, either.
  """
  part.parent.mkdir(parents=True, exist_ok=True)
  while True:
    with open(part, "ab+") as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise DownloadError(
          f"{part}: another process downloads this file. Wait until it has"
          " ended."
        ) from error
      except OSError:
        pass  # The file system has no locks.
      # Before it was locked, another process may have renamed or removed it.
      if part.exists() and os.path.samestat(
        os.fstat(file.fileno()), part.stat()
      ):
        yield file
        return


def _receive(
  url: str,
  file: IO[bytes],
  version: dict[str, Any],
  part: pathlib.Path,
  bar: tqdm.tqdm,
) -> None:
  """Adds what is missing to the part.

  Args:
    url: The file's address.
    file: The part, at its end.
    version: What identifies the server's file: "validator" (an ETag or a date),
      "bytes". It is changed when the server sends the file from its start.
    part: The path of the part.
    bar: Counts bytes.

  Raises:
    _BreakError: if a later try may succeed.
    _ChangedError: if the part has to be dropped.
    urllib.error.HTTPError: if the server refuses.
  """
  size = file.tell()
  if size and not version.get("validator"):
    _empty(file)
    size = 0
  headers = {
    "User-Agent": f"mlir_jax/{mlir_jax.__version__}",
    "Accept-Encoding": "identity",
  }
  if size:
    headers |= {
      "Range": f"bytes={size}-",
      "If-Range": version["validator"],
    }
  request = urllib.request.Request(url, headers=headers)
  try:
    response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
  except urllib.error.HTTPError as error:
    if error.code in _TEMPORARY:
      # It may also be a date; then the usual time has to do.
      asked = _integer(error.headers.get("Retry-After")) or 0
      raise _BreakError(
        f"{error.code} {error.reason}", min(asked, _MAX_WAIT_SECONDS)
      ) from error
    if error.code == 416 and size:  # The part is as long as the file.
      raise _ChangedError("the file has changed") from error
    raise
  except (OSError, http.client.HTTPException) as error:
    raise _BreakError(getattr(error, "reason", error)) from error
  with response:
    if response.status == 206:
      start, total = _range(response.headers.get("Content-Range", ""))
      if start != size:
        raise _ChangedError("the server sends another part")
      # Not every server looks at If-Range.
      sent = _validator(response.headers)
      if (sent and sent != version["validator"]) or (
        version.get("bytes") not in (None, total)
      ):
        raise _ChangedError("the file has changed")
    else:
      _empty(file)
      size = 0
      total = _integer(response.headers.get("Content-Length"))
      version.clear()
      version |= {"validator": _validator(response.headers), "bytes": total}
      writing.write_aside(str(_version_file(part)), json.dumps(version))
    bar.reset(total)
    bar.update(size)
    while True:
      try:
        block = response.read(_BLOCK_BYTES)
      except (OSError, http.client.HTTPException) as error:
        raise _BreakError(error) from error
      if not block:
        break
      file.write(block)
      bar.update(len(block))
    file.flush()
  if total is not None and file.tell() < total:
    raise _BreakError(f"only {file.tell():,} of {total:,} bytes came")
  if total is not None and file.tell() > total:
    raise _ChangedError(f"more than {total:,} bytes came")


def _empty(file: IO[bytes]) -> None:
  file.truncate(0)
  file.seek(0)


def _version_file(part: pathlib.Path) -> pathlib.Path:
  return part.with_name(f"{part.name}.json")


def _read_version(part: pathlib.Path) -> dict[str, Any]:
  try:
    found = reading.read_json(_version_file(part))
  except reading.UnreadableError:
    return {}  # Then the file is downloaded from its start.
  return found if isinstance(found.get("validator"), str) else {}


def _validator(headers: http.client.HTTPMessage) -> str:
  """Returns what identifies the version of a file (RFC 9110, If-Range)."""
  tag = headers.get("ETag", "")
  if tag and not tag.startswith("W/"):
    return tag
  return headers.get("Last-Modified", "")


def _range(header: str) -> tuple[int | None, int | None]:
  """Returns the first byte and the whole size of "bytes 5-9/10"."""
  span, _, total = header.removeprefix("bytes ").partition("/")
  return _integer(span.partition("-")[0]), _integer(total)


def _integer(text: str | None) -> int | None:
  return int(text) if text and text.isdecimal() else None


def find_problem(path: pathlib.Path, target: pathlib.Path) -> str:
  """Returns why a file cannot be what its name says; "" if it can.

  A server may send a page that says that one has to log in.

  Args:
    path: The file.
    target: Where it will be; its name counts.
  """
  with open(path, "rb") as file:
    start = file.read(64)
  starts = _STARTS.get(target.suffix)
  if not start:
    return "an empty file"
  if reading.is_lfs_pointer(start):
    return "a Git LFS pointer"
  if starts and not start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(
    starts
  ):
    return f"something else, which begins with {start[:20]!r}"
  if start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
    return "a web page"
  if not starts and start.startswith(_STARTS[".gz"]):
    return "a gzipped file"
  return ""


def _no_answer(url: str, target: pathlib.Path, error: Exception) -> str:
  return (
    f"{url}: the download failed ({error}). With a network, start the same"
    f" command again: it goes on where it stopped. Without one,"
    f" {_by_hand(target)}"
  )


def _by_hand(target: pathlib.Path) -> str:
  return (
    f"get the file in another way, put it at {target}, and start the same"
    " command again."
  )
