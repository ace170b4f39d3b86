"""Tests of the encoder without a reference implementation."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from mlir_jax import sharding
from mlir_jax.batches import packing
from mlir_jax.models import architecture, blocks, encoder, hf_config
from mlir_jax.models import rows as rows_lib

CONFIG = architecture.EncoderConfig(
  vocab_size=300,
  hidden_size=32,
  num_layers=1,
  num_heads=4,
  intermediate_size=64,
  max_positions=20,
  initializer_range=0.2,
)
HF = hf_config.to_dict(CONFIG)


@pytest.fixture(scope="module")
def params():
  return encoder.init_params(CONFIG, "separate", jax.random.key(0))


def random_tokens(*leading, length=11, seed=0):
  """Makes right-padded texts of 1 or more tokens; the second is all padding."""
  rng = np.random.default_rng(seed)
  shape = (*leading, length)
  lengths = rng.integers(1, length + 1, leading)
  lengths.flat[1] = 0
  return {
    "ids": rng.integers(4, CONFIG.vocab_size, shape, np.int32),
    "mask": np.arange(length) < lengths[..., None],
  }


_embed = jax.jit(
  encoder.embed, static_argnames=("config", "tower", "pooling", "normalize")
)


def embed(params, tokens, tower="query", config=CONFIG, seeds=None, **settings):
  settings = {"pooling": "mean", "normalize": True} | settings
  rows = rows_lib.one_a_row(tokens["ids"], tokens["mask"], seeds)
  return _embed(config, params, tower, (rows,), **settings)[0][:, 0]


def pack(tokens, blocks, seeds=None):
  """Packs texts into blocks; also returns each text's place in the vectors."""
  lengths = tokens["mask"].sum(axis=1)
  packed = packing.pack(lengths, blocks)
  made = []
  for block, number in zip(blocks, packed.numbers, strict=True):
    texts = number[number >= 0]
    laid, _, _ = packing.lay_out(
      number,
      block.length,
      np.concatenate([tokens["ids"][n][tokens["mask"][n]] for n in texts]),
      lengths[texts],
    )
    rows = rows_lib.Rows(*laid, texts=block.texts)
    if seeds is not None:
      of_rows = np.take_along_axis(number, np.maximum(laid.segment - 1, 0), 1)
      rows = rows.replace(seeds=np.asarray(seeds)[of_rows])
    made.append(rows)
  return tuple(made), packed.slot


def pad_left(rows, of_rows):
  """Moves the text of some rows to the end of its row; bool [R]."""
  lengths = np.asarray(rows.segment).sum(axis=1)
  shift = np.where(of_rows, rows.ids.shape[1] - lengths, 0)[:, None]
  source = (np.arange(rows.ids.shape[1]) - shift) % rows.ids.shape[1]
  return jax.tree.map(
    lambda values: np.take_along_axis(np.asarray(values), source, 1), rows
  )


