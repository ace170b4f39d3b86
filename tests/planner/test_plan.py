"""A plan has the run's own step, and bounds that are computed by hand here."""

import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from flax import traverse_util

from mlir_jax import config, config_files, sharding
from mlir_jax.batches import drawing, mixture, packing
from mlir_jax.data import preparation
from mlir_jax.models import encoder, hf_config
from mlir_jax.planner import backbones, chips, lowering, rows, table
from mlir_jax.training import build

CHIP = chips.CHIPS["v5e"]


def small():
  """A config whose step is compiled in seconds: the IR loss, one layer."""
  c = config.default()
  c.tokenizer.vocab_size = 500
  c.model.hidden_size = 32
  c.model.num_layers = 1
  c.model.num_heads = 2
  c.model.intermediate_size = 64
  c.model.max_positions = 16
  for role in ("query", "passage", "sentence"):
    c.encoding[role].max_length = 16
  c.batch.retrieval = 32
  c.batch.parallel = c.batch.monolingual = 0
  c.loss.semantic.weight = c.loss.language.weight = 0.0
  c.train.steps = 100
  return c


def cpu_row(c, devices=4, model=1):
  """A row of the plan for a slice of CPU devices."""
  mesh = sharding.make_mesh(model=model, devices=jax.devices()[:devices])
  return rows.make_row(c, backbones.encoder_config(c), mesh, CHIP, (2, 2))


@pytest.fixture(scope="module")
def compiled_rows():
  """Rows of the same batch: at once, in chunks, and split in chunks."""
  settings = {
    "whole": (32, 0, "replicated"),
    "chunked": (32, 16, "replicated"),
    "split": (32, 16, "fsdp"),
  }
  return {
    name: cpu_row(rows.vary(small(), *setting))
    for name, setting in settings.items()
  }


@pytest.mark.parametrize(
  "topology, count, gigabytes",
  [
    ("v5e:4x4", 16, 100),
    ("v5e:16x16", 256, 200),
    ("v6e:16x16", 256, 400),
    ("v4:4x4x4", 64, 300),
    ("v5p:2x2x1", 4, 200),
    ("v5e:1x1", 1, 0),
  ],
)
def test_a_slice_sends_by_its_links(topology, count, gigabytes):
  chip, axes = chips.parse(topology)
  assert chips.count(axes) == count
  assert chip.sends(axes) == gigabytes * 1e9


@pytest.mark.parametrize(
  "topology",
  ["v9:2x2", "v5e", "v5e:2xtwo", "v5e:0x2", "v5e:4x4x4", "v6e:16x32"],
)
def test_a_slice_that_does_not_exist_is_refused(topology):
  with pytest.raises(ValueError, match=f"--topology={topology}"):
    chips.parse(topology)


# As transformers counts them, without the pooler: a square and a row.
@pytest.mark.parametrize(
  "name, parameters",
  [
    ("xlmr_base", 278_043_648 - 768 * 769),
    ("xlmr_large", 559_890_432 - 1024 * 1025),
    ("mbert", 177_853_440 - 768 * 769),
    ("e5_small", 117_653_760 - 384 * 385),
  ],
)
def test_the_backbones_have_the_size_that_transformers_counts(name, parameters):
  shape = backbones.encoder_config(config_files.load(name))
  params = traverse_util.flatten_dict(encoder.abstract_params(shape, "tied"))
  padding = (shape.padded_vocab_size - shape.vocab_size) * shape.hidden_size
  found = sum(math.prod(leaf.shape) for leaf in params.values())
  assert found - padding == parameters


def test_an_unknown_backbone_needs_its_config(tmp_path):
  c = small()
  c.model.pretrained = "someone/encoder"
  with pytest.raises(ValueError, match="--encoder=FILE"):
    backbones.encoder_config(c)
  shape = backbones.encoder_config(config_files.load("mbert"))
  file = tmp_path / "config.json"
  file.write_text(json.dumps(hf_config.to_dict(shape)))
  c.model.dtype = "bfloat16"
  assert backbones.encoder_config(c, str(file)) == shape


