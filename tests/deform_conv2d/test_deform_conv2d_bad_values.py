# SPDX-License-Identifier: MIT
"""Values that are not numbers, not finite or not small: they do what `api` says and nothing else."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_dcn import deform_conv2d
from tests.deform_conv2d.cases import CASES

CASE = next(case for case in CASES if case.name == "plain")
SAMPLE = (1, 3, 2, 0, 4)  # image, row, column, offset group, tap: a sample that lies inside
OUTPUT = SAMPLE[:3]


# On CPU, samples outside the image are multiplied, or with many channels left out.
channels = pytest.mark.parametrize("channels", [CASE.channels, 40])


def arrays(channels=CASE.channels):
    case = dataclasses.replace(CASE, channels=channels)
    x, kernel, offset, mask, bias = case.arrays("float64")
    offset[SAMPLE] = 0.25
    return x, kernel, offset, mask, bias


def operator(implementation, boundary="padded"):
    options = CASE.options | dict(boundary=boundary)
    return functools.partial(deform_conv2d, **options, implementation=implementation)


def value_and_gradients(f, *arrays):
    y, vjp = jax.vjp(f, *arrays)
    return y, *vjp(jnp.ones_like(y))


@pytest.mark.parametrize("boundary", ["padded", "legacy"])
@pytest.mark.parametrize("component", [0, 1])
@channels
def test_nan_offset_gives_nan_at_its_output_and_in_its_own_gradients(
    channels, component, boundary, implementation
):
    x, kernel, offset, mask, bias = arrays(channels)
    f = operator(implementation, boundary)
    offset[(*SAMPLE, component)] = np.nan
    y, grad_x, grad_kernel, grad_offset, grad_mask, _ = value_and_gradients(
        f, x, kernel, offset, mask, bias
    )
    outside = offset.copy()
    outside[SAMPLE] = 1e3
    expected = value_and_gradients(f, x, kernel, outside, mask, bias)

    def nan_only(actual, index, at_rest):
        assert np.isnan(actual[index]).all()
        actual, at_rest = np.array(actual), np.array(at_rest)
        actual[index] = at_rest[index] = 0
        np.testing.assert_allclose(actual, at_rest, atol=1e-12)

    nan_only(y, OUTPUT, expected[0])
    nan_only(grad_offset, SAMPLE, expected[3])
    nan_only(grad_mask, SAMPLE, expected[4])
    nan_only(grad_kernel, divmod(SAMPLE[4], CASE.kernel[1]), expected[2])
    np.testing.assert_allclose(grad_x, expected[1], atol=1e-12)


@pytest.mark.parametrize("boundary", ["padded", "legacy"])
@pytest.mark.parametrize("huge", [np.inf, -np.inf, 1e30, -1e30, 2.0**31, 2.0**63, -(2.0**63)])
@channels
def test_huge_offset_is_outside_the_image(channels, huge, boundary, implementation):
    x, kernel, offset, mask, bias = arrays(channels)
    f = operator(implementation, boundary)
    outside = offset.copy()
    offset[(*SAMPLE, 1)], outside[(*SAMPLE, 1)] = huge, 1e3
    actual = value_and_gradients(f, x, kernel, offset, mask, bias)
    for a, expected in zip(
        actual, value_and_gradients(f, x, kernel, outside, mask, bias), strict=True
    ):
        np.testing.assert_array_equal(a, expected)
    assert not np.any(actual[3][SAMPLE])


def test_subnormal_offset_is_almost_none(implementation):
    x, kernel, offset, mask, bias = (a.astype("float32") for a in arrays())
    f = operator(implementation)
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
    y = operator(implementation)(x, kernel, offset, mask, bias)
    assert np.isnan(y[:, :-1, 1:-1]).all()  # 0 * nan, as in IEEE arithmetic and in the reference


def test_debug_nans_sees_a_nan_offset():
    x, kernel, offset, mask, bias = arrays()
    with jax.debug_nans(True):
        operator(None)(x, kernel, offset, mask, bias)
        offset[SAMPLE] = np.nan
        with pytest.raises(FloatingPointError):
            operator(None)(x, kernel, offset, mask, bias)


def test_training_step_runs_under_every_check(implementation):
    # The suite itself sets 64 bits, strict dtype promotion and no rank promotion.
    x, kernel, offset, mask, bias = (jnp.asarray(a, "float32") for a in arrays())

    @jax.jit
    def step(kernel, offset):
        f = lambda kernel, offset: (
            operator(implementation)(x, kernel, offset, mask, bias) ** 2
        ).mean()
        loss, gradients = jax.value_and_grad(f, (0, 1))(kernel, offset)
        return loss, kernel - 0.1 * gradients[0], offset - 0.1 * gradients[1]

    with jax.debug_nans(True):
        before, kernel, offset = step(kernel, offset)
        after, _, _ = step(kernel, offset)
    assert after < before and kernel.dtype == jnp.float32


def test_more_than_two_to_the_31_elements_are_addressed():
    height, width = 46342, 46341
    x = np.zeros((1, height, width, 1), jnp.bfloat16)
    assert x.size > 2**31
    x[0, -1, -1, 0] = 3
    x[0, -1, 0, 0] = 5
    x, one = jnp.asarray(x), jnp.ones((1, 1, 1, 1), jnp.bfloat16)
    positions = np.array([(height - 1, width - 1), (height - 1, 0), (height - 0.5, 0)], np.float32)
    f = functools.partial(deform_conv2d, strides=width + 1, padding=0, implementation="native")
    values = [float(f(x, one, p.reshape(1, 1, 1, 1, 1, 2)).reshape(())) for p in positions]
    assert values == [3.0, 5.0, 2.5]
