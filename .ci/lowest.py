"""Prints the lowest versions that an installed distribution allows itself.

  python .ci/lowest.py mlir_jax > lowest.txt && pip install -r lowest.txt .

Extras are left out.
"""

import importlib.metadata
import sys

from packaging.requirements import Requirement

import mlir_jax

for line in importlib.metadata.requires(sys.argv[1]) or []:
  requirement = Requirement(line)
  if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
    continue
  for bound in requirement.specifier:
    if bound.operator != ">=":
      sys.exit(f"{line}: only lower bounds are known here.")
    extras = f"[{','.join(requirement.extras)}]" if requirement.extras else ""
    print(f"{requirement.name}{extras}=={bound.version}")
# The package itself refuses an older JAX: it is no requirement of pip's.
print(f"jax=={mlir_jax._LOWEST_JAX}")
