"""Tests of the token store's promises."""

import dataclasses
import json
import os
import re
import shutil

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from mlir_jax import contract as contract_lib
from mlir_jax.batches import identity
from mlir_jax.data import (
  language_table,
  records,
  store_arrays,
  store_join,
  store_texts,
  store_writer,
  token_store,
)
from mlir_jax.storage import digests

PAD, CLS, SEP, UNK = range(4)
WORDS = "query : who what river stone garden cloud Fluss Stein Garten pilvi"
VOCABULARY = {
  word: i
  for i, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS.split()])
}


def make_tokenizer():
  tokenizer = tokenizers.Tokenizer(models.WordLevel(VOCABULARY, "[UNK]"))
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  tokenizer.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]",
    special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
  )
  return tokenizer


TOKENIZER = make_tokenizer()
CONTRACT = contract_lib.PartialContract(
  pooling="mean",
  normalize=True,
  title_joiner=" ",
  query=contract_lib.PartialRole("query: ", 6),
  passage=contract_lib.PartialRole("", 5),
  sentence=contract_lib.PartialRole("", 8),
).complete(TOKENIZER)


def collection(retrieval=(), parallel=(), monolingual=()):
  return records.Collection(
    "made",
    lambda: iter(retrieval),
    lambda: iter(parallel),
    lambda: iter(monolingual),
    tests=tuple,
    translation_tests=tuple,
    groups={},
    fingerprint=str,
    notes=tuple,
  )


def passage(text, passage_id="", title=""):
  return records.Passage(text, title, passage_id)


RETRIEVAL = (
  records.RetrievalRecord(
    "who",
    (passage("stone", "p1", "river"), passage("cloud")),
    (passage("garden", "n1"), passage("garden river", "p2"), passage("Stein")),
  ),
  records.RetrievalRecord("what", (passage("garden", "n1"),)),
  records.RetrievalRecord("pilvi", (passage("pilvi pilvi"),), language="fi"),
  # The same question: its positive is not a negative of the first row.
  records.RetrievalRecord(
    " who ",
    (passage("garden garden", "p3"),),
    (passage("river stone"), passage("what")),
  ),
)
PARALLEL = (
  records.ParallelRecord("river", "Fluss", "en", "de"),
  records.ParallelRecord("Stein", "stone", "de", "en"),
  records.ParallelRecord("cloud", "pilvi", "en", "fi"),
  records.ParallelRecord("stone", "Stein ", "en", "de"),  # Repeated.
  records.ParallelRecord("cloud", "cloud", "en", "de"),  # Identical sides.
  records.ParallelRecord("garden", "Garten", "en", "de"),
)
MONOLINGUAL = (
  records.MonolingualRecord("pilvi", "fi"),
  records.MonolingualRecord("Fluss Stein", "de"),
  records.MonolingualRecord("pilvi " * 9, "fi"),
)
EVERYTHING = collection(RETRIEVAL, PARALLEL, MONOLINGUAL)


def build(path, data=EVERYTHING, *, shuffle_parallel=False, seed=0, **options):
  return store_writer.build(
    path,
    data,
    CONTRACT,
    TOKENIZER,
    PAD,
    shuffle_parallel=shuffle_parallel,
    seed=seed,
    **({"source": "made"} | options),
  )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
  return build(tmp_path_factory.mktemp("tokens") / "store")


def text_of(store, role, text):
  """The words of a text, read back through its tokens."""
  ids, mask = store.sequences(role, np.asarray(text), 16)
  names = {i: word for word, i in VOCABULARY.items()}
  return " ".join(names[i] for i in ids[mask][1:-1])


def ragged(store, name, offsets, row):
  start, stop = store.arrays[offsets][row : row + 2]
  return store.arrays[name][start:stop].tolist()


def test_rows_are_grouped_by_language(store):
  assert store.language_rows("retrieval") == {"en": 3, "fi": 1}
  assert store.language_rows("parallel") == {"de-en": 3, "en-fi": 1}
  assert store.language_rows("monolingual") == {"de": 1, "fi": 2}
  assert [
    text_of(store, "query", t).removeprefix("query : ")
    for t in store.arrays["retrieval_queries"]
  ] == ["who", "what", "who", "pilvi"]
  languages = np.array(store.languages)
  assert languages[store.arrays["monolingual_languages"]].tolist() == [
    "de",
    "fi",
    "fi",
  ]
  assert store.rows("parallel") == 4


