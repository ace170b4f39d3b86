"""Tests that a batch is a function of only (seed, step)."""

import contextlib
import dataclasses
import re
import sys
import threading

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from mlir_jax import contract as contract_lib
from mlir_jax import sharding
from mlir_jax.batches import batch as batch_lib
from mlir_jax.batches import (
  drawing,
  masking,
  mixture,
  packing,
  reader,
  row_plans,
)
from mlir_jax.data import records, store_writer, token_store
from mlir_jax.training import compiled_step

SPEC = batch_lib.BatchSpec(
  retrieval=8, hard_negatives=2, parallel=6, monolingual=4, masked=5
)
PAD = 0
MIXTURE = mixture.Mixture(2.0)


def retrieval():
  # Row i has 1 to 3 positives and 0 to 4 hard negatives.
  for i in range(20):
    yield records.RetrievalRecord(
      f"q{i}",
      tuple(records.Passage(f"p{i} w{j}") for j in range(1 + i % 3)),
      tuple(records.Passage(f"n{i} w{j}") for j in range(i % 5)),
    )


def parallel():
  for i in range(30):
    target = "de" if i % 3 else "fi"
    yield records.ParallelRecord(f"e{i}", f"{target}{i}", "en", target)


def monolingual():
  for i in range(25):
    yield records.MonolingualRecord(f"m{i} " * (1 + i % 9), "fi")


def make_tokenizer():
  """Makes a tokenizer with one token for each word, such as "w3"."""
  words = [
    *(
      f"{kind}{i}"
      for kind in ("q", "p", "n", "w", "e", "de", "fi", "m")
      for i in range(30)
    ),
  ]
  vocabulary = {
    word: i
    for i, word in enumerate(["[PAD]", "[CLS]", "[SEP]", *words, "[MASK]"])
  }
  tokenizer = tokenizers.Tokenizer(
    models.WordPiece(vocabulary, unk_token="[SEP]")
  )
  tokenizer.add_special_tokens(["[MASK]"])
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  tokenizer.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
  )
  return tokenizer


TOKENIZER = make_tokenizer()
MASKER = masking.make_masker(TOKENIZER, "word", 0.3)


def make_store(path, lengths=(4, 5), **streams):
  """Builds a store of the given streams."""
  contract = contract_lib.PartialContract(
    pooling="mean",
    normalize=True,
    title_joiner=" ",
    query=contract_lib.PartialRole("", lengths[0]),
    passage=contract_lib.PartialRole("", lengths[1]),
    sentence=contract_lib.PartialRole("", 6),
  ).complete(TOKENIZER)
  nothing = dict.fromkeys(token_store.STREAMS, tuple)
  data = records.Collection(
    name="made",
    tests=tuple,
    translation_tests=tuple,
    groups={},
    fingerprint=str,
    notes=tuple,
    **(nothing | streams),
  )
  return store_writer.build(
    path,
    data,
    contract,
    TOKENIZER,
    PAD,
    shuffle_parallel=False,
    seed=0,
    source="made",
  )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
  return make_store(
    tmp_path_factory.mktemp("reader") / "store",
    retrieval=retrieval,
    parallel=parallel,
    monolingual=monolingual,
  )


def roomy(spec):
  """Returns a plan with room for the texts of any step."""
  return {
    group: (packing.Block(texts, 128, 4, 40),)
    for group, texts in spec.texts().items()
  }


def plans_of(store, spec=SPEC, steps=20, **settings):
  return row_plans.make_plans(
    store, spec, 0, MIXTURE, steps, mask_rate=0.3, **settings
  )


def raw_batch(
  store, step, spec=SPEC, seed=0, plans=None, host_rows=np.arange,
  mixed=MIXTURE,
):  # fmt: skip
  batch = reader.batch_of_step(
    store, spec, plans or [roomy(spec)], seed, mixed, step, host_rows, MASKER,
  )  # fmt: skip
  return as_dict(batch)


def as_dict(batch):
  """Returns the streams of a batch as dicts of arrays."""
  found = dataclasses.asdict(batch)
  return {name: found[name] for name in ("texts", *batch.streams)}


