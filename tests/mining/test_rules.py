"""Which candidates become negatives, and which never do."""

import types

import numpy as np
import pytest

from mlir_jax import sharding
from mlir_jax.data import records
from mlir_jax.mining import candidates, rules
from mlir_jax.mining import questions as questions_lib

SETTINGS = [
  {},
  {"num_negatives": 5, "range_min": 2},
  {"range_min": 3, "range_max": 20, "absolute_margin": 0.1},
  {"relative_margin": 0.2},
  {"relative_margin": 0.0, "max_score": 0.35, "range_min": 1},
  {"max_score": 0.4, "min_score": 0.3, "range_max": 12},
]


def choose_all(questions, corpus, found, settings, last_rank):
  """The negatives of each question."""
  start, choices = 0, []
  for i, question in enumerate(questions):
    end = start + len(question.positives)
    choices.append(
      rules.choose(
        question,
        corpus,
        found.rows[i],
        found.scores[i],
        found.positive_scores[start:end],
        settings,
        last_rank,
      )
    )
    start = end
  return choices


class Teacher:
  """What sentence-transformers asks of a model: vectors by text."""

  device = "cpu"
  model_card_data = types.SimpleNamespace(base_model="")

  def __init__(self, vectors):
    self._vectors = vectors

  def encode_query(self, texts, **_):
    return np.stack([self._vectors[text] for text in texts])

  encode_document = encode_query

  def similarity(self, queries, passages):
    import torch

    return torch.as_tensor(queries) @ torch.as_tensor(passages).T

  def similarity_pairwise(self, queries, passages):
    import torch

    return torch.as_tensor((queries * passages.numpy()).sum(1))


@pytest.mark.slow
def test_the_choice_is_that_of_sentence_transformers():
  datasets = pytest.importorskip("datasets")
  from sentence_transformers import util

  generator = np.random.default_rng(0)
  texts = [f"passage {i}" for i in range(150)]
  # Some questions have several positives, and some share one.
  pairs = [(f"question {i % 40}", texts[i % 55]) for i in range(70)]
  pairs = list(dict.fromkeys(pairs))
  names = [*dict.fromkeys(question for question, _ in pairs), *texts]
  vectors = generator.normal(size=(len(names), 8)).astype(np.float32)
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  by_text = dict(zip(names, vectors, strict=True))

  corpus = questions_lib.Corpus(map(records.Passage, texts))
  asked = questions_lib.Questions(corpus)
  for question, positive in pairs:
    asked.add(question, [records.Passage(positive)])
  questions = asked.all()
  most = max(len(question.positives) for question in questions)
  assert most > 1
  of_model = candidates.Vectors(
    np.stack([by_text[question.text] for question in questions]),
    np.stack([by_text[text] for text in texts]),
  )
  data = datasets.Dataset.from_dict(
    {"query": [q for q, _ in pairs], "answer": [p for _, p in pairs]}
  )
  total = 0
  for settings in SETTINGS:
    chosen_rules = rules.Rules(**settings)
    last_rank = chosen_rules.last_rank(most)
    find = candidates.with_model(
      questions, of_model, sharding.make_mesh(), last_rank + most
    )
    choices = choose_all(
      questions, corpus, find(0, len(questions)), chosen_rules, last_rank
    )
    ours = {
      question.text: [texts[row] for row in choice.rows]
      for question, choice in zip(questions, choices, strict=True)
    }
    mined = util.mine_hard_negatives(
      data, Teacher(by_text), corpus=texts, verbose=False, **settings
    )
    theirs = {question.text: {} for question in questions}
    for row in mined:
      theirs[row["query"]][row["negative"]] = None
    assert ours == {text: list(found) for text, found in theirs.items()}
    total += len(mined)
  assert total > 500