def test_without_texts_each_has_the_maximum_length():
  c = config_files.load("xlmr_base")
  mesh = sharding.make_mesh(devices=jax.devices()[:8])
  full = lowering.full_plans(c, mesh)
  # 1,024 queries of 32 tokens, as many passages of 128 and sentences of 64.
  assert packing.tokens(full.plans[0]["query"]) == 1024 * 32
  assert packing.tokens(full.plans[0]["passage"]) == 1024 * (128 + 64)
  assert full.padding == 0
  c.batch.parallel, c.batch.chunk_rows = 256, 512
  chunked = lowering.full_plans(c, mesh).plans[0]["passage"]
  assert packing.tokens(chunked) == 1024 * 128 + 512 * 64


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """The config of a tiny run, and the store that was prepared for it."""
  root = tiny.write_folder(tmp_path_factory.mktemp("collection"))
  c = tiny.make_config(root)
  tiny.train_pairs_alone(c)
  c.encoding.passage.max_length = c.model.max_positions = 48
  c.batch.retrieval = 64
  c.train.steps = 4
  folder = tmp_path_factory.mktemp("run")
  preparation.prepare(c, str(folder), lambda *_: None)
  return c, rows.open_store(str(folder))


@pytest.mark.slow
def test_with_a_store_a_plan_has_its_rows_texts_and_padding(prepared):
  c, store = prepared
  mesh = sharding.make_mesh(devices=jax.devices()[:4])
  row = rows.make_row(c, backbones.encoder_config(c), mesh, CHIP, (2, 2), store)
  spec = build.batch_spec(c)
  mixed = mixture.Mixture(2.0)
  steps = [drawing.draw(store, spec, c.seed, mixed, step) for step in range(4)]
  tokens = [drawing.lengths(store, drawn)["passage"].sum() for drawn in steps]
  assert not row.problem
  assert row.texts == 128
  assert row.tokens == np.mean(tokens)
  plan = build.make_plans(c, store, mesh).plans[-1]
  assert row.blocks == {
    "passage": [(block.rows, block.length) for block in plan["passage"]]
  }
  computed = sum(count * length for count, length in row.blocks["passage"])
  assert computed < 64 * (16 + 48)  # Those without a store.
  assert row.padding == pytest.approx(1 - row.tokens / computed)
  assert row.texts_per_second * max(row.seconds.values()) == pytest.approx(128)
  packed = " + ".join(f"{n} x {length}" for n, length in row.blocks["passage"])
  assert f"| passage {packed} | {row.padding:.1%} |" in table.to_markdown(
    [row], CHIP
  )


def test_a_store_that_was_encoded_otherwise_is_refused(prepared):
  c, store = prepared
  other = c.copy_and_resolve_references()
  other.encoding.passage.max_length = 12
  with pytest.raises(
    ValueError, match=r"passage\.max_length: 12 here, 48 there"
  ):
    list(
      rows.make_rows(
        other, "v5e:2x2", batches=[64], chunks=[0], shardings=[], store=store
      )
    )


@pytest.mark.slow
def test_a_chunk_costs_turns_and_no_collective(compiled_rows):
  whole, chunked = compiled_rows["whole"], compiled_rows["chunked"]
  assert (whole.texts, whole.chunks, chunked.chunks) == (64, 1, 4)
  assert chunked.flops > whole.flops == whole.model_flops
  assert chunked.model_flops == whole.model_flops
  for row in (whole, chunked):
    assert all(found["loops"] == () for found in row.collectives)
    assert row.mfu * max(row.seconds.values()) == pytest.approx(
      row.model_flops / CHIP.flops
    )
    assert row.chip_hours * row.texts_per_second == pytest.approx(
      row.texts * 100 * 4 / 3600
    )


@pytest.mark.slow
def test_work_that_several_chips_repeat_counts_on_each(compiled_rows):
  whole = compiled_rows["whole"]
  repeated = cpu_row(rows.vary(small(), 32, 0, "replicated"), model=2)
  assert repeated.flops == 2 * whole.flops
  assert repeated.seconds["compute"] == 2 * whole.seconds["compute"]
  assert repeated.model_flops == whole.model_flops


