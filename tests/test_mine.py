"""Pairs in any format come back with hard negatives, whole or not at all."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import sentence_models
import tiny

import mlir_jax
from mlir_jax import mine
from mlir_jax.data import records
from mlir_jax.data.collections import pair_files
from mlir_jax.data.sources import containers
from mlir_jax.mining import rules as rules_lib
from mlir_jax.mining import search
from mlir_jax.retrieval import encoding

RULES = rules_lib.Rules(num_negatives=2)
TOWNS = ["Lima", "Oslo", "Accra", "Hanoi", "Quito", "Riga"]


def question(i):
  return f"which country has {TOWNS[i]} as its capital?"


def text(i):
  return f"Its seat of government is in {TOWNS[i]}."


def facts(kind):
  """Records of a format; each holds a field that mining does not know."""
  for i, town in enumerate(TOWNS):
    other = (i + 1) % len(TOWNS)
    yield {
      "dpr": {
        "dataset": "made",
        "question": question(i),
        "answers": [town.upper(), ""],
        "positive_ctxs": [
          {"title": "a", "text": text(i), "passage_id": f"p{i}", "score": 3}
        ],
        "hard_negative_ctxs": [{"title": "a", "text": text(other)}],
      },
      "tevatron": {
        "query_id": str(i),
        "query": question(i),
        "positive_passages": [{"docid": f"p{i}", "title": "", "text": text(i)}],
        "negative_passages": [{"docid": "x", "text": text(other)}],
        "source": [1, {"a": None}],
      },
      "flag": {
        "query": question(i),
        "pos": [text(i)],
        "neg": [text(other)],
        "pos_scores": [0.5],
        "neg_scores": [0.25],
        "prompt": "Find: ",
      },
      "columns": {
        "anchor": question(i),
        "positive": text(i),
        "negative": text(other),
        "note": 'kept, "as" it is',
      },
      "by_id": {
        "query_id": str(i),
        "query_text": question(i),
        "positive_document_ids": [f"p{i}"],
        "negative_document_ids": [f"p{other}"],
      },
    }[kind]


def negatives_of(kind, record):
  """The texts, or the ids, of a record's negatives, in their order."""
  if kind == "dpr":
    return [passage["text"] for passage in record["hard_negative_ctxs"]]
  if kind == "tevatron":
    return [passage["text"] for passage in record["negative_passages"]]
  if kind == "flag":
    return record["neg"]
  if kind == "by_id":
    return record["negative_document_ids"]
  return [
    value
    for name, value in record.items()
    if name.startswith("negative") and value
  ]


def without_negatives(record):
  return {
    name: value
    for name, value in record.items()
    if not name.startswith(("neg", "hard_neg"))
  }


def read(path):
  return [value for _, value in containers.read(path, records.BadRecords())]


def write_pairs(path, kind):
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [json.dumps(record) + "\n" for record in facts(kind)]
  sample = path.with_name("sample.jsonl")
  sample.write_text("".join(lines))
  if path.suffix == ".csv":
    like = path.with_name("like.csv")
    like.write_text(",".join(next(facts(kind))) + "\n")
    containers.write(path, facts(kind), like)
    like.unlink()
    sample.unlink()
  else:
    sample.rename(path)


@pytest.mark.parametrize("existing", ["keep", "replace"])
@pytest.mark.parametrize(
  "kind", ["dpr", "tevatron", "flag", "columns", "by_id"]
)
def test_a_file_comes_back_in_its_own_format(tmp_path, kind, existing):
  name = "train.csv" if kind == "columns" else "train.jsonl"
  source = tmp_path / "pairs" / "ir" / name
  write_pairs(source, kind)
  if kind == "by_id":
    corpus = tmp_path / "pairs" / "corpus" / "corpus.jsonl"
    corpus.parent.mkdir()
    corpus.write_text(
      "".join(
        json.dumps({"docid": f"p{i}", "title": "", "text": text(i)}) + "\n"
        for i in range(len(TOWNS))
      )
    )
  output = tmp_path / "mined"
  replace = existing == "replace"
  report = mine.mine(
    str(source.parents[1]),
    str(output),
    RULES,
    search.Search(),
    replace=replace,
    with_scores=kind == "flag",
  )
  assert "Mined 12 negatives for 6 questions" in report
  assert [path.name for path in output.iterdir()] == [name]
  before, after = read(source), read(output / name)
  assert len(before) == len(after) == len(TOWNS)
  for i, (old, new) in enumerate(zip(before, after, strict=True)):
    assert without_negatives(new) == without_negatives(old)
    had, has = negatives_of(kind, old), negatives_of(kind, new)
    assert len(had) == 1 and len(has) == (2 if replace else 3)
    assert len(set(has)) == len(has)
    if not replace:
      assert has[0] == had[0]
    right = f"p{i}" if kind == "by_id" else text(i)
    assert right not in has
    assert kind != "flag" or len(new["neg_scores"]) == len(has)


