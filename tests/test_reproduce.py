"""A recipe is run where it is not done, and judged language by language."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
import tiny

import mlir_jax
from mlir_jax import config_files, reproduce, workdir
from mlir_jax.evals import rendering as table_rendering
from mlir_jax.recipes import finding, judging, rendering, steps

TESTS = pathlib.Path(__file__).parent
PACKAGE = pathlib.Path(mlir_jax.__file__).parents[1]
DOCS = TESTS.parent / "docs/recipes.md"
GROUPS = {"en": "English", "de": "others", "fi": "others"}
FILE = '''"""A tiny experiment."""
import pathlib
import sys

sys.path.insert(0, {tests!r})
import tiny
from mlir_jax.recipes import recipe


def get_config():
  c = tiny.make_config(pathlib.Path({root!r}))
  c.update_from_flattened_dict({changes!r})
  return c


RECIPE = recipe.Recipe(
  scores=[
    {scores},
  ],
  evaluations={{{evaluations}}},
  seeds={seeds!r},
  hardware="any",
  time="seconds",
  notes=["A note."],
)
'''


def write(path, scores, evaluations="", seeds=(0,), **changes):
  """Writes a recipe that trains on the folder data beside it.

  Args:
    path: The file.
    scores: Its scores, as Python.
    evaluations: Its evaluations, as Python.
    seeds: Its seeds.
    **changes: Fields of the config; "loss__ir__weight" is loss.ir.weight.

  Returns:
    The path.
  """
  path.write_text(
    FILE.format(
      tests=str(TESTS),
      root=str(path.parent / "data"),
      scores=scores,
      evaluations=evaluations,
      seeds=seeds,
      changes={
        name.replace("__", "."): value for name, value in changes.items()
      },
    )
  )
  return path


class Programs:
  """Takes the place of the programs: it writes their tables at once.

  Attributes:
    values: (seed, table) to language to MRR@100.
    status: The exit status of a program that fails, by its number from 1.
    started: The program and the table's folder of each step.
  """

  def __init__(self):
    self.values = {}
    self.status = {}
    self.started = []

  def run(self, step):
    flags = dict(flag.split("=", 1) for flag in step.arguments[1:])
    folder = pathlib.Path(flags["--workdir"])
    seed = int(folder.name.removeprefix("seed-"))
    table = pathlib.Path(flags.get("--output", folder / workdir.RESULTS))
    name = table.name.removeprefix("evaluate-").replace("results", "training")
    self.started.append((step.arguments[0], table))
    if status := self.status.get(len(self.started)):
      return status
    folder.mkdir(parents=True, exist_ok=True)
    if step.arguments[0] == "train":
      c = config_files.load(flags["--config"])
      c.update_from_flattened_dict({"seed": seed})
      (folder / workdir.CONFIG_FILE).write_text(json.dumps(c.to_dict()))
    results = {
      f"test/{language}/mrr@100": value
      for language, value in self.values[seed, name].items()
    }
    table_rendering.write({"step 8": results}, GROUPS, table)
    return 0

  def names(self):
    """Returns the started steps as texts: "train seed-0/results"."""
    return [
      f"{program} {table.parent.name}/{table.name}"
      for program, table in self.started
    ]


@pytest.fixture
def programs(monkeypatch):
  found = Programs()
  monkeypatch.setattr(steps, "run", found.run)
  return found


def start(path, folder, **options):
  """Reproduces a recipe's file; returns the status and reproduce.json."""
  found = finding.find(str(path))
  status = reproduce.reproduce(
    found,
    found.config,
    config_files.load(found.config).to_dict(),
    steps.Places(str(folder), str(folder / "data")),
    **options,
  )
  written = folder / reproduce.FILE
  return status, json.loads(written.read_text()) if written.exists() else None


