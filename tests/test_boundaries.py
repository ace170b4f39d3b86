"""Each framework has its one module, and nothing deprecated is called."""

import ast
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

import mlir_jax
from mlir_jax import sharding

PACKAGE = pathlib.Path(mlir_jax.__file__).parent
TREES = {
  path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text("utf-8"))
  for path in sorted(PACKAGE.rglob("*.py"))
}
# A module, or a folder of them.
ONLY_IN = {
  "bm25s": "retrieval/bm25.py",
  "faiss": "retrieval/faiss_layout.py",
  "orbax": "checkpoints/",
  "tensorflow": "batches/reader.py",
  "tensorflow_datasets": ("data/sources/named/", "tfds/"),
  "mlir_jax.tfds": ("data/sources/named/tfds_sets.py", "tfds/"),
  "ir_datasets": "data/sources/named/",
  "datasets": "data/sources/named/",
  "apache_beam": "data/shards/beam_runner.py",
  "py3langid": "data/cleaning.py",
  "flax.linen": "models/",
  "sentence_transformers": "hub/check.py",
  "mteb": "evals/mteb_encoder.py",
}
DEPRECATED = (
  "jax.experimental.maps",
  "jax.experimental.pjit",
  "jax.experimental.shard_map",
  "jax.pmap",
  "jax.random.PRNGKey",
  "jax.tree_map",
  "jax.tree_util.tree_map",
)


def imported(tree: ast.AST) -> Iterator[str]:
  """The dotted names that a module imports, wherever it does."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def used(tree: ast.AST) -> Iterator[str]:
  """The dotted names that a module imports or spells out."""
  yield from imported(tree)
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute):
      yield ast.unparse(node)


def is_of(name: str, package: str) -> bool:
  return name == package or name.startswith(f"{package}.")


def meshes_entered(tree: ast.AST) -> list[str]:
  """What stands in `with` statements and is a mesh by its name or making."""
  return [
    ast.unparse(item.context_expr)
    for node in ast.walk(tree)
    if isinstance(node, ast.With)
    for item in node.items
    if ast.unparse(item.context_expr).split("(")[0].split(".")[-1].lower()
    in ("mesh", "make_mesh", "_mesh")
  ]


@pytest.mark.parametrize("package, module", ONLY_IN.items())
def test_a_framework_is_imported_in_its_place_alone(package, module):
  importing = [
    path
    for path, tree in TREES.items()
    if any(is_of(name, package) for name in imported(tree))
  ]
  assert importing
  assert all(path.startswith(module) for path in importing)


@pytest.mark.parametrize(
  "path",
  [path for path in TREES if path.startswith(("losses/", "models/"))],
)
def test_losses_and_models_know_no_mesh(path):
  tree = TREES[path]
  assert not [
    name
    for name in used(tree)
    if any(word in name.lower() for word in ("mesh", "sharding", "axis_name"))
  ]
  strings = {
    node.value
    for node in ast.walk(tree)
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
  }
  assert not strings & {sharding.DATA, sharding.MODEL}


@pytest.mark.parametrize("path", TREES)
def test_nothing_deprecated_of_jax_is_used(path):
  assert not [
    name
    for name in used(TREES[path])
    if any(is_of(name, deprecated) for deprecated in DEPRECATED)
  ]
  assert not meshes_entered(TREES[path])


def test_the_search_finds_what_it_searches_for():
  tree = ast.parse(
    "from jax.experimental import shard_map\n"
    "def f():\n  import tensorflow.data as d\n  jax.tree_map(f, 1)\n"
    "with mesh: pass\nwith self._mesh, open(f): pass\n"
    "with jax.sharding.Mesh(devices, names): pass\n"
  )
  assert {"jax.experimental.shard_map", "jax.tree_map"} <= set(used(tree))
  assert any(is_of(name, "tensorflow") for name in imported(tree))
  assert meshes_entered(tree) == [
    "mesh",
    "self._mesh",
    "jax.sharding.Mesh(devices, names)",
  ]


# There is no such platform, so that a module that starts a backend fails.
IMPORTS = """
import importlib, pkgutil, mlir_jax
for module in pkgutil.walk_packages(mlir_jax.__path__, "mlir_jax."):
  if "__main__" not in module.name and ".configs" not in module.name:
    importlib.import_module(module.name)
"""


@pytest.mark.slow
def test_no_module_starts_a_backend_when_it_is_imported():
  """Processes join, and forks work, only before a backend has started."""
  done = subprocess.run(
    [sys.executable, "-c", IMPORTS],
    capture_output=True,
    text=True,
    env={**os.environ, "JAX_PLATFORMS": "none_of_them"},
    check=False,
  )
  assert done.returncode == 0, done.stderr
