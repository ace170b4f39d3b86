"""The model card of an export: what others must know to use and judge it."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import huggingface_hub
from etils import epath

from mlir_jax import contract as contract_lib
from mlir_jax import workdir
from mlir_jax.data import token_store
from mlir_jax.evals import rendering, report
from mlir_jax.hub import check as check_lib
from mlir_jax.hub import folder as folder_lib
from mlir_jax.losses import registry
from mlir_jax.models import architecture
from mlir_jax.storage import reading

_TAGS = (
  *("sentence-transformers", "sentence-similarity", "feature-extraction"),
  *("retrieval", "multilingual", "mlir_jax"),
)
_BACKBONE_TAGS = ("fill-mask", "multilingual", "mlir_jax")
_TASKS = {"retrieval": "text-retrieval", "tatoeba": "bitext-mining"}
_SHARED = {"queries", "shared_queries", "passages", "shared_passages"}

_CITATION = """@inproceedings{hu-etal-2023-language,
  title = {Language Agnostic Multilingual Information Retrieval with
           Contrastive Learning},
  author = {Hu, Xiyang and Chen, Xinchi and Qi, Peng and Kong, Deguang and
            Liu, Kunlun and Wang, William Yang and Huang, Zhiheng},
  booktitle = {Findings of the Association for Computational Linguistics:
               ACL 2023},
  year = {2023},
  note = {arXiv:2210.06633}
}"""


@dataclasses.dataclass(frozen=True)
class Results:
  """What a checkpoint reached on a collection's tests.

  Attributes:
    collection: The collection's name.
    values: {"test/de/mrr@100": value}.
    groups: Language to its group in the report.
    shared: As `rendering.to_text` takes it.
  """

  collection: str
  values: Mapping[str, float]
  groups: Mapping[str, str]
  shared: Mapping[str, Mapping[str, int]]


def find_results(
  run_folder: epath.Path, config: Mapping[str, Any], step: int
) -> list[Results]:
  """The results of a step that stand in a run's folder.

  Those that training left come first, then those of `mlir_jax.evaluate`.

  Args:
    run_folder: The run's folder.
    config: The run's config.
    step: The step.
  """
  found = {}
  folders = [run_folder / workdir.RESULTS, *run_folder.glob("evaluate-*")]
  for folder in sorted(folders, key=lambda folder: folder.name, reverse=True):
    path = folder / f"step-{step}.json"
    if not path.exists():
      continue
    if folder.name == workdir.RESULTS:
      name = _collection(config)
    else:  # evaluate-COLLECTION-CHECKPOINT
      name = folder.name.split("-", 1)[1].rsplit("-", 1)[0]
    groups, shared = {}, {}
    if (folder / "report.json").exists():
      groups, shared = _read_report(folder / "report.json")
    values = report.read_results(path)
    if values:
      found.setdefault(name, Results(name, values, groups, shared))
  return list(found.values())


def _read_report(
  path: epath.Path,
) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
  """The group of each language, and the texts shared with training."""
  table = reading.read_json(path, mend=report.MAKE_AGAIN)
  groups = {}
  try:
    for row in table["rows"]:
      if len(row["languages"]) == 1:
        groups[row["languages"][0]] = row["group"]
    shared = {
      language: {kind: int(count) for kind, count in counts.items()}
      for language, counts in table["shared_with_training"].items()
    }
    if not all(isinstance(text, str) for text in (*groups, *groups.values())):
      raise TypeError(f"groups {groups}")
    if any(
      counts and not counts.keys() >= _SHARED for counts in shared.values()
    ):
      raise TypeError(f"shared_with_training {shared}")
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise ValueError(
      f"{path} is not a report: {error!r}. {report.MAKE_AGAIN}"
    ) from error
  return groups, shared


def find_rows(run_folder: epath.Path) -> dict[str, dict[str, int]]:
  """Stream to language (or pair) to rows, where the token store is there."""
  path = run_folder / workdir.TOKEN_STORE / "meta.json"
  if not path.is_file():
    return {}
  groups = token_store.read_meta(path).get("groups")
  if (
    not isinstance(groups, dict) or not {*token_store.STREAMS} <= groups.keys()
  ):
    raise ValueError(f"{path}: groups is {groups!r}. {reading.RESTORE}")
  return {stream: groups[stream] for stream in token_store.STREAMS}


def _streams(config: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
  """The streams that took part: whose rows, and how many in a batch."""
  batch = config["batch"]
  sizes = {stream: (stream, batch[stream]) for stream in token_store.STREAMS}
  sizes["masked"] = ("monolingual", batch.get("masked", 0))
  return {stream: rows for stream, rows in sizes.items() if rows[1]}


def _losses(
  config: Mapping[str, Any],
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
  """The losses that had a weight: name, title and settings of each.

  Those of a user are named by their target; no code of theirs is imported.
  """
  for name, loss in config.items():
    if name != "extra" and loss["weight"]:
      yield name, getattr(registry.BUILT_IN.get(name), "title", name), loss
  for name, loss in config.get("extra", {}).items():
    if loss["weight"]:
      yield name, f"{name} ({loss['target']})", loss


def _collection(config: Mapping[str, Any]) -> str:
  """A collection's name; of a folder's path, the last part alone."""
  data = config["data"]
  return pathlib.PurePath(data["root"] or data["collection"]).name


def make(
  name: str,
  tower: str,
  *,
  config: Mapping[str, Any],
  encoder_config: architecture.EncoderConfig,
  contract: contract_lib.EncodingContract,
  provenance: Mapping[str, Any],
  step: int,
  rows: Mapping[str, Mapping[str, int]],
  results: list[Results],
  checked: check_lib.Checked,
) -> str:
  """Writes a model card.

  Args:
    name: Of the model, or path of its folder.
    tower: "both", or the one that the folder holds.
    config: The run's config.
    encoder_config: The encoder's.
    contract: The export's.
    provenance: The run's.
    step: Steps it was trained.
    rows: From `find_rows`.
    results: From `find_results`.
    checked: From `check.check`.

  Returns:
    Markdown with YAML front matter, as the Hugging Face hub reads it.
  """
  is_retriever = any(
    name != "masked_lm" for name, _, _ in _losses(config["loss"])
  )
  front = _front_matter(name, config, rows, results, is_retriever)
  sections = {
    "": _introduction(config, tower, encoder_config, step, is_retriever),
    "Use": _usage(name, tower, encoder_config, contract),
    "How texts become vectors": _contract(contract, tower),
    "Results": _results(results, step),
    "Training": _training(config, rows),
    "Provenance": _provenance(provenance, step, checked),
  }
  if is_retriever:
    sections["Citation"] = (
      f"The losses are those of\n\n```bibtex\n{_CITATION}\n```"
    )
  body = "\n\n".join(
    f"## {title}\n\n{text}" if title else text
    for title, text in sections.items()
  )
  return f"---\n{front}\n---\n\n# {name}\n\n{body}\n"


def _front_matter(name, config, rows, results, is_retriever) -> str:
  evaluated = []
  for found in results:
    for result, value in found.values.items():
      if report.split_extra(result):
        continue  # It has no dataset; the table of results has it.
      split, language, measure = report.parse(result)
      kind = result.split("/")[0]
      evaluated.append(
        huggingface_hub.EvalResult(
          task_type=_TASKS.get(kind, _TASKS["retrieval"]),
          dataset_type=found.collection,
          dataset_name=f"{found.collection} ({language}, {split})",
          dataset_config=language,
          dataset_split=split,
          metric_type=measure.replace("@", "_at_").replace(" ", "_"),
          metric_name=report.TITLES.get(measure, measure),
          metric_value=value,
        )
      )
  pretrained = config["model"]["pretrained"]
  is_hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", pretrained)
  return huggingface_hub.ModelCardData(
    language=_languages(config, rows),
    library_name="sentence-transformers",
    pipeline_tag="sentence-similarity" if is_retriever else "fill-mask",
    tags=list(_TAGS if is_retriever else _BACKBONE_TAGS),
    base_model=pretrained if is_hub_name else None,
    model_name=name,
    eval_results=evaluated or None,
  ).to_yaml()


def _languages(
  config: Mapping[str, Any], rows: Mapping[str, Mapping[str, int]]
) -> list[str] | None:
  """The languages trained on, as ISO 639 codes."""
  codes = {
    language
    for source, _ in _streams(config).values()
    for group in rows.get(source, {})
    for language in group.split("-")
    if re.fullmatch("[a-z]{2,3}", language)
  }
  return sorted(codes) or None


def _introduction(config, tower, encoder_config, step, is_retriever) -> str:
  which = {
    "both": "It encodes queries and passages.",
    "query": "This is its query tower; passages go to the passage tower, in"
    " the folder `passage` beside this one.",
    "passage": "This is its passage tower, for passages and sentences; queries"
    " go to the query tower, in the folder `query` beside this one.",
  }
  head = ""
  if config["batch"].get("masked") and tower != "query":
    head = (
      " Its head for masked language modelling is there, too:"
      " `AutoModelForMaskedLM` of transformers loads it."
    )
  steps = f"{step:,} step" + "s" * (step != 1)
  if not is_retriever:
    return (
      "A backbone that was adapted to languages by masked language modelling,"
      f" {steps} with mlir_jax. It was not trained to retrieve: its vectors are"
      " where such a training starts"
      f" (`--config.model.pretrained` of mlir_jax).{head}"
    )
  return (
    f"A multilingual dense retriever, trained for {steps} with mlir_jax. It"
    " maps a text to"
    f" {encoder_config.output_size} numbers. {which[tower]}{head}"
  )


def _usage(name, tower, encoder_config, contract) -> str:
  if tower == "both":
    load = f'queries = passages = SentenceTransformer("{name}")'
  else:
    stem = name.removesuffix(tower)
    load = "\n".join(
      f'{text} = SentenceTransformer("{stem}{folder}")'
      for text, folder in (("queries", "query"), ("passages", "passage"))
    )
  role = "passage" if tower == "passage" else "query"
  settings = contract.role(role)
  text = contract.render(role, "What is the longest river?")
  if role == "passage":
    text = contract.render(role, "It flows to the sea.", "The Nile")
  passage = contract.body("It flows to the sea.", "The Nile")
  newer, versions = "", _needed_version(contract)
  if folder_lib.needs_transformers_5(encoder_config):
    newer = " 5 or later"
    versions += f" and transformers{newer}"
  server = _server(tower, encoder_config, contract)
  return f"""With sentence-transformers{versions};
