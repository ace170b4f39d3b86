"""Text files become vectors, line by line, and nothing else is needed."""

import gzip
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import sentence_models

import mlir_jax
from mlir_jax import encode

BLOCKED = """
import sys
for name in ("tensorflow", "tensorflow_datasets", "torch"):
  sys.modules[name] = None
import runpy
sys.argv[0] = "mlir_jax.encode"
runpy.run_module("mlir_jax.encode", run_name="__main__", alter_sys=True)
"""
PACKAGE = pathlib.Path(encode.__file__).parents[1]


def call(*arguments, stdin=b""):
  done = subprocess.run(
    [sys.executable, "-c", BLOCKED, *map(str, arguments)],
    input=stdin,
    capture_output=True,
    timeout=300,
    env=os.environ
    | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(PACKAGE)}
    | {"JAX_NUM_CPU_DEVICES": "2"},
  )
  return done.returncode, done.stdout.decode(), done.stderr.decode()


def lengths(texts):
  """Stands for a model: two numbers a text."""
  return np.array([[len(text), 1] for text in texts], np.float32)


@pytest.mark.slow
def test_row_n_is_the_vector_of_line_n_without_tensorflow(tmp_path):
  model, output = tmp_path / "model", tmp_path / "out" / "vectors.npy"
  sentence_models.save(model)
  packed = tmp_path / "more.txt.gz"
  packed.write_bytes(gzip.compress("winter\n\n größe ".encode()))
  code, printed, error = call(
    f"--model={model}",
    "--batch_size=4",
    *("-", packed),
    *("--role=passage", f"--output={output}"),
    stdin=b"\xef\xbb\xbfriver stone\r\napple\n",
  )
  assert code == 0, error
  texts = ["river stone", "apple", "winter", "", "größe"]
  expected = mlir_jax.load(str(model), batch_size=8).encode(texts, "passage")
  found = np.load(output)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert printed.splitlines()[-1] == (
    f"Wrote {output}: float32 [5, 24], encoded as passage: prefix='river: ',"
    " max_length=20, pooling=mean, normalize=True."
  )
  assert [path.name for path in output.parent.iterdir()] == ["vectors.npy"]


@pytest.mark.slow
def test_wrong_arguments_are_named(tmp_path):
  given = ("--model=m", "--role=query", f"--output={tmp_path}/v.npy")
  code, _, error = call(*given)
  assert code == 2 and 'Give the files of texts, or "-"' in error
  code, _, error = call(*given, tmp_path / "none.txt")
  assert code == 2 and f"There is no file {tmp_path}/none.txt" in error
  texts = tmp_path / "texts.txt"
  texts.write_text("river\n")
  code, _, error = call(*given[:2], f"--output={texts}", texts)
  assert code == 2 and "is one of the files of texts" in error
  assert texts.read_text() == "river\n"
  code, _, error = call(*given[:2], f"--output={tmp_path}", texts)
  assert code == 2 and "is no file" in error
  code, _, error = call(*given[:2], f"--output={texts}/v.npy", texts)
  assert code == 2 and "texts.txt" in error
  assert "Traceback" not in error


def test_many_chunks_give_one_array(tmp_path, monkeypatch):
  monkeypatch.setattr(encode, "CHUNK", 3)
  (tmp_path / "a.txt").write_text("a\nbb\nccc\ndddd")
  (tmp_path / "b.txt").write_text("\n\nfffffff\n")
  seen = []

  def embed(texts):
    seen.append(len(texts))
    return lengths(texts)

  output = tmp_path / "v.npy"
  paths = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
  assert encode.encode_files(embed, paths, str(output)) == (7, 2)
  assert seen == [3, 3, 1]
  assert np.load(output)[:, 0].tolist() == [1, 2, 3, 4, 0, 0, 7]


def test_a_bad_line_is_named_and_leaves_the_old_output(tmp_path):
  path, output = tmp_path / "bad.txt", tmp_path / "v.npy"
  path.write_bytes(b"good\nb\xffd\n")
  np.save(output, np.zeros((2, 2)))
  before = output.read_bytes()
  with pytest.raises(ValueError) as error:
    encode.encode_files(lengths, [str(path)], str(output))
  assert str(error.value).startswith(f"{path}:2: text: is not UTF-8")
  assert "skip" not in str(error.value)  # A skipped line would move rows.
  path.write_text("")
  with pytest.raises(ValueError, match="There are no texts in"):
    encode.encode_files(lengths, [str(path)], str(output))
  assert output.read_bytes() == before
  assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.txt", "v.npy"]
