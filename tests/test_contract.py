"""Promises of the encoding contract: each field that differs is named."""

import dataclasses

import pytest
import tokenizers

from mlir_jax import contract as contract_lib


def make_tokenizer(words=("a", "b")):
  vocabulary = {word: i for i, word in enumerate(("<unk>", "<pad>", *words))}
  model = tokenizers.models.WordLevel(vocabulary, unk_token="<unk>")
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  return tokenizer


def make_contract(tokenizer=None, **changes):
  """Makes a contract; a changed role is its prefix and length."""
  fields = {
    "pooling": "mean",
    "normalize": True,
    "title_joiner": " ",
    "query": ("query: ", 32),
    "passage": ("passage: ", 128),
    "sentence": ("query: ", 64),
  } | changes
  roles = {
    role: contract_lib.PartialRole(*fields[role]) for role in contract_lib.ROLES
  }
  partial = contract_lib.PartialContract(**{**fields, **roles})
  return partial.complete(tokenizer or make_tokenizer())


def test_a_contract_survives_json():
  contract = make_contract()
  assert contract_lib.EncodingContract.from_json(contract.to_json()) == contract
  assert contract_lib.EncodingContract.from_dict(contract.to_dict()) == contract


def test_prompts_belong_to_the_contract_and_older_ones_have_none():
  prompts = {"nq": {"query": "Find: "}, "x": {"query": "Q ", "passage": "P "}}
  contract = dataclasses.replace(make_contract(), prompts=prompts)
  again = contract_lib.EncodingContract.from_json(contract.to_json())
  assert again == contract and again.prompts == prompts
  assert contract.partial().complete(make_tokenizer()) == contract
  assert contract.render("query", "a", prompt="nq") == "Find: a"
  assert contract.render("passage", "a", "b", prompt="nq") == "passage: b a"
  assert contract.render("passage", "a", prompt="x") == "P a"
  assert contract.render("query", "a") == "query: a"
  with pytest.raises(ValueError, match=r"no prompt 'y'.*are: 'nq', 'x'"):
    contract.render("query", "a", prompt="y")
  with pytest.raises(
    contract_lib.ContractMismatchError, match=r"prompts: {'nq"
  ):
    contract_lib.check_same(contract, make_contract(), "there")
  older = make_contract().to_dict()
  del older["prompts"]
  assert contract_lib.EncodingContract.from_dict(older) == make_contract()
  for bad in (["nq"], {"nq": "Find: "}, {"nq": {"title": "a"}}):
    with pytest.raises(ValueError, match="not a text for each name and role"):
      contract_lib.EncodingContract.from_dict({**older, "prompts": bad})


def test_a_prompt_that_leaves_no_room_is_refused():
  long = {"nq": {"query": "a " * 32}}
  contract = dataclasses.replace(make_contract(), prompts=long)
  with pytest.raises(ValueError, match="query_prompt of the source 'nq' takes"):
    contract_lib.check_prefixes(contract, make_tokenizer())


def test_a_partial_contract_is_what_a_contract_says_without_its_tokenizer():
  contract = make_contract()
  assert contract.partial().complete(make_tokenizer()) == contract
  for_a_plan = contract.partial().complete(None)
  assert for_a_plan.partial() == contract.partial()
  assert for_a_plan.golden_ids == ()


def test_a_partial_contract_closes_only_the_fields_that_are_open():
  of_config = contract_lib.PartialContract.from_dict(
    {"pooling": "cls", "normalize": False, "query": {"prefix": ""}}
  )
  assert of_config.title_joiner is None
  assert of_config.passage == contract_lib.PartialRole()
  merged = of_config.over(make_contract().partial())
  assert dict(merged.fields()) == {
    "pooling": "cls",
    "normalize": False,
    "title_joiner": " ",
    "truncate_dim": 0,
    "query.prefix": "",
    "query.max_length": 32,
    "passage.prefix": "passage: ",
    "passage.max_length": 128,
    "sentence.prefix": "query: ",
    "sentence.max_length": 64,
    "prompts": {},
  }


