"""Text files become vectors, line by line, without tensorflow or torch."""

import gzip
import itertools
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import sentence_models

import mlir_jax
from mlir_jax.retrieval import line_vectors, vector_folder

BLOCKED = """
import sys
for name in ("tensorflow", "tensorflow_datasets", "torch"):
  sys.modules[name] = None
import runpy
sys.argv[0] = "mlir_jax.encode"
runpy.run_module("mlir_jax.encode", run_name="__main__", alter_sys=True)
"""
PACKAGE = pathlib.Path(mlir_jax.__file__).parents[1]


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
  """A model's substitute: two numbers per text, three texts at a time."""
  texts = iter(texts)
  while some := list(itertools.islice(texts, 3)):
    yield np.array([[len(text), 1] for text in some], np.float32)


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
    stdin=b"\xef\xbb\xbfriver stone\r\napple\n" + b"cloud " * 30 + b"\n",
  )
  assert code == 0, error
  texts = ["river stone", "apple", "cloud " * 30, "winter", "", "größe"]
  loaded = mlir_jax.load(str(model), batch_size=8)
  expected = loaded.text_encoder.encode(loaded.params, "passage", texts)
  found = np.load(output)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert printed.splitlines()[-2:] == [
    "passage texts cut to 20 tokens: 1 of 6 (16.7%)",
    f"Wrote {output}: float32 [6, 24], encoded as passage: prefix='river: ',"
    " max_length=20, pooling=mean, normalize=True.",
  ]
  assert [path.name for path in output.parent.iterdir()] == ["vectors.npy"]


@pytest.mark.slow
def test_a_collection_becomes_a_folder_without_tensorflow(tmp_path):
  model, output = tmp_path / "model", tmp_path / "index"
  sentence_models.save(model)
  words = ["river", "stone", "apple", "winter", "cloud"] * 8
  records = [
    {"_id": f"d{n}", "title": words[n - 1], "text": " ".join(words[:n])}
    for n in range(1, 30)
  ]
  docs = tmp_path / "corpus.jsonl"
  docs.write_text("".join(f"{json.dumps(record)}\n" for record in records))
  given = (f"--model={model}", "--role=passage", f"--output={output}", docs)
  code, printed, error = call(*given)
  assert code == 0, error
  found = vector_folder.read(output)
  assert list(found.ids) == [record["_id"] for record in records]
  loaded = mlir_jax.load(str(model))
  with pytest.warns(UserWarning, match="passage texts cut to 20 tokens") as cut:
    expected = loaded.encode(
      [record["text"] for record in records],
      "passage",
      [record["title"] for record in records],
    )
  np.testing.assert_allclose(found.blocks[0], expected, atol=1e-6)
  assert found.contract == loaded.contract
  assert printed.splitlines() == [
    str(cut[0].message),
    f"Wrote {output}: float32 [29, 24] with ids, in 1 shard, encoded as"
    " passage: prefix='river: ', max_length=20, pooling=mean, normalize=True.",
  ]
  code, printed, error = call(*given)
  assert code == 0 and "is complete: nothing is encoded." in printed, error
  code, _, error = call(*given, "--dtype=float16")
  assert code == 2 and "\n  dtype: 'float16' now, 'float32' there" in error


@pytest.mark.slow
def test_wrong_arguments_are_named(tmp_path):
  given = ("--model=m", "--role=query", f"--output={tmp_path}/v.npy")
  code, _, error = call(*given)
  assert code == 2 and 'Give the files of texts ("-" for' in error
  code, _, error = call(*given, tmp_path / "none.txt")
  assert code == 2 and f"There is no file {tmp_path}/none.txt" in error
  texts = tmp_path / "texts.txt"
  texts.write_text("river\n")
  code, _, error = call(*given[:2], f"--output={texts}", texts)
  assert code == 2 and "is one of the files of texts" in error
  assert texts.read_text() == "river\n"
  code, _, error = call(*given[:2], f"--output={tmp_path}", texts)
  assert code == 2 and "holds other files (texts.txt)" in error
  (tmp_path / "folder.npy").mkdir()
  code, _, error = call(*given[:2], f"--output={tmp_path}/folder.npy", texts)
  assert code == 2 and "is not a file" in error
  code, _, error = call(*given[:2], f"--output={texts}/v.npy", texts)
  assert code == 2 and "texts.txt" in error
  assert "Traceback" not in error


