"""What a config says about sources is read, or refused by the field's name."""

import pathlib
import types
from typing import Any

import pytest

from mlir_jax import config, config_checks
from mlir_jax import contract as contract_lib
from mlir_jax.command_line import config_fields
from mlir_jax.data import preparation, source_settings, token_store
from mlir_jax.evals import report
from mlir_jax.models import layout
from mlir_jax.training import build


def find(**sources):
  return source_settings.find(sources)


def test_weights_and_prompts_are_read_by_source():
  settings = find(
    nq="weight=2.5 query_prompt='Represent this: '",
    other="name='mrtydi-v1.1 (old)' weight=0",
    wiki='passage_prompt="text: " query_prompt="Find:\n"',
    bare="query_prompt=''",
    unnamed="name= weight=1",
  )
  assert source_settings.weights(settings) == (
    ("", 1.0),
    ("mrtydi-v1.1 (old)", 0.0),
    ("nq", 2.5),
  )
  assert source_settings.prompts(settings) == {
    "bare": {"query": ""},  # Its queries have no prefix.
    "nq": {"query": "Represent this: "},
    "wiki": {"query": "Find:\n", "passage": "text: "},
  }


def test_a_language_whose_source_is_left_out_has_no_pairs():
  c = config.default()
  with c.data.sources.unlocked():
    c.data.sources.wiki = "weight=0"
  groups = (
    token_store.Group("nq", "de", 5),
    token_store.Group("wiki", "de", 5),
    token_store.Group("wiki", "ja", 5),
  )
  prepared: Any = types.SimpleNamespace(
    store=types.SimpleNamespace(groups=lambda stream: groups),
    collection=types.SimpleNamespace(groups={"ja": "zero-shot"}),
  )
  found = build._groups(c, prepared)
  assert found == {"de": report.WITH_PAIRS, "ja": "zero-shot"}


def test_prompts_of_a_pretrained_model_are_not_lost_in_silence(capsys):
  c = config.default()
  with c.data.sources.unlocked():
    c.data.sources.nq = "query_prompt='Find: '"
  prompts = {"nq": {"query": "Search: "}, "wiki": {"query": "Look: "}}
  found = layout.Layout(
    pathlib.Path("model"),
    pathlib.Path("model"),
    encoding=contract_lib.PartialContract(prompts=prompts),
  )
  encoding = preparation.resolve_encoding(c, found)
  assert encoding.prompts == {"nq": {"query": "Find: "}}
  assert "trained with prompts of the sources 'wiki'" in capsys.readouterr().out


def test_a_flag_sets_a_prompt_of_several_lines():
  c = config.default()
  value = "weight=2 query_prompt='Find:\nQuery: '"
  argument = f"--config.data.sources.nq={value}"
  config_fields.add_targets(c, [argument])
  assert c.data.sources.to_dict() == {"nq": value}
  config_checks.check(c)
  (setting,) = source_settings.find(c.data.sources.to_dict())
  assert setting.prompts == {"query": "Find:\nQuery: "}


@pytest.mark.parametrize(
  ("value", "message"),
  [
    ("", "give a weight or a prompt"),
    ("name=b", "give a weight or a prompt"),
    ("weight", "'weight' is not KEY=VALUE"),
    ("weight=1 weight=2", "'weight=2' is not KEY=VALUE"),
    ("wieght=1", "'wieght=1' is not KEY=VALUE"),
    ("weight=-1", "weight is -1; it must be a number from"),
    ("weight=nan", "weight is nan"),
    ("weight=1e-7", "weight is 1e-7"),
    ("weight=inf", "weight is inf"),
    ("weight=two", "weight is two"),
    ("query_prompt='a b", "No closing quotation"),
    ("query_prompt=' '", "query_prompt is ' '; it must not"),
    ("query_prompt=' a'", "query_prompt is ' a'; it must not"),
    ("name= query_prompt=a", "the source has no name"),
    ("name=query query_prompt=a", "the source 'query' would have the name"),
  ],
)
def test_a_setting_that_cannot_be_used_is_refused(value, message):
  with pytest.raises(ValueError, match=message) as caught:
    find(a=value)
  assert str(caught.value).startswith("data.sources")


def test_two_settings_of_one_source_are_refused():
  with pytest.raises(ValueError, match=r"\.a and data\.sources\.b are both"):
    find(a="weight=1", b="name=a weight=2")
  with pytest.raises(ValueError, match="'a_document' in sentence-transformers"):
    find(a="passage_prompt=x", b="name=a_document query_prompt=y")


def test_a_source_that_there_is_not_is_refused_with_the_list():
  settings = find(nq="weight=1")
  source_settings.check_known(settings, ["nq", ""])
  with pytest.raises(
    ValueError, match=r"no source 'nq'. The sources are: '', 'wiki'\."
  ):
    source_settings.check_known(settings, ["wiki", "", "wiki"])
