"""The setting of Hu et al. (2023): NQ and WikiMatrix, to Mr. TyDi and XQuAD-R.

  python -m mlir_jax.reproduce hu2023 --workdir=W

XLM-R base trains on Natural Questions (of DPR) and WikiMatrix. It is tested on
Mr. TyDi, then on XQuAD-R, in each language. English Mr. TyDi selects the
checkpoint.

As a config, `--config=hu2023` is the training alone. Variants: `:smoke`, a step
of a tiny encoder from scratch.
"""

from collections.abc import Sequence

from mlir_jax import config_files
from mlir_jax.recipes import recipe


def get_config(variant=""):
  c = config_files.load(f"xlmr_base:{variant}" if variant else "xlmr_base")
  c.data.root = "data/hu2023"
  if variant != "smoke":  # The embedded collection has none.
    c.batch.hard_negatives = 1  # DPR's files have BM25's; as many as in DPR.
  return c


_MR_TYDI: Sequence[str] = (
  *("ar", "bn", "en", "fi", "id", "ja", "ko", "ru", "sw", "te", "th"),
)
_XQUAD_R = ("ar", "de", "el", "en", "es", "hi", "ru", "th", "tr", "vi", "zh")
_README = (
  "README of github.com/castorini/mr.tydi, tables MRR@100 and Recall@100 (v1.1)"
)
_PYSERINI = (
  "github.com/castorini/pyserini, pyserini/2cr/mrtydi.yaml, split test of"
)


def _of_mr_tydi(mrr, recall):
  """Returns the values of a baseline, from texts in the order of `_MR_TYDI`."""
  return {
    measure: dict(zip(_MR_TYDI, map(float, values.split()), strict=True))
    for measure, values in (("mrr@100", mrr), ("r@100", recall))
  }


RECIPE = recipe.Recipe(
  data={"hu2023": (), "xquadr": ()},
  settings={"data.root": "{data}/hu2023"},
  evaluations={
    "mrtydi": ["--checkpoint=best"],
    "xquadr": [
      "--checkpoint=best",
      "--collection=folder",
      "--root={data}/xquadr",
    ],
  },
  scores=[
    # Nobody has run it yet.
    recipe.Scores("mrr@100", dict.fromkeys(_MR_TYDI), table="mrtydi"),
    recipe.Scores("r@100", dict.fromkeys(_MR_TYDI), table="mrtydi"),
    recipe.Scores("mrr@100", dict.fromkeys(_XQUAD_R), table="xquadr"),
  ],
  seeds=[0],
  hardware="16 accelerators, or fewer with batch.chunk_rows",
  time="time unknown; the English test alone has about 5 GB",
  baselines=[
    # The means in the table are over all 11 languages. The README's own mean of
    # the MRR of mDPR, .226, leaves English out.
    recipe.Baseline(
      "BM25 (tuned)",
      _README,
      _of_mr_tydi(
        "0.366 0.413 0.150 0.287 0.382 0.217 0.280 0.329 0.396 0.424 0.416",
        "0.800 0.874 0.551 0.725 0.846 0.656 0.797 0.660 0.764 0.813 0.853",
      ),
    ),
    recipe.Baseline(
      "BM25 (pyserini)",
      f"{_PYSERINI} bm25",
      _of_mr_tydi(
        "0.3682 0.4182 0.1404 0.2836 0.3762 0.2125"
        " 0.2848 0.3163 0.3893 0.5283 0.4012",
        "0.7928 0.8694 0.5365 0.7196 0.8426 0.6431"
        " 0.6188 0.6541 0.7642 0.8971 0.8529",
      ),
    ),
    recipe.Baseline(
      "mDPR, NQ",
      _README,
      _of_mr_tydi(
        "0.291 0.291 0.291 0.206 0.271 0.213 0.235 0.283 0.189 0.111 0.172",
        "0.650 0.779 0.678 0.568 0.685 0.584 0.533 0.647 0.528 0.366 0.515",
      ),
    ),
    recipe.Baseline(
      "mDPR, MS MARCO",
      f"{_PYSERINI} mdpr-tied-pft-msmarco",
      _of_mr_tydi(
        "0.4414 0.3969 0.3270 0.2750 0.3520 0.3107"
        " 0.2820 0.3561 0.3418 0.3102 0.2693",
        "0.7971 0.7838 0.7536 0.6471 0.7356 0.7317"
        " 0.6172 0.7432 0.6343 0.7817 0.5945",
      ),
    ),
  ],
)
