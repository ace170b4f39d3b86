"""The command `mlir-jax`: lists the programs or starts one of them.

`mlir-jax train …` and `python -m mlir_jax train …` are the same as
`python -m mlir_jax.train …`.
"""

import ast
import importlib.util
import os
import runpy
import sys

from mlir_jax.command_line import pipes

# In the order in which a user needs them.
PROGRAMS = (
  "download",
  "prepare",
  "mine",
  "train",
  "evaluate",
  "compare",
  "encode",
  "search",
  "ask",
  "export",
  "report",
  "plan",
  "reproduce",
)


def main() -> None:
  """Starts the program that the first argument names."""
  name, *arguments = sys.argv[1:] or ["--help"]
  if name in ("--help", "-h", "help"):
    with pipes.may_be_left():
      print(_help())
    return
  if name == "--version":
    import mlir_jax

    print(f"mlir_jax {mlir_jax.__version__}")
    return
  if name not in PROGRAMS:
    print(
      f"mlir-jax: there is no program {name!r}; there are"
      f" {', '.join(PROGRAMS)}.",
      file=sys.stderr,
    )
    sys.exit(2)
  sys.argv[1:] = arguments
  # As `python -m` does: the user's own code may be in this folder.
  if not {"", os.getcwd()}.intersection(sys.path):
    sys.path.insert(0, os.getcwd())
  runpy.run_module(f"mlir_jax.{name}", run_name="__main__", alter_sys=True)


def _help() -> str:
  lines = ["Usage: mlir-jax PROGRAM --FLAG=VALUE …", "", "Programs:"]
  lines += [f"  {name:<9} {_first_line(name)}" for name in PROGRAMS]
  lines += ["", "mlir-jax PROGRAM --help shows an example and the flags."]
  return "\n".join(lines)


def _first_line(name: str) -> str:
  """Returns the first line of a program's docstring, without importing it."""
  spec = importlib.util.find_spec(f"mlir_jax.{name}")
  assert spec and spec.origin  # Each program is a file,
  with open(spec.origin, encoding="utf-8") as file:
    text = ast.get_docstring(ast.parse(file.read()))
  assert text  # and its first line says what it does.
  return text.split("\n")[0]


if __name__ == "__main__":
  main()
