"""Dev may be searched in a sample while training, the table in all passages."""

import json
import re

import jax.numpy as jnp
import pytest
import tiny

from mlir_jax import config, config_files, sharding
from mlir_jax import contract as contract_lib
from mlir_jax.data import collections, records
from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.evals import suite
from mlir_jax.retrieval import encoding


def make_test(split="dev", reverse=False):
  passages = [
    records.Passage(tiny.WORDS[n % 30], passage_id=f"p{n}") for n in range(200)
  ]
  if reverse:
    passages.reverse()
  return records.RetrievalTest(
    language="en",
    split=split,
    passages=tuple(passages),
    queries={"q1": "apple", "q2": "river", "q3": "stone"},
    qrels={"q1": {"p0": 1, "p7": 0}, "q2": {"p1": 1, "gone": 1}},
  )


def ids(test):
  return {passage.passage_id for passage in test.passages}


def test_a_sample_holds_the_judged_passages_and_is_the_same_in_any_order():
  small = suite.sample_passages(make_test(), 20)
  assert len(small.passages) == 20 and {"p0", "p1", "p7"} <= ids(small)
  assert ids(suite.sample_passages(make_test(reverse=True), 20)) == ids(small)
  assert ids(small) < ids(suite.sample_passages(make_test(), 30))
  assert ids(suite.sample_passages(make_test(), 1)) == {"p0", "p1", "p7"}
  assert suite.sample_passages(make_test(), 500) == make_test()


@pytest.fixture
def encoder():
  tokenizer = tokenizer_lib.train(tiny.WORDS, 120)
  contract = contract_lib.PartialContract(
    pooling="mean",
    normalize=True,
    title_joiner=" ",
    **dict.fromkeys(contract_lib.ROLES, contract_lib.PartialRole("", 4)),
  ).complete(tokenizer)

  def embed(params, tower, blocks):
    del params, tower
    (rows,) = blocks
    mine = rows.segment[:, None] == jnp.arange(1, rows.texts + 1)[:, None]
    sums = (rows.ids[:, None] * mine).sum(-1)
    return [jnp.stack([sums, mine.sum(-1)], -1) * 1.0]

  return encoding.TextEncoder(
    contract, tokenizer, embed, sharding.make_mesh(), 64
  )


def test_dev_is_searched_in_a_sample_and_the_table_says_so(
  encoder, tmp_path, capsys
):
  tests = [make_test(), make_test("test")]
  made = suite.Suite(tests, (), {}, encoder, str(tmp_path), dev_passages=20)
  assert "dev is searched in 20 of its 200 passages" in made.notes()
  assert made.dev({})
  assert encoder.truncation["passage"][1] == 20
  made.table({}, 8)
  assert (
    encoder.truncation["passage"][1] == 20 + 200
  )  # Both splits have one corpus.
  assert "passage texts cut to 4 tokens: " in capsys.readouterr().out
  text = made.report()
  for note in (
    "While training, dev is searched in 20 of its 200 passages",
    "count as not found: en (dev) 1 of 3, en 1 of 3.",
    "not in the means: en (dev) 1 of 3, en 1 of 3.",
  ):
    assert note in text
  assert len(json.loads((tmp_path / "report.json").read_text())["notes"]) == 3


def test_the_report_is_written_though_the_training_files_have_changed(
  encoder, tmp_path
):
  root = tiny.write_folder(tmp_path / "data")
  collection = collections.load("folder", str(root))
  made = suite.Suite(
    *([make_test("test")], (), {}, encoder, str(tmp_path / "results")),
    trained_on=collection,
    streams=("parallel",),
  )
  made.table({}, 8)
  assert "Also in training" in made.report()
  (file, *_) = sorted((root / "parallel").glob("*.de"))
  file.write_text(file.read_text().replace("a", "b"))
  text = made.report()
  assert "Also in training" not in text
  assert f"Texts shared with training are not counted: {file} has ch" in text
  table = json.loads((tmp_path / "results/report.json").read_text())
  assert table["rows"] and table["shared_with_training"] == {}


def test_evaluators_of_the_user_are_called_for_dev_and_for_the_table(
  encoder, tmp_path
):
  called = []

  def gap(embed):
    called.append(embed("sentence", ["apple", "river"]).shape)
    return {"rivers": float(len(called))}

  made = suite.Suite(
    *([make_test("test")], (), {}, encoder, str(tmp_path)),
    extra={"gap": gap},
  )
  assert made.table({}, 0)["gap/rivers"] == 1
  assert made.dev({}) == {"gap/rivers": 2}
  assert made.table({}, 8)["gap/rivers"] == 3
  assert called == [(2, 2)] * 3
  assert re.search(r"^gap\n  rivers +1 +3$", made.report(), re.M)
  table = json.loads((tmp_path / "report.json").read_text())
  assert table["extra"] == {"gap": {"rivers": {"step 0": 1.0, "step 8": 3.0}}}
  assert [row["label"] for row in table["rows"]] == ["en"]
  assert "| rivers | 1 | 3 |" in (tmp_path / "report.md").read_text("utf-8")


def test_configs_of_large_models_encode_no_whole_corpus_while_training():
  for name in ("xlmr_base", "xlmr_large", "mbert"):
    assert not config_files.load(name).eval.at_start
    assert config_files.load(name).eval.dev_passages
  assert config.default().eval.dev_passages == 0
