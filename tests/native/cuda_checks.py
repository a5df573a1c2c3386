# SPDX-License-Identifier: MIT
"""What `cuda_on_host.py` checks: problems for the CUDA kernels, and what `jax_dcn.reference` says."""

import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from cuda_aggregate_checks import (
    AGGREGATE_CASES,
    MAP_LIMITS,
    check_aggregate,
    check_map_limits,
)
from cuda_columns_checks import COLUMNS, WHOLE, check_columns, expect_near, set_chunk_bytes
from cuda_far_checks import FAR, check_far
from cuda_outside import outside
from cuda_roi_checks import (
    ROI_CASES,
    ROI_LIMITS,
    check_roi_limits,
    check_roi_pool,
    operands as roi_operands,
)

from jax_dcn import reference
from jax_dcn._src.deform_conv2d import cost, cuda as deform_conv2d_cuda, fused, native
from jax_dcn._src.deform_roi_pool import native as roi_native
from tests.deform_conv2d.cases import Case
from tests.deform_roi_pool.cases import RoICase

# What an error is measured in: the spacing of numbers at 1, as the tensor cores read them.
SPACING = {"float32": 2.0**-10, "bfloat16": 2.0**-7, "float16": 2.0**-10}

# Channels and features that the fused kernels take, and otherwise odd: pixels and features that are
# no multiple of a tile, more taps than are located at a time.
FUSED = [
    Case("plain", 2, (7, 9), channels=32, features=40, kernel=(3, 2)),
    Case("wide", 3, (5, 13), channels=64, features=264, kernel=(2, 1), modulated=False),
    Case(
        "every_option",
        batch=2,
        image=(13, 10),
        channels=128,
        features=144,
        kernel=(2, 3),
        strides=(2, 1),
        padding=((1, 0), (2, 3)),
        kernel_dilation=(3, 2),
        feature_group_count=2,
        offset_groups=4,
    ),
    Case("many_taps", 1, (6, 8), 64, 24, kernel=(4, 5), padding=(2, 1), boundary="legacy"),
    Case("one_pixel", 1, (1, 1), 32, 8, padding=1),
    Case("empty_batch", 0, (6, 5), 32, 8),
]


FUSED_DTYPES = ("float32", "bfloat16", "float16")


def operands(case: Case, dtype: str, seed: int) -> list[np.ndarray]:
    """Those of the primitive. Some offsets lead far away, or nowhere; some pixels are infinite."""
    x, kernel, offset, mask, bias = case.arrays(seed=seed)
    random = np.random.default_rng(seed)
    x = np.where(random.random(x.shape) < 1 / 4000, np.inf, x)
    odd = random.choice([np.inf, -np.inf, np.nan, 1e30, -3e9], offset.shape)
    offset = np.where(random.random(offset.shape) < 0.01, odd, offset).astype(np.float32)
    mask = np.zeros((*offset.shape[:4], 0), np.float32) if mask is None else mask
    narrow = [a.astype(jnp.dtype(dtype)) for a in (x, kernel, bias)]
    return [narrow[0], narrow[1], offset, mask, narrow[2]]


def widened(arrays: list) -> list[np.ndarray]:
    return [np.asarray(a, np.float64) for a in arrays]


def expect_close(name: str, actual, expected, magnitude, dtype: str) -> None:
    """`magnitude` is the sum of the absolute terms that the result is a sum of.

    Each is a product of two numbers that were rounded by half the spacing at most, and the result
    is rounded once more; what is infinite, or not a number, is where it is expected.
    """
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected)
    finite = np.isfinite(expected)
    bound = 2 * SPACING[dtype] * np.where(finite, magnitude, 0)
    difference = np.where(finite, actual, 0) - np.where(finite, expected, 0)
    wrong = ~(np.abs(difference) <= bound)
    wrong |= ~finite & ~np.isclose(actual, expected, equal_nan=True)
    assert not wrong.any(), f"{name}: {wrong.sum()} of {wrong.size} are wrong"


def check_fused(case: Case, dtype: str, seed: int) -> None:
    """The result, and the gradient of the kernel from one part of the pixels or several."""
    x, kernel, offset, mask, _ = arrays = operands(case, dtype, seed)
    grad_y = case.cotangent(seed=seed).astype(jnp.dtype(dtype))
    kernel_type = jax.ShapeDtypeStruct(kernel.shape, dtype)
    parts = 1 + case.features % 3  # some without a pixel
    scratch = jax.ShapeDtypeStruct((parts, *kernel.shape), "float32")
    forward = functools.partial(native.deform_conv2d, geometry=case.geometry, precision=None)
    (y,), (again,) = (forward(*map(jnp.asarray, arrays)) for _ in "12")
    # The emulator has other multiprocessors each time, by which the width of tiles is chosen.
    assert np.asarray(y).tobytes() == np.asarray(again).tobytes(), f"y of {case} varies"
    call = jax.ffi.ffi_call("jax_dcn_deform_conv2d_grad_kernel", (kernel_type, scratch))
    grad_kernel, _ = call(x, kernel, offset, mask, grad_y, **native.attributes(case.geometry))
    expected = outside(_expected, case)
    wide = widened([*arrays, grad_y])
    absolute = [a if a is wide[2] else abs(a) for a in wide]
    names = "y", "gradient of the kernel"
    results = zip(names, (y, grad_kernel), expected(*wide), expected(*absolute), strict=True)
    for name, actual, value, magnitude in results:
        expect_close(f"{name} of {case}", actual, value, magnitude, dtype)