def batch_of_step(store, step, spec=SPEC, seed=0, plans=None):
  """Returns a batch in which tokens replace the places of texts."""
  batch = raw_batch(store, step, spec, seed, plans)
  towers = {
    tower: unpacked(blocks) for tower, blocks in batch.pop("texts").items()
  }
  for stream, roles in (
    ("retrieval", ("query", "passage")),
    ("parallel", ("sentence",)),
    ("monolingual", ("sentence",)),
  ):
    for role in roles if stream in batch else ():
      texts = towers[role if role in towers else "passage"]
      slot = batch[stream][role]
      batch[stream][role] = {
        name: texts[name][slot] for name in ("ids", "mask")
      }
  if "masked" in batch:
    texts = unpacked(batch["masked"])
    order = np.argsort(texts["number"], kind="stable")
    order = order[texts.pop("number")[order] >= 0]
    batch["masked"] = {name: texts[name][order] for name in texts}
  return batch


def unpacked(blocks, width=32):
  """Unpacks texts to one in each row, and adds a row of padding at the end."""
  found = {name: [] for name in ("ids", "mask", "number")}
  hidden = {name: [] for name in ("positions", "targets", "valid")}
  for block in blocks:
    for row, numbers in enumerate(block["number"]):
      for segment, number in enumerate(numbers, 1):
        at = np.flatnonzero(block["segment"][row] == segment)
        # A text's tokens are next to each other, with positions from 0.
        assert (at == at[:1] + np.arange(len(at))).all()
        np.testing.assert_array_equal(
          block["position"][row, at], np.arange(len(at))
        )
        assert (len(at) > 0) == (number >= 0)
        pad = (0, width - len(at))
        found["ids"].append(np.pad(block["ids"][row, at], pad))
        found["mask"].append(np.pad(np.ones(len(at), bool), pad))
        found["number"].append(number)
        if "valid" in block:
          mine = block["valid"][row] & np.isin(block["places"][row], at)
          pad = (0, width - mine.sum())
          places = block["places"][row, mine] - at[:1]
          hidden["positions"].append(np.pad(places, pad))
          hidden["targets"].append(np.pad(block["targets"][row, mine], pad))
          hidden["valid"].append(np.pad(np.ones(mine.sum(), bool), pad))
  for name, value in (("ids", 0), ("mask", False), ("number", -1)):
    found[name].append(np.full(width, value) if name != "number" else -1)
  if not hidden["valid"]:
    return {name: np.array(values) for name, values in found.items()}
  for values in hidden.values():
    values.append(np.zeros(width, values[0].dtype))
  return {n: np.array(values) for n, values in (found | hidden).items()}


def batches(
  kind, store, start, stop, spec=SPEC, host_rows=np.arange, prefetch=2,
  plans=None,
):  # fmt: skip
  return reader.batches(
    kind, store, spec, plans or [roomy(spec)], 0, MIXTURE, start, stop,
    host_rows, prefetch, MASKER,
  )  # fmt: skip


def leaves(batch, path=""):
  """Maps paths to arrays."""
  if batch is None:  # It has no guide.
    return {}
  if isinstance(batch, np.ndarray):
    return {path: batch}
  if isinstance(batch, batch_lib.Batch):
    batch = as_dict(batch)
  parts = batch.items() if isinstance(batch, dict) else enumerate(batch)
  return {
    name: leaf
    for key, part in parts
    for name, leaf in leaves(part, f"{path}/{key}").items()
  }


def assert_equal(first, second):
  first, second = leaves(first), leaves(second)
  assert first.keys() == second.keys()
  for name, leaf in first.items():
    assert leaf.dtype == second[name].dtype, name
    np.testing.assert_array_equal(leaf, second[name], err_msg=name)


