# SPDX-License-Identifier: MIT
"""What `deform_roi_pool` and `deform_roi_align` compute: values, derivatives, edges."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from jax_dcn import deform_roi_align, deform_roi_pool, reference
from jax_dcn._src.deform_roi_pool.geometry import RoIGeometry
from tests.deform_roi_pool.cases import ARGUMENTS, CASES, RoICase
from tests.laws import loops

# Largest difference that rounding explains, relative to the largest value: the sums have at most
# a few hundred terms.
TOLERANCE = {"float64": 1e-12, "float32": 5e-6}
CASE = {case.name: case for case in CASES}


def assert_close(actual, expected, dtype: str = "float64") -> None:
    leaves = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for a, e in leaves:
        assert a.shape == e.shape and a.dtype == e.dtype
        scale = max(1e-30, np.max(np.abs(e), initial=0))
        error = np.max(np.abs(np.asarray(a) - np.asarray(e)), initial=0) / scale
        assert error <= TOLERANCE[dtype]


def differentiable(case: RoICase, arrays) -> tuple:
    """The arrays that there are derivatives for, of those that are there."""
    return tuple(a for n, a in zip(ARGUMENTS, arrays, strict=True) if n != "rois" and a is not None)


def function_of(case: RoICase, implementation: str | None, dtype: str = "float64"):
    """The operator as a function of these arrays."""
    names = [n for n, a in zip(ARGUMENTS, case.arrays(), strict=True) if a is not None]
    names.remove("rois")
    rois = case.arrays(dtype)[1]
    return lambda *a: case.function(implementation)(rois=rois, **dict(zip(names, a, strict=True)))


def reference_of(case: RoICase, dtype: str):
    """Plain `jax.numpy`, differentiated by JAX: none of the primitives' rules take part."""
    samples, scale = (
        ("sampling_ratio", "gamma") if case.aligned else ("samples_per_part", "trans_std")
    )
    geometry = RoIGeometry(
        case.spatial_scale,
        case.bins,
        case.options[samples],
        case.options[scale],
        case.group_size,
        case.aligned,
    )
    cells = case.group_size

    def f(x, *rest):
        rest = list(rest)
        offset = rest.pop(0) if case.displaced else jnp.zeros((case.regions, 0, 0, 1, 2), dtype)
        mask = rest.pop(0) if case.modulated else jnp.zeros((case.regions, 0, 0), dtype)
        grouped = jnp.moveaxis(x.reshape(*x.shape[:3], -1, cells, cells), 3, -1).reshape(x.shape)
        rois = jnp.asarray(case.arrays(dtype)[1])
        return reference.deform_roi_pool(grouped, rois, offset, mask, geometry=geometry)

    return f


@functools.cache
def value_tangent_gradients(case: RoICase, implementation: str, dtype: str):
    f = reference_of(case, dtype)
    if implementation != "reference":
        f = function_of(case, implementation, dtype)

    @jax.jit
    def everything(arrays, dots, grad_y):
        y, vjp = jax.vjp(f, *arrays)
        return y, jax.jvp(f, arrays, dots)[1], vjp(grad_y)

    arrays, dots = (differentiable(case, case.arrays(dtype, seed)) for seed in (0, 7))
    return everything(arrays, dots, case.cotangent(dtype))


# The XLA implementation runs the reference; what its rules add is the same for every case.
RUNS = [(case, "native", "float64") for case in CASES]
RUNS += [(CASE["cells_parts_and_classes"], "xla", "float64")]
FLOAT32_RUNS = [(CASE[name], "native", "float32") for name in ("version_1", "align_adaptive")]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_is_that_of_plain_loops(case, implementation):
    x, rois, offset, mask = case.arrays()
    loop = loops.deform_roi_align if case.aligned else loops.deform_roi_pool
    expected = loop(x, rois, offset, mask, **case.options)
    assert_close(case.function(implementation)(x, rois, offset, mask), expected)


@pytest.mark.parametrize(("case", "implementation", "dtype"), RUNS + FLOAT32_RUNS, ids=str)
def test_value_tangent_and_gradients_match_reference(case, implementation, dtype):
    expected = value_tangent_gradients(case, "reference", dtype)
    assert_close(value_tangent_gradients(case, implementation, dtype), expected, dtype)


@pytest.mark.parametrize(("case", "implementation", "dtype"), RUNS, ids=str)
def test_transpose_is_the_adjoint(case, implementation, dtype):
    _, y_dot, grads = value_tangent_gradients(case, implementation, dtype)
    dots, grad_y = differentiable(case, case.arrays(dtype, 7)), case.cotangent(dtype)
    backward = sum(jnp.vdot(dot, grad) for dot, grad in zip(dots, grads, strict=True))
    size = max(1.0, float(jnp.linalg.norm(y_dot.ravel()) * jnp.linalg.norm(grad_y.ravel())))
    assert abs(jnp.vdot(y_dot, grad_y) - backward) <= 1e-12 * size


@pytest.mark.parametrize("name", ["cells_parts_and_classes", "align_adaptive"])
def test_gradients_match_finite_differences(name):
    case = CASE[name]
    arrays = differentiable(case, case.arrays())
    f = function_of(case, "native")
    jax.test_util.check_grads(f, arrays, order=1, modes=("fwd", "rev"), rtol=1e-6, atol=1e-6)


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
        plain = f(x, rois)
        assert_close(f(x, rois, np.zeros_like(offset), np.ones_like(mask)), plain)
        assert_close(f(x, rois, None, mask), plain * mask[..., None])


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
    arrays = differentiable(case, case.arrays())
    loss = jax.value_and_grad(lambda *a: (reference_of(case, "float64")(*a) ** 2).sum(), (0, 1, 2))
    at_once = loss(*arrays)
    monkeypatch.setattr("jax_dcn._src.operator.blockwise._BLOCK_BYTES", 1)
    assert_close(loss(*arrays), at_once)


BITS = """
import hashlib, sys
import jax
sys.path.insert(0, ".")
from tests.deform_roi_pool.cases import CASES, RoICase

digest = hashlib.sha256()
for case in [*CASES, RoICase("busy", 2, (13, 9), 70, 90, 5)]:
    arrays = case.arrays("float32")
    f = case.function("native")
    active = [i for i, a in enumerate(arrays) if a is not None and i != 1]
    g = lambda *a: f(*(a[active.index(i)] if i in active else arrays[i] for i in range(4)))
    values = [arrays[i] for i in active]
    y, vjp = jax.vjp(g, *values)
    dots = [case.arrays("float32", seed=5)[i] for i in active]
    tangent = jax.jvp(g, values, dots)[1]
    for leaf in jax.tree.leaves((y, tangent, vjp(y))):
        digest.update(leaf.tobytes())
print(digest.hexdigest())
"""


def test_bits_depend_neither_on_the_run_nor_on_the_number_of_threads():
    def bits(threads: int) -> str:
        command = [sys.executable, "-c", BITS]
        environment = os.environ | {"NPROC": str(threads)}  # the size of XLA's thread pool
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert bits(1) == bits(3) == bits(3)
