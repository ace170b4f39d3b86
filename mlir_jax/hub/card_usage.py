"""The section of the model card with the code that uses the model."""

import json
from collections.abc import Iterator

from mlir_jax import contract as contract_lib
from mlir_jax.hub import folder
from mlir_jax.models import architecture, hf_config

_POOLING_CODE = {
  "mean": """mask = tokens["attention_mask"].unsqueeze(-1)
vectors = (hidden * mask).sum(dim=1) / mask.sum(dim=1)""",
  "cls": "vectors = hidden[:, 0]",
  "last": """last = tokens["attention_mask"].sum(dim=1) - 1
vectors = hidden[torch.arange(len(hidden)), last]""",
}

# The poolings and activations of text-embeddings-inference: its Pool and
# HiddenAct.
_SERVED_POOLINGS = ("mean", "cls")
_SERVED_ACTIVATIONS = (
  *("gelu", "gelu_new", "gelu_pytorch_tanh"),
  *("relu", "silu"),
)


def make(
  name: str,
  tower: str,
  encoder_config: architecture.EncoderConfig,
  contract: contract_lib.EncodingContract,
) -> str:
  """Returns the section, in Markdown.

  Args:
    name: Of the model, or path of its folder.
    tower: "both", or the tower in the folder.
    encoder_config: The encoder's.
    contract: The export's.
  """
  # Only newer versions of sentence-transformers read it from the folder.
  cut = f", truncate_dim={size}" if (size := contract.truncate_dim) else ""
  if tower == "both":
    load = f'queries = passages = SentenceTransformer("{name}"{cut})'
  else:
    stem = name.removesuffix(tower)
    load = "\n".join(
      f'{texts} = SentenceTransformer("{stem}{role}"{cut})'
      for texts, role in (("queries", "query"), ("passages", "passage"))
    )
  role = "passage" if tower == "passage" else "query"
  settings = contract.role(role)
  text = contract.render(role, "What is the longest river?")
  if role == "passage":
    text = contract.render(role, "It flows to the sea.", "The Nile")
  passage = contract.body("It flows to the sea.", "The Nile")
  newer, versions = "", _needed_version(contract)
  if hf_config.needs_transformers_5(encoder_config):
    newer = " 5 or later"
    versions += f" and transformers{newer}"
  server = _server(tower, encoder_config, contract)
  return f"""With sentence-transformers{versions};
the prefixes and lengths of queries and passages are in the folder:

```python
from sentence_transformers import SentenceTransformer

{load}
query_vectors = queries.encode_query(["What is the longest river?"])
# A passage with a title: title, {quote(contract.title_joiner)}, text.
passage_vectors = passages.encode_document([{quote(passage)}])
scores = queries.similarity(query_vectors, passage_vectors)
```

With transformers{newer} alone, your code does all of it (`pooler_output` is not
trained: it is zeros):

```python
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModel.from_pretrained("{name}")
tokens = tokenizer(
  [{quote(text)}],
  padding=True,
  truncation=True,
  max_length={settings.max_length},
  return_tensors="pt",
)
with torch.no_grad():
  hidden = model(**tokens).last_hidden_state
{_POOLING_CODE[contract.pooling]}
{"".join(_after_pooling(name, encoder_config, contract))}```{server}"""


def _after_pooling(name, encoder_config, contract) -> Iterator[str]:
  """Yields Python lines for the steps after the pooling."""
  if encoder_config.projection_size:
    yield (
      "from safetensors.torch import load_file\n"
      f'dense = load_file("{name}/2_Dense/model.safetensors")\n'
      "vectors = torch.nn.functional.linear(\n"
      '  vectors, dense["linear.weight"], dense.get("linear.bias")\n'
      ")\n"
    )
    if encoder_config.projection_activation == "tanh":
      yield "vectors = torch.tanh(vectors)\n"
  if contract.truncate_dim:
    yield f"vectors = vectors[:, :{contract.truncate_dim}]\n"
  if contract.normalize:
    yield "vectors = torch.nn.functional.normalize(vectors)\n"


def _server(tower, encoder_config, contract) -> str:
  """Says how text-embeddings-inference differs; "" if it cannot serve this."""
  if (
    contract.pooling not in _SERVED_POOLINGS
    or encoder_config.hidden_act not in _SERVED_ACTIVATIONS
    or hf_config.needs_transformers_5(encoder_config)
  ):
    return ""
  roles = folder.roles(contract, tower)
  names = {"query": "query", "passage": "document", "sentence": "sentence"}
  longest = contract.sentence.max_length
  shorter = [
    f"a {role} at {contract.role(role).max_length}"
    for role in roles
    if contract.role(role).max_length < longest
  ]
  text = (
    "\n\ntext-embeddings-inference has no prefix and one length for all texts:"
    " each request must give its `prompt_name` ("
    + ", ".join(f'`"{names[role]}"`' for role in roles)
    + f"), and a text is cut at {longest} tokens"
  )
  if shorter:
    text += f", where this model cuts {' and '.join(shorter)}"
  text += "."
  if contract.truncate_dim:
    text += (
      " Its vectors are whole: cut them to their first"
      f" {contract.truncate_dim} numbers."
    )
  if not contract.normalize:
    text += ' It scales vectors to unit length unless `"normalize": false`.'
  if encoder_config.hidden_act == "gelu":
    text += " Its GELU is the tanh approximation: vectors differ slightly."
  return text


def quote(text: str) -> str:
  """Returns a text in quotation marks, for code."""
  return json.dumps(text, ensure_ascii=False)


def _needed_version(contract) -> str:
  lengths = {contract.role(role).max_length for role in contract_lib.ROLES}
  return " 6 or later" if len(lengths) > 1 else ""
