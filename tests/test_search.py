"""The program search: an index and queries in, a TREC run out."""

import json
import re
import runpy
import sys
import types

import numpy as np
import pytest
import sentence_models
import tiny
from absl import app, flags

import mlir_jax
from mlir_jax import search
from mlir_jax.retrieval import (
  fingerprints,
  runs,
  vector_folder,
  vector_writer,
)


def write_folder(folder, encoder, role, texts, shard=7, **changes):
  """Encodes texts as `mlir_jax.encode` does, a few in each shard."""
  settings = {
    "role": role,
    "prompt": "",
    "dtype": "float32",
    "similarity": encoder.similarity_fn_name,
    "contract": encoder.contract.to_dict(),
    "model": {"fingerprint": fingerprints.of_model(encoder)},
    "sources": [],
  } | changes
  notes = {"model_name": encoder.path, "model_step": encoder.step}
  ids = list(texts)
  vectors = encoder.encode(list(texts.values()), role)
  with vector_writer.opened(str(folder), settings, notes) as writer:
    for start in range(0, len(ids), shard):
      stop = start + shard
      writer.add(vectors[start:stop], ids[start:stop], 0)
    writer.finish()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A model, its index of 30 words, and queries in several forms."""
  root = tmp_path_factory.mktemp("search")
  sentence_models.save(root / "model")
  model = mlir_jax.load(str(root / "model"), batch_size=8)
  passages = {f"d{number}": word for number, word in enumerate(tiny.WORDS)}
  write_folder(root / "index", model, "passage", passages)
  queries = {"q2": "river stone", "q1": "apple", "q3": "winter"}
  write_folder(root / "queries", model, "query", queries)
  (root / "topics.tsv").write_text(
    "".join(f"{name}\t{text}\n" for name, text in queries.items())
  )
  (root / "queries.jsonl").write_text(
    "".join(
      json.dumps({"_id": name, "text": text}) + "\n"
      for name, text in queries.items()
    )
  )
  vectors = model.encode(list(queries.values()), "query")
  np.save(root / "vectors.npy", vectors)
  (root / "ids.txt").write_text("".join(f"{name}\n" for name in queries))
  scores = vectors.astype("f8") @ model.encode(tiny.WORDS, "passage").T
  expected = {
    name: dict(zip(passages, of_query.tolist(), strict=True))
    for name, of_query in zip(queries, scores, strict=True)
  }
  return types.SimpleNamespace(root=root, model=model, expected=expected)


@pytest.fixture
def call(monkeypatch, capfd):
  """Runs the program here: flags -> exit status, stdout, stderr."""

  def call_main(*arguments):
    monkeypatch.setattr(sys, "argv", ["search", *map(str, arguments)])
    app.define_help_flags()
    known, code = set(flags.FLAGS), 0
    try:
      runpy.run_module("mlir_jax.search", run_name="__main__", alter_sys=True)
    except SystemExit as stopped:
      code = stopped.code or 0
    finally:
      for name in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, name)
      flags.FLAGS.unparse_flags()
    return code, *capfd.readouterr()

  return call_main


@pytest.mark.slow
def test_queries_of_every_form_give_the_same_run(made, call, tmp_path):
  forms = {
    "topics": ["--queries={}/topics.tsv"],
    "beir": ["--queries={}/queries.jsonl", "--model={}/model"],
    "folder": ["--queries={}/queries"],
    "array": ["--queries={}/vectors.npy", "--query_ids={}/ids.txt"],
  }
  for name, given in forms.items():
    output = tmp_path / f"{name}.trec"
    code, printed, error = call(
      f"--index={made.root}/index",
      f"--output={output}",
      *("--k=9", "--run_tag=ours"),
      *(flag.format(made.root) for flag in given),
    )
    assert code == 0, error
    assert "9 of 30 passages for each of 3 queries, by cosine." in printed
    found = runs.read_run(output)
    assert list(found) == ["q2", "q1", "q3"]
    for query_id, scores in made.expected.items():
      best = dict(runs.ranked(scores)[:9])
      assert [*found[query_id]] == [*best]
      np.testing.assert_allclose(
        [*found[query_id].values()], [*best.values()], atol=1e-6
      )
    assert output.read_text().split("\n")[0].endswith(" ours")
  assert len(list(tmp_path.iterdir())) == len(forms)  # Nothing was left.


@pytest.mark.slow
def test_an_index_in_python_searches_with_vectors_and_texts(made):
  index = mlir_jax.Index.load(made.root / "index", model=made.model)
  texts = ["river stone", "apple", "winter"]
  by_text = index.search(texts, 4)
  by_vector = mlir_jax.Index.load(made.root / "index").search(
    made.model.encode(texts, "query"), 4
  )
  np.testing.assert_array_equal(by_text[0], by_vector[0])
  assert by_text[1] == by_vector[1]
  assert by_text[1] == [
    [name for name, _ in runs.ranked(scores)[:4]]
    for scores in made.expected.values()
  ]
  with pytest.raises(ValueError, match="load the index with a model"):
    mlir_jax.Index.load(made.root / "index").search(texts, 4)


@pytest.mark.slow
def test_a_model_with_another_contract_is_refused_by_its_field(
  made, call, tmp_path
):
  changed = made.model.contract.to_dict()
  changed["passage"]["max_length"] = 5
  passages = {"d1": "river", "d2": "stone"}
  write_folder(
    tmp_path / "index", made.model, "passage", passages, contract=changed
  )
  output = tmp_path / "run.trec"
  for queries in ("topics.tsv", "queries"):
    code, _, error = call(
      f"--index={tmp_path}/index",
      f"--queries={made.root}/{queries}",
      f"--output={output}",
    )
    assert code == 2 and "passage.max_length: " in error
  assert not output.exists()


@pytest.mark.slow
def test_a_model_with_other_parameters_is_noticed(made, call, tmp_path):
  write_folder(
    tmp_path / "index",
    made.model,
    "passage",
    {"d1": "river"},
    model={"fingerprint": "0"},
  )
  code, _, said = call(
    f"--index={tmp_path}/index",
    f"--queries={made.root}/topics.tsv",
    f"--output={tmp_path}/run.trec",
  )
  assert code == 0 and "has other parameters than the model" in said


@pytest.mark.slow
@pytest.mark.parametrize(
  "given, message",
  [
    (["--queries={}/none.tsv"], "There is no .*none.tsv"),
    (["--queries={}/index"], "holds texts of the role 'passage'"),
    (["--queries={}/topics.tsv", "--query_ids={}/ids.txt"], "--query_ids nee"),
    (["--queries={}/bad.npy"], "bad.npy is not a .npy file of vectors"),
    (["--queries={}/wide.npy"], "encode both with the same model"),
    (
      ["--queries={}/vectors.npy", "--query_ids={}/topics.tsv"],
      "topics.tsv:1: id: .* holds white space",
    ),
    (
      ["--queries={}/vectors.npy", "--query_ids={}/few.txt"],
      "few.txt has 1 lines, but .*vectors.npy has 3 vectors",
    ),
    (["--queries={}/topics.tsv", "--output={}"], "is a folder: name the file"),
    (["--queries={}/bad.tsv"], r"bad.tsv:2: .*is in line 1|'q1'"),
    (["--queries={}/topics.tsv", "--index={}/model"], "holds no vectors"),
  ],
)
def test_wrong_queries_are_refused_in_one_line(
  given, message, made, call, tmp_path
):
  root = made.root
  (root / "bad.npy").write_bytes(b"x" * 99)
  np.save(root / "wide.npy", np.ones((2, 25), "f4"))
  (root / "few.txt").write_text("q1\n")
  (root / "bad.tsv").write_text("q1\tapple\nq1\triver\n")
  code, _, error = call(
    f"--index={root}/index",
    f"--output={tmp_path}/run.trec",
    *(flag.format(root) for flag in given),
  )
  assert code == 2
  assert re.search(message, error), error
  assert "Traceback" not in error and not list(tmp_path.iterdir())


def test_the_run_of_many_queries_is_made_query_by_query():
  run = search._Run(
    ["a", "b"], ["x", "y", "z"], np.ones((2, 2), "f4"), np.array([[0, 2]] * 2)
  )
  assert list(run) == ["a", "b"] and run["b"] == {"x": 1.0, "z": 1.0}


def test_pyserinis_vectors_are_searched_without_a_contract(tmp_path):
  """They name no model, and are compared by inner product."""
  with open(tmp_path / "embeddings.jsonl", "w", encoding="utf-8") as file:
    for number in range(5):
      value = {
        "id": f"p{number}",
        "contents": "",
        "vector": [float(number), 1.0],
      }
      file.write(json.dumps(value) + "\n")
  index = mlir_jax.Index.load(vector_folder.read(tmp_path))
  scores, ids = index.search(np.array([[1.0, 0.0]], "f4"), 2)
  assert ids == [["p4", "p3"]] and scores.tolist() == [[4.0, 3.0]]
