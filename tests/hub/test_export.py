"""Promises of an export: other libraries give the run's vectors, or no folder.

The libraries are the real ones. Runs are made without training: weights are
drawn at random, large enough to matter, and saved as a checkpoint.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import subprocess
import sys

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentence_transformers
import tiny
import torch
import transformers
from safetensors.numpy import load_file, save_file

from mlir_jax import contract as contract_lib
from mlir_jax import export, workdir
from mlir_jax.checkpoints import manager, metadata
from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.hub import check, settings_files
from mlir_jax.hub import folder as folder_lib
from mlir_jax.models import (
  architecture,
  encoder,
  hf_config,
  layout,
  sealed,
  weights,
)
from mlir_jax.retrieval import encoding, model
from mlir_jax.storage import writing
from mlir_jax.training import provenance, run

# Names the Python of an environment with older versions.
OLD_PYTHON = "MLIR_JAX_OLD_PYTHON"
PACKAGE = pathlib.Path(export.__file__).parents[1]
STEP = 7
LENGTHS = {"query": 8, "passage": 24, "sentence": 16}
ONE_LENGTH = dict.fromkeys(LENGTHS, 24)
TEXTS = ["river", "The river flows through the old town. " * 9, "", "小さな 川"]
RESULTS = {
  "dev/en/mrr@100": 0.75,
  "test/en/mrr@100": 0.5,
  "test/de/mrr@100": 0.25,
  "tatoeba/de-en/accuracy": 0.125,
}
CLS_PROJECTION = {
  "one_length": True,
  "pooling": "cls",
  "projection_size": 8,
  "projection_activation": "tanh",
}
MODERNBERT = {
  "family": "modernbert",
  "type_vocab_size": 0,
  "hidden_size": 24,
  "num_heads": 2,
  "attention_window": 6,
  # Not the defaults of transformers.
  "full_rope_theta": 500.0,
  "sliding_rope_theta": 30.0,
}
# Both generations of transformers and sentence-transformers read these.
SHAPES = {
  "projection": CLS_PROJECTION,
  "bfloat16": {
    "one_length": True,
    "dtype": "bfloat16",
    "projection_size": 8,
    "projection_bias": False,
  },
  "roberta": {"one_length": True, "family": "roberta", "masked_lm": True},
  "xlm-roberta": {
    "one_length": True,
    "family": "xlm-roberta",
    "pooling": "last",
    "projection_size": 8,
  },
  "distilbert": {
    "one_length": True,
    "family": "distilbert",
    "type_vocab_size": 0,
    "masked_lm": True,
  },
  "modernbert": MODERNBERT
  | {
    "one_length": True,
    "masked_lm": True,
    "layer_types": ("full_attention", "sliding_attention") * 2,
    "num_layers": 4,
  },
}
# Only the newer generation reads these: the older has no words for them.
NEWER_SHAPES = {
  "lengths": {},
  "layers": MODERNBERT
  | {
    "lengths": ONE_LENGTH,
    "layer_types": ("sliding_attention", "full_attention"),
  },
}
VERSION_5 = "sentence_transformers.models."


@pytest.fixture(scope="session")
def tokenizer():
  return tokenizer_lib.train(check.SENTENCES * 3, 400)


@pytest.fixture(scope="session")
def make_run(tokenizer, tmp_path_factory):
  """Makes each run folder once: make_run(towers=..., lengths=..., ...)."""
  made = {}

  def make(
    towers="tied",
    lengths=LENGTHS,
    pooling="mean",
    masked_lm=False,
    **shape,
  ):
    key = repr((towers, lengths, pooling, masked_lm, shape))
    if key not in made:
      made[key] = tmp_path_factory.mktemp("run")
      write_run(
        made[key], tokenizer, towers, lengths, pooling, masked_lm, shape
      )
    return made[key]

  return make


def write_run(folder, tokenizer, towers, lengths, pooling, masked_lm, shape):
  c = tiny.make_config(pathlib.Path("some/names"))
  c.model.towers = towers
  c.batch.masked = 16 if masked_lm else 0
  c.loss.masked_lm.weight = 0.5 if masked_lm else 0.0
  prefixes = {"query": "query: ", "passage": "passage: ", "sentence": "text: "}
  contract = contract_lib.PartialContract(
    pooling=pooling,
    normalize=True,
    title_joiner=" | ",
    **{
      role: contract_lib.PartialRole(prefixes[role], lengths[role])
      for role in LENGTHS
    },
  ).complete(tokenizer)
  config = architecture.EncoderConfig(
    **{
      "vocab_size": tokenizer.get_vocab_size(),
      "hidden_size": 24,
      "num_layers": 2,
      "num_heads": 3,
      "intermediate_size": 32,
      "max_positions": 30,
      "pad_token_id": tokenizer_lib.pad_id(tokenizer),
      "initializer_range": 0.3,
    }
    | shape
  )
  draw = np.random.default_rng(0).normal

  def random(path, leaf):
    mean = 1 if path[-1].key == "scale" else 0
    return jnp.asarray(draw(mean, 0.3, leaf.shape), leaf.dtype)

  params = jax.tree_util.tree_map_with_path(
    random, encoder.abstract_params(config, towers, masked_lm)
  )
  writing.write_aside(str(folder / workdir.TOKENIZER), tokenizer.to_str())
  results = folder / workdir.RESULTS / f"step-{STEP}.json"
  writing.write_aside(str(results), json.dumps(RESULTS))
  with contextlib.closing(
    manager.Checkpoints(str(folder / workdir.CHECKPOINTS))
  ) as checkpoints:
    checkpoints.save(
      STEP,
      {"params": params},
      metadata.Description(
        c.to_dict(),
        contract,
        dataclasses.asdict(config),
        provenance.gather("store"),
      ),
      dev=0.75,
    )


@pytest.fixture(scope="session")
def exported(make_run, tmp_path_factory):
  """Exports each run once; returns the run's folder and the export."""
  made = {}

  def make(one_length=False, **settings):
    key = repr((one_length, settings))
    if key not in made:
      folder = tmp_path_factory.mktemp("export") / "model"
      run_folder = make_run(**settings)
      export.export(str(run_folder), "best", str(folder), one_length=one_length)
      made[key] = run_folder, folder
    return made[key]

  return make


