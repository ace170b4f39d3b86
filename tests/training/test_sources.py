"""A run on several sources, with weights and prompts, keeps its prompts."""

import json
import shutil

import numpy as np
import pytest
import tiny

from mlir_jax import contract as contract_lib
from mlir_jax import evaluate, export
from mlir_jax.models import layout, layout_files, sealed
from mlir_jax.retrieval import model
from mlir_jax.training import run

PROMPTS = {
  "first": {"query": "Find an apple: ", "passage": "Text: "},
  "second": {"query": "Find a river: "},
}


def write_sources(root):
  """Makes two sources of the pairs, with hard negatives."""
  pairs = json.loads((root / "ir/train.json").read_text())
  (root / "ir/train.json").unlink()
  for number, pair in enumerate(pairs):
    other = pairs[(number + 1) % len(pairs)]["positive_ctxs"][0]
    pair["hard_negative_ctxs"] = [{**other, "passage_id": f"n{number}"}]
  for name, part in (("first", pairs[::3]), ("second", pairs[1::3])):
    (root / f"ir/{name}.json").write_text(json.dumps(part))
  (root / "ir/third.json").write_text(json.dumps(pairs[2::3]))


@pytest.mark.slow
def test_prompts_go_from_the_config_to_the_export(tmp_path, capsys):
  root = tiny.write_folder(tmp_path / "data")
  write_sources(root)
  c = tiny.make_config(root)
  tiny.train_pairs_alone(c)
  c.encoding.query.prefix = "query: "
  c.model.max_positions = 32  # The prompts are cut into small tokens.
  c.encoding.query.max_length = c.encoding.passage.max_length = 32
  c.batch.mixing, c.batch.hard_negatives = "one_source", 1
  c.loss.ir.in_batch = False
  c.train.steps, c.train.checkpoint_every, c.eval.every = 4, 4, 0
  workdir = tmp_path / "run"
  with c.data.sources.unlocked():
    c.data.sources.third_one = "weight=0"
  with pytest.raises(
    ValueError, match=r"no source 'third_one'.*'first', 'made', 'second', 'thi"
  ):
    run.train(c, str(workdir))
  assert not (workdir / "tokens").exists()
  del c.data.sources.third_one
  c.data.sources.third = "weight=0"
  c.data.sources.first = (
    "weight=3 query_prompt='Find an apple: ' passage_prompt='Text: '"
  )
  c.data.sources.second = "query_prompt='Find a river: '"
  run.train(c, str(workdir))
  printed = capsys.readouterr().out
  assert "retrieval by source: first 40, second 40, third 40" in printed
  assert (
    "Sources of batch.retrieval: first 75.0%, second 25.0%, third 0.0%"
    in printed
  )

  loaded = model.load(str(workdir))
  assert loaded.contract.prompts == PROMPTS
  text = ["apple river"]
  with_prompt = loaded.encode(text, prompt="first")
  contract = loaded.contract
  for role, prompt, expected in (
    ("query", "first", "Find an apple: apple river"),
    ("passage", "first", "Text: apple river"),
    ("query", "second", "Find a river: apple river"),
    ("passage", "second", "apple river"),
    ("query", "", "query: apple river"),
  ):
    assert contract.render(role, text[0], prompt=prompt) == expected
  assert np.abs(with_prompt - loaded.encode(text)).max() > 1e-4
  by_default = model.load(str(workdir), prompt="first")
  np.testing.assert_array_equal(by_default.encode(text), with_prompt)
  np.testing.assert_array_equal(
    by_default.encode(text, prompt=""), loaded.encode(text)
  )
  for call in (
    lambda: loaded.encode(text, prompt="third"),
    lambda: model.load(str(workdir), prompt="third"),
  ):
    with pytest.raises(ValueError, match="are: 'first', 'second'"):
      call()

  report = evaluate.evaluate(str(workdir), prompt="second")
  assert "Texts had the prompts of 'second'." in report
  assert (workdir / "evaluate-data+second-last").is_dir()

  exported = tmp_path / "export"
  export.export(str(workdir), "last", str(exported))
  card = (exported / layout_files.CARD).read_text()
  assert "| query (`encode_query`) | first | `first` |" in card
  assert (
    '| passage (`encode_document`) | first | `first_document` | `"Text: "`'
    in card
  )
  assert "| en 80 |" in card  # The 40 pairs of `third` are left out.
  again = model.load(str(exported))
  assert again.contract.prompts == PROMPTS
  np.testing.assert_allclose(
    again.encode(text, prompt="first"), with_prompt, atol=1e-5
  )
  sentence_transformers = pytest.importorskip("sentence_transformers")
  theirs = sentence_transformers.SentenceTransformer(
    str(exported), device="cpu", trust_remote_code=False
  )
  for found, expected in (
    (theirs.encode_query(text, prompt_name="first"), with_prompt),
    (
      theirs.encode_document(text, prompt_name="first_document"),
      loaded.encode(text, "passage", prompt="first"),
    ),
    (theirs.encode(text), loaded.encode(text, "sentence")),
  ):
    np.testing.assert_allclose(found, expected, atol=1e-5)
  # The settings of sentence-transformers keep the prompts, too.
  copy = tmp_path / "copy"
  shutil.copytree(exported, copy)
  (copy / sealed.FILE).unlink()
  assert layout.read(copy).encoding.prompts == PROMPTS

  other = tmp_path / "other"
  c.data.sources.second = "query_prompt='Find a stone: '"
  shutil.copytree(workdir / "tokens", other / "tokens")
  shutil.copytree(workdir / "tokenizer", other / "tokenizer")
  with pytest.raises(contract_lib.ContractMismatchError, match="prompts: "):
    run.train(c, str(other))
