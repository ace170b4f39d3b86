"""The study of translated sentences: its cells, texts, results and tables.

The program is benchmarks/study.py. Here it runs on a made corpus of a few
sentences.
"""

import collections
import gzip
import importlib.util
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import tiny

from mlir_jax.data import records
from mlir_jax.data.collections import folder as folder_lib
from mlir_jax.storage import reading
from mlir_jax.training import checks

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPT = BENCHMARKS / "study.py"
sys.path.insert(0, str(BENCHMARKS))

from study import cells, results, running, start, tables, texts  # noqa: E402

LANGUAGES = ("en", *cells.FOUR, *cells.THREE, *cells.NEVER)
CODES = {"de": "deu", "es": "spa", "ru": "rus", "zh": "cmn", "th": "tha"}
# A run of a second; the lengths fit a model of 23 positions.
TINY = {
  "batch.retrieval": 8,
  "batch.parallel": 8,
  "encoding.query.max_length": 16,
  "encoding.passage.max_length": 16,
  "encoding.sentence.max_length": 16,
  "optim.warmup_steps": 1,
  "train.log_every": 1,
}


@pytest.fixture(scope="module")
def program():
  specification = importlib.util.spec_from_file_location("of_study", SCRIPT)
  module = importlib.util.module_from_spec(specification)
  specification.loader.exec_module(module)
  return module


def translate(text, language):
  """A made-up translation, word by word; English stays."""
  if language == "en":
    return text
  return " ".join(word[::-1] + language for word in text.split())


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> pathlib.Path:
  """The folders that `mlir-jax download` writes, with a few made texts."""
  root = tmp_path_factory.mktemp("corpora")
  generator = random.Random(0)

  def phrases(length, count=24):
    return [
      " ".join(generator.sample(tiny.WORDS, length)) for _ in range(count)
    ]

  def write(name, lines):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
      file.writelines(f"{line}\n" for line in lines)

  def write_test(folder, language, splits, passages, questions):
    docs = [
      json.dumps({"id": f"d{n}.{language}", "contents": f"\n\n{text}"})
      for n, text in enumerate(passages)
    ]
    write(f"{folder}/eval/{language}/collection/docs.jsonl.gz", docs)
    for split in splits:
      write(
        f"{folder}/eval/{language}/topic.{split}.tsv",
        [f"q{n}\t{text}" for n, text in enumerate(questions)],
      )
      write(
        f"{folder}/eval/{language}/qrels.{split}.txt",
        [f"q{n} Q0 d{n}.{language} 1" for n in range(len(questions))],
      )

  pairs = [
    {"question": a, "positive_ctxs": [{"title": "", "text": b}]}
    for a, b in zip(phrases(3, 60), phrases(5, 60), strict=True)
  ]
  write("nq/ir/nq-train.json.gz", [json.dumps(pairs)])
  passages = phrases(5)
  questions = [" ".join(text.split()[:3]) for text in passages]
  write_test("nq", "en", ("dev", "test"), passages, questions)
  for language in LANGUAGES:
    write_test(
      "xquadr",
      language,
      ("test",),
      [translate(text, language) for text in passages],
      [translate(text, language) for text in questions],
    )
  english = phrases(4, 40)
  for language in cells.FOUR + cells.THREE:
    name = f"libreoffice/parallel/libreoffice.en-{language}"
    # An English sentence comes twice, and a pair has equal sides.
    write(f"{name}.en.gz", [*english, english[0], "copy"])
    write(
      f"{name}.{language}.gz",
      [*(translate(text, language) for text in english), "other", "copy"],
    )
  write("ntrex/parallel/newstest2019-src.eng.txt", phrases(4, 30))
  for language in (*cells.FOUR, "ar", "th"):
    code = {"zh": "zho-CN", "ar": "arb"}.get(language, CODES.get(language))
    write(
      f"ntrex/parallel/newstest2019-ref.{code}.txt",
      [translate(text, language) for text in phrases(4, 30)],
    )
  for language in cells.FOUR:
    stem = f"tatoeba/tatoeba.{CODES[language]}-eng"
    write(f"{stem}.eng", english)
    write(
      f"{stem}.{CODES[language]}",
      [translate(text, language) for text in english],
    )
  return root


def read(folder):
  return folder_lib.load(
    folder, records.BadRecords("error"), require_pairs=False
  )


