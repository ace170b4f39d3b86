"""A folder is enough to load a model, which encodes as the folder says."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pandas
import pytest
import sentence_models
import tiny

import mlir_jax
from mlir_jax import contract as contract_lib
from mlir_jax import sharding
from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.hub import folder as export_lib
from mlir_jax.models import architecture, sealed
from mlir_jax.models import encoder as encoder_lib
from mlir_jax.retrieval import encoding

TEXTS = ["river stone", "apple", "", "cloud " * 50, "winter music"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A sentence-transformers folder, and the model in it."""
  folder = tmp_path_factory.mktemp("models") / "tiny"
  return folder, sentence_models.save(folder)


@pytest.fixture(scope="module")
def loaded(saved):
  return mlir_jax.load(str(saved[0]), batch_size=8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """An export of separate towers, and how they encode unexported."""
  folder = tmp_path_factory.mktemp("exports")
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
    dtype="bfloat16",
  )
  contract = contract_lib.PartialContract(
    pooling="cls",
    normalize=True,
    title_joiner=" apple ",
    query=contract_lib.PartialRole("river ", 8),
    passage=contract_lib.PartialRole("", 16),
    sentence=contract_lib.PartialRole("", 16),
  ).complete(tokenizer)
  params = encoder_lib.init_params(config, "separate", jax.random.key(0))
  for tower in ("query", "passage"):
    export_lib.write(
      *(folder / tower, params, config, contract, tokenizer),
      tower=tower,
      provenance={},
      step=7,
    )
  text_encoder = encoding.TextEncoder(
    contract,
    tokenizer,
    encoding.make_embed(config, contract),
    sharding.make_mesh(),
    8,
  )
  return folder, text_encoder.with_params(params)


def change(path, **fields):
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_importing_the_package_does_not_import_jax():
  script = """
import sys, mlir_jax
assert not {"jax", "numpy", "tokenizers"} & sys.modules.keys()
from mlir_jax import Index, load
import mlir_jax.retrieval.model
assert load is mlir_jax.retrieval.model.load is mlir_jax.load
assert Index is mlir_jax.retrieval.index.Index
"""
  subprocess.run([sys.executable, "-c", script], check=True)
  with pytest.raises(AttributeError, match="no attribute 'loads'"):
    mlir_jax.loads  # noqa: B018


def test_each_role_encodes_as_sentence_transformers_does(saved, loaded):
  _, theirs = saved
  expected = {
    "query": theirs.encode_query(TEXTS),
    "passage": theirs.encode_document(TEXTS),
    "sentence": theirs.encode(TEXTS),
  }
  for role, vectors in expected.items():
    ours = loaded.encode(TEXTS, role)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, vectors, atol=1e-5)
  assert np.abs(expected["query"] - expected["passage"]).max() > 0.01
  titled = loaded.encode(["stone"], "passage", ["river"])
  np.testing.assert_allclose(titled, expected["passage"][:1], atol=1e-5)
  assert (loaded.step, loaded.description) == (None, None)


def test_a_model_without_normalize_keeps_its_lengths(tmp_path):
  theirs = sentence_models.save(
    tmp_path / "free", normalize=False, similarity_fn_name="dot"
  )
  loaded = mlir_jax.load(str(tmp_path / "free"), batch_size=8)
  np.testing.assert_allclose(
    loaded.encode(TEXTS, "sentence"), theirs.encode(TEXTS), atol=1e-5
  )
  assert loaded.similarity_fn_name == "dot"


def test_similarity_is_that_of_the_model(loaded):
  a, b = np.array([[3, 4], [0, 0]]), np.array([[1.0, 0], [0, 2], [-3, -4]])
  found = loaded.similarity(a, b)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, [[0.6, 0.8, -1], [0, 0, 0]], atol=1e-6)
  by_product = dataclasses.replace(loaded, similarity_fn_name="dot")
  np.testing.assert_array_equal(
    by_product.similarity(a, b), [[3, 8, -25], [0, 0, 0]]
  )
  for wrong in (np.ones(2), np.ones((1, 3))):
    with pytest.raises(ValueError, match=r"give \[n, D\] and \[m, D\]"):
      loaded.similarity(a, wrong)


