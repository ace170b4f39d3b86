"""Makes the runs, folders and files that documents name, all of them tiny."""

import gzip
import json
import pathlib
import re
import shutil

import programs
import tiny

# Of each training: a model and a batch of which CI takes a step in a second.
SETTINGS = {
  "data.collection": "folder",
  "data.root": "FOLDER",
  "data.tatoeba_root": "",
  "data.reader": "in_process",
  "data.shards": "1",
  "tokenizer.vocab_size": "200",
  "encoding.query.max_length": "16",
  "encoding.passage.max_length": "16",
  "encoding.sentence.max_length": "16",
  "model.pretrained": "",
  "model.hidden_size": "32",
  "model.num_layers": "1",
  "model.num_heads": "2",
  "model.intermediate_size": "32",
  "model.max_positions": "16",
  "batch.retrieval": "16",
  "batch.parallel": "16",
  "batch.monolingual": "16",
  "optim.warmup_steps": "0",
  "train.steps": "1",
  "train.self_check": "False",
  "eval.every": "0",
  "eval.at_start": "False",
}
# What a config has in place of these, because it leaves streams out.
OF_CONFIG = {
  "adapt": {
    "batch.retrieval": "0",
    "batch.parallel": "0",
    "batch.monolingual": "0",
    "batch.masked": "16",
  },
  "quickstart:ir": {"batch.parallel": "0", "batch.monolingual": "0"},
  "quickstart:ir_semantic": {"batch.monolingual": "0"},
}
# The run W has three checkpoints and a table before and after training.
LONGER = {
  "train.steps": "3",
  "train.checkpoint_every": "1",
  "train.keep": "3",
  "eval.every": "3",
  "eval.at_start": "True",
}


def flags(config: str, given: list[str], **changes: str) -> list[str]:
  """Returns the flags with which a config trains in a second.

  Args:
    config: Its name.
    given: Flags that are given already, and stay.
    **changes: Fields that differ from `SETTINGS`, with "__" for ".".
  """
  changed = {name.replace("__", "."): value for name, value in changes.items()}
  fields = SETTINGS | OF_CONFIG.get(config, {}) | changed
  names = {word.partition("=")[0] for word in given}
  return [
    *given,
    *(
      f"--config.{name}={value}"
      for name, value in fields.items()
      if f"--config.{name}" not in names
    ),
  ]


def run(program: str, *arguments: str) -> None:
  """Runs a program; raises AssertionError with what it says if it refuses."""
  with programs.quiet() as printed:
    status = programs.run(program, *arguments)
  assert status == 0, printed.getvalue()[-1000:]


def fill(document: pathlib.Path) -> None:
  """Makes everything in the current folder, with the programs themselves.

  Args:
    document: docs/extending.md, whose files are written, too.
  """
  collection = tiny.write_folder(pathlib.Path("FOLDER"))
  shutil.copytree(collection, "SCORED")
  for folder in (collection, pathlib.Path("SCORED")):
    _give_hard_negatives(folder / "ir/train.json", folder.name == "SCORED")
  pathlib.Path("PAIRS").mkdir()  # For the collection of docs/extending.md.
  words = zip(tiny.WORDS, tiny.WORDS[1:], strict=False)
  rows = "".join(f"{a} {b}\t{b} {a}\n" for a, b in words)
  pathlib.Path("PAIRS/pairs.tsv").write_text(rows)
  _write_pool(collection / "eval", pathlib.Path("xquadr/eval"))
  longer = {name.replace(".", "__"): value for name, value in LONGER.items()}
  for config, folder in (("quickstart", "W"), ("quickstart:ir", "W1")):
    given = [f"--config={config}", f"--workdir={folder}"]
    run("train", *flags(config, given, **longer))
  _copy("W", "W2", "W3", "B", "ADAPTED", "runs/quickstart", "runs/all-1")
  _copy("W1", "runs/ir", "runs/ir-1")
  run("export", "--workdir=W", "--checkpoint=best", "--output=MODEL")
  _copy("MODEL", "A", "BACKBONE", "exported")
  english = collection / "eval/en"
  with gzip.open(english / "collection/docs.jsonl.gz") as file:
    pathlib.Path("docs.jsonl").write_bytes(file.read())
  shutil.copy(english / "topic.test.tsv", "topics.tsv")
  for name in ("texts.txt", "questions.txt"):
    pathlib.Path(name).write_text("river stone\napple\n")
  run("encode", "--model=W", "--role=passage", "--output=INDEX", "docs.jsonl")
  _copy("INDEX", "runs/index")
  run("export", "--index=INDEX", "--layout=faiss", "--output=FAISS")
  run(
    *("evaluate", "--model=e5=MODEL", "--model=mine=W", "--hybrid"),
    *("--root=FOLDER", "--output=RESULTS"),
  )
  for name, column in (("a", "e5"), ("b", "mine")):
    shutil.copy(f"RESULTS/{column}/test.de.trec", f"{name}.trec")
  shutil.copy(collection / "eval/de/qrels.test.txt", "qrels.test.txt")
  _write_user_code(document)


def _copy(source: str, *names: str) -> None:
  for name in names:
    shutil.copytree(source, name)


def _give_hard_negatives(path: pathlib.Path, scored: bool) -> None:
  """Gives each question seven hard negatives, and perhaps passages scores."""
  pairs = json.loads(path.read_text())
  texts = [pair["positive_ctxs"][0]["text"] for pair in pairs]
  path.unlink()
  with path.with_suffix(".jsonl").open("w") as file:
    for number, pair in enumerate(pairs):
      record = {
        "query": pair["question"],
        "pos": [texts[number]],
        "neg": [texts[(number + k) % len(texts)] for k in range(1, 8)],
      }
      if scored:
        record["pos_scores"] = [1.0]
        record["neg_scores"] = [k / 10 for k in range(7)]
      file.write(f"{json.dumps(record)}\n")


def _write_pool(source: pathlib.Path, target: pathlib.Path) -> None:
  """Copies tests; a passage gets an id of its own in each language."""
  shutil.copytree(source, target)
  for docs in target.glob("*/collection/docs.jsonl.gz"):
    ours = rf"\1-{docs.parts[-3]}"
    with gzip.open(docs, "rt", encoding="utf-8") as file:
      text = file.read()
    docs.unlink()
    docs.with_suffix("").write_text(re.sub(r'(?<=")(d\d+)(?=")', ours, text))
    for qrels in docs.parents[1].glob("qrels.*"):
      qrels.write_text(re.sub(r"\b(d\d+)\b", ours, qrels.read_text()))


def _write_user_code(document: pathlib.Path) -> None:
  folder = pathlib.Path("my_project")
  folder.mkdir()
  (folder / "__init__.py").touch()
  for name, content in re.findall(
    r"`my_project/(\w+\.py)`:\n\n```python\n(.*?)```",
    document.read_text(encoding="utf-8"),
    re.DOTALL,
  ):
    (folder / name).write_text(content, encoding="utf-8")