def test_a_batch_has_the_promised_arrays(store):
  plan = {
    "query": (packing.Block(3, 16, 4),),
    "passage": (packing.Block(20, 16, 4), packing.Block(10, 8, 2)),
    "masked": (packing.Block(5, 24, 3, 30),),
  }
  spec = dataclasses.replace(SPEC, tied=False)
  batch = raw_batch(store, 3, spec, plans=[plan])
  rows = ("ids", "position", "segment", "number")
  for group, block in (
    ("texts/query/0", plan["query"][0]),
    ("texts/passage/0", plan["passage"][0]),
    ("texts/passage/1", plan["passage"][1]),
    ("masked/0", plan["masked"][0]),
  ):
    for name in rows:
      width = block.texts if name == "number" else block.length
      assert leaves(batch)[f"/{group}/{name}"].shape == (block.rows, width)
  others = {
    name: (leaf.shape, leaf.dtype.name)
    for name, leaf in leaves(batch).items()
    if name.rpartition("/")[2] not in rows
  }
  assert others == {
    "/retrieval/query": ((8,), "int32"),
    "/retrieval/query_text": ((8, 2), "int32"),
    "/retrieval/query_sequence": ((8, 2), "int32"),
    "/retrieval/passage": ((8, 3), "int32"),
    "/retrieval/passage_text": ((8, 3, 2), "int32"),
    "/retrieval/passage_sequence": ((8, 3, 2), "int32"),
    "/retrieval/passage_valid": ((8, 3), "bool"),
    "/retrieval/positive_sequence": ((8, 3, 2), "int32"),
    "/parallel/sentence": ((6, 2), "int32"),
    "/parallel/text": ((6, 2, 2), "int32"),
    "/parallel/sequence": ((6, 2, 2), "int32"),
    "/monolingual/sentence": ((4,), "int32"),
    "/monolingual/text": ((4, 2), "int32"),
    "/monolingual/sequence": ((4, 2), "int32"),
    "/masked/0/places": ((5, 30), "int32"),
    "/masked/0/targets": ((5, 30), "int32"),
    "/masked/0/valid": ((5, 30), "bool"),
  }
  abstract = compiled_step.abstract_batch(
    spec, plan, sharding.make_mesh(devices=jax.devices()[:1]),
    positives=spec.positives(store.max_positives),
  )  # fmt: skip
  jax.tree.map(
    lambda leaf, said: np.testing.assert_equal(
      (leaf.shape, leaf.dtype), (said.shape, said.dtype)
    ),
    batch,
    as_dict(abstract),
  )


@pytest.mark.parametrize("tied", [True, False])
def test_rows_change_no_text(store, tied):
  spec = dataclasses.replace(SPEC, tied=tied, monolingual=24)
  plans = plans_of(store, spec)
  assert not plans.last_resort
  for step in range(20):
    alone = batch_of_step(store, step, spec)
    packed = batch_of_step(store, step, spec, plans=plans.plans)
    assert_equal(alone, packed)
  # Each text has one number, which decides about its dropout.
  blocks = raw_batch(store, 0, spec, plans=plans.plans)["texts"]["passage"]
  numbers = np.concatenate([rows["number"].ravel() for rows in blocks])
  assert len(np.unique(numbers[numbers >= 0])) == (numbers >= 0).sum()


def test_the_plan_holds_every_step_and_says_its_padding(store):
  spec = dataclasses.replace(SPEC, monolingual=12)
  plans = plans_of(store, spec, devices=2)
  real = computed = 0
  for step in range(20):
    batch = raw_batch(store, step, spec, plans=plans.plans)
    for blocks in (*batch["texts"].values(), batch["masked"]):
      for rows in blocks:
        assert len(rows["ids"]) % 2 == 0
        real += (rows["segment"] > 0).sum()
        computed += rows["segment"].size
  assert plans.padding == pytest.approx(1 - real / computed, abs=1e-9)
  assert f"Padding: {plans.padding:.1%}" in str(plans)


def long_and_short(name, count, words):
  return [
    records.RetrievalRecord(
      f"q{i % 30} w{i // 30}",
      (records.Passage(" ".join(f"w{(i + j) % 30}" for j in range(words))),),
      source_name=name,
    )
    for i in range(count)
  ]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
  """A store of a large source of short texts and two small ones of long."""
  return make_store(
    tmp_path_factory.mktemp("sources") / "store",
    lengths=(8, 120),
    retrieval=lambda: (
      long_and_short("short", 900, 3)
      + long_and_short("long", 300, 100)
      + long_and_short("rare", 100, 60)
    ),
    parallel=parallel,
  )


