"""mteb scores our vectors as it scores those of sentence-transformers."""

import json
import random
import sys

import datasets
import mteb
import numpy as np
import pytest
import sentence_models
import sentence_transformers
import tiny
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.models_protocols import EncoderProtocol

import mlir_jax
from mlir_jax import export, sharding
from mlir_jax.data import records
from mlir_jax.evals import mteb_encoder, ranking
from mlir_jax.retrieval import model as model_lib
from mlir_jax.training import run


def write_task(folder):
  """Writes a corpus with titles, queries from its words, and judgements."""
  generator = random.Random(0)
  corpus = [
    {
      "id": f"d{number}",
      "title": " ".join(generator.sample(tiny.WORDS, 2)) if number % 3 else "",
      "text": " ".join(generator.sample(tiny.WORDS, 4)),
    }
    for number in range(60)
  ]
  asked = [passage for passage in corpus if passage["title"]][:30]
  for name, rows in (
    ("corpus", corpus),
    (
      "queries",
      [
        {"id": f"q{n}", "text": f"{passage['title']} {passage['text'][:12]}"}
        for n, passage in enumerate(asked)
      ],
    ),
    (
      "qrels",
      [
        {"query": f"q{n}", "document": passage["id"]}
        for n, passage in enumerate(asked)
      ],
    ),
  ):
    (folder / f"{name}.jsonl").write_text(
      "".join(json.dumps(row) + "\n" for row in rows)
    )


class LocalTask(AbsTaskRetrieval):
  """A retrieval task that reads three files of a folder."""

  folder = None
  metadata = TaskMetadata(
    type="Retrieval",
    name="LocalRetrieval",
    description="A made-up collection.",
    dataset={"path": "local", "revision": "1"},
    category="t2t",
    modalities=["text"],
    eval_splits=["test"],
    eval_langs=["eng-Latn"],
    main_score="ndcg_at_10",
  )

  def read(self, name):
    return [
      json.loads(line)
      for line in (self.folder / f"{name}.jsonl").read_text().splitlines()
    ]

  def load_data(self, num_proc=None, **kwargs):
    self.dataset = {
      "default": {
        "test": RetrievalSplitData(
          corpus=datasets.Dataset.from_list(self.read("corpus")),
          queries=datasets.Dataset.from_list(self.read("queries")),
          relevant_docs={
            row["query"]: {row["document"]: 1} for row in self.read("qrels")
          },
          top_ranked=None,
        )
      }
    }
    self.data_loaded = True


@pytest.fixture(scope="module")
def task(tmp_path_factory):
  made = LocalTask()
  made.folder = tmp_path_factory.mktemp("task")
  write_task(made.folder)
  return made


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """One folder, loaded by us and by sentence-transformers."""
  folder = tmp_path_factory.mktemp("models") / "tiny"
  theirs = sentence_models.save(folder)
  return mlir_jax.load(str(folder), batch_size=32), theirs


