"""Times preparing a store and reading batches, and a peer's collator.

python benchmarks/input.py --model=FOLDER --root=DEBIAN

FOLDER is a sentence-transformers folder with e5's prefixes. DEBIAN is a folder
of Debian's package descriptions (`mlir-jax download debian`).

- Preparing: the store is built by one process and by several, in turn, each
  time in a new folder: from the raw files to rows that a step can read.
- Reading: batches of three streams (questions with passages, translations,
  sentences) from the prepared store, by both readers. Nothing else runs, as if
  the step were free; so it is the rate that a host can give.
- The peer tokenizes in its collator: sentence-transformers' collator makes
  batches of the same pairs, with the same prefixes and largest lengths. It does
  this in every epoch, and we do it once.

The sides of a comparison take turns. The script prints medians and quartiles of
wall time, and medians of CPU time, which other programs disturb less.
"""

import argparse
import contextlib
import functools
import itertools
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

SIZES = ((64, 32, 32), (1024, 512, 512))
STREAMS = ("retrieval", "parallel", "monolingual")
WARM_UP = 3  # Batches that are not counted.


def load_config(settings: argparse.Namespace):
  """Returns the config `debian` for the data and model of the flags."""
  from mlir_jax import config_files

  config = config_files.load("debian")
  config.model.pretrained = settings.model
  config.data.root = settings.root
  config.data.tatoeba_root = ""
  config.data.on_bad_record = "skip"
  return config


def prepare(settings: argparse.Namespace, folder: str, workers: int):
  """Prepares the data in a folder, or opens them."""
  from mlir_jax.data import preparation
  from mlir_jax.training import checks

  config = load_config(settings)
  return preparation.prepare(
    config,
    folder,
    functools.partial(checks.check_fits, config, folder),
    processes=workers,
  )


def cpu_seconds() -> float:
  """Returns the CPU time of this process and its ended children."""
  used = (
    resource.getrusage(who)
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  )
  return sum(each.ru_utime + each.ru_stime for each in used)


def time_preparing(settings: argparse.Namespace) -> None:
  """Prints the seconds of `prepare`, as one line of JSON."""
  cpu, wall = cpu_seconds(), time.perf_counter()
  store = prepare(settings, settings.workdir, settings.workers).store
  shown = {
    "wall": time.perf_counter() - wall,
    "cpu": cpu_seconds() - cpu,
    "rows": {stream: store.rows(stream) for stream in STREAMS},
    "shards": load_config(settings).data.shards,
  }
  print(json.dumps(shown))


def describe(values: Sequence[float], digits: int = 0) -> str:
  """Returns median and quartiles."""
  if len(values) == 1:
    return f"{values[0]:,.{digits}f}"
  low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
  return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def compare_preparing(settings: argparse.Namespace, folder: str) -> float:
  """Prepares with one process and with several, in turn, and prints the times.

  Returns:
    The CPU seconds with one process.
  """
  counts = sorted({1, len(os.sched_getaffinity(0))})
  found = {count: [] for count in counts}
  for turn, count in itertools.product(range(settings.turns), counts):
    kept = not turn and count == counts[0]
    with tempfile.TemporaryDirectory() as other:
      target = folder if kept else f"{other}/w"
      command = [
        *(sys.executable, __file__, f"--model={settings.model}"),
        *(f"--root={settings.root}", f"--workdir={target}"),
        f"--workers={count}",
      ]
      done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
      found[count].append(json.loads(done.stdout.splitlines()[-1]))
  first = found[counts[0]][0]
  print(f"rows: {first['rows']}; shards: {first['shards']}\n")
  print("| processes | seconds | of CPUs | shards/s | rows/s |")
  print("|---|---|---|---|---|")
  for count in counts:
    walls = [each["wall"] for each in found[count]]
    wall, cpu = (
      statistics.median(each[kind] for each in found[count])
      for kind in ("wall", "cpu")
    )
    rows = sum(first["rows"].values())
    print(
      f"| {count} | {describe(walls, 1)} | {cpu:,.1f}"
      f" | {first['shards'] / wall:.2f} | {rows / wall:,.0f} |"
    )
  print()
  return statistics.median(each["cpu"] for each in found[counts[0]])


