"""A download is whole and the file it was before, or says what to do."""

import dataclasses
import hashlib
import json
import socket

import file_server
import pytest

from mlir_jax.corpora import downloads, transfer
from mlir_jax.storage import reading

CONTENT = bytes(range(1, 256)) * 40  # 10,200 bytes.


@pytest.fixture
def site(monkeypatch):
  monkeypatch.setattr(transfer, "WAIT_SECONDS", 0.0)
  for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
    monkeypatch.delenv(variable, raising=False)
  with file_server.serving() as site:
    site.files["/words.tsv"] = CONTENT
    site.tags["/words.tsv"] = '"v1"'
    yield site


@pytest.fixture
def words(site):
  return downloads.File(f"{site.url}/words.tsv", "tsv/words.tsv")


def names(folder):
  return sorted(
    path.relative_to(folder).as_posix()
    for path in folder.rglob("*")
    if path.is_file() and not path.name.endswith(".lock")
  )


def test_a_file_is_downloaded_once_and_its_checksum_is_kept(
  site, words, tmp_path
):
  downloads.fetch([words], tmp_path)
  downloads.fetch([words], tmp_path)
  assert (tmp_path / words.path).read_bytes() == CONTENT
  assert site.asked == [("/words.tsv", "")]
  assert names(tmp_path) == ["checksums.json", "tsv/words.tsv"]
  assert json.loads((tmp_path / "checksums.json").read_text()) == {
    "tsv/words.tsv": {
      "url": words.url,
      "bytes": len(CONTENT),
      "sha256": hashlib.sha256(CONTENT).hexdigest(),
    }
  }


def test_a_broken_transfer_goes_on_where_it_stopped(site, words, tmp_path):
  site.breaks["/words.tsv"] = [4000, 1000]
  downloads.fetch([words], tmp_path)
  assert (tmp_path / words.path).read_bytes() == CONTENT
  spans = [span for _, span in site.asked]
  assert spans == ["", "bytes=4000-", "bytes=5000-"]


def test_a_later_command_goes_on_where_the_first_stopped(
  site, words, tmp_path, monkeypatch
):
  monkeypatch.setattr(transfer, "TRIES", 1)
  site.breaks["/words.tsv"] = [4000]
  with pytest.raises(transfer.DownloadError, match="goes on where it stopped"):
    downloads.fetch([words], tmp_path)
  assert downloads.state(words, tmp_path) == "begun, 4 kB are here"
  assert not (tmp_path / words.path).exists()
  downloads.fetch([words], tmp_path)
  assert (tmp_path / words.path).read_bytes() == CONTENT
  assert site.asked[-1] == ("/words.tsv", "bytes=4000-")


@pytest.mark.parametrize(
  "tag, content, careless",
  [
    ('"v2"', CONTENT[::-1], False),
    (None, CONTENT[::-1], False),
    ('"v2"', CONTENT[::-1], True),
    (None, CONTENT[::-1] + b"more", True),
  ],
)
def test_two_versions_of_a_file_are_never_joined(
  site, words, tmp_path, monkeypatch, tag, content, careless
):
  monkeypatch.setattr(transfer, "TRIES", 1)
  site.breaks["/words.tsv"] = [4000]
  with pytest.raises(transfer.DownloadError):
    downloads.fetch([words], tmp_path)
  monkeypatch.setattr(transfer, "TRIES", 2)
  site.files["/words.tsv"] = content
  site.tags["/words.tsv"] = tag
  site.careless |= {"/words.tsv"} if careless else set()
  downloads.fetch([words], tmp_path)
  assert (tmp_path / words.path).read_bytes() == content


def test_until_a_file_has_its_name_no_other_process_writes_to_it(
  site, words, tmp_path, monkeypatch
):
  part = tmp_path / "tsv/.words.tsv.part"
  of_file = downloads.digests.of_file

  def hashed(path):
    with pytest.raises(transfer.DownloadError, match="another process down"):
      transfer.alone(part).__enter__()
    return of_file(path)

  monkeypatch.setattr(downloads.digests, "of_file", hashed)
  downloads.fetch([words], tmp_path)
  assert (tmp_path / words.path).read_bytes() == CONTENT


def test_a_part_that_another_process_renames_is_not_written_to(
  tmp_path, monkeypatch
):
  part, target = tmp_path / ".a.part", tmp_path / "a"
  part.write_bytes(b"whole")
  lock = transfer.fcntl.flock

  def slow_lock(*arguments):
    if not target.exists():
      part.rename(target)
    lock(*arguments)

  monkeypatch.setattr(transfer.fcntl, "flock", slow_lock)
  with transfer.alone(part) as file:
    file.write(b"another")
  assert target.read_bytes() == b"whole"


def test_a_busy_server_is_asked_again(site, words, tmp_path):
  site.errors["/words.tsv"] = [503, 429, 503, 503]
  downloads.fetch([words], tmp_path)
  assert (tmp_path / words.path).read_bytes() == CONTENT


