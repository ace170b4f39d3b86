"""Runs jobs in the processes of this machine."""

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import process
from typing import Any

import tqdm

from mlir_jax.command_line import refusal

# A job: its arguments. The function also takes `progress`, see `run`.
Job = tuple[Any, ...]

_POLL_SECONDS = 0.2


def cores() -> int:
  """Returns the number of cores that this process may use."""
  return len(os.sched_getaffinity(0))


def run(
  function: Callable[..., Any],
  jobs: Sequence[Job],
  processes: int,
  bar: tqdm.tqdm,
) -> list[Any]:
  """Calls a function for each job.

  With several processes, they start fresh (they are spawned). So the function
  and the arguments must be pickled.

  Args:
    function: Called with the arguments of a job and with `progress`, a function
      that takes the number of items that are done in addition. It may be killed
      at any moment, as this process may be.
    jobs: The arguments of each call.
    processes: The number of processes; with 1, this process does all jobs.
    bar: Shows the progress of all jobs together.

  Returns:
    The results, in the order of the jobs.

  Raises:
    Exception: the error of the first job that has failed. It is the same for
      any number of processes, because jobs start in order. A job that has not
      started then is left out; those before it are finished.
  """
  processes = min(processes, len(jobs))
  with bar:
    if processes <= 1:
      return [function(*job, progress=bar.update) for job in jobs]
    return _run_all(function, jobs, processes, bar)


def _run_all(function, jobs, processes: int, bar: tqdm.tqdm) -> list[Any]:
  context = multiprocessing.get_context("spawn")
  done, stopped = context.Value("q", 0), context.Event()
  threads = max(1, cores() // processes)
  executor = concurrent.futures.ProcessPoolExecutor(
    processes, context, _start, (done, stopped, threads)
  )
  try:
    futures = [executor.submit(_call, function, job) for job in jobs]
    waiting = set(futures)
    while waiting:
      finished, waiting = concurrent.futures.wait(
        waiting, _POLL_SECONDS, concurrent.futures.FIRST_COMPLETED
      )
      bar.update(done.value - bar.n)
      if any(not each.cancelled() and _error(each) for each in finished):
        for future in futures:
          future.cancel()
    for future in futures:
      if error := _error(future):
        # Raised here, it is an error of this package, which is for the user.
        raise error
    return [future.result() for future in futures]
  except process.BrokenProcessPool as error:
    stopped.set()
    raise MemoryError(
      f"One of {processes} processes that prepare the data was killed, perhaps"
      " because memory is short: start again with fewer, such as"
      f" --workers={processes // 2}. What is done stays."
    ) from error
  except BaseException:
    stopped.set()
    raise
  finally:
    executor.shutdown(cancel_futures=True)


def _error(future: concurrent.futures.Future) -> BaseException | None:
  """Returns the error of a job that has ended: raised, or for the user."""
  error = future.exception()
  if error:
    raise error
  found = future.result()
  return found.error if isinstance(found, _Refusal) else None


class _Refusal:
  """An error of a worker, whose message is for the user."""

  def __init__(self, error: Exception):
    self.error = error


_done: Any = (
  None  # In a worker: the number of items that are done, of all jobs.
)


def _start(done, stopped, threads: int) -> None:
  """Prepares a worker."""
  global _done
  _done = done
  # The tokenizers library would start a thread for each core, in each worker.
  os.environ["RAYON_NUM_THREADS"] = str(threads)
  # Ctrl-C reaches all processes of a terminal; the main process decides.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_watch, args=(stopped,), daemon=True).start()


def _watch(stopped) -> None:
  """Ends this worker when the main process stops, or is killed."""
  parent = multiprocessing.parent_process()
  assert parent
  while not stopped.is_set():
    if multiprocessing.connection.wait([parent.sentinel], _POLL_SECONDS):
      break
  os._exit(1)


def _progress(count: int) -> None:
  with _done.get_lock():
    _done.value += count


def _call(function: Callable[..., Any], job: Job) -> Any:
  try:
    return function(*job, progress=_progress)
  except Exception as error:
    if refusal.is_for_user(error):
      return _Refusal(error)
    raise
