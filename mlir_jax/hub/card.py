"""The model card of an export: how to use the model, and how good it is."""

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import huggingface_hub

from mlir_jax import contract as contract_lib
from mlir_jax.data import guide_vectors, token_store
from mlir_jax.evals import rendering, report
from mlir_jax.hub import card_usage, check, folder, run_facts
from mlir_jax.losses import registry
from mlir_jax.models import architecture

_TAGS = (
  *("sentence-transformers", "sentence-similarity", "feature-extraction"),
  *("retrieval", "multilingual", "mlir_jax"),
)
_BACKBONE_TAGS = ("fill-mask", "multilingual", "mlir_jax")
_TASKS = {"retrieval": "text-retrieval", "tatoeba": "bitext-mining"}

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


def _streams(config: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
  """Returns each stream of the batch: the stream of its rows, and its size."""
  batch = config["batch"]
  sizes = {stream: (stream, batch[stream]) for stream in token_store.STREAMS}
  sizes["masked"] = ("monolingual", batch.get("masked", 0))
  return {stream: rows for stream, rows in sizes.items() if rows[1]}


def _losses(
  config: Mapping[str, Any],
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
  """Yields name, title and settings of each loss with a weight.

  The title of a user's loss is its target; the user's code is not imported.
  """
  for name, loss in config.items():
    if loss.get("weight") and name in registry.BUILT_IN:
      yield name, registry.BUILT_IN[name].title, loss
  for name, loss in config.get("extra", {}).items():
    if loss["weight"]:
      yield name, f"{name} ({loss['target']})", loss


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
  results: list[run_facts.Results],
  checked: check.Checked,
) -> str:
  """Makes a model card.

  Args:
    name: Of the model, or path of its folder.
    tower: "both", or the tower in the folder.
    config: The run's config.
    encoder_config: The encoder's.
    contract: The export's.
    provenance: The run's.
    step: Steps that the model was trained.
    rows: From `run_facts.find_rows`.
    results: From `run_facts.find_results`.
    checked: From `check.check`.

  Returns:
    Markdown with YAML front matter, as the Hugging Face hub reads it.
  """
  is_retriever = any(
    name != "masked_lm" for name, _, _ in _losses(config["loss"])
  )
  front = _front_matter(name, config, rows, results, is_retriever)
  sections = {
    "": _introduction(
      config, tower, encoder_config, contract, step, is_retriever
    ),
    "Use": card_usage.make(name, tower, encoder_config, contract),
    "How texts become vectors": _contract(contract, tower),
    "Results": _results(results, step),
    "Training": _training(config, rows, provenance),
    "Provenance": _provenance(provenance, step, checked),
  }
  if is_retriever:
    sections["Citation"] = f"The losses are from\n\n```bibtex\n{_CITATION}\n```"
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
          metric_name=report.title(measure),
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
  """Returns the languages of the training data, as ISO 639 codes."""
  codes = {
    language
    for source, _ in _streams(config).values()
    for group in rows.get(source, {})
    for language in group.split("-")
    if re.fullmatch("[a-z]{2,3}", language)
  }
  return sorted(codes) or None


def _introduction(
  config, tower, encoder_config, contract, step, is_retriever
) -> str:
  which = {
    "both": "It encodes queries and passages.",
    "query": "This is its query tower; passages go to the passage tower, in"
    " the folder `passage` next to this one.",
    "passage": "This is its passage tower, for passages and sentences; queries"
    " go to the query tower, in the folder `query` next to this one.",
  }
  head = ""
  if config["batch"].get("masked") and tower != "query":
    head = (
      " The head for masked language modelling is in the folder, too:"
      " `AutoModelForMaskedLM` of transformers loads it."
    )
  steps = f"{step:,} step" + "s" * (step != 1)
  if not is_retriever:
    return (
      "A backbone that was adapted to languages by masked language modelling,"
      f" {steps} with mlir_jax. It was not trained to retrieve: it is for a"
      " training that starts from it (`--config.model.pretrained` of"
      f" mlir_jax).{head}"
    )
  return (
    f"A multilingual dense retriever, trained for {steps} with mlir_jax. It"
    " maps a text to"
    f" {contract.width(encoder_config.output_size)} numbers."
    f" {which[tower]}{head}"
  )


def _contract(contract, tower) -> str:
  calls = {
    "query": "`encode_query`",
    "passage": "`encode_document`",
    "sentence": "`encode`",
  }
  lines = [
    "| role | sentence-transformers | prefix | max. tokens |",
    "|:--|:--|:--|--:|",
  ]
  for role in folder.roles(contract, tower):
    settings = contract.role(role)
    prefix = (
      f"`{card_usage.quote(settings.prefix)}`" if settings.prefix else "none"
    )
    lines.append(
      f"| {role} | {calls[role]} | {prefix} | {settings.max_length} |"
    )
  flat = contract_lib.flat_prompts(contract.prompts)
  if flat:
    names = {"query": "encode_query", "passage": "encode_document"}
    lines += [
      "",
      "Sources of the training data had prompts of their own, in place of the"
      " prefix. `prompt_name` names one of them:",
      "",
      "| role | source | `prompt_name` | prompt |",
      "|:--|:--|:--|:--|",
    ]
    texts = [
      (role, source, text)
      for source, of_source in contract.prompts.items()
      for role, text in of_source.items()
    ]
    for (role, source, text), name in zip(texts, flat, strict=True):
      if role in folder.roles(contract, tower):
        lines.append(
          f"| {role} (`{names[role]}`) | {source} | `{name}` |"
          f" `{card_usage.quote(text)}` |"
        )
  pooling = {
    "mean": "the mean of the tokens' last states",
    "cls": "the first token's last state",
    "last": "the last token's last state",
  }
  unit = "scaled to unit length" if contract.normalize else "not normalized"
  if contract.truncate_dim:
    unit = f"cut to its first {contract.truncate_dim} numbers, {unit}"
  lines += [
    "",
    f"A vector is {pooling[contract.pooling]}, {unit}. A passage's title comes"
    " before its text, joined by"
    f" `{card_usage.quote(contract.title_joiner)}`. Strip texts of white space"
    " at both ends.",
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


def _training(config, rows, provenance) -> str:
  lines = ["| loss | weight | temperature |", "|:--|--:|--:|"]
  for _, title, loss in _losses(config["loss"]):
    lines.append(
      f"| {title} | {loss['weight']:g} | {loss.get('temperature', '–')} |"
    )
  # Older runs have no such field.
  if nested := config["loss"].get("matryoshka", {}).get("dimensions"):
    lines += [
      "",
      "The losses that compare vectors also trained their first numbers"
      f" ({nested}): a vector may be cut to so many, `truncate_dim` of"
      " sentence-transformers.",
    ]
  lines += [
    "",
    f"Data: {run_facts.collection_name(config)}.",
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
    # Older runs did not record it.
    *(["", provenance["selection"]] if provenance.get("selection") else ()),
    *(
      line
      for sentence in guide_vectors.describe_all(provenance, config["loss"])
      for line in ("", sentence)
    ),
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
    # Not a change after which the run went back to an earlier step.
    if not any(
      later["from_step"] and later["step"] <= record["step"]
      for later in history[number:]
    )
    for name, (before, now) in record["changed"].items()
  )
  averaged = ""
  if steps := provenance.get("averaged_steps"):
    listed = ", ".join(f"{each:,}" for each in steps)
    averaged = f" The parameters are the mean of those of the steps {listed}."
  return (
    f"Step {step:,} of a run of mlir_jax {provenance['mlir_jax']}{commit}, on"
    f" {provenance['devices']} × {provenance['device']}, with {versions}."
    f"{changes}{averaged}\n\n"
    f"For a check of this folder, {checked.texts} texts in 16 scripts were"
    f" encoded by mlir_jax and by sentence-transformers {checked.version}: the"
    f" largest difference of a number is {checked.difference:.1g}."
  )
