"""After which steps a run logs, evaluates, saves and ends."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Timetable:
  """After which steps a run logs, evaluates, saves and ends.

  All methods take the number of steps that the run has taken so far.

  Attributes:
    last_step: Steps of the whole run. The last one is logged and saved.
    log_every: Steps between lines of metrics.
    eval_every: Steps between dev evaluations; 0 for none.
    save_every: Steps between checkpoints.
    max_nonfinite_steps: The run fails after so many skipped steps in a row.
  """

  last_step: int
  log_every: int
  eval_every: int
  save_every: int
  max_nonfinite_steps: int

  def logs(self, taken: int) -> bool:
    """Whether all metrics of this step are logged."""
    return taken % self.log_every == 0 or taken == self.last_step

  def evaluates(self, taken: int) -> bool:
    """Whether the dev set is evaluated after this step."""
    return bool(self.eval_every) and (
      taken % self.eval_every == 0 or taken == self.last_step
    )

  def saves(self, taken: int) -> bool:
    """Whether the state after this step is saved, as all evaluated ones are."""
    return (
      taken % self.save_every == 0
      or taken == self.last_step
      or self.evaluates(taken)
    )

  def fails(self, skipped: int) -> bool:
    """Whether so many skipped steps in a row end the run.

    A run that skipped all of its steps has learnt nothing, so it fails, too.
    """
    return skipped >= min(self.max_nonfinite_steps, self.last_step)