def test_passages_are_searched_with_ids_or_by_their_places(loaded):
  passages = ["river", "apple stone", "river", "winter"]
  exact = loaded.encode(["cloud"]) @ loaded.encode(passages, "passage").T
  expected = np.argsort(-exact[0], kind="stable")  # The first one wins a tie.
  scores, places = loaded.search(["cloud"], passages, 9)
  assert places == [expected.tolist()]
  np.testing.assert_allclose(scores[0], exact[0][expected], atol=1e-6)
  named = dict(zip(("a", "b", "c", "d"), passages, strict=True))
  _, (ids,) = loaded.search(["cloud"], named, 4)
  assert sorted(ids) == sorted(named)
  assert ids.index("c") == ids.index("a") - 1  # A tie, as in trec_eval.
  with pytest.raises(ValueError, match="There are no passages"):
    loaded.search(["cloud"], [])
  with pytest.raises(ValueError, match="k is 0"):
    loaded.search(["cloud"], passages, 0)


def test_any_mesh_gives_the_same_vectors(saved, loaded):
  one = sharding.make_mesh(devices=jax.devices()[:1])
  alone = mlir_jax.load(str(saved[0]), mesh=one, batch_size=3)
  assert loaded.text_encoder.mesh.size == 8
  np.testing.assert_allclose(
    alone.encode(TEXTS), loaded.encode(TEXTS), atol=1e-6
  )


def test_any_sequence_of_texts_is_encoded(loaded):
  expected = loaded.encode(["river", "apple", "größe"])
  frame = pandas.DataFrame({"text": ["river", "apple", "größe"], "n": 1})
  frame.index = [7, 7, 9]
  for texts in (
    ("river", "apple", "größe"),
    np.array(["river", "apple", "größe"]),
    np.array(["river", "apple", "größe"], object),
    frame["text"],
    frame["text"].astype("category"),
    (text for text in ("river", "apple", "größe")),
    dict.fromkeys(["river", "apple", "größe"]).keys(),
  ):
    np.testing.assert_array_equal(loaded.encode(texts), expected)
  titled = loaded.encode(frame["text"], "passage", (t for t in ("", "a", "b")))
  assert titled.shape == (3, 24)
  assert loaded.encode([]).shape == (0, 24)
  assert loaded.encode(np.array([], str), "passage", []).shape == (0, 24)


@pytest.mark.parametrize(
  "texts,message",
  [
    ("apple", r"texts is one string.*\['apple'\]"),
    ({"a": "apple"}, "texts is of the type dict; give a list"),
    ({"apple"}, "texts is of the type set; give a list"),
    (b"apple", "texts is of the type bytes; give a list"),
    (None, "texts is of the type NoneType; give a list"),
    (3, "texts is of the type int; give a list"),
    (np.array("apple"), "type ndarray and has 0 dimensions"),
    (np.array([["a"], ["b"]]), "type ndarray and has 2 dimensions"),
    (pandas.DataFrame({"text": ["a"]}), "type DataFrame and has 2 dimensions"),
    (["a", ["b"]], r"texts\[1\] is \['b'\] of the type list"),
    (["a", None], r"texts\[1\] is None of the type NoneType"),
    ([b"a"], r"texts\[0\] is b'a' of the type bytes"),
    (pandas.Series(["a", np.nan]), r"texts\[1\] is nan of the type float"),
    (iter(["a", "b", "c\ud800"]), r"texts\[2\] is not Unicode.*character 2"),
  ],
)
def test_values_that_are_not_texts_are_refused_by_their_place(
  loaded, texts, message
):
  with pytest.raises(ValueError, match=message):
    loaded.encode(texts)


def test_titles_and_roles_that_do_not_fit_are_refused(loaded):
  with pytest.raises(ValueError, match="titles is one string"):
    loaded.encode(["a"], "passage", titles="b")
  with pytest.raises(ValueError, match=r"titles\[1\] is None"):
    loaded.encode(["a", "b"], "passage", ["c", None])
  with pytest.raises(ValueError, match="1 titles for 2 texts"):
    loaded.encode(["a", "b"], "passage", ["c"])
  for role in ("query", "sentence"):
    with pytest.raises(ValueError, match=f"role '{role}' has none"):
      loaded.encode(["a"], role, ["b"])
  with pytest.raises(ValueError, match="Unknown role 'document'"):
    loaded.encode(["a"], "document")


def test_a_model_is_shown_in_a_line_and_says_what_it_cut(loaded):
  assert repr(loaded) == (
    f"Model({loaded.path!r}: bert, 24 numbers a vector, cosine)"
  )
  before = loaded.text_encoder.truncation.get("query", (0, 0))
  with pytest.warns(UserWarning, match=r"query texts cut to 20 tokens: 1 of 2"):
    loaded.encode(["apple", "cloud " * 50])
  cut, texts = loaded.text_encoder.truncation["query"]
  assert (cut - before[0], texts - before[1]) == (1, 2)