def test_rows_of_a_language_are_grouped_by_source(tmp_path, store):
  def named(rows, *names):
    return [
      dataclasses.replace(row, source_name=name)
      for row, name in zip(rows, names, strict=True)
    ]

  sources = build(
    tmp_path / "store",
    collection(
      named(RETRIEVAL, "b", "a", "a", "b"),
      named(PARALLEL, "b", "a", "b", "a", "a", "a"),
      named(MONOLINGUAL, "", "x", "x"),
    ),
  )
  group = token_store.Group
  assert sources.groups("retrieval") == (
    group("a", "en", 1),
    group("b", "en", 2),
    group("a", "fi", 1),
  )
  assert [
    text_of(sources, "query", t).removeprefix("query : ")
    for t in sources.arrays["retrieval_queries"]
  ] == ["what", "who", "who", "pilvi"]
  # A repeated pair is a row of the first source that has it.
  assert sources.groups("parallel") == (
    group("a", "de-en", 2),
    group("b", "de-en", 1),
    group("b", "en-fi", 1),
  )
  assert sources.groups("monolingual") == (
    group("x", "de", 1),
    group("", "fi", 1),
    group("x", "fi", 1),
  )
  for stream in token_store.STREAMS:
    assert sources.language_rows(stream) == store.language_rows(stream)
  assert sources.source_rows("retrieval") == {"a": 2, "b": 2}
  assert "retrieval by source: a 2, b 2" in sources.summary()
  assert "monolingual by source: (no name) 1, x 2" in sources.summary()
  assert "by source" not in store.summary()
  *_, unread = language_table.render(sources, {}, {"a"}).splitlines()
  assert "retrieval 2 rows of 'a', parallel 2 rows of 'a'." in unread


def test_prompts_of_a_source_take_the_place_of_the_prefix(tmp_path):
  prompts = {
    "b": {"query": "what: ", "passage": "cloud: "},
    "c": {"passage": "river "},
  }
  contract = dataclasses.replace(CONTRACT, prompts=prompts)
  same = {"question": "who", "positives": (passage("stone", "", "river"),)}
  rows = [
    records.RetrievalRecord(**same, source_name="a"),
    records.RetrievalRecord(**same, source_name="b"),
    records.RetrievalRecord(**same, source_name="b", prompt="garden "),
    records.RetrievalRecord(**same, source_name="c"),
  ]
  built = store_writer.build(
    tmp_path / "store",
    collection(rows, PARALLEL),
    contract,
    TOKENIZER,
    PAD,
    shuffle_parallel=False,
    seed=0,
    source="made",
  )
  assert built.contract.prompts == prompts
  found = [
    text_of(built, "query", text) for text in built.arrays["retrieval_queries"]
  ]
  assert found == ["query : who", "what : who", "garden who", "query : who"]
  found = [
    text_of(built, "passage", built.arrays["retrieval_positives"][row])
    for row in range(4)
  ]
  # Passages are cut to five tokens, with the special ones.
  assert found == ["river stone", "cloud : river", "cloud : river", *found[3:]]
  assert found[3] == "river river stone"
  # Encoding by the source's name gives the same tokens.
  for row, source in enumerate(("", "b")):
    text = contract.render("query", " who ", prompt=source)
    ids, mask = built.sequences(
      "query", np.asarray(built.arrays["retrieval_queries"][row]), 6
    )
    assert ids[mask].tolist() == TOKENIZER.encode(text).ids
  # Sentences have no prompts here.
  assert text_of(built, "sentence", built.arrays["parallel_texts"][0, 0]) == (
    "Fluss"
  )


def test_a_positive_stays_one_where_its_source_has_a_prompt(tmp_path):
  """A prompt is no part of a text: it makes no false negative."""
  prompts = {"b": {"query": "what ", "passage": "cloud cloud "}}
  contract = dataclasses.replace(CONTRACT, prompts=prompts)
  right, other = passage("river stone"), passage("garden")
  rows = [
    records.RetrievalRecord("who", (right,), (other,), source_name="a"),
    records.RetrievalRecord("who", (other,), (right,), source_name="b"),
  ]
  built = store_writer.build(
    str(tmp_path / "store"),
    collection(rows),
    contract,
    make_tokenizer(),
    0,
    shuffle_parallel=False,
    seed=0,
    source="made",
  )
  # Each row's negative is a positive of its question in the other row.
  assert built.dropped["hard negatives that are positives"] == 2
  assert built.max_positives == 2
  for role, array in (("query", "queries"), ("passage", "positives")):
    texts = built.arrays[f"retrieval_{array}"]
    assert len(set(built.lengths(role)[texts])) == 2  # A prompt is encoded.
  hashes = built.sequence_hashes("query", built.arrays["retrieval_queries"])
  assert hashes[0] == hashes[1]


def test_tokens_are_those_of_the_contract(store):
  for role, body in (
    ("query", "who"),
    ("passage", "river stone"),
    ("sentence", "river"),
  ):
    expected = TOKENIZER.encode(CONTRACT.render(role, body)).ids
    found = [
      ids[mask].tolist()
      for ids, mask in zip(
        *store.sequences(role, np.arange(len(store.lengths(role))), 16),
        strict=True,
      )
    ]
    assert expected in found


def test_long_texts_are_cut_before_the_special_tokens_and_counted(store):
  text = store.arrays["monolingual_texts"][-1]
  ids, mask = store.sequences("sentence", text, 8)
  pilvi = VOCABULARY["pilvi"]
  assert ids.tolist() == [CLS, *[pilvi] * 6, SEP]
  assert mask.all()
  assert store.truncation["sentence"]["fi"] == [1, 2]
  assert store.truncation["sentence"]["de"] == [0, 4]
  assert store.truncation["passage"]["en"] == [0, 7]
  assert "fi 50.0%" in store.summary()