@pytest.mark.slow
def test_fsdp_splits_the_state_and_gathers_it_once(compiled_rows):
  replicated, split = compiled_rows["chunked"], compiled_rows["split"]
  ratio = split.memory["arguments"] / replicated.memory["arguments"]
  assert 0.25 < ratio < 0.3
  kinds = {found["kind"] for found in split.collectives}
  assert {"all-gather", "reduce-scatter"} <= kinds
  assert all(found["loops"] == () for found in split.collectives)


def test_all_streams_of_a_batch_grow_alike():
  c = small()
  c.batch.parallel = 16
  grown = rows.vary(c, 96, 8, "fsdp")
  assert dict(grown.batch) == dict(c.batch) | {
    "retrieval": 96, "parallel": 48, "chunk_rows": 8,
  }  # fmt: skip
  assert grown.mesh.fsdp
  assert c.batch.retrieval == 32
  with pytest.raises(ValueError, match=r"batch\.parallel a part of a row"):
    rows.vary(c, 33, 0, "fsdp")


def test_an_impossible_batch_is_refused_before_any_is_compiled(monkeypatch):
  c = small()
  c.batch.parallel = 16
  mesh = sharding.make_mesh(devices=jax.devices()[:4])
  monkeypatch.setattr(lowering, "make_mesh", lambda *_: (CHIP, (2, 2), mesh))
  monkeypatch.setattr(rows, "make_row", lambda *_: pytest.fail("compiled"))
  with pytest.raises(ValueError, match=r"batch\.parallel a part of a row"):
    list(
      rows.make_rows(
        c, "v5e:2x2", batches=[32, 33], chunks=[0], shardings=["replicated"]
      )
    )


def test_a_step_that_cannot_run_is_a_row_that_says_why():
  odd = cpu_row(rows.vary(small(), 33, 0, "replicated"))
  assert "batch.retrieval is 33" in odd.problem
  odd_chunk = cpu_row(rows.vary(small(), 32, 26, "replicated"))
  assert "batch.chunk_rows is 26" in odd_chunk.problem
  lines = table.to_markdown([odd, odd_chunk], CHIP).splitlines()
  assert len(lines) == 4
  assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
  "message",
  [
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.31G of"
    " 15.75G hbm. Exceeded hbm capacity by 2.56G.\nMore.",
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required"
    " for HLO temporaries (18.31G) exceeds available HBM (15.75G).",
  ],
)
def test_a_step_that_does_not_fit_says_by_how_much(message):
  found = rows.out_of_memory(message)
  assert found == "does not fit: 18.31 GiB of 15.75, 2.56 too many"


# Only this test sees the words of a TPU's compiler.
@pytest.mark.slow
def test_a_step_is_compiled_for_tpus_that_are_not_there(tmp_path):
  pytest.importorskip("libtpu")
  file = tmp_path / "own.py"
  source = pathlib.Path(__file__).parent
  tests = source.parent
  file.write_text(
    f"import sys\nsys.path[:0] = [{str(source)!r}, {str(tests)!r}]\n"
    "import test_plan\nget_config = test_plan.small\n"
  )
  command = (
    f"{sys.executable} -m mlir_jax.plan --config={file} --topology=v5e:2x2"
    " --batch=32,524288 --chunk=32 --sharding=fsdp"
    f" --output={tmp_path}/plan.json"
  )
  done = subprocess.run(
    command.split(),
    capture_output=True,
    text=True,
    # libtpu ends a process whose XLA_FLAGS are those of a CPU.
    env=os.environ | {"PYTHONPATH": str(tests.parent), "XLA_FLAGS": ""},
  )
  assert not done.returncode, done.stderr
  plan = json.loads((tmp_path / "plan.json").read_text())
  fits, too_large = plan["rows"]
  assert not fits["problem"]
  assert fits["memory"]["total"] < 2**30
  found = {(c["kind"], tuple(c["loops"])) for c in fits["collectives"]}
  assert {("all-gather", ()), ("reduce-scatter", ())} <= found
  assert all(not loops for _, loops in found)
  assert 0 < fits["mfu"] < 1
  (block,) = fits["blocks"]["passage"]
  assert block[1] == 128  # TPUs compute tiles of this width.
  assert "does not fit: " in too_large["problem"]
  assert "too many" in too_large["problem"]
  assert done.stdout.count("| 32 |") == 2  # Its batch and its chunk.
