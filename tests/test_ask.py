"""Ask answers typed queries on a terminal, and scripts in lines of JSON."""

import json
import os
import pathlib
import pty
import re
import select
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import sentence_models
import tiny

import mlir_jax

ROOT = pathlib.Path(mlir_jax.__file__).parents[1]
SECONDS = 200


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Returns a model's folder and a collection in English and German."""
  folder = tmp_path_factory.mktemp("ask")
  sentence_models.save(folder / "model")
  return folder / "model", tiny.write_folder(folder / "data", pairs=40)


def start(arguments, **settings):
  return subprocess.Popen(
    [sys.executable, "-m", "mlir_jax.ask", *map(str, arguments)],
    env=os.environ
    | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    | {"JAX_NUM_CPU_DEVICES": "1", "COLUMNS": "60", "TERM": "dumb"},
    **settings,
  )


def read_until(terminal, wanted, seen=""):
  """Reads a terminal until a text is there; returns all that it showed."""
  end = time.monotonic() + SECONDS
  while wanted not in seen:
    assert select.select([terminal], [], [], end - time.monotonic())[0], seen
    seen += os.read(terminal, 65_536).decode()
  return seen


@pytest.mark.slow
def test_a_user_types_queries_and_sees_passages_of_all_languages(made):
  model, root = made
  terminal, inside = pty.openpty()
  process = start(
    [f"--model={model}", f"--root={root}", "--k=3"],
    **dict.fromkeys(("stdin", "stdout", "stderr"), inside),
  )
  os.close(inside)
  try:
    shown = read_until(terminal, "Type a query; Ctrl-D ends.\r\n> ")
    assert f"80 passages in de, en, encoded by {model}." in shown
    os.write(terminal, b"\n" + tiny.german("apple river").encode() + b"\n")
    shown = read_until(terminal, "\r\n\r\n> ")
    assert re.search(r"\n 1\.  0\.\d{4}  (de|en)  \[d\d+\]  \w+", shown)
    assert shown.count("\r\n    ") >= 3 and " 3. " in shown
    os.write(terminal, b"\x04")  # Ctrl-D
    assert process.wait(SECONDS) == 0
  finally:
    process.kill()
    process.wait()
    os.close(terminal)


@pytest.mark.slow
def test_a_script_gets_a_line_of_json_for_each_query_until_it_stops(made):
  model, root = made
  process = start(
    [f"--model={model}", f"--root={root}", "--json", "--language=de", "--k=7"],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  loaded = mlir_jax.load(str(model), batch_size=8)
  try:
    for query in ("apple rivér", "stone"):
      # The answer comes before the next query is there.
      process.stdin.write(f"\n {query} \n".encode())
      process.stdin.flush()
      line = json.loads(process.stdout.readline())
      assert line["query"] == query
      results = line["results"]
      assert [each["rank"] for each in results] == [*range(1, 8)]
      assert {each["language"] for each in results} == {"de"}
      vectors = [
        loaded.encode([query])[0],
        *loaded.encode(
          [each["text"] for each in results],
          "passage",
          [each["title"] for each in results],
        ),
      ]
      scores = [each["score"] for each in results]
      assert scores == sorted(scores, reverse=True)
      np.testing.assert_allclose(
        scores, np.stack(vectors[1:]) @ vectors[0], atol=1e-5
      )
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 130
    assert process.stdout.read() == b""
    assert b"Traceback" not in process.stderr.read()
  finally:
    process.kill()
    process.communicate()
