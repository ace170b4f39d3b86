"""A checkpoint says where it comes from."""

import importlib.metadata
import json
import subprocess

import jax

import mlir_jax
from mlir_jax.training import provenance


def test_it_has_versions_devices_and_data():
  gathered = provenance.gather("abc123")
  assert gathered["token_store"] == "abc123"
  assert gathered["mlir_jax"] == mlir_jax.__version__
  assert gathered["versions"]["jax"] == jax.__version__
  assert gathered["versions"]["orbax-checkpoint"] == (
    importlib.metadata.version("orbax-checkpoint")
  )
  assert gathered["devices"] == 8
  assert json.loads(json.dumps(gathered)) == gathered


def test_the_commit_is_that_of_the_clone(monkeypatch, tmp_path):
  package = tmp_path / "mlir_jax"
  package.mkdir()
  (package / "__init__.py").write_text("")
  monkeypatch.setattr(mlir_jax, "__file__", str(package / "__init__.py"))
  assert provenance.gather("")["commit"] == ""  # Not a clone.

  def git(*arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    command = ["git", *identity, "-C", str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()

  git("init", "--quiet")
  git("add", ".")
  git("commit", "--quiet", "-m", "first")
  commit = git("rev-parse", "HEAD")
  assert provenance.gather("")["commit"] == commit
  (package / "__init__.py").write_text("changed = True\n")
  assert provenance.gather("")["commit"] == f"{commit}-dirty"
