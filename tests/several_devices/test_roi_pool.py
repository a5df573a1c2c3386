# SPDX-License-Identifier: MIT
"""`deform_roi_pool` on several devices: regions are split, and nothing is sent but gradients of images."""

import jax
import jax.numpy as jnp
import numpy as np
from collectives import collectives
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from roi_cases import ARGUMENTS, RoICase

CASE = RoICase("split", 2, (6, 7), 4, 8, 2, samples=2)
MESH = jax.make_mesh(
    (4, 2), ("data", "model"), (AxisType.Auto,) * 2, devices=jax.devices("cpu")[:8]
)
REGIONS = dict(rois=P("data"), offset=P("data"), mask=P("data"))


def run(f, **specs: P):
    """What the devices send each other in `f`, and how its results are split."""
    arrays = CASE.arrays("float32")
    placed = [
        jax.device_put(array, NamedSharding(MESH, specs.get(name, P())))
        for name, array in zip(ARGUMENTS, arrays, strict=True)
    ]
    program = jax.jit(f).lower(*placed).compile()
    results = jax.tree.leaves(program(*placed))
    for result, expected in zip(results, jax.tree.leaves(jax.jit(f)(*arrays)), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    return collectives(program), [result.sharding.spec for result in results]


def gradients(*arrays):
    weights = CASE.cotangent("float32")
    return jax.grad(lambda *a: jnp.vdot(CASE.function()(*a), weights), (0, 2, 3))(*arrays)


def test_splitting_the_regions_needs_no_communication(implementation):
    sent, (spec,) = run(CASE.function(implementation), **REGIONS)
    assert sent == [] and spec == P("data")


def test_gradients_of_split_regions_sum_that_of_the_images_alone():
    (sums,), specs = run(gradients, **REGIONS)
    assert sums.kind == "all-reduce" and sums.shapes == ((2, 6, 7, 4),)
    assert specs == [P(), P("data"), P("data")]


def test_splitting_the_features_needs_no_communication():
    sent, (spec,) = run(CASE.function(), x=P(None, None, None, "model"))
    assert sent == [] and spec == P(None, None, None, "model")
