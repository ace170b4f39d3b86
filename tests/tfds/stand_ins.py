"""Writes small stand-ins of the public files, laid out as they are released."""

import gzip
import io
import json
import pathlib
import tarfile

import source_files

WORDS = ("river", "cloud", "stone", "garden", "light", "forest")


def jsonl(values) -> str:
  return "".join(f"{json.dumps(value)}\n" for value in values)


def mr_tydi() -> dict[str, str | bytes]:
  """The files of Swahili: a bad passage, a query that has no judgement."""
  docs = [
    {"id": f"{n}#0", "contents": f"{word.title()}\n\nIt is a {word}."}
    for n, word in enumerate(WORDS)
  ]
  files = {
    "collection/docs.jsonl.gz": jsonl([*docs, {"id": "9#9", "contents": " "}])
  }
  rows = {"train": (0, 1), "dev": (2,), "test": (3,)}
  for split, numbers in rows.items():
    files[f"topic.{split}.tsv"] = "".join(
      f"{n}\twhere is {split} {n}?\n" for n in (*numbers, 10 + numbers[0])
    )
    files[f"qrels.{split}.txt"] = "".join(
      f"{n} Q0 {n}#0 1\n{n} Q0 {n + 1}#0 1\n" for n in numbers
    )
  return files


def tar(files: dict[str, str | bytes], top: str) -> bytes:
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
    for name, content in files.items():
      content = packed(name, content)
      member = tarfile.TarInfo(f"{top}/{name}")
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return buffer.getvalue()


def packed(name: str, content: str | bytes) -> bytes:
  content = content if isinstance(content, bytes) else content.encode()
  return gzip.compress(content) if name.endswith(".gz") else content


def miracl_docs() -> str:
  return jsonl(
    {"docid": f"{n}#{n}", "title": word.title(), "text": f"The {word} is."}
    for n, word in enumerate(WORDS)
  )


def miracl(split: str) -> dict[str, str]:
  """The topics and judgements of a split: one is of 0."""
  return {
    "topics": f"{split}1\twhat is {split}?\n",
    "qrels": f"{split}1\tQ0\t0#0\t0\n{split}1\tQ0\t1#1\t1\n",
  }


def xquad_r() -> str:
  context = "Fire is hot. Snow is cold."
  questions = [
    {"id": f"q{n}", "question": question,
     "answers": [{"answer_start": start, "text": ""}]}
    for n, (question, start) in enumerate(
      [("What is hot?", 0), ("What is cold?", 13)]
    )
  ]  # fmt: skip
  paragraph = {
    "context": context,
    "sentence_breaks": [[0, 12], [13, 26]],
    "qas": questions,
  }
  return json.dumps({"data": [{"title": "A", "paragraphs": [paragraph]}]})


def wikimatrix() -> str:
  rows = [f"1.2{n}\tA {w} here.\tNi {w} hapa." for n, w in enumerate(WORDS)]
  rows += ["1.04\tJust near.\tKaribu tu.", "1.03\tToo far.\tMbali."]
  return "\n".join([*rows, "not a row", ""])


def dpr(split: str) -> str:
  return json.dumps(
    [
      {
        "dataset": f"nq_{split}",
        "question": f"where is {word} of {split}",
        "answers": [word, f"a {word}"],
        "positive_ctxs": [
          {"title": word, "text": f"It is {word}.", "score": 1000,
           "title_score": 1, "passage_id": str(n)}
        ],
        "negative_ctxs": [{"title": "", "text": "Any.", "passage_id": "90"}],
        "hard_negative_ctxs": [
          {"title": "No", "text": f"Not {word} {k}.", "score": 1.5,
           "title_score": 0, "psg_id": k}
          for k in range(n)
        ],
      }
      for n, word in enumerate(WORDS[: 3 if split == "train" else 2])
    ]
  )  # fmt: skip


def write_downloads(folder: pathlib.Path) -> None:
  """Writes the files as `mlir-jax download` puts them."""
  name = "mrtydi-v1.1-swahili"
  path = folder / f"mrtydi/{name}.tar.gz"
  path.parent.mkdir(parents=True)
  path.write_bytes(tar(mr_tydi(), name))  # It is packed already.
  for language, splits in (("sw", ("train", "dev")), ("yo", ("dev",))):
    name = f"miracl-v1.0-{language}"
    for split in splits:
      for kind, text in miracl(split).items():
        source_files.write(folder / f"miracl/{kind}.{name}-{split}.tsv", text)
    source_files.write(
      folder / f"miracl/miracl-corpus-v1.0-{language}/docs-0.jsonl.gz",
      miracl_docs(),
    )
  source_files.write(folder / "xquadr/de.json", xquad_r())
  for pair in ("en-sw", "de-sw"):
    source_files.write(
      folder / f"wikimatrix/WikiMatrix.{pair}.tsv.gz", wikimatrix()
    )
  for split in ("train", "dev"):
    source_files.write(
      folder / f"dpr_nq/biencoder-nq-{split}.json.gz", dpr(split)
    )


def write_released(folder: pathlib.Path) -> None:
  """Writes the files as a user has them, for the collection `folder`."""
  for name, content in mr_tydi().items():
    source_files.write(folder / "mr_tydi/mrtydi-v1.1-swahili" / name, content)
  name = "miracl-v1.0-sw"
  for split in ("train", "dev"):
    for kind, text in miracl(split).items():
      source_files.write(
        folder / f"miracl/{name}/{kind}/{kind}.{name}-{split}.tsv", text
      )
  source_files.write(
    folder / "miracl/miracl-corpus-v1.0-sw/docs-0.jsonl.gz", miracl_docs()
  )
  source_files.write(
    folder / "wikimatrix/parallel/WikiMatrix.en-sw.tsv.gz", wikimatrix()
  )
  source_files.write(
    folder / "dpr_nq/ir/biencoder-nq-train.json.gz", dpr("train")
  )
