"""Which process of how many this is, from the flags or the cluster."""

from collections.abc import Sequence

from mlir_jax.hosts import links, roll_call


def address(
  coordinator: str | None, processes: int | None, process: int | None
) -> tuple[str, int, int, Sequence[int] | None]:
  """Where process 0 is, how many there are, and which one this is.

  Args:
    coordinator: "HOST:PORT" of process 0; None asks the cluster.
    processes: How many; None asks the cluster.
    process: The number of this one, from 0; None asks the cluster.

  Returns:
    The three, and the numbers of this machine's devices that are this
    process' own; None for all.

  Raises:
    ValueError: naming the flag.
  """
  from jax._src import clusters  # Private: there is no public way to ask.

  given = coordinator, processes, process
  devices = None
  if None in given:
    coordinator, processes, process, devices = (
      clusters.ClusterEnv.auto_detect_unset_distributed_params(
        *given, None, None, 300
      )
    )
  if coordinator is None or processes is None or process is None:
    flag = next(
      flag
      for flag, value in (
        ("coordinator", coordinator),
        ("processes", processes),
        ("process", process),
      )
      if value is None
    )
    raise ValueError(f"--distributed: the cluster does not say; give --{flag}.")
  roll_call.split(coordinator)
  if not 1 <= processes <= links.MOST_PROCESSES:
    raise ValueError(
      f"--processes={processes}: give 1 to {links.MOST_PROCESSES}."
    )
  if not 0 <= process < processes:
    raise ValueError(
      f"--process={process}: of --processes={processes} the numbers are 0 to"
      f" {processes - 1}."
    )
  return coordinator, processes, process, devices
