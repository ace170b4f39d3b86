"""Compares the variants of the quick start, each trained with several seeds.

python benchmarks/transfer.py --output=OUTPUT --seeds=3

Each run is `python -m mlir_jax.train --config=quickstart:VARIANT
--config.seed=SEED`; finished runs are not trained again. The table shows
MRR@100 by group of languages: the mean over the seeds, and the gain over `ir`
with its 95 % interval (Student's t over the differences of the seeds).
"""

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np
import scipy.stats
import tqdm

from mlir_jax.data.collections import cldr

VARIANTS = ("ir", "ir_semantic", "ir_language", "all", "shuffled")
MEASURE = "mrr@100"


def train(variant: str, seed: int, output: pathlib.Path) -> dict[str, float]:
  """Trains a run unless it is finished; returns its final results."""
  folder = output / f"{variant}-{seed}"
  if not (folder / "results" / "report.json").exists():
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("w") as log:
      subprocess.run(
        [
          *(sys.executable, "-m", "mlir_jax.train"),
          f"--config=quickstart:{variant}",
          f"--config.seed={seed}",
          "--config.eval.at_start=False",
          f"--workdir={folder}",
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
        check=True,
      )
  (path,) = (folder / "results").glob("step-*[0-9].json")
  return json.loads(path.read_text())


def group_means(results: dict[str, float]) -> dict[str, float]:
  """Returns each group's mean of MRR@100 over its languages, × 100."""
  values = {}
  for language, group in cldr.GROUPS.items():
    value = 100 * results[f"test/{language}/{MEASURE}"]
    values.setdefault(group, []).append(value)
  return {group: float(np.mean(v)) for group, v in values.items()}


def gain(values: np.ndarray, baseline: np.ndarray) -> str:
  """Formats the mean difference with half its 95 % interval."""
  differences = values - baseline
  error = differences.std(ddof=1) / np.sqrt(len(differences))
  half = scipy.stats.t.ppf(0.975, len(differences) - 1) * error
  return f"{differences.mean():+.1f} ± {half:.1f}"


def table(results: dict[str, np.ndarray], groups: list[str]) -> str:
  """Renders Markdown; results are variant to [seeds, groups], × 100."""
  head = " | ".join(groups)
  lines = [f"| MRR@100 × 100 | {head} |", "|---" * (len(groups) + 1) + "|"]
  for variant, values in results.items():
    cells = []
    for column in range(len(groups)):
      cell = f"{values[:, column].mean():.1f}"
      if variant != "ir":
        cell += f" ({gain(values[:, column], results['ir'][:, column])})"
      cells.append(cell)
    lines.append(f"| `:{variant}` | {' | '.join(cells)} |")
  return "\n".join(lines)


def main():
  """Trains all runs and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--output", type=pathlib.Path, required=True)
  parser.add_argument("--seeds", type=int, default=3)
  arguments = parser.parse_args()
  runs = [(v, s) for s in range(arguments.seeds) for v in VARIANTS]
  means = {variant: [] for variant in VARIANTS}
  for variant, seed in tqdm.tqdm(runs, desc="Training runs", unit="run"):
    means[variant].append(group_means(train(variant, seed, arguments.output)))
  groups = list(means["ir"][0])
  print(
    table(
      {
        variant: np.array([[m[g] for g in groups] for m in seeds])
        for variant, seeds in means.items()
      },
      groups,
    )
  )


if __name__ == "__main__":
  main()