@pytest.mark.parametrize(
  "expected, measured, status, last",
  [
    (
      {"en": 0.84, "de": 0.5, "others": 0.4},
      {"en": 0.82, "de": 0.52, "fi": 0.3},
      0,
      "Pass: the 3 declared scores are within their tolerance.",
    ),
    (
      {"en": 0.84, "de": 0.5, "fi": 0.3},
      {"en": 0.84, "de": 0.4, "fi": 0.4},
      1,
      "Fail: 2 of the 3 declared scores are out of their tolerance: mrr@100 of"
      " de, fi.",
    ),
    (
      {"en": 0.8, "sw": 0.5},
      {"en": 0.8},
      1,
      "Fail: 1 of the 2 declared scores are out of their tolerance: mrr@100 of"
      " sw.",
    ),
    (
      {"en": None, "de": None},
      {"en": 0.8, "de": 0.5},
      3,
      "Not run: nobody has measured the scores of this recipe, so there is"
      " nothing to compare with. This does not show a reproduction.",
    ),
    (
      {"en": 0.8, "de": None},
      {"en": 0.8, "de": 0.5},
      0,
      "Pass: the 1 declared scores are within their tolerance. Not run, which"
      " is no pass: 1 more.",
    ),
  ],
)
def test_the_status_and_the_last_line_say_what_passes(
  expected, measured, status, last, programs, tmp_path, capsys
):
  path = write(
    tmp_path / "own.py",
    f'recipe.Scores("mrr@100", {expected!r}, tolerance=0.02)',
  )
  programs.values[0, "training"] = measured
  found, written = start(path, tmp_path / "w")
  output = capsys.readouterr().out
  assert (found, output.splitlines()[-1]) == (status, last)
  assert "A note." in output and "any" in output
  verdicts = {row["row"]: row["verdict"] for row in written["rows"]}
  assert verdicts.keys() == expected.keys()
  for name, value in expected.items():
    line = re.search(rf"^  {name} .*$", output, re.MULTILINE)
    assert line and line[0].endswith(f"  {verdicts[name]}")
    assert (verdicts[name] == "not run") == (value is None)
  assert written["verdict"] == ("pass", "fail", "", "not run")[status]


def test_what_is_done_is_not_run_again(programs, tmp_path, capsys):
  scores = (
    'recipe.Scores("mrr@100", {"de": 0.5}, tolerance=0.0),'
    'recipe.Scores("mrr@100", {"de": 0.3}, tolerance=0.0, table="best")'
  )
  path, folder = tmp_path / "own.py", tmp_path / "w"
  write(path, scores, '"best": ["--checkpoint=best"]', seeds=(0, 3))
  for seed, difference in ((0, -0.1), (3, 0.1)):
    programs.values[seed, "training"] = {"de": 0.5 + difference}
    programs.values[seed, "best"] = {"de": 0.3 + difference}
  programs.status[4] = 75  # The last one was asked to stop.
  assert start(path, folder) == (75, None)
  assert "The same command goes on" in capsys.readouterr().err
  of_seed = ["train seed-{}/results", "evaluate seed-{}/evaluate-best"]
  asked = [name.format(seed) for seed in (0, 3) for name in of_seed]
  assert programs.names() == asked

  programs.started.clear()
  status, written = start(path, folder)
  assert status == 0 and programs.names() == asked[3:]
  assert written["rows"][1]["by_seed"] == pytest.approx({"0": 0.2, "3": 0.4})
  assert "means over the seeds 0, 3" in capsys.readouterr().out

  programs.started.clear()
  assert start(path, folder, dry_run=True)[0] == 0
  assert capsys.readouterr().out.count("# It is done.") == 4
  # The user may have run the last command, but before a longer training.
  table = folder / "seed-3/evaluate-best"
  (table / reproduce.FILE).unlink()
  for seconds, steps_taken in ((1, []), (-1, asked[3:])):
    os.utime(
      table / "report.json",
      times=(time.time() + seconds, time.time() + seconds),
    )
    results = folder / "seed-3/results/report.json"
    os.utime(results, times=(time.time(), time.time()))
    assert start(path, folder)[0] == 0 and programs.names() == steps_taken
  programs.started.clear()
  write(path, scores, '"best": ["--checkpoint=last"]', seeds=(0, 3))
  programs.status[1] = 1
  assert start(path, folder, seeds=[3]) == (1, None)  # No verdict of before.
  assert programs.names() == asked[3:]


def test_a_run_of_another_config_is_not_taken_for_done(programs, tmp_path):
  path, scores = tmp_path / "own.py", 'recipe.Scores("mrr@100", {"de": None})'
  programs.values[0, "training"] = {"de": 0.5}
  start(write(path, scores), tmp_path / "w")
  # The training refuses it, and says why.
  start(write(path, scores, loss__semantic__weight=0.5), tmp_path / "w")
  assert programs.names() == ["train seed-0/results"] * 2


def test_proposed_scores_pass_with_each_of_their_seeds(
  programs, tmp_path, capsys
):
  names = dict.fromkeys(["en", "de"])
  path = write(
    tmp_path / "own.py",
    f'recipe.Scores("mrr@100", {names!r}),'
    ' recipe.Scores("mrr@100", {"others": None})',
    seeds=(0, 1, 2),
  )
  for seed, value in enumerate((0.31, 0.3, 0.35)):
    programs.values[seed, "training"] = {"en": 0.8, "de": value, "fi": 0.2}
  status, _ = start(path, tmp_path / "w", propose=True)
  proposed = re.findall(
    r"^  recipe\.Scores\(\n.*?^  \),$", capsys.readouterr().out, re.M | re.S
  )
  assert status == 3 and len(proposed) == 2
  # 3 x 0.0265 x sqrt(4 / 3), and half of that for the mean of two languages.
  assert "tolerance=0.095," in proposed[0] and '"de": 0.320,' in proposed[0]
  assert "tolerance=0.050," in proposed[1]
  write(path, "\n".join(proposed).rstrip(","))
  for seed in (0, 1, 2):
    assert start(path, tmp_path / "w", seeds=[seed])[0] == 0


