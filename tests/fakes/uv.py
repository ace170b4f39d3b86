#!/usr/bin/env python3
"""Stands in for uv, so that launch/tpu_vm.sh can be tested.

An environment has the trainer's stand-in for its interpreter. What was asked is
in ~/uv.txt.
"""

import pathlib
import sys


def main():
  home = pathlib.Path.home()
  with (home / "uv.txt").open("a") as file:
    file.write("\n".join(sys.argv[1:]) + "\n")
  flags = [word for word in sys.argv[1:] if word.startswith("--")]
  words = [word for word in sys.argv[1:] if not word.startswith("--")]
  match words:
    case ["venv", folder]:
      assert not pathlib.Path(folder).exists(), "uv refuses to replace it"
      (pathlib.Path(folder) / "bin").mkdir(parents=True)
      python = pathlib.Path(folder) / "bin/python"
      trainer = pathlib.Path(__file__).with_name("trainer.py")
      command = f'FAKE_INTERPRETER="$0" exec {sys.executable} {trainer} "$@"'
      python.write_text(f"#!/bin/sh\n{command}\n")
      python.chmod(0o755)
    case ["pip", "install", wheel]:
      path, _, extras = wheel.partition("[")
      assert pathlib.Path(path).read_bytes() == b"the wheel", path
      assert extras == "tpu,gcs]"
      assert f"--python={home}/.mlir_jax.venv/bin/python" in flags
      (versions,) = (
        flag.removeprefix("--constraint=")
        for flag in flags
        if flag.startswith("--constraint=")
      )
      versions = pathlib.Path(versions).read_text()
      assert "\njax==" in versions and "\nlibtpu==" not in versions
    case _:
      sys.exit(f"unknown: {words}")


if __name__ == "__main__":
  main()