# A row for many texts, rows as long as the longest text, and short rows.
BLOCKS = (
  packing.Block(1, 32, 5),
  packing.Block(2, 11, 4),
  packing.Block(16, 8, 2),
)
FAMILIES = {
  "bert": {},
  "xlm-roberta": {"family": "xlm-roberta", "pad_token_id": 1},
  "modernbert": {
    "family": "modernbert",
    "attention_window": 4,
    "layer_types": (architecture.FULL, architecture.SLIDING),
  },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_texts_have_the_vectors_and_gradients_of_texts_alone(family):
  """In float64, with dropout and all poolings.

  A text has a pad token, and texts alone are padded on either side.
  """
  with jax.enable_x64(True):
    config = dataclasses.replace(
      CONFIG, num_layers=2, dtype="float64", **FAMILIES[family]
    )
    params = jax.tree.map(
      lambda x: x.astype(float),
      encoder.init_params(config, "tied", jax.random.key(0)),
    )
    tokens = random_tokens(12)
    tokens["ids"][0, 1] = config.pad_token_id
    seeds = np.asarray(seeds_of(12))
    alone = rows_lib.one_a_row(tokens["ids"], tokens["mask"], seeds)
    alone = pad_left(alone, np.arange(12) % 2 == 0)
    packed, slot = pack(tokens, BLOCKS, seeds)
    weights = np.random.default_rng(0).normal(size=(3, 12, 32))

    def vectors(params, blocks):
      states = encoder.hidden_states(config, params["encoder"], blocks)

      def pooled(pooling):
        each = [
          encoder.pool(of_rows, rows.segment, rows.texts, pooling)
          for of_rows, rows in zip(states, blocks, strict=True)
        ]
        return jnp.concatenate([x.reshape(-1, 32) for x in each])

      return jnp.stack([pooled(name) for name in ("mean", "cls", "last")])

    def with_gradient(blocks, order):
      def total(params):
        found = vectors(params, blocks).at[:, order]
        found = found.get(mode="fill", fill_value=0)
        return (weights * found).sum(), found

      (_, found), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(
        params
      )
      return found, gradient

    expected = with_gradient((alone,), np.arange(12))
    found = with_gradient(packed, slot)
    assert slot[1] == 1 * 5 + 2 * 4 + 16 * 2  # Text 1 has no tokens.
    assert len(np.unique(slot)) == 12
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12),
      found,
      expected,
    )
    assert np.abs(found[0]).max() > 1


def test_config_survives_the_round_trip():
  odd = dataclasses.replace(
    CONFIG, hidden_act="relu", pad_token_id=1, type_vocab_size=1
  )
  assert hf_config.from_dict(hf_config.to_dict(odd)) == odd


@pytest.mark.parametrize(
  ("change", "named"),
  [
    ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ({"is_decoder": True}, "is_decoder is True"),
    ({"add_cross_attention": True}, "add_cross_attention"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
    ({"hidden_act": "swish2"}, "hidden_act is 'swish2'"),
    ({"num_attention_heads": 5}, "num_attention_heads, 5"),
    ({"num_attention_heads": None}, "num_attention_heads is None, not a"),
    ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob is 1.0"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ({"hidden_size": "32"}, "hidden_size is '32', not a "),
    ({"hidden_act": ["gelu"]}, "hidden_act is "),
    ({"pad_token_id": 300}, "pad_token_id is 300; it must be below vocab_size"),
    (
      {"model_type": "xlm-roberta", "pad_token_id": None},
      "pad_token_id is None: positions count from it",
    ),
  ],
)
def test_a_config_that_cannot_be_honoured_is_named(change, named):
  with pytest.raises(ValueError, match=named):
    hf_config.from_dict(HF | change)


def modernbert(**fields):
  return {
    "model_type": "modernbert",
    "vocab_size": 99,
    "hidden_size": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    **fields,
  }


@pytest.mark.parametrize(
  ("fields", "layers", "thetas"),
  [
    ({}, "fssf", (160_000, 10_000)),
    (
      {"global_attn_every_n_layers": 2, "global_rope_theta": 500.0},
      *("fsfs", (500, 10_000)),
    ),
    # mmBERT's config; then null, which for version 4 of transformers means the
    # value of the full layers.
    ({"local_rope_theta": 160_000}, "fssf", (160_000, 160_000)),
    (
      {"global_rope_theta": 500, "local_rope_theta": None},
      *("fssf", (500, 500)),
    ),
    (
      {
        "layer_types": ["sliding_attention"] * 4,
        "rope_parameters": {"sliding_attention": {"rope_theta": 7.0}},
      },
      *("ssss", (160_000, 7)),
    ),
  ],
)
def test_modernberts_of_both_versions_are_understood(fields, layers, thetas):
  config = hf_config.from_dict(modernbert(**fields))
  assert "".join(kind[0] for kind in config.layer_types) == layers
  assert (config.full_rope_theta, config.sliding_rope_theta) == thetas
  assert hf_config.from_dict(hf_config.to_dict(config)) == config


@pytest.mark.parametrize(
  ("fields", "named"),
  [
    ({"sliding_window": 3}, "sliding_window is 3"),
    ({"layer_types": ["full_attention"]}, "layer_types is"),
    ({"layer_types": ["linear"] * 4}, "layer_types is"),
    ({"layer_types": []}, "layer_types is"),
    ({"rope_parameters": []}, "rope_parameters is"),
    ({"rope_scaling": {"type": "yarn"}}, "rope_scaling is"),
    (
      {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
      r"full_attention\.rope_type is 'yarn'",
    ),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"num_attention_heads": 8}, "even"),
  ],
)
def test_a_modernbert_that_cannot_be_honoured_is_named(fields, named):
  with pytest.raises(ValueError, match=named):
    hf_config.from_dict(modernbert(**fields))


