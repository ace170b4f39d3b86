"""From files to losses, true negatives are kept and false ones dropped.

In other trainers, ids that restart in each file switched off all negatives
(DPR#243), and one bad negative removed its question
(sentence-transformers#1346).
"""

import itertools
import json

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from mlir_jax import config, contract
from mlir_jax.batches import batch as batch_lib
from mlir_jax.batches import drawing
from mlir_jax.data import records, store_writer
from mlir_jax.data.collections import folder
from mlir_jax.losses import ir
from mlir_jax.training import checks

FACTS = (
  ("Norway", "Oslo"),
  ("Peru", "Lima"),
  ("Ghana", "Accra"),
  ("Vietnam", "Hanoi"),
)


def make_tokenizer():
  words = [
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[UNK]",
    "which",
    "has",
    *itertools.chain(*FACTS),
  ]
  tokenizer = tokenizers.Tokenizer(
    models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]")
  )
  tokenizer.normalizer = tokenizers.normalizers.NFKC()
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  tokenizer.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
  )
  return tokenizer


def passage(text, passage_id=""):
  return {"title": "", "text": text, "passage_id": passage_id}


def record(number, positive_id="", negatives=()):
  country, capital = FACTS[number]
  return {
    "question": f"which has {capital}",
    "positive_ctxs": [passage(country, positive_id)],
    "hard_negative_ctxs": negatives,
  }


def build_store(tmp_path, policy="error", **files):
  """Builds the store of files in DPR's format, as a run does."""
  for name, rows in files.items():
    path = tmp_path / f"data/ir/{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
  bad = records.BadRecords(policy)
  tokenizer = make_tokenizer()
  return store_writer.build(
    tmp_path / "store",
    folder.load(tmp_path / "data", bad),
    contract.PartialContract(
      pooling="mean",
      normalize=True,
      title_joiner=" ",
      **dict.fromkeys(contract.ROLES, contract.PartialRole("", 8)),
    ).complete(tokenizer),
    tokenizer,
    0,
    shuffle_parallel=False,
    seed=0,
    source="made",
    bad_records=bad,
  )


def ir_metrics(store, hard_negatives=0):
  """Returns the metrics of the IR loss on a batch of all rows."""
  spec = batch_lib.BatchSpec(store.rows("retrieval"), hard_negatives, 0, 0)
  fields = drawing.draw(store, spec, 0, 1.0, 0).fields["retrieval"]
  random = np.random.default_rng(0)
  shape = fields["passage_valid"].shape
  _, metrics = ir.ir_loss(
    random.normal(size=(shape[0], 4)).astype(np.float32),
    random.normal(size=(*shape, 4)).astype(np.float32),
    **{
      name: fields[name]
      for name in (
        "query_sequence",
        "passage_sequence",
        "passage_valid",
        "positive_sequence",
      )
    },
    temperature=1.0,
  )
  return metrics | {"passages": int(fields["passage_valid"].sum())}


def test_an_id_with_several_texts_is_refused_or_removes_no_negative(
  tmp_path,
):
  rows = [
    record(n, "1", [passage(FACTS[(n + 1) % 4][1], "n1")]) for n in range(4)
  ]
  with pytest.raises(
    records.RecordError,
    match=r"a\.json:1: record 2, passage id: '1' is .*a\.json:1: record 1;",
  ):
    build_store(tmp_path, a=rows)
  store = build_store(tmp_path, "skip", a=rows)
  assert store.rows("retrieval") == 4
  assert store.dropped["passage ids that have two texts"] == 2
  metrics = ir_metrics(store, hard_negatives=1)
  assert metrics["passages"] == 8
  assert metrics["masked"] == metrics["queries_without_negatives"] == 0


def test_two_files_whose_ids_both_start_at_0_keep_all_negatives(tmp_path):
  a, b = ([record(2 * file + n, str(n)) for n in (0, 1)] for file in (0, 1))
  store = build_store(tmp_path, a=a, b=b)
  assert store.rows("retrieval") == 4
  assert ir_metrics(store)["masked"] == 0


def test_bad_negatives_do_not_remove_their_question(tmp_path):
  good, copy = passage("Oslo", "n"), passage("Norway", "p")
  rows = [
    record(0, "p", [good, copy]),
    record(1, "", [passage("Accra"), passage("", "e")]),
    record(2, "", None),
  ]
  store = build_store(tmp_path, a=rows)
  assert store.rows("retrieval") == 3
  assert "hard negatives: 2\n" in store.summary()
  assert "dropped hard negatives without text: 1\n" in store.summary()
  assert "dropped hard negatives that are positives: 1\n" in store.summary()


def test_full_width_copies_are_not_negatives_of_each_other(tmp_path):
  rows = []
  for country, capital in FACTS:
    for text in (str, lambda t: "".join(chr(ord(c) + 0xFEE0) for c in t)):
      rows.append(
        {"question": text(capital), "positive_ctxs": [passage(text(country))]}
      )
  metrics = ir_metrics(build_store(tmp_path, a=rows))
  assert metrics["masked"] == len(rows)
  # With a single fact there is no negative.
  single = build_store(tmp_path / "single", a=rows[:2])
  assert ir_metrics(single)["queries_without_negatives"] == 2


def test_batches_without_negatives_are_refused():
  c = config.default()
  c.batch.retrieval = 1
  with pytest.raises(
    ValueError, match=r"batch\.retrieval is 1 and .*2 or more"
  ):
    checks.check_settings(c)
  c.batch.hard_negatives = 1
  checks.check_settings(c)
  c.batch.parallel = 1
  with pytest.raises(ValueError, match=r"batch\.parallel is 1: .*semantic"):
    checks.check_settings(c)
  c.loss.semantic.weight = 0.0
  checks.check_settings(c)