def vectors_of(folder, tower="both"):
  """Returns role to sentence-transformers' vectors of TEXTS."""
  loaded = sentence_transformers.SentenceTransformer(
    str(folder), device="cpu", trust_remote_code=False
  )
  encoders = {
    "query": loaded.encode_query,
    "passage": loaded.encode_document,
    "sentence": loaded.encode,
  }
  roles = {"query": ["query"], "passage": ["passage", "sentence"]}
  return {role: encoders[role](TEXTS) for role in roles.get(tower, LENGTHS)}


def contract_of(folder):
  """Returns the contract of an export."""
  return contract_lib.EncodingContract.from_json(
    json.dumps(read_json(folder / sealed.FILE)["contract"])
  )


@functools.cache
def run_vectors(run_folder, contract):
  """Returns role to the run's vectors of TEXTS by a contract, in float32."""
  loaded = model.load(str(run_folder))
  tokenizer = tokenizer_lib.load(str((run_folder / workdir.TOKENIZER).parent))
  text_encoder = encoding.TextEncoder(
    contract,
    tokenizer,
    encoding.make_embed(
      dataclasses.replace(loaded.encoder_config, dtype="float32"), contract
    ),
    loaded.text_encoder.mesh,
    batch_size=8,
  )
  return {
    role: text_encoder.encode(loaded.params, role, TEXTS) for role in LENGTHS
  }


def assert_same(found, run_folder, contract):
  """Compares vectors with the run's vectors by a contract."""
  expected = run_vectors(run_folder, contract)
  for role, vectors in found.items():
    np.testing.assert_allclose(vectors, expected[role], atol=1e-5)


def read_json(path):
  return json.loads(path.read_text())


