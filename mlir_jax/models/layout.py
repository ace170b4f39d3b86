"""Reads how a model encodes from its folder, as sentence-transformers does.

modules.json lists the modules, and each module has settings of its own. Every
setting that this package does not support is refused with its file and field:
without that, a model that we encode with wrongly looks like a bad model. The
folders of versions 2 to 6 are read, without torch.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from mlir_jax import contract as contract_lib
from mlir_jax.models import architecture, hf_config, layout_files, sealed
from mlir_jax.storage import reading

# TRANSFORMER in version 1 and before.
_OLD_TRANSFORMERS = ("roberta", "distilbert", "xlm-roberta")

_KINDS = ("Transformer", "Pooling", "Dense", "Normalize")
_FLAG = "pooling_mode_"

# Settings with one supported value; a setting that is left out has it, too.
_TRANSFORMER_FIXED = {
  "do_lower_case": False,
  "transformer_task": "feature-extraction",
  "modality_config": {
    "text": {"method": "forward", "method_output_name": "last_hidden_state"}
  },
  "module_output_name": "token_embeddings",
}
_TRANSFORMER_FREE = (
  *("max_seq_length", *layout_files.LENGTHS.values()),
  "unpad_inputs",  # Changes the speed alone.
)
_VECTOR_FIXED = {
  "module_input_name": "sentence_embedding",
  "module_output_name": "sentence_embedding",
}
_DENSE_FIXED = _VECTOR_FIXED | {"use_residual": False}
_MODEL_FIXED = {"model_type": "SentenceTransformer"}
_SIMILARITIES = ("cosine", "dot")

_PASSAGE_PROMPTS = ("document", "passage", "corpus")
_UNLIMITED = 1e6  # A tokenizer without a length says 1e30.
_MAX_SIZE = 10**6  # Numbers in a vector.


class LayoutError(ValueError):
  """A folder that is not supported; the message names file and field."""


@dataclasses.dataclass(frozen=True)
class Projection:
  """A dense layer after the pooling.

  Attributes:
    weights: A safetensors file with linear.weight, [size, in_features], and
      linear.bias, [size].
    in_features: Width of the pooled vectors.
    size: Width of the projected vectors.
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
  """What a model's folder says about how it encodes.

  Attributes:
    folder: The folder.
    transformer: The folder with config.json, weights and tokenizer.json:
      `folder`, or a folder in it.
    known: Whether it is a sentence-transformers folder. A plain Hugging Face
      folder says nothing about what follows.
    encoding: What it says of the contract. Only our own exports have a
      title_joiner and prompts of sources.
    tower: "both", or "query" or "passage" if an export holds only one.
    undecided: A field that is open in `encoding` ("query.prefix"), and the
      reason why a config must set it.
    projection: The dense layer after the pooling, if there is one.
    similarity: How vectors are compared, "cosine" or "dot"; "cosine" if the
      folder does not say it.
    ours: From `sealed.read`, if this package wrote the folder.
  """

  folder: pathlib.Path
  transformer: pathlib.Path
  known: bool = False
  encoding: contract_lib.PartialContract = dataclasses.field(
    default_factory=contract_lib.PartialContract
  )
  tower: str = "both"
  undecided: Mapping[str, str] = dataclasses.field(default_factory=dict)
  projection: Projection | None = None
  similarity: str = "cosine"
  ours: Mapping[str, Any] | None = None