def test_all_faults_of_a_config_are_named_at_once():
  faults = {"is_decoder": True, "vocab_size": None}
  with pytest.raises(ValueError, match=r"is_decoder .*; vocab_size is None"):
    hf_config.from_dict(HF | faults)


def test_texts_longer_than_the_positions_are_refused():
  architecture.check_lengths(CONFIG, {"query": 20})
  with pytest.raises(ValueError, match=r"encoding\.passage\.max_length.*21"):
    architecture.check_lengths(CONFIG, {"query": 20, "passage": 21})


def test_token_table_is_padded_to_a_multiple_of_256_with_zeros(params):
  assert CONFIG.padded_vocab_size == 512
  assert dataclasses.replace(CONFIG, vocab_size=512).padded_vocab_size == 512
  table = params["query_encoder"]["embeddings"]["token"]
  assert table.shape == (512, 32)
  assert not np.asarray(table[300:]).any()
  assert np.std(table[:300]) == pytest.approx(0.2, rel=0.05)


def test_padding_changes_no_vector(params):
  tokens = random_tokens(4)
  other = tokens | {"ids": np.where(tokens["mask"], tokens["ids"], 7)}
  longer = {
    name: np.pad(array, ((0, 0), (0, 5))) for name, array in tokens.items()
  }
  expected = embed(params, tokens)
  np.testing.assert_array_equal(embed(params, other), expected)
  np.testing.assert_allclose(embed(params, longer), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_texts_of_padding_alone_give_zeros_and_finite_gradients(params, dtype):
  config = dataclasses.replace(CONFIG, dtype=dtype)
  tokens = random_tokens(4)
  assert not tokens["mask"][1].any()

  rows = rows_lib.one_a_row(tokens["ids"], tokens["mask"])

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def value_and_gradients(params):
    (hidden,) = encoder.hidden_states(config, params["query_encoder"], [rows])
    pooled = [
      encoder.unit_length(encoder.pool(hidden, rows.segment, 1, pooling))
      for pooling in ("mean", "cls", "last")
    ]
    return sum(vectors.sum() for vectors in pooled), (hidden, pooled)

  (_, (hidden, pooled)), gradients = value_and_gradients(params)
  for vectors in pooled:
    assert not np.asarray(vectors[1]).any()
  assert all(
    np.isfinite(np.asarray(leaf, np.float32)).all()
    for leaf in [hidden, *pooled, *jax.tree.leaves(gradients)]
  )


def test_pooling_is_the_mean_the_first_or_the_last_of_a_texts_tokens():
  hidden = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
  segment = np.array([[1, 1, 2, 2, 2], [0, 0, 1, 1, 0]])
  none = np.zeros(8)

  def pool(pooling):
    return encoder.pool(hidden, segment, 2, pooling)

  np.testing.assert_allclose(
    pool("mean"),
    [
      [hidden[0, :2].mean(0), hidden[0, 2:].mean(0)],
      [hidden[1, 2:4].mean(0), none],
    ],
    rtol=1e-5, atol=1e-6,
  )  # fmt: skip
  np.testing.assert_array_equal(
    pool("cls"), [[hidden[0, 0], hidden[0, 2]], [hidden[1, 2], none]]
  )
  np.testing.assert_array_equal(
    pool("last"), [[hidden[0, 1], hidden[0, 4]], [hidden[1, 3], none]]
  )
  with pytest.raises(ValueError, match="pooling is 'max'"):
    pool("max")


def test_pooling_of_bfloat16_is_summed_in_float32():
  hidden = jnp.ones((1, 1000, 4), jnp.bfloat16).at[:, 0].set(8)
  pooled = encoder.pool(hidden, np.ones((1, 1000), int), 1, "mean")
  assert pooled.dtype == jnp.float32
  np.testing.assert_allclose(pooled, 1.007, rtol=1e-6)


def test_unit_length_is_safe_at_zero():
  vectors = jnp.array([[3.0, 4.0], [0.0, 0.0]])
  np.testing.assert_allclose(
    encoder.unit_length(vectors), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6
  )
  gradient = jax.grad(lambda x: encoder.unit_length(x).sum())(vectors)
  np.testing.assert_allclose(gradient[0], [0.032, -0.024], rtol=1e-5)
  np.testing.assert_array_equal(gradient[1], [1, 1])


def test_vectors_have_unit_length_only_if_asked(params):
  tokens = random_tokens(4)
  plain = np.asarray(embed(params, tokens, normalize=False))
  lengths = np.linalg.norm(plain[[0, 2]], axis=-1)
  assert (np.abs(lengths - 1) > 0.1).all()
  np.testing.assert_allclose(
    embed(params, tokens)[np.array([0, 2])],
    plain[[0, 2]] / lengths[:, None],
    rtol=1e-5,
  )


def test_bfloat16_computes_close_to_float32_from_float32_parameters():
  config = dataclasses.replace(CONFIG, dtype="bfloat16")
  params = encoder.init_params(config, "tied", jax.random.key(0))
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
  tokens = random_tokens(4)
  (hidden,) = jax.eval_shape(
    lambda params: encoder.hidden_states(
      config, params, [rows_lib.one_a_row(tokens["ids"], tokens["mask"])]
    ),
    params["encoder"],
  )
  assert hidden.dtype == jnp.bfloat16
  vectors = embed(params, tokens, config=config)
  assert vectors.dtype == jnp.float32
  cosines = (vectors * embed(params, tokens)).sum(-1)
  assert (np.delete(cosines, 1) > 0.99).all()
  assert (np.delete(cosines, 1) < 1 - 1e-7).any(), "computed in float32"


def test_tied_towers_are_one_and_separate_ones_start_equal():
  tied = encoder.init_params(CONFIG, "tied", jax.random.key(0))
  separate = encoder.init_params(CONFIG, "separate", jax.random.key(0))
  assert list(tied) == ["encoder"]
  assert sorted(separate) == ["passage_encoder", "query_encoder"]
  for tower in separate.values():
    jax.tree.map(np.testing.assert_array_equal, tower, tied["encoder"])
  with pytest.raises(ValueError, match=r"model\.towers is 'three'"):
    encoder.init_params(CONFIG, "three", jax.random.key(0))


@pytest.mark.parametrize("origin", ["drawn", "loaded"])
def test_separate_towers_have_buffers_of_their_own(origin):
  if origin == "drawn":
    towers = encoder.init_params(CONFIG, "separate", jax.random.key(0))
    # This fails if a buffer is donated twice.
    jax.jit(lambda x: jax.tree.map(jnp.negative, x), donate_argnums=0)(towers)
  else:
    towers = encoder.with_towers({"bias": np.zeros(2)}, "separate")
    towers["query_encoder"]["bias"][0] = 1
    assert towers["passage_encoder"]["bias"][0] == 0


def test_each_tower_reads_its_own_parameters(params):
  tokens = random_tokens(4)
  gradients = jax.grad(
    lambda params: embed(params, tokens, "passage", pooling="cls")[0, 0]
  )(params)
  largest = {
    name: max(np.abs(leaf).max() for leaf in jax.tree.leaves(tower))
    for name, tower in gradients.items()
  }
  assert largest["query_encoder"] == 0
  assert largest["passage_encoder"] > 0
  with pytest.raises(ValueError, match="tower is 'document'"):
    embed(params, tokens, "document")


def seeds_of(count, key=1):
  return jax.random.bits(jax.random.key(key), (count,), jnp.uint32)


def test_dropout_is_applied_only_with_seeds_and_repeats_with_them(params):
  tokens = random_tokens(4)
  plain = embed(params, tokens)
  a, b, c = (embed(params, tokens, seeds=seeds_of(4, k)) for k in (1, 1, 2))
  np.testing.assert_array_equal(a, b)
  assert np.abs(a - c).max() > 0.01
  assert np.abs(a - plain).max() > 0.01


def test_a_text_loses_the_same_whatever_stands_around_it(params):
  tokens, seeds = random_tokens(4), seeds_of(4)
  expected = embed(params, tokens, seeds=seeds)
  padded = {
    name: np.pad(values, ((0, 0), (0, 5))) for name, values in tokens.items()
  }
  longer = embed(params, padded, seeds=seeds)
  np.testing.assert_allclose(longer, expected, atol=1e-6)
  order = np.array([2, 0])
  others = {name: values[order] for name, values in tokens.items()}
  moved = embed(params, others, seeds=seeds[order])
  np.testing.assert_allclose(moved, expected[order], atol=1e-6)


@pytest.mark.parametrize("remat", ["dots", "layer"])
def test_what_is_kept_for_the_backward_pass_changes_no_gradient(params, remat):
  tokens, seeds = random_tokens(4), seeds_of(4)

  def gradient(config):
    return jax.grad(
      lambda params: embed(params, tokens, config=config, seeds=seeds)[
        :, 0
      ].sum()
    )(params)

  expected = gradient(CONFIG)
  found = gradient(dataclasses.replace(CONFIG, remat=remat))
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-5 * largest)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_cudnn_is_asked_for_the_same_attention(family, monkeypatch):
  """It needs a GPU; here JAX's plain implementation gets its arguments.

  Several texts share a row, and some are longer than ModernBERT's window.
  """
  original = jax.nn.dot_product_attention
  seen = []

  def unfused(*args, implementation, **kwargs):
    seen.append(implementation)
    return original(*args, implementation="xla", **kwargs)

  # In float32 the two agree closely.
  monkeypatch.setattr(architecture, "cudnn_needs", lambda *_: [])
  config = dataclasses.replace(
    CONFIG, num_layers=2, attention="cudnn", **FAMILIES[family]
  )
  plain = dataclasses.replace(config, attention="xla")
  params = encoder.init_params(plain, "tied", jax.random.key(0))
  blocks, slot = pack(random_tokens(12), BLOCKS)

  def with_gradient(config):
    def total(params):
      found = encoder.embed(
        config, params, "query", blocks, pooling="mean", normalize=True
      )
      found = jnp.concatenate([x.reshape(-1, 32) for x in found])
      found = found.at[slot].get(mode="fill", fill_value=0)
      return (found * weights).sum(), found

    (_, found), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(
      params
    )
    return found, gradient

  weights = np.random.default_rng(0).normal(size=(12, 32))
  expected = with_gradient(plain)
  monkeypatch.setattr(jax.nn, "dot_product_attention", unfused)
  found = with_gradient(config)
  assert seen == ["cudnn"] * config.num_layers * len(blocks)
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * (1 + np.abs(b).max()))


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_cudnns_checks_accept_packed_rows_on_a_mesh(family, monkeypatch):
  """Forward and backward are lowered for a GPU, but not compiled."""
  monkeypatch.setattr(
    "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version",
    lambda: 91000,
  )
  config = dataclasses.replace(
    CONFIG,
    num_layers=2,
    attention="cudnn",
    attention_dropout=0.0,
    dtype="bfloat16",
    **FAMILIES[family],
  )
  params = jax.eval_shape(
    lambda: encoder.init_params(config, "tied", jax.random.key(0))
  )
  blocks = [
    jax.tree.map(
      lambda of_row, rows=rows: jax.ShapeDtypeStruct((8, rows), of_row.dtype),
      rows_lib.one_a_row(np.zeros((1, 1), np.int32), np.zeros((1, 1))),
    )
    for rows in (24, 16)
  ]
  mesh = sharding.make_mesh()
  vectors = sharding.over_rows(
    lambda params, blocks: encoder.embed(
      config, params, "query", blocks, pooling="mean", normalize=True
    ),
    mesh,
    sharding.state_shardings(params, mesh, fsdp=True),
  )

  @jax.jit
  @jax.grad
  def gradient(params, blocks):
    return sum(x.sum() for x in vectors(params, blocks))

  traced = gradient.trace(params, blocks)
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  calls = config.num_layers * len(blocks)
  assert text.count("@__cudnn$fmhaScaleBiasSoftmax(") == calls
  assert text.count("@__cudnn$fmhaScaleBiasSoftmaxBackward(") == calls


