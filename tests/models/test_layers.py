"""Layers in a scan compute what they compute one by one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_batches as rb

from mlir_jax.batches import batch as batch_lib
from mlir_jax.models import architecture, encoder, layers, rows

F, S = architecture.FULL, architecture.SLIDING
DROPOUT = {"hidden_dropout": 0.3, "attention_dropout": 0.2}
FAMILIES = {
  "xlm-roberta": {
    "family": "xlm-roberta",
    "pad_token_id": 1,
    "max_positions": 10,
    "num_layers": 3,
  },
  # The first layer is separate, then come two turns of three layers.
  "modernbert": {
    "family": "modernbert",
    "attention_window": 4,
    "num_layers": 7,
    "layer_types": (F, S, S, F, S, S, F),
  },
}


@pytest.mark.parametrize(
  ("kinds", "scan"),
  [
    ("aaaa", (0, 1, 4)),
    ("fssfssfs", (0, 3, 2)),
    ("1ssfssfssfssf", (1, 3, 4)),
    ("ab", None),
    ("a", None),
  ],
)
def test_the_scan_leaves_the_fewest_layers_to_compile(kinds, scan):
  assert layers.find(tuple(kinds)) == scan


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_scan_computes_what_separate_layers_do_to_1e_12(family):
  """Compares states and gradients, with dropout."""
  with jax.enable_x64(True):
    config = rb.float64(**FAMILIES[family], **DROPOUT)
    scanned = dataclasses.replace(config, scan_layers=True, remat="dots")
    params = rb.make_params(config)["encoder"]
    random = np.random.default_rng(0)
    ids = random.integers(5, 200, (6, 8), np.int32)
    mask = np.arange(8) < random.integers(1, 9, (6, 1))
    seeds = random.integers(2**32, size=6, dtype=np.uint32)
    texts = (rows.one_a_row(ids, mask, seeds),)
    weights = random.normal(size=(6, 8, 16))

    def compute(config):
      def total(params):
        tower = layers.stack(config, params, lambda *leaves: jnp.stack(leaves))
        assert (layers.STACKED in tower) == config.scan_layers
        (states,) = encoder.hidden_states(config, tower, texts)
        return (weights * states).sum(), states

      return jax.jit(jax.value_and_grad(total, has_aux=True))(params)

    expected = compute(config)
    rb.assert_same(compute(scanned), expected)
    plain = compute(dataclasses.replace(scanned, hidden_dropout=0.0))
    assert not np.allclose(plain[0][1], expected[0][1])


@pytest.mark.slow
@pytest.mark.parametrize(
  ("towers", "remat", "chunk"), [("separate", "none", 0), ("tied", "layer", 8)]
)
def test_a_step_with_a_scan_has_the_same_gradients_to_1e_12(
  towers, remat, chunk
):
  """On 8 devices with FSDP, with dropout, and in chunks."""
  with jax.enable_x64(True):
    config = rb.float64(remat=remat, num_layers=2, **DROPOUT)
    spec = batch_lib.BatchSpec(16, 0, 0, 0, tied=towers == "tied")
    params = rb.make_params(config, towers)
    batch = rb.make_batch(spec, rb.packed(spec))
    expected, found = (
      rb.gradients(
        params,
        batch,
        config=dataclasses.replace(config, scan_layers=scan_layers),
        devices=8,
        fsdp=True,
        chunk_rows=chunk,
        key=jax.random.key(1),
      )
      for scan_layers in (False, True)
    )
    rb.assert_same(found, expected)
