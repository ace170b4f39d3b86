"""Prints the share of padding in the computed tokens.

python benchmarks/padding.py --tokenizer=TOKENIZER.json --root=COLLECTION

The texts are the pairs of a folder (COLLECTION, in the layout of the collection
"folder"), CLDR's names, and texts with log-normal lengths. The script covers
training with batches of several sizes, and encoding of 10,000 passages. It
needs no model, because it chooses and fills rows as a run does. The cost is
that of `packing.cost`, for each real token; without padding and attention it is
1. The choice takes the given seconds of a CPU.
"""

import argparse
import itertools
import time

import numpy as np
import tokenizers

from mlir_jax.batches import packing, row_plans
from mlir_jax.data import collections
from mlir_jax.retrieval import row_batches

MAX_LENGTH = {"query": 32, "passage": 128}
STEPS = 10_000  # Steps of a run.
DRAWN = 500  # Steps whose lengths are known.
TEXTS = 20_000


def lengths_of_pairs(records, tokenizer) -> dict[str, np.ndarray]:
  """Maps each role to the numbers of tokens of its texts."""
  texts = {"query": [], "passage": []}
  for record in itertools.islice(records, TEXTS):
    passage = record.positives[0]
    texts["query"].append(record.question)
    texts["passage"].append(f"{passage.title} {passage.text}".strip())
  return {
    role: np.minimum(
      [len(each.ids) for each in tokenizer.encode_batch_fast(texts[role])],
      MAX_LENGTH[role],
    )
    for role in texts
  }


def cost_of_steps(drawn: np.ndarray, plans: row_plans.Plans) -> float:
  """Returns the cost of a real token in every tenth step, int [S, T]."""
  steps = drawn[::10]
  cost = sum(
    next(
      packing.cost(plan["all"])
      for plan in plans.plans
      if packing.fits(step, plan["all"])
    )
    for step in steps
  )
  return cost / steps.sum()


def main() -> None:
  """Prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--tokenizer", required=True, help="tokenizer.json")
  parser.add_argument("--root", required=True, help="a folder of texts")
  settings = parser.parse_args()
  tokenizer = tokenizers.Tokenizer.from_file(settings.tokenizer)
  tokenizer.no_padding()
  tokenizer.no_truncation()
  random = np.random.default_rng(0)
  kinds = {
    "folder": lengths_of_pairs(
      collections.load("folder", settings.root).retrieval(), tokenizer
    ),
    "CLDR": lengths_of_pairs(collections.load("cldr").retrieval(), tokenizer),
    "log-normal": {
      "query": random.lognormal(2.3, 0.5, TEXTS).clip(3, 64).astype(int),
      "passage": random.lognormal(4, 1, TEXTS).clip(5, 512).astype(int),
    },
  }
  print(
    "| texts | batch | largest rows | sizes compiled | padding | cost"
    " | seconds of the choice |"
  )
  print("|---|---|---|---|---|---|---|")
  for name, lengths in kinds.items():
    for batch in (64, 256, 1024, 4096):
      drawn = np.concatenate(
        [random.choice(lengths[role], (DRAWN, batch)) for role in lengths],
        axis=1,
      )
      longest = int(max(each.max() for each in lengths.values()))
      start = time.process_time()
      plans = row_plans.choose({"all": drawn}, {"all": longest}, STEPS)
      seconds = time.process_time() - start
      sizes = len(plans.plans) - plans.last_resort
      blocks = plans.plans[sizes - 1]["all"]
      rows = " + ".join(f"{each.rows:,} x {each.length}" for each in blocks)
      print(
        f"| {name} | {batch} + {batch} | {rows} | {sizes} |"
        f" {plans.padding:.1%} | {cost_of_steps(drawn, plans):.2f} |"
        f" {seconds:.1f} |",
        flush=True,
      )
    passages = random.choice(lengths["passage"], 10_000)
    start = time.process_time()
    blocks = [
      packing.Block(len(number), length, number.shape[1])
      for length, number in row_batches.pack(passages, longest, 256)
    ]
    seconds = time.process_time() - start
    print(
      f"| {name} | encoding 10,000 passages | | {len(set(blocks))} |"
      f" {1 - passages.sum() / packing.tokens(blocks):.1%} |"
      f" {packing.cost(blocks) / passages.sum():.2f} | {seconds:.2f} |",
      flush=True,
    )


if __name__ == "__main__":
  main()
