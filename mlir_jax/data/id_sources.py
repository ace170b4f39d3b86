"""Finds the texts with ids that are encoded: files, or tests of a collection.

They are read twice. The first pass checks all of them, so that a bad record or
an id that occurs twice is found before the first text is encoded.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from mlir_jax import bars
from mlir_jax.data import records, unique_ids
from mlir_jax.data.sources import files, id_texts


@dataclasses.dataclass(frozen=True)
class Source:
  """Texts with ids.

  Attributes:
    name: What they are called: the name of the file, or of the collection.
    format: One of `id_texts.FORMATS`, or "test".
    read: Yields the texts; it reports bad records to its argument. A later
      reading raises RecordError if the texts have changed.
    sha256: Returns the hash of what was read.
  """

  name: str
  format: str
  read: Callable[[records.BadRecords], Iterator[id_texts.IdText]]
  sha256: Callable[[], str]

  def describe(self) -> dict[str, str]:
    """Returns what a manifest says of it; texts are read before."""
    return {"name": self.name, "format": self.format, "sha256": self.sha256()}


def from_files(
  paths: Sequence[str],
  role: str,
  format_name: str | None = None,
  copies: Mapping[str, str] | None = None,
) -> list[Source]:
  """Finds the texts of files.

  Args:
    paths: The files.
    role: The role of the texts, see `id_texts.read`.
    format_name: The format of all of them; None for what each one shows.
    copies: Name of a file to the copy that is read in its place.

  Raises:
    ValueError: if a file does not show its format.
  """
  found = []
  for path in paths:
    local = (copies or {}).get(path, path)
    file = files.UnchangedFile(pathlib.Path(local))
    chosen = format_name or id_texts.recognize(file)

    def read(bad_records, path=path, file=file, chosen=chosen):
      named = _Renamed(bad_records, path)
      for text in id_texts.read(file, chosen, named, role):
        place = text.place.removeprefix(str(file))
        yield text._replace(place=f"{path}{place}")

    found.append(
      Source(
        os.path.basename(path),
        chosen,
        read,
        lambda file=file: file.sha256 or file.read_hash(),
      )
    )
  return found


class _Renamed(records.BadRecords):
  """Reports bad records under the name that the user gave the file."""

  def __init__(self, bad_records: records.BadRecords, name: str):
    super().__init__(bad_records.policy, bad_records.setting)
    self._bad_records = bad_records
    self._name = name

  def report(self, path: str, line: int, field: str, problem: str) -> None:
    """Raises or counts one bad record; see `BadRecords.report`."""
    del path
    self._bad_records.report(self._name, line, field, problem)


def from_tests(
  collection: records.Collection,
  role: str,
  *,
  split: str = "test",
  languages: Sequence[str] = (),
  language_in_ids: bool = False,
) -> list[Source]:
  """Finds the passages or the queries of a collection's tests.

  The tests are in memory, as in an evaluation.

  Args:
    collection: The collection.
    role: "query" for the queries; any other role for the passages.
    split: "test" or "dev".
    languages: The languages, in this order; empty for all.
    language_in_ids: Whether ids become LANGUAGE/ID. Tests in several languages
      may have the same ids.

  Raises:
    ValueError: if there is no such test.
  """
  tests = {
    test.language: test for test in collection.tests() if test.split == split
  }
  chosen = list(languages or tests)
  if not chosen or (missing := [code for code in chosen if code not in tests]):
    named = f" in {', '.join(missing)}" if chosen else ""
    raise ValueError(
      f"{collection.name} has no {split} set{named}; its {split} sets are in:"
      f" {', '.join(tests) or 'none'}."
    )
  return [
    _of_test(
      tests[code],
      f"{collection.name}/{split}/{code}",
      role,
      f"{code}/" if language_in_ids else "",
    )
    for code in chosen
  ]


def _of_test(
  test: records.RetrievalTest, name: str, role: str, prefix: str
) -> Source:
  """Makes the source of the passages or queries of a test."""

  def texts() -> Iterator[id_texts.IdText]:
    if role == "query":
      for text_id, text in test.queries.items():
        yield id_texts.IdText(
          prefix + text_id, text, "", f"{name}: query {text_id}"
        )
      return
    for number, passage in enumerate(test.passages, start=1):
      yield id_texts.IdText(
        prefix + passage.passage_id,
        passage.text,
        passage.title,
        f"{name}: passage {number}",
      )

  def sha256() -> str:
    digest = hashlib.sha256()
    for text in texts():
      digest.update(json.dumps(text[:3]).encode())
    return digest.hexdigest()

  return Source(name, "test", lambda _: texts(), sha256)


def read_all(
  sources: Sequence[Source], bad_records: records.BadRecords
) -> Iterator[id_texts.IdText]:
  """Yields the texts of all sources, in order."""
  for source in sources:
    yield from source.read(bad_records)


def check(
  sources: Sequence[Source], role: str, bad_records: records.BadRecords
) -> int:
  """Reads all texts once, before they are encoded.

  Args:
    sources: The sources.
    role: The role of the texts: only passages have titles.
    bad_records: Receives the bad records.

  Returns:
    The number of texts.

  Raises:
    RecordError: for a bad record, if the policy is "error"; under any policy if
      an id occurs twice or a text has a title that its role has not; it names
      the file and the line.
    ValueError: if there is no text.
  """
  with unique_ids.Hashes() as hashes:
    texts = read_all(sources, bad_records)
    for text in bars.bar(
      texts, "Checking the texts", unit="text", delay=2, leave=False
    ):
      if text.title and role != "passage":
        raise records.RecordError(
          f"{text.place}: title: there is one, but a text of the role {role!r}"
          " has none; encode passages with --role=passage, or remove the title."
        )
      hashes.add(text.text_id)
    repeated = hashes.repeated()
    count = hashes.count
  if not count:
    names = ", ".join(source.name for source in sources)
    raise ValueError(f"There are no texts in {names}.")
  if repeated:
    again = read_all(sources, records.BadRecords("skip"))
    found = unique_ids.first_repeat(
      ((text.text_id, text.place) for text in again), repeated
    )
    if found:
      text_id, first, second = found
      raise records.RecordError(
        f"{second}: id: {text_id!r} is in {first}, too; give each text an id of"
        " its own."
      )
  return count
