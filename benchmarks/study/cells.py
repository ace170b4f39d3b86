"""The cells of the study: what each of them changes in the centre."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# The languages of XQuAD-R. LibreOffice, NTREX and Tatoeba have the first four;
# LibreOffice alone the next three. No cell has translations into the last
# three.
FOUR = ("de", "es", "ru", "zh")
THREE = ("el", "hi", "tr")
NEVER = ("ar", "th", "vi")

# The overrides of a cell that trains on English pairs alone.
ENGLISH = {
  "batch.parallel": 0,
  "loss.semantic.weight": 0.0,
  "loss.language.weight": 0.0,
}
# Questions and pairs share a batch of the IR loss half and half.
AS_QUESTIONS = {
  **ENGLISH,
  "batch.retrieval": 128,
  "data.sources.nq": "weight=1",
  "data.sources.pairs": "weight=1",
}
# Third points in languages of the tests: their plain text, no translations.
PLAIN = {"batch.monolingual": 64, "loss.language.monolingual": 1.0}

BM25 = "bm25"


@dataclasses.dataclass(frozen=True)
class Cell:
  """A setting that is trained with several seeds.

  Attributes:
    name: Its name, in results and on the command line.
    axis: The axis on which it differs from the centre; a key of `AXES`.
    about: What it is, for tables.
    overrides: Fields of the config to their values.
    pairs: At most so many translations of each language; 0 for none.
    languages: The languages of the translations.
    source: Their corpus: "libreoffice", "ntrex" or "tatoeba".
    as_questions: Whether the translations are question-passage pairs.
    plain: Languages of which there is plain text.
    start: What is trained: "small" (--model), "whole" (--whole) or "mlm" (an
      encoder that the study trains by masked language modelling).
    recipe: "" trains with this library. "english", "pairs" and "distillation"
      are trained by sentence-transformers; "untrained" is the start itself;
      "bm25" is no model.
  """

  name: str
  axis: str
  about: str
  overrides: Mapping[str, Any] = dataclasses.field(
    default_factory=dict, hash=False
  )
  pairs: int = 1000
  languages: tuple[str, ...] = FOUR
  source: str = "libreoffice"
  as_questions: bool = False
  plain: tuple[str, ...] = ()
  start: str = "small"
  recipe: str = ""

  @property
  def trained(self) -> bool:
    """Whether its seeds differ."""
    return self.recipe not in ("untrained", BM25)


# Axis to its title, and to the cells that its table shows first.
AXES: Mapping[str, tuple[str, tuple[str, ...]]] = {
  "centre": ("The centre, and what is not trained", ()),
  "losses": ("Which losses", ("centre",)),
  "pairs": ("How many translations of each language", ("ir", "centre")),
  "languages": ("Translations in how many languages", ("ir", "centre")),
  "domain": ("Translations of which kind", ("centre",)),
  "controls": ("Controls", ("ir_semantic", "centre")),
  "w_lang": ("The weight of the language loss", ("ir_semantic", "centre")),
  "tau_lang": ("The temperature of the language loss", ("centre",)),
  "third_points": ("Third points of the language loss", ("centre",)),
  "rate": ("The learning rate, on both sides", ("centre", "st_pairs")),
  "backbone": ("Other backbones", ("ir", "centre")),
  "peers": ("sentence-transformers from the same start", ("ir", "centre")),
}

CELLS: tuple[Cell, ...] = (
  Cell("centre", "centre", "IR, semantic and language loss, 0.1 each"),
  Cell(
    "start", "centre", "the start, not trained", pairs=0, recipe="untrained"
  ),
  Cell("bm25", "centre", "BM25", pairs=0, recipe=BM25),
  # Which losses.
  Cell("ir", "losses", "IR loss alone", ENGLISH, pairs=0),
  Cell(
    "ir_semantic",
    "losses",
    "IR + semantic (0.1)",
    {"loss.language.weight": 0.0},
  ),
  Cell(
    "ir_language",
    "losses",
    "IR + language (0.1)",
    {"loss.semantic.weight": 0.0},
  ),
  Cell(
    "both_1",
    "losses",
    "IR + semantic + language, weight 1 each",
    {"loss.semantic.weight": 1.0, "loss.language.weight": 1.0},
  ),
  Cell(
    "ir_distillation",
    "losses",
    "IR + distillation from the start (1)",
    {
      "loss.semantic.weight": 0.0,
      "loss.language.weight": 0.0,
      "loss.distillation.weight": 1.0,
    },
  ),
  Cell(
    "all",
    "losses",
    "the centre + distillation from the start (1)",
    {"loss.distillation.weight": 1.0},
  ),
  # How many pairs. Zero pairs are the cell "ir".
  Cell("pairs_100", "pairs", "100 pairs of each language", pairs=100),
  Cell("pairs_6000", "pairs", "6,000 pairs of each language", pairs=6000),
  # Peers, here because the headline needs them early.
  Cell(
    "st_english",
    "peers",
    "MultipleNegativesRanking on English",
    ENGLISH,
    pairs=0,
    recipe="english",
  ),
  Cell(
    "st_pairs",
    "peers",
    "the same, with the pairs added",
    recipe="pairs",
  ),
  Cell(
    "st_pairs_100",
    "peers",
    "the same, 100 pairs of each language",
    pairs=100,
    recipe="pairs",
  ),
  Cell(
    "st_pairs_6000",
    "peers",
    "the same, 6,000 pairs of each language",
    pairs=6000,
    recipe="pairs",
  ),
  Cell(
    "st_distillation",
    "peers",
    "English teacher, then MSE distillation (twice the steps)",
    recipe="distillation",
  ),
  # How many languages.
  Cell("languages_1", "languages", "German", languages=("de",)),
  Cell("languages_2", "languages", "German, Russian", languages=("de", "ru")),
  Cell("languages_7", "languages", "seven", languages=FOUR + THREE),
  Cell(
    "languages_7_6000",
    "languages",
    "seven, 6,000 pairs of each (Hindi: all 1,354)",
    languages=FOUR + THREE,
    pairs=6000,
  ),
  # Which kind of pairs. The centre has software help.
  Cell("ntrex", "domain", "news (NTREX)", source="ntrex"),
  Cell("tatoeba", "domain", "everyday sentences (Tatoeba)", source="tatoeba"),
  # Controls.
  Cell(
    "shuffled",
    "controls",
    "wrong translations",
    {"data.shuffle_parallel": True},
  ),
  Cell(
    "stop_gradient",
    "controls",
    "no gradient to third points",
    {"loss.language.stop_gradient": True},
  ),
  Cell(
    "in_batch",
    "controls",
    "pairs as question-passage pairs of the IR loss",
    AS_QUESTIONS,
    as_questions=True,
  ),
  # The weight, with the semantic loss at 0.1. At weight 0 (ir_semantic) the
  # language loss is a constant.
  Cell("w_lang_03", "w_lang", "w_lang = 0.3", {"loss.language.weight": 0.3}),
  Cell("w_lang_1", "w_lang", "w_lang = 1", {"loss.language.weight": 1.0}),
  Cell("w_lang_3", "w_lang", "w_lang = 3", {"loss.language.weight": 3.0}),
  # For small differences the loss is w / temperature^2 times their square, so
  # this ratio is the centre's.
  Cell(
    "tau_lang_005",
    "tau_lang",
    "temperature 0.05, w_lang = 0.00625",
    {"loss.language.temperature": 0.05, "loss.language.weight": 0.00625},
  ),
  Cell(
    "tau_lang_1",
    "tau_lang",
    "temperature 1, w_lang = 2.5",
    {"loss.language.temperature": 1.0, "loss.language.weight": 2.5},
  ),
  # Third points.
  Cell(
    "points_passages",
    "third_points",
    "English passages alone",
    {"loss.language.parallel": 0.0},
  ),
  Cell(
    "points_parallel",
    "third_points",
    "the other sentences of the pairs alone",
    {"loss.language.passages": 0.0},
  ),
  Cell(
    "points_plain",
    "third_points",
    "and plain text in ar, el, hi, th, tr",
    PLAIN,
    plain=("ar", "el", "hi", "th", "tr"),
  ),
  Cell(
    "points_plain_1",
    "third_points",
    "the same, w_lang = 1",
    {**PLAIN, "loss.language.weight": 1.0},
    plain=("ar", "el", "hi", "th", "tr"),
  ),
  # The same effort of tuning on both sides.
  Cell(
    "rate_1e4",
    "rate",
    "the centre, learning rate 1e-4",
    {"optim.learning_rate": 1e-4},
  ),
  Cell(
    "st_rate_1e4",
    "rate",
    "sentence-transformers with pairs, learning rate 1e-4",
    {"optim.learning_rate": 1e-4},
    recipe="pairs",
  ),
  # Backbones.
  Cell(
    "whole_start",
    "backbone",
    "12 layers, not trained",
    pairs=0,
    start="whole",
    recipe="untrained",
  ),
  Cell(
    "whole_ir",
    "backbone",
    "12 layers, IR loss alone",
    ENGLISH,
    pairs=0,
    start="whole",
  ),
  Cell("whole", "backbone", "12 layers, as the centre", start="whole"),
  Cell(
    "whole_6000",
    "backbone",
    "12 layers, 6,000 pairs of each language",
    pairs=6000,
    start="whole",
  ),
  Cell(
    "whole_st_pairs",
    "backbone",
    "12 layers, sentence-transformers with pairs",
    start="whole",
    recipe="pairs",
  ),
  Cell(
    "mlm_ir",
    "backbone",
    "masked language model, IR loss alone",
    ENGLISH,
    pairs=0,
    start="mlm",
  ),
  Cell("mlm", "backbone", "masked language model, as the centre", start="mlm"),
)

# The cell of each start that trains on English pairs alone.
IR_ALONE: Mapping[str, str] = {
  "small": "ir",
  "whole": "whole_ir",
  "mlm": "mlm_ir",
}

# What the headline's figure shows: the numbers of pairs to the cells.
HEADLINE: Mapping[str, Mapping[int, str]] = {
  "ours": {0: "ir", 100: "pairs_100", 1000: "centre", 6000: "pairs_6000"},
  "sentence-transformers": {
    0: "st_english",
    100: "st_pairs_100",
    1000: "st_pairs",
    6000: "st_pairs_6000",
  },
}


def by_name() -> dict[str, Cell]:
  """Returns all cells by their names."""
  return {cell.name: cell for cell in CELLS}


def of_axis(axis: str) -> list[Cell]:
  """Returns the cells that the table of an axis shows, in its order."""
  cells = by_name()
  first = [cells[name] for name in AXES[axis][1]]
  return first + [cell for cell in CELLS if cell.axis == axis]


def choose(names: str, axis: str) -> list[Cell]:
  """Returns the cells that a command line asks for, in the order of `CELLS`.

  Args:
    names: Names with commas between them; "" for all.
    axis: An axis of `AXES`; "" for all. The cells that its table shows first
      belong to it.

  Raises:
    ValueError: if there is no such cell or axis.
  """
  wanted = [name for name in names.split(",") if name]
  for name in wanted:
    if name not in by_name():
      raise ValueError(
        f"--cells={names}: there is no cell {name!r}. The cells are:"
        f" {', '.join(by_name())}."
      )
  if axis and axis not in AXES:
    raise ValueError(
      f"--axis={axis}: there is no such axis. The axes are: {', '.join(AXES)}."
    )
  shown = {cell.name for cell in of_axis(axis)} if axis else {*by_name()}
  return [
    cell
    for cell in CELLS
    if cell.name in shown and (not wanted or cell.name in wanted)
  ]
