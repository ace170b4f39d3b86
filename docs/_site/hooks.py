"""Builds the pages that are made from other files, and mends links to them.

A page in docs/ links to files by their place in the repository, so its links
work on GitHub, too. The site has pages of docs/, and of the two files in
`PAGES`. A link to another file of the repository becomes plain text.
"""

import os
import pathlib
import posixpath
import re
import sys

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure import files as files_lib
from mkdocs.structure import pages as pages_lib

sys.path.insert(0, os.path.dirname(__file__))
import settings  # Next to this file.

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A file of the repository, to its page.
PAGES = {
  "launch/README.md": "launch.md",
  "benchmarks/README.md": "benchmarks.md",
}
_SETTINGS = "<!-- settings -->"


def on_files(files: files_lib.Files, config: MkDocsConfig) -> files_lib.Files:
  """Adds the pages of files that are not in docs/."""
  for source, page in PAGES.items():
    text = (ROOT / source).read_text(encoding="utf-8")
    files.append(files_lib.File.generated(config, page, content=text))
  return files


def on_page_markdown(
  markdown: str,
  page: pages_lib.Page,
  config: MkDocsConfig,
  files: files_lib.Files,
) -> str:
  """Fills in the settings, and mends links."""
  del files
  if _SETTINGS in markdown:
    found = settings.to_markdown(settings.read(ROOT / "mlir_jax"))
    markdown = markdown.replace(_SETTINGS, found)
  sources = {made: source for source, made in PAGES.items()}
  name = page.file.src_uri
  folder = posixpath.dirname(sources.get(name, f"docs/{name}"))

  def mend(match: re.Match[str]) -> str:
    label, target = match.groups()
    path, mark, anchor = target.partition("#")
    if not path or re.match("[a-z]+:", path):
      return match[0]
    path = posixpath.normpath(posixpath.join(folder, path))
    made = PAGES.get(path) or path.removeprefix("docs/")
    if made != path:
      return f"[{label}]({made}{mark}{anchor})"
    if not (ROOT / path).exists():
      return match[0]  # mkdocs says what is wrong.
    if config.repo_url:
      return f"[{label}]({config.repo_url.rstrip('/')}/blob/main/{path})"
    return label

  return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", mend, markdown)
