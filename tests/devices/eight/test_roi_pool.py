# SPDX-License-Identifier: MIT
"""`deform_roi_pool` on several devices: regions are split, and nothing is sent but gradients of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from tests.deform_roi_pool.cases import ARGUMENTS, RoICase
from tests.devices.collectives import collectives
from tests.devices.meshes import mesh, spec_of

CASE = RoICase("split", 2, (6, 7), 4, 8, 2, samples=2)
REGIONS = dict(rois=P("data"), offset=P("data"), mask=P("data"))
FEATURES = dict(x=P(None, None, None, "model"))


def run(f, kind: AxisType = AxisType.Auto, **specs: P):
    """What the devices send each other in `f`, and how its results are split."""
    arrays = CASE.arrays("float32")
    devices = mesh(kind, data=4, model=2)
    placed = [
        jax.device_put(array, NamedSharding(devices, specs.get(name, P())))
        for name, array in zip(ARGUMENTS, arrays, strict=True)
    ]
    with jax.set_mesh(devices):
        program = jax.jit(f).lower(*placed).compile()
        results = jax.tree.leaves(jax.jit(f)(*placed))
    for result, expected in zip(results, jax.tree.leaves(jax.jit(f)(*arrays)), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    return collectives(program), [spec_of(result) for result in results]


def gradients(*arrays):
    weights = CASE.cotangent("float32")
    return jax.grad(lambda *a: jnp.vdot(CASE.function()(*a), weights), (0, 2, 3))(*arrays)


def test_splitting_the_regions_needs_no_communication(implementation):
    sent, (spec,) = run(CASE.function(implementation), **REGIONS)
    assert sent == [] and spec == P("data")


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_gradients_of_split_regions_sum_that_of_the_images_alone(kind):
    (sums,), specs = run(gradients, kind, **REGIONS)
    assert sums.kind == "all-reduce" and sums.shapes == ((2, 6, 7, 4),)
    assert specs == [P(), P("data"), P("data")]


def test_splitting_the_features_needs_no_communication():
    sent, (spec,) = run(CASE.function(), **FEATURES)
    assert sent == [] and spec == P(None, None, None, "model")


def test_gradients_of_split_features_sum_those_of_positions():
    (sums,), specs = run(gradients, **FEATURES)
    assert sums.kind == "all-reduce" and sums.shapes == ((8, 2, 2, 1, 2), (8, 2, 2))
    assert specs == [P(None, None, None, "model"), P(), P()]


def test_tangents_split_along_regions_and_features():
    tangent = lambda *arrays: jax.jvp(CASE.function(), arrays, arrays)[1]
    sent, (spec,) = run(tangent, **REGIONS, **FEATURES)
    assert sent == [] and spec == P("data", None, None, "model")


def test_split_images_are_gathered():
    (gather,), _ = run(CASE.function(), x=P("model"))
    assert gather.kind == "all-gather" and gather.shapes == ((2, 6, 7, 4),)