def test_cells_are_unique_and_each_can_be_trained():
  names = [cell.name for cell in cells.CELLS]
  assert len(set(names)) == len(names)
  assert sum(cell.trained for cell in cells.CELLS) <= 40
  made = collections.Counter()
  for cell in cells.CELLS:
    config = running.config_of(cell, {})
    config.model.pretrained = "a start"
    checks.check_settings(config)
    assert not {*cell.languages} & {*cells.NEVER}
    assert cell.axis in cells.AXES
    made[json.dumps(results.settings(cell, {}), sort_keys=True)] += 1
  assert made.most_common(1)[0][1] == 1  # No setting is there twice.
  for axis in cells.AXES:
    assert len(cells.of_axis(axis)) > 1
  for of_side in cells.HEADLINE.values():
    found = [cells.by_name()[name] for name in of_side.values()]
    assert [cell.pairs for cell in found] == [*of_side]
    assert len({cell.start for cell in found}) == 1


def test_an_unknown_cell_or_axis_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match=r"no cell 'no'.*centre, start"):
    cells.choose("centre,no", "")
  with pytest.raises(ValueError, match=r"no such axis.*centre, losses"):
    cells.choose("", "no")
  assert [c.name for c in cells.choose("", "pairs")] == [
    *("centre", "ir", "pairs_100", "pairs_6000")
  ]


def test_a_hundred_pairs_are_among_the_thousand_and_a_seed_changes_them():
  pairs = [(f"sentence {n}", f"Satz {n}") for n in range(50)]
  few, many = (texts.choose_pairs(pairs, count, 0) for count in (10, 30))
  assert few == many[:10]
  assert len({*many}) == 30
  assert few != texts.choose_pairs(pairs, 10, 1)
  # Another language gets translations of the same sentences.
  other = [(english, english[::-1]) for english, _ in pairs]
  assert [a for a, _ in texts.choose_pairs(other, 10, 0)] == [a for a, _ in few]


@pytest.mark.parametrize("name", ["centre", "ntrex", "tatoeba", "languages_7"])
def test_a_cell_has_as_many_translations_as_it_says(corpora, tmp_path, name):
  cell = cells.by_name()[name]
  counts = texts.write(cell, corpora, 0, tmp_path / "data")
  there = 30 if name == "ntrex" else 40  # Without the copy and the repeat.
  assert counts == dict.fromkeys(cell.languages, there)
  collection = read(tmp_path / "data")
  found = collections.Counter(
    row.target_language for row in collection.parallel()
  )
  assert found == counts
  assert all(row.source_language == "en" for row in collection.parallel())
  assert len(list(collection.retrieval())) == 60
  assert {(t.split, t.language) for t in collection.tests()} == {
    ("dev", "en"),
    ("test", "en"),
  }


def test_pairs_may_be_questions_and_plain_text_has_no_translation(
  corpora, tmp_path
):
  by_name = cells.by_name()
  texts.write(by_name["in_batch"], corpora, 0, tmp_path / "questions")
  collection = read(tmp_path / "questions")
  found = collections.Counter(
    (row.source_name, row.language) for row in collection.retrieval()
  )
  assert found == {("nq", "en"): 60} | {
    ("pairs", language): 40 for language in cells.FOUR
  }
  assert not list(collection.parallel())

  cell = by_name["points_plain"]
  texts.write(cell, corpora, 0, tmp_path / "plain")
  plain = [*read(tmp_path / "plain").monolingual()]
  assert {row.language for row in plain} == {*cell.plain}
  assert all(row.text.endswith(row.language) for row in plain)

  texts.write_plain(corpora, 0, tmp_path / "mlm")
  meanings = [
    " ".join(
      word if row.language == "en" else word[: -len(row.language)][::-1]
      for word in row.text.split()
    )
    for row in read(tmp_path / "mlm").monolingual()
  ]
  assert len(set(meanings)) == len(meanings)
  assert not list(read(tmp_path / "mlm").parallel())


def test_missing_data_are_named_with_the_command_that_brings_them(tmp_path):
  (tmp_path / "nq").mkdir()
  with pytest.raises(
    ValueError, match="mlir-jax download libreoffice tatoeba ntrex xquadr"
  ):
    texts.check(tmp_path)


def make_record(cell, seed, **changed):
  """A record of a finished cell, with values that the seed moves."""
  found = {"nq/dev/mrr@100": 0.5, "nq/test/mrr@100": 0.5, "cross": 0.3}
  for kind, value in (("mono", 0.6), ("pooled", 0.1), ("rank_distance", 2000)):
    found[kind] = value * (1 + seed / 10)
    for language in LANGUAGES:
      found[f"{kind}/{language}"] = found[kind]
  return {
    "cell": cell,
    "seed": seed,
    "settings": results.settings(cells.by_name()[cell], {}),
    "start": {"layers": 4, "pieces": 9},
    "pairs": {},
    "steps": 80,
    "tokens": 1000,
    "seconds": {"train": 300, "evaluate": 60},
    "results": found,
  } | changed


