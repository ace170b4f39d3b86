"""mBERT as Hu et al. (2023) train it: `xlmr_base` with another backbone.

Variants: `:smoke`.
"""

from mlir_jax import config_files


def get_config(variant=""):
  if variant not in ("", "smoke"):
    raise ValueError(f"mbert:{variant}: the only variant is 'smoke'.")
  c = config_files.load(f"xlmr_base:{variant}" if variant else "xlmr_base")
  if not variant:
    c.model.pretrained = "google-bert/bert-base-multilingual-cased"
  return c
