"""Trains with sentence-transformers, as `benchmarks/study.py` asks.

python benchmarks/study/peer.py SETTINGS.json

SETTINGS.json has the model, the collection's folder, the recipe and the numbers
of the training; see `study.running`. The recipes are those of
sentence-transformers' documentation:

- "english": MultipleNegativesRankingLoss on the questions and passages.
- "pairs": each step has a batch of these and a batch of English sentences with
  their translations, with the same loss; the two losses are added.
- "distillation": a teacher is trained as "english". Then the start learns the
  teacher's vectors of English sentences, for both sides of a translation
  (MSELoss; Reimers and Gurevych 2020).
- "untrained": saves the start with prefixes and length.

Batches come from sentence-transformers' sampler without duplicates. The loop is
that of its trainer: AdamW without decay of biases and norms, a linear schedule
with warm-up, gradient clipping.
"""

import argparse
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import sentence_transformers
import torch
import tqdm
import transformers
from sentence_transformers.base import sampler as sampler_lib
from sentence_transformers.sentence_transformer import losses

from mlir_jax.data import records
from mlir_jax.data.collections import folder as folder_lib

Columns = dict[str, list[str]]  # Column to its texts.
Batches = Iterator[
  list[tuple[str, list[str]]]
]  # Of each column: prefix, texts.


def load(settings: dict[str, Any]) -> sentence_transformers.SentenceTransformer:
  """Returns the start, with the prefixes and the length of the study."""
  model = sentence_transformers.SentenceTransformer(
    settings["model"], device="cpu", trust_remote_code=False
  )
  model.max_seq_length = settings["max_length"]
  prefixes = settings["prefixes"]
  model.prompts = {"query": prefixes["query"], "document": prefixes["passage"]}
  model.default_prompt_name = None
  return model


def read(folder: pathlib.Path) -> tuple[Columns, Columns]:
  """Reads the question-passage pairs and the translations of a folder."""
  bad_records = records.BadRecords("error", "--data")
  collection = folder_lib.load(folder, bad_records)
  questions: Columns = {"query": [], "passage": []}
  for row in collection.retrieval():
    passage = row.positives[0]
    questions["query"].append(row.question)
    questions["passage"].append(f"{passage.title} {passage.text}".strip())
  pairs: Columns = {"english": [], "translation": []}
  for row in collection.parallel():
    pairs["english"].append(row.source)
    pairs["translation"].append(row.target)
  return questions, pairs


def batches(
  columns: Columns, prefixes: dict[str, str], size: int, seed: int
) -> Batches:
  """Yields batches without end; no text is twice in a batch."""
  dataset = datasets.Dataset.from_dict(columns)
  sampler = sampler_lib.NoDuplicatesBatchSampler(
    dataset,
    batch_size=size,
    drop_last=True,
    generator=torch.Generator(),
    seed=seed,
  )
  epoch = 0
  while True:
    sampler.set_epoch(epoch)
    empty = True
    for rows in sampler:
      empty = False
      yield [
        (prefixes[name], [texts[row] for row in rows])
        for name, texts in columns.items()
      ]
    if empty:
      raise ValueError(
        f"{len(next(iter(columns.values())))} pairs make no batch of {size}"
        " without duplicates."
      )
    epoch += 1


def train(
  model: sentence_transformers.SentenceTransformer,
  loss_of_step: Callable[[], torch.Tensor],
  settings: dict[str, Any],
  title: str,
) -> None:
  """Takes the steps of a training.

  Args:
    model: The model; it is changed.
    loss_of_step: Returns the loss of the next step.
    settings: The settings.
    title: Of the progress bar.
  """
  parameters = list(model.parameters())
  optimizer = torch.optim.AdamW(
    [
      {"params": [p for p in parameters if p.ndim > 1]},
      {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ],
    lr=settings["learning_rate"],
    weight_decay=settings["weight_decay"],
  )
  schedule = transformers.get_linear_schedule_with_warmup(
    optimizer, settings["warmup_steps"], settings["steps"]
  )
  model.train()
  for _ in (bar := tqdm.trange(settings["steps"], desc=title, unit="step")):
    loss = loss_of_step()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, settings["clip_norm"])
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
  model.eval()


def ranking(
  model: sentence_transformers.SentenceTransformer,
  sources: list[Batches],
  scale: float,
) -> Callable[[], torch.Tensor]:
  """Returns the sum of the ranking losses of a batch of each source."""
  loss = losses.MultipleNegativesRankingLoss(model, scale=scale)

  def of_step():
    return torch.stack(
      [loss(_features(model, next(source)), None) for source in sources]
    ).sum()

  return of_step


def distilling(
  model: sentence_transformers.SentenceTransformer,
  teacher: sentence_transformers.SentenceTransformer,
  source: Batches,
) -> Callable[[], torch.Tensor]:
  """Returns the MSE of both sides from the teacher's vector of the English."""
  loss = losses.MSELoss(model)

  def of_step():
    batch = next(source)
    prefix, english = batch[0]
    vectors = teacher.encode(
      english, prompt=prefix, convert_to_tensor=True, show_progress_bar=False
    )
    return loss(_features(model, batch), vectors.clone())

  return of_step


def _features(model, batch):
  return [model.preprocess(texts, prompt=prefix) for prefix, texts in batch]


def run(settings: dict[str, Any]) -> None:
  """Trains and saves as the settings say."""
  torch.manual_seed(settings["seed"])
  recipe, model = settings["recipe"], load(settings)
  questions, pairs = read(pathlib.Path(settings["folder"]))
  prefixes = settings["prefixes"]
  of_column = {
    "query": prefixes["query"],
    "passage": prefixes["passage"],
    "english": prefixes["sentence"],
    "translation": prefixes["sentence"],
  }
  seed, scale = settings["seed"], 1 / settings["temperature"]
  english = batches(questions, of_column, settings["retrieval"], seed)
  translated = batches(pairs, of_column, settings["parallel"], seed)
  if recipe == "english":
    train(model, ranking(model, [english], scale), settings, "English")
  elif recipe == "pairs":
    train(
      model, ranking(model, [english, translated], scale), settings, "Training"
    )
  elif recipe == "distillation":
    teacher = load(settings)
    train(teacher, ranking(teacher, [english], scale), settings, "Teacher")
    train(model, distilling(model, teacher, translated), settings, "Student")
  elif recipe != "untrained":
    raise ValueError(f"There is no recipe {recipe!r}.")
  model.save(settings["output"], create_model_card=False)


if __name__ == "__main__":
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("settings", type=pathlib.Path)
  run(json.loads(parser.parse_args().settings.read_text(encoding="utf-8")))
