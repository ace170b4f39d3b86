"""Mines hard negatives: passages that look right for a question and are not.

python -m mlir_jax.mine --input=FOLDER --output=MINED/ir --num_negatives=5

The input is a file of question-passage pairs, in any format that training
reads, or a folder with such files in ir/. The output has the same format, with
the mined negatives after those that are there. BM25 finds them, or a model, or
both; a model ranks what BM25 has found, too. A passage is no negative if it is
a positive of the question under any id, or contains one of its answers. The
same command continues after a kill, and writes the same bytes.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from mlir_jax.command_line import program, shared_flags
from mlir_jax.data import records
from mlir_jax.mining import questions as questions_lib
from mlir_jax.mining import rules as rules_lib
from mlir_jax.mining import statistics
from mlir_jax.storage import locations

if TYPE_CHECKING:
  from mlir_jax.data.collections import pair_files
  from mlir_jax.mining import search as search_lib  # It imports JAX.

FINDERS = ("bm25", "dense", "both")
ANALYZERS = ("words", "subwords")
_MOST = 1_000_000  # Negatives or ranks.


def _check_search(
  finder: str, has_model: bool, analyzer: str, tokenizer: str, prompt: str
) -> None:
  """Raises ValueError if the flags with these names do not fit together."""
  if finder != "bm25" and not has_model:
    raise ValueError(f"--candidates={finder} needs --model.")
  if finder == "dense" and analyzer != "words":
    raise ValueError(
      f"--analyzer={analyzer} is of BM25, but --candidates=dense does not use"
      " it: leave it out, or give --candidates=both."
    )
  if analyzer == "subwords" and not (has_model or tokenizer):
    raise ValueError("--analyzer=subwords needs --tokenizer or --model.")
  if prompt and not has_model:
    raise ValueError("--prompt needs --model.")
  if tokenizer and analyzer != "subwords":
    raise ValueError("--tokenizer needs --analyzer=subwords.")


def _check_output(source: pathlib.Path, output: pathlib.Path) -> None:
  """Refuses an output that exists, or that is or changes the input."""
  from mlir_jax.mining import progress

  locations.check_output(str(output.parent), f"--output={output}")
  if not progress.is_free(output) or (source.is_file() and output.is_dir()):
    raise ValueError(
      f"--output={output} exists: delete it, or give another name."
    )
  inside = source.resolve() if source.is_dir() else None
  if inside and output.resolve().is_relative_to(inside):
    raise ValueError(
      f"--output={output} is in the folder that is read, {source}: give a path"
      " outside of it."
    )


def mine(
  source: str,
  output: str,
  rules: rules_lib.Rules,
  search: "search_lib.Search",
  *,
  corpus: str = "",
  pair_settings: "pair_files.Settings | None" = None,
  replace: bool = False,
  with_scores: bool = False,
  picture: str = "",
  on_bad_record: str = "error",
) -> str:
  """Mines hard negatives and writes the pairs with them.

  Args:
    source: A file of pairs, or a folder that holds ir/.
    output: The new file; for a folder, the folder of the new files.
    rules: How negatives are chosen among the candidates.
    search: How candidates are found.
    corpus: A file of passages, which are candidates, too; "" for none.
    pair_settings: Format, language and prompts of the pairs; None for the
      defaults.
    replace: Whether mined negatives take the place of those that are there.
    with_scores: Whether negatives are written with their scores.
    picture: The file of the picture of the scores; "" for none.
    on_bad_record: What to do with bad records: "error" or "skip".

  Returns:
    What was found and dropped, in lines.

  Raises:
    ValueError: if a file cannot be used, the output exists, or the picture's
      name does not end in .png.
  """
  import mlir_jax
  from mlir_jax import extensions
  from mlir_jax.data.collections import pair_files
  from mlir_jax.data.sources import files
  from mlir_jax.mining import pairs, portions, progress
  from mlir_jax.mining import source as source_lib

  if picture and not picture.endswith(".png"):
    raise ValueError(f"--plot={picture} should end in .png.")
  input_path, output_path = pathlib.Path(source), pathlib.Path(output)
  pair_settings = pair_settings or pair_files.DEFAULTS
  pairs_read = source_lib.Source(input_path, pair_settings)
  pairs_read.targets(output_path.parent, output_path)  # It checks the name.
  _check_output(input_path, output_path)
  bad_records = records.BadRecords(on_bad_record, "--on_bad_record")
  passages = questions_lib.Corpus(pairs_read.passages(bad_records))
  own = len(passages.passages)
  hashes = pairs_read.hashes()
  if corpus:
    corpus_file = files.UnchangedFile(pathlib.Path(corpus))
    hashes[os.fspath(corpus_file)] = corpus_file.read_hash()
    for passage in source_lib.read_passages(corpus_file, bad_records):
      passages.add(passage)
  settings = {"replace": replace, "with_scores": with_scores}
  prefix = None
  if search.model:
    prompt = search.model.text_encoder.prompt
    prefix = search.model.contract.prefix("query", prompt)
  read = pairs.read(
    pairs_read, passages, bad_records, own=own, **settings, prefix=prefix
  )
  pairs.check_passages(pairs_read, passages, **settings)
  questions = read.all()
  most = max(len(question.positives) for question in questions)
  last_rank = rules.last_rank(most, any(q.answers for q in questions))
  # Positives take up to `most` of the ranks, as in sentence-transformers, and
  # hard negatives that are there take others.
  taken = most + max(len(question.negatives) for question in questions)
  depth = min(last_rank + taken, len(passages.passages))
  for line in (
    *pairs_read.describe(),
    records.describe_bad("training", bad_records.drain()),
    f"Questions: {len(questions):,}, with up to {most} positives. Passages:"
    f" {len(passages.passages):,}; {passages.repeated:,} others have the text"
    " of one of these.",
    f"{search.describe(depth)} range_max={last_rank}.",
  ):
    print(line)
  identity = {
    "version": mlir_jax.__version__,
    "files": hashes,
    "format": pair_settings.format,
    "formats": extensions.fingerprints(pair_settings.formats),
    "bad records": on_bad_record,
    "depth": depth,
    "texts of a portion": portions.SIZE,
    **search.identity(),
  }
  with progress.opened(output_path, identity) as kept:
    found = portions.find(
      kept,
      questions,
      lambda: search.make_finder(questions, passages, depth, kept),
    )
    scores, negatives = _choose(found, questions, passages, rules, last_rank)
    if kept.kept:
      print(f"Portions that an earlier run has left: {kept.kept:,}.")
    made = kept.new_folder("output")
    targets = pairs_read.targets(made, output_path)
    pairs.write(pairs_read, targets, read, negatives, bad_records, **settings)
    if picture:
      from mlir_jax.mining import picture as picture_lib

      picture_lib.draw(scores.columns(), f"score by {search.score}", picture)
    report = statistics.describe(scores, rules.num_negatives)
    progress.publish(made if input_path.is_dir() else targets[0], output_path)
  return f"{report}\nWrote {output_path}."


def _choose(
  found: Iterable[tuple[int, np.ndarray, np.ndarray, np.ndarray]],
  questions: Sequence[questions_lib.Question],
  corpus: questions_lib.Corpus,
  rules: rules_lib.Rules,
  last_rank: int,
) -> tuple[statistics.Statistics, list[tuple[list[int], list[float]]]]:
  """Returns the statistics, and the rows and scores of each question's choice.

  Args:
    found: From `portions.find`.
    questions: All questions.
    corpus: The passages.
    rules: How negatives are chosen.
    last_rank: From `Rules.last_rank`.
  """
  scores, negatives = statistics.Statistics(), []
  for number, *candidates in found:
    question = questions[number]
    choice = rules_lib.choose(
      question, corpus, *candidates, rules=rules, last_rank=last_rank
    )
    scores.add(question, *candidates, choice=choice)
    negatives.append((choice.rows, choice.scores))
  return scores, negatives


def main():
  """Mines as the flags say."""
  _check_search(
    _CANDIDATES.value,
    bool(_MODEL.value),
    _ANALYZER.value,
    _TOKENIZER.value or "",
    _PROMPT.value,
  )
  settings: dict[str, Any] = {
    field.name: flags.FLAGS[field.name].value
    for field in dataclasses.fields(rules_lib.Rules)
  }
  rules = rules_lib.Rules(**settings)
  if not _MODEL.value:
    shared_flags.refuse_prefixes("--model")
  paths: dict[str, Any] = {}
  for name, flag in (
    ("input", _INPUT),
    ("output", _OUTPUT),
    ("corpus", _CORPUS),
    ("plot", _PLOT),
  ):
    paths[name] = locations.absolute(flag.value) if flag.value else ""
    if locations.is_url(paths[name]):
      raise ValueError(
        f"--{name}={flag.value}: mining reads and writes files on a disk."
      )
  source, output = map(pathlib.Path, (paths["input"], paths["output"]))
  if source.exists():
    _check_output(source, output)
  if paths["plot"]:
    locations.check_output(
      os.path.dirname(paths["plot"]), f"--plot={paths['plot']}"
    )
  from mlir_jax.data.collections import pair_files
  from mlir_jax.mining import search as search_lib

  model = None
  if _MODEL.value:
    from mlir_jax.retrieval import model as model_lib

    model = model_lib.load(
      _MODEL.value,
      _CHECKPOINT.value,
      batch_size=_BATCH_SIZE.value,
      revision=_REVISION.value,
      prompt=_PROMPT.value,
      **shared_flags.prefixes(),
    )
    model.check_role("query")
    model.check_role("passage")
  print(
    mine(
      paths["input"],
      paths["output"],
      rules,
      search_lib.Search(
        _CANDIDATES.value, model, _ANALYZER.value, _TOKENIZER.value or ""
      ),
      corpus=paths["corpus"],
      pair_settings=pair_files.Settings(
        language=_LANGUAGE.value,
        format=_FORMAT.value,
        formats=shared_flags.parse_named(
          "--formats", _FORMATS.value, "ask=my_project.formats:Ask"
        ),
        prompts=_PROMPTS.value,
      ),
      replace=_EXISTING.value == "replace",
      with_scores=_OUTPUT_SCORES.value,
      picture=paths["plot"],
      on_bad_record=_ON_BAD_RECORD.value,
    )
  )


if __name__ == "__main__":
  _INPUT = shared_flags.define_path(
    "input", "A file of question-passage pairs, or a folder that holds ir/."
  )
  _OUTPUT = shared_flags.define_path(
    "output", "The file to write; for a folder, the folder of the new files."
  )
  _CORPUS = shared_flags.define_path(
    "corpus",
    "A file of passages that are candidates, too: docs.jsonl of Mr. TyDi, or a"
    " corpus of BEIR or Tevatron. Without it, candidates are the passages of"
    " the input.",
  )
  _FORMAT = flags.DEFINE_string(
    "format", "", "The format of the pairs, if their fields do not show it."
  )
  _FORMATS = flags.DEFINE_multi_string(
    "formats",
    [],
    "A format of your own, NAME=MODULE:CLASS; may be repeated.",
  )
  _LANGUAGE = flags.DEFINE_string(
    "language", "en", "The language of pairs that do not say theirs."
  )
  _PROMPTS = flags.DEFINE_enum(
    "prompts",
    "use",
    ("use", "ignore"),
    "Whether a prompt of a question takes the place of the model's prefix; it"
    " must then be the same.",
  )
  _CANDIDATES = flags.DEFINE_enum(
    "candidates",
    "bm25",
    FINDERS,
    "What finds the candidates: BM25, the model's vectors, or both. With a"
    " model, its scores decide about all candidates.",
  )
  _MODEL = shared_flags.define_path(
    "model",
    "A run's folder, an export, a sentence-transformers folder or a name on"
    " the Hugging Face hub.",
  )
  _CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    "last",
    'The checkpoint of a run: "last", "best" by English dev, or a step.',
  )
  _PROMPT = shared_flags.define_prompt()
  shared_flags.define_prefixes()
  _REVISION = shared_flags.define_revision()
  _BATCH_SIZE = shared_flags.define_batch_size()
  _ANALYZER = flags.DEFINE_enum(
    "analyzer",
    "words",
    ANALYZERS,
    "What BM25 counts: words (of Chinese, Japanese, Korean, Thai and other"
    " scripts without spaces, pairs of characters), or a tokenizer's subwords.",
  )
  _TOKENIZER = shared_flags.define_path(
    "tokenizer",
    "The tokenizer of --analyzer=subwords: a run's folder, a model's folder or"
    " a hub name; by default that of --model.",
  )
  flags.DEFINE_integer(
    "num_negatives",
    3,
    "Negatives that are added to a question, at most.",
    upper_bound=_MOST,
  )
  flags.DEFINE_integer(
    "range_min",
    0,
    "The best candidates that are skipped.",
    upper_bound=_MOST,
  )
  flags.DEFINE_integer(
    "range_max",
    None,
    "The rank of the last candidate; by default enough for num_negatives, and"
    " ten times as many if a margin, max_score or answers drop some.",
    upper_bound=_MOST,
  )
  flags.DEFINE_float(
    "absolute_margin",
    None,
    "A negative scores at least this much less than the worst positive.",
  )
  flags.DEFINE_float(
    "relative_margin",
    None,
    "The same as a share of that positive's score, such as 0.05.",
  )
  flags.DEFINE_float("max_score", None, "The highest score of a negative.")
  flags.DEFINE_float("min_score", None, "The lowest score of a negative.")
  flags.DEFINE_enum(
    "sampling_strategy",
    "top",
    rules_lib.SAMPLING,
    "Whether the best candidates become negatives, or drawn ones.",
  )
  flags.DEFINE_integer(
    "seed",
    0,
    "Of --sampling_strategy=random.",
    lower_bound=0,
    upper_bound=2**63 - 1,
  )
  _EXISTING = flags.DEFINE_enum(
    "existing",
    "keep",
    ("keep", "replace"),
    "Whether the hard negatives that are there stay, before the mined ones, or"
    " are replaced.",
  )
  _OUTPUT_SCORES = flags.DEFINE_bool(
    "output_scores",
    False,
    "Whether negatives are written with their scores, in formats that have a"
    " field for them.",
  )
  _PLOT = shared_flags.define_path("plot", "A picture of the scores, .png.")
  _ON_BAD_RECORD = flags.DEFINE_enum(
    "on_bad_record",
    "error",
    ("error", "skip"),
    "What to do with bad records: stop, or skip and count them. Skipped ones"
    " are not in the output.",
  )
  program.start(main, required=("input", "output"))
