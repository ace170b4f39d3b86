"""BERT and its kin: layers that normalize what they add up (post-LN).

BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019), XLM-R (Conneau et al.
2020) and DistilBERT (Sanh et al. 2019) compute the same but for positions and
token types. None has a pooler here.
"""

import jax
from flax import linen as nn

from mlir_jax.models import architecture, blocks


def _position_vectors(
  config: architecture.EncoderConfig,
  positions: jax.Array,
  ids: jax.Array,
  mask: jax.Array,
) -> jax.Array:
  """The row of the position table of each token.

  The roberta families count the tokens that are not padding, and give padding
  the row of its id; the others count places. With padding on the left they
  differ.

  Returns:
    [length or (texts, length), hidden].
  """
  if not config.position_offset:
    return positions[: ids.shape[1]]
  # As in transformers, a pad token that stands in a text is none, either.
  counted = mask & (ids != config.pad_token_id)
  return positions[counted.cumsum(axis=1) * counted + config.pad_token_id]


class _Embeddings(nn.Module):
  """Token, position and type embeddings, summed and normalized."""

  config: architecture.EncoderConfig

  @nn.compact
  def __call__(
    self,
    ids: jax.Array,
    mask: jax.Array,
    seeds: jax.Array | None,
    token_vectors: jax.Array | None,
  ) -> jax.Array:
    config = self.config
    hidden = blocks.look_up(self, config, ids, token_vectors)
    positions = blocks.table(self, config, "position", config.max_positions)
    hidden += _position_vectors(config, positions, ids, mask)
    if config.type_vocab_size:
      hidden += blocks.table(self, config, "type", config.type_vocab_size)[0]
    hidden = blocks.layer_norm(config, "norm")(hidden)
    return blocks.dropout(config.hidden_dropout)(hidden, seeds)


class _Attention(nn.Module):
  """Self-attention of every token to the tokens that are not padding."""

  config: architecture.EncoderConfig

  @nn.compact
  def __call__(
    self, hidden: jax.Array, mask: jax.Array, seeds: jax.Array | None
  ) -> jax.Array:
    config = self.config

    def heads(name):
      projected = blocks.dense(config, config.hidden_size, name)(hidden)
      return projected.reshape(*hidden.shape[:-1], config.num_heads, -1)

    attended = blocks.attend(
      config,
      *(heads(name) for name in ("query", "key", "value")),
      visible=mask[:, None, None, :],
      seeds=seeds,
    )
    return blocks.dense(config, config.hidden_size, "output")(attended)


class _Layer(nn.Module):
  """Attention and feed-forward; each is added, then normalized."""

  config: architecture.EncoderConfig

  @nn.compact
  def __call__(
    self, hidden: jax.Array, mask: jax.Array, seeds: jax.Array | None
  ) -> jax.Array:
    config = self.config
    dropout = blocks.dropout
    attended = _Attention(config, name="attention")(hidden, mask, seeds)
    attended = dropout(config.hidden_dropout)(attended, seeds)
    hidden = blocks.layer_norm(config, "attention_norm")(hidden + attended)

    inner = blocks.dense(config, config.intermediate_size, "intermediate")
    inner = blocks.ACTIVATIONS[config.hidden_act](inner(hidden))
    output = blocks.dense(config, config.hidden_size, "output")(inner)
    output = dropout(config.hidden_dropout)(output, seeds)
    return blocks.layer_norm(config, "output_norm")(hidden + output)


class Bert(nn.Module):
  """The encoders of the families bert, roberta, xlm-roberta, distilbert."""

  config: architecture.EncoderConfig

  @nn.compact
  def __call__(
    self,
    ids: jax.Array,
    mask: jax.Array,
    seeds: jax.Array | None,
    token_vectors: jax.Array | None,
  ) -> jax.Array:
    """See `encoder.hidden_states`."""
    hidden = _Embeddings(self.config, name="embeddings")(
      ids, mask, seeds, token_vectors
    )
    layer = blocks.layer(self.config, _Layer)
    for i in range(self.config.num_layers):
      hidden = layer(self.config, name=f"layer_{i}")(hidden, mask, seeds)
    return hidden
