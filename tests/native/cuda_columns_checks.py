# SPDX-License-Identifier: MIT
"""What `cuda_on_host.py` checks of the kernels that sample columns, and of the products around them."""

import functools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
from cuda_outside import outside

from jax_dcn import reference
from jax_dcn._src.deform_conv2d import cuda as deform_conv2d_cuda
from jax_dcn._src.deform_conv2d.samples import all_positions
from jax_dcn._src.operator import chunks
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
WHOLE = 40 * 10**6  # bytes of a chunk that holds all of a case
WRT = ("x", "kernel", "offset", "mask", "bias")


def set_chunk_bytes(size: int) -> None:
    """The size of chunks in programs that are lowered afterwards."""
    os.environ[chunks.VARIABLE] = str(size)


def operands(case: Case, seed: int) -> list[np.ndarray]:
    """Those of the primitive."""
    x, kernel, offset, mask, bias = case.arrays("float64", seed)
    mask = np.zeros((*offset.shape[:4], 0)) if mask is None else mask
    return [x, kernel, offset, mask, bias]


def pointed(case: Case, offset: np.ndarray) -> np.ndarray:
    """Offsets with which all samples are taken at one place."""
    if "one_target" not in case.name:
        return offset
    grid = all_positions(jnp.zeros(offset.shape), case.kernel, case.geometry)
    return np.broadcast_to(np.array([1.25, 2.5]) - grid, offset.shape)


def check_columns(case: Case, dtype: str, seed: int) -> None:
    """Value, tangent and gradients, in one chunk or in several."""
    wide = "float64" if dtype == "float64" else "float32"
    arrays, dots = operands(case, seed), operands(case, seed + 1)
    arrays[2] = pointed(case, arrays[2])
    random = np.random.default_rng(seed)
    odd = random.choice([np.inf, -np.inf, np.nan, 1e30, -3e9], arrays[2].shape)
    arrays[2] = np.where(random.random(odd.shape) < 0.003, odd, arrays[2])
    types = [jnp.dtype(name) for name in (dtype, dtype, wide, wide, dtype)]
    arrays, dots = (
        [a.astype(t) for a, t in zip(each, types, strict=True)] for each in (arrays, dots)
    )
    grad_y = case.cotangent(seed=seed)
    if "one_target" in case.name:
        # A sum of many terms of both signs may be small beside the terms, which are rounded.
        grad_y = abs(grad_y)
    grad_y = grad_y.astype(types[0])
    some = WRT[seed % 3 : seed % 3 + 2]
    # By case and seed: parts of an image, in which a bin may still be long, an image, or all. The
    # image of one case is larger than these.
    sizes = [28_000, 60_000, WHOLE] if math.prod(case.image) < 10**4 else [WHOLE]
    set_chunk_bytes(sizes[(COLUMNS.index(case) + seed) % len(sizes)])
    actual = jax.jit(functools.partial(_compute, deform_conv2d_cuda, case.geometry, some))
    first, second = (actual(arrays, dots, grad_y) for _ in "12")
    wide = jax.tree.map(lambda a: a.astype("float64"), (arrays, dots, grad_y))
    expected = outside(_reference, case.geometry)(*wide)
    for name, one in first.items():
        # The emulator runs threads in another order each time.
        same = np.asarray(one).tobytes() == np.asarray(second[name]).tobytes()
        assert same, f"{case}: {name} varies"
        expect_near(f"{name} of {case}", one, expected[name.split()[0]], TOLERANCE[dtype])


def _reference(geometry, arrays, dots, grad_y) -> dict[str, jax.Array]:
    return _compute(reference, geometry, (), arrays, dots, grad_y)


def _compute(module, geometry, some, arrays, dots, grad_y) -> dict[str, jax.Array]:
    """Value, tangent and gradients by the functions of a module, and once more the gradients `some`."""
    options = dict(geometry=geometry, precision=jax.lax.Precision.HIGHEST)
    found = {
        "y": module.deform_conv2d(*arrays, **options),
        "y_dot": module.deform_conv2d_jvp(*arrays[:4], *dots, wrt=WRT, **options),
    }
    backward = functools.partial(module.deform_conv2d_backward, *arrays[:4], grad_y, **options)
    found |= zip(WRT, backward(wrt=WRT), strict=True)
    if some:
        names = (f"{name} of some gradients" for name in some)
        found |= zip(names, backward(wrt=some), strict=True)
    return found


def expect_near(name: str, actual, expected, tolerance: float) -> None:
    """The largest error is `tolerance` of the largest value, and NaN is where it is expected."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected)
    assert (np.isnan(actual) == np.isnan(expected)).all(), f"NaN in {name}"
    error = np.max(np.abs(np.nan_to_num(actual - expected)), initial=0)
    scale = np.max(np.abs(np.nan_to_num(expected)), initial=1e-30)
    assert error <= tolerance * scale, f"{name}: {error / scale}"
