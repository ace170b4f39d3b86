"""Lists the checkpoints in a folder, without opening one."""

import os

from etils import epath

from mlir_jax.storage import locations


def steps(directory: str | os.PathLike) -> list[int]:
  """Returns the steps of the checkpoints in a folder, in order.

  Damaged checkpoints are listed; checkpoints whose save did not end are not.

  Args:
    directory: The folder of all checkpoints; it may be missing.
  """
  folder = epath.Path(directory)
  if not folder.exists():
    return []
  paths = [path for path in folder.iterdir() if path.name.isdecimal()]
  # On a disk, a save gets such a name when it ends. On object storage, it has
  # it from the beginning.
  if paths and locations.is_url(str(directory)):
    from orbax.checkpoint import utils  # Slow to import.

    paths = filter(utils.is_checkpoint_finalized, paths)
  return sorted(int(path.name) for path in paths)