def test_plans_of_batches_of_one_source_hold_every_step_with_few_pads(sources):
  spec = batch_lib.BatchSpec(32, 0, 6, 0)
  mixed = mixture.Mixture(
    2.0, (("long", 1.0), ("rare", 0.002), ("short", 3.0)), one_source=True
  )
  steps = 3000
  plans = row_plans.make_plans(sources, spec, 0, mixed, steps)
  kinds = drawing.kinds_of_steps(sources, spec, 0, mixed, np.arange(steps))
  assert len(np.unique(kinds[:, 0])) == 3
  assert plans.padding < 0.04
  real = computed = 0
  rare = np.flatnonzero(kinds[:, 0] == 1)
  for step in (*range(100), *rare):
    batch = raw_batch(sources, int(step), spec, plans=plans.plans, mixed=mixed)
    of_step = sum(r["segment"].size for r in batch["texts"]["passage"])
    # The last resort is not needed, not even for the rare source.
    assert of_step < sum(map(packing.tokens, plans.plans[-1].values()))
    if step not in rare:
      computed += of_step
      real += sum((r["segment"] > 0).sum() for r in batch["texts"]["passage"])
  assert 1 - real / computed < 0.05
  # The largest plan is for the source of long texts, not for all spread.
  lengths = drawing.lengths_of_steps(sources, spec, 0, mixed, 0, steps)
  assert plans.last_resort
  largest = plans.plans[-2]
  heaviest = lengths["passage"].sum(axis=1).max()
  assert sum(map(packing.tokens, largest.values())) < 1.2 * heaviest


def test_plans_are_chosen_for_steps_of_the_run_each_once(sources, monkeypatch):
  """Even if portions of steps do not divide the run."""
  spec = batch_lib.BatchSpec(32, 0, 6, 0)
  monkeypatch.setattr(row_plans, "_SCANNED", 76 * 8 * 2)  # 8 times 2 steps.
  monkeypatch.setattr(row_plans, "_STEPS_OF_A_SOURCE", 17)
  # The known positives of many steps would fill the memory.
  monkeypatch.setattr(drawing, "_known_positives", None)
  kinds_of_steps, steps = drawing.kinds_of_steps, []

  def noting(*args):
    steps.append(args[-1].tolist())
    return kinds_of_steps(*args)

  monkeypatch.setattr(drawing, "kinds_of_steps", noting)
  mixed = mixture.Mixture(2.0, one_source=True)
  row_plans.make_plans(sources, spec, 0, mixed, 17)
  assert sorted(steps[-1]) == list(range(17))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_share_a_batch_of_one_source(sources, hosts):
  spec = batch_lib.BatchSpec(32, 0, 8, 0)
  mixed = mixture.Mixture(2.0, (("long", 1.0),), one_source=True)
  for step in (5, 10**6):
    whole = leaves(raw_batch(sources, step, spec, mixed=mixed))
    parts = [
      leaves(
        raw_batch(
          sources,
          step,
          spec,
          host_rows=lambda size, host=host: np.arange(size)[host::hosts],
          mixed=mixed,
        )
      )
      for host in range(hosts)
    ]
    for name, leaf in whole.items():
      union = np.empty_like(leaf)
      for host, part in enumerate(parts):
        union[host::hosts] = part[name]
      np.testing.assert_array_equal(union, leaf, err_msg=name)


def test_a_step_that_was_not_looked_at_has_rows_too(store, monkeypatch):
  monkeypatch.setattr(row_plans, "_SCANNED", 64)
  monkeypatch.setattr(row_plans, "_PACKED", 64)
  spec = batch_lib.BatchSpec(0, 0, 0, 8)
  plans = plans_of(store, spec, steps=1000)
  assert plans.last_resort
  with pytest.raises(ValueError, match="step 3 do not fit"):
    raw_batch(store, 3, spec, plans=[{"passage": (packing.Block(1, 16, 4),)}])
  tokens = drawing.lengths_of_steps(store, spec, 0, MIXTURE, 0, 30)
  usual = int(np.median(tokens["passage"].sum(axis=1)))
  tight = {"passage": (packing.Block(1, usual, 8),)}
  shapes = {
    raw_batch(store, step, spec, plans=[tight, plans.plans[-1]])["texts"][
      "passage"
    ][0]["ids"].shape
    for step in range(30)
  }
  (last,) = plans.plans[-1]["passage"]
  assert shapes == {(1, usual), (8, last.length)}


