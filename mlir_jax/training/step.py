"""The training step: state, batch -> state, metrics. Read this first.

The IR, semantic and language losses are computed on the embeddings of one
global batch, and masked language modelling on the states of other texts. The
step is pure: what is random is a function of the seed and the step's number,
and a step whose loss, gradient or update is not finite changes nothing but the
counters.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mlir_jax.training import chunking, losses

PyTree = Any
Batch = Mapping[str, Any]
# What the encoder gives the losses, by name.
Outputs = dict[str, PyTree]


class MaskedLM(NamedTuple):
  """Masked language modelling, in two halves.

  Attributes:
    read: Parameters -> those that the loss needs beside the encoder's states.
    loss: (those, the states at the masked places, [R, K, D] for each bucket,
      the buckets) -> (loss, metrics).
  """

  read: Callable[[PyTree], PyTree]
  loss: Callable[[PyTree, list[jax.Array], list[Batch]], tuple]


class Loss(NamedTuple):
  """A loss that a batch can feed.

  Attributes:
    weight: Its weight in the total; 0 measures it alone.
    reads: The names of the outputs that it reads.
    compute: Those outputs -> (loss, metrics).
  """

  weight: float
  reads: tuple[str, ...]
  compute: Callable[[Outputs], tuple]


# The losses, and the streams that they cannot do without.
STREAM_OF_LOSS = {
  "ir": "retrieval",
  "semantic": "parallel",
  "language": "parallel",
  "masked_lm": "masked",
}

# The kinds of third points, and the streams that they come from.
THIRD_POINTS = {
  "parallel": "parallel",
  "passages": "retrieval",
  "monolingual": "monolingual",
}
_OUTPUT_OF_KIND = {
  "parallel": "sentences",
  "passages": "passages",
  "monolingual": "monolingual",
}


@flax.struct.dataclass
class TrainState:
  """What training changes, and all that resuming needs.

  Attributes:
    step: Steps taken, skipped ones included, int32: the next batch's number.
    params: The towers' parameters, float32.
    opt_state: The optimizer's state.
    skipped: Steps skipped for non-finite numbers so far, int32.
    skipped_in_a_row: The same, since the last good step, int32.
  """

  step: jax.Array
  params: PyTree
  opt_state: PyTree
  skipped: jax.Array
  skipped_in_a_row: jax.Array


def init_state(
  params: PyTree, optimizer: optax.GradientTransformation
) -> TrainState:
  """The state before the first step."""
  zero = jnp.zeros((), jnp.int32)
  return TrainState(
    step=zero,
    params=params,
    opt_state=optimizer.init(params),
    skipped=zero,
    skipped_in_a_row=zero,
  )


@dataclasses.dataclass(frozen=True)
class LossSettings:
  """Weights and temperatures; see `config.default` for each field.

  Attributes:
    ir_weight: Weight of the IR loss.
    ir_temperature: Its temperature.
    ir_symmetric: Whether passages look for queries, too.
    semantic_weight: Weight of the semantic contrastive loss.
    semantic_temperature: Its temperature.
    language_weight: Weight of the language contrastive loss.
    language_temperature: Its temperature.
    third_points: Kind of third points to its weight.
    language_stop_gradient: Whether third points get no gradient.
    masked_lm_weight: Weight of masked language modelling.
  """

  ir_weight: float
  ir_temperature: float
  ir_symmetric: bool
  semantic_weight: float
  semantic_temperature: float
  language_weight: float
  language_temperature: float
  third_points: Mapping[str, float]
  language_stop_gradient: bool
  masked_lm_weight: float = 0.0


def check_losses(settings: LossSettings, batch_sizes: Mapping[str, int]):
  """Refuses losses that the batch cannot feed.

  Raises:
    ValueError: naming the field to change.
  """
  for name, stream in STREAM_OF_LOSS.items():
    weight = getattr(settings, f"{name}_weight")
    if weight and not batch_sizes[stream]:
      raise ValueError(
        f"loss.{name}.weight is {weight}, but batch.{stream} is 0: set the"
        " weight to 0 or the batch above it."
      )
  if not any(getattr(settings, f"{name}_weight") for name in STREAM_OF_LOSS):
    raise ValueError("All of loss.*.weight are 0: there is nothing to learn.")
  if not settings.language_weight:
    return
  for kind, stream in THIRD_POINTS.items():
    if settings.third_points[kind] and not batch_sizes[stream]:
      raise ValueError(
        f"loss.language.{kind} is {settings.third_points[kind]}, but"
        f" batch.{stream} is 0: set one or the other."
      )
  if not any(settings.third_points.values()):
    raise ValueError(
      "loss.language has a weight, but none of its third points has one."
    )


def texts_of(batch: Batch, key: jax.Array | None) -> chunking.Texts:
  """The texts that a step encodes, each with its seed for dropout.

  Args:
    batch: The reader's batch.
    key: For dropout; None for none.

  Returns:
    Group to buckets: "query", "passage" and "masked", as far as the batch has
    them. Seeds go by the texts' numbers, so that no bucket or device changes
    what a text loses.
  """
  groups = dict(batch["texts"])
  if "masked" in batch:
    read = ("ids", "mask", "number", "positions")
    groups["masked"] = [
      {name: bucket[name] for name in read} for bucket in batch["masked"]
    ]
  texts = {}
  for position, group in enumerate(sorted(groups)):
    numbers = [bucket["number"] for bucket in groups[group]]
    texts[group] = [
      {name: bucket[name] for name in bucket if name != "number"}
      for bucket in groups[group]
    ]
    if key is None:
      continue
    seeds = jax.random.bits(
      jax.random.fold_in(key, position),
      (sum(len(number) for number in numbers),),
      jnp.uint32,
    )
    for bucket, number in zip(texts[group], numbers, strict=True):
      bucket["seeds"] = seeds[number]
  return texts


def outputs_of(
  encode: chunking.Encode,
  params: PyTree,
  batch: Batch,
  replicate: Callable[[jax.Array], jax.Array],
  key: jax.Array | None,
  masked_lm: MaskedLM | None = None,
) -> Outputs:
  """Encodes the texts of a batch.

  Queries go through the query tower; passages, parallel and monolingual
  sentences through the passage tower (Hu et al. 2023, Figure 2).

  Args:
    encode: From `chunking.make_encode`.
    params: All parameters.
    batch: The reader's batch.
    replicate: A sharding constraint on all texts' vectors.
    key: For dropout; None for none.
    masked_lm: For batches with masked sentences.

  Returns:
    float32 unit vectors: "queries" [B, D], "passages" [B, 1 + H, D],
    "sentences" [N, 2, D] and "monolingual" [M, D], as far as the batch has
    the stream; "masked", {"states": [R, K, D] for each bucket, "params": what
    the loss needs of them}.
  """
  encoded = encode(params, texts_of(batch, key))
  vectors = {
    tower: replicate(jnp.concatenate(encoded[tower]))
    for tower in batch["texts"]
  }

  def find(stream, role):
    tower = role if role in vectors else "passage"
    return vectors[tower][batch[stream][role]]

  outputs = {}
  if "retrieval" in batch:
    outputs["queries"] = find("retrieval", "query")
    outputs["passages"] = find("retrieval", "passage")
  if "parallel" in batch:
    outputs["sentences"] = find("parallel", "sentence")
  if "monolingual" in batch:
    outputs["monolingual"] = find("monolingual", "sentence")
  if "masked" in batch:
    outputs["masked"] = {
      "states": encoded["masked"],
      "params": masked_lm.read(params),
    }
  return outputs


def make_losses(
  settings: LossSettings,
  batch: Batch,
  replicate: Callable[[jax.Array], jax.Array],
  masked_lm: MaskedLM | None = None,
) -> dict[str, Loss]:
  """The losses that this batch can feed, as functions of its outputs.

  Args:
    settings: Weights and temperatures.
    batch: The reader's batch.
    replicate: A sharding constraint on the candidates of each loss.
    masked_lm: For batches with masked sentences.

  Returns:
    The losses by name.
  """

  def ir(outputs):
    fields = ("query_sequence", "passage_sequence", "passage_valid")
    fields += ("positive_sequence",)
    return losses.ir_loss(
      outputs["queries"],
      outputs["passages"],
      **{name: batch["retrieval"][name] for name in fields},
      temperature=settings.ir_temperature,
      symmetric=settings.ir_symmetric,
      replicate=replicate,
    )

  def semantic(outputs):
    return losses.semantic_loss(
      outputs["sentences"],
      batch["parallel"]["sequence"],
      temperature=settings.semantic_temperature,
      replicate=replicate,
    )

  def language(outputs):
    return losses.language_loss(
      outputs["sentences"],
      batch["parallel"]["text"],
      batch["parallel"]["sequence"],
      {kind: third_points(kind, outputs, batch) for kind in kinds},
      temperature=settings.language_temperature,
      weights=settings.third_points,
      stop_gradient=settings.language_stop_gradient,
      replicate=replicate,
    )

  def masked(outputs):
    read = outputs["masked"]
    return masked_lm.loss(read["params"], read["states"], batch["masked"])

  fed = {}
  if "retrieval" in batch:
    fed["ir"] = Loss(settings.ir_weight, ("queries", "passages"), ir)
  if "parallel" in batch:
    fed["semantic"] = Loss(settings.semantic_weight, ("sentences",), semantic)
    kinds = [
      kind for kind in third_point_kinds(batch) if settings.third_points[kind]
    ]
    # Without a weight it is still measured, if it has anything to measure by.
    if settings.language_weight or kinds:
      reads = {"sentences", *(_OUTPUT_OF_KIND[kind] for kind in kinds)}
      fed["language"] = Loss(
        settings.language_weight, tuple(sorted(reads)), language
      )
  if "masked" in batch:
    fed["masked_lm"] = Loss(settings.masked_lm_weight, ("masked",), masked)
  return fed


def third_point_kinds(batch: Batch) -> list[str]:
  """The kinds of third points that a batch has."""
  return [kind for kind, stream in THIRD_POINTS.items() if stream in batch]


def third_points(
  kind: str, outputs: Outputs, batch: Batch
) -> losses.ThirdPoints:
  """The third points of a kind, for the language loss."""
  vectors = outputs[_OUTPUT_OF_KIND[kind]]
  if kind == "passages":
    text = batch["retrieval"]["passage_text"]
    sequence = jnp.full_like(text, -1)  # Passages are of another role.
    valid = batch["retrieval"]["passage_valid"]
  else:
    text, sequence = batch[kind]["text"], batch[kind]["sequence"]
    valid = jnp.ones_like(text, bool)
  return losses.ThirdPoints(
    vectors.reshape(-1, vectors.shape[-1]),
    text.ravel(),
    sequence.ravel(),
    valid.ravel(),
  )


def gradients(
  params: PyTree,
  batch: Batch,
  encode: chunking.Encode,
  settings: LossSettings,
  replicate: Callable[[jax.Array], jax.Array],
  key: jax.Array | None,
  masked_lm: MaskedLM | None = None,
) -> tuple[jax.Array, PyTree, dict[str, jax.Array]]:
  """The total loss, its gradient, and the metrics of one batch.

  Each loss is differentiated with respect to what the encoder gives it, which
  costs little beside the encoder, and the weighted sum is pulled back through
  the encoder once. That also gives each loss's own gradient norm at every
  step.

  Returns:
    The total, w_ir IR + w_sem semantic + w_lang language + w_mlm masked_lm;
    its gradient, like `params`; and the metrics: each "loss/NAME", its
    "grad_norm/NAME" (of the unweighted loss, with respect to the batch's
    embeddings, or the masked places' states), and what the losses report as
    "NAME/METRIC".
  """
  outputs, pull_back = jax.vjp(
    lambda params: outputs_of(encode, params, batch, replicate, key, masked_lm),
    params,
  )
  total = 0.0
  total_gradient = jax.tree.map(jnp.zeros_like, outputs)
  metrics = {}
  for name, loss in make_losses(settings, batch, replicate, masked_lm).items():
    read = {output: outputs[output] for output in loss.reads}
    (value, details), gradient = jax.value_and_grad(loss.compute, has_aux=True)(
      read
    )
    metrics[f"loss/{name}"] = value
    # Of what was encoded; not of the parameters that scoring reads.
    encoded = gradient if name != "masked_lm" else gradient["masked"]["states"]
    metrics[f"grad_norm/{name}"] = optax.tree.norm(
      optax.tree.cast(encoded, value.dtype)
    )
    metrics |= {f"{name}/{key}": value for key, value in details.items()}
    if loss.weight:
      total += loss.weight * value
      for output in loss.reads:
        total_gradient[output] = jax.tree.map(
          lambda t, g, w=loss.weight: t + w * g,
          total_gradient[output],
          gradient[output],
        )
  (gradient,) = pull_back(total_gradient)
  return total, gradient, {"loss/total": total} | metrics


def make_train_step(
  encode: chunking.Encode,
  settings: LossSettings,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  seed: int,
  replicate: Callable[[jax.Array], jax.Array] = lambda x: x,
  masked_lm: MaskedLM | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
  """Makes the pure step; the caller jits it with its shardings.

  Args:
    encode: From `chunking.make_encode`.
    settings: Weights and temperatures.
    optimizer: From `optim.make_optimizer`.
    schedule: The learning rate, for the log.
    seed: Of dropout; the key of a step is folded from it and `state.step`.
    replicate: A sharding constraint on the candidates of each loss.
    masked_lm: For batches with masked sentences.

  Returns:
    `train_step(state, batch) -> (state, metrics)`, metrics being scalars.
  """

  def train_step(state, batch):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    total, gradient, metrics = gradients(
      state.params, batch, encode, settings, replicate, key, masked_lm
    )
    norm = optax.tree.norm(gradient)
    # Then the update is finite, too: see `optim.make_optimizer`.
    finite = jnp.isfinite(total) & jnp.isfinite(norm)
    updates, opt_state = optimizer.update(
      gradient, state.opt_state, state.params, finite=finite
    )
    skipped = jnp.where(finite, 0, 1).astype(jnp.int32)
    new_state = TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
      skipped=state.skipped + skipped,
      skipped_in_a_row=(state.skipped_in_a_row + skipped) * skipped,
    )
    return new_state, metrics | {
      "grad_norm/total": norm,
      "learning_rate": schedule(state.step - state.skipped),
      "skipped": new_state.skipped,
      "skipped_in_a_row": new_state.skipped_in_a_row,
    }

  return train_step