def _expected(case: Case, x, kernel, offset, mask, bias, grad_y):
    """The result and the gradient of the kernel by the reference."""
    of = lambda k: reference.deform_conv2d(x, k, offset, mask, bias, geometry=case.geometry)
    y, vjp = jax.vjp(of, kernel)
    return y, vjp(grad_y)[0]


# Groups of offsets that span groups of features, whose channels are no multiple of a tile, and the
# reverse; features that are no multiple of a step.
FUSED_SAMPLES = [
    Case("tiles", 2, (5, 7), 192, 48, kernel=(1, 2), padding=(0, 1), feature_group_count=2),
    Case("groups", 3, (6, 5), 64, 40, kernel=(2, 1), modulated=False, offset_groups=2),
]

# Largest error relative to the largest value, which is a sum of terms of both signs.
SAMPLES_TOLERANCE = {"float32": 4e-3, "bfloat16": 3e-2, "float16": 4e-3}


def check_fused_samples(case: Case, dtype: str, seed: int) -> None:
    """The gradients of x, offset and mask, in several chunks; then, at once, without that of x."""
    primals = operands(case, dtype, seed)[:4]
    primals[0] = np.where(np.isfinite(primals[0]), primals[0], primals[0].dtype.type(0))
    grad_y = case.cotangent(seed=seed).astype(jnp.dtype(dtype))
    names = ("x", "offset", "mask") if case.modulated else ("x", "offset")
    # Parts of an image, or some images.
    set_chunk_bytes([25_000, 50_000][(FUSED_SAMPLES.index(case) + seed) % 2])

    @jax.jit
    def actual(primals, grad_y):
        named = dict(zip(("x", "kernel", "offset", "mask"), primals, strict=True))
        of = lambda wrt: fused.FusedBackward(named, wrt, case.geometry, None)
        return of(names)(grad_y), of(names[1:])(grad_y)

    all_grads, others = actual(primals, grad_y)
    expected = outside(_expected_gradients, case, names)(*widened([*primals, grad_y]))
    for name, right in zip(names, expected, strict=True):
        grad, label = np.asarray(all_grads[name]), f"gradient of {name} of {case}"
        expect_near(label, grad, right, SAMPLES_TOLERANCE[dtype])
        # The emulator runs threads in another order each time, and sums are the same.
        assert name == "x" or grad.tobytes() == np.asarray(others[name]).tobytes(), label


def _expected_gradients(case: Case, names: tuple[str, ...], *operands):
    options = dict(wrt=names, geometry=case.geometry, precision=None)
    return reference.deform_conv2d_backward(*operands, **options)


# The paths of the gradient of the kernel and of the gradients of samples.
MIXES = ("kernel=fused,samples=columns", "kernel=columns,samples=fused")


def check_mixed(case: Case, dtype: str, seed: int) -> None:
    """Gradients of which some go through columns are those of their paths, bit for bit."""
    primals = operands(case, dtype, seed)[:4]
    primals[0] = np.where(np.isfinite(primals[0]), primals[0], primals[0].dtype.type(0))
    grad_y = case.cotangent(seed=seed).astype(jnp.dtype(dtype))
    wrt = ("x", "kernel", "offset", "mask") if case.modulated else ("x", "kernel", "offset")
    set_chunk_bytes(WHOLE)

    def gradients(paths: str) -> list[bytes]:
        os.environ[cost.VARIABLE] = paths
        options = dict(geometry=case.geometry, precision=None, wrt=wrt)
        backward = jax.jit(functools.partial(fused.deform_conv2d_backward, **options))
        return [np.asarray(grad).tobytes() for grad in backward(*primals, grad_y)]

    pure = {path: gradients(path) for path in cost.PATHS}
    for mix in MIXES:
        path_of = dict(part.split("=") for part in mix.split(","))
        for name, grad, *of_paths in zip(wrt, gradients(mix), *pure.values(), strict=True):
            expected = dict(zip(pure, of_paths, strict=True))[path_of[cost.part_of(name)]]
            assert grad == expected, f"gradient of {name} of {case} by {mix}"
    del os.environ[cost.VARIABLE]


# Each has one thing that the rule in Python, too, leaves to columns in memory.
NOT_FUSED = [
    Case("channels", 1, (4, 5), channels=48, features=64),
    Case("offset_group_channels", 1, (4, 5), channels=64, features=64, offset_groups=4),
    Case("features", 1, (4, 5), channels=64, features=68),
]


