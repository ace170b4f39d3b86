"""The encoding contract: how a text becomes a vector, the same everywhere.

It is saved with every checkpoint. Whatever encodes (training, evaluation,
search, export) reads it and refuses to go on where it differs.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

from mlir_jax.storage import reading

ROLES = ("query", "passage", "sentence")
LEAST_LENGTH = 4  # Tokens: to hold any text beside the special ones.
POOLINGS = ("mean", "cls", "last")

# Encoded when the contract is made and compared wherever it is used: a
# tokenizer library that changes how one script is cut shows here.
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


class ContractMismatchError(ValueError):
  """Two encoding contracts differ; the message names the field."""


@dataclasses.dataclass(frozen=True)
class Role:
  """How one kind of text is encoded.

  Attributes:
    prefix: Put before the text, e.g. "query: ".
    max_length: In tokens, special tokens included; longer texts are cut.
    tower: Which tower encodes it: "query" or "passage".
  """

  prefix: str
  max_length: int
  tower: str


@dataclasses.dataclass(frozen=True)
class EncodingContract:
  """How texts become vectors.

  Attributes:
    pooling: "mean" over non-padding tokens, "cls", the first token, or
      "last".
    normalize: Whether vectors are scaled to unit length.
    title_joiner: Stands between a passage's title and its text.
    query: The role of queries.
    passage: The role of passages.
    sentence: The role of parallel and monolingual sentences.
    tokenizer_fingerprint: SHA-256 of the tokenizer's definition.
    golden_ids: Token ids of `GOLDEN_TEXTS`, untruncated.
  """

  pooling: str
  normalize: bool
  title_joiner: str
  query: Role
  passage: Role
  sentence: Role
  tokenizer_fingerprint: str
  golden_ids: tuple[tuple[int, ...], ...]

  def role(self, name: str) -> Role:
    """The role of that name; ValueError if there is none."""
    if name not in ROLES:
      raise ValueError(f"Unknown role {name!r}; the roles are {ROLES}.")
    return getattr(self, name)

  def render(self, role: str, text: str, title: str = "") -> str:
    """The string that is tokenized: prefix, title, joiner, text."""
    return self.role(role).prefix + self.body(text, title)

  def body(self, text: str, title: str = "") -> str:
    """The stripped text with its title: what its identity is judged by."""
    return (f"{title}{self.title_joiner}{text}" if title else text).strip()

  def to_json(self) -> str:
    """The contract as JSON, for `from_json`."""
    return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)

  @classmethod
  def from_json(cls, text: str) -> "EncodingContract":
    """Reads what `to_json` wrote; ValueError names an unusable field."""
    return cls.from_values(
      reading.parse_json(text.encode(), "The encoding contract")
    )

  @classmethod
  def from_values(cls, values: Any) -> "EncodingContract":
    """The same of parsed JSON: of `dataclasses.asdict` of a contract."""
    _check_names(values, cls, "")
    roles = {role: values[role] for role in ROLES}
    for name, role in roles.items():
      _check_names(role, Role, f"{name}.")
    check_settings(
      values, {n: (r["prefix"], r["max_length"]) for n, r in roles.items()}, ""
    )
    for name, role in roles.items():
      if role["tower"] not in ("query", "passage"):
        raise ValueError(
          f"{name}.tower is {role['tower']!r}; use 'query' or 'passage'."
        )
    if not isinstance(values["tokenizer_fingerprint"], str):
      raise ValueError("tokenizer_fingerprint is not a text.")
    ids = values["golden_ids"]
    if not isinstance(ids, Sequence) or not all(
      isinstance(of_text, Sequence)
      and all(isinstance(token, int) for token in of_text)
      for of_text in ids
    ):
      raise ValueError("golden_ids is not a list of token ids for each text.")
    return cls(
      **{
        **values,
        **{name: Role(**role) for name, role in roles.items()},
        "golden_ids": tuple(tuple(of_text) for of_text in ids),
      }
    )


def _check_names(values: Any, kind: type, prefix: str) -> None:
  """Raises ValueError unless these are the fields of a dataclass."""
  what = "The encoding contract"
  if prefix:
    what = f"{prefix[:-1]} of the encoding contract"
  if not isinstance(values, Mapping):
    raise ValueError(f"{what} is {values!r}, not an object.")
  names = {field.name for field in dataclasses.fields(kind)}
  if missing := names - values.keys():
    raise ValueError(f"{what} lacks {sorted(missing)}.")
  if unknown := values.keys() - names:
    raise ValueError(f"{what} has unknown {sorted(unknown)}.")


def check_settings(
  settings: Mapping[str, Any],
  roles: Mapping[str, tuple[str, int]],
  group: str,
) -> None:
  """Checks values that say how a text becomes a vector.

  Args:
    settings: "pooling", "normalize" and "title_joiner"; others are not looked
      at.
    roles: Role to prefix and maximum length in tokens.
    group: What stands before each field's name in messages: "encoding.".

  Raises:
    ValueError: naming the field.
  """
  if settings["pooling"] not in POOLINGS:
    raise ValueError(
      f"{group}pooling is {settings['pooling']!r}; use one of {POOLINGS}."
    )
  if not isinstance(settings["normalize"], bool):
    raise ValueError(
      f"{group}normalize is {settings['normalize']!r}; use True or False."
    )
  texts = {"title_joiner": settings["title_joiner"]}
  texts |= {f"{name}.prefix": prefix for name, (prefix, _) in roles.items()}
  for name, text in texts.items():
    if not isinstance(text, str):
      raise ValueError(f"{group}{name} is {text!r}, which is not a text.")
  for name, (_, length) in roles.items():
    if not isinstance(length, int) or isinstance(length, bool):
      raise ValueError(
        f"{group}{name}.max_length is {length!r}, which is not a whole number."
      )
    if length < LEAST_LENGTH:
      raise ValueError(
        f"{group}{name}.max_length is {length}; at least {LEAST_LENGTH}"
        " tokens are needed to hold any text beside the special tokens."
      )


def _differences(ours: Mapping, theirs: Mapping, prefix: str = ""):
  for name, value in ours.items():
    other = theirs[name]
    if isinstance(value, Mapping):
      yield from _differences(value, other, f"{prefix}{name}.")
    elif value != other:
      yield f"{prefix}{name}", value, other


def check_same(
  ours: EncodingContract, theirs: EncodingContract, where: str
) -> None:
  """Compares two contracts field by field.

  Args:
    ours: The contract in use.
    theirs: The contract found.
    where: Where the second one was found, for the message.

  Raises:
    ContractMismatchError: naming every field that differs, with both values.
  """
  lines = []
  for name, value, other in _differences(
    dataclasses.asdict(ours), dataclasses.asdict(theirs)
  ):
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


def fingerprint(tokenizer: tokenizers.Tokenizer) -> str:
  """SHA-256 of a tokenizer's definition, without padding and truncation."""
  definition = json.loads(tokenizer.to_str())
  definition["padding"] = definition["truncation"] = None
  text = json.dumps(definition, sort_keys=True, ensure_ascii=False)
  return hashlib.sha256(text.encode()).hexdigest()