def test_padding_fills_the_given_length(store):
  texts = np.array([[store.arrays["parallel_texts"][0, 0], -1]])
  ids, mask = store.sequences("sentence", texts, 8)
  assert ids.shape == mask.shape == (1, 2, 8)
  assert ids.dtype == np.int32
  assert mask.sum(axis=-1).tolist() == [[3, 0]]
  assert store.text_lengths("sentence", texts).tolist() == [[3, 0]]
  with pytest.raises(ValueError, match="3 tokens cannot be padded to 2"):
    store.sequences("sentence", texts, 2)
  assert (ids[~mask] == PAD).all()


def test_a_long_max_length_costs_nothing_where_texts_are_short(tmp_path):
  contract = contract_lib.PartialContract(
    pooling="mean",
    normalize=True,
    title_joiner=" ",
    query=contract_lib.PartialRole("", 12),
    passage=contract_lib.PartialRole("", 5),
    sentence=contract_lib.PartialRole("", 512),
  ).complete(TOKENIZER)
  store = store_writer.build(
    tmp_path / "store",
    collection(RETRIEVAL, PARALLEL, MONOLINGUAL),
    contract,
    TOKENIZER,
    PAD,
    shuffle_parallel=False,
    seed=0,
    source="made",
  )
  # The longest sentence has 11 tokens, query 3, and passages are cut to 5.
  assert store.padded_lengths == {"query": 8, "passage": 5, "sentence": 16}
  for role, length in store.padded_lengths.items():
    texts = np.arange(len(store.lengths(role)))
    _, mask = store.sequences(role, texts, length)
    assert mask.sum() == store.lengths(role).sum()  # Nothing was cut.


def test_one_text_has_one_hash_in_all_streams(store):
  # "pilvi" is a question, a translation and a monolingual sentence.
  pilvi = store.text_hashes("query", store.arrays["retrieval_queries"][3])
  for stream in ("parallel", "monolingual"):
    texts = store.arrays[f"{stream}_texts"]
    assert pilvi in store.text_hashes("sentence", texts)
  # A title and a text are one body.
  first = ragged(store, "retrieval_positives", "retrieval_positive_offsets", 0)
  assert text_of(store, "passage", first[0]) == "river stone"


def test_each_text_is_encoded_once_per_role(store):
  for role, distinct in (("query", 3), ("passage", 8), ("sentence", 10)):
    assert len(store.lengths(role)) == distinct
    texts = np.arange(distinct)
    for hashes in (store.text_hashes, store.sequence_hashes):
      assert len(set(hashes(role, texts).tolist())) == distinct
  assert store.lengths("query").max() == 5


def test_a_question_knows_the_positives_of_all_its_rows(store):
  questions = store.arrays["retrieval_questions"]
  assert questions[0] == questions[2] != questions[1]
  known = ragged(
    store, "retrieval_known", "retrieval_known_offsets", questions[0]
  )
  own = [
    text
    for row in (0, 2)
    for text in ragged(
      store, "retrieval_positives", "retrieval_positive_offsets", row
    )
  ]
  own = store.sequence_hashes("passage", np.array(own)).tolist()
  assert sorted(known) == sorted(own)
  assert store.max_positives == 3


def test_hard_negatives_that_are_positives_are_dropped(store):
  assert store.dropped["hard negatives that are positives"] == 1
  left = [
    [
      text_of(store, "passage", text)
      for text in ragged(
        store, "retrieval_negatives", "retrieval_negative_offsets", row
      )
    ]
    for row in range(4)
  ]
  assert left == [["garden", "garden river", "Stein"], [], ["what"], []]


# --- Which texts are the same. ---


def make_folding_tokenizer():
  """A tokenizer that makes full-width and upper-case letters plain."""
  tokenizer = make_tokenizer()
  tokenizer.normalizer = tokenizers.normalizers.Sequence(
    [tokenizers.normalizers.NFKC(), tokenizers.normalizers.Lowercase()]
  )
  return tokenizer


def wide(text):
  """The text in full-width letters."""
  return "".join(chr(ord(c) + 0xFEE0) if c > " " else c for c in text)


