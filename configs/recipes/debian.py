"""multilingual-e5-small on Debian's package descriptions, in 10 languages.

  python -m mlir_jax.reproduce debian --workdir=W

Training has English pairs, translations in four languages and plain text in
five more. The English dev set selects the checkpoint. The recipe trains the
config of the same name.
"""

from mlir_jax.recipes import recipe

_LANGUAGES = ("en", "da", "de", "fr", "it", "es", "ru", "pt", "cs", "zh")

RECIPE = recipe.Recipe(
  config="debian",
  data={"debian": (), "tatoeba": ()},
  settings={
    "data.root": "{data}/debian",
    "data.tatoeba_root": "{data}/tatoeba",
  },
  evaluations={"best": ["--checkpoint=best"]},
  scores=[
    # Nobody has run it yet.
    recipe.Scores("mrr@100", dict.fromkeys(_LANGUAGES), table="best"),
    recipe.Scores("r@100", dict.fromkeys(_LANGUAGES), table="best"),
  ],
  seeds=[0, 1, 2],
  hardware="a GPU, or a CPU and patience",
  time="time unknown",
  notes=[
    "Debian updates its files with each point release, so the tests of another"
    " day may differ a little."
  ],
)
