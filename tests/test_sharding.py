"""The mesh: what lies where, and what cannot be laid out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from mlir_jax import sharding
from mlir_jax.training import step


def test_the_mesh_takes_all_devices():
  mesh = sharding.make_mesh()
  assert dict(mesh.shape) == {"data": 8, "model": 1}
  assert dict(sharding.make_mesh(model=2).shape) == {"data": 4, "model": 2}


@pytest.mark.parametrize(
  "arguments,message",
  [({"model": 3}, "mesh.model is 3"), ({"data": 4}, "mesh.data=-1")],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(**arguments)


def test_fsdp_splits_the_largest_axis_that_divides_else_replicates():
  mesh = sharding.make_mesh()
  tree = {
    "table": jax.ShapeDtypeStruct((256, 24), jnp.float32),
    "wide": jax.ShapeDtypeStruct((7, 16), jnp.float32),
    "odd": jax.ShapeDtypeStruct((9, 7), jnp.float32),
    "scalar": jax.ShapeDtypeStruct((), jnp.int32),
  }
  specs = jax.tree.map(
    lambda s: s.spec, sharding.state_shardings(tree, mesh, fsdp=True)
  )
  assert specs == {
    "table": PartitionSpec("data"),
    "wide": PartitionSpec(None, "data"),
    "odd": PartitionSpec(),
    "scalar": PartitionSpec(),
  }
  for leaf in jax.tree.leaves(sharding.state_shardings(tree, mesh, False)):
    assert leaf.is_fully_replicated


def test_optimizer_state_lies_like_its_parameter():
  mesh = sharding.make_mesh()
  params = {"a": jnp.zeros((16, 8)), "b": jnp.zeros((8,))}
  state = jax.eval_shape(
    lambda p: step.init_state(p, optax.adamw(1e-3)), params
  )
  shardings = sharding.state_shardings(state, mesh, fsdp=True)
  adam = shardings.opt_state[0]
  assert adam.mu == adam.nu == shardings.params


def test_the_description_counts_what_is_sharded():
  mesh = sharding.make_mesh()
  params = {"a": jnp.zeros((1000, 1000)), "b": jnp.zeros((9,))}
  shardings = sharding.state_shardings(params, mesh, fsdp=True)
  described = sharding.parameter_summary(params, shardings)
  assert "1.00 M sharded" in described
  assert described.endswith("as no axis divides: b (9).")


@pytest.mark.parametrize("fsdp", [False, True])
def test_over_rows_each_device_has_its_rows_and_all_parameters(fsdp):
  mesh = sharding.make_mesh()
  params = {"kernel": jnp.arange(16.0).reshape(8, 2), "bias": jnp.ones(3)}
  shardings = sharding.state_shardings(params, mesh, fsdp)
  rows = jnp.arange(32.0).reshape(16, 2)

  def each(params, rows):
    assert params["kernel"].shape == (8, 2)
    assert rows.shape == (2, 2)
    return rows @ params["kernel"].T * params["bias"].sum()

  def total(params, rows, add):
    apply = each if not add else lambda *args: each(*args).sum()
    over = sharding.over_rows(apply, mesh, shardings, add=add)
    return over(params, rows).sum()

  def expected(params):
    return (rows @ params["kernel"].T).sum() * params["bias"].sum()

  placed = jax.device_put(params, shardings)
  on_mesh = sharding.place_batch(np.asarray(rows), mesh)
  for add in (False, True):
    value, gradient = jax.jit(jax.value_and_grad(total), static_argnums=2)(
      placed, on_mesh, add
    )
    np.testing.assert_allclose(value, expected(params))
    jax.tree.map(
      np.testing.assert_allclose, gradient, jax.grad(expected)(params)
    )


@pytest.mark.parametrize("model", [1, 2])
def test_a_placed_batch_is_the_global_batch(model):
  mesh = sharding.make_mesh(model=model)
  batch = {
    "retrieval": {"ids": np.arange(16 * 3).reshape(16, 3)},
    "parallel": {"ids": np.arange(8 * 2 * 3).reshape(8, 2, 3)},
  }
  with jax.transfer_guard("disallow"):
    placed = sharding.place_batch(batch, mesh)
  jax.tree.map(np.testing.assert_array_equal, placed, batch)
  assert placed["retrieval"]["ids"].sharding.spec == PartitionSpec("data")


def test_a_batch_that_does_not_divide_is_refused_with_those_that_do():
  with pytest.raises(ValueError, match=r"batch.parallel is 20.*16 and 24"):
    sharding.check_divides(sharding.make_mesh(), 20, "batch.parallel")