@pytest.mark.parametrize("prefix", ["", "query : "])
def test_equal_tokens_are_one_text_in_all_roles(tmp_path, prefix):
  tokenizer = make_folding_tokenizer()
  contract = contract_lib.PartialContract(
    pooling="mean",
    normalize=True,
    title_joiner=" ",
    **dict.fromkeys(contract_lib.ROLES, contract_lib.PartialRole(prefix, 8)),
  ).complete(tokenizer)
  data = collection(
    [
      records.RetrievalRecord(
        "who", (passage("stone", title="river"),), (passage("cloud"),)
      ),
      records.RetrievalRecord(wide("who"), (passage(wide("river stone")),)),
      records.RetrievalRecord(
        "WHO", (passage("Cloud"),), (passage("RIVER stone"),)
      ),
    ],
    [
      records.ParallelRecord("garden", "river stone", "en", "de"),
      records.ParallelRecord(wide("River stone"), "Garden", "de", "en"),
      records.ParallelRecord("cloud", wide("CLOUD"), "en", "de"),
    ],
    [records.MonolingualRecord("Garden", "en")],
  )
  store = store_writer.build(
    tmp_path / "store",
    data,
    contract,
    tokenizer,
    PAD,
    shuffle_parallel=False,
    seed=0,
    source="made",
  )
  arrays = store.arrays
  assert len({*store.text_hashes("query", arrays["retrieval_queries"])}) == 1
  passages = store.text_hashes("passage", arrays["retrieval_positives"])
  river, also, cloud = passages
  assert river == also != cloud
  (garden,) = store.text_hashes("sentence", arrays["monolingual_texts"])
  (pair,) = store.text_hashes("sentence", arrays["parallel_texts"])
  assert pair.tolist() == [river, garden]
  assert store.dropped["parallel pairs with identical sides"] == 1
  assert store.dropped["repeated parallel pairs"] == 1
  # One question, of which each row knows both positives.
  assert store.max_positives == 2
  assert store.dropped["hard negatives that are positives"] == 2
  # The stored tokens are those of encoding the text itself.
  for role in contract_lib.ROLES:
    for text in range(len(store.lengths(role))):
      ids, mask = store.sequences(role, text, 8)
      words = text_of(store, role, text).removeprefix(prefix)
      assert ids[mask].tolist() == tokenizer.encode(prefix + words).ids
  assert store.rows("retrieval") == 3


def test_texts_that_are_cut_alike_share_a_sequence_in_that_role(tmp_path):
  data = collection(
    [
      records.RetrievalRecord(
        "who what who river",
        (passage("river stone river cloud"),),
        (passage("river stone river garden"), passage("river stone")),
      ),
      records.RetrievalRecord("who what who", (passage("garden"),)),
    ],
    monolingual=[
      records.MonolingualRecord(f"river stone river {word}", "en")
      for word in ("cloud", "garden")
    ],
  )
  store = build(tmp_path / "store", data)
  # "query: " and two words; three of a passage; and all of a sentence.
  queries = store.arrays["retrieval_queries"]
  assert len(set(store.text_hashes("query", queries))) == 2
  assert len(set(store.sequence_hashes("query", queries))) == 1
  sentences = np.array([*store.arrays["monolingual_texts"], -1])
  assert len(set(store.text_hashes("sentence", sentences))) == 3
  assert len(set(store.sequence_hashes("sentence", sentences))) == 3
  assert store.sequence_hashes("sentence", sentences)[-1] == identity.NONE
  cut_alike = np.arange(2)  # The positive and the first negative.
  assert len(set(store.text_hashes("passage", cut_alike))) == 2
  assert len(set(store.sequence_hashes("passage", cut_alike))) == 1
  # A negative that is encoded like the positive is a positive. But a question
  # does not know the positives of questions that are only cut alike.
  assert store.max_positives == 1
  assert store.dropped["hard negatives that are positives"] == 1
  assert len(store.arrays["retrieval_negatives"]) == 1


def test_no_prefix_and_a_prefix_give_the_tokens_of_the_whole_text(tmp_path):
  """Two steps and one step give the same tokens, for any post-processor."""
  texts = [f"{'river stone ' * n}cloud" for n in range(5)] + ["[SEP] who", "?"]
  for post_processor in (
    TOKENIZER.post_processor,
    processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS)),
    processors.RobertaProcessing(("[SEP]", SEP), ("[CLS]", CLS)),
  ):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens(["[SEP]"])
    tokenizer.post_processor = post_processor
    contract = contract_lib.PartialContract(
      pooling="mean",
      normalize=True,
      title_joiner=" ",
      query=contract_lib.PartialRole("", 6),
      passage=contract_lib.PartialRole("", 6),
      sentence=contract_lib.PartialRole("", 6),
    ).complete(tokenizer)
    store = store_writer.build(
      tmp_path / type(post_processor).__name__,
      collection(
        monolingual=[records.MonolingualRecord(t, "en") for t in texts]
      ),
      contract,
      tokenizer,
      PAD,
      shuffle_parallel=False,
      seed=0,
      source="made",
    )
    tokenizer.enable_truncation(6)
    for text, number in zip(
      texts, store.arrays["monolingual_texts"], strict=True
    ):
      ids, mask = store.sequences("sentence", number, 6)
      assert ids[mask].tolist() == tokenizer.encode(text).ids


# --- Passage ids. ---


def row(question, positive, passage_id="", negatives=(), place=None):
  return records.RetrievalRecord(
    question, (passage(positive, passage_id),), negatives, place=place
  )


def place(number, file="a.json"):
  return records.Place(file, 1, number)