@pytest.mark.parametrize(
  "change, named",
  [
    ({"dtype": "float32"}, "dtype=bfloat16"),
    ({"attention_dropout": 0.1}, "attention_dropout=0.0"),
    ({"hidden_size": 48}, "multiple of 8 and at most 128, and not 12"),
    ({"hidden_size": 544}, "multiple of 8 and at most 128, and not 136"),
  ],
  ids=str,
)
def test_what_cudnn_cannot_do_is_refused_by_name(change, named):
  fields = {"dtype": "bfloat16", "attention_dropout": 0.0} | change
  with pytest.raises(ValueError, match=f"attention='cudnn' needs.*{named}"):
    dataclasses.replace(CONFIG, attention="cudnn", **fields)


def test_token_vectors_stand_in_for_the_table(params):
  tokens = random_tokens(4)
  table, rest = encoder.split_table(params["query_encoder"])
  assert rest["embeddings"]["token"] is None
  joined = encoder.join_table(table, rest)
  jax.tree.map(np.testing.assert_array_equal, joined, params["query_encoder"])
  given = embed(
    {**params, "query_encoder": encoder.join_table(table * 0, rest)},
    tokens,
    token_vectors=table[tokens["ids"].ravel()],
  )
  np.testing.assert_array_equal(given, embed(params, tokens))


