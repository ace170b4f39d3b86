"""Tests of the hiding of words for masked language modelling."""

import gzip

import numpy as np
import pytest
import tokenizers
from tokenizers import (
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

from mlir_jax.batches import masking, sampling
from mlir_jax.data import tokenizer as tokenizer_lib

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(5)
PIECES = 1000  # The number of pieces of each kind.
FIRST = len(SPECIAL_TOKENS)  # The first piece that begins a word,
INSIDE = FIRST + PIECES  # and the first that does not.
KEYS = sampling.make_key(0, "test", np.arange(400))


def wordpiece():
  """Makes a tokenizer: PIECES pieces that begin a word, and PIECES others."""
  pieces = [f"w{i}" for i in range(PIECES)] + [f"##w{i}" for i in range(PIECES)]
  vocabulary = {piece: i for i, piece in enumerate(SPECIAL_TOKENS + pieces)}
  tokenizer = tokenizers.Tokenizer(
    models.WordPiece(vocabulary, unk_token="[UNK]")
  )
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  # [UNK], [CLS] and [SEP] are special only by their use.
  tokenizer.add_special_tokens(["[MASK]"])
  tokenizer.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
  )
  return tokenizer


def make_masker(kind="word", rate=0.15):
  return masking.make_masker(wordpiece(), kind, rate)


def make_rows(*texts, length):
  """Makes rows of words, each given by its number of tokens; 0 is [UNK].

  Tokens are used in turn, so that all tokens of a word are different.
  """
  ids = np.full((len(texts), length), PAD, np.int32)
  mask = np.zeros(ids.shape, bool)
  for row, text in enumerate(texts):
    tokens = [CLS]
    for size in text:
      n = len(tokens) % PIECES
      tokens += [FIRST + n, *range(INSIDE + n, INSIDE + n + size - 1)]
      if size == 0:
        tokens[-1] = UNK
    tokens.append(SEP)
    ids[row, : len(tokens)] = tokens
    mask[row, : len(tokens)] = True
  return ids, mask


def random_rows(rows=400, length=128, filled=128):
  """Makes texts of about `filled` tokens, with words of 1 to 4 tokens."""
  generator = np.random.default_rng(0)
  texts = []
  for _ in range(rows):
    sizes = generator.integers(1, 5, filled)
    texts.append(sizes[np.cumsum(sizes) <= filled - 2].tolist())
  return make_rows(*texts, length=length)


def words_of(ids):
  """Returns the places of each word of a row, in order."""
  words = []
  for place, token in enumerate(ids.tolist()):
    if token >= INSIDE:
      words[-1].append(place)
    elif token >= FIRST:
      words.append([place])
  return words


def targets_of(part, row):
  return part["positions"][row][part["valid"][row]].tolist()


@pytest.mark.parametrize(("prefix", "first"), [("", 1), ("w1 w2 ", 3)])
def test_a_roles_prefix_is_never_a_target(prefix, first):
  masker = masking.make_masker(wordpiece(), "word", 0.5, prefix)
  places = masker(*make_rows(*[[1] * 5] * 400, length=12), KEYS)
  chosen = places["positions"][places["valid"]]
  assert (chosen.min(), chosen.max()) == (first, 5)


@pytest.mark.parametrize("kind", masking.KINDS)
def test_targets_are_what_stood_where_something_was_changed(kind):
  ids, mask = random_rows()
  before = ids.copy()
  part = make_masker(kind)(ids, mask, KEYS)
  np.testing.assert_array_equal(ids, before)  # The input does not change.
  assert {
    name: (part[name].shape, part[name].dtype.name)
    for name in ("positions", "targets", "valid")
  } == {
    "positions": ((400, 22), "int32"),
    "targets": ((400, 22), "int32"),
    "valid": ((400, 22), "bool"),
  }
  assert part["ids"].dtype == np.int32
  np.testing.assert_array_equal(part["mask"], mask)

  restored = part["ids"].copy()
  for row in range(len(ids)):
    places = targets_of(part, row)
    assert places == sorted(set(places))
    restored[row, places] = part["targets"][row][part["valid"][row]]
  np.testing.assert_array_equal(restored, ids)
  assert (np.diff(part["valid"].astype(int), axis=1) <= 0).all()
  assert not part["positions"][~part["valid"]].any()
  assert not part["targets"][~part["valid"]].any()


