"""The notebooks are clean, install without moving jax, and run on the CPU."""

import importlib.metadata
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import nbclient
import nbformat
import pytest

import mlir_jax

PACKAGE = pathlib.Path(mlir_jax.__file__).parents[1]
ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
if not FOLDER.is_dir():
  pytest.skip("notebooks/ is not next to the tests", allow_module_level=True)
NAMES = [path.name for path in sorted(FOLDER.glob("*.ipynb"))]
# Their cells read the name of a model from this variable.
USE_A_MODEL = ("fine_tune_e5.ipynb", "search_and_ask.ipynb")
# It ends a cell that hangs.
SECONDS = 900


def read(name):
  return nbformat.read(FOLDER / name, as_version=nbformat.NO_CONVERT)


def code_cells(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def install_cell():
  return code_cells(read(NAMES[0]))[0].source


def repository():
  (found,) = re.findall(r'"https://github\.com/(.+?)"', install_cell())
  return found


def test_the_notebooks_are_valid_without_outputs_and_install_alike():
  """Their cells have ids that a reader chose, so that changes are readable."""
  assert len(NAMES) == 6
  listed = (FOLDER / "README.md").read_text(encoding="utf-8")
  for name in NAMES:
    notebook = read(name)
    nbformat.validate(notebook)
    for cell in notebook.cells:
      assert re.fullmatch("[a-z][a-z-]*", cell.id)
      assert cell.source.strip()
    for cell in code_cells(notebook):
      assert not cell.outputs and cell.execution_count is None
    assert code_cells(notebook)[0].source == install_cell()
    address = f"colab.research.google.com/github/{repository()}/"
    badge = f"https://{address}blob/main/notebooks/{name}"
    assert f"({badge})" in notebook.cells[0].source
    assert f"({name})" in listed and f"({badge})" in listed


def test_links_between_notebooks_and_documents_lead_somewhere():
  """Colab follows no relative links, so notebooks have the whole address."""
  found = 0
  for path in FOLDER.iterdir():
    text = path.read_text(encoding="utf-8")
    here = rf"\]\(https://github\.com/{repository()}/blob/main/([^)#]+)"
    links = [ROOT / link for link in re.findall(here, text)]
    relative = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert path.suffix == ".md" or not relative
    links += [FOLDER / link for link in relative]
    found += len(links)
    assert [link for link in links if not link.exists()] == []
  assert found > 10


def test_no_program_starts_after_a_notebook_itself_uses_jax():
  """JAX in the notebook holds the TPU, or the memory of the GPU."""
  for name in NAMES:
    holds = False
    for cell in code_cells(read(name)):
      if cell.source.startswith("%%writefile"):
        continue
      assert not (holds and "!python -m mlir_jax" in cell.source), name
      holds = holds or bool(
        re.search(r"^(import|from) (jax|mlir_jax)\b", cell.source, re.MULTILINE)
      )


LATER = {"jax": "99.1.0", "jaxlib": "99.1.1"}
OLDER = {"jax": "0.10.1", "jaxlib": "0.10.1"}


@pytest.mark.parametrize(
  "there, jax, files, wanted",
  [
    (True, LATER, ["/dev/accel0"], None),
    (
      *(False, LATER, ["/dev/nvidia0"]),
      ["mlir_jax @ git+ADDRESS", "jax==99.1.0", "jaxlib==99.1.1"],
    ),
    (False, {}, [], ["mlir_jax @ git+ADDRESS"]),
    (False, {}, ["/dev/nvidia0"], ["mlir_jax[cuda] @ git+ADDRESS"]),
    (False, {}, ["/dev/vfio/0"], ["mlir_jax[tpu] @ git+ADDRESS"]),
    (False, OLDER, [], r"jax 0\.10\.1 is too old .*'jax>=0\.10\.2', restart"),
    (True, OLDER, ["/dev/accel0"], r"jax 0\.10\.1 .*'jax\[tpu\]>=0\.10\.2'"),
  ],
)
def test_the_first_cell_installs_what_is_missing_and_never_moves_jax(
  monkeypatch, there, jax, files, wanted
):
  """It asks pip for nothing, for these packages, or ends with one line."""

  def version(package):
    if package in jax:
      return jax[package]
    raise importlib.metadata.PackageNotFoundError(package)

  asked = []
  monkeypatch.setattr(importlib.metadata, "version", version)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: there or None)
  monkeypatch.setattr(
    "glob.glob",
    lambda pattern: [file for file in files if re.match(pattern[:-6], file)],
  )
  monkeypatch.setattr(
    subprocess, "run", lambda command, check: asked.append(command)
  )
  cell = re.sub('"https://github.com/.+?"', '"ADDRESS"', install_cell())
  if isinstance(wanted, str):
    with pytest.raises(SystemExit, match=wanted) as caught:
      exec(cell, {})
    assert not asked and "\n" not in str(caught.value)
    return
  exec(cell, {})
  pip = [sys.executable, "-m", "pip", "install", "--quiet"]
  assert asked == ([] if wanted is None else [[*pip, *wanted]])


