"""Evaluates models and other systems: one table of all languages.

python -m mlir_jax.evaluate --workdir=W --checkpoint=best
python -m mlir_jax.evaluate --model=A --model=B --hybrid --root=R --output=O

The tests come from the collection that the run was trained on, or from another
one: --collection=folder --root=FOLDER. A language keeps the group that it had
in training, whatever collection the tests come from. A model that was not
trained here is evaluated with --model and --output; its languages have no
groups. --bm25, --run and --system add systems that are no models, and --hybrid
fuses BM25 with each other system. Several processes (--distributed) share the
encoding and the search; each of them needs the tests.
"""

import functools
import os
import types
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from mlir_jax.command_line import process_flags, program, shared_flags
from mlir_jax.data import records
from mlir_jax.evals import options as options_lib

if TYPE_CHECKING:  # They import JAX.
  from mlir_jax.evals import board, model_prefixes, model_tests, of_run
  from mlir_jax.retrieval import model as model_lib


def evaluate(
  source: str | Sequence[str] | Mapping[str, str],
  checkpoint: str = "last",
  *,
  collection: str = "",
  root: str = "",
  tatoeba_root: str = "",
  sets: Mapping[str, str] = types.MappingProxyType({}),
  output: str = "",
  on_bad_record: str = "error",
  extra: Mapping[str, str] = types.MappingProxyType({}),
  prompt: str = "",
  prefixes: "model_prefixes.Given" = types.MappingProxyType({}),
  truncate_dim: int = 0,
  options: options_lib.Options = options_lib.DEFAULTS,
) -> str:
  """Evaluates models and other systems; writes results, TREC runs and report.

  Args:
    source: A run's folder, or any other model that `mlir_jax.load` takes;
      several of them, perhaps by their names in the table; or none.
    checkpoint: The checkpoint of a run.
    collection: The collection of the tests. "" is the run's collection, or
      "folder" if the model is not a run. A collection of the user,
      "MODULE:FUNCTION", must be named here.
    root: The collection's folder; "" for the run's root.
    tatoeba_root: A folder of translation tests; "" for the run's, if no other
      tests are given.
    sets: Tests that a library finds by name: name to "LIBRARY:NAME …", as in
      the config's data.sets. The run's sets, if no tests are given.
    output: The folder of the results; "" for a new folder in the run's folder.
    on_bad_record: What to do with bad records of the tests: "error" or "skip".
    extra: Evaluators of the user: name to "MODULE:FUNCTION".
    prompt: The name of a prompt that the model was trained with; "" for the
      prefix of each role.
    prefixes: "query_prefix" and so on to the prefix of all models, as
      `mlir_jax.load` takes it; or to the name of each model and its prefix.
    truncate_dim: Vectors are cut to their first so many numbers; 0 for as many
      as the model's contract says.
    options: What is measured besides the models, and how.

  Returns:
    The report as text; "" in all processes but the first.

  Raises:
    ValueError: if a model, the prompt, an evaluator or a system is not found,
      the tests are missing or cannot be read, or the results cannot be written.
  """
  from mlir_jax import workdir
  from mlir_jax.evals import (
    board,
    evaluators,
    lineup,
    measures,
    model_prefixes,
    model_tests,
    of_run,
    protocols,
    ranking,
  )
  from mlir_jax.evals.protocols import protocol_data
  from mlir_jax.hosts import multihost
  from mlir_jax.storage import locations

  if output and multihost.is_first():
    locations.check_output(locations.absolute(output), f"--output={output}")
  if not output and any(
    prefix not in (None, {}) for prefix in prefixes.values()
  ):
    raise ValueError(
      "A prefix is given: name the folder of these results with --output."
    )
  found_evaluators = evaluators.find(extra, "--evaluator=")
  found_protocols = protocols.find(options.protocols, "--protocol=", extra)
  chosen = measures.parse_list(options.measures, "--measures")
  named = _name_models(source)
  model_prefixes.check(prefixes, named)
  models = _load(
    named, checkpoint, prefixes, prompt=prompt, truncate_dim=truncate_dim
  )
  alone = next(iter(models.values())) if len(models) == 1 else None
  run = alone.description if alone else None
  if alone and run:  # The table of a run has a column for each step.
    models = {f"step-{alone.step or 0}": alone}
  others = lineup.Lineup(options, list(models))
  given = of_run.Tests(collection, root, tatoeba_root, sets)
  if not run and not (any(given) and output):
    raise ValueError(
      f"{alone.path if alone else 'This'} is not a run of this program: give"
      " the tests with --root or --collection, and the folder of the results"
      " with --output."
    )
  config = run.config if run else {}
  place = of_run.choose_tests(
    given, config.get("data", {}), alone.path if alone else ""
  )
  known = of_run.known(run, given) if run else of_run.Known()
  tested = _read_tests(
    place, on_bad_record, for_protocols=bool(options.protocols)
  )
  if not output:
    assert alone  # A run.
    name = f"{tested.name}+{prompt}" if prompt else tested.name
    output = (
      f"{alone.path}/evaluate-{name.replace('/', '_')}"
      f"-{workdir.evaluated(checkpoint, truncate_dim)}"
    )
    if multihost.is_first():
      locations.check_output(output, f"{output} (give another --output)")
  others.find_runs(tested.tests)
  settings = config.get("eval", {})
  chosen += measures.parse_list(settings.get("measures", ""), "eval.measures")
  top_k = options.top_k or settings.get("top_k", measures.DEPTH)
  table = board.Board(
    tested.tests,
    output,
    known.groups,
    top_k=top_k,
    chosen=measures.with_default(chosen),
    intervals=options.intervals,
    setting="--top_k",
  )
  others_of_model = model_tests.ModelTests(
    tested.translation_tests,
    found_evaluators,
    found_protocols,
    protocol_data.Data(
      tested.tests, tested.translation_tests, tested.mining_tests
    ),
  )
  for name, model in models.items():
    if multihost.is_first() and (len(models) > 1 or others):
      print(f"Evaluating {name}.", flush=True)
    _add_model(table, name, model, others_of_model)
  if not multihost.is_first():
    return ""
  # Other systems need no mesh, so the first process runs them alone.
  names = others.add(table, tested.tests, top_k)
  return table.report(
    names,
    count_shared=_counter(known.trained_on, tested.tests, alone),
    notes=[
      *ranking.describe_unfindable(tested.tests),
      *known.notes,
      *(_describe(name, model) for name, model in models.items() if not run),
      *_notes_of(models),
      *([f"Texts had the prompts of {prompt!r}."] if prompt else ()),
      *others.notes,
    ],
  )


