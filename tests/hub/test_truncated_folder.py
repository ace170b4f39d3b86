"""Vectors that are cut agree with those of sentence-transformers."""

import dataclasses

import numpy as np
import pytest
import sentence_models

from mlir_jax import contract as contract_lib
from mlir_jax.hub import card_usage, check, settings_files
from mlir_jax.hub import folder as folder_lib
from mlir_jax.models import layout
from mlir_jax.retrieval import model as model_lib

SIZE = 10
TEXTS = ["apple river", "stone cloud garden", "window"]


def unit(vectors):
  return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.slow
def test_a_folder_with_truncate_dim_is_read_and_written(tmp_path):
  theirs = sentence_models.save(tmp_path / "cut", truncate_dim=SIZE)
  sentence_models.save(tmp_path / "whole")
  expected = theirs.encode_query(TEXTS)
  assert expected.shape == (3, SIZE)
  # It does not scale what is left; the cosines are the same.
  cut = model_lib.load(str(tmp_path / "cut"))
  assert cut.width == SIZE and cut.contract.truncate_dim == SIZE
  np.testing.assert_allclose(cut.encode(TEXTS), unit(expected), atol=1e-6)
  whole = model_lib.load(str(tmp_path / "whole"))
  assert whole.width == 24 and whole.contract.truncate_dim == 0
  chosen = model_lib.load(str(tmp_path / "whole"), truncate_dim=SIZE)
  np.testing.assert_allclose(
    chosen.encode(TEXTS), unit(whole.encode(TEXTS)[:, :SIZE]), atol=1e-6
  )
  with pytest.raises(ValueError, match=r"is 25, .* have 24 numbers"):
    model_lib.load(str(tmp_path / "whole"), truncate_dim=25)

  # What we write, both sides read.
  contract = settings_files.exported_contract(chosen.contract)
  written = tmp_path / "export"
  folder_lib.write(
    written,
    chosen.params,
    chosen.encoder_config,
    contract,
    chosen.text_encoder.tokenizer,
    tower="both",
    provenance={},
    step=3,
  )
  checked = check.check(
    written,
    chosen.params,
    chosen.encoder_config,
    contract,
    chosen.text_encoder.tokenizer,
    "both",
  )
  assert checked.difference < 1e-5
  found = layout.read(written)
  assert found.encoding.truncate_dim == SIZE and found.ours is not None
  used = card_usage.make("NAME", "both", chosen.encoder_config, contract)
  assert f'SentenceTransformer("NAME", truncate_dim={SIZE})' in used
  again = model_lib.load(str(written))
  np.testing.assert_allclose(
    again.encode(TEXTS), chosen.encode(TEXTS), atol=1e-6
  )


def test_the_contract_says_how_many_numbers_a_vector_keeps():
  role = contract_lib.Role("", 8, "query")
  whole = contract_lib.EncodingContract(
    "mean", True, " ", role, role, role, "abc", ()
  )
  cut = dataclasses.replace(whole, truncate_dim=16)
  assert (whole.width(32), cut.width(32), cut.width(16)) == (32, 16, 16)
  with pytest.raises(ValueError, match=r"truncate_dim is 16, .* have 8"):
    cut.width(8)
  assert contract_lib.EncodingContract.from_dict(cut.to_dict()) == cut
  # A contract of an older version has no such field.
  older = {k: v for k, v in whole.to_dict().items() if k != "truncate_dim"}
  assert contract_lib.EncodingContract.from_dict(older) == whole
  with pytest.raises(ValueError, match="truncate_dim is -1"):
    contract_lib.EncodingContract.from_dict({**older, "truncate_dim": -1})