@pytest.mark.parametrize("kind", masking.KINDS)
def test_words_are_hidden_whole_and_in_one_way(kind):
  ids, mask = random_rows()
  part = make_masker(kind)(ids, mask, KEYS)
  ways = []
  for row in range(len(ids)):
    targets = set(targets_of(part, row))
    for word in words_of(ids[row]):
      assert len(targets.intersection(word)) in (0, len(word))
      if word[0] not in targets:
        continue
      now, then = part["ids"][row, word], ids[row, word]
      if (now == MASK).all():
        ways.append("mask")
      elif (now == then).all():
        ways.append("same")
      else:
        assert (now != MASK).all()
        ways.append("random")
        # Each token gets another random token (rarely the same by chance).
        assert len(word) == 1 or len(set(now.tolist())) > 1
  shares = [ways.count(way) / len(ways) for way in ("mask", "random", "same")]
  np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.03)


def test_a_span_is_hidden_in_one_way():
  ids, mask = make_rows(*[[1] * 98] * 400, length=100)
  part = make_masker("span", 0.05)(ids, mask, KEYS)
  masked = (part["ids"] == MASK).sum(axis=1)
  targets = part["valid"].sum(axis=1)
  # Five targets are one or two spans.
  assert ((masked == 0) | (masked == targets)).mean() > 0.7
  part = make_masker("word", 0.05)(ids, mask, KEYS)
  masked = (part["ids"] == MASK).sum(axis=1)
  assert ((masked == 0) | (masked == targets)).mean() < 0.5


def test_random_tokens_are_spread_over_the_ordinary_ones():
  ids, mask = random_rows()
  now = make_masker()(ids, mask, KEYS)["ids"]
  random = now[(now != ids) & (now != MASK)]
  assert random.min() >= FIRST
  assert random.max() < INSIDE + PIECES
  assert len(set(random.tolist())) > 400  # About 750 are drawn from 2,000.
  assert abs((random >= INSIDE).mean() - 0.5) < 0.06


@pytest.mark.parametrize("kind", masking.KINDS)
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_no_special_unknown_or_padding_token_is_a_target(kind, rate):
  generator = np.random.default_rng(1)
  texts = [
    generator.integers(0, 4, generator.integers(1, 12)).tolist()
    for _ in range(400)
  ]
  ids, mask = make_rows(*texts, length=40)
  part = make_masker(kind, rate)(ids, mask, KEYS)
  assert (part["targets"][part["valid"]] >= FIRST).all()
  special = ids < FIRST
  np.testing.assert_array_equal(part["ids"][special], ids[special])
  # Tokens after the end of a text, by the mask, are not targets either.
  shorter = mask & (np.arange(40) < 5)
  part = make_masker(kind, rate)(ids, shorter, KEYS)
  assert part["positions"].max() == 4


@pytest.mark.parametrize("kind", masking.KINDS)
def test_every_text_has_a_target_if_anything_can_be_one(kind):
  texts = [[], [0, 0], [1], [4], [0, 2, 0], [1, 1, 1]]
  for length in (8, 16):
    ids, mask = make_rows(*texts, length=length)
    for seed in range(30):
      keys = sampling.make_key(seed, np.arange(len(texts)))
      valid = make_masker(kind, 0.01)(ids, mask, keys)["valid"]
      assert valid.sum(axis=1).tolist() == [0, 0, 1, 4, 2, 1]


@pytest.mark.parametrize("kind", masking.KINDS)
@pytest.mark.parametrize("rate", [0.1, 0.15, 0.5])
def test_the_rate_is_met_by_long_and_short_words_alike(kind, rate):
  ids, mask = random_rows(length=160)
  part = make_masker(kind, rate)(ids, mask, KEYS)
  chosen, sizes = np.zeros_like(mask), np.zeros(ids.shape, int)
  for row in range(len(ids)):
    chosen[row, targets_of(part, row)] = True
    for word in words_of(ids[row]):
      sizes[row, word] = len(word)
  for size in (1, 2, 3, 4):
    assert chosen[sizes == size].mean() == pytest.approx(rate, rel=0.1)
  assert chosen[sizes > 0].mean() == pytest.approx(rate, rel=0.02)
  # Without padding there is no room for some words.
  ids, mask = random_rows()
  found = make_masker(kind, rate)(ids, mask, KEYS)["valid"].sum()
  assert 0.92 < found / (ids >= FIRST).sum() / rate < 1.01


