"""Mining by the ratio margin is that of the formula, and finds the best F1."""

import jax
import numpy as np
import pytest

from mlir_jax import sharding
from mlir_jax.data import collections, records
from mlir_jax.evals import bitext
from mlir_jax.evals.protocols import bitext_mining, protocol_data


@pytest.fixture(params=[1, 8])
def mesh(request):
  return sharding.make_mesh(devices=jax.devices()[: request.param])


def make_vectors(rng, pairs=40, alone=25, width=12, noise=0.25):
  """`pairs` translations first, then sentences without one."""
  meaning = rng.standard_normal((pairs, width))
  sides = [
    np.concatenate(
      [
        meaning + noise * rng.standard_normal((pairs, width)),
        rng.standard_normal((alone, width)),
      ]
    )
    for _ in range(2)
  ]
  return [bitext.unit(side.astype("f4")) for side in sides]


def mine_by_definition(x, y, k):
  """Artetxe and Schwenk (2019), with the whole matrix of cosines."""
  cosines = x.astype("f8") @ y.T.astype("f8")
  near_x = -np.sort(-cosines, axis=1)[:, :k].mean(axis=1)
  near_y = -np.sort(-cosines, axis=0)[:k].mean(axis=0)
  margins = cosines / ((near_x[:, None] + near_y) / 2)
  candidates = set()
  for row in range(len(x)):
    nearest = np.argsort(-cosines[row])[:k]
    candidates.add((row, nearest[margins[row, nearest].argmax()]))
  for column in range(len(y)):
    nearest = np.argsort(-cosines[:, column])[:k]
    candidates.add((nearest[margins[nearest, column].argmax()], column))
  pairs, rows, columns = [], set(), set()
  for row, column in sorted(candidates, key=lambda pair: -margins[pair]):
    if row not in rows and column not in columns:
      rows.add(row)
      columns.add(column)
      pairs.append((int(row), int(column)))
  return pairs, [margins[pair] for pair in pairs]


def test_pairs_and_margins_are_those_of_the_formula(mesh):
  x, y = make_vectors(np.random.default_rng(0))
  mined = bitext_mining.mine(x, y[:-5], mesh)
  pairs, margins = mine_by_definition(x, y[:-5], 4)
  assert [tuple(row) for row in mined.rows.tolist()] == pairs
  assert mined.margins == pytest.approx(margins, abs=1e-5)
  assert (np.diff(mined.margins) <= 0).all()
  assert 20 < sum(row == column for row, column in pairs) < len(pairs)


def test_the_best_threshold_is_the_best_of_all():
  rng = np.random.default_rng(1)
  for _ in range(50):
    margins = -np.sort(-rng.integers(0, 9, 12) / 4.0)
    right = rng.random(12) < 0.5
    gold = int(right.sum()) + 3
    threshold, best = bitext_mining.best_threshold(margins, right, gold)
    every = [
      bitext_mining.score(margins, right, gold, cut).f1 for cut in margins
    ]
    assert best.f1 == pytest.approx(max(every))
    assert best == bitext_mining.score(margins, right, gold, threshold)


def write(folder, split, gold=True):
  folder.mkdir(exist_ok=True)
  for side in ("de", "en"):
    lines = [f"{side}-{n:03}\t{side} {split} {n}\n" for n in range(12)]
    lines.append(f"{side}-copy\t{side} {split} 0\n")
    (folder / f"de-en.{split}.{side}").write_text("".join(lines))
  if gold:
    pairs = [f"de-{n:03}\ten-{n:03}\n" for n in range(8)]
    (folder / f"de-en.{split}.gold").write_text("".join(pairs))


def embed(role, texts, titles=None):
  """Sentences of one number are translations; from 8 on, they are not."""
  assert role == "sentence"
  vectors = []
  for text in texts:
    side, split, number = text.split()
    rng = np.random.default_rng([int(number), split == "test"])
    vector = rng.standard_normal(16)
    own = np.random.default_rng([int(number), side == "de", 9])
    share = 0.3 if int(number) < 8 else 3.0
    vectors.append(vector + share * own.standard_normal(16))
  return np.array(vectors, "f4")


def test_files_of_bucc_are_mined_with_the_threshold_of_another_split(tmp_path):
  write(tmp_path / "mining", "training")
  write(tmp_path / "mining", "test")
  write(tmp_path / "mining", "sample", gold=False)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])

  def load():
    collection = collections.load(
      "folder", str(tmp_path), require_pairs=False, prefix="--"
    )
    assert any("sample" in note for note in collection.notes()) == (
      (tmp_path / "mining" / "de-en.sample.de").exists()
    )
    return protocol_data.Data(mining_tests=collection.mining_tests())

  found = bitext_mining.evaluate(embed, load(), mesh)
  assert list(found) == ["en/de/f1", "en/de/precision", "en/de/recall"]
  assert found["en/de/recall"] == 1 and found["en/de/f1"] > 0.8
  for name in ("training", "sample"):
    for path in (tmp_path / "mining").glob(f"*.{name}.*"):
      path.unlink()
  best = bitext_mining.evaluate(embed, load(), mesh)
  # With the test's own threshold: another name, and no lower value.
  assert next(iter(best)) == "en/de/best_f1"
  assert best["en/de/best_f1"] >= found["en/de/f1"]


def test_bad_mining_files_are_refused_with_their_place(tmp_path):
  folder = tmp_path / "mining"
  write(folder, "test")

  def read():
    return collections.load(
      "folder", str(tmp_path), records.BadRecords(), require_pairs=False
    ).mining_tests()

  (folder / "de-en.test.gold").write_text("de-000\ten-000\nde-001\ten-999\n")
  with pytest.raises(records.RecordError, match=r"gold:2: gold: 'en-999' is"):
    read()
  (folder / "de-en.test.gold").write_text("de-000 en-000 0.5\n")
  with pytest.raises(records.RecordError, match="has 3 columns, not 2"):
    read()
  (folder / "de-en.test.en").unlink()
  with pytest.raises(ValueError, match="lacks the sentences of a side"):
    read()
  (folder / "german.txt").write_text("x")
  with pytest.raises(ValueError, match="is not named like"):
    read()


def test_sentences_without_neighbours_have_no_ratio():
  x = np.array([[1, 0], [0, 1]], "f4")
  with pytest.raises(ValueError, match="not above 0"):
    bitext_mining.mine(x, -x, sharding.make_mesh(devices=jax.devices()[:1]))
  none = protocol_data.Data()
  with pytest.raises(ValueError, match="named as in BUCC"):
    bitext_mining.evaluate(embed, none, sharding.make_mesh())


def test_translations_are_found_whatever_their_order():
  x, y = make_vectors(np.random.default_rng(3), noise=0.1)
  order = np.random.default_rng(4).permutation(len(y))
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  straight = bitext_mining.mine(x, y, mesh)
  shuffled = bitext_mining.mine(x, y[order], mesh)
  assert {tuple(row) for row in straight.rows.tolist()} == {
    (row, int(order[column])) for row, column in shuffled.rows.tolist()
  }
