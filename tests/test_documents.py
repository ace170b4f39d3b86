"""All commands and snippets of the documents work, and their names exist.

A document names runs, folders and files as a reader would: W, FOLDER, INDEX.
`desk` makes them, and each command of a code block runs in a copy of the desk.
A training is whole on the desk; in a copy it ends early (see `shortened`). A
command that needs more than CI has is in `NOT_RUN`, with the reason; its flags
are checked all the same, as are those of a command in a sentence. So a new
command works, or fails this test.
"""

import ast
import contextlib
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import desk as desk_lib
import programs
import pytest

import mlir_jax
from mlir_jax import config as config_lib
from mlir_jax import config_files, workdir
from mlir_jax.training import build, checks, run

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = pathlib.Path(mlir_jax.__file__).parent
EXTENDING = ROOT / "docs/extending.md"
DOCUMENTS = [
  ROOT / "README.md",
  *sorted((ROOT / "docs").glob("*.md")),
  ROOT / "benchmarks/README.md",
  ROOT / "launch/README.md",
]

# A part of "DOCUMENT: COMMAND", to why the command is not run.
NOT_RUN = {
  "mlir-jax download debian": "it needs the network",
  "mlir-jax download mrtydi": "it needs the network",
  "mlir-jax download nq": "it needs the network",
  "reproduce hu2023": "it needs the network and days; see test_hu2023.py",
  "reproduce quickstart": "it trains for minutes; see test_reproduce.py",
  "reproduce mine.py": "it needs the network; see test_reproduce.py",
  "--runner=beam": "it needs Apache Beam and a cluster",
  "mlir_jax.plan": "it compiles a large model; tests/planner plan small ones",
  "python benchmarks/": "it measures, for minutes or hours",
  "launch/README.md: ": "test_launch.py runs all commands of this document",
}
SNIPPETS_NOT_RUN = {
  "mteb.get_tasks": "it needs the network",
}
# What a document says, to what is on the desk. Models here have 32 numbers.
STANDS_FOR = {
  r"intfloat/multilingual-e5-small": "MODEL",
  r"\bFOLDER_OR_HUB_NAME\b": "BACKBONE",
  r"--model=NAME\b": "--model=MODEL",
  r"--model=… (.*) …": r"--model=MODEL \1 --root=FOLDER --output=RESULTS",
  r"--config=C\b": "--config=quickstart",
  r"reproduce mine\.py\b": "reproduce quickstart",
  r"--config=MY_CONFIG\b": "--config=e5_small",
  r"(my_project\.data:load .*root=)FOLDER": r"\1PAIRS",
  r"train … ": "train --config=quickstart --workdir=W ",
  r"--from_step=N\b": "--from_step=1",
  r"step-100\b": "step-3",
  r"\$variant\b": "ir",
  r"\$seed\b": "1",
  r"truncate_dim=(96|64)\b": "truncate_dim=16",
  r"dimensions=192,96,48\b": "dimensions=24,12",
}
# A part of a training's command, to fields that it needs here.
NEEDS = {
  "loss.distillation.weight": {"model__pretrained": "MODEL"},  # The teacher.
  "loss.score_distillation": {"data__root": "SCORED"},
  "my_project.data:load": {"tokenizer__vocab_size": "100"},  # It is small.
}
# Parts of a training's command that concern what it reads.
READS = ("my_project", "guide", "distillation", "formats", "config=adapt")
_COMMAND = re.compile(
  r"(?:\S+=\S+ )*"
  r"(?:python -m mlir_jax\.(\w+)|(?:\S*/)?mlir-jax (\w+)"
  r"|python ((?:benchmarks|configs)/\S+)|(?:sbatch \S+ )?(launch/\w+\.sh))"
  r"(?: (.*))?"
)


class Command(NamedTuple):
  """A command of a document.

  Attributes:
    text: "DOCUMENT: COMMAND", as it is shown.
    program: Such as "train" or "benchmarks/speed.py".
    arguments: The rest, after `STANDS_FOR`.
    is_whole: Whether it is in a code block; else it is in a sentence.
  """

  text: str
  program: str
  arguments: tuple[str, ...]
  is_whole: bool


def name_of(path: pathlib.Path) -> str:
  return path.relative_to(ROOT).as_posix()


def read(path: pathlib.Path) -> tuple[list[str], list[str], list[str]]:
  """Returns the lines of shell code, code in sentences, and Python snippets."""
  text = path.read_text(encoding="utf-8")
  python, block = r"(?ms)^```python\n(.*?)^```", r"(?m)^ {4,}(.*)$"
  snippets = re.findall(python, text)
  text = re.sub(r"\\\n\s*", "", re.sub(python, "", text))
  spans = re.findall(r"`([^`]+)`", re.sub(block, "", text))
  return re.findall(block, text), [" ".join(s.split()) for s in spans], snippets


