"""The command line prints help, and refuses in one line with status 2."""

import os
import pathlib
import re
import subprocess
import sys

import programs
import pytest

import mlir_jax
from mlir_jax import __main__
from mlir_jax.command_line import pipes
from mlir_jax.training import run as run_lib

# Some flags of each program: first those that are paths, then others.
MAINS = {
  "download": (["output"], ["languages", "mirror", "dry_run"]),
  "train": (["workdir"], ["config", "distributed", "profile"]),
  "prepare": (["workdir"], ["config"]),
  "mine": (
    ["input", "output", "corpus", "model", "tokenizer", "plot"],
    ["num_negatives", "relative_margin", "existing"],
  ),
  "evaluate": (
    ["workdir", "root", "tatoeba_root", "output"],
    ["checkpoint", "collection", "process"],
  ),
  "compare": (["qrels", "root", "output"], ["step", "measures"]),
  "encode": (
    ["model", "output", "root"],
    ["role", "format", "dtype", "batch_size", "coordinator"],
  ),
  "search": (["index", "queries", "output"], ["k", "run_tag"]),
  "ask": (["model", "root", "index"], ["k", "json"]),
  "export": (
    ["workdir", "output", "index"],
    ["checkpoint", "name", "layout"],
  ),
  "report": (["output", "paper"], []),
  "plan": (["workdir", "encoder", "output"], ["config", "topology", "batch"]),
  "reproduce": (
    ["workdir", "data"],
    ["config", "seeds", "mirror", "list", "dry_run", "propose"],
  ),
}


@pytest.fixture
def call(capfd):
  """Runs a program here: (name, flags) -> exit status, stdout, stderr."""

  def call_main(main, *arguments):
    return programs.run(main, *arguments), *capfd.readouterr()

  return call_main


def test_a_refusal_is_one_line_after_the_programs_name(tmp_path):
  package = str(pathlib.Path(mlir_jax.__file__).parents[1])
  done = subprocess.run(
    [sys.executable, "-m", "mlir_jax", "train", "--config=quickstart"],
    capture_output=True,
    text=True,
    timeout=120,
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": package},
  )
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr == (
    "mlir-jax train: Give --workdir; --help shows an example.\n"
  )