def test_an_open_field_is_named():
  partial = contract_lib.PartialContract.from_dict(
    {"pooling": "cls", "normalize": True, "title_joiner": ""}
  )
  with pytest.raises(ValueError, match=r"encoding\.query\.prefix is not set"):
    partial.complete(make_tokenizer())


@pytest.mark.parametrize(
  "values, named",
  [
    (None, "encoding is None, not an object"),
    ({"query": 5}, r"encoding\.query is 5, not an object"),
    ({"pool": "cls"}, r"encoding has unknown \['pool'\]"),
    ({"passage": {"length": 8}}, r"encoding\.passage has unknown \['length'\]"),
  ],
)
def test_a_partial_contract_of_other_fields_is_refused(values, named):
  with pytest.raises(ValueError, match=named):
    contract_lib.PartialContract.from_dict(values)


def test_rendering_puts_prefix_title_and_joiner_before_the_text():
  contract = make_contract(title_joiner=" - ")
  assert contract.render("passage", "text", "title") == "passage: title - text"
  assert contract.render("passage", "text") == "passage: text"
  assert contract.render("sentence", "text") == "query: text"


@pytest.mark.parametrize(
  "field,change",
  [
    ("pooling", {"pooling": "cls"}),
    ("normalize", {"normalize": False}),
    ("title_joiner", {"title_joiner": "\n"}),
    ("query.prefix", {"query": ("", 32)}),
    ("query.max_length", {"query": ("query: ", 16)}),
    ("passage.prefix", {"passage": ("", 128)}),
    ("passage.max_length", {"passage": ("passage: ", 16)}),
    ("sentence.prefix", {"sentence": ("", 64)}),
    ("sentence.max_length", {"sentence": ("query: ", 16)}),
  ],
)
def test_each_field_that_differs_is_named(field, change):
  with pytest.raises(
    contract_lib.ContractMismatchError, match=rf"(?m)^  {field}: "
  ):
    contract_lib.check_same(make_contract(), make_contract(**change), "there")


def test_another_tokenizer_is_named():
  other = make_contract(make_tokenizer(("c", "d")))
  with pytest.raises(
    contract_lib.ContractMismatchError, match="tokenizer_fingerprint"
  ):
    contract_lib.check_same(make_contract(), other, "there")


def test_a_text_that_is_cut_differently_is_shown():
  contract = make_contract()
  ids = ((9,), *contract.golden_ids[1:])
  changed = dataclasses.replace(contract, golden_ids=ids)
  with pytest.raises(
    contract_lib.ContractMismatchError, match="capital of Finland"
  ):
    contract_lib.check_same(contract, changed, "there")


def test_padding_and_truncation_do_not_change_the_fingerprint():
  tokenizer = make_tokenizer()
  before = contract_lib.fingerprint(tokenizer)
  tokenizer.enable_truncation(4)
  tokenizer.enable_padding()
  assert contract_lib.fingerprint(tokenizer) == before
  assert (
    contract_lib.golden_ids(tokenizer)[0]
    == contract_lib.golden_ids(make_tokenizer())[0]
  )


def test_unknown_values_are_refused():
  with pytest.raises(ValueError, match=r"encoding\.pooling is 'max'"):
    make_contract(pooling="max")
  with pytest.raises(ValueError, match=r"encoding\.query\.max_length is 2"):
    make_contract(query=("", 2))
  with pytest.raises(ValueError, match="Unknown role 'title'"):
    make_contract().render("title", "text")


def test_a_prefix_that_leaves_no_room_for_the_text_is_refused():
  tokenizer = make_tokenizer()
  contract = make_contract(tokenizer, query=("a b a", 4))
  contract_lib.check_prefixes(contract, tokenizer)
  contract = make_contract(tokenizer, query=("a b a b", 4))
  with pytest.raises(ValueError, match=r"encoding\.query\.prefix takes 4 tok"):
    contract_lib.check_prefixes(contract, tokenizer)
