"""Brings a corpus to this machine and lays it out as a collection.

In the output folder, downloads/CORPUS has the public files, and NAME has the
collection.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence

from mlir_jax.corpora import catalog, corpus, downloads
from mlir_jax.storage import copies, locations, reading, writing

DOWNLOADS = "downloads"
# In the folder of a collection; collections do not read hidden files.
_REQUEST = ".corpus.json"


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is brought, and to where.

  Attributes:
    name: Of the collection's folder.
    parts: Each corpus with what is asked of it.
    raw: The folder of the public files, on this machine.
    folder: The folder of the collection, on this machine.
    url: Its URL, if it is wanted on object storage; or "".
  """

  name: str
  parts: tuple[tuple[corpus.Corpus, corpus.Request], ...]
  raw: pathlib.Path
  folder: pathlib.Path
  url: str = ""

  def list_files(self) -> Iterator[downloads.File]:
    """Yields the files of all parts, with their paths in `raw`."""
    for part, request in self.parts:
      for file in part.list_files(request, self.raw / part.name):
        yield dataclasses.replace(file, path=f"{part.name}/{file.path}")

  def describe(self) -> dict:
    """Returns what identifies the collection, as JSON."""
    return {
      "corpora": [
        {
          "name": part.name,
          "variant": request.variant,
          "languages": list(request.languages),
        }
        for part, request in self.parts
      ]
    }


def plan(
  name: str, output: str, languages: Sequence[str] = (), mirror: str = ""
) -> Plan:
  """Plans how to bring a corpus; nothing is downloaded yet.

  Args:
    name: A name of `catalog.CORPORA`; a variant may follow after a colon.
    output: The folder of `DOWNLOADS` and of the collections. On object storage,
      the collection is made on this machine, then copied there.
    languages: Those that are wanted; () for all.
    mirror: An address that replaces the public one. The files of a mixture's
      parts are below MIRROR/PART.

  Raises:
    ValueError: if there is no such corpus, variant or language.
  """
  stem, colon, variant = name.partition(":")
  found = catalog.CORPORA.get(stem)
  if not found:
    raise ValueError(
      f"{name}: no corpus has this name; there are"
      f" {', '.join(catalog.CORPORA)}."
    )
  is_mixture = isinstance(found, corpus.Mixture)
  variants = ("",) if is_mixture else found.variants
  if colon and variant not in variants[1:] + variants[: bool(variants[0])]:
    others = ", ".join(f"{stem}:{each}" for each in variants if each)
    raise ValueError(
      f"{name}: {stem} has no variant {variant!r}"
      + (f"; there are {others}." if others else ".")
    )
  variant = variant or variants[0]
  for language in languages:
    if language not in found.languages:
      raise ValueError(
        f"--languages: {stem} has no {language!r}; it has"
        f" {', '.join(found.languages)}."
      )
  # In one order, so that equal requests give equal collections.
  wanted = tuple(
    each for each in found.languages if not languages or each in languages
  )
  mirror = mirror.rstrip("/")
  if is_mixture:
    parts = tuple(
      (
        part,
        corpus.Request(
          f"{mirror}/{part.name}" if mirror else part.base,
          part.variants[0],
          _of_part(found, part, wanted),
        ),
      )
      for part in found.parts
    )
  else:
    request = corpus.Request(mirror or found.base, variant, wanted)
    parts = ((found, request),)
  folder_name = stem if variant == variants[0] else f"{stem}-{variant}"
  root = locations.absolute(output)
  local = pathlib.Path(copies.local_copy(root))
  return Plan(
    folder_name,
    parts,
    local / DOWNLOADS,
    local / folder_name,
    f"{root}/{folder_name}" if locations.is_url(root) else "",
  )


def _of_part(
  mixture: corpus.Mixture, part: corpus.Corpus, wanted: Sequence[str]
) -> tuple[str, ...]:
  """Returns the languages of a part of a mixture.

  English is always one of them: the pairs and the dev test are English.

  Raises:
    ValueError: if the part has none of the languages.
  """
  found = tuple(
    each for each in part.languages if each in wanted or each == "en"
  )
  if not found:
    raise ValueError(
      f"--languages: {part.name}, a part of {mixture.name}, has none of"
      f" {', '.join(wanted)}; add one of {', '.join(part.languages)}."
    )
  return found


def bring(planned: Plan) -> list[str]:
  """Downloads what is missing, and builds the collection if it is not there.

  Returns:
    Notes, a line each.

  Raises:
    ValueError: if a file cannot be downloaded or read, or the folder holds
      something else; it says what to do.
  """
  folder = planned.folder
  if folder.exists() and any(folder.iterdir()):
    _check_same(planned)
    notes = [f"{folder} is there already; delete it to build it again."]
  else:
    downloads.fetch(planned.list_files(), planned.raw)
    notes = _build(planned)
  if planned.url:
    copies.upload_folder(str(folder), planned.url, last=_REQUEST)
  return notes


def _build(planned: Plan) -> list[str]:
  notes = []
  with writing.folder_aside(planned.folder) as aside:
    for part, request in planned.parts:
      print(f"Building {planned.folder} from {part.name}.")
      notes += part.build(request, planned.raw / part.name, aside)
    (aside / "README.md").write_text(_readme(planned, notes), encoding="utf-8")
    text = json.dumps(planned.describe(), indent=2) + "\n"
    (aside / _REQUEST).write_text(text, encoding="utf-8")
  return notes


def _check_same(planned: Plan) -> None:
  """Refuses a folder that this program did not make, or made otherwise."""
  path = planned.folder / _REQUEST
  if not path.exists():
    raise ValueError(
      f"{planned.folder} is not empty, and this program did not make it: give"
      " another --output."
    )
  if reading.read_json(path) != planned.describe():
    raise ValueError(
      f"{planned.folder} was built with other languages or another variant"
      f" ({path} says which): delete it, or give another --output."
    )


def _readme(planned: Plan, notes: Sequence[str]) -> str:
  lines = [f"# {planned.name}", ""]
  for part, request in planned.parts:
    lines += [f"- {part.name}: {part.summary}. From {request.base}."]
    lines += [f"  Licence: {part.licence}."]
  return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])
