# SPDX-License-Identifier: MIT
"""Every public function takes arrays whose types say how they are split."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from tests.devices.meshes import mesh
from tests.package.calls import ROWS

EXPLICIT = mesh(AxisType.Explicit, data=2)
# Sizes that other arguments of a call decide.
GIVEN = {"s", "packed"}


def is_layer(name: str) -> bool:
    return name.startswith("nnx.")


def arrays_of(name: str) -> list[np.ndarray]:
    """Arrays with even sizes."""
    _, shapes, sizes = ROWS[name]
    doubled = {"n"} if is_layer(name) else sizes.keys() - GIVEN
    even = {size: (1 + (size in doubled)) * number for size, number in sizes.items()}
    return [np.random.default_rng(0).random(shape, np.float32) for shape in shapes(**even)]


def split(array: np.ndarray, axis: int) -> jax.Array:
    return jax.device_put(array, NamedSharding(EXPLICIT, P(*[None] * axis, "data")))


def with_gradients(f):
    def value_and_gradients(*arrays):
        y, vjp = jax.vjp(f, *arrays)
        return y, vjp(y)

    return value_and_gradients


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", ROWS)
def test_a_split_of_any_axis_of_any_array_changes_no_value(name, compiled):
    f, arrays = ROWS[name][0](None), arrays_of(name)
    called = jax.jit(with_gradients(f)) if compiled else f
    expected = called(*arrays)
    for i, array in enumerate(arrays):
        # Layers hold ordinary convolutions, which split along the batch alone.
        for axis in range(1 if is_layer(name) else array.ndim):
            if array.shape[axis] % 2 == 0:
                # The other arrays are on one device: `jax.set_mesh` is not needed.
                y = called(*arrays[:i], split(array, axis), *arrays[i + 1 :])
                for a, b in zip(jax.tree.leaves(y), jax.tree.leaves(expected), strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=f"{i} {axis}")