def test_an_older_jax_is_refused_in_one_line_that_says_what_to_do(tmp_path):
  info = tmp_path / "jax-0.9.12.dist-info"
  info.mkdir()
  (info / "METADATA").write_text("Name: jax\nVersion: 0.9.12\n")
  package = str(pathlib.Path(mlir_jax.__file__).parents[1])
  path = os.pathsep.join([str(tmp_path), package])
  said = {}
  for arguments in (["-m", "mlir_jax.train"], ["-c", "import mlir_jax"]):
    done = subprocess.run(
      [sys.executable, *arguments],
      capture_output=True,
      text=True,
      env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 1
    said[arguments[0]] = done.stderr.splitlines()
  (line,) = said["-m"]
  assert line.startswith(
    f"mlir_jax needs jax {mlir_jax._LOWEST_JAX} or newer, but 0.9.12 is"
    " installed. Run pip install 'jax>="
  )
  assert said["-c"][-1] == f"ImportError: {line}"


def test_the_command_lists_all_programs(monkeypatch, capsys):
  assert set(__main__.PROGRAMS) == MAINS.keys()
  monkeypatch.setattr(sys, "argv", ["mlir-jax"])
  __main__.main()
  output = capsys.readouterr().out
  for name in MAINS:
    assert re.search(rf"^  {name} +[A-Z].*\.$", output, re.MULTILINE), name
  monkeypatch.setattr(sys, "argv", ["mlir-jax", "trian"])
  with pytest.raises(SystemExit, match="2"):
    __main__.main()
  assert capsys.readouterr().err == (
    "mlir-jax: there is no program 'trian'; there are download, prepare,"
    " mine, train, evaluate, compare, encode, search, ask, export, report,"
    " plan, reproduce.\n"
  )


@pytest.mark.parametrize("main", MAINS)
def test_help_shows_an_example_and_the_programs_own_flags(main, call):
  code, output, _ = call(main, "--help")
  assert code == 0
  assert f"python -m mlir_jax.{main} --" in output
  described = output[output.index("Flags:") :]
  for name in [*MAINS[main][0], *MAINS[main][1]]:
    assert f"--{name}:" in described or f"--[no]{name}:" in described, name
  assert "--verbosity" not in described  # A library's.


def test_a_program_whose_output_nobody_reads_ends_without_an_error(tmp_path):
  package = str(pathlib.Path(mlir_jax.__file__).parents[1])
  environment = os.environ | {"PYTHONPATH": package}
  outside, inside = os.pipe()
  os.close(outside)
  started = [
    (
      status,
      subprocess.Popen(
        [sys.executable, "-m", "mlir_jax", *arguments],
        stdout=inside,
        stderr=subprocess.PIPE,
        env=environment | {"PYTHONUNBUFFERED": unbuffered},
        cwd=tmp_path,
        text=True,
      ),
    )
    for arguments, unbuffered, status in (
      (["--help"], "", pipes.STATUS),
      (["compare", "--help"], "", pipes.STATUS),
      (["download"], "1", pipes.STATUS),  # Within its main function.
      (["download", "no_such_corpus"], "", 2),
    )
  ]
  os.close(inside)
  for status, process in started:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status, errors
    assert errors.count("\n") == (status == 2), errors


def test_a_broken_connection_is_still_an_error():
  with pytest.raises(BrokenPipeError), pipes.may_be_left():
    raise BrokenPipeError


def test_download_lists_corpora_and_with_dry_run_their_files(call, tmp_path):
  code, output, _ = call("download")
  assert code == 0
  assert re.search(r"^mrtydi +Mr\. TyDi 1\.1", output, re.MULTILINE)
  flags = [f"--output={tmp_path}", "--languages=fi,de", "--dry_run"]
  code, output, _ = call("download", "wikimatrix", *flags)
  name = "WikiMatrix.en-fi.tsv.gz"
  assert code == 0
  assert f"https://dl.fbaipublicfiles.com/laser/WikiMatrix/v1/{name}" in output
  place = tmp_path / "downloads/wikimatrix" / name
  assert f"to {place}: size unknown, not here" in output
  assert not list(tmp_path.iterdir())
  code, _, error = call("download", "wikimatrix:x", *flags)
  assert (code, error) == (
    2,
    "mlir-jax download: wikimatrix:x: wikimatrix has no variant 'x'.\n",
  )


def test_a_path_that_is_empty_is_refused(call):
  for main, (paths, _) in MAINS.items():
    for name in paths:
      code, _, error = call(main, f"--{name}=")
      assert code == 2
      assert error.startswith(f"mlir-jax {main}: --{name}=: the path is empty")
  code, _, error = call(
    "encode", "--model=m", "--role=query", "--output=v.npy", ""
  )
  assert (code, error) == (2, "mlir-jax encode: The name of a file is empty.\n")


def test_a_tilde_is_the_users_home_in_every_path(call, monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  started = []
  monkeypatch.setattr(
    run_lib, "train", lambda *given, **_: started.append(given)
  )
  (tmp_path / "own.py").write_text(
    "from mlir_jax import config\ndef get_config():\n"
    "  c = config.default()\n  c.tokenizer.path = '~/tokenizer'\n  return c\n"
  )
  paths = {
    "data.root": "data",
    "data.tatoeba_root": "tatoeba",
    "hosts.local_dir": "local",
    "model.pretrained": "model",
    "train.compilation_cache": "compiled",
  }
  code, _, error = call(
    *("train", "--config=~/own.py", "--workdir=~/run"),
    *(f"--config.{name}=~/{path}" for name, path in paths.items()),
  )
  assert code == 0, error
  ((config, folder, _),) = started
  assert folder == f"{tmp_path}/run"
  found = config.to_dict()
  for name, path in (paths | {"tokenizer.path": "tokenizer"}).items():
    group, _, field = name.partition(".")
    assert found[group][field] == f"{tmp_path}/{path}"
  code, _, error = call("evaluate", "--workdir=~/no_run")
  assert code == 2
  assert error.endswith(f"There is no folder {tmp_path}/no_run.\n")


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--confg.seed=1", "Unknown command line flag 'confg.seed'"),
    ("--config.fieldd=1", "--config.fieldd: there is no such field."),
    ("--config.optim.lerning_rate=1", "Did you mean --config.optim.learning_"),
    ("--config.lerning_rate=1", "Did you mean --config.optim.learning_rate?"),
    ("--config.train.steps=abc", "train.steps=abc: invalid literal"),
    ("--config.train.steps=1.5", "train.steps=1.5: invalid literal"),
    ("--config.mesh.fsdp=perhaps", "boolean"),
    ("--config.optim=3", "--config.optim is a group of fields: set one of"),
    ("--config.train=", "--config.train is a group of fields: set one of"),
    ("--config.train", "--config.train is a group of fields: set one of"),
    ("--config=", "--config is empty"),
    ("--config=quickstrat", "Did you mean quickstart? Shipped: adapt, debian"),
    ("--config=./no.py", "there is no file ./no.py"),
    ("--config=./\33[31mno.py", "there is no file ./\\x1b[31mno.py"),
    ("--config.batch.retrieval=0", "loss.ir.weight is 1.0, but batch"),
    ("--config.optim.warmup_steps=500", "optim.warmup_steps is 500, but"),
    ("--config.optim.decay=exponential", "optim.decay is 'exponential'"),
    ("--config.=1", "--config.: there is no such field."),
    (
      "--config.encoding.query.prefix=\udcff",
      "encoding.query.prefix is '\\udcff'",
    ),
    ("--flagfile=./no_flags", "./no_flags"),
    ("--train_compilation", "Unknown command line flag 'train_compilation'"),
  ],
)
def test_a_wrong_flag_is_refused_with_what_to_do(flag, message, call, tmp_path):
  code, _, error = call(
    "train", "--config=quickstart", f"--workdir={tmp_path}/run", flag
  )
  assert code == 2
  assert message in error
  assert error.count("\n") == 1
  assert not (tmp_path / "run").exists()