def test_a_length_beyond_the_positions_is_cut_to_them(saved, tmp_path):
  """Some folders have such a length; sentence-transformers fails on a text."""
  folder = shutil.copytree(saved[0], tmp_path / "long")
  change(folder / "sentence_bert_config.json", max_seq_length=512)
  loaded = mlir_jax.load(str(folder), batch_size=8)
  assert loaded.contract.passage.max_length == 23
  assert np.isfinite(loaded.encode(["cloud " * 600], "passage")).all()


def test_a_folder_that_does_not_say_how_it_encodes_is_refused(saved, tmp_path):
  folder = shutil.copytree(saved[0], tmp_path / "tasks")
  change(
    folder / "config_sentence_transformers.json",
    prompts={"clustering": "Cluster this: "},
    default_prompt_name=None,
  )
  with pytest.raises(ValueError, match=r"(?s)clustering.*role 'passage'"):
    mlir_jax.load(str(folder))
  (folder / "modules.json").unlink()
  with pytest.raises(ValueError, match=r"has no modules\.json, which says"):
    mlir_jax.load(str(folder))


def add_pieces(tokenizer):
  pieces = tokenizer["model"]["vocab"]
  pieces += [[f"more{n}", -9.0] for n in range(121 - len(pieces))]


def end_texts_with_another_id(tokenizer):
  """The id is not in the vocabulary."""
  tokens = tokenizer["post_processor"]["special_tokens"]
  tokens["</s>"]["ids"] = [120]


@pytest.mark.parametrize("damage", [add_pieces, end_texts_with_another_id])
def test_ids_beyond_the_token_table_are_refused(damage, saved, tmp_path):
  """XLA reads the table's last row for them, without an error."""
  folder = shutil.copytree(saved[0], tmp_path / "ids")
  path = folder / "tokenizer.json"
  tokenizer = json.loads(path.read_text())
  damage(tokenizer)
  path.write_text(json.dumps(tokenizer))
  with pytest.raises(ValueError) as error:
    mlir_jax.load(str(folder))
  assert f"{path} has ids up to 120" in str(error.value)
  assert "has 120 tokens" in str(error.value)


def test_folders_that_are_not_models_are_refused(saved, tmp_path):
  with pytest.raises(ValueError, match="There is no folder"):
    mlir_jax.load(str(tmp_path / "missing"))
  with pytest.raises(ValueError, match="checkpoint is 'best', but"):
    mlir_jax.load(str(saved[0]), "best")
  begun = tmp_path / "run/tokenizer"
  begun.mkdir(parents=True)
  (begun / "tokenizer.json").write_text("{}")
  with pytest.raises(ValueError, match="without checkpoints"):
    mlir_jax.load(str(tmp_path / "run"))


def test_an_export_of_two_towers_encodes_as_the_run_did(exported):
  folder, embed = exported
  both = mlir_jax.load(str(folder), batch_size=8)
  assert both.step == 7 and both.encoder_config.dtype == "bfloat16"
  titles = ["", "stone", "", "", "paper"]
  for role in contract_lib.ROLES:
    of_role = titles if role == "passage" else None
    np.testing.assert_array_equal(
      both.encode(TEXTS, role, of_role), embed(role, TEXTS, of_role)
    )
  query = mlir_jax.load(str(folder / "query"), batch_size=8)
  np.testing.assert_array_equal(query.encode(TEXTS), embed("query", TEXTS))
  with pytest.raises(
    ValueError, match=r"one of two towers.*'passage'.* folder passage/"
  ):
    query.encode(TEXTS, "passage")


def test_an_export_whose_parts_differ_is_refused(exported, tmp_path):
  folder = shutil.copytree(exported[0], tmp_path / "export")
  path = folder / "passage/tokenizer.json"
  definition = json.loads(path.read_text())
  pieces = definition["model"]["vocab"]
  pieces[10], pieces[11] = pieces[11], pieces[10]
  before = path.read_text()
  path.write_text(json.dumps(definition))
  for part in (folder, folder / "passage"):
    with pytest.raises(
      contract_lib.ContractMismatchError, match="tokenizer_fingerprint"
    ):
      mlir_jax.load(str(part))
  path.write_text(before)
  path = folder / "passage/mlir_jax.json"
  before = path.read_text()
  change(path, step=8)
  with pytest.raises(sealed.SealError, match=r"passage/mlir_jax\.json has ch"):
    mlir_jax.load(str(folder))
  path.write_text(json.dumps(sealed.seal(json.loads(before) | {"step": 8})))
  with pytest.raises(ValueError, match="are not of one export"):
    mlir_jax.load(str(folder))
  shutil.rmtree(folder / "passage")
  shutil.copytree(folder / "query", folder / "passage")
  with pytest.raises(ValueError, match="is not the passage tower"):
    mlir_jax.load(str(folder))
