#!/usr/bin/env python3
"""Stands in for kubectl, so that launch/README.md can be tested.

What it was asked is in kubectl.txt, in the current folder. What it was given to
apply is in kubectl.yaml.
"""

import pathlib
import sys


def main():
  words = sys.argv[1:]
  with pathlib.Path("kubectl.txt").open("a") as file:
    file.write(" ".join(words) + "\n")
  match words:
    case ["apply", "-f", "-"]:
      pathlib.Path("kubectl.yaml").write_text(sys.stdin.read())
    case ["apply", "--server-side", "-f", url]:
      assert url.startswith("https://github.com/kubernetes-sigs/jobset/")
    case ["create", "serviceaccount", _]:
      pass
    case ["create", "secret", "generic", _, "--from-file=secret=/dev/stdin"]:
      assert len(set(sys.stdin.read())) > 4
    case _:
      sys.exit(f"unknown: {words}")


if __name__ == "__main__":
  main()
