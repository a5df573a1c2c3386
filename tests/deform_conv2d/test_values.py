# SPDX-License-Identifier: MIT
"""Laws of the values of `deform_conv2d` alone; `tests/laws` has those of every operator."""

import functools

import jax
import numpy as np
import pytest

from jax_dcn import deform_conv2d
from jax_dcn._src.operator import blockwise as _blockwise
from tests.deform_conv2d.cases import ARGUMENTS, CASES, Case
from tests.deform_conv2d.row import plain_jax
from tests.laws.operator import assert_close

CASE = {case.name: case for case in CASES}


@pytest.mark.parametrize("name", ["plain", "every_option", "wide", "depthwise", "empty_batch"])
def test_zero_offset_equals_ordinary_convolution(name, implementation):
    case = CASE[name]
    x, kernel, offset, mask, bias = case.arrays("float64")
    expected = case.ordinary_convolution(x, kernel)
    options = dict(**case.options, implementation=implementation)
    for ones in (None, np.ones_like(mask)):
        y = deform_conv2d(x, kernel, np.zeros_like(offset), ones, **options)
        assert_close(y, expected, "float64")
    y = deform_conv2d(x, kernel, np.zeros_like(offset), None, bias, **options)
    assert_close(y, expected + bias[None, None, None, :], "float64")


@pytest.mark.parametrize("shift", [(1, 0), (-2, 3), (0, -1)])
def test_whole_pixel_offset_equals_shifted_image(shift, implementation):
    case = CASE["plain"]
    x, kernel, offset, mask, bias = case.arrays("float64")
    moved = np.zeros_like(x)
    height, width = case.image
    for y, column in np.ndindex(height, width):
        source = y + shift[0], column + shift[1]
        if 0 <= source[0] < height and 0 <= source[1] < width:
            moved[:, y, column] = x[:, source[0], source[1]]
    options = dict(strides=1, padding="VALID", implementation=implementation)
    taps = (2, height - 2, width - 1)
    zeros = np.zeros_like(offset)[:, : taps[1], : taps[2]]
    mask = mask[:, : taps[1], : taps[2]]
    displaced = deform_conv2d(x, kernel, zeros + np.asarray(shift, float), mask, bias, **options)
    assert_close(displaced, deform_conv2d(moved, kernel, zeros, mask, bias, **options), "float64")


HEIGHT = 4
# Position -> (pixels and weights of the value, derivative along the position); from `api.md`'s rule,
# that is from the zero-extended image, by hand.
PADDED = {
    -1.5: ({}, {}),
    -1.0: ({}, {}),
    -0.25: ({0: 0.75}, {0: 1.0}),
    0.0: ({0: 1.0}, {1: 1.0, 0: -1.0}),
    1.25: ({1: 0.75, 2: 0.25}, {2: 1.0, 1: -1.0}),
    HEIGHT - 1.0: ({3: 1.0}, {3: -1.0}),
    HEIGHT - 0.25: ({3: 0.25}, {3: -1.0}),
    float(HEIGHT): ({}, {}),
    HEIGHT + 0.5: ({}, {}),
}
LEGACY = PADDED | {-0.25: ({}, {}), 3.0: ({3: 1.0}, {}), 3.75: ({3: 1.0}, {})}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("boundary", ["padded", "legacy"])
@pytest.mark.parametrize("position", PADDED)
def test_edges_follow_the_rule(position, boundary, axis, implementation):
    pixels, slopes = (PADDED if boundary == "padded" else LEGACY)[position]
    line = np.array([2.0, 3.0, 5.0, 7.0])
    shape = [1, 1, 1, 1]
    shape[1 + axis] = HEIGHT
    x, one = line.reshape(shape), np.ones((1, 1, 1, 1))
    offset = np.zeros((1, 1, 1, 1, 1, 2))
    offset[..., axis] = position

    def f(x, offset, mask):
        # The stride leaves one output position.
        y = deform_conv2d(
            x,
            one,
            offset,
            mask,
            strides=HEIGHT,
            padding=0,
            boundary=boundary,
            implementation=implementation,
        )
        return y.reshape(())

    mask = np.ones((1, 1, 1, 1, 1))
    value, (grad_x, grad_offset, grad_mask) = jax.value_and_grad(f, (0, 1, 2))(x, offset, mask)
    expected = sum(weight * line[i] for i, weight in pixels.items())
    assert value == expected and grad_mask.reshape(()) == expected
    assert grad_x.ravel().tolist() == [pixels.get(i, 0.0) for i in range(HEIGHT)]
    slope = sum(weight * line[i] for i, weight in slopes.items())
    assert grad_offset[..., axis].reshape(()) == slope


