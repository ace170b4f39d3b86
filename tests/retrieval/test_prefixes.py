"""Given prefixes take the place of a model's own; missing ones are named."""

import dataclasses
import json
import shutil
import warnings

import numpy as np
import pytest
import sentence_models

import mlir_jax
from mlir_jax.command_line import program, refusal
from mlir_jax.models import layout
from mlir_jax.retrieval import prefixes

TEXTS = ["river stone", "apple"]
PLAIN = {"prompts": {"query": "", "document": ""}, "default_prompt_name": None}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Folders with prompts, and without; and the models in them."""
  folder = tmp_path_factory.mktemp("models")
  named = sentence_models.save(folder / "named")
  shutil.copytree(folder / "named", folder / "my-e5-small")
  change(folder / "my-e5-small", **PLAIN)
  return folder, named


def change(folder, **fields):
  path = folder / "config_sentence_transformers.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_given_prefixes_are_in_vectors_and_contract(made):
  folder, theirs = made
  with warnings.catch_warnings():
    warnings.simplefilter("error")  # Nothing is missing or replaced.
    loaded = mlir_jax.load(
      str(folder / "my-e5-small"), query_prefix="winter: ", passage_prefix=""
    )
  assert (loaded.contract.query.prefix, loaded.contract.passage.prefix) == (
    "winter: ",
    "",
  )
  np.testing.assert_allclose(
    loaded.encode(TEXTS), theirs.encode(TEXTS, prompt="winter: "), atol=1e-5
  )
  np.testing.assert_allclose(
    loaded.encode(TEXTS, "passage"), theirs.encode(TEXTS, prompt=""), atol=1e-5
  )
  assert tuple(loaded.notes()) == (
    "Prefixes that were given: query 'winter: ', passage ''.",
  )


def test_a_prefix_in_place_of_the_models_own_is_said(made):
  folder, theirs = made
  with pytest.warns(
    prefixes.PrefixWarning,
    match="query texts have the prefix '' in place of 'apple: ', as given",
  ):
    loaded = mlir_jax.load(str(folder / "named"), query_prefix="")
  np.testing.assert_allclose(
    loaded.encode(TEXTS), theirs.encode(TEXTS, prompt=""), atol=1e-5
  )
  assert loaded.contract.passage.prefix == "river: "


@pytest.mark.parametrize(
  "name,sign",
  [
    ("multilingual-e5-small", "its name"),
    ("E5_base", "its name"),
    ("mine", "its folder's name"),
    ("mine", "_name_or_path in its config.json"),
    ("mine", "base_model in its README.md"),
    ("mine", "model-index in its README.md"),
  ],
)
def test_a_family_that_needs_prefixes_is_found_by_each_fact(
  made, tmp_path, name, sign
):
  folder = tmp_path / ("e5-4" if "folder" in sign else "mine")
  shutil.copytree(made[0] / "my-e5-small", folder)
  if "config" in sign:
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    fields["_name_or_path"] = "intfloat/multilingual-e5-small"
    path.write_text(json.dumps(fields))
  if "README" in sign:
    field = {
      "base_model": "base_model: intfloat/e5-base\n",
      "model-index": "model-index:\n- name: multilingual-e5-small\n",
    }[sign.split()[0]]
    (folder / "README.md").write_text(
      f"---\nlicense: mit\n{field}---\n# Mine\n"
    )
  message, advice = prefixes.missing(layout.read(folder), {}, name)
  assert f"is a model of the family e5 by {sign}." in message
  assert (
    "--query_prefix='query: ' --passage_prefix='passage: '"
    " --sentence_prefix='query: '"
  ) in advice


def test_a_family_is_not_found_where_nothing_is_missing(made, tmp_path):
  folder = made[0] / "my-e5-small"
  found = layout.read(folder)

  def missing(given, name="e5", found=found):
    return prefixes.missing(found, given, name)

  message, advice = missing({"query": ""})
  assert "those of passage and sentence texts" in message
  assert advice.startswith("Give --passage_prefix='passage: ' --sentence_pre")
  nothing = ("", "")
  assert missing({"query": "", "passage": ""}) == nothing
  assert missing({}, found=layout.read(made[0] / "named")) == nothing
  other = shutil.copytree(folder, tmp_path / "mine5")
  (other / "README.md").write_text("---\n: [\n---\nBetter than e5-base.\n")
  assert missing({}, "be5t-v1", layout.read(other)) == nothing
  _, instruct = missing({}, "multilingual-e5-large-instruct")
  assert r"answer the query\nQuery: '" in instruct
  assert "--passage_prefix" not in instruct
  with pytest.warns(prefixes.PrefixWarning, match="my-e5-small is a model of"):
    loaded = mlir_jax.load(str(folder))
  assert "family e5" in loaded.notes()[0]


def test_a_program_warns_in_one_line(capsys):
  warning = prefixes.PrefixWarning("Give it.")
  program._show_warning(warning, prefixes.PrefixWarning, "encode.py", 3)
  assert capsys.readouterr().err == f"{refusal.program()}: Give it.\n"
  program._show_warning("old", FutureWarning, "library.py", 3)
  assert "library.py:3: FutureWarning: old" in capsys.readouterr().err


def test_a_folder_with_prompts_of_tasks_needs_only_the_prefixes(made, tmp_path):
  folder = shutil.copytree(made[0] / "named", tmp_path / "tasks")
  change(
    folder, prompts={"clustering": "Cluster this: "}, default_prompt_name=None
  )
  with pytest.raises(
    ValueError, match=r"Give --passage_prefix, --sentence_prefix \(in Python"
  ):
    mlir_jax.load(str(folder), query_prefix="Find: ")
  loaded = mlir_jax.load(
    str(folder), query_prefix="Find: ", passage_prefix="", sentence_prefix=""
  )
  assert loaded.contract.query.prefix == "Find: "


def test_prefixes_that_cannot_be_used_are_refused(made):
  folder = str(made[0] / "named")
  for prefix, message in (
    (7, "query_prefix is 7, which is not a text"),
    ("\ud800", "query_prefix is .* not Unicode text"),
    ("apple " * 30, r"query_prefix takes \d+ tokens, but query texts are cut"),
  ):
    with pytest.raises(ValueError, match=message):
      mlir_jax.load(folder, query_prefix=prefix)
  loaded = mlir_jax.load(folder)
  trained = dataclasses.replace(
    loaded.contract, prompts={"nq": {"query": "Find: "}}
  )
  tokenizer = loaded.text_encoder.tokenizer
  given = {"query": "a", "passage": "b"}
  with pytest.raises(ValueError, match="the prompt 'nq' takes its place"):
    prefixes.put(given, trained, tokenizer, "nq")
  assert prefixes.put({"passage": "b"}, trained, tokenizer, "nq").passage.prefix
  with pytest.raises(ValueError, match="no prompt 'web'"):
    prefixes.put({}, trained, tokenizer, "web")