def question_and_corpus():
  """A question whose candidates are all wrong but two."""
  corpus = questions_lib.Corpus(
    [
      records.Passage("Le Café de la  Gare", passage_id="a"),
      records.Passage("LE CAFE\u0301 DE LA GARE", passage_id="b"),
      records.Passage("le café de la gare", "Paris", "c"),
      records.Passage("Where is the café?", passage_id="d"),
      records.Passage("In New-York there is one.", passage_id="e"),
      records.Passage("In Newark there is one.", passage_id="f"),
      records.Passage("A café that is closed.", passage_id="g"),
      records.Passage("Ｃafé of the other record", passage_id="h"),
      records.Passage("known", passage_id="i"),
    ]
  )
  asked = questions_lib.Questions(corpus)
  asked.add(
    "Where is the Café?",
    [records.Passage("le café de la gare")],
    [records.Passage("Known")],
    answers=["new york", "東京", "!"],
  )
  asked.add(
    "where is  the cafe\u0301?", [records.Passage("CAFÉ of the other record")]
  )
  (question,) = asked.all()
  assert asked.number("WHERE IS THE CAFÉ?") == 0
  return question, corpus


def test_what_may_be_right_is_no_negative():
  question, corpus = question_and_corpus()
  # "b" has the text of "a", so it is the same passage.
  names = [passage.passage_id for passage in corpus.passages]
  assert names == list("acdefghi") and corpus.repeated == 4
  rows = np.array([*range(len(names)), -1, -1], np.int32)
  scores = -np.arange(len(rows), dtype=np.float32)
  choice = rules.choose(
    question,
    corpus,
    rows,
    scores,
    np.array([1.0, 2.0], np.float32),
    rules.Rules(num_negatives=9),
    9,
  )
  assert [names[row] for row in choice.rows] == ["f", "g"]
  assert choice.scores == [-4, -5]
  assert choice.dropped == {
    rules.IS_POSITIVE: 2,
    rules.IS_TWIN: 1,
    rules.IS_QUESTION: 1,
    rules.HOLDS_ANSWER: 1,
    rules.IS_NEGATIVE: 1,
  }


def test_answers_are_whole_words_or_characters_of_unspaced_scripts():
  corpus = questions_lib.Corpus(
    map(records.Passage, ["art in town", "a party", "私は東京に行く", "京東"])
  )
  asked = questions_lib.Questions(corpus)
  asked.add("q", [records.Passage("x")], answers=["Art", "東京", " ", "…"])
  (question,) = asked.all()
  held = [corpus.holds(row, question.answers) for row in range(4)]
  assert held == [True, False, True, False]


def test_a_draw_depends_on_seed_question_and_passage_alone():
  corpus = questions_lib.Corpus(records.Passage(f"text {i}") for i in range(40))
  asked = questions_lib.Questions(corpus)
  for i in range(30):
    asked.add(f"question {i}", [records.Passage(f"positive {i}")])

  def draw(question, seed, rows):
    return set(
      rules.choose(
        question,
        corpus,
        np.array(rows, np.int32),
        -np.arange(len(rows), dtype=np.float32),
        np.ones(1, np.float32),
        rules.Rules(num_negatives=4, sampling_strategy="random", seed=seed),
        40,
      ).rows
    )

  rows = list(range(40))
  drawn = [draw(question, 0, rows) for question in asked.all()]
  assert drawn == [draw(question, 0, rows[::-1]) for question in asked.all()]
  assert drawn != [draw(question, 1, rows) for question in asked.all()]
  counts = np.bincount([row for each in drawn for row in each], minlength=40)
  assert len({frozenset(each) for each in drawn}) == 30
  assert counts.sum() == 120 and counts.max() <= 10
  # Without a candidate that was not drawn, the draw is the same.
  for question, each in zip(asked.all(), drawn, strict=True):
    others = [row for row in rows if row in each or row % 3]
    assert draw(question, 0, others) == each


@pytest.mark.parametrize(
  "settings,message",
  [
    ({"num_negatives": 0}, "num_negatives is 0"),
    ({"range_min": -1}, "range_min is -1"),
    ({"range_min": 5, "range_max": 5}, "range_max must be larger"),
    ({"range_min": 5, "range_max": 7}, "fewer ranks than num_negatives=3"),
    ({"relative_margin": 1.0}, "a share of the positive"),
    ({"absolute_margin": float("nan")}, "absolute_margin is nan"),
    ({"max_score": 0.2, "min_score": 0.2}, "max_score must be larger"),
    ({"sampling_strategy": "best"}, "one of top, random"),
  ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    rules.Rules(**settings)