def test_a_flagfile_may_name_a_users_loss_and_evaluator(
  call, monkeypatch, tmp_path
):
  (tmp_path / "of_a_user.py").write_text(
    "import dataclasses\nfrom mlir_jax.losses import base\n"
    "@dataclasses.dataclass(frozen=True)\nclass Own(base.Loss):\n"
    "  stream, reads = 'retrieval', ('queries',)\n"
  )
  (tmp_path / "flags").write_text(
    "--config=quickstart\n--config.loss.extra.own.target=of_a_user:Own\n"
    "--config.loss.extra.own.weight=0.5\n"
    "--config.eval.extra.gap=of_a_user:gap\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  started = []
  monkeypatch.setattr(
    run_lib, "train", lambda *given, **_: started.append(given)
  )
  flagfile = f"--flagfile={tmp_path}/flags"
  code, _, error = call("train", flagfile, f"--workdir={tmp_path}/run")
  assert code == 0, error
  ((config, *_),) = started
  assert config.loss.extra.own.to_dict() == {
    "target": "of_a_user:Own",
    "weight": 0.5,
  }
  assert config.eval.extra.gap == "of_a_user:gap"
  (tmp_path / "flags").write_text("--config=quickstart\n--config.sed=1\n")
  code, _, error = call("train", flagfile, f"--workdir={tmp_path}/run")
  assert (code, error.count("\n")) == (2, 1)
  assert "--config.sed: there is no such field. Did you mean" in error


@pytest.mark.parametrize(
  ("path", "message"),
  [
    ("  ", "the path is empty"),
    ("a\nb", "control characters or bytes that are not UTF-8"),
    ("\udcff", "control characters or bytes that are not UTF-8"),
    ("~no_such_user/x", "there is no user 'no_such_user'"),
    ("s3://bucket/run", "of URLs only gs://BUCKET/FOLDER is supported"),
    ("https://127.0.0.1/x", "of URLs only gs://BUCKET/FOLDER is supported"),
    ("gs://", "of URLs only gs://BUCKET/FOLDER is supported"),
    ("gs:/bucket/run", "of URLs only gs://BUCKET/FOLDER is supported"),
  ],
)
def test_a_path_that_is_not_one_is_refused(path, message, call, monkeypatch):
  for main, (paths, _) in MAINS.items():
    for name in paths:
      code, _, error = call(main, f"--{name}={path}")
      assert code == 2
      assert error.startswith(f"mlir-jax {main}: --{name}=")
      assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("JAX_NUM_CPU_DEVICES", "0"),
    ("JAX_NUM_CPU_DEVICES", "-3"),
    ("JAX_NUM_CPU_DEVICES", "abc"),
    ("JAX_COMPILATION_CACHE_DIR", "file"),
    ("JAX_COMPILATION_CACHE_DIR", "file/x"),
  ],
)
def test_a_variable_that_jax_cannot_use_is_refused_by_every_main(
  name, value, call, monkeypatch, tmp_path
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "file").touch()
  monkeypatch.setenv(name, value)
  given = {
    "download": ["debian", "--output=data"],
    "train": ["--config=quickstart", "--workdir=w"],
    "prepare": ["--config=quickstart", "--workdir=w"],
    "mine": ["--input=file", "--output=o"],
    "evaluate": ["--workdir=w"],
    "compare": ["w", "v"],
    "encode": ["--model=w", "--role=query", "--output=v.npy", "file"],
    "search": ["--index=i", "--queries=file", "--output=r"],
    "ask": ["--model=w", "--root=data"],
    "report": ["w", "--output=r.html"],
    "export": ["--workdir=w", "--output=x"],
    "plan": ["--config=quickstart", "--topology=v5e:2x2"],
    "reproduce": ["quickstart", "--workdir=w"],
  }
  for main in MAINS:
    code, _, error = call(main, *given[main])
    assert code == 2
    assert error.startswith(f"mlir-jax {main}: {name}={value}: ")
    assert error.count("\n") == 1
  assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_platform_that_jax_does_not_have_is_refused_in_one_line(
  call, monkeypatch, tmp_path
):
  def fail(*_, **__):
    raise RuntimeError("Unable to initialize backend 'abacus':\nnot known.")

  monkeypatch.setattr(run_lib, "train", fail)
  code, _, error = call(
    "train", "--config=quickstart", f"--workdir={tmp_path}/w"
  )
  assert (code, error) == (
    2,
    "mlir-jax train: JAX_PLATFORMS: Unable to initialize backend 'abacus': not"
    " known.\n",
  )


