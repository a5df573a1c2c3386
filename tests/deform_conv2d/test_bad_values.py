# SPDX-License-Identifier: MIT
"""Bad values in `deform_conv2d` alone; `tests/laws` has the laws of every operator."""

import functools
import math
import mmap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_dcn import deform_conv2d
from tests.deform_conv2d.cases import CASES

CASE = next(case for case in CASES if case.name == "plain")
SAMPLE = (1, 3, 2, 0, 4)  # image, row, column, offset group, tap: a sample that lies inside


def arrays():
    x, kernel, offset, mask, bias = CASE.arrays("float64")
    offset[SAMPLE] = 0.25
    return x, kernel, offset, mask, bias


def test_subnormal_offset_is_almost_none(implementation):
    x, kernel, offset, mask, bias = (a.astype("float32") for a in arrays())
    f = CASE.function(implementation)
    none = offset.copy()
    offset[SAMPLE], none[SAMPLE] = 1e-42, 0
    np.testing.assert_array_equal(f(x, kernel, offset, mask, bias), f(x, kernel, none, mask, bias))


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_pixels_beside_those_read_do_not_matter(bad, implementation):
    # One tap at half a pixel above the image reads the first row only, never the second or the last.
    x = np.full((1, 4, 3, 1), bad)
    x[:, 0] = 2.0
    offset = np.zeros((1, 1, 1, 1, 1, 2))
    offset[..., 0] = -0.5
    one = np.ones((1, 1, 1, 1))
    f = functools.partial(deform_conv2d, strides=4, padding=0, implementation=implementation)
    value, gradients = jax.value_and_grad(lambda *a: f(*a).sum(), (0, 2))(x, one, offset)
    assert value == 1.0
    assert np.isfinite(gradients[0]).all() and gradients[1].ravel().tolist() == [2.0, 0.0]


def test_a_sample_outside_reads_nothing(implementation):
    x = np.full((1, 4, 3, 1), np.nan)
    offset = np.full((1, 4, 3, 1, 1, 2), 50.0)
    f = functools.partial(
        deform_conv2d, kernel=np.ones((1, 1, 1, 1)), implementation=implementation
    )
    gradients = jax.grad(lambda x, offset, mask: f(x, offset=offset, mask=mask).sum(), (0, 1, 2))
    assert not np.any(f(x, offset=offset))
    assert not any(map(np.any, gradients(x, offset, np.ones((1, 4, 3, 1, 1)))))


def test_zero_mask_does_not_hide_a_nan(implementation):
    x, kernel, offset, mask, bias = arrays()
    x[...] = np.nan
    mask[...] = 0
    offset[...] = 0.25
    y = CASE.function(implementation)(x, kernel, offset, mask, bias)
    assert np.isnan(y[:, :-1, 1:-1]).all()  # 0 * nan, as in IEEE arithmetic and in the reference


def test_debug_nans_sees_a_nan_offset():
    x, kernel, offset, mask, bias = arrays()
    with jax.debug_nans(True):
        CASE.function()(x, kernel, offset, mask, bias)
        offset[SAMPLE] = np.nan
        with pytest.raises(FloatingPointError):
            CASE.function()(x, kernel, offset, mask, bias)


def test_training_step_runs_under_every_check(implementation):
    # The suite itself sets 64 bits, strict dtype promotion and no rank promotion.
    x, kernel, offset, mask, bias = (jnp.asarray(a, "float32") for a in arrays())

    @jax.jit
    def step(kernel, offset):
        f = lambda kernel, offset: (
            CASE.function(implementation)(x, kernel, offset, mask, bias) ** 2
        ).mean()
        loss, gradients = jax.value_and_grad(f, (0, 1))(kernel, offset)
        return loss, kernel - 0.1 * gradients[0], offset - 0.1 * gradients[1]

    with jax.debug_nans(True):
        before, kernel, offset = step(kernel, offset)
        after, _, _ = step(kernel, offset)
    assert after < before and kernel.dtype == jnp.float32


def untouched(*shape: int, dtype: str) -> np.ndarray:
    """Zeros whose pages take no memory until they are written, and that JAX reads in place."""
    size = math.prod(shape) * jnp.dtype(dtype).itemsize
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, jnp.dtype(dtype)).reshape(shape)


@pytest.mark.parametrize(
    ("dtype", "images", "height", "width"),
    # The kernels widen 16-bit images one by one.
    [("float32", 1, 46342, 46341), ("bfloat16", 17, 11587, 11586)],
)
def test_more_than_two_to_the_31_elements_are_addressed(dtype, images, height, width):
    x = untouched(images, height, width, 1, dtype=dtype)
    assert x.size > 2**31
    x[-1, -1, -1, 0] = 3
    x[-1, -1, 0, 0] = 5
    positions = np.array([(height - 1, width - 1), (height - 1, 0), (height - 0.5, 0)], np.float32)
    offset = np.broadcast_to(positions.reshape(3, 2), (images, 1, 1, 1, 3, 2))
    # Three taps that read the same pixel, each with an output channel of its own.
    kernel = jnp.eye(3, dtype=dtype).reshape(3, 1, 1, 3)
    offset = offset - np.array([[0, 0], [1, 0], [2, 0]], np.float32)
    f = functools.partial(deform_conv2d, strides=width + 1, padding=0, implementation="native")
    y = f(jax.device_put(x, may_alias=True), kernel, offset)
    assert y[-1].ravel().tolist() == [3.0, 5.0, 2.5]
