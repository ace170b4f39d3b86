"""Promises of the head for masked language modelling."""

import hf_models
import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from mlir_jax.models import (
  architecture,
  encoder,
  families,
  masked_lm,
  pretrained,
  weights,
)
from mlir_jax.models import rows as rows_lib


@pytest.fixture(scope="module", params=hf_models.FAMILIES)
def path(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp("masked_lm") / request.param
  return hf_models.random_model(folder, request.param, masked_lm=True)


@pytest.fixture
def bert_path(tmp_path):
  return hf_models.random_model(tmp_path / "bert", "bert", masked_lm=True)


def tokens_for(config):
  rng = np.random.default_rng(0)
  mask = np.arange(13) < np.array([13, 1, 6])[:, None]
  ids = rng.integers(4, config.vocab_size, mask.shape, np.int32)
  return {"ids": np.where(mask, ids, config.pad_token_id), "mask": mask}


def our_logits(config, params, head, tokens):
  rows = rows_lib.one_a_row(tokens["ids"], tokens["mask"])
  (hidden,) = encoder.hidden_states(config, params, [rows])
  table = params["embeddings"]["token"]
  return np.asarray(masked_lm.logits(config, head, table, hidden))


def pytorch_logits(folder, tokens):
  model = transformers.AutoModelForMaskedLM.from_pretrained(
    folder, trust_remote_code=False
  ).eval()
  with torch.no_grad():
    return model(
      input_ids=torch.from_numpy(tokens["ids"]).long(),
      attention_mask=torch.from_numpy(tokens["mask"]).long(),
    ).logits.numpy()


def load(folder):
  config, params = pretrained.load(str(folder))
  return config, params, pretrained.load_masked_lm(str(folder))


def assert_close(ours, theirs, mask):
  error = np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))
  # The order of float32 sums, hence the last digits, depends on the processor.
  assert error[mask].max() < 2e-5


def test_the_scores_equal_pytorchs(path):
  config, params, head = load(path)
  tokens = tokens_for(config)
  ours = our_logits(config, params, head, tokens)
  assert ours.dtype == np.float32
  assert np.isneginf(ours[..., config.vocab_size :]).all()
  theirs = pytorch_logits(path, tokens)
  assert_close(ours[..., : config.vocab_size], theirs, tokens["mask"])


def test_what_we_write_is_read_by_pytorch_and_by_us(path, tmp_path):
  config, params, head = load(path)
  tensors = weights.to_hf(params, config, head)
  save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
  transformers.AutoConfig.from_pretrained(
    path, trust_remote_code=False
  ).save_pretrained(tmp_path)
  _, report = transformers.AutoModelForMaskedLM.from_pretrained(
    tmp_path, output_loading_info=True, trust_remote_code=False
  )
  assert not report["missing_keys"]
  assert not report["unexpected_keys"]
  tokens = tokens_for(config)
  np.testing.assert_array_equal(
    pytorch_logits(tmp_path, tokens), pytorch_logits(path, tokens)
  )
  jax.tree.map(
    np.testing.assert_array_equal, load(tmp_path)[1:], (params, head)
  )


def test_an_encoder_alone_has_no_head(tmp_path):
  folder = hf_models.random_model(tmp_path, "bert")
  assert pretrained.load_masked_lm(str(folder)) is None


def test_a_part_of_a_head_is_refused(bert_path):
  file = bert_path / "model.safetensors"
  tensors = load_file(file)
  del tensors["cls.predictions.transform.dense.bias"]
  save_file(tensors, file)
  with pytest.raises(
    weights.WeightsError, match=r"transform\.dense\.bias \[24\] is missing"
  ):
    pretrained.load_masked_lm(str(bert_path))


def change(folder, **changed):
  """Rewrites some of the tensors; None deletes one."""
  file = folder / "model.safetensors"
  tensors = load_file(file) | changed
  kept = {name: t for name, t in tensors.items() if t is not None}
  save_file(kept, file, {"format": "pt"})
  return tensors


def test_a_head_with_a_table_or_bias_of_its_own_is_refused(path):
  names = families.NAMES[load(path)[0].family]
  stored = load_file(path / "model.safetensors")
  table = next(
    name for name in stored if "tok_emb" in name or "word_emb" in name
  )
  changes = dict.fromkeys(names.table_copies, stored[table] * 1.1)
  changes |= dict.fromkeys(
    names.token_bias[1:], stored[names.token_bias[0]] + 1
  )
  for name, array in changes.items():
    change(path, **{name: array})
    with pytest.raises(weights.WeightsError, match=name.replace(".", r"\.")):
      pretrained.load_masked_lm(str(path))
    change(path, **{name: None})
  copies = dict.fromkeys(names.table_copies, stored[table])
  change(path, **copies)
  assert pretrained.load_masked_lm(str(path)) is not None
  change(path, **dict.fromkeys(copies))


def test_an_untied_head_is_refused(tmp_path):
  folder = hf_models.random_model(
    tmp_path, "bert", masked_lm=True, tie_word_embeddings=False
  )
  with pytest.raises(weights.WeightsError, match=r"decoder\.weight"):
    pretrained.load_masked_lm(str(folder))
  change(folder, **{"cls.predictions.decoder.weight": None})
  with pytest.raises(weights.WeightsError, match="tie_word_embeddings"):
    pretrained.load_masked_lm(str(folder))


def test_either_copy_of_the_bias_will_do(bert_path):
  expected = load(bert_path)[2]["token_bias"]
  stored = load_file(bert_path / "model.safetensors")
  change(
    bert_path,
    **{
      "cls.predictions.decoder.bias": stored["cls.predictions.bias"],
      "cls.predictions.bias": None,
    },
  )
  np.testing.assert_array_equal(load(bert_path)[2]["token_bias"], expected)


def test_bfloat16_scores_are_summed_in_float32():
  config = architecture.EncoderConfig(300, 32, 1, 4, 64, 20, dtype="bfloat16")
  params = encoder.init_params(config, "tied", jax.random.key(0), True)
  hidden = jax.random.normal(jax.random.key(1), (2, 3, 32), "bfloat16")
  scores = masked_lm.logits(
    config,
    params[encoder.MASKED_LM],
    params["encoder"]["embeddings"]["token"],
    hidden,
  )
  assert scores.shape == (2, 3, 512)
  assert scores.dtype == np.float32
