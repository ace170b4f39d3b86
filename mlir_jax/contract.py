"""The encoding contract: how a text becomes a vector, the same everywhere.

Every checkpoint has its contract. Training, evaluation, search and export all
read it, and each refuses a tokenizer or a folder that does not fit it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import tokenizers

from mlir_jax.storage import reading

ROLES = ("query", "passage", "sentence")
MIN_LENGTH = 4  # Tokens: a text needs some besides the special tokens.
POOLINGS = ("mean", "cls", "last")
_TOWERS = ("query", "passage")

# The contract keeps the token ids of these texts, and they are compared
# wherever it is used. They show it if another version of the tokenizer
# library cuts one of the scripts differently.
GOLDEN_TEXTS = (
  "Which city is the capital of Finland?",
  "Größe, façade, niño, 3,14 % – «ça va»",
  "В чащах юга жил бы цитрус",
  "نص حكيم له سر قاطع",
  "いろはにほへと 色は匂へど",
  "나는 유리를 먹을 수 있어요",
  "మేము తెలుగు మాట్లాడతాము",
  "ฉันกินกระจกได้",
  "আমি কাঁচ খেতে পারি",
  "Ninaweza kula glasi na sina dhara",
  "我能吞下玻璃而不伤身体",
)


# Name to role to what precedes a text in place of the role's prefix. A name is
# that of a source of training data. A role that is not there has its prefix.
Prompts = Mapping[str, Mapping[str, str]]

# The names of prompts that sentence-transformers, and other libraries, have for
# roles.
_TAKEN = ("query", "document", "passage", "corpus", "sentence")
_SUFFIXES = {"passage": "document", "sentence": "sentence"}


class ContractMismatchError(ValueError):
  """Two encoding contracts differ; the message names the field."""


@dataclasses.dataclass(frozen=True)
class PartialRole:
  """What is known about how a role's texts are encoded; None is open.

  Attributes:
    prefix: Is put before the text, e.g. "query: ".
    max_length: In tokens, special tokens included; longer texts are cut.
  """

  prefix: str | None = None
  max_length: int | None = None


@dataclasses.dataclass(frozen=True)
class PartialContract:
  """What a config or a model's folder says of the contract; None is open.

  `of_config.over(of_folder).over(defaults)` closes what is open, and
  `complete` adds the tokenizer.

  Attributes:
    pooling: "mean" over the tokens that are not padding, "cls" for the first
      token, or "last" for the last one.
    normalize: Whether vectors are scaled to unit length.
    title_joiner: Joins a passage's title and its text.
    query: The role of queries.
    passage: The role of passages.
    sentence: The role of parallel and monolingual sentences.
    prompts: As in `EncodingContract`; open means none.
    truncate_dim: As in `EncodingContract`; open means 0.
  """

  pooling: str | None = None
  normalize: bool | None = None
  title_joiner: str | None = None
  query: PartialRole = PartialRole()
  passage: PartialRole = PartialRole()
  sentence: PartialRole = PartialRole()
  prompts: Prompts | None = None
  truncate_dim: int | None = None

  @classmethod
  def from_dict(cls, values: Any) -> "PartialContract":
    """Reads nested fields, as in a run's config; a missing field is open.

    Raises:
      ValueError: if there is an unknown field, or a group is not an object.
    """
    _check_names(values, cls, "encoding", may_miss=True)
    roles = {role: values.get(role, {}) for role in ROLES}
    for name, role in roles.items():
      _check_names(role, PartialRole, f"encoding.{name}", may_miss=True)
    roles = {name: PartialRole(**role) for name, role in roles.items()}
    return cls(**{**values, **roles})

  def role(self, name: str) -> PartialRole:
    """Returns what is known of one of `ROLES`."""
    return getattr(self, name)

  def fields(self) -> Iterator[tuple[str, Any]]:
    """Yields the name ("query.prefix") and value of each field."""
    return _fields(dataclasses.asdict(self))

  def over(self, other: "PartialContract") -> "PartialContract":
    """Returns a copy whose open fields are those of another one."""
    roles = {
      name: PartialRole(**_closed(self.role(name), other.role(name)))
      for name in ROLES
    }
    return PartialContract(**{**_closed(self, other), **roles})

  def complete(
    self, tokenizer: tokenizers.Tokenizer | None
  ) -> "EncodingContract":
    """Returns the contract with a tokenizer.

    Queries go to the query tower, all other texts to the passage tower
    (Hu et al. 2023, Figure 2).

    Args:
      tokenizer: The tokenizer. None makes a contract for plans, which fits no
        tokenizer.

    Raises:
      ValueError: if a field is open or not supported; it names the field.
    """
    values = dataclasses.asdict(self)
    values["prompts"] = values["prompts"] or {}
    if values["truncate_dim"] is None:
      values["truncate_dim"] = 0
    for name, value in _fields(values):
      problem = "not set." if value is None else _problem(name, value)
      if problem:
        raise ValueError(f"encoding.{name} is {problem}")
    towers = {role: "query" if role == "query" else "passage" for role in ROLES}
    return EncodingContract(
      **{
        **values,
        **{role: Role(**values[role], tower=towers[role]) for role in ROLES},
      },
      tokenizer_fingerprint=fingerprint(tokenizer) if tokenizer else "",
      golden_ids=golden_ids(tokenizer) if tokenizer else (),
    )


@dataclasses.dataclass(frozen=True)
class Role:
  """How one kind of text is encoded: `PartialRole`, with nothing open.

  Attributes:
    prefix: Is put before the text, e.g. "query: ".
    max_length: In tokens, special tokens included; longer texts are cut.
    tower: The tower that encodes it: "query" or "passage".
  """

  prefix: str
  max_length: int
  tower: str


@dataclasses.dataclass(frozen=True)
class EncodingContract:
  """How texts become vectors: `PartialContract`, with nothing open.

  Attributes:
    pooling: "mean", "cls" or "last".
    normalize: Whether vectors are scaled to unit length.
    title_joiner: Joins a passage's title and its text.
    query: The role of queries.
    passage: The role of passages.
    sentence: The role of parallel and monolingual sentences.
    tokenizer_fingerprint: SHA-256 of the tokenizer's definition.
    golden_ids: Token ids of `GOLDEN_TEXTS`, untruncated.
    prompts: The prompts that the model was trained with, see `Prompts`.
    truncate_dim: A vector is cut to its first so many numbers, before it is
      scaled to unit length; 0 keeps all.
  """

  pooling: str
  normalize: bool
  title_joiner: str
  query: Role
  passage: Role
  sentence: Role
  tokenizer_fingerprint: str
  golden_ids: tuple[tuple[int, ...], ...]
  prompts: Prompts = dataclasses.field(default_factory=dict, hash=False)
  truncate_dim: int = 0

  def width(self, size: int) -> int:
    """Returns the numbers of a vector, of an encoder whose vectors have `size`.

    Raises:
      ValueError: if the vectors have fewer numbers than truncate_dim.
    """
    if self.truncate_dim > size:
      raise ValueError(
        f"encoding.truncate_dim is {self.truncate_dim}, but the model's vectors"
        f" have {size} numbers: give a smaller one, or 0 for whole vectors."
      )
    return self.truncate_dim or size

  def role(self, name: str) -> Role:
    """Returns the role of that name; ValueError if there is none."""
    if name not in ROLES:
      raise ValueError(f"Unknown role {name!r}; the roles are {ROLES}.")
    return getattr(self, name)

  def check_prompt(self, prompt: str) -> None:
    """Raises ValueError if there is no prompt of that name; "" is allowed."""
    if prompt and prompt not in self.prompts:
      names = ", ".join(map(repr, self.prompts)) or "none"
      raise ValueError(
        f"There is no prompt {prompt!r}. The prompts that the model was trained"
        f" with are: {names}. Without a prompt, a text has its role's prefix."
      )

  def prefix(self, role: str, prompt: str = "") -> str:
    """Returns what precedes a text of a role.

    Args:
      role: The role.
      prompt: The name of a prompt; "" for the role's prefix.

    Raises:
      ValueError: if there is no such role or prompt.
    """
    self.check_prompt(prompt)
    return self.prefix_of_source(role, prompt)

  def prefix_of_source(self, role: str, source: str) -> str:
    """Returns what precedes a text of a source of training data in a role."""
    return self.prompts.get(source, {}).get(role, self.role(role).prefix)

  def render(
    self, role: str, text: str, title: str = "", prompt: str = ""
  ) -> str:
    """Returns the string that is tokenized: prefix, title, joiner, text."""
    return self.prefix(role, prompt) + self.body(text, title)

  def body(self, text: str, title: str = "") -> str:
    """Returns the stripped text with its title; equal bodies are one text."""
    return (f"{title}{self.title_joiner}{text}" if title else text).strip()

  def with_prefixes_of(
    self, other: "EncodingContract", roles: Iterable[str]
  ) -> "EncodingContract":
    """Returns a copy with another contract's prefixes of some roles."""
    replaced: dict[str, Any] = {
      name: dataclasses.replace(self.role(name), prefix=other.role(name).prefix)
      for name in roles
    }
    return dataclasses.replace(self, **replaced)

  def partial(self) -> PartialContract:
    """Returns what a config can say of it: all but towers and tokenizer."""
    return PartialContract(
      pooling=self.pooling,
      normalize=self.normalize,
      title_joiner=self.title_joiner,
      **{
        name: PartialRole(self.role(name).prefix, self.role(name).max_length)
        for name in ROLES
      },
      prompts=self.prompts,
      truncate_dim=self.truncate_dim,
    )

  def to_dict(self) -> dict[str, Any]:
    """Returns the contract as nested values, for `from_dict`."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, values: Any) -> "EncodingContract":
    """Reads what `to_dict` returned; JSON's lists are taken as tuples.

    Raises:
      ValueError: if a field is missing, unknown or not supported; it names
        the field.
    """
    if isinstance(values, Mapping):
      # Older contracts have none.
      values = {"prompts": {}, "truncate_dim": 0, **values}
    _check_names(values, cls, "The encoding contract")
    roles = {name: values[name] for name in ROLES}
    for name, role in roles.items():
      _check_names(role, Role, f"{name} of the encoding contract")
    for name, value in _fields(values):
      if problem := _problem(name, value):
        raise ValueError(f"{name} is {problem}")
    ids = values["golden_ids"]
    return cls(
      **{
        **values,
        **{name: Role(**role) for name, role in roles.items()},
        "golden_ids": tuple(tuple(of_text) for of_text in ids),
      }
    )

  def to_json(self) -> str:
    """Returns `to_dict` as JSON, for `from_json`."""
    return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

  @classmethod
  def from_json(cls, text: str) -> "EncodingContract":
    """Reads what `to_json` returned; see `from_dict`."""
    return cls.from_dict(
      reading.parse_json(text.encode(), "The encoding contract")
    )


def _check_names(
  values: Any, kind: type, what: str, *, may_miss: bool = False
) -> None:
  """Raises ValueError unless these are the fields of a dataclass."""
  if not isinstance(values, Mapping):
    raise ValueError(f"{what} is {values!r}, not an object.")
  names = {field.name for field in dataclasses.fields(kind)}
  missing = names - values.keys()
  if missing and not may_miss:
    raise ValueError(f"{what} lacks {sorted(missing)}.")
  if unknown := values.keys() - names:
    raise ValueError(f"{what} has unknown {sorted(unknown)}.")


def _fields(values: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Yields the name ("query.prefix") and value of each field."""
  for name, value in values.items():
    if name in ROLES:
      yield from _fields(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", value


def _problem(name: str, value: Any) -> str:
  """Says what is wrong with a field's value; "" if nothing is.

  Args:
    name: The field: "pooling", "query.prefix".
    value: Its value.
  """
  kind = name.rpartition(".")[2]
  if kind == "pooling" and value not in POOLINGS:
    return f"{value!r}; use one of {POOLINGS}."
  if kind == "tower" and value not in _TOWERS:
    return f"{value!r}; use 'query' or 'passage'."
  if kind == "normalize" and not isinstance(value, bool):
    return f"{value!r}; use True or False."
  if kind == "prompts":
    return problem_of_prompts(value)
  if kind in ("prefix", "title_joiner", "tokenizer_fingerprint"):
    return "" if isinstance(value, str) else f"{value!r}, which is not a text."
  if kind == "max_length":
    if not isinstance(value, int) or isinstance(value, bool):
      return f"{value!r}, which is not a whole number."
    if value < MIN_LENGTH:
      return (
        f"{value}; at least {MIN_LENGTH} tokens are needed to hold any text"
        " besides the special tokens."
      )
  if kind == "truncate_dim" and (
    not isinstance(value, int) or isinstance(value, bool) or value < 0
  ):
    return f"{value!r}, which is not a whole number from 0 on."
  if kind == "golden_ids" and not (
    isinstance(value, Sequence)
    and all(
      isinstance(of_text, Sequence)
      and all(isinstance(token, int) for token in of_text)
      for of_text in value
    )
  ):
    return "not a list of token ids for each text."
  return ""


def problem_of_prompts(value: Any) -> str:
  """Says what is wrong with the prompts of a contract; "" if nothing is."""
  if isinstance(value, Mapping) and all(
    isinstance(name, str)
    and isinstance(of_name, Mapping)
    and all(
      role in ROLES and isinstance(text, str) for role, text in of_name.items()
    )
    for name, of_name in value.items()
  ):
    return ""
  return f"{value!r}, not a text for each name and role."


def flat_prompts(prompts: Prompts) -> dict[str, str]:
  """Returns prompts by one name each, as sentence-transformers has them.

  The prompt of queries has the name of its source, that of passages ends in
  "_document".

  Raises:
    ValueError: if two would have one name, or one has the name of a role.
  """
  flat: dict[str, str] = {}
  for name, of_name in prompts.items():
    for role, text in of_name.items():
      label = name if role == "query" else f"{name}_{_SUFFIXES[role]}"
      if label in flat or label in _TAKEN:
        raise ValueError(
          f"the prompt of {role} texts of the source {name!r} would have the"
          f" name {label!r} in sentence-transformers, which another one has:"
          " give the source's files another name."
        )
      flat[label] = text
  return flat


def _closed(ours: Any, theirs: Any) -> dict[str, Any]:
  """Returns the fields of a dataclass; those that are None, of another one."""
  return {
    name: getattr(theirs, name) if value is None else value
    for name, value in vars(ours).items()
  }


_Contract = TypeVar("_Contract", PartialContract, EncodingContract)


def check_same(ours: _Contract, theirs: _Contract, where: str) -> None:
  """Compares two contracts, or two partial ones, field by field.

  Args:
    ours: The contract in use.
    theirs: The contract found.
    where: Where the second one was found, for the message.

  Raises:
    ContractMismatchError: naming every field that differs, with both values.
  """
  lines = []
  pairs = zip(
    _fields(dataclasses.asdict(ours)),
    _fields(dataclasses.asdict(theirs)),
    strict=True,
  )
  for (name, value), (_, other) in pairs:
    if value == other:
      continue
    if name == "golden_ids":
      changed = [
        text
        for text, a, b in zip(GOLDEN_TEXTS, value, other, strict=False)
        if a != b
      ]
      lines.append(
        f"  golden_ids: the tokenizer now cuts {changed} differently; use"
        " the tokenizers version recorded in the checkpoint's provenance"
      )
    else:
      lines.append(f"  {name}: {value!r} here, {other!r} there")
    if name == "tokenizer_fingerprint":
      lines.append(
        "    (restore the run's tokenizer/, or install the tokenizers version"
        " in the checkpoint's provenance)"
      )
  if lines:
    raise ContractMismatchError(
      f"The encoding contract differs from that of {where}:\n"
      + "\n".join(lines)
    )


def check_role(
  ours: EncodingContract,
  theirs: EncodingContract,
  role: str,
  where: str,
) -> None:
  """Checks that a model encodes as texts of a role were encoded.

  The prefixes of other roles may differ: they are in none of those texts.

  Args:
    ours: The model's contract.
    theirs: The contract of the encoded texts.
    role: Their role; "" if it is not known.
    where: Where they are, for the message.

  Raises:
    ContractMismatchError: naming the field.
  """
  others = [name for name in ROLES if role not in ("", name)]
  check_same(ours, theirs.with_prefixes_of(ours, others), where)


def fingerprint(tokenizer: tokenizers.Tokenizer) -> str:
  """Returns the SHA-256 of a tokenizer without its padding and truncation."""
  definition = json.loads(tokenizer.to_str())
  definition["padding"] = definition["truncation"] = None
  text = json.dumps(definition, sort_keys=True, ensure_ascii=False)
  return hashlib.sha256(text.encode()).hexdigest()


def golden_ids(tokenizer: tokenizers.Tokenizer) -> tuple[tuple[int, ...], ...]:
  """Returns the ids of `GOLDEN_TEXTS`, without padding and truncation."""
  plain = tokenizers.Tokenizer.from_str(tokenizer.to_str())
  plain.no_padding()
  plain.no_truncation()
  try:
    encoded = plain.encode_batch(list(GOLDEN_TEXTS))
  except Exception as error:  # The library has no error type of its own.
    raise ValueError(
      f"The tokenizer cannot cut every text: {error}. Repair tokenizer.json."
    ) from error
  return tuple(tuple(each.ids) for each in encoded)


def check_prefixes(
  contract: EncodingContract, tokenizer: tokenizers.Tokenizer
) -> None:
  """Checks that every prefix and every prompt leaves room for a text.

  Raises:
    ValueError: if one does not; it names the role's field or the source.
  """
  prefixes = [
    (f"encoding.{name}.prefix", name, contract.role(name).prefix)
    for name in ROLES
  ] + [
    (f"The {role}_prompt of the source {name!r}", role, prompt)
    for name, of_name in contract.prompts.items()
    for role, prompt in of_name.items()
  ]
  for what, name, prefix in prefixes:
    role = contract.role(name)
    length = len(tokenizer.encode(prefix).ids)  # With special tokens.
    if prefix and length >= role.max_length:
      raise ValueError(
        f"{what} takes {length} tokens, but encoding.{name}.max_length is"
        f" {role.max_length}, so all texts would be equal: shorten it or raise"
        " the length."
      )
