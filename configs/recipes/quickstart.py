"""The quick start: a small encoder from scratch on the embedded CLDR names.

  python -m mlir_jax.reproduce quickstart --workdir=W

The recipe trains the config of the same name, with all losses. To measure the
scores again:

  python -m mlir_jax.reproduce quickstart --workdir=W --seeds=0,1,2 --propose
"""

from mlir_jax.recipes import recipe

_LANGUAGES = (
  *("en", "de", "fr", "es", "ru", "ar", "ja", "fi", "id", "sw", "hu"),
  *("ko", "te", "th", "bn"),
)
_GROUPS = (
  "with parallel names",
  "monolingual names, same script",
  "monolingual names, own script",
)

RECIPE = recipe.Recipe(
  config="quickstart",
  scores=[
    recipe.Scores("mrr@100", dict.fromkeys(_LANGUAGES)),
    recipe.Scores("mrr@100", dict.fromkeys(_GROUPS)),
  ],
  seeds=[0, 1, 2],
  hardware="2 CPU cores",
  time="2 minutes for each seed",
)
