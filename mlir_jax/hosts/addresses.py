"""The address at which the processes of a run meet."""

import ipaddress
import socket
from collections.abc import Sequence

from mlir_jax.hosts import links

BIND_FLAG = "--coordinator_bind_address"

Address = tuple[int, tuple]  # The family and the address of a socket.


def split(coordinator: str) -> tuple[str, int]:
  """Returns host and port of "HOST:PORT"; an IPv6 host without its brackets.

  Raises:
    ValueError: naming the flag.
  """
  host, _, port = coordinator.rpartition(":")
  if host.startswith("[") and host.endswith("]"):
    host = host[1:-1]
  is_number = port.isascii() and port.isdigit() and len(port) < 6
  if not _is_host(host) or not is_number or not 0 < int(port) < 2**16:
    raise ValueError(
      f"--coordinator={links.printable(coordinator)}: give HOST:PORT."
    )
  return host, int(port)


def _is_host(text: str) -> bool:
  # The system reads a name only up to a NUL, and "" as all addresses.
  is_short = 0 < len(text) <= links.MAX_NAME
  return is_short and text.isprintable() and not set(text) & set(" []/")


def bind_address(coordinator: str, bind: str | None) -> str:
  """Returns where process 0 listens, in the form that JAX takes: "HOST:PORT".

  Raises:
    ValueError: naming the flag that is wrong.
  """
  _, port = split(coordinator)
  if bind is None:
    return coordinator
  if not _is_host(bind):
    raise ValueError(
      f"{BIND_FLAG}={links.printable(bind)}: give an address of this machine."
    )
  return f"[{bind}]:{port}" if ":" in bind else f"{bind}:{port}"


def resolve(host: str, port: int) -> list[Address]:
  """Returns the addresses of a name; OSError if it has none."""
  try:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
  except UnicodeError as error:
    raise OSError(f"{host!r} is not the name of a machine") from error
  return list(dict.fromkeys((family, at) for family, _, _, _, at in found))


def is_loopback(address: Address) -> bool:
  """Whether only this machine can reach an address."""
  ip = ipaddress.ip_address(address[1][0].partition("%")[0])
  return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def hidden_name(host: str, found: Sequence[Address]) -> str:
  """Returns a warning if only this machine can reach the name of a machine.

  Args:
    host: The name, or an IP address.
    found: Its addresses, from `resolve`.

  Returns:
    The warning; "" if all is well, or if the user gave a loopback address.
  """
  try:
    ipaddress.ip_address(host)
    return ""
  except ValueError:
    if host == "localhost" or not all(map(is_loopback, found)):
      return ""
  return (
    f"Process 0 listens at {found[0][1][0]}, the address of {host} on this"
    " machine: other machines cannot reach it. If the run has any, give"
    f" {BIND_FLAG}."
  )
