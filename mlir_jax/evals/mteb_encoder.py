"""A retriever in the form that mteb's benchmarks take.

  import mlir_jax, mteb
  from mlir_jax.evals import mteb_encoder

  encoder = mteb_encoder.MtebEncoder(mlir_jax.load("runs/W", "best"))
  results = mteb.evaluate(encoder, mteb.get_tasks(["MIRACLRetrieval"]))

This needs `pip install "mlir_jax[mteb]"`. Nothing else in this package does.
"""

import functools
from typing import Any

import jax
import numpy as np
from etils import epath

from mlir_jax import contract as contract_lib
from mlir_jax.retrieval import fingerprints
from mlir_jax.retrieval import model as model_lib
from mlir_jax.storage import digests

_ROLES = {"query": "query", "document": "passage"}


class MtebEncoder:
  """A retriever as mteb's `EncoderProtocol`.

  Queries are encoded as queries, documents as passages, and all other texts as
  sentences. Titles of documents are joined as the encoding contract says.

  Attributes:
    model: The retriever.
  """

  def __init__(self, model: model_lib.Model):
    """Wraps a retriever.

    Raises:
      ImportError: if mteb is not installed.
    """
    try:
      import mteb  # noqa: F401
    except ImportError as error:
      raise ImportError(
        'This needs mteb: pip install "mlir_jax[mteb]".'
      ) from error
    self.model = model

  def encode(
    self,
    inputs: Any,
    *,
    task_metadata: Any,
    hf_split: str,
    hf_subset: str,
    prompt_type: Any = None,
    batch_size: int = 0,
    show_progress_bar: bool = True,
    precision: str = "float32",
  ) -> np.ndarray:
    """Encodes the texts of a data loader.

    Args:
      inputs: mteb's data loader: batches with "text"; batches of documents
        also have "title" and "body".
      task_metadata: Its name is shown. Its instruction is not used, because
        the contract has a prefix.
      hf_split: Not used.
      hf_subset: Not used, because one model encodes all languages.
      prompt_type: mteb's "query", "document" or None.
      batch_size: Not used, because the model has its own.
      show_progress_bar: Whether long work shows a bar.
      precision: Only "float32" is supported.

    Returns:
      float32 [n, D].
    """
    del hf_split, hf_subset, batch_size
    if precision != "float32":
      raise ValueError(f"precision is {precision!r}; vectors are float32.")
    role = "sentence" if prompt_type is None else _ROLES[prompt_type.value]
    texts, titles = [], []
    for batch in inputs:
      # In "text", mteb has joined "title" and "body" without the contract.
      titled = role == "passage" and "title" in batch
      texts += batch["body" if titled else "text"]
      titles += batch["title"] if titled else [""] * len(batch["text"])
    return self.model.encode(
      texts,
      role,
      titles if role == "passage" else None,
      f"{task_metadata.name}, {role} texts" if show_progress_bar else None,
    )

  def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
    """Returns the scores of all pairs, torch.Tensor [n, m]."""
    from mteb import similarity_functions

    return similarity_functions.select_similarity(
      embeddings1, embeddings2, self.mteb_model_meta.similarity_fn_name
    )

  def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
    """Returns the score of each pair, torch.Tensor [n]."""
    from mteb import similarity_functions

    return similarity_functions.select_pairwise_similarity(
      embeddings1, embeddings2, self.mteb_model_meta.similarity_fn_name
    )

  @functools.cached_property
  def mteb_model_meta(self) -> Any:
    """The model's `ModelMeta`.

    Mteb caches results by name and revision. So the revision consists of the
    step and a hash of weights and contract.
    """
    from mteb.models import model_meta

    model, contract = self.model, self.model.contract
    roles = [contract.role(name) for name in contract_lib.ROLES]
    path = epath.Path(model.path)
    return model_meta.ModelMeta.create_empty(
      {
        "name": f"mlir_jax/{path.name}" if path.is_dir() else model.path,
        "revision": f"{model.step or 0}-{_fingerprint(model)[:12]}",
        "n_parameters": sum(x.size for x in jax.tree.leaves(model.params)),
        "max_tokens": max(role.max_length for role in roles),
        "embed_dim": model.width,
        "framework": ["JAX"],
        "similarity_fn_name": model_meta.ScoringFunction(
          model.similarity_fn_name
        ),
        "use_instructions": any(role.prefix for role in roles),
      }
    )


def _fingerprint(model: model_lib.Model) -> str:
  """Returns a hash of the contract, the prompt and all parameters."""
  return digests.of_value(
    [fingerprints.of_model(model), model.text_encoder.prompt]
  )