@pytest.mark.parametrize(
  ("main", "flags_given", "message"),
  [
    ("plan", ["--sharding="], "--sharding is empty: give replicated, fsdp"),
    ("plan", ["--batch=8,,16"], "--batch=8,,16: give integers from 1, such as"),
    ("plan", ["--batch=0"], "--batch=0: give integers from 1, such as 1024"),
    ("plan", ["--chunk=8,-4"], "--chunk=8,-4: give integers from 0, such as"),
    ("plan", ["--output={}"], "is a folder: name a file."),
    ("plan", ["--output={}/file/x.json"], "/file is not a folder."),
    ("plan", ["--config.batch.retrieval=1"], "batch.retrieval is 1 and"),
    ("export", ["--output={}/file/x"], "/file is not a folder."),
    ("export", ["--name=a\nlicense: mit"], "--name='a\\nlicense: mit' has"),
    ("encode", [f"--batch_size={2**63}"], "--batch_size="),
    ("encode", ["--dtype=float16"], "v.npy is an array of plain text, and"),
    ("encode", ["--root=d"], "Give either files ("),
    ("encode", ["--language=de"], "--language_in_ids need a collection"),
    (
      "encode",
      ["--output=v", "-"],
      "v is a folder, whose texts are read twice",
    ),
    ("export", ["--index=i"], "Give either --workdir, a run's folder, or"),
    ("export", ["--layout=faiss"], "Give both --index and --layout, or none"),
    ("mine", ["--range_min=5", "--range_max=5"], "range_max must be larger."),
    ("mine", ["--max_score=nan"], "max_score is nan; give a finite number."),
    ("mine", ["--candidates=dense"], "--candidates=dense needs --model."),
    ("mine", [f"--num_negatives={2**63}"], "--num_negatives="),
    ("mine", ["--output={}/file"], "/file exists: delete it, or give another"),
    ("mine", ["--output={}/file/x"], "/file is not a folder."),
    ("mine", ["--plot={}/file/x.png"], "/file is not a folder."),
    ("mine", ["--input=gs://a/b"], "mining reads and writes files on a disk."),
    (
      "train",
      ["--distributed", "--processes=2", "--process=0", "--coordinator=a/b:1"],
      "--coordinator=a/b:1: give HOST:PORT.",
    ),
    ("reproduce", ["another"], "Unexpected 'another': give one recipe;"),
    ("reproduce", ["--seeds=a"], "--seeds=a: give integers with commas"),
    ("reproduce", ["--seeds=1,1"], "--seeds: a seed is there twice."),
    ("reproduce", ["--config.seed=1"], "--config.seed: give --seeds."),
    ("reproduce", ["--config.sed=1"], "Did you mean --config.seed?"),
    ("reproduce", ["--config=quickstrat"], "Did you mean quickstart?"),
    ("reproduce", ["--propose", "--seeds=0"], "the spread of 3 seeds or more"),
    ("reproduce", ["--mirror=m"], "--mirror=m: give an http or https"),
    ("reproduce", ["--workdir={}/file"], "/file is not a folder."),
  ],
)
def test_a_value_of_one_main_is_refused_before_any_work(
  main, flags_given, message, call, tmp_path
):
  (tmp_path / "file").touch()
  given = {
    "train": ["--config=quickstart", f"--workdir={tmp_path}/w"],
    "mine": [f"--input={tmp_path}/file", f"--output={tmp_path}/o.json"],
    "encode": [f"--model={tmp_path}/m", "--role=query", "--output=v.npy", "x"],
    "export": [f"--workdir={tmp_path}/w", f"--output={tmp_path}/x"],
    "plan": ["--config=quickstart", "--topology=v5e:2x2"],
    "reproduce": ["quickstart", f"--workdir={tmp_path}/w"],
  }
  code, _, error = call(
    main, *given[main], *(flag.format(tmp_path) for flag in flags_given)
  )
  assert code == 2
  assert message in error and error.count("\n") == 1
  assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_field_before_its_config_is_refused(call):
  code, _, error = call("train", "--config.seed=1", "--config=quickstart")
  assert (code, "Give --config=NAME before --config.seed=1" in error) == (
    2,
    True,
  )