def test_the_first_cell_knows_the_lowest_jax_of_the_package():
  (lowest,) = re.findall(r'LOWEST_JAX = "(.+)"', install_cell())
  assert lowest == mlir_jax._LOWEST_JAX


@pytest.fixture(scope="session")
def e5_like(tmp_path_factory):
  """Returns the folder of a tiny BERT that is laid out as e5 is on the hub.

  It has mean pooling, unit vectors, lengths of 512 and no prompts.
  """
  import hf_models
  import sentence_transformers
  from sentence_transformers.sentence_transformer import modules

  from mlir_jax.data import preparation
  from mlir_jax.data import tokenizer as tokenizer_lib
  from mlir_jax.data.collections import cldr

  folder = tmp_path_factory.mktemp("models")
  texts = [*preparation.training_texts(cldr.load())]
  for name in NAMES:
    texts += [cell.source for cell in read(name).cells]
  tokenizer = tokenizer_lib.train(texts, 4000)
  plain = hf_models.random_model(
    folder / "plain",
    "bert",
    vocab_size=tokenizer.get_vocab_size(),
    max_position_embeddings=512,
  )
  hf_models.save_tokenizer(tokenizer, plain)
  transformer = modules.Transformer(str(plain), **hf_models.UNTRUSTED)
  transformer.max_seq_length = 512
  sentence_transformers.SentenceTransformer(
    modules=[transformer, modules.Pooling(24, "mean"), modules.Normalize()],
    device="cpu",
    trust_remote_code=False,
  ).save(str(folder / "tiny-e5"), create_model_card=False)
  return folder / "tiny-e5"


# IPython ignores the exit status of a command; this makes it an error.
CHECKS = f"""
import sys
assert sys.executable == {sys.executable!r}
shell = get_ipython()
call = shell.system

def system(command):
  call(command)
  if status := shell.user_ns["_exit_code"]:
    raise RuntimeError(f"Status {{status}}: {{command}}")

shell.system = system
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_without_a_network(
  name, tmp_path, request, monkeypatch
):
  """Only cells with the tag "raises-exception" fail, and all of these do."""
  if name in USE_A_MODEL:
    model = request.getfixturevalue("e5_like")
    monkeypatch.setenv("MLIR_JAX_NOTEBOOK_MODEL", str(model))
  python = pathlib.Path(sys.executable).parent
  for variable, value in {
    "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(PACKAGE),
    "IPYTHONDIR": str(tmp_path / "ipython"),
  }.items():
    monkeypatch.setenv(variable, value)
  if name == "pod_plan.ipynb":
    # libtpu ends a process whose XLA_FLAGS are those of a CPU.
    monkeypatch.setenv("XLA_FLAGS", "")
  notebook = read(name)
  notebook.cells.insert(0, nbformat.v4.new_code_cell(CHECKS))
  (tmp_path / "work").mkdir()
  nbclient.NotebookClient(
    notebook,
    timeout=SECONDS,
    kernel_name="python3",
    resources={"metadata": {"path": str(tmp_path / "work")}},
  ).execute()
  for cell in code_cells(notebook):
    failed = any(output.output_type == "error" for output in cell.outputs)
    assert failed == ("raises-exception" in cell.metadata.get("tags", ()))
