# SPDX-License-Identifier: MIT
"""What `cuda_on_host.py` checks of the kernels that sample columns, and of the products around them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn import reference
from jax_dcn._src.deform_conv2d import columns as _columns, cuda as deform_conv2d_cuda
from jax_dcn._src.deform_conv2d.samples import sampling_positions
from tests.deform_conv2d.cases import Case

# Largest error relative to the largest value. Sums are in float32 or wider, but 16-bit columns and
# their gradients are rounded before they are multiplied.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 3e-2, "float16": 4e-3}

# Channels that are read in vectors, and such that are not; a bin of all samples, longer than a
# warp sorts, and one whose ids do not fit into one bitmap.
COLUMNS = [
    Case("vectors", 3, (7, 9), 48, 24, kernel=(3, 2), feature_group_count=2, offset_groups=3),
    Case("version_1", 2, (5, 13), 5, 4, kernel=(2, 1), modulated=False, strides=(2, 1)),
    Case("many_lanes", 1, (6, 5), 280, 8, kernel=(1, 2), kernel_dilation=(1, 3), padding=2),
    Case("legacy", 2, (8, 11), 6, 5, kernel=(3, 1), offset_groups=2, boundary="legacy"),
    Case("one_target", 2, (12, 11), 8, 3, offset_groups=2),
    Case("one_target_of_many", 1, (131, 130), 1, 1, kernel=(1, 1), padding=0),
    Case("empty_batch", 0, (6, 5), 4, 3),
]
WRT = ("x", "kernel", "offset", "mask", "bias")


def operands(case: Case, seed: int) -> list[np.ndarray]:
    """Those of the primitive."""
    x, kernel, offset, mask, bias = case.arrays("float64", seed)
    mask = np.zeros((*offset.shape[:4], 0)) if mask is None else mask
    return [x, kernel, offset, mask, bias]


def pointed(case: Case, offset: np.ndarray) -> np.ndarray:
    """Offsets with which all samples are taken at one place."""
    if "one_target" not in case.name:
        return offset
    grid = sampling_positions(jnp.zeros(offset.shape), case.kernel, case.geometry)
    return np.broadcast_to(np.array([1.25, 2.5]) - grid, offset.shape)


def check_columns(case: Case, dtype: str, seed: int) -> None:
    """Value, tangent and gradients, in one chunk or in several."""
    wide = "float64" if dtype == "float64" else "float32"
    arrays, dots = operands(case, seed), operands(case, seed + 1)
    arrays[2] = pointed(case, arrays[2])
    random = np.random.default_rng(seed)
    odd = random.choice([np.inf, -np.inf, np.nan, 1e30, -3e9], arrays[2].shape)
    arrays[2] = np.where(random.random(odd.shape) < 0.003, odd, arrays[2])
    types = (dtype, dtype, wide, wide, dtype)
    cast = lambda arrays: [jnp.asarray(a).astype(t) for a, t in zip(arrays, types, strict=True)]
    grad_y = jnp.asarray(case.cotangent(seed=seed)).astype(dtype)
    options = dict(geometry=case.geometry, precision=jax.lax.Precision.HIGHEST)
    # By case and seed: parts of an image, in which a bin may still be long, an image, or all.
    _columns.CHUNK_BYTES = [28_000, 60_000, 40 * 10**6][(COLUMNS.index(case) + seed) % 3]

    def compute(functions, arrays, dots, grad_y):
        value, jvp, backward = functions
        y_dot = jvp(*arrays[:4], *dots, wrt=WRT, **options)
        grads = backward(*arrays[:4], grad_y, wrt=WRT, **options)
        some = backward(*arrays[:4], grad_y, wrt=WRT[seed % 3 : seed % 3 + 2], **options)
        return value(*arrays, **options), y_dot, *grads, *some

    actual = jax.jit(functools.partial(compute, FUNCTIONS["cuda"]))
    first, second = (actual(cast(arrays), cast(dots), grad_y) for _ in "12")
    inputs = [np.asarray(a, "float64") for a in cast(arrays)]
    expected = jax.jit(functools.partial(compute, FUNCTIONS["reference"]))(
        inputs, [np.asarray(a, "float64") for a in cast(dots)], np.asarray(grad_y, "float64")
    )
    names = ("y", "y_dot", *WRT, *WRT[seed % 3 : seed % 3 + 2])
    for name, one, two, right in zip(names, first, second, expected, strict=True):
        # The emulator runs threads in another order each time.
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes(), f"{case}: {name} varies"
        expect_near(f"{name} of {case}", one, right, TOLERANCE[dtype])


def expect_near(name: str, actual, expected, tolerance: float) -> None:
    """The largest error is `tolerance` of the largest value, and NaN is where it is expected."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected)
    assert (np.isnan(actual) == np.isnan(expected)).all(), f"NaN in {name}"
    error = np.max(np.abs(np.nan_to_num(actual - expected)), initial=0)
    scale = np.max(np.abs(np.nan_to_num(expected)), initial=1e-30)
    assert error <= tolerance * scale, f"{name}: {error / scale}"


FUNCTIONS = {
    name: (module.deform_conv2d, module.deform_conv2d_jvp, module.deform_conv2d_backward)
    for name, module in {"cuda": deform_conv2d_cuda, "reference": reference}.items()
}
