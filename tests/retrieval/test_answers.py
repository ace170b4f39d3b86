"""An index is asked, and its texts are found where they were encoded from."""

import dataclasses
import json

import numpy as np
import pytest
import sentence_models
import tiny

import mlir_jax
from mlir_jax import contract as contract_lib
from mlir_jax.data import collections, id_sources, records
from mlir_jax.retrieval import (
  answers,
  collection_encoding,
  index_model,
  index_texts,
  vector_folder,
)
from mlir_jax.retrieval import index as index_lib


def load_folder(name, root, sets=()):
  assert name == "folder" and not sets
  return collections.load("folder", root, require_pairs=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Returns a model, a file of passages, a collection, and an index of each.

  The model has other prefixes than its folder says.
  """
  folder = tmp_path_factory.mktemp("answers")
  sentence_models.save(folder / "model", normalize=False)
  root = tiny.write_folder(folder / "data", pairs=40)
  with pytest.warns(UserWarning, match="in place of 'river: '"):
    model = mlir_jax.load(
      str(folder / "model"),
      batch_size=8,
      passage_prefix="valley: ",
      query_prefix="",
    )
  file = folder / "docs.jsonl"
  file.write_text(
    "".join(
      f'{{"id": "d{n}", "title": "{word}", "text": "the {word} river"}}\n'
      for n, word in enumerate(tiny.WORDS)
    )
  )

  def encode(sources, output, read_from):
    bad_records = records.BadRecords()
    count = id_sources.check(sources, "passage", bad_records)
    collection_encoding.write(
      model,
      "passage",
      id_sources.read_all(sources, bad_records),
      count,
      str(output),
      sources=[source.describe() for source in sources],
      read_from=read_from,
    )

  encode(
    id_sources.from_files([str(file)], "passage"),
    folder / "of-file",
    {"files": [str(file)]},
  )
  said = {"split": "test", "languages": [], "language_in_ids": True}
  encode(
    id_sources.from_tests(
      load_folder("folder", str(root)), "passage", language_in_ids=True
    ),
    folder / "of-tests",
    {"collection": "folder", "root": str(root), "sets": [], **said},
  )
  return model, folder


def texts_of(folder, keys, **given):
  passages = vector_folder.read(folder)
  with index_texts.find(passages, load_folder, **given) as (texts, notes):
    return [answers.passage_texts.find(texts, key) for key in keys], notes


def test_texts_of_an_index_are_found_again(made, tmp_path):
  _, folder = made
  (first, none), notes = texts_of(folder / "of-file", ["d0", "d999"])
  assert (first, notes) == (("d0", "", "apple", "the apple river"), [])
  assert none == ("d999", "", "", None)
  (german,), notes = texts_of(folder / "of-tests", ["de/d3"])
  assert german.language == "de" and german.text.endswith("en") and not notes
  moved = tmp_path / "moved" / "docs.jsonl"
  moved.parent.mkdir()
  old = folder / "docs.jsonl"
  content = old.read_text()
  old.rename(moved)
  try:
    (gone,), (note,) = texts_of(folder / "of-file", ["d0"])
    assert gone.text is None
    assert f"there is no file {old}. Give --corpus or --root." in note
    (found,), notes = texts_of(folder / "of-file", ["d0"], files=[str(moved)])
    assert found == first and not notes
    old.write_text(content.replace("apple", "lemon"))
    (changed,), (note,) = texts_of(folder / "of-file", ["d0"])
    assert changed.title == "lemon" and "docs.jsonl changed after" in note
  finally:
    old.write_text(content)


def test_an_index_is_searched_by_cosines_with_the_prefixes_of_its_record(made):
  model, folder = made
  passages = vector_folder.read(folder / "of-file")
  with pytest.warns(UserWarning, match="in place of 'river: '"):
    loaded = index_model.load(passages, batch_size=8)  # As the index says.
  assert loaded.contract == model.contract
  index = index_lib.Index.load(passages, loaded)
  (best,) = answers.Answerer(loaded, index, {}).answer(["apple stone"], 5)
  texts = {f"d{n}": word for n, word in enumerate(tiny.WORDS)}
  vectors = model.encode(
    [f"the {word} river" for word in texts.values()],
    "passage",
    [*texts.values()],
  )
  query = model.encode(["apple stone"])
  cosines = model.similarity(query, vectors)[0]
  expected = np.argsort(-cosines)[:5]
  assert [each.passage.passage_id for each in best] == [
    f"d{n}" for n in expected
  ]
  np.testing.assert_allclose(
    [each.score for each in best], cosines[expected], atol=1e-6
  )
  scores, ids = loaded.search(["apple stone"], index, 5)
  assert ids == [[f"d{n}" for n in expected]]
  np.testing.assert_allclose(scores[0], cosines[expected], atol=1e-6)


def test_the_prefix_of_queries_may_differ_but_not_that_of_passages(made):
  model, folder = made
  passages = vector_folder.read(folder / "of-file")
  index = index_lib.Index.load(passages)

  def changed(role):
    contract = model.contract
    settings = dataclasses.replace(contract.role(role), prefix="zebra ")
    return model.with_contract(
      dataclasses.replace(contract, **{role: settings})
    )

  index_lib.Index.load(passages, changed("query"))
  changed("query").search(["apple"], index, 1)
  for use in (
    lambda: index_lib.Index.load(passages, changed("passage")),
    lambda: changed("passage").search(["apple"], index, 1),
  ):
    with pytest.raises(
      contract_lib.ContractMismatchError, match=r"passage\.prefix: 'zebra '"
    ):
      use()


def test_passages_of_all_languages_are_one_pool(made):
  model, folder = made
  tests = load_folder("folder", str(folder / "data")).tests()
  answerer = answers.of_tests(model, tests, progress=None)
  assert answerer.size == 80  # Of en and de; dev has the passages of test.
  (best,) = answerer.answer([next(iter(tests[0].queries.values()))], 80)
  assert {each.passage.language for each in best} == {"de", "en"}
  assert json.dumps(best)  # Plain numbers and texts.
