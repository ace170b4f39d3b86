"""BERT and similar encoders, whose layers normalize their sums (post-LN).

BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019), XLM-R (Conneau et al.
2020) and DistilBERT (Sanh et al. 2019) differ only in positions and token
types. None has a pooler here.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlir_jax.models import architecture, attention, blocks, layers
from mlir_jax.models import rows as rows_lib

Texts = Sequence[rows_lib.Rows]


def _positions(
  config: architecture.EncoderConfig, block: rows_lib.Rows
) -> jax.Array:
  """Returns the row of the position table of each token; int32 [R, L].

  In the roberta families, padding has the row of the pad token's id, and a
  text's tokens have the rows after it. In the others, the row is the token's
  place in its text.
  """
  if not config.position_offset:
    return block.position
  # As in transformers, a pad token inside a text is also not counted.
  counted = (block.segment > 0) & (block.ids != config.pad_token_id)
  before = counted.cumsum(axis=1) - counted
  # The count where the token's text begins. Counts never decrease in a row.
  at_begin = jnp.where(rows_lib.begins(block.segment), before, 0)
  in_text = before - jax.lax.cummax(at_begin, axis=1)
  return (in_text + 1) * counted + config.pad_token_id


class _Embeddings(nn.Module):
  """Token, position and type embeddings, summed and normalized."""

  config: architecture.EncoderConfig

  @nn.compact
  def __call__(
    self, texts: Texts, token_vectors: jax.Array | None
  ) -> jax.Array:
    config = self.config
    hidden = blocks.look_up(self, config, texts, token_vectors)
    table = blocks.table(self, config, "position", config.max_positions)
    positions = [_positions(config, block).ravel() for block in texts]
    hidden += table[jnp.concatenate(positions)]
    if config.type_vocab_size:
      hidden += blocks.table(self, config, "type", config.type_vocab_size)[0]
    hidden = blocks.layer_norm(config, "norm")(hidden)
    return blocks.drop(config.hidden_dropout, hidden, texts)


class _Attention(nn.Module):
  """Self-attention of every token to the tokens of its text."""

  config: architecture.EncoderConfig

  @nn.compact
  def __call__(self, hidden: jax.Array, texts: Texts) -> jax.Array:
    config = self.config

    def heads(name):
      projected = blocks.dense(config, config.hidden_size, name)(hidden)
      return projected.reshape(len(hidden), config.num_heads, -1)

    attended = attention.attend(
      config, heads("query"), heads("key"), heads("value"), texts
    )
    return blocks.dense(config, config.hidden_size, "output")(attended)


class _Layer(nn.Module):
  """Attention and feed-forward; each is added, then normalized."""

  config: architecture.EncoderConfig

  @nn.compact
  def __call__(self, hidden: jax.Array, texts: Texts) -> jax.Array:
    config = self.config
    attended = _Attention(config, name="attention")(hidden, texts)
    attended = blocks.drop(config.hidden_dropout, attended, texts)
    hidden = blocks.layer_norm(config, "attention_norm")(hidden + attended)

    inner = blocks.dense(config, config.intermediate_size, "intermediate")
    inner = blocks.ACTIVATIONS[config.hidden_act](inner(hidden))
    output = blocks.dense(config, config.hidden_size, "output")(inner)
    output = blocks.drop(config.hidden_dropout, output, texts)
    return blocks.layer_norm(config, "output_norm")(hidden + output)


class Bert(nn.Module):
  """The encoders of the families bert, roberta, xlm-roberta, distilbert."""

  config: architecture.EncoderConfig

  @nn.compact
  def __call__(
    self, texts: Texts, token_vectors: jax.Array | None
  ) -> jax.Array:
    """Returns the states of all tokens [N, hidden]; see `hidden_states`."""
    embeddings = _Embeddings(self.config, name="embeddings")
    hidden = embeddings(texts, token_vectors)

    def fields(_):
      return {"config": self.config}

    return layers.run(self, self.config, _Layer, fields, hidden, texts)
