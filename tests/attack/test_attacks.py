"""No bad input is accepted in silence, ends in a traceback, or runs code."""

import importlib

import pytest
from attack import scoreboard

# Each has `cases()`, and runs alone: PYTHONPATH=tests python -m attack.NAME.
# Each takes up to a minute and a half of a core; the roll call mostly waits.
ATTACKS = (
  "launchers",
  "model_folders",
  "readers",
  "roll_call",
  "settings",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_is_told_or_read_right(name):
  module = importlib.import_module(f"attack.{name}")
  outcomes = scoreboard.run_all(module.cases())
  bad = {
    case: outcome
    for case, outcome in outcomes.items()
    if outcome.kind not in scoreboard.GOOD
  }
  assert not bad, scoreboard.table(outcomes)


def attack_that_is_accepted(folder):
  del folder


def attack_with_a_wrong_result(folder):
  del folder
  scoreboard.expect(1 == 2, "1 is not 2")


def attack_that_is_refused(folder):
  raise ValueError(f"{folder}/a.json:1: text: is empty")


def attack_that_is_refused_by_accident(folder):
  del folder
  "\ud800".encode()


def attack_that_hangs(folder):
  del folder
  while True:
    pass


def attack_that_runs(folder):
  (folder / scoreboard.MARKER).touch()


@pytest.mark.parametrize(
  "attack, names, kind",
  [
    (attack_that_is_accepted, (), "right"),
    (attack_with_a_wrong_result, (), "silent"),
    (attack_that_is_refused, ("a.json:1",), "told"),
    (attack_that_is_refused, ("b.json",), "traceback"),
    (attack_that_is_refused_by_accident, (), "traceback"),
    (attack_that_hangs, (), "hung"),
    (attack_that_runs, (), "executed"),
  ],
)
def test_an_outcome_is_judged_as_it_is(attack, names, kind, tmp_path):
  case = scoreboard.Case("case", "", attack, names, seconds=1)
  assert scoreboard.judge(case, tmp_path).kind == kind