@pytest.mark.parametrize(
  "change, message",
  [
    (('"""A tiny', 'x = 1 / 0\n"""A tiny'), "own.py:1: ZeroDivisionError"),
    (('"""A tiny experiment."""', ""), "own.py: .*first line must say"),
    (("RECIPE =", "OTHER ="), "own.py: .*defines no RECIPE"),
    (("get_config", "other"), "own.py: .*defines no function get_config"),
    (("tolerance=0.02", ""), r"own.py:\d+: .*tolerance is None"),
    (("tolerance=0.02", "tolerance=-1"), "tolerance is -1"),
    (("0.5}", "'0.5'}"), r"expected\['de'\] is '0.5'"),
    (("tolerance=0.02", "tolerance=0.02, table='x'"), "no table 'x'; there"),
    (("evaluations={}", "evaluations={'a': '--x'}"), "a list of flags"),
    (("evaluations={}", "evaluations={'a': ['x']}"), "each as --NAME=VALUE"),
    (("evaluations={}", "evaluations={'a': ['--output=b']}"), "leave it out"),
    (("evaluations={}", "evaluations={'a-b': []}"), "'a-b' cannot be a name"),
    (("seeds=(0,)", "seeds=()"), "seeds is empty"),
    (("seeds=(0,)", "seeds=(1, 1)"), "a seed is there twice"),
    (("seeds=(0,)", "settings={'seed': 1}"), "give it in seeds"),
    (('hardware="any"', 'hardware=""'), "hardware is empty"),
    (('time="seconds"', 'tim="seconds"'), "unexpected keyword argument 'tim'"),
  ],
)
def test_a_wrong_recipe_is_refused_with_its_file(change, message, tmp_path):
  path = write(
    tmp_path / "own.py", 'recipe.Scores("mrr@100", {"de": 0.5}, tolerance=0.02)'
  )
  content = path.read_text()
  assert change[0] in content
  path.write_text(content.replace(*change))
  with pytest.raises(ValueError, match=message):
    finding.find(str(path))


def test_shipped_recipes_declare_scores_or_are_not_run(capsys):
  found = {each.name: each for each in finding.shipped()}
  assert {"quickstart", "debian", "hu2023"} <= found.keys()
  listed = finding.to_text(list(found.values()))
  for each in found.values():
    assert each.summary in listed and each.recipe.hardware in listed
    rows = judging.judge(
      each.recipe,
      {0: {scores.table: {} for scores in each.recipe.scores}},
    )
    # A table without values never passes.
    assert judging.overall(rows) != judging.Verdict.PASS
    has_scores = any(row.expected is not None for row in rows)
    assert ("not run;" in listed.split(each.summary)[1].split("\n")[1]) == (
      not has_scores
    )
  with pytest.raises(ValueError, match="Did you mean quickstart"):
    finding.find("quickstrat")


def test_hu2023_shows_published_means_of_all_its_languages():
  found = finding.find("hu2023").recipe
  text = rendering.baselines(found.baselines)
  means = {
    measure: {
      each.system: re.search(
        rf"^{re.escape(each.system)} .* (\S+)$", part, re.MULTILINE
      )[1]
      for each in found.baselines
    }
    for measure, part in zip(
      ("mrr@100", "r@100"), text.split("\nr@100"), strict=True
    )
  }
  # The published means; mDPR's own mean of MRR leaves English out.
  assert means["mrr@100"] == {
    "BM25 (tuned)": "0.333",
    "BM25 (pyserini)": "0.338",
    "mDPR, NQ": "0.232",
    "mDPR, MS MARCO": "0.333",
  }
  assert means["r@100"] == {
    "BM25 (tuned)": "0.758",
    "BM25 (pyserini)": "0.745",
    "mDPR, NQ": "0.594",
    "mDPR, MS MARCO": "0.711",
  }
  for baseline in found.baselines:
    assert f"{baseline.system}: {baseline.source}" in text


def dry_run(name, tmp_path, *changes, mirror=""):
  """Returns the steps of a recipe, printed by the program."""
  done = subprocess.run(
    [
      *(sys.executable, "-m", "mlir_jax", "reproduce", str(name)),
      *(f"--workdir={tmp_path}/w", f"--data={tmp_path}/d", "--dry_run"),
      *changes,
      *([f"--mirror={mirror}"] if mirror else []),
    ],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(PACKAGE)},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()