def golden_ids(tokenizer: tokenizers.Tokenizer) -> tuple[tuple[int, ...], ...]:
  """Token ids of `GOLDEN_TEXTS`, without padding and truncation."""
  plain = tokenizers.Tokenizer.from_str(tokenizer.to_str())
  plain.no_padding()
  plain.no_truncation()
  try:
    encoded = plain.encode_batch(list(GOLDEN_TEXTS))
  except Exception as error:  # The library raises nothing more special.
    raise ValueError(
      f"The tokenizer cannot cut every text: {error}. Mend its tokenizer.json."
    ) from error
  return tuple(tuple(each.ids) for each in encoded)


def make_contract(
  tokenizer: tokenizers.Tokenizer,
  *,
  pooling: str,
  normalize: bool,
  title_joiner: str,
  roles: Mapping[str, tuple[str, int]],
) -> EncodingContract:
  """Makes the contract of a tokenizer and the encoding settings.

  Args:
    tokenizer: The tokenizer.
    pooling: "mean", "cls" or "last".
    normalize: Whether vectors are scaled to unit length.
    title_joiner: Stands between a passage's title and its text.
    roles: For "query", "passage" and "sentence", the prefix and the maximum
      length in tokens. Queries go to the query tower, all else to the
      passage tower (Hu et al. 2023, Figure 2).

  Raises:
    ValueError: if a value is not supported.
  """
  check_settings(
    {
      "pooling": pooling,
      "normalize": normalize,
      "title_joiner": title_joiner,
    },
    roles,
    "encoding.",
  )
  return EncodingContract(
    pooling=pooling,
    normalize=normalize,
    title_joiner=title_joiner,
    tokenizer_fingerprint=fingerprint(tokenizer),
    golden_ids=golden_ids(tokenizer),
    **{
      name: Role(
        prefix=roles[name][0],
        max_length=roles[name][1],
        tower="query" if name == "query" else "passage",
      )
      for name in ROLES
    },
  )


def check_prefixes(
  contract: EncodingContract, tokenizer: tokenizers.Tokenizer
) -> None:
  """Refuses a prefix that leaves no room for a text.

  Args:
    contract: The contract.
    tokenizer: Its tokenizer.

  Raises:
    ValueError: naming the role's field.
  """
  for name in ROLES:
    role = contract.role(name)
    length = len(tokenizer.encode(role.prefix).ids)  # With special tokens.
    if role.prefix and length >= role.max_length:
      raise ValueError(
        f"encoding.{name}.prefix takes {length} tokens, but"
        f" encoding.{name}.max_length is {role.max_length}, so all texts would"
        " be equal: shorten the one or raise the other."
      )


def contract_of(
  settings: Mapping[str, Any], tokenizer: tokenizers.Tokenizer
) -> EncodingContract:
  """Makes the contract of flat settings: see `make_contract`.

  Args:
    settings: "pooling", "normalize", "title_joiner", and for each role
      "ROLE.prefix" and "ROLE.max_length"; others are not looked at.
    tokenizer: The tokenizer.
  """
  return make_contract(
    tokenizer,
    pooling=settings["pooling"],
    normalize=settings["normalize"],
    title_joiner=settings["title_joiner"],
    roles={
      role: (settings[f"{role}.prefix"], settings[f"{role}.max_length"])
      for role in ROLES
    },
  )