def translate(text: str) -> str:
  for said, meant in STANDS_FOR.items():
    text = re.sub(said, meant, text)
  return text


def commands() -> Iterator[Command]:
  """Yields the commands of all documents."""
  for path in DOCUMENTS:
    lines, spans, _ = read(path)
    for is_whole, shown in ((True, lines), (False, spans)):
      for line in shown:
        for part in re.split(r" && | \| ", line):
          text = re.split(r"\s+# ", part.strip())[0]
          if match := _COMMAND.fullmatch(translate(text)):
            *programs_, rest = match.groups()
            yield Command(
              f"{name_of(path)}: {text}",
              next(filter(None, programs_)),
              tuple(shlex.split(rest or "")),
              is_whole,
            )


def value(command: Command, flag: str) -> str | None:
  """Returns the last value of a flag; None if it is not given."""
  given = [w for w in command.arguments if w.startswith(f"--{flag}=")]
  return given[-1].partition("=")[2] if given else None


def check_flags(command: Command) -> None:
  """Raises AssertionError if a flag is unknown, or a value is wrong."""
  program, words = command.program, command.arguments
  if program.endswith(".py"):
    source = (ROOT / program).read_text(encoding="utf-8")
    known = re.findall(r'"(--\w+)"', source)
    given = {w.partition("=")[0] for w in words if re.match(r"--\w+(=|$)", w)}
    assert given <= {*known}, f"unknown: {given - {*known}}"
    return
  if program.endswith(".sh"):
    program = "train"
    words = words[words.index("--") + 1 if "--" in words else 0 :]
  names = [w for w in words if re.fullmatch(r"--\w+", w)]  # Without a value.
  whole = [re.sub(r"\$\w+", "x", w) for w in words if w not in (*names, "…")]
  with programs.quiet() as printed:
    assert programs.parse(program, *whole) == 0, printed.getvalue()
  with programs.quiet() as printed:
    programs.run(program, "--help")
  for name in names:
    assert re.search(rf"--(\[no\])?{name[2:]}:", printed.getvalue()), name


def start(command: Command) -> None:
  """Runs a command of a code block on the desk."""
  if command.program == "launch/local.sh":  # With a stand-in for the trainer.
    plan = {"PYTHON": str(ROOT / "tests/fakes/trainer.py")}
    plan |= {"FAKE_PLAN": "0,0,0,0", "JAX_PLATFORMS": "cpu"}
    subprocess.run(
      [ROOT / command.program, *command.arguments],
      check=True,
      timeout=60,
      capture_output=True,
      env=os.environ | plan,
    )
    check_flags(command)
    return
  arguments = [*command.arguments]
  made = [value(command, "output")]
  if command.program in ("train", "prepare"):
    if value(command, "from_step"):
      arguments += flags_of_run("W")
    else:
      made.append(value(command, "workdir"))
      needed = [
        fields for part, fields in NEEDS.items() if part in command.text
      ]
      config = value(command, "config") or ""
      arguments = desk_lib.flags(config, arguments, **dict(*needed))
  for path in filter(None, made):
    shutil.rmtree(path, ignore_errors=True)
  words = []
  for word in arguments:
    found = sorted(map(str, pathlib.Path().glob(word))) if "*" in word else []
    words += found or [word]
  with (
    open("questions.txt", encoding="utf-8") as questions,
    mock.patch.object(sys, "stdin", questions),
    shortened(command),
  ):
    desk_lib.run(command.program, *words)


class ReachedError(Exception):
  """A training is about to compile its step."""


@contextlib.contextmanager
def shortened(command: Command) -> Iterator[None]:
  """Within it, a training ends early; compiling all steps takes minutes.

  It checks its settings. If it reads more than others (see `READS`), it also
  makes tokens, the vectors of a guide or a teacher, and the initial state.
  """
  if command.program != "train" or value(command, "from_step"):
    yield
  elif any(part in command.text for part in READS):
    with (
      mock.patch.object(build, "compile_step", side_effect=ReachedError),
      pytest.raises(ReachedError),
    ):
      yield
  else:

    def check(config, *_, **__):
      checks.check_settings(config)

    with mock.patch.object(run, "train", check):
      yield


def flags_of_run(folder: str) -> list[str]:
  """Returns the flags that repeat the config of a run of the quick start."""
  kept = json.loads(pathlib.Path(folder, "config.json").read_text())
  shipped = workdir.flatten(config_files.load("quickstart").to_dict())
  return [
    f"--config.{name}={each}"
    for name, each in workdir.flatten(kept).items()
    if shipped.get(name) != each
  ]


@pytest.fixture(scope="module")
def desk(tmp_path_factory, one_device):
  """Makes the desk; see `desk.fill`."""
  folder = tmp_path_factory.mktemp("documents") / "desk"
  folder.mkdir()
  with contextlib.chdir(folder):
    desk_lib.fill(EXTENDING)
  return folder


