# SPDX-License-Identifier: MIT
"""Bad values and arguments in `deform_roi_pool` and `deform_roi_align` alone."""

import contextlib
import functools
import pathlib
import re
import resource
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_dcn import deform_roi_align, deform_roi_pool
from jax_dcn._src.deform_roi_pool import native
from jax_dcn._src.deform_roi_pool.geometry import RoIGeometry
from tests.deform_roi_pool.refusals import ROIS, SMALL, X
from tests.deform_roi_pool.row import CASE, REGION
from tests.laws.operator import assert_close


@functools.cache
def value_and_gradients(case, implementation):
    @jax.jit  # inside, the values of rois are not known
    def f(x, rois, offset, mask):
        g = lambda x, offset, mask: case.function(implementation)(x, rois, offset, mask)
        y, vjp = jax.vjp(g, x, offset, mask)
        return y, *vjp(jnp.ones_like(y))

    return f


@contextlib.contextmanager
def memory_limited(more: int):
    """Allows the process so many bytes more than it has."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


EVERY_RULE = pytest.mark.parametrize("name", ["pool", "align", "align_adaptive"])


@EVERY_RULE
def test_region_without_an_image_pools_to_zero(name, implementation):
    case = CASE[name]
    x, rois, offset, mask = case.arrays()
    f = value_and_gradients(case, implementation)
    rois[REGION, 1:] = 1e6  # far outside
    expected = f(x, rois, offset, mask)
    for index in (-1.0, 2.0, 1e30, -np.inf, np.nan):
        for corner in (5.0, np.nan):
            rois[REGION] = [index, corner, 5, 25, 25]
            y, _, grad_offset, grad_mask = actual = f(x, rois, offset, mask)
            assert not any(np.any(a[REGION]) for a in (y, grad_offset, grad_mask))
            assert_close(actual, expected)


def test_no_images_pool_to_zero(implementation):
    x, *rest = SMALL.arrays()
    y = jax.jit(SMALL.function(implementation))(x[:0], *rest)
    assert y.shape == (3, 2, 2, 4) and not np.any(y)


def test_bin_moved_to_opposite_infinities_is_outside(implementation):
    x, rois, offset, mask = SMALL.arrays()
    offset[...] = [np.inf, -np.inf]
    assert not np.any(SMALL.function(implementation)(x, rois, offset, mask))


@EVERY_RULE
def test_any_region_is_safe(name):
    # Wherever a region lies, the others and the gradient of the images stay finite.
    case = CASE[name]
    x, rois, offset, mask = case.arrays("float32")
    f = value_and_gradients(case, "native")
    bad = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e20, 1e9, 0, -0.0], np.float32)
    others = np.arange(case.regions) != REGION
    for seed in range(50):
        rois[REGION, 1:] = np.random.default_rng(seed).choice(bad, 4)
        y, grad_x, grad_offset, grad_mask = f(x, rois, offset, mask)
        assert all(np.isfinite(a[others]).all() for a in (y, grad_offset, grad_mask))
        assert np.isfinite(grad_x).all()


def test_kernels_refuse_more_pixels_than_float32_counts():
    x, rois = jnp.zeros((1, 1, 2**24 + 1, 1)), jnp.array([[0, 2.0, 0, 5, 1]])
    geometry = RoIGeometry(spatial_scale=1, pooled_size=(1, 1), samples=1, offset_scale=0)
    with pytest.raises(Exception, match=re.escape("at most 2^24 pixels along an axis")):
        native.deform_roi_pool(
            x, rois, jnp.zeros((1, 0, 0, 1, 2)), jnp.zeros((1, 0, 0)), geometry=geometry
        )


def test_pixels_beside_those_read_do_not_matter():
    x = np.full((1, 4, 5, 1), np.nan)
    x[0, 1:3, 1:4] = 2.0
    inner, between = np.array([[0, 2.0, 2, 2, 1]]), np.array([[0, 1.5, 1.5, 3, 2]])
    for implementation in ("native", "xla"):
        options = dict(spatial_scale=1, implementation=implementation)
        y = deform_roi_pool(x, inner, pooled_size=1, output_dim=1, **options)
        assert y.item() == 2.0
    y = deform_roi_align(x, between, spatial_scale=1, pooled_size=1)
    assert y.item() == 2.0


def test_regions_may_be_a_list():
    y = deform_roi_align(X, ROIS, spatial_scale=1.0, pooled_size=2)
    assert_close(deform_roi_align(X, ROIS.tolist(), spatial_scale=1.0, pooled_size=2), y)


def test_options_of_offsets_are_refused_without_offsets():
    options = dict(spatial_scale=1.0, pooled_size=2, output_dim=X.shape[-1])
    for name, value in dict(trans_std=0.1, part_size=2).items():
        with pytest.raises(ValueError, match=f"{name} has no effect without offset: leave it out."):
            deform_roi_pool(X, ROIS, **options, **{name: value})


def test_alignment_checks_its_own_options():
    for options, message in [
        (dict(pooled_size=(2, 3, 4)), "pooled_size must be a positive integer or a pair"),
        (dict(pooled_size=(2, 0)), "pooled_size must be a positive integer"),
        (dict(pooled_size=2, sampling_ratio=-1), "got -1: torchvision's -1 is 0 here"),
        (dict(pooled_size=2, sampling_ratio=-2), "sampling_ratio must be an integer from 0"),
        (dict(pooled_size=2, gamma=np.inf), "gamma must be a finite number"),
        (dict(pooled_size=2, aligned=1), "aligned must be"),
        (dict(pooled_size=2, aligned=False, spatial_scale=0), "spatial_scale must be positive"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            deform_roi_align(X, ROIS, **dict(spatial_scale=1.0) | options)


def test_images_too_long_for_the_kernels_are_xlas():
    x, rois = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((1, 1, 2**24 + 1, 1), (2, 5)))
    pool = functools.partial(deform_roi_align, spatial_scale=0.5, pooled_size=2)
    assert "@jax_dcn" not in jax.jit(pool).lower(x, rois).as_text()
    with pytest.raises(NotImplementedError, match=r"at most 2\*\*24 pixels along an axis"):
        jax.jit(functools.partial(pool, implementation="native")).lower(x, rois)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems limit no memory of a process")
def test_small_regions_of_a_large_image_take_little_memory():
    x = jnp.zeros((1, 4096, 4096, 1), "bfloat16")
    rois = jnp.array([[0, 11, 13, 61, 53], [0, 4000, 4040, 4090, 4090]], "float32")
    pool = functools.partial(deform_roi_align, spatial_scale=1.0, pooled_size=(7, 5))
    compiled = jax.jit(functools.partial(pool, implementation="native")).lower(x, rois).compile()
    # A list of all pixels of the image would need 16 times the memory of the image.
    with memory_limited(x.nbytes):
        assert not jnp.any(compiled(x, rois))
