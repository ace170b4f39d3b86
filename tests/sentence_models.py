"""A tiny sentence-transformers model, saved by sentence-transformers itself."""

import pathlib

import hf_models
import sentence_transformers
import tiny
from sentence_transformers.sentence_transformer import modules

from mlir_jax.data import tokenizer as tokenizer_lib

PROMPTS = {"query": "apple: ", "document": "river: ", "sentence": "cloud: "}
LENGTH = 20


def save(folder: pathlib.Path, normalize: bool = True, **settings):
  """Saves a random BERT of 24 numbers whose prompts matter.

  Args:
    folder: Where.
    normalize: Whether a Normalize module ends it.
    **settings: Of the SentenceTransformer.

  Returns:
    The model, read from the folder.
  """
  plain = folder.with_name(f"{folder.name}-plain")
  hf_models.random_model(plain, "bert", vocab_size=120)
  hf_models.save_tokenizer(tokenizer_lib.train(tiny.WORDS, 120), plain)
  transformer = modules.Transformer(str(plain), **hf_models.UNTRUSTED)
  transformer.max_seq_length = LENGTH
  parts = [transformer, modules.Pooling(24, "mean")]
  if normalize:
    parts.append(modules.Normalize())
  made = sentence_transformers.SentenceTransformer(
    modules=parts,
    device="cpu",
    trust_remote_code=False,
    **{"prompts": PROMPTS, "default_prompt_name": "sentence"} | settings,
  )
  made.save(str(folder), create_model_card=False)
  return sentence_transformers.SentenceTransformer(
    str(folder), device="cpu", trust_remote_code=False
  )