@contextlib.contextmanager
def copied(folder: pathlib.Path) -> Iterator[None]:
  """Works in a copy of the desk, which may hold code of the user."""
  copy = folder.with_name("copy")
  shutil.copytree(folder, copy)
  try:
    with (
      contextlib.chdir(copy),
      mock.patch.object(sys, "path", [str(copy), *sys.path]),
    ):
      yield
  finally:
    shutil.rmtree(copy)
    for name in [n for n in sys.modules if n.startswith("my_project")]:
      del sys.modules[name]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # Some hundred commands.
def test_commands_and_snippets_of_all_documents_work(desk):
  seen, failed, used = set(), [], set()
  for command in commands():
    if command[1:] in seen:
      continue
    seen.add(command[1:])
    reasons = {part for part in NOT_RUN if part in command.text}
    used |= reasons
    try:
      if reasons or not command.is_whole:
        check_flags(command)
      else:
        with copied(desk):
          start(command)
    except Exception as error:
      failed.append(f"{command.text}\n    {type(error).__name__}: {error}")
  for path in DOCUMENTS:
    snippets = read(path)[2]
    if path == EXTENDING or not snippets:  # test_extending.py runs its code.
      continue
    with copied(desk):
      names: dict = {}
      shutil.rmtree("FOLDER")
      shutil.copytree("MODEL", "FOLDER")  # Snippets load an export from there.
      for snippet in map(translate, snippets):
        reasons = {part for part in SNIPPETS_NOT_RUN if part in snippet}
        used |= reasons
        try:
          made = compile(snippet, name_of(path), "exec")
          if not reasons:
            with programs.quiet():
              exec(made, names)
        except Exception as error:
          failed.append(f"{name_of(path)}: {type(error).__name__}: {error}")
  assert not failed, "\n".join(failed)
  assert used == {*NOT_RUN, *SNIPPETS_NOT_RUN}  # No reason is left over.


def test_every_field_that_a_document_names_exists():
  leaves = workdir.flatten(config_lib.default().to_dict())
  known = {
    name.rsplit(".", depth)[0] for name in leaves for depth in range(3)
  } | {*leaves}
  tops = {name.partition(".")[0] for name in leaves}
  of_user = ("loss.extra", *config_lib.NAMED)
  # They only look like fields: the first ones are of a `Model`.
  of_user += ("model.encode", "model.s", "tokenizer.json")
  wrong = []
  for path in DOCUMENTS:
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"`([a-z]+\.[a-z0-9_.]+)(?:=[^`]*)?`", text)
    flags = re.findall(r"--config\.([a-z0-9_.]+)=", text)
    for name in [*flags, *(n for n in named if n.partition(".")[0] in tops)]:
      if not name.startswith(of_user) and name.rstrip(".") not in known:
        wrong.append(f"{name_of(path)}: {name}")
  assert not wrong


def test_every_link_to_a_file_leads_to_one():
  wrong = []
  for path in DOCUMENTS:
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
    for link in links:
      if "://" not in link and not (path.parent / link).exists():
        wrong.append(f"{name_of(path)}: {link}")
  assert not wrong


def test_every_quoted_message_is_in_the_source():
  """In a message of docs/troubleshooting.md, … means any name or number."""
  texts = [text for path in PACKAGE.rglob("*.py") for text in messages(path)]
  document = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
  quoted = re.findall(r"(?m)^### (.*)$", document)
  for quote in quoted:
    parts = quote.split("…")
    pattern = re.compile(".*?".join(map(re.escape, parts)), re.DOTALL)
    longest = max(parts, key=len)  # Found sooner than the pattern.
    assert any(pattern.search(t) for t in texts if longest in t), quote
  assert len(quoted) > 80


def messages(path: pathlib.Path) -> list[str]:
  """Returns the texts in a file of Python code, without values in them."""
  found = []
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    match node:
      case ast.JoinedStr(values=values):
        texts = [v.value for v in values if isinstance(v, ast.Constant)]
        found.append("\0".join(map(str, texts)))
      case ast.Constant(value=str() as text):
        found.append(text)
  return found


def test_the_page_of_settings_has_every_field_with_its_default():
  path = ROOT / "docs/_site/settings.py"
  spec = importlib.util.spec_from_file_location("site_settings", path)
  assert spec and spec.loader
  settings = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(settings)
  found = {
    setting.name: setting
    for group in settings.read(PACKAGE)
    for setting in group.settings
  }
  leaves = workdir.flatten(config_lib.default().to_dict())
  assert {n for n in found if found[n].default != "{}"} == {*leaves}
  for name, default in leaves.items():
    assert ast.literal_eval(found[name].default) == default, name
    assert found[name].meaning, name