def test_a_stream_of_size_0_is_absent(store):
  batch = batch_of_step(store, 0, batch_lib.BatchSpec(0, 0, 4, 0))
  assert batch.keys() == {"parallel"}
  assert not raw_batch(store, 0, batch_lib.BatchSpec(0, 0, 0, 0, 5))["texts"]
  batch = batch_of_step(store, 0, batch_lib.BatchSpec(4, 0, 0, 0))
  assert batch["retrieval"]["passage_text"].shape == (4, 1, 2)


# Token ids of the words, as `make_store` numbers them.
def words(ids, kind):
  base = ("q", "p", "n", "w", "e", "de", "fi", "m").index(kind) * 30 + 3
  return ids - base


def whole(hashes):
  """Returns hashes as one number each, int64; -1 for no text."""
  return np.ascontiguousarray(hashes).view(np.int64)[..., 0]


def test_passages_are_the_rows_own(store):
  for step in range(20):
    part = batch_of_step(store, step)["retrieval"]
    row = words(part["query"]["ids"][:, 1], "q")
    ids, valid = part["passage"]["ids"], part["passage_valid"]
    np.testing.assert_array_equal(words(ids[:, 0, 1], "p"), row)
    # All hard negatives of the row, at most two, without repetition.
    assert valid[:, 0].all()
    np.testing.assert_array_equal(
      valid[:, 1:].sum(axis=1), np.minimum(row % 5, 2)
    )
    for i in range(len(row)):
      negatives = ids[i, 1:][valid[i, 1:]]
      assert (words(negatives[:, 1], "n") == row[i]).all()
      assert len(set(negatives[:, 2])) == len(negatives)
    # Missing ones are padding, without a hash that could match.
    assert (ids[~valid] == PAD).all()
    assert not part["passage"]["mask"][~valid].any()
    for name in ("passage_text", "passage_sequence"):
      np.testing.assert_array_equal(whole(part[name]) != -1, valid)


@pytest.mark.parametrize(("pairs", "negatives"), [(8, 2), (2, 0)])
def test_known_positives_are_those_that_are_in_the_batch(
  store, pairs, negatives
):
  spec = dataclasses.replace(SPEC, retrieval=pairs, hard_negatives=negatives)
  for step in range(10):
    part = batch_of_step(store, step, spec)["retrieval"]
    # A question has at most 3, and a batch holds no more than its passages.
    most = min(3, pairs * (1 + negatives))
    assert part["positive_sequence"].shape == (pairs, most, 2)
    row = words(part["query"]["ids"][:, 1], "q")
    passage = words(part["passage"]["ids"][..., 1], "p")
    sequence = whole(part["passage_sequence"])
    for i, known in enumerate(whole(part["positive_sequence"])):
      own = part["passage_valid"] & (passage == row[i])
      expected = np.unique(sequence[own])
      np.testing.assert_array_equal(np.unique(known[known != -1]), expected)
      assert sequence[i, 0] in expected
      # They are at the front, so that a loss may ignore the rest.
      assert (known[: len(expected)] != -1).all()


def test_sequences_are_equal_where_what_is_encoded_is(store):
  batch = batch_of_step(store, 0)
  for stream, role, name in (
    ("retrieval", "query", "query_sequence"),
    ("retrieval", "passage", "passage_sequence"),
    ("parallel", "sentence", "sequence"),
    ("monolingual", "sentence", "sequence"),
  ):
    part = batch[stream]
    sequence = whole(part[name]).ravel()
    ids = part[role]["ids"].reshape(sequence.size, -1)
    _, alike = np.unique(ids, axis=0, return_inverse=True)
    np.testing.assert_array_equal(
      alike[:, None] == alike, sequence[:, None] == sequence
    )


