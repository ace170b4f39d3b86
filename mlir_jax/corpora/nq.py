"""Makes an English collection from QED's part of Natural Questions.

QED (Lamm et al. 2020) has questions that people asked a search engine, each
with a paragraph of Wikipedia. Those whose paragraph has no answer are left out.
QED's training part makes the pairs; its dev part makes the dev and the test
split, by a hash of the question. The test's distractors are paragraphs of
AfriQA's gold passages and of XQuAD. QED writes spaces around punctuation; they
are removed.
"""

import hashlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlir_jax.corpora import corpus, damage, downloads, layout, xquadr
from mlir_jax.data import records
from mlir_jax.storage import reading

_QED = "google-research-datasets/QED/master"
_AFRIQA = "masakhane-io/afriqa/main/data/gold_passages"
_AFRIQA_FILES = {
  **dict.fromkeys(
    ("bem", "hau", "ibo", "kin", "twi", "zul"), ("train", "dev", "test")
  ),
  "swa": ("test",),
  "yor": ("train", "test"),
}
_MAX_PASSAGES = 4000
_MIN_CHARACTERS = 100  # Of a distractor.


def list_files(
  request: corpus.Request, folder: pathlib.Path
) -> Iterator[downloads.File]:
  """Yields the files of QED, then those of the distractors."""
  del folder
  for split in ("train", "dev"):
    name = f"qed-{split}.jsonlines"
    yield downloads.File(f"{request.base}/{_QED}/{name}", name)
  for language, splits in _AFRIQA_FILES.items():
    for split in splits:
      name = f"gold_span_passages.afriqa.{language}.en.{split}.json"
      yield downloads.File(f"{request.base}/{_AFRIQA}/{language}/{name}", name)
  yield downloads.File(f"{request.base}/{xquadr.PATH}/en.json", "xquad.en.json")


def build(
  request: corpus.Request, raw: pathlib.Path, folder: pathlib.Path
) -> list[str]:
  """Writes the collection; see `corpus.Corpus`."""
  del request
  tested = list(_read_qed(raw / "qed-dev.jsonlines"))
  passages = {
    layout.same(passage.text): passage for _, passage in reversed(tested)
  }
  questions = {layout.same(question) for question, _ in tested}
  queries: dict[str, list[layout.Query]] = {"dev": [], "test": []}
  for question, passage in tested:
    split = ("dev", "test")[_hash(question) % 2]
    same = passages[layout.same(passage.text)]
    queries[split].append(
      layout.Query(
        f"{split}{len(queries[split])}", question, (same.passage_id,)
      )
    )

  pairs, seen = [], set()
  for question, passage in _read_qed(raw / "qed-train.jsonlines"):
    key = layout.same(question), layout.same(passage.text)
    if key[0] not in questions and key[1] not in passages and key not in seen:
      seen.add(key)
      pairs.append((question, passage))
  trained = {text for _, text in seen}
  for passage in sorted(_read_distractors(raw), key=lambda p: _hash(p.text)):
    if len(passages) >= _MAX_PASSAGES:
      break
    text = layout.same(passage.text)
    if text not in trained and len(passage.text) >= _MIN_CHARACTERS:
      passages.setdefault(text, passage)

  ordered = sorted(passages.values(), key=lambda p: p.passage_id)
  count = layout.write_pairs(folder, "nq", pairs)
  layout.write_test(folder, "en", ordered, queries)
  return [
    f"ir: {count:,} pairs",
    f"eval/en: {len(ordered):,} passages, {len(queries['dev']):,} dev queries,"
    f" {len(queries['test']):,} test queries",
  ]


def untokenize(text: str) -> str:
  """Removes the spaces that QED puts around punctuation.

  Pairs of `` and '' become ", and -- becomes a dash.
  """
  text = re.sub(r"``\s*", '"', text)
  text = re.sub(r"\s*''", '"', text)
  text = re.sub(r"(\d) -- (\d)", r"\1–\2", text).replace("--", "–")
  text = re.sub(r"\s+([,.;:!?%)\]])", r"\1", text)
  text = re.sub(r"([(\[])\s+", r"\1", text)
  text = re.sub(r"\s+(n't|'(?:s|m|d|re|ve|ll)?)(?!\w)", r"\1", text)
  return layout.one_line(re.sub(r"(\w) - (\w)", r"\1-\2", text))


def _hash(text: str) -> int:
  return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)


def _passage(title: str, text: str) -> records.Passage:
  name = layout.one_line(title).replace(" ", "_")
  digest = hashlib.sha256(text.encode()).hexdigest()[:8]
  return records.Passage(text, layout.one_line(title), f"{name}#{digest}")


def _read_lines(
  path: pathlib.Path, fields: Mapping[Any, type | tuple[type, ...]]
) -> Iterator[list]:
  """Yields the fields of each line of a file of JSON objects.

  Args:
    path: The file.
    fields: The names of the fields, and the types that they may have.
  """
  with (
    damage.naming(path),
    open(path, encoding="utf-8", newline="\n") as file,
  ):
    for number, line in enumerate(file, start=1):
      if not line.strip():
        continue
      try:
        value = json.loads(line)
        found = [value[field] for field in fields]
        if not all(map(isinstance, found, fields.values())):
          raise TypeError("a field has another type")
      except (ValueError, KeyError, TypeError) as error:
        raise reading.UnreadableError(
          f"{path}:{number} is not a record with {', '.join(fields)}"
          f" ({type(error).__name__}: {error}). {damage.MEND}"
        ) from error
      yield found


def _read_qed(path: pathlib.Path) -> Iterator[tuple[str, records.Passage]]:
  """Yields the questions whose paragraph has an answer."""
  fields = dict.fromkeys(("title_text", "question_text", "paragraph_text"), str)
  fields |= {"annotation": dict}
  for title, question, text, annotation in _read_lines(path, fields):
    if annotation.get("explanation_type") != "none":
      yield (
        layout.one_line(question),
        _passage(untokenize(title), untokenize(text)),
      )


def _read_distractors(raw: pathlib.Path) -> Iterator[records.Passage]:
  for path in sorted(raw.glob("gold_span_passages.*.json")):
    fields = dict.fromkeys(("title", "context"), (str, type(None)))
    for title, text in _read_lines(path, fields):
      if not title or not text:  # AfriQA has questions without a passage.
        continue
      yield _passage(title, layout.one_line(text))
  for title, text in xquadr.read_paragraphs(raw / "xquad.en.json"):
    yield _passage(title.replace("_", " "), layout.one_line(text))
