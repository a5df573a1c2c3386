# SPDX-License-Identifier: MIT
"""Laws of the values of `deform_roi_pool` and `deform_roi_align` alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_dcn import deform_roi_align, deform_roi_pool
from tests.deform_roi_pool.cases import CASES
from tests.deform_roi_pool.row import plain_jax
from tests.laws import loops
from tests.laws.operator import assert_close

CASE = {case.name: case for case in CASES}


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_half_precision_sums_in_float32(half, implementation):
    case = CASE["cells_parts_and_classes"]
    x, rois, offset, mask = case.arrays("float32")
    x = jnp.asarray(x, half)
    f = case.function(implementation)

    def value_and_gradient(x):
        y, vjp = jax.vjp(lambda x: f(x, rois, offset, mask), x)
        return y, vjp(jnp.ones_like(y))[0]

    exact = value_and_gradient(x.astype("float32"))
    for actual, expected in zip(value_and_gradient(x), exact, strict=True):
        # One rounding, of the result; sums in float32 may differ in the order of their terms.
        error = np.abs(actual.astype("float32") - expected)
        assert np.all(error <= 0.51 * float(jnp.finfo(half).eps) * np.abs(expected) + 1e-5)


def test_bfloat16_positions_are_those_of_float32(implementation):
    # 1 + 1/256 is not a bfloat16: the region would begin elsewhere.
    x = jnp.arange(12.0, dtype="bfloat16").reshape(1, 1, 12, 1)
    roi = np.array([[0, 257, 0, 259, 0]], np.float32)
    y = deform_roi_align(
        x, roi, spatial_scale=1 / 64, pooled_size=1, sampling_ratio=1, implementation=implementation
    )
    expected = 258 / 64 - 0.5
    assert abs(float(y[0, 0, 0, 0]) - expected) <= 2**-8 * expected


def test_zero_offset_and_mask_of_ones_equal_plain_pooling(implementation):
    for name in ("cells_parts_and_classes", "align"):
        case = CASE[name]
        x, rois, offset, mask = case.arrays()
        f = case.function(implementation)
        plain_case = dataclasses.replace(case, displaced=False, part_size=None)
        undisplaced = plain_case.function(implementation)
        plain = undisplaced(x, rois)
        assert_close(f(x, rois, np.zeros_like(offset), np.ones_like(mask)), plain)
        assert_close(undisplaced(x, rois, None, mask), plain * mask[..., None])


def test_each_cell_reads_channels_of_its_own(implementation):
    # R-FCN: as many cells as bins, and every channel holds its own number.
    x = jnp.broadcast_to(jnp.arange(2.0 * 9), (1, 6, 5, 18))
    roi = np.array([[0, 0, 0, 4, 5]])
    y = deform_roi_pool(
        x, roi, spatial_scale=1, pooled_size=3, output_dim=2, group_size=3,
        implementation=implementation,
    )  # fmt: skip
    assert_close(y[0], jnp.moveaxis(jnp.arange(18.0).reshape(2, 3, 3), 0, -1))


# Position of a sample on a line of four pixels -> (pixels and weights of the value, derivative
# along the position), by hand: clamped to the pixels, left out beyond half a pixel, and flat at
# whole pixels, where both of the pixels that are read are the same.
POOL = {
    -0.75: ({}, {}),
    -0.5: ({0: 1.0}, {}),
    -0.25: ({0: 1.0}, {}),
    0.0: ({0: 1.0}, {}),
    1.25: ({1: 0.75, 2: 0.25}, {2: 1.0, 1: -1.0}),
    2.0: ({2: 1.0}, {}),
    3.0: ({3: 1.0}, {}),
    3.5: ({3: 1.0}, {}),
    3.75: ({}, {}),
}
# The same for RoIAlign: left out beyond a pixel, and right-hand at whole pixels.
ALIGN = {
    -1.25: ({}, {}),
    -1.0: ({0: 1.0}, {}),
    -0.25: ({0: 1.0}, {}),
    0.0: ({0: 1.0}, {1: 1.0, 0: -1.0}),
    1.25: ({1: 0.75, 2: 0.25}, {2: 1.0, 1: -1.0}),
    2.0: ({2: 1.0}, {3: 1.0, 2: -1.0}),
    3.0: ({3: 1.0}, {}),
    4.0: ({3: 1.0}, {}),
    4.25: ({}, {}),
}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("aligned", [False, True])
def test_edges_follow_the_rule(aligned, axis, implementation):
    line = np.array([2.0, 3.0, 5.0, 7.0])
    shape = [1, 1, 1, 1]
    shape[1 + axis] = 4
    x, mask = line.reshape(shape), np.ones((1, 1, 1))
    if aligned:  # the region's only sample is its middle, at 0
        roi, start = np.array([[0.0, 0, 0, 1, 1]]), 0.0
        options = dict(pooled_size=1, sampling_ratio=1, gamma=1.0)
        operator = functools.partial(deform_roi_align, **options)
    else:  # and here its corner, at -0.5
        roi, start = np.zeros((1, 5)), -0.5
        options = dict(pooled_size=1, output_dim=1, samples_per_part=1, trans_std=1.0)
        operator = functools.partial(deform_roi_pool, **options)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
    def f(x, offset, mask):
        y = operator(x, roi, offset, mask, spatial_scale=1, implementation=implementation)
        return y.reshape(())

    for position, (pixels, slopes) in (ALIGN if aligned else POOL).items():
        offset = np.zeros((1, 1, 1, 1, 2))
        offset[..., axis] = position - start
        offset[..., 1 - axis] = 0.0 - start  # the middle of the only pixel
        value, (grad_x, grad_offset, grad_mask) = f(x, offset, mask)
        expected = sum(weight * line[i] for i, weight in pixels.items())
        assert value == expected and grad_mask.reshape(()) == expected, position
        assert grad_x.ravel().tolist() == [pixels.get(i, 0.0) for i in range(4)], position
        slope = sum(weight * line[i] for i, weight in slopes.items())
        assert grad_offset[..., axis].reshape(()) == slope, position


@pytest.mark.parametrize("name", ["align", "align_adaptive"])
def test_older_regions_are_not_aligned_and_have_a_pixel(name, implementation):
    case = CASE[name]
    arrays = case.arrays()
    options = dict(case.options, aligned=False)
    y = deform_roi_align(*arrays, **options, implementation=implementation)
    assert_close(y, loops.deform_roi_align(*arrays, **options))


@pytest.mark.parametrize("bins", [7, 14])
def test_bins_of_whole_pixels_have_as_many_samples(bins, implementation):
    x = np.random.default_rng(0).normal(size=(1, 100, 100, 1)).astype(np.float32)
    f = functools.partial(
        deform_roi_align,
        x,
        spatial_scale=1 / 4,
        pooled_size=bins,
        implementation=implementation,
    )
    for pixels in range(1, 100 // bins + 1):
        roi = np.array([[0, 0, 0, 4 * pixels * bins, 4 * pixels * bins]], np.float32)
        expected = f(roi, sampling_ratio=pixels)
        np.testing.assert_allclose(f(roi, sampling_ratio=0), expected, rtol=1e-5, atol=1e-5)


def test_corners_are_rounded_away_from_zero_before_they_are_scaled(implementation):
    x = np.arange(20.0).reshape(1, 1, 20, 1)
    f = functools.partial(
        deform_roi_pool, x, spatial_scale=1, pooled_size=2, output_dim=1,
        implementation=implementation,
    )  # fmt: skip
    for written, rounded in [(2.5, 3), (3.5, 4), (4.49, 4), (-0.5, -1)]:
        y = f(np.array([[0, written, 0, 12, 0]]))
        np.testing.assert_array_equal(y, f(np.array([[0, rounded, 0, 12, 0]])))


def test_reference_of_many_regions_runs_in_blocks(monkeypatch):
    case = CASE["cells_parts_and_classes"]
    arrays = case.arrays()
    loss = jax.value_and_grad(lambda *a: (plain_jax(case)(*a) ** 2).sum(), (0, 2, 3))
    at_once = loss(*arrays)
    monkeypatch.setattr("jax_dcn._src.operator.blockwise._BLOCK_BYTES", 1)
    assert_close(loss(*arrays), at_once)