def test_all_positives_and_hard_negatives_are_read_in_turn(store):
  seen = {"p": {}, "n": {}}
  steps = 20 * 4 // 8  # Four epochs.
  for step in range(steps):
    part = batch_of_step(store, step)["retrieval"]
    row = words(part["query"]["ids"][:, 1], "q")
    ids = part["passage"]["ids"]
    for i, number in enumerate(row.tolist()):
      seen["p"].setdefault(number, []).append(int(ids[i, 0, 2]))
      negatives = ids[i, 1:, 2][part["passage_valid"][i, 1:]]
      seen["n"].setdefault(number, []).extend(negatives.tolist())
  for number in range(20):
    positives, negatives = seen["p"][number], seen["n"].get(number, [])
    assert len(positives) == 4
    assert len(set(positives[: 1 + number % 3])) == 1 + number % 3
    # Two visits read all four.
    if number % 5 == 4:
      assert len(set(negatives[:4])) == len(set(negatives[4:8])) == 4


def test_padding_is_masked_and_nothing_else(store):
  for step in range(5):
    part = batch_of_step(store, step)["monolingual"]["sentence"]
    np.testing.assert_array_equal(part["mask"], part["ids"] != PAD)
    assert (part["ids"][:, 0] == 1).all()
    last = part["mask"].sum(axis=1) - 1
    assert (part["ids"][np.arange(4), last] == 2).all()


def test_translations_stay_together(store):
  for step in range(10):
    ids = batch_of_step(store, step)["parallel"]["sentence"]["ids"][:, :, 1]
    # German comes before English, Finnish after it.
    is_german = words(ids[:, 0], "de") >= 0
    for kind, english, other in (
      ("de", ids[is_german, 1], ids[is_german, 0]),
      ("fi", ids[~is_german, 0], ids[~is_german, 1]),
    ):
      number = words(english, "e")
      assert ((number >= 0) & (number < 30)).all()
      np.testing.assert_array_equal(words(other, kind), number)


@pytest.mark.parametrize("step", [0, 7, 10**9])
def test_a_batch_is_a_function_of_seed_and_step(store, step):
  assert_equal(batch_of_step(store, step), batch_of_step(store, step))
  for other in (
    batch_of_step(store, step + 1),
    batch_of_step(store, step, seed=1),
  ):
    same = [
      np.array_equal(
        batch_of_step(store, step)[stream][name], other[stream][name]
      )
      for stream, name in (
        ("retrieval", "query_text"),
        ("parallel", "text"),
        ("monolingual", "text"),
        ("masked", "targets"),
      )
    ]
    assert not any(same)


def test_an_epoch_reads_every_row_once(store):
  spec = batch_lib.BatchSpec(4, 0, 0, 5)
  for stream, name, size in (
    ("retrieval", "query_text", 20),
    ("monolingual", "text", 25),
  ):
    for epoch in range(2):
      read = np.concatenate(
        [
          whole(batch_of_step(store, step, spec)[stream][name])
          for step in range(5 * epoch, 5 * epoch + 5)
        ]
      )
      assert len(set(read.tolist())) == size


@pytest.mark.parametrize("hosts", [2, 3])
def test_the_hosts_rows_together_are_the_global_batch(store, hosts):
  whole = leaves(raw_batch(store, 11))
  for host in range(hosts):

    def share(size, host=host):
      return np.arange(size)[host::hosts]  # A mesh may interleave hosts.

    part = leaves(raw_batch(store, 11, host_rows=share))
    assert part.keys() == whole.keys()
    for name, leaf in whole.items():
      np.testing.assert_array_equal(
        part[name], leaf[share(len(leaf))], err_msg=name
      )


def test_a_global_batch_split_otherwise_reads_the_same_rows(store):
  one = batch_of_step(store, 3, batch_lib.BatchSpec(0, 0, 8, 0))["parallel"]
  two = [
    batch_of_step(store, step, batch_lib.BatchSpec(0, 0, 4, 0))["parallel"]
    for step in (6, 7)
  ]
  np.testing.assert_array_equal(
    one["text"], np.concatenate([part["text"] for part in two])
  )


def restored(part):
  """Returns the token ids before words were hidden."""
  ids = part["ids"].copy()
  rows, slots = np.nonzero(part["valid"])
  ids[rows, part["positions"][rows, slots]] = part["targets"][rows, slots]
  return ids


