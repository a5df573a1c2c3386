# SPDX-License-Identifier: MIT
"""`deform_roi_pool` under JAX's transformations, and with values and arguments that are wrong."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_dcn import deform_roi_align, deform_roi_pool
from tests.deform_roi_pool.cases import ARGUMENTS, RoICase
from tests.deform_roi_pool.test_deform_roi_pool import (
    CASE,
    assert_close,
    differentiable,
    function_of,
)

SMALL = RoICase("small", 2, (5, 6), 4, 3, 2, samples=2, group_size=2, part_size=1, classes=2)
ADAPTIVE = RoICase("adaptive", 2, (4, 5), 2, 3, (1, 2), samples=0, aligned=True)


def loss(case: RoICase = SMALL, implementation: str | None = None):
    weights = case.cotangent()
    return lambda *a: jnp.vdot(jnp.sin(function_of(case, implementation)(*a)), weights)


def ours(f, *arrays) -> list[str]:
    names = (e.primitive.name for e in jax.make_jaxpr(f)(*arrays).jaxpr.eqns)
    return [name for name in names if name.startswith("deform_roi_pool")]


def test_gradient_is_one_forward_and_one_fused_backward():
    arrays = differentiable(SMALL, SMALL.arrays())
    for argnums in ((0,), (1, 2), (0, 1, 2)):
        grad = jax.grad(loss(), argnums)
        assert ours(grad, *arrays) == ["deform_roi_pool", "deform_roi_pool_backward"]
        program = jax.make_jaxpr(grad)(*arrays)
        (backward,) = (e for e in program.eqns if e.primitive.name == "deform_roi_pool_backward")
        assert len(backward.outvars) == len(argnums)


def test_gradient_of_regions_is_zero():
    x, rois, offset, mask = SMALL.arrays()
    grad = jax.grad(lambda rois: SMALL.function()(x, rois, offset, mask).sum())(rois)
    assert grad.shape == rois.shape and not np.any(grad)


@pytest.mark.parametrize("case", [SMALL, ADAPTIVE], ids=str)
def test_second_derivatives_are_those_of_the_gradient(case):
    arrays, dots = (differentiable(case, case.arrays(seed=seed)) for seed in (0, 3))
    gradient = jax.grad(loss(case), (0, 1, 2))

    @jax.jit
    def products(*arrays):
        forward = jax.jvp(gradient, arrays, dots)[1]
        reverse = jax.grad(lambda *a: sum(map(jnp.vdot, gradient(*a), dots)), (0, 1, 2))(*arrays)
        mixed = jax.grad(lambda *a: jax.jvp(loss(case), a, dots)[1], (0, 1, 2))(*arrays)
        return forward, reverse, mixed

    forward, reverse, mixed = products(*arrays)
    assert_close(reverse, forward)
    assert_close(mixed, forward)
    step = 1e-6
    ahead, behind = (
        jax.jit(gradient)(*(a + sign * step * d for a, d in zip(arrays, dots, strict=True)))
        for sign in (1, -1)
    )
    for a, b, derivative in zip(ahead, behind, forward, strict=True):
        np.testing.assert_allclose((a - b) / (2 * step), derivative, atol=1e-7)


def stacked() -> list[np.ndarray]:
    return [np.stack(a) for a in zip(*(SMALL.arrays(seed=s) for s in (0, 1, 2)), strict=True)]


@pytest.mark.parametrize("mapped", ["x", "rois", "offset mask", "x rois offset mask"])
def test_vmap_equals_loop(mapped):
    in_axes = tuple(0 if name in mapped.split() else None for name in ARGUMENTS)
    single, batches = SMALL.arrays(), stacked()
    arrays = [b if a == 0 else s for b, s, a in zip(batches, single, in_axes, strict=True)]
    dots = SMALL.arrays(seed=9)

    def everything(x, rois, offset, mask):
        f = lambda x, offset, mask: SMALL.function()(x, rois, offset, mask)
        y, vjp = jax.vjp(f, x, offset, mask)
        dot = dots[0], dots[2], dots[3]
        return y, jax.jvp(f, (x, offset, mask), dot)[1], vjp(jnp.cos(y))

    each = jax.jit(everything)
    looped = [
        each(*(a[i] if axis == 0 else a for a, axis in zip(arrays, in_axes, strict=True)))
        for i in range(3)
    ]
    together = jax.jit(jax.vmap(everything, in_axes))(*arrays)
    assert_close(together, jax.tree.map(lambda *a: jnp.stack(a), *looped))


def test_vmap_makes_no_loop_and_takes_any_axis():
    assert ours(jax.vmap(SMALL.function()), *stacked()) == ["deform_roi_pool"]
    axes = (2, 1, -1, 3)
    moved = [np.moveaxis(a, 0, axis) for a, axis in zip(stacked(), axes, strict=True)]
    assert_close(jax.vmap(SMALL.function(), axes)(*moved), jax.vmap(SMALL.function())(*stacked()))


def test_checkpoint_and_scan_change_nothing():
    arrays = differentiable(SMALL, SMALL.arrays())
    expected = jax.grad(loss(), (0, 1, 2))(*arrays)
    assert_close(jax.grad(jax.checkpoint(loss()), (0, 1, 2))(*arrays), expected)
    policy = jax.checkpoint_policies.save_only_these_names("deform_roi_pool")
    saved = jax.checkpoint(loss(), policy=policy)
    assert_close(jax.grad(saved, (0, 1, 2))(*arrays), expected)

    def scanned(*arrays):
        pairs = jax.tree.map(lambda a: jnp.stack([a, a]), arrays)
        return jax.lax.scan(lambda total, a: (total + loss()(*a), None), 0.0, pairs)[0]

    doubled = jax.tree.map(lambda g: 2 * g, expected)
    assert_close(jax.grad(scanned, (0, 1, 2))(*arrays), doubled)


# ------------------------------------------------------------------------------ values at the edge


@functools.cache
def value_and_gradients(case, implementation):
    @jax.jit  # inside, the values of rois are not known
    def f(x, rois, offset, mask):
        g = lambda x, offset, mask: case.function(implementation)(x, rois, offset, mask)
        y, vjp = jax.vjp(g, x, offset, mask)
        return y, *vjp(jnp.ones_like(y))

    return f


REGION = 2
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
    f = jax.jit(lambda x, rois: SMALL.function(implementation)(x, rois))
    x, rois, _, _ = SMALL.arrays()
    y = f(x[:0], rois)
    assert y.shape == (3, 2, 2, 4) and not np.any(y)


@EVERY_RULE
def test_bad_offset_stays_in_its_bin(name, implementation):
    case, bin = CASE[name], (REGION, 1, 1)
    x, rois, offset, mask = case.arrays()
    f = value_and_gradients(case, implementation)
    rois[REGION, 1:] = [5, 5, 25, 25]  # inside
    offset[(*bin, 0, 1)] = 1e4
    expected = f(x, rois, offset, mask)
    for huge in (np.inf, -np.inf, 1e30, -(2.0**63)):
        offset[(*bin, 0, 1)] = huge
        assert_close(f(x, rois, offset, mask), expected)
    offset[(*bin, 0, 1)] = np.nan
    y, grad_x, grad_offset, grad_mask = f(x, rois, offset, mask)
    assert np.isnan(y[bin]).all() and np.isnan(grad_mask[bin])
    assert np.isnan(grad_offset[(*bin, 0, 1)])
    at_rest = (a.at[bin].set(0) for a in (y, grad_offset, grad_mask))
    order = (1, 0, 2, 3)
    assert_close((grad_x, *at_rest), tuple(expected[i] for i in order))


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


# --------------------------------------------------------------------------------- wrong arguments

X, ROIS, OFFSET, MASK = SMALL.arrays("float32")
GOOD = dict(x=X, rois=ROIS, offset=OFFSET, mask=MASK, **SMALL.options)
WRONG_VALUES = {
    "x": (X[0], "x must be [N, H, W, C] with pixels and channels, got shape (5, 6, 16)"),
    "x channels": (X[..., 1:], "x must have output_dim * group_size**2 = 16 channels, got 15"),
    "x dtype": (X.astype(int), "x must be one of"),
    "rois": (ROIS[:, 1:], "rois must be [R, 5], (batch index, x1, y1, x2, y2), got shape (3, 4)"),
    "rois index": (ROIS + np.eye(5, dtype="float32")[:1] * 2, "rois has the batch index"),
    "rois nan": (ROIS * np.nan, "rois has the batch index nan in row 0, but x has 2 images"),
    "offset": (OFFSET[1:], "offset does not fit rois: expected (3, 1, 1, classes, 2), got"),
    "offset classes": (np.repeat(OFFSET, 3, 3), "offset has 6 classes, which must divide the 4"),
    "offset dtype": (OFFSET.astype(int), "offset must be one of"),
    "mask": (MASK[:, 1:], "mask does not fit rois: expected (3, 2, 2), got (3, 1, 2)"),
    "mask dtype": (MASK > 0, "mask must be one of"),
    "spatial_scale": (np.nan, "spatial_scale must be a finite number, got nan"),
    "pooled_size": (0, "pooled_size must be an integer from 1 to 4096, got 0"),
    "output_dim": (1.5, "output_dim must be an integer"),
    "group_size": (-1, "group_size must be an integer"),
    "part_size": (True, "part_size must be an integer"),
    "samples_per_part": (0, "samples_per_part must be an integer from 1"),
    "trans_std": ("0.1", "trans_std must be a finite number"),
    "implementation": ("torch", "implementation must be None, one of"),
}


@pytest.mark.parametrize("argument", WRONG_VALUES)
def test_wrong_argument_is_named(argument):
    value, message = WRONG_VALUES[argument]
    with pytest.raises(ValueError, match=re.escape(message)):
        deform_roi_pool(**(GOOD | {argument.split()[0]: value}))


def test_alignment_checks_its_own_options():
    for options, message in [
        (dict(pooled_size=(2, 3, 4)), "pooled_size must be a number or a pair"),
        (dict(pooled_size=(2, 0)), "pooled_size must be an integer from 1"),
        (dict(pooled_size=2, sampling_ratio=-1), "sampling_ratio must be an integer from 0"),
        (dict(pooled_size=2, gamma=np.inf), "gamma must be a finite number"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            deform_roi_align(X, ROIS, spatial_scale=1.0, **options)


ATTRIBUTES = dict(
    spatial_scale=np.float64(0.23),
    pooled_size=np.array([2, 2]),
    samples=np.int64(2),
    offset_scale=np.float64(0.13),
    group_size=np.int64(2),
    aligned=False,
)
Y = SMALL.cotangent("float32")
REFUSED_BY_THE_KERNEL = {
    "rank": ("forward", (X[0], ROIS, OFFSET, MASK), (Y,), {}, "x must have 4 axes"),
    "rois": ("forward", (X, ROIS[:, 1:], OFFSET, MASK), (Y,), {}, "rois: expected"),
    "offset": ("forward", (X, ROIS, OFFSET[1:], MASK), (Y,), {}, "offset: expected"),
    "classes": ("forward", (X, ROIS, OFFSET[:, :, :, :0], MASK), (Y,), {}, "classes of offset"),
    "mask": ("forward", (X, ROIS, OFFSET, MASK[:, :, 1:]), (Y,), {}, "mask: expected"),
    "result": ("forward", (X, ROIS, OFFSET, MASK), (Y[1:],), {}, "y: expected"),
    "dtype": ("forward", (X.astype("int32"), ROIS, OFFSET, MASK), (Y,), {}, "dtype"),
    "operands": ("forward", (X, ROIS), (Y,), {}, "expected at least 4 operands"),
    "cells": (
        "forward",
        (X, ROIS, OFFSET, MASK),
        (Y,),
        dict(group_size=np.int64(3)),
        "must divide",
    ),
    "bins": (
        "forward",
        (X, ROIS, OFFSET, MASK),
        (Y,),
        dict(pooled_size=np.array([0, 2])),
        "pooled",
    ),
    "samples": ("forward", (X, ROIS, OFFSET, MASK), (Y,), dict(samples=np.int64(0)), "samples"),
    "many": ("forward", (X, ROIS, OFFSET, MASK), (Y,), dict(samples=np.int64(9999)), "at most"),
    "scale": ("forward", (X, ROIS, OFFSET, MASK), (Y,), dict(spatial_scale=np.inf), "finite"),
    "rois gradient": (
        "backward",
        (X, ROIS, OFFSET, MASK, Y),
        (ROIS,),
        dict(wrt=np.array([1])),
        "wrt must be",
    ),
    "gradient": (
        "backward",
        (X, ROIS, OFFSET, MASK, Y),
        (Y,),
        dict(wrt=np.array([0])),
        "x: expected",
    ),
    "tangent": ("jvp", (X, ROIS, OFFSET, MASK, Y), (Y,), dict(wrt=np.array([0])), "x: expected"),
}


@pytest.mark.parametrize("name", REFUSED_BY_THE_KERNEL)
def test_native_call_refuses_what_does_not_fit(name):
    target, operands, results, attributes, message = REFUSED_BY_THE_KERNEL[name]
    shapes = [jax.ShapeDtypeStruct(r.shape, r.dtype) for r in results]
    call = jax.ffi.ffi_call(f"jax_dcn_deform_roi_pool_{target}", shapes)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(call(*operands, **(ATTRIBUTES | attributes)))
