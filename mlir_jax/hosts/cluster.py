"""Completes the flags that say which of how many processes this one is."""

from collections.abc import Sequence

from mlir_jax.hosts import addresses, links


def address(
  coordinator: str | None, processes: int | None, process: int | None
) -> tuple[str, int, int, Sequence[int] | None]:
  """Completes the flags with what the cluster knows.

  Args:
    coordinator: "HOST:PORT" of process 0; None asks the cluster.
    processes: The number of processes; None asks the cluster.
    process: The number of this process, from 0; None asks the cluster.

  Returns:
    The three, and the numbers of this machine's devices that belong to this
    process; None for all.

  Raises:
    ValueError: naming the flag.
  """
  from jax._src import clusters  # Private: no public function does this.

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
  addresses.split(coordinator)
  if not 1 <= processes <= links.MAX_PROCESSES:
    raise ValueError(
      f"--processes={processes}: give 1 to {links.MAX_PROCESSES}."
    )
  if not 0 <= process < processes:
    raise ValueError(
      f"--process={process}: of --processes={processes} the numbers are 0 to"
      f" {processes - 1}."
    )
  return coordinator, processes, process, devices
