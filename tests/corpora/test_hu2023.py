"""The recipe of Hu et al. (2023) goes from the download to its tables."""

import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys

import file_server
import pytest
import test_building

from mlir_jax import config_files


@pytest.mark.slow
def test_one_command_goes_from_the_download_to_both_tables(tmp_path):
  with file_server.serving() as site:
    test_building.add_hu2023(site)
    for language in ("en", "th"):
      path = f"google-research-datasets/lareqa/master/xquad-r/{language}.json"
      site.files[f"/xquadr/{path}"] = json.dumps(
        test_building.squad(language)
      ).encode()
    recipe = config_files.shipped()["hu2023"]
    done = subprocess.run(
      [
        *(sys.executable, str(recipe), "--workdir=run"),
        *("--config=hu2023:smoke", "--languages=en,fi,th"),
        f"--mirror={site.url}",
        *("--config.tokenizer.vocab_size=120", "--config.model.num_layers=1"),
        *("--config.batch.retrieval=4", "--config.batch.parallel=4"),
        "--config.train.self_check=false",
      ],
      cwd=tmp_path,
      env=os.environ | {"no_proxy": "127.0.0.1"},
      capture_output=True,
      text=True,
    )
  assert done.returncode == 0, done.stderr[-2000:]
  reports = sorted(
    path.relative_to(tmp_path / "run").as_posix()
    for path in pathlib.Path(tmp_path).rglob("report.md")
  )
  assert len(reports) == 2 and any("xquadr" in name for name in reports)
  assert done.stdout.count("mlir-jax ") >= 4


@pytest.mark.parametrize(
  "languages, commands, xquadr",
  [
    ("", ["download", "download", "train", "evaluate"], None),
    ("fi,de", ["download", "download", "train", "evaluate"], "de"),
    ("fi,sw", ["download", "train"], None),
  ],
)
def test_the_steps_are_those_of_the_languages(
  monkeypatch, languages, commands, xquadr
):
  recipe = runpy.run_path(str(config_files.shipped()["hu2023"]))
  steps = []
  monkeypatch.setitem(recipe["main"].__globals__, "run", steps.append)
  arguments = ["hu2023.py", "--workdir=W", f"--languages={languages}"]
  monkeypatch.setattr(
    sys, "argv", [*arguments, "--mirror=http://m", "--config.train.steps=9"]
  )
  recipe["main"]()
  steps = [step[3:] for step in steps]  # Without "python -m mlir_jax".
  assert [step[0] for step in steps] == commands
  of_training = next(step for step in steps if step[0] == "train")
  assert "--config.train.steps=9" in of_training
  for step in steps[: len(commands) - 2]:
    asked = {"hu2023": languages, "xquadr": xquadr}[step[1]]
    given = [each for each in step if each.startswith("--languages=")]
    assert given == ([f"--languages={asked}"] if asked else [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_end_in_its_own_way(tmp_path, number):
  step = """
import pathlib, signal, sys, time
def save(*_):
  time.sleep(0.6)
  pathlib.Path("saved").write_text("")
  sys.exit(0)
signal.signal(int(sys.argv[1]), save)
print("ready", flush=True)
time.sleep(60)
"""
  recipe = config_files.shipped()["hu2023"]
  code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("recipe", {str(recipe)!r})
recipe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipe)
sys.exit(recipe.run([sys.executable, "-c", {step!r}, "{int(number)}"]))
"""
  with subprocess.Popen(
    [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE
  ) as started:
    assert started.stdout.readline() == b"ready\n"
    started.send_signal(number)
    assert started.wait() == 128 + number
  assert (tmp_path / "saved").exists()
