"""Makes a collection from XQuAD-R (LAReQA, Roy et al. 2020).

Its files are SQuAD's JSON, in which each paragraph also has the places of its
sentences. A question's answer is the sentence in which the answer begins. With
the variant "paragraphs", it is the whole paragraph.

LAReQA also searches the sentences of all languages at once: pool/ has the
judgements for that. The field `paragraph` of a passage names the paragraph of a
sentence.
"""

import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from mlir_jax.corpora import corpus, damage, downloads, layout
from mlir_jax.data import records
from mlir_jax.storage import reading

LANGUAGES = (
  *("ar", "de", "el", "en", "es", "hi", "ru", "th", "tr", "vi", "zh"),
)
SENTENCES = ""
PARAGRAPHS = "paragraphs"
PATH = "google-research-datasets/lareqa/master/xquad-r"

_POOL = """\
The judgements over the passages of all languages (LAReQA). A passage that
answers a question is relevant, in whatever language it is.

  passages    eval/*/collection/docs.jsonl.gz; an id ends in its language
  queries     eval/XX/topic.test.tsv.gz; a question has one id in all languages
  judgements  qrels.txt.gz

LAReQA reports the mean average precision over the questions of all languages.
"""


class _Test(NamedTuple):
  """The test of a language."""

  passages: list[records.Passage]
  paragraphs: dict[str, str]  # Passage id to its paragraph's id.
  queries: list[layout.Query]


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
    layout.write_test(
      folder,
      language,
      test.passages,
      {"test": test.queries},
      test.paragraphs if request.variant == SENTENCES else None,
    )
    for query in test.queries:
      judged.setdefault(query.query_id, []).extend(query.relevant)
    notes.append(
      f"eval/{language}: {len(test.passages):,} passages,"
      f" {len(test.queries):,} test queries"
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


def read(path: pathlib.Path, language: str, variant: str) -> _Test:
  """Reads a file of XQuAD-R.

  Args:
    path: The file.
    language: Its language.
    variant: `SENTENCES` or `PARAGRAPHS`.

  Raises:
    UnreadableError: if it is not XQuAD-R's JSON; it names the paragraph.
  """
  test = _Test([], {}, [])
  for _, (number, index), paragraph in read_paragraphs(path):
    try:
      _add(test, paragraph, f"a{number:02d}p{index}", language, variant)
    except (KeyError, IndexError, TypeError, ValueError) as error:
      raise _unreadable(
        path,
        f"data[{number}].paragraphs[{index}] is not as in XQuAD-R"
        f" ({type(error).__name__}: {error})",
      ) from error
  return test


def read_paragraphs(
  path: pathlib.Path,
) -> Iterator[tuple[str, tuple[int, int], dict[str, Any]]]:
  """Reads a file in the form of SQuAD.

  Yields:
    The title of an article, the numbers of the article and of the paragraph,
    and the paragraph, which has its text in "context".

  Raises:
    UnreadableError: if the file has another form; it names the place.
  """
  articles = reading.read_json(path, mend=damage.MEND).get("data")
  if not isinstance(articles, list):
    raise _unreadable(path, "data is not a list")
  for number, article in enumerate(articles):
    try:
      title, paragraphs = article.get("title", ""), article["paragraphs"]
      contexts = [paragraph["context"] for paragraph in paragraphs]
      is_right = all(isinstance(each, str) for each in (title, *contexts))
    except (KeyError, TypeError, AttributeError):
      is_right = False
    if not is_right:
      raise _unreadable(path, f"data[{number}] has no paragraphs with context")
    for index, paragraph in enumerate(paragraphs):
      yield title, (number, index), paragraph


def _unreadable(path: pathlib.Path, problem: str) -> reading.UnreadableError:
  return reading.UnreadableError(f"{path}: {problem}. {damage.MEND}")


def _add(
  test: _Test, paragraph: Any, name: str, language: str, variant: str
) -> None:
  """Adds the passages and the queries of a paragraph to a test.

  Args:
    test: What was read before.
    paragraph: From the file.
    name: The paragraph's id, without the language.
    language: The file's language.
    variant: As in `read`.
  """
  context = paragraph["context"]
  paragraph_id = f"{name}.{language}"
  if variant == PARAGRAPHS:
    spans = [(0, len(context))]
    ids = [paragraph_id]
  else:
    spans = [(start, end) for start, end in paragraph["sentence_breaks"]]
    ids = [f"{name}s{index}.{language}" for index in range(len(spans))]
  for (start, end), passage_id in zip(spans, ids, strict=True):
    text = _clean(context[start:end])
    test.passages.append(records.Passage(text, "", passage_id))
    test.paragraphs[passage_id] = paragraph_id
  for question in paragraph["qas"]:
    place = question["answers"][0]["answer_start"]
    found = [
      passage_id
      for (start, end), passage_id in zip(spans, ids, strict=True)
      if start <= place < end
    ]
    if len(found) != 1:
      raise ValueError(f"the answer of {question['id']} is in no sentence")
    test.queries.append(
      layout.Query(question["id"], _clean(question["question"]), tuple(found))
    )


def _clean(text: str) -> str:
  """Returns a text in one line, without a byte order mark."""
  return layout.one_line(text.replace("\ufeff", ""))
