"""The folder layout of sentence-transformers, read and written without torch.

Such a folder says how texts become vectors: modules.json lists the modules,
and each has settings of its own. What this package cannot honour is refused
by file and field, for a model that is read but encodes otherwise looks like a
bad model. Versions 2 to 6 are read; what is written, versions 5 and 6 read.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from mlir_jax import contract as contract_lib
from mlir_jax.models import architecture
from mlir_jax.storage import digests, reading

MODULES = "modules.json"
OURS = "mlir_jax.json"
TOWERS = ("both", "query", "passage")
WEIGHTS = "model.safetensors"

_MODEL = "config_sentence_transformers.json"
_TRANSFORMER = "sentence_bert_config.json"
# Names of the same file in version 1 and before.
_OLD_TRANSFORMER = ("roberta", "distilbert", "xlm-roberta")
_CONFIG = "config.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"

_KINDS = ("Transformer", "Pooling", "Dense", "Normalize")
_TYPES = "sentence_transformers.models."  # Versions 2 to 6 know these.

# Ours to theirs, of which the second is the flag of versions 2 to 5.
_POOLINGS = {
  "mean": ("mean", "pooling_mode_mean_tokens"),
  "cls": ("cls", "pooling_mode_cls_token"),
  "last": ("lasttoken", "pooling_mode_lasttoken"),
}
_POOLING_FLAGS = {
  **{flag: mode for mode, flag in _POOLINGS.values()},
  "pooling_mode_max_tokens": "max",
  "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
  "pooling_mode_weightedmean_tokens": "weightedmean",
}
_FLAG = "pooling_mode_"
_ACTIVATIONS = {
  "identity": "torch.nn.modules.linear.Identity",
  "tanh": "torch.nn.modules.activation.Tanh",
}

# The one value of each setting that we compute; None where it is left out.
_TRANSFORMER_FIXED = {
  "do_lower_case": False,
  "transformer_task": "feature-extraction",
  "modality_config": {
    "text": {"method": "forward", "method_output_name": "last_hidden_state"}
  },
  "module_output_name": "token_embeddings",
}
_TRANSFORMER_FREE = (
  *("max_seq_length", "query_length", "document_length"),
  "unpad_inputs",  # Speed alone.
)
_VECTOR_FIXED = {
  "module_input_name": "sentence_embedding",
  "module_output_name": "sentence_embedding",
}
_DENSE_FIXED = _VECTOR_FIXED | {"use_residual": False}
_MODEL_FIXED = {"model_type": "SentenceTransformer", "truncate_dim": None}
_SIMILARITIES = ("cosine", "dot")
_MORE = "mlir_jax"  # What only we read there.

_PASSAGE_PROMPTS = ("document", "passage", "corpus")
_UNLIMITED = 1e6  # Tokenizers without a length say 1e30.
_WIDEST = 10**6  # Numbers in a vector.


_CHANGED = (
  "Restore the export from a copy, or export it again; if the change is meant,"
  f" delete {OURS}: then the folder is read as any other model's."
)


class LayoutError(ValueError):
  """A folder that is not supported; the message names file and field."""


@dataclasses.dataclass(frozen=True)
class Projection:
  """A dense layer behind the pooling.

  Attributes:
    weights: A safetensors file with linear.weight, [size, in_features], and
      linear.bias, [size].
    in_features: Width of the pooled vectors.
    size: Width of what comes out.
    bias: Whether there is a linear.bias.
    activation: "identity" or "tanh".
  """

  weights: pathlib.Path
  in_features: int
  size: int
  bias: bool
  activation: str


@dataclasses.dataclass(frozen=True)
class Layout:
  """What a model's folder says of how it encodes; None where it is silent.

  Attributes:
    folder: The folder.
    transformer: The folder with config.json, weights and tokenizer.json: the
      same one, or one in it.
    known: Whether it is a sentence-transformers folder. A plain Hugging Face
      folder is silent on all that follows.
    pooling: "mean", "cls" or "last".
    normalize: Whether vectors are scaled to unit length.
    title_joiner: Stands between a passage's title and its text. Only folders
      of our own say it.
    tower: "both", or "query" or "passage" where an export holds only one.
    prefixes: Role to prefix.
    max_lengths: Role to length in tokens.
    undecided: A config's field to why it must be set: the folder says
      something of it that fits no encoding contract.
    projection: The dense layer behind the pooling, if there is one.
    similarity: How vectors are compared, "cosine" or "dot"; where the folder
      is silent, the cosine.
    ours: What mlir_jax.json holds, if this package wrote the folder:
      "contract", "tower", "encoder", "provenance", "step", "weights" (the
      SHA-256 of each file of weights) and "fingerprint" (of all this).
  """

  folder: pathlib.Path
  transformer: pathlib.Path
  known: bool = False
  pooling: str | None = None
  normalize: bool | None = None
  title_joiner: str | None = None
  tower: str = "both"
  prefixes: Mapping[str, str | None] = dataclasses.field(
    default_factory=lambda: dict.fromkeys(contract_lib.ROLES)
  )
  max_lengths: Mapping[str, int | None] = dataclasses.field(
    default_factory=lambda: dict.fromkeys(contract_lib.ROLES)
  )
  undecided: Mapping[str, str] = dataclasses.field(default_factory=dict)
  projection: Projection | None = None
  similarity: str = "cosine"
  ours: Mapping[str, Any] | None = None

  def settings(self) -> dict[str, Any]:
    """What it says as fields of config.encoding; None where it is silent."""
    return {
      "pooling": self.pooling,
      "normalize": self.normalize,
      "title_joiner": self.title_joiner,
      **{f"{role}.prefix": text for role, text in self.prefixes.items()},
      **{f"{role}.max_length": n for role, n in self.max_lengths.items()},
    }


def read(folder: pathlib.Path) -> Layout:
  """Reads how a model encodes.

  A folder of our own is compared with the contract in its mlir_jax.json; the
  tokenizer's part of it is left to those who encode.

  Args:
    folder: A sentence-transformers folder, or a plain Hugging Face one.

  Raises:
    LayoutError: if something is not supported.
    ContractMismatchError: if a folder of our own was changed.
  """
  if not (folder / MODULES).exists():
    if not (folder / _CONFIG).exists():
      towers = [name for name in TOWERS if (folder / name / MODULES).is_file()]
      hint = f" It holds towers: give one of {towers} in it." if towers else ""
      raise LayoutError(f"{folder} has neither {MODULES} nor {_CONFIG}.{hint}")
    _read_config(folder)  # The kind of model is known before all else is read.
    return Layout(folder, folder)
  modules = _read_modules(folder / MODULES)
  _read_config(modules["Transformer"])
  model = read_json(folder / _MODEL, required=False)
  _check_fixed(folder / _MODEL, model, _MODEL_FIXED)
  prompts = model.get("prompts") or {}
  if not isinstance(prompts, dict) or not all(
    isinstance(prompt, str | None) for prompt in prompts.values()
  ):
    raise LayoutError(
      f"{folder / _MODEL}: prompts is {prompts!r}, not a name and a text each."
    )
  similarity = model.get("similarity_fn_name") or "cosine"
  if similarity not in _SIMILARITIES:
    raise LayoutError(
      f"{folder / _MODEL}: similarity_fn_name is {similarity!r}; only the"
      " cosine and the dot product are supported."
    )
  prefixes, undecided = _read_prompts(folder / _MODEL, model)
  title_joiner, tower = _read_more(folder / _MODEL, model)
  layout = Layout(
    folder=folder,
    transformer=modules["Transformer"],
    known=True,
    pooling=_read_pooling(modules["Pooling"] / _CONFIG, model),
    normalize="Normalize" in modules,
    title_joiner=title_joiner,
    tower=tower,
    prefixes=prefixes,
    max_lengths=_read_lengths(modules["Transformer"]),
    undecided=undecided,
    projection=_read_dense(modules["Dense"]) if "Dense" in modules else None,
    similarity=similarity,
  )
  if "Normalize" in modules:
    path = modules["Normalize"] / _CONFIG
    _check_fixed(path, read_json(path, required=False), _VECTOR_FIXED)
  return _with_ours(layout) if (folder / OURS).exists() else layout


def read_json(
  path: pathlib.Path, kind: type = dict, *, required: bool = True
) -> Any:
  """A JSON file's content; an empty one where it may be missing.

  Raises:
    LayoutError: if it cannot be read: see `reading.read_json`.
  """
  if not required and not path.exists() and not path.is_symlink():
    return kind()
  try:
    return reading.read_json(path, kind)
  except reading.UnreadableError as error:
    raise LayoutError(str(error)) from error


def _read_config(folder: pathlib.Path) -> architecture.EncoderConfig:
  try:
    return architecture.read(folder / _CONFIG)
  except ValueError as error:
    raise LayoutError(str(error)) from error


def _check_fixed(path: pathlib.Path, found: Mapping, fixed: Mapping) -> None:
  for name, value in fixed.items():
    if found.get(name) not in (None, value):
      raise LayoutError(
        f"{path}: {name} is {found[name]!r}; only {value!r} is supported."
      )


def _read_modules(path: pathlib.Path) -> dict[str, pathlib.Path]:
  """The folder of each module, by the last part of its type."""
  folders = {}
  kinds = []
  for module in read_json(path, list):
    if not isinstance(module, dict) or not isinstance(
      module.get("path", ""), str
    ):
      raise LayoutError(f"{path}: module {len(kinds)} is {module!r}.")
    package, _, kind = str(module.get("type")).rpartition(".")
    if package.split(".")[0] != "sentence_transformers" or kind not in _KINDS:
      raise LayoutError(
        f"{path}: type is {module.get('type')!r} in module {len(kinds)}; of"
        f" sentence-transformers, {', '.join(_KINDS)} are supported."
      )
    kinds.append(kind)
    try:
      folders[kind] = reading.inside(path.parent, module.get("path", ""), path)
    except reading.UnreadableError as error:
      raise LayoutError(str(error)) from error
  if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in (
    [],
    ["Dense"],
    ["Normalize"],
    ["Dense", "Normalize"],
  ):
    raise LayoutError(
      f"{path}: the modules' types are {', '.join(kinds)}; Transformer and"
      " Pooling are supported, then at most one Dense, then at most one"
      " Normalize."
    )
  return folders


def _read_pooling(path: pathlib.Path, model: Mapping) -> str:
  found = read_json(path)
  # Versions 2 to 5 have a flag for each.
  flags = {name: found[name] for name in found if name.startswith(_FLAG)}
  for flag, value in flags.items():
    if not isinstance(value, bool) or (value and flag not in _POOLING_FLAGS):
      raise LayoutError(
        f"{path}: {flag} is {value!r}; of {', '.join(_POOLING_FLAGS)} one can"
        " be true."
      )
  flagged = [mode for flag, mode in _POOLING_FLAGS.items() if flags.get(flag)]
  modes = found.get("pooling_mode", flagged if flags else "mean")
  modes = modes if isinstance(modes, list) else [modes]
  modes = [str(mode) for mode in modes]
  ours = [name for name, (mode, _) in _POOLINGS.items() if [mode] == modes]
  if not ours:
    raise LayoutError(
      f"{path}: pooling_mode is {' and '.join(modes) or 'not set'}; of these,"
      f" {', '.join(mode for mode, _ in _POOLINGS.values())} are supported."
    )
  if flagged and flagged != modes:
    raise LayoutError(
      f"{path}: pooling_mode is {modes[0]}, but the flags beside it say"
      f" {' and '.join(flagged)}."
    )
  if not isinstance(found.get("include_prompt", True), bool):
    raise LayoutError(
      f"{path}: include_prompt is {found['include_prompt']!r}, not true or"
      " false."
    )
  if found.get("include_prompt") is False and any(_prompts(model).values()):
    raise LayoutError(
      f"{path}: include_prompt is False, and there are prompts: leaving"
      " their tokens out of the pooling is not supported."
    )
  return ours[0]


def _read_dense(folder: pathlib.Path) -> Projection:
  path = folder / _CONFIG
  found = read_json(path)
  _check_fixed(path, found, _DENSE_FIXED)
  # Where it is silent, sentence-transformers takes the tanh.
  name = str(found.get("activation_function") or _ACTIVATIONS["tanh"])
  package, _, kind = name.rpartition(".")
  if package.split(".")[0] != "torch" or kind.lower() not in _ACTIVATIONS:
    raise LayoutError(
      f"{path}: activation_function is {name!r}; Identity and Tanh of torch.nn"
      " are supported."
    )
  if not (folder / WEIGHTS).exists():
    raise LayoutError(
      f"{folder} has no {WEIGHTS}. Pickles (pytorch_model.bin) are never"
      " loaded, since loading one can run any code. Where you trust it,"
      " convert the model once: sentence_transformers.SentenceTransformer("
      "FOLDER).save(NEW_FOLDER)."
    )
  for field in ("in_features", "out_features"):
    if type(found.get(field)) is not int or not 1 <= found[field] <= _WIDEST:
      raise LayoutError(
        f"{path}: {field} is {found.get(field)!r}; it must be a whole number"
        f" from 1 to {_WIDEST:,}."
      )
  if not isinstance(found.get("bias", True), bool):
    raise LayoutError(f"{path}: bias is {found['bias']!r}, not true or false.")
  return Projection(
    weights=folder / WEIGHTS,
    in_features=found["in_features"],
    size=found["out_features"],
    bias=found.get("bias", True),
    activation=kind.lower(),
  )


def _read_more(path: pathlib.Path, model: Mapping) -> tuple[str | None, str]:
  """The title joiner, None for silence, and which tower it is.

  sentence-transformers has no words for these, and passes over our own. So
  they stay with the folder where mlir_jax.json is lost.
  """
  found = model.get(_MORE)
  if found is None:
    return None, "both"
  if (
    not isinstance(found, dict)
    or not isinstance(found.get("title_joiner"), str)
    or found.get("tower") not in TOWERS
  ):
    raise LayoutError(
      f"{path}: {_MORE} is {found!r}; it holds title_joiner, a text, and tower,"
      f" one of {TOWERS}. {reading.RESTORE}"
    )
  return found["title_joiner"], found["tower"]


def _prompts(model: Mapping) -> dict[str, str]:
  found = model.get("prompts") or {}
  return {name: prompt or "" for name, prompt in found.items()}


def _read_prompts(
  path: pathlib.Path, model: Mapping
) -> tuple[dict[str, str | None], dict[str, str]]:
  """The prefix of each role, and why those without one have none."""
  prompts = _prompts(model)
  default = model.get("default_prompt_name")
  if default and (not isinstance(default, str) or default not in prompts):
    raise LayoutError(
      f"{path}: default_prompt_name is {default!r}, and there is no such"
      f" prompt: {', '.join(prompts) or 'none'}."
    )
  names = {
    "query": "query" if "query" in prompts else None,
    "passage": next((n for n in _PASSAGE_PROMPTS if n in prompts), None),
    "sentence": default,  # What plain encode() takes.
  }
  tasks = [
    name
    for name, prompt in prompts.items()
    if prompt and name not in ("query", *_PASSAGE_PROMPTS, default)
  ]
  prefixes, undecided = {}, {}
  for role, name in names.items():
    if name:
      prefixes[role] = prompts[name]
    elif tasks:
      prefixes[role] = None
      undecided[f"encoding.{role}.prefix"] = (
        f"{path}: prompts has one per task ({', '.join(map(repr, tasks))}) and"
        f" none for the role {role!r}; say which prefix it has."
      )
    else:
      prefixes[role] = ""
  return prefixes, undecided


def _read_lengths(folder: pathlib.Path) -> dict[str, int]:
  """The length of each role, in tokens."""
  names = [
    _TRANSFORMER,
    *(f"sentence_{name}_config.json" for name in _OLD_TRANSFORMER),
  ]
  path = next(
    (folder / name for name in names if (folder / name).is_file()),
    folder / _TRANSFORMER,
  )
  found = read_json(path, required=False)
  _check_fixed(path, found, _TRANSFORMER_FIXED)
  for name in found.keys() - {*_TRANSFORMER_FIXED, *_TRANSFORMER_FREE}:
    if found[name]:
      raise LayoutError(
        f"{path}: {name} is {found[name]!r}, which is not supported."
      )
  tokenizer = read_json(folder / _TOKENIZER_CONFIG, required=False)
  _check_fixed(
    folder / _TOKENIZER_CONFIG, tokenizer, {"truncation_side": "right"}
  )
  positions = _read_config(folder).max_length
  if positions < contract_lib.LEAST_LENGTH:
    raise LayoutError(
      f"{folder / _CONFIG}: max_position_embeddings leaves room for texts of"
      f" {positions} tokens; at least {contract_lib.LEAST_LENGTH} are needed."
    )
  longest, said_by = found.get("max_seq_length"), f"{path}: max_seq_length"
  if longest is None:
    longest = positions
    said = tokenizer.get("model_max_length")
    if said is not None and not isinstance(said, int | float):
      raise LayoutError(
        f"{folder / _TOKENIZER_CONFIG}: model_max_length is {said!r}."
      )
    if said is not None and said < _UNLIMITED:
      longest = said
      said_by = f"{folder / _TOKENIZER_CONFIG}: model_max_length"
  lengths: dict[str, Any] = dict.fromkeys(contract_lib.ROLES, longest)
  places: dict[str, str] = dict.fromkeys(contract_lib.ROLES, said_by)
  for role, name in (("query", "query_length"), ("passage", "document_length")):
    if found.get(name) is not None:
      lengths[role], places[role] = found[name], f"{path}: {name}"
  for role, length in lengths.items():
    if type(length) is not int or length < contract_lib.LEAST_LENGTH:
      raise LayoutError(
        f"{places[role]} is {length!r}; it must be a whole number of tokens,"
        f" at least {contract_lib.LEAST_LENGTH}."
      )
  # Some folders give more tokens than there are positions, on which
  # sentence-transformers fails.
  return {role: min(length, positions) for role, length in lengths.items()}


def _with_ours(layout: Layout) -> Layout:
  """Adds mlir_jax.json, whose contract the other files must agree with."""
  path = layout.folder / OURS
  ours = read_json(path)
  try:
    contract = contract_lib.EncodingContract.from_values(ours.get("contract"))
  except ValueError as error:
    raise LayoutError(f"{path}: {error} {reading.RESTORE}") from error
  tower, encoder = ours.get("tower"), ours.get("encoder")
  if tower not in TOWERS:
    raise LayoutError(f"{path}: tower is {tower!r}; it is one of {TOWERS}.")
  if not isinstance(encoder, dict) or "step" not in ours:
    raise LayoutError(f"{path} lacks encoder or step. {reading.RESTORE}")
  # Exports of before say these in mlir_jax.json alone.
  said = (layout.title_joiner, layout.tower)
  if layout.title_joiner is None:
    said = (contract.title_joiner, tower)
  if said[1] != tower:
    raise LayoutError(
      f"{path}: tower is {tower!r}, but {_MODEL} beside it says {said[1]!r}."
      f" {reading.RESTORE}"
    )
  found = dataclasses.replace(
    contract,
    pooling=layout.pooling,
    normalize=layout.normalize,
    title_joiner=said[0],
    **{
      role: dataclasses.replace(
        contract.role(role),
        prefix=layout.prefixes[role],
        max_length=layout.max_lengths[role],
      )
      for role in contract_lib.ROLES
    },
  )
  contract_lib.check_same(contract, found, f"the files beside {path}")
  # Exports of before have no hash of themselves.
  if (
    ours.get("fingerprint", seal(ours)["fingerprint"])
    != (seal(ours)["fingerprint"])
  ):
    raise LayoutError(f"{path} has changed since it was written. {_CHANGED}")
  return dataclasses.replace(
    layout, title_joiner=contract.title_joiner, tower=tower, ours=ours
  )


def seal(ours: Mapping[str, Any]) -> dict[str, Any]:
  """What mlir_jax.json holds, with a hash of it."""
  content = {name: ours[name] for name in ours if name != "fingerprint"}
  return {**content, "fingerprint": digests.of_value(content)}


def check_unchanged(found: Layout, config: architecture.EncoderConfig) -> None:
  """Checks that an export's config.json and modules are as it was written.

  Args:
    found: What its folder says; of another folder nothing is known.
    config: The encoder's, with its projection, as the folder says.

  Raises:
    LayoutError: naming each field that differs.
  """
  if not found.ours:
    return
  written = found.ours["encoder"]
  shape = architecture.shape_of(config)
  shape["layer_types"] = list(shape["layer_types"])  # As JSON has it.
  changed = [
    f"{name} is {value!r}, and it was written with {written[name]!r}"
    for name, value in shape.items()
    # What it computes in is not said in config.json.
    if name != "dtype" and name in written and written[name] != value
  ]
  if changed:
    raise LayoutError(
      f"{found.transformer / _CONFIG} or a module beside it has changed since"
      f" the export: {'; '.join(changed)}. {_CHANGED}"
    )


def check_weights(found: Layout) -> None:
  """Checks that an export's weights are as they were written.

  Raises:
    LayoutError: naming the file.
  """
  weights = (found.ours or {}).get("weights", {})
  try:
    digests.check(found.folder, weights, _CHANGED)
  except reading.UnreadableError as error:
    raise LayoutError(str(error)) from error


def exported_contract(
  contract: contract_lib.EncodingContract, one_length: bool = False
) -> contract_lib.EncodingContract:
  """The contract that a folder can say.

  Plain encode() cuts at the one length that each version knows, the longest;
  so that of sentences is the longest role's.

  Args:
    contract: The contract that was trained under.
    one_length: Gives queries and passages that length, too: version 5 knows
      no others, and refuses a folder that has them.
  """
  longest = max(contract.role(role).max_length for role in contract_lib.ROLES)
  roles = contract_lib.ROLES if one_length else ("sentence",)
  return dataclasses.replace(
    contract,
    **{
      role: dataclasses.replace(contract.role(role), max_length=longest)
      for role in roles
    },
  )


def to_json(
  contract: contract_lib.EncodingContract,
  config: architecture.EncoderConfig,
  *,
  tower: str,
  provenance: Mapping[str, Any],
  step: int,
  masked_lm: bool = False,
) -> dict[str, Any]:
  """What stands in a folder, beside weights, tokenizer and model card.

  Args:
    contract: From `exported_contract`.
    config: The encoder's.
    tower: Which tower it is: "query", "passage", or "both" where they are
      tied.
    provenance: Versions, commit, data fingerprints.
    step: Steps it was trained.
    masked_lm: Whether the head for masked language modelling goes along.

  Returns:
    File name to what `read` reads there.
  """
  longest = contract.sentence.max_length
  folders = {"Transformer": "", "Pooling": "1_Pooling"}
  if config.projection_size:
    folders["Dense"] = "2_Dense"
  if contract.normalize:
    folders["Normalize"] = f"{len(folders)}_Normalize"
  transformer = {"max_seq_length": longest, "do_lower_case": False}
  for role, name in (("query", "query_length"), ("passage", "document_length")):
    if (length := contract.role(role).max_length) != longest:
      transformer[name] = length
  files = {
    MODULES: [
      {"idx": i, "name": str(i), "path": path, "type": f"{_TYPES}{kind}"}
      for i, (kind, path) in enumerate(folders.items())
    ],
    _CONFIG: config.to_hf(masked_lm),
    _TRANSFORMER: transformer,
    _MODEL: {
      "model_type": "SentenceTransformer",
      "prompts": {
        "query": contract.query.prefix,
        "document": contract.passage.prefix,
        "sentence": contract.sentence.prefix,
      },
      "default_prompt_name": "sentence" if contract.sentence.prefix else None,
      "similarity_fn_name": "cosine",
      _MORE: {"title_joiner": contract.title_joiner, "tower": tower},
    },
    f"{folders['Pooling']}/{_CONFIG}": {
      "word_embedding_dimension": config.hidden_size,
      **{
        flag: mode == _POOLINGS[contract.pooling][0]
        for flag, mode in _POOLING_FLAGS.items()
      },
      "include_prompt": True,
    },
    OURS: seal(
      {
        "contract": dataclasses.asdict(contract),
        "tower": tower,
        "encoder": architecture.shape_of(config),
        "provenance": dict(provenance),
        "step": step,
      }
    ),
  }
  if config.projection_size:
    files[f"{folders['Dense']}/{_CONFIG}"] = {
      "in_features": config.hidden_size,
      "out_features": config.projection_size,
      "bias": config.projection_bias,
      "activation_function": _ACTIVATIONS[config.projection_activation],
    }
  return files