@pytest.mark.parametrize("place", ["hidden_dropout", "attention_dropout"])
def test_each_dropout_rate_is_applied(params, place):
  rates = {"hidden_dropout": 0.0, "attention_dropout": 0.0} | {place: 0.5}
  tokens = random_tokens(4)
  dropped = embed(
    params,
    tokens,
    config=dataclasses.replace(CONFIG, **rates),
    seeds=seeds_of(4),
  )
  assert np.abs(dropped - embed(params, tokens)).max() > 0.01


def test_dropout_stands_where_bert_has_it(params):
  config = dataclasses.replace(
    CONFIG, hidden_dropout=0.25, attention_dropout=0.5
  )
  tokens = random_tokens(4)
  seen = []

  def note(run, arguments, keywords, context):
    if isinstance(context.module, blocks._Dropout):
      seen.append((context.module.rate, arguments[0].shape))
    return run(*arguments, **keywords)

  with nn.intercept_methods(note):
    jax.eval_shape(
      lambda params: encoder.embed(
        config,
        params,
        "query",
        [rows_lib.one_a_row(tokens["ids"], tokens["mask"])],
        pooling="mean",
        normalize=True,
      ),
      params,
    )
  hidden = (0.25, (4 * 11, 32))
  attention = (0.5, (4, 4, 11, 11))
  assert seen == [hidden, attention, hidden, hidden]


