"""Trains and evaluates a cell with a seed."""

import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

import ml_collections

from mlir_jax import config_checks, config_files
from mlir_jax.storage import reading, writing
from study import cells as cells_lib
from study import commands, results, texts, tokens

CONFIG = "study"
_PEER = pathlib.Path(__file__).with_name("peer.py")
# What is kept of a finished run: what `mlir-jax report` reads.
_KEPT = ("config.json", "metrics.jsonl", "results")
_BM25_PASSAGES = 1000
# Fields of the command line that masked language modelling takes, too.
_OF_EVERY_TRAINING = ("encoding.", "model.", "optim.", "train.")


@dataclasses.dataclass(frozen=True)
class Places:
  """The folders of a study.

  Attributes:
    data: All corpora.
    model: The start of most cells.
    whole: The start of the cells with more layers; None without it.
    output: Results and running cells.
  """

  data: pathlib.Path
  model: pathlib.Path
  whole: pathlib.Path | None
  output: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Job:
  """A cell with a seed."""

  cell: cells_lib.Cell
  seed: int

  @property
  def name(self) -> str:
    """The name of its files."""
    return f"{self.cell.name}-{self.seed}"


def result_file(output: pathlib.Path, job: Job) -> pathlib.Path:
  """Returns the file of the finished job."""
  return output / "results" / f"{job.name}.json"


def check(places: Places) -> None:
  """Refuses folders that lack a corpus or a model.

  Raises:
    ValueError: naming the flag.
  """
  texts.check(places.data)
  for flag, model in (("model", places.model), ("whole", places.whole)):
    if model and not (model / "config.json").is_file():
      raise ValueError(
        f"--{flag}={model} is not the folder of a model: benchmarks/study/"
        "start.py makes one."
      )


def read_finished(
  output: pathlib.Path, job: Job, extra: Mapping[str, Any]
) -> dict[str, Any] | None:
  """Returns the record of a finished job; None if it is not finished.

  Raises:
    ValueError: if it was made with other settings.
  """
  path = result_file(output, job)
  if not path.exists():
    return None
  record = reading.read_json(path)
  if changed := results.differences(record, results.settings(job.cell, extra)):
    raise ValueError(
      f"{path} was made with other settings ({', '.join(changed)}): delete it,"
      " or give another --output."
    )
  return record