@pytest.mark.parametrize(
  "lengths, one_length",
  [(LENGTHS, False), (LENGTHS, True), (ONE_LENGTH, False)],
)
def test_sentence_transformers_gives_the_runs_vectors(
  lengths, one_length, exported
):
  run_folder, folder = exported(lengths=lengths, one_length=one_length)
  contract = model.load(str(run_folder)).contract
  contract = settings_files.exported_contract(contract, one_length)
  found = vectors_of(folder)
  assert_same(found, run_folder, contract)
  settings = read_json(folder / "sentence_bert_config.json")
  # Version 5 refuses keys that it doesn't know.
  assert ("query_length" in settings) == (lengths is LENGTHS and not one_length)
  encoding = layout.read(folder).encoding
  assert {role: encoding.role(role).max_length for role in LENGTHS} == {
    role: contract.role(role).max_length for role in LENGTHS
  }


def test_separate_towers_are_a_folder_each(exported):
  run_folder, folder = exported(towers="separate")
  contract = settings_files.exported_contract(
    model.load(str(run_folder)).contract
  )
  found = {}
  for tower in ("query", "passage"):
    assert layout.read(folder / tower).ours["tower"] == tower
    found |= vectors_of(folder / tower, tower)
  assert_same(found, run_folder, contract)
  assert found.keys() == LENGTHS.keys()
  assert {path.name for path in folder.iterdir()} == {"query", "passage"}


@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
def test_every_shape_of_encoder_passes_the_check(settings, exported):
  _, folder = exported(**settings)
  found = layout.read(folder)
  assert (found.projection is not None) == ("projection_size" in settings)
  assert found.ours["encoder"]["dtype"] == "float32"
  tensors = load_file(folder / "model.safetensors")
  assert {tensor.dtype for tensor in tensors.values()} == {np.dtype("float32")}


def test_an_export_loads_as_a_model_of_ours(exported):
  """Both mlir_jax.load and model.pretrained read the folder."""
  run_folder, folder = exported()
  loaded = model.load(str(folder))
  assert loaded.step == STEP
  for role, vectors in vectors_of(folder).items():
    np.testing.assert_allclose(loaded.encode(TEXTS, role), vectors, atol=1e-5)
  ours, theirs = (
    weights.to_hf(found.params["encoder"], found.encoder_config)
    for found in (loaded, model.load(str(run_folder)))
  )
  assert ours.keys() == theirs.keys()
  for name, tensor in ours.items():
    np.testing.assert_array_equal(tensor, theirs[name])


def test_a_masked_language_model_loads_with_its_head(exported):
  _, folder = exported(masked_lm=True)
  for auto in (transformers.AutoModelForMaskedLM, transformers.AutoModel):
    _, info = auto.from_pretrained(
      folder, output_loading_info=True, trust_remote_code=False
    )
    assert not info["missing_keys"]
  tensors = load_file(folder / "model.safetensors")
  assert tensors["cls.predictions.bias"].all()


def test_a_head_goes_with_the_tower_that_was_trained_with_it(exported):
  _, folder = exported(towers="separate", masked_lm=True, family="xlm-roberta")
  architectures = {
    tower: read_json(folder / tower / "config.json")["architectures"]
    for tower in ("query", "passage")
  }
  assert architectures == {
    "query": ["XLMRobertaModel"],
    "passage": ["XLMRobertaForMaskedLM"],
  }


def test_transformers_draws_no_weight_at_random(exported):
  _, folder = exported()
  loaded, info = transformers.AutoModel.from_pretrained(
    folder, output_loading_info=True, trust_remote_code=False
  )
  assert not info["missing_keys"]
  assert not info["unexpected_keys"]
  output = loaded(input_ids=torch.tensor([[0, 5, 2]]))
  assert not output.pooler_output.any()


def test_the_tokenizer_knows_its_special_tokens(exported):
  _, folder = exported()
  loaded = transformers.AutoTokenizer.from_pretrained(
    folder, trust_remote_code=False
  )
  names = ("pad_token", "cls_token", "sep_token", "unk_token", "mask_token")
  assert [getattr(loaded, name) for name in names] == [
    *("<pad>", "<s>", "</s>", "<unk>", "<mask>")
  ]
  assert loaded.model_max_length == 24
  tokens = loaded(TEXTS, padding=True, truncation=True)
  assert tokens.keys() == {"input_ids", "attention_mask"}
  assert {len(ids) for ids in tokens["input_ids"]} == {24}
  assert tokens["attention_mask"][2][-1] == 0  # Padded on the right.