def read(folder: pathlib.Path) -> Layout:
  """Reads how a model encodes.

  An export is compared with the contract in its mlir_jax.json. The tokenizer
  is compared later, where texts are encoded.

  Args:
    folder: A sentence-transformers folder, or a plain Hugging Face one.

  Raises:
    LayoutError: if something is not supported.
    SealError, ContractMismatchError: if an export is damaged or was changed.
  """
  if not (folder / layout_files.MODULES).exists():
    return _read_plain(folder)
  modules = _read_modules(folder / layout_files.MODULES)
  _read_config(modules["Transformer"])
  path = folder / layout_files.MODEL
  model = read_json(path, required=False)
  _check_fixed(path, model, _MODEL_FIXED)
  _check_prompts(path, model)
  similarity = model.get("similarity_fn_name") or "cosine"
  if similarity not in _SIMILARITIES:
    raise LayoutError(
      f"{path}: similarity_fn_name is {similarity!r}; only the cosine and the"
      " dot product are supported."
    )
  prefixes, undecided = _read_prompts(path, model)
  title_joiner, tower, own_prompts = _read_ours(path, model)
  lengths = _read_lengths(modules["Transformer"])
  encoding = contract_lib.PartialContract(
    pooling=_read_pooling(modules["Pooling"] / layout_files.CONFIG, model),
    normalize="Normalize" in modules,
    title_joiner=title_joiner,
    **{
      role: contract_lib.PartialRole(prefixes[role], lengths[role])
      for role in contract_lib.ROLES
    },
    prompts=own_prompts,
    truncate_dim=_read_truncate_dim(path, model),
  )
  if encoding.truncate_dim and encoding.normalize and similarity == "dot":
    raise LayoutError(
      f"{path}: similarity_fn_name is 'dot', and truncate_dim is"
      f" {encoding.truncate_dim}: sentence-transformers cuts vectors after it"
      " has scaled them to unit length, and they keep the lengths that are"
      " left. Set 'cosine', with which lengths do not matter."
    )
  projection = _read_dense(modules["Dense"]) if "Dense" in modules else None
  if "Normalize" in modules:
    path = modules["Normalize"] / layout_files.CONFIG
    _check_fixed(path, read_json(path, required=False), _VECTOR_FIXED)
  ours = None
  if (folder / sealed.FILE).exists():
    ours = sealed.read(folder, encoding, tower)
    encoding = contract_lib.EncodingContract.from_dict(
      ours["contract"]
    ).partial()
    tower = ours["tower"]
  return Layout(
    folder=folder,
    transformer=modules["Transformer"],
    known=True,
    encoding=encoding,
    tower=tower or "both",
    undecided=undecided,
    projection=projection,
    similarity=similarity,
    ours=ours,
  )


def _read_plain(folder: pathlib.Path) -> Layout:
  """Reads a folder without modules.json: a plain Hugging Face one."""
  if not (folder / layout_files.CONFIG).exists():
    towers = [
      name
      for name in layout_files.TOWERS
      if (folder / name / layout_files.MODULES).is_file()
    ]
    hint = f" It holds towers: give one of {towers} in it." if towers else ""
    raise LayoutError(
      f"{folder} has neither {layout_files.MODULES} nor"
      f" {layout_files.CONFIG}.{hint}"
    )
  _read_config(folder)  # An unsupported family is refused first.
  return Layout(folder, folder)


def read_json(
  path: pathlib.Path, kind: type = dict, *, required: bool = True
) -> Any:
  """Returns a JSON file's content; an empty one if it may be missing.

  Raises:
    LayoutError: if the file cannot be read; see `reading.read_json`.
  """
  if not required and not path.exists() and not path.is_symlink():
    return kind()
  try:
    return reading.read_json(path, kind)
  except reading.UnreadableError as error:
    raise LayoutError(str(error)) from error


def _read_config(folder: pathlib.Path) -> architecture.EncoderConfig:
  try:
    return hf_config.read(folder / layout_files.CONFIG)
  except ValueError as error:
    raise LayoutError(str(error)) from error


def _check_fixed(path: pathlib.Path, found: Mapping, fixed: Mapping) -> None:
  for name, value in fixed.items():
    if found.get(name) not in (None, value):
      raise LayoutError(
        f"{path}: {name} is {found[name]!r}; only {value!r} is supported."
      )


