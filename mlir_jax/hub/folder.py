"""A trained retriever as a folder that sentence-transformers loads."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers
from safetensors import numpy as safetensors_numpy

from mlir_jax import contract as contract_lib
from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.models import architecture, encoder, families, layout, pretrained
from mlir_jax.storage import digests, locations

README = "README.md"

# What the tokens of the two habits are called, by their padding token.
_SPECIAL_TOKENS = {
  "<pad>": {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
  },
  "[PAD]": {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
  },
}


def check_free(path: str) -> pathlib.Path:
  """The path of a new folder; ValueError if something is there."""
  if not path:
    raise ValueError("--output is empty: name the new folder.")
  folder = pathlib.Path(path).expanduser().resolve()
  if folder.is_mount():
    raise ValueError(
      f"--output={path} is a mount point, which cannot be renamed to: give a"
      " folder in it."
    )
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise ValueError(
      f"--output={path} exists and is not an empty folder: give another."
    )
  locations.check_output(str(folder.parent), f"--output={path}")
  return folder


def towers(params: Mapping) -> dict[str, str]:
  """Subfolder to tower: one "both" where they are tied, else one for each."""
  if "encoder" in params:
    return {"": "both"}
  return {"query": "query", "passage": "passage"}


def roles(contract: contract_lib.EncodingContract, tower: str) -> list[str]:
  """The roles whose texts go to a tower."""
  return [
    role
    for role in contract_lib.ROLES
    if tower in ("both", contract.role(role).tower)
  ]


def write(
  folder: pathlib.Path,
  params: Mapping,
  config: architecture.EncoderConfig,
  contract: contract_lib.EncodingContract,
  tokenizer: tokenizers.Tokenizer,
  *,
  tower: str,
  provenance: Mapping[str, Any],
  step: int,
) -> None:
  """Writes weights, settings and tokenizer; all but the model card.

  Args:
    folder: Where to; made if missing.
    params: Of all towers. The head for masked language modelling, if there
      is one, goes along with the tower that was trained with it.
    config: The encoder's.
    contract: From `layout.exported_contract`.
    tokenizer: The tokenizer.
    tower: "both", or the one to write.
    provenance: Versions, commit, data fingerprints.
    step: Steps it was trained.
  """
  one = encoder.tower_params(params, "query" if tower == "both" else tower)
  # Sentences are what the head reads.
  head = params.get(encoder.MASKED_LM)
  if "sentence" not in roles(contract, tower):
    head = None
  files = layout.to_json(
    contract,
    config,
    tower=tower,
    provenance=provenance,
    step=step,
    masked_lm=head is not None,
  )
  if config.architecture == "modernbert":
    files["config.json"] |= _ids_around_a_text(tokenizer)
  files |= tokenizer_to_json(tokenizer, contract.sentence.max_length)
  ours = files.pop(layout.OURS)
  for name, content in files.items():
    _write_json(folder / name, content)
  (folder / "tokenizer.json").write_text(
    tokenizer.to_str(pretty=True), encoding="utf-8"
  )
  tensors = pretrained.to_hf(one, config, head)
  prefix = "" if head is None else families.NAMES[config.family].prefix
  _save(folder / layout.WEIGHTS, tensors | _pooler(config, prefix))
  if projection := one.get(encoder.PROJECTION):
    (dense,) = folder.glob("*_Dense")
    _save(
      dense / layout.WEIGHTS, pretrained.projection_to_hf(projection, config)
    )
  ours["weights"] = {
    path.relative_to(folder).as_posix(): digests.of_file(path)
    for path in sorted(folder.rglob(layout.WEIGHTS))
  }
  _write_json(folder / layout.OURS, layout.seal(ours))


def _write_json(path: pathlib.Path, content: Any) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(
    json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
  )


def check_one_length(config: architecture.EncoderConfig) -> None:
  """Checks that transformers 4 has words for the encoder.

  Args:
    config: The encoder's.

  Raises:
    ValueError: if it would read another encoder.
  """
  if needs_transformers_5(config):
    full = [
      i
      for i, kind in enumerate(config.layer_types)
      if kind == architecture.FULL
    ]
    raise ValueError(
      "--one_length makes a folder for sentence-transformers 5 on transformers"
      " 4, which has full attention in the layers 0, n, 2n and so on. This"
      f" model has it in {full} of {config.num_layers} layers. Leave"
      " --one_length out: transformers 5 reads the folder."
    )


def needs_transformers_5(config: architecture.EncoderConfig) -> bool:
  """Whether transformers 4 has no words for the encoder, and fails on it."""
  return (
    config.architecture == "modernbert"
    and architecture.full_layer_every(config.layer_types) is None
  )


def _ids_around_a_text(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
  """What text-embeddings-inference requires of a modernbert's config.json.

  Nobody computes with these ids. They stay null where the tokenizer adds no
  tokens to a text.
  """
  ids = tokenizer.encode("").ids
  if not ids:
    return {}
  return dict.fromkeys(architecture.FIRST_TOKEN_IDS, ids[0]) | dict.fromkeys(
    architecture.LAST_TOKEN_IDS, ids[-1]
  )


def _pooler(
  config: architecture.EncoderConfig, prefix: str
) -> dict[str, np.ndarray]:
  """The pooler that transformers' BERT and RoBERTa have and nothing here uses.

  Where it is missing they draw one at random, with a warning; zeros make
  pooler_output 0, which nobody takes for a text's vector.
  """
  if config.family not in ("bert", "roberta", "xlm-roberta"):
    return {}
  size = config.hidden_size
  return {
    f"{prefix}pooler.dense.weight": np.zeros((size, size), np.float32),
    f"{prefix}pooler.dense.bias": np.zeros(size, np.float32),
  }


def _save(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
  safetensors_numpy.save_file(
    {name: np.asarray(array, np.float32) for name, array in tensors.items()},
    path,
    metadata={"format": "pt"},  # Else transformers refuses it.
  )
  # It was made for this user alone; its folder has what new files shall have.
  path.chmod(path.parent.stat().st_mode & 0o666)


def tokenizer_to_json(
  tokenizer: tokenizers.Tokenizer, max_length: int
) -> dict[str, Any]:
  """What makes transformers read tokenizer.json as it stands.

  Args:
    tokenizer: The tokenizer.
    max_length: Of the longest role, in tokens.

  Returns:
    File name to content.

  Raises:
    ValueError: if the tokenizer has no padding token.
  """
  # Marked as special in the tokenizer already: marking others changes it.
  special = {
    token.content
    for token in tokenizer.get_added_tokens_decoder().values()
    if token.special
  }
  pad = tokenizer.id_to_token(tokenizer_lib.pad_id(tokenizer))
  assert pad is not None  # `pad_id` found it by its name.
  tokens = {
    "pad_token": pad,
    **{
      name: token
      for name, token in _SPECIAL_TOKENS[pad].items()
      if token in special
    },
  }
  return {
    "tokenizer_config.json": {
      # Version 5 of transformers reads this name of version 4, too.
      "tokenizer_class": "PreTrainedTokenizerFast",
      "model_max_length": max_length,
      "padding_side": "right",
      "truncation_side": "right",
      # No token types: not every family takes them, and all are 0.
      "model_input_names": ["input_ids", "attention_mask"],
      "clean_up_tokenization_spaces": False,
      **tokens,
    },
    "special_tokens_map.json": tokens,
  }
