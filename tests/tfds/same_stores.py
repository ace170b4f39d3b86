"""Builds the stores of released files and of TFDS's builders; compares them."""

import pathlib
import sys

import tokenizers
from tokenizers import models, pre_tokenizers

from mlir_jax import contract as contract_lib
from mlir_jax.data import collections, records, store_writer
from mlir_jax.data.sources import xquad_r

ROOT = pathlib.Path(sys.argv[1])
SETS = {
  "mr_tydi": "mlir_jax_mr_tydi/sw stream=retrieval languages=sw",
  "miracl": "mlir_jax_miracl/sw stream=retrieval languages=sw",
  "dpr_nq": "mlir_jax_dpr_nq stream=retrieval languages=en",
  "wikimatrix": "mlir_jax_wikimatrix/en-sw stream=parallel languages=en-sw",
}
# Each byte is a token, so no difference is hidden.
ALPHABET = ["[PAD]", *sorted(pre_tokenizers.ByteLevel.alphabet())]
TOKENIZER = tokenizers.Tokenizer(
  models.BPE({token: i for i, token in enumerate(ALPHABET)}, [])
)
TOKENIZER.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
CONTRACT = contract_lib.PartialContract(
  pooling="mean",
  normalize=True,
  title_joiner=" ",
  query=contract_lib.PartialRole("", 99),
  passage=contract_lib.PartialRole("", 99),
  sentence=contract_lib.PartialRole("", 99),
).complete(TOKENIZER)


def build(path: pathlib.Path, name: str, root=None, **settings):
  """Returns the files of a store, but for the names of its sources."""
  bad = records.BadRecords("skip")
  loaded = collections.load(
    name, root and str(root), bad, require_pairs=False, **settings
  )
  store_writer.build(
    path,
    loaded,
    CONTRACT,
    TOKENIZER,
    0,
    shuffle_parallel=False,
    seed=0,
    source="same",
    bad_records=bad,
  )
  files = {
    file.relative_to(path): file.read_bytes() for file in path.rglob("*.npy")
  }
  return files, loaded


for name, setting in SETS.items():
  released, _ = build(
    ROOT / f"{name}-released", "folder", ROOT / "released" / name
  )
  named, loaded = build(
    ROOT / f"{name}-tfds", "sets", sets={name: f"tfds:{setting}"}
  )
  assert sum(map(len, released.values())) > 500, released.keys()
  assert named == released, name
  print(loaded.notes())

sets = {
  "x": "tfds:mlir_jax_xquad_r/de stream=retrieval split=test languages=de"
}
pairs = {
  pair.question: [passage.text for passage in pair.positives]
  for pair in collections.load("sets", sets=sets).retrieval()
}
test = xquad_r.read_test(
  ROOT / "tfds/downloads/xquadr/de.json", "de", records.BadRecords()
)
texts = {passage.passage_id: passage.text for passage in test.passages}
assert pairs == {
  test.queries[query_id]: [texts[passage_id] for passage_id in relevant]
  for query_id, relevant in test.qrels.items()
}, pairs
assert "tensorflow" not in sys.modules
