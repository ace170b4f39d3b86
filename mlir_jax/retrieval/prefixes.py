"""Puts the prefixes that a caller gives in place of those of a model."""

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import huggingface_hub
import tokenizers

from mlir_jax import contract as contract_lib
from mlir_jax.models import layout, layout_files

# Role to prefix. None means that the caller does not give it; "" is a prefix.
Given = Mapping[str, str | None]


class PrefixWarning(UserWarning):
  """A model has other prefixes than those that it was trained with."""


class _Family(NamedTuple):
  """Models that need prefixes, but whose folders often do not say so.

  Attributes:
    name: For messages.
    pattern: Matches the names of its models, in lower case.
    prefixes: Role to prefix, as the authors' model cards say. A role that is
      not here has none.
  """

  name: str
  pattern: str
  prefixes: Mapping[str, str]


# The first match counts.
_FAMILIES = (
  _Family(
    "e5-instruct",
    r"\be5-.*instruct",
    {
      "query": "Instruct: Given a web search query, retrieve relevant passages"
      " that answer the query\nQuery: "
    },
  ),
  _Family(
    "e5",
    r"\be5\b",
    {"query": "query: ", "passage": "passage: ", "sentence": "query: "},
  ),
)


def partial(given: Given) -> contract_lib.PartialContract:
  """Returns the given prefixes as what is known of a contract.

  Args:
    given: The prefixes.

  Raises:
    ValueError: if a prefix is not Unicode text.
  """
  for role, prefix in given.items():
    if prefix is None:
      continue
    if not isinstance(prefix, str):
      raise ValueError(f"{role}_prefix is {prefix!r}, which is not a text.")
    try:
      prefix.encode("utf-8")
    except UnicodeEncodeError:
      raise ValueError(
        f"{role}_prefix is {prefix!r}, which is not Unicode text."
      ) from None
  roles: dict[str, Any] = {
    role: contract_lib.PartialRole(prefix=given.get(role))
    for role in contract_lib.ROLES
  }
  return contract_lib.PartialContract(**roles)


def put(
  given: Given,
  contract: contract_lib.EncodingContract,
  tokenizer: tokenizers.Tokenizer,
  prompt: str,
) -> contract_lib.EncodingContract:
  """Returns a contract with the given prefixes.

  Args:
    given: The prefixes.
    contract: The model's contract.
    tokenizer: Its tokenizer.
    prompt: The name of the prompt that texts will have; "" for none.

  Raises:
    ValueError: if there is no such prompt, or a prefix is not Unicode text,
      leaves no room for a text, or would not be used, because the prompt takes
      its place.
  """
  contract.check_prompt(prompt)
  partial(given)  # It checks them.
  roles = {
    role: dataclasses.replace(contract.role(role), prefix=prefix)
    for role, prefix in given.items()
    if prefix is not None
  }
  for role in contract.prompts.get(prompt, {}):
    if role in roles and roles[role] != contract.role(role):
      raise ValueError(
        f"{role}_prefix is given, and the prompt {prompt!r} takes its place:"
        " give one of the two."
      )
  changed = dataclasses.replace(contract, **roles)
  for role, settings in roles.items():
    length = len(tokenizer.encode(settings.prefix).ids)  # With special tokens.
    if settings.prefix and length >= settings.max_length:
      raise ValueError(
        f"{role}_prefix takes {length} tokens, but {role} texts are cut to"
        f" {settings.max_length}, so all texts would be equal: shorten it."
      )
  return changed


def describe_replaced(
  before: contract_lib.EncodingContract,
  after: contract_lib.EncodingContract,
  path: str,
) -> str:
  """Says in a line which prefixes of a model others replace; "" for none.

  Args:
    before: The model's contract.
    after: The contract with other prefixes.
    path: The model.
  """
  changes = [
    f"{role} texts have the prefix {after.role(role).prefix!r} in place of"
    f" {before.role(role).prefix!r}"
    for role in contract_lib.ROLES
    if before.role(role).prefix not in ("", after.role(role).prefix)
  ]
  return f"{path}: {'; '.join(changes)}, as given." if changes else ""


