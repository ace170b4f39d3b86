"""Finds and runs protocols: ways to measure a model on a collection's tests.

A protocol is a function (embed, data, mesh) -> {name: value}. The config names
it in eval.protocols, and the command line with --protocol: one of `BUILT_IN`,
or the user's own "MODULE:FUNCTION".
"""

import functools
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax.sharding import Mesh

from mlir_jax import extensions
from mlir_jax.data import languages
from mlir_jax.evals import report
from mlir_jax.evals.protocols import (
  bitext_mining,
  english_corpus,
  language_protocol,
  lareqa,
  protocol_data,
)
from mlir_jax.storage import writing

BUILT_IN: Mapping[str, protocol_data.Protocol] = {
  "lareqa": lareqa.sentences,
  "lareqa_paragraph": lareqa.with_paragraphs,
  "clir": english_corpus.evaluate,
  "mining": bitext_mining.evaluate,
  "languages": language_protocol.evaluate,
}
MAP = "map"  # The name of a value that is a map of embeddings.
_ROW = re.compile(rf"([a-z0-9_]+)/({languages.PATTERN})/(.+)")


class Outcome(NamedTuple):
  """What protocols have found.

  Attributes:
    results: Name to number, for the table. "lareqa-mono/de/map" has a place in
      the row of a language; "lareqa/mono/map" is below, in no mean.
    diagnostics: Name to any value that JSON has: all that is in no row of a
      language.
    map: A map of embeddings, see `embedding_map.make`; None without one.
  """

  results: dict[str, float]
  diagnostics: dict[str, Any]
  map: dict[str, Any] | None

  def write(self, folder: str) -> None:
    """Writes diagnostics.json and map.json, if there is something in them."""
    for name, value in (("diagnostics", self.diagnostics), ("map", self.map)):
      if value:
        writing.write_aside(
          os.path.join(folder, f"{name}.json"),
          json.dumps(value, ensure_ascii=False, indent=1) + "\n",
        )


def find(
  named: Mapping[str, str], prefix: str, taken: Mapping[str, Any]
) -> dict[str, protocol_data.Protocol]:
  """Finds the protocols that a config or a command line names.

  Args:
    named: The name in results to one of `BUILT_IN`, or to "MODULE:FUNCTION".
    prefix: The text before a name in messages, such as "eval.protocols.".
    taken: Has the names of evaluators, which are not those of protocols.

  Raises:
    ValueError: if a name is taken, or a protocol does not exist or is not a
      function.
  """
  found = {}
  for name, target in named.items():
    field = f"{prefix}{name}"
    if not report.may_name(name) or name in taken:
      raise ValueError(
        f"{field}: give another name, of the letters a to z, digits and"
        f" underscores; {', '.join([*report.TAKEN, *taken])} have a meaning"
        " already."
      )
    if target in BUILT_IN:
      function = BUILT_IN[target]
    elif extensions.is_target(target):
      function = extensions.load(target, field)
    else:
      raise ValueError(
        f"{field} is {target!r}; it must be one of {', '.join(BUILT_IN)}, or"
        " MODULE:FUNCTION."
      )
    if not callable(function):
      raise ValueError(f"{field} is {target!r}, which is not a function.")
    found[name] = functools.partial(_checked, f"{field} ({target})", function)
  return found


def run(
  protocols: Mapping[str, protocol_data.Protocol],
  embed: protocol_data.Embed,
  data: protocol_data.Data,
  mesh: Mesh,
) -> Outcome:
  """Runs protocols, which share the vectors of texts.

  A value by the name POOL/LANGUAGE/MEASURE, such as "mono/de/map", is a result
  of a language: NAME-POOL/LANGUAGE/MEASURE, with the protocol's NAME. Another
  number is the result NAME/…. Lists and other values are diagnostics only.

  Args:
    protocols: By name, from `find`.
    embed: `embed(role, texts, titles=None)`, float32 [n, D] of n texts.
    data: The tests.
    mesh: Its axis "data" splits what is searched.
  """
  outcome = Outcome({}, {}, None)
  remembering = remember(embed)
  for name, protocol in protocols.items():
    for key, value in protocol(remembering, data, mesh).items():
      number = type(value) in (int, float)
      if number and not math.isfinite(value):
        continue  # There is nothing to measure.
      if key == MAP and not number:
        outcome = outcome._replace(map=value)
      elif number and _ROW.fullmatch(key):
        outcome.results[f"{name}-{key}"] = float(value)
      else:
        outcome.diagnostics[f"{name}/{key}"] = value
        if number:
          outcome.results[f"{name}/{key}"] = float(value)
  return outcome


def remember(embed: protocol_data.Embed) -> protocol_data.Embed:
  """Returns `embed` that keeps the vectors of each list of texts."""
  kept = {}

  def remembering(role, texts, titles=None):
    titled = tuple(titles) if titles is not None and any(titles) else None
    key = role, tuple(texts), titled
    if key not in kept:
      kept[key] = embed(role, texts, titles)
    return kept[key]

  return remembering


def _checked(
  where: str,
  function: Callable[..., Any],
  embed: protocol_data.Embed,
  data: protocol_data.Data,
  mesh: Mesh,
) -> dict[str, Any]:
  """Calls a protocol and checks its result.

  Args:
    where: The protocol's field and target, for errors.
    function: The protocol.
    embed: See `run`.
    data: See `run`.
    mesh: See `run`.

  Raises:
    ValueError: if the data do not fit the protocol, or the result is not a
      mapping of names to values.
  """
  try:
    found = function(embed, data, mesh)
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from error
  if not isinstance(found, Mapping) or not all(
    isinstance(name, str) and name for name in found
  ):
    raise ValueError(
      f"{where} returns {found!r:.100}; it must return values by name, such as"
      " {'mono/de/map': 0.5}."
    )
  checked = {}
  for name, value in found.items():
    if not isinstance(value, list | dict | str):
      try:
        value = float(value)
      except (TypeError, ValueError):
        raise ValueError(
          f"{where} returns {name!r}: {value!r:.100}; it must be a number, a"
          " list or a dictionary."
        ) from None
    checked[name] = value
  return checked
