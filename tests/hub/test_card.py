"""Promises of the model card: valid, with the run's results and no others."""

import dataclasses
import json

import huggingface_hub
import pytest
import tiny
import yaml

from mlir_jax import contract as contract_lib
from mlir_jax.hub import card, check, run_facts
from mlir_jax.models import architecture

VERSIONS = {"jax": "0.10.2"}
PROVENANCE = {
  "mlir_jax": "0.1.0",
  "commit": "abc",
  "versions": VERSIONS,
  "device": "cpu",
  "devices": 2,
}
CONTRACT = contract_lib.EncodingContract(
  pooling="mean",
  normalize=True,
  title_joiner=" ",
  query=contract_lib.Role("query: ", 16, "query"),
  passage=contract_lib.Role("", 16, "passage"),
  sentence=contract_lib.Role("", 16, "passage"),
  tokenizer_fingerprint="",
  golden_ids=(),
)


@pytest.fixture
def config(tmp_path):
  c = tiny.make_config(tmp_path / "private/names").to_dict()
  c["batch"]["monolingual"] = c["batch"]["masked"] = 0
  return c


def make(config, results=(), rows=None, contract=CONTRACT, history=()):
  return card.make(
    "names",
    "both",
    config=config,
    encoder_config=architecture.EncoderConfig(9, 4, 1, 1, 4, 16),
    contract=contract,
    provenance=PROVENANCE | {"history": list(history)},
    step=3,
    rows=rows or {},
    results=list(results),
    checked=check.Checked(2e-7, 57, "6.2.0"),
  )


def write(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content))


def front_matter(text):
  return yaml.safe_load(text.split("---\n")[1])


def test_changes_before_which_the_run_went_back_are_left_out(config):
  def change(step, name, from_step=True):
    return {"step": step, "from_step": from_step, "changed": {name: [1, 2]}}

  text = make(
    config,
    history=[
      change(1, "optim.b1"),
      change(4, "optim.b2"),
      change(2, "optim.eps"),
      change(5, "train.steps", from_step=False),
    ],
  )
  assert "From step 1 on optim.b1 was 2, before it was 1." in text
  assert "optim.b2" not in text
  assert "From step 2 on optim.eps" in text
  assert "From step 5 on train.steps" in text


def test_a_checkpoint_without_results_is_not_made_to_look_better(config):
  text = make(config)
  assert "This checkpoint was not evaluated." in text
  assert "model-index" not in front_matter(text)
  assert "language" not in front_matter(text)


def test_an_adapted_backbone_is_not_called_a_retriever(config):
  assert "dense retriever, trained for 3 steps" in make(config)
  for name in ("ir", "semantic", "language", "masked_lm"):
    config["loss"][name]["weight"] = float(name == "masked_lm")
  config["batch"] |= dict.fromkeys(("retrieval", "parallel", "monolingual"), 0)
  config["batch"]["masked"] = 8
  text = make(config)
  assert "not trained to retrieve" in text
  assert "AutoModelForMaskedLM" in text
  assert "dense retriever" not in text
  assert "@inproceedings" not in text
  assert front_matter(text)["pipeline_tag"] == "fill-mask"


def test_languages_are_those_of_the_streams_that_took_part(config):
  rows = {
    "retrieval": {"en": 4},
    "parallel": {"swa-en": 2, "zh-Hans-en": 1},
    "monolingual": {"fi": 3},
  }
  text = make(config, rows=rows)
  assert front_matter(text)["language"] == ["en", "swa", "zh"]
  assert "| parallel | 16 | swa-en 2, zh-Hans-en 1 |" in text
  assert "monolingual |" not in text


def test_the_front_matter_is_what_the_hub_reads(config):
  values = {"test/de/mrr@100": 0.25, "tatoeba/de-en/accuracy": 0.5}
  text = make(
    config, [run_facts.Results("names", values, {"de": "taught"}, {})]
  )
  data = huggingface_hub.ModelCard(text).data
  assert [
    (result.metric_type, result.metric_value, result.task_type)
    for result in data.eval_results
  ] == [
    ("mrr_at_100", 0.25, "text-retrieval"),
    ("tatoeba_to_en", 0.5, "bitext-mining"),
  ]
  assert "| **taught** |" in text
  assert front_matter(text)["pipeline_tag"] == "sentence-similarity"
  assert "license" not in front_matter(text)


