# SPDX-License-Identifier: MIT
"""`to_flax` tells the branch of a deformable layer from a module of the same name."""

import jax
import numpy as np
import pytest
from flax import linen as nn, nnx

from jax_dcn import linen as dcn_linen, nnx as dcn_nnx
from jax_dcn.interop.torch_weights import convolution, to_flax, to_flax_and_report
from tests.interop.test_interop_torch_names import rngs, tensors

OFFSETS = {"offset_conv.weight": (18, 4, 3, 3), "offset_conv.bias": (18,)}
MASKS = {"modulator_conv.weight": (9, 4, 3, 3), "modulator_conv.bias": (9,)}


class Block(nnx.Module):
    """The modules of the block around torchvision's function, each of its own."""

    def __init__(self, name: str):
        self.offset_conv = nnx.Conv(4, 18, (3, 3), rngs=rngs())
        self.modulator_conv = nnx.Conv(4, 9, (3, 3), rngs=rngs())
        layer = dcn_nnx.DeformConv(4, 5, 3, offset_branch=False, use_bias=False, rngs=rngs())
        setattr(self, name, layer)


class LinenBlock(nn.Module):
    name_of_layer: str

    @nn.compact
    def __call__(self, x):
        offset = nn.Conv(18, (3, 3), name="offset_conv")(x).reshape(*x.shape[:-1], 1, 9, 2)
        mask = nn.Conv(9, (3, 3), name="modulator_conv")(x)[..., None, :]
        options = dict(offset_branch=False, use_bias=False, name=self.name_of_layer)
        return dcn_linen.DeformConv(5, 3, **options)(x, offset, mask)


def variables_of(style: str, name: str):
    if style == "linen":
        x = np.ones((1, 5, 6, 4), np.float32)
        return LinenBlock(name).init(jax.random.key(0), x)["params"]
    return Block(name) if style == "nnx" else nnx.state(Block(name))


@pytest.mark.parametrize("name", ["deform", "regular_conv"])
@pytest.mark.parametrize("style", ["nnx", "state", "linen"])
def test_modules_with_the_names_of_a_branch_take_the_tensors_of_their_own_names(style, name):
    weights = tensors(OFFSETS | MASKS | {f"{name}.weight": (5, 4, 3, 3)})
    found = to_flax(weights, variables_of(style, name))
    for module in ("offset_conv", "modulator_conv", name):
        kernel = found[module]["kernel"]
        kernel = kernel if style == "linen" else kernel[...]
        np.testing.assert_array_equal(kernel, convolution(weights[f"{module}.weight"]))


class Derived(dcn_nnx.DeformConv):
    """A layer with a branch, and modules that have the names of another dialect."""

    def __init__(self):
        super().__init__(4, 5, 3, use_bias=False, modulated=False, rngs=rngs())
        self.modulator_conv = nnx.Conv(4, 9, (3, 3), rngs=rngs())
        self.regular_conv = nnx.Conv(4, 5, (3, 3), use_bias=False, rngs=rngs())


def test_a_layer_does_not_take_the_tensors_of_modules_inside():
    shapes = {"weight": (5, 4, 3, 3), "regular_conv.weight": (5, 4, 3, 3)}
    weights = tensors(OFFSETS | MASKS | shapes)
    found, report = to_flax_and_report(weights, Derived())
    assert set(report.loaded_keys) == set(weights)
    np.testing.assert_array_equal(found["kernel"][...], convolution(weights["weight"]))