def test_many_chunks_give_one_array(tmp_path):
  (tmp_path / "a.txt").write_text("a\nbb\nccc\ndddd")
  (tmp_path / "b.txt").write_text("\n\nfffffff\n")
  output = tmp_path / "v.npy"
  paths = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
  assert line_vectors.encode_files(lengths, paths, str(output)) == (7, 2)
  assert np.load(output)[:, 0].tolist() == [1, 2, 3, 4, 0, 0, 7]


def test_a_bad_line_is_named_and_leaves_the_old_output(tmp_path):
  path, output = tmp_path / "bad.txt", tmp_path / "v.npy"
  path.write_bytes(b"good\nb\xffd\n")
  np.save(output, np.zeros((2, 2)))
  before = output.read_bytes()
  with pytest.raises(ValueError) as error:
    line_vectors.encode_files(lengths, [str(path)], str(output))
  assert str(error.value).startswith(f"{path}:2: text: is not UTF-8")
  assert "skip" not in str(error.value)  # A skipped line would move rows.
  path.write_text("")
  with pytest.raises(ValueError, match="There are no texts in"):
    line_vectors.encode_files(lengths, [str(path)], str(output))
  assert output.read_bytes() == before
  assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.txt", "v.npy"]


@pytest.mark.parametrize("bad", [[[np.nan, 1]], [[np.inf, 1]], [[1, 2, 3]]])
def test_rows_that_are_not_finite_or_have_another_width_are_not_written(
  bad, tmp_path
):
  """Otherwise such a file would be searched without an error."""

  def embed(texts):
    yield np.ones((len(list(texts)) - 1, 2), np.float32)
    yield np.asarray(bad, np.float32)

  (tmp_path / "a.txt").write_text("a\nbb\nccc\n")
  output = tmp_path / "v.npy"
  with pytest.raises(ValueError, match=r"v\.npy is not written.*row 2 "):
    line_vectors.encode_files(embed, [str(tmp_path / "a.txt")], str(output))
  assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
  "name,content,sign",
  [
    ("a.jsonl", "river\n", r"its name ends in \.jsonl"),
    ("a.JSON", "river\n", r"its name ends in \.json"),
    ("a.tsv.gz", "q1\triver\n", r"its name ends in \.tsv"),
    ("a.csv", "river\n", r"its name ends in \.csv"),
    ("a.parquet", "PAR1", r"its name ends in \.parquet"),
    ("a.txt", '{"id": 1, "text": "river"}\n', "its first line is JSON"),
    ("a", '\ufeff[{"text": "river"}]\n', "its first line is JSON"),
  ],
)
def test_a_file_that_is_not_plain_text_needs_the_flag(
  tmp_path, name, content, sign
):
  path, output = tmp_path / name, tmp_path / "v.npy"
  content = content.encode()
  path.write_bytes(gzip.compress(content) if ".gz" in name else content)
  with pytest.raises(ValueError, match=f"{name} is not plain text: {sign}"):
    line_vectors.encode_files(lengths, [str(path)], str(output))
  assert not output.exists()
  shape = line_vectors.encode_files(
    lengths, [str(path)], str(output), plain_text=True
  )
  assert shape == (1, 2)


@pytest.mark.parametrize(
  "second", [np.full((2, 3), np.nan), np.full((2, 3), np.inf), np.zeros((2, 4))]
)
def test_rows_that_are_not_vectors_leave_the_old_output(second, tmp_path):
  path = tmp_path / "v.npy"
  path.write_text("old")
  with (
    pytest.raises(ValueError, match=rf"^{path} is not written: .* row 2 "),
    line_vectors.write_rows(str(path)) as append,
  ):
    append(np.ones((2, 3), np.float32))
    append(second.astype(np.float32))
  assert path.read_text() == "old"
  assert os.listdir(tmp_path) == ["v.npy"]


def test_a_line_that_only_begins_like_json_is_a_text(tmp_path):
  path, output = tmp_path / "a.txt", tmp_path / "v.npy"
  for line in ("{see below} river", "[1] apple", "[{" * 5000, "3"):
    path.write_text(line + "\nriver\n")
    assert line_vectors.encode_files(lengths, [str(path)], str(output)) == (
      2,
      2,
    )
