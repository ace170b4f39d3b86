"""A run on pairs in another language, whose dev set selects, says so."""

import json

import pytest
import tiny

from mlir_jax.checkpoints import manager
from mlir_jax.evals import report
from mlir_jax.training import progress, run


def to_flag_embedding(root):
  """Makes of the English pairs some in Japanese, of another format."""
  pairs = json.loads((root / "ir/train.json").read_text())
  (root / "ir/train.json").unlink()
  lines = [
    {
      "query": pair["question"],
      "pos": [pair["positive_ctxs"][0]["text"]],
      "neg": [],
      "pos_scores": [0.9],
      "pos_id": ["7"],
    }
    for pair in pairs
  ]
  (root / "ir/train.ja.jsonl").write_text("\n".join(map(json.dumps, lines)))
  (root / "eval/en").rename(root / "eval/jpn")


@pytest.mark.slow
def test_a_dev_set_that_the_config_names_selects(tmp_path, capsys):
  root = tiny.write_folder(tmp_path / "data")
  to_flag_embedding(root)
  c = tiny.make_config(root)
  c.train.steps, c.train.checkpoint_every, c.eval.every = 4, 2, 2
  folder = tmp_path / "run"
  with pytest.raises(ValueError, match=r"eval\.selection does not name this d"):
    run.train(c, str(folder))
  c.eval.selection = "dev/ja/ndcg@10"
  run.train(c, str(folder))
  printed = capsys.readouterr().out
  assert "ir/train.ja.jsonl: flag_embedding, 120 records (ja)" in printed
  assert "ir/train.ja.jsonl: fields not used: pos_id" in printed
  evaluated = [
    line["dev/ja/ndcg@10"]
    for line in progress.read_metrics(str(folder))
    if line["kind"] == "eval"
  ]
  assert len(evaluated) == 2
  checkpoints = manager.Checkpoints(str(folder / "checkpoints"))
  assert evaluated[checkpoints.find("best") // 2 - 1] == max(evaluated)
  rule = checkpoints.read_description(4).provenance["selection"]
  checkpoints.close()
  assert "dev sets in ja select" in rule
  text = (folder / "results/report.md").read_text()
  assert rule in text
  assert report.WITH_PAIRS in text
  c.eval.selection = "dev/*/mrr@100"
  with pytest.raises(ValueError, match=r"eval\.selection"):
    run.train(c, str(folder))