def test_bert_special_tokens_are_recognised():
  pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
  bert = tokenizer_lib.tokenizers.Tokenizer(
    tokenizer_lib.models.WordLevel(
      {piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"
    )
  )
  bert.add_special_tokens(pieces[:4])  # [MASK] is an ordinary word here.
  tokens = settings_files.of_tokenizer(bert, 9)["special_tokens_map.json"]
  assert tokens == {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
  }


# The keys of the modules of version 5.1.2, which refuse any other key.
TRANSFORMER_5 = {
  *("max_seq_length", "model_args", "tokenizer_args", "config_args"),
  *("cache_dir", "do_lower_case", "tokenizer_name_or_path", "backend"),
}
POOLING_5 = {
  *("word_embedding_dimension", "pooling_mode", "include_prompt"),
  *("pooling_mode_cls_token", "pooling_mode_max_tokens"),
  *("pooling_mode_mean_tokens", "pooling_mode_mean_sqrt_len_tokens"),
  *("pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"),
}
DENSE_5 = {"in_features", "out_features", "bias", "activation_function"}


def test_one_length_is_a_folder_that_version_5_reads(exported):
  _, folder = exported(**CLS_PROJECTION)
  assert [
    (module["path"], module["type"])
    for module in read_json(folder / "modules.json")
  ] == [
    ("", f"{VERSION_5}Transformer"),
    ("1_Pooling", f"{VERSION_5}Pooling"),
    ("2_Dense", f"{VERSION_5}Dense"),
    ("3_Normalize", f"{VERSION_5}Normalize"),
  ]
  assert read_json(folder / "sentence_bert_config.json").keys() <= TRANSFORMER_5
  assert read_json(folder / "1_Pooling/config.json").keys() <= POOLING_5
  dense = read_json(folder / "2_Dense/config.json")
  assert dense.keys() == DENSE_5
  assert dense["activation_function"] == "torch.nn.modules.activation.Tanh"
  assert load_file(folder / "2_Dense/model.safetensors").keys() == {
    "linear.weight",
    "linear.bias",
  }
  settings = read_json(folder / "config_sentence_transformers.json")
  assert settings["prompts"].keys() == {"query", "document", "sentence"}
  assert settings["default_prompt_name"] == "sentence"


# Runs in a Python with other versions. Prints the vectors of the folders, what
# the libraries logged, and errors.
READER = """
import json
import logging
import sys

for name in ("mlir_jax", "jax", "jaxlib", "flax"):
  sys.modules[name] = None
import sentence_transformers
import transformers

class Listener(logging.Handler):
  def emit(self, record):
    # Every model with a default prompt logs this.
    if not record.getMessage().startswith("Default prompt name is set"):
      logged.append(record.getMessage())

logged = []
for name in ("transformers", "sentence_transformers"):
  logging.getLogger(name).addHandler(Listener(logging.WARNING))

def read(folder, texts):
  model = sentence_transformers.SentenceTransformer(
    folder, device="cpu", trust_remote_code=False
  )
  encoders = (model.encode_query, model.encode_document, model.encode)
  vectors = [encode(texts).tolist() for encode in encoders]
  missing = []
  if model[0].model.config.architectures[0].endswith("MaskedLM"):
    _, info = transformers.AutoModelForMaskedLM.from_pretrained(
      folder, output_loading_info=True, trust_remote_code=False
    )
    missing = sorted(info["missing_keys"])
  return {"vectors": vectors, "missing": missing, "logged": list(logged)}

found = {}
folders, texts = json.load(sys.stdin)
for name, folder in folders.items():
  logged.clear()
  try:
    found[name] = read(folder, texts)
  except Exception as error:
    found[name] = {"error": repr(error)}
versions = transformers.__version__, sentence_transformers.__version__
print(json.dumps([versions, found]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("generation", ["newer", "older"])
def test_both_generations_give_the_runs_vectors_without_this_package(
  generation, exported, tmp_path
):
  """transformers 5 and 4, and with them sentence-transformers 6 and 5."""
  python = sys.executable
  if generation == "older" and not (python := os.environ.get(OLD_PYTHON)):
    pytest.skip(
      f"{OLD_PYTHON} is not set: the Python of an environment with"
      " transformers<5 and sentence-transformers<6, as .ci/run makes it."
    )
  shapes = SHAPES | NEWER_SHAPES
  made = {name: exported(**settings) for name, settings in shapes.items()}
  done = subprocess.run(
    [python, "-I", "-c", READER],
    input=json.dumps(
      [{name: str(folder) for name, (_, folder) in made.items()}, TEXTS]
    ),
    capture_output=True,
    text=True,
    cwd=tmp_path,
    timeout=300,
    env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
  )
  assert done.returncode == 0, done.stderr
  versions, found = json.loads(done.stdout)
  majors = [int(version.split(".")[0]) for version in versions]
  assert majors == ([4, 5] if generation == "older" else [5, 6])
  readable = SHAPES if generation == "older" else shapes
  for name in readable:
    assert "error" not in found[name], (name, found[name]["error"])
    assert not found[name]["missing"], name
    # Vectors do not need the head, so it may be reported as not used.
    assert not [
      line
      for line in found[name]["logged"]
      if not re.search("UNEXPECTED|were not used", line) or "MISSING" in line
    ], name
    run_folder, folder = made[name]
    vectors = np.array(found[name]["vectors"], np.float32)
    assert_same(
      dict(zip(LENGTHS, vectors, strict=True)),
      run_folder,
      contract_of(folder),
    )
  if generation == "older":  # It fails on the others; it does not misread them.
    assert "query_length" in found["lengths"]["error"]
    assert "unsupported operand" in found["layers"]["error"]


def test_one_length_is_refused_where_the_older_words_cannot_say_it(
  make_run, exported, tmp_path
):
  settings = NEWER_SHAPES["layers"]
  with pytest.raises(ValueError, match=r"--one_length .* in \[1\] of 2 layers"):
    export.export(
      str(make_run(**settings)),
      "last",
      str(tmp_path / "model"),
      one_length=True,
    )
  assert list(tmp_path.iterdir()) == []
  _, folder = exported(**settings)
  card = (folder / "README.md").read_text()
  assert "sentence-transformers and transformers 5 or later" in card
  assert "text-embeddings-inference" not in card


def fields(kind, names):
  return dict.fromkeys(names.split(), kind)


# The fields that text-embeddings-inference 1.9 requires in config.json: those
# of its BertConfig, DistilBertConfig and ModernBertConfig that are not an
# Option.
SERVED_BERT = (
  fields(
    int,
    "vocab_size hidden_size num_hidden_layers num_attention_heads pad_token_id"
    " intermediate_size max_position_embeddings type_vocab_size",
  )
  | fields(float, "hidden_dropout_prob initializer_range layer_norm_eps")
  | fields(str, "hidden_act")
)
SERVED = {
  "projection": SERVED_BERT,
  "roberta": SERVED_BERT,
  "xlm-roberta": SERVED_BERT,
  "distilbert": fields(
    int,
    "vocab_size dim n_layers n_heads hidden_dim max_position_embeddings"
    " pad_token_id",
  )
  | fields(str, "activation"),
  "modernbert": fields(
    int,
    "vocab_size hidden_size intermediate_size num_hidden_layers"
    " num_attention_heads max_position_embeddings pad_token_id eos_token_id"
    " bos_token_id cls_token_id sep_token_id global_attn_every_n_layers"
    " local_attention",
  )
  | fields(
    float,
    "initializer_range initializer_cutoff_factor norm_eps global_rope_theta"
    " attention_dropout local_rope_theta",
  )
  | fields(bool, "norm_bias attention_bias")
  | fields(str, "hidden_activation classifier_activation"),
}


@pytest.mark.parametrize("name", SERVED)
def test_the_fields_that_text_embeddings_inference_requires_are_there(
  name, exported
):
  _, folder = exported(**SHAPES[name])
  hf = read_json(folder / "config.json")
  found = {field: type(hf.get(field)) for field in SERVED[name]}
  assert found == SERVED[name]
  pooling = read_json(folder / "1_Pooling/config.json")
  for mode in ("cls_token", "mean_tokens", "lasttoken"):
    assert type(pooling[f"pooling_mode_{mode}"]) is bool
  settings = read_json(folder / "sentence_bert_config.json")
  assert settings["max_seq_length"] == 24
  if name == "modernbert":  # The tokens before and after a text.
    tokenizer = tokenizer_lib.load(str(folder))
    first, last = tokenizer.encode("").ids
    assert hf["bos_token_id"] == hf["cls_token_id"] == first
    assert hf["eos_token_id"] == hf["sep_token_id"] == last


@pytest.mark.parametrize(
  "newer_words",
  [("layer_types", "rope_parameters"), ("global_attn_every_n_layers",)],
)
def test_the_words_of_either_generation_alone_say_a_modernbert(
  newer_words, exported
):
  _, folder = exported(**SHAPES["modernbert"])
  hf = read_json(folder / "config.json")
  expected = hf_config.from_dict(hf)
  for word in newer_words:
    del hf[word]
  assert hf_config.from_dict(hf) == expected


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_the_command_exports_what_training_left(tmp_path):
  c = tiny.make_config(tiny.write_folder(tmp_path / "names"))
  c.train.steps = 2
  results = run.train(c, str(tmp_path / "run"))
  done = subprocess.run(
    [
      *(sys.executable, "-m", "mlir_jax.export", "--checkpoint=2"),
      *(f"--workdir={tmp_path}/run", "--output=model", "--name=we/names"),
    ],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    timeout=300,
    env=os.environ | {"PYTHONPATH": str(PACKAGE), "JAX_NUM_CPU_DEVICES": "1"},
  )
  assert done.returncode == 0, done.stderr
  assert "Wrote step 2 to model: sentence-transformers" in done.stdout
  card = huggingface_hub.ModelCard.load(tmp_path / "model/README.md")
  assert card.data.model_name == "we/names"
  assert card.data.language == ["de", "en", "fi"]
  found = [result.metric_value for result in card.data.eval_results]
  assert sorted(found) == sorted(results.values())
  assert "| parallel | 16 | de-en 120 |" in card.text
  assert "| **with parallel text** |" in card.text
  assert str(tmp_path) not in card.text
  modes = {path.stat().st_mode for path in (tmp_path / "model").glob("*.*")}
  assert len(modes) == 1  # Other users may read every file, or none.


@pytest.mark.parametrize(
  "settings",
  [
    {"towers": "separate"},
    CLS_PROJECTION,
    {"family": "xlm-roberta", "pooling": "last", "projection_size": 8},
  ],
  ids=["separate", "cls", "last"],
)
def test_the_code_in_the_card_runs(settings, exported, monkeypatch):
  """The code for transformers alone gives the same vectors."""
  _, folder = exported(**settings)
  monkeypatch.chdir(folder.parent)
  towers = {"": "query"}
  if settings.get("towers") == "separate":
    towers = {"query": "query", "passage": "passage"}
  for subfolder, role in towers.items():
    card = (folder / subfolder / "README.md").read_text()
    blocks = re.findall("```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
      exec(block, names)
    np.testing.assert_allclose(
      names["vectors"], names[f"{role}_vectors"], atol=1e-5
    )


def test_the_card_has_the_runs_results_and_contract(exported):
  _, folder = exported()
  card = huggingface_hub.ModelCard.load(folder / "README.md")
  values = {
    (result.dataset_config, result.dataset_split, result.metric_type): (
      result.metric_value
    )
    for result in card.data.eval_results
  }
  assert values == {
    ("en", "dev", "mrr_at_100"): 0.75,
    ("en", "test", "mrr_at_100"): 0.5,
    ("de", "test", "mrr_at_100"): 0.25,
    ("de", "test", "tatoeba_to_en"): 0.125,
  }
  assert card.data.library_name == "sentence-transformers"
  assert card.data.pipeline_tag == "sentence-similarity"
  assert card.data.license is None
  assert '| query | `encode_query` | `"query: "` | 8 |' in card.text
  assert '| passage | `encode_document` | `"passage: "` | 24 |' in card.text
  assert "| de | 25.0 |" in card.text
  assert "2210.06633" in card.text
  assert "57 texts in 16 scripts" in card.text


def spoil(monkeypatch, change):
  """Changes the export's folder between writing and checking."""
  write = folder_lib.write

  def spoiled(folder, *args, **kwargs):
    write(folder, *args, **kwargs)
    change(folder)

  monkeypatch.setattr(folder_lib, "write", spoiled)


def other_pooling(folder):
  path = folder / "1_Pooling/config.json"
  path.write_text(json.dumps({**read_json(path), "pooling_mode": "cls"}))


def other_weights(folder):
  path = folder / "model.safetensors"
  tensors = load_file(path)
  tensors["encoder.layer.1.output.dense.bias"][0] += 0.1
  save_file(tensors, path, {"format": "pt"})


def fewer_weights(folder):
  path = folder / "model.safetensors"
  tensors = load_file(path)
  del tensors["encoder.layer.1.output.dense.bias"]
  save_file(tensors, path, {"format": "pt"})


def other_tokenizer(folder):
  path = folder / "tokenizer.json"
  definition = read_json(path)
  vocabulary = definition["model"]["vocab"]
  vocabulary[10], vocabulary[11] = vocabulary[11], vocabulary[10]
  path.write_text(json.dumps(definition))


def no_numbers(folder):
  path = folder / "model.safetensors"
  tensors = load_file(path)
  tensors["encoder.layer.1.output.dense.bias"][:] = np.nan
  save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
  "change, named",
  [
    (other_pooling, "pooling_mode is cls, but the flags next to it say mean"),
    (other_weights, r"In the role query, .* not encode '.+' like .* by 0\.0"),
    (no_numbers, "In the role query, .* differs by nan"),
    (fewer_weights, r"finds no \['encoder\.layer\.1\.output\.dense\.bias'\]"),
    (other_tokenizer, "tokenizer_fingerprint"),
  ],
)
def test_an_export_that_fails_the_check_leaves_no_folder(
  change, named, make_run, monkeypatch, tmp_path
):
  spoil(monkeypatch, change)
  with pytest.raises(ValueError, match=named):
    export.export(str(make_run()), "last", str(tmp_path / "out/model"))
  assert list((tmp_path / "out").iterdir()) == []


