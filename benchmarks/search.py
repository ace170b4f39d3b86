"""Times exact search against Faiss's IndexFlatIP.

python benchmarks/search.py

The sides are this project's search ("ours"), Faiss, and this project's search
of codes of 8 bits ("int8"), whose results are exact, too. They have the same
vectors, queries and threads. Each side is a separate process. They take turns
after each measurement; the others wait. Building the index, compilation and
warm-up are not measured. A search goes from NumPy arrays to NumPy arrays of
scores and rows.

The vectors are random, of unit length. The passages of a document (--document
consecutive rows) share a half of their vector, so that hits are close together
as in a real corpus. Before it measures, the benchmark compares the results of
our sides with those of Faiss: the scores must be equal to 1e-5. The rows must
be the same, but for passages whose scores are that close.

Faiss comes from faiss-cpu, which this project does not need otherwise.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

# As in speed.py: all sides keep the memory that they free, in huge pages.
MALLOC = (
  "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0"
  ":glibc.malloc.trim_threshold=1099511627776"
)
ARGUMENTS = ("passages", "width", "queries", "document", "threads")
FAISS = "faiss"


def write_vectors(settings: argparse.Namespace, folder: str) -> None:
  """Writes passages.npy and queries.npy, float32 of unit length."""
  rng = np.random.default_rng(0)
  most = max(settings.queries)
  passages = np.lib.format.open_memmap(
    f"{folder}/passages.npy",
    "w+",
    np.float32,
    (settings.passages, settings.width),
  )
  step = 1000 * settings.document
  for start in range(0, settings.passages, step):
    rows = min(step, settings.passages - start)
    documents = rng.standard_normal(
      (-(-rows // settings.document), settings.width), np.float32
    )
    part = rng.standard_normal((rows, settings.width), np.float32)
    if settings.document > 1:
      part += np.repeat(documents, settings.document, axis=0)[:rows]
    passages[start : start + rows] = part / np.linalg.norm(
      part, axis=1, keepdims=True
    )
  passages.flush()
  # Queries are near passages, as in a real search.
  near = passages[rng.integers(0, settings.passages, most)]
  queries = near + rng.standard_normal(near.shape, np.float32) / np.float32(
    settings.width**0.5
  )
  queries /= np.linalg.norm(queries, axis=1, keepdims=True)
  np.save(f"{folder}/queries.npy", queries)


class Ours:
  """Index.search_ranks of this project."""

  def __init__(self, folder: str, threads: int, precision: str = "float32"):
    """Builds the index."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    from mlir_jax import sharding
    from mlir_jax.command_line import allocator
    from mlir_jax.retrieval import index

    del threads  # The process may use as many cores.
    allocator.keep_freed_memory()
    passages = np.load(f"{folder}/passages.npy", mmap_mode="r")
    # Of equal scores, the higher id comes first, and so the lower row.
    ids = [f"{row:09}" for row in range(len(passages), 0, -1)]
    self._index = index.Index(
      ids, passages, sharding.make_mesh(), precision=precision
    )

  def versions(self) -> str:
    """Returns the versions of libraries."""
    import jax

    return f"{self._index.precision}: JAX {jax.__version__}"

  def note(self) -> str:
    """Says what a user should know of the searches so far."""
    if self._index.precision == "float32":
      return ""
    return (
      f"{self._index.unproved:,} queries of all calls needed a search in"
      " float32 after that of codes."
    )

  def search(self, queries: np.ndarray, k: int):
    """Returns scores and rows, [Q, k] each."""
    return self._index.search_ranks(queries, k)


class Faiss:
  """IndexFlatIP of faiss-cpu."""

  def __init__(self, folder: str, threads: int):
    """Builds the index."""
    import faiss

    faiss.omp_set_num_threads(threads)
    passages = np.load(f"{folder}/passages.npy", mmap_mode="r")
    self._index = faiss.IndexFlatIP(passages.shape[1])
    for start in range(0, len(passages), 1 << 16):
      self._index.add(np.ascontiguousarray(passages[start : start + (1 << 16)]))

  def versions(self) -> str:
    """Returns the versions of libraries."""
    import faiss

    options = faiss.get_compile_options().strip()
    return f"faiss-cpu {faiss.__version__} ({options})"

  def note(self) -> str:
    """Says what a user should know of the searches so far."""
    return ""

  def search(self, queries: np.ndarray, k: int):
    """Returns scores and rows, [Q, k] each."""
    return self._index.search(queries, k)