def test_an_id_with_two_texts_in_a_file_is_refused_naming_both_places(
  tmp_path,
):
  rows = [
    row("who", "river", "0", place=place(1)),
    row("what", "stone", "1", place=place(2)),
    row("river", "river", "0", place=place(3)),
    row("stone", "cloud", "0", place=place(4)),
    row("cloud", "garden", "1", place=place(5)),
  ]
  with pytest.raises(
    records.RecordError,
    match=r"^a\.json:1: record 4, passage id: '0' is also the id of another"
    r" text, in a\.json:1: record 1; .*on_bad_record=skip",
  ):
    build(tmp_path / "store", collection(rows))
  assert not list(tmp_path.iterdir())
  store = build(
    tmp_path / "store",
    collection(rows),
    bad_records=records.BadRecords("skip"),
  )
  assert store.rows("retrieval") == 5
  assert store.dropped["passage ids that have two texts"] == 2
  assert "dropped passage ids that have two texts: 2" in store.summary()
  # The ids are ignored: no question knows more than its own positive.
  assert store.max_positives == 1


def test_a_negative_with_the_id_of_a_positive_is_an_id_with_two_texts(tmp_path):
  rows = [row("who", "river", "7", (passage("stone", "7"),), place(3))]
  with pytest.raises(
    records.RecordError, match=r"record 3, .*'7' is also .* in this record"
  ):
    build(tmp_path / "store", collection(rows))
  store = build(
    tmp_path / "store",
    collection(rows),
    bad_records=records.BadRecords("skip"),
  )
  assert len(store.arrays["retrieval_negatives"]) == 1


def test_an_id_clashes_only_within_its_file_and_with_another_text(tmp_path):
  rows = [
    row("who", "river stone", "0", place=place(1)),
    row("what", "river  stone", "0", place=place(2)),  # Equal tokens.
    row("river", "cloud", "0", place=place(1, "b.json")),
    row("stone", "garden", "0"),  # Its file is not known.
    row("cloud", "Stein", "0"),
  ]
  store = build(tmp_path / "store", collection(rows))
  assert store.dropped["passage ids that have two texts"] == 0


def test_a_bad_negative_costs_itself_alone(tmp_path):
  negatives = (
    passage("stone"),
    passage(""),
    passage(" ", "e", title="river"),
    passage("\u200b \u3164"),  # Nothing of it is visible.
    passage("river"),  # A copy of the positive.
  )
  store = build(
    tmp_path / "store", collection([row("who", "river", "p", negatives)])
  )
  (left,) = store.arrays["retrieval_negatives"]
  assert text_of(store, "passage", left) == "stone"
  summary = store.summary()
  assert "dropped hard negatives without text: 3" in summary
  assert "dropped hard negatives that are positives: 1" in summary


def test_parallel_sides_keep_their_language(store):
  languages = np.array(store.languages)[store.arrays["parallel_languages"]]
  assert languages.tolist() == [["de", "en"]] * 3 + [["en", "fi"]]
  assert [
    [text_of(store, "sentence", text) for text in pair]
    for pair in store.arrays["parallel_texts"]
  ] == [
    ["Fluss", "river"],
    ["Stein", "stone"],
    ["Garten", "garden"],
    ["cloud", "pilvi"],
  ]


def test_identical_sides_and_repeated_pairs_are_dropped_and_counted(store):
  assert store.dropped["parallel pairs with identical sides"] == 1
  assert store.dropped["repeated parallel pairs"] == 1
  assert "dropped repeated parallel pairs: 1" in store.summary()


def test_a_question_without_positive_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="'who' has no positive"):
    build(tmp_path / "store", collection([records.RetrievalRecord("who", ())]))


