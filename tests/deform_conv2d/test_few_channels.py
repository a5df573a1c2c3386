# SPDX-License-Identifier: MIT
"""Arrays that are shorter than a vector, or end within one: few channels and few features."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jax_dcn import deform_conv2d
from tests.deform_conv2d.cases import Case
from tests.laws.operator import assert_close


@functools.partial(jax.jit, static_argnums=0)
def value_tangent_gradients(f, arrays, dots, grad_y):
    y, vjp = jax.vjp(f, *arrays)
    return y, jax.jvp(f, arrays, dots)[1], vjp(grad_y)


# Two offset groups share a product where a feature group has both of them.
@pytest.mark.parametrize(
    ("dtype", "feature_groups"), [("float32", 1), ("float32", 2), ("float64", 1)]
)
@pytest.mark.parametrize("channels", range(1, 18))
def test_channels_of_zeros_change_nothing(channels, dtype, feature_groups):
    groups, most = 2, 64  # more channels than a vector has lanes
    options = dict(kernel=(1, 2), offset_groups=groups, feature_group_count=feature_groups)
    case = Case("few", 2, (5, 7), groups * channels, 6, **options)

    def widened(array, axis):
        """The array with channels of zeros at the end of each offset group."""
        shape = (*array.shape[:axis], -1, channels, *array.shape[axis + 1 :])
        widths = [(0, 0)] * len(shape)
        widths[axis + 1] = (0, most - channels)
        wide = jnp.pad(array.reshape(shape), widths)
        return wide.reshape(*array.shape[:axis], -1, *array.shape[axis + 1 :])

    def f(x, kernel, *rest):
        return deform_conv2d(x, kernel, *rest, **case.options, implementation="native")

    def g(x, kernel, *rest):
        return f(widened(x, 3), widened(kernel, 2), *rest)

    arrays, dots = (tuple(map(jnp.asarray, case.arrays(dtype, seed))) for seed in (0, 7))
    few, many = (value_tangent_gradients(h, arrays, dots, case.cotangent(dtype)) for h in (f, g))
    for actual, expected in zip(jax.tree.leaves(few), jax.tree.leaves(many), strict=True):
        assert_close(actual, expected, dtype)


@pytest.mark.parametrize("features", [*range(1, 18), 31, 32, 33, 47])
def test_features_do_not_depend_on_each_other(features):
    case = Case("features", 1, (5, 7), 3, 64, kernel=(1, 2))
    x, kernel, offset, mask, bias = map(jnp.asarray, case.arrays())

    def y_and_gradients(count):
        f = functools.partial(deform_conv2d, **case.options, implementation="native")
        some = lambda kernel, bias: f(x, kernel, offset, mask, bias)
        y, vjp = jax.vjp(some, kernel[..., :count], bias[:count])
        return y, *vjp(case.cotangent()[..., :count])

    for some, all_of_them in zip(y_and_gradients(features), y_and_gradients(64), strict=True):
        assert_close(some, all_of_them[..., :features], "float32")
