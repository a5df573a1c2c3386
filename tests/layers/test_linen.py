# SPDX-License-Identifier: MIT
"""The Flax Linen module, which is the NNX module in another style."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx

from jax_dcn import nnx as dcn_nnx
from jax_dcn.linen import DeformConv

OPTIONS = dict(
    kernel_size=(3, 2),
    strides=(2, 1),
    padding=((1, 0), (2, 1)),
    kernel_dilation=(1, 2),
    feature_group_count=2,
)


def images() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (3, 9, 8, 6), jnp.float32)


@pytest.mark.parametrize("options", [dict(modulated=False), dict(mask_scale=2.0)])
def test_fresh_layer_equals_ordinary_convolution(options):
    key = jax.random.key(1)
    deformable, _ = DeformConv(10, **OPTIONS, offset_groups=3, **options).init_with_output(
        key, images()
    )
    ordinary, _ = nn.Conv(10, **OPTIONS).init_with_output(key, images())
    np.testing.assert_allclose(deformable, ordinary, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [dict(offset_groups=2), dict(modulated=False, use_bias=False), dict(dtype=jnp.bfloat16)],
    ids=str,
)
def test_both_modules_compute_the_same_from_the_same_parameters(options):
    module = dcn_nnx.DeformConv(6, 10, **OPTIONS, **options, rngs=nnx.Rngs(0))
    kernel = module.offset_conv.kernel
    kernel[...] = 0.3 * jax.random.normal(jax.random.key(1), kernel.shape, kernel.dtype)
    variables = {"params": nnx.to_pure_dict(nnx.state(module, nnx.Param))}
    layer = DeformConv(10, **OPTIONS, **options)
    y, sown = layer.apply(variables, images(), mutable="intermediates")
    expected, expected_sown = nnx.capture(module, nnx.Intermediate)(images())
    np.testing.assert_array_equal(y, expected)
    names = {"offset", "mask", "sampling_positions"}
    assert set(sown["intermediates"]) == set(expected_sown) == names
    for name in names:
        jax.tree.map(
            np.testing.assert_array_equal,
            sown["intermediates"][name],
            expected_sown[name].get_value(),
        )
    positions, _ = layer.apply(variables, images(), method="sampling_positions")
    np.testing.assert_array_equal(positions, sown["intermediates"]["sampling_positions"][0])


def test_nothing_is_sown_unless_asked_for():
    variables = DeformConv(10, (3, 3)).init(jax.random.key(0), images())
    assert set(variables["params"]) == {"kernel", "bias", "offset_conv"}
    y = DeformConv(10, (3, 3)).apply(variables, images())
    assert isinstance(y, jax.Array)


def test_both_modules_have_the_same_options():
    ours = inspect.signature(DeformConv).parameters
    twin = inspect.signature(dcn_nnx.DeformConv.__init__).parameters
    of_linen, of_nnx = (
        {"features", "parent", "name"},
        {"self", "in_features", "out_features", "rngs"},
    )
    assert [name for name in ours if name not in of_linen] == [
        name for name in twin if name not in of_nnx
    ]
    for name in set(ours) & set(twin) - {"kernel_init", "bias_init"}:
        assert ours[name].default == twin[name].default, name