def test_a_server_that_asks_to_wait_is_obeyed(
  site, words, tmp_path, monkeypatch
):
  waits = []
  monkeypatch.setattr(transfer.time, "sleep", waits.append)
  site.errors["/words.tsv"] = [429, 429]
  site.retry_after = "17"
  downloads.fetch([words], tmp_path)
  site.errors["/words.tsv"] = [503]
  site.retry_after = "Fri, 31 Dec 1999 23:59:59 GMT"
  downloads.fetch([dataclasses.replace(words, path="again.tsv")], tmp_path)
  assert waits == [17, 17, 0.0]


def test_another_file_than_the_first_is_refused(site, words, tmp_path):
  downloads.fetch([words], tmp_path)
  (tmp_path / words.path).unlink()
  site.files["/words.tsv"] = CONTENT + b"more"
  with pytest.raises(
    transfer.DownloadError, match=r"another file: .*delete the entry"
  ):
    downloads.fetch([words], tmp_path)
  assert names(tmp_path) == ["checksums.json"]


def test_a_file_that_its_publisher_does_not_list_is_refused(words, tmp_path):
  listed = downloads.File(words.url, words.path, sha256="0" * 64)
  with pytest.raises(
    transfer.DownloadError,
    # Not the files of other corpora.
    match=r"its publisher lists 0000.*delete \S+/tsv, and the entries of tsv/",
  ):
    downloads.fetch([listed], tmp_path)
  assert not names(tmp_path)


def test_a_file_that_changed_on_the_disk_is_refused(words, tmp_path):
  downloads.fetch([words], tmp_path)
  (tmp_path / words.path).write_bytes(CONTENT[:-1])
  with pytest.raises(
    reading.UnreadableError, match=r"SHA-256 differs\. Delete"
  ):
    downloads.fetch([words], tmp_path)


def test_a_file_that_was_put_by_hand_is_used_and_its_checksum_kept(
  site, words, tmp_path
):
  (tmp_path / "tsv").mkdir()
  (tmp_path / words.path).write_bytes(b"by hand")
  downloads.fetch([words], tmp_path)
  assert not site.asked
  (tmp_path / words.path).write_bytes(b"changed")
  with pytest.raises(reading.UnreadableError, match="SHA-256 differs"):
    downloads.fetch([words], tmp_path)


def test_a_missing_file_says_where_to_put_it_by_hand(site, tmp_path):
  gone = downloads.File(f"{site.url}/gone.tsv", "gone.tsv")
  with pytest.raises(transfer.DownloadError) as caught:
    downloads.fetch([gone], tmp_path)
  assert f"{gone.url}: the server answers 404" in str(caught.value)
  assert f"put it at {tmp_path}/gone.tsv" in str(caught.value)


def test_without_a_network_the_message_names_address_and_place(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(transfer, "WAIT_SECONDS", 0.0)
  with socket.socket() as unused:  # Bound, but nobody listens.
    unused.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{unused.getsockname()[1]}/words.tsv"
    with pytest.raises(transfer.DownloadError) as caught:
      downloads.fetch([downloads.File(url, "words.tsv")], tmp_path)
  assert str(caught.value).startswith(f"{url}: the download failed (")
  assert f"put it at {tmp_path}/words.tsv" in str(caught.value)


@pytest.mark.parametrize(
  "name, content, problem",
  [
    ("a.json.gz", b"<html>Log in", "something else, which begins with b'<html"),
    ("a.txt", b" <!DOCTYPE html>", "a web page"),
    ("a.tsv", b"", "an empty file"),
    ("a.tsv", b"version https://git-lfs.github.com/spec/v1", "a Git LFS"),
    ("a.tsv", b"\x1f\x8b\x08", "a gzipped file"),
  ],
)
def test_a_page_in_place_of_a_file_is_refused(
  site, tmp_path, name, content, problem
):
  site.files[f"/{name}"] = content
  with pytest.raises(transfer.DownloadError, match=f"sends {problem}"):
    downloads.fetch([downloads.File(f"{site.url}/{name}", name)], tmp_path)
  assert not names(tmp_path)


def test_a_page_that_was_put_by_hand_is_refused(site, words, tmp_path):
  (tmp_path / "tsv").mkdir()
  (tmp_path / words.path).write_bytes(b"<html>Log in")
  with pytest.raises(reading.UnreadableError, match=r"is a web page\. Delete"):
    downloads.fetch([words], tmp_path)
  assert names(tmp_path) == ["tsv/words.tsv"] and not site.asked


def test_a_json_file_may_begin_with_a_byte_order_mark(site, tmp_path):
  site.files["/a.json"] = b"\xef\xbb\xbf{}"
  downloads.fetch([downloads.File(f"{site.url}/a.json", "a.json")], tmp_path)