@pytest.mark.parametrize("kind", masking.KINDS)
def test_every_word_of_a_text_is_hidden_as_often(kind):
  rows = 8000
  ids, mask = make_rows(*[[1] * 10] * rows, length=16)
  keys = sampling.make_key(0, np.arange(rows))
  part = make_masker(kind, 0.2)(ids, mask, keys)
  counts = np.bincount(part["positions"][part["valid"]], minlength=11)[1:11]
  np.testing.assert_allclose(counts / rows, 0.2, atol=0.02)


def test_what_is_hidden_does_not_hang_on_the_padding():
  ids, mask = random_rows(length=24, filled=24)
  wide = make_masker()(
    *(np.pad(x, ((0, 0), (0, 40))) for x in (ids, mask)), KEYS
  )
  part = make_masker()(ids, mask, KEYS)
  np.testing.assert_array_equal(wide["ids"][:, :24], part["ids"])
  assert wide["valid"].shape[1] > part["valid"].shape[1]
  np.testing.assert_array_equal(
    wide["valid"].sum(axis=1), part["valid"].sum(axis=1)
  )


@pytest.mark.parametrize("rate", [0.1, 0.15, 0.9])
@pytest.mark.parametrize("length", [4, 8, 30, 128])
def test_no_row_has_more_targets_than_there_is_room_for(rate, length):
  masker = make_masker("word", rate)
  ids, mask = random_rows(length=length, filled=length)
  valid = masker(ids, mask, KEYS)["valid"]
  room = max(4, int(np.ceil(rate * length)) + 2)
  assert valid.shape[1] == masker.max_targets(length) == room
  np.testing.assert_array_equal(valid.any(axis=1), (ids >= FIRST).any(axis=1))


def test_words_longer_than_a_few_tokens_are_hidden_in_pieces():
  ids, mask = make_rows(*[[9, 4, 20]] * 400, length=40)
  part = make_masker()(ids, mask, KEYS)
  # After [CLS]: nine tokens, four that stay together, twenty.
  pieces = [{1, 2}, {3, 4}, {5, 6}, {7, 8}, {9}, {10, 11, 12, 13}]
  pieces += [{i, i + 1} for i in range(14, 34, 2)]
  seen = set()
  for row in range(len(ids)):
    targets = set(targets_of(part, row))
    hidden = [piece for piece in pieces if piece <= targets]
    assert set().union(*hidden) == targets
    seen.add(frozenset(targets))
  assert len(seen) > 100


def test_words_end_at_an_unknown_token():
  # Without the cut at the unknown token, a word would continue after it.
  ids, mask = make_rows(*[[2, 0, 2]] * 400, length=8)
  ids[:, 4] = INSIDE  # The next piece is from inside a word.
  part = make_masker()(ids, mask, KEYS)
  seen = {tuple(targets_of(part, row)) for row in range(400)}
  assert seen == {(1, 2), (4, 5)}


def test_spans_have_the_lengths_of_spanbert():
  # Words have one token. Few of the many spans in a row touch or are cut.
  ids, mask = make_rows(*[[1] * 998] * 100, length=1000)
  runs = {}
  for kind in masking.KINDS:
    part = make_masker(kind, 0.04)(ids, mask, KEYS[:100])
    runs[kind] = []
    for row in range(100):
      places = np.array(targets_of(part, row))
      breaks = np.flatnonzero(np.diff(places) > 1)
      runs[kind] += np.diff([0, *(breaks + 1), len(places)]).tolist()
  assert np.mean(runs["word"]) < 1.1
  lengths = np.arange(1, 11)
  expected = 0.2 * 0.8 ** (lengths - 1)
  expected /= expected.sum()
  found = np.bincount(runs["span"])
  assert found[1:11].sum() / found.sum() > 0.97
  np.testing.assert_allclose(found[1:11] / found.sum(), expected, atol=0.04)
  assert np.mean(runs["span"]) == pytest.approx(3.8, rel=0.08)