class _Tested(NamedTuple):
  """The tests of a collection."""

  name: str
  tests: tuple[records.RetrievalTest, ...]
  translation_tests: tuple[records.TranslationTest, ...]
  mining_tests: tuple[records.MiningTest, ...]


def _read_tests(
  place: "of_run.Tests", on_bad_record: str, *, for_protocols: bool
) -> _Tested:
  """Reads all tests; prints what is unusual in them.

  Args:
    place: Where they are.
    on_bad_record: As in `evaluate`.
    for_protocols: Whether to read the tests that only protocols use, too.

  Raises:
    ValueError: if there are none, or they cannot be read.
  """
  from mlir_jax.data import collections

  bad_records = records.BadRecords(on_bad_record, "--on_bad_record")
  collection = collections.load(
    place.collection,
    place.root,
    bad_records,
    place.tatoeba_root,
    require_pairs=False,
    prefix="--",
    sets=place.sets,
    selects=lambda language: True,  # Nothing is selected here.
  )
  tested = _Tested(
    collection.name,
    collection.tests(),
    collection.translation_tests(),
    collection.mining_tests() if for_protocols else (),
  )
  if not any(tested[1:]):
    raise ValueError(
      f"--root={place.root}: there are no tests; put them in eval/, or name"
      " them with --set."
    )
  test_notes = [note for test in tested.tests for note in test.notes]
  for note in (*collection.notes(), *test_notes):
    print(note)
  print(records.describe_bad("test", bad_records.drain()))
  return tested


def _add_model(
  table: "board.Board",
  name: str,
  model: "model_lib.Model",
  tests: "model_tests.ModelTests",
) -> None:
  """Adds the column of a model; prints how many texts were cut."""
  from mlir_jax.evals import systems

  before = dict(model.text_encoder.truncation)
  embed = tests.embedding(model.text_encoder.with_params(model.params))
  mesh = model.text_encoder.mesh
  table.add(
    name,
    systems.Dense(embed, mesh),
    lambda folder: tests.measure(embed, mesh, folder),
  )
  if cut := model.text_encoder.describe_truncation(before):
    print(cut)