def describe_given(
  given: Given, contract: contract_lib.EncodingContract
) -> str:
  """Says in a line which prefixes were given; "" for none.

  Args:
    given: The prefixes.
    contract: The contract that holds them.
  """
  said = [
    f"{role} {contract.role(role).prefix!r}"
    for role in contract_lib.ROLES
    if given.get(role) is not None
  ]
  return f"Prefixes that were given: {', '.join(said)}." if said else ""


def missing(found: layout.Layout, given: Given, name: str) -> tuple[str, str]:
  """Says which prefixes a model's family needs and does not get.

  A folder that names a prompt decides for itself. sentence-transformers writes
  empty prompts into each folder, so these say nothing.

  Args:
    found: The folder of a model.
    given: The prefixes that are given, also empty ones.
    name: What the user calls the model.

  Returns:
    A line for reports, and what a user of a flag can do. Both are "" if nothing
    is missing.
  """
  said = (found.encoding.role(role).prefix for role in contract_lib.ROLES)
  if found.ours or any(prefix != "" for prefix in said):
    return "", ""
  sign, family = _find_family(found, name)
  if family is None:
    return "", ""
  lacking = [
    role
    for role in ("query", "passage")
    if role in family.prefixes and given.get(role) is None
  ]
  if not lacking:
    return "", ""
  # Only some tests have sentences, so their prefix alone is no reason.
  if "sentence" in family.prefixes and given.get("sentence") is None:
    lacking.append("sentence")
  flags = " ".join(
    f"--{role}_prefix={_quote(family.prefixes[role])}" for role in lacking
  )
  return (
    f"{name} is a model of the family {family.name} by {sign}. Such models need"
    f" prefixes, and nothing names those of {' and '.join(lacking)} texts, so"
    " results are worse.",
    f"Give {flags} (in Python, arguments of these names). An empty one says"
    " that none is needed.",
  )


def _find_family(found: layout.Layout, name: str) -> tuple[str, _Family | None]:
  """Finds the family by the first fact that names one; says which fact."""
  for sign, text in _facts(found, name):
    for family in _FAMILIES:
      if re.search(family.pattern, text.lower().replace("_", "-")):
        return sign, family
  return "", None


def _facts(found: layout.Layout, name: str) -> Iterator[tuple[str, str]]:
  """Yields what may name a model's family, each with its description.

  Args:
    found: The folder of a model.
    name: What the user calls the model: a path, or a name on the hub.
  """
  yield "its name", pathlib.PurePath(name).name
  # Of a hub's copy: models--intfloat--multilingual-e5-small/snapshots/COMMIT.
  folder = found.folder.resolve()
  if folder.parent.name == "snapshots":
    yield "its name on the hub", folder.parent.parent.name.rpartition("--")[2]
  yield "its folder's name", folder.name
  config = layout.read_json(found.transformer / layout_files.CONFIG)
  # Older versions of transformers wrote it.
  path = str(config.get("_name_or_path") or "")
  yield (
    f"_name_or_path in its {layout_files.CONFIG}",
    pathlib.PurePath(path).name,
  )
  for field, value in _card(found.folder / layout_files.CARD).items():
    yield f"{field} in its {layout_files.CARD}", value.rpartition("/")[2]


def _card(path: pathlib.Path) -> dict[str, str]:
  """Returns what a model card says of the model's name and its origin.

  A card is written by hand. One that cannot be read says nothing.
  """
  try:
    metadata: Any = huggingface_hub.metadata_load(path) or {}
  except Exception:  # YAML has many errors.
    return {}
  facts = {}
  indices = metadata.get("model-index")
  if isinstance(indices, list) and indices and isinstance(indices[0], dict):
    facts["model-index"] = str(indices[0].get("name"))
  bases = metadata.get("base_model")
  bases = bases if isinstance(bases, list) else [bases] if bases else []
  if len(bases) == 1:  # Of several, no single one is the origin.
    facts["base_model"] = str(bases[0])
  return facts


def _quote(prefix: str) -> str:
  """Returns a prefix as a shell takes it."""
  if "\n" not in prefix:
    return shlex.quote(prefix)
  escaped = prefix.replace("\\", "\\\\").replace("'", "\\'")
  return "$'" + escaped.replace("\n", "\\n") + "'"
