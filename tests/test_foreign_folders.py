"""No folder runs its own code, even if stdin says yes to it."""

import ast
import contextlib
import io
import json
import pathlib
import shutil
import sys

import hf_models
import pytest
import sentence_models
import tiny

import mlir_jax
from mlir_jax import export
from mlir_jax.data import preparation
from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.models import layout, pretrained, weights
from mlir_jax.retrieval import line_vectors

ROOT = pathlib.Path(mlir_jax.__file__).parents[1]
CODE = """
import pathlib
pathlib.Path({marker!r}).write_text("this must never appear")
class Config: pass
class Tokenizer: pass
class Model: pass
class Pooling: pass
"""
ASKS = {
  "AutoConfig": "evil.Config",
  "AutoTokenizer": ["evil.Tokenizer", None],
  "AutoModel": "evil.Model",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp("foreign") / "model"
  sentence_models.save(folder)
  return folder


@pytest.fixture
def copy(saved, tmp_path):
  folder = tmp_path / "copy"
  return shutil.copytree(saved, folder)


def change(path, **fields):
  old = json.loads(path.read_text()) if path.exists() else {}
  path.write_text(json.dumps(old | fields))


def another_kind(folder):
  """Like ../shared/cases/faults/model_that_runs_code."""
  for path in folder.glob("*.json"):
    path.unlink()
  change(folder / "config.json", model_type="evil", auto_map=ASKS)
  change(folder / "tokenizer_config.json", auto_map=ASKS)
  change(folder / "tokenizer.json", x=1)


def a_kind_of_ours(folder):
  change(folder / "config.json", auto_map=ASKS)


def a_tokenizer(folder):
  settings = {"tokenizer_class": "Tokenizer", "auto_map": ASKS}
  change(folder / "tokenizer_config.json", **settings)


def a_tokenizer_without_definition(folder):
  a_tokenizer(folder)
  (folder / "tokenizer.json").unlink()
  (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nriver")


def a_tokenizer_by_config_alone(folder):
  a_tokenizer_without_definition(folder)
  (folder / "tokenizer_config.json").unlink()
  a_kind_of_ours(folder)


def a_module(folder):
  path = folder / "modules.json"
  modules = json.loads(path.read_text())
  modules[1]["type"] = "evil.Pooling"
  path.write_text(json.dumps(modules))


@pytest.mark.parametrize(
  "ask",
  [
    *(another_kind, a_kind_of_ours, a_tokenizer, a_module),
    *(a_tokenizer_without_definition, a_tokenizer_by_config_alone),
  ],
)
def test_no_code_of_a_folder_runs(ask, copy, tmp_path, monkeypatch, capfd):
  marker = tmp_path / "EXECUTED"
  ask(copy)
  (copy / "evil.py").write_text(CODE.format(marker=str(marker)))
  monkeypatch.chdir(copy)
  monkeypatch.syspath_prepend(str(copy))
  stdin = io.StringIO("yes\n" * 20)
  monkeypatch.setattr(sys, "stdin", stdin)
  texts = tmp_path / "texts.txt"
  texts.write_text("river\n")
  c = tiny.make_config(tmp_path)
  c.model.pretrained = str(copy)

  def prepare():
    backbone = preparation.fetch_backbone(c, str(tmp_path / "run"))
    layout.read(backbone)
    preparation.find_tokenizer(
      c, None, str(tmp_path / "run"), str(tmp_path / "run")
    )

  for use in (
    lambda: mlir_jax.load(str(copy)),
    lambda: line_vectors.encode_files(
      mlir_jax.load(str(copy)).encode, [str(texts)], str(tmp_path / "v.npy")
    ),
    prepare,
    lambda: export.export(str(copy), "last", str(tmp_path / "out")),
  ):
    with pytest.raises(ValueError) as error:
      use()
    assert str(copy) in str(error.value)
  # Loaded alone, too, as tokenizer.path does it.
  if ask in (a_tokenizer_without_definition, a_tokenizer_by_config_alone):
    with pytest.raises(ValueError, match=r"auto_map is .* never run"):
      tokenizer_lib.load(str(copy))
  assert stdin.tell() == 0, "standard input was read"
  assert "trust_remote_code" not in capfd.readouterr().out
  assert not marker.exists() and "evil" not in sys.modules
  import evil  # noqa: F401

  assert marker.exists(), "the test's own code does nothing"
  del sys.modules["evil"]


def calls_of(code):
  """Yields the name and the keyword arguments of each call in a file.

  A string that is a program for another process is searched, too.
  """
  for node in ast.walk(ast.parse(code)):
    if isinstance(node, ast.Call):
      values = {word.arg: ast.unparse(word.value) for word in node.keywords}
      yield ast.unparse(node.func), values
    elif isinstance(node, ast.Constant) and "import" in str(node.value):
      with contextlib.suppress(SyntaxError, TypeError):
        yield from calls_of(node.value)


def trusts(name, words):
  """Returns whether a call loads a model without trust_remote_code=False."""
  last = name.rpartition(".")[2]
  if last == "Transformer":  # It has an argument for each of its parts.
    return words.get(None) != "hf_models.UNTRUSTED"
  return (
    last in ("from_pretrained", "from_config", *LOADERS)
    and words.get("trust_remote_code") != "False"
  )


LOADERS = ("CrossEncoder", "SentenceTransformer", "SparseEncoder", "pipeline")
TESTS = pathlib.Path(__file__).parent


@pytest.mark.parametrize(
  "folder",
  [ROOT / "mlir_jax", TESTS, TESTS.parent / "benchmarks"],
  ids=lambda folder: folder.name,
)
def test_every_call_says_that_no_code_is_trusted(folder):
  for path in sorted(folder.rglob("*.py")):
    for name, words in calls_of(path.read_text("utf-8")):
      assert not trusts(name, words), (path, name)
      if folder != TESTS:  # Tests make pickles to check that none is loaded.
        assert words.get("allow_pickle", "False") == "False", path
        assert name not in ("torch.load", "pickle.load", "pickle.loads"), path


@pytest.mark.parametrize(
  "call",
  [
    "a.AutoModel.from_pretrained(x)",
    "AutoConfig.from_pretrained(x, trust_remote_code=True)",
    "s.SentenceTransformer(x, **more)",
    "modules.Transformer(x, max_seq_length=5)",
    "AutoModel.from_config(x)",
    "run('im' 'port a; a.AutoTokenizer.from_pretrained(x)')",
  ],
)
def test_a_call_that_trusts_is_found(call):
  assert any(trusts(*found) for found in calls_of(f"import x\n{call}"))


def test_weights_are_read_from_the_folder_alone(copy, saved):
  file = copy / "model.safetensors"
  index = copy / "model.safetensors.index.json"
  outside = copy.parent / "outside.safetensors"
  outside.write_bytes(file.read_bytes())
  file.rename(copy / "model-00001-of-00001.safetensors")
  (copy / "link.safetensors").symlink_to(outside)
  for name in ("../outside.safetensors", str(outside), "link.safetensors", 5):
    index.write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(weights.WeightsError) as error:
      pretrained.load(str(copy))
    assert str(index) in str(error.value) and repr(name) in str(error.value)
  change(index, weight_map={"x": "model-00001-of-00001.safetensors"})
  pretrained.check(copy)


def test_modules_are_read_from_the_folder_alone(copy, saved):
  path = copy / "modules.json"
  modules = json.loads(path.read_text())
  (copy / "linked").symlink_to(saved / "1_Pooling")
  for name in (f"../{saved.name}/1_Pooling", str(saved), "linked"):
    modules[1]["path"] = name
    path.write_text(json.dumps(modules))
    with pytest.raises(layout.LayoutError) as error:
      layout.read(copy)
    assert str(path) in str(error.value) and repr(name) in str(error.value)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize(
  "value", [10**12, -1, 0.5, True, "8", None, [], {}, float("nan"), 10**400]
)
def test_absurd_sizes_are_refused_before_memory_is_taken(
  family, value, tmp_path
):
  make, settings = hf_models.FAMILIES[family]
  hf = make(**(hf_models.SHAPE | settings)).to_dict()
  path = tmp_path / "config.json"
  for field in (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "max_position_embeddings"),
  ):
    path.write_text(json.dumps(hf | {field: value}))
    with pytest.raises(layout.LayoutError) as error:
      layout.read(tmp_path)
    assert str(path) in str(error.value) and field in str(error.value)


@pytest.mark.parametrize("value", ["x", [], {}, True, float("nan"), -1e300])
def test_values_that_are_not_numbers_are_refused(value, tmp_path):
  make, settings = hf_models.FAMILIES["modernbert"]
  hf = make(**(hf_models.SHAPE | settings)).to_dict()
  path = tmp_path / "config.json"
  for field in (
    *("norm_eps", "hidden_activation", "attention_dropout", "model_type"),
    *("local_attention", "initializer_range", "global_attn_every_n_layers"),
  ):
    path.write_text(json.dumps(hf | {field: value}))
    with pytest.raises(layout.LayoutError, match=field) as error:
      layout.read(tmp_path)
    assert str(path) in str(error.value)
  for field in ("layer_types", "rope_parameters"):
    if value in ([], {}):
      continue  # An empty value is the same as no value.
    path.write_text(json.dumps(hf | {field: value}))
    with pytest.raises(layout.LayoutError, match=field):
      layout.read(tmp_path)


def test_more_layers_than_weights_are_refused_at_once(copy):
  change(copy / "config.json", num_hidden_layers=9_999)
  with pytest.raises(weights.WeightsError, match="says 9,999 layers, but"):
    pretrained.load(str(copy))


def test_the_shared_case_is_refused_by_its_kind(shared):
  folder = shared / "cases" / "faults" / "model_that_runs_code"
  if not folder.is_dir():
    pytest.skip("the shared cases are not here")
  with pytest.raises(ValueError, match="model_type is 'evil'"):
    mlir_jax.load(str(folder))