def _notes_of(models: Mapping[str, "model_lib.Model"]) -> list[str]:
  """Returns the notes of models; a note that not all have names its model."""
  notes = {name: model.notes() for name, model in models.items()}
  shared = set.intersection(*map(set, notes.values())) if notes else set()
  found = (
    note if note in shared else f"{name}: {note}"
    for name, of_model in notes.items()
    for note in of_model
  )
  return list(dict.fromkeys(found))


def _describe(name: str, model: "model_lib.Model") -> str:
  """Says in a sentence which model a column is of."""
  step = "" if model.step is None else f", step {model.step:,}"
  return f"{name} is {model.path}{step}."


def _counter(
  trained_on: records.Collection | None,
  tests: Sequence[records.RetrievalTest],
  model: "model_lib.Model | None",
) -> Callable[[], Any] | None:
  """Returns what counts the texts that training saw; None if it is unknown."""
  from mlir_jax.batches import drawing
  from mlir_jax.evals import overlap

  if not (trained_on and model and model.description):
    return None
  streams = drawing.streams_read(model.description.config["batch"])
  return functools.partial(
    overlap.count_shared_texts, trained_on, tests, model.contract, streams
  )


def _name_models(
  source: str | Sequence[str] | Mapping[str, str],
) -> dict[str, str]:
  """Returns name to path of the models."""
  from mlir_jax.evals import systems

  if isinstance(source, Mapping):
    return dict(source)
  named: dict[str, str] = {}
  for path in [source] * bool(source) if isinstance(source, str) else source:
    named[systems.name_of(path, named)] = path
  return named


def _load(
  named: Mapping[str, str],
  checkpoint: str,
  prefixes: "model_prefixes.Given",
  **settings: Any,
) -> dict[str, Any]:
  """Loads all models, so that a missing one is found before any work.

  Args:
    named: Name to path.
    checkpoint: The checkpoint of runs. Next to a run, there may be other
      models, which have none.
    prefixes: As in `evaluate`.
    **settings: Others of `mlir_jax.load`, for all models.
  """
  from etils import epath

  from mlir_jax import workdir
  from mlir_jax.evals import model_prefixes
  from mlir_jax.retrieval import model
  from mlir_jax.storage import locations

  loaded = {}
  for name, path in named.items():
    folder = epath.Path(locations.absolute(path))
    is_run = len(named) == 1 or (folder / workdir.CHECKPOINTS).is_dir()
    loaded[name] = model.load(
      path,
      checkpoint if is_run else "last",
      **model_prefixes.of_model(prefixes, name),
      **settings,
    ).with_inner_products()  # Search compares by them.
  return loaded


def _name_paths(flag: str, values: Sequence[str]) -> dict[str, str]:
  """Returns name to path of the values PATH or NAME=PATH of a flag."""
  from mlir_jax.evals import systems

  named: dict[str, str] = {}
  for value in values:
    name, equals, path = value.partition("=")
    is_named = equals and path and systems.NAME.fullmatch(name)
    if not is_named or os.path.exists(value):
      name, path = systems.name_of(value, named), value
    if name in named:
      raise ValueError(f"{flag}={value}: {name} is given twice.")
    named[name] = os.path.expanduser(path)
  return named


