# SPDX-License-Identifier: MIT
"""Layers on a mesh with an axis that does not split the batch have the gradients of one device."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from jax_dcn.nnx import DCNv3, DCNv4, DeformConv, DeformRoIPool, MSDeformAttn
from tests.devices.meshes import mesh

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(4, 6, 10, 8)).astype("float32")
REGIONS = np.array([[0, 1, 1, 5, 4], [3, 0, 1, 4, 4], [1, 0, 2, 3, 4], [1, 1, 0, 4, 3]], "float32")
QUERIES = RANDOM.normal(size=(4, 3, 8)).astype("float32")
REFERENCE = RANDOM.uniform(0.2, 0.8, size=(4, 3, 2)).astype("float32")
PIXELS = IMAGES.reshape(4, 60, 8)

# A layer and its arguments.
LAYERS = {
    "DeformConv": (lambda rngs: DeformConv(8, 6, 3, offset_groups=2, rngs=rngs), [IMAGES]),
    "DeformConv that wraps": (
        lambda rngs: DeformConv(8, 6, (2, 3), padding="CIRCULAR", rngs=rngs),
        [IMAGES],
    ),
    "DCNv3": (lambda rngs: DCNv3(8, groups=2, dw_kernel_size=(2, 3), rngs=rngs), [IMAGES]),
    "DCNv4": (lambda rngs: DCNv4(8, groups=2, dw_kernel_size=3, rngs=rngs), [IMAGES]),
    "DeformRoIPool": (
        lambda rngs: DeformRoIPool(8, 2, spatial_scale=1.0, hidden_features=6, rngs=rngs),
        [IMAGES, REGIONS],
    ),
    "MSDeformAttn": (
        lambda rngs: MSDeformAttn(8, heads=2, levels=1, points=2, rngs=rngs),
        [QUERIES, REFERENCE, PIXELS],
    ),
}


def loss_of(graph, name):
    shapes = dict(spatial_shapes=((6, 10),)) if name == "MSDeformAttn" else {}
    return lambda state, *arrays: jnp.sin(nnx.merge(graph, state)(*arrays, **shapes)).sum()


kinds = pytest.mark.parametrize(
    "kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"]
)


@pytest.mark.parametrize(
    "parameters", [P(), P("model", None), P(None, "model")], ids=["whole", "inputs", "outputs"]
)
@kinds
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_on_a_mesh_are_those_of_one_device(name, kind, parameters):
    assert_gradients_of_one_device(name, kind, P("data"), parameters)


@pytest.mark.parametrize("axis", [1, 2, 3], ids=["rows", "columns", "channels"])
@kinds
def test_images_of_depthwise_convolutions_are_split_along_any_axis(kind, axis):
    assert_gradients_of_one_device("DCNv3", kind, P(*[None] * axis, "data"), P())


@pytest.mark.parametrize("axis", [1, 2, 3], ids=["rows", "columns", "channels"])
@kinds
@pytest.mark.parametrize("name", ["DeformConv", "DeformConv that wraps"])
def test_images_of_deformable_convolutions_are_split_along_any_axis(name, kind, axis):
    assert_gradients_of_one_device(name, kind, P(*[None] * axis, "data"), P())


def test_split_images_need_no_jit():
    auto = AxisType.Auto
    assert_gradients_of_one_device("DeformConv", auto, P(None, "data"), P(), compiled=lambda f: f)


def assert_gradients_of_one_device(
    name: str, kind: AxisType, split: P, parameters: P, compiled: Callable = jax.jit
) -> None:
    """`split` is that of the arguments, `parameters` that of the last axes of kernels."""
    make, arrays = LAYERS[name]
    graph, state = nnx.split(make(nnx.Rngs(0)))
    # Branches that start at zero are moved away from it.
    state = jax.tree.map(lambda value: value + 0.1, state)
    gradient = compiled(jax.grad(loss_of(graph, name), (0, 1)))
    expected = gradient(state, *arrays)
    devices = mesh(kind, data=2, model=2)

    def place(array, spec):
        return jax.device_put(array, NamedSharding(devices, spec))

    def placed(parameter):
        sizes = parameter.shape[-2:]
        splits = parameter.ndim in (2, 4) and all(size % 2 == 0 for size in sizes)
        spec = P(*[None] * (parameter.ndim - len(parameters)), *parameters)
        return place(parameter, spec if splits else P())

    with jax.set_mesh(devices):
        batch = [place(array, split) for array in arrays]
        actual = gradient(jax.tree.map(placed, state), *batch)
    for one, other in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
