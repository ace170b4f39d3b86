"""A tiny collection and a config for it, for tests that run the whole road."""

import gzip
import json
import pathlib
import random

from mlir_jax import config

WORDS = [
  "apple",
  "river",
  "stone",
  "cloud",
  "garden",
  "window",
  "paper",
  "silver",
  "music",
  "winter",
  "bridge",
  "candle",
  "forest",
  "island",
  "mirror",
  "orange",
  "pepper",
  "rocket",
  "shadow",
  "ticket",
  "valley",
  "wagon",
  "yellow",
  "zebra",
  "anchor",
  "basket",
  "copper",
  "desert",
  "engine",
  "feather",
]


def german(text):
  """A made-up translation, word by word."""
  return " ".join(word[::-1] + "en" for word in text.split())


def write_folder(root: pathlib.Path, pairs: int = 120) -> pathlib.Path:
  """Writes a collection in the layout of the collection "folder"."""
  generator = random.Random(0)

  def phrase(length):
    return " ".join(generator.sample(WORDS, length))

  def write(name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
      file.write(text)

  def lines(values):
    return "".join(f"{value}\n" for value in values)

  facts = [(phrase(3), phrase(2), phrase(6)) for _ in range(pairs)]
  write(
    "ir/train.json",
    json.dumps(
      [
        {
          "question": question,
          "positive_ctxs": [
            {"title": title, "text": text, "passage_id": f"p{number}"}
          ],
          "hard_negative_ctxs": [],
        }
        for number, (question, title, text) in enumerate(facts)
      ]
    ),
  )
  english = [phrase(4) for _ in range(pairs)]
  write("parallel/made.en-de.en", lines(english))
  write("parallel/made.en-de.de", lines(german(text) for text in english))
  write("mono/made.fi.txt", lines(phrase(4)[::-1] for _ in range(pairs)))
  for language, translate in (("en", str), ("de", german)):
    folder = f"eval/{language}"
    write(
      f"{folder}/collection/docs.jsonl.gz",
      lines(
        json.dumps(
          {
            "id": f"d{number}",
            "contents": f"{translate(title)}\n\n{translate(text)}",
          }
        )
        for number, (_, title, text) in enumerate(facts)
      ),
    )
    for split in ("test", "dev") if language == "en" else ("test",):
      asked = range(20, 40) if split == "dev" else range(20)
      write(
        f"{folder}/topic.{split}.tsv",
        lines(f"q{n}\t{translate(facts[n][0])}" for n in asked),
      )
      write(
        f"{folder}/qrels.{split}.txt",
        lines(f"q{n} Q0 d{n} 1" for n in asked),
      )
  return root


def make_config(root: pathlib.Path):
  """The config of a run of a second on the tiny collection."""
  c = config.default()
  c.data.collection = "folder"
  c.data.root = str(root)
  c.data.reader = "in_process"
  c.tokenizer.vocab_size = 200
  for role in ("query", "passage", "sentence"):
    c.encoding[role].max_length = 16
  c.model.hidden_size = 32
  c.model.num_layers = 1
  c.model.num_heads = 2
  c.model.intermediate_size = 32
  c.model.max_positions = 16
  c.batch.retrieval = c.batch.parallel = c.batch.monolingual = 16
  c.batch.masked = 16
  c.loss.masked_lm.weight = 0.5
  c.optim.warmup_steps = 2
  c.train.steps = 8
  c.train.self_check = False  # It has tests of its own.
  c.train.log_every = 1
  c.train.checkpoint_every = 2
  c.eval.every = 4
  c.eval.at_start = False
  c.eval.batch_size = 64
  return c


def train_pairs_alone(c) -> None:
  """Leaves one stream and one loss: a step compiles in a third of the time."""
  c.batch.parallel = c.batch.monolingual = c.batch.masked = 0
  for name in ("semantic", "language", "masked_lm"):
    c.loss[name].weight = 0.0