def main():
  """Evaluates as the flags say."""
  process_flags.join()
  models = _name_paths("--model", _MODEL.value)
  if _WORKDIR.value:
    if models:
      raise ValueError(
        "Give either --workdir, a run's folder, or --model, which may be a run,"
        " too."
      )
    models = _name_paths("--workdir", [_WORKDIR.value])
  from mlir_jax.evals import model_prefixes

  print(
    evaluate(
      models,
      _CHECKPOINT.value,
      collection=_COLLECTION.value,
      root=_ROOT.value or "",
      tatoeba_root=_TATOEBA_ROOT.value or "",
      output=_OUTPUT.value or "",
      on_bad_record=_ON_BAD_RECORD.value,
      prompt=_PROMPT.value,
      prefixes={
        name: model_prefixes.parse(f"--{name}", values, models)
        for name, values in shared_flags.prefixes().items()
      },
      truncate_dim=_TRUNCATE_DIM.value,
      sets=shared_flags.parse_named(
        "--set", _SET.value, "sw=ir_datasets:mr-tydi/sw/test"
      ),
      extra=shared_flags.parse_named(
        "--evaluator", _EVALUATOR.value, "gap=my_project.evals:gap"
      ),
      options=options_lib.Options(
        bm25=_BM25.value,
        hybrid=_HYBRID.value,
        runs=_name_paths("--run", _RUN.value),
        systems=shared_flags.parse_named(
          "--system", _SYSTEM.value, "mine=my_project.systems:search"
        ),
        measures=_MEASURES.value,
        top_k=_TOP_K.value,
        intervals=_INTERVALS.value,
        protocols=shared_flags.parse_named(
          "--protocol",
          [
            each if "=" in each else f"{each}={each}"
            for each in _PROTOCOL.value
          ],
          "lareqa=lareqa",
        ),
      ),
    )
  )


if __name__ == "__main__":
  _WORKDIR = shared_flags.define_workdir()
  _MODEL = flags.DEFINE_multi_string(
    "model",
    [],
    "In place of a run: an export, a sentence-transformers folder or a name on"
    " the Hugging Face hub; or NAME=MODEL. May be repeated: each model has a"
    " column.",
  )
  _CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    "last",
    shared_flags.CHECKPOINT_HELP,
  )
  _PROMPT = shared_flags.define_prompt()
  shared_flags.define_prefixes(several_models=True)
  _TRUNCATE_DIM = shared_flags.define_truncate_dim()
  _COLLECTION = flags.DEFINE_string(
    "collection",
    "",
    "Another collection than the run's: cldr, folder, sets or MODULE:FUNCTION.",
  )
  _SET = shared_flags.define_set()
  _ROOT = shared_flags.define_path("root", "The collection's folder.")
  _TATOEBA_ROOT = shared_flags.define_path(
    "tatoeba_root", "A folder of LASER's Tatoeba files."
  )
  _OUTPUT = shared_flags.define_path(
    "output", "The folder of the results; by default in the workdir."
  )
  _ON_BAD_RECORD = flags.DEFINE_enum(
    "on_bad_record",
    "error",
    ("error", "skip"),
    "What to do with bad records of the tests: stop, or skip and count them.",
  )
  _EVALUATOR = flags.DEFINE_multi_string(
    "evaluator",
    [],
    "An evaluator of your own, NAME=MODULE:FUNCTION; may be repeated.",
  )
  _BM25 = flags.DEFINE_bool("bm25", False, "Whether BM25 has a column.")
  _HYBRID = flags.DEFINE_bool(
    "hybrid",
    False,
    "Whether BM25 is fused with each other system: by ranks, and by scores with"
    " a weight that a dev set chooses.",
  )
  _RUN = flags.DEFINE_multi_string(
    "run",
    [],
    "TREC runs of another program: a folder of SPLIT.LANGUAGE.trec, the file of"
    " one test, or NAME=PATH; may be repeated.",
  )
  _SYSTEM = flags.DEFINE_multi_string(
    "system",
    [],
    "A system of your own, NAME=MODULE:FUNCTION; may be repeated.",
  )
  _MEASURES = flags.DEFINE_string(
    "measures",
    "",
    "Further measures, with commas between them, named as in ir-measures or in"
    " papers: nDCG@20,AP,mrr@10.",
  )
  _TOP_K = flags.DEFINE_integer(
    "top_k",
    0,
    "Passages that are retrieved per query; by default those of the run's"
    " config, or 100.",
    lower_bound=0,
  )
  _INTERVALS = flags.DEFINE_bool(
    "intervals",
    False,
    "Whether the table shows 95 % intervals. report.json always has them.",
  )
  _PROTOCOL = flags.DEFINE_multi_string(
    "protocol",
    [],
    "A protocol: lareqa, lareqa_paragraph, clir, mining or languages; or your"
    " own, NAME=MODULE:FUNCTION. May be repeated.",
  )
  process_flags.define()
  program.start(main, required=())
