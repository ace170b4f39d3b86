"""Files of text sources, for the tests of their readers."""

import gzip
import json

from mlir_jax.data import records
from mlir_jax.data.collections import folder
from mlir_jax.data.sources.pairs import reading

DPR_RECORD = {
  "question": "what is a package?",
  "answers": [],
  "positive_ctxs": [{"title": "dpkg", "text": "An archive.", "psg_id": "7"}],
  "negative_ctxs": [{"title": "", "text": "Random.", "passage_id": "1"}],
  "hard_negative_ctxs": [
    {"title": "apt", "text": "A tool.", "passage_id": 9},
    {"title": None, "text": " No id. "},
  ],
}

DOCS = [
  {"id": "d1", "contents": "Title\n\nText.\n\nMore text."},
  {"id": "d2", "contents": "Text alone,\non two lines."},
  {"id": 3, "contents": "\n\nNo title."},
  {"id": "d4", "contents": "Title alone\n\n"},
]
TOPICS = "q1\tfirst?\nq2\tsecond?\n"
QRELS = "q1 Q0 d1 1\nq1\tQ0\td2\t0\nq2 0 3 2\n"


def dpr_record(**fields):
  """Returns `DPR_RECORD` with other fields."""
  return {**DPR_RECORD, **fields}


def strict():
  return records.BadRecords("error")


def skipping():
  return records.BadRecords("skip")


def write(path, content):
  """Writes text or bytes, gzipped if the name says so; returns the path."""
  data = content if isinstance(content, bytes) else content.encode()
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
  return path


def write_test(root, docs=DOCS, topics=TOPICS, qrels=QRELS):
  """Writes a German test in Mr. TyDi's layout; returns its folder."""
  path = root / "eval/de"
  content = docs
  if not isinstance(docs, str):
    content = "".join(json.dumps(doc) + "\n" for doc in docs)
  write(path / "collection/docs.jsonl.gz", content)
  write(path / "topic.test.tsv", topics)
  write(path / "qrels.test.txt.gz", qrels)
  return path


def read_tests(root, bad_records):
  """Returns the tests of a collection's folder."""
  return folder.load(root, bad_records, require_pairs=False).tests()


def read_pairs(path, bad_records):
  """Yields the records of a file of pairs, in the format that it has."""
  return reading.PairFile(path).read(bad_records)