the prefixes and lengths of queries and passages are in the folder:

```python
from sentence_transformers import SentenceTransformer

{load}
query_vectors = queries.encode_query(["What is the longest river?"])
# A passage with a title: title, {_quote(contract.title_joiner)}, text.
passage_vectors = passages.encode_document([{_quote(passage)}])
scores = queries.similarity(query_vectors, passage_vectors)
```

With transformers{newer} alone, all of it is to be said (`pooler_output` is not
trained: zeros):

```python
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModel.from_pretrained("{name}")
tokens = tokenizer(
  [{_quote(text)}],
  padding=True,
  truncation=True,
  max_length={settings.max_length},
  return_tensors="pt",
)
with torch.no_grad():
  hidden = model(**tokens).last_hidden_state
{_POOLING_CODE[contract.pooling]}
{"".join(_after_pooling(name, encoder_config, contract))}```{server}"""


_POOLING_CODE = {
  "mean": """mask = tokens["attention_mask"].unsqueeze(-1)
vectors = (hidden * mask).sum(dim=1) / mask.sum(dim=1)""",
  "cls": "vectors = hidden[:, 0]",
  "last": """last = tokens["attention_mask"].sum(dim=1) - 1
vectors = hidden[torch.arange(len(hidden)), last]""",
}


def _after_pooling(name, encoder_config, contract) -> Iterator[str]:
  """Lines of Python for what follows the pooling."""
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
  if contract.normalize:
    yield "vectors = torch.nn.functional.normalize(vectors)\n"


# Whose settings text-embeddings-inference knows: its Pool and HiddenAct.
_SERVED_POOLINGS = ("mean", "cls")
_SERVED_ACTIVATIONS = (
  *("gelu", "gelu_new", "gelu_pytorch_tanh"),
  *("relu", "silu"),
)


def _server(tower, encoder_config, contract) -> str:
  """What text-embeddings-inference does otherwise, where it can serve this."""
  if (
    contract.pooling not in _SERVED_POOLINGS
    or encoder_config.hidden_act not in _SERVED_ACTIVATIONS
    or folder_lib.needs_transformers_5(encoder_config)
  ):
    return ""
  roles = folder_lib.roles(contract, tower)
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
  if not contract.normalize:
    text += ' It scales vectors to unit length unless `"normalize": false`.'
  if encoder_config.hidden_act == "gelu":
    text += " Its GELU is the tanh approximation: vectors differ slightly."
  return text


def _quote(text: str) -> str:
  return json.dumps(text, ensure_ascii=False)


def _needed_version(contract) -> str:
  lengths = {contract.role(role).max_length for role in contract_lib.ROLES}
  return " 6 or later" if len(lengths) > 1 else ""


def _contract(contract, tower) -> str:
  calls = {
    "query": "`encode_query`",
    "passage": "`encode_document`",
    "sentence": "`encode`",
  }
  lines = [
    "| role | sentence-transformers | prefix | tokens at most |",
    "|:--|:--|:--|--:|",
  ]
  for role in folder_lib.roles(contract, tower):
    settings = contract.role(role)
    prefix = f"`{_quote(settings.prefix)}`" if settings.prefix else "none"
    lines.append(
      f"| {role} | {calls[role]} | {prefix} | {settings.max_length} |"
    )
  pooling = {
    "mean": "the mean of the tokens' last states",
    "cls": "the first token's last state",
    "last": "the last token's last state",
  }
  unit = "scaled to unit length" if contract.normalize else "not normalized"
  lines += [
    "",
    f"A vector is {pooling[contract.pooling]}, {unit}. A passage's title comes"
    f" before its text, joined by `{_quote(contract.title_joiner)}`. Strip"
    " texts of white space at both ends.",
  ]
  return "\n".join(lines)


def _results(results, step) -> str:
  if not results:
    return "This checkpoint was not evaluated."
  parts = []
  for found in results:
    table = report.make_table({f"step {step:,}": found.values}, found.groups)
    parts.append(f"Collection: {found.collection}.")
    parts.append(rendering.to_markdown(table, found.shared).strip())
  return "\n\n".join(parts)


def _training(config, rows) -> str:
  lines = ["| loss | weight | temperature |", "|:--|--:|--:|"]
  for _, title, loss in _losses(config["loss"]):
    lines.append(
      f"| {title} | {loss['weight']:g} | {loss.get('temperature', '–')} |"
    )
  lines += [
    "",
    f"Data: {_collection(config)}.",
    "",
    "| stream | rows in a batch | rows by language |",
    "|:--|--:|:--|",
  ]
  for stream, (source, size) in _streams(config).items():
    counts = rows.get(source, {})
    languages = ", ".join(f"{name} {n:,}" for name, n in counts.items())
    lines.append(f"| {stream} | {size} | {languages or 'not known'} |")
  model = config["model"]
  if model["pretrained"]:
    start = f"from {pathlib.PurePath(model['pretrained']).name}"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model["pretrained"]):
      start = f"from {model['pretrained']}"
  else:
    start = "from scratch"
  optim = config["optim"]
  lines += [
    "",
    f"Trained {start}, the towers {model['towers']}, activations in"
    f" {model['dtype']}, with AdamW at a learning rate of"
    f" {optim['learning_rate']:g} ({optim['decay']} decay over"
    f" {config['train']['steps']:,} steps).",
  ]
  return "\n".join(lines)


def _provenance(provenance, step, checked) -> str:
  versions = ", ".join(
    f"{name} {version}" for name, version in provenance["versions"].items()
  )
  commit = f", commit {provenance['commit']}" if provenance["commit"] else ""
  history = provenance.get("history", ())
  changes = "".join(
    f" From step {record['step']:,} on {name} was {now}, before it was"
    f" {before}."
    for number, record in enumerate(history, start=1)
    # The run may have gone back to before the change.
    if not any(
      later["from_step"] and later["step"] <= record["step"]
      for later in history[number:]
    )
    for name, (before, now) in record["changed"].items()
  )
  return (
    f"Step {step:,} of a run of mlir_jax {provenance['mlir_jax']}{commit}, on"
    f" {provenance['devices']} × {provenance['device']}, with {versions}."
    f"{changes}\n\n"
    f"Before it was written, {checked.texts} texts in 16 scripts were encoded"
    " by mlir_jax and by"
    f" sentence-transformers {checked.version}: the largest difference of a"
    f" number is {checked.difference:.1g}."
  )
