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
GIVEN = ("s", "packed")
# Layers hold ordinary convolutions, which split along the batch alone.
AXES = {name: 1 if name.startswith("nnx.") else None for name in ROWS}


def arrays_of(name: str) -> list[np.ndarray]:
    """Arrays with even sizes."""
    _, shapes, sizes = ROWS[name]
    layer = name.startswith("nnx.")
    even = {
        k: size if k in GIVEN or (layer and k != "n") else 2 * size for k, size in sizes.items()
    }
    return [np.random.default_rng(0).random(shape, np.float32) for shape in shapes(**even)]


def split(array: np.ndarray, axis: int) -> jax.Array:
    return jax.device_put(array, NamedSharding(EXPLICIT, P(*[None] * axis, "data")))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", ROWS)
def test_a_split_of_any_axis_of_any_array_changes_no_value(name, compiled):
    f, arrays = ROWS[name][0](None), arrays_of(name)
    called = jax.jit(f) if compiled else f
    expected = f(*arrays)
    for i, array in enumerate(arrays):
        for axis in range(array.ndim)[: AXES[name]]:
            if array.shape[axis] % 2 == 0:
                # The other arrays are on one device: `jax.set_mesh` is not needed.
                y = called(*arrays[:i], split(array, axis), *arrays[i + 1 :])
                np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4, err_msg=f"{i} {axis}")