def test_leading_axes_are_batch_axes(implementation):
    case = CASE["every_option"]
    x, kernel, offset, mask, bias = case.arrays("float64")
    f = functools.partial(deform_conv2d, **case.options, implementation=implementation)
    y = f(x, kernel, offset, mask, bias)
    assert_close(f(x[0], kernel, offset[0], mask[0], bias), y[0], "float64")
    nested = lambda a: a[None, :, None]
    y_nested = f(nested(x), kernel, nested(offset), nested(mask), bias)
    assert_close(y_nested, nested(y), "float64")


def test_mask_of_ones_changes_nothing(implementation):
    case = CASE["plain"]
    x, kernel, offset, mask, bias = case.arrays("float64")
    f = functools.partial(deform_conv2d, **case.options, implementation=implementation)
    assert_close(
        f(x, kernel, offset, np.ones_like(mask), bias), f(x, kernel, offset, None, bias), "float64"
    )


def test_reference_in_blocks_equals_reference_at_once(monkeypatch):
    case = CASE["every_option"]
    arrays = case.arrays("float64")
    f = plain_jax(case)
    loss = jax.value_and_grad(lambda *a: (f(*a) ** 2).sum(), range(5))
    at_once = jax.jit(loss)(*arrays)
    for block_bytes in (1, 2**13):  # a row, and a few images, at a time
        monkeypatch.setattr(_blockwise, "_BLOCK_BYTES", block_bytes)
        blocks = jax.jit(lambda *a: loss(*a))(*arrays)  # a new function is traced anew
        assert_close(blocks, at_once)


def test_reference_memory_does_not_grow_with_the_batch():
    case = Case("large_batch", 4096, (16, 16), 32, 16)
    shapes = (
        jax.ShapeDtypeStruct(shape, "float32")
        for shape in (
            (case.batch, *case.image, case.channels),
            (*case.kernel, case.channels, case.features),
            (case.batch, *case.output, 1, 9, 2),
            (case.batch, *case.output, 1, 9),
            (case.features,),
        )
    )
    loss = jax.jit(jax.grad(lambda *a: (plain_jax(case)(*a) ** 2).sum(), range(5)))
    memory = loss.lower(*shapes).compile().memory_analysis()
    columns = case.batch * 16 * 16 * 9 * case.channels * 4
    assert memory.temp_size_in_bytes < columns / 2  # of this, three quarters are copies of operands


def test_gradients_of_images_larger_than_a_phase_match_the_reference():
    """Such images take several phases on CPU, and far samples more memory than parts have at once."""
    case = Case("phases", 2, (140, 110), 64, 24)
    grads = {
        implementation: jax.vjp(case.function(implementation), *case.arrays(spread=60))[1](
            case.cotangent()
        )
        for implementation in ("native", "xla")
    }
    for name, actual, expected in zip(ARGUMENTS, grads["native"], grads["xla"], strict=True):
        scale = np.max(np.abs(expected))
        np.testing.assert_allclose(actual / scale, expected / scale, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("groups", [1, 6])
def test_gradient_of_the_kernel_sums_many_pixels_exactly_enough(groups):
    """Terms of one sign: added one by one in float32, they would lose 0.002 of the sum."""
    size, channels = 448, 6
    x, grad_y = (np.full((1, size, size, channels), value, "float32") for value in (1, 0.1))
    offset = np.zeros((1, size, size, 1, 1, 2), "float32")
    kernel = np.ones((1, 1, channels // groups, channels), "float32")
    options = dict(feature_group_count=groups, implementation="native")
    f = jax.jit(lambda kernel: deform_conv2d(x, kernel, offset, **options))
    (gradient,) = jax.vjp(f, kernel)[1](grad_y)
    np.testing.assert_allclose(gradient, size**2 * float(grad_y[0, 0, 0, 0]), rtol=1e-5)