def numbered(first, number):
  """A text of known words: unknown words would all be one text."""
  words = [WORDS.split()[number // 11**place % 11] for place in range(3)]
  return " ".join([first, *words])


def many_pairs(count=400):
  """Pairs of which an English sentence has up to four translations."""
  return [
    records.ParallelRecord(
      numbered("river", i // 4), numbered("Fluss", i % 390), "en", "de"
    )
    for i in range(count)
  ] + [
    records.ParallelRecord(
      numbered("river", i), numbered("pilvi", i), "en", "fi"
    )
    for i in range(2)
  ]


def test_shuffled_pairs_are_all_wrong_and_hold_the_same_sentences(tmp_path):
  data = collection(parallel=many_pairs())
  right = build(tmp_path / "right", data)
  wrong = build(tmp_path / "wrong", data, shuffle_parallel=True, seed=1)
  right_texts = right.arrays["parallel_texts"]
  wrong_texts = wrong.arrays["parallel_texts"]
  # Both stores have the same texts in one order.
  assert not set(map(tuple, right_texts)) & set(map(tuple, wrong_texts))
  start = 0
  for size in right.language_rows("parallel").values():
    group = slice(start, start + size)
    for side in (0, 1):
      np.testing.assert_array_equal(
        np.sort(right_texts[group, side]), np.sort(wrong_texts[group, side])
      )
    start += size
  np.testing.assert_array_equal(
    right.arrays["parallel_languages"], wrong.arrays["parallel_languages"]
  )
  other = build(tmp_path / "other", data, shuffle_parallel=True, seed=2)
  assert (other.arrays["parallel_texts"] != wrong_texts).any()
  assert "control experiment" in wrong.summary()


def test_a_shuffled_pair_in_one_language_is_wrong_in_both_directions(tmp_path):
  data = collection(
    parallel=[
      records.ParallelRecord(
        numbered("river", i), numbered("river", i + further), "en", "en"
      )
      for i in range(60)
      for further in (1, 2, 3)
    ]
  )
  right, wrong = (
    {
      tuple(store.text_hashes("sentence", pair).tolist())
      for pair in store.arrays["parallel_texts"]
    }
    for store in (
      build(tmp_path / "right", data),
      build(tmp_path / "wrong", data, shuffle_parallel=True),
    )
  )
  assert not wrong & (right | {(b, a) for a, b in right})


def test_pairs_too_alike_to_be_shuffled_are_an_error(tmp_path):
  pairs = [
    records.ParallelRecord("river", numbered("Fluss", i), "en", "de")
    for i in range(5)
  ]
  with pytest.raises(ValueError, match="5 pairs of de-en"):
    build(tmp_path / "store", collection(parallel=pairs), shuffle_parallel=True)


# --- Several shards. ---


def read_shards(tmp_path, *shares, retrieval, parallel=(), monolingual=()):
  """Reads a shard for each function that takes its share of the records."""
  shards = []
  for number, share in enumerate(shares):
    folder = tmp_path / f"shard-{len(shares)}-{number}"
    folder.mkdir()
    streams = map(share, (retrieval, parallel, monolingual))
    shards.append(
      store_arrays.read_shard(folder, *streams, CONTRACT, TOKENIZER.to_str())
    )
  return shards


def rows_with_hashes(shards, joined):
  """Returns the rows of all shards of each stream, sorted, by hashes alone."""
  found = {"retrieval": [], "parallel": [], "monolingual": []}
  for shard, streams in zip(shards, joined.shards, strict=True):
    text = {role: hashes.text for role, hashes in shard.hashes.items()}

    def languages(numbers):
      return np.array(joined.languages)[numbers].tolist()

    arrays, groups = streams["retrieval"]
    language = np.repeat(
      [group.language for group in groups], [group.rows for group in groups]
    )

    def ragged(name, offsets, row, arrays=arrays):
      start, stop = arrays[offsets][row : row + 2]
      return arrays[name][start:stop]

    for row, query in enumerate(arrays["queries"]):
      passages = [
        sorted(text["passage"][ragged(f"{kind}s", f"{kind}_offsets", row)])
        for kind in ("positive", "negative")
      ]
      known = ragged("known", "known_offsets", arrays["questions"][row])
      found["retrieval"].append(
        (text["query"][query], language[row], *passages, known.tolist())
      )
    for stream in ("parallel", "monolingual"):
      arrays, _ = streams[stream]
      for texts, numbers in zip(
        arrays["texts"], arrays["languages"], strict=True
      ):
        hashes = text["sentence"][texts].tolist()
        found[stream].append((hashes, languages(numbers)))
  return {stream: sorted(rows) for stream, rows in found.items()}


def test_several_shards_and_one_say_the_same(tmp_path):
  streams = {
    "retrieval": RETRIEVAL,
    "parallel": (
      *PARALLEL,
      # Repeated, in one language and in the other order.
      records.ParallelRecord("cloud", "garden", "en", "en"),
      records.ParallelRecord("garden", " cloud", "en", "en"),
    ),
    "monolingual": MONOLINGUAL,
  }
  policy = records.BadRecords()
  one = read_shards(tmp_path, list, **streams)
  # Shards have their languages in other orders; the last has no record.
  several = read_shards(
    tmp_path,
    *(lambda rows, i=i: rows[i::3] for i in (2, 0, 1)),
    lambda rows: (),
    **streams,
  )
  whole = store_join.join(one, policy)
  joined = store_join.join(several, policy)
  assert whole.dropped == joined.dropped
  assert joined.dropped == {
    "hard negatives without text": 0,
    "hard negatives that are positives": 1,
    "passage ids that have two texts": 0,
    "parallel pairs with identical sides": 1,
    "repeated parallel pairs": 2,
  }
  assert rows_with_hashes(one, whole) == rows_with_hashes(several, joined)


def test_an_id_with_two_texts_in_two_shards_is_refused_naming_both_places(
  tmp_path,
):
  rows = [
    row("who", "river", "ä", place=place(1)),
    row("what", "stone", "1", place=place(2, "b.json")),
    row("river", "stone", "1", place=place(3)),
    row("stone", "cloud", "ä", place=place(4)),
  ]
  shards = read_shards(
    tmp_path, lambda rows: rows[:2], lambda rows: rows[2:], retrieval=rows
  )
  with pytest.raises(
    records.RecordError,
    match=r"^a\.json:1: record 4, passage id: 'ä' is also the id of another"
    r" text, in a\.json:1: record 1; ",
  ):
    store_join.join(shards, records.BadRecords())
  joined = store_join.join(shards, records.BadRecords("skip"))
  assert joined.dropped["passage ids that have two texts"] == 1


def test_equal_input_gives_an_equal_fingerprint(store, tmp_path):
  assert build(tmp_path / "same").fingerprint == store.fingerprint
  # The seed only matters for shuffling.
  assert build(tmp_path / "seed", seed=5).fingerprint == store.fingerprint
  fewer = collection(RETRIEVAL, PARALLEL, MONOLINGUAL[:-1])
  assert build(tmp_path / "fewer", fewer).fingerprint != store.fingerprint


def test_where_the_texts_come_from_is_kept_apart_from_the_fingerprint(
  store, tmp_path
):
  moved = build(tmp_path / "moved", source="elsewhere")
  assert (store.source, moved.source) == ("made", "elsewhere")
  assert moved.fingerprint == store.fingerprint
  assert "bad training records: none" in store.summary()
  assert "hard negatives: 4" in store.summary()


def test_the_bad_records_of_the_build_are_kept_and_drained(tmp_path):
  bad_records = records.BadRecords("skip")
  bad_records.report("a.json", 1, "text", "is read for a tokenizer, too")

  def monolingual():
    bad_records.report("b.txt", 7, "text", "is no text")
    for name in ("c.txt", "c.txt", "d.txt"):
      bad_records.count_removed(name, "numbers")
    yield from MONOLINGUAL

  data = dataclasses.replace(EVERYTHING, monolingual=monolingual)
  store = build(tmp_path / "store", data, bad_records=bad_records)
  expected = {
    "count": 1,
    "first": ["b.txt:7: text: is no text"],
    "removed": {"numbers": [3, "c.txt"]},
  }
  assert token_store.TokenStore.open(store.path).meta["bad_records"] == expected
  assert "skipped: 1, the first:\n  b.txt:7: text: is no" in store.summary()
  assert "\nremoved numbers: 3, the first in c.txt\n" in store.summary()
  assert bad_records.drain() == {"count": 0, "first": [], "removed": {}}


def test_chunks_do_not_show(store, tmp_path, monkeypatch):
  monkeypatch.setattr(store_texts, "_CHUNK_CHARACTERS", 12)
  assert build(tmp_path / "chunked").fingerprint == store.fingerprint


def test_arrays_are_memory_mapped(store):
  for array in (
    store.tokens["sentence"].shard(0),
    store.arrays["sentence_offsets"],
  ):
    assert isinstance(array.base, np.memmap)
    assert not array.flags.writeable


def test_the_contract_is_kept(store):
  contract_lib.check_same(CONTRACT, store.contract, "the store")
  assert store.pad_id == PAD


def test_a_missing_stream_is_an_empty_one(tmp_path):
  store = build(tmp_path / "store", collection(monolingual=MONOLINGUAL))
  assert store.rows("retrieval") == store.rows("parallel") == 0
  assert store.max_positives == 0
  assert token_store.TokenStore.open(tmp_path / "store")
  assert "retrieval: 0 rows (none)" in store.summary()


@pytest.mark.parametrize("stream", ["retrieval", "monolingual"])
def test_a_build_that_dies_leaves_no_store(tmp_path, stream, monkeypatch):
  def dying():
    yield from getattr(EVERYTHING, stream)()
    raise KeyboardInterrupt

  streams = {name: getattr(EVERYTHING, name) for name in token_store.STREAMS}
  monkeypatch.setattr(store_texts, "_CHUNK_CHARACTERS", 1)  # Files are written.
  data = records.Collection(
    name="made",
    tests=tuple,
    translation_tests=tuple,
    groups={},
    fingerprint=str,
    notes=tuple,
    **(streams | {stream: dying}),
  )
  with pytest.raises(KeyboardInterrupt):
    build(tmp_path / "store", data)
  assert not list(tmp_path.iterdir())
  with pytest.raises(FileNotFoundError):
    token_store.TokenStore.open(tmp_path / "store")
  build(tmp_path / "store")


def test_the_rest_of_a_killed_build_is_not_a_store(tmp_path, monkeypatch):
  def die(*_):
    raise KeyboardInterrupt

  # After SIGKILL nothing is renamed or removed.
  monkeypatch.setattr(os, "rename", die)
  monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
  with pytest.raises(KeyboardInterrupt):
    build(tmp_path / "store")
  assert not (tmp_path / "store").exists()
  monkeypatch.undo()
  assert len(list(tmp_path.iterdir())) == 1
  build(tmp_path / "store")
  assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_two_builds_at_once_end_in_one_store(tmp_path, store):
  def slow():
    build(tmp_path / "store")  # Like another process that is faster.
    yield from MONOLINGUAL

  data = records.Collection(
    "made",
    EVERYTHING.retrieval,
    EVERYTHING.parallel,
    slow,
    *(tuple, tuple, {}, str, tuple),
  )
  assert build(tmp_path / "store", data).fingerprint == store.fingerprint
  assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_build_hashes_each_array_once(tmp_path, monkeypatch):
  hashed = []
  digest = digests.of_file
  monkeypatch.setattr(
    digests, "of_file", lambda path: hashed.append(path.name) or digest(path)
  )
  made = build(tmp_path / "store")
  assert sorted(hashed) == sorted(
    f"{name}.npy".rpartition("/")[2] for name in made.meta["arrays"]
  )


def test_an_existing_path_is_not_overwritten(tmp_path):
  (tmp_path / "store").mkdir()
  with pytest.raises(FileExistsError, match="store exists"):
    build(tmp_path / "store")


@pytest.fixture
def copy(store, tmp_path):
  return shutil.copytree(store.path, tmp_path / "copy")


def test_a_truncated_array_is_named(copy):
  file = copy / "00000/sentence_tokens.npy"
  file.write_bytes(file.read_bytes()[:-4])
  with pytest.raises(
    token_store.TokenStoreError, match=r"sentence_tokens\.npy"
  ):
    token_store.TokenStore.open(copy)


def test_a_missing_array_is_named(copy):
  (copy / "parallel_texts.npy").unlink()
  with pytest.raises(token_store.TokenStoreError, match=r"parallel_texts\.npy"):
    token_store.TokenStore.open(copy)


def test_an_array_of_another_store_is_named(copy):
  np.save(copy / "parallel_texts.npy", np.zeros((1, 2), np.int32))
  with pytest.raises(token_store.TokenStoreError, match=r"parallel_texts\.npy"):
    token_store.TokenStore.open(copy)


def test_a_flipped_bit_is_found_in_any_file(copy):
  for file in sorted(path for path in copy.rglob("*") if path.is_file()):
    token_store.TokenStore.open(copy)
    content = file.read_bytes()
    # The last number, or the last letter of the last hash.
    place = -1 if file.suffix == ".npy" else content.rindex(b'"') - 1
    flipped = bytearray(content)
    flipped[place] ^= 1
    file.write_bytes(flipped)
    with pytest.raises(token_store.TokenStoreError) as error:
      token_store.TokenStore.open(copy)
    assert str(file) in str(error.value)
    assert "delete the folder and prepare again" in str(error.value)
    file.write_bytes(content)


@pytest.mark.parametrize("field", ["source", "bad_records", "sha256"])
def test_nothing_of_the_metadata_can_be_missing(copy, field):
  file = copy / "meta.json"
  meta = json.loads(file.read_text())
  del meta[field]
  file.write_text(json.dumps(meta))
  with pytest.raises(token_store.TokenStoreError, match="changed since"):
    token_store.TokenStore.open(copy)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"pad_id": 1}, "changed since"),
    ({"format": 2}, r"another version .*format 2; .*delete the folder"),
  ],
)
def test_changed_metadata_is_found(copy, change, message):
  file = copy / "meta.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  with pytest.raises(token_store.TokenStoreError, match=message):
    token_store.TokenStore.open(copy)