def test_a_data_set_of_beir_gets_judgements_of_0(tmp_path):
  folder, output = tmp_path / "beir", tmp_path / "mined"
  (folder / "qrels").mkdir(parents=True)
  numbers = range(len(TOWNS))
  for name, texts in (
    ("corpus", map(text, numbers)),
    ("queries", map(question, numbers)),
  ):
    (folder / f"{name}.jsonl").write_text(
      "".join(
        json.dumps({"_id": f"{name[0]}{i}", "title": "", "text": each}) + "\n"
        for i, each in enumerate(texts)
      )
    )
  header = "query-id\tcorpus-id\tscore\n"
  judged = [f"q{i}\tc{i}\t2\n" for i in numbers]
  (folder / "qrels" / "train.tsv").write_text(header + "".join(judged))
  mine.mine(str(folder), str(output), RULES, search.Search())
  lines = (output / "train.tsv").read_text().splitlines(keepends=True)
  assert lines[0] == header and set(judged) < set(lines)
  added = sorted(set(lines[1:]) - set(judged))
  assert len(added) == 12 and all(line.endswith("\t0\n") for line in added)


def test_mr_tydi_as_released_gets_judgements_of_0(tmp_path):
  folder = tmp_path / "data" / "mrtydi-v1.1-swahili"
  (folder / "collection").mkdir(parents=True)
  docs = [{"id": f"{i}#0", "contents": text(i)} for i in range(len(TOWNS))]
  (folder / "collection" / "docs.jsonl").write_text(
    "".join(json.dumps(each) + "\n" for each in docs)
  )
  for split, i in (("train", 0), ("test", 1)):
    (folder / f"topic.{split}.tsv").write_text(f"{i}\t{question(i)}\n")
    (folder / f"qrels.{split}.txt").write_text(f"{i} Q0 {i}#0 1\n")
  for source in (folder, folder.parent):
    output = tmp_path / f"mined-{source.name}"
    mine.mine(str(source), str(output), RULES, search.Search())
    first, *added = (output / "qrels.train.txt").read_text().splitlines()
    assert first.split() == ["0", "Q0", "0#0", "1"]
    assert len(added) == 2 and all(line.endswith("#0\t0") for line in added)
  (folder.parent / "mrtydi-v1.1-finnish").symlink_to(folder)
  with pytest.raises(ValueError, match=r"several data sets, mrtydi-v1\.1-finn"):
    mine.mine(str(folder.parent), str(tmp_path / "o"), RULES, search.Search())


