"""Makes a start of the study: some layers of a model, and the pieces in use.

python benchmarks/study/start.py --model=E5 --data=DATA --layers=4 --output=OUT

E5 is the folder of multilingual-e5-small, or of another BERT with a Unigram
tokenizer (XLM-R's) and safetensors. The first layers are kept. Of the
vocabulary, the pieces stay that occur in the texts of the study: these texts
have the same tokens as before, and the table of 250,002 vectors, which would
take most of the time of a step on a CPU, becomes small. --layers=0 keeps all
layers.
"""

import argparse
import json
import pathlib
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import safetensors.numpy
import tokenizers
import tqdm

# As a script, its folder is the first place of imports, and not `benchmarks`.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from mlir_jax.data import records
from mlir_jax.data.collections import folder as folder_lib
from mlir_jax.storage import reading, writing
from study import cells, texts

_WEIGHTS = "model.safetensors"
_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"
_TOKENIZER_SETTINGS = "tokenizer_config.json"
_TABLE = re.compile(r"(?:.+\.)?embeddings\.word_embeddings\.weight")
_LAYER = re.compile(r"(?:.+\.)?encoder\.layer\.([0-9]+)\..+")
# Beside these, a folder of the hub has copies of the weights in other formats.
_COPIED = (
  *("modules.json", "sentence_bert_config.json", "special_tokens_map.json"),
  "config_sentence_transformers.json",
)
_PREFIXES = ("query: ", "passage: ")
_TOGETHER = 4096  # Texts that are tokenized at a time.


def read_texts(data: pathlib.Path) -> Iterator[str]:
  """Yields all texts that a cell of the study may read, tests included."""
  yield from _PREFIXES
  bad_records = records.BadRecords("error", "--data")
  for name in (texts.QUESTIONS, texts.TESTS):
    collection = folder_lib.load(data / name, bad_records, require_pairs=False)
    for row in collection.retrieval():
      yield row.question
      yield from (f"{each.title} {each.text}" for each in row.positives)
    for test in collection.tests():
      yield from test.queries.values()
      yield from (f"{each.title} {each.text}" for each in test.passages)
  for source, languages in (
    ("libreoffice", cells.FOUR + cells.THREE),
    ("ntrex", (*cells.FOUR, *texts.PLAIN_OF_NTREX)),
    ("tatoeba", cells.FOUR),
  ):
    for language in languages:
      for pair in texts.read_pairs(data, source, language):
        yield from pair


def used_pieces(
  tokenizer: tokenizers.Tokenizer, found: Iterable[str]
) -> set[int]:
  """Returns the ids of the tokens of texts, with the special ones."""
  used: set[int] = set()
  waiting: list[str] = []

  def count():
    for each in tokenizer.encode_batch(waiting):
      used.update(each.ids)
    waiting.clear()

  for text in found:
    waiting.append(text)
    if len(waiting) == _TOGETHER:
      count()
  count()
  return used


def cut_tokenizer(
  definition: dict[str, Any], used: set[int]
) -> tuple[dict[str, Any], list[int]]:
  """Returns a tokenizer with the used pieces alone, and their old ids.

  Args:
    definition: tokenizer.json; it is changed.
    used: Old ids. Those of special and of added tokens are kept, too.

  Raises:
    ValueError: if the tokenizer is not of the kind Unigram, or a special token
      does not keep its id.
  """
  model = definition["model"]
  if model["type"] != "Unigram":
    raise ValueError(
      f"{_TOKENIZER}: its model is {model['type']!r}; only Unigram (XLM-R, e5)"
      " can be cut."
    )
  pieces, added = model["vocab"], definition["added_tokens"]
  special = {token["id"] for token in added}
  # The table has a row for each id, also for an added one behind the pieces.
  kept = sorted(used | special | {model["unk_id"]})
  new_id = {old: new for new, old in enumerate(kept)}
  if moved := [
    token["content"]
    for token in added
    if token["id"] != new_id[token["id"]] and token["content"] != "<mask>"
  ]:
    raise ValueError(
      f"{_TOKENIZER}: {', '.join(moved)} would get another id; the special"
      " tokens must be the first ones."
    )
  model["vocab"] = [pieces[old] for old in kept if old < len(pieces)]
  model["unk_id"] = new_id[model["unk_id"]]
  for token in added:
    token["id"] = new_id[token["id"]]
  return definition, kept


def cut_weights(
  weights: dict[str, Any], kept: list[int], layers: int
) -> dict[str, Any]:
  """Returns the weights of the first layers and of the kept pieces."""
  found = {}
  for name, array in weights.items():
    layer = _LAYER.fullmatch(name)
    if layer and int(layer[1]) >= layers:
      continue
    found[name] = array[kept] if _TABLE.fullmatch(name) else array
  return found


def make(
  model: pathlib.Path, found: Iterable[str], layers: int, output: pathlib.Path
) -> str:
  """Writes the cut model; returns a line that says what it is.

  Args:
    model: The whole model's folder.
    found: The texts whose pieces are kept.
    layers: The layers to keep; 0 for all.
    output: The new folder.

  Raises:
    ValueError: if the model cannot be cut.
  """
  shape = reading.read_json(model / _CONFIG)
  there = shape["num_hidden_layers"]
  if not 0 <= layers <= there:
    raise ValueError(f"--layers={layers}: the model has {there} layers.")
  layers = layers or there
  used = used_pieces(
    tokenizers.Tokenizer.from_file(str(model / _TOKENIZER)), found
  )
  definition, kept = cut_tokenizer(reading.read_json(model / _TOKENIZER), used)
  weights = cut_weights(
    safetensors.numpy.load_file(model / _WEIGHTS), kept, layers
  )
  with writing.folder_aside(output) as new:
    for name in _COPIED:
      if (model / name).exists():
        shutil.copyfile(model / name, new / name)
    for folder in sorted(model.glob("[0-9]_*")):  # Of modules.json.
      (new / folder.name).mkdir()
      if (folder / _CONFIG).exists():
        shutil.copyfile(folder / _CONFIG, new / folder.name / _CONFIG)
    settings = reading.read_json(model / _TOKENIZER_SETTINGS)
    settings.pop("added_tokens_decoder", None)  # It has old ids.
    for name, content in (
      (_TOKENIZER_SETTINGS, settings),
      (_CONFIG, shape | {"num_hidden_layers": layers, "vocab_size": len(kept)}),
      (_TOKENIZER, definition),
    ):
      (new / name).write_text(
        json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8"
      )
    safetensors.numpy.save_file(
      weights, new / _WEIGHTS, metadata={"format": "pt"}
    )
  size = sum(array.size for array in weights.values()) / 1e6
  return (
    f"{output}: {layers} layers, {len(kept):,} pieces, {size:.1f} M parameters."
  )


def main() -> None:
  """Makes a start as the flags say."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  for name in ("--model", "--data", "--output"):
    parser.add_argument(name, type=pathlib.Path, required=True)
  parser.add_argument("--layers", type=int, default=4)
  arguments = parser.parse_args()
  texts.check(arguments.data)
  found = tqdm.tqdm(read_texts(arguments.data), "Reading texts", unit="text")
  print(make(arguments.model, found, arguments.layers, arguments.output))


if __name__ == "__main__":
  try:
    main()
  except ValueError as error:
    sys.exit(f"start: {error}")