@pytest.mark.parametrize(
  "pretrained, base, said",
  [
    ("", None, "Trained from scratch"),
    ("intfloat/e5", "intfloat/e5", "Trained from intfloat/e5,"),
    ("/home/me/e5", None, "Trained from e5,"),
  ],
)
def test_the_base_model_is_named_and_no_path(pretrained, base, said, config):
  config["model"]["pretrained"] = pretrained
  text = make(config)
  assert front_matter(text).get("base_model") == base
  assert said in text
  assert "/home/me" not in text
  assert "private" not in text


def test_unequal_lengths_need_version_6(config):
  assert "sentence-transformers 6 or later" not in make(config)
  query = dataclasses.replace(CONTRACT.query, max_length=8)
  shorter = dataclasses.replace(CONTRACT, query=query)
  assert "sentence-transformers 6 or later" in make(config, contract=shorter)


def test_the_card_says_how_a_server_differs_if_it_can_serve(config):
  text = make(config)
  assert '`prompt_name` (`"query"`, `"document"`, `"sentence"`)' in text
  assert "a text is cut at 16 tokens. Its GELU is the tanh" in text
  changed = dataclasses.replace(
    CONTRACT,
    query=dataclasses.replace(CONTRACT.query, max_length=8),
    normalize=False,
  )
  text = make(config, contract=changed)
  assert "at 16 tokens, where this model cuts a query at 8. It scales" in text
  last = dataclasses.replace(CONTRACT, pooling="last")
  assert "text-embeddings-inference" not in make(config, contract=last)


def test_results_of_a_step_are_found_wherever_they_are(config, tmp_path):
  run = tmp_path / "run"
  assert run_facts.find_results(run, config, 3) == []
  write(run / "results/step-2.json", {"test/en/mrr@100": 0.9})
  assert run_facts.find_results(run, config, 3) == []
  write(run / "evaluate-more-names-best/step-3.json", {"test/en/mrr@100": 0.4})
  write(run / "evaluate-names-3/step-3.json", {"test/en/mrr@100": 0.3})
  write(run / "results/step-3.json", {"test/en/mrr@100": 0.2})
  write(
    run / "results/report.json",
    {
      "rows": [
        {"languages": ["en"], "group": "English"},
        {"languages": ["en", "de"], "group": "all"},
      ],
      "shared_with_training": {"en": {}},
    },
  )
  assert run_facts.find_results(run, config, 3) == [
    run_facts.Results(
      "names", {"test/en/mrr@100": 0.2}, {"en": "English"}, {"en": {}}
    ),
    run_facts.Results("more-names", {"test/en/mrr@100": 0.4}, {}, {}),
  ]


@pytest.mark.parametrize(
  "name, content",
  [
    ("step-3.json", {"test/en/mrr@100": "high"}),
    ("step-3.json", {"test/en/mrr@100": [1]}),
    ("step-3.json", {"mrr": 0.5}),
    ("report.json", {"rows": []}),
    ("report.json", {"rows": 5, "shared_with_training": {}}),
    ("report.json", {"rows": [], "shared_with_training": 5}),
    ("report.json", {"rows": [], "shared_with_training": {"en": {"a": 1}}}),
    (
      "report.json",
      {
        "rows": [{"languages": ["en"], "group": 5}],
        "shared_with_training": {},
      },
    ),
  ],
)
def test_damaged_results_are_named(name, content, config, tmp_path):
  run = tmp_path / "run"
  write(run / "results/step-3.json", {"test/en/mrr@100": 0.2})
  write(run / "results" / name, content)
  with pytest.raises(ValueError, match="make it again") as error:
    run_facts.find_results(run, config, 3)
  assert str(run / "results" / name) in str(error.value)
  (run / "results" / name).unlink()
  (run / "results" / name).mkdir()
  with pytest.raises(ValueError, match="a folder"):
    run_facts.find_results(run, config, 3)
