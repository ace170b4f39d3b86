"""The secret that all processes of a run know, and when a run needs one."""

import os
import stat
import sys
from collections.abc import Iterable, Mapping

from mlir_jax.hosts import addresses

VARIABLE = "MLIR_JAX_SECRET"
FILE_VARIABLE = "MLIR_JAX_SECRET_FILE"
MIN_BYTES = 16
MAX_BYTES = 2**12


def read(environment: Mapping[str, str]) -> bytes | None:
  """Returns the run's secret, or None if the environment has none.

  Args:
    environment: The process' environment: `VARIABLE` holds the secret, or
      `FILE_VARIABLE` names a file that holds it. White space around the secret
      is not a part of it.

  Raises:
    ValueError: if the secret is short, or its file is missing or not private.
  """
  if VARIABLE in environment and FILE_VARIABLE in environment:
    raise ValueError(f"{VARIABLE} and {FILE_VARIABLE} are both set: set one.")
  if VARIABLE in environment:
    where = VARIABLE
    found = environment[VARIABLE].encode("utf-8", "surrogateescape")
  elif FILE_VARIABLE in environment:
    where = f"{FILE_VARIABLE}={environment[FILE_VARIABLE]}"
    try:
      found = _read_private(environment[FILE_VARIABLE])
    except (OSError, ValueError) as error:
      raise ValueError(f"{where}: {error}") from error
  else:
    return None
  found = found.strip()
  if len(found) < MIN_BYTES:
    raise ValueError(
      f"{where} has {len(found)} bytes; give at least {MIN_BYTES}, e.g. those"
      " of `openssl rand -hex 32`, and the same to all processes."
    )
  return found


def _read_private(path: str) -> bytes:
  """Reads a small file that only its owner can read."""
  # Without O_NONBLOCK, opening a pipe would block.
  number = os.open(os.path.expanduser(path), os.O_RDONLY | os.O_NONBLOCK)
  with open(number, "rb") as file:
    status = os.fstat(number)
    if not stat.S_ISREG(status.st_mode):
      raise ValueError("it is not a file.")
    if status.st_uid not in (os.geteuid(), 0):
      raise ValueError("it belongs to another user.")
    if status.st_mode & 0o077:
      raise ValueError(
        f"its mode is {stat.S_IMODE(status.st_mode):o}: other users have"
        " access. Give it the mode 600, and use another secret."
      )
    content = file.read(MAX_BYTES + 1)
  if len(content) > MAX_BYTES:
    raise ValueError(f"it has more than {MAX_BYTES} bytes.")
  return content


def key(
  secret: bytes | None,
  insecure: bool,
  flag: str,
  found: Iterable[addresses.Address],
) -> bytes:
  """Returns the key of the roll call.

  Args:
    secret: From `read`. Without a secret the key is empty: anybody knows it.
    insecure: Whether no secret is needed on a network.
    flag: The flag that gave the addresses, "--flag=value", for the message.
    found: The addresses at which the processes meet.

  Raises:
    ValueError: if a secret is needed and there is none.
  """
  if secret is not None:
    return secret
  if insecure or all(map(addresses.is_loopback, found)):
    return b""
  raise ValueError(
    f"{flag} is an address that other machines can reach, and there is no"
    f" secret. Give all processes the same secret in {VARIABLE}, or in a file"
    f" of mode 600 that {FILE_VARIABLE} names (e.g. that of `openssl rand -hex"
    " 32`). The launchers do this. If nobody else can reach your network, give"
    " --insecure_check_in."
  )


def warn_if_insecure(secret: bytes | None, insecure: bool) -> None:
  """Prints a warning if --insecure_check_in makes a difference."""
  if insecure and secret is None:
    print(
      "Warning: --insecure_check_in: any machine that reaches the coordinator's"
      " address can take part in this run, or end it.",
      file=sys.stderr,
    )
