# SPDX-License-Identifier: MIT
"""Every public function and layer takes arrays whose types say how they are split."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from tests.devices.meshes import mesh
from tests.package.calls import ROWS

IMAGES = 4
EXPLICIT = mesh(AxisType.Explicit, data=IMAGES)


def split_and_whole(name: str) -> tuple[list[jax.Array], list[np.ndarray]]:
    """Arrays, those with a batch axis split over the devices, and the same arrays on one device."""
    _, shapes, sizes = ROWS[name]
    arrays = [
        np.random.default_rng(0).random(s, np.float32) for s in shapes(**sizes | {"n": IMAGES})
    ]
    has_batch = map(tuple.__ne__, shapes(**sizes), shapes(**sizes | {"n": IMAGES}))
    sharding = NamedSharding(EXPLICIT, P("data"))
    split = [
        jax.device_put(a, sharding) if b else a for a, b in zip(arrays, has_batch, strict=True)
    ]
    return split, arrays


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", ROWS)
def test_a_batch_along_an_explicit_axis_needs_no_mesh_around_the_call(name, compiled):
    f = ROWS[name][0](None)
    split, whole = split_and_whole(name)
    # With the second array on every device, shardings conflict, too.
    for arrays in (split, [split[0], *whole[1:]]):
        y = jax.jit(f)(*arrays) if compiled else f(*arrays)
        np.testing.assert_allclose(y, f(*whole), rtol=1e-4, atol=1e-4)
