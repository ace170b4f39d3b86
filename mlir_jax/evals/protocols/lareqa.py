"""Measures search in a pool of all languages (LAReQA, Roy et al. 2020).

A question is asked in each language. Its answers in all languages are equal: a
retriever that does not prefer a language ranks all of them before other
passages. Four kinds of search show where it fails:

  mono    the passages of the question's language
  alone   the passages of one other language
  cross   all passages but the answers in the question's language
  pooled  all passages

In "cross", wrong passages in the question's language stay: a retriever that
prefers this language ranks them first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from mlir_jax.evals.protocols import pools, protocol_data
from mlir_jax.retrieval import ranks

CUT = 20  # XTREME-R (Ruder et al. 2021) reports mAP@20.


def average_precision(
  found: np.ndarray, relevant: int, cut: int | None = None
) -> float:
  """Returns the average precision, as trec_eval defines map and map_cut.

  It is the sum of i / r_i over the relevant passages, divided by their number;
  r_i is the rank of the i-th of them. A passage that is not found, or is after
  the cut, adds 0.

  Args:
    found: int [n], the ranks of relevant passages, from 1, in any order; 0 for
      one that is not found.
    relevant: The number of relevant passages. If it is 0, the result is NaN.
    cut: The last rank that counts; None for no cut.
  """
  if not relevant:
    return np.nan
  places = np.sort(found[found > 0])
  terms = np.arange(1, len(places) + 1) / places
  return float(terms[: cut and np.searchsorted(places, cut, "right")].sum()) / (
    relevant
  )


def rank_distance(found: np.ndarray) -> float:
  """Returns the worst minus the best rank of equal answers.

  Its mean over the queries is the language bias of Elmahdy et al. (2024).

  Args:
    found: int [n], the ranks of the answers; 0 for one that is not found. If
      fewer than two are found, the result is NaN.
  """
  found = found[found > 0]
  return float(np.ptp(found)) if len(found) > 1 else np.nan


def without(found: np.ndarray, removed: np.ndarray) -> np.ndarray:
  """Returns ranks after other passages have left the pool.

  Args:
    found: int [n], ranks from 1; 0 for one that is not there.
    removed: int [m], the ranks of the passages that leave.
  """
  before = (removed > 0) & (removed < found[:, None])
  return found - before.sum(axis=1)


def sentences(
  embed: protocol_data.Embed, data: protocol_data.Data, mesh: Mesh
) -> dict[str, Any]:
  """Measures search in the pool; a passage is encoded as it is.

  Args:
    embed: `embed(role, texts, titles=None)`, float32 [n, D] of n texts.
    data: Its tests make the pool; see `pools.of_tests`.
    mesh: Its axis "data" splits the passages.

  Returns:
    See `measure`.
  """
  pool = pools.of_tests(data.tests)
  return measure(embed, pool, pools.embed_passages(embed, pool.passages), mesh)


def with_paragraphs(
  embed: protocol_data.Embed, data: protocol_data.Data, mesh: Mesh
) -> dict[str, Any]:
  """Measures search in the pool; a sentence is read with its paragraph.

  The sentence is encoded as the title of its paragraph. The paragraph is the
  sentences that name it, in their order, with a space between them.

  Args:
    embed: See `sentences`.
    data: See `sentences`. All passages name their paragraph.
    mesh: See `sentences`.

  Returns:
    See `measure`.

  Raises:
    ValueError: if a passage does not name its paragraph.
  """
  pool = pools.of_tests(data.tests)
  vectors = {}
  for language, passages in pool.passages.items():
    of_paragraph: dict[str, list[str]] = {}
    for passage in passages:
      if not passage.paragraph:
        raise ValueError(
          f"Passage {passage.passage_id!r} does not name its paragraph (the"
          ' field "paragraph" of docs.jsonl), so it cannot be read with it.'
          ' The protocol "lareqa" reads the sentence alone.'
        )
      of_paragraph.setdefault(passage.paragraph, []).append(passage.text)
    joined = {name: " ".join(texts) for name, texts in of_paragraph.items()}
    vectors[language] = embed(
      "passage",
      [joined[passage.paragraph] for passage in passages],
      [passage.text for passage in passages],
    )
  return measure(embed, pool, vectors, mesh)


def measure(
  embed: protocol_data.Embed,
  pool: pools.Pool,
  vectors: Mapping[str, np.ndarray],
  mesh: Mesh,
) -> dict[str, Any]:
  """Ranks the answers of all questions and returns the measures.

  Args:
    embed: Encodes the questions.
    pool: The pool.
    vectors: Language to float32 [n, D], the vectors of its passages.
    mesh: Its axis "data" splits the passages.

  Returns:
    For the questions of each language, "mono/de/map", "mono/de/map@20" and the
    same of "cross" and "pooled"; "alone/de/map", the mean over the other
    languages; "rank_distance/de". Means over all questions have these names
    without the language. A value without a question is left out.
    "alone/matrix", [L, L], holds the mAP of the questions in a language (row)
    among the passages in a language (column), None without an answer;
    "languages" names both.
  """
  languages = pool.languages
  asked = [
    (language, name)
    for language in languages
    for name in pool.queries[language]
  ]
  queries = np.concatenate(
    [embed("query", list(pool.queries[name].values())) for name in languages]
  )

  def rank(searched: Sequence[str], what: str) -> list[np.ndarray]:
    return ranks.find(
      queries,
      [pool.answers(query_id, searched) for _, query_id in asked],
      [
        passage.passage_id
        for language in searched
        for passage in pool.passages[language]
      ],
      np.concatenate([vectors[language] for language in searched]),
      mesh,
      description=f"Ranking {what}",
    )

  of_question = _in_pool(pool, asked, rank(languages, "all passages"))
  alone = np.empty((len(asked), len(languages)))
  for column, language in enumerate(languages):
    found = rank([language], f"passages in {language}")
    alone[:, column] = [average_precision(each, len(each)) for each in found]
    mine = [
      number for number, (name, _) in enumerate(asked) if name == language
    ]
    for name, cut in (("map", None), (f"map@{CUT}", CUT)):
      values = of_question.setdefault(
        f"mono/{name}", np.full(len(asked), np.nan)
      )
      values[mine] = [
        average_precision(found[each], len(found[each]), cut) for each in mine
      ]
  return _summarize(languages, [name for name, _ in asked], of_question, alone)


def _in_pool(
  pool: pools.Pool,
  asked: Sequence[tuple[str, str]],
  found: Sequence[np.ndarray],
) -> dict[str, np.ndarray]:
  """Returns the measures of the whole pool, float [Q] by name.

  Args:
    pool: The pool.
    asked: (language, query id) of each question.
    found: For each question, the ranks of all its answers; see `Pool.answers`.
  """
  values: dict[str, list[float]] = {}
  for (language, query_id), places in zip(asked, found, strict=True):
    own = frozenset(pool.answers(query_id, (language,)))
    is_own = np.array([name in own for name in pool.answers(query_id)], bool)
    cross = without(places[~is_own], places[is_own])
    for kind, ranked in (("pooled", places), ("cross", cross)):
      for name, cut in (("map", None), (f"map@{CUT}", CUT)):
        values.setdefault(f"{kind}/{name}", []).append(
          average_precision(ranked, len(ranked), cut)
        )
    values.setdefault("rank_distance", []).append(rank_distance(places))
  return {name: np.array(each) for name, each in values.items()}


def _summarize(
  languages: Sequence[str],
  asked: Sequence[str],
  of_question: Mapping[str, np.ndarray],
  alone: np.ndarray,
) -> dict[str, Any]:
  """Returns the means of all questions and of each language; see `measure`.

  Args:
    languages: The pool's L languages.
    asked: The language of each question.
    of_question: Name to float [Q]; NaN for a question without a value.
    alone: float [Q, L], the average precision in each language alone.
  """
  rows, columns = np.array(asked), np.array(languages)
  others = [
    _mean(values[columns != language])
    for values, language in zip(alone, asked, strict=True)
  ]
  of_question = {**of_question, "alone/map": np.array(others, np.float64)}
  results: dict[str, Any] = {}
  for name, values in of_question.items():
    kind, slash, rest = name.partition("/")
    means = {name: _mean(values)}
    for language in languages:
      means[f"{kind}/{language}{slash}{rest}"] = _mean(values[rows == language])
    results |= {name: mean for name, mean in means.items() if mean is not None}
  results["alone/matrix"] = [
    [_mean(values) for values in alone[rows == language].T]
    for language in languages
  ]
  results["languages"] = list(languages)
  return results


def _mean(values: np.ndarray) -> float | None:
  """Returns the mean of the values that are not NaN; None without any."""
  values = values[~np.isnan(values)]
  return float(values.mean()) if len(values) else None