def write_finished(output, *made):
  (output / "results").mkdir(parents=True, exist_ok=True)
  for record in made:
    path = output / "results" / f"{record['cell']}-{record['seed']}.json"
    path.write_text(json.dumps(record))


def test_the_dry_run_says_what_is_done_and_the_hours_left(
  program, tmp_path, monkeypatch, capsys
):
  write_finished(tmp_path, make_record("centre", 0), make_record("ir", 1))
  monkeypatch.setattr(
    sys,
    "argv",
    [
      *("study.py", f"--output={tmp_path}", "--cells=centre,ir,st_pairs"),
      *("--seeds=2", "--dry_run"),
    ],
  )
  assert program.main() == 0
  shown = capsys.readouterr().out
  assert "centre            centre        1 of 2 done,   6 min each" in shown
  # Two of 6 minutes, as measured, and two of sentence-transformers.
  hours = (2 * 6 + 2 * program.GUESSES["small"]) / 60
  assert f"2 of 6 jobs are done. About {hours:.1f} hours are left" in shown
  assert "nothing has run: small peer" in shown


def test_a_cell_that_has_other_settings_now_is_not_finished(tmp_path):
  record = make_record("centre", 0)
  record["settings"]["pairs"] = 5
  write_finished(tmp_path, record)
  job = running.Job(cells.by_name()["centre"], 0)
  with pytest.raises(ValueError, match=r"centre-0\.json .*\(pairs\): delete"):
    running.read_finished(tmp_path, job, {})
  write_finished(tmp_path, make_record("centre", 0))
  assert running.read_finished(tmp_path, job, {})["seed"] == 0
  with pytest.raises(ValueError, match=r"\(extra\)"):
    running.read_finished(tmp_path, job, {"train.steps": 2})


def test_tables_are_made_from_the_results_alone(program, tmp_path):
  document = shutil.copy(program.DOCUMENT, tmp_path / "study.md")
  document, file = pathlib.Path(document), tmp_path / "results.jsonl"
  stale = make_record("both_1", 0)
  stale["settings"]["overrides"] = {}
  trial = make_record("pairs_6000", 0)
  trial["settings"]["extra"] = {"train.steps": 2}
  made = [make_record("centre", n) for n in (1, 0)]
  made += [make_record("st_pairs", 0), make_record("pairs_100", 0)]
  write_finished(tmp_path / "output", *made, stale, trial)
  notes = program.make_tables(tmp_path / "output", file, document)
  assert notes == ["both_1, seed 0: other settings (overrides)"]
  kept = [(r["cell"], r["seed"]) for r in results.read(file)]
  assert kept == sorted(kept)
  assert ("pairs_6000", 0) not in kept

  text = document.read_text()
  row = next(
    line for line in text.splitlines() if line.startswith("| `centre`: ")
  )
  # Student's t of one degree of freedom: 12.71 times the standard error, .03.
  assert row.split(" | ")[1:5] == [
    "2",
    "50.0 ± 0.0",
    "50.0 ± 0.0",
    "63.0 ± 38.1",
  ]
  assert "2,100 ± 1,271" in row
  assert (
    f"| `both_1`: {cells.by_name()['both_1'].about} | not run yet |" in text
  )
  assert "| `pairs_100` | 60.0 | **60.0** |" in text  # With pairs in German.
  assert "![headline](study/headline.png)" in text
  for name in ("headline", "frontier"):
    assert (tmp_path / "study" / f"{name}.png").stat().st_size > 10_000

  shutil.rmtree(tmp_path / "output")
  before = file.read_bytes()
  program.make_tables(None, file, document)
  assert document.read_text() == text
  assert file.read_bytes() == before


def test_the_document_has_the_committed_results(program, tmp_path):
  document = tmp_path / "study.md"
  shutil.copy(program.DOCUMENT, document)
  program.make_tables(None, results.FILE, document)
  assert document.read_text() == program.DOCUMENT.read_text()


def test_a_document_without_a_marker_is_refused():
  text = "<!-- study:a -->\nold\n<!-- /study -->\n"
  assert "new" in tables.fill(text, {"a": "new"})
  with pytest.raises(ValueError, match="lacks the markers b"):
    tables.fill(text, {"a": "", "b": ""})
  with pytest.raises(ValueError, match="'a' has no part"):
    tables.fill(text, {})