@pytest.mark.parametrize("main", ["train", "prepare", "plan"])
@pytest.mark.parametrize("value", ["-1", "inf", "nan"])
def test_a_number_out_of_range_is_refused_before_anything(
  main, value, call, tmp_path
):
  code, _, error = call(
    *(main, "--config=quickstart", f"--workdir={tmp_path}/run"),
    *([f"--config.optim.clip_norm={value}"]),
    *(["--topology=v5e:2x2"] if main == "plan" else []),
  )
  assert (code, error) == (
    2,
    f"mlir-jax {main}: optim.clip_norm is {float(value)}; it must be 0 or"
    " in [1e-6, 1e6].\n",
  )
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("def get_config(:\n", "own.py:1: SyntaxError: "),
    ("\ndef get_config():\n  return 1 / 0\n", "own.py:3: ZeroDivisionError: "),
    (
      "import pathlib\npathlib.Path('/no/file').read_text()\n",
      "own.py:2: FileNotFoundError: ",
    ),
    (
      "from mlir_jax import config\ndef get_config():\n"
      "  c = config.default()\n  c.optim.lerning_rate = 1.0\n",
      'own.py:4: AttributeError: Key "lerning_rate" does not exist',
    ),
    (
      "def get_config():\n  pass\n",
      "own.py: ValueError: get_config returns No",
    ),
    ("raise SystemExit(0)\n", "own.py:1: SystemExit: 0"),
    ("x = 1\n", "own.py: ValueError: the file defines no function get_config"),
    ("\0\xff", "own.py: "),
    (
      "from ml_collections import ConfigDict\n"
      "get_config = lambda: ConfigDict({'seed': 1})\n",
      "The config has no batch.chunk_rows, ",
    ),
  ],
)
def test_a_config_file_that_fails_is_named_with_its_line(
  text, message, call, tmp_path
):
  file = tmp_path / "own.py"
  file.write_bytes(text.encode("latin-1"))
  code, _, error = call(
    "train", f"--config={file}", f"--workdir={tmp_path}/run"
  )
  assert code == 2
  assert message in error
  assert error.count("\n") == 1
