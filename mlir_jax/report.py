"""Shows runs side by side, as one page of HTML for a browser.

python -m mlir_jax.report --output=report.html --paper=FOLDER W1 W2

W is the folder of a run, or a folder that mlir_jax.evaluate has written. Runs
that differ only in the seed are one line, with an interval over the seeds. The
page needs no network. A paper takes figures (PNG) and tables (Markdown) from
the folder of --paper. It needs plotly: pip install mlir_jax[report].
"""

import os
from collections.abc import Sequence

from mlir_jax.command_line import program, shared_flags


def report(folders: Sequence[str], output: str, paper: str = "") -> str:
  """Makes the report of runs.

  Args:
    folders: Folders of runs, or of results.
    output: The HTML file.
    paper: The folder of the figures and tables for a paper; "" for none.

  Returns:
    A sentence about what was written.

  Raises:
    ImportError: if a library of the page is not installed.
    ValueError: if a folder or a file in it cannot be read, or nothing can be
      written at the output.
  """
  from mlir_jax.reporting import page

  page.require()
  from mlir_jax import config, workdir
  from mlir_jax.reporting import content as content_lib
  from mlir_jax.reporting import folders as folders_lib
  from mlir_jax.reporting import paper as paper_lib
  from mlir_jax.reporting import variants
  from mlir_jax.storage import locations, writing

  output = locations.absolute(output)
  if os.path.isdir(output):
    raise ValueError(f"--output={output} is a folder: name a file.")
  locations.check_output(os.path.dirname(output), f"--output={output}")
  if paper:
    paper = locations.absolute(paper)
    locations.check_output(paper, f"--paper={paper}")
  defaults = workdir.flatten(config.default().to_dict())
  found = variants.group(folders_lib.read(folders), defaults)
  content = content_lib.gather(found, defaults)
  made = page.make(content).encode()
  written = f"Wrote {output}, {len(made) / 1e6:.1f} MB"
  if paper:
    names = paper_lib.write(content, paper)
    written += f", and {len(names)} files in {paper}"
  writing.write_aside(output, made)
  return f"{written}."


def main(files: Sequence[str]):
  """Makes the report that the command line names."""
  if not files:
    raise ValueError("Name the folders of runs; --help shows an example.")
  print(report(files, _OUTPUT.value, _PAPER.value or ""))


if __name__ == "__main__":
  _OUTPUT = shared_flags.define_path("output", "The HTML file.")
  _PAPER = shared_flags.define_path(
    "paper", "A folder for figures (PNG) and tables (Markdown)."
  )
  program.start(main, required=("output",), takes_files=True)