def test_results_keep_each_language_of_the_protocol():
  found = results.of_tables(
    {"dev/en/mrr@100": 0.1, "test/en/mrr@100": 0.2, "test/en/ndcg@10": 0.3},
    {
      "lareqa/mono/map": 0.5,
      "lareqa/mono/map@20": 0.4,
      "lareqa-mono/de/map": 0.6,
      "lareqa-pooled/de/map@20": 0.7,
      "lareqa/rank_distance": 300.0,
      "lareqa/rank_distance/de": 400.0,
      "test/de/ap": 0.9,
    },
  )
  assert found == {
    "nq/dev/mrr@100": 0.1,
    "nq/test/mrr@100": 0.2,
    "mono": 0.5,
    "mono/de": 0.6,
    "rank_distance": 300.0,
    "rank_distance/de": 400.0,
  }
  bm25 = results.of_tables({}, {"test/de/ap": 0.2, "test/en/ap": 0.4})
  assert bm25 == {"mono": pytest.approx(0.3), "mono/de": 0.2, "mono/en": 0.4}


@pytest.mark.slow
def test_a_start_with_fewer_pieces_has_the_same_vectors(corpora, tmp_path):
  import sentence_models

  import mlir_jax

  whole = tmp_path / "whole"
  sentence_models.save(whole)
  found = ["apple river", "stone", "feather"]
  cut = tmp_path / "cut"
  said = start.make(whole, [*found, *sentence_models.PROMPTS.values()], 0, cut)
  assert said.startswith(f"{cut}: 2 layers, ")
  before, after = (mlir_jax.load(str(path)) for path in (whole, cut))
  expected = before.encode(found)
  assert abs(after.encode(found) - expected).max() < 1e-6
  pieces = reading.read_json(cut / "config.json")["vocab_size"]
  assert pieces < reading.read_json(whole / "config.json")["vocab_size"]
  start.make(whole, start.read_texts(corpora), 1, tmp_path / "one")
  assert (
    reading.read_json(tmp_path / "one/config.json")["num_hidden_layers"] == 1
  )
  with pytest.raises(ValueError, match="--layers=3: the model has 2 layers"):
    start.make(whole, found, 3, tmp_path / "three")


def command_of(corpora, folder, names, **fields):
  """The command of a study of some cells, with one seed and a tiny model."""
  import sentence_models

  sentence_models.save(folder / "model")
  return [
    *(sys.executable, SCRIPT, f"--data={corpora}", "--seeds=1"),
    *(f"--model={folder / 'model'}", f"--output={folder / 'output'}"),
    f"--cells={names}",
    *(f"--config.{name}={value}" for name, value in (TINY | fields).items()),
  ]


ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_stopped(corpora, tmp_path):
  steps = 80
  command = command_of(
    corpora,
    tmp_path,
    "centre",
    **{"train.steps": steps, "train.checkpoint_every": 5},
  )
  output = tmp_path / "output"
  process = subprocess.Popen(command, env=ENVIRONMENT)
  metrics = output / "runs/centre-0/run/metrics.jsonl"
  while not (metrics.exists() and metrics.read_text()):
    assert process.poll() is None
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=300) == 128 + signal.SIGTERM
  assert not (output / "results").exists()
  taken = len(metrics.read_text().splitlines())

  done = subprocess.run(
    command, env=ENVIRONMENT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert "1 of 1 jobs are done" in done.stdout
  lines = map(json.loads, metrics.read_text().splitlines())
  assert [line["step"] for line in lines] == list(range(1, steps + 1))
  assert taken < steps
  record = reading.read_json(output / "results/centre-0.json")
  assert record["seconds"] is None  # It went on.
  assert record["steps"] == steps and record["tokens"] > 0
  assert record["pairs"] == dict.fromkeys(cells.FOUR, 40)
  check_results(record)
  kept = {path.name for path in (output / "runs/centre-0").iterdir()}
  assert kept == {"run", "evaluate", "log.txt"}
  left = {path.name for path in (output / "runs/centre-0/run").iterdir()}
  assert left == {"config.json", "metrics.jsonl", "results"}


@pytest.mark.slow
def test_other_systems_get_the_same_results(corpora, tmp_path):
  command = command_of(corpora, tmp_path, "bm25,st_pairs", **{"train.steps": 2})
  done = subprocess.run(
    command, env=ENVIRONMENT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  bm25, peer = (
    reading.read_json(tmp_path / "output" / "results" / f"{name}-0.json")
    for name in ("bm25", "st_pairs")
  )
  check_results(peer)
  assert peer["seconds"]["evaluate"] > 0
  assert bm25["results"]["mono"] > 0.9 and "pooled" not in bm25["results"]


def check_results(record):
  for kind in ("mono", "cross", "pooled"):
    assert 0 < record["results"][kind] <= 1
  for name in ("nq/dev/mrr@100", "nq/test/mrr@100", "rank_distance"):
    assert record["results"][name] > 0
  for language in LANGUAGES:
    assert f"pooled/{language}" in record["results"]
    assert f"rank_distance/{language}" in record["results"]
