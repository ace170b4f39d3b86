"""XLM-R large: `xlmr_base` with a backbone of 560 M parameters per tower.

Two towers and their optimizer state take 13 GB, so they are sharded over the
devices. Variants: `:smoke`.
"""

from mlir_jax import config_files


def get_config(variant=""):
  if variant not in ("", "smoke"):
    raise ValueError(f"xlmr_large:{variant}: the only variant is 'smoke'.")
  c = config_files.load(f"xlmr_base:{variant}" if variant else "xlmr_base")
  c.mesh.fsdp = True
  if not variant:
    c.model.pretrained = "FacebookAI/xlm-roberta-large"
    c.optim.learning_rate = 1e-5  # Our choice.
  return c