def test_a_dropout_rate_of_zero_changes_nothing(params):
  config = dataclasses.replace(
    CONFIG, hidden_dropout=0.0, attention_dropout=0.0
  )
  tokens = random_tokens(4)
  np.testing.assert_array_equal(
    embed(params, tokens, config=config, seeds=seeds_of(4)),
    embed(params, tokens),
  )


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(400, 2, 251), (100, 16, 12, 11)])
def test_dropout_drops_its_share_independently_and_keeps_the_mean(rate, shape):
  text, *places = np.ogrid[tuple(slice(size) for size in shape)]
  seeds = jnp.asarray(text, jnp.uint32)
  dropped = blocks._Dropout(rate).apply({}, jnp.ones(shape), seeds, places)
  kept = np.asarray(dropped) != 0
  assert kept.mean() == pytest.approx(1 - rate, abs=0.005)
  assert dropped.mean() == pytest.approx(1, rel=0.01 / (1 - rate))
  centred = kept - (1 - rate)
  for axis, size in enumerate(shape):
    along = np.swapaxes(centred, 0, axis)
    for distance in (d for d in (1, 2, 4, 8) if d < size):
      products = along[distance:] * along[:-distance]
      error = products.std() / products.size**0.5
      assert abs(products.mean()) < 5 * error, (axis, distance)