def test_an_interrupted_export_leaves_no_folder(
  make_run, monkeypatch, tmp_path
):
  def interrupt(folder):
    assert not (tmp_path / "model").exists()
    raise KeyboardInterrupt

  spoil(monkeypatch, interrupt)
  with pytest.raises(KeyboardInterrupt):
    export.export(str(make_run()), "last", str(tmp_path / "model"))
  assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused_and_left_alone(make_run, tmp_path):
  (tmp_path / "kept.txt").write_text("kept")
  with pytest.raises(ValueError, match=r"--output=.* is not an empty folder"):
    export.export(str(make_run()), "last", str(tmp_path))
  assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_a_link_to_an_empty_folder_is_followed_and_a_mount_is_refused(
  tmp_path, monkeypatch
):
  (tmp_path / "real").mkdir()
  (tmp_path / "link").symlink_to(tmp_path / "real")
  assert folder_lib.check_free(str(tmp_path / "link")) == tmp_path / "real"
  monkeypatch.setattr(pathlib.Path, "is_mount", lambda self: True)
  with pytest.raises(ValueError, match="is a mount point"):
    folder_lib.check_free(str(tmp_path / "real"))
  with pytest.raises(ValueError, match="--output is empty"):
    folder_lib.check_free("")


def test_without_sentence_transformers_the_extra_is_named_first(
  monkeypatch, tmp_path
):
  monkeypatch.setitem(sys.modules, "sentence_transformers", None)
  with pytest.raises(ImportError, match=r"mlir_jax\[export\]"):
    export.export("no run at all", "last", str(tmp_path / "model"))


def test_an_export_cannot_be_exported(exported, tmp_path):
  _, folder = exported()
  with pytest.raises(ValueError, match="is not a run's folder"):
    export.export(str(folder), "last", str(tmp_path / "again"))
