# SPDX-License-Identifier: MIT
"""What `cuda_on_host.py` checks of pooling regions: every call against `jax_dcn.reference`."""

import jax
import jax.numpy as jnp
import numpy as np
from cuda_outside import outside

from jax_dcn import reference
from jax_dcn._src.deform_roi_pool import native
from jax_dcn._src.deform_roi_pool.geometry import RoIGeometry
from tests.deform_roi_pool.cases import CASES, RoICase

# More features than a block has threads, in classes that its chunks cut, and more pixels than a
# tile; several displacements to a bin, and bins without any.
ROI_CASES = [
    *(case for case in CASES if case.name not in ("pool", "version_1", "one_pixel", "align")),
    RoICase("chunks", 1, (6, 11), 195, 3, 2, samples=2, classes=3, part_size=1),
    RoICase("more_parts_than_bins", 2, (9, 5), 7, 4, 2, samples=3, part_size=3),
]
TOLERANCE = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 2.0**-8, "float16": 2.0**-10}


def check_roi_pool(case: RoICase, dtype: str, seed: int) -> None:
    arrays, geometry = operands(case, dtype, seed)
    dots = [_finite(a) for a in operands(case, dtype, seed + 100)[0]]
    grad_y = _cotangent(case, dtype, seed)
    wide = _widened(arrays), _widened(dots), np.asarray(grad_y, np.float64)
    expected = outside(_reference, geometry)(*wide)
    actual = _native(geometry, arrays, dots, grad_y)
    for name, a, e in zip(("y", "y_dot", "x", "offset", "mask"), actual, expected, strict=True):
        _expect_close(f"{case} {dtype} {seed}: {name}", a, e, dtype)


# Image size, samples, and bins and displacements along each axis: the most that fits into shared
# memory and the most that 32 bits count, and one more of each.
ROI_LIMITS = [
    ((2828, 6), 0, (2, 3), (2, 3)),
    ((2828, 7), 0, (2, 3), (2, 3)),
    ((3, 2), 708, (2, 3), (2, 3)),
    ((3, 2), 709, (2, 3), (2, 3)),
    ((3, 2), 1, (214, 215), (215, 215)),
    ((3, 2), 1, (215, 215), (215, 215)),
]


def check_roi_limits(limit: tuple[tuple[int, int], int, tuple, tuple], dtype: str, _) -> None:
    """The rule in Python and the handler in C++ agree."""
    size, samples, bins, parts = limit
    geometry = RoIGeometry(0.5, bins, samples, 0.1, aligned=True)
    regions = 1 if bins == (2, 3) else 0  # The emulation would take long for many bins.
    shapes = (1, *size, 1), (regions, 5), (regions, *parts, 1, 2), (regions, *bins)
    arrays, grad_y = (
        [jnp.zeros(shape, dtype) for shape in shapes],
        jnp.zeros((regions, *bins, 1), dtype),
    )
    refused = None
    try:
        jax.block_until_ready(native.deform_roi_pool(*arrays, geometry=geometry))
        options = dict(geometry=geometry, wrt=("x", "offset", "mask"))
        jax.block_until_ready(native.deform_roi_pool_backward(*arrays, grad_y, **options))
    except jax.errors.JaxRuntimeError as error:
        refused = str(error)
    why_not = native.why_not_on_cuda(*arrays, geometry=geometry)
    assert (why_not or "") in (refused or ""), f"{limit}: {why_not}, but {refused}"
    assert (why_not is None) == (refused is None), f"{limit}: {why_not}, but {refused}"


def _native(geometry, arrays, dots, grad_y) -> list:
    options = dict(wrt=("x", "offset", "mask"), geometry=geometry)
    arrays, linear = [jnp.asarray(a) for a in arrays], [jnp.asarray(dots[i]) for i in (0, 2, 3)]
    return [
        *native.deform_roi_pool(*arrays, geometry=geometry),
        *native.deform_roi_pool_jvp(*arrays, *linear, **options),
        *native.deform_roi_pool_backward(*arrays, jnp.asarray(grad_y), **options),
    ]


def _reference(geometry, arrays, dots, grad_y) -> list:
    x, rois, offset, mask = arrays
    f = lambda x, offset, mask: reference.deform_roi_pool(x, rois, offset, mask, geometry=geometry)
    y, vjp = jax.vjp(f, x, offset, mask)
    return [y, jax.jvp(f, (x, offset, mask), (dots[0], *dots[2:]))[1], *vjp(grad_y)]


def operands(case: RoICase, dtype: str, seed: int) -> tuple[list[np.ndarray], RoIGeometry]:
    """The operands of the primitive. Some regions have no image, and some bins lie nowhere."""
    x, rois, offset, mask = case.arrays("float32", seed)
    random = np.random.default_rng(seed)
    rois[3::4, 0] = random.choice([-1, case.images, np.nan, 1e30], rois[3::4, 0].shape)
    if offset is None:
        offset = np.zeros((case.regions, 0, 0, 1, 2))
    mask = np.zeros((case.regions, 0, 0)) if mask is None else mask
    odd = random.choice([np.inf, -np.inf, np.nan, 1e30], offset.shape)
    offset = np.where(random.random(offset.shape) < 0.05, odd, offset)
    wide = "float64" if dtype == "float64" else "float32"
    samples, scale = list(case.options.values())[-2:]
    geometry = RoIGeometry(
        case.spatial_scale, case.bins, samples, scale, case.group_size, case.aligned
    )
    narrow = x.astype(jnp.dtype(dtype))
    return [narrow, *(np.asarray(a, wide) for a in (rois, offset, mask))], geometry


def _cotangent(case: RoICase, dtype: str, seed: int) -> np.ndarray:
    return case.cotangent("float32", seed).astype(jnp.dtype(dtype))


def _finite(array: np.ndarray) -> np.ndarray:
    wide = np.asarray(array, np.float64)
    return np.where(np.abs(wide) < 1e3, wide, 0).astype(array.dtype)


def _widened(arrays) -> list[np.ndarray]:
    # Positions stay as they are: rounded otherwise, samples would lie on other pixels.
    return [np.asarray(a, np.float64) for a in arrays]


def _expect_close(name: str, actual, expected, dtype: str) -> None:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert (np.isnan(actual) == np.isnan(expected)).all(), f"{name}: NaN elsewhere"
    finite = np.where(np.isnan(expected), 0, expected)
    bound = TOLERANCE[dtype] * max(1.0, np.max(np.abs(finite), initial=0))
    wrong = np.abs(np.where(np.isnan(actual), 0, actual) - finite) > bound
    assert not wrong.any(), f"{name}: {wrong.sum()} of {wrong.size} are wrong"
