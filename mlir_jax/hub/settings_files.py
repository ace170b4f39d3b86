"""The JSON files of an export: settings, and what mlir_jax.json says."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import tokenizers

from mlir_jax import contract as contract_lib
from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.models import architecture, hf_config, layout_files, sealed

# The names of special tokens, in the two usual sets, by padding token.
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


def exported_contract(
  contract: contract_lib.EncodingContract, one_length: bool = False
) -> contract_lib.EncodingContract:
  """Returns the contract that the files of a folder can say.

  sentence-transformers cuts the texts of plain encode() at the folder's
  longest length, so sentences get that length.

  Args:
    contract: The run's contract.
    one_length: Whether queries and passages get that length, too. Version 5
      knows no lengths of roles, and refuses a folder that has them.
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


def check_one_length(config: architecture.EncoderConfig) -> None:
  """Checks that transformers 4 can read the encoder's config.json.

  Raises:
    ValueError: if it would read another encoder.
  """
  if hf_config.needs_transformers_5(config):
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


def make(
  contract: contract_lib.EncodingContract,
  config: architecture.EncoderConfig,
  *,
  tower: str,
  provenance: Mapping[str, Any],
  step: int,
  masked_lm: bool = False,
) -> dict[str, Any]:
  """Returns all JSON files but those of the tokenizer.

  Args:
    contract: From `exported_contract`.
    config: The encoder's.
    tower: "query", "passage", or "both" if the towers are tied.
    provenance: Versions, commit, data fingerprints.
    step: Steps that the model was trained.
    masked_lm: Whether the folder has the head for masked language modelling.

  Returns:
    File name to content: what `layout.read` reads.
  """
  longest = contract.sentence.max_length
  folders = {"Transformer": "", "Pooling": "1_Pooling"}
  if config.projection_size:
    folders["Dense"] = "2_Dense"
  if contract.normalize:
    folders["Normalize"] = f"{len(folders)}_Normalize"
  transformer = {"max_seq_length": longest, "do_lower_case": False}
  for role, name in layout_files.LENGTHS.items():
    if (length := contract.role(role).max_length) != longest:
      transformer[name] = length
  pooling, _ = layout_files.POOLINGS[contract.pooling]
  files = {
    layout_files.MODULES: [
      {
        "idx": i,
        "name": str(i),
        "path": path,
        "type": f"{layout_files.TYPES}{kind}",
      }
      for i, (kind, path) in enumerate(folders.items())
    ],
    layout_files.CONFIG: hf_config.to_dict(config, masked_lm),
    layout_files.TRANSFORMER: transformer,
    layout_files.MODEL: {
      "model_type": "SentenceTransformer",
      "prompts": {
        "query": contract.query.prefix,
        "document": contract.passage.prefix,
        "sentence": contract.sentence.prefix,
        **contract_lib.flat_prompts(contract.prompts),
      },
      # With prompts of sources, a folder must say which one encode() has.
      "default_prompt_name": (
        "sentence" if contract.sentence.prefix or contract.prompts else None
      ),
      "similarity_fn_name": "cosine",
      **(
        {"truncate_dim": contract.truncate_dim} if contract.truncate_dim else {}
      ),
      layout_files.OURS: {
        "title_joiner": contract.title_joiner,
        "tower": tower,
        **({"prompts": contract.prompts} if contract.prompts else {}),
      },
    },
    f"{folders['Pooling']}/{layout_files.CONFIG}": {
      "word_embedding_dimension": config.hidden_size,
      **{
        flag: mode == pooling
        for flag, mode in layout_files.POOLING_FLAGS.items()
      },
      "include_prompt": True,
    },
    sealed.FILE: sealed.seal(
      {
        "contract": contract.to_dict(),
        "tower": tower,
        "encoder": architecture.shape_of(config),
        "provenance": dict(provenance),
        "step": step,
      }
    ),
  }
  if config.projection_size:
    files[f"{folders['Dense']}/{layout_files.CONFIG}"] = {
      "in_features": config.hidden_size,
      "out_features": config.projection_size,
      "bias": config.projection_bias,
      "activation_function": layout_files.ACTIVATIONS[
        config.projection_activation
      ],
    }
  return files


def ids_around_a_text(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
  """Returns what text-embeddings-inference needs in a modernbert's config.json.

  No program computes with these ids. They stay null if the tokenizer adds no
  tokens to a text.
  """
  ids = tokenizer.encode("").ids
  if not ids:
    return {}
  return dict.fromkeys(hf_config.FIRST_TOKEN_IDS, ids[0]) | dict.fromkeys(
    hf_config.LAST_TOKEN_IDS, ids[-1]
  )


def of_tokenizer(
  tokenizer: tokenizers.Tokenizer, max_length: int
) -> dict[str, Any]:
  """Returns the files with which transformers reads tokenizer.json unchanged.

  Args:
    tokenizer: The tokenizer.
    max_length: Of the longest role, in tokens.

  Returns:
    File name to content.

  Raises:
    ValueError: if the tokenizer has no padding token.
  """
  # Only tokens that are special already: marking others changes the tokenizer.
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
    layout_files.TOKENIZER_CONFIG: {
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