SIDES = {
  "ours": Ours,
  FAISS: Faiss,
  "int8": functools.partial(Ours, precision="int8"),
}


def serve(settings: argparse.Namespace) -> None:
  """Runs one side's process: answers commands, line by line."""
  answers = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)  # Output of libraries goes to stderr.
  side = SIDES[settings.side](settings.exchange, settings.threads)
  queries = np.load(f"{settings.exchange}/queries.npy")
  print(json.dumps(side.versions()), file=answers)
  for line in sys.stdin:
    command = json.loads(line)
    if not command:
      print(json.dumps(side.note()), file=answers)
      continue
    of_command = np.ascontiguousarray(queries[: command["queries"]])
    started, before = time.perf_counter(), time.process_time()
    scores, rows = side.search(of_command, command["k"])
    answer = time.perf_counter() - started, time.process_time() - before
    if command["keep"]:
      np.savez(f"{settings.exchange}/{settings.side}.npz", s=scores, r=rows)
    print(json.dumps(answer), file=answers)


class Process:
  """A side in a separate process."""

  def __init__(self, side: str, settings: argparse.Namespace, exchange: str):
    """Starts the process and waits until its index is built."""
    threads = str(settings.threads)
    self._process = subprocess.Popen(
      [
        *(sys.executable, __file__),
        *(f"--{name}={value}" for name, value in _given(settings)),
        *(f"--side={side}", f"--exchange={exchange}"),
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | {"GLIBC_TUNABLES": MALLOC, "OMP_NUM_THREADS": threads},
    )
    self.versions = self._answer()

  def _answer(self):
    assert self._process.stdout
    answer = self._process.stdout.readline()
    if not answer:
      raise SystemExit("A side has ended; its error is printed above.")
    return json.loads(answer)

  def __call__(self, queries: int, k: int, keep: bool = False):
    """Searches; returns the seconds, and the CPU seconds of all cores."""
    assert self._process.stdin
    command = {"queries": queries, "k": k, "keep": keep}
    self._process.stdin.write(json.dumps(command) + "\n")
    self._process.stdin.flush()
    return self._answer()

  def close(self) -> str:
    """Ends the process; returns its note."""
    assert self._process.stdin
    self._process.stdin.write("{}\n")
    self._process.stdin.flush()
    note = self._answer()
    self._process.stdin.close()
    self._process.wait()
    return note


def _given(settings: argparse.Namespace):
  for name in ARGUMENTS:
    value = getattr(settings, name)
    yield name, ",".join(map(str, value)) if isinstance(value, list) else value


def check(exchange: str, side: str) -> tuple[float, int]:
  """Compares the results of a side with those of Faiss.

  Returns:
    The largest difference of scores, and the number of places where the rows
    differ because of it.

  Raises:
    SystemExit: if the results differ more than float32 explains.
  """
  ours, faiss = (np.load(f"{exchange}/{each}.npz") for each in (side, FAISS))
  apart = float(np.abs(ours["s"] - faiss["s"]).max())
  if apart > 1e-5:
    raise SystemExit(f"The scores are {apart} apart.")
  for one, other in ((ours, faiss), (faiss, ours)):
    for scores, rows, theirs in zip(
      one["s"], one["r"], other["r"], strict=True
    ):
      # Only passages at the cut may be missing.
      missing = ~np.isin(rows, theirs)
      if (scores[missing] > scores[-1] + 1e-5).any():
        raise SystemExit("One side lacks a passage that the other one found.")
  return apart, int((ours["r"] != faiss["r"]).sum())


def measure(sides: dict[str, Process], queries: int, k: int, repeats: int):
  """Maps each side to [repeats, 2]: seconds, and CPU seconds of all cores."""
  found = {name: [] for name in sides}
  for _ in range(repeats):
    for name, side in sides.items():
      found[name].append(side(queries, k))
  return {name: np.array(values) for name, values in found.items()}


def row(name: str, ours: np.ndarray, faiss: np.ndarray) -> str:
  """Returns a line of the table: medians, and quartiles of the ratios."""
  cells = [name]
  for times in (ours, faiss):
    wall, cpu = 1e3 * np.median(times, axis=0)
    cells.append(f"{wall:,.0f} ms ({cpu:,.0f} of CPUs)")
  ratios = faiss / ours
  low, middle, high = np.quantile(ratios[:, 0], (0.25, 0.5, 0.75))
  cells.append(f"**{middle:.2f}** ({low:.2f} to {high:.2f})")
  cells.append(f"{np.median(ratios[:, 1]):.2f}")
  return f"| {' | '.join(cells)} |"


def product(settings: argparse.Namespace, exchange: str) -> None:
  """Prints how long the products alone take in NumPy, at best."""
  passages = np.load(f"{exchange}/passages.npy", mmap_mode="r")
  queries = np.load(f"{exchange}/queries.npy")
  part = np.ascontiguousarray(passages[: 1 << 16])
  scale = settings.passages / len(part)
  for count in settings.queries:
    few, seconds = queries[:count], []
    for _ in range(5):
      started = time.perf_counter()
      part @ few.T
      seconds.append(time.perf_counter() - started)
    print(
      f"The product with {count:,} queries alone takes"
      f" {1e3 * scale * statistics.median(seconds):,.0f} ms in NumPy."
    )


def main():
  """Runs the benchmark, or one side of it."""

  def numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]

  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--passages", type=int, default=1_000_000)
  parser.add_argument("--width", type=int, default=384)
  parser.add_argument("--queries", type=numbers, default=[1, 100, 1000])
  parser.add_argument("--k", type=numbers, default=[100, 1000])
  parser.add_argument("--document", type=int, default=8)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--no_int8", action="store_true", help="Leave int8 out.")
  parser.add_argument("--threads", type=int, default=os.cpu_count())
  parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
  parser.add_argument("--exchange", help=argparse.SUPPRESS)
  settings = parser.parse_args()
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings.threads])
  if settings.side:
    serve(settings)
    return
  print(
    f"{platform.machine()}, Python {platform.python_version()},"
    f" {settings.threads} threads, {settings.passages:,} x {settings.width};"
    f" load before the start {os.getloadavg()[0]:.1f}",
    flush=True,
  )
  with tempfile.TemporaryDirectory() as exchange:
    write_vectors(settings, exchange)
    sides = {
      name: Process(name, settings, exchange)
      for name in SIDES
      if not (name == "int8" and settings.no_int8)
    }
    print(", ".join(side.versions for side in sides.values()))
    apart, differ, lines = 0.0, 0, []
    for queries in settings.queries:
      for k in settings.k:
        for side in sides.values():  # Compiles, and warms up.
          side(queries, k, keep=True)
        repeats = settings.repeats * (4 if queries == 1 else 1)
        times = measure(sides, queries, k, repeats)
        title = f"{queries:,} {'query' if queries == 1 else 'queries'}"
        for side in sides:
          if side == FAISS:
            continue
          found = check(exchange, side)
          apart, differ = max(apart, found[0]), differ + found[1]
          lines.append(
            row(f"{title}, k = {k:,}, {side}", times[side], times[FAISS])
          )
          print(lines[-1], file=sys.stderr, flush=True)
    for note in [side.close() for side in sides.values()]:
      if note:
        print(note)
    print(
      f"Scores are at most {apart:.1e} apart; {differ:,} places differ, where"
      " scores are equal to that."
    )
    product(settings, exchange)
  print(
    "\n| | ours | faiss | faiss / ours (quartiles) | of CPU time |\n"
    "|---|---|---|---|---|"
  )
  print("\n".join(lines))
  print(f"\nLoad at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
  main()
