"""Names of measures, and their values for each query of a TREC run.

A measure is named as in ir-measures (nDCG@20, AP, RR@10, "P(rel=2)@5") or as in
papers (mrr@10, recall@100, map); capital letters do not matter. In results its
name is in small letters: "ndcg@20", "mrr@10", "r@100", "ap".
"""

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import ir_measures

from mlir_jax.retrieval import runs

# Query id to the name of a measure to its value.
Values = Mapping[str, Mapping[str, float]]

_FORM = re.compile(r"([^\W\d][\w-]*?)(\(.*\))?(@[0-9]{1,7})?")
# ir-measures knows MRR, MAP, Recall and Precision itself.
_PAPERS = {"hit": "Success", "hits": "Success", "acc": "Success"}


class Measure(NamedTuple):
  """A measure.

  Attributes:
    name: In results, "mrr@100".
    title: In tables, "MRR@100".
    cutoff: The number of passages that it looks at; 0 for all.
    measure: What computes it.
  """

  name: str
  title: str
  cutoff: int
  measure: ir_measures.Measure


def parse(text: str, field: str = "measure") -> Measure:
  """Returns the measure of a name.

  Args:
    text: The name, see above.
    field: The flag or field, for messages.

  Raises:
    ValueError: if there is no such measure, it has no mean, or a package that
      computes it is missing.
  """
  match = _FORM.fullmatch(text.strip())
  known = {
    name.lower(): made for name, made in ir_measures.measures.registry.items()
  }
  name = match[1].lower() if match else ""
  made = known.get(_PAPERS.get(name, name).lower())
  if not (match and made):
    raise ValueError(
      f"{field}: there is no measure {text!r}; give a name of ir-measures, such"
      " as nDCG@20, AP or P@10, or mrr@10, recall@100."
    )
  try:
    settings = _settings(match[2] or "")
    if match[3]:
      settings[made.AT_PARAM] = int(match[3][1:])
    lacking = [
      name
      for name, each in made.SUPPORTED_PARAMS.items()
      if each.required and name not in settings
    ]
    if lacking:
      raise ValueError(f"it needs {', '.join(lacking)}, as in {match[1]}@10")
    measure = made(**settings)
    measure.validate_params()
    able = [
      provider
      for provider in ir_measures.DefaultPipeline.providers
      if provider.supports(measure)
    ]
  except (
    AssertionError,
    KeyError,
    SyntaxError,
    TypeError,
    ValueError,
  ) as error:
    raise ValueError(f"{field}: {text!r} is no measure: {error}.") from error
  if not able:
    raise ValueError(
      f"{field}: {text!r} cannot be computed with these settings."
    )
  if not any(provider.is_available() for provider in able):
    ways = [
      provider.install_instructions() or provider.NAME for provider in able
    ]
    raise ValueError(
      f"{field}: {text!r} needs another package: {' or '.join(ways)}."
    )
  if not isinstance(measure.aggregator(), ir_measures.MeanAgg):
    raise ValueError(
      f"{field}: {text!r} is a count and has no mean; leave it out."
    )
  title = re.sub("^RR", "MRR", repr(measure))
  name, parameters, cut = _split(title)
  return Measure(
    name.lower() + parameters + cut,
    title,
    settings.get("cutoff", 0),
    measure,
  )


def _split(title: str) -> tuple[str, str, str]:
  match = _FORM.fullmatch(title)
  assert match
  return match[1], match[2] or "", match[3] or ""


def _settings(text: str) -> dict:
  """Returns the settings of "(rel=2, judged_only=True)"."""
  if not text:
    return {}
  call = ast.parse(f"measure{text}", mode="eval").body
  if not isinstance(call, ast.Call) or call.args:
    raise ValueError("settings have names, such as (rel=2)")
  return {
    keyword.arg or "": ast.literal_eval(keyword.value)
    for keyword in call.keywords
  }


def parse_list(text: str, field: str) -> list[Measure]:
  """Returns the measures of a text with commas between names; see `parse`."""
  # A comma within parentheses separates the settings of one measure.
  parts = re.split(r",(?![^(]*\))", text)
  return [parse(part, field) for part in parts if part.strip()]


# Of every table. Models are selected, and plots drawn, with one of these.
DEFAULT = tuple(map(parse, ("mrr@100", "ndcg@10", "r@100", "success@1")))
DEPTH = max(measure.cutoff for measure in DEFAULT)


def with_default(others: Iterable[Measure]) -> tuple[Measure, ...]:
  """Returns the default measures, then the others; none is there twice."""
  return tuple({each.name: each for each in (*DEFAULT, *others)}.values())


def check_depth(chosen: Iterable[Measure], top_k: int, setting: str) -> None:
  """Refuses a search that is too shallow for a measure.

  Args:
    chosen: The measures.
    top_k: Passages that are retrieved per query.
    setting: The field or flag of `top_k`, for the message.

  Raises:
    ValueError: if a measure looks at more passages.
  """
  deepest = max(chosen, key=lambda measure: measure.cutoff)
  if top_k < deepest.cutoff:
    raise ValueError(
      f"{setting} is {top_k}; {deepest.title} needs at least {deepest.cutoff}"
      " passages per query."
    )


def per_query(
  chosen: Sequence[Measure],
  qrels: Mapping[str, Mapping[str, int]],
  run: runs.Run,
) -> dict[str, dict[str, float]]:
  """Returns the measures of each judged query of a TREC run.

  A judged query without results counts 0. A judged passage that is not in the
  corpus counts as not found. Queries without judgements are left out.

  Providers of ir-measures break ties in different ways, and trec_eval in a
  third. So each passage gets another score here, in the order of trec_eval;
  then all of them agree with it.

  Args:
    chosen: The measures.
    qrels: Query id to passage id to relevance; above 0 is relevant.
    run: Query id to passage id to score.

  Returns:
    Query id to name to value, in the order of the qrels and of the measures.
  """
  qrels = {query_id: judged for query_id, judged in qrels.items() if judged}
  found: dict[str, dict[str, float]] = {query_id: {} for query_id in qrels}
  if not qrels:
    return found
  without_ties = {
    query_id: {
      passage_id: float(-rank)
      for rank, (passage_id, _) in enumerate(runs.ranked(run[query_id]))
    }
    for query_id in qrels
    if run.get(query_id)
  }
  names = {each.measure: each.name for each in chosen}
  for value in ir_measures.iter_calc(list(names), qrels, without_ties):
    found[value.query_id][names[value.measure]] = float(value.value)
  return {  # Providers do not keep the order.
    query_id: {each.name: of_query[each.name] for each in chosen}
    for query_id, of_query in found.items()
  }


def means(chosen: Sequence[Measure], values: Values) -> dict[str, float]:
  """Returns the mean of each measure over queries; {} without queries."""
  if not values:
    return {}
  return {
    each.name: sum(of_query[each.name] for of_query in values.values())
    / len(values)
    for each in chosen
  }
