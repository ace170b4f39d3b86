"""Damage of a model's or a run's files is told in one line, never silent."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny
import tokenizers
from safetensors.numpy import load_file, save_file

import mlir_jax
from mlir_jax import contract as contract_lib
from mlir_jax import workdir
from mlir_jax.checkpoints import metadata
from mlir_jax.data import preparation
from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.hub import folder as export_lib
from mlir_jax.hub import run_facts
from mlir_jax.models import architecture, sealed, weights
from mlir_jax.models import encoder as encoder_lib
from mlir_jax.retrieval import encoding
from mlir_jax.retrieval import model as model_lib
from mlir_jax.storage import reading
from mlir_jax.training import progress

JSON_FILES = (
  *("config.json", "modules.json", "mlir_jax.json", "tokenizer.json"),
  *("tokenizer_config.json", "special_tokens_map.json"),
  *("sentence_bert_config.json", "config_sentence_transformers.json"),
  *("1_Pooling/config.json", "2_Dense/config.json"),
)
WEIGHTS = ("model.safetensors", "2_Dense/model.safetensors")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
DAMAGES = {
  "empty": lambda content: b"",
  "cut": lambda content: content[: len(content) // 2],
  "not UTF-8": lambda content: b"\xff" + content[1:],
  "deep": lambda content: b'{"a": ' + 5000 * b"[" + 5000 * b"]" + b"}",
  "long number": lambda content: b'{"a": ' + 5000 * b"9" + b"}",
  "pointer": lambda content: POINTER,
  "another kind": lambda content: b"5",
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """An export of tied towers with a projection."""
  folder = tmp_path_factory.mktemp("damage") / "export"
  tokenizer = tokenizer_lib.train(tiny.WORDS, 120)
  config = architecture.EncoderConfig(
    vocab_size=tokenizer.get_vocab_size(),
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    intermediate_size=16,
    max_positions=16,
    initializer_range=0.3,
    projection_size=8,
    pad_token_id=1,
  )
  contract = contract_lib.PartialContract(
    pooling="mean",
    normalize=True,
    title_joiner=" | ",
    **dict.fromkeys(contract_lib.ROLES, contract_lib.PartialRole("q: ", 16)),
  ).complete(tokenizer)
  params = encoder_lib.init_params(config, "tied", jax.random.key(0))
  folder.mkdir()
  export_lib.write(
    *(folder, params, config, contract, tokenizer),
    tower="both",
    provenance={},
    step=7,
  )
  return folder


@pytest.fixture
def copy(exported, tmp_path):
  return shutil.copytree(exported, tmp_path / "copy")


def assert_refused(folder, file):
  with pytest.raises(ValueError) as error:
    mlir_jax.load(str(folder))
  message = str(error.value)
  assert str(file) in message and len(message) < 1000
  assert "\n" not in message.strip()


def test_an_export_that_is_whole_is_loaded(copy):
  assert np.isfinite(mlir_jax.load(str(copy)).encode(["river"])).all()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*JSON_FILES, *WEIGHTS])
def test_a_damaged_file_of_a_model_is_named(name, damage, copy):
  path = copy / name
  path.write_bytes(DAMAGES[damage](path.read_bytes()))
  assert_refused(copy, path)


@pytest.mark.parametrize("name", [*JSON_FILES, *WEIGHTS])
def test_a_folder_in_the_place_of_a_file_is_named(name, copy):
  (copy / name).unlink()
  (copy / name).mkdir()
  assert_refused(copy, copy / name)


@pytest.mark.parametrize(
  "name, field, value",
  [
    ("config.json", "num_attention_heads", 4),
    ("config.json", "hidden_act", "relu"),
    ("config.json", "layer_norm_eps", 1e-3),
    ("config.json", "pad_token_id", 0),
    ("2_Dense/config.json", "activation_function", "torch.nn.Tanh"),
    ("mlir_jax.json", "step", 8),
    ("mlir_jax.json", "provenance", {"commit": "x"}),
  ],
)
def test_a_changed_field_of_an_export_is_refused(name, field, value, copy):
  path = copy / name
  path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
  with pytest.raises(ValueError, match="has changed since") as error:
    mlir_jax.load(str(copy))
  assert name == "mlir_jax.json" or "it was written with" in str(error.value)
  # Without our own file it is a folder like any other's: what it says holds.
  if name == "config.json":
    (copy / "mlir_jax.json").unlink()
    mlir_jax.load(str(copy))


def test_a_folder_of_our_own_says_how_titles_are_joined_without_our_file(copy):
  """`contract` of an export whose mlir_jax.json is lost, as on a hub."""
  contract = mlir_jax.load(str(copy)).contract
  (copy / "mlir_jax.json").unlink()
  assert mlir_jax.load(str(copy)).contract == contract
  assert contract.title_joiner == " | "


@pytest.mark.parametrize(
  "path, value, says",
  [
    (("contract", "title_joiner"), " ", "title_joiner: ' ' here, ' | ' there"),
    (("contract", "query", "prefix"), "x: ", "query.prefix"),
    (("tower",), "query", "tower is 'query'.* says 'both'"),
  ],
)
def test_our_file_of_another_export_is_refused(path, value, says, copy):
  """Its own hash is right."""
  file = copy / "mlir_jax.json"
  ours = part = json.loads(file.read_text())
  *outer, last = path
  for name in outer:
    part = part[name]
  part[last] = value
  file.write_text(json.dumps(sealed.seal(ours)))
  with pytest.raises(ValueError, match=says):
    mlir_jax.load(str(copy))


@pytest.mark.parametrize("said", [5, [], {}, {"title_joiner": 5}, None])
def test_what_we_add_to_others_words_is_checked(said, copy):
  path = copy / "config_sentence_transformers.json"
  found = json.loads(path.read_text())
  path.write_text(json.dumps(found | {"mlir_jax": said}))
  if said is None:  # A folder of before.
    mlir_jax.load(str(copy))
    return
  assert_refused(copy, path)


def test_one_tower_stays_one_without_our_file(exported, tmp_path):
  shutil.copytree(exported, tmp_path / "query")
  path = tmp_path / "query/config_sentence_transformers.json"
  found = json.loads(path.read_text())
  found["mlir_jax"]["tower"] = "query"
  path.write_text(json.dumps(found))
  (tmp_path / "query/mlir_jax.json").unlink()
  model = mlir_jax.load(str(tmp_path / "query"))
  model.check_role("query")
  with pytest.raises(ValueError, match="one of two towers"):
    model.check_role("passage")


def test_a_tensor_that_stands_twice_is_named(copy):
  """Libraries take the last of the two, and say nothing."""
  path = copy / "model.safetensors"
  content = path.read_bytes()
  size = int.from_bytes(content[:8], "little")
  header = content[8 : 8 + size].rstrip()
  name = next(n for n in json.loads(header) if n != "__metadata__")
  entry = json.dumps({name: json.loads(header)[name]}).encode()
  header = header[:-1] + b"," + entry[1:]
  path.write_bytes(
    len(header).to_bytes(8, "little") + header + content[8 + size :]
  )
  (copy / "mlir_jax.json").unlink()
  with pytest.raises(ValueError, match=f"the key '{name}' is there twice"):
    mlir_jax.load(str(copy))


def test_a_tokenizer_of_more_pieces_than_the_model_is_refused(copy):
  (copy / "mlir_jax.json").unlink()
  path = copy / "tokenizer.json"
  tokenizer = tokenizers.Tokenizer.from_str(path.read_text())
  tokenizer.add_tokens(["another"])
  path.write_text(tokenizer.to_str())
  with pytest.raises(ValueError, match=r"tokenizer\.json has ids up to"):
    mlir_jax.load(str(copy))


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_flipped_bit_of_an_exports_weights_is_found(name, copy):
  path = copy / name
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)
  assert_refused(copy, path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
  "name, tensor",
  [
    ("model.safetensors", "embeddings.word_embeddings.weight"),
    ("model.safetensors", "encoder.layer.0.output.dense.weight"),
    ("2_Dense/model.safetensors", "linear.bias"),
  ],
)
def test_weights_that_are_not_finite_are_refused(name, tensor, value, copy):
  (copy / "mlir_jax.json").unlink()
  tensors = load_file(copy / name)
  tensors[tensor].flat[-1] = value
  save_file(tensors, copy / name, {"format": "pt"})
  with pytest.raises(weights.WeightsError, match="not finite") as error:
    mlir_jax.load(str(copy))
  assert f"{copy / name}: {tensor} " in str(error.value)


def test_vectors_that_are_not_finite_are_never_given_out(exported):
  model = mlir_jax.load(str(exported))
  spoiled = jax.tree.map(lambda leaf: leaf * np.nan, model.params)
  with pytest.raises(encoding.NonFiniteError, match=r"text 0 .*role query"):
    model.text_encoder.encode(spoiled, "query", ["river", "stone"])
  encoding.check_finite_params(model.params, "it")
  some = {"a": model.params, "b": {"kernel": spoiled}}
  with pytest.raises(encoding.NonFiniteError) as error:
    encoding.check_finite_params(some, "step 3")
  assert "step 3 holds NaN" in str(error.value)
  assert "b/kernel/encoder/embeddings/token" in str(error.value)
  assert "a/encoder" not in str(error.value)


def description():
  return metadata.Description(
    config={"model": {"towers": "tied"}},
    contract=contract_lib.EncodingContract(
      *("mean", True, " "),
      *[contract_lib.Role("", 8, "query")] * 3,
      *("abc", ((1, 2),)),
    ),
    encoder={"num_heads": 2, "layer_norm_eps": 1e-12},
    provenance={"data": "ä"},
  )


def test_a_changed_description_of_a_checkpoint_is_refused():
  written = json.loads(json.dumps(description().to_json()))
  assert metadata.Description.from_json(written) == description()
  for change in (
    {"encoder": {"num_heads": 4, "layer_norm_eps": 1e-12}},
    {"encoder": {"num_heads": 2, "layer_norm_eps": 1e-5}},
    {"config": {"model": {"towers": "separate"}}},
    {"contract": written["contract"].replace("mean", "last")},
    {"provenance": {}},
  ):
    with pytest.raises(ValueError, match="changed since it was saved"):
      metadata.Description.from_json(written | change)
  # Those of before have no hash.
  del written["fingerprint"]
  assert metadata.Description.from_json(written) == description()
  for change in (
    *({"contract": "{"}, {"contract": 5}, {"more": 1}),
    *({"encoder": 5}, {"config": []}, {"provenance": "x"}),
  ):
    with pytest.raises(ValueError):
      metadata.Description.from_json(written | change)
  del written["encoder"]
  with pytest.raises(ValueError, match="it holds"):
    metadata.Description.from_json(written)


@pytest.mark.parametrize(
  "field, value",
  [("num_heads ", 2), ("num_layers", 0), ("vocab_size", None), ("dtype", "x")],
)
def test_a_damaged_shape_names_its_checkpoint_and_field(field, value):
  shape = architecture.shape_of(architecture.EncoderConfig(9, 8, 1, 2, 8, 8))
  assert architecture.of_checkpoint(shape, "step 3").vocab_size == 9
  with pytest.raises(ValueError, match=rf"encoder of step 3: .*{field}"):
    architecture.of_checkpoint(shape | {field: value}, "step 3")
  del shape["vocab_size"]
  with pytest.raises(
    ValueError, match=r"encoder of step 3: .*lacks.*vocab_size"
  ):
    architecture.of_checkpoint(shape, "step 3")


@pytest.mark.parametrize(
  "path, value",
  [
    *((("pooling",), value) for value in ("max", 5, None, ["mean"])),
    *((("normalize",), value) for value in (1, "yes", None)),
    *((("title_joiner",), value) for value in (5, None)),
    *((("query",), value) for value in (5, None, [], {})),
    *((("query", "prefix"), value) for value in (5, None)),
    *((("query", "max_length"), v) for v in (True, "8", 8.0, -1, 0)),
    *((("query", "tower"), value) for value in ("both", 5)),
    *((("golden_ids",), value) for value in (5, [5], [["a"]], None)),
    *((("tokenizer_fingerprint",), value) for value in (5, None)),
  ],
)
def test_a_damaged_contract_names_its_field(path, value):
  values = json.loads(description().contract.to_json())
  *outer, name = path
  (values[outer[0]] if outer else values)[name] = value
  with pytest.raises(ValueError, match=name):
    contract_lib.EncodingContract.from_dict(values)


def test_a_damaged_file_of_a_run_is_named(tmp_path):
  run = tmp_path / "run"
  tokenizer = tokenizer_lib.train(tiny.WORDS, 120)
  c = tiny.make_config(tmp_path)
  c.model.pretrained = "some/model"
  (run / "checkpoints").mkdir(parents=True)
  (run / "tokens").mkdir()
  (run / "results").mkdir()
  contract = description().contract
  readers = {
    "config.json": lambda: workdir.claim(c.to_dict(), str(run), {}),
    "backbone.json": lambda: preparation.fetch_backbone(c, str(run)),
    "results/step-8.json": lambda: run_facts.find_results(run, c.to_dict(), 8),
    "tokens/meta.json": lambda: run_facts.find_rows(run),
  }
  also = {
    "config.json": lambda: model_lib.check_run(run, contract, tokenizer),
    "tokens/meta.json": lambda: model_lib.check_run(run, contract, tokenizer),
  }
  for name in readers:
    for damage in DAMAGES.values():
      (run / name).write_bytes(damage(b'{"commit": "abc", "a": [1, 2, 3]}'))
      for read in (readers[name], also.get(name, readers[name])):
        with pytest.raises(ValueError) as error:
          read()
        assert str(run / name) in str(error.value)
      (run / name).unlink()
  for text in ('{"encoding": 5}', "{}"):
    (run / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: encoding is"):
      model_lib.check_run(run, contract, tokenizer)


@pytest.mark.parametrize(
  "field, value",
  [
    ("from_step", 5),
    ("from_step", None),
    ("changed", "x"),
    ("changed", None),
    ("changed", {"seed": 5}),
    ("changed", {"seed": [1]}),
    ("step", "4"),
  ],
)
def test_a_damaged_line_of_the_history_is_named(field, value, tmp_path):
  good = {"step": 4, "from_step": True, "changed": {"seed": [1, 2]}}
  path = tmp_path / workdir.HISTORY
  path.write_text(
    json.dumps(good) + "\n" + json.dumps(good | {field: value}) + "\n"
  )
  with pytest.raises(reading.UnreadableError, match=rf"jsonl:2: {field} is "):
    workdir.read_history(str(tmp_path))
  path.write_text(json.dumps(good) + "\n")
  assert workdir.read_history(str(tmp_path)) == [good]


@pytest.mark.parametrize(
  "line", [b"\xff", b"{", b"", b"5", b"{}", b'{"step": "1"}', 9000 * b"["]
)
def test_a_damaged_line_of_metrics_is_named(line, tmp_path):
  path = tmp_path / progress.METRICS_FILE
  good = b'{"step": 1, "kind": "train"}\n'
  path.write_bytes(good + line + b"\n" + good)
  with pytest.raises(
    reading.UnreadableError, match="Delete this line"
  ) as error:
    progress.read_metrics(str(tmp_path))
  assert f"{path}:2" in str(error.value)
  # What a killed process had not written to its end is no damage.
  path.write_bytes(good + line)
  assert progress.read_metrics(str(tmp_path)) == [{"step": 1, "kind": "train"}]
