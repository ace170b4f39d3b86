"""Makes a collection from XQuAD-R (LAReQA, Roy et al. 2020).

Its files are SQuAD's JSON, in which each paragraph also has the places of its
sentences. A question's answer is the sentence in which the answer begins. With
the variant "paragraphs", it is the whole paragraph.

LAReQA also searches the sentences of all languages at once: pool/ has the
judgements for that. The field `paragraph` of a passage names the paragraph of a
sentence.
"""

import pathlib
import re
from collections.abc import Iterator

from mlir_jax.corpora import corpus, damage, downloads, layout
from mlir_jax.data import records
from mlir_jax.data.sources import xquad_r
from mlir_jax.storage import reading

LANGUAGES = (
  *("ar", "de", "el", "en", "es", "hi", "ru", "th", "tr", "vi", "zh"),
)
SENTENCES = ""
PARAGRAPHS = "paragraphs"
PATH = "google-research-datasets/lareqa/master/xquad-r"
# The part of a passage's id that numbers the sentence of a paragraph.
_SENTENCE = re.compile(r"s[0-9]+(?=\.)")

_POOL = """\
The judgements over the passages of all languages (LAReQA). A passage that
answers a question is relevant, in whatever language it is.

  passages    eval/*/collection/docs.jsonl.gz; an id ends in its language
  queries     eval/XX/topic.test.tsv.gz; a question has one id in all languages
  judgements  qrels.txt.gz

LAReQA reports the mean average precision over the questions of all languages.
"""


def list_files(
  request: corpus.Request, folder: pathlib.Path
) -> Iterator[downloads.File]:
  """Yields a file of each language."""
  del folder
  for language in request.languages:
    yield file(request.base, language)


def file(base: str, language: str) -> downloads.File:
  """Returns the file of a language."""
  return downloads.File(f"{base}/{PATH}/{language}.json", f"{language}.json")


def build(
  request: corpus.Request, raw: pathlib.Path, folder: pathlib.Path
) -> list[str]:
  """Writes the collection; see `corpus.Corpus`."""
  notes, judged = [], {}
  for language in request.languages:
    test = read(raw / f"{language}.json", language, request.variant)
    passages = [
      records.Passage(_clean(passage.text), "", passage.passage_id)
      for passage in test.passages
    ]
    queries = [
      layout.Query(query_id, _clean(query), tuple(test.qrels[query_id]))
      for query_id, query in test.queries.items()
    ]
    paragraphs = None
    if request.variant == SENTENCES:
      paragraphs = {
        passage.passage_id: _SENTENCE.sub("", passage.passage_id)
        for passage in passages
      }
    layout.write_test(folder, language, passages, {"test": queries}, paragraphs)
    for query in queries:
      judged.setdefault(query.query_id, []).extend(query.relevant)
    notes.append(
      f"eval/{language}: {len(passages):,} passages, {len(queries):,} test"
      " queries"
    )
  layout.write_lines(
    folder / "pool" / "qrels.txt.gz",
    (
      f"{query_id} Q0 {passage_id} 1"
      for query_id, relevant in judged.items()
      for passage_id in relevant
    ),
  )
  (folder / "pool" / "README").write_text(_POOL, encoding="utf-8")
  return notes


def read(
  path: pathlib.Path, language: str, variant: str
) -> records.RetrievalTest:
  """Reads a file of XQuAD-R.

  Args:
    path: The file.
    language: Its language.
    variant: `SENTENCES` or `PARAGRAPHS`.

  Raises:
    UnreadableError: if it is not XQuAD-R's JSON; it names the field.
  """
  bad = records.BadRecords("skip")
  try:
    test = xquad_r.read_test(path, language, bad, variant == PARAGRAPHS)
  except records.RecordError as error:
    raise reading.UnreadableError(f"{error} {damage.MEND}") from error
  if bad.count:
    raise reading.UnreadableError(f"{bad.first[0]}. {damage.MEND}")
  return test


def read_paragraphs(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Yields the title of the article and the text of each paragraph.

  Raises:
    UnreadableError: if the file has not the form of SQuAD; it names the place.
  """
  value = reading.read_json(path, mend=damage.MEND)
  try:
    for article in value["data"]:
      for paragraph in article["paragraphs"]:
        yield str(article["title"]), str(paragraph["context"])
  except (KeyError, TypeError) as error:
    raise reading.UnreadableError(
      f"{path} has not the form of SQuAD: data[].paragraphs[].context"
      f" ({type(error).__name__}: {error}). {damage.MEND}"
    ) from error


def _clean(text: str) -> str:
  """Returns a text in one line, without a byte order mark."""
  return layout.one_line(text.replace("\ufeff", ""))