@pytest.mark.slow
def test_a_dry_run_prints_each_command_with_the_users_changes(tmp_path):
  printed = dry_run(
    *("hu2023", tmp_path, "--config.loss.language.weight=0.5"),
    *("--config.train.steps=9",),
    mirror="http://m/",
  )
  download = [f"mlir-jax download {name}" for name in ("hu2023", "xquadr")]
  assert printed[:2] == [
    f"{download[0]} --output={tmp_path}/d --mirror=http://m",
    f"{download[1]} --output={tmp_path}/d --mirror=http://m/xquadr",
  ]
  train, *evaluations = printed[2:]
  assert train.startswith("mlir-jax train --config=hu2023 ")
  assert set(train.split()) >= {
    f"--config.data.root={tmp_path}/d/hu2023",
    "--config.loss.language.weight=0.5",
    "--config.train.steps=9",
    "--config.seed=0",
    f"--workdir={tmp_path}/w/seed-0",
  }
  assert [f"--root={tmp_path}/d/xquadr" in each for each in evaluations] == [
    False,
    True,
  ]
  assert not list(tmp_path.iterdir())
  if DOCS.is_file():
    example = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    assert example
    (tmp_path / "mine.py").write_text(example[1])
    printed = dry_run("mine.py", tmp_path)
    assert len(printed) == 2 + 3 * 2
    assert f"--output={tmp_path}/d --languages=de,en,ru" in printed[1]
    assert "--config.data.tatoeba_root= " in printed[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_end_in_its_own_way(tmp_path, number):
  (tmp_path / "mlir_jax").mkdir()
  (tmp_path / "mlir_jax/__init__.py").touch()
  # A program in place of ours.
  (tmp_path / "mlir_jax/__main__.py").write_text(
    """
import pathlib, signal, sys, time
def save(*_):
  time.sleep(0.6)
  pathlib.Path("saved").write_text("")
  sys.exit(0)
signal.signal(int(sys.argv[1]), save)
print("ready", flush=True)
time.sleep(60)
"""
  )
  code = f"""
import os, sys
sys.path.insert(0, {str(PACKAGE)!r})
from mlir_jax.recipes import steps
sys.exit(steps.run(steps.Step(["{int(number)}"])))
"""
  with subprocess.Popen(
    [sys.executable, "-c", code],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(tmp_path)},
    stdout=subprocess.PIPE,
  ) as started:
    assert started.stdout
    assert started.stdout.readline() == b"ready\n"
    started.send_signal(number)
    assert started.wait() == 128 + number
  assert (tmp_path / "saved").exists()


# A run of seconds that learns the English pairs by heart.
LEARNS = {
  "batch__masked": 0,
  "batch__monolingual": 0,
  "batch__parallel": 64,
  "batch__retrieval": 64,
  "loss__language__weight": 0.0,
  "loss__masked_lm__weight": 0.0,
  "model__dropout": 0.0,
  "optim__learning_rate": 5e-3,
  "train__steps": 100,
  "train__checkpoint_every": 100,
  "eval__every": 100,
}


def run_for_real(path, folder, *changes):
  done = subprocess.run(
    [
      *(sys.executable, "-m", "mlir_jax.reproduce", str(path)),
      f"--workdir={folder}",
      *changes,
    ],
    cwd=path.parent,
    env=os.environ | {"PYTHONPATH": str(PACKAGE), "JAX_NUM_CPU_DEVICES": "1"},
    capture_output=True,
    text=True,
    timeout=600,
  )
  written = json.loads((folder / reproduce.FILE).read_text())
  return done.returncode, done.stdout.splitlines(), written


@pytest.mark.slow
def test_a_recipe_passes_and_with_another_loss_weight_fails_by_language(
  tmp_path,
):
  tiny.write_folder(tmp_path / "data")
  path, folder = tmp_path / "own.py", tmp_path / "w"

  def declare(expected):
    scores = f'recipe.Scores("mrr@100", {expected!r}, tolerance=0.02)'
    write(path, scores, **LEARNS)

  declare({"en": None, "de": None})
  status, lines, written = run_for_real(path, folder)
  assert (status, lines[-1][:8]) == (3, "Not run:")
  measured = {row["row"]: row["measured"] for row in written["rows"]}
  assert measured["en"] > 0.5

  declare(measured)
  status, lines, _ = run_for_real(path, folder)
  assert (status, lines[-1][:5]) == (0, "Pass:")
  assert any(line.startswith("Step 1 of 1 is done: ") for line in lines)

  change = "--config.loss.ir.weight=0"
  status, lines, written = run_for_real(path, tmp_path / "other", change)
  assert status == 1
  assert re.fullmatch(r"Fail: .*: mrr@100 of en(, de)?\.", lines[-1])
  assert f"Changed on the command line: {change}.0" in "\n".join(lines)
  assert written["changed"] == [f"{change}.0"]
