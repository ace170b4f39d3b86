"""Chooses the sizes of a step for which a run compiles."""

from collections.abc import Callable

import numpy as np


def choose(
  costs: np.ndarray,
  holds: np.ndarray,
  most: int,
  is_worth: Callable[[int, int], bool],
) -> list[int]:
  """Chooses some of the candidates, so that the steps together cost least.

  A step costs as much as the cheapest chosen candidate that holds it. The
  choice is greedy; after each further candidate, each earlier one is replaced
  if another is better. All numbers are integers, so all hosts choose the same.

  Args:
    costs: int64 [C], what a step costs in each candidate.
    holds: bool [C, S], whether a candidate holds a step; the first holds all.
    most: The largest number of candidates to choose.
    is_worth: (the costs of all steps before and with a further candidate) ->
      whether the further candidate pays.

  Returns:
    The indices of the chosen candidates, the cheapest first.
  """
  never = int(costs.max()) * 2
  of_steps = np.where(holds, costs[:, None], never)

  def best_with(chosen):
    """Returns the total cost with the best further candidate, and its index."""
    totals = np.minimum(of_steps, of_steps[chosen].min(axis=0)).sum(axis=1)
    index = int(totals.argmin())
    return int(totals[index]), index

  chosen, total = [0], int(of_steps[0].sum())
  while len(chosen) < most:
    less, index = best_with(chosen)
    more = [*chosen, index]
    for place in range(1, len(more) - 1):
      others = more[:place] + more[place + 1 :]
      least, index = best_with(others)
      if least < less:
        less, more[place] = least, index
    if not is_worth(total, less):
      break
    chosen, total = more, less
  return sorted(chosen, key=lambda index: int(costs[index]))
