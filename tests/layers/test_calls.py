# SPDX-License-Identifier: MIT
"""Calls of the layers in both Flaxes: lists and tensors are arrays, and nonsense is named."""

import jax
import numpy as np
import pytest
from flax import linen as flax_linen, nnx

import jax_dcn.linen
import jax_dcn.nnx


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(size=shape).astype(np.float32)


CONV = dict(kernel_size=1)
ATTENTION = dict(features=12, heads=2, levels=2, points=3)
POOL = dict(output_dim=4, pooled_size=2, spatial_scale=0.5, hidden_features=3)
IMAGES = dict(x=draw(1, 5, 5, 4))
ATTENDED = dict(
    query=draw(1, 7, 12),
    reference=draw(1, 7, 2),
    value=draw(1, 10, 12),
    value_mask=np.ones((1, 10), bool),
)
ROIS = np.array([[0, 0, 0, 9, 9]], np.float32)
SHAPES = dict(spatial_shapes=((2, 3), (2, 2)))
SHOWN = "offset_and_mask sampling_positions"
# For each call: the layer, its options, the methods, and the arrays of a call.
CALLS = {
    "conv": ("DeformConv", CONV, f"__call__ {SHOWN}", dict(IMAGES, guide=draw(1, 5, 5, 4))),
    "conv without a branch": (
        "DeformConv",
        dict(CONV, offset_branch=False),
        "__call__",
        dict(IMAGES, offset=draw(1, 5, 5, 1, 1, 2), mask=draw(1, 5, 5, 1, 1)),
    ),
    "attention": ("MSDeformAttn", ATTENTION, "__call__", ATTENDED),
    "attention without projections": (
        "MSDeformAttn",
        dict(ATTENTION, value_projection=False, output_projection=False),
        "__call__",
        ATTENDED,
    ),
    "where attention looks": (
        "MSDeformAttn",
        ATTENTION,
        "locations_and_weights",
        {name: ATTENDED[name] for name in ("query", "reference")},
    ),
    "DCNv3": ("DCNv3", dict(features=4), f"__call__ {SHOWN}", IMAGES),
    "DCNv4": ("DCNv4", dict(features=4, without_pointwise=True), f"__call__ {SHOWN}", IMAGES),
    "pool": ("DeformRoIPool", POOL, f"__call__ {SHOWN}", dict(IMAGES, rois=ROIS)),
    "plain pool": (
        "DeformRoIPool",
        dict(output_dim=4, pooled_size=2, spatial_scale=0.5, deformable=False),
        "__call__ sampling_positions",
        dict(IMAGES, rois=ROIS),
    ),
}


def functions(name: str, flax: str) -> list:
    """The methods of a call as functions of its arrays."""
    layer, options, methods, arrays = CALLS[name]
    known = SHAPES if layer == "MSDeformAttn" else {}
    if flax == "nnx":
        channels = dict(in_features=4, out_features=6) if layer == "DeformConv" else {}
        made = getattr(jax_dcn.nnx, layer)(**options, **channels, rngs=nnx.Rngs(0))
    else:
        channels = dict(features=6) if layer == "DeformConv" else {}
        made = getattr(jax_dcn.linen, layer)(**options, **channels)
        assert isinstance(made, flax_linen.Module)
        initial = ATTENDED if layer == "MSDeformAttn" else arrays
        made = made.bind(made.init(jax.random.key(0), **initial, **known))
    return [lambda m=m, **values: getattr(made, m)(**values, **known) for m in methods.split()]


every_call = pytest.mark.parametrize("name", CALLS)
every_flax = pytest.mark.parametrize("flax", ["nnx", "linen"])


def as_tensor(array: np.ndarray):
    return pytest.importorskip("torch").from_numpy(array)


@every_call
@every_flax
@pytest.mark.parametrize("convert", [list, as_tensor], ids=["lists", "tensors"])
def test_lists_and_tensors_are_arrays(name, flax, convert):
    arrays = CALLS[name][3]
    converted = {argument: convert(array) for argument, array in arrays.items()}
    for function in functions(name, flax):
        jax.tree.map(np.testing.assert_array_equal, function(**converted), function(**arrays))


@every_call
@every_flax
@pytest.mark.parametrize("nonsense", ["nonsense", 3.0, np.ones((2, 3), int)], ids=str)
def test_nonsense_is_named(name, flax, nonsense):
    arrays = CALLS[name][3]
    for function in functions(name, flax):
        for argument in arrays:
            with pytest.raises(ValueError, match=rf"\b{argument}\b"):
                function(**(arrays | {argument: nonsense}))
