"""The recipe of Hu et al. (2023) goes from the download to its tables."""

import json
import os
import pathlib
import subprocess
import sys

import file_server
import pytest
import test_building

import mlir_jax

PACKAGE = pathlib.Path(mlir_jax.__file__).parents[1]
LANGUAGES = ("en", "fi", "th")
# The shipped recipe with fewer languages, as a user would write it.
PART = f'''"""A part of the languages of hu2023."""
import dataclasses
from mlir_jax.recipes import finding, recipe
_WHOLE = finding.find("hu2023")
RECIPE = dataclasses.replace(
  _WHOLE.recipe,
  config=_WHOLE.config,
  data={{"hu2023": {LANGUAGES!r}, "xquadr": ("en", "th")}},
)
'''


@pytest.mark.slow
def test_one_command_goes_from_the_download_to_both_tables(tmp_path):
  (tmp_path / "part.py").write_text(PART)
  with file_server.serving() as site:
    test_building.add_hu2023(site)
    for language in ("en", "th"):
      path = f"google-research-datasets/lareqa/master/xquad-r/{language}.json"
      site.files[f"/xquadr/{path}"] = json.dumps(
        test_building.squad(language)
      ).encode()
    done = subprocess.run(
      [
        *(sys.executable, "-m", "mlir_jax", "reproduce", "part.py"),
        *("--workdir=run", "--config=hu2023:smoke", f"--mirror={site.url}"),
        *("--config.tokenizer.vocab_size=120", "--config.model.num_layers=1"),
        *("--config.batch.retrieval=4", "--config.batch.parallel=4"),
        "--config.train.self_check=false",
      ],
      cwd=tmp_path,
      env=os.environ | {"no_proxy": "127.0.0.1", "PYTHONPATH": str(PACKAGE)},
      capture_output=True,
      text=True,
    )
  # Nobody has measured its scores.
  assert done.returncode == 3, done.stderr[-2000:]
  for number in range(1, 6):
    assert f"Step {number} of 5: mlir-jax " in done.stdout
  run = tmp_path / "run"
  reports = sorted(
    path.parent.relative_to(run).as_posix() for path in run.rglob("report.md")
  )
  assert reports == [
    f"seed-0/{name}"
    for name in ("evaluate-mrtydi", "evaluate-xquadr", "results")
  ]
  rows = json.loads((run / "reproduce.json").read_text())["rows"]
  measured = {
    (row["table"], row["row"])
    for row in rows
    if row["measure"] == "mrr@100" and row["measured"] is not None
  }
  assert measured == {
    *(("mrtydi", name) for name in LANGUAGES),
    *(("xquadr", name) for name in ("en", "th")),
  }
  assert {row["verdict"] for row in rows} == {"not run"}
