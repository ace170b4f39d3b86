"""The losses equal loops over their formulas, and keep their promises.

The references are float64 NumPy. They follow the formulas one candidate at a
time: a masked candidate is left out of a list. They use analytic functions
only, so the complex step gives their gradients to rounding error (Squire and
Trapp, 1998). This shares nothing with JAX.
"""

import cmath
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mlir_jax.losses import ir as ir_lib
from mlir_jax.losses import language as language_lib
from mlir_jax.losses import semantic as semantic_lib
from mlir_jax.losses import similarity

DIMENSIONS = 5
PAD = (-1, -1)  # Text and sequence of a passage that is padding.

# A batch with all cases for the mask. Each row has the question's sequence, the
# passages as (text, sequence) with the positive first, and the sequences of the
# known positives. All are numbers, of which the losses get hashes. Numbers of
# texts and of sequences are not related. Equal texts have the same sequence; so
# have texts that become equal when they are cut.
ROWS = (
  # The positive is not among the known positives. Another row has a hard
  # negative that is cut to the same sequence.
  (0, [(100, 0), (101, 1), (102, 2)], []),
  # The same question twice. Each row knows its own positive; the second also
  # knows the positive of another row.
  (1, [(110, 10), (111, 0), PAD], [10]),
  (1, [(120, 12), PAD, PAD], [12, 0]),
  # Two texts that are cut to the same sequence.
  (3, [(130, 20), (131, 21), (132, 22)], [20]),
  (4, [(140, 20), (141, 23), (142, 24)], [20]),
  # The same text twice.
  (5, [(150, 30), (151, 31), (152, 32)], [30]),
  (6, [(150, 30), (160, 33), (170, 34)], [30]),
  # The known positives are hard negatives of other rows and of this row. The
  # positive is not among them.
  (7, [(170, 34), (171, 40), (172, 41)], [1, 22, 40]),
)
# Counted by hand: query -> (row, column) of passages that are not negatives.
MASKED_PASSAGES = {
  0: [(1, 1)],
  1: [(2, 0)],
  2: [(1, 0), (0, 0), (1, 1)],
  3: [(4, 0)],
  4: [(3, 0)],
  5: [(6, 0)],
  6: [(5, 0)],
  7: [(0, 1), (3, 2), (6, 2), (7, 1)],
}

PAIRS = (
  (0, 1),
  (0, 2),  # One English sentence, another translation.
  (3, 3),  # Two identical sides.
  (4, 5),
  (6, 5),  # Two sentences with one translation.
  (5, 4),  # A copy of a pair with swapped sides.
  (7, 2),  # Two hops from the first pair: still a negative of it.
  (8, 101),  # Text 101 is also a passage; text 8 is cut like text 7.
)
RELATED_PAIRS = [(0, 1), (1, 6), (3, 4), (3, 5), (4, 5), (6, 7)]  # By hand.

# The last two are also in PAIRS; the first is cut like text 6.
MONOLINGUAL = (50, 51, 52, 53, 54, 55, 5, 3)
CUT_ALIKE = {8: 7, 50: 6}
MONOLINGUAL_VALID = (True, True, True, True, False, True, True, True)

KINDS = ("parallel", "passages", "monolingual")
WEIGHTS = {"parallel": 1.0, "passages": 0.5, "monolingual": 2.0}


# --- The batch. ---


def labels_of_batch() -> dict[str, np.ndarray]:
  def padded(values):
    return values + [-1] * (3 - len(values))

  def sequence(texts):  # Its number differs from the text's here, too.
    cut = np.vectorize(lambda text: CUT_ALIKE.get(text, text))
    return (1000 + cut(texts)).astype(np.int32)

  passages = np.array([passages for _, passages, _ in ROWS], np.int32)
  return {
    "query_sequence": np.array([question for question, *_ in ROWS], np.int32),
    "passage_text": passages[:, :, 0],
    "passage_sequence": passages[:, :, 1],
    "passage_valid": passages[:, :, 0] >= 0,
    "positive_sequence": np.array([padded(row[2]) for row in ROWS], np.int32),
    "sentence_text": np.array(PAIRS, np.int32),
    "sentence_sequence": sequence(PAIRS),
    "monolingual_text": np.array(MONOLINGUAL, np.int32),
    "monolingual_sequence": sequence(MONOLINGUAL),
    "monolingual_valid": np.array(MONOLINGUAL_VALID),
  }