def check_refused(case: Case, dtype: str, seed: int) -> None:
    arrays = [jnp.asarray(array) for array in operands(case, dtype, seed)]
    options = dict(geometry=case.geometry, precision=None)
    assert fused.why_not(*arrays, **options) is not None
    try:
        jax.block_until_ready(native.deform_conv2d(*arrays, **options))
    except jax.errors.JaxRuntimeError as error:
        assert "INVALID_ARGUMENT: jax_dcn: the " in str(error), error
    else:
        raise AssertionError(f"{case} was computed")


# Just within and just beyond a limit of channels and of features. The limits of sizes need arrays of
# 2**31 elements, and XLA drops a call without elements: no case here reaches these limits.
LIMITS = [
    Case("channels", 1, (4, 5), channels=64, features=64),
    Case("half_the_channels", 1, (4, 5), channels=32, features=64, feature_group_count=2),
    Case("fewer_features", 1, (4, 5), channels=32, features=72),
    Case("odd_features", 1, (4, 5), channels=32, features=70),
]


def check_limits(case: Case, dtype: str, seed: int) -> None:
    """The rule in Python and the handler in C++ agree."""
    arrays = [jnp.asarray(array) for array in operands(case, dtype, seed)]
    options = dict(geometry=case.geometry, precision=None)
    refused = None
    try:
        jax.block_until_ready(native.deform_conv2d(*arrays, **options))
    except jax.errors.JaxRuntimeError as error:
        refused = str(error)
    why_not = fused.why_not(*arrays, **options)
    assert (why_not is None) == (refused is None), f"{case}: {why_not}, but {refused}"


def grids_run() -> int:
    """How many grids the emulator has run; `cuda_on_host.py` sets the function."""
    raise NotImplementedError


# Pooling of no region: offset and mask, and their gradients, have no elements.
NO_REGIONS = [RoICase("no_regions", 2, (6, 5), 8, 0, 2, samples=2)]


def check_work(case: RoICase, dtype: str, seed: int) -> None:
    """A call that has nothing to compute launches a kernel all the same."""
    arrays, geometry = roi_operands(case, dtype, seed)
    grad_y = jnp.zeros((0, *case.bins, case.features), dtype)
    before = grids_run()
    grads = [jax.typeof(jnp.asarray(array)) for array in arrays[2:]]
    # With a side effect: XLA leaves out a call whose results have no elements.
    call = jax.ffi.ffi_call("jax_dcn_deform_roi_pool_backward", grads, has_side_effect=True)
    attributes = roi_native.attributes(geometry, ("offset", "mask"))
    backward = jax.jit(lambda *operands: call(*operands, **attributes))
    jax.block_until_ready(backward(*arrays, grad_y))
    assert grids_run() == before + 1, (before, grids_run())


LAUNCHES = [Case("launches", 2, (7, 9), 48, 24)]


def check_launches(case: Case, dtype: str, seed: int) -> None:
    """A chunk of the backward pass launches one kernel for samples, three for lists, one for sums."""
    *operands, _ = case.arrays(seed=seed)
    narrow = [array.astype(jnp.dtype(dtype)) for array in operands[:2]]
    grad_y = case.cotangent(seed=seed).astype(narrow[0].dtype)
    options = dict(geometry=case.geometry, precision=None, wrt=("x", "kernel", "offset", "mask"))
    set_chunk_bytes(WHOLE)
    backward = jax.jit(functools.partial(deform_conv2d_cuda.deform_conv2d_backward, **options))
    before = grids_run()
    jax.block_until_ready(backward(*narrow, *operands[2:], grad_y))
    assert grids_run() == before + 5, grids_run() - before


Check = tuple[Callable, list, tuple[str, ...]]

# What does not depend on the numbers in the arrays, and needs no more than one seed.
RULES: dict[str, Check] = {
    "work": (check_work, NO_REGIONS, ("float32", "bfloat16")),
    "mixed": (check_mixed, FUSED_SAMPLES, ("bfloat16",)),
    "launches": (check_launches, LAUNCHES, ("bfloat16",)),
    "refused": (check_refused, NOT_FUSED, ("bfloat16", "float16")),
    "limits": (check_limits, LIMITS, ("bfloat16", "float16")),
    "map_limits": (check_map_limits, MAP_LIMITS, ("float32", "float64")),
    "roi_limits": (check_roi_limits, ROI_LIMITS, ("float32", "float64")),
    "far": (check_far, FAR, ("float16",)),
}
CHECKS: dict[str, Check] = {
    "columns": (check_columns, COLUMNS, ("float64", "bfloat16", "float32", "float16")),
    "fused": (check_fused, FUSED, FUSED_DTYPES),
    "fused_samples": (check_fused_samples, FUSED_SAMPLES, FUSED_DTYPES),
    "aggregate": (
        check_aggregate,
        AGGREGATE_CASES,
        ("float32", "bfloat16", "float64", "float16"),
    ),
    "roi_pool": (check_roi_pool, ROI_CASES, ("float32", "float64", "bfloat16", "float16")),
}