class Side:
  """A way to make batches: `make` makes the next one."""

  def __init__(self, make: Callable[[], object], texts: int):
    self.make = make
    self.texts = texts  # Of a batch.
    self.wall: list[float] = []
    self.cpu: list[float] = []

  def take_turn(self, batches: int) -> None:
    """Makes some batches and keeps the texts per second."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(batches):
      self.make()
    texts = batches * self.texts
    self.wall.append(texts / (time.perf_counter() - wall))
    self.cpu.append(texts / (time.process_time() - cpu))


def our_sides(
  settings: argparse.Namespace, folder: str, size: Sequence[int]
) -> dict[str, Side]:
  """Returns our readers of three streams, and of the pairs alone."""
  from mlir_jax import sharding
  from mlir_jax.batches import reader
  from mlir_jax.training import build

  with contextlib.redirect_stdout(None):  # It would be between the rows.
    prepared = prepare(settings, folder, 1)
  mesh = sharding.make_mesh()

  def read(kind: str, sizes: Mapping[str, int]):
    config = load_config(settings)
    config.batch.update(sizes)
    plans = build.make_plans(config, prepared.store, mesh).plans
    batches = reader.batches(
      kind,
      prepared.store,
      build.batch_spec(config),
      plans,
      config.seed,
      build.make_mixture(config),
      0,
      10**6,
    )
    # A pair has two texts.
    texts = sum(
      rows * (1 if stream == "monolingual" else 2)
      for stream, rows in sizes.items()
    )
    return Side(functools.partial(next, batches), texts)

  streams = dict(zip(STREAMS, size, strict=True))
  pairs = {**dict.fromkeys(STREAMS, 0), "retrieval": size[0]}
  return {
    "three streams, tf.data": read("tf_data", streams),
    "three streams, in process": read("in_process", streams),
    "pairs, in process": read("in_process", pairs),
  }


def their_side(settings: argparse.Namespace, size: int) -> Side:
  """Returns sentence-transformers' collator, over the same pairs."""
  import sentence_transformers
  from sentence_transformers.sentence_transformer import data_collator

  from mlir_jax.data import collections, records

  model = sentence_transformers.SentenceTransformer(
    settings.model, device="cpu", trust_remote_code=False
  )
  config = load_config(settings)
  collator = data_collator.SentenceTransformerDataCollator(
    model.preprocess,
    router_mapping={"anchor": "query", "positive": "document"},
    prompts={"anchor": "query: ", "positive": "passage: "},
    max_length={
      "query": config.encoding.query.max_length,
      "document": config.encoding.passage.max_length,
    },
  )
  collection = collections.load(
    "folder", settings.root, records.BadRecords("skip"), ""
  )
  pairs = [
    {
      "anchor": record.question,
      "positive": f"{record.positives[0].title} {record.positives[0].text}",
    }
    for record in collection.retrieval()
  ]
  starts = itertools.cycle(range(0, len(pairs) - size, size))

  def make():
    start = next(starts)
    return collator(pairs[start : start + size])

  return Side(make, 2 * size)


def compare_reading(
  settings: argparse.Namespace, folder: str
) -> dict[int, float]:
  """Lets the readers and the collator take turns, and prints their rates.

  Returns:
    Size of the batch to the collator's texts per second of CPU time.
  """
  collator = {}
  print("| batch | texts/s (quartiles) | texts/s of CPU |")
  print("|---|---|---|")
  for size in SIZES:
    theirs = their_side(settings, size[0])
    sides = our_sides(settings, folder, size)
    sides["pairs, sentence-transformers' collator"] = theirs
    for side in sides.values():
      for _ in range(WARM_UP):
        side.make()
    for _ in range(settings.turns):
      for side in sides.values():
        # Few of them were made before: readers prepare some ahead.
        side.take_turn(settings.batches)
    for name, side in sides.items():
      shown = size[0] if "pairs" in name else " + ".join(map(str, size))
      print(
        f"| {shown}: {name} | {describe(side.wall)}"
        f" | {statistics.median(side.cpu):,.0f} |"
      )
    collator[size[0]] = statistics.median(theirs.cpu)
  print()
  return collator


def main():
  """Runs the comparisons, or one side of one, as the flags say."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--model", required=True)
  parser.add_argument("--root", required=True)
  parser.add_argument("--turns", type=int, default=5)
  parser.add_argument("--batches", type=int, default=32)
  parser.add_argument("--workdir", help="Only prepares, in this folder.")
  parser.add_argument("--workers", type=int, default=1)
  settings = parser.parse_args()
  settings.model, settings.root = (
    str(pathlib.Path(path).resolve())
    for path in (settings.model, settings.root)
  )
  if settings.workdir:
    time_preparing(settings)
    return
  print(f"load before the start: {os.getloadavg()[0]:.1f}\n")
  with tempfile.TemporaryDirectory() as folder:
    seconds = compare_preparing(settings, f"{folder}/w")
    rates = compare_reading(settings, f"{folder}/w")
  for size, rate in rates.items():
    print(
      f"In the CPU time of one preparation ({seconds:,.1f} s), the collator"
      f" tokenizes {rate * seconds:,.0f} texts, in batches of {size}."
    )


if __name__ == "__main__":
  main()
