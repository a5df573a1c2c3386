# SPDX-License-Identifier: MIT
"""The depthwise convolution of layers is that of `jax.lax`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_dcn._src.operator.convolution import depthwise_convolution, runs_on_xla


def operands(size, dtype):
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=(2, 6, 7, 5)), random.normal(size=(*size, 1, 5))
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


OPTIONS = dict(feature_group_count=5, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def expected(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **OPTIONS)


def results(convolve, x, kernel):
    """The value, a tangent, the gradients and the tangent of the gradients."""
    gradients = jax.grad(lambda *arrays: jnp.sin(convolve(*arrays)).sum(), (0, 1))
    along = (x[::-1], kernel[::-1])
    return jax.jvp(convolve, (x, kernel), along), jax.jvp(gradients, (x, kernel), along)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (2, 5), (4, 3), (9, 8)])
def test_values_and_derivatives_equal_those_of_lax(size):
    x, kernel = operands(size, "float64")
    pairs = zip(
        *(jax.tree.leaves(results(f, x, kernel)) for f in (depthwise_convolution, expected)),
        strict=True,
    )
    for actual, right in pairs:
        np.testing.assert_allclose(actual, right, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sums_in_16_bits_round_once(dtype):
    x, kernel = operands((5, 5), dtype)
    actual = depthwise_convolution(x, kernel)
    exact = expected(x.astype("float64"), kernel.astype("float64"))
    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual, exact.astype("float32").astype(dtype))


def test_gradients_keep_the_images_once():
    x, kernel = operands((5, 5), "float32")
    _, vjp = jax.vjp(depthwise_convolution, x, kernel)
    assert sum(array.size for array in jax.tree.leaves(vjp)) == x.size + kernel.size


def test_programs_for_others_than_xla_have_the_convolution_itself():
    x, kernel = operands((3, 3), "float32")
    convolve = lambda x, kernel: depthwise_convolution(x, kernel, (1, 1), "SAME", **OPTIONS)
    with runs_on_xla(False):
        assert "conv_general_dilated" in str(jax.make_jaxpr(convolve)(x, kernel))
    assert "conv_general_dilated" not in str(jax.make_jaxpr(convolve)(x, kernel))