def test_ids_of_other_passages_are_refused_before_the_search(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(search.Search, "make_finder", None)
  source = tmp_path / "pairs" / "ir" / "a.jsonl"
  write_pairs(source, "by_id")
  corpus = tmp_path / "pairs" / "corpus" / "corpus.jsonl"
  corpus.parent.mkdir()
  passages = [{"docid": f"p{i}", "text": text(i)} for i in range(len(TOWNS))]
  corpus.write_text("".join(json.dumps(each) + "\n" for each in passages))
  others = tmp_path / "others.jsonl"
  others.write_text(json.dumps({"docid": "p0", "text": "Another."}))

  def refused(**settings):
    with pytest.raises(ValueError, match="by id, but 1 other passages"):
      mine.mine(
        str(tmp_path / "pairs"),
        str(tmp_path / "mined"),
        RULES,
        search.Search(),
        **settings,
      )

  refused(corpus=str(others))
  whole = {"query": "what?", "pos": ["Another."]}
  source.with_name("b.jsonl").write_text(json.dumps(whole))
  refused()


def write_numbered(folder, ids):
  """Pairs by id in Parquet, whose ids are numbers; the corpus has other ids."""
  import pyarrow as pa
  from pyarrow import parquet

  (folder / "ir").mkdir(parents=True)
  (folder / "corpus").mkdir()
  pairs = [
    {
      "query_text": question(i),
      "positive_document_ids": [i],
      "negative_document_ids": [],
    }
    for i in range(len(TOWNS))
  ]
  path = folder / "ir" / "a.parquet"
  parquet.write_table(pa.Table.from_pylist(pairs), path)
  passages = [{"docid": each, "text": text(i)} for i, each in enumerate(ids)]
  lines = "".join(json.dumps(each) + "\n" for each in passages)
  (folder / "corpus" / "corpus.jsonl").write_text(lines)
  return path


def test_ids_come_back_as_the_numbers_that_they_were(tmp_path):
  source = tmp_path / "pairs"
  path = write_numbered(source, range(len(TOWNS)))
  pairs = {"question": question(0), "answers": []}
  pairs["positive_ctxs"] = [{"title": "", "text": text(0), "passage_id": 0}]
  others = [{"text": text(i), "title": "", "docid": i} for i in (1, 2)]
  pairs_of_tevatron = {"query": question(1), "positive_passages": others}
  for kind, each in (("dpr", pairs), ("tevatron", pairs_of_tevatron)):
    path.with_name(f"{kind}.jsonl").write_text(json.dumps(each))
    (tmp_path / kind / "ir").mkdir(parents=True)
    path.with_name(f"{kind}.jsonl").rename(tmp_path / kind / "ir" / "a.jsonl")
  mine.mine(str(source), str(tmp_path / "mined"), RULES, search.Search())
  for record in read(tmp_path / "mined" / "a.parquet"):
    ids = record["negative_document_ids"]
    assert len(ids) == 2 and all(type(each) is int for each in ids)
  corpus = str(source / "corpus" / "corpus.jsonl")
  for kind, field, name in (
    ("dpr", "hard_negative_ctxs", "passage_id"),
    ("tevatron", "negative_passages", "docid"),
  ):
    output = tmp_path / f"{kind}-mined"
    mine.mine(
      str(tmp_path / kind), str(output), RULES, search.Search(), corpus=corpus
    )
    (record,) = read(output / "a.jsonl")
    assert [type(each[name]) for each in record[field]] == [int, int]


def test_what_a_file_cannot_hold_is_refused_before_the_search(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(search.Search, "make_finder", None)

  def refused(path, message):
    output = tmp_path / f"mined{path.suffix}"
    with pytest.raises(ValueError, match=message):
      mine.mine(str(path), str(output), RULES, search.Search())

  numbered = write_numbered(tmp_path / "numbered", range(len(TOWNS)))
  with (tmp_path / "numbered/corpus/corpus.jsonl").open("a") as file:
    file.write(json.dumps({"docid": "extra", "text": "Another."}))
  refused(
    tmp_path / "numbered",
    rf"{numbered}: with the hard negative 'Another\.', negative_document_ids:"
    r" .*'extra'.*int64",
  )
  tsv = tmp_path / "tsv" / "ir" / "b.tsv"
  tsv.parent.mkdir(parents=True)
  tsv.write_text('anchor\tpositive\nwhat?\t"a\ttab"\n')
  lines = tsv.with_name("a.jsonl")
  lines.write_text(json.dumps({"query": "who?", "pos": ["Two\nlines."]}))
  refused(
    tmp_path / "tsv",
    rf"{tsv}: with the hard negative 'Two\\nlines\.', negative_1: has a line"
    " end, which .*; write the file as CSV or JSON",
  )
  odd = tmp_path / "odd.jsonl"
  for number in ("NaN", "1e999"):
    odd.write_text(
      '{"query": "a", "pos": ["b"]}\n'
      f'{{"query": "c", "pos": ["d"], "x": {{"y": {number}}}}}\n'
    )
    refused(odd, r"odd\.jsonl:2: record 2, 'x': cannot be written as JSON: ")


def test_bad_settings_and_files_are_refused_before_the_search(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(search.Search, "make_finder", None)
  source = tmp_path / "train.jsonl"
  write_pairs(source, "flag")

  def refused(message, output="out.jsonl", path=source, **settings):
    with pytest.raises(ValueError, match=message):
      mine.mine(
        str(path), str(tmp_path / output), RULES, search.Search(), **settings
      )

  refused(r"train\.jsonl:1: .*neg_scores .*\(--output_scores")
  refused("exists: delete it", output="train.jsonl")
  refused(r"should end in \.jsonl", output="out.csv", with_scores=True)
  refused("there is no such file", path=tmp_path / "none.json")
  refused(
    "--format is 'x'; use one of dpr",
    pair_settings=pair_files.Settings(format="x"),
  )
  refused(r"should end in \.png", picture=str(source))
  refused("there is no file in", path=tmp_path)
  with source.open("a") as file:
    file.write('{"query": "a", "pos": ["b"], "answers": 3}\n')
  refused(r"train\.jsonl:7: .*answers: is a number", with_scores=True)
  assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]
  for arguments, message in (
    (("dense", False, "words", "", ""), "--candidates=dense needs --model"),
    (("bm25", False, "subwords", "", ""), "needs --tokenizer or --model"),
    (("dense", True, "subwords", "", ""), "--analyzer=subwords is of BM25"),
    (("bm25", True, "words", "t", ""), "--tokenizer needs --analyzer=subwords"),
    (("bm25", False, "words", "", "nq"), "--prompt needs --model"),
  ):
    with pytest.raises(ValueError, match=message):
      mine._check_search(*arguments)


@pytest.mark.slow
def test_a_model_finds_and_ranks_candidates(tmp_path, one_device, capsys):
  folder = tiny.write_folder(tmp_path / "data", pairs=60)
  sentence_models.save(tmp_path / "model")
  model = mlir_jax.load(str(tmp_path / "model"), batch_size=16)
  pairs = read(folder / "ir" / "train.json")
  corpus = folder / "eval" / "de" / "collection" / "docs.jsonl.gz"

  def mined(finder, **settings):
    output = tmp_path / finder
    mine.mine(
      str(folder),
      str(output),
      # All passages are candidates, by either search.
      rules_lib.Rules(num_negatives=3, range_max=999, relative_margin=0.0),
      search.Search(finder, model, **settings),
      corpus=str(corpus),
      with_scores=True,
      picture=str(tmp_path / f"{finder}.png"),
    )
    assert (tmp_path / f"{finder}.png").read_bytes().startswith(b"\x89PNG")
    return read(output / "train.json")

  dense = mined("dense")
  both = mined("both", analyzer="subwords")
  found = 0
  for pair, *after in zip(pairs, dense, both, strict=True):
    (positive,) = pair["positive_ctxs"]
    query = model.encode([pair["question"]], "query")
    for record in after:
      negatives = record["hard_negative_ctxs"]
      passages = [positive, *negatives]
      cosines = (
        model.encode(
          [passage["text"] for passage in passages],
          "passage",
          [passage["title"] for passage in passages],
        )
        @ query[0]
      )
      assert (cosines[1:] <= cosines[0] + 1e-6).all()
      np.testing.assert_allclose(
        cosines[1:], [each["score"] for each in negatives], atol=1e-6
      )
      assert (np.diff(cosines[1:]) <= 1e-6).all()
    found += len(after[0]["hard_negative_ctxs"])
    first, second = (
      [each["passage_id"] for each in record["hard_negative_ctxs"]]
      for record in after
    )
    assert first == second
  assert found > 60
  ids = {
    each["passage_id"]
    for record in dense
    for each in record["hard_negative_ctxs"]
  }
  assert any(name.startswith("d") for name in ids)  # Of the other corpus.
  assert "ranked by the model's cosine; analyzer: subwords" in (
    capsys.readouterr().out
  )


@pytest.mark.slow
def test_a_model_mines_with_the_prompt_that_it_was_trained_with(
  tmp_path, one_device
):
  sentence_models.save(tmp_path / "model")
  plain = mlir_jax.load(str(tmp_path / "model"), batch_size=16)
  contract = dataclasses.replace(
    plain.contract, prompts={"nq": {"query": "Find: "}}
  )
  encoder = encoding.TextEncoder(
    contract,
    plain.text_encoder.tokenizer,
    encoding.make_embed(plain.encoder_config, contract),
    plain.text_encoder.mesh,
    prompt="nq",
  )
  prompted = dataclasses.replace(plain, text_encoder=encoder)
  source = tmp_path / "train.jsonl"
  source.write_text(
    "".join(
      json.dumps({"query": text, "pos": [f"{text} b"], "prompt": "Find: "})
      + "\n"
      for text in ("apple", "river", "stone")
    )
  )

  def mined(model, name):
    output = tmp_path / name
    found = search.Search("dense", model)
    rules = rules_lib.Rules(num_negatives=1)
    mine.mine(str(source), str(output), rules, found, with_scores=True)
    return [json.loads(line) for line in output.read_text().splitlines()]

  with pytest.raises(ValueError, match="encodes queries with 'apple: '"):
    mined(plain, "plain.jsonl")
  assert len(mined(prompted, "prompted.jsonl")) == 3
  # A search that was killed does not go on with another prompt.
  other = dataclasses.replace(
    plain,
    text_encoder=encoding.TextEncoder(
      contract,
      plain.text_encoder.tokenizer,
      encoding.make_embed(plain.encoder_config, contract),
      plain.text_encoder.mesh,
    ),
  )
  assert (
    search.Search("dense", other).identity()
    != search.Search("dense", prompted).identity()
  )


KILLED = """
import os, pathlib, random, signal, sys, time
sys.path.insert(0, sys.argv[1])
from mlir_jax import mine
from mlir_jax.mining import pairs, portions, rules, search
portions.SIZE = 16
source, folder = sys.argv[2], pathlib.Path(sys.argv[3])

def start(output, seconds=0.0):
  child = os.fork()
  if child:
    return os.waitpid(child, 0)[1]
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
  os.dup2(1, 2)
  if seconds:  # Python does not see this signal: it kills, as SIGKILL does.
    signal.setitimer(signal.ITIMER_REAL, seconds)
  mine.mine(source, str(folder / output), rules.Rules(num_negatives=2),
            search.Search())
  os._exit(0)

begun = time.monotonic()
assert start("whole") == 0
longest = time.monotonic() - begun
draw, killed = random.Random(int(time.time())), 0
while killed < 20:
  if start("killed", draw.uniform(0.01, longest)):
    killed += 1
    there = {path.name for path in folder.iterdir()} - {"whole"}
    assert there <= {".killed.mining"} or there == {"killed"}, there
  if (folder / "killed").exists():
    for name in ("train.json", "more.json"):
      made = (folder / "killed" / name).read_bytes()
      assert made == (folder / "whole" / name).read_bytes()
    os.system(f"rm -r {folder / 'killed'}")
start("killed")
left = [path.name for path in folder.iterdir()]
assert sorted(left) == ["killed", "whole"], left
for name in ("train.json", "more.json"):
  made = (folder / "killed" / name).read_bytes()
  assert made == (folder / "whole" / name).read_bytes()
print("as promised")
"""


@pytest.mark.slow
def test_killed_twenty_times_it_leaves_nothing_half_written(tmp_path):
  folder = tiny.write_folder(tmp_path / "data", pairs=120)
  content = (folder / "ir" / "train.json").read_text()
  (folder / "ir" / "more.json").write_text(content.replace("apple", "pear"))
  (tmp_path / "out").mkdir()
  package = pathlib.Path(mine.__file__).parents[1]
  done = subprocess.run(
    [sys.executable, "-c", KILLED, package, folder, tmp_path / "out"],
    capture_output=True,
    text=True,
    timeout=300,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
  )
  assert done.stdout == "as promised\n", done.stderr


@pytest.mark.slow
def test_the_program_mines_a_file(tmp_path):
  source, output = tmp_path / "train.jsonl", tmp_path / "mined.jsonl"
  write_pairs(source, "dpr")
  package = pathlib.Path(mine.__file__).parents[1]
  path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
  done = subprocess.run(
    [
      *(sys.executable, "-m", "mlir_jax", "mine"),
      *(f"--input={source}", f"--output={output}", "--num_negatives=2"),
    ],
    capture_output=True,
    text=True,
    timeout=300,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
  )
  assert done.returncode == 0, done.stderr
  assert "Mined 12 negatives for 6 questions" in done.stdout
  # The library logs at a level of its own.
  assert "DEBUG" not in done.stderr and "bm25s" not in done.stderr
  assert len(read(output)) == len(TOWNS)