def scores(model, task):
  """Returns all numbers that mteb measures."""
  result = mteb.evaluate(
    model, task, cache=None, co2_tracker=False, show_progress_bar=False
  )
  (found,) = result.task_results[0].scores["test"]
  return {k: v for k, v in found.items() if isinstance(v, float)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The fill_missing:DeprecationWarning")
def test_mteb_scores_a_model_as_sentence_transformers(models, task):
  ours, theirs = models
  found = scores(mteb_encoder.MtebEncoder(ours), task)
  expected = scores(theirs, task)
  assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)
  assert 0.1 < found["ndcg_at_10"] < 0.95
  queries = {row["id"]: row["text"] for row in task.read("queries")}
  test = records.RetrievalTest(
    language="en",
    split="test",
    queries=queries,
    passages=[
      records.Passage(row["text"], row["title"], row["id"])
      for row in task.read("corpus")
    ],
    qrels={row["query"]: {row["document"]: 1} for row in task.read("qrels")},
  )
  measured = dict(
    ranking.evaluate(
      lambda role, texts, titles=None: ours.encode(texts, role, titles),
      [test],
      sharding.make_mesh(),
    )
  )
  for name, value in (
    ("ndcg@10", found["ndcg_at_10"]),
    ("mrr@100", found["mrr_at_100"]),
    ("success@1", found["hit_rate_at_1"]),
  ):
    # Mteb rounds to 5 digits.
    assert measured[f"test/en/{name}"] == pytest.approx(value, abs=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
@pytest.mark.filterwarnings("ignore:The fill_missing:DeprecationWarning")
def test_mteb_scores_a_checkpoint_as_its_export(task, tmp_path):
  c = tiny.make_config(tiny.write_folder(tmp_path / "data", pairs=40))
  tiny.train_pairs_alone(c)
  c.encoding.query.prefix, c.encoding.passage.prefix = "apple: ", "river: "
  c.encoding.query.max_length = 8
  c.train.steps = 4
  c.eval.every = 0
  run.train(c, str(tmp_path / "run"))
  export.export(str(tmp_path / "run"), "last", str(tmp_path / "export"))
  theirs = sentence_transformers.SentenceTransformer(
    str(tmp_path / "export"), device="cpu", trust_remote_code=False
  )
  ours = mteb_encoder.MtebEncoder(mlir_jax.load(str(tmp_path / "run")))
  found = scores(ours, task)
  assert found == pytest.approx(scores(theirs, task), abs=1e-6, nan_ok=True)
  assert 0 < found["ndcg_at_10"] < 1


@pytest.mark.slow
def test_each_kind_of_text_goes_to_its_role(models, task, monkeypatch):
  ours, theirs = models
  encoder = mteb_encoder.MtebEncoder(ours)
  before = scores(encoder, task)
  calls = []

  def swapped(self, texts, role, titles, progress):
    calls.append((role, texts, titles))
    other = {"query": "passage", "passage": "query"}[role]
    return self.text_encoder.encode(self.params, other, texts, titles)

  monkeypatch.setattr(model_lib.Model, "encode", swapped)
  assert scores(encoder, task)["ndcg_at_10"] != before["ndcg_at_10"]
  passages, queries = sorted(calls)
  assert (passages[0], queries[0]) == ("passage", "query")
  corpus = task.read("corpus")
  # Titles come separately, because the contract joins them.
  assert passages[1] == [row["text"] for row in corpus]
  assert passages[2] == [row["title"] for row in corpus]
  assert queries[1] == [row["text"] for row in task.read("queries")]
  assert queries[2] is None
  monkeypatch.undo()
  texts = ["river stone", "apple"]
  found = encoder.encode(
    [{"text": texts[:1]}, {"text": texts[1:]}],
    task_metadata=task.metadata,
    hf_split="test",
    hf_subset="default",
  )
  np.testing.assert_allclose(found, theirs.encode(texts), atol=1e-5)
  with pytest.raises(ValueError, match="precision is 'int8'"):
    encoder.encode(
      [],
      task_metadata=task.metadata,
      hf_split="test",
      hf_subset="default",
      precision="int8",
    )


def test_mteb_receives_a_description_of_the_model(models, tmp_path):
  ours, _ = models
  encoder = mteb_encoder.MtebEncoder(ours)
  assert isinstance(encoder, EncoderProtocol)
  meta = encoder.mteb_model_meta
  assert (meta.name, meta.embed_dim, meta.max_tokens) == (
    *("mlir_jax/tiny", 24),
    sentence_models.LENGTH,
  )
  assert meta.framework == ["JAX"] and meta.use_instructions
  a, b = np.array([[3.0, 4.0]]), np.array([[3.0, 4.0], [4.0, -3.0]])
  np.testing.assert_allclose(encoder.similarity(a, b), [[1, 0]], atol=1e-6)
  np.testing.assert_allclose(encoder.similarity_pairwise(b, b), [1, 1])
  # Results are cached by name and revision: other weights, other revision.
  sentence_models.save(tmp_path / "tiny", normalize=False)
  other = mteb_encoder.MtebEncoder(mlir_jax.load(str(tmp_path / "tiny")))
  assert other.mteb_model_meta.name == meta.name
  assert other.mteb_model_meta.revision != meta.revision
  again = mteb_encoder.MtebEncoder(mlir_jax.load(ours.path))
  assert again.mteb_model_meta == meta


def test_a_model_made_for_dot_products_is_scored_by_them(tmp_path):
  sentence_models.save(
    tmp_path / "dot", normalize=False, similarity_fn_name="dot"
  )
  encoder = mteb_encoder.MtebEncoder(mlir_jax.load(str(tmp_path / "dot")))
  a, b = np.array([[3.0, 4.0]]), np.array([[3.0, 4.0], [4.0, -3.0]])
  np.testing.assert_allclose(encoder.similarity(a, b), [[25, 0]])
  np.testing.assert_allclose(encoder.similarity_pairwise(b, b), [25, 25])


def test_without_mteb_the_extra_is_named(models, monkeypatch):
  monkeypatch.setitem(sys.modules, "mteb", None)
  with pytest.raises(ImportError, match=r"mlir_jax\[mteb\]"):
    mteb_encoder.MtebEncoder(models[0])