def test_masked_text_is_monolingual_text_in_an_order_of_its_own(store):
  spec = batch_lib.BatchSpec(0, 0, 0, 25, 25)
  for step in range(2):  # Each step is an epoch.
    batch = batch_of_step(store, step, spec)
    masked = restored(batch["masked"])
    plain = batch["monolingual"]["sentence"]["ids"]
    assert sorted(masked.tolist()) == sorted(plain.tolist())
    assert (masked != plain).any()
    assert (batch["masked"]["ids"] != masked).any()
    np.testing.assert_array_equal(batch["masked"]["mask"], masked != PAD)


def test_later_epochs_hide_other_words(store):
  spec = batch_lib.BatchSpec(0, 0, 0, 0, 25)
  hidden = {}
  for epoch in range(20):
    part = batch_of_step(store, epoch, spec)["masked"]
    for row, ids in enumerate(restored(part).tolist()):
      places = tuple(part["positions"][row][part["valid"][row]].tolist())
      hidden.setdefault(tuple(ids), []).append(places)
  for ids, places in hidden.items():
    inside = sum(token not in (PAD, 1, 2) for token in ids)
    # Each word of a text was hidden in some epoch.
    assert set().union(*places) == set(range(1, 1 + inside))


def test_other_seeds_hide_other_words_at_the_same_position(store):
  spec = batch_lib.BatchSpec(0, 0, 0, 0, 25)
  one, two = (batch_of_step(store, 0, spec, seed)["masked"] for seed in (0, 1))
  alike = (one["mask"] == two["mask"]).all(axis=1)
  assert (one["positions"][alike] != two["positions"][alike]).any()


def test_masks_of_a_global_batch_split_otherwise_are_the_same(store):
  one = batch_of_step(store, 3, batch_lib.BatchSpec(0, 0, 0, 0, 8))["masked"]
  two = [
    batch_of_step(store, step, batch_lib.BatchSpec(0, 0, 0, 0, 4))["masked"]
    for step in (6, 7)
  ]
  for name in ("positions", "targets"):
    np.testing.assert_array_equal(
      one[name], np.concatenate([part[name] for part in two])
    )


def test_masked_text_needs_a_masker_and_monolingual_rows(store, tmp_path):
  spec = batch_lib.BatchSpec(0, 0, 0, 0, 4)
  with pytest.raises(ValueError, match=r"batch\.masked is 4.*make_masker"):
    reader.batches("in_process", store, spec, (), 0, MIXTURE, 0, 1)
  with pytest.raises(ValueError, match=r"batch\.masked is 4.*make_masker"):
    reader.batch_of_step(store, spec, (), 0, MIXTURE, 0)
  poorer = make_store(tmp_path / "store", parallel=parallel)
  message = (
    "no monolingual rows: set batch.masked=0 and loss.masked_lm.weight=0, or"
    " add monolingual text"
  )
  with pytest.raises(ValueError, match=re.escape(message)):
    drawing.check(poorer, spec, MIXTURE)


def test_resume_reads_the_same_batches(store):
  from_0 = list(batches("in_process", store, 0, 9))
  assert [step for step, _ in from_0] == list(range(9))
  resumed = list(batches("in_process", store, 5, 9))
  for (step, batch), (resumed_step, again) in zip(
    from_0[5:], resumed, strict=True
  ):
    assert step == resumed_step
    assert_equal(batch, again)


@pytest.mark.slow
def test_both_readers_give_identical_batches(store):
  for wanted in (np.arange, lambda size: np.arange(size)[1::2]):
    for spec in (SPEC, batch_lib.BatchSpec(8, 0, 6, 0)):
      ours = list(batches("in_process", store, 4, 8, spec, wanted))
      theirs = list(batches("tf_data", store, 4, 8, spec, wanted))
      assert [step for step, _ in ours] == [step for step, _ in theirs]
      assert isinstance(theirs[0][0], int)
      for (_, batch), (_, other) in zip(ours, theirs, strict=True):
        assert_equal(batch, other)
  assert not list(batches("tf_data", store, 4, 4))