def test_sharding_parameters_and_batch_changes_no_vector(params):
  mesh = sharding.make_mesh()
  tokens, seeds = random_tokens(16), seeds_of(16)
  expected = embed(params, tokens, seeds=seeds)
  sharded = jax.device_put(
    params, sharding.state_shardings(params, mesh, fsdp=True)
  )
  assert not sharded["query_encoder"]["embeddings"]["token"].is_fully_replicated
  rows = jax.device_put(tokens, NamedSharding(mesh, PartitionSpec("data")))
  vectors = embed(sharded, rows, seeds=seeds)
  np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_layer_norm_of_bfloat16_is_computed_in_float32():
  config = dataclasses.replace(CONFIG, dtype="bfloat16")
  # Far from zero, a variance computed as E[x^2] - E[x]^2 is inexact.
  hidden = np.random.default_rng(0).normal(100, 1, (4, 32)).astype(np.float32)
  norm = blocks.layer_norm(config, "norm")
  variables = norm.init(jax.random.key(0), hidden)
  exact = hidden.astype(np.float64)
  exact -= exact.mean(-1, keepdims=True)
  exact /= exact.std(-1, keepdims=True)
  assert norm.apply(variables, hidden).dtype == jnp.bfloat16
  np.testing.assert_allclose(
    np.asarray(norm.apply(variables, hidden), np.float64), exact, rtol=2**-8
  )


@pytest.mark.parametrize(
  ("dtype", "tolerance"),
  [("bfloat16", 2**-8), ("float32", 1e-5), ("float64", 1e-12)],
)
def test_gelu_is_rounded_once(dtype, tolerance):
  with jax.enable_x64(True):
    values = jnp.linspace(-6, 6, 999).astype(dtype)
    found = blocks.ACTIVATIONS["gelu"](values)
    assert found.dtype == values.dtype
    # Phi(x) from the other tail, so that no digits cancel.
    exact = np.array([x / 2 * math.erfc(-x / 2**0.5) for x in values.tolist()])
    error = np.abs(np.asarray(found, np.float64) - exact)
  assert (error <= tolerance * np.maximum(np.abs(exact), 2**-4)).all()


def test_a_dense_layer_multiplies_matrices_forward_and_backward():
  layer = blocks.dense(CONFIG, 5, "dense")
  hidden = jnp.ones((2, 3, 4))
  variables = layer.init(jax.random.key(0), hidden)
  assert layer.apply(variables, hidden).shape == (2, 3, 5)
  gradient = jax.make_jaxpr(
    jax.grad(lambda *inputs: layer.apply(*inputs).sum(), argnums=(0, 1))
  )(variables, hidden)
  ranks = [
    {variable.aval.ndim for variable in equation.invars}
    for equation in gradient.eqns
    if equation.primitive.name == "dot_general"
  ]
  assert ranks == [{2}] * 3