def _read_modules(path: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the folder of each module, by the last part of its type."""
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
  # Versions 2 to 5 have a flag for each pooling.
  flag_modes = layout_files.POOLING_FLAGS
  flags = {name: found[name] for name in found if name.startswith(_FLAG)}
  for flag, value in flags.items():
    if not isinstance(value, bool) or (value and flag not in flag_modes):
      raise LayoutError(
        f"{path}: {flag} is {value!r}; one of {', '.join(flag_modes)} can be"
        " true."
      )
  flagged = [mode for flag, mode in flag_modes.items() if flags.get(flag)]
  modes = found.get("pooling_mode", flagged if flags else "mean")
  modes = modes if isinstance(modes, list) else [modes]
  modes = [str(mode) for mode in modes]
  poolings = {mode: ours for ours, (mode, _) in layout_files.POOLINGS.items()}
  if len(modes) != 1 or modes[0] not in poolings:
    raise LayoutError(
      f"{path}: pooling_mode is {' and '.join(modes) or 'not set'}; one of"
      f" {', '.join(poolings)} is supported."
    )
  if flagged and flagged != modes:
    raise LayoutError(
      f"{path}: pooling_mode is {modes[0]}, but the flags next to it say"
      f" {' and '.join(flagged)}."
    )
  if not isinstance(found.get("include_prompt", True), bool):
    raise LayoutError(
      f"{path}: include_prompt is {found['include_prompt']!r}, not true or"
      " false."
    )
  if found.get("include_prompt") is False and any(_prompts(model).values()):
    raise LayoutError(
      f"{path}: include_prompt is False, and there are prompts; a pooling"
      " without the prompts' tokens is not supported."
    )
  return poolings[modes[0]]


def _read_dense(folder: pathlib.Path) -> Projection:
  path = folder / layout_files.CONFIG
  found = read_json(path)
  _check_fixed(path, found, _DENSE_FIXED)
  activations = layout_files.ACTIVATIONS
  # The default of sentence-transformers is tanh.
  name = str(found.get("activation_function") or activations["tanh"])
  package, _, kind = name.rpartition(".")
  if package.split(".")[0] != "torch" or kind.lower() not in activations:
    raise LayoutError(
      f"{path}: activation_function is {name!r}; Identity and Tanh of torch.nn"
      " are supported."
    )
  if not (folder / layout_files.WEIGHTS).exists():
    raise LayoutError(
      f"{folder} has no {layout_files.WEIGHTS}. Pickles (pytorch_model.bin) are"
      " never loaded, since loading one can run any code. If you trust the"
      " model, convert it once: sentence_transformers.SentenceTransformer("
      "FOLDER).save(NEW_FOLDER)."
    )
  for field in ("in_features", "out_features"):
    if type(found.get(field)) is not int or not 1 <= found[field] <= _MAX_SIZE:
      raise LayoutError(
        f"{path}: {field} is {found.get(field)!r}; it must be a whole number"
        f" from 1 to {_MAX_SIZE:,}."
      )
  if not isinstance(found.get("bias", True), bool):
    raise LayoutError(f"{path}: bias is {found['bias']!r}, not true or false.")
  return Projection(
    weights=folder / layout_files.WEIGHTS,
    in_features=found["in_features"],
    size=found["out_features"],
    bias=found.get("bias", True),
    activation=kind.lower(),
  )


def _read_ours(
  path: pathlib.Path, model: Mapping
) -> tuple[str | None, str | None, contract_lib.Prompts | None]:
  """Reads title joiner, tower and prompts; None if the folder has none.

  sentence-transformers has no such settings, and ignores ours. So a copy of
  an export keeps them if mlir_jax.json is lost.
  """
  found = model.get(layout_files.OURS)
  if found is None:
    return None, None, None
  if (
    not isinstance(found, dict)
    or not isinstance(found.get("title_joiner"), str)
    or found.get("tower") not in layout_files.TOWERS
    or contract_lib.problem_of_prompts(found.get("prompts", {}))
  ):
    raise LayoutError(
      f"{path}: {layout_files.OURS} is {found!r}; it holds title_joiner, a"
      f" text, and tower, one of {layout_files.TOWERS}, and perhaps prompts, a"
      f" text for each name and role. {reading.RESTORE}"
    )
  return found["title_joiner"], found["tower"], found.get("prompts", {})


def _read_truncate_dim(path: pathlib.Path, model: Mapping) -> int | None:
  """Reads to how many numbers vectors are cut; None for whole vectors."""
  found = model.get("truncate_dim")
  if found is None:
    return None
  if type(found) is not int or not 1 <= found <= _MAX_SIZE:
    raise LayoutError(
      f"{path}: truncate_dim is {found!r}; it must be null or a whole number"
      f" from 1 to {_MAX_SIZE:,}."
    )
  return found


def _check_prompts(path: pathlib.Path, model: Mapping) -> None:
  prompts = model.get("prompts") or {}
  if not isinstance(prompts, dict) or not all(
    isinstance(prompt, str | None) for prompt in prompts.values()
  ):
    raise LayoutError(
      f"{path}: prompts is {prompts!r}; it must be a text for each name."
    )


def _prompts(model: Mapping) -> dict[str, str]:
  found = model.get("prompts") or {}
  return {name: prompt or "" for name, prompt in found.items()}


def _read_prompts(
  path: pathlib.Path, model: Mapping
) -> tuple[dict[str, str | None], dict[str, str]]:
  """Reads each role's prefix; says of each one that is open why it is.

  Returns:
    Role to prefix, and field ("query.prefix") to reason.
  """
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
    "sentence": default,  # The one of encode().
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
      undecided[f"{role}.prefix"] = (
        f"{path}: prompts has one per task ({', '.join(map(repr, tasks))}) and"
        f" none for the role {role!r}; say which prefix it has."
      )
    else:
      prefixes[role] = ""
  return prefixes, undecided


def _read_lengths(folder: pathlib.Path) -> dict[str, int]:
  """Reads the maximum length of each role, in tokens."""
  names = [
    layout_files.TRANSFORMER,
    *(f"sentence_{name}_config.json" for name in _OLD_TRANSFORMERS),
  ]
  path = next(
    (folder / name for name in names if (folder / name).is_file()),
    folder / layout_files.TRANSFORMER,
  )
  found = read_json(path, required=False)
  _check_fixed(path, found, _TRANSFORMER_FIXED)
  for name in found.keys() - {*_TRANSFORMER_FIXED, *_TRANSFORMER_FREE}:
    if found[name]:
      raise LayoutError(
        f"{path}: {name} is {found[name]!r}, which is not supported."
      )
  tokenizer_path = folder / layout_files.TOKENIZER_CONFIG
  tokenizer = read_json(tokenizer_path, required=False)
  _check_fixed(tokenizer_path, tokenizer, {"truncation_side": "right"})
  positions = _read_config(folder).max_length
  if positions < contract_lib.MIN_LENGTH:
    raise LayoutError(
      f"{folder / layout_files.CONFIG}: max_position_embeddings leaves room"
      f" for texts of {positions} tokens; at least {contract_lib.MIN_LENGTH}"
      " are needed."
    )
  longest, said_by = found.get("max_seq_length"), f"{path}: max_seq_length"
  if longest is None:
    longest = positions
    said = tokenizer.get("model_max_length")
    if said is not None and not isinstance(said, int | float):
      raise LayoutError(f"{tokenizer_path}: model_max_length is {said!r}.")
    if said is not None and said < _UNLIMITED:
      longest = said
      said_by = f"{tokenizer_path}: model_max_length"
  lengths: dict[str, Any] = dict.fromkeys(contract_lib.ROLES, longest)
  places: dict[str, str] = dict.fromkeys(contract_lib.ROLES, said_by)
  for role, name in layout_files.LENGTHS.items():
    if found.get(name) is not None:
      lengths[role], places[role] = found[name], f"{path}: {name}"
  for role, length in lengths.items():
    if type(length) is not int or length < contract_lib.MIN_LENGTH:
      raise LayoutError(
        f"{places[role]} is {length!r}; it must be a whole number of tokens,"
        f" at least {contract_lib.MIN_LENGTH}."
      )
  # In some folders the length is more than there are positions;
  # sentence-transformers fails on a text of such a length.
  return {role: min(length, positions) for role, length in lengths.items()}
