"""Small random models of each family, saved by transformers itself."""

import pathlib

import torch
import transformers

# For sentence-transformers' Transformer, which loads three parts: no code of a
# folder runs.
UNTRUSTED = {
  f"{part}_kwargs": {"trust_remote_code": False}
  for part in ("model", "processor", "config")
}
SHAPE = {
  "vocab_size": 131,
  "hidden_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "intermediate_size": 40,
  "max_position_embeddings": 23,
  "initializer_range": 0.3,
}
# The configs of each family, and how they differ from SHAPE.
FAMILIES = {
  "bert": (transformers.BertConfig, {"type_vocab_size": 2}),
  "roberta": (
    transformers.RobertaConfig,
    {"pad_token_id": 1, "max_position_embeddings": 25, "type_vocab_size": 1},
  ),
  # A pad id that is not 1 moves all positions.
  "xlm-roberta": (
    transformers.XLMRobertaConfig,
    {"pad_token_id": 3, "max_position_embeddings": 27, "type_vocab_size": 1},
  ),
  "distilbert": (
    transformers.DistilBertConfig,
    {
      "vocab_size": 131,
      "dim": 24,
      "n_layers": 2,
      "n_heads": 3,
      "hidden_dim": 40,
      "max_position_embeddings": 23,
      "initializer_range": 0.3,
    },
  ),
  # A window that texts of the tests go beyond, in two layers of three.
  "modernbert": (
    transformers.ModernBertConfig,
    {
      "num_hidden_layers": 3,
      "num_attention_heads": 2,
      "local_attention": 6,
      "pad_token_id": 0,
      "cls_token_id": 1,
      "sep_token_id": 2,
      "bos_token_id": 1,
      "eos_token_id": 2,
      "global_rope_theta": 500.0,
      "local_rope_theta": 30.0,
    },
  ),
}


def random_model(
  folder: pathlib.Path, family: str, masked_lm: bool = False, **changes
) -> pathlib.Path:
  """Saves a random model whose weights are large enough to matter."""
  torch.manual_seed(0)
  make_config, settings = FAMILIES[family]
  shape = {} if family == "distilbert" else SHAPE
  config = make_config(**(shape | settings | changes))
  auto = (
    transformers.AutoModelForMaskedLM if masked_lm else transformers.AutoModel
  )
  model = auto.from_config(config, trust_remote_code=False)
  with torch.no_grad():  # Else biases are 0 and layer norms 1.
    for parameter in model.parameters():
      parameter += 0.1 * torch.randn_like(parameter)
  model.save_pretrained(folder)
  return folder


def save_tokenizer(tokenizer, folder) -> None:
  """Saves a `tokenizers.Tokenizer` as XLM-R's families have theirs."""
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    pad_token="<pad>",
    unk_token="<unk>",
    cls_token="<s>",
    sep_token="</s>",
  ).save_pretrained(folder)