@pytest.mark.slow
def test_both_readers_give_batches_of_several_shapes(store):
  spec = batch_lib.BatchSpec(0, 0, 0, 8)
  tokens = drawing.lengths_of_steps(store, spec, 0, MIXTURE, 0, 12)
  usual = int(np.median(tokens["passage"].sum(axis=1)))
  longest = int(tokens["passage"].max())
  plans = [
    {"passage": (packing.Block(1, usual, 8),)},
    {"passage": (packing.Block(8, longest, 1), packing.Block(1, 8, 1))},
  ]
  ours, theirs = (
    list(batches(kind, store, 0, 12, spec, plans=plans))
    for kind in ("in_process", "tf_data")
  )
  shapes = set()
  for (step, batch), (other_step, other) in zip(ours, theirs, strict=True):
    assert step == other_step
    assert_equal(batch, other)
    shapes.add(len(batch.texts["passage"]))
  assert shapes == {1, 2}


def test_in_process_needs_no_tensorflow(store, monkeypatch):
  assert reader.choose("auto") == "tf_data"
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  assert reader.choose("auto") == "in_process"
  assert reader.choose("tf_data") == "tf_data"
  assert len(list(batches("in_process", store, 0, 2))) == 2
  with pytest.raises(ImportError, match="reader=in_process"):
    batches("tf_data", store, 0, 2)


def test_at_most_prefetch_batches_are_made_ahead(store, monkeypatch):
  made, original = [], reader.batch_of_step

  def counting(*args, **kwargs):
    made.append(args[-1])
    return original(*args, **kwargs)

  monkeypatch.setattr(reader, "batch_of_step", counting)
  running = batches("in_process", store, 0, 100, prefetch=3)
  next(running)
  running.close()
  assert 1 <= len(made) <= 4
  assert made == sorted(made)


def test_closing_ends_the_thread(store):
  def threads():
    return [t for t in threading.enumerate() if t.name.startswith("batches")]

  running = batches("in_process", store, 0, 100)
  next(running)
  assert len(threads()) == 1
  running.close()
  assert not threads()


@pytest.mark.parametrize(
  "kind", ["in_process", pytest.param("tf_data", marks=pytest.mark.slow)]
)
def test_both_readers_can_be_closed_started_or_not(store, kind):
  for taken in (0, 2):
    running = batches(kind, store, 0, 100)
    with contextlib.closing(running):
      assert [next(running)[0] for _ in range(taken)] == list(range(taken))
    assert not list(running)


def test_an_error_in_the_thread_reaches_the_loop(store, monkeypatch):
  original = reader.batch_of_step

  def failing(*args, **kwargs):
    if args[-1] == 2:
      raise OSError("disk gone")
    return original(*args, **kwargs)

  monkeypatch.setattr(reader, "batch_of_step", failing)
  running = batches("in_process", store, 0, 5)
  assert [next(running)[0], next(running)[0]] == [0, 1]
  with pytest.raises(OSError, match="disk gone"):
    next(running)


@pytest.mark.parametrize("stream", token_store.STREAMS)
def test_a_stream_that_the_store_lacks_is_an_error(store, tmp_path, stream):
  streams = {
    "retrieval": retrieval,
    "parallel": parallel,
    "monolingual": monolingual,
  }
  del streams[stream]
  weights = {
    "retrieval": " and loss.ir.weight=0, loss.language.passages=0,",
    "parallel": " and loss.semantic.weight=0, loss.language.weight=0,",
    "monolingual": " and loss.language.monolingual=0,",
  }
  message = re.escape(f"set batch.{stream}=0{weights[stream]}")
  poorer = make_store(tmp_path / "store", **streams)
  with pytest.raises(ValueError, match=message):
    batches("in_process", poorer, 0, 1)
  with pytest.raises(ValueError, match=message):
    batch_of_step(poorer, 0)


def test_hard_negatives_that_the_store_lacks_are_an_error(tmp_path):
  def without():
    for record in retrieval():
      yield records.RetrievalRecord(record.question, record.positives)

  poorer = make_store(tmp_path / "store", retrieval=without)
  with pytest.raises(ValueError, match=r"set batch\.hard_negatives=0"):
    batches("in_process", poorer, 0, 1, batch_lib.BatchSpec(4, 1, 0, 0))
  batch_of_step(poorer, 0, batch_lib.BatchSpec(4, 0, 0, 0))
