"""Offers Natural Questions as DPR trains on it, as a TensorFlow dataset.

The text of the questions is that of Natural Questions (Kwiatkowski et al.
2019); DPR (Karpukhin et al. 2020) added the passages.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from mlir_jax.corpora import catalog, dpr_nq
from mlir_jax.data.sources import record_fields
from mlir_jax.data.sources.pairs import reading
from mlir_jax.tfds import public_files

_CORPUS = catalog.DPR_NQ
_LISTS = {
  "positive_ctxs": "The passages that answer the question.",
  "hard_negative_ctxs": "Passages that BM25 finds and that do not answer it.",
  "negative_ctxs": "Random passages.",
}
_NO_SCORE = float("nan")


class MlirJaxDprNq(tfds.core.GeneratorBasedBuilder):
  """DPR's Natural Questions, with the fields that DPR gives them."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {
    "1.0.0": "The files biencoder-nq-train and -dev of DPR."
  }

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text
    passage = {
      "title": text(doc="The title of the article, or empty."),
      "text": text(doc="The passage: 100 words of Wikipedia."),
      "passage_id": text(doc="Its number in DPR's passages, or empty."),
      "score": tfds.features.Scalar(
        np.float32, doc="DPR's score of the passage; NaN if there is none."
      ),
      "title_score": tfds.features.Scalar(
        np.float32, doc="DPR's score of the title; NaN if there is none."
      ),
    }
    features = {
      "dataset": text(doc="The name of the data set in DPR, or empty."),
      "question": text(doc="The question."),
      "answers": tfds.features.Sequence(
        text(), doc="The answers, as short texts."
      ),
      **{
        name: tfds.features.Sequence(passage, doc=doc)
        for name, doc in _LISTS.items()
      },
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description=(
        "Natural Questions as DPR trains on it: questions that people asked a"
        " search engine, with passages of Wikipedia. Examples are in the order"
        " of the released files."
      ),
      features=tfds.features.FeaturesDict(features),
      homepage="https://github.com/facebookresearch/DPR",
      license=_CORPUS.licence,
      citation="""\
@inproceedings{karpukhin-etal-2020-dense,
  title = {Dense Passage Retrieval for Open-Domain Question Answering},
  author = {Karpukhin, Vladimir and Oguz, Barlas and Min, Sewon and Lewis, Patrick and Wu, Ledell and Edunov, Sergey and Chen, Danqi and Yih, Wen-tau},
  booktitle = {Proceedings of the 2020 Conference on Empirical Methods in Natural Language Processing},
  year = {2020},
  pages = {6769--6781},
}
@article{kwiatkowski-etal-2019-natural,
  title = {Natural Questions: A Benchmark for Question Answering Research},
  author = {Kwiatkowski, Tom and Palomaki, Jennimaria and Redfield, Olivia and Collins, Michael and Parikh, Ankur and Alberti, Chris and Epstein, Danielle and Polosukhin, Illia and Devlin, Jacob and Lee, Kenton and Toutanova, Kristina and Jones, Llion and Kelcey, Matthew and Chang, Ming-Wei and Dai, Andrew M. and Uszkoreit, Jakob and Le, Quoc and Petrov, Slav},
  journal = {Transactions of the Association for Computational Linguistics},
  volume = {7},
  year = {2019},
  pages = {452--466},
}""",  # noqa: E501
      disable_shuffling=True,
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> Mapping[str, Iterator[tuple[int, dict]]]:
    files = {split: dpr_nq.file(_CORPUS.base, split) for split in dpr_nq.SPLITS}
    brought = public_files.bring(dl_manager, _CORPUS.name, files.values())
    return {
      split: self._generate_examples(brought.folder / file.path)
      for split, file in files.items()
    }

  def _generate_examples(self, path) -> Iterator[tuple[int, dict]]:
    bad = public_files.bad_records()
    pairs = reading.PairFile(path, format_name="dpr")
    for number, pair in enumerate(pairs.read_pairs(bad)):
      raw = pair.raw
      example = {
        "dataset": _text(raw.get("dataset")),
        "question": pair.record.question,
        "answers": [*map(_text, _list(raw.get("answers")))],
      }
      for name in _LISTS:
        example[name] = [*map(_passage, _list(raw.get(name)))]
      yield number, example
    public_files.log_bad(self, bad)


def _passage(raw: Any) -> dict[str, Any]:
  """Makes the example of a passage; it is empty for what is no passage."""
  raw = raw if isinstance(raw, Mapping) else {}
  passage_id = raw.get("passage_id")
  return {
    "title": _text(raw.get("title")),
    "text": _text(raw.get("text")),
    "passage_id": _text(
      raw.get("psg_id") if passage_id is None else passage_id
    ),
    "score": _number(raw.get("score")),
    "title_score": _number(raw.get("title_score")),
  }


def _list(value: Any) -> list:
  return value if isinstance(value, list) else []


def _text(value: Any) -> str:
  """Returns a text or an id; "" for any other value, which the reader reports.

  The reader does not look at all fields.
  """
  try:
    return record_fields.check_id(value, "")
  except record_fields.FieldError:
    return ""


def _number(value: Any) -> float:
  return float(value) if isinstance(value, int | float) else _NO_SCORE
