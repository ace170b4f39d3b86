"""Places parameters and batches on the device mesh.

Only this file and exact search name the axes of the mesh. Losses and models are
written for the global batch and do not know the mesh.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA = "data"  # The batch, and parameters under FSDP.
MODEL = "model"

PyTree = Any
Device = Any  # A jax.Device: jaxlib has no types.


def make_mesh(
  data: int = -1,
  model: int = 1,
  devices: Sequence[Device] | None = None,
) -> Mesh:
  """Makes the ("data", "model") mesh.

  Args:
    data: Devices along "data"; -1 means all devices divided by `model`.
    model: Devices along "model".
    devices: The devices; by default all devices of all hosts.

  Raises:
    ValueError: if the number of devices does not fit.
  """
  devices = jax.devices() if devices is None else list(devices)
  count = len(devices)
  if model < 1 or count % model:
    raise ValueError(
      f"mesh.model is {model}, which does not divide {count} devices."
    )
  if data == -1:
    data = count // model
  if data * model != count:
    raise ValueError(
      f"mesh.data x mesh.model is {data} x {model}, but there are {count}"
      " devices; set mesh.data=-1 to use them all."
    )
  return jax.make_mesh(
    (data, model),
    (DATA, MODEL),
    axis_types=(AxisType.Auto, AxisType.Auto),
    devices=devices,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that each device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def over_data(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array whose first axis is the batch."""
  return NamedSharding(mesh, PartitionSpec(DATA))


def replicate(mesh: Mesh) -> Callable[[PyTree], PyTree]:
  """Returns a function that, under jit, makes a tree whole on each device."""
  sharding = replicated(mesh)
  return lambda x: jax.lax.with_sharding_constraint(x, sharding)


def state_shardings(state: PyTree, mesh: Mesh, fsdp: bool) -> PyTree:
  """Returns the shardings of parameters and optimizer state.

  With FSDP, an array is split over "data", along the largest axis that the
  number of devices divides (the first of equal ones). If there is none, it is
  replicated. The rule reads only shapes, so the moments of an optimizer are
  sharded like their parameter.

  Args:
    state: Arrays or `jax.ShapeDtypeStruct`s.
    mesh: The mesh.
    fsdp: Whether to shard; otherwise all arrays are replicated.

  Returns:
    The same tree of `NamedSharding`s.
  """
  size = mesh.shape[DATA]

  def sharding(leaf):
    axes = [
      (length, -axis)
      for axis, length in enumerate(leaf.shape)
      if length % size == 0 and length >= size
    ]
    if not fsdp or size == 1 or not axes:
      return replicated(mesh)
    axis = -max(axes)[1]
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA))

  return jax.tree.map(sharding, state)


def stacked(*shardings: NamedSharding) -> NamedSharding:
  """Returns the sharding of equally sharded arrays, stacked on a new axis 0."""
  first, *others = shardings
  assert all(other.spec == first.spec for other in others)
  return NamedSharding(first.mesh, PartitionSpec(None, *first.spec))


def abstract(state: PyTree, shardings: PyTree) -> PyTree:
  """Returns the tree's shapes and dtypes with their shardings.

  Args:
    state: Arrays or `jax.ShapeDtypeStruct`s.
    shardings: The same tree of shardings.
  """
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    state,
    shardings,
  )


def over_rows(
  apply: Callable[[PyTree, PyTree], PyTree],
  mesh: Mesh,
  shardings: PyTree,
  *,
  add: bool = False,
) -> Callable[[PyTree, PyTree], PyTree]:
  """Makes each device apply a function to its own rows.

  Sharded parameters are gathered once, before `apply`. Their gradient is summed
  over the devices once, after it, and sharded again. Inside `apply`, devices
  exchange nothing, so it may loop.

  Args:
    apply: (whole parameters, a device's rows) -> a tree of arrays, whose first
      axis is the rows; it names no axis of the mesh.
    mesh: The mesh.
    shardings: The shardings of the parameters, a tree of `NamedSharding`s.
    add: Whether the results are sums over rows, to be added up.

  Returns:
    The same function, of the global arrays.
  """
  if mesh.shape[DATA] == 1:
    return apply  # A sum over one device would copy the whole gradient.
  specs = jax.tree.map(lambda sharding: sharding.spec, shardings)
  rows = PartitionSpec(DATA)

  def whole(leaf, spec):
    if DATA in spec:
      axis = spec.index(DATA)
      return jax.lax.all_gather(leaf, DATA, axis=axis, tiled=True)
    # Otherwise JAX would do this at each use, which may be in a loop.
    return jax.lax.pcast(leaf, DATA, to="varying")

  def on_device(params, rows):
    results = apply(jax.tree.map(whole, params, specs), rows)
    return jax.lax.psum(results, DATA) if add else results

  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(specs, rows),
    out_specs=PartitionSpec() if add else rows,
  )