def test_another_tokenizers_contract_is_refused(tmp_path):
  tokenizer = make_tokenizer()
  tokenizer.add_tokens(["Ufer"])
  with pytest.raises(ValueError, match="another tokenizer"):
    store_writer.build(
      tmp_path / "store",
      EVERYTHING,
      CONTRACT,
      tokenizer,
      PAD,
      shuffle_parallel=False,
      seed=0,
      source="made",
    )


def test_a_tokenizer_without_special_tokens_cannot_hide_empty_texts(tmp_path):
  tokenizer = tokenizers.Tokenizer(models.WordLevel({"[PAD]": 0}, "[PAD]"))
  tokenizer.normalizer = tokenizers.normalizers.Replace("x", "")
  contract = contract_lib.PartialContract(
    pooling="mean",
    normalize=True,
    title_joiner=" ",
    **dict.fromkeys(contract_lib.ROLES, contract_lib.PartialRole("", 8)),
  ).complete(tokenizer)
  data = collection(monolingual=[records.MonolingualRecord("xx", "en")])
  with pytest.raises(ValueError, match="no tokens of 'xx'"):
    store_writer.build(
      tmp_path / "store",
      data,
      contract,
      tokenizer,
      0,
      shuffle_parallel=False,
      seed=0,
      source="made",
    )


def test_the_language_table_shows_rows_lengths_cuts_and_overlap(store):
  shared = {
    language: dict(
      zip(
        ("queries", "shared_queries", "passages", "shared_passages"),
        counts,
        strict=True,
      )
    )
    for language, counts in {"fi": (3, 1, 1200, 0), "sw": (1, 0, 2, 0)}.items()
  }
  header, *lines, explained = language_table.render(store, shared).splitlines()
  assert "median" in explained
  rows = {
    language: re.split(r"  +", line)
    for line in lines
    for language in [line.split()[0]]
  }
  assert header.split()[:4] == ["language", "pairs", "parallel", "plain"]
  assert {language: cells[1:] for language, cells in rows.items()} == {
    "de": ["-", "3", "1", "-", "-", "3, 4; 0.0%", "-", "-"],
    "en": [
      *("3", "4", "-"),
      *("5, 5; 0.0%", "3, 4; 0.0%", "3, 3; 0.0%", "-", "-"),
    ],
    "fi": [
      *("1", "1", "2"),
      *("5, 5; 0.0%", "4, 4; 0.0%", "6, 8; 50.0%", "3 (1)", "1,200 (0)"),
    ],
    "sw": [*"------", "1 (0)", "2 (0)"],
  }
