"""What a run shows while it trains: bar, metrics.jsonl, TensorBoard."""

import json
import math
import sys
import time
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from etils import epath

from mlir_jax import bars
from mlir_jax.hosts import multihost
from mlir_jax.storage import copies, reading, writing

METRICS_FILE = "metrics.jsonl"
EVENTS = "tensorboard"


def read_metrics(folder: str) -> list[dict[str, Any]]:
  """Reads metrics.jsonl; an incomplete last line is ignored.

  Raises:
    UnreadableError: if another line is damaged; it names the file and the line.
  """
  return reading.read_json_lines(epath.Path(folder) / METRICS_FILE, cut=True)


def _import_tensorboard() -> ModuleType:
  """Imports tensorboardX, but not torch.

  Where torch is installed, tensorboardX imports it to name one type. That
  takes seconds at each start of a run.
  """
  hides_torch = "torch" not in sys.modules
  if hides_torch:
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
  try:
    import tensorboardX
  finally:
    if hides_torch:
      del sys.modules["torch"]
  return tensorboardX


class Progress:
  """Writes each metric once, even if the run is killed and resumed.

  A line of metrics.jsonl is {"step": steps taken, "kind": "train" or "eval",
  metrics}. A run that resumes takes the steps after the checkpoint again, so
  the lines of these steps are removed first.
  """

  def __init__(
    self,
    folder: str,
    *,
    first_step: int,
    last_step: int,
    sequences_per_step: int,
    tensorboard: bool = True,
    local_dir: str = "",
  ):
    """Opens the files and draws the bar.

    Args:
      folder: The run's folder.
      first_step: Steps that were taken before this start.
      last_step: Steps of the whole run.
      sequences_per_step: Texts that a step encodes, for the rate.
      tensorboard: Whether to write TensorBoard events.
      local_dir: Where the files are written first, if the folder is on object
        storage.
    """
    self._folder = folder
    self._local = copies.local_copy(folder, local_dir)
    self._file = self._events = None
    if multihost.is_first():
      self._open(first_step, tensorboard)
    self._sequences_per_step = sequences_per_step
    self._bar = bars.bar(
      None,
      "Training",
      unit="step",
      total=last_step,
      initial=first_step,
      dynamic_ncols=True,
      mininterval=1.0,
      smoothing=0.05,
    )
    self._at, self._time = first_step, time.perf_counter()

  def _open(self, first_step: int, tensorboard: bool) -> None:
    copies.fetch(self._folder, self._local, METRICS_FILE)
    path = epath.Path(self._local) / METRICS_FILE
    kept = [r for r in read_metrics(self._local) if r["step"] <= first_step]
    writing.write_aside(
      str(path), "".join(json.dumps(record) + "\n" for record in kept)
    )
    self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
    if tensorboard:
      self._events = _import_tensorboard().SummaryWriter(
        f"{self._local}/{EVENTS}", purge_step=first_step + 1
      )

  def train(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes the metrics of the last of `step` steps."""
    now = time.perf_counter()
    rate = (step - self._at) / max(now - self._time, 1e-9)
    self._at, self._time = step, now
    speed = {
      "steps_per_second": rate,
      "sequences_per_second": rate * self._sequences_per_step,
    }
    self._write(step, "train", {**metrics, **speed})
    self._bar.set_postfix_str(
      f"loss {metrics['loss/total']:.3f},"
      f" {speed['sequences_per_second']:,.0f} sequences/s",
      refresh=False,
    )

  def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes the results of an evaluation."""
    self._write(step, "eval", metrics)
    # The rate of training does not count the time of an evaluation.
    self._at, self._time = step, time.perf_counter()

  def advance(self) -> None:
    """Moves the bar by one step."""
    self._bar.update()

  def say(self, text: str) -> None:
    """Prints a line above the bar."""
    self._bar.write(text, file=sys.stdout)
    sys.stdout.flush()

  def keep(self) -> None:
    """Copies the files to the run's folder, if it is on object storage."""
    if self._file and self._local != self._folder:
      if self._events:
        self._events.flush()
      events = (epath.Path(self._local) / EVENTS).glob("*")
      names = [METRICS_FILE, *(f"{EVENTS}/{path.name}" for path in events)]
      copies.upload(self._folder, self._local, *names)

  def close(self) -> None:
    """Copies the files to the run's folder and closes them."""
    self._bar.close()
    self.keep()
    if self._file:
      self._file.close()
    if self._events:
      self._events.close()

  def _write(self, step: int, kind: str, metrics: Mapping[str, float]) -> None:
    values = {name: float(value) for name, value in metrics.items()}
    # JSON has no NaN and no infinity, so these are written as null.
    record = {
      name: value if math.isfinite(value) else None
      for name, value in values.items()
    }
    if not self._file:
      return
    self._file.write(json.dumps({"step": step, "kind": kind, **record}) + "\n")
    self._file.flush()
    if self._events:
      for name, value in values.items():
        self._events.add_scalar(f"{kind}/{name}", value, step)