def config_of(
  cell: cells_lib.Cell, extra: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """Returns the config of a cell's training.

  Args:
    cell: The cell.
    extra: Fields that the command line sets for all cells.

  Raises:
    ValueError: if a field does not exist, or cannot have this value.
  """
  config = config_files.load(CONFIG)
  try:
    config.update_from_flattened_dict({**cell.overrides, **extra})
  except (AttributeError, KeyError, TypeError) as error:
    raise ValueError(f"--config: {config_files.one_line(error)}") from error
  config_checks.check(config)
  return config


def run(job: Job, places: Places, extra: Mapping[str, Any]) -> dict[str, Any]:
  """Runs a job, or goes on with it, and writes its record.

  Args:
    job: The job.
    places: The folders.
    extra: Fields of the config that the command line sets for all cells.

  Returns:
    The record.

  Raises:
    ValueError: if the data or the models lack something.
    CommandError: if a command fails.
    StoppedError: if a signal came; a training has saved its state.
  """
  cell, folder = job.cell, places.output / "runs" / job.name
  resumed = folder.is_dir()
  pairs = texts.write(cell, places.data, job.seed, folder / "data")
  config = config_of(cell, extra)
  has_model = cell.recipe != cells_lib.BM25
  model = find_start(job, places, extra) if has_model else None
  began = time.monotonic()
  if model and cell.recipe:
    _train_peer(job, folder, model, config)
  elif model:
    train(job, folder, model, extra)
  trained = time.monotonic()
  tables = _evaluate_all(cell, places.data, folder, config.train.steps)
  seconds = {
    "train": round(trained - began),
    "evaluate": round(time.monotonic() - trained),
  }
  steps = steps_of(cell, config)
  record = {
    "cell": cell.name,
    "seed": job.seed,
    "settings": results.settings(cell, extra),
    "start": describe_start(model) if model else None,
    "pairs": pairs,
    "steps": steps,
    "tokens": count_tokens(cell, config, folder / "data", model, steps),
    # A job that went on has no time of its own.
    "seconds": None if resumed else seconds,
    "results": results.of_tables(*tables),
  }
  writing.write_aside(
    str(result_file(places.output, job)),
    json.dumps(record, indent=1, sort_keys=True) + "\n",
  )
  clean(folder)
  return record


def train(
  job: Job,
  folder: pathlib.Path,
  model: pathlib.Path,
  extra: Mapping[str, Any],
) -> None:
  """Trains with this library, in FOLDER/run."""
  fields = {
    **job.cell.overrides,
    **extra,
    "seed": job.seed,
    "data.root": folder / "data",
    "model.pretrained": model,
    "train.compilation_cache": folder.parent.parent / "compiled",
  }
  commands.python(
    [
      *("-m", "mlir_jax.train", f"--config={CONFIG}"),
      f"--workdir={folder / 'run'}",
      *(f"--config.{name}={value}" for name, value in fields.items()),
    ],
    folder / "log.txt",
  )


def _train_peer(job, folder, model, config):
  """Trains with sentence-transformers, into FOLDER/model."""
  output = folder / "model"
  if output.is_dir():
    return
  settings = {
    "recipe": job.cell.recipe,
    "model": str(model.absolute()),
    "folder": str(folder / "data"),
    "output": str(folder / "model.unfinished"),
    "seed": job.seed,
    "steps": config.train.steps,
    "retrieval": config.batch.retrieval,
    "parallel": config.batch.parallel,
    "temperature": config.loss.ir.temperature,
    "learning_rate": config.optim.learning_rate,
    "warmup_steps": config.optim.warmup_steps,
    "weight_decay": config.optim.weight_decay,
    "clip_norm": config.optim.clip_norm,
    "max_length": config.encoding.passage.max_length,
    "prefixes": {
      role: config.encoding[role].prefix
      for role in ("query", "passage", "sentence")
    },
  }
  path = folder / "peer.json"
  writing.write_aside(str(path), json.dumps(settings, indent=1) + "\n")
  commands.python([_PEER, path], folder / "log.txt")
  pathlib.Path(settings["output"]).rename(output)


def _evaluate_all(cell, data, folder, steps):
  """Returns the results on NQ and on XQuAD-R."""
  nq, xquadr = data / texts.QUESTIONS, data / texts.TESTS
  if cell.recipe == cells_lib.BM25:
    flags = ("--bm25", "--measures=AP", f"--top_k={_BM25_PASSAGES}")
    return [_evaluate(root, folder, "bm25", *flags) for root in (nq, xquadr)]
  protocol = "--protocol=lareqa"
  if cell.recipe:
    model = f"--model=peer={folder / 'model'}"
    return [
      _evaluate(nq, folder, "peer", model),
      _evaluate(xquadr, folder, "peer", model, protocol),
    ]
  workdir, column = folder / "run", f"step-{steps}"
  run_flags = (f"--workdir={workdir}", "--checkpoint=last")
  return [
    # Training has measured NQ in its table.
    reading.read_json(workdir / "results" / f"{column}.json"),
    _evaluate(
      xquadr, folder, column, *run_flags, "--collection=folder", protocol
    ),
  ]


def _evaluate(root, folder, column, *flags):
  """Evaluates on a collection and returns the results of a column."""
  output = folder / "evaluate" / root.name
  path = output / f"{column}.json"
  if not path.exists():
    command = ["-m", "mlir_jax.evaluate", f"--root={root}"]
    commands.python(
      [*command, f"--output={output}", *flags], folder / "log.txt"
    )
  return reading.read_json(path)


def find_start(
  job: Job, places: Places, extra: Mapping[str, Any]
) -> pathlib.Path:
  """Returns the model that a job starts from; trains it if it is our own.

  Raises:
    ValueError: if there is none.
  """
  cell = job.cell
  if cell.start == "small":
    return places.model
  if cell.start == "whole":
    if places.whole is None:
      raise ValueError(
        f"The cell {cell.name!r} starts from a model of more layers: give its"
        " folder with --whole."
      )
    return places.whole
  folder = places.output / "starts" / f"mlm-{job.seed}"
  done = folder / "finished"
  if not done.exists():
    texts.write_plain(places.data, job.seed, folder / "data")
    fields = {
      **{n: v for n, v in extra.items() if n.startswith(_OF_EVERY_TRAINING)},
      "seed": job.seed,
      "data.root": folder / "data",
      "tokenizer.path": places.model,
      "train.compilation_cache": places.output / "compiled",
    }
    commands.python(
      [
        *("-m", "mlir_jax.train", f"--config={CONFIG}:mlm"),
        f"--workdir={folder / 'run'}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
      ],
      folder / "log.txt",
    )
    writing.write_aside(str(done), "")
  return folder / "run"


def describe_start(model: pathlib.Path) -> dict[str, Any]:
  """Returns the size of a model's folder, or of a run of this study."""
  path = model / "config.json"
  shape = reading.read_json(path)
  if "num_hidden_layers" in shape:
    return {
      "layers": shape["num_hidden_layers"],
      "pieces": shape["vocab_size"],
    }
  return {"layers": shape["model"]["num_layers"], "pieces": None}


def steps_of(cell: cells_lib.Cell, config: ml_collections.ConfigDict) -> int:
  """Returns the steps of a cell, those of its teacher included."""
  if not cell.trained:
    return 0
  return config.train.steps * (2 if cell.recipe == "distillation" else 1)


def count_tokens(
  cell: cells_lib.Cell,
  config: ml_collections.ConfigDict,
  data: pathlib.Path,
  model: pathlib.Path | None,
  steps: int,
) -> int:
  """Returns the tokens that the training of a cell is expected to read."""
  if not steps or model is None:
    return 0
  folder = model / "tokenizer" if (model / "tokenizer").is_dir() else model
  batch = dict(config.batch)
  share = 1
  if cell.recipe == "distillation":  # Each half has one of the two streams.
    share = 2
  return tokens.expected(
    data,
    str(folder),
    {
      role: (config.encoding[role].prefix, config.encoding[role].max_length)
      for role in ("query", "passage", "sentence")
    },
    batch,
    steps // share,
  )


def clean(folder: pathlib.Path) -> None:
  """Deletes data, models, checkpoints and TREC runs of a finished job."""
  for path in folder.iterdir():
    if path.name == "run":
      for inside in path.iterdir():
        if inside.name not in _KEPT:
          _remove(inside)
    elif path.is_dir() and path.name != "evaluate":
      _remove(path)
  for path in folder.rglob("*.trec*"):  # 50 MB each.
    path.unlink()


def _remove(path):
  shutil.rmtree(path) if path.is_dir() else path.unlink()