def parameter_summary(params: PyTree, shardings: PyTree) -> str:
  """Says how many parameters are sharded, and names those that are not."""
  split = whole = 0
  kept = []
  named = jax.tree_util.tree_leaves_with_path(params)
  for (path, leaf), sharding in zip(
    named, jax.tree.leaves(shardings), strict=True
  ):
    size = int(np.prod(leaf.shape))
    if sharding.is_fully_replicated:
      whole += size
      kept.append(
        (size, jax.tree_util.keystr(path, simple=True, separator="/"))
      )
    else:
      split += size
  text = (
    f"Parameters: {(split + whole) / 1e6:,.2f} M, of which"
    f" {split / 1e6:,.2f} M sharded over '{DATA}' and {whole / 1e6:,.2f} M"
    " replicated"
  )
  if not split:
    return f"{text}."
  named = [f"{name} ({size:,})" for size, name in sorted(kept, reverse=True)]
  more = f" and {len(named) - 5} smaller ones" if len(named) > 5 else ""
  return f"{text}, as no axis divides: {', '.join(named[:5]) or 'none'}{more}."


def check_divides(mesh: Mesh, batch_size: int, name: str = "a batch") -> None:
  """Checks that a batch divides evenly over the mesh.

  Args:
    mesh: The mesh.
    batch_size: Rows of the global batch.
    name: The config field of the batch size, for the message.

  Raises:
    ValueError: if it does not; it names the nearest sizes that do.
  """
  size = mesh.shape[DATA]
  if batch_size % size:
    raise ValueError(
      f"{name} is {batch_size}, which is not a multiple of the {size} devices"
      f" along '{DATA}'; the nearest multiples are"
      f" {batch_size // size * size or size} and"
      f" {(batch_size // size + 1) * size}."
    )


def host_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
  """Returns the rows of a global batch that the devices of this host hold.

  They follow from the sharding, not from the number of the process: if another
  axis of the mesh spans hosts, several hosts hold the same rows.

  Args:
    mesh: The mesh.
    batch_size: Rows of the global batch.

  Returns:
    The rows, ascending, int64.

  Raises:
    ValueError: if the batch does not divide over the mesh.
  """
  check_divides(mesh, batch_size)
  indices = over_data(mesh).addressable_devices_indices_map((batch_size,))
  rows = [np.arange(batch_size)[index] for index in indices.values()]
  return np.unique(np.concatenate(rows))


def place_batch(batch: PyTree, mesh: Mesh) -> PyTree:
  """Puts a host's rows of a batch on its devices, as one global batch.

  Args:
    batch: A tree of arrays whose first axis is the rows of `host_rows`.
    mesh: The mesh.

  Returns:
    The same tree of global `jax.Array`s, split over "data".
  """
  sharding = over_data(mesh)
  parts = mesh.shape[DATA]
  ours = len(host_rows(mesh, parts))

  def place(array):
    size = len(array) * parts // ours
    rows = host_rows(mesh, size)

    def shard(index):
      start, stop, _ = index[0].indices(size)
      first = np.searchsorted(rows, start)
      return array[first : first + stop - start]

    return jax.make_array_from_callback(
      (size, *array.shape[1:]), sharding, shard
    )

  # The loop forbids transfers to the devices. This one is intended.
  with jax.transfer_guard_host_to_device("allow"):
    return jax.tree.map(place, batch)
