"""What the files of a sentence-transformers folder are called, and hold.

The reader (`models/layout.py`) and the writer (`hub/settings_files.py`) share
these words.
"""

MODULES = "modules.json"
MODEL = "config_sentence_transformers.json"
TRANSFORMER = "sentence_bert_config.json"
CONFIG = "config.json"  # Of the encoder, and of each module.
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"

TOWERS = ("both", "query", "passage")
TYPES = "sentence_transformers.models."  # Versions 2 to 6 know these.
OURS = "mlir_jax"  # In MODEL: the settings that only this package reads.

# Our pooling to theirs, and to its flag in versions 2 to 5.
POOLINGS = {
  "mean": ("mean", "pooling_mode_mean_tokens"),
  "cls": ("cls", "pooling_mode_cls_token"),
  "last": ("lasttoken", "pooling_mode_lasttoken"),
}
POOLING_FLAGS = {
  **{flag: mode for mode, flag in POOLINGS.values()},
  "pooling_mode_max_tokens": "max",
  "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
  "pooling_mode_weightedmean_tokens": "weightedmean",
}
ACTIVATIONS = {
  "identity": "torch.nn.modules.linear.Identity",
  "tanh": "torch.nn.modules.activation.Tanh",
}

# The field of each role's length, where it is not the folder's one length.
LENGTHS = {"query": "query_length", "passage": "document_length"}