def embeddings_of_batch(dtype=np.float64) -> dict[str, np.ndarray]:
  """Returns unit vectors, also for padding, so that a leak would show.

  Positives are a little closer than others, and false negatives are closest. So
  some queries and sentences find their positives, but only with the mask.
  """
  generator = np.random.default_rng(0)
  shapes = {
    "queries": (len(ROWS),),
    "passages": (len(ROWS), 3),
    "sentences": (len(PAIRS), 2),
    "monolingual": (len(MONOLINGUAL),),
  }
  vectors = {
    name: generator.normal(size=(*shape, DIMENSIONS))
    for name, shape in shapes.items()
  }
  vectors["passages"][:, 0] += vectors["queries"]
  vectors["sentences"][:, 1] += vectors["sentences"][:, 0]
  for query, masked in MASKED_PASSAGES.items():
    for row, column in masked:
      vectors["passages"][row, column] += 2 * vectors["queries"][query]
  for first, second in RELATED_PAIRS:
    vectors["sentences"][second] += vectors["sentences"][first]
  return {
    name: (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(dtype)
    for name, x in vectors.items()
  }


# --- The losses, each as a function of embeddings and labels. ---


def hashes(numbers):
  """Returns hashes, int32 [..., 2], that are equal where the numbers are.

  Different numbers may share a half, and either half may be -1. Both are -1
  only for the number -1.
  """
  numbers = jnp.asarray(numbers)
  halves = jnp.stack([numbers % 7 - 3, numbers // 7 - 1], axis=-1)
  halves = jnp.where(numbers[..., None] == 2, 1000, halves)  # Not (-1, -1).
  return jnp.where(numbers[..., None] < 0, -1, halves).astype(jnp.int32)


def ir(embeddings, labels, **settings):
  names = ("query_sequence", "passage_sequence", "positive_sequence")
  return ir_lib.ir_loss(
    embeddings["queries"],
    embeddings["passages"],
    passage_valid=labels["passage_valid"],
    **{name: hashes(labels[name]) for name in names},
    **settings,
  )


def semantic(embeddings, labels, **settings):
  return semantic_lib.semantic_loss(
    embeddings["sentences"], hashes(labels["sentence_sequence"]), **settings
  )


def third_points_of(embeddings, labels):
  """Kind -> (embeddings [K, D], texts [K], sequences [K], valid [K])."""
  sentences, passages = embeddings["sentences"], embeddings["passages"]
  sentence_text = labels["sentence_text"].reshape(-1)
  return {
    "parallel": (
      sentences.reshape(-1, sentences.shape[-1]),
      sentence_text,
      labels["sentence_sequence"].reshape(-1),
      sentence_text >= 0,
    ),
    "passages": (
      passages.reshape(-1, passages.shape[-1]),
      labels["passage_text"].reshape(-1),
      np.full(labels["passage_text"].size, -1, np.int32),  # Another role.
      labels["passage_valid"].reshape(-1),
    ),
    "monolingual": (
      embeddings["monolingual"],
      labels["monolingual_text"],
      labels["monolingual_sequence"],
      labels["monolingual_valid"],
    ),
  }


def with_hashes(embeddings, text, sequence, valid):
  return language_lib.ThirdPoints(
    embeddings, hashes(text), hashes(sequence), valid
  )


def language(embeddings, labels, *, kinds=KINDS, **settings):
  points = third_points_of(embeddings, labels)
  return language_lib.language_loss(
    embeddings["sentences"],
    hashes(labels["sentence_text"]),
    hashes(labels["sentence_sequence"]),
    {kind: with_hashes(*points[kind]) for kind in kinds},
    **settings,
  )


def batch_mesh(devices):
  return jax.make_mesh(
    (devices,),
    ("data",),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[:devices],
  )


# One function for all tests: they share its compilations.
@functools.partial(
  jax.jit,
  static_argnames=(
    "loss",
    "devices",
    "symmetric",
    "in_batch",
    "same_tower",
    "stop_gradient",
    "kinds",
  ),
)
def value_and_gradients(embeddings, labels, *, loss, devices, **settings):
  everywhere = NamedSharding(batch_mesh(devices), P())
  return jax.value_and_grad(loss, has_aux=True)(
    embeddings,
    labels,
    replicate=lambda x: jax.lax.with_sharding_constraint(x, everywhere),
    **settings,
  )


def evaluate(loss, embeddings, labels, *, devices=1, **settings):
  """Returns loss, metrics and gradients, with the batch over some devices."""
  by_row = NamedSharding(batch_mesh(devices), P("data"))
  (value, metrics), gradients = jax.device_get(
    value_and_gradients(
      *jax.device_put((embeddings, labels), by_row),
      loss=loss,
      devices=devices,
      **settings,
    )
  )
  return value, metrics, gradients


# --- The references. ---


def dot(a, b):
  return sum(x * y for x, y in zip(a, b, strict=True))


def cross_entropy(scores, positive):
  return cmath.log(sum(map(cmath.exp, scores))) - scores[positive]


def spread(embeddings):
  """Participation ratio of the covariance's eigenvalues."""
  eigenvalues = np.linalg.eigvalsh(np.cov(embeddings.real.T))
  return eigenvalues.sum() ** 2 / (eigenvalues**2).sum()


def is_negative(labels, i, row, column):
  """Whether passage (row, column) is a negative of query i."""
  own, *known = (
    labels["passage_sequence"][i, 0],
    *labels["positive_sequence"][i],
  )
  repeated = labels["query_sequence"][row] == labels["query_sequence"][i]
  return (
    labels["passage_valid"][row, column]
    and labels["passage_sequence"][row, column] not in {own, *known} - {-1}
    and not (repeated and column == 0)
  )


def same_tower_scores(embeddings, labels, i, temperature):
  """Returns the scores of query i with queries, and of its positive."""
  queries, passages = embeddings["queries"], embeddings["passages"]
  batch, columns, _ = passages.shape
  scores = [
    dot(queries[i], queries[j])
    for j in range(batch)
    if is_negative(labels, i, j, 0) and is_negative(labels, j, i, 0)
  ] + [
    dot(passages[i, 0], passages[row, column])
    for row, column in np.ndindex(batch, columns)
    if is_negative(labels, i, row, column)
  ]
  return [score / temperature for score in scores]


def reference_ir(
  embeddings,
  labels,
  *,
  temperature,
  symmetric,
  in_batch=True,
  same_tower=False,
):
  queries, passages = embeddings["queries"], embeddings["passages"]
  batch, columns, _ = passages.shape
  forward, backward, cosines, found, masked, alone = [], [], [], 0, 0, 0
  for i in range(batch):
    scores = [dot(queries[i], passages[i, 0]) / temperature]
    for row in range(batch) if in_batch else [i]:
      for column in range(columns):
        if is_negative(labels, i, row, column):
          cosines.append(dot(queries[i], passages[row, column]))
          scores.append(cosines[-1] / temperature)
        elif (row, column) != (i, 0):
          masked += labels["passage_valid"][row, column]
    alone += len(scores) == 1
    found += all(scores[0].real >= score.real for score in scores)
    of_queries = [
      dot(queries[j], passages[i, 0]) / temperature
      for j in range(batch)
      if is_negative(labels, j, i, 0)
    ]
    backward.append(cross_entropy([scores[0], *of_queries], 0))
    if same_tower:
      scores += same_tower_scores(embeddings, labels, i, temperature)
      scores += of_queries if symmetric else []
    forward.append(cross_entropy(scores, 0))
  loss = sum(forward) / batch
  if symmetric and not same_tower:
    loss = (loss + sum(backward) / batch) / 2
  return loss, {
    "accuracy": found / batch,
    "masked": masked,
    "queries_without_negatives": alone,
    "mean_cosine": np.mean(cosines).real,
    "effective_rank": spread(passages[:, 0]),
  }


def reference_semantic(embeddings, labels, *, temperature):
  sentences, sequence = embeddings["sentences"], labels["sentence_sequence"]
  everyone = [(pair, side) for pair in range(len(sequence)) for side in (0, 1)]
  terms, cosines, found, masked, alone = [], [], 0, 0, 0
  for pair, side in everyone:
    scores = [dot(sentences[pair, 0], sentences[pair, 1]) / temperature]
    for other, other_side in everyone:
      if other == pair:
        continue
      if {*sequence[other]} & {*sequence[pair]}:
        masked += 1
        continue
      cosines.append(dot(sentences[pair, side], sentences[other, other_side]))
      scores.append(cosines[-1] / temperature)
    terms.append(cross_entropy(scores, 0))
    alone += len(scores) == 1
    found += all(scores[0].real >= score.real for score in scores)
  return sum(terms) / len(everyone), {
    "accuracy": found / len(everyone),
    "masked": masked,
    "sentences_without_negatives": alone,
    "mean_cosine": np.mean(cosines).real,
    "effective_rank": spread(sentences.reshape(len(everyone), -1)),
  }


def reference_language(
  embeddings,
  labels,
  *,
  temperature,
  weights,
  kinds=KINDS,
  stop_gradient=False,
):
  sentences = embeddings["sentences"]
  if stop_gradient:
    embeddings = {name: array.real for name, array in embeddings.items()}
  points = third_points_of(embeddings, labels)
  loss, squares, masked = 0, [], 0
  for kind in kinds:
    terms = []
    for embedding, text, sequence, valid in zip(*points[kind], strict=True):
      for (first, second), pair, cut in zip(
        sentences,
        labels["sentence_text"],
        labels["sentence_sequence"],
        strict=True,
      ):
        if not valid:
          continue
        if text in pair or sequence in cut:
          masked += 1
          continue
        difference = dot(first, embedding) - dot(second, embedding)
        d = difference / temperature
        terms.append(cmath.log(1 + cmath.exp(d)) + cmath.log(1 + cmath.exp(-d)))
        squares.append(difference.real**2)
    loss += weights[kind] * sum(terms) / len(terms)
  loss /= sum(weights[kind] for kind in kinds)
  return loss, {
    "excess": loss.real - 2 * math.log(2),
    "rms_difference": math.sqrt(np.mean(squares)),
    "masked": masked,
  }


def complex_step(reference, embeddings, labels, **settings):
  """Returns a reference's gradients, Im f(x + ih) / h, without cancellation."""
  step = 1e-30
  stepped = {name: array.astype(complex) for name, array in embeddings.items()}
  gradients = {}
  for name, array in stepped.items():
    gradients[name] = np.zeros(array.shape)
    for index in np.ndindex(array.shape):
      array[index] += 1j * step
      loss, _ = reference(stepped, labels, **settings)
      gradients[name][index] = loss.imag / step
      array[index] -= 1j * step
  return gradients


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def assert_same(result, expected, tolerance=1e-12):
  """Compares (loss, metrics, gradients)."""
  for ours, theirs in zip(result, expected, strict=True):
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, 0, tolerance),
      ours,
      theirs,
    )


LANGUAGE = {"temperature": 0.2, "weights": WEIGHTS}
CASES = {
  "ir": (ir, reference_ir, {"temperature": 0.05, "symmetric": False}),
  "ir-own-negatives": (
    ir,
    reference_ir,
    {"temperature": 0.3, "symmetric": False, "in_batch": False},
  ),
  "ir-both-ways": (ir, reference_ir, {"temperature": 0.3, "symmetric": True}),
  "ir-same-tower": (
    ir,
    reference_ir,
    {"temperature": 0.3, "symmetric": False, "same_tower": True},
  ),
  "ir-gte": (
    ir,
    reference_ir,
    {"temperature": 0.3, "symmetric": True, "same_tower": True},
  ),
  "semantic": (semantic, reference_semantic, {"temperature": 0.05}),
  "semantic-warm": (semantic, reference_semantic, {"temperature": 0.7}),
} | {
  f"language{name}": (language, reference_language, LANGUAGE | settings)
  for name, settings in {
    "": {},
    "-cold": {"temperature": 0.05},
    "-weight-zero": {"weights": WEIGHTS | {"passages": 0.0}},
    "-without-monolingual": {"kinds": ("parallel", "passages")},
    "-third-points-held": {"stop_gradient": True},
  }.items()
}


@functools.cache
def by_formula(case):
  """Returns the reference's loss, metrics and gradients."""
  _, reference, settings = CASES[case]
  embeddings, labels = embeddings_of_batch(), labels_of_batch()
  value, metrics = reference(embeddings, labels, **settings)
  gradients = complex_step(reference, embeddings, labels, **settings)
  return value.real, metrics, gradients


# --- The formulas. ---


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("case", CASES)
def test_losses_metrics_and_gradients_are_those_of_the_formulas(case, devices):
  loss, _, settings = CASES[case]
  embeddings, labels = embeddings_of_batch(), labels_of_batch()
  result = evaluate(loss, embeddings, labels, devices=devices, **settings)
  assert_same(result, by_formula(case))
  if loss is not language:  # It has no accuracy. 0 or 1 would test little.
    assert 0 < result[1]["accuracy"] < 1


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("devices", [1, 8])
def test_known_positives_at_the_end_of_long_lists_are_masked(devices):
  loss, _, settings = CASES["ir-both-ways"]
  labels = labels_of_batch()
  # Only one row has a third known positive, which begins at column 600.
  known = np.repeat(labels["positive_sequence"], 300, axis=1)
  result = evaluate(
    loss,
    embeddings_of_batch(),
    labels | {"positive_sequence": known},
    devices=devices,
    **settings,
  )
  assert_same(result, by_formula("ir-both-ways"))


@pytest.mark.parametrize("case", ["ir-both-ways", "semantic", "language"])
def test_float32_agrees_with_float64_and_eight_devices_with_one(case):
  loss, _, settings = CASES[case]
  embeddings, labels = embeddings_of_batch(np.float32), labels_of_batch()
  one = evaluate(loss, embeddings, labels, devices=1, **settings)
  eight = evaluate(loss, embeddings, labels, devices=8, **settings)
  assert one[0].dtype == np.float32
  for result, exact in ((one, by_formula(case)), (eight, one)):
    assert_same(result[:2], exact[:2], 1e-5)
    for name, gradient in result[2].items():
      largest = np.abs(exact[2][name]).max()
      np.testing.assert_allclose(gradient, exact[2][name], 0, 1e-5 * largest)


# --- The mask, seen from outside. ---


@functools.partial(jax.jit, static_argnames="loss")
def influence(anchors, candidates, *, loss):
  """Returns which candidates change an anchor's gradient, bool [A, C].

  The gradient of -log softmax with respect to the anchor is a weighted sum of
  the allowed candidates. So the mixed second derivative is zero for exactly the
  masked candidates.
  """
  mixed = jax.jacfwd(jax.grad(loss), argnums=1)(anchors, candidates)
  return jnp.any(mixed != 0, axis=(1, -1))


@pytest.mark.usefixtures("x64")
def test_ir_masks_known_positives_repeated_questions_and_padding_only():
  embeddings, labels = embeddings_of_batch(), labels_of_batch()
  expected = np.tile(labels["passage_valid"], (len(ROWS), 1, 1))
  for query, masked in MASKED_PASSAGES.items():
    for row, column in masked:
      expected[query, row, column] = False

  def loss(queries, passages):
    moved = {"queries": queries, "passages": passages}
    return ir(moved, labels, temperature=0.3)[0]

  seen = influence(embeddings["queries"], embeddings["passages"], loss=loss)
  np.testing.assert_array_equal(seen, expected)


@pytest.mark.usefixtures("x64")
def test_passage_to_query_masks_the_questions_a_passage_answers():
  embeddings, labels = embeddings_of_batch(), labels_of_batch()
  expected = np.ones((len(ROWS), len(ROWS)), bool)
  for query, masked in MASKED_PASSAGES.items():
    for row, column in masked:
      if column == 0:
        expected[row, query] = False

  def loss(positives, queries):
    passages = jnp.asarray(embeddings["passages"]).at[:, 0].set(positives)
    moved = {"queries": queries, "passages": passages}
    both, _ = ir(moved, labels, temperature=0.3, symmetric=True)
    return 2 * both - ir(moved, labels, temperature=0.3)[0]

  # Rounding leaves 1e-17 where the query -> passage terms cancel.
  mixed = jax.jit(jax.jacfwd(jax.grad(loss), argnums=1))(
    embeddings["passages"][:, 0], embeddings["queries"]
  )
  seen = np.abs(mixed).max(axis=(1, -1)) > 1e-12
  np.testing.assert_array_equal(seen, expected)


def in_place_of_candidates(vectors):
  """Returns a `replicate` that replaces the candidates by these vectors."""
  return lambda x: vectors if jnp.issubdtype(x.dtype, jnp.floating) else x


@pytest.mark.usefixtures("x64")
def test_semantic_masks_copies_and_other_translations_at_one_hop_only():
  sentences = embeddings_of_batch()["sentences"].reshape(-1, DIMENSIONS)
  sequence = hashes(labels_of_batch()["sentence_sequence"])
  expected = np.ones((len(PAIRS), len(PAIRS)), bool)
  for first, second in RELATED_PAIRS:
    expected[first, second] = expected[second, first] = False
  expected = expected.repeat(2, axis=0).repeat(2, axis=1)
  # A sentence is not its own candidate. Its translation, next to the diagonal,
  # is never masked, not even in the pair with identical sides.
  np.fill_diagonal(expected, False)

  def loss(anchors, candidates):
    return semantic_lib.semantic_loss(
      anchors.reshape(-1, 2, DIMENSIONS),
      sequence,
      temperature=0.3,
      replicate=in_place_of_candidates(candidates),
    )[0]

  seen = influence(sentences, sentences, loss=loss)
  np.testing.assert_array_equal(seen, expected)


@pytest.mark.usefixtures("x64")
def test_masked_counts_equal_counts_by_hand():
  embeddings, labels = embeddings_of_batch(), labels_of_batch()

  def masked(loss, **settings):
    _, metrics, _ = evaluate(loss, embeddings, labels, **settings)
    return metrics["masked"]

  assert masked(ir, temperature=0.05, symmetric=False) == 13
  # Each pair has two sides, and masks the two sides of the other pair.
  assert masked(semantic, temperature=0.7) == 8 * len(RELATED_PAIRS)
  parallel = 3 + 4 + 2 + 5 + 4 + 5 + 4 + 3  # Pair by pair, with its own sides.
  passages = 1  # Text 101, of the last pair.
  monolingual = 3 + 1 + 1  # Text 5 in three pairs, 3 in one, 50 cut like one.
  expected = parallel + passages + monolingual
  assert masked(language, **LANGUAGE) == expected


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reason", ["padding", "positive"])
def test_ir_does_not_change_when_a_masked_candidate_is_deleted(reason):
  embeddings, labels = embeddings_of_batch(), labels_of_batch()
  if reason == "padding":
    labels["passage_valid"][:, 2] = False
  else:  # The last passage of each row is a known positive of each question.
    labels["passage_valid"][:, 2] = True
    labels["passage_sequence"][:, 2] = 999
    labels["positive_sequence"][:, 2] = 999
  shorter = embeddings | {"passages": embeddings["passages"][:, :2]}
  fewer = labels | {
    name: labels[name][:, :2] for name in ("passage_sequence", "passage_valid")
  }
  settings = {"temperature": 0.3, "symmetric": True}
  value, _, gradients = evaluate(ir, embeddings, labels, **settings)
  expected, _, expected_gradients = evaluate(ir, shorter, fewer, **settings)

  assert not gradients["passages"][:, 2].any()
  gradients["passages"] = gradients["passages"][:, :2]
  assert_same((value, gradients), (expected, expected_gradients))


@jax.jit
def anchor_gradients(sentences, sequence):
  """Returns gradients of the summed losses, for the anchors only."""
  candidates = sentences.reshape(-1, DIMENSIONS)

  def total(anchors):
    mean, _ = semantic_lib.semantic_loss(
      anchors,
      sequence,
      temperature=0.3,
      replicate=in_place_of_candidates(candidates),
    )
    return mean * len(candidates)

  return jax.grad(total)(sentences)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("deleted", range(len(PAIRS)))
def test_semantic_stays_the_same_where_a_deleted_pair_was_masked(deleted):
  sentences = embeddings_of_batch()["sentences"]
  sequence = hashes(labels_of_batch()["sentence_sequence"])
  keep = np.delete(np.arange(len(PAIRS)), deleted)
  before = np.asarray(anchor_gradients(sentences, sequence))[keep]
  after = np.asarray(anchor_gradients(sentences[keep], sequence[keep]))
  for pair, old, new in zip(keep, before, after, strict=True):
    masked = (min(pair, deleted), max(pair, deleted)) in RELATED_PAIRS
    assert np.allclose(old, new, 0, 1e-12) == masked


@pytest.mark.usefixtures("x64")
def test_language_does_not_change_when_masked_third_points_are_deleted():
  embeddings, labels = embeddings_of_batch(), labels_of_batch()
  sentences, text = embeddings["sentences"][4:5], labels["sentence_text"][4:5]
  sequence = labels["sentence_sequence"][4:5]
  points = third_points_of(embeddings, labels)
  fewer = {}
  for kind, arrays in points.items():
    _, its_text, its_sequence, valid = arrays
    use = valid & ~np.isin(its_text, text) & ~np.isin(its_sequence, sequence)
    fewer[kind] = tuple(array[use] for array in arrays)
  assert {kind: len(arrays[0]) for kind, arrays in fewer.items()} == {
    "parallel": 16 - 4,
    "passages": 24 - 3,
    "monolingual": 8 - 3,  # One is padding, one is cut alike.
  }

  @jax.jit
  def loss_and_gradient(sentences, points):
    return jax.value_and_grad(
      lambda sentences: language_lib.language_loss(
        sentences,
        hashes(text),
        hashes(sequence),
        {kind: with_hashes(*points[kind]) for kind in KINDS},
        temperature=0.2,
        weights=WEIGHTS,
      )[0]
    )(sentences)

  assert_same(
    loss_and_gradient(sentences, points), loss_and_gradient(sentences, fewer)
  )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_query_without_negatives_has_no_loss_and_no_gradient(symmetric):
  embeddings, labels = embeddings_of_batch(), labels_of_batch()
  labels["query_sequence"][:] = 0  # One question: all positives are its own,
  labels["passage_valid"][:, 1:] = False  # and there is nothing else.
  value, metrics, gradients = evaluate(
    ir, embeddings, labels, temperature=0.05, symmetric=symmetric
  )
  assert metrics["accuracy"] == 1
  assert metrics["queries_without_negatives"] == len(ROWS)
  assert_same((value, gradients), jax.tree.map(np.zeros_like, (0, gradients)))


@pytest.mark.usefixtures("x64")
def test_translations_of_one_sentence_have_no_semantic_loss():
  embeddings, labels = embeddings_of_batch(), labels_of_batch()
  labels["sentence_sequence"][:, 0] = 0
  value, metrics, gradients = evaluate(
    semantic, embeddings, labels, temperature=0.05
  )
  assert metrics["mean_cosine"] == 0  # Of no sentences; not NaN.
  assert metrics["sentences_without_negatives"] == 2 * len(PAIRS)
  assert_same((value, gradients), jax.tree.map(np.zeros_like, (0, gradients)))


@pytest.mark.usefixtures("x64")
def test_third_points_that_are_all_padding_add_no_excess():
  embeddings, labels = embeddings_of_batch(), labels_of_batch()
  labels["monolingual_valid"][:] = False
  only = dict.fromkeys(KINDS, 0.0) | {"monolingual": 1.0}
  value, metrics, gradients = evaluate(
    language, embeddings, labels, **LANGUAGE | {"weights": only}
  )
  assert metrics["excess"] == 0
  assert value == 2 * math.log(2)
  assert not any(gradient.any() for gradient in gradients.values())


# --- Symmetries. ---


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", CASES)
def test_the_order_of_the_batch_changes_nothing(case):
  loss, _, settings = CASES[case]
  generator = np.random.default_rng(1)
  rows, pairs, monolingual = (generator.permutation(8) for _ in range(3))

  def reorder(arrays):
    orders = {"sentence": pairs, "monolingual": monolingual}
    return {
      name: array[orders.get(name.partition("_")[0].rstrip("s"), rows)]
      for name, array in arrays.items()
    }

  embeddings, labels = embeddings_of_batch(), labels_of_batch()
  value, metrics, gradients = evaluate(loss, embeddings, labels, **settings)
  result = evaluate(loss, reorder(embeddings), reorder(labels), **settings)
  assert_same(result, (value, metrics, reorder(gradients)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", ["semantic", "language"])
def test_the_order_of_a_pairs_sides_changes_nothing(case):
  loss, _, settings = CASES[case]
  pairs = np.array([0, 2, 3, 6])

  def swap(arrays):
    swapped = {}
    for name, array in arrays.items():
      swapped[name] = array.copy()
      if name.startswith("sentence"):
        swapped[name][pairs] = array[pairs, ::-1]
    return swapped

  embeddings, labels = embeddings_of_batch(), labels_of_batch()
  value, metrics, gradients = evaluate(loss, embeddings, labels, **settings)
  result = evaluate(loss, swap(embeddings), swap(labels), **settings)
  assert_same(result, (value, metrics, swap(gradients)))


@pytest.mark.usefixtures("x64")
def test_the_order_of_hard_negatives_changes_nothing():
  def reorder(arrays):
    return {
      name: array[:, [0, 2, 1]] if name.startswith("passage") else array
      for name, array in arrays.items()
    }

  embeddings, labels = embeddings_of_batch(), labels_of_batch()
  settings = {"temperature": 0.3, "symmetric": True}
  value, metrics, gradients = evaluate(ir, embeddings, labels, **settings)
  result = evaluate(ir, reorder(embeddings), reorder(labels), **settings)
  assert_same(result, (value, metrics, reorder(gradients)))


# --- The language loss's own promises. ---


@jax.jit
def one_third_point(pair, third):
  """Returns excess, loss and gradients of pair [2, D] and third [D]."""

  def loss(pair, third):
    point = with_hashes(third[None], [2], [12], jnp.array([True]))
    value, metrics = language_lib.language_loss(
      pair[None],
      hashes([[0, 1]]),
      hashes([[10, 11]]),
      {"monolingual": point},
      temperature=0.2,
      weights=WEIGHTS,
    )
    return value, metrics["excess"]

  (value, excess), gradients = jax.value_and_grad(
    loss, argnums=(0, 1), has_aux=True
  )(pair, third)
  return excess, value, gradients


@pytest.mark.usefixtures("x64")
def test_a_third_point_is_pulled_out_of_the_language_direction():
  (first, second), third = np.split(embeddings_of_batch()["queries"][:3], [2])
  third = third[0]
  d = (first @ third - second @ third) / 0.2
  slope = math.tanh(d / 2) / 0.2
  excess, _, gradients = one_third_point(np.stack([first, second]), third)
  np.testing.assert_allclose(excess, 2 * math.log(math.cosh(d / 2)), 1e-12)
  expected = np.stack([slope * third, -slope * third]), slope * (first - second)
  assert_same(gradients, expected)


@pytest.mark.usefixtures("x64")
def test_a_monolingual_point_gets_the_mean_over_pairs_and_points():
  embeddings, labels = embeddings_of_batch(), labels_of_batch()
  sentences, points = embeddings["sentences"], embeddings["monolingual"]
  used = [
    (pair, k)
    for pair, sides in enumerate(PAIRS)
    for k, text in enumerate(MONOLINGUAL)
    if MONOLINGUAL_VALID[k] and not {text, CUT_ALIKE.get(text)} & {*sides}
  ]
  weight = WEIGHTS["monolingual"] / sum(WEIGHTS.values()) / len(used)
  expected = np.zeros_like(points)
  for pair, k in used:
    direction = sentences[pair, 0] - sentences[pair, 1]
    slope = math.tanh(direction @ points[k] / 0.2 / 2) / 0.2
    expected[k] += weight * slope * direction
  *_, gradients = evaluate(language, embeddings, labels, **LANGUAGE)
  np.testing.assert_allclose(gradients["monolingual"], expected, 0, 1e-12)


@pytest.mark.usefixtures("x64")
def test_stop_gradient_holds_the_third_points_and_keeps_the_loss():
  embeddings, labels = embeddings_of_batch(), labels_of_batch()
  free, held = (
    evaluate(language, embeddings, labels, **LANGUAGE, **settings)
    for settings in ({}, {"stop_gradient": True})
  )
  assert_same(held[:2], free[:2])
  for name in ("passages", "monolingual"):
    assert free[2][name].any()
    assert not held[2][name].any()
  assert held[2]["sentences"].any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("sides", ["the same", "equally far"])
def test_the_excess_is_exactly_zero_where_no_side_is_preferred(dtype, sides):
  if sides == "the same":
    vector, third = embeddings_of_batch()["queries"][:2].astype(dtype)
    pair = np.stack([vector, vector])
  else:
    axes = np.eye(DIMENSIONS, dtype=dtype)
    pair, third = axes[:2], axes[0] + axes[1]
  excess, value, gradients = one_third_point(pair, third)
  assert excess == 0.0
  assert value == np.float32(2 * math.log(2))
  assert not any(gradient.any() for gradient in gradients)


def exact_excess(d):
  """Computes 2 log cosh(d / 2) in float64, by its series near 0."""
  d = np.abs(d)
  near = d**2 / 4 - d**4 / 96 + d**6 / 1440
  far = d + 2 * np.log1p(np.exp(-d)) - 2 * math.log(2)
  return np.where(d < 0.01, near, far)


excess_and_slope = jax.jit(
  jax.vmap(jax.value_and_grad(language_lib.two_log_cosh_half))
)


@pytest.mark.filterwarnings("ignore:overflow")  # Of the series, far from 0.
def test_the_excess_is_finite_and_right_at_any_d_in_bfloat16():
  patterns = np.arange(2**16, dtype=np.uint16)
  infinite_or_nan = patterns & 0x7F80 == 0x7F80
  every = patterns[~infinite_or_nan].view(jnp.bfloat16)
  excess, slope = excess_and_slope(every)
  assert excess.dtype == slope.dtype == jnp.bfloat16
  d, excess, slope = (np.asarray(x, np.float64) for x in (every, excess, slope))
  assert np.isfinite(excess).all()
  assert np.isfinite(slope).all()
  tiny = 1e-37  # Smaller numbers may become 0.
  np.testing.assert_allclose(excess, exact_excess(d), 0.02, tiny)
  np.testing.assert_allclose(slope, np.tanh(d / 2), 0.01, tiny)


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_excess_keeps_its_digits_near_zero_in_float32(sign):
  d = sign * np.geomspace(1e-17, 1e3, 4001).astype(np.float32)
  excess, slope = excess_and_slope(d)
  d = d.astype(np.float64)
  np.testing.assert_allclose(excess, exact_excess(d), 1e-6)
  np.testing.assert_allclose(slope, np.tanh(d / 2), 1e-6)


@pytest.mark.parametrize("case", ["ir-both-ways", "semantic-warm", "language"])
def test_losses_of_bfloat16_embeddings_are_computed_in_float32(case):
  loss, reference, settings = CASES[case]
  embeddings, labels = embeddings_of_batch(jnp.bfloat16), labels_of_batch()
  value, _, gradients = evaluate(loss, embeddings, labels, **settings)
  assert value.dtype == np.float32
  exact = {name: x.astype(np.float64) for name, x in embeddings.items()}
  expected, _ = reference(exact, labels, **settings)
  expected_gradients = complex_step(reference, exact, labels, **settings)
  # The language loss subtracts the two sides in bfloat16.
  tolerance = 1e-2 if loss is language else 1e-5
  np.testing.assert_allclose(value, expected.real, tolerance)
  for name, gradient in gradients.items():
    largest = np.abs(expected_gradients[name]).max()
    np.testing.assert_allclose(
      gradient.astype(np.float64),
      expected_gradients[name],
      0,
      2e-2 * largest,
    )


# --- Metrics. ---


@pytest.mark.parametrize(
  ("spreads", "rank"),
  [
    ([1, 1, 1, 1], 4),
    ([3, 0, 0, 0], 1),
    ([1, 1, 0, 0], 2),
    ([2, 1, 0, 0], 25 / 17),  # (4 + 1)^2 / (4^2 + 1^2).
  ],
)
def test_effective_rank_counts_directions(spreads, rank):
  points = np.concatenate([np.diag(spreads), -np.diag(spreads)])
  turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
  shifted = (points @ turn + 5).astype(np.float32)
  assert similarity.effective_rank(shifted) == pytest.approx(rank, rel=1e-4)


@pytest.mark.usefixtures("x64")
def test_a_collapse_shows_in_the_metrics_and_not_in_the_language_loss():
  embeddings, labels = embeddings_of_batch(), labels_of_batch()
  collapsed = {
    name: np.broadcast_to(np.eye(DIMENSIONS)[0], array.shape)
    for name, array in embeddings.items()
  }
  _, metrics, _ = evaluate(semantic, collapsed, labels, temperature=0.05)
  assert metrics["mean_cosine"] == 1
  assert metrics["effective_rank"] == 0  # Not NaN.
  _, metrics, _ = evaluate(language, collapsed, labels, **LANGUAGE)
  assert metrics["excess"] == metrics["rms_difference"] == 0