def test_spans_are_of_whole_words_in_a_row():
  ids, mask = make_rows(*[[3] * 42] * 400, length=128)
  part = make_masker("span")(ids, mask, KEYS)
  words = np.concatenate(
    [
      np.diff([place // 3 for place in targets_of(part, row)[::3]])
      for row in range(400)
    ]
  )
  # The five or six hidden words of a row are two or three spans.
  assert (words == 1).mean() > 0.5


@pytest.mark.parametrize("kind", masking.KINDS)
def test_a_row_depends_on_its_own_key_and_tokens_alone(kind):
  masker = make_masker(kind)
  ids, mask = random_rows()
  whole = masker(ids, mask, KEYS)
  for rows in (np.arange(400)[::-1], np.array([7]), np.array([3, 200, 9])):
    part = masker(ids[rows], mask[rows], KEYS[rows])
    for name in ("positions", "targets", "valid"):
      np.testing.assert_array_equal(part[name], whole[name][rows])
    np.testing.assert_array_equal(part["ids"], whole["ids"][rows])


def test_other_keys_hide_other_words():
  ids, mask = make_rows(*[[1, 2] * 10] * 400, length=32)
  part = make_masker()(ids, mask, KEYS)
  assert len({tuple(targets_of(part, row)) for row in range(400)}) > 200


def test_masks_are_the_same_in_every_version():
  # Other masks would silently change the data of a resumed run.
  ids, mask = make_rows(*[[1, 2, 6, 3]] * 3, length=16)
  keys = sampling.make_key(7, "masking", np.array([48, 49, 50]))
  found = {}
  for kind in masking.KINDS:
    part = make_masker(kind, 0.3)(ids, mask, keys)
    found[kind] = [
      (places, part["ids"][row, places].tolist())
      for row in range(3)
      for places in [targets_of(part, row)]
    ]
  assert found == {
    "word": [
      ([1, 2, 3], [597, 671, 1315]),
      ([2, 3, 6, 7], [7, 1007, 1010, 1011]),
      ([1, 6, 7], [MASK, MASK, MASK]),
    ],
    "span": [
      ([4, 5, 8, 9], [1577, 1588, 601, 310]),
      ([10, 11, 12], [15, 1015, 1016]),
      ([8, 9], [MASK, MASK]),
    ],
  }


def gemma_like(texts):
  """Makes a BPE tokenizer that marks spaces by its normalizer and decoder."""
  tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
  tokenizer.normalizer = normalizers.Replace(" ", "▁")
  tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
  tokenizer.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  )
  trainer = trainers.BpeTrainer(
    vocab_size=2000,
    special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  return tokenizer


def unigram(texts):
  return tokenizer_lib.train(texts, 2000)


def byte_level(texts):
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=2000,
    special_tokens=["<s>", "<pad>", "</s>", "<mask>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  tokenizer.post_processor = processors.RobertaProcessing(
    ("</s>", 2), ("<s>", 0)
  )
  return tokenizer


def bert_like(texts):
  tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
  tokenizer.normalizer = normalizers.BertNormalizer()
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = decoders.WordPiece()
  trainer = trainers.WordPieceTrainer(
    vocab_size=2000, special_tokens=SPECIAL_TOKENS, show_progress=False
  )
  tokenizer.train_from_iterator(texts, trainer)
  tokenizer.post_processor = processors.BertProcessing(
    ("[SEP]", SEP), ("[CLS]", CLS)
  )
  return tokenizer


@pytest.mark.parametrize("make_tokenizer", [bert_like, unigram, byte_level])
def test_the_rate_is_met_on_real_text(shared, make_tokenizer):
  texts = []
  for language in ("src.eng", "ref.fin", "ref.tha", "ref.zho-CN"):
    path = shared / "data" / "ntrex" / f"newstest2019-{language}.txt.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
      texts += lines.read().splitlines()[:200]
  tokenizer = make_tokenizer(texts)
  tokenizer.enable_truncation(128)
  tokenizer.enable_padding(length=128)
  encodings = tokenizer.encode_batch(texts)
  ids = np.array([e.ids for e in encodings], np.int32)
  mask = np.array([e.attention_mask for e in encodings], bool)
  special = np.array([e.special_tokens_mask for e in encodings], bool)
  unknown = tokenizer.token_to_id(
    "[UNK]" if make_tokenizer is bert_like else "<unk>"
  )
  maskable = ~special & (ids != (-1 if unknown is None else unknown))
  for kind in masking.KINDS:
    masker = masking.make_masker(tokenizer, kind, 0.15)
    keys = sampling.make_key(0, np.arange(len(texts)))
    part = masker(ids, mask, keys)
    share = part["valid"].sum() / maskable.sum()
    assert share == pytest.approx(0.15, rel=0.03)
    rows = np.arange(len(texts))[:, None]
    assert maskable[rows, part["positions"]][part["valid"]].all()


TEXTS = ["the river runs by the garden", "a garden by the river"] * 5


@pytest.mark.parametrize(
  "make_tokenizer", [bert_like, unigram, byte_level, gemma_like]
)
def test_the_words_are_those_between_spaces(make_tokenizer):
  tokenizer = make_tokenizer(TEXTS)
  masker = masking.make_masker(tokenizer, "word", 0.15)
  text = "the rivers run by a gardener"
  encoding = tokenizer.encode(text)
  inside = [
    i for i, special in enumerate(encoding.special_tokens_mask) if not special
  ]
  assert len(inside) > len(text.split())
  starts = [i for i in inside if masker.begins_word[encoding.ids[i]]]
  # The first word of a text may lack the mark of a space.
  starts = sorted({inside[0], *starts})
  words = [
    tokenizer.decode(encoding.ids[start:stop]).strip()
    for start, stop in zip(starts, [*starts[1:], inside[-1] + 1], strict=True)
  ]
  assert words == text.split()


@pytest.mark.slow
def test_the_words_of_a_real_model_are_those_between_spaces(e5_small_path):
  tokenizer = tokenizer_lib.load(str(e5_small_path))
  masker = masking.make_masker(tokenizer, "word", 0.15)
  ids = np.array(tokenizer.encode("Kuinka monta järveä?").ids)
  # For example <s> ▁Ku inka ▁mont a ▁järve ä ? </s>.
  assert masker.begins_word[ids].sum() == 3
  np.testing.assert_array_equal(
    np.flatnonzero(~masker.maskable), [0, 1, 2, 3, masker.mask_id]
  )


def clip_like():
  tokenizer = byte_level(TEXTS)
  tokenizer.model = models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>")
  return tokenizer


def bare():
  tokenizer = byte_level(TEXTS)
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  tokenizer.decoder = decoders.Fuse()
  return tokenizer


def without_prefix():
  tokenizer = bert_like(TEXTS)
  tokenizer.model = models.WordPiece(
    {"[UNK]": 0}, unk_token="[UNK]", continuing_subword_prefix=""
  )
  return tokenizer


@pytest.mark.parametrize(
  "make_tokenizer, message",
  [
    (clip_like, r"\(model BPE; .*\['ByteLevel', 'ByteLevel'\]\)"),
    (bare, r"\(model BPE; .*\['Whitespace', 'Fuse'\]\)"),
    (
      without_prefix,
      r"\(model WordPiece; .*\['BertPreTokenizer', 'WordPiece'\]\)",
    ),
  ],
)
def test_a_tokenizer_of_an_unknown_kind_is_refused(make_tokenizer, message):
  with pytest.raises(ValueError, match=r"data\.masking.*" + message):
    masking.make_masker(make_tokenizer(), "word", 0.15)


def test_a_tokenizer_without_a_mask_token_is_refused():
  tokenizer = tokenizers.Tokenizer(models.WordPiece({"a": 0}, unk_token="a"))
  with pytest.raises(ValueError, match="no mask token"):
    masking.make_masker(tokenizer, "word", 0.15)
